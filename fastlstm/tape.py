"""Training: a forward pass that remembers (`Tape`), and what its `backward` gives (`Gradients`).

The stack is recorded layer by layer, for dropout acts between layers; all else is the core's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from . import _check
from ._core import TapeCore

if TYPE_CHECKING:
    from .layers import _Layer

__all__ = ["Gradients", "Tape"]

Array: TypeAlias = npt.NDArray[Any]

_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_peephole")


class Gradients(NamedTuple):
    """Derivatives of a loss; fresh arrays."""

    input: Any  # of the form of x
    state: Any  # by the initial state, of its form
    parameters: Mapping[str, Array]  # by the names of `state_dict`


class Tape:
    """A layer's forward pass, remembered; made by `layer.record(...)`.

    Besides input and output it keeps, for each valid step, layer and direction, at most (gates + 2)·H
    numbers, in rows rounded up to 64 bytes: 5H for an LSTM, 4H for a GRU; with `checkpoint=k` the states
    before every k-th step only. It can be used any number of times, also from several threads at once.
    """

    def __init__(
        self, layer: _Layer, x: Any, state: Any, lengths: Any, dropout_seed: Any, checkpoint: Any
    ) -> None:
        dtype, options = layer._dtype, layer._options
        seed = None if dropout_seed is None else _check.integer("dropout_seed", dropout_seed, 0)
        every = 0 if checkpoint is None else _check.integer("checkpoint", checkpoint, 1)
        given, x = x, _check.sequence("x", x, layer._input_size, dtype, layer._batch_first)
        if not isinstance(given, np.ndarray) or np.may_share_memory(given, x):
            x = x.copy()  # the caller may change it before `backward`
        self._batched = x.ndim == 3
        self._swapped = self._batched and layer._batch_first
        x = self._time_first(x)
        steps, batch, _ = x.shape
        if lengths is not None:
            lengths = _check.lengths("lengths", lengths, steps, batch, self._batched)
        self._layer = layer
        h0, *c0 = self._split("state", state, batch)
        h_n, *c_n = [np.empty((layer._rows, batch, size), dtype) for size in layer._sizes]
        rng = None if seed is None or not options.dropout else np.random.Generator(np.random.Philox(seed))
        self._masks: list[Array] = []  # of each layer's input but the first's
        self._cores: list[TapeCore] = []
        for index in range(options.num_layers):
            if index and rng is not None:
                keep = rng.random(x.shape) >= options.dropout
                self._masks.append(keep)
                x = self._dropped(x, keep)
            y = self._empty(steps, batch, layer._width, caller=index == options.num_layers - 1)
            h, c = self._of(index, h0, *c0), self._of(index, h_n, *c_n)
            self._cores.append(TapeCore(layer._core, index, x, *h, lengths, y, *c, every))
            x = y
        self._output, self._state = self._caller_order(x), self._join([h_n, *c_n])
        self._shape = (steps, batch)

    @property
    def output(self) -> Array:
        """What the layer's call returns, [T, B, D*P] in the caller's form, to the last bit."""
        return self._output

    @property
    def state(self) -> Any:
        """The final state: h, or (h, c) of an LSTM."""
        return self._state

    @property
    def nbytes(self) -> int:
        """Bytes that the tape holds besides input and output."""
        return sum(core.nbytes for core in self._cores) + sum(mask.nbytes for mask in self._masks)

    def backward(self, d_output: Any, d_state: Any = None) -> Gradients:
        """The gradients of a loss, from its derivatives by `output` and by `state` (None: zeros).

        d_output: of the output's shape; padded steps are not read. d_state: of the state's form.

        Returns Gradients: `input` in the form of x, zero in padded steps; `state` in that of the state;
        `parameters` by the names of `state_dict`, zeros for those of a gate that is removed or coupled. The
        sum over T and B is taken in one order, whatever the threads and the CPU. Raises TypeError or
        ValueError naming the argument, RuntimeError if the layer's parameters have changed since.
        """
        layer, (steps, batch) = self._layer, self._shape
        dtype, options, width = layer._dtype, layer._options, layer._width
        dy = self._time_first(_check.like("d_output", d_output, self._output.shape, dtype))
        dh_n, *dc_n = self._split("d_state", d_state, batch)
        dh0, *dc0 = [np.empty((layer._rows, batch, size), dtype) for size in layer._sizes]
        parameters = {name: np.empty_like(v) for name, v in layer._parameters.items()}
        for index in reversed(range(options.num_layers)):
            dx = self._empty(steps, batch, width if index else layer._input_size, caller=index == 0)
            final, first = self._of(index, dh_n, *dc_n), self._of(index, dh0, *dc0)
            mine = [
                {name: parameters.get(f"{name}_l{index}{suffix}") for name in _PARAMETERS}
                for suffix in options.suffixes
            ]
            self._cores[index].backward(dy, *final, dx, *first, mine)
            dy = self._dropped(dx, self._masks[index - 1]) if index and self._masks else dx
        return Gradients(self._caller_order(dx), self._join([dh0, *dc0]), parameters)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Tape cannot be pickled: keep its layer and what it recorded")

    def _dropped(self, x: Array, keep: Array) -> Array:
        """x where it is kept, scaled so that its mean stays; zeros elsewhere, but NaN stays."""
        p = self._layer._options.dropout
        with np.errstate(all="ignore"):  # inf and NaN are values like any other
            dropped: Array = x * (keep / (1 - p) if p < 1 else keep).astype(x.dtype)
        return dropped

    def _empty(self, steps: int, batch: int, width: int, caller: bool) -> Array:
        """A [T, B, n] array; for the caller, one that is contiguous in his order."""
        swapped = caller and self._swapped
        array = np.empty((batch, steps, width) if swapped else (steps, batch, width), self._layer._dtype)
        return array.swapaxes(0, 1) if swapped else array

    def _time_first(self, x: Array) -> Array:
        """[T, B, n], a view of the caller's order."""
        return x[:, None] if not self._batched else x.swapaxes(0, 1) if self._swapped else x

    def _caller_order(self, x: Array) -> Array:
        return x[:, 0] if not self._batched else x.swapaxes(0, 1) if self._swapped else x

    def _of(self, index: int, h: Array | None, c: Array | None = None) -> tuple[Array | None, Array | None]:
        """A layer's part of the states of all."""
        if self._layer._options.num_layers == 1:
            return h, c
        rows = slice(index * self._layer._core.directions, (index + 1) * self._layer._core.directions)
        return None if h is None else h[rows], None if c is None else c[rows]

    def _split(self, name: str, state: Any, batch: int) -> Sequence[Array | None]:
        """The caller's state as one [L*D, B, n] array each; None stands for zeros."""
        layer = self._layer
        if state is None:
            return (None,) * len(layer._sizes)
        batches = (batch,) if self._batched else ()
        shapes = [(layer._rows, *batches, size) for size in layer._sizes]
        arrays = _check.states(name, state, shapes, layer._dtype)
        return arrays if self._batched else [v[:, None] for v in arrays]

    def _join(self, states: list[Array]) -> Any:
        states = states if self._batched else [v[:, 0] for v in states]
        return states[0] if len(states) == 1 else tuple(states)
