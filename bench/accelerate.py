"""PyTorch's recurrent modules beside their accelerated twins, in one process, on one thread.

    python bench/accelerate.py [--rows 'LSTM 256'] [--seconds 1] [--smoke]

Each row is a pair of modules with the same weights. Outputs (and gradients) are compared before anything is
timed; then both run in turns, so that a busy machine slows both alike, and the medians go into a table in
Markdown. A training step is forward and backward, all gradients zeroed by `grad = None`. A last table has
single steps, whose time is mostly that of the call.
"""

from __future__ import annotations

import argparse
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
import fastlstm.torch
from fastlstm._bench import report

ROOT = Path(__file__).resolve().parents[1]


class Row(NamedTuple):
    cell: str
    inputs: int
    hidden: int
    steps: int
    batch: int
    train: bool = False
    packed: bool = False  # random lengths 1..steps

    @property
    def name(self) -> str:
        what = f"{self.cell} {self.inputs}, {self.hidden}, {self.steps}, {self.batch}"
        return what + (", packed" if self.packed else "") + (", training" if self.train else "")


# Those of DESIGN.md, section 5: I, H, T, B.
LSTM = [
    (32, 32, 1, 1), (64, 128, 1, 1), (256, 256, 1, 1), (512, 512, 1, 1), (1024, 1024, 1, 1), (32, 32, 100, 1),
    (64, 128, 100, 1), (256, 256, 100, 1), (512, 512, 100, 1), (1024, 1024, 50, 1), (40, 40, 1000, 1),
    (64, 64, 50, 8), (128, 128, 100, 32), (256, 256, 50, 64), (512, 512, 25, 64), (1024, 1024, 25, 64),
    (64, 64, 100, 256),
]  # fmt: skip
GRU = [
    (32, 32, 1, 1), (32, 32, 100, 1), (256, 256, 100, 1), (64, 64, 50, 8), (256, 256, 50, 64),
    (512, 512, 25, 64),
]  # fmt: skip
AUDIO = [(1, hidden, 48_000, 1) for hidden in (8, 16, 20, 32, 40, 64)]
TRAIN = [
    (32, 32, 100, 1), (256, 256, 100, 1), (64, 64, 50, 8), (128, 128, 100, 32), (256, 256, 50, 64),
    (512, 512, 25, 64), (1024, 1024, 25, 64),
]  # fmt: skip
ROWS = [
    *(Row("LSTM", *sizes) for sizes in LSTM),
    *(Row("LSTM", *sizes) for sizes in AUDIO),
    *(Row("GRU", *sizes) for sizes in GRU),
    *(Row("LSTM", *sizes, train=True) for sizes in TRAIN),
    Row("LSTM", 64, 64, 1000, 32, train=True, packed=True),
    *(Row("GRU", *sizes, train=True) for sizes in GRU),
]
SINGLE = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")  # a step of H = 32


def twins(cell: str, inputs: int, hidden: int) -> list[torch.nn.Module]:
    plain = getattr(torch.nn, cell)(inputs, hidden)
    twin = getattr(torch.nn, cell)(inputs, hidden)
    twin.load_state_dict(plain.state_dict())
    assert fastlstm.torch.accelerate(twin).swapped
    return [plain, twin]


def flat(thing: Any) -> list[torch.Tensor]:
    """The tensors in a result."""
    if isinstance(thing, torch.Tensor):
        return [thing]
    return [t for part in thing if part is not None for t in flat(part)]


def calls_of(row: Row) -> list[Callable[[], list[torch.Tensor]]]:
    """A call of each module, which returns what is to agree."""
    x: Any = torch.randn(row.steps, row.batch, row.inputs, requires_grad=row.train)
    if row.packed:
        lengths = torch.randint(1, row.steps + 1, (row.batch,))
        lengths[0] = row.steps
    state = torch.randn(1, row.batch, row.hidden)
    hx = (state, state) if row.cell == "LSTM" else state

    def forward(module: Any) -> list[torch.Tensor]:
        with torch.no_grad():
            return flat(module(x, hx))

    def step(module: Any) -> list[torch.Tensor]:
        module.zero_grad(set_to_none=True)
        x.grad = None
        given = pack_padded_sequence(x, lengths, enforce_sorted=False) if row.packed else x
        y = module(given, hx)[0]
        y = y.data if row.packed else y
        y.backward(torch.ones_like(y))
        return [x.grad, *(p.grad for p in module.parameters())]

    run = step if row.train else forward
    return [lambda m=m: run(m) for m in twins(row.cell, row.inputs, row.hidden)]  # type: ignore[misc]


def single_step(cell: str, size: int = 32) -> list[Callable[[], list[torch.Tensor]]]:
    """Modules alone, called under inference_mode by `measure`."""
    shape = (1, size) if cell.endswith("Cell") else (1, 1, size)
    x, state = torch.randn(shape), torch.randn(shape)
    hx = (state, state) if cell.startswith("LSTM") else state
    return [lambda m=m: m(x, hx) for m in twins(cell, size, size)]  # type: ignore[misc]


def agree(calls: list[Callable[[], Any]], name: str) -> None:
    theirs, ours = (flat(call()) for call in calls)
    for a, b in zip(ours, theirs, strict=True):
        error, size = float((a - b).abs().max()), max(1.0, float(b.abs().max()))
        if not error <= 1e-4 * size:
            sys.exit(f"{name}: the modules differ by {error:g} where {size:g} is the largest")


def measure(calls: list[Callable[[], Any]], seconds: float) -> list[float]:
    """Median microseconds of each, in turns of some 2 ms."""
    repeats = []
    for call in calls:
        call()
        begin = time.perf_counter()
        call()
        repeats.append(max(1, int(2e-3 / (time.perf_counter() - begin))))
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for call, n, found in zip(calls, repeats, times, strict=True):
            begin = time.perf_counter()
            for _ in range(n):
                call()
            found.append(1e6 * (time.perf_counter() - begin) / n)
    return [statistics.median(found) for found in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", default="", help="a regular expression that names must match")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row")
    parser.add_argument("--smoke", action="store_true", help="see that it runs: small rows, no time")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    fastlstm.set_num_threads(1)
    seconds = 0.0 if arguments.smoke else arguments.seconds
    config, commit = fastlstm.show_config("dicts"), report.source(ROOT)["commit"] or "an installed wheel"
    own = f"fastlstm {config['fastlstm']} ({config['cpu_path']}, {commit[:18]}), torch {torch.__version__}"
    print(f"{own}, Python {platform.python_version()}, {report.machine()['cpu']}, one thread\n")
    print("| I, H, T, B | torch µs | accelerated µs | gain |\n|---|--:|--:|--:|")
    behind = []
    rows: list[tuple[str, Callable[[], Any], Any]] = [(r.name, lambda r=r: calls_of(r), r) for r in ROWS]  # type: ignore[misc]
    rows += [(f"{c}, one step of H = 32", lambda c=c: single_step(c), None) for c in SINGLE]  # type: ignore[misc]
    for name, make, row in rows:
        if not re.search(arguments.rows, name) or arguments.smoke and row and row.hidden * row.steps > 4000:
            continue
        calls = make()
        with torch.inference_mode(row is None):
            agree(calls, name)
            theirs, ours = measure(calls, seconds)
        print(f"| {name} | {theirs:,.1f} | {ours:,.1f} | {theirs / ours:.2f} |", flush=True)
        if ours > theirs:
            behind.append(name)
    if behind and not arguments.smoke:
        print(f"\nbehind in: {'; '.join(behind)}")


if __name__ == "__main__":
    main()
