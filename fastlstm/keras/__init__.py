"""Keras 3: models and layers of Keras's, from memory or from files, run by fastlstm."""

from __future__ import annotations

from typing import Any

__all__ = ["from_keras"]


def from_keras(source: Any) -> Any:
    raise NotImplementedError
