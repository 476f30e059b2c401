"""`accelerate`: modules of a model become fastlstm's where they stand."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from . import _engine, _modules

__all__ = ["Left", "Report", "accelerate"]

_SWAPS: dict[type[Any], type[Any]] = {
    nn.LSTM: _modules.LSTM,
    nn.GRU: _modules.GRU,
    nn.RNN: _modules.RNN,
    nn.LSTMCell: _modules.LSTMCell,
    nn.GRUCell: _modules.GRUCell,
    nn.RNNCell: _modules.RNNCell,
}
_NAMES = frozenset(cls.__name__ for cls in _SWAPS)


class Left(NamedTuple):
    """A recurrent module that stays PyTorch's."""

    name: str  # in the model
    kind: str  # its class
    reason: str


class Report(NamedTuple):
    """What `accelerate` did. Names are those of `model.named_modules()`; the model itself is ''."""

    swapped: list[str]
    left: list[Left]

    def __repr__(self) -> str:
        lines = [f"swapped {len(self.swapped)}, left {len(self.left)}"]
        lines += [f"  {name or 'the model itself'}: runs on fastlstm" for name in self.swapped]
        lines += [f"  {e.name or 'the model itself'}: {e.kind} left, {e.reason}" for e in self.left]
        return "\n".join(lines)


def accelerate(model: nn.Module) -> Report:
    """Let fastlstm run every LSTM, GRU, RNN, LSTMCell, GRUCell and RNNCell of a model, in place.

    A module stays the same object with the same parameters, hooks, mode and attributes; only its class
    becomes the one of `fastlstm.torch` of that name, a subclass of its own. So optimizers, references and
    checkpoints keep working, and `model` may be such a module itself. To do it twice changes nothing.

    Returns a Report: `swapped` holds the names of the modules that are fastlstm's now for the first time,
    `left` what looks recurrent and stays, with the reason: subclasses, parametrized, scripted and quantized
    modules, other devices and dtypes. Raises TypeError if model is no `torch.nn.Module`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    swapped, left = [], []
    for name, module in model.named_modules():
        if type(module) in _SWAPS.values() or not _is_recurrent(module):
            continue
        reason = _reason(module)
        if reason is None:
            object.__setattr__(module, "__class__", _SWAPS[type(module)])
            swapped.append(name)
        else:
            left.append(Left(name, _class_name(module), reason))
    return Report(swapped, left)


def _class_name(module: Any) -> str:
    return str(getattr(module, "original_name", type(module).__name__))


def _is_recurrent(module: Any) -> bool:
    return isinstance(module, (nn.RNNBase, nn.RNNCellBase)) or (
        _class_name(module) in _NAMES and isinstance(module, (torch.jit.ScriptModule, _quantized_types()))
    )


def _quantized_types() -> tuple[type[Any], ...]:
    from torch.ao.nn.quantized.dynamic.modules import rnn

    return rnn.RNNBase, rnn.RNNCellBase


def _reason(module: Any) -> str | None:
    """Why it cannot be swapped."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is scripted: accelerate the model before torch.jit"
    if isinstance(module, _quantized_types()):
        return "it is quantized: fastlstm.from_torch and `quantize` offer int8"
    if nn.utils.parametrize.is_parametrized(module):
        return "it is parametrized: accelerate first, then parametrize"
    if type(module) not in _SWAPS:
        return f"{type(module).__name__} is a subclass and may compute something else"
    if "forward" in vars(module):
        return "its forward was replaced"
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.device.type != "cpu":
            return f"{name} is on the device {parameter.device.type}, fastlstm runs on the CPU"
        if parameter.dtype not in _engine.DTYPES:
            return f"{name} is {parameter.dtype}, fastlstm takes float32 and float64"
    return None
