"""The rows of the benchmark, the problems they stand for, and the floors that the project holds itself to."""

from __future__ import annotations

import math
import operator
import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from .. import reference

Array: TypeAlias = npt.NDArray[Any]
GATES = {"lstm": 4, "gru": 3, "rnn": 1, "gated_rnn": 2}
LAYERS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN", "gated_rnn": "GatedRNN"}
PRECISIONS = ("bfloat16", "int8", "int8/16")  # int8/16: int8 weights, 16-bit activations

SHAPES = (  # I, H, T, B. LSTM, GRU and RNN are measured at all of them.
    (32, 32, 1, 1), (64, 128, 1, 1), (256, 256, 1, 1), (512, 512, 1, 1), (1024, 1024, 1, 1),
    (32, 32, 100, 1), (64, 128, 100, 1), (256, 256, 100, 1), (512, 512, 100, 1), (1024, 1024, 50, 1),
    (40, 40, 1000, 1), (64, 64, 50, 8), (128, 128, 100, 32), (256, 256, 50, 64), (512, 512, 25, 64),
    (1024, 1024, 25, 64), (64, 64, 100, 256),
)  # fmt: skip
CORE_SHAPES = (  # those of GRU and RNN that --quick and the chart keep; GatedRNN has no others
    (32, 32, 1, 1), (32, 32, 100, 1), (256, 256, 100, 1),
    (64, 64, 50, 8), (256, 256, 50, 64), (512, 512, 25, 64),
)  # fmt: skip
TRAIN_SHAPES = {  # where a step of training is measured
    "lstm": (
        (32, 32, 100, 1), (256, 256, 100, 1), (64, 64, 50, 8), (128, 128, 100, 32), (256, 256, 50, 64),
        (512, 512, 25, 64), (1024, 1024, 25, 64),
    ),
    "gru": CORE_SHAPES,
    "rnn": CORE_SHAPES,
    "gated_rnn": CORE_SHAPES,
}  # fmt: skip
FLOAT64_SHAPES = ((64, 128, 1, 1), (256, 256, 100, 1), (256, 256, 50, 64))
PRECISION_SHAPES = {  # where the floors of reduced precision hold: H >= 64, the last one at audio's length
    "lstm": (*(shape for shape in SHAPES if shape[1] >= 64), (1, 64, 48000, 1)),
    "gru": tuple(shape for shape in CORE_SHAPES if shape[1] >= 64),
}
POOLS = ((64, 128, 2), (32, 32, 1))  # I, H, layers
SESSIONS = 1000  # of a pool
SMOKE = (
    "lstm 32,32,1,1", "lstm 32,32,100,1", "gru 64,64,50,8", "rnn 32,32,1,1", "gated_rnn 32,32,1,1",
    "audio 8", "ragged 64", "odd 33 one row", "train lstm 32,32,100,1", "train gru 32,32,1,1",
    "float64 lstm 64,128,1,1", "precision lstm 64,128,1,1", "pool 32,32 x 1", "cold start",
)  # fmt: skip
SCALING = ("lstm 256,256,50,64", "lstm 512,512,100,1")  # with two threads, measured with one as well


@dataclass(frozen=True)
class Row:
    """One line of the result: a cell at I = inputs, H = units, T = steps, B = sequences."""

    table: str
    name: str
    cell: str
    inputs: int
    units: int
    steps: int
    batch: int
    ragged: bool = False
    train: bool = False  # forward and backward, all gradients
    dtype: str = "float32"
    kind: str = "layer"  # or "precision", "pool": B sessions, one step each, "cold": a process starts
    options: Mapping[str, Any] = field(default_factory=dict)  # of the layer's constructor, by default its own

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.inputs, self.units, self.steps, self.batch

    @property
    def lengths(self) -> Array | None:
        """Of a ragged row: random in 1..T, the least of them nudged until B divides their sum."""
        if not self.ragged:
            return None
        n = np.random.default_rng(self.batch).integers(1, self.steps + 1, self.batch)
        while n.sum() % self.batch:
            n[np.argmin(n)] += 1
        return n

    @property
    def valid_steps(self) -> int:
        return self.steps * self.batch if self.lengths is None else int(self.lengths.sum())

    @property
    def dense(self) -> Row:
        """The batch without padding that has as many valid steps as this ragged one."""
        return replace(self, steps=self.valid_steps // self.batch, ragged=False)

    @property
    def flops(self) -> int:
        """Of the matrix products alone, a multiply-add counted as two; the cell's functions come on top.

        Backward has two for each of forward's: for the gradients of x and h, and for those of the weights.
        """
        products = 3 if self.train else 1
        width = self.inputs + self.units + 2 * self.units * (self.layers - 1)  # all layers' x and h
        return 2 * products * GATES[self.cell] * self.units * width * self.valid_steps

    @property
    def layers(self) -> int:
        return int(self.options.get("num_layers", 1))

    @property
    def outputs(self) -> int:
        """The width of the output."""
        directions = 2 if self.options.get("bidirectional") else 1
        return directions * (self.options.get("proj_size") or self.units)

    @property
    def streams(self) -> bool:
        """Whether it is one step, and can be a stream's."""
        return self.steps == 1 and not (self.options.get("bidirectional") or self.options.get("reverse"))

    @property
    def weight_bytes(self) -> int:
        """Of the weights that each step reads: W_hh, and W_ih if it is the only step."""
        size = np.dtype(self.dtype).itemsize
        return size * GATES[self.cell] * self.units * (self.units + self.inputs * (self.steps == 1))

    @property
    def in_core(self) -> bool:
        return self.table not in ("gru", "rnn") or self.shape in CORE_SHAPES


def rows() -> list[Row]:
    """The whole grid: every cell at its shapes, then audio, ragged and odd sizes, training, float64, reduced
    precision, pools, and the cold start."""
    grid = [
        Row(cell, f"{cell} {i},{h},{t},{b}", cell, i, h, t, b)
        for cell in GATES
        for i, h, t, b in (CORE_SHAPES if cell == "gated_rnn" else SHAPES)
    ]
    grid += [Row("audio", f"audio {h}", "lstm", 1, h, 48000, 1) for h in _AUDIO]
    grid += [Row("ragged", f"ragged {h}", "lstm", h, h, 100, 32, ragged=True) for h in (64, 128, 256)]
    for cell in ("gru", "rnn", "gated_rnn"):
        grid.append(Row("ragged", f"ragged {cell} 128", cell, 128, 128, 100, 32, ragged=True))
    for b, kind in ((1, "one row"), (32, "batch")):
        grid += [Row("odd", f"odd {h} {kind}", "lstm", h, h, 100, b) for h in (33, 40, 48)]
    for cell, shapes in TRAIN_SHAPES.items():
        table = f"train {cell}"
        grid += [
            Row(table, f"{table} {i},{h},{t},{b}", cell, i, h, t, b, train=True) for i, h, t, b in shapes
        ]
    grid.append(Row("train ragged", "train ragged 64", "lstm", 64, 64, 1000, 32, ragged=True, train=True))
    for train in (False, True):
        table = "train float64" if train else "float64"
        for cell in ("lstm", "gru"):
            for i, h, t, b in FLOAT64_SHAPES:
                name = f"{table} {cell} {i},{h},{t},{b}"
                grid.append(Row(table, name, cell, i, h, t, b, train=train, dtype="float64"))
    for cell, shapes in PRECISION_SHAPES.items():
        for i, h, t, b in shapes:
            name = f"precision {cell} {i},{h},{t},{b}"
            grid.append(Row("precision", name, cell, i, h, t, b, kind="precision"))
    for i, h, layers in POOLS:
        options = {"num_layers": layers} if layers > 1 else {}
        name = f"pool {i},{h} x {layers}"
        grid.append(Row("pool", name, "lstm", i, h, 1, SESSIONS, kind="pool", options=options))
    grid.append(Row("cold", "cold start", "lstm", 32, 32, 1, 1, kind="cold"))
    return grid


@dataclass(frozen=True)
class Problem:
    """What every engine is given, and the answer expected: output [T, B, H], h [L, B, H](, c) in float64.

    Training adds the loss's derivative by the output (that by the final state is 0), and to the answer the
    gradients of x, of the initial state and of the parameters in the order of `weights`. Pools and cold
    starts begin with zeros, and their answer is the output alone.
    """

    row: Row
    weights: Mapping[str, Array]  # PyTorch's names and gate order
    x: Array  # [T, B, I]
    state: tuple[Array, ...]  # h(, c) [L, B, H]
    lengths: Array | None
    expected: tuple[Array, ...]
    d_output: Array | None = None  # [T, B, H], zero in the padding


def problem(row: Row, seed: int = 1) -> Problem:
    """Weights uniform in ±1/sqrt(H) as PyTorch draws them, x and d_output normal, a random initial state."""
    rng, k, dtype = np.random.default_rng(seed), 1 / math.sqrt(row.units), row.dtype
    weights = {}
    for n in range(row.layers):
        width = GATES[row.cell] * row.units
        shapes = {"weight_ih": [width, row.units if n else row.inputs], "weight_hh": [width, row.units]}
        shapes |= {"bias_ih": [width], "bias_hh": [width]}
        for name, shape in shapes.items():
            weights[f"{name}_l{n}"] = rng.uniform(-k, k, shape).astype(np.float32).astype(dtype)
    x = rng.standard_normal((row.steps, row.batch, row.inputs), dtype=np.float32).astype(dtype)
    state = tuple(rng.uniform(-0.9, 0.9, (2, row.layers, row.batch, row.units)).astype(np.float32))
    state = tuple(v.astype(dtype) for v in (state if row.cell == "lstm" else state[:1]))
    if row.kind in ("pool", "cold"):
        state = tuple(np.zeros_like(v) for v in state)
    return with_answer(row, weights, x, state, rng)


def with_answer(
    row: Row, weights: Mapping[str, Array], x: Array, state: tuple[Array, ...], rng: np.random.Generator
) -> Problem:
    """The problem, answered by the reference in float64."""
    layer = getattr(reference, LAYERS[row.cell])(row.inputs, row.units, **row.options, dtype="float64")
    layer.load_state_dict(weights)
    given, lengths = state if len(state) > 1 else state[0], row.lengths
    if not row.train:
        expected = flat(layer(x, given, lengths=lengths))
        expected = expected[:1] if row.kind in ("pool", "cold") else expected
        return Problem(row, weights, x, state, lengths, expected)
    d_output = rng.standard_normal((row.steps, row.batch, row.units), dtype=np.float32).astype(row.dtype)
    if lengths is not None:
        d_output[np.arange(row.steps)[:, None] >= lengths] = 0
    tape = layer.record(x, given, lengths=lengths)
    return Problem(row, weights, x, state, lengths, trained(tape, tape.backward(d_output)), d_output)


def flat(result: Any) -> tuple[Any, ...]:
    """(output, h) or (output, (h, c)) -> (output, h(, c))"""
    return (result[0], *(result[1] if isinstance(result[1], tuple) else (result[1],)))


def trained(tape: Any, grads: Any) -> tuple[Array, ...]:
    """All that a step of training yields, in the order of `Problem.expected`."""
    gradients = (*flat((grads.input, grads.state)), *grads.parameters.values())
    return (*flat((tape.output, tape.state)), *gradients)


class Floor(NamedTuple):
    """Where `when`, `quantity` of every row whose name matches `rows` must compare so with `limit`.

    If `together`, the geometric mean over these rows must, in a run that has them all.
    """

    what: str
    rows: str
    quantity: str
    compare: str
    limit: float
    when: Callable[[int, str], bool]  # threads, isa
    together: bool = False


def _one_core(threads: int, isa: str) -> bool:
    return threads == 1 and isa == "avx512"


def _one_or_two_cores(threads: int, isa: str) -> bool:
    return threads <= 2 and isa == "avx512"


# H: ns a step on a core whose multiply-add takes 1.09 ns.
_AUDIO = {8: 53, 16: 71, 20: 107, 32: 137, 40: 205, 64: 695}
_ONE_STEP = "precision lstm (256,256|512,512|1024,1024),1,1"
_ONE_SEQUENCE = "precision lstm (256,256,100|512,512,100|1024,1024,50),1"
_PRECISE = "precision .*"
_GRID, _SMALL, _LARGE = "(lstm|gru|rnn) ", "(32,32|64,128),1,1", "(256,256|512,512|1024,1024),1,1"
FLOORS = (
    Floor("faster than the best peer", _GRID + ".*", "speedup", ">", 1.0, lambda threads, isa: threads <= 2),
    Floor("one step through Stream.step, H = 32", _GRID + "32,32,1,1", "floor_speedup", ">=", 6.0, _one_core),
    Floor("one step through Stream.step, H = 128", _GRID + "64,128,1,1", "floor_speedup", ">=", 3.0,
          _one_core),
    Floor("one step through Stream.step, H >= 256", _GRID + _LARGE, "floor_speedup", ">=", 1.3, _one_core),
    Floor("one step through the layer, H <= 128", _GRID + _SMALL, "floor_call_speedup", ">=", 2.0, _one_core),
    Floor("one step through the layer, H >= 256", _GRID + _LARGE, "floor_call_speedup", ">=", 1.2, _one_core),
    Floor("a short sequence, H = 32", _GRID + "32,32,100,1", "floor_speedup", ">=", 2.0, _one_core),
    Floor("a short sequence, H = 128", _GRID + "64,128,100,1", "floor_speedup", ">=", 1.1, _one_core),
    Floor("µs of a Stream.step in Python", "lstm 32,32,1,1", "us", "<=", 1.5, _one_core),
    Floor("% of peak", "lstm (256,256,50|512,512,25|1024,1024,25),64", "peak_percent", ">=", 91.0, _one_core),
    Floor("% of AVX2 peak", "lstm (256,256,50|512,512,25),64", "peak_percent", ">=", 84.0,
          lambda threads, isa: threads == 1 and isa == "avx2"),
    *(Floor("ns at 1.09 ns a multiply-add", f"audio {h}", "scaled_ns", "<=", ns, _one_core)
      for h, ns in _AUDIO.items()),
    Floor("ragged over dense, H = 64", "ragged 64", "against_dense", "<=", 1.15, _one_core),
    Floor("ragged over dense, H >= 128", "ragged (128|256)", "against_dense", "<=", 1.10, _one_core),
    Floor("per multiply over H = 48, H = 40", "odd 40 .*", "against_48", "<=", 1.2, _one_core),
    Floor("per multiply over H = 48, H = 33", "odd 33 .*", "against_48", "<=", 1.4, _one_core),
    Floor("two threads over one", "|".join(SCALING), "against_one_thread", ">=", 1.8,
          lambda threads, isa: threads == 2),
    Floor("training, faster than torch", "train (lstm|gru|rnn|ragged) .*", "over_torch", ">", 1.0,
          lambda threads, isa: threads <= 2),
    Floor("training, faster than torch on padded", "train ragged .*", "over_padded", ">=", 1.5,
          _one_or_two_cores),
    Floor("training, faster than torch on packed", "train ragged .*", "over_torch", ">=", 20.0,
          _one_or_two_cores),
    Floor("training, small shapes together", "train lstm (32,32,100,1|64,64,50,8)", "over_torch", ">=", 3.0,
          _one_or_two_cores, together=True),
    Floor("training, a short sequence", "train gru 32,32,100,1", "over_torch", ">=", 30.0, _one_or_two_cores),
    Floor("training, % of peak", "train lstm 512,512,25,64", "peak_percent", ">=", 88.0, _one_or_two_cores),
    *(Floor(f"{p}, one step over float32", _ONE_STEP, f"{p} over float32", ">=", limit, _one_core)
      for p, limit in (("bfloat16", 1.7), ("int8", 2.7), ("int8/16", 2.0))),
    *(Floor(f"{p}, a sequence over float32", _ONE_SEQUENCE, f"{p} over float32", ">=", limit, _one_core)
      for p, limit in (("bfloat16", 1.3), ("int8", 2.7), ("int8/16", 2.0))),
    *(Floor(f"{p}, a batch over float32", "precision lstm (256,256,50|512,512,25),64", f"{p} over float32",
            ">=", limit, _one_core)
      for p, limit in (("bfloat16", 1.0), ("int8", 2.5), ("int8/16", 1.5))),
    Floor("int8, faster than the best int8", _PRECISE, "int8 over peers", ">", 1.0, _one_core),
    Floor("int8, geometric mean over the best int8", _PRECISE, "int8 over peers", ">=", 2.0, _one_core, True),
    Floor("int8, error over the least of int8", _PRECISE, "int8 error over peers", "<=", 1.2, _one_core),
    Floor("int8, mean error over the least of int8", _PRECISE, "int8 error over peers", "<=", 0.9, _one_core,
          True),
    Floor("int8/16, error over the least of int8", _PRECISE, "int8/16 error over peers", "<=", 0.75,
          _one_core),
    Floor("int8/16, mean error over the least of int8", _PRECISE, "int8/16 error over peers", "<=", 0.5,
          _one_core, True),
    Floor("bfloat16, error over torch's", _PRECISE, "bfloat16 error over peers", "<", 1.0, _one_core),
    Floor("bfloat16, one sequence, faster than torch", _PRECISE + ",1", "bfloat16 over peers", ">", 1.0,
          _one_core),
    Floor("a pool over a thousand streams", "pool 64,128 x 2", "over_streams", ">=", 2.0, _one_core),
    Floor("a pool over a thousand streams", "pool 32,32 x 1", "over_streams", ">=", 4.0, _one_core),
    Floor("a pool's share of the batch's rate", "pool .*", "of_batch_rate", ">=", 0.8, _one_core),
    Floor("a pool, faster than the best peer", "pool .*", "speedup", ">", 1.0, _one_core),
)  # fmt: skip
_COMPARE = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}


def verdicts(result: Mapping[str, Any]) -> Iterable[tuple[bool, str]]:
    """Of every floor and row measured: whether it holds, and a line that says so."""
    measured = [row for row in result["rows"] if "error" not in row]
    for f in FLOORS:
        if not f.when(result["settings"]["threads"], result["settings"]["isa"]):
            continue
        found = {row["name"]: row[f.quantity] for row in measured
                 if f.quantity in row and re.fullmatch(f.rows, row["name"])}  # fmt: skip
        if f.together:
            complete = len(found) == sum(bool(re.fullmatch(f.rows, row.name)) for row in rows())
            found = {", ".join(found): statistics.geometric_mean(found.values())} if complete else {}
        for name, value in found.items():
            held = _COMPARE[f.compare](value, f.limit)
            text = f"{name:26} {f.what}: {value:.2f} (wanted {f.compare} {f.limit:g})"
            yield held, f"{'held  ' if held else 'MISSED'}  {text}"
