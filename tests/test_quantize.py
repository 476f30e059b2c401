"""`quantize`: bfloat16 and int8 weights against the oracle, and the promises of the float32 layers, kept.

tests/c/integers.c tests the kernels of every path; tests/test_same_bits.py compares the paths.
"""

import copy
import pickle

import numpy as np
import pytest

import fastlstm
from fastlstm import _core, reference

KINDS = {
    "bfloat16": ("bfloat16", None),
    "int8": ("int8", 8),
    "int8, 16 bits": ("int8", 16),
}
LAYERS = {
    "lstm": (fastlstm.LSTM, reference.LSTM, {}),
    "lstm all": (
        fastlstm.LSTM,
        reference.LSTM,
        {"peepholes": True, "proj_size": 5, "coupled_gates": True, "clip": 2.0},
    ),
    "lstm no bias": (fastlstm.LSTM, reference.LSTM, {"bias": False, "forget_gate": False}),
    "lstm bidirectional": (fastlstm.LSTM, reference.LSTM, {"bidirectional": True, "proj_size": 3}),
    "lstm relu": (fastlstm.LSTM, reference.LSTM, {"activations": ("sigmoid", "relu", "relu")}),
    "gru": (fastlstm.GRU, reference.GRU, {"reverse": True}),
    "gru before": (fastlstm.GRU, reference.GRU, {"reset_after": False}),
    "rnn": (fastlstm.RNN, reference.RNN, {}),
    "rnn relu": (fastlstm.RNN, reference.RNN, {"nonlinearity": "relu"}),
    "gated rnn": (fastlstm.GatedRNN, reference.GatedRNN, {"bidirectional": True}),
}  # fmt: skip
each_kind = pytest.mark.parametrize("kind", KINDS)
each_layer = pytest.mark.parametrize("name", LAYERS)


def quantized(layer, kind):
    dtype, bits = KINDS[kind]
    return layer.quantize(dtype, activation_bits=bits)


def made(name, inputs=7, units=33, num_layers=2, seed=3, **options):
    cls, oracle, own = LAYERS[name]
    layer = cls(inputs, units, num_layers, seed=seed, **own, **options)
    other = oracle(inputs, units, num_layers, dtype="float32", **own, **options)
    other.load_state_dict(layer.state_dict())
    return layer, other


def states_of(layer, batch, seed=5, size=1.0):
    """Random, not zero; c in the tens, h beyond 1 where size is."""
    rng, options = np.random.default_rng(seed), layer._options
    rows = layer.num_layers * len(options.suffixes)
    arrays = [
        (rng.uniform(-1, 1, (rows, batch, n)) * s).astype(np.float32)
        for n, s in zip(options.state_sizes, (size, 10.0), strict=False)
    ]
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def flat(result):
    y, state = result
    return [y, *(state if isinstance(state, tuple) else (state,))]


def assert_same(got, wanted):
    for a, b in zip(flat(got), flat(wanted), strict=True):
        assert np.array_equal(a, b, equal_nan=True)


def inputs(steps, batch, n, seed=1):
    return np.random.default_rng(seed).standard_normal((steps, batch, n)).astype(np.float32)


# --- numbers ------------------------------------------------------------------------------------------------


@each_kind
@each_layer
@pytest.mark.parametrize("size", [1.0, 40.0])
def test_agrees_with_the_oracle(name, kind, size):
    """Both round the same numbers; where float32 arithmetic differs by an ulp before a rounding, one step of
    a 16-bit number is between them: size / 32639 times a weight, and by a gate's slope times h."""
    layer, other = made(name)
    x, state = inputs(3, 4, 7), states_of(layer, 4, size=size)
    got, want = flat(quantized(layer, kind)(x, state)), flat(quantized(other, kind)(x, state))
    plain = flat(layer(x, state))
    for a, b, c in zip(got, want, plain, strict=True):
        assert a.dtype == np.float32
        bound = 2e-5 * max(np.abs(b).max(), size) + (2e-6 * size**2 if size > 1 else 0)
        assert np.abs(a - b).max() <= bound
        assert np.abs(b - c).max() > 2 * bound or size > 1  # or the bound would let float32 weights pass


@each_layer
def test_bfloat16_is_float32_with_rounded_weights(name):
    layer, _ = made(name)
    x, state = inputs(9, 5, 7), states_of(layer, 5)
    small = layer.quantize("bfloat16")
    rounded = copy.copy(layer)
    rounded.load_state_dict(small.state_dict())
    assert_same(small(x, state), rounded(x, state))
    assert not np.array_equal(small(x, state)[0], layer(x, state)[0])


@each_kind
@each_layer
def test_the_state_dict_is_the_rounded_weights_exactly(name, kind):
    layer, other = made(name)
    small, wanted = quantized(layer, kind), quantized(other, kind).state_dict()
    got = small.state_dict()
    assert list(got) == list(layer.state_dict())
    for key, value in got.items():
        assert value.dtype == np.float32 and np.array_equal(value, wanted[key]), key
        changed = not np.array_equal(value, layer.state_dict()[key])
        assert changed == key.startswith(("weight_ih", "weight_hh", "weight_hr")), key
    small.load_state_dict(got)
    again = small.state_dict()
    assert all(np.array_equal(again[key], got[key]) for key in got)


def test_weights_of_any_size_round_to_within_half_a_step():
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((400, 50)) * np.exp2(rng.uniform(-90, 100, (400, 1)))).astype(np.float32)
    weight[7] = 0
    weight[8] = 1e-35
    weight[9, 0] = np.finfo(np.float32).max
    numbers, scale = _core.to_int8(weight)
    assert (np.abs(numbers).max(1)[scale > 0] == 127).all() and scale[7] == scale[8] == 0
    error = np.abs(numbers.astype(float) * scale[:, None] - weight)
    assert (error <= scale[:, None] * 0.5000001 + 1e-34).all()
    again, same = _core.to_int8(numbers * scale[:, None])
    assert np.array_equal(again, numbers) and np.array_equal(same, scale)


def test_bfloat16_rounds_to_even():
    ones = [1, 1 + 2**-8, 1 + 2**-8 + 2**-20, 1 + 3 * 2**-8]
    values = np.array([*ones, -3.3e38, 3.4e38, np.inf, np.nan, -0.0, 1e-40])
    ours = (_core.to_bfloat16(values.astype(np.float32)).astype(np.uint32) << 16).view(np.float32)
    wanted = [1, 1, 1 + 2**-7, 1 + 2**-6, None, np.inf, np.inf, np.nan, -0.0, None]
    for got, want, value in zip(ours, wanted, values, strict=True):
        if want is None:
            assert abs(got / value - 1) <= 2**-8 + (abs(value) < 1e-38)
        else:
            assert np.array_equal(got, np.float32(want), equal_nan=True)
            assert np.signbit(got) == np.signbit(want)
    signalling = np.array([0x7F800001], np.uint32).view(np.float32)
    assert np.isnan((_core.to_bfloat16(signalling).astype(np.uint32) << 16).view(np.float32)).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_a_large_state_does_not_saturate(bits):
    """The scale of h follows the row beyond 1: with a cut-off the error would be of the size of h."""
    layer = fastlstm.RNN(3, 40, nonlinearity="relu", seed=1)
    h = np.random.default_rng(2).uniform(0, 500, (1, 2, 40)).astype(np.float32)
    small = layer.quantize("int8", activation_bits=bits)
    got, want = (v(np.zeros((1, 2, 3), np.float32), h)[0] for v in (small, layer))
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_with_nan_or_infinity_gives_nan_alone(bits, value):
    layer = fastlstm.LSTM(5, 17, seed=0).quantize("int8", activation_bits=bits)
    x = inputs(6, 20, 5)
    clean = layer(x)[0]
    x[2, 3, 4] = value
    got = layer(x)[0]
    assert np.isnan(got[2:, 3]).all() and np.array_equal(got[:2], clean[:2])
    others = np.arange(20) != 3
    assert np.array_equal(got[:, others], clean[:, others])


def test_tiny_inputs_are_not_lost():
    """x has a scale of its own, down to 2^-100; zeros stay zeros."""
    layer = fastlstm.RNN(4, 8, bias=False, seed=0)
    x = inputs(1, 3, 4) * np.float32(1e-20)
    x[0, 1] = 0
    got, want = layer.quantize("int8", activation_bits=16)(x)[0], layer(x)[0]
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()
    assert (got[0, 1] == 0).all()


# --- the promises -------------------------------------------------------------------------------------------


@each_kind
@each_layer
@pytest.mark.parametrize("units", [7, 65])
def test_same_bits_alone_in_a_batch_step_by_step_and_ragged(name, kind, units):
    layer, _ = made(name, inputs=130, units=units)
    small = quantized(layer, kind)
    batch, steps = 37, 5
    x, state = inputs(steps, batch, 130), states_of(layer, batch)
    lengths = np.random.default_rng(0).integers(0, steps + 1, batch)
    whole, ragged = small(x, state), small(x, state, lengths=lengths)
    for b in (0, 17, 36):
        own = tuple(v[:, b : b + 1] for v in state) if isinstance(state, tuple) else state[:, b : b + 1]
        y, end = small(x[:, b : b + 1], own)
        assert_same((y, end), (whole[0][:, b : b + 1], cut(whole[1], b)))
        n = lengths[b]
        y, end = small(x[:n, b : b + 1], own)
        assert_same((y, end), (ragged[0][:n, b : b + 1], cut(ragged[1], b)))
        assert (ragged[0][n:, b] == 0).all()
    if not (layer.bidirectional or layer.reverse):
        stream = small.stream(batch, state)
        assert np.array_equal(np.stack([stream.step(x[t]) for t in range(steps)]), whole[0])
        assert_same((whole[0], stream.state), whole)


def cut(state, b):
    return tuple(v[:, b : b + 1] for v in state) if isinstance(state, tuple) else state[:, b : b + 1]


@each_kind
@pytest.mark.parametrize("split", ["batch", "units"])
@pytest.mark.parametrize("name", ["lstm all", "gru before", "gru"])
def test_same_bits_on_any_number_of_threads(name, kind, split):
    layer, _ = made(name, inputs=70, units=200)
    small, x = quantized(layer, kind), inputs(4, 21, 70)
    threads = fastlstm.get_num_threads()
    try:
        fastlstm.set_num_threads(1)
        alone = small(x)
        fastlstm.set_num_threads(3)
        _core.force_split(split)
        assert_same(small(x), alone)
        assert _core.last_split() == split
        if split == "units" and not layer.reverse:
            stream = small.stream(21)
            assert np.array_equal(np.stack([stream.step(x_t) for x_t in x]), alone[0])
            assert _core.last_split() == split
    finally:
        _core.force_split(None)
        fastlstm.set_num_threads(threads)


# --- objects, files -----------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("name", ["lstm all", "gru before"])
def test_saved_loaded_pickled_and_copied(name, kind, tmp_path):
    layer, _ = made(name, inputs=40, units=50)
    small, x = quantized(layer, kind), inputs(3, 2, 40)
    path, plain = tmp_path / "small.safetensors", tmp_path / "plain.safetensors"
    small.save(path)
    layer.save(plain)
    loaded = fastlstm.load(path)
    for other in (loaded, pickle.loads(pickle.dumps(small)), copy.deepcopy(small)):
        assert repr(other) == repr(small) and other.weight_dtype == KINDS[kind][0]
        assert other.activation_bits == KINDS[kind][1]
        assert_same(other(x), small(x))
    assert path.stat().st_size < plain.stat().st_size * (0.6 if kind == "bfloat16" else 0.42)
    with pytest.raises(ValueError, match="weight_dtype"):
        fastlstm.load(path, weight_dtype="bfloat16" if kind != "bfloat16" else "int8")


def test_what_a_file_holds(tmp_path):
    from safetensors import safe_open

    layer = fastlstm.LSTM(3, 4, seed=0)
    for kind, dtype in (("int8", "I8"), ("bfloat16", "BF16")):
        layer.quantize(kind).save(tmp_path / "m.safetensors")
        with safe_open(tmp_path / "m.safetensors", "np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            found = {name: (s.get_dtype(), s.get_shape()) for name, s in slices.items()}
        wanted = {"weight_ih_l0": (dtype, [16, 3]), "weight_hh_l0": (dtype, [16, 4])}
        wanted |= {"bias_ih_l0": ("F32", [16]), "bias_hh_l0": ("F32", [16])}
        if kind == "int8":
            wanted |= {"weight_ih_l0.scale": ("F32", [16]), "weight_hh_l0.scale": ("F32", [16])}
        assert found == wanted


def changed_file(path, tensors, metadata):
    from safetensors.numpy import save_file

    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("weight_ih_l0", np.zeros((16, 3), np.float32), "weight_ih_l0 has dtype F32, wanted I8"),
        ("weight_hh_l0.scale", np.full(16, np.nan, np.float32), "must hold 0 or numbers of 17 bits"),
        ("weight_hh_l0.scale", np.full(16, -1, np.float32), "must hold 0 or numbers of 17 bits"),
        ("weight_hh_l0.scale", np.full(16, 0.123456789, np.float32), "must hold 0 or numbers of 17 bits"),
        ("weight_hh_l0.scale", np.full(16, 3e38, np.float32), "must hold 0 or numbers of 17 bits"),
        ("weight_hh_l0.scale", np.zeros(15, np.float32), "weight_hh_l0.scale"),
        ("bias_ih_l0", np.zeros(16, np.int8), "bias_ih_l0 has dtype I8"),
        ("weight_hh_l0", np.full((16, 4), -128, np.int8), "-128"),
        ("weight_hh_l0.scale", None, "missing: weight_hh_l0.scale"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused(name, value, words, tmp_path):
    from safetensors import safe_open

    path = tmp_path / "m.safetensors"
    fastlstm.LSTM(3, 4, seed=0).quantize("int8").save(path)
    with safe_open(path, "np") as file:
        tensors, metadata = {n: file.get_tensor(n) for n in file.keys()}, file.metadata()
    tensors[name] = value
    changed_file(path, {n: v for n, v in tensors.items() if v is not None}, metadata)
    with pytest.raises(ValueError, match=words) as caught:
        fastlstm.load(path)
    assert str(path) in str(caught.value)


def test_a_bare_file_is_not_quantized(tmp_path):
    changed_file(tmp_path / "bare.safetensors", fastlstm.LSTM(3, 4).state_dict(), None)
    with pytest.raises(ValueError, match="load it, then call quantize"):
        fastlstm.load(tmp_path / "bare.safetensors", weight_dtype="int8")


def test_new_weights_are_rounded_and_a_stream_takes_them():
    first, second = fastlstm.GRU(3, 8, seed=0), fastlstm.GRU(3, 8, seed=1)
    small, x = first.quantize("int8"), inputs(2, 1, 3)
    stream = small.stream()
    stream.step(x[0])
    h = stream.state
    small.load_state_dict(second.state_dict())
    assert np.array_equal(stream.step(x[1]), second.quantize("int8")(x[1:], h)[0][0])
    partly = first.quantize("int8")
    partly.load_state_dict({"weight_hh_l0": second.state_dict()["weight_hh_l0"]}, strict=False)
    got, wanted = partly.state_dict(), first.quantize("int8").state_dict()
    assert np.array_equal(got["weight_ih_l0"], wanted["weight_ih_l0"])
    assert np.array_equal(got["weight_hh_l0"], small.state_dict()["weight_hh_l0"])


def test_int8_again_for_other_activation_bits():
    layer = fastlstm.LSTM(4, 9, seed=0)
    eight, x = layer.quantize("int8"), inputs(3, 2, 4)
    assert_same(eight.quantize("int8", activation_bits=16)(x), layer.quantize("int8", activation_bits=16)(x))


def test_the_layer_itself_stays_and_a_subclass_is_kept():
    class Mine(fastlstm.LSTM):
        pass

    layer = Mine(3, 5, seed=0)
    layer.label = "mine"
    before = layer.state_dict()
    small = layer.quantize("int8")
    assert type(small) is Mine and small.label == "mine"
    assert layer.weight_dtype == "float32" and layer.activation_bits is None
    assert all(np.array_equal(v, before[n]) for n, v in layer.state_dict().items())
    assert "weight_dtype='int8', activation_bits=8" in repr(small)


def test_what_is_refused():
    layer = fastlstm.LSTM(3, 5, seed=0)
    with pytest.raises(ValueError, match="dtype must be 'bfloat16' or 'int8', got str 'int4'"):
        layer.quantize("int4")
    with pytest.raises(ValueError, match="dtype must be"):
        layer.quantize(None)
    with pytest.raises(ValueError, match="activation_bits is for int8"):
        layer.quantize("bfloat16", activation_bits=8)
    for bits in (4, 12, 17):
        with pytest.raises(ValueError, match="activation_bits must be"):
            layer.quantize("int8", activation_bits=bits)
    with pytest.raises(TypeError, match="activation_bits"):
        layer.quantize("int8", activation_bits="8")
    with pytest.raises(ValueError, match="for float32 layers, not float64"):
        fastlstm.LSTM(3, 5, dtype="float64").quantize("bfloat16")
    with pytest.raises(ValueError, match="bfloat16 already"):
        layer.quantize("bfloat16").quantize("int8")
    for kind in ("bfloat16", "int8"):
        with pytest.raises(ValueError, match=f"record: a layer with {kind} weights cannot be trained"):
            layer.quantize(kind).record(inputs(2, 1, 3))
    with pytest.raises(ValueError, match="hidden_size must be at most 32768"):
        fastlstm.RNN(1, 32769).quantize("int8")
    broken = fastlstm.LSTM(3, 5, seed=0)
    state = broken.state_dict()
    state["weight_hh_l0"][3, 2] = np.inf
    broken.load_state_dict(state)
    with pytest.raises(ValueError, match="weight_hh_l0 holds NaN or infinity"):
        broken.quantize("int8")
    small = layer.quantize("int8")
    before = small.state_dict()
    with pytest.raises(ValueError, match="weight_hh_l0 holds NaN or infinity"):
        small.load_state_dict(state)
    assert all(np.array_equal(v, before[n]) for n, v in small.state_dict().items())
    with pytest.raises(TypeError):
        fastlstm.LSTM(3, 5, weight_dtype="int8")
    with pytest.raises(ValueError, match="module must have float weights to train"):
        fastlstm.SGD(small, lr=0.1)


# --- models -------------------------------------------------------------------------------------------------


def model():
    return fastlstm.Sequential(
        fastlstm.Embedding(11, 6, seed=0), fastlstm.LSTM(6, 20, 2, seed=1), fastlstm.Dropout(0.5),
        fastlstm.GRU(20, 12, seed=2), fastlstm.Linear(12, 11, seed=3),
    )  # fmt: skip


@each_kind
def test_a_model(kind, tmp_path):
    whole, tokens = model(), np.random.default_rng(0).integers(0, 11, (7, 3))
    small = quantized(whole, kind)
    y, state = small(tokens)
    x = whole[0](tokens)
    for part in (1, 3):
        x = quantized(whole[part], kind)(x)[0]
    assert np.array_equal(y, whole[4](x))
    small.save(tmp_path / "model.safetensors")
    for other in (fastlstm.load(tmp_path / "model.safetensors"), pickle.loads(pickle.dumps(small))):
        assert np.array_equal(other(tokens)[0], y) and repr(other) == repr(small)
    stream = small.stream(3)
    assert np.array_equal(np.stack([stream.step(t) for t in tokens]), y)
    values = small.state_dict()
    small.load_state_dict(values)
    assert list(values) == list(whole.state_dict())
    assert all(np.array_equal(v, values[n]) for n, v in small.state_dict().items())
    with pytest.raises(ValueError, match="record: a layer with"):
        small.record(tokens)


def test_a_model_is_independent_of_what_it_was_made_from():
    whole, tokens = model(), np.arange(5)[:, None]
    small = whole.quantize("bfloat16")
    before = small(tokens)[0]
    whole.load_state_dict({n: v * 2 for n, v in whole.state_dict().items()})
    assert np.array_equal(small(tokens)[0], before)
    with pytest.raises(ValueError, match="no module of the Sequential is a recurrent layer"):
        fastlstm.Sequential(fastlstm.Linear(3, 2)).quantize("int8")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"weight_dtype": "int4"}, "weight_dtype must be 'bfloat16' or 'int8'"),
        ({"weight_dtype": ["int8"]}, "weight_dtype must be"),
        ({"weight_dtype": "int8"}, "activation_bits must be 8 or 16"),
        ({"weight_dtype": "int8", "activation_bits": 9}, "activation_bits must be 8 or 16"),
        ({"weight_dtype": "bfloat16", "activation_bits": 8}, "activation_bits is for int8"),
        ({"weight_dtype": "int8", "activation_bits": 8, "dtype": "float64"}, "for float32 layers"),
        ({"activation_bits": 8}, "weight_dtype must be"),
    ],
)
def test_a_file_that_says_nonsense_is_refused(facts, words, tmp_path):
    import json

    path = tmp_path / "m.safetensors"
    layer = fastlstm.LSTM(3, 4, seed=0)
    about = {"version": 1, "cell": "lstm", **layer._options.given(), **facts}
    changed_file(path, layer.state_dict(), {"fastlstm": json.dumps(about)})
    with pytest.raises(ValueError, match=words) as caught:
        fastlstm.load(path)
    assert str(path) in str(caught.value)


def test_a_model_is_of_one_moment():
    """Parameters that change while a model is quantized are all old or all new."""
    import threading

    whole = model()
    old = whole.state_dict()
    new = {name: -v for name, v in old.items()}
    signs = [np.sign(old[name][0, 0]) for name in ("1.weight_ih_l0", "3.weight_ih_l0")]
    stop = threading.Event()

    def change():
        while not stop.is_set():
            whole.load_state_dict(new)
            whole.load_state_dict(old)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(200):
            found = whole.quantize("bfloat16").state_dict()
            kinds = {
                bool(np.sign(found[name][0, 0]) == sign)
                for name, sign in zip(("1.weight_ih_l0", "3.weight_ih_l0"), signs, strict=True)
            }
            assert len(kinds) == 1
    finally:
        stop.set()
        thread.join()
