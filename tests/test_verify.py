"""`fastlstm verify`: its figures against what is computed here, its input, its refusals."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm
from fastlstm import _demo, _verify, cli


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_verify, "SECONDS", 0.0)


def verified(model: str | None, data: str | None = None, seed: int = 0) -> dict[str, Any]:
    out = io.StringIO()
    _verify.verify(model, data, seed=seed, as_json=True, out=out)
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def saved(module: Any, path: Path) -> str:
    module.save(path)
    return str(path)


def test_figures_of_a_layer(tmp_path: Path) -> None:
    layer = fastlstm.LSTM(5, 12, seed=0)
    x = np.random.default_rng(3).standard_normal((30, 2, 5))
    np.save(tmp_path / "x.npy", x)
    found = verified(saved(layer, tmp_path / "m.safetensors"), str(tmp_path / "x.npy"))
    assert found["shape"] == [30, 2, 5] and found["bits"] is None
    exact = fastlstm.LSTM(5, 12, dtype="float64")
    exact.load_state_dict(layer.state_dict())
    wanted = exact(x)[0]
    small = {"float32": layer, "bfloat16": layer.quantize("bfloat16"), "int8": layer.quantize("int8"),
             "int8, 16-bit activations": layer.quantize("int8", activation_bits=16)}  # fmt: skip
    assert [row["precision"] for row in found["precisions"]] == list(_verify.PRECISIONS)
    for row in found["precisions"]:
        error = np.abs(small[row["precision"]](x)[0] - wanted)
        assert row["largest"] == error.max() > 0 and row["mean"] == pytest.approx(error.mean())
        assert row["snr"] == pytest.approx(10 * math.log10((wanted**2).sum() / (error**2).sum()))
        assert row["agreement"] is None and row["bits"] is None
        assert row["step_us"] > 0 and row["run_us"] > 0
    sizes = [row["weight_bytes"] for row in found["precisions"]]
    weights = 48 * 17
    assert sizes == [4 * weights + 384, 2 * weights + 384, weights + 384 * 2, weights + 384 * 2]


def test_the_bundled_model_keeps_its_bits_per_character(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_demo, "LIMIT", 8000)
    found = verified(None)
    bits = {row["precision"]: row["bits"] / found["bits"] - 1 for row in found["precisions"]}
    assert abs(bits["float32"]) < 1e-5
    assert 0 < abs(bits["bfloat16"]) < 1e-3
    assert 0 < abs(bits["int8"]) < 1e-2 and 0 < abs(bits["int8, 16-bit activations"]) < 1e-2
    choices = {row["precision"]: row["agreement"] for row in found["precisions"]}
    assert choices["float32"] > 0.999 and 0.9 < choices["int8"] < 1


def test_random_input_of_every_kind_of_model(tmp_path: Path) -> None:
    for k, module in enumerate((
        fastlstm.GRU(3, 4, batch_first=True, bidirectional=True),
        fastlstm.RNN(3, 4, reverse=True),
        fastlstm.GatedRNN(2, 3),
        fastlstm.Sequential(fastlstm.Embedding(7, 3), fastlstm.GRU(3, 4), fastlstm.Linear(4, 7)),
        fastlstm.LSTM(3, 4, dtype="float64"),
    )):  # fmt: skip
        path = saved(module, tmp_path / f"{k}.safetensors")
        first, again, other = (verified(path, seed=seed) for seed in (0, 0, 1))
        errors = [[row["largest"] for row in found["precisions"]] for found in (first, again, other)]
        assert errors[0] == errors[1] != errors[2]
        assert first["shape"][:2] == [200, 8]


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(fastlstm.LSTM(3, 4, seed=0), tmp_path / "m.safetensors")
    assert cli.main(["verify", path]) == 0
    text = capsys.readouterr().out
    assert "200 steps of 8 sequences, against float64" in text
    assert [line.split("  ")[0] for line in text.splitlines()[-4:]] == list(_verify.PRECISIONS)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 4)), "wanted numbers [T, 5] or [T, B, 5]"),
        (np.zeros((0, 1, 5)), "not empty"),
        (np.zeros((3, 1, 5), complex), "complex128"),
        (np.array([{}]), "no .npy file of numbers"),
        (np.full((3, 1, 5), np.nan), "NaN or infinity in float64"),
    ],
)
def test_data_that_is_refused(
    array: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    path = saved(fastlstm.LSTM(5, 3), tmp_path / "m.safetensors")
    assert cli.main(["verify", path, str(tmp_path / "x.npy")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_models_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = saved(fastlstm.LSTM(5, 3).quantize("int8"), tmp_path / "small.safetensors")
    plain = saved(fastlstm.Linear(5, 3), tmp_path / "linear.safetensors")
    text = tmp_path / "x.txt"
    text.write_text("some text")
    layer = saved(fastlstm.LSTM(5, 3), tmp_path / "m.safetensors")
    for arguments, words in (
        ([small], "has int8 weights already"),
        ([plain], "has no recurrent layer"),
        ([layer, str(text)], "a text is for a model that fastlstm train made"),
        ([str(tmp_path / "none")], "No such file"),
        ([str(text)], "is no safetensors file"),
    ):
        assert cli.main(["verify", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error


def test_tokens_outside_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = fastlstm.Sequential(fastlstm.Embedding(7, 3), fastlstm.GRU(3, 4))
    path = saved(model, tmp_path / "m.safetensors")
    for tokens in ([0, 7], [-1, 3]):
        np.save(tmp_path / "x.npy", np.array(tokens))
        assert cli.main(["verify", path, str(tmp_path / "x.npy")]) == 2
        assert "in 0..6" in capsys.readouterr().err
    np.save(tmp_path / "x.npy", np.array([0, 6, 3]))
    assert verified(path, str(tmp_path / "x.npy"))["shape"] == [3, 1]
