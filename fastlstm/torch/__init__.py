"""PyTorch: modules with the interface of torch.nn's recurrent ones, run by fastlstm.

    report = fastlstm.torch.accelerate(model)     # every LSTM, GRU and RNN of the model, in place

`from_torch` and `to_torch` convert between PyTorch's modules and fastlstm's objects, which need no PyTorch.

LSTM, GRU, RNN and the three cells are subclasses of torch.nn's, with float32 or float64 on the CPU run by
fastlstm, forward and backward. What is PyTorch's to do is done by PyTorch, with one warning for each reason:
other devices and dtypes, autocast, torch.func, forward-mode differentiation, torch.jit.trace, subclasses of
Tensor. Threads are fastlstm's: `fastlstm.set_num_threads`, not torch's.

Weights are packed once and followed: what PyTorch counts (optimizers, `load_state_dict`, `copy_`), other
tensors, and writes past PyTorch to most of a weight are seen; after a write of a few elements through `.data`
or NumPy (clamping, a mask of few) call the module's `repack()`. Dropout between layers draws from torch's
generator: the same distribution as torch.nn's, not the same masks. Second derivatives and batched gradients
are computed by PyTorch's operations.

`torch.ao.quantization.quantize_dynamic` goes by exact types: it quantizes torch.nn's modules, not these.

torch.compile calls the modules as they are, as it does with torch.nn's; with
`torch._dynamo.config.allow_rnn = True`, and in torch.export, each is one operator of the graph,
`fastlstm::recurrent`, whose backward runs the forward pass again.
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("fastlstm.torch needs PyTorch: pip install 'fastlstm[torch]'") from error

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
