"""PyTorch: modules with the interface of torch.nn's recurrent ones, run by fastlstm."""

from __future__ import annotations

from typing import Any

__all__ = ["from_torch", "to_torch"]


def from_torch(module: Any) -> Any:
    raise NotImplementedError


def to_torch(module: Any) -> Any:
    raise NotImplementedError
