"""`fastlstm convert` and `inspect`: from every format into every other, what is refused, what is told."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm
from fastlstm import cli

FORMATS = {"safetensors": [], "pt": ["torch"], "keras": ["keras", "h5py", "torch"], "onnx": ["onnx"]}


def needs(*formats: str) -> None:
    for name in formats:
        for package in FORMATS[name]:
            pytest.importorskip(package)


def run(*arguments: Any) -> int:
    return cli.main([str(a) for a in arguments])


def random_weights(model: Any, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    model.load_state_dict({name: rng.normal(0, 0.4, v.shape) for name, v in model.state_dict().items()})
    return model


def classifier() -> fastlstm.Sequential:
    return random_weights(
        fastlstm.Sequential(
            fastlstm.Embedding(11, 5),
            fastlstm.LSTM(5, 7, bidirectional=True, batch_first=True),
            fastlstm.GRU(14, 6, batch_first=True),
            fastlstm.LastStep(),
            fastlstm.Linear(6, 4),
            fastlstm.Activation("softmax"),
        )
    )


MODELS = {
    "lstm": lambda: random_weights(fastlstm.LSTM(5, 7, num_layers=2, batch_first=True)),
    "gru": lambda: random_weights(fastlstm.GRU(5, 7, bidirectional=True, batch_first=True)),
    "classifier": classifier,
}


def output(model: Any) -> Any:
    options = model._options
    embeds = getattr(options, "embeds", False)
    rng = np.random.default_rng(3)
    x = rng.integers(0, 11, (4, 6)) if embeds else rng.normal(size=(4, 6, 5)).astype("float32")
    return model(x)[0]


# --- convert ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("middle", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(name: str, middle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """safetensors -> another format -> safetensors: the same weights to the last bit, the same output."""
    needs(middle)
    model = MODELS[name]()
    first, there, back = (tmp_path / f for f in ("a.safetensors", f"b.{middle}", "c.safetensors"))
    model.save(first)
    assert run("convert", first, there) == 0, capsys.readouterr().err
    assert run("convert", there, back) == 0, capsys.readouterr().err
    twin = fastlstm.load(back)
    assert np.array_equal(output(twin), output(model))
    said = capsys.readouterr().out
    assert str(there) in said and f"{os.path.getsize(there):,} bytes" in said


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", [f for f in FORMATS if f != "safetensors"])
def test_between_any_two(source: str, target: str, tmp_path: Path) -> None:
    needs(source, target)
    model = classifier()
    model.save(tmp_path / "a.safetensors")
    paths = tmp_path / f"b.{source}", tmp_path / f"c.{target}", tmp_path / "d.safetensors"
    for here, there in zip((tmp_path / "a.safetensors", *paths), paths, strict=False):
        assert run("convert", here, there) == 0
    assert np.array_equal(output(fastlstm.load(paths[-1])), output(model))


def test_a_bare_file_takes_what_it_leaves_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import safetensors.numpy

    rnn, gru = fastlstm.RNN(3, 5, nonlinearity="relu"), fastlstm.GRU(3, 5, reset_after=False)
    for layer, word, options in ((rnn, "nonlinearity", ["relu"]), (gru, "reset", ["before"])):
        bare, target = tmp_path / f"{word}.safetensors", tmp_path / f"{word}-whole.safetensors"
        safetensors.numpy.save_file(layer.state_dict(), bare)
        assert run("convert", bare, target) == 2 and not target.exists()
        assert word in capsys.readouterr().err
        assert run("convert", bare, target, f"--{word}", *options) == 0
        assert repr(fastlstm.load(target)) == repr(layer)


def test_what_is_refused_is_one_line_and_leaves_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fastlstm.LSTM(2, 3).save(good := tmp_path / "m.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(good.read_bytes()[:-1])
    (tmp_path / "word.txt").write_text("no model")
    cases = [
        (good, good, "would replace"),
        (good, tmp_path / "m.xyz", "suffix"),
        (tmp_path / "word.txt", tmp_path / "x.safetensors", "suffix"),
        (tmp_path / "none.safetensors", tmp_path / "x.safetensors", "No such file"),
        (tmp_path / "torn.safetensors", tmp_path / "x.safetensors", "torn.safetensors"),
        (good, tmp_path / "none" / "x.safetensors", "No such file"),
    ]
    before = sorted(tmp_path.iterdir())
    for source, target, said in cases:
        assert run("convert", source, target) == 2
        out, err = capsys.readouterr()
        assert said in err and err.count("\n") == 1 and not out
    assert sorted(tmp_path.iterdir()) == before


# --- inspect ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_inspect(format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs(format)
    model = classifier()
    model.save(tmp_path / "a.safetensors")
    path = tmp_path / f"m.{format}"
    assert format == "safetensors" or run("convert", tmp_path / "a.safetensors", path) == 0
    path = tmp_path / "a.safetensors" if format == "safetensors" else path
    capsys.readouterr()
    assert run("inspect", path) == 0
    text = capsys.readouterr().out
    assert run("inspect", path, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    held = model.state_dict()
    assert facts["numbers"] == sum(v.size for v in held.values())
    assert facts["parameter_bytes"] == sum(v.nbytes for v in held.values())
    assert {p["name"]: tuple(p["shape"]) for p in facts["parameters"]} == {
        n: v.shape for n, v in held.items()
    }
    assert all(p["origin"] for p in facts["parameters"])
    assert facts["modules"][1]["options"]["bidirectional"] is True and facts["bytes"] == os.path.getsize(path)
    for name in ("Embedding(11, 5)", "LSTM(5, 7", "LastStep()", "1.weight_hh_l0_reverse", "hidden_size=7"):
        assert name in text
    assert "Activation('softmax')" in text


def test_inspect_of_a_graph_that_is_no_plain_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx")
    proto = fastlstm.to_onnx(fastlstm.GRU(4, 5, bidirectional=True), states=True)
    proto.graph.node.append(onnx.helper.make_node("Neg", ["y"], ["z"]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["time", "batch", 10]))
    onnx.save(proto, path := tmp_path / "m.onnx")
    assert run("inspect", path) == 0
    text = capsys.readouterr().out
    assert run("inspect", path, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert [p["name"] for p in facts["inputs"]] == ["x", "h_in"]
    assert facts["inputs"][0]["shape"] == ["time", "batch", 4]
    assert [p["name"] for p in facts["outputs"]] == ["y", "h_out", "z"]
    (layer,) = facts["layers"]
    assert (layer["name"], layer["class"]) == ("0.l0", "GRU")
    assert layer["options"]["hidden_size"] == 5 and layer["options"]["direction"] == "bidirectional"
    assert [(p["name"], p["shape"], p["origin"]) for p in facts["parameters"]] == [
        ("0.l0/W", [2, 15, 4], "0.W_l0"), ("0.l0/R", [2, 15, 5], "0.R_l0"), ("0.l0/B", [2, 30], "0.B_l0"),
    ]  # fmt: skip
    for said in (
        "input x: float32 time x batch x 4",
        "0  GRU '0.l0'",
        "hidden_size=5",
        "2 x 15 x 4",
        "(Neg)",
    ):
        assert said in text
    assert run("convert", path, tmp_path / "m.safetensors") == 2


def test_inspect_of_a_keras_model_that_is_no_sequential(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("keras")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    layers = [keras.layers.Input((None, 4)), keras.layers.GRU(3, name="g"), keras.layers.BatchNormalization()]
    keras.Sequential(layers).save(path := tmp_path / "m.keras")
    assert run("inspect", path) == 0
    text = capsys.readouterr().out
    assert run("inspect", path, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert [v["class"] for v in facts["layers"]] == ["GRU", "BatchNormalization"]
    assert facts["layers"][0]["name"] == "g" and facts["layers"][0]["options"]["units"] == 3
    shapes = {p["name"]: (p["shape"], p["bytes"], p["origin"]) for p in facts["parameters"]}
    assert shapes["g/cell/kernel"] == ([4, 9], 144, "g/cell/kernel") and len(shapes) == 7
    for said in ("0  GRU 'g'", "units=3", "4 x 9", "fold it"):
        assert said in text
    assert run("convert", path, tmp_path / "m.safetensors") == 2


def test_inspect_tells_what_is_beside_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(fastlstm.__file__).parent / "data" / "charlm.safetensors"
    assert run("inspect", path) == 0
    assert "beside the model: fastlstm_text" in capsys.readouterr().out


def test_inspect_small_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for dtype in ("bfloat16", "int8"):
        fastlstm.LSTM(4, 5).quantize(dtype).save(path := tmp_path / "q.safetensors")
        assert run("inspect", path, "--json") == 0
        facts = json.loads(capsys.readouterr().out)
        assert (
            facts["parameters"][0]["dtype"] == dtype
            and facts["modules"][0]["options"]["weight_dtype"] == dtype
        )


def test_what_a_format_cannot_hold_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        (fastlstm.LSTM(2, 3, peepholes=True), "pt", "peepholes"),
        (fastlstm.LSTM(2, 3, clip=1.0), "pt", "clip"),
        (fastlstm.GRU(2, 3, reset_after=False), "pt", "reset_after"),
        (fastlstm.LSTM(2, 3).quantize("int8"), "pt", "int8"),
        (fastlstm.GatedRNN(2, 3), "pt", "GatedRNN"),
        (fastlstm.LSTM(2, 3, peepholes=True), "keras", "peepholes"),
        (fastlstm.LSTM(2, 5, proj_size=3), "keras", "proj_size"),
        (fastlstm.GatedRNN(2, 3), "keras", "GatedRNN"),
    ]
    for model, format, said in cases:
        if any(importlib.util.find_spec(package) is None for package in FORMATS[format]):
            continue
        model.save(source := tmp_path / "m.safetensors")
        target = tmp_path / f"m.{format}"
        assert run("convert", source, target) == 2, model
        out, err = capsys.readouterr()
        assert said in err and err.count("\n") == 1 and not out and not target.exists(), err


@pytest.mark.parametrize("target", ["onnx", "keras", "h5", "safetensors"])
def test_masks_go_only_where_lengths_can_be_given(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("keras", *{target} & FORMATS.keys())
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    layers = [keras.layers.Input((None, 4)), keras.layers.Masking(name="m"), keras.layers.GRU(3)]
    keras.Sequential(layers).save(source := tmp_path / "a.keras")
    made = run("convert", source, path := tmp_path / f"b.{target}")
    out, err = capsys.readouterr()
    said = "layer 'm' masks steps: pass lengths instead"
    if target in ("safetensors", "onnx"):
        assert made == 0 and path.exists() and said in out
    else:
        assert made == 2 and said in err and "no input for lengths" in err and not path.exists()
        assert err.count("\n") == 1 and not out


def test_a_pickled_model_is_refused_in_plain_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.GRU(2, 3), path := tmp_path / "whole.pt")
    assert run("convert", path, target := tmp_path / "m.safetensors") == 2 and not target.exists()
    error = capsys.readouterr().err
    assert "a pickled model" in error and "from_torch(model)" in error
    assert error.count("\n") == 1 and "\\x1b" not in error and "\\n" not in error


def test_an_onnx_file_keeps_its_input_for_lengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx = pytest.importorskip("onnx")
    model = random_weights(fastlstm.Sequential(fastlstm.GRU(4, 3, batch_first=True), fastlstm.LastStep()))
    fastlstm.to_onnx(model, source := tmp_path / "a.onnx", lengths=True)
    names = [value.name for value in onnx.load(source).graph.input]
    assert len(names) == 2
    assert run("convert", source, again := tmp_path / "b.onnx") == 0
    assert f"its input {names[1]!r} holds lengths" in capsys.readouterr().out
    assert [value.name for value in onnx.load(again).graph.input] == names
    twin = fastlstm.from_onnx(again)
    x = np.random.default_rng(0).normal(size=(3, 5, 4))
    assert np.array_equal(twin(x, lengths=[5, 1, 3])[0], model(x, lengths=[5, 1, 3])[0])
    needs("keras")
    assert run("convert", source, tmp_path / "c.keras") == 2
    assert "no input for lengths" in capsys.readouterr().err and not (tmp_path / "c.keras").exists()


def test_a_pt_file_is_a_state_dict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PyTorch loads what was converted, and one of PyTorch's own is converted, a prefix and all."""
    torch = pytest.importorskip("torch")
    model = MODELS["lstm"]()
    model.save(tmp_path / "m.safetensors")
    assert run("convert", tmp_path / "m.safetensors", path := tmp_path / "m.pt") == 0
    twin = torch.nn.LSTM(5, 7, num_layers=2, batch_first=True)
    twin.load_state_dict(torch.load(path, weights_only=True))
    assert all(np.array_equal(v.numpy(), model.state_dict()[n]) for n, v in twin.state_dict().items())
    torch.save({"state_dict": {f"encoder.rnn.{n}": v for n, v in twin.state_dict().items()}}, path)
    assert run("inspect", path, "--json") == 0
    text = capsys.readouterr().out
    facts = json.loads(text[text.index("{") :])
    assert [p["origin"] for p in facts["parameters"]] == [f"encoder.rnn.{n}" for n in model.state_dict()]
    for broken in (
        {"options": 3},
        5,
        {"options": "{"},
        {"options": json.dumps({"version": 1, "cell": "lstm"})},
    ):
        state = twin.state_dict()
        state._metadata["fastlstm.options"] = broken
        torch.save(state, path)
        assert run("convert", path, tmp_path / "x.safetensors") == 2
        out, err = capsys.readouterr()
        assert str(path) in err and err.count("\n") == 1 and not (tmp_path / "x.safetensors").exists()
