"""pytest-benchmark: fastlstm against fastlstm.reference on a few rows of the grid.

pytest bench --benchmark-group-by=group
"""

from __future__ import annotations

from typing import Any

import pytest

from fastlstm._bench import grid, measure, peers

pytest.importorskip("pytest_benchmark")
NAMES = {*grid.SMOKE, "lstm 256,256,50,64"} - {"audio 8"}
ROWS = [row for row in grid.rows() if row.name in NAMES and row.kind == "layer"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("engine", [peers.FastLSTM, peers.NumPy], ids=lambda engine: engine.name)
def test_forward(benchmark: Any, row: grid.Row, engine: Any) -> None:
    problem = grid.problem(row)
    (call,) = engine(1).calls(problem)
    call.enter()
    limit = measure.tolerance(row)
    measure.check(engine.name, call.read(call.run()), problem.expected, row.train, limit)
    benchmark.group = row.name
    benchmark(call.run)
