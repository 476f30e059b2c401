"""Keras's recurrent layers: LSTM, GRU, SimpleRNN, RNN of cells, and Bidirectional."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import fastlstm
from fastlstm import _check

from . import _cells
from ._config import Config
from ._layers import Flow, Layer, Mask
from ._weights import Weights

Array = npt.NDArray[Any]
States = list[list[Array]]  # of one direction: for each cell h, or h and c; [B, H] each

MERGES = ("concat", "sum", "mul", "ave", None)


class Ran(NamedTuple):
    """What a scan gives."""

    outputs: Array  # [B, T, D*H] in the order of the input
    last: list[Array]  # of each direction [B, H]: the output of the step that it ran last
    states: list[States]  # of each direction


class Scan:
    """One or two directions over a stack of cells, run by fastlstm's layers."""

    def __init__(self, layers: Sequence[Any], reverse: Sequence[bool], sequences: bool, zeros: bool) -> None:
        """layers: batch_first, one for each cell; reverse: of each direction; sequences: whether the outputs
        matter; zeros: whether those of masked steps are zero, as they are with two directions."""
        self.layers, self.reverse = tuple(layers), tuple(reverse)
        self._sequences, self._zeros = sequences, zeros

    @property
    def counts(self) -> list[int]:
        """How many states each cell has."""
        return [2 if isinstance(layer, fastlstm.LSTM) else 1 for layer in self.layers]

    @property
    def sizes(self) -> list[int]:
        return [layer.hidden_size for layer in self.layers]

    def __call__(self, x: Array, mask: Mask, initial: list[States] | None) -> Ran:
        """initial: of each direction; None: zeros."""
        lengths = None if mask is None else mask.lengths
        y = x if mask is None else mask.pack(x)
        final: list[list[Array]] = []  # of each cell, each [D, B, H]
        for i, layer in enumerate(self.layers):
            state = None if initial is None else _stacked([one[i] for one in initial])
            y, end = layer(y, state, lengths=lengths)
            final.append(list(end) if isinstance(end, tuple) else [end])
        states = [[[part[d] for part in one] for one in final] for d in range(len(self.reverse))]
        last = [one[-1][0] for one in states]
        if mask is not None:
            last = [mask.last(h, back, self._zeros) for h, back in zip(last, self.reverse, strict=True)]
            if self._sequences:
                y = mask.spread(y, self.reverse[0], self._zeros)
        return Ran(y, last, states)


def _stacked(states: list[list[Array]]) -> Any:
    """The states of a cell in each direction, as fastlstm's layers take them."""
    parts = [np.stack(part) for part in zip(*states, strict=True)]
    return parts[0] if len(parts) == 1 else tuple(parts)


class Recurrent(Layer):
    """LSTM, GRU, SimpleRNN, or RNN with a cell or with StackedRNNCells; Bidirectional builds on it."""

    def __init__(self, config: Config, flow: Flow, scans: Sequence[Scan], options: _Options) -> None:
        self._options, self._scans = options, tuple(scans)
        super().__init__(config, Flow(3 if options.return_sequences else 2, self._width))
        if flow.axes not in (None, 3):
            raise config.error(f"reads [B, T, n], but its input has {flow.axes} axes")
        self.input_size: int = scans[0].layers[0].input_size
        self.return_state = options.return_state
        self._held: list[States] | None = None  # of a stateful layer; None: zeros

    @property
    def _width(self) -> int:
        return self._scans[0].sizes[-1]

    @property
    def stateful(self) -> bool:
        return self._options.stateful

    @property
    def outputs(self) -> int:
        states = sum(len(scan.reverse) * len(_listed(scan.counts)) for scan in self._scans)
        return 1 + (states if self.return_state else 0)

    def reset_states(self) -> None:
        """Begin again with zeros."""
        self._held = None

    def __call__(self, x: Array, mask: Mask, initial_state: Any = None) -> tuple[Any, Mask]:
        x = _check.sequence("x", x, self.input_size, self.dtype, True)
        if x.ndim != 3:
            raise ValueError(f"layer {self.name!r} ({self.kind}): x must be [B, T, n], got shape {x.shape}")
        initial = self._initial(initial_state, len(x))
        ran: list[Ran] = []
        done = 0
        for scan in self._scans:
            count = len(scan.reverse)
            ran.append(scan(x, mask, None if initial is None else initial[done : done + count]))
            done += count
        states = [one for part in ran for one in part.states]
        if self.stateful:
            self._held = states
        merged = self._merged(ran)
        after = mask if self._options.return_sequences else None
        if self.return_state:
            listed = [state for one in states for state in _listed(one)]
            return [*(merged if isinstance(merged, list) else [merged]), *listed], after
        return merged, after

    def _merged(self, ran: list[Ran]) -> Any:
        """The output; as Keras gives it, in the order of running."""
        if not self._options.return_sequences:
            return ran[0].last[0]
        return ran[0].outputs[:, ::-1] if self._scans[0].reverse[0] else ran[0].outputs

    def _initial(self, given: Any, batch: int) -> list[States] | None:
        """The states to begin with, of each direction."""
        if given is not None:
            return self._given(given, batch)
        if self._held is not None and len(self._held[0][0][0]) != batch:
            raise ValueError(
                f"layer {self.name!r} ({self.kind}) is stateful: x must have as many sequences as before, "
                f"{len(self._held[0][0][0])}, got {batch}; reset_states begins anew"
            )
        return self._held

    def _given(self, given: Any, batch: int) -> list[States]:
        """`initial_state` as Keras takes it: h, or a list of all states, direction after direction."""
        places = [(scan.counts, scan.sizes) for scan in self._scans for _ in scan.reverse]
        wanted = sum(len(_listed(counts)) for counts, _ in places)
        values = list(given) if isinstance(given, (list, tuple)) else [given]
        if len(values) != wanted:
            raise ValueError(f"initial_state must be a list of {wanted} states, got {len(values)}")
        rest = iter(values)
        found = []
        for counts, sizes in places:
            if len(counts) == 1:
                grouped = [[next(rest) for _ in range(counts[0])]]
            else:
                grouped = [_as_list(next(rest), count) for count in counts]
            found.append(
                [
                    _check.states("initial_state", tuple(group) if len(group) > 1 else group[0],
                                  [(batch, size)] * len(group), self.dtype)
                    for group, size in zip(grouped, sizes, strict=True)
                ]
            )  # fmt: skip
        return found

    def modules(self, masks_as_lengths: bool) -> list[Any]:
        (scan,) = self._scans
        if self.return_state:
            raise self.refuse("return_state=True, and a Sequential always gives its states")
        if self._options.return_sequences and scan.reverse == (True,):
            raise self.refuse("go_backwards=True with return_sequences=True gives the outputs reversed")
        return [*scan.layers, *([] if self._options.return_sequences else [fastlstm.LastStep()])]


def _listed(per_cell: list[Any]) -> list[Any]:
    """Keras gives the states of a single cell as they are, those of several as a list for each cell."""
    if len(per_cell) > 1:
        return per_cell
    return per_cell[0] if isinstance(per_cell[0], list) else [None] * per_cell[0]


def _as_list(value: Any, count: int) -> list[Any]:
    found = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(found) != count:
        raise ValueError(f"initial_state must have a list of {count} states for each cell, got {len(found)}")
    return found


class Bidirectional(Recurrent):
    """Two directions over the same input, merged."""

    def __init__(
        self, config: Config, flow: Flow, scans: Sequence[Scan], options: _Options, mode: str | None
    ) -> None:
        self._mode = mode
        super().__init__(config, flow, scans, options)

    @property
    def _width(self) -> int:
        widths = [scan.sizes[-1] for scan in self._scans for _ in scan.reverse]
        return sum(widths) if self._mode == "concat" else widths[0]

    @property
    def outputs(self) -> int:
        return super().outputs + (self._mode is None)

    def _merged(self, ran: list[Ran]) -> Any:
        """Keras flips what the second layer gives, as if that were the one that runs backwards."""
        if not self._options.return_sequences:
            first, second = (h for one in ran for h in one.last)
        elif len(ran) == 1:
            if self._mode == "concat":
                return ran[0].outputs
            first, second = np.split(ran[0].outputs, 2, axis=-1)
        else:
            turn = slice(None, None, -1 if self._scans[0].reverse[0] else 1)
            first, second = (one.outputs[:, turn] for one in ran)
        if self._mode == "concat":
            return np.concatenate([first, second], axis=-1)
        if self._mode is None:
            return [first, second]
        if self._mode == "mul":
            return first * second
        total = first + second
        return total / self.dtype.type(2) if self._mode == "ave" else total

    def modules(self, masks_as_lengths: bool) -> list[Any]:
        if self._mode != "concat":
            raise self.refuse(f"merge_mode={self._mode!r}, only 'concat'")
        if len(self._scans) > 1:
            raise self.refuse("its two directions differ in more than their weights")
        return super().modules(masks_as_lengths)


# --- from a configuration -----------------------------------------------------------------------------------


class _Options(NamedTuple):
    """What all recurrent layers share."""

    return_sequences: bool
    return_state: bool
    go_backwards: bool
    stateful: bool
    zeros: bool  # of a masked step's output, which else is the one before it


def _options(config: Config) -> _Options:
    config.fixed("time_major", False)
    return _Options(
        config.flag("return_sequences", False),
        config.flag("return_state", False),
        config.flag("go_backwards", False),
        config.flag("stateful", False),
        config.flag("zero_output_for_mask", False),
    )


_INERT = ("unroll", "use_cudnn", "return_runs")  # how, not what, is computed


def _direction(
    config: Config, weights: Weights, flow: Flow, keras_major: int
) -> tuple[list[_cells.Cell], _Options]:
    """The cells and options of a recurrent layer that is not Bidirectional."""
    options = _options(config)
    inside = weights.attribute("cell")
    if config.kind in _cells.SINGLE:
        cells = [_cells.cell(config, inside, flow.width, keras_major)]
        config.finish((*_INERT, *_cells.INERT))
        return cells, options
    if config.kind != "RNN":
        known = ", ".join([*_cells.SINGLE, "RNN"])
        raise config.error(f"is no recurrent layer that is known here: only {known}")
    own = config.part("cell")
    config.finish(_INERT)
    config.same_dtype(own)
    if own.kind != "StackedRNNCells":
        cells = [_cells.cell(own, inside, flow.width, keras_major)]
        own.finish(_cells.INERT)
        return cells, options
    parts = own.parts("cells")
    own.finish()
    if not parts:
        raise own.error("has no cells")
    cells, width = [], flow.width
    for part, part_weights in zip(parts, inside.items("cells", parts), strict=True):
        cells.append(_cells.cell(part, part_weights, width, keras_major))
        part.finish(_cells.INERT)
        config.same_dtype(part)
        width = cells[-1].options["hidden_size"]
    return cells, options


def recurrent(config: Config, weights: Weights, flow: Flow, keras_major: int) -> Recurrent | None:
    """The layer that a config describes; None if it is not recurrent."""
    if config.kind == "Bidirectional":
        return _bidirectional(config, weights, flow, keras_major)
    if config.kind not in (*_cells.SINGLE, "RNN"):
        return None
    cells, options = _direction(config, weights, flow, keras_major)
    scan = _scan([cells], options, [options.go_backwards])
    layer = Recurrent(config, flow, [scan], options)
    layer.weights = _named("", cells)
    return layer


def _bidirectional(config: Config, weights: Weights, flow: Flow, keras_major: int) -> Bidirectional:
    mode = config.get("merge_mode", "concat")
    if mode not in MERGES:
        raise config.error(f"merge_mode must be one of {MERGES}, got {mode!r:.80}")
    first, second = config.part("layer"), config.get("backward_layer", None)
    backward = Config(second, config.where) if second is not None else _turned(config)
    config.finish()
    config.same_dtype(first)
    config.same_dtype(backward)
    forward_cells, options = _direction(first, weights.attribute("forward_layer"), flow, keras_major)
    backward_cells, other = _direction(backward, weights.attribute("backward_layer"), flow, keras_major)
    if options.go_backwards == other.go_backwards:
        raise config.error("go_backwards must differ between its two layers")
    for name in ("return_sequences", "return_state", "stateful"):
        if getattr(options, name) != getattr(other, name):
            raise config.error(f"{name} must be the same in its two layers")
    if (
        mode not in ("concat", None)
        and forward_cells[-1].options["hidden_size"] != (backward_cells[-1].options["hidden_size"])
    ):
        raise config.error(f"merge_mode={mode!r} needs as many units in both layers")
    options = options._replace(zeros=options.return_sequences)  # as Bidirectional sets it in both
    pair, reverse = [forward_cells, backward_cells], [options.go_backwards, other.go_backwards]
    alike = len(forward_cells) == len(backward_cells) == 1 and not options.go_backwards
    alike = alike and forward_cells[0][:2] == backward_cells[0][:2]
    if alike:  # one call of fastlstm runs both
        scans = [_scan(pair, options, reverse)]
    else:
        scans = [_scan([c], options, [r]) for c, r in zip(pair, reverse, strict=True)]
    layer = Bidirectional(config, flow, scans, options, mode)
    layer.weights = _named("forward_layer/", forward_cells) | _named("backward_layer/", backward_cells)
    return layer


def _turned(config: Config) -> Config:
    """The backward layer that Keras makes of the forward one where none is given."""
    value = copy.deepcopy(config.get("layer"))
    value["config"]["go_backwards"] = not value["config"].get("go_backwards", False)
    return Config(value, config.where)


def _scan(directions: list[list[_cells.Cell]], options: _Options, reverse: list[bool]) -> Scan:
    stack = [list(cells) for cells in zip(*directions, strict=True)]
    layers = [_cells.layer(cells, reverse[0]) for cells in stack]
    return Scan(layers, reverse, options.return_sequences, options.zeros)


def _named(prefix: str, cells: list[_cells.Cell]) -> dict[str, Array]:
    names = ["cell"] if len(cells) == 1 else [f"cell/cells/{i}" for i in range(len(cells))]
    return {
        f"{prefix}{name}/{key}": array
        for name, one in zip(names, cells, strict=True)
        for key, array in one.weights.items()
    }
