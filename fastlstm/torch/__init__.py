"""PyTorch: modules with the interface of torch.nn's recurrent ones, run by fastlstm."""

from __future__ import annotations

from typing import Any

from ._modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "from_torch"]


def from_torch(module: Any) -> Any:
    raise NotImplementedError
