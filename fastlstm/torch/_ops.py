"""The call as operators of torch.library, for graphs: torch.compile, torch.export, modes that watch
operations.

They have no state: the way back runs the way forth again. Weights are packed once for as long as they stay.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _check
from . import _engine
from ._engine import Call, Packed

_SCHEMA = (
    "Tensor x, Tensor? h, Tensor? c, Tensor[] weights, Tensor? batch_sizes, "
    "str mode, int num_layers, bool bias, bool bidirectional, bool batch_first"
)
_MOST = 32  # stacks whose packed weights are kept
_kept: OrderedDict[tuple[Any, ...], Packed] = OrderedDict()
_keeping = _engine.Lock()  # of _kept


def run(
    options: _check.Options,
    weights: Sequence[Tensor],
    x: Tensor,
    states: Sequence[Tensor | None],
    batch_first: bool,
    batch_sizes: Tensor | None,
    dropout: float,
) -> tuple[Tensor, ...]:
    """A stack by operators: one, or with dropout between the layers one for each."""
    from ._modules import in_turn

    mode = f"RNN_{options.nonlinearity.upper()}" if options.cell == "rnn" else options.cell.upper()

    def layers(count: int, x: Tensor, states: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Any:
        h, c = (states[0], states[1]) if len(states) == 2 else (states[0], None)
        how = (mode, count, options.bias, options.bidirectional, batch_first)
        found = torch.ops.fastlstm.recurrent(x, h, c, list(weights), batch_sizes, *how)
        return found[: 1 + len(states)]

    if not dropout:
        return tuple(layers(options.num_layers, x, states, weights))
    return in_turn(lambda _, x, s, w: layers(1, x, s, w), options, x, states, weights, dropout)


def _options(weights: Sequence[Tensor], mode: str, num_layers: int, bias: bool, bidirectional: bool) -> Any:
    """What the shapes of the weights say."""
    gates = {"LSTM": 4, "GRU": 3}.get(mode, 1)
    hidden, width = weights[0].shape[0] // gates, weights[1].shape[1]
    extra = {"proj_size": width if width != hidden else 0} if mode == "LSTM" else {}
    return _engine.options_of(
        mode,
        _engine.DTYPES[weights[0].dtype],
        input_size=weights[0].shape[1],
        hidden_size=hidden,
        num_layers=num_layers,
        bias=bias,
        bidirectional=bidirectional,
        **extra,
    )


def _call(
    x: Tensor,
    states: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    mode: str,
    num_layers: int,
    bias: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Call:
    """Checked, for an operator may be called by anybody."""
    if mode not in _engine.CELLS:
        raise ValueError(f"mode must be one of {', '.join(_engine.CELLS)}, got {mode!r}")
    if any(t.dtype != x.dtype for t in (*weights, *(s for s in states if s is not None))):
        raise ValueError(f"weights and states must be {x.dtype} as x is")
    if x.dtype not in _engine.DTYPES or len(weights) < 2:
        raise ValueError(f"x must be float32 or float64 and weights a stack's, got {x.dtype}, {len(weights)}")
    options = _options(weights, mode, num_layers, bias, bidirectional)
    named = dict(zip(options.shapes(), weights, strict=True))
    if not _engine.fits(options, named):
        raise ValueError(f"weights do not have the shapes of {options!r}")
    sizes = None if batch_sizes is None else batch_sizes.numpy()
    if sizes is not None and not (
        sizes.ndim == 1
        and sizes.dtype == np.int64
        and len(sizes)
        and sizes[-1] > 0
        and (np.diff(sizes) <= 0).all()
        and sizes.sum() == x.shape[0]
    ):
        raise ValueError("batch_sizes must fall, stay above 0 and sum up to the rows of x")
    if x.dim() != (3 if sizes is None else 2) or x.shape[-1] != options.input_size:
        raise ValueError(f"x must have {options.input_size} features, got shape {tuple(x.shape)}")
    batch = x.shape[0 if batch_first else 1] if sizes is None else int(sizes[0])
    for state, size in zip(states, options.state_sizes, strict=True):
        shape = (num_layers * len(options.suffixes), batch, size)
        if state is not None and tuple(state.shape) != shape:
            raise ValueError(f"a state must be {shape}, got {tuple(state.shape)}")
    return Call(_packed(options, named), 0, num_layers, batch_first, sizes)


def _packed(options: _check.Options, weights: dict[str, Tensor]) -> Packed:
    """From those that are kept, if they are still the weights; a stack that nobody else holds is let go."""
    with _keeping:
        for key in [key for key, packed in _kept.items() if not packed.storages_alive()]:
            del _kept[key]
        key = (options, *(w.data_ptr() for w in weights.values()))
        packed = _engine.follow(_kept.pop(key, None), options, weights, True)
        _kept[key] = packed
        while len(_kept) > _MOST:
            _kept.popitem(last=False)
        return packed


def _states_of(mode: str, h: Tensor | None, c: Tensor | None) -> list[Tensor | None]:
    return [h, c] if mode == "LSTM" else [h]


@torch.library.custom_op(
    "fastlstm::recurrent", mutates_args=(), device_types="cpu", schema=f"({_SCHEMA}) -> Tensor[]"
)  # type: ignore[untyped-decorator]
def recurrent(x: Any, h: Any, c: Any, weights: Any, batch_sizes: Any, mode: str, *how: Any) -> list[Tensor]:
    """Output and final states of a stack."""
    call = _call(x, _states_of(mode, h, c), weights, batch_sizes, mode, *how)
    return list(_engine.forward(call, x, _states_of(mode, h, c)))


@recurrent.register_fake  # type: ignore[untyped-decorator]
def _(x: Any, h: Any, c: Any, weights: Any, batch_sizes: Any, mode: str, *how: Any) -> list[Tensor]:
    num_layers, bias, bidirectional, batch_first = how
    options = _options(weights, mode, num_layers, bias, bidirectional)
    directions = len(options.suffixes)
    if batch_sizes is None:
        batch = x.shape[0 if batch_first else 1]
    else:
        batch = h.shape[1] if h is not None else torch.library.get_ctx().new_dynamic_size()
    y = x.new_empty((*x.shape[:-1], directions * options.state_sizes[0]))
    return [y, *(x.new_empty((num_layers * directions, batch, size)) for size in options.state_sizes)]


@torch.library.custom_op(  # type: ignore[untyped-decorator]
    "fastlstm::recurrent_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor[] gradients, {_SCHEMA}) -> Tensor[]",
)
def recurrent_backward(
    gradients: Any, x: Any, h: Any, c: Any, weights: Any, batch_sizes: Any, mode: str, *how: Any
) -> list[Tensor]:
    """By x, the initial states and the weights."""
    states = _states_of(mode, h, c)
    call = _call(x, states, weights, batch_sizes, mode, *how)
    recording = _engine.Recording(call, _engine.array_of(x), [_engine.contiguous(s) for s in states])
    return recording.backward(gradients, [True] * (1 + len(states) + len(weights)))


@recurrent_backward.register_fake  # type: ignore[untyped-decorator]
def _(
    gradients: Any, x: Any, h: Any, c: Any, weights: Any, batch_sizes: Any, mode: str, *how: Any
) -> list[Tensor]:
    return [
        x.new_empty(x.shape),
        *(x.new_empty(g.shape) for g in gradients[1:]),
        *(w.new_empty(w.shape) for w in weights),
    ]


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, h, c, weights, batch_sizes, *how = inputs
    ctx.how, ctx.given = how, (h is not None, c is not None)
    ctx.save_for_backward(x, h, c, batch_sizes, *weights)
    ctx.shapes = [tuple(y.shape) for y in output]


def _backward(ctx: Any, gradients: Any) -> Any:
    x, h, c, batch_sizes, *weights = ctx.saved_tensors
    filled = [x.new_zeros(s) if g is None else g for g, s in zip(gradients, ctx.shapes, strict=True)]
    dx, *found = torch.ops.fastlstm.recurrent_backward(filled, x, h, c, weights, batch_sizes, *ctx.how)
    d_states = found[: len(ctx.shapes) - 1] + [None]
    dh, dc = (d if given else None for d, given in zip(d_states, ctx.given, strict=False))
    return dx, dh, dc, found[len(ctx.shapes) - 1 :], None, *(None for _ in ctx.how)


recurrent.register_autograd(_backward, setup_context=_setup)
