"""ONNX: recurrent operators and whole graphs, run by fastlstm, and fastlstm's models as graphs.

`from_onnx` reads a model, `to_onnx` writes one, and `fastlstm.onnx.backend` is a backend of `onnx.backend`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import _check
from .._files import Found
from . import _engine, _read
from ._details import details
from ._export import to_onnx
from ._graph import Graph, Port, settled
from ._model import OnnxModel, OnnxStream, fixed_inputs
from ._plain import NotPlain, Plain, plain
from ._plan import Placement

__all__ = ["OnnxModel", "OnnxStream", "Placement", "Port", "from_onnx", "to_onnx"]


def from_onnx(
    source: Any,
    *,
    whole: bool | None = None,
    engine: str | None = None,
    num_threads: int | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> Any:
    """A trained network from ONNX: a plain fastlstm model, or else the whole graph as an `OnnxModel`.

    source: a path, the bytes of a file, or an onnx.ModelProto, of opset 7 or later. External data must lie in
        the model's own folder, and are read only if a path is given.
    whole: None makes a plain model where the graph is just embedding, recurrent layers and dense ones (with
        activations and layer normalization), else an OnnxModel. False wants the former, or ValueError says
        why not. True wants the latter: it keeps the graph's names, which a plain model does not.
    engine: of an OnnxModel, for all nodes that are not recurrent: "onnxruntime", or "reference", which is
        onnx's own evaluator. None takes ONNX Runtime if it is installed.
    num_threads: of ONNX Runtime within a node, 1 if None. fastlstm has its own (`set_num_threads`).

    fixed: inputs that never change, such as a sampling rate, by name: they become constants, and where an If
        depends on them alone, its branch becomes part of the graph, recurrent nodes and all.

    A plain model is a layer or a `Sequential`, to be called as such: `y, state = model(x, state)`, with x in
    the graph's order of axes; it streams, trains, saves. States are in fastlstm's form, [L*D, B, H]: where
    the graph has inputs and outputs for them, they are this argument and this result. Equal recurrent nodes
    one after the other become one layer with num_layers.

    A sequence of length 0 keeps its initial state, in a plain model and in an OnnxModel. (ONNX Runtime gives
    zeros there.)

    Raises OSError; TypeError or ValueError for an argument, and ValueError naming what is wrong with a model
    that is malformed, truncated, too large, of an unknown opset or not supported by the engine. ImportError
    without onnx.
    """
    whole = None if whole is None else _check.flag("whole", whole)
    chosen = _engine.choose(engine)
    threads = 1 if num_threads is None else _check.integer("num_threads", num_threads, 1, _check.MOST_THREADS)
    proto, where = _read.model(source)
    try:
        graph = settled(proto, {} if fixed is None else fixed_inputs(Graph(proto), fixed))
        reason = "whole=True asks for the whole graph"
        if not whole:
            made, reason = _plain_model(graph)
            if made is not None:
                return made.model
        if whole is False:
            raise ValueError(f"is no plain model: {reason}")
        return OnnxModel(graph, chosen, threads, reason)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _plain_model(graph: Graph) -> tuple[Plain | None, str]:
    """The plain model, or None and why there is none."""
    try:
        return plain(graph), ""
    except (NotPlain, ValueError) as error:
        return None, str(error)


def found(path: str, options: Mapping[str, Any]) -> Found:
    """For `fastlstm convert` and `inspect`: what a file holds."""
    if options:
        raise TypeError(f"an ONNX file says all by itself: {', '.join(options)} cannot be given")
    proto, where = _read.model(path)
    try:
        graph = settled(proto, {})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    made, reason = _plain_model(graph)
    what = f"ONNX model of {len(graph.nodes)} nodes, opset {graph.opset}"
    if made is None:
        return Found(what, None, {}, [reason], details=details(graph))
    lengths = [f"its input {made.lengths!r} holds lengths: pass them in a call"] if made.lengths else []
    return Found(what, made.model, made.origins, lengths, lengths)


def written(model: Any, path: str, lengths: bool = False) -> None:
    """For `fastlstm convert`: the model as an ONNX file, with an input for lengths or without."""
    to_onnx(model, path, lengths=lengths)
