"""Check the outputs of every engine, then time them in turns; and measure the roofline beside them.

Turns: on every row the engines run one after the other in short batches of calls, over and over, the first of
a round changing from round to round, so that a slow moment of the machine hits all of them. A figure is the
median over the batches. Before a batch the process waits until the thread pools of the idle engines have
stopped spinning, and makes an untimed call, unless calls are long. The garbage collector is off.
"""

from __future__ import annotations

import gc
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from threading import get_native_id
from time import perf_counter, process_time, sleep
from typing import Any, NamedTuple

import numpy as np

from .grid import PRECISIONS, Array, Problem, Row
from .peers import Call, Cannot, Column

TOLERANCE = 2e-5  # largest |value - float64 reference| / max(1, |reference|) of an output or final state
# In training, of outputs, states and gradients: |value - float64 reference| / the array's largest entry.
TRAINING_TOLERANCE = 1e-5
FLOAT64_TOLERANCE = 1e-12  # of either kind, where all is float64
PRECISION_TOLERANCE = 0.2  # of reduced precision, whose errors are results: only what is no LSTM is refused
# The peers that "best peer" means, of columns of the same precision; those of a pool are two ways of one.
BEST_OF = ("torch", "onnxruntime", "onnxruntime alone", "openvino", "keras", "jax", "litert")
AS_FAST = 1.1  # times the fastest variant's time: so much longer counts as no longer
FLOOR_PEERS = ("torch", "onnxruntime", "openvino")  # those that the floors above 1 were set against
# ns of a multiply-add on the core of the audio rows' floors: 4 cycles, at 32 FLOP a cycle and 117 GFLOP/s.
FLOORS_MULTIPLY_ADD_NS = 4 * 32 / 117
LONG_CALL = 0.02  # seconds; of a shorter one, the first call after the other engines' waits for the caches
CACHES = {"L1": 16 << 10, "L2": 512 << 10, "L3": 8 << 20, "memory": 256 << 20}  # bytes read over and over


class Settings(NamedTuple):
    threads: int
    budget: float  # seconds a row
    batch: float  # seconds a batch of calls
    min_rounds: int
    max_rounds: int = 300


class Clock(NamedTuple):
    """How fast a core runs: its peak, FLOP/s, and the ns of a multiply-add that waits for another."""

    flops: float
    multiply_add_ns: float


class Mismatch(Exception):
    """An engine's outputs are not those expected, so its time says nothing."""


@dataclass
class Engine:
    """One column of a row: what to call, how often, and the seconds a call took in each batch."""

    name: str
    call: Call
    error: float
    output_error: float  # largest |value - float64 reference| of the output
    seconds: float  # a call, roughly
    settling: float = 0.001  # seconds its threads spin after a call
    calls: int = 1
    rounds: int = 1
    samples: list[float] = field(default_factory=list)
    variants: dict[str, float] = field(default_factory=dict)  # µs a call, roughly

    def summary(self) -> dict[str, Any]:
        low, median, high = np.quantile(self.samples, (0.1, 0.5, 0.9)) * 1e6
        return {
            "median_us": float(median), "p10_us": float(low), "p90_us": float(high),
            "batches": len(self.samples), "calls_per_batch": self.calls, "max_error": self.error,
            "output_error": self.output_error,
            "variant": self.call.variant, "variants_us": self.variants,
        }  # fmt: skip


def tolerance(row: Row) -> float:
    if row.kind in ("precision", "model"):  # a model's errors are shown too, and it may be quantized
        return PRECISION_TOLERANCE
    if row.dtype == "float64":
        return FLOAT64_TOLERANCE
    return TRAINING_TOLERANCE if row.train else TOLERANCE


def check(
    name: str, outputs: Sequence[Array], expected: Sequence[Array], train: bool = False,
    limit: float | None = None,
) -> float:  # fmt: skip
    """The largest error of the outputs, or Mismatch if it is above the limit (that of float32)."""
    if [o.shape for o in outputs] != [e.shape for e in expected]:
        raise Mismatch(f"{name}: shapes {[o.shape for o in outputs]}, expected {[e.shape for e in expected]}")
    scales = [np.max(np.abs(e)) if train else np.maximum(1, np.abs(e)) for e in expected]
    triples = zip(outputs, expected, scales, strict=True)
    error = float(np.max([np.max(np.abs(o - e) / scale) for o, e, scale in triples]))
    if limit is None:
        limit = TRAINING_TOLERANCE if train else TOLERANCE
    if not error <= limit:  # NaN is no match
        raise Mismatch(f"{name}: off the float64 reference by {error:.2g}, tolerance {limit:g}")
    return error


def resting() -> bool:
    """Whether no thread of this process but the caller's runs or waits for a core.

    Linux tells. The process's CPU time is second best: that of a thread on another core is brought up to date
    once a tick only, so it must stand still for two of the longest.
    """
    me = str(get_native_id())
    try:
        threads = [t for t in os.listdir("/proc/self/task") if t != me]
    except OSError:
        before = process_time()
        sleep(0.02)
        return process_time() - before < 0.001
    for thread in threads:
        try:
            stat = Path(f"/proc/self/task/{thread}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:  # it has ended
            continue
        if stat.rpartition(")")[2].split()[0] == "R":
            return False
    return True


def settle(limit: float = 0.5) -> float:
    """Wait until the idle threads of this process sleep, as seen three times in a row. Returns the seconds.

    With two threads OpenBLAS spun for 90 ms after a call, onnxruntime 35, torch's OpenMP 8, OpenVINO 2.
    """
    start, quiet = perf_counter(), 0
    while quiet < 3 and perf_counter() - start < limit:
        quiet = quiet + 1 if resting() else 0
        sleep(0.0002)
    return perf_counter() - start


def timed(run: Callable[[], Any], calls: int, warm: bool) -> float:
    """Seconds a call, over a batch of them; if warm, after an untimed one."""
    if warm:
        run()
    start = perf_counter()
    for _ in repeat(None, calls):
        run()
    return (perf_counter() - start) / calls


def batch_of(seconds: float, s: Settings) -> int:
    """Calls in a batch: weights that L3 holds came to stay there only after some calls."""
    return max(4 if seconds < LONG_CALL / 4 else 1, int(s.batch / seconds))


def choose(name: str, p: Problem, calls: Iterable[Call], s: Settings) -> Engine:
    """Check every variant of an engine and keep the fastest, with its batch size set by its speed."""
    found = []
    for call in calls:
        call.enter()
        start = perf_counter()
        result = call.run()
        seconds = perf_counter() - start
        outputs = call.read(result)
        error = check(f"{name} ({call.variant})", outputs, p.expected, p.row.train, tolerance(p.row))
        engine = Engine(name, call, error, float(np.max(np.abs(outputs[0] - p.expected[0]))), seconds)
        # A first, cold call is time enough of a slow engine; but oneDNN's in training takes 0.3 s and more.
        for k in range(3):
            if engine.seconds < s.budget / 10 or (k == 0 and p.row.train):
                engine.settling = settle()
                n = batch_of(engine.seconds, s)
                engine.seconds = min(engine.seconds, timed(call.run, n, engine.seconds < LONG_CALL))
        found.append(engine)
    best = min(found, key=lambda e: e.seconds)
    best.calls = batch_of(best.seconds, s)
    best.variants = {e.call.variant: e.seconds * 1e6 for e in found}
    # Of two ways that are as fast, a user takes the more accurate.
    best.output_error = min(e.output_error for e in found if e.seconds <= AS_FAST * best.seconds)
    return best


def take_turns(engines: Sequence[Engine], clock: Callable[[], Clock], s: Settings) -> Clock:
    """Fill the engines' samples; returns the medians of clock(), called after each batch of ours.

    Each engine has an equal share of the budget, so slow ones sit out some of the rounds. We come first. The
    clock is that which our batch left behind: under wide multiply-adds some cores slow down by a fifth, and
    recover at rest.
    """
    for e in engines:
        cost = e.seconds * (e.calls + (e.seconds < LONG_CALL)) + e.settling
        e.rounds = min(max(int(s.budget / len(engines) / cost), s.min_rounds), s.max_rounds)
    rounds, clocks = max(e.rounds for e in engines), []
    gc.collect()
    gc.disable()
    try:
        for r in range(rounds):
            turn = r % len(engines)
            for e in [*engines[turn:], *engines[:turn]]:
                if (r + 1) * e.rounds // rounds > r * e.rounds // rounds:  # evenly spread
                    e.call.enter()
                    settle()
                    e.samples.append(timed(e.call.run, e.calls, e.seconds < LONG_CALL))
                    if e is engines[0]:
                        clocks.append(clock())
    finally:
        gc.enable()
    return Clock(*map(statistics.median, zip(*clocks, strict=True)))


def roofline(core: Any, seconds: float) -> dict[str, Any]:
    """What one core can do at most on the path in use: multiply-adds in FLOP/s, reading in bytes/s."""
    reads = {level: core.read_bandwidth(n, seconds) for level, n in CACHES.items()}
    return {
        "peak_flops": core.peak_flops("float32", seconds),
        "multiply_add_ns": core.multiply_add_ns("float32", seconds), "read_bytes_per_second": reads,
    }  # fmt: skip


def clock_now(core: Any, dtype: str = "float32") -> Clock:
    """At this moment: in three bursts of some 40 µs, for multiply-adds of registers draw less power than a
    product, and within a millisecond of them the clock was 10 to 20 % faster."""
    flops = statistics.median(core.peak_flops(dtype, 0) for _ in range(3))
    return Clock(float(flops), float(core.multiply_add_ns(dtype, 0)))


def figures(row: Row, mine: float, clock: Clock, threads: int, reads: Mapping[str, float]) -> dict[str, Any]:
    """What our median µs says by itself: the share of the peak and, for one sequence, of the roof."""
    peak = threads * clock.flops
    out: dict[str, Any] = {
        "us": mine, "ns_per_step": 1000 * mine / row.steps, "gflops": row.flops / mine / 1e3,
        "peak_gflops": peak / 1e9, "peak_percent": 100 * row.flops / (mine * 1e-6 * peak),
    }  # fmt: skip
    if (
        row.batch == 1 and not row.train
    ):  # weights are read once a step: the roof is the slower of reading and multiplying
        level = next((k for k, n in CACHES.items() if row.weight_bytes <= 2 * n), "memory")
        seconds = row.steps * max(row.weight_bytes / reads[level], row.flops / row.steps / peak)
        out |= {"roof_percent": 100 * seconds / (mine * 1e-6), "weights_in": level}
    if row.table == "audio":
        # Such a step is a chain that waits: it gains nothing from a core that multiplies more at once.
        out["scaled_ns"] = out["ns_per_step"] * FLOORS_MULTIPLY_ADD_NS / clock.multiply_add_ns
    return out


def comparisons(engines: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the columns of a row say of each other. `ratio` is a column's time over that of fastlstm in the
    same process, so that columns of several processes compare."""
    ratio = {name: e["ratio"] for name, e in engines.items()}
    out: dict[str, Any] = {}
    peers = [name for name in BEST_OF if name in ratio]
    if peers:
        best = min(peers, key=ratio.__getitem__)
        out |= {"best_peer": best, "speedup": ratio[best]}
        if "fastlstm call" in ratio:
            out["call_speedup"] = ratio[best] / ratio["fastlstm call"]
    if held_against := [ratio[name] for name in FLOOR_PEERS if name in ratio]:
        out["floor_speedup"] = min(held_against)
        if "fastlstm call" in ratio:
            out["floor_call_speedup"] = min(held_against) / ratio["fastlstm call"]
    beside = {
        "over_numpy": "numpy", "over_torch": "torch", "over_padded": "torch padded",
        "against_one_thread": "fastlstm 1 thread", "over_streams": "fastlstm streams",
        "of_batch_rate": "fastlstm batch",
    }  # fmt: skip
    out |= {key: ratio[name] for key, name in beside.items() if name in ratio}
    if "fastlstm dense" in ratio:
        out["against_dense"] = 1 / ratio["fastlstm dense"]
    for precision in PRECISIONS:
        if (mine := f"fastlstm {precision}") in ratio:
            out[f"{precision} over float32"] = 1 / ratio[mine]
            kind = precision.partition("/")[0]  # 16-bit activations too are held against the peers' int8
            rivals = [name for name in (f"torch {kind}", f"onnxruntime {kind}") if name in ratio]
            if rivals:
                least = min(engines[name]["output_error"] for name in rivals)
                out[f"{precision} over peers"] = min(ratio[name] for name in rivals) / ratio[mine]
                out[f"{precision} error over peers"] = engines[mine]["output_error"] / least
    return out


def described(row: Row) -> dict[str, Any]:
    """What a row of the result says before anything is measured."""
    return {
        "name": row.name, "table": row.table, "cell": row.cell, **dict(zip("IHTB", row.shape, strict=True)),
        "kind": row.kind, "dtype": row.dtype, "options": dict(row.options), "core": row.in_core,
        "valid_steps": row.valid_steps, "flops": row.flops, "weight_bytes": row.weight_bytes,
    }  # fmt: skip


class Gathered(NamedTuple):
    """The engines of a row, checked and ready to be timed; why others are not among them."""

    engines: list[Engine]
    cannot: dict[str, str]
    wrong: dict[str, str]

    def has(self, name: str) -> bool:
        return any(e.name == name for e in self.engines)

    def reasons(self) -> dict[str, dict[str, str]]:
        found = {"cannot": self.cannot, "left_out": self.wrong}
        return {key: reasons for key, reasons in found.items() if reasons}


def gather(p: Problem, fast: Any, peers: Sequence[Any], s: Settings, only_base: bool = False) -> Gathered:
    """Ours, of which `only_base` leaves one column, then the peers; without our first there is no row."""
    found = Gathered([], {}, {})
    mine = fast.columns(p)
    columns: list[Column] = [*mine[: 1 if only_base else None], *(c for e in peers for c in e.columns(p))]
    for column in columns:
        try:
            found.engines.append(choose(column.name, column.problem, column.calls(), s))
        except Cannot as reason:
            found.cannot[column.name] = str(reason)
        except Exception as error:  # a peer that can't run must be seen, not be missing from "best peer"
            found.wrong[column.name] = f"{type(error).__name__}: {error}"
        if column is columns[0] and not found.engines:
            break  # without ours, the others' times say nothing
    return found


def summaries(engines: Sequence[Engine]) -> dict[str, dict[str, Any]]:
    """Of each column what was timed, and its ratio to the first, ours."""
    found = {e.name: e.summary() for e in engines}
    us = found[engines[0].name]["median_us"]
    for summary in found.values():
        summary["ratio"] = summary["median_us"] / us
    return found


def measure(
    p: Problem, fast: Any, peers: Sequence[Any], core: Any, roof: Mapping[str, Any], s: Settings,
    companion: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """One row of the result: every engine's times and what they say; the errors of those that have none.

    A companion only adds peers to a row that another process measures: of ours it times what the others are
    held against, and nothing if no peer can do the row.
    """
    row = p.row
    gathered = gather(p, fast, peers, s, only_base=companion)
    out = described(row) | gathered.reasons()
    if fast.name in gathered.wrong:
        return {**out, "error": gathered.wrong[fast.name]}
    if not gathered.has(fast.name) or (companion and len(gathered.engines) == 1):
        return out
    clock = take_turns(gathered.engines, lambda: clock_now(core, row.dtype), s)
    found = summaries(gathered.engines)
    ours = figures(row, found[fast.name]["median_us"], clock, s.threads, roof["read_bytes_per_second"])
    return out | {"engines": found} | ours | comparisons(found)


def against_48(rows: Sequence[dict[str, Any]]) -> None:
    """Add to the odd-size rows the time of a multiply against that at H = 48."""
    odd = [row for row in rows if row["table"] == "odd" and "us" in row]
    base = {row["B"]: row["us"] / row["flops"] for row in odd if row["H"] == 48}
    for row in odd:
        if row["B"] in base:
            row["against_48"] = row["us"] / row["flops"] / base[row["B"]]
