"""`to_torch`: a fastlstm object as a module of PyTorch's own."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastlstm

from .._files import description, replace_file
from ..layers import _Layer
from ..leaves import _Leaf
from . import _leaves

__all__ = ["LastStep", "Sequential", "to_torch", "written"]


OPTIONS = "fastlstm.options"  # in the metadata of a state dict, where PyTorch keeps versions of modules


class LastStep(nn.Module):  # type: ignore[misc]
    """`fastlstm.LastStep`: h_n of the recurrent module before it, of its last layer."""

    def __init__(self, directions: int) -> None:
        super().__init__()
        self.directions = directions

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat(tuple(h[-self.directions :]), dim=-1)


class Sequential(nn.Sequential):  # type: ignore[misc]
    """`fastlstm.Sequential` in PyTorch: recurrent modules hand on their output, states are the caller's.

    Parameters have the names of torch.nn.Sequential.
    """

    def forward(self, x: Tensor, state: Any = None, lengths: Any = None) -> tuple[Tensor, tuple[Any, ...]]:
        """x, state, lengths and what is returned: as in a call of `fastlstm.Sequential`, as tensors.

        lengths: None, or [B] integers in 1..T, as `pack_padded_sequence` takes.
        """
        recurrent = [module for module in self if isinstance(module, nn.RNNBase)]
        states = iter([None] * len(recurrent) if state is None else state)
        final: list[Any] = []
        valid = None
        if lengths is not None:
            lengths = torch.as_tensor(lengths)
            batch_first = recurrent[0].batch_first if recurrent else False
            valid = torch.arange(x.shape[1 if batch_first else 0])[:, None] < lengths
            valid = valid.T if batch_first else valid
            x = x * (valid if x.dim() == 2 else valid[..., None])  # as fastlstm: padding is not read
        for module in self:
            if isinstance(module, LastStep):
                x = module(final[-1][0] if isinstance(final[-1], tuple) else final[-1])
                valid = None
            elif not isinstance(module, nn.RNNBase):
                x = module(x)
                if valid is not None:
                    x = x * valid[..., None]
            else:
                x, now = _ran(module, x, next(states), lengths)
                final.append(now)
        return x, tuple(final)


def _ran(module: nn.RNNBase, x: Tensor, state: Any, lengths: Tensor | None) -> tuple[Tensor, Any]:
    if lengths is None:
        y, now = module(x, state)
        return y, now
    first = module.batch_first
    packed = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=False)
    y, now = module(packed, state)
    padded, _ = pad_packed_sequence(y, batch_first=first, total_length=x.shape[1 if first else 0])
    return padded, now


def to_torch(object: Any) -> nn.Module:
    """A module of PyTorch with copies of the parameters, which computes what a fastlstm object does.

    A recurrent layer becomes torch.nn.LSTM, GRU or RNN, a leaf its namesake, a `fastlstm.Sequential` a
    `fastlstm.torch.Sequential`: a torch.nn.Sequential whose call is `output, state = model(x, state,
    lengths)`. `fastlstm.from_torch` takes them back.

    Raises ValueError naming what torch.nn has no module for (peepholes, clip, other activations, a GRU that
    resets before the product, smaller weights, ...), TypeError for what is no fastlstm object.
    """
    if isinstance(object, fastlstm.Sequential):
        return Sequential(*(_part(object, i) for i in range(len(object))))
    if not isinstance(object, (_Layer, _Leaf)):
        raise TypeError(f"to_torch takes a layer or module of fastlstm, got {type(object).__name__}")
    return _leaves.module_of(object)


def _part(model: fastlstm.Sequential, i: int) -> nn.Module:
    if isinstance(model[i], fastlstm.LastStep):
        return LastStep(2 if model[i - 1].bidirectional else 1)
    try:
        return _leaves.module_of(model[i])
    except _leaves.Unsupported as error:
        raise _leaves.Unsupported(f"module {i}: {error}") from None


def written(model: Any, path: str) -> None:
    """Write the state dict of `to_torch(model)` as `torch.save` does, the options beside it.

    PyTorch's own `load_state_dict` takes it as any other; `from_torch(path)` finds the options in its
    metadata. ValueError as `to_torch`.
    """
    state = to_torch(model).state_dict()
    state._metadata[OPTIONS] = {"options": description(model._options)}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    replace_file(path, buffer.getvalue())
