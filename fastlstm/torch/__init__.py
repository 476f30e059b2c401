"""PyTorch: modules with the interface of torch.nn's recurrent ones, run by fastlstm.

    report = fastlstm.torch.accelerate(model)     # every LSTM, GRU and RNN of the model, in place

`from_torch` and `to_torch` convert between PyTorch's modules and fastlstm's objects, which need no PyTorch.
"""

from __future__ import annotations

from ._accelerate import Left, Report, accelerate
from ._modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "Left",
    "RNNCell",
    "Report",
    "accelerate",
]
