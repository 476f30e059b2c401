"""The benchmark: the whole grid against NumPy, torch, onnxruntime and OpenVINO, in turns, on pinned cores.

It measures in a fresh interpreter that may use only the cores asked for, so that every engine's thread pool
is born pinned, and writes benchmark.json, benchmark.md and benchmark.svg.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_CHILD = "FASTLSTM_BENCH_CHILD"  # set in the interpreter that measures
_ROOT = Path(__file__).resolve().parents[2]


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"no regular expression: {error}") from None


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"wanted seconds above 0, got {text!r}")
    return value


def _result(text: str) -> dict[str, Any]:
    """A benchmark.json."""
    from .grid import verdicts

    try:
        result: dict[str, Any] = json.loads(Path(text).read_text(encoding="utf-8"))
        list(verdicts(result))
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise argparse.ArgumentTypeError(f"{text} is no benchmark.json") from None
    return result


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="fastlstm bench", description=(__doc__ or "").replace("\n\n", " "))
    p.add_argument("--threads", type=int, default=1, metavar="N", help="cores, threads of every engine (1)")
    p.add_argument("--isa", metavar="NAME", help="run fastlstm on this path (FASTLSTM_ISA)")
    p.add_argument("--peers", metavar="A,B", help="of numpy, torch, onnxruntime, openvino (all installed)")
    only = "only rows whose name has it; repeatable"
    p.add_argument("--rows", action="append", type=_pattern, metavar="REGEX", help=only)
    p.add_argument("--list", action="store_true", help="print the names of the rows and stop")
    p.add_argument("--budget", type=_seconds, metavar="S", help="seconds for a row (6; quick 1.5, smoke 0.1)")
    p.add_argument("--quick", action="store_true", help="fewer GRU and RNN rows, less time for each")
    p.add_argument("--smoke", action="store_true", help="a few rows in seconds: that it runs, not how fast")
    p.add_argument("--out", type=Path, metavar="DIR", help="(bench/results in a source tree, else here)")
    p.add_argument("--c-bench", metavar="CMD", help="`CMD I H T` prints the ns a step of the C API")
    targets = "say which speed floors hold in this run, or in that file; exit status 1 if one does not"
    p.add_argument("--check-targets", nargs="?", type=_result, const={}, metavar="JSON", help=targets)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0; 1 if outputs differ, a row or a checked floor fails; 2 for misuse."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(argv)
    if args.check_targets:
        return _check_targets(args.check_targets)
    if args.list:
        from .grid import rows

        print(*(row.name for row in rows()), sep="\n")
        return 0
    return _measure(args) if os.environ.get(_CHILD) else _spawn(args, argv)


def _misuse(message: str) -> int:
    print(f"fastlstm bench: {message}", file=sys.stderr)
    return 2


def _spawn(args: argparse.Namespace, argv: list[str]) -> int:
    """Measure in a fresh interpreter, pinned to the last of the cores allowed here."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    cores = len(allowed) if allowed else os.cpu_count() or 1
    if not 1 <= args.threads <= cores:
        return _misuse(f"--threads: wanted 1 to {cores}, the cores allowed, got {args.threads}")
    from .._core import isas

    if args.isa and args.isa not in isas():
        return _misuse(f"--isa: wanted one of {', '.join(isas())}, got {args.isa}")
    pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    env = os.environ | {_CHILD: "1"} | dict.fromkeys(pools, str(args.threads))
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), env.get("PYTHONPATH")]))
    if args.isa:
        env["FASTLSTM_ISA"] = args.isa
    try:
        if allowed:
            os.sched_setaffinity(0, sorted(allowed)[-args.threads :])
        return subprocess.call([sys.executable, "-P", "-m", "fastlstm._bench", *argv], env=env)
    finally:
        if allowed:
            os.sched_setaffinity(0, allowed)


def _measure(args: argparse.Namespace) -> int:
    from .. import _core
    from . import grid, measure, peers, report

    asked = args.peers.split(",") if args.peers is not None else list(peers.PEERS)
    unknown = [name for name in asked if name not in peers.PEERS]
    missing = [name for name in asked if name not in unknown and not peers.installed(name)]
    if unknown or (missing and args.peers is not None):
        wrong, known = ", ".join(unknown + missing), ", ".join(peers.PEERS)
        return _misuse(f"--peers: unknown (there are {known}) or not installed: {wrong}")
    rows = grid.rows()
    if args.rows:
        rows = [row for row in rows if any(pattern.search(row.name) for pattern in args.rows)]
        if not rows:
            return _misuse("--rows: no row has that name; --list prints them")
    elif args.smoke or args.quick:
        rows = [row for row in rows if (row.name in grid.SMOKE if args.smoke else row.in_core)]
    out = args.out or (_ROOT / "bench" / "results" if (_ROOT / "bench" / "run.py").exists() else Path.cwd())
    out.mkdir(parents=True, exist_ok=True)  # now, not after an hour
    budget = args.budget or (0.1 if args.smoke else 1.5 if args.quick else 6.0)
    settings = measure.Settings(args.threads, budget, 0.0005 if args.smoke else 0.003, 2 if args.smoke else 5)

    fast = peers.FastLSTM(args.threads)
    others = [peers.PEERS[name](args.threads) for name in asked if name not in missing]
    roof = measure.roofline(_core, 0.02 if args.smoke else 0.25)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    how = {e.name: " ".join((e.__doc__ or "").split()) for e in (fast, *others)}
    result: dict[str, Any] = {
        "schema": 1, "date": now, "machine": report.machine(), "versions": report.versions(_core),
        "source": report.source(_ROOT), "roofline": roof, "rows": [],
        "settings": {
            **settings._asdict(), "isa": _core.isa(), "peers": [e.name for e in others],
            "not_installed": missing, "how": how, "smoke": args.smoke, "quick": args.quick,
            "tolerance": measure.TOLERANCE, "training_tolerance": measure.TRAINING_TOLERANCE,
        },
    }  # fmt: skip
    for row in rows:
        done = measure.measure(row, fast, others, _core, roof, settings)
        if args.c_bench and row.table == "audio" and "error" not in done:
            done["c_api_ns_per_step"] = report.c_bench(args.c_bench, row)
        result["rows"].append(done)
        print(report.line(done), flush=True)
    measure.against_48(result["rows"])
    result["machine"]["load_average_after"] = report.load()

    report.write(result, out)
    print(f"wrote {out / 'benchmark.json'}, .md and .svg")
    failed = sum("left_out" in row for row in result["rows"])
    if failed:
        print(f"{failed} rows lack an engine: its outputs differ, or it could not run", file=sys.stderr)
    missed = _check_targets(result) if args.check_targets is not None else 0
    return 1 if failed or missed else 0


def _check_targets(result: dict[str, Any]) -> int:
    from .grid import verdicts

    found = list(verdicts(result))
    print(*(line for _, line in found), sep="\n")
    held = sum(ok for ok, _ in found)
    print(f"{held} of {len(found)} hold")
    return 0 if held == len(found) else 1
