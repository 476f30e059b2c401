"""The benchmark: the whole grid against NumPy and every installed peer, in turns, on pinned cores.

It measures in a fresh interpreter that may use only the cores asked for, so that every engine's thread pool
is born pinned, and writes benchmark.json, benchmark.md, benchmark.svg and roofline.svg. With --model it
measures a model of yours instead, and prints a table.
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
import tempfile
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


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10**6:
        raise argparse.ArgumentTypeError(f"wanted an integer in 1..1000000, got {text!r}")
    return int(text)


def _load_option(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value in JSON or a plain word."""
    key, equals, value = text.partition("=")
    if not (key.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"wanted KEY=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="fastlstm bench", description=(__doc__ or "").replace("\n\n", " "))
    p.add_argument("--threads", type=int, default=1, metavar="N", help="cores, threads of every engine (1)")
    p.add_argument("--isa", metavar="NAME", help="run fastlstm on this path (FASTLSTM_ISA)")
    p.add_argument("--peers", metavar="A,B", help="of those that there are (all installed)")
    p.add_argument("--skip", metavar="A,B", help="peers to leave out")
    also = "an interpreter of another environment, whose peers are measured too; repeatable"
    p.add_argument("--also", action="append", default=[], metavar="PYTHON", help=also)
    only = "only rows whose name has it; repeatable"
    p.add_argument("--rows", action="append", type=_pattern, metavar="REGEX", help=only)
    p.add_argument("--list", action="store_true", help="print the names of the rows and stop")
    p.add_argument("--budget", type=_seconds, metavar="S", help="seconds for a row (6; quick 1.5, smoke 0.1)")
    p.add_argument("--quick", action="store_true", help="fewer GRU and RNN rows, less time for each")
    p.add_argument("--smoke", action="store_true", help="a few rows in seconds: that it runs, not how fast")
    p.add_argument("--out", type=Path, metavar="DIR", help="(bench/results in a source tree, else here)")
    p.add_argument("--c-bench", metavar="CMD", help="`CMD I H T` prints the ns a step of the C API")
    targets = "say which speed floors hold in this run, or in that file; exit status 1 if one does not"
    model = p.add_argument_group("a model of yours")
    model.add_argument("--model", metavar="FILE", help="measure it instead, a file that fastlstm.load reads")
    option = "an option that fastlstm.load needs for it, as in nonlinearity=tanh; repeatable"
    model.add_argument("--load", action="append", type=_load_option, metavar="KEY=VALUE", help=option)
    model.add_argument("--steps", type=_count, metavar="T", help="of a sequence and of a batch (100)")
    model.add_argument("--batch", type=_count, metavar="B", help="sequences of a batch (32)")
    p.add_argument("--check-targets", nargs="?", type=_result, const={}, metavar="JSON", help=targets)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0; 1 if outputs differ, a row or a checked floor fails; 2 for misuse."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    args = parser.parse_args(argv)
    grid_only = {"--rows": args.rows, "--check-targets": args.check_targets is not None, "--also": args.also,
                 "--quick": args.quick, "--c-bench": args.c_bench, "--list": args.list}  # fmt: skip
    model_only = {"--load": args.load, "--steps": args.steps, "--batch": args.batch}
    for option, given in (grid_only if args.model else model_only).items():
        if given:
            parser.error(f"{option}: {'not ' if args.model else 'only '}with --model")
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
    if (_ROOT / "bench" / "run.py").exists():  # and not where packages are, which are one environment's
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), env.get("PYTHONPATH")]))
    if args.isa:
        env["FASTLSTM_ISA"] = args.isa
    try:
        if allowed:
            os.sched_setaffinity(0, sorted(allowed)[-args.threads :])
        if not args.also:
            return _child(sys.executable, argv, env)
        return _spawn_each(args, argv, env)
    finally:
        if allowed:
            os.sched_setaffinity(0, allowed)


def _child(python: str, argv: list[str], env: dict[str, str]) -> int:
    return subprocess.call([python, "-P", "-m", "fastlstm._bench", *argv], env=env)


def _spawn_each(args: argparse.Namespace, argv: list[str], env: dict[str, str]) -> int:
    """Measure in this environment, then in each other the peers that no one before it had, and merge."""
    from . import merge, report

    failed = 0
    parts: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for python in [sys.executable, *args.also]:
            had = [name for part in parts for name in part["settings"]["peers"]]
            skip = [*(args.skip or "").split(","), *had]
            part = Path(folder, str(len(parts)))
            env[_CHILD] = "part" if parts else "first"
            command = [*argv, "--out", str(part), "--skip", ",".join(filter(None, skip))]
            try:
                status = _child(python, command, env)
            except OSError as error:
                return _misuse(f"--also: {python}: {error.strerror}")
            if not (part / "benchmark.json").exists():
                return status or 1
            failed |= status
            parts.append(json.loads((part / "benchmark.json").read_text(encoding="utf-8")))
    result = merge.merged(parts)
    absent = [name for name in result["settings"]["not_installed"] if args.peers is not None]
    report.write(result, out := _folder(args))
    print(f"wrote {out / 'benchmark.json'}, .md, .svg and roofline.svg, of {len(parts)} environments")
    if absent:
        print(f"--peers: installed in none of them: {', '.join(absent)}", file=sys.stderr)
    missed = _check_targets(result) if args.check_targets is not None else 0
    return 1 if failed or missed or absent else 0


def _folder(args: argparse.Namespace) -> Path:
    results = _ROOT / "bench" / "results" if (_ROOT / "bench" / "run.py").exists() else Path.cwd()
    return Path(args.out or results)


def _measure(args: argparse.Namespace) -> int:
    from .. import _core
    from . import cold, grid, measure, peers, report
    from .merge import NOT_INSTALLED

    part, companion = os.environ[_CHILD] in ("first", "part"), os.environ[_CHILD] == "part"
    asked = args.peers.split(",") if args.peers is not None else list(peers.PEERS)
    unknown = [name for name in asked if name not in peers.PEERS]
    missing = [name for name in asked if name not in unknown and not peers.installed(name)]
    skip = args.skip.split(",") if args.skip else []
    unknown += [name for name in skip if name not in peers.PEERS]
    asked = [name for name in asked if name not in skip]
    if unknown or (missing and args.peers is not None and not part):
        wrong, known = ", ".join(unknown + missing), ", ".join(peers.PEERS)
        return _misuse(f"--peers: unknown (there are {known}) or not installed: {wrong}")
    missing = [name for name in missing if name in asked]
    budget = args.budget or (0.1 if args.smoke else 1.5 if args.quick else 6.0)
    settings = measure.Settings(args.threads, budget, 0.0005 if args.smoke else 0.003, 2 if args.smoke else 5)
    if args.model:
        from . import model

        here = [name for name in asked if name not in missing]
        options = dict(args.load or ())
        return model.run(args.model, options, args.steps, args.batch, here, settings, args.out)
    rows = grid.rows()
    if args.rows:
        rows = [row for row in rows if any(pattern.search(row.name) for pattern in args.rows)]
        if not rows:
            return _misuse("--rows: no row has that name; --list prints them")
    elif args.smoke or args.quick:
        rows = [row for row in rows if (row.name in grid.SMOKE if args.smoke else row.in_core)]
    out = _folder(args)
    out.mkdir(parents=True, exist_ok=True)  # now, not after an hour

    fast = peers.FastLSTM(args.threads)
    others = [peers.PEERS[name](args.threads) for name in asked if name not in missing]
    roof = measure.roofline(_core, 0.02 if args.smoke else 0.25)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    how = {e.name: " ".join((e.__doc__ or "").split()) for e in (fast, *others)}
    result: dict[str, Any] = {
        "schema": 2, "date": now, "machine": report.machine(), "versions": report.versions(_core),
        "source": report.source(_ROOT), "roofline": roof, "rows": [],
        "settings": {
            **settings._asdict(), "isa": _core.isa(), "peers": [e.name for e in others],
            "not_installed": missing, "how": how, "smoke": args.smoke, "quick": args.quick,
            "tolerance": measure.TOLERANCE, "training_tolerance": measure.TRAINING_TOLERANCE,
            "float64_tolerance": measure.FLOAT64_TOLERANCE,
            "precision_tolerance": measure.PRECISION_TOLERANCE,
        },
    }  # fmt: skip
    for row in rows:
        p = grid.problem(row)
        if row.kind == "cold":
            done = cold.measure(p, fast, others, settings, companion)
        else:
            done = measure.measure(p, fast, others, _core, roof, settings, companion)
        if missing:
            done["cannot"] = done.get("cannot", {}) | dict.fromkeys(missing, NOT_INSTALLED)
        if args.c_bench and row.table == "audio" and "error" not in done:
            done["c_api_ns_per_step"] = report.c_bench(args.c_bench, row)
        result["rows"].append(done)
        print(report.line(done), flush=True)
    for e in others:
        e.close()
    measure.against_48(result["rows"])
    result["machine"]["load_average_after"] = report.load()

    report.write(result, out)
    if not part:
        print(f"wrote {out / 'benchmark.json'}, .md, .svg and roofline.svg")
    failed = sum("left_out" in row for row in result["rows"])
    if failed:
        print(f"{failed} rows lack an engine: its outputs differ, or it could not run", file=sys.stderr)
    missed = _check_targets(result) if args.check_targets is not None and not part else 0
    return 1 if failed or missed else 0


def _check_targets(result: dict[str, Any]) -> int:
    from .grid import verdicts

    found = list(verdicts(result))
    print(*(line for _, line in found), sep="\n")
    held = sum(ok for ok, _ in found)
    print(f"{held} of {len(found)} hold")
    return 0 if held == len(found) else 1
