"""fastlstm: recurrent networks on the CPU. LSTM, GRU, RNN and gated RNN, NumPy in and NumPy out.

    lstm = fastlstm.LSTM(input_size, hidden_size)
    lstm.load_state_dict(torch_lstm.state_dict())
    output, (h, c) = lstm(x)                      # x [T, B, I]

`fastlstm.reference` holds the same layers in plain NumPy, one line per equation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from . import _check, _core
from .initializers import initialize
from .layers import GRU, LSTM, RNN, GatedRNN, Stream
from .leaves import Activation, Dropout, Embedding, LastStep, LayerNorm, Linear
from .losses import binary_cross_entropy_with_logits, cross_entropy, log_softmax, mse_loss, softmax
from .modules import Sequential, SequentialStream, load
from .optimizers import (
    SGD,
    Adam,
    AdamW,
    clip_grad_norm,
    constant_schedule,
    cosine_schedule,
    warmup_schedule,
)
from .pool import StreamPool

if TYPE_CHECKING:
    from . import keras as keras
    from . import onnx as onnx
    from . import reference as reference
    from . import torch as torch
    from .keras import from_keras as from_keras
    from .onnx import from_onnx as from_onnx
    from .onnx import to_onnx as to_onnx
    from .torch import from_torch as from_torch

__version__ = "0.1.0"
__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SGD",
    "Activation",
    "Adam",
    "AdamW",
    "Dropout",
    "Embedding",
    "GatedRNN",
    "LastStep",
    "LayerNorm",
    "Linear",
    "Sequential",
    "SequentialStream",
    "Stream",
    "StreamPool",
    "binary_cross_entropy_with_logits",
    "clip_grad_norm",
    "constant_schedule",
    "cosine_schedule",
    "cross_entropy",
    "get_num_threads",
    "initialize",
    "load",
    "log_softmax",
    "mse_loss",
    "reference",
    "set_num_threads",
    "show_config",
    "softmax",
    "warmup_schedule",
]


def set_num_threads(n: int) -> None:
    """Let a call use up to n threads, for all layers. Results do not depend on it, to the last bit.

    The default is FASTLSTM_NUM_THREADS or else the cores that the process may use (affinity and cgroup
    quota). A call takes more than one thread only where its work repays it. Raises TypeError or ValueError
    unless n is an int in 1..256.
    """
    _core.set_num_threads(_check.integer("n", n, 1, _check.MOST_THREADS))


def get_num_threads() -> int:
    """The most threads that a call may use."""
    return _core.get_num_threads()


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Print versions, CPU path and threads, or return them with mode="dicts", as `numpy.show_config` does."""
    import platform

    import numpy

    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode must be 'stdout' or 'dicts', got {mode!r}")
    config = {
        "fastlstm": __version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "compiler": _core.compiler(),
        "machine": platform.machine(),
        "cpu_path": _core.isa(),
        "cpu_paths": list(_core.isas()),
        "int8_path": _core.integer_isa(),
        "int8_paths": list(_core.integer_isas()),
        "cpu_features": list(_core.cpu_features()),
        "num_threads": _core.get_num_threads(),
    }
    if mode == "dicts":
        return config
    for name, value in config.items():
        print(f"{name}: {' '.join(value) if isinstance(value, list) else value}")
    return None


# On demand: most users never need them, and some want packages that are optional. Those stay out of __all__.
_LAZY = {
    "reference": "reference",
    "torch": "torch",
    "from_torch": "torch",
    "keras": "keras",
    "from_keras": "keras",
    "onnx": "onnx",
    "from_onnx": "onnx",
    "to_onnx": "onnx",
}

if not TYPE_CHECKING:  # or else type checkers would take any name

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        module = importlib.import_module(f".{_LAZY[name]}", __name__)
        return module if name == _LAZY[name] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_LAZY.keys() - __all__, "__version__"])
