"""ONNX: recurrent operators and whole graphs, run by fastlstm, and fastlstm's models as graphs.

`from_onnx` reads a model, `to_onnx` writes one, and `fastlstm.onnx.backend` is a backend of `onnx.backend`.
"""

from __future__ import annotations

from typing import Any

from .. import _check
from . import _engine, _read
from ._export import to_onnx
from ._graph import Graph, Port
from ._model import OnnxModel, OnnxStream
from ._plan import Placement

__all__ = ["OnnxModel", "OnnxStream", "Placement", "Port", "from_onnx", "to_onnx"]


def from_onnx(
    source: Any, *, whole: bool | None = None, engine: str | None = None, num_threads: int | None = None
) -> Any:
    proto, where = _read.model(source)
    graph = Graph(proto, where)
    threads = 1 if num_threads is None else _check.integer("num_threads", num_threads, 1, _check.MOST_THREADS)
    try:
        return OnnxModel(graph, _engine.choose(engine), threads)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
