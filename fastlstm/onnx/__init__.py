"""ONNX: recurrent operators and whole graphs, run by fastlstm, and fastlstm's models as graphs."""

from __future__ import annotations

from typing import Any

__all__ = ["from_onnx", "to_onnx"]


def from_onnx(source: Any) -> Any:
    raise NotImplementedError


def to_onnx(model: Any, path: Any) -> None:
    raise NotImplementedError
