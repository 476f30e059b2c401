"""Cold start: from the start of a process to the first result, the memory it then holds, the disk it needs.

A fresh interpreter imports one engine, loads a small LSTM from a file and runs one step. What is timed begins
before the process and ends when its result is read here.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from .grid import Problem
from .measure import Mismatch, Settings, check, comparisons, described
from .peers import Cannot

LIMIT = 300  # seconds, of a process
# The high-water mark of a fresh address space, kB; getrusage's also has that of the parent before the exec.
PROGRAM = """
import json
import numpy
x = numpy.load("x.npy")
{engine}
print(json.dumps(numpy.asarray(y, float).ravel().tolist()), flush=True)
status = open("/proc/self/status").read()
sizes = (line.split() for line in status.splitlines() if line.startswith("Vm"))
print(json.dumps({{size[0].rstrip(":"): int(size[1]) for size in sizes}}))
"""


def start(program: str, folder: Path) -> tuple[float, list[float], dict[str, int]]:
    """Seconds to the first result, that result, and the process's memory in kB by the names of proc(5)."""
    command = [sys.executable, "-P", "-c", program]
    # An installed package has its bytecode; the first start gives a source tree its own.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        began = perf_counter()
        with subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            text=True,
        ) as child:
            assert child.stdout
            timer = threading.Timer(LIMIT, child.kill)
            timer.start()
            first = child.stdout.readline()
            seconds = perf_counter() - began
            rest = child.stdout.readline()
            status = child.wait()
            timer.cancel()
        errors.seek(0)
        if status or not rest:
            raise RuntimeError(f"exit status {status}: {errors.read().strip()[-300:]}")
    return seconds, json.loads(first), json.loads(rest)


def measure(
    p: Problem, fast: Any, peers: Sequence[Any], s: Settings, companion: bool = False
) -> dict[str, Any]:
    """The row of the result. `resident_bytes` is the most that was resident, `installed_bytes` the size on
    disk of the engine's packages and of those that they need."""
    out, programs, cannot, wrong = described(p.row), {}, {}, {}
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "x.npy", p.x)
        for e in (fast, *peers):
            try:
                programs[e] = PROGRAM.format(engine=e.cold(p, folder))
                start(programs[e], folder)  # its files are then in the page cache, for all alike
            except Cannot as reason:
                cannot[e.name] = str(reason)
                programs.pop(e, None)
            except Exception as failure:
                wrong[e.name] = f"{type(failure).__name__}: {failure}"
                programs.pop(e, None)
        if companion and len(programs) < 2:
            programs = {}
        times: dict[str, list[float]] = {e.name: [] for e in programs}
        for _ in range(s.min_rounds):  # in turns
            for e, program in list(programs.items()):
                try:
                    seconds, y, memory = start(program, folder)
                    shaped = np.reshape(y, p.expected[0].shape)
                    error = check(e.name, [shaped], p.expected)
                except (Mismatch, ValueError, RuntimeError) as failure:
                    wrong[e.name] = f"{type(failure).__name__}: {failure}"
                    del programs[e]
                    continue
                times[e.name].append(seconds)
                found[e.name] = {"max_error": error, "resident_bytes": 1024 * memory["VmHWM"]}
    for e in programs:
        low, median, high = np.quantile(times[e.name], (0.1, 0.5, 0.9)) * 1e6
        found[e.name] |= {"median_us": float(median), "p10_us": float(low), "p90_us": float(high)}
        found[e.name] |= {"batches": len(times[e.name]), "installed_bytes": installed_bytes(e.distributions)}
    found = {e.name: found[e.name] for e in programs}
    if cannot:
        out["cannot"] = cannot
    if wrong:
        out["left_out"] = wrong
    if fast.name in wrong:
        return {**out, "error": wrong[fast.name]}
    if not found:
        return out
    us = found[fast.name]["median_us"]
    for summary in found.values():
        summary["ratio"] = summary["median_us"] / us
    return out | {"engines": found, "us": us} | comparisons(found)


def installed_bytes(names: Iterable[str]) -> int:
    """On disk, of these distributions and all that they need; of fastlstm in a source tree, the package."""
    wanted, seen, files = list(names), set(), set()
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        if name == "fastlstm":
            package = Path(__file__).parents[1]
            files |= {f for f in package.rglob("*") if f.suffix in (".py", ".pyi", ".so", ".safetensors")}
            wanted += ["numpy", "safetensors"]
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # of another system, or Python
            continue
        files |= {Path(str(distribution.locate_file(f))) for f in distribution.files or []}
        for line in distribution.requires or []:
            if not re.search(r";.*\bextra\b", line) and (match := re.match(r"[\w.-]+", line)):
                wanted.append(match.group())
    return sum(os.path.getsize(f) for f in files if f.is_file())
