"""The benchmark program: it runs, what it writes is well-formed, and it refuses to time wrong outputs."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastlstm import _bench
from fastlstm._bench import grid, measure, peers, report

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench")
    assert _bench.main(["--smoke", "--peers", "numpy", "--out", str(out)]) == 0
    return out


def test_json(smoke: Path) -> None:
    result = json.loads((smoke / "benchmark.json").read_text())
    assert set(result) == set("schema date machine versions source roofline rows settings".split())
    assert result["machine"]["cpu"] and len(result["machine"]["cores_used"]) <= 1
    assert result["versions"]["numpy"] == np.__version__ and result["settings"]["peers"] == ["numpy"]
    assert result["roofline"]["peak_flops"] > 1e8
    assert 0.1 < result["roofline"]["multiply_add_ns"] < 1000
    assert set(result["roofline"]["read_bytes_per_second"]) == set(measure.CACHES)
    rows = {row["name"]: row for row in result["rows"]}
    assert set(rows) == set(grid.SMOKE)
    for row in rows.values():
        assert row["engines"].keys() >= {"fastlstm", "numpy"} and row["over_numpy"] > 0
        for engine in row["engines"].values():
            assert 0 < engine["p10_us"] <= engine["median_us"] <= engine["p90_us"]
            tolerance = measure.TRAINING_TOLERANCE if row["name"].startswith("train") else measure.TOLERANCE
            assert engine["max_error"] <= tolerance and engine["batches"] >= 2
    step = rows["lstm 32,32,1,1"]["engines"]
    assert step["fastlstm"]["variant"] == "Stream.step" and step["fastlstm call"]["variant"] == "layer"
    assert rows["ragged 64"]["against_dense"] > 0 and rows["audio 8"]["scaled_ns"] > 0
    assert rows["train lstm 32,32,100,1"]["flops"] == 3 * rows["lstm 32,32,100,1"]["flops"]
    assert rows["train lstm 32,32,100,1"]["engines"]["fastlstm"]["variant"] == "record, backward"


def test_markdown_and_chart(smoke: Path) -> None:
    tables = [part for part in (smoke / "benchmark.md").read_text().split("\n\n") if part.startswith("| ")]
    assert len(tables) == len({row.table for row in grid.rows() if row.name in grid.SMOKE})
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    chart = ET.parse(smoke / "benchmark.svg")
    bars = [bar for bar in chart.iter(SVG + "rect") if bar.find(SVG + "title") is not None]
    assert len(bars) == len(report.charted(json.loads((smoke / "benchmark.json").read_text())["rows"])) > 0


class Planted(peers.NumPy):
    """NumPy, but its last final state, or the gradient of its last parameter, is off by a little."""

    def calls(self, p: grid.Problem) -> list[peers.Call]:
        (call,) = super().calls(p)

        def read(result: Any) -> tuple[grid.Array, ...]:
            *others, last = call.read(result)
            return (*others, last + np.float32(1e-4) * max(1, np.abs(last).max()))

        return [call._replace(read=read)]


@pytest.mark.parametrize("name", ["gru 32,32,1,1", "train gru 32,32,1,1"])
def test_outputs_that_differ_are_not_timed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTLSTM_BENCH_CHILD", "1")  # measure in this process, where the peer is planted
    command = ["--smoke", "--peers", "numpy", "--rows", f"^{name}$", "--out", str(tmp_path)]
    assert _bench.main(command) == 0
    monkeypatch.setitem(peers.PEERS, "numpy", Planted)
    assert _bench.main(command) == 1
    (row,) = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert row["left_out"]["numpy"].startswith("Mismatch: numpy")
    assert "numpy" not in row["engines"] and "over_numpy" not in row and row["us"] > 0
    assert "LEFT OUT Mismatch" in (tmp_path / "benchmark.md").read_text()
    assert "LEFT OUT Mismatch" in capsys.readouterr().out
    ET.parse(tmp_path / "benchmark.svg")

    class Ours(peers.FastLSTM):
        """As it is, but for what it yields."""

        def calls(self, p: grid.Problem) -> list[peers.Call]:
            return [c._replace(read=lambda r, c=c: [a + 1 for a in c.read(r)]) for c in super().calls(p)]

    monkeypatch.setattr(peers, "FastLSTM", Ours)
    assert _bench.main(command) == 1
    (row,) = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert row["error"].startswith("Mismatch: fastlstm") and "engines" not in row
    ET.parse(tmp_path / "benchmark.svg")


@pytest.mark.parametrize("wrong", [lambda y: y[:-1], lambda y: y * np.nan, lambda y: y + 1e-4])
def test_check(wrong: Any) -> None:
    y = np.ones((3, 2, 4))
    assert measure.check("same", [y, y], [y, y]) == 0
    assert measure.check("same", [y, 9 * y], [y, 9 * y], train=True) == 0
    for outputs in ([y, wrong(y)], [wrong(y), y]):
        for train in (False, True):
            with pytest.raises(measure.Mismatch):
                measure.check("wrong", outputs, [y, y], train)


def test_gradients_are_judged_by_their_largest_entry() -> None:
    """A small error of a small gradient is an error; one in a small entry of a large gradient is none."""
    with pytest.raises(measure.Mismatch):
        measure.check("small", [np.full(3, 1.1e-6)], [np.full(3, 1e-6)], train=True)
    assert measure.check("large", [np.array([100.0, 1e-4])], [np.array([100.0, 0.0])], train=True) <= 1e-6


@pytest.mark.parametrize("name", ["train lstm 32,32,100,1", "train gru 32,32,1,1", "train rnn 32,32,100,1"])
def test_torch_trains_alike(name: str) -> None:
    """Dense; and a small ragged batch, packed and padded."""
    pytest.importorskip("torch", reason="measures PyTorch")
    (row,) = (row for row in grid.rows() if row.name == name)
    engine = peers.Torch(1)
    try:
        for some in (row, replace(row, steps=7, batch=5, ragged=True)):
            p = grid.problem(some)
            columns = [("torch", p, engine.calls(p)), *engine.beside(p)]
            assert len(columns) == 1 + some.ragged
            for title, q, calls in columns:
                for call in calls:
                    call.enter()
                    for _ in range(2):  # gradients do not add up
                        measure.check(title, call.read(call.run()), q.expected, train=True)
    finally:
        engine._enter(infer=False)


def test_the_grid() -> None:
    rows = grid.rows()
    names = {row.name for row in rows}
    assert len(names) == len(rows) and {*grid.SMOKE, *grid.SCALING} <= names
    for row in rows:
        if row.lengths is not None:
            assert 1 <= row.lengths.min() and row.lengths.max() <= row.steps
            assert row.dense.valid_steps == row.valid_steps == row.lengths.sum()
        assert row.train == row.name.startswith("train ") and row.name.startswith(row.table)
    assert {row.cell for row in rows if row.train} == {"lstm", "gru", "rnn"}


def test_targets() -> None:
    """A run that meets every floor, and the same with one figure spoilt."""
    figures = {"speedup": 99.0, "call_speedup": 9.0, "us": 1.0, "peak_percent": 99.0, "scaled_ns": 50.0}
    figures |= {"against_dense": 1.0, "against_48": 1.0, "over_padded": 2.0}
    settings = {"threads": 1, "isa": "avx512"}
    rows: list[dict[str, Any]] = [{"name": row.name, **figures} for row in grid.rows()]
    found = list(grid.verdicts({"settings": settings, "rows": rows}))
    assert all(held for held, _ in found)
    for floor in grid.FLOORS:  # no pattern without a row
        assert not floor.when(1, "avx512") or any(f" {floor.what}: " in line for _, line in found)
    rows[0]["speedup"] = 5.9
    missed = [line for held, line in grid.verdicts({"settings": settings, "rows": rows}) if not held]
    assert len(missed) == 1 and "lstm 32,32,1,1" in missed[0] and "5.90" in missed[0]


def test_targets_of_rows_together() -> None:
    """The geometric mean counts, and only where all its rows were measured."""
    pair = ("train lstm 32,32,100,1", "train lstm 64,64,50,8")
    for speedups, wanted in (((2.0, 5.0), True), ((1.5, 5.9), False), ((1.5,), None)):
        rows = [{"name": name, "speedup": v} for name, v in zip(pair, speedups, strict=False)]
        result = {"settings": {"threads": 1, "isa": "avx512"}, "rows": rows}
        lines = [(held, line) for held, line in grid.verdicts(result) if "together" in line]
        assert [held for held, _ in lines] == ([] if wanted is None else [wanted])
        for _, line in lines:
            assert ", ".join(pair) in line and f"{math.sqrt(math.prod(speedups)):.2f}" in line


def test_targets_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = {"settings": {"threads": 2, "isa": "avx2"}, "rows": [{"name": "rnn 32,32,1,1", "speedup": 0.9}]}
    (tmp_path / "benchmark.json").write_text(json.dumps(result))
    assert _bench.main(["--check-targets", str(tmp_path / "benchmark.json")]) == 1
    assert "MISSED  rnn 32,32,1,1" in capsys.readouterr().out


def test_misuse(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert _bench.main(["--threads", "0"]) == _bench.main(["--isa", "abacus"]) == 2
    monkeypatch.setenv("FASTLSTM_BENCH_CHILD", "1")
    assert _bench.main(["--peers", "numpy,abacus"]) == 2
    assert "abacus" in (told := capsys.readouterr().err) and "there are numpy, torch" in told
    assert _bench.main(["--rows", "abacus"]) == 2
    wrong = {"--rows": "[", "--budget": "nan", "--check-targets": __file__}
    for option, value in wrong.items():
        with pytest.raises(SystemExit, match="2"):
            _bench.main([option, value])
        assert option in capsys.readouterr().err
