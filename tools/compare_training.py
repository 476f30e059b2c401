"""Train the same model in fastlstm and in PyTorch: python tools/compare_training.py [--out docs]

Both begin with the same weights and see the same batches of the Python standard library's source: a
character model (Embedding, LSTM, Linear), cross-entropy, truncated backpropagation through time with the
state carried on, the gradients' norm clipped, Adam. In float64 the losses have to agree to 1e-4 of themselves
at every step, in float32 to 1e-3. Each step is done by one engine and then by the other, on one core with one
thread each, so that whatever else the machine does meets both.

Writes training.json, training.md and training.svg. Needs PyTorch and matplotlib.
Exit code 1 if the losses do not agree.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if hasattr(os, "sched_setaffinity"):  # before NumPy, whose BLAS makes threads for as many cores as it finds
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import numpy as np
import torch

import fastlstm
from fastlstm import _train

AGREEMENT = {"float64": 1e-4, "float32": 1e-3}  # the largest relative difference of two losses
CHARACTERS = 2_000_000
LR, CLIP = 2e-3, 1.0
Step = Callable[[Any, bool], float]


def fastlstm_steps(model: fastlstm.Sequential) -> Step:
    optimizer, state = fastlstm.Adam(model, LR), None

    def step(codes: Any, begins: bool) -> float:
        nonlocal state
        tape = model.record(codes[:-1], None if begins else state)
        loss, d_output = fastlstm.cross_entropy(tape.output, codes[1:])
        gradients, _ = fastlstm.clip_grad_norm(tape.backward(d_output).parameters, CLIP)
        optimizer.step(gradients)
        state = tape.state
        return float(loss)

    return step


def torch_steps(model: fastlstm.Sequential) -> Step:
    """The same model, from its weights."""
    weights = {name: torch.from_numpy(v) for name, v in model.state_dict().items()}
    dtype = weights["0.weight"].dtype
    symbols, width = weights["0.weight"].shape
    units = weights["2.weight"].shape[1]
    embedding = torch.nn.Embedding(symbols, width, dtype=dtype)
    lstm = torch.nn.LSTM(width, units, dtype=dtype)
    linear = torch.nn.Linear(units, symbols, dtype=dtype)
    modules = torch.nn.ModuleList([embedding, lstm, linear])
    modules.load_state_dict(weights)
    optimizer, state = torch.optim.Adam(modules.parameters(), LR), None

    def step(codes: Any, begins: bool) -> float:
        nonlocal state
        tokens = torch.from_numpy(codes.astype(np.int64))
        output, new = lstm(embedding(tokens[:-1]), None if begins else state)
        loss = torch.nn.functional.cross_entropy(linear(output).flatten(0, 1), tokens[1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(modules.parameters(), CLIP)
        optimizer.step()
        state = tuple(v.detach() for v in new)
        return loss.item()

    return step


def compare(text: _train.Text, s: _train.Settings, dtype: str) -> dict[str, dict[str, list[float]]]:
    """Losses in bits per character and seconds of each step, by engine."""
    seeds = range(s.seed, s.seed + 3)
    model = fastlstm.Sequential(
        fastlstm.Embedding(text.symbols, s.embedding, dtype=dtype, seed=seeds[0]),
        fastlstm.LSTM(s.embedding, s.width, dtype=dtype, seed=seeds[1]),
        fastlstm.Linear(s.width, text.symbols, dtype=dtype, seed=seeds[2]),
    )
    engines = {"PyTorch": torch_steps(model), "fastlstm": fastlstm_steps(model)}  # PyTorch copies, then
    found: dict[str, dict[str, list[float]]] = {name: {"bits": [], "seconds": []} for name in engines}
    for number in range(s.steps):
        codes, begins = _train.window(text, s, number)
        order = list(engines.items())
        for name, step in order if number % 2 else order[::-1]:
            start = time.perf_counter()
            loss = step(codes, begins)
            found[name]["seconds"].append(time.perf_counter() - start)
            found[name]["bits"].append(loss / math.log(2))
    return found


def difference(found: dict[str, dict[str, list[float]]]) -> float:
    ours, theirs = (np.array(found[name]["bits"]) for name in ("fastlstm", "PyTorch"))
    return float(np.max(np.abs(ours - theirs) / np.abs(theirs)))


def draw(path: Path, results: dict[str, Any]) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "fastlstm"}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        by_step, by_time = figure.subplots(1, 2, sharey=True)
        styles = {"PyTorch": {"color": "tab:orange", "linewidth": 3}, "fastlstm": {"color": "tab:blue"}}
        for name, style in styles.items():
            run = results["float32"][name]
            by_step.plot(range(1, len(run["bits"]) + 1), run["bits"], label=name, **style)
            by_time.plot(np.cumsum(run["seconds"]), run["bits"], label=name, **style)
        by_step.set(xlabel="steps", ylabel="bits per character", title="float32")
        by_time.set(xlabel="seconds, one core")
        for axes in (by_step, by_time):
            axes.grid(alpha=0.3)
            axes.legend()
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def page(results: dict[str, Any], s: _train.Settings, text: _train.Text) -> str:
    rows = []
    for dtype in AGREEMENT:
        run = results[dtype]
        first, last = (
            f"{run['fastlstm']['bits'][k]:.6f} | {run['PyTorch']['bits'][k]:.6f}" for k in (0, -1)
        )
        ours, theirs = (sum(run[name]["seconds"]) for name in ("fastlstm", "PyTorch"))
        rows.append(
            f"| {dtype} | {first} | {last} | {difference(run):.1e} | {ours:.2f} | {theirs:.2f} "
            f"| {theirs / ours:.2f} |"
        )
    table = "\n".join(rows)
    return f"""# Training beside PyTorch

The same weights at the start, the same batches, one core: a character model of {text.symbols} symbols
(embedding {s.embedding}, LSTM {s.width}) learns from the Python standard library's source, {s.steps} steps of
{s.batch} × {s.bptt} characters with Adam. Written by `tools/compare_training.py` on
{results["machine"]}.

![bits per character by step, and by time](training.svg)

| dtype | fastlstm, first step | PyTorch | fastlstm, last step | PyTorch | largest relative difference \
| fastlstm, s | PyTorch, s | times faster |
|---|---|---|---|---|---|---|---|---|
{table}

Losses in bits per character; the largest difference is that of any step.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Train the same model in fastlstm and in PyTorch.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--bptt", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if min(options.steps, options.width, options.batch, options.bptt) < 1:
        parser.error("--steps, --width, --batch and --bptt must be at least 1")

    torch.set_num_threads(1)
    fastlstm.set_num_threads(1)
    files = sorted(map(str, Path(sysconfig.get_path("stdlib")).glob("*.py")))
    text = _train.read_text(files, as_bytes=False)
    text = text._replace(train=min(text.train, CHARACTERS))
    settings = _train.Settings(
        width=options.width, embedding=32, steps=options.steps, batch=options.batch, bptt=options.bptt,
        seed=options.seed,
    )  # fmt: skip
    results: dict[str, Any] = {
        "machine": f"{platform.machine()} ({fastlstm.show_config('dicts')['cpu_path']}), fastlstm "
        f"{fastlstm.__version__}, PyTorch {torch.__version__}, NumPy {np.__version__}"
    }
    agree = True
    for dtype, most in AGREEMENT.items():
        found = results[dtype] = compare(text, settings, dtype)
        largest = difference(found)
        verdict = "agree" if largest <= most else f"DIFFER by more than {most:g}"
        agree = agree and largest <= most
        ours, theirs = (sum(found[name]["seconds"]) for name in ("fastlstm", "PyTorch"))
        print(
            f"{dtype}: losses {verdict}, largest relative difference {largest:.1e}; "
            f"fastlstm {ours:.2f} s, PyTorch {theirs:.2f} s ({theirs / ours:.2f} times)",
            flush=True,
        )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "training.json").write_text(json.dumps(rounded(results)) + "\n", encoding="utf-8")
    (options.out / "training.md").write_text(page(results, settings, text), encoding="utf-8")
    draw(options.out / "training.svg", results)
    return 0 if agree else 1


def rounded(value: Any) -> Any:
    """Numbers to ten digits, which is enough to see that two losses agree."""
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    return [float(f"{v:.10g}") for v in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
