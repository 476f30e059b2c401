"""What runs the nodes that are not recurrent: ONNX Runtime, or onnx's own reference evaluator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from . import _node
from ._read import RECURRENT, Array, Proto, require

Runner: TypeAlias = Callable[[Sequence[Any]], Sequence[Any]]  # values in the order of names, to such values

ENGINES = ("onnxruntime", "reference")


def choose(engine: Any) -> str:
    """The engine to use: the one asked for, or ONNX Runtime where it is installed."""
    if engine is not None and engine not in ENGINES:
        raise ValueError(f"engine must be None, {' or '.join(map(repr, ENGINES))}, got {engine!r:.100}")
    if engine == "reference":
        return "reference"
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        if engine is None:
            return "reference"
        raise ImportError("engine='onnxruntime' needs onnxruntime: pip install 'fastlstm[onnx]'") from error
    return "onnxruntime"


def compiled(engine: str, proto: Proto, num_threads: int) -> Runner:
    """A model of one segment, ready to run. ValueError if the engine refuses it."""
    try:
        return {"onnxruntime": _onnxruntime, "reference": _reference}[engine](proto, num_threads)
    except Exception as error:  # of any type: these are other people's
        raise ValueError(f"{engine} refuses the model: {' '.join(str(error).split()):.500}") from error


def _onnxruntime(proto: Proto, num_threads: int) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # fatal ones only: whatever else matters is raised
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        enable_fallback=0,  # which prints a banner, to try the same provider again
    )
    names = [value.name for value in proto.graph.input]
    outputs = [value.name for value in proto.graph.output]
    run = session.run

    def runner(values: Sequence[Any]) -> Sequence[Any]:
        try:
            found: Sequence[Any] = run(outputs, dict(zip(names, values, strict=True)))
        except Exception as error:
            raise ValueError(f"onnxruntime: {' '.join(str(error).split()):.500}") from error
        return found

    return runner


def _reference(proto: Proto, num_threads: int) -> Runner:
    require()
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(proto, new_ops=_reference_operators())
    names = [value.name for value in proto.graph.input]

    def runner(values: Sequence[Any]) -> Sequence[Any]:
        try:
            found: Sequence[Any] = evaluator.run(None, dict(zip(names, values, strict=True)))
        except Exception as error:
            raise ValueError(f"reference: {' '.join(str(error).split()):.500}") from error
        return found

    return runner


def _reference_operators() -> list[Any]:
    """RNN, GRU and LSTM for the reference evaluator, whose own ones leave out most attributes.

    They run the nodes inside Loop, If and Scan, with weights that may differ from call to call.
    """
    from onnx.reference.op_run import OpRun

    def run(self: Any, x: Array, *inputs: Any, **attributes: Any) -> tuple[Array, ...]:
        recipe = _node.recipe(self.onnx_node, self.run_params["opsets"][""])
        values = dict(enumerate(inputs))  # absent ones are None, or missing at the end
        w, r, b, lengths, h, c, p = (values.get(k) for k in range(7))
        made = _node.Recurrent(recipe, _node.Weights(np.asarray(w), np.asarray(r), b, p))
        return tuple(np.ascontiguousarray(v) for v in made(x, lengths, h, c)[: len(self.onnx_node.output)])

    return [type(name, (OpRun,), {"op_domain": "", "_run": run}) for name in RECURRENT]
