"""Who is measured: one adapter per engine, and which of them are installed here."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import fastlstm

from .base import Call, Cannot, Column, Peer
from .jax_engine import JAX
from .onnx_engines import OnnxRuntime, OpenVINO
from .ours import FastLSTM, NumPy
from .pytorch import Torch
from .tensorflow_engines import Keras, LiteRT

__all__ = ["PEERS", "Call", "Cannot", "Column", "FastLSTM", "NumPy", "Peer", "Torch", "installed", "versions"]

_ALL: tuple[type[Peer], ...] = (NumPy, Torch, OnnxRuntime, OpenVINO, Keras, JAX, LiteRT)
PEERS = {peer.name: peer for peer in _ALL}
_PACKAGES = ("numpy", "torch", "onnxruntime", "openvino", "onnx", "tensorflow", "keras", "jax", "jaxlib")


def installed(name: str) -> bool:
    return all(importlib.util.find_spec(module) for module in PEERS[name].needs)


def versions() -> dict[str, str]:
    """Of every package that has part in a run and is installed here."""
    found = {"fastlstm": fastlstm.__version__}
    for name in (*_PACKAGES, "ai-edge-litert"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found
