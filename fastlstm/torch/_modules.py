"""PyTorch's recurrent modules with fastlstm below: constructor, parameters, shapes, errors and repr are
PyTorch's, inherited."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import Parameter
from torch.nn.utils.rnn import PackedSequence

from .. import _check
from . import _engine, _ops
from ._engine import Call, Packed

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

_OPTIONS = frozenset(
    {
        "mode",
        "nonlinearity",
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "bidirectional",
        "proj_size",
    }
)

# Called at each step; as attributes of modules they would take twice the time.
_grad_enabled = torch.is_grad_enabled
_autocast = torch._C._is_any_autocast_enabled
_transforms = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing = torch._C._get_tracing_state
_forward_ad = torch.autograd.forward_ad
_compiling = torch.compiler.is_compiling
_export = _engine.export
_tensor = torch.from_numpy

_warned: set[str] = set()


def _warn(reason: str) -> None:
    """Once for each reason."""
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"fastlstm.torch: {reason}: PyTorch's own kernel runs instead", stacklevel=4)


def _in_graph() -> bool:
    """Whether operations are recorded or watched, so that the call must be an operator."""
    return bool(_compiling() or _dispatch_modes())


def _plain() -> bool:
    """Whether nothing watches or changes what operations do, so that the core may be called directly."""
    return not (
        _autocast()
        or _transforms()
        or _dispatch_modes()
        or _tracing() is not None
        or _forward_ad._current_level >= 0
    )


def _circumstance() -> str | None:
    """Why, whatever the tensors are, fastlstm cannot run now."""
    if _tracing() is not None:
        return "torch.jit.trace records PyTorch's operations only"
    if _transforms():
        return "transforms of torch.func (vmap, grad, jvp) do not reach into it"
    if _autocast():
        return "autocast is on"
    return None


def _hindrance(tensors: Sequence[Tensor]) -> str | None:
    """Why fastlstm cannot take these tensors, empty where PyTorch may say so, None if it can."""
    for tensor in tensors:
        if type(tensor) is not Tensor and type(tensor) is not Parameter:
            if not isinstance(tensor, Tensor):
                return ""
            if not isinstance(tensor, FakeTensor):
                return f"a {type(tensor).__name__} is no plain tensor"
    dtype, device = tensors[0].dtype, tensors[0].device
    for tensor in tensors:
        if tensor.dtype != dtype or tensor.device != device:
            return ""
        if tensor.layout != torch.strided:
            return "a tensor is sparse"
    if device.type != "cpu":
        return f"tensors are on the device {device.type}"
    if dtype not in _engine.DTYPES:
        return f"tensors are {dtype}"
    if _forward_ad._current_level >= 0 and any(
        _forward_ad.unpack_dual(t).tangent is not None for t in tensors
    ):
        return "forward-mode differentiation is not fastlstm's"
    return None


class _Accelerated:
    """What the stacks and the cells share: weights that are packed once and followed."""

    _fastlstm: Packed | None = None  # of this module alone: neither copied nor pickled
    _is_cell: ClassVar[bool]

    training: bool
    dropout: float
    batch_first: bool
    _parameters: dict[str, Any]

    def repack(self) -> None:
        """Take the weights anew at the next call.

        Needed only after a few elements were written behind PyTorch's back, through `.data` or NumPy. All
        else is seen: changes that PyTorch counts (optimizers, `load_state_dict`, `copy_`), other tensors or
        memory, and writes that change most of a weight.
        """
        self.__dict__.pop("_fastlstm", None)

    def __getstate__(self) -> Any:
        parent: Any = super()
        state = dict(parent.__getstate__())
        state.pop("_fastlstm", None)
        return state

    def __prepare_scriptable__(self) -> Any:
        """What torch.jit.script compiles instead: PyTorch's module with the same parameters."""
        _warn("torch.jit.script compiles PyTorch's operations only")
        theirs: Any = next(cls for cls in type(self).__mro__ if cls.__module__ == nn.LSTM.__module__)
        plain = theirs.__new__(theirs)
        plain.__dict__.update({name: value for name, value in vars(self).items() if name != "_fastlstm"})
        return plain

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OPTIONS:
            self.repack()
        super().__setattr__(name, value)

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As PyTorch's forward of this module."""
        packed = self._fastlstm
        if _compiling() or packed is None or _grad_enabled() or not _plain():
            return self._careful(input, hx)
        found = self._quick(packed, input, hx)
        if found is None:
            return self._careful(input, hx)
        y, h_n, c_n = found
        if h_n is None:  # of a cell
            return _tensor(y) if c_n is None else (_tensor(y), _tensor(c_n))
        return _tensor(y), _tensor(h_n) if c_n is None else (_tensor(h_n), _tensor(c_n))

    def _quick(self, packed: Packed, input: Any, hx: Any) -> Any:
        """The call without detours, for what needs none; else None."""
        cell = self._is_cell
        if type(input) is not Tensor or input.is_neg() or not cell and self.dropout and self.training:
            return None
        h: Any = None
        c: Any = None
        if hx is not None:
            if not packed.core.has_c:
                h = hx
            elif type(hx) is tuple and len(hx) == 2:
                h, c = hx
                if type(c) is not Tensor or c.is_neg():
                    return None
            if type(h) is not Tensor or h.is_neg():
                return None
        try:
            if packed.watch is None or not packed.watch.unchanged(self._parameters, False):
                return None
            return packed.core.forward_tensors(_export, input, h, c, not cell and self.batch_first, cell)
        except (BufferError, RuntimeError, TypeError):  # of the export: no memory that it could describe
            return None

    def _weights(self) -> dict[str, Tensor]:
        raise NotImplementedError

    def _named(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The weights: parameters, or attributes that a parametrization computes."""
        held = self._parameters
        return {name: held[name] if name in held else getattr(self, name, None) for name in names}

    def _options(self, dtype: str) -> _check.Options:
        raise NotImplementedError

    def _own(self, input: Any, hx: Any) -> Any:
        """PyTorch's result or error."""
        return super().forward(input, hx)  # type: ignore[misc]

    def _careful(self, input: Any, hx: Any) -> Any:
        """Any call: with autograd, odd shapes or memory, or what is PyTorch's to do."""
        weights = self._weights()
        hindrance = _circumstance()
        if hindrance is None:
            data = input.data if isinstance(input, PackedSequence) else input
            states = [] if hx is None else list(hx) if isinstance(hx, (tuple, list)) else [hx]
            # Tangents lie beside a weight's memory, which is all that `unchanged` looks at.
            packed = None if _in_graph() or _forward_ad._current_level >= 0 else self._fastlstm
            if packed is not None and not packed.unchanged(weights, _grad_enabled()):
                packed = None
            hindrance = _hindrance([data, *states, *(packed.sample if packed else weights.values())])
        if hindrance is None:
            result = self._run(input, hx, weights, packed)
            if result is not None:
                return result
        elif hindrance:
            _warn(hindrance)
        return self._own(input, hx)

    def _follow(self, weights: dict[str, Tensor]) -> Packed | None:
        """The core with these weights, packed anew; None if they do not fit."""
        options = self._options(_engine.DTYPES[next(iter(weights.values())).dtype])
        if not _engine.fits(options, weights):
            return None
        packed = _engine.follow(self._fastlstm, options, weights, _grad_enabled())
        self.__dict__["_fastlstm"] = packed
        return packed

    def _run(self, input: Any, hx: Any, weights: dict[str, Tensor], packed: Packed | None) -> Any:
        """None if the input is not as it should be."""
        raise NotImplementedError


def in_turn(
    layer: Any,
    options: _check.Options,
    x: Tensor,
    states: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    dropout: float,
) -> tuple[Tensor, ...]:
    """Layer by layer, with dropout between; `layer(index, x, states, weights)` runs one."""
    directions = len(options.suffixes)
    each = len(weights) // options.num_layers
    ends = []
    for index in range(options.num_layers):
        if index:
            x = nn.functional.dropout(x, dropout, True)
        rows = slice(index * directions, (index + 1) * directions)
        own = [None if s is None else s[rows] for s in states]
        x, *end = layer(index, x, own, weights[index * each : (index + 1) * each])
        ends.append(end)
    return x, *(torch.cat(parts) for parts in zip(*ends, strict=True))


@_engine.run_as_it_is
def _apply(
    call: Call, x: Tensor, states: Sequence[Tensor | None], weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    tensors = (x, *states, *weights)
    if _grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        result: tuple[Tensor, ...] = _engine.Recorded.apply(call, *tensors)
        return result
    return _engine.forward(call, x, states)


# --- stacks -------------------------------------------------------------------------------------------------


class _Stack(_Accelerated):
    """LSTM, GRU, RNN."""

    _is_cell = False

    mode: str
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    bidirectional: bool
    proj_size: int
    _flat_weights_names: list[str]

    def _weights(self) -> dict[str, Tensor]:
        return self._named(self._flat_weights_names)

    def _options(self, dtype: str) -> _check.Options:
        extra = {"proj_size": self.proj_size} if self.mode == "LSTM" else {}
        return _engine.options_of(
            self.mode,
            dtype,
            input_size=self.input_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            bias=self.bias,
            bidirectional=self.bidirectional,
            **extra,
        )

    def _run(self, input: Any, hx: Any, weights: dict[str, Tensor], packed: Packed | None) -> Any:
        data = input.data if isinstance(input, PackedSequence) else input
        states = self._states(hx)
        if states is None:
            return None
        if isinstance(input, PackedSequence):
            return self._run_packed(input, states, weights, packed)
        batched, batch_first = data.dim() == 3, self.batch_first
        if not batched:  # a batch of one
            if data.dim() != 2 or any(s is not None and s.dim() != 2 for s in states):
                return None
            data, batch_first = data.unsqueeze(1), False
            states = [None if s is None else s.unsqueeze(1) for s in states]
        batch = data.shape[0 if batch_first else 1]
        if not self._shaped(data, states, batch):
            return None
        found = self._layers(weights, packed, data, states, batch_first, None)
        if found is None:
            return None
        y, *ends = found
        return (
            (y, self._joined(ends)) if batched else (y.squeeze(1), self._joined([e.squeeze(1) for e in ends]))
        )

    def _run_packed(
        self,
        input: Any,
        states: Sequence[Tensor | None],
        weights: dict[str, Tensor],
        packed: Packed | None,
    ) -> Any:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if not _compiling() and not _well_packed(data, batch_sizes):
            return None
        if sorted_indices is not None:
            batch = sorted_indices.shape[0]
            if any(s is not None and (s.dim() != 3 or s.shape[1] != batch) for s in states):
                return None
            states = [None if s is None else s.index_select(1, sorted_indices) for s in states]
        if data.dim() != 2 or not self._shaped(data, states, int(batch_sizes[0])):
            return None
        found = self._layers(weights, packed, data, states, False, batch_sizes)
        if found is None:
            return None
        y, *ends = found
        if unsorted_indices is not None:
            ends = [end.index_select(1, unsorted_indices) for end in ends]
        return PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices), self._joined(ends)

    def _layers(
        self,
        weights: dict[str, Tensor],
        packed: Packed | None,
        x: Tensor,
        states: Sequence[Tensor | None],
        batch_first: bool,
        batch_sizes: Any,
    ) -> tuple[Tensor, ...] | None:
        """The output and the final states of the stack."""
        dropout = self.dropout if self.training and self.num_layers > 1 else 0.0
        values = list(weights.values())
        if _in_graph():
            how = self._options(_engine.DTYPES[x.dtype])
            return _ops.run(how, values, x, states, batch_first, batch_sizes, dropout)
        packed = packed or self._follow(weights)
        if packed is None:
            return None
        sizes = None if batch_sizes is None else batch_sizes.numpy()
        count = len(packed.layers)
        if not dropout:
            return _apply(Call(packed, 0, count, batch_first, sizes), x, states, values)
        calls = [Call(packed, index, index + 1, batch_first, sizes) for index in range(count)]
        return in_turn(
            lambda index, x, s, w: _apply(calls[index], x, s, w), packed.options, x, states, values, dropout
        )

    def _states(self, hx: Any) -> list[Any] | None:
        count = 2 if self.mode == "LSTM" else 1
        if hx is None:
            return [None] * count
        states = list(hx) if isinstance(hx, (tuple, list)) else [hx]
        return states if len(states) == count and (count == 2) == isinstance(hx, (tuple, list)) else None

    def _shaped(self, data: Tensor, states: Sequence[Tensor | None], batch: int) -> bool:
        """Whether x and the states have the shapes that they should, and hold anything."""
        rows = self.num_layers * (2 if self.bidirectional else 1)
        widths = (self.proj_size or self.hidden_size, self.hidden_size)
        return (
            data.shape[-1] == self.input_size
            and (_compiling() or data.numel() > 0)
            and all(s is None or s.shape == (rows, batch, n) for s, n in zip(states, widths, strict=False))
        )

    def _joined(self, ends: Sequence[Tensor]) -> Any:
        return tuple(ends) if len(ends) == 2 else ends[0]


def _well_packed(data: Tensor, batch_sizes: Tensor) -> bool:
    """Whether a `PackedSequence` is one that `pack_padded_sequence` could have made."""
    if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64 or batch_sizes.device.type != "cpu":
        return False
    sizes = batch_sizes.numpy()
    return bool(len(sizes) and sizes[-1] > 0 and (np.diff(sizes) <= 0).all() and sizes.sum() == data.shape[0])


class LSTM(_Stack, nn.LSTM):  # type: ignore[misc]
    """`torch.nn.LSTM` run by fastlstm: same constructor, parameters, input, output, errors."""

    __module__ = "fastlstm.torch"  # where pickles look for it


class GRU(_Stack, nn.GRU):  # type: ignore[misc]
    """`torch.nn.GRU` run by fastlstm: same constructor, parameters, input, output, errors."""

    __module__ = "fastlstm.torch"  # where pickles look for it


class RNN(_Stack, nn.RNN):  # type: ignore[misc]
    """`torch.nn.RNN` run by fastlstm: same constructor, parameters, input, output, errors."""

    __module__ = "fastlstm.torch"  # where pickles look for it


# --- cells --------------------------------------------------------------------------------------------------


class _Cell(_Accelerated):
    """LSTMCell, GRUCell, RNNCell: a stack of one layer over a sequence of one step."""

    _is_cell = True
    _mode: ClassVar[str]

    input_size: int
    hidden_size: int
    bias: bool

    def _weights(self) -> dict[str, Tensor]:
        return self._named(("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if self.bias else 2])

    def _cell_mode(self) -> str:
        return self._mode

    def _options(self, dtype: str) -> _check.Options:
        return _engine.options_of(
            self._cell_mode(),
            dtype,
            input_size=self.input_size,
            hidden_size=self.hidden_size,
            bias=self.bias,
        )

    def _run(self, input: Any, hx: Any, weights: dict[str, Tensor], packed: Packed | None) -> Any:
        has_c = self._mode == "LSTM"
        if has_c:
            if hx is not None and not (isinstance(hx, (tuple, list)) and len(hx) == 2):
                return None
            states = [None, None] if hx is None else list(hx)
        elif isinstance(hx, (tuple, list)):
            return None
        else:
            states = [hx]
        batched = input.dim() == 2
        if input.dim() not in (1, 2) or any(s is not None and s.dim() != input.dim() for s in states):
            return None
        if not batched:
            input, states = input.unsqueeze(0), [None if s is None else s.unsqueeze(0) for s in states]
        shape = (input.shape[0], self.hidden_size)
        if input.shape[1] != self.input_size or any(s is not None and s.shape != shape for s in states):
            return None
        if not _compiling() and input.numel() == 0:
            return None
        ends = self._step(input, states, weights, packed)
        if ends is None:
            return None
        if not batched:
            ends = tuple(end.squeeze(0) for end in ends)
        return ends if has_c else ends[0]

    def _step(
        self,
        x: Tensor,
        states: Sequence[Tensor | None],
        weights: dict[str, Tensor],
        packed: Packed | None,
    ) -> tuple[Tensor, ...] | None:
        """The final states, from x [B, I] and states [B, H]."""
        values = list(weights.values())
        if _in_graph():
            how = self._options(_engine.DTYPES[x.dtype])
            rows = [None if s is None else s.unsqueeze(0) for s in states]
            _, *ends = _ops.run(how, values, x.unsqueeze(0), rows, False, None, 0.0)
            return tuple(end.squeeze(0) for end in ends)
        packed = packed or self._follow(weights)
        return None if packed is None else _apply(Call(packed, 0, 1, cell=True), x, states, values)


class LSTMCell(_Cell, nn.LSTMCell):  # type: ignore[misc]
    """`torch.nn.LSTMCell` run by fastlstm: same constructor, parameters, input, output, errors."""

    __module__ = "fastlstm.torch"  # where pickles look for it

    _mode = "LSTM"


class GRUCell(_Cell, nn.GRUCell):  # type: ignore[misc]
    """`torch.nn.GRUCell` run by fastlstm: same constructor, parameters, input, output, errors."""

    __module__ = "fastlstm.torch"  # where pickles look for it

    _mode = "GRU"


class RNNCell(_Cell, nn.RNNCell):  # type: ignore[misc]
    """`torch.nn.RNNCell` run by fastlstm: same constructor, parameters, input, output, errors."""

    __module__ = "fastlstm.torch"  # where pickles look for it

    _mode = "RNN"
    nonlinearity: str

    def _cell_mode(self) -> str:
        return f"RNN_{self.nonlinearity.upper()}"
