"""`make instructions`: whether a few kernels take more instructions than they did, so that a slow-down shows
without timing.

Callgrind counts the instructions of bench/instructions.c's cases on the AVX2 path (Valgrind knows no
AVX-512), each in two lengths, whose difference is that of the work alone. They depend on nothing but the code
and the compiler, so bench/instructions.json has a table for each compiler. `--update` writes this compiler's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

TABLE = Path(__file__).with_suffix(".json")
TOLERANCE = 0.03  # of a count: the same work never differs; a newer C library or patch release of gcc may
RUNS = (3, 13)  # a case's two lengths
MISSING = """valgrind is not installed: it counts the instructions.
Debian, Ubuntu: apt-get install valgrind. Fedora: dnf install valgrind. Arch: pacman -S valgrind."""


def count(program: Path, case: str) -> int:
    """Instructions of one run of a case."""
    totals = []
    for runs in RUNS:
        options = ["--tool=callgrind", "--callgrind-out-file=/dev/null"]
        command = ["valgrind", *options, str(program.resolve()), case, str(runs)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"FASTLSTM_ISA": "avx2"}, check=False
        )
        found = re.search(r"Collected : (\d+)", done.stderr)
        if done.returncode or not found:
            raise SystemExit(f"{case}: valgrind failed:\n{done.stderr[-2000:]}")
        totals.append(int(found[1]))
    return round((totals[1] - totals[0]) / (RUNS[1] - RUNS[0]))


def compared(counts: Mapping[str, int], table: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """A line for each case; and what is wrong: cases that take more, and those that one side lacks."""
    lines, wrong = [], []
    for case, now in counts.items():
        if case not in table:
            wrong.append(f"{case}: {now:,} instructions, not in the table")
            continue
        change = now / table[case] - 1
        line = f"{case}: {now:,} instructions, {table[case]:,} in the table ({change:+.1%})"
        lines.append(line)
        if change > TOLERANCE:
            wrong.append(f"{line}: more than {TOLERANCE:.0%} above")
        elif change < -TOLERANCE:
            lines[-1] += ": fewer; --update keeps them"
    wrong += [f"{case}: in the table, but no case" for case in table.keys() - counts.keys()]
    return lines, wrong


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0; 1 if a case takes more instructions or the table lacks this compiler; 2 without Valgrind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", type=Path, help="bench/instructions.c, compiled")
    parser.add_argument("--update", action="store_true", help="write the counts to the table")
    args = parser.parse_args(argv)
    if not shutil.which("valgrind"):
        print(MISSING, file=sys.stderr)
        return 2
    listed = subprocess.run([args.program.resolve()], capture_output=True, text=True, check=True)
    compiler, *cases = listed.stdout.splitlines()
    counts = {case: count(args.program, case) for case in cases}
    tables: dict[str, dict[str, int]] = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    if args.update:
        TABLE.write_text(json.dumps(dict(sorted({**tables, compiler: counts}.items())), indent=1) + "\n")
        print(f"{TABLE.name}: {len(counts)} counts of {compiler}")
        return 0
    if compiler not in tables:
        print(*(f"{case}: {n:,} instructions" for case, n in counts.items()), sep="\n")
        known = ", ".join(tables) or "none"
        print(f"no table for {compiler} (there are {known}): --update adds one", file=sys.stderr)
        return 1
    lines, wrong = compared(counts, tables[compiler])
    print(*lines, sep="\n")
    print(*wrong, sep="\n", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
