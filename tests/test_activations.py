"""ONNX's eleven activation functions, with alpha and beta, through the layers, against the reference."""

import numpy as np
import pytest

import fastlstm
from fastlstm import _core, reference

SPECS = [
    "sigmoid", "tanh", "relu", "affine", "leaky_relu", "thresholded_relu", "scaled_tanh", "hard_sigmoid",
    "elu", "softsign", "softplus",
    ("affine", 0.6, -0.2), ("affine", None, 0.3), ("leaky_relu", 0.3), ("leaky_relu", -0.5),
    ("thresholded_relu", 0.125),
    ("thresholded_relu", -0.5), ("scaled_tanh", 1.7, 0.6), ("scaled_tanh", -0.5), ("hard_sigmoid", 0.7, 0.1),
    ("hard_sigmoid", -0.3), ("elu", 0.4), ("elu", -1.5),
]  # fmt: skip
LAYERS = {
    "rnn": ("RNN", {}, 0, 1),
    "lstm-gates": ("LSTM", {}, 0, 3),
    "lstm-candidate": ("LSTM", {"peepholes": True}, 1, 3),
    "lstm-output": ("LSTM", {"coupled_gates": True}, 2, 3),
    "gru-gates": ("GRU", {}, 0, 2),
    "gru-candidate": ("GRU", {}, 1, 2),
    "gru-reset-before-gates": ("GRU", {"reset_after": False}, 0, 2),
    "gru-reset-before-candidate": ("GRU", {"reset_after": False}, 1, 2),
    "gated-rnn-gate": ("GatedRNN", {}, 0, 2),
    "gated-rnn-candidate": ("GatedRNN", {}, 1, 2),
}
OWN = {"LSTM": ("sigmoid", "tanh", "tanh"), "RNN": ("tanh",)}
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}
I, H, T, B = 4, 19, 5, 3  # noqa: E741


def pair(where, spec, dtype, sizes=(I, H), **more):
    name, options, role, roles = LAYERS[where]
    chosen = list(OWN.get(name, ("sigmoid", "tanh")))
    chosen[role] = spec
    options = {**options, **more, "activations": tuple(chosen)}
    fast = getattr(fastlstm, name)(*sizes, seed=2, dtype=dtype, **options)
    oracle = getattr(reference, name)(*sizes, dtype="float64", **options)
    oracle.load_state_dict(fast.state_dict())
    return fast, oracle


def flat(result):
    output, state = result
    return [output, *(state if isinstance(state, tuple) else (state,))]


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("where", LAYERS)
def test_against_the_reference(where, spec, dtype, clip):
    fast, oracle = pair(where, spec, dtype, clip=clip)
    x = np.random.default_rng(1).normal(size=(T, B, I)).astype(dtype) * 1.5
    wanted = flat(oracle(x))
    largest = max(1, *(np.abs(w).max() for w in wanted))  # some grow without bound
    for got, w in zip(flat(fast(x)), wanted, strict=True):
        assert np.abs(got - w).max() <= 5 * TOLERANCE[dtype] * largest


def identity(spec, dtype):
    """An RNN of one unit that is the activation itself: no recurrence, weight 1."""
    layer = fastlstm.RNN(1, 1, bias=False, activations=spec, dtype=dtype)
    layer.load_state_dict({"weight_ih_l0": [[1.0]], "weight_hh_l0": [[0.0]]})
    oracle = reference.RNN(1, 1, bias=False, activations=spec, dtype="float64")
    oracle.load_state_dict({"weight_ih_l0": [[1.0]], "weight_hh_l0": [[0.0]]})
    return layer, oracle


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_function_itself(spec, dtype):
    """Over its whole range, relative to its value, kinks and large numbers included."""
    layer, oracle = identity(spec, dtype)
    alpha_beta = [v for v in (spec if isinstance(spec, tuple) else ()) if isinstance(v, float)]
    x = np.concatenate([np.linspace(-30, 30, 2001), np.linspace(-1, 1, 2001), alpha_beta, [0.0, 1.0, -1.0],
                        [1e5, -1e5, 1e30, -1e30]]).astype(dtype)  # fmt: skip
    got = layer(x.reshape(1, -1, 1))[0].ravel()
    want = oracle(x.reshape(1, -1, 1))[0].ravel()
    eps = np.finfo(dtype).eps
    # Where a sum cancels, what is relative is relative to its terms.
    terms = {"affine": np.abs(x) + 1, "hard_sigmoid": 1 + 0 * np.abs(x)}.get(
        spec if isinstance(spec, str) else spec[0]
    )
    scale = np.abs(want) + np.finfo(dtype).tiny * 4 if terms is None else terms.astype(float)
    with np.errstate(over="ignore"):
        error = np.abs(got.astype(np.float64) - want) / (eps * scale)
    tail = "softplus" in str(spec)
    error = np.where((x < -80) & tail, np.abs(got) > 1e-30, error)  # e^x itself, nearly nothing
    worst = int(np.argmax(error))
    assert error[worst] <= 4, f"{error[worst]} eps at {x[worst]!r}: {got[worst]!r}, wanted {want[worst]!r}"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_infinity_and_nan(spec, dtype):
    layer, oracle = identity(spec, dtype)
    x = np.array([np.inf, -np.inf, np.nan, 1.0, np.nan, -1.0], dtype)
    got = layer(x.reshape(1, -1, 1))[0].ravel()
    with np.errstate(all="ignore"):
        want = oracle(x.reshape(1, -1, 1))[0].ravel()
    assert np.isnan(got).tolist() == np.isnan(want).tolist() == [False, False, True, False, True, False]
    finite = np.isfinite(want)
    assert np.array_equal(got[~finite], want[~finite].astype(dtype), equal_nan=True)
    assert np.allclose(got[finite], want[finite], rtol=4 * np.finfo(dtype).eps, atol=1e-37)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clip_comes_before_the_activation_and_keeps_nan(dtype):
    layer = fastlstm.RNN(1, 1, bias=False, activations=("affine", 2.0, 1.0), clip=1.5, dtype=dtype)
    layer.load_state_dict({"weight_ih_l0": [[1.0]], "weight_hh_l0": [[0.0]]})
    x = np.array([-9, -1.5, -1, 0, 1.25, 1.5, 9, np.inf, -np.inf, np.nan], dtype)
    got = layer(x.reshape(1, -1, 1))[0].ravel()
    assert np.array_equal(got, [-2, -2, -1, 1, 3.5, 4, 4, 4, -2, np.nan], equal_nan=True)


@pytest.mark.parametrize("where", LAYERS)
def test_defaults_are_onnxs(where):
    x = np.random.default_rng(1).normal(size=(T, B, I)).astype("f4")
    for spec, full in (("hard_sigmoid", ("hard_sigmoid", 0.2, 0.5)), ("leaky_relu", ("leaky_relu", 0.01)),
                       ("elu", ("elu", 1.0)), ("affine", ("affine", 1.0, 0.0)),
                       ("scaled_tanh", ("scaled_tanh", 1.0, 1.0)),
                       ("thresholded_relu", ("thresholded_relu", 1.0))):  # fmt: skip
        a, b = (flat(pair(where, s, "float32")[0](x)) for s in (spec, full))
        assert all(p.tobytes() == q.tobytes() for p, q in zip(a, b, strict=True))


def test_all_of_them_are_tested():
    assert {s if isinstance(s, str) else s[0] for s in SPECS} == set(_core._ACTIVATIONS)
    assert _core._ACTIVATIONS == tuple(SPECS[:11])
