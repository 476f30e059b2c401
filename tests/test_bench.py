"""The benchmark program: it runs, what it writes is well-formed, and it refuses to time wrong outputs."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

import fastlstm
from fastlstm import _bench
from fastlstm._bench import cold, grid, measure, merge, model, peers, report

ROOT = Path(__file__).parents[1]
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
    kinds = {row.name: row for row in grid.rows()}
    for name, row in rows.items():
        if row["kind"] == "layer":
            assert row["engines"].keys() >= {"fastlstm", "numpy"} and row["over_numpy"] > 0
        else:
            assert row["cannot"]["numpy"] and "fastlstm" in row["engines"]
        for engine in row["engines"].values():
            assert 0 < engine["p10_us"] <= engine["median_us"] <= engine["p90_us"]
            assert engine["max_error"] <= measure.tolerance(kinds[name]) and engine["batches"] >= 2
            assert engine["ratio"] == pytest.approx(engine["median_us"] / row["us"])
    assert rows["float64 lstm 64,128,1,1"]["engines"]["numpy"]["max_error"] < 1e-12
    start = rows["cold start"]["engines"]["fastlstm"]
    assert start["resident_bytes"] > 1e6 and start["installed_bytes"] > 1e6
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
    result = json.loads((smoke / "benchmark.json").read_text())
    charted = report.charted(result["rows"])
    dots = [dot for dot in chart.iter(SVG + "circle") if dot.find(SVG + "title") is not None]
    assert len(bars) == len(dots) == len(charted) > 0  # of one peer, a dot a row
    roofline = ET.parse(smoke / "roofline.svg")
    dots = [dot for dot in roofline.iter(SVG + "circle") if dot.find(SVG + "title") is not None]
    layers = [row for row in result["rows"] if row["kind"] == "layer" and row["dtype"] == "float32"]
    forward = [row for row in layers if not row["table"].startswith("train")]
    assert len(dots) == len(forward) + len(grid.PRECISIONS) > len(grid.PRECISIONS)  # a row of one sequence


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
            columns = engine.columns(p)
            assert len(columns) == 1 + some.ragged
            for title, q, calls in columns:
                for call in calls():
                    call.enter()
                    for _ in range(2):  # gradients do not add up
                        measure.check(title, call.read(call.run()), q.expected, train=True)
    finally:
        engine.close()


def test_the_grid() -> None:
    rows = grid.rows()
    names = {row.name for row in rows}
    assert len(names) == len(rows) and {*grid.SMOKE, *grid.SCALING} <= names
    for row in rows:
        if row.lengths is not None:
            assert 1 <= row.lengths.min() and row.lengths.max() <= row.steps
            assert row.dense.valid_steps == row.valid_steps == row.lengths.sum()
        assert row.train == row.name.startswith("train ") and row.name.startswith(row.table)
    assert {row.cell for row in rows if row.train} == set(grid.GATES)
    for table, least in (("precision", 64), ("pool", 32)):
        assert all(row.units >= least for row in rows if row.table == table)
    assert {row.table for row in rows} == set(report.TITLES)
    two = next(row for row in rows if row.layers == 2)
    assert two.flops == 2 * 4 * 128 * ((64 + 128) + (128 + 128)) * two.batch


def test_targets() -> None:
    """A run that meets every floor, and the same with one figure spoilt."""
    figures = {"speedup": 99.0, "floor_speedup": 99.0, "floor_call_speedup": 9.0}
    figures |= {"us": 1.0, "peak_percent": 99.0, "scaled_ns": 50.0}
    figures |= {"against_dense": 1.0, "against_48": 1.0, "over_padded": 2.0, "over_torch": 99.0}
    figures |= {"over_streams": 9.0, "of_batch_rate": 1.0}
    for precision in grid.PRECISIONS:
        figures |= {f"{precision} over {what}": 9.0 for what in ("float32", "peers")}
        figures[f"{precision} error over peers"] = 0.1
    settings = {"threads": 1, "isa": "avx512"}
    rows: list[dict[str, Any]] = [{"name": row.name, **figures} for row in grid.rows()]
    found = list(grid.verdicts({"settings": settings, "rows": rows}))
    assert all(held for held, _ in found)
    for floor in grid.FLOORS:  # no pattern without a row
        assert not floor.when(1, "avx512") or any(f" {floor.what}: " in line for _, line in found)
    rows[0]["floor_speedup"] = 5.9
    missed = [line for held, line in grid.verdicts({"settings": settings, "rows": rows}) if not held]
    assert len(missed) == 1 and "lstm 32,32,1,1" in missed[0] and "5.90" in missed[0]


def test_targets_of_rows_together() -> None:
    """The geometric mean counts, and only where all its rows were measured."""
    pair = ("train lstm 32,32,100,1", "train lstm 64,64,50,8")
    for speedups, wanted in (((2.0, 5.0), True), ((1.5, 5.9), False), ((1.5,), None)):
        rows = [{"name": name, "over_torch": v} for name, v in zip(pair, speedups, strict=False)]
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
    assert _bench.main(["--rows", "abacus"]) == _bench.main(["--skip", "abacus"]) == 2
    assert _bench.main(["--model", "no/such/file"]) == 2
    assert "no/such/file" in capsys.readouterr().err
    wrong = {"--rows": "[", "--budget": "nan", "--check-targets": __file__, "--load": "x", "--steps": "0"}
    wrong["--batch"] = "9"  # without --model
    for option, value in wrong.items():
        with pytest.raises(SystemExit, match="2"):
            _bench.main([option, value])
        assert option in capsys.readouterr().err


# --- who is measured, and who says why not ------------------------------------------------------------------


def in_process(monkeypatch: pytest.MonkeyPatch, out: Path, name: str, *more: str) -> dict[str, Any]:
    """The row of that name, measured in this process, where stand-ins are planted."""
    monkeypatch.setenv("FASTLSTM_BENCH_CHILD", "1")
    pattern = f"^{name}$".replace("+", "[+]")
    assert _bench.main(["--smoke", "--rows", pattern, "--out", str(out), *more]) == 0
    (row,) = json.loads((out / "benchmark.json").read_text())["rows"]
    found: dict[str, Any] = row
    return found


class Idle(peers.NumPy):
    """What says why it does nothing."""

    def calls(self, p: grid.Problem) -> list[peers.Call]:
        raise peers.Cannot("no training")


def test_who_cannot_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(peers.PEERS, "numpy", Idle)
    monkeypatch.setattr(peers, "installed", lambda name: name == "numpy")
    row = in_process(monkeypatch, tmp_path, "train gru 32,32,1,1")
    others = dict.fromkeys(peers.PEERS.keys() - {"numpy"}, merge.NOT_INSTALLED)
    assert row["cannot"] == {"numpy": "no training"} | others and set(row["engines"]) == {"fastlstm"}
    markdown = (tmp_path / "benchmark.md").read_text()
    assert "Without numpy: no training." in markdown and "Not installed: torch, " in markdown
    assert "numpy: no training" in capsys.readouterr().out
    ET.parse(tmp_path / "benchmark.svg")


Make: TypeAlias = Callable[[str], peers.Peer]


@pytest.fixture
def peer() -> Iterator[Make]:
    """The adapter of that name, or a skip; what it does to the process is undone."""
    made: list[peers.Peer] = []

    def make(name: str) -> peers.Peer:
        if not peers.installed(name):
            pytest.skip(f"{name} is not installed here")
        made.append(peers.PEERS[name](1))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("name", [name for name in peers.PEERS if name != "numpy"])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_peers_compute_the_same(name: str, train: bool, dtype: str, peer: Make) -> None:
    """Every cell, one step, a batch, a ragged one: the reference's numbers, or a reason."""
    engine, done = peer(name), 0
    row = grid.Row("x", "x", "lstm", 5, 6, 7, 3, train=train, dtype=dtype)
    for cell in grid.GATES:
        for some in (replace(row, steps=1, batch=1), row, replace(row, ragged=True)):
            p = grid.problem(replace(some, cell=cell))
            for column in engine.columns(p):
                try:
                    calls = column.calls()
                except peers.Cannot as reason:
                    assert str(reason)
                    continue
                for call in calls:
                    call.enter()
                    outputs = call.read(call.run())
                    limit = measure.tolerance(p.row)
                    measure.check(f"{name} {cell}", outputs, column.problem.expected, train, limit)
                    done += 1
    assert done or train or dtype == "float64"


OPTIONS: list[dict[str, Any]] = [
    {"num_layers": 2}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True}, {"bias": False},
    {"reverse": True}, {"proj_size": 3}, {"peepholes": True}, {"reset_after": False},
    {"nonlinearity": "relu"},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_model_of_ones_own(
    options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every engine gives the layer's numbers, or says that it is not built there."""
    kinds = {"reset_after": fastlstm.GRU, "nonlinearity": fastlstm.RNN}
    layer = kinds.get(next(iter(options)), fastlstm.LSTM)(5, 6, batch_first=True, seed=1, **options)
    layer.save(tmp_path / "m.safetensors")
    here = [name for name in ("numpy", "torch", "onnxruntime", "openvino") if peers.installed(name)]
    settings = measure.Settings(1, 0.02, 0.0001, 2, 3)
    assert model.run(str(tmp_path / "m.safetensors"), {}, 4, 3, here, settings, tmp_path) == 0
    result = json.loads((tmp_path / "model.json").read_text())
    assert [(row["name"], row["T"], row["B"]) for row in result["rows"]] == [
        ("one step", 1, 1), ("a sequence", 4, 1), ("a batch", 4, 3)
    ]  # fmt: skip
    for row in result["rows"]:
        assert row["engines"].keys() | row.get("cannot", {}).keys() == {"fastlstm", *here}
        assert row["engines"].keys() >= {"fastlstm", "numpy"}
        assert all(engine["output_error"] < 1e-6 for engine in row["engines"].values())
        assert all("is not built here" in reason for reason in row.get("cannot", {}).values())
    assert capsys.readouterr().out == (tmp_path / "model.md").read_text()


@pytest.mark.parametrize("last", [[], [fastlstm.LastStep()]], ids=["steps", "last"])
@pytest.mark.parametrize("embeds", [False, True])
def test_a_sequential_of_ones_own(
    embeds: bool, last: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = [fastlstm.Embedding(9, 5, seed=1)] if embeds else [fastlstm.Dropout(0.5)]
    whole = fastlstm.Sequential(
        *first, fastlstm.LSTM(5, 6, batch_first=True, seed=1), *last, fastlstm.Linear(6, 2, seed=1)
    )
    whole.save(path := tmp_path / "m.safetensors")
    settings = measure.Settings(1, 0.02, 0.0001, 2, 3)
    assert model.run(str(path), {}, 4, 3, ["numpy"], settings, tmp_path) == 0
    assert "a Sequential is not built there" in capsys.readouterr().out
    rows = json.loads((tmp_path / "model.json").read_text())["rows"]
    assert all(row["engines"]["fastlstm"]["max_error"] == 0 for row in rows)
    fastlstm.Linear(6, 2, seed=1).save(path)
    assert model.run(str(path), {}, 4, 3, [], settings, None) == 2
    assert "wanted a recurrent layer" in capsys.readouterr().err


def test_load_options_reach_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bare file leaves tanh or relu open; --load says it."""
    parameters = fastlstm.RNN(3, 4, seed=1).state_dict()
    path = str(tmp_path / "bare.safetensors")
    pytest.importorskip("safetensors.numpy").save_file(parameters, path)
    command = ["--model", path, "--smoke", "--peers", "numpy", "--steps", "3", "--batch", "2"]
    assert _bench.main(command) == 2
    assert _bench.main([*command, "--load", "nonlinearity=relu", "--out", str(tmp_path)]) == 0
    assert "relu" in (tmp_path / "model.md").read_text()


# --- reduced precision, pools, cold start -------------------------------------------------------------------


def test_precisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is asked for as the layers want it, and held against our float32."""
    asked, quantize = [], fastlstm.LSTM.quantize

    def spied(layer: Any, kind: str, **options: Any) -> Any:
        asked.append((kind, options))
        return quantize(layer, kind, **options)

    monkeypatch.setattr(fastlstm.LSTM, "quantize", spied)
    row = in_process(monkeypatch, tmp_path, "precision lstm 64,128,1,1", "--peers", "numpy")
    assert asked == [("bfloat16", {}), ("int8", {}), ("int8", {"activation_bits": 16})]
    for precision in grid.PRECISIONS:
        ratio = row["engines"][f"fastlstm {precision}"]["ratio"]
        assert row[f"{precision} over float32"] == pytest.approx(1 / ratio)
        assert 1e-5 < row["engines"][f"fastlstm {precision}"]["output_error"] < 0.1


def test_precision_against_peers() -> None:
    """Our 16-bit activations too against the peers' int8; the fastest of them, the most accurate of them."""
    errors = {"fastlstm int8": 2.0, "fastlstm int8/16": 1.0, "torch int8": 4.0, "onnxruntime int8": 5.0}
    ratios = {"fastlstm int8": 0.2, "fastlstm int8/16": 0.4, "torch int8": 1.0, "onnxruntime int8": 0.8}
    engines = {name: {"ratio": ratios[name], "output_error": errors[name]} for name in errors}
    found = measure.comparisons({"fastlstm": {"ratio": 1.0, "output_error": 0.0}, **engines})
    assert found["int8 over peers"] == pytest.approx(4) and found["int8/16 over peers"] == pytest.approx(2)
    assert found["int8 error over peers"] == 0.5 and found["int8/16 error over peers"] == 0.25
    assert "speedup" not in found and "bfloat16 over float32" not in found
    leads = report.leads({"engines": {**engines, "torch bfloat16": {"ratio": 3.0}}})
    assert leads == {"torch int8": pytest.approx(5), "onnxruntime int8": pytest.approx(4)}


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_peers_in_reduced_precision(name: str, cell: str, peer: Make) -> None:
    p = grid.problem(grid.Row("precision", "x", cell, 16, 32, 4, 2, kind="precision"))
    for column in peer(name).columns(p):
        try:
            calls = column.calls()
        except peers.Cannot as reason:
            assert (cell, column.name) != ("lstm", f"{name} int8") and str(reason).startswith("no ")
            continue
        for call in calls:
            call.enter()
            error = measure.check(call.variant, call.read(call.run()), p.expected, limit=0.1)
            assert error > 1e-5  # or else it is no reduced precision that was measured


def test_the_error_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest variant's, or a more accurate one's that is as fast; not that of a slow one."""
    p = grid.problem(grid.Row("precision", "x", "rnn", 3, 4, 2, 2, kind="precision"))

    def off(by: float) -> Any:
        return lambda _: [v + by for v in p.expected]

    variants = {"fast": (1.0, 0.1), "as fast": (1.05, 0.05), "slow": (2.0, 0.01)}
    calls = [peers.Call(lambda: None, off(error), name) for name, (_, error) in variants.items()]
    times = iter([seconds for seconds, _ in variants.values() for _ in range(3)])
    monkeypatch.setattr(measure, "timed", lambda *_: next(times) * 1e-9)
    engine = measure.choose("x", p, calls, measure.Settings(1, 10, 1e-9, 2, 3))
    assert engine.call.variant == "fast" and engine.output_error == pytest.approx(0.05)


@pytest.mark.parametrize("name", ["pool 32,32 x 1", "pool 64,128 x 2"])
def test_pools(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = in_process(monkeypatch, tmp_path, name, "--peers", "numpy")
    assert set(row["engines"]) == {"fastlstm", "fastlstm streams", "fastlstm batch"}
    assert row["over_streams"] > 0 and row["of_batch_rate"] > 0


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
def test_peers_carry_the_states(name: str, peer: Make) -> None:
    """Two steps of a pool by hand: the second goes on from where the first has ended."""
    row = grid.Row("pool", "x", "lstm", 5, 6, 1, 4, kind="pool", options={"num_layers": 2})
    p = grid.problem(row)
    twice = grid.with_answer(
        replace(row, steps=2), p.weights, np.concatenate([p.x, p.x]), p.state, np.random.default_rng()
    )
    for column in peer(name).columns(p):
        for call in column.calls():  # each variant from the beginning
            call.enter()
            for n in range(2):
                measure.check(column.name, call.read(call.run()), [twice.expected[0][n : n + 1]])


def test_cold_start(tmp_path: Path) -> None:
    """Whichever engine is installed gives the right step from its file; what fails says why."""
    (row,) = (row for row in grid.rows() if row.kind == "cold")
    p = grid.problem(row)
    np.save(tmp_path / "x.npy", p.x)
    for name in ["fastlstm", *peers.PEERS]:
        engine = {"fastlstm": peers.FastLSTM, **peers.PEERS}[name]
        if name == "numpy" or not (name == "fastlstm" or peers.installed(name)):
            continue
        program = cold.PROGRAM.format(engine=engine(1).cold(p, tmp_path))
        seconds, y, memory = cold.start(program, tmp_path)
        measure.check(name, [np.reshape(y, p.expected[0].shape)], p.expected)
        assert seconds > 0 and memory["VmHWM"] > 1000
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        cold.start(cold.PROGRAM.format(engine="1 / 0"), tmp_path)


def test_installed_size() -> None:
    ours, numpy = cold.installed_bytes(["fastlstm"]), cold.installed_bytes(["numpy"])
    package = sum(f.stat().st_size for f in Path(fastlstm.__file__).parent.rglob("*.so"))
    assert ours >= numpy + package > package > 100_000
    assert cold.installed_bytes(["NumPy", "numpy"]) == numpy and cold.installed_bytes(["no-such-thing"]) == 0


# --- several environments in one result ---------------------------------------------------------------------


def _part(peers_here: dict[str, float], us: float, missing: list[str]) -> dict[str, Any]:
    engines = {name: {"median_us": us * ratio, "ratio": ratio} for name, ratio in peers_here.items()}
    row = {"name": "a", "us": us, "engines": {"fastlstm": {"median_us": us, "ratio": 1.0}, **engines}}
    row["cannot"] = dict.fromkeys(missing, merge.NOT_INSTALLED)
    how = dict.fromkeys(peers_here, "how")
    settings = {"peers": list(peers_here), "not_installed": missing, "how": how}
    versions = {"python": "3", **dict.fromkeys(peers_here, "1")}
    return {"rows": [row], "settings": settings, "versions": versions}


def test_merging() -> None:
    """Ratios compare, times do not: the second process had a slower moment."""
    first = _part({"torch": 3.0}, 10.0, ["keras", "jax"])
    second = _part({"keras": 2.0}, 20.0, ["torch", "jax"])
    second["rows"][0]["cannot"]["litert"] = "no lengths"
    second["rows"][0]["left_out"] = {"abacus": "Mismatch: abacus"}
    result = merge.merged([first, second])
    (row,) = result["rows"]
    assert row["us"] == 10 and row["best_peer"] == "keras" and row["speedup"] == 2 and row["over_torch"] == 3
    assert row["cannot"] == {"jax": merge.NOT_INSTALLED, "litert": "no lengths"}
    assert row["left_out"] == {"abacus": "Mismatch: abacus"}
    assert row["engines"]["keras"] == {"median_us": 40.0, "ratio": 2.0, "fastlstm_us": 20.0}
    assert report._cell({**row, "table": "lstm"}, "keras") == "20.0"  # beside our 10
    settings = result["settings"]
    assert settings["peers"] == ["torch", "keras"] and settings["not_installed"] == ["jax"]
    assert row["floor_speedup"] == 3  # those of the floors are torch, onnxruntime and OpenVINO
    assert result["versions"].keys() == {"python", "torch", "keras"} and len(result["environments"]) == 2


def test_other_environments(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An interpreter beside this one, which has nothing left to add; and one that there is not."""
    command = ["--smoke", "--peers", "numpy", "--rows", "^rnn 32,32,1,1$", "--out", str(tmp_path)]
    assert _bench.main([*command, "--also", sys.executable]) == 0
    result = json.loads((tmp_path / "benchmark.json").read_text())
    assert len(result["environments"]) == 2 and result["settings"]["peers"] == ["numpy"]
    assert set(result["rows"][0]["engines"]) == {"fastlstm", "fastlstm call", "numpy"}
    assert "of 2 environments" in capfd.readouterr().out
    assert _bench.main([*command, "--also", "no/such/python"]) == 2
    assert "no/such/python" in capfd.readouterr().err


# --- instructions -------------------------------------------------------------------------------------------


@pytest.fixture
def instructions() -> Any:
    path = ROOT / "bench" / "instructions.py"
    if not path.exists():
        pytest.skip("no sources beside the tests")
    spec = importlib.util.spec_from_file_location("instructions", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_more_instructions_are_named(instructions: Any) -> None:
    table = {"step": 1000, "batch": 5000}
    assert instructions.compared(table, table)[1] == []
    assert instructions.compared({"step": 1029, "batch": 4000}, table)[1] == []
    lines, (wrong,) = instructions.compared({"step": 1031, "batch": 5000}, table)
    assert len(lines) == 2 and all(text in wrong for text in ("step", "1,031", "1,000", "+3.1%"))
    assert len(instructions.compared({"step": 1000, "new": 1}, table)[1]) == 2


def test_instructions_are_counted_and_kept(
    instructions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a program and a counter of their own: no Valgrind is needed."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho gcc 12\necho step\n")
    program.chmod(0o755)
    monkeypatch.setattr(instructions, "TABLE", tmp_path / "table.json")
    monkeypatch.setattr(instructions.shutil, "which", lambda name: None)
    assert instructions.main([str(program)]) == 2
    assert "apt-get install valgrind" in capsys.readouterr().err
    monkeypatch.setattr(instructions.shutil, "which", lambda name: name)
    monkeypatch.setattr(instructions, "count", lambda program, case: 100)
    assert instructions.main([str(program)]) == 1
    assert "no table for gcc 12" in capsys.readouterr().err
    assert instructions.main([str(program), "--update"]) == instructions.main([str(program)]) == 0
    monkeypatch.setattr(instructions, "count", lambda program, case: 110)
    assert instructions.main([str(program)]) == 1
    assert "step: 110 instructions, 100 in the table" in capsys.readouterr().err


def test_count_takes_the_difference(instructions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a program does besides the work cancels."""

    def run(command: list[str], **_: Any) -> Any:
        text = f"==1== Collected : {1_000_000 + 77 * int(command[-1])}\n"
        return subprocess.CompletedProcess(command, 0, "", text)

    monkeypatch.setattr(instructions.subprocess, "run", run)
    assert instructions.count(Path("program"), "step") == 77


def test_accelerated_modules_beside_plain_ones() -> None:
    """bench/accelerate.py compares outputs and gradients before it times; here, that it does."""
    pytest.importorskip("torch")
    script = Path(__file__).resolve().parents[1] / "bench" / "accelerate.py"
    if not script.exists():
        pytest.skip("no benchmark beside the tests")
    run = [sys.executable, str(script), "--smoke", "--rows", "32, 32|one step"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) > 10 and any("training" in row for row in rows)
