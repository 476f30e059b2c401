"""Activation, LayerNorm and LastStep: alone, in a Sequential, streamed, ragged, backwards, in files.

Embedding, Linear and Dropout are in test_modules.py.
"""

import math
import pickle

import numpy as np
import pytest
from each_path import output_on_each_path

import fastlstm

ELEVEN = [
    "sigmoid",
    "tanh",
    "relu",
    ("affine", 0.7, -0.2),
    ("leaky_relu", 0.3),
    ("thresholded_relu", 0.2),
    ("scaled_tanh", 1.3, 0.6),
    ("hard_sigmoid", 0.4, 0.3),
    ("elu", 0.6),
    "softsign",
    "softplus",
]
ALL = [*ELEVEN, "softmax", "log_softmax"]


def oracle(spec, x):
    name, *given = (spec,) if isinstance(spec, str) else spec
    a, b = (*given, 0, 0)[:2]
    with np.errstate(over="ignore"):
        match name:
            case "sigmoid":
                return 1 / (1 + np.exp(-x))
            case "tanh":
                return np.tanh(x)
            case "relu":
                return np.maximum(x, 0)
            case "affine":
                return a * x + b
            case "leaky_relu":
                return np.where(x < 0, a * x, x)
            case "thresholded_relu":
                return np.where(x > a, x, 0)
            case "scaled_tanh":
                return a * np.tanh(b * x)
            case "hard_sigmoid":
                return np.clip(a * x + b, 0, 1)
            case "elu":
                return np.where(x < 0, a * np.expm1(x), x)
            case "softsign":
                return x / (1 + abs(x))
            case "softplus":
                return np.log1p(np.exp(x))
            case "softmax":
                e = np.exp(x)
                return e / e.sum(axis=-1, keepdims=True)
            case "log_softmax":
                return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    raise AssertionError(name)


def numeric(f, x, dy, step=1e-6):
    """d(sum(dy f(x))) by x, by central differences."""
    dx = np.empty_like(x)
    for i in np.ndindex(x.shape):
        there = [x.copy(), x.copy()]
        there[0][i] += step
        there[1][i] -= step
        dx[i] = ((f(there[0]) - f(there[1])) * dy).sum() / (2 * step)
    return dx


def draw(shape, seed=0, dtype="float64"):
    return np.random.default_rng(seed).normal(0, 1.5, shape).astype(dtype)


# --- Activation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ALL, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (7,), (3, 33), (2, 5, 17)])
def test_activation(spec, shape):
    layer, x = fastlstm.Activation(spec), draw(shape)
    assert np.allclose(layer(x), oracle(spec, x), rtol=1e-13, atol=1e-14)
    y = layer(x.astype("float32"))
    assert y.dtype == np.float32
    assert np.allclose(y, oracle(spec, x.astype("float32").astype("float64")), rtol=2e-6, atol=1e-6)
    assert layer(x.astype("float16")).dtype == np.float32 and layer([[1, 2]]).dtype == np.float64


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_activation_backward(spec):
    layer, x, dy = fastlstm.Activation(spec), draw((3, 9)), draw((3, 9), 1)
    tape = layer.record(x)
    assert np.array_equal(tape.output, layer(x)) and tape.state is None
    got = tape.backward(dy)
    assert got.parameters == {} and got.state is None
    assert np.allclose(got.input, numeric(lambda v: oracle(spec, v), x, dy), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_an_activation_of_a_row_is_that_of_the_batch(spec):
    layer, x = fastlstm.Activation(spec), draw((50, 37), dtype="float32")
    whole = layer(x)
    assert all(np.array_equal(layer(x[i : i + 1])[0], whole[i]) for i in range(50))
    assert np.array_equal(layer(np.asfortranarray(x)), whole) and np.array_equal(layer(x[::2]), whole[::2])


def test_activations_of_what_is_no_number():
    x = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)
    assert np.array_equal(fastlstm.Activation("relu")(x), [np.nan, np.inf, 0, -0.0], equal_nan=True)
    assert np.array_equal(fastlstm.Activation("sigmoid")(x), [np.nan, 1, 0, 0.5], equal_nan=True)
    assert fastlstm.Activation("tanh")(np.zeros((0, 3))).shape == (0, 3)
    assert fastlstm.Activation("tanh")(np.float32(1)).shape == ()


def test_activation_options():
    assert repr(fastlstm.Activation("relu")) == "Activation('relu')"
    assert fastlstm.Activation("elu").activation == ("elu", 1.0)
    assert repr(fastlstm.Activation(["hard_sigmoid", None, 0.4])) == "Activation(('hard_sigmoid', 0.2, 0.4))"
    for wrong in ("swish", 3, ("relu", 1.0), ("softmax", 1), ("elu", math.nan), None, ()):
        with pytest.raises((TypeError, ValueError), match="activation"):
            fastlstm.Activation(wrong)
    with pytest.raises(ValueError, match="axis"):
        fastlstm.Activation("softmax")(np.float32(1))
    with pytest.raises(ValueError, match="d_output"):
        fastlstm.Activation("relu").record(np.zeros(3)).backward(np.zeros(4))


# --- LayerNorm ----------------------------------------------------------------------------------------------


def norm(x, weight=1.0, bias=0.0, eps=1e-5):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * weight + bias


def layer_norm(n, seed=3, **options):
    layer = fastlstm.LayerNorm(n, **options)
    rng = np.random.default_rng(seed)
    layer.load_state_dict({name: rng.normal(size=n) for name in layer.state_dict()})
    return layer


@pytest.mark.parametrize("n", [1, 7, 33])
@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"elementwise_affine": False}, {"eps": 0.1}], ids=str
)
def test_layer_norm(n, options):
    layer, x, dy = layer_norm(n, dtype="float64", **options), draw((2, 3, n)), draw((2, 3, n), 1)
    held = layer.state_dict()
    names = [] if "elementwise_affine" in options else ["weight"] if "bias" in options else ["weight", "bias"]
    assert list(held) == names

    def f(x, **changed):
        return norm(x, **{**held, **changed}, eps=options.get("eps", 1e-5))

    assert np.allclose(layer(x), f(x), rtol=1e-12, atol=1e-13)
    tape = layer.record(x)
    got = tape.backward(dy)
    assert np.array_equal(tape.output, layer(x))
    assert np.allclose(got.input, numeric(f, x, dy), rtol=1e-6, atol=1e-6)
    for name in names:
        want = numeric(lambda v, name=name: f(x, **{name: v}), held[name], dy) if n > 1 else None
        if want is not None:
            assert np.allclose(got.parameters[name], want, rtol=1e-7, atol=1e-7), name


def test_a_layer_norm_of_a_row_is_that_of_the_batch():
    for n in (1, 7, 33, 300):
        layer, x = layer_norm(n), draw((40, n), dtype="float32")
        whole = layer(x)
        assert all(np.array_equal(layer(x[i]), whole[i]) for i in range(40))
        assert np.array_equal(layer(x.reshape(2, 20, n)).reshape(40, n), whole)
    x[3] = np.nan
    assert np.isnan(layer(x)[3]).all() and np.array_equal(layer(x)[4:], whole[4:])


def test_layer_norm_options():
    assert repr(fastlstm.LayerNorm(5, 1e-3, bias=False)) == "LayerNorm(5, eps=0.001, bias=False)"
    layer = fastlstm.LayerNorm(5, dtype="float64")
    assert layer.dtype == np.float64 and layer.normalized_shape == 5 and layer.elementwise_affine
    for options in (
        {"normalized_shape": 0},
        {"eps": -1.0},
        {"eps": math.inf},
        {"bias": 1},
        {"dtype": "int8"},
    ):
        with pytest.raises((TypeError, ValueError), match=next(iter(options))):
            fastlstm.LayerNorm(**{"normalized_shape": 3} | options)
    with pytest.raises(ValueError, match="x must be"):
        layer(np.zeros(4))


# --- LastStep -----------------------------------------------------------------------------------------------

CELLS = {
    "lstm": lambda **o: fastlstm.LSTM(5, 7, num_layers=2, seed=1, **o),
    "projected": lambda **o: fastlstm.LSTM(5, 7, proj_size=3, seed=1, **o),
    "gru": lambda **o: fastlstm.GRU(5, 7, seed=1, **o),
    "both": lambda **o: fastlstm.GRU(5, 7, num_layers=2, bidirectional=True, seed=1, **o),
    "lstm both": lambda **o: fastlstm.LSTM(5, 7, bidirectional=True, seed=1, **o),
    "reverse": lambda **o: fastlstm.RNN(5, 7, reverse=True, seed=1, **o),
}


def classifier(cell, dtype="float64", batch_first=False):
    layer = CELLS[cell](dtype=dtype, batch_first=batch_first)
    n = layer.state_dict()["weight_hh_l0"].shape[1] * (2 if layer.bidirectional else 1)
    return fastlstm.Sequential(
        layer,
        fastlstm.LastStep(),
        layer_norm(n, dtype=dtype),
        fastlstm.Linear(n, 4, dtype=dtype, seed=2),
        fastlstm.Activation("log_softmax"),
    )


def random_state(model, batch, seed):
    layer, rng = model[0], np.random.default_rng(seed)
    _, state = layer(np.zeros((batch, 0, 5) if layer.batch_first else (0, batch, 5)))
    drawn = tuple(rng.normal(size=v.shape) for v in (state if isinstance(state, tuple) else (state,)))
    return (drawn if isinstance(state, tuple) else drawn[0],)


def flat(state):
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_last_step(cell, batch_first):
    model = classifier(cell, batch_first=batch_first)
    lengths, x = [6, 1, 0, 4], draw((4, 6, 5) if batch_first else (6, 4, 5))
    state = random_state(model, 4, 5)
    y, final = model(x, state, lengths=lengths)
    layer, rest = model[0], list(model)[2:]
    out, own = layer(x, state[0], lengths=lengths)
    assert y.shape == (4, 4)
    assert all(map(np.array_equal, flat(final[0]), flat(own)))
    out = out.swapaxes(0, 1) if batch_first else out
    width = out.shape[-1] // (2 if layer.bidirectional else 1)
    h0 = state[0][0] if isinstance(state[0], tuple) else state[0]
    for b, n in enumerate(lengths):
        forward = out[n - 1, b, :width] if n else h0[-2 if layer.bidirectional else -1, b]
        if layer.reverse and n:
            forward = out[0, b]
        parts = [forward] + ([out[0, b, width:] if n else h0[-1, b]] if layer.bidirectional else [])
        want = np.concatenate(parts)
        for part in rest:
            want = part(want)
        assert np.array_equal(y[b], want)
    one = x[0] if batch_first else x[:, 0]
    alone, _ = model(
        one,
        tuple(s[:, 0] for s in state)
        if not isinstance(state[0], tuple)
        else (tuple(v[:, 0] for v in state[0]),),
    )
    assert alone.shape == (4,) and np.array_equal(alone, y[0])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("lengths", [None, [3, 1, 0]])
def test_last_step_backward(cell, lengths):
    model, x = classifier(cell), draw((3, 3, 5))
    state, dy = random_state(model, 3, 5), draw((3, 4), 7)
    d_state = random_state(model, 3, 9)

    def loss(x, state):
        y, final = model(x, state, lengths=lengths)
        ends = zip(final, d_state, strict=True)
        both = isinstance(final[0], tuple)
        return (y * dy).sum() + sum(
            (np.array(a) * np.array(b)).sum()
            if not both
            else sum((u * v).sum() for u, v in zip(a, b, strict=True))
            for a, b in ends
        )

    tape = model.record(x, state, lengths=lengths)
    assert np.array_equal(tape.output, model(x, state, lengths=lengths)[0])
    got = tape.backward(dy, d_state)
    assert np.allclose(got.input, numeric(lambda v: np.asarray(loss(v, state)), x, 1.0), rtol=1e-5, atol=1e-7)
    h = state[0][0] if isinstance(state[0], tuple) else state[0]
    rest = state[0][1:] if isinstance(state[0], tuple) else None
    d_h = got.state[0][0] if rest else got.state[0]
    by_h = numeric(lambda v: np.asarray(loss(x, ((v, *rest),) if rest else (v,))), h, 1.0)
    assert np.allclose(d_h, by_h, rtol=1e-5, atol=1e-7)
    assert list(got.parameters) == list(model.state_dict())
    without = tape.backward(dy)
    assert not np.allclose(without.input, got.input) or lengths is not None and not any(lengths)


@pytest.mark.parametrize("cell", ["lstm", "projected", "gru"])
def test_a_stream_of_a_classifier_is_its_call_so_far(cell):
    model, x = classifier(cell, "float32"), draw((6, 3, 5), dtype="float32")
    stream = model.stream(3)
    y = np.empty((3, 4), np.float32)
    for t in range(6):
        assert stream.step(x[t], out=y) is y
        assert np.array_equal(y, model(x[: t + 1])[0])
    pool = fastlstm.StreamPool(model, 4)
    ids = [pool.open() for _ in range(3)]
    assert np.array_equal(pool.run(ids, x[:4]), model(x[:4])[0])
    assert np.array_equal(pool.step(ids[:2], x[4, :2]), model(x[:5])[0][:2])


def test_steps_of_all_leaves():
    tokens = np.random.default_rng(0).integers(0, 11, (5, 3))
    model = fastlstm.Sequential(
        fastlstm.Embedding(11, 6, seed=0),
        fastlstm.Activation("tanh"),
        fastlstm.GRU(6, 7, seed=1),
        fastlstm.Dropout(0.3),
        layer_norm(7),
        fastlstm.Activation(("elu", 0.7)),
        fastlstm.Linear(7, 5, seed=2),
        fastlstm.Activation("softmax"),
    )
    y, _ = model(tokens)
    stream = model.stream(3)
    assert all(np.array_equal(stream.step(tokens[t]), y[t]) for t in range(5))
    ragged, _ = model(tokens, lengths=[5, 2, 0])
    assert np.array_equal(ragged[:2, 1], y[:2, 1]) and not ragged[2:, 1].any() and not ragged[:, 2].any()
    tape = model.record(tokens, lengths=[5, 2, 0], dropout_seed=4)
    dy = draw(y.shape, dtype="float32")
    dirty = dy.copy()
    dirty[2:, 1] = dirty[:, 2] = np.nan  # padding is never read
    for name, want in tape.backward(dy).parameters.items():
        assert np.array_equal(tape.backward(dirty).parameters[name], want), name


def test_files_and_pickles(tmp_path):
    model, x = classifier("lstm both", "float32"), draw((6, 3, 5), dtype="float32")
    model.save(tmp_path / "m.safetensors")
    for twin in (fastlstm.load(tmp_path / "m.safetensors"), pickle.loads(pickle.dumps(model))):
        assert repr(twin) == repr(model)
        assert np.array_equal(twin(x)[0], model(x)[0])
    for leaf in (fastlstm.Activation(("elu", 0.5)), layer_norm(5, eps=1e-3), fastlstm.LastStep()):
        leaf.save(tmp_path / "leaf.safetensors")
        assert repr(fastlstm.load(tmp_path / "leaf.safetensors")) == repr(leaf)


def test_what_does_not_fit():
    lstm, last, linear = fastlstm.LSTM(5, 7), fastlstm.LastStep(), fastlstm.Linear(7, 5)
    for modules, what in (
        ((last,), "alone"),
        ((linear, last), r"modules\[1\], LastStep"),
        ((lstm, fastlstm.Dropout(), last), "directly"),
        ((lstm, last, linear, fastlstm.GRU(5, 2)), r"modules\[3\].*must not follow"),
        ((lstm, fastlstm.LayerNorm(6)), "must read what"),
        ((lstm, fastlstm.LayerNorm(7, dtype="float64")), "dtype"),
        ((lstm, last, fastlstm.LastStep()), r"modules\[2\], LastStep"),
        ((fastlstm.Activation("relu"),), "alone"),
    ):
        with pytest.raises(ValueError, match=what):
            fastlstm.Sequential(*modules)
    for call in (last, last.record):
        with pytest.raises(TypeError, match="Sequential"):
            call(np.zeros((3, 7)))
    with pytest.raises(TypeError, match="Activation"):
        fastlstm.Sequential(lstm, np.tanh)


def test_the_same_bits_on_every_path():
    code = f"""
import hashlib, numpy as np, fastlstm as f
for dtype in ("float32", "float64"):
    x = np.random.default_rng(0).normal(0, 2, (9, 4, 37)).astype(dtype)
    bits = hashlib.sha256()
    for spec in {ELEVEN!r}:
        tape = f.Activation(spec).record(x)
        bits.update(tape.output.tobytes() + tape.backward(x[::-1]).input.tobytes())
    gru = f.GRU(37, 9, bidirectional=True, dtype=dtype)
    net = f.Sequential(f.LayerNorm(37, dtype=dtype), gru, f.LastStep())
    held = net.state_dict()
    net.load_state_dict({{n: np.sin(np.arange(v.size)).reshape(v.shape) for n, v in held.items()}})
    tape = net.record(x, lengths=[9, 4, 0, 1])
    got = tape.backward(np.sin(tape.output) + 1)
    for a in (tape.output, got.input, *got.parameters.values()):
        bits.update(a.tobytes())
    print(bits.hexdigest())
"""
    found = output_on_each_path(code)
    assert len(set(found.values())) == 1, found
