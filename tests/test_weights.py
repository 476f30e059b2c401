"""Parameters in and out: state dicts, files, pickles, copies. Round trips are exact."""

import copy
import json
import os
import pickle
import stat
from collections import OrderedDict

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import fastlstm

LAYERS = [
    fastlstm.LSTM(3, 5, seed=1),
    fastlstm.LSTM(
        3, 5, 2, False, True, 0.25, True, 2, dtype="float64", peepholes=True, coupled_gates=True, clip=0.1,
        activations=("hard_sigmoid", ("leaky_relu", 0.3), "tanh"), seed=2,
    ),
    fastlstm.LSTM(3, 5, forget_gate=False, reverse=True, peepholes=True, seed=3),
    fastlstm.GRU(4, 3, 3, reset_after=False, seed=4),
    fastlstm.RNN(1, 1, nonlinearity="relu", bidirectional=True, seed=5),
    fastlstm.RNN(2, 3, activations="elu", bias=False, seed=6),
    fastlstm.GatedRNN(3, 2, 2, dtype="float64", seed=7),
]  # fmt: skip


def assert_equal(a, b):
    """The same layer: kind, options, parameters and output, to the bit."""
    assert type(a) is type(b)
    assert repr(a) == repr(b)
    assert_same_weights(a.state_dict(), b.state_dict())
    x = np.random.default_rng(0).normal(size=(4, 2, a.input_size))
    assert a(x)[0].tobytes() == b(x)[0].tobytes()


def assert_same_weights(a, b):
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name])


# --- state dicts --------------------------------------------------------------------------------------------


def test_names_and_shapes():
    shapes = {
        n: v.shape for n, v in fastlstm.LSTM(3, 5, 2, bidirectional=True, proj_size=2).state_dict().items()
    }
    part = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    assert list(shapes) == [f"{p}_l{k}{s}" for k in (0, 1) for s in ("", "_reverse") for p in part]
    assert shapes["weight_ih_l0_reverse"] == (20, 3)
    assert shapes["weight_ih_l1"] == (20, 4)
    assert shapes["weight_hh_l1_reverse"] == (20, 2)
    assert shapes["bias_hh_l0"] == (20,)
    assert shapes["weight_hr_l0"] == (2, 5)
    shapes = {
        n: v.shape
        for n, v in fastlstm.LSTM(3, 5, peepholes=True, bias=False, reverse=True).state_dict().items()
    }
    assert shapes == {"weight_ih_l0": (20, 3), "weight_hh_l0": (20, 5), "weight_peephole_l0": (3, 5)}
    for cls, gates in ((fastlstm.GRU, 3), (fastlstm.GatedRNN, 2), (fastlstm.RNN, 1)):
        weights = cls(3, 5).state_dict()
        assert {n: v.shape for n, v in weights.items()} == {
            "weight_ih_l0": (gates * 5, 3),
            "weight_hh_l0": (gates * 5, 5),
            "bias_ih_l0": (gates * 5,),
            "bias_hh_l0": (gates * 5,),
        }


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_state_dict_copies_both_ways(layer):
    given = layer.state_dict()
    twin = copy.deepcopy(layer)
    for value in given.values():
        value += 1
    assert_equal(twin, layer)
    result = twin.load_state_dict(given)
    assert result == ([], [])
    kept = {name: value.copy() for name, value in given.items()}
    for value in given.values():
        value[...] = np.nan
    assert_same_weights(twin.state_dict(), kept)
    twin.state_dict()["weight_hh_l0"][...] = 0
    assert_same_weights(twin.state_dict(), kept)
    assert not np.array_equal(
        twin(np.ones((2, 1, layer.input_size)))[0], layer(np.ones((2, 1, layer.input_size)))[0]
    )


def test_load_takes_any_array_like_in_any_order():
    layer, other = fastlstm.LSTM(3, 5, seed=1), fastlstm.LSTM(3, 5, seed=2)
    weights = {name: np.round(v, 2) for name, v in layer.state_dict().items()}
    layer.load_state_dict(weights)
    forms = (
        np.ndarray.tolist,
        np.asfortranarray,
        lambda v: v.astype("f8"),
        lambda v: v.repeat(2, axis=0)[::2],
    )
    for form in forms:
        mapping = OrderedDict((name, form(weights[name])) for name in reversed(weights))
        other.load_state_dict(mapping)
        assert_equal(other, layer)


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_torch_module(cell):
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    options = {"num_layers": 2, "bidirectional": True} | ({"proj_size": 3} if cell == "LSTM" else {})
    module = getattr(torch.nn, cell)(4, 6, **options)
    layer = getattr(fastlstm, cell)(4, 6, **options)
    x = torch.randn(7, 2, 4)
    for source in (module.state_dict(), dict(module.named_parameters())):  # the latter want gradients
        layer.load_state_dict(source)
        np.testing.assert_allclose(layer(x)[0], module(x)[0].detach().numpy(), atol=2e-6)
    for dtype in (torch.float16, torch.bfloat16):
        low = {name: v.to(dtype) for name, v in module.state_dict().items()}
        layer.load_state_dict(low)
        assert_same_weights(layer.state_dict(), {name: v.float().numpy() for name, v in low.items()})


def test_load_widens_half_precision():
    layer = fastlstm.GRU(3, 5, seed=1)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype in (np.float16, ml_dtypes.bfloat16):
        low = {name: v.astype(dtype) for name, v in layer.state_dict().items()}
        layer.load_state_dict(low)
        assert_same_weights(layer.state_dict(), {name: v.astype("f4") for name, v in low.items()})


def test_load_lists_all_that_is_wrong_and_changes_nothing():
    layer = fastlstm.LSTM(3, 5, 2, seed=1)
    before = copy.deepcopy(layer)
    wrong = fastlstm.LSTM(3, 5, 2, seed=2).state_dict()
    del wrong["bias_ih_l1"], wrong["weight_hh_l0"]
    wrong |= {"weight_hr_l0": np.zeros((2, 5)), "weight_ih_l0": np.zeros((20, 4)), "bias_hh_l0": np.zeros(())}
    with pytest.raises(ValueError) as caught:
        layer.load_state_dict(wrong)
    message = str(caught.value)
    assert "missing: weight_hh_l0, bias_ih_l1;" in message
    assert "unexpected: weight_hr_l0;" in message
    assert "misshapen: weight_ih_l0 (20, 4) instead of (20, 3), bias_hh_l0 () instead of (20,)" in message
    assert repr(layer) in message
    with pytest.raises(ValueError, match="misshapen: weight_ih_l0") as caught:
        layer.load_state_dict(wrong, strict=False)
    assert "missing" not in str(caught.value)
    assert_equal(layer, before)


def test_load_not_strict():
    layer, new = fastlstm.LSTM(3, 5, seed=1), fastlstm.LSTM(3, 5, seed=2)
    wanted = layer.state_dict() | {"bias_hh_l0": new.state_dict()["bias_hh_l0"]}
    result = layer.load_state_dict(
        {"bias_hh_l0": wanted["bias_hh_l0"], "fc.weight": "not looked at"}, strict=False
    )
    assert result.missing_keys == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0"]
    assert result.unexpected_keys == ["fc.weight"]
    assert_same_weights(layer.state_dict(), wanted)


# --- pickle and copy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_pickle_and_copy(layer):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert_equal(pickle.loads(pickle.dumps(layer, protocol)), layer)
    for twin in (copy.copy(layer), copy.deepcopy(layer), copy.deepcopy([layer])[0]):
        assert twin is not layer
        assert_equal(twin, layer)
        kept = layer.state_dict()
        twin.load_state_dict({name: v + 1 for name, v in kept.items()})
        assert_same_weights(layer.state_dict(), kept)


class Tagged(fastlstm.GRU):
    """A user's subclass, with attributes of its own."""


def test_pickle_of_a_subclass():
    layer = Tagged(3, 5, seed=1)
    layer.tag = "x"
    for twin in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert_equal(twin, layer)
        assert twin.tag == "x"


def test_streams_and_tapes_are_not_pickled():
    with pytest.raises(TypeError, match="Stream cannot be pickled"):
        pickle.dumps(LAYERS[0].stream())
    with pytest.raises(TypeError, match="Tape cannot be pickled"):
        pickle.dumps(LAYERS[0].record(np.zeros((2, LAYERS[0].input_size))))


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_save_and_load(layer, tmp_path):
    path = tmp_path / "layer.safetensors"
    layer.save(path)
    assert_equal(fastlstm.load(path), layer)
    assert_equal(fastlstm.load(str(path)), layer)
    weights = load_file(path)  # the library's own reader agrees
    assert_same_weights({name: weights[name] for name in layer.state_dict()}, layer.state_dict())
    with safe_open(path, "np") as file:
        config = json.loads(file.metadata()["fastlstm"])
    assert config["version"] == 1
    assert config["hidden_size"] == layer.hidden_size
    assert os.listdir(tmp_path) == ["layer.safetensors"]


def test_the_largest_header_can_be_read_again(tmp_path):
    layer = fastlstm.LSTM(1, 2, 1024, bidirectional=True, proj_size=1, peepholes=True, seed=1)
    layer.save(tmp_path / "deep.safetensors")
    assert_same_weights(fastlstm.load(tmp_path / "deep.safetensors").state_dict(), layer.state_dict())


def test_save_is_atomic_and_keeps_the_mode(tmp_path, monkeypatch):
    path, old, new = tmp_path / "m.safetensors", LAYERS[0], LAYERS[3]
    umask = os.umask(0o027)
    try:
        old.save(path)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    new.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert_equal(fastlstm.load(path), new)

    def fail(*_):
        raise OSError("disk full")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="disk full"):
                old.save(path)
        assert_equal(fastlstm.load(path), new)
        assert os.listdir(tmp_path) == ["m.safetensors"]


def test_save_through_a_link_keeps_the_link(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "m.safetensors"
    link.symlink_to(tmp_path / "real" / "m.safetensors")
    LAYERS[0].save(link)
    assert link.is_symlink()
    assert_equal(fastlstm.load(tmp_path / "real" / "m.safetensors"), LAYERS[0])


def test_save_and_load_where_there_is_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        LAYERS[0].save(tmp_path / "none" / "m.safetensors")
    with pytest.raises(FileNotFoundError):
        fastlstm.load(tmp_path / "m.safetensors")
    with pytest.raises(OSError):
        fastlstm.load(tmp_path)
    with pytest.raises(OSError):
        LAYERS[0].save(tmp_path)
    for wrong in (None, 3, b"x".join([b"a"])):
        with pytest.raises((TypeError, FileNotFoundError)):
            fastlstm.load(wrong)
    assert not os.listdir(tmp_path)


BARE = [
    (fastlstm.LSTM(3, 5, 2, seed=1), {}),
    (fastlstm.LSTM(3, 5, 2, bidirectional=True, proj_size=2, peepholes=True, dtype="float64", seed=1), {}),
    (fastlstm.LSTM(3, 5, bias=False, reverse=True, clip=2.0, seed=1), {"reverse": True, "clip": 2}),
    (fastlstm.LSTM(3, 4, proj_size=3, forget_gate=False, seed=1), {"forget_gate": False}),
    (
        fastlstm.LSTM(1, 1, coupled_gates=True, batch_first=True, seed=1),
        {"coupled_gates": True, "batch_first": True},
    ),
    (fastlstm.GRU(3, 5, bidirectional=True, seed=1), {"reset_after": True}),
    (fastlstm.GRU(3, 5, 2, reset_after=False, dropout=0.5, seed=1), {"reset_after": False, "dropout": 0.5}),
    (fastlstm.RNN(3, 5, seed=1), {"nonlinearity": "tanh"}),
    (fastlstm.RNN(3, 5, nonlinearity="relu", bias=False, seed=1), {"nonlinearity": "relu"}),
    (fastlstm.RNN(3, 5, activations=("elu", 2), seed=1), {"activations": ("elu", 2.0)}),
    (fastlstm.GatedRNN(3, 5, 3, seed=1), {}),
]


@pytest.mark.parametrize(("layer", "options"), BARE, ids=[repr(layer) for layer, _ in BARE])
def test_load_bare_file(layer, options, tmp_path):
    path = tmp_path / "bare.safetensors"
    save_file(layer.state_dict(), path, metadata={"format": "pt"})
    assert_equal(fastlstm.load(path, **options), layer)
    confirmed = {
        "input_size": 3 if layer.input_size == 3 else 1,
        "num_layers": layer.num_layers,
        "bias": layer.bias,
    }
    assert_equal(fastlstm.load(path, **options, **confirmed), layer)
    contradicted = {
        "input_size": 2, "hidden_size": 9, "num_layers": 7, "bias": not layer.bias,
        "bidirectional": not layer.bidirectional,
    }  # fmt: skip
    if isinstance(layer, fastlstm.LSTM):
        contradicted |= {"proj_size": 0 if layer.proj_size else 1, "peepholes": not layer.peepholes}
    if layer.reverse or layer.hidden_size == 1:  # other refusals come first
        del contradicted["bidirectional"], contradicted["proj_size"]
    for name, value in contradicted.items():
        with pytest.raises(ValueError, match=f"{name}={value} contradicts"):
            fastlstm.load(path, **{**options, name: value})


def test_bare_file_of_torch(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    x = np.random.default_rng(1).normal(size=(7, 2, 4)).astype("f4")
    module = torch.nn.LSTM(4, 6, 2, bidirectional=True, proj_size=3)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        save_torch(module.to(dtype).state_dict(), tmp_path / "m.safetensors")
        layer = fastlstm.load(tmp_path / "m.safetensors")
        assert layer.dtype == ("float64" if dtype == torch.float64 else "float32")
        wide = module.to(torch.float64 if dtype == torch.float64 else torch.float32)
        assert_same_weights(layer.state_dict(), {name: v.numpy() for name, v in wide.state_dict().items()})
        np.testing.assert_allclose(
            layer(x)[0], wide(torch.tensor(x, dtype=layer_dtype(torch, layer)))[0].detach(), atol=2e-6
        )


def layer_dtype(torch, layer):
    return torch.float64 if layer.dtype == "float64" else torch.float32


def test_bare_file_that_leaves_something_open(tmp_path):
    path = tmp_path / "bare.safetensors"
    save_file(fastlstm.GRU(3, 5).state_dict(), path)
    with pytest.raises(ValueError, match="reset_after"):
        fastlstm.load(path)
    save_file(fastlstm.RNN(3, 5).state_dict(), path)
    with pytest.raises(ValueError, match="nonlinearity"):
        fastlstm.load(path, clip=3.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_hh_l0": (25, 5)}, "rows per unit 4 \\(LSTM\\), 3 \\(GRU\\), 2 \\(GatedRNN\\), 1 \\(RNN\\)"),
        ({"weight_hh_l0": (21, 5)}, "weight_hh_l0"),
        ({"weight_hh_l0": (20,)}, "weight_hh_l0"),
        ({"weight_hh_l0": (0, 0)}, "weight_hh_l0"),
        ({"weight_hh_l0": None}, "missing: weight_hh_l0"),
        ({"weight_ih_l0": None}, "missing: weight_ih_l0"),
        ({"weight_ih_l0": (20, 0)}, "input_size"),
        ({"weight_ih_l0": (15, 3)}, "misshapen: weight_ih_l0 \\(15, 3\\) instead of \\(20, 3\\)"),
        ({"bias_hh_l0": None}, "missing: bias_hh_l0"),
        ({"bias_ih_l0": None}, "unexpected: bias_hh_l0"),
        ({"weight_hr_l0": (5, 5)}, "proj_size"),
        ({"weight_hr_l0": (2, 7)}, "weight_hh_l0"),
        ({"weight_hr_l0": (2, 5)}, "misshapen: weight_hh_l0"),
        ({"weight_ih_l1": (20, 5)}, "missing: weight_hh_l1"),
        ({"weight_ih_l9999": (20, 5)}, "num_layers"),
        ({"weight_ih_l0_reverse": (20, 3)}, "missing: weight_hh_l0_reverse"),
        ({"weight_peephole_l0": (3, 4)}, "misshapen: weight_peephole_l0"),
        ({"fc.weight": (2, 5)}, "unexpected: fc.weight"),
        ({"weight_ih_l0\n": (20, 3)}, "unexpected: weight_ih_l0"),
        ({"weight_ih_l٣": (20, 3)}, "unexpected: weight_ih_l٣"),
    ],
)  # fmt: skip
def test_bare_file_that_is_no_layer(change, message, tmp_path):
    weights = fastlstm.LSTM(3, 5).state_dict()
    for name, shape in change.items():
        if shape is None:
            del weights[name]
        else:
            weights[name] = np.zeros(shape, "f4")
    save_file(weights, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match=message):
        fastlstm.load(tmp_path / "bare.safetensors")


def test_options_of_load(tmp_path):
    path = tmp_path / "m.safetensors"
    layer = fastlstm.LSTM(3, 5, 2, activations=("hard_sigmoid", "tanh", "tanh"), clip=2.0, seed=1)
    layer.save(path)
    assert_equal(
        fastlstm.load(path, hidden_size=5, clip=2, activations=["hard_sigmoid", ("tanh",), "tanh"]), layer
    )
    other = fastlstm.load(path, batch_first=True, dropout=0.5, dtype="float64")
    assert (other.batch_first, other.dropout, other.dtype) == (True, 0.5, "float64")
    assert_same_weights(other.state_dict(), {name: v.astype("f8") for name, v in layer.state_dict().items()})
    for name, value in {"hidden_size": 6, "clip": None, "reverse": True, "forget_gate": False, "bias": False,
                        "activations": None, "peepholes": True, "proj_size": 2}.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"{name}={value} contradicts the file"):
            fastlstm.load(path, **{name: value})
    for name in ("reset_after", "nonlinearity", "seed", "cell", "hiden_size"):
        with pytest.raises(TypeError, match=f"LSTM takes no option {name}"):
            fastlstm.load(path, **{name: True})
    with pytest.raises(TypeError, match="hidden_size must be an int"):
        fastlstm.load(path, hidden_size=5.0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "Expecting value"),
        ("[1]", "no object"),
        ("{", "Expecting"),
        ("[" * 100000, "recursion|Recursion"),
        ('{"version": NaN}', "NaN"),
        ('{"version": 1, "version": 1}', "twice"),
        ({"version": 3}, "version 3"),
        ({"version": True}, "version True"),
        ({"version": None}, "version None"),
        ({"cell": "tree"}, "cell 'tree'"),
        ({"cell": ["lstm"]}, "cell"),
        ({"hidden_size": 2**40}, "hidden_size=1099511627776"),
        ({"hidden_size": 2**20}, "misshapen"),
        ({"hidden_size": 2**20, "num_layers": 1024}, "missing"),
        ({"hidden_size": "5"}, "hidden_size must be an int"),
        ({"hidden_size": None}, "hidden_size must be an int"),
        ({"num_layers": 10**9}, "num_layers must be an int in 1..1024"),
        ({"num_layers": 2}, "missing: weight_ih_l1"),
        ({"dropout": 1.5}, "dropout"),
        ({"dtype": "O"}, "dtype"),
        ({"dtype": ["f4"]}, "dtype"),
        ({"clip": -1}, "clip"),
        ({"activations": [["tanh", "x"], "tanh", "tanh"]}, "alpha of tanh|tanh has no alpha"),
        ({"activations": {"a": 1}}, "activations"),
        ({"colour": 1}, "LSTM takes no option colour"),
        ({"batch_first": 1}, "batch_first"),
    ],
    ids=repr,
)
def test_metadata_that_is_wrong(config, message, tmp_path):
    layer = fastlstm.LSTM(3, 5)
    path = tmp_path / "m.safetensors"
    layer.save(path)
    with safe_open(path, "np") as file:
        good = json.loads(file.metadata()["fastlstm"])
    text = config if isinstance(config, str) else json.dumps(good | config)
    save_file(layer.state_dict(), path, metadata={"fastlstm": text})
    with pytest.raises(ValueError, match=message) as caught:
        fastlstm.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no such files")
def test_a_file_of_another_kind_is_not_replaced(tmp_path):
    """Nor would root's /dev/null be."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="no regular file"):
        LAYERS[0].save(tmp_path / "fifo")
    assert (tmp_path / "fifo").is_fifo() and len(list(tmp_path.iterdir())) == 1
