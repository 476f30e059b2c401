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

from .grid import Array, Problem, Row, problem
from .peers import Call

TOLERANCE = 2e-5  # largest |value - float64 reference| / max(1, |reference|) of an output or final state
# In training, of outputs, states and gradients: |value - float64 reference| / the array's largest entry.
TRAINING_TOLERANCE = 1e-5
BEST_OF = ("torch", "onnxruntime", "openvino")  # the peers that "best peer" means
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
            "variant": self.call.variant, "variants_us": self.variants,
        }  # fmt: skip


def check(name: str, outputs: Sequence[Array], expected: Sequence[Array], train: bool = False) -> float:
    """The largest error of the outputs, or Mismatch."""
    if [o.shape for o in outputs] != [e.shape for e in expected]:
        raise Mismatch(f"{name}: shapes {[o.shape for o in outputs]}, expected {[e.shape for e in expected]}")
    scales = [np.max(np.abs(e)) if train else np.maximum(1, np.abs(e)) for e in expected]
    triples = zip(outputs, expected, scales, strict=True)
    error = float(np.max([np.max(np.abs(o - e) / scale) for o, e, scale in triples]))
    tolerance = TRAINING_TOLERANCE if train else TOLERANCE
    if not error <= tolerance:  # NaN is no match
        raise Mismatch(f"{name}: off the float64 reference by {error:.2g}, tolerance {tolerance:g}")
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
        error = check(f"{name} ({call.variant})", call.read(result), p.expected, p.row.train)
        engine = Engine(name, call, error, seconds)
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


def clock_now(core: Any) -> Clock:
    """At this moment: in three bursts of some 40 µs, for multiply-adds of registers draw less power than a
    product, and within a millisecond of them the clock was 10 to 20 % faster."""
    flops = statistics.median(core.peak_flops("float32", 0) for _ in range(3))
    return Clock(float(flops), float(core.multiply_add_ns("float32", 0)))


def figures(
    row: Row, us: Mapping[str, float], clock: Clock, threads: int, reads: Mapping[str, float]
) -> dict[str, Any]:
    """What a row's medians say: ratios, the share of the peak and, for one sequence, of the roof."""
    peak = threads * clock.flops
    mine = us["fastlstm"]
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
    peers = [name for name in BEST_OF if name in us]
    if peers:
        best = min(peers, key=us.__getitem__)
        out |= {"best_peer": best, "speedup": us[best] / mine}
        if "fastlstm call" in us:
            out["call_speedup"] = us[best] / us["fastlstm call"]
    if "numpy" in us:
        out["over_numpy"] = us["numpy"] / mine
    if row.table == "audio":
        # Such a step is a chain that waits: it gains nothing from a core that multiplies more at once.
        out["scaled_ns"] = out["ns_per_step"] * FLOORS_MULTIPLY_ADD_NS / clock.multiply_add_ns
    if "fastlstm dense" in us:
        out["against_dense"] = mine / us["fastlstm dense"]
    if "torch padded" in us:
        out["over_padded"] = us["torch padded"] / mine
    if "fastlstm 1 thread" in us:
        out["against_one_thread"] = us["fastlstm 1 thread"] / mine
    return out


def measure(
    row: Row, fast: Any, peers: Sequence[Any], core: Any, roof: Mapping[str, Any], s: Settings
) -> dict[str, Any]:
    """One row of the result: every engine's times and what they say; the errors of those that have none."""
    out: dict[str, Any] = {
        "name": row.name, "table": row.table, "cell": row.cell, **dict(zip("IHTB", row.shape, strict=True)),
        "core": row.in_core, "valid_steps": row.valid_steps, "flops": row.flops,
        "weight_bytes": row.weight_bytes,
    }  # fmt: skip
    p = problem(row)
    engines: list[Engine] = []
    wrong = {}
    for e in (fast, *peers):
        try:
            mine = [(e.name, p, calls)] if (calls := e.calls(p)) else []
            engines += [choose(name, q, calls, s) for name, q, calls in (*mine, *e.beside(p))]
        except Exception as error:  # a peer that can't run must be seen, not be missing from "best peer"
            wrong[e.name] = f"{type(error).__name__}: {error}"
    if wrong:
        out["left_out"] = wrong
    if fast.name in wrong:
        return {**out, "error": wrong[fast.name]}
    clock = take_turns(engines, lambda: clock_now(core), s)
    out["engines"] = {e.name: e.summary() for e in engines}
    us = {name: e["median_us"] for name, e in out["engines"].items()}
    return out | figures(row, us, clock, s.threads, roof["read_bytes_per_second"])


def against_48(rows: Sequence[dict[str, Any]]) -> None:
    """Add to the odd-size rows the time of a multiply against that at H = 48."""
    odd = [row for row in rows if row["table"] == "odd" and "us" in row]
    base = {row["B"]: row["us"] / row["flops"] for row in odd if row["H"] == 48}
    for row in odd:
        if row["B"] in base:
            row["against_48"] = row["us"] / row["flops"] / base[row["B"]]
