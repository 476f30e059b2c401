"""PyTorch: modules with the interface of torch.nn's recurrent ones, run by fastlstm.

    report = fastlstm.torch.accelerate(model)     # every LSTM, GRU and RNN of the model, in place

`from_torch` and `to_torch` convert between PyTorch's modules and fastlstm's objects, which need no PyTorch.
"""

from __future__ import annotations

from ._accelerate import Left, Report, accelerate
from ._from import found as found
from ._from import from_torch
from ._modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from ._to import LastStep, Sequential, to_torch
from ._to import written as written

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "LastStep",
    "Left",
    "RNNCell",
    "Report",
    "Sequential",
    "accelerate",
    "from_torch",
    "to_torch",
]
