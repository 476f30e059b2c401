"""fastlstm as a backend of `onnx.backend`: `prepare`, `run_model`, `run_node`, `supports_device`.

Recurrent nodes run on fastlstm, all others on ONNX Runtime or, where it is not installed, on onnx's reference
evaluator. Needs onnx.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._read import require

onnx = require()
from onnx.backend.base import Backend, BackendRep, Device, DeviceType, namedtupledict  # noqa: E402

from . import from_onnx  # noqa: E402

__all__ = [
    "FastLSTMBackend",
    "FastLSTMRep",
    "is_compatible",
    "prepare",
    "run_model",
    "run_node",
    "supports_device",
]


class FastLSTMRep(BackendRep):  # type: ignore[misc]  # onnx's class, of no known type
    """A model that is ready to run."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._type = namedtupledict("Outputs", list(model.outputs))

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """inputs: values in the order of the graph's inputs, or by name. Returns the outputs, a named tuple.

        Raises TypeError for options, as there are none; otherwise as the model's call.
        """
        if kwargs:
            raise TypeError(f"run takes no option {', '.join(kwargs)}")
        if not isinstance(inputs, dict):
            names = list(self._model.inputs)
            if not isinstance(inputs, (list, tuple)):
                inputs = [inputs]
            if len(inputs) > len(names):
                raise ValueError(f"inputs must be at most {len(names)}, got {len(inputs)}")
            inputs = dict(zip(names, inputs, strict=False))
        outputs: tuple[Any, ...] = self._type(*self._model(inputs).values())
        return outputs


class FastLSTMBackend(Backend):  # type: ignore[misc]  # onnx's class, of no known type
    """The backend, as `onnx.backend.base` defines it."""

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> FastLSTMRep:
        """A ModelProto, checked and planned. Options are those of `from_onnx`. ValueError, TypeError."""
        if not cls.supports_device(device):
            raise ValueError(f"device must be 'CPU', got {device!r:.100}")
        return FastLSTMRep(from_onnx(model, whole=True, **kwargs))

    @classmethod
    def run_node(
        cls,
        node: Any,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """One node as a model of its own, of the newest opset or `opset_version`."""
        version = kwargs.pop("opset_version", onnx.defs.onnx_opset_version())
        names = [name for name in node.input if name]
        helper = onnx.helper
        values = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in zip(names, inputs, strict=True)
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = helper.make_graph([node], "node", values, outputs)
        imports = [helper.make_opsetid(node.domain, version)]
        ir_version = helper.find_min_ir_version_for(imports, ignore_unknown=True)
        model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
        inferred = onnx.shape_inference.infer_shapes(model)
        return cls.prepare(inferred, device, **kwargs).run(list(inputs))

    @classmethod
    def supports_device(cls, device: str) -> bool:
        try:
            return bool(Device(device).type == DeviceType.CPU)
        except AttributeError:  # what Device raises for a kind that it does not know
            return False


is_compatible = FastLSTMBackend.is_compatible
prepare = FastLSTMBackend.prepare
run_model = FastLSTMBackend.run_model
run_node = FastLSTMBackend.run_node
supports_device = FastLSTMBackend.supports_device
