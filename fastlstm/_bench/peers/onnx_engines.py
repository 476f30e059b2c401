"""The engines that read ONNX: ONNX Runtime and OpenVINO."""

from __future__ import annotations

import importlib
import logging
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..grid import LAYERS, Array, Problem
from .base import Call, Cannot, Column, Peer, refuse_options

OPTIONS = ("num_layers", "bias", "bidirectional", "reverse", "nonlinearity", "reset_after")
ORDER = {"lstm": [0, 3, 1, 2], "gru": [1, 0, 2], "rnn": [0]}  # ifgo, rzn, as ONNX has them: iofc, zrh


def _directions(p: Problem) -> list[str]:
    return ["", "_reverse"] if p.row.options.get("bidirectional") else [""]


def _constants(p: Problem, n: int) -> dict[str, Array]:
    """W, R and B of layer n, each [D, ..]."""
    order, found = ORDER[p.row.cell], {}

    def stacked(name: str) -> Array:
        each = [np.split(p.weights[f"{name}_l{n}{end}"], len(order)) for end in _directions(p)]
        return np.stack([np.concatenate([parts[i] for i in order]) for parts in each])

    found = {f"W{n}": stacked("weight_ih"), f"R{n}": stacked("weight_hh")}
    if p.row.options.get("bias", True):
        found[f"B{n}"] = np.concatenate([stacked("bias_ih"), stacked("bias_hh")], 1)
    return found


def _state_names(p: Problem, n: int, end: str = "") -> list[str]:
    return [f"{s}{end}{n}" for s in "hc"[: len(p.state)]]


def _only_last(p: Problem) -> bool:
    """Whether there is no Y, as one step in one direction is its last state."""
    return p.row.steps == 1 and len(_directions(p)) == 1


def _model(p: Problem) -> Any:
    """An ONNX model, a node a layer: constant weights, x and each layer's states as inputs."""
    if p.row.cell == "gated_rnn":
        raise Cannot("no GatedRNN")
    if p.row.dtype != "float32":
        raise Cannot(f"no {p.row.dtype}")
    refuse_options(p, *OPTIONS)
    onnx: Any = importlib.import_module("onnx")
    helper, row, d = onnx.helper, p.row, len(_directions(p))
    options: dict[str, Any] = {"hidden_size": row.units}
    if d == 2 or row.options.get("reverse"):
        options["direction"] = "bidirectional" if d == 2 else "reverse"
    if row.cell == "gru":
        options["linear_before_reset"] = int(row.options.get("reset_after", True))
    if row.options.get("nonlinearity") == "relu":
        options["activations"] = ["Relu"] * d

    def declare(names: list[str], shape: tuple[int, ...]) -> list[Any]:
        return [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in names]

    inputs, nodes, x = declare(["x"], p.x.shape), [], "x"
    constants: dict[str, Array] = {}
    state = (d, *p.state[0].shape[1:])
    outputs = [] if _only_last(p) else declare(["y"], (row.steps, d, row.batch, row.units))
    for n in range(row.layers):
        own = _constants(p, n)
        constants |= own
        inputs += declare(_state_names(p, n), state)
        outputs += declare(_state_names(p, n, "n"), state)
        last = n == row.layers - 1
        y = "" if _only_last(p) else "y" if last else f"y{n}"
        bias, lengths = f"B{n}" if f"B{n}" in own else "", "" if p.lengths is None else "lengths"
        weights = [f"W{n}", f"R{n}", bias, lengths]
        nodes.append(
            helper.make_node(
                LAYERS[row.cell], [x, *weights, *_state_names(p, n)], [y, *_state_names(p, n, "n")], **options
            )
        )
        x = f"x{n + 1}"
        if _only_last(p):
            x = f"hn{n}"  # [1, B, H] is the next layer's x [T, B, H]
        elif not last:  # Y [T, D, B, H] -> [T, B, D*H]
            nodes.append(helper.make_node("Transpose", [y], [f"{y}_rows"], perm=[0, 2, 1, 3]))
            constants["merged"] = np.array([0, 0, -1])
            nodes.append(helper.make_node("Reshape", [f"{y}_rows", "merged"], [x]))
    if p.lengths is not None:
        inputs.append(helper.make_tensor_value_info("lengths", onnx.TensorProto.INT32, p.lengths.shape))
    initializers = [onnx.numpy_helper.from_array(v, name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "bench", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _feed(p: Problem) -> dict[str, Array]:
    d, feed = len(_directions(p)), {"x": p.x}
    for n in range(p.row.layers):
        feed |= zip(_state_names(p, n), (v[n * d : (n + 1) * d] for v in p.state), strict=True)
    return feed if p.lengths is None else {**feed, "lengths": p.lengths.astype(np.int32)}


def _read(p: Problem, outputs: Any) -> tuple[Array, ...]:
    """Y and the states of each layer, in the order of the model's outputs -> output, h(, c)."""
    y, *states = (None, *outputs) if _only_last(p) else outputs
    merged = [np.concatenate(states[i :: len(p.state)]) for i in range(len(p.state))]
    if y is None:
        return (np.array(states[-len(p.state)]), *merged)
    return (np.moveaxis(np.array(y), 1, 2).reshape(*y.shape[:1], y.shape[2], -1), *merged)


class OnnxRuntime(Peer):
    """run, or inputs and outputs bound once (IOBinding); the threads spin or not as they do by default. int8:
    quantize_dynamic, per tensor or per channel, the more accurate where both are as fast."""

    name: ClassVar[str] = "onnxruntime"
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")
    distributions: ClassVar[tuple[str, ...]] = ("onnxruntime", "numpy")

    def __init__(self, threads: int) -> None:
        self.ort: Any = importlib.import_module("onnxruntime")
        self.options = self.ort.SessionOptions()
        self.options.intra_op_num_threads, self.options.inter_op_num_threads = threads, 1

    def _session(self, model: bytes) -> Any:
        return self.ort.InferenceSession(model, self.options, providers=["CPUExecutionProvider"])

    def _calls(self, p: Problem, model: bytes, prefix: str = "") -> list[Call]:
        session = self._session(model)
        feed, binding = _feed(p), session.io_binding()
        for name, value in feed.items():
            binding.bind_cpu_input(name, value)
        outputs = []
        for o in session.get_outputs():
            outputs.append(self.ort.OrtValue.ortvalue_from_shape_and_type(o.shape, np.float32, "cpu"))
            binding.bind_ortvalue_output(o.name, outputs[-1])

        def read_bound(_: None) -> tuple[Array, ...]:
            return _read(p, [o.numpy() for o in outputs])

        return [
            Call(partial(session.run, None, feed), partial(_read, p), f"{prefix}run"),
            Call(partial(session.run_with_iobinding, binding), read_bound, f"{prefix}IOBinding"),
        ]

    def calls(self, p: Problem) -> list[Call]:
        if p.row.train:
            raise Cannot("no training")
        return self._calls(p, _model(p).SerializeToString())

    def reduced(self, p: Problem) -> list[Column]:
        def refused() -> list[Call]:
            raise Cannot("no bfloat16")

        return [
            Column("onnxruntime bfloat16", p, refused),
            Column("onnxruntime int8", p, partial(self._int8, p)),
        ]

    def _int8(self, p: Problem) -> list[Call]:
        if p.row.cell != "lstm":
            raise Cannot(f"no int8 {LAYERS[p.row.cell]}")
        quantization: Any = importlib.import_module("onnxruntime.quantization")
        logging.getLogger().setLevel(logging.ERROR)  # it advises to prepare the model, of one node
        calls = []
        with tempfile.TemporaryDirectory() as folder:
            for per_channel in (False, True):
                path = Path(folder, "int8.onnx")
                quantization.quantize_dynamic(
                    _model(p), path, op_types_to_quantize=["LSTM"], per_channel=per_channel,
                    weight_type=quantization.QuantType.QInt8,
                )  # fmt: skip
                prefix = "per channel, " if per_channel else "per tensor, "
                calls += self._calls(p, path.read_bytes(), prefix)
        return calls

    def pooled(self, p: Problem) -> list[Column]:
        return [
            Column(self.name, p, partial(self._carried, p)),
            Column("onnxruntime alone", p, partial(self._alone, p)),
        ]

    def _carried(self, p: Problem) -> list[Call]:
        """One batch; the states that a call leaves are fed to the next."""
        session, feed = self._session(_model(p).SerializeToString()), _feed(p)
        names = [name for name in feed if name != "x"]

        def run() -> Any:
            outputs = session.run(None, feed)
            feed.update(zip(names, outputs, strict=True))
            return outputs

        return [Call(run, lambda outputs: _read(p, outputs)[:1], "batch")]

    def _alone(self, p: Problem) -> list[Call]:
        """A call for each session, and its states fed to its next."""
        row = replace(p.row, batch=1)
        one = Problem(row, p.weights, p.x[:, :1], tuple(v[:, :1] for v in p.state), None, ())
        session = self._session(_model(one).SerializeToString())
        feeds = [_feed(one) | {"x": np.ascontiguousarray(p.x[:, i : i + 1])} for i in range(p.row.batch)]
        names = [name for name in feeds[0] if name != "x"]

        def run() -> list[Any]:
            found = []
            for feed in feeds:
                outputs = session.run(None, feed)
                feed.update(zip(names, outputs, strict=True))
                found.append(outputs)
            return found

        def read(found: list[Any]) -> tuple[Array, ...]:
            return (np.concatenate([_read(one, outputs)[0] for outputs in found], 1),)

        return [Call(run, read, "a run for each")]

    def cold(self, p: Problem, folder: Path) -> str:
        (folder / "model.onnx").write_bytes(_model(p).SerializeToString())
        states = ", ".join(f"'{s}0': zero" for s in "hc"[: len(p.state)])
        return (
            "import onnxruntime; "
            "s = onnxruntime.InferenceSession('model.onnx', providers=['CPUExecutionProvider']); "
            f"zero = numpy.zeros((1, 1, {p.row.units}), 'float32'); y = s.run(None, {{'x': x, {states}}})[0]"
        )


class OpenVINO(Peer):
    """One infer request, latency hint, float32 precision; inputs are set once, as shared memory."""

    name: ClassVar[str] = "openvino"
    needs: ClassVar[tuple[str, ...]] = ("openvino", "onnx")
    distributions: ClassVar[tuple[str, ...]] = ("openvino", "numpy")

    def __init__(self, threads: int) -> None:
        self.ov: Any = importlib.import_module("openvino")
        self.core = self.ov.Core()
        self.options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        self.options["INFERENCE_NUM_THREADS"] = threads

    def calls(self, p: Problem) -> list[Call]:
        if p.row.train:
            raise Cannot("no training")
        model = self.core.read_model(_model(p).SerializeToString(), b"")
        compiled = self.core.compile_model(model, "CPU", self.options)
        request = compiled.create_infer_request()
        for name, value in _feed(p).items():
            request.set_tensor(name, self.ov.Tensor(value, shared_memory=True))

        def read(_: object) -> tuple[Array, ...]:
            return _read(p, [request.get_output_tensor(i).data for i in range(len(compiled.outputs))])

        return [Call(request.infer, read, "infer request")]

    def cold(self, p: Problem, folder: Path) -> str:
        (folder / "openvino.onnx").write_bytes(_model(p).SerializeToString())
        states = ", ".join(f"'{s}0': zero" for s in "hc"[: len(p.state)])
        return (
            # Without the hint it computes in bfloat16 where the CPU can.
            "import openvino; f32 = {'INFERENCE_PRECISION_HINT': 'f32'}; "
            "m = openvino.Core().compile_model('openvino.onnx', 'CPU', f32); "
            f"zero = numpy.zeros((1, 1, {p.row.units}), 'float32'); y = m({{'x': x, {states}}})[0]"
        )
