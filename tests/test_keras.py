"""Networks of Keras's give the same on fastlstm: several hundred random configurations, in both dtypes."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest

import fastlstm

os.environ.setdefault("KERAS_BACKEND", "torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    keras = pytest.importorskip("keras", reason="Keras and a backend of its")
    pytest.importorskip("torch")
    from keras.src.backend.common import dtypes

    L = keras.layers

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def float64_throughout(monkeypatch):
    """With PyTorch, Keras computes float64 products in float32. Here it does not, as with TensorFlow."""
    monkeypatch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")
    assert keras.backend.result_type("float64", "float64") == "float64"


SIZES = (1, 3, 7, 33)
LENGTHS = (1, 2, 7, 17)
BATCHES = (1, 2, 5)
RECURRENT = {"LSTM": L.LSTM, "GRU": L.GRU, "SimpleRNN": L.SimpleRNN}
BOUNDED = ("tanh", "sigmoid", "hard_sigmoid", "softsign")
UNBOUNDED = ("relu", "linear", "elu", "leaky_relu", "celu", None)


def random_weights(layer, rng):
    """All weights, biases too, which Keras leaves at zero."""
    for w in layer.weights:
        fan = max(1, w.shape[0] if len(w.shape) > 1 else 4)
        value = rng.normal(0, 1.2 / np.sqrt(fan), w.shape)
        w.assign(np.abs(value) + 0.1 if "variance" in w.name else value)
    return layer


def numpy_of(value):
    if isinstance(value, (list, tuple)):
        return [numpy_of(v) for v in value]
    return keras.ops.convert_to_numpy(value)


def agree(got, want, layers=1):
    """The same structure and shapes, and values to the tolerance of the dtype."""
    if isinstance(want, list):
        assert isinstance(got, list) and len(got) == len(want)
        for g, w in zip(got, want, strict=True):
            agree(g, w, layers)
        return
    assert got.shape == want.shape and got.dtype == want.dtype
    tolerance = 1e-10 if want.dtype == np.float64 else 2e-6 * layers
    if want.size:
        assert np.abs(got - want).max() <= tolerance * max(1, np.abs(want).max())


def random_mask(rng, batch, steps):
    """None, right-padded, or with holes; some sequences have no valid step at all."""
    kind = rng.integers(4)
    if kind == 0:
        return None
    if kind == 1:
        return np.arange(steps) < rng.integers(0, steps + 1, batch)[:, None]
    mask = rng.random((batch, steps)) < rng.choice([0.3, 0.8])
    mask[rng.integers(batch)] = rng.random() < 0.5
    return mask


def options_of(rng, name, activations):
    options = {"activation": activations[rng.integers(len(activations))], "use_bias": rng.random() < 0.8}
    if name != "SimpleRNN":
        gates = ("sigmoid", "hard_sigmoid", "tanh")
        options["recurrent_activation"] = gates[rng.integers(3)]
    if name == "GRU":
        options["reset_after"] = rng.random() < 0.5
    if rng.random() < 0.3:
        options |= {"dropout": 0.3, "recurrent_dropout": 0.2}
    return options


def random_layer(rng, dtype, **fixed):
    name = list(RECURRENT)[rng.integers(3)]
    activations = BOUNDED if dtype == "float32" else BOUNDED + UNBOUNDED
    options = options_of(rng, name, activations)
    options |= {
        "return_sequences": rng.random() < 0.6,
        "return_state": rng.random() < 0.4,
        "go_backwards": rng.random() < 0.4,
        "zero_output_for_mask": rng.random() < 0.3,
        "dtype": dtype,
    }
    return RECURRENT[name](int(rng.choice(SIZES)), **(options | fixed))


def built(layer, width, rng):
    layer.build((None, None, width))
    return random_weights(layer, rng)


def inputs(rng, width, dtype):
    batch, steps = int(rng.choice(BATCHES)), int(rng.choice(LENGTHS))
    return rng.normal(size=(batch, steps, width)).astype(dtype), random_mask(rng, batch, steps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(90))
def test_a_layer(seed, dtype):
    rng = np.random.default_rng([seed, int(dtype[5:])])
    width = int(rng.choice(SIZES))
    layer = built(random_layer(rng, dtype), width, rng)
    x, mask = inputs(rng, width, dtype)
    state = None
    if rng.random() < 0.5:
        count = 2 if isinstance(layer, L.LSTM) else 1
        state = [rng.normal(size=(len(x), layer.units)).astype(dtype) for _ in range(count)]
    model = fastlstm.from_keras(layer)
    got = model(x, mask=mask, initial_state=state)
    agree(got, numpy_of(layer(x, mask=mask, initial_state=state)))
    if state is not None and len(state) == 1 and not isinstance(got, list):
        assert np.array_equal(model(x, mask=mask, initial_state=state[0]), got)
    if mask is not None:  # what a masked step holds is never read
        x = np.where(mask[..., None], x, np.nan)
        agree(model(x, mask=mask, initial_state=state), got)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(70))
def test_bidirectional(seed, dtype):
    rng = np.random.default_rng([seed, 7, int(dtype[5:])])
    width = int(rng.choice(SIZES))
    forward = random_layer(rng, dtype, go_backwards=False)
    options = {"merge_mode": ["concat", "sum", "mul", "ave", None][seed % 5], "dtype": dtype}
    if rng.random() < 0.5:  # a backward layer of its own, or the two the other way round
        shared = {k: getattr(forward, k) for k in ("return_sequences", "return_state")}
        own = random_layer(rng, dtype, go_backwards=True, **shared)
        if options["merge_mode"] not in ("concat", None) and own.units != forward.units:
            own = type(own)(forward.units, go_backwards=True, dtype=dtype, **shared)
        options["backward_layer"] = own
        if rng.random() < 0.3:
            forward.go_backwards, own.go_backwards = True, False
    layer = built(L.Bidirectional(forward, **options), width, rng)
    x, mask = inputs(rng, width, dtype)
    state = None
    if rng.random() < 0.4:
        halves = [layer.forward_layer, layer.backward_layer]
        sizes = [half.units for half in halves for _ in range(2 if isinstance(half, L.LSTM) else 1)]
        if sizes.count(sizes[0]) == len(sizes) and type(halves[0]) is type(halves[1]):
            state = [rng.normal(size=(len(x), size)).astype(dtype) for size in sizes]
    model = fastlstm.from_keras(layer)
    want = numpy_of(layer(x, mask=mask, initial_state=state))
    got = model(x, mask=mask, initial_state=state)
    agree(got, want)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(20))
def test_rnn_of_cells(seed, dtype):
    rng = np.random.default_rng([seed, 8, int(dtype[5:])])
    width, cells = int(rng.choice(SIZES)), []
    for _ in range(int(rng.integers(1, 4))):
        name = list(RECURRENT)[rng.integers(3)]
        cell = {"LSTM": L.LSTMCell, "GRU": L.GRUCell, "SimpleRNN": L.SimpleRNNCell}[name]
        cells.append(cell(int(rng.choice(SIZES)), dtype=dtype, **options_of(rng, name, BOUNDED)))
    cell = cells[0] if len(cells) == 1 else L.StackedRNNCells(cells, dtype=dtype)
    flags = {k: bool(rng.random() < 0.5) for k in ("return_sequences", "return_state", "go_backwards")}
    layer = built(L.RNN(cell, dtype=dtype, **flags), width, rng)
    x, mask = inputs(rng, width, dtype)
    if len(cells) == 1 and seed % 3 == 0:
        layer = built(
            L.Bidirectional(L.RNN(cells[0], dtype=dtype, return_sequences=True), dtype=dtype), width, rng
        )
    agree(fastlstm.from_keras(layer)(x, mask=mask), numpy_of(layer(x, mask=mask)), len(cells))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(12))
def test_stateful(seed, dtype):
    rng = np.random.default_rng([seed, 9, int(dtype[5:])])
    layer = random_layer(rng, dtype, stateful=True, go_backwards=bool(seed % 3 == 0))
    if seed % 4 == 0:
        layer.go_backwards = False
        layer = L.Bidirectional(layer, dtype=dtype)
    layer.build((3, 5, 7))
    random_weights(layer, rng)
    model = fastlstm.from_keras(layer)
    assert model.stateful
    for call in range(4):
        x = rng.normal(size=(3, 5, 7)).astype(dtype)
        mask = rng.random((3, 5)) < 0.7 if call % 2 else None
        agree(model(x, mask=mask), numpy_of(layer(x, mask=mask)), call + 1)
        if call == 2:
            layer.reset_state()
            model.reset_states()
    with pytest.raises(ValueError, match="stateful.*3, got 2"):
        model(x[:2])


def random_model(rng, dtype):
    """A stack of layers behind an Embedding, a Masking, or neither."""
    kind = rng.integers(3)
    stack = []
    if kind == 0:
        first = L.Input((None,), dtype=["int32", "float32"][rng.integers(2)])
        stack.append(L.Embedding(11, 7, mask_zero=bool(rng.integers(2)), dtype=dtype))
    else:
        first = L.Input((None, 7), dtype=dtype)
        if kind == 1:
            stack.append(L.Masking(0.5, dtype=dtype))
    for _ in range(rng.integers(1, 4)):
        layer = random_layer(rng, dtype, return_sequences=True, return_state=False)
        if rng.random() < 0.4:
            layer.go_backwards = False
            layer = L.Bidirectional(layer, merge_mode=["concat", "sum", "ave"][rng.integers(3)], dtype=dtype)
        stack.append(layer)
        between = [
            lambda: L.Dropout(0.5, dtype=dtype),
            lambda: L.SpatialDropout1D(0.5, dtype=dtype),
            lambda: L.GaussianNoise(0.5, dtype=dtype),
            lambda: L.LayerNormalization(
                dtype=dtype, center=bool(rng.integers(2)), scale=bool(rng.integers(2))
            ),
            lambda: L.BatchNormalization(
                dtype=dtype, center=bool(rng.integers(2)), scale=bool(rng.integers(2))
            ),
            lambda: L.Dense(5, activation="relu", dtype=dtype),
            lambda: L.TimeDistributed(L.Dense(3, "softmax", dtype=dtype), dtype=dtype),
            lambda: L.Activation("elu", dtype=dtype),
            lambda: L.LeakyReLU(0.1, dtype=dtype),
        ]
        stack += [between[rng.integers(len(between))]() for _ in range(rng.integers(3))]
    if rng.random() < 0.5:
        stack.append(random_layer(rng, dtype, return_sequences=False, return_state=False))
    stack.append(L.Dense(4, activation=["softmax", "linear"][rng.integers(2)], dtype=dtype))
    return first, stack


def as_model(rng, first, stack):
    """Sequential or Functional, flat or nested."""
    form = rng.integers(3)
    if form == 0:
        return keras.Sequential([first, *stack])
    if form == 1 and len(stack) > 2:  # one model inside of another
        cut = len(stack) // 2
        inner = keras.Sequential(stack[cut:])
        return keras.Sequential([first, *stack[:cut], inner])
    y = first
    for layer in stack:
        y = layer(y)
    return keras.Model(first, y)


def model_input(rng, first, dtype):
    batch, steps = int(rng.choice(BATCHES)), int(rng.choice(LENGTHS))
    if len(first.shape) == 2:
        return rng.integers(0, 11, (batch, steps)) * (rng.random((batch, steps)) < 0.7)
    x = rng.normal(size=(batch, steps, 7)).astype(dtype)
    x[rng.random((batch, steps)) < 0.3] = 0.5
    return x


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(60))
def test_a_model(seed, dtype):
    rng = np.random.default_rng([seed, 10, int(dtype[5:])])
    first, stack = random_model(rng, dtype)
    keras_model = random_weights(as_model(rng, first, stack), rng)
    model = fastlstm.from_keras(keras_model)
    x = model_input(rng, first, dtype)
    want = numpy_of(keras_model(x))
    agree(model(x), want, 20)
    assert model.dtype == want.dtype and model.parameters
    if len(x) > 1:
        for verbose in (0, 1, 2, "auto"):  # all print nothing
            agree(model.predict(x, batch_size=2, verbose=verbose), want, 20)


# --- activations --------------------------------------------------------------------------------------------

IN_RECURRENT = (
    "sigmoid", "tanh", "relu", "linear", "elu", "celu", "softplus", "softsign", "leaky_relu", "hard_sigmoid",
    "sparse_sigmoid",
)  # fmt: skip
ALONE = (
    *IN_RECURRENT,
    "softmax", "log_softmax", "relu6", "selu", "silu", "swish", "gelu", "exponential", "mish", "log_sigmoid",
    "hard_silu", "hard_swish", "hard_tanh", "tanh_shrink",
)  # fmt: skip
LAYERS = {
    "ReLU": lambda dtype: L.ReLU(dtype=dtype),
    "ReLU up to": lambda dtype: L.ReLU(max_value=1.5, negative_slope=0.3, threshold=0.4, dtype=dtype),
    "ReLU up to 6": lambda dtype: L.ReLU(max_value=6, dtype=dtype),
    "ReLU above": lambda dtype: L.ReLU(threshold=0.7, dtype=dtype),
    "ReLU sloping": lambda dtype: L.ReLU(negative_slope=0.3, dtype=dtype),
    "LeakyReLU": lambda dtype: L.LeakyReLU(0.1, dtype=dtype),
    "ELU": lambda dtype: L.ELU(0.3, dtype=dtype),
    "Softmax": lambda dtype: L.Softmax(dtype=dtype),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ALONE)
def test_activations_alone(name, dtype):
    rng = np.random.default_rng(3)
    x = rng.normal(0, 3, (3, 5, 7)).astype(dtype)
    layer = L.Activation(name, dtype=dtype)
    agree(fastlstm.from_keras(layer)(x), numpy_of(layer(x)))
    dense = built(L.Dense(4, activation=name, dtype=dtype), 7, rng)
    agree(fastlstm.from_keras(dense)(x), numpy_of(dense(x)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_activation_layers(name, dtype):
    rng = np.random.default_rng(4)
    x = rng.normal(0, 3, (3, 5, 7)).astype(dtype)
    layer = LAYERS[name](dtype)
    agree(fastlstm.from_keras(layer)(x), numpy_of(layer(x)))
    dense = built(L.Dense(4, activation=layer, dtype=dtype), 7, rng)
    agree(fastlstm.from_keras(dense)(x), numpy_of(dense(x)))


@pytest.mark.parametrize("cell", RECURRENT)
@pytest.mark.parametrize("name", IN_RECURRENT)
def test_activations_in_recurrent_layers(name, cell):
    """In each place, in float64: each function differs from all others by more than the tolerance."""
    rng = np.random.default_rng(5)
    places = ["activation"] if cell == "SimpleRNN" else ["activation", "recurrent_activation"]
    for place in places:
        layer = RECURRENT[cell](3, return_sequences=True, dtype="float64", **{place: name})
        layer.build((None, None, 2))
        for w in layer.weights:
            w.assign(rng.normal(0, 0.7, w.shape))
        x = rng.normal(0, 2, (2, 4, 2))
        agree(fastlstm.from_keras(layer)(x), numpy_of(layer(x)))


def test_activation_layers_in_recurrent_layers():
    rng = np.random.default_rng(6)
    for activation in (
        L.LeakyReLU(0.05, dtype="float64"),
        L.ELU(0.3, dtype="float64"),
        L.ReLU(threshold=0.7, dtype="float64"),
        L.Activation("softsign", dtype="float64"),
    ):
        layer = built(L.LSTM(3, activation=activation, dtype="float64"), 2, rng)
        x = rng.normal(0, 2, (2, 4, 2))
        agree(fastlstm.from_keras(layer)(x), numpy_of(layer(x)))


def test_hard_sigmoid_of_keras_2_and_3(tmp_path):
    """x/6 + 1/2 in Keras 3, x/5 + 1/2 in Keras 2: the file's version decides."""
    import h5py

    rng = np.random.default_rng(7)
    keras_model = keras.Sequential([L.Input((None, 2)), L.LSTM(3, recurrent_activation="hard_sigmoid")])
    random_weights(keras_model, rng)
    path = tmp_path / "model.h5"
    keras_model.save(path)
    x = rng.normal(size=(2, 5, 2)).astype(np.float32)
    now = fastlstm.from_keras(path)(x)
    agree(now, numpy_of(keras_model(x)))
    with h5py.File(path, "r+") as file:
        file.attrs["keras_version"] = "2.12.0"
    w, u, b = (v.numpy().astype(np.float64) for v in keras_model.weights)
    h, c = np.zeros((2, 3, 3))[:, :2]
    for t in range(5):
        i, f, g, o = np.split(x[:, t] @ w + h @ u + b, 4, axis=1)
        i, f, o = (np.clip(0.2 * v + 0.5, 0, 1) for v in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
    then = fastlstm.from_keras(path)(x)
    assert np.abs(then - h).max() < 2e-6 < 1e-3 < np.abs(then - now).max()


# --- models that are more than a stack ----------------------------------------------------------------------


def encoder(rng, outputs):
    """A Functional model that gives these outputs of its last layer."""
    x = first = L.Input((None,))
    x = L.Embedding(11, 4, mask_zero=True)(x)
    x, *_ = L.GRU(5, return_sequences=True, return_state=True)(x)
    found = L.LSTM(3, return_sequences=True, return_state=True)(x)
    return random_weights(keras.Model(first, [found[i] for i in outputs]), rng)


@pytest.mark.parametrize("outputs", [[0], [0, 1, 2], [1, 2], [2, 0]])
def test_a_model_that_gives_states(outputs):
    rng = np.random.default_rng(11)
    keras_model = encoder(rng, outputs)
    x = rng.integers(0, 11, (3, 7)) * (rng.random((3, 7)) < 0.6)
    model = fastlstm.from_keras(keras_model)
    want = numpy_of(keras_model(x))
    agree(model(x), want[0] if len(want) == 1 and isinstance(want, list) else want, 2)


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_layer_that_reads_a_final_state(name, sequences, backwards):
    """h is the output of the last step, with masks too; another state is refused."""
    rng = np.random.default_rng(5)
    inputs = keras.Input((None, 4))
    options = {"return_sequences": sequences, "return_state": True, "go_backwards": backwards}
    outputs = RECURRENT[name](3, **options)(L.Masking()(inputs))
    keras_model = random_weights(keras.Model(inputs, L.Dense(2)(outputs[1])), rng)
    x = rng.standard_normal((4, 5, 4)).astype(np.float32)
    x[1, 3:] = x[2, 1] = x[3] = 0
    agree(fastlstm.from_keras(keras_model)(x), numpy_of(keras_model(x)), 3)
    if name == "LSTM":
        with pytest.raises(ValueError, match="reads output 2 of"):
            fastlstm.from_keras(keras.Model(inputs, L.Dense(2)(outputs[2])))
    zeros = RECURRENT[name](3, zero_output_for_mask=True, **options)(inputs)
    with pytest.raises(ValueError, match="reads output 1 of"):
        fastlstm.from_keras(keras.Model(inputs, L.Dense(2)(zeros[1])))


@pytest.mark.parametrize("kind", [L.GlobalAveragePooling1D, L.GlobalMaxPooling1D])
@pytest.mark.parametrize("masked", [False, True])
def test_pooling_over_time(kind, masked):
    """With masks as Keras: in the mean masked steps do not count, in the maximum they do."""
    rng = np.random.default_rng(6)
    masking = [L.Masking()] * masked
    stack = [L.Input((None, 4)), *masking, L.LSTM(3, return_sequences=True), kind(), L.Dense(2)]
    keras_model = random_weights(keras.Sequential(stack), rng)
    x = rng.standard_normal((3, 5, 4)).astype(np.float32)
    x[1, 3:] = x[2, 1] = 0
    model = fastlstm.from_keras(keras_model)
    agree(model(x), numpy_of(keras_model(x)), 3)
    with pytest.raises(ValueError, match="mean or maximum over time"):
        model.to_sequential(masks_as_lengths=True)
    with pytest.raises(ValueError, match="keepdims=True is not supported"):
        fastlstm.from_keras(keras.Sequential([L.Input((None, 4)), kind(keepdims=True)]))
    with pytest.raises(ValueError, match=r"must be \[B, T, n\]"):
        model(x[:, :0])


def test_masks_that_are_given():
    """A Sequential hands its mask to the first layer; an Embedding without mask_zero drops it."""
    rng = np.random.default_rng(12)
    mask = rng.random((3, 7)) < 0.6
    plain = keras.Sequential([L.Input((None, 4)), L.Dense(3), L.LSTM(5, return_sequences=True), L.Dense(2)])
    embedded = keras.Sequential([L.Input((None,)), L.Embedding(11, 4), L.LSTM(5)])
    for keras_model, x in ((plain, rng.normal(size=(3, 7, 4)).astype(np.float32)),
                           (embedded, rng.integers(0, 11, (3, 7)))):  # fmt: skip
        random_weights(keras_model, rng)
        agree(fastlstm.from_keras(keras_model)(x, mask=mask), numpy_of(keras_model(x, mask=mask)), 3)


def test_what_masks_leave_behind():
    """Masking zeroes what it masks, and no mask goes on where there are no steps any more."""
    rng = np.random.default_rng(21)
    x = rng.normal(size=(3, 7, 4)).astype(np.float32)
    x[rng.random((3, 7)) < 0.4] = 0.5
    for stack in ([L.Dense(2)], [L.LSTM(5), L.Softmax()], [L.Bidirectional(L.GRU(5)), L.Softmax()]):
        keras_model = random_weights(keras.Sequential([L.Input((None, 4)), L.Masking(0.5), *stack]), rng)
        agree(fastlstm.from_keras(keras_model)(x), numpy_of(keras_model(x)), 2)


def test_inputs_of_other_forms():
    """Lists, other dtypes, tokens as floats, an axis too many or too few."""
    rng = np.random.default_rng(13)
    keras_model = random_weights(keras.Sequential([L.Input((None,)), L.Embedding(11, 4), L.GRU(5)]), rng)
    model = fastlstm.from_keras(keras_model)
    x = rng.integers(0, 11, (3, 7))
    want = numpy_of(keras_model(x))
    for form in (x.tolist(), x.astype(np.uint8), x + 0.4, x[..., None], x[::-1][::-1]):
        agree(model(form), want)
    wide = random_weights(keras.Sequential([L.Input((None, 1)), L.GRU(5)]), rng)
    y = rng.normal(size=(3, 7))
    agree(fastlstm.from_keras(wide)(y), numpy_of(wide(y[..., None])))
    dense = random_weights(keras.Sequential([L.Input((4,)), L.Dense(3, "relu"), L.Dense(2)]), rng)
    agree(fastlstm.from_keras(dense)(y[:, :4]), numpy_of(dense(y[:, :4])))


def test_an_input_is_rounded_to_the_dtype_of_its_input_layer():
    rng = np.random.default_rng(22)
    stack = [L.Input((None, 4), dtype="float32"), L.GRU(5, dtype="float64")]
    keras_model = random_weights(keras.Sequential(stack), rng)
    model, x = fastlstm.from_keras(keras_model), rng.normal(size=(3, 7, 4))
    agree(model(x), numpy_of(keras_model(x)))
    assert np.array_equal(model(x), model(x.astype(np.float32)))


def test_weights_are_copies():
    rng = np.random.default_rng(14)
    layer = built(L.LSTM(3), 2, rng)
    model = fastlstm.from_keras(layer)
    x = rng.normal(size=(2, 5, 2)).astype(np.float32)
    before = model(x)
    random_weights(layer, rng)
    model.parameters["lstm/cell/kernel" if layer.name == "lstm" else f"{layer.name}/cell/kernel"][:] = 0
    assert np.array_equal(model(x), before)


# --- to_sequential ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("last", [True, False])
def test_to_sequential(last, dtype):
    rng = np.random.default_rng([15, last])
    keras_model = keras.Sequential([
        L.Input((None,)),
        L.Embedding(11, 7, mask_zero=True, dtype=dtype),
        L.Dropout(0.2, dtype=dtype),
        L.Bidirectional(L.LSTM(5, return_sequences=True, dtype=dtype), dtype=dtype),
        L.TimeDistributed(L.Dense(4, activation="leaky_relu", dtype=dtype), dtype=dtype),
        L.LayerNormalization(dtype=dtype),
        L.GRU(6, reset_after=False, return_sequences=not last, go_backwards=last, dtype=dtype),
        L.Dense(3, activation="softmax", dtype=dtype),
    ])  # fmt: skip
    random_weights(keras_model, rng)
    model = fastlstm.from_keras(keras_model)
    sequential = model.to_sequential(masks_as_lengths=True)
    lengths = np.array([7, 3, 0, 5])
    x = rng.integers(1, 11, (4, 7)) * (np.arange(7) < lengths[:, None])
    got, _ = sequential(x, lengths=lengths)
    want = model(x)
    agree(want, numpy_of(keras_model(x)), 20)
    if last:
        assert np.array_equal(got, want)
    else:
        for g, w, length in zip(got, want, lengths, strict=True):
            assert np.array_equal(g[:length], w[:length]) and not g[length:].any()
    with pytest.raises(ValueError, match="'embedding.*mask_zero"):
        model.to_sequential()


def test_to_sequential_streams():
    rng = np.random.default_rng(16)
    keras_model = keras.Sequential([L.Input((None, 4)), L.LSTM(5, return_sequences=True), L.Dense(2, "tanh")])
    model = fastlstm.from_keras(random_weights(keras_model, rng))
    x = rng.normal(size=(1, 9, 4)).astype(np.float32)
    sequential, want = model.to_sequential(), model(x)
    stream = sequential.stream()
    assert np.array_equal(np.stack([stream.step(x[:, t]) for t in range(9)], axis=1), want)
    sequential.load_state_dict({name: 0 * v for name, v in sequential.state_dict().items()})
    assert not sequential(x)[0].any() and np.array_equal(model(x), want)  # its weights are copies


def test_to_sequential_refuses_by_name():
    def stack(*layers):
        return fastlstm.from_keras(keras.Sequential([L.Input((None, 4)), *layers]))

    for layer, why in (
        (L.Bidirectional(L.GRU(3), merge_mode="sum"), "merge_mode='sum'"),
        (L.Bidirectional(L.GRU(3), backward_layer=L.GRU(4, go_backwards=True)), "two directions differ"),
        (L.GRU(3, return_sequences=True, go_backwards=True), "outputs reversed"),
        (L.GRU(3, return_state=True), "return_state"),
        (L.BatchNormalization(), "fold it"),
        (L.Masking(), "masks_as_lengths"),
        (L.Dense(3, activation="gelu"), "the function gelu"),
    ):
        with pytest.raises(ValueError, match=f"{layer.name!r}.*{why}"):
            stack(layer).to_sequential()
    with pytest.raises(ValueError, match="no layer with weights"):
        stack(L.ReLU(), L.Dropout(0.5)).to_sequential()


# --- what is refused ----------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("mine")
class OwnLayer(L.Layer):
    def call(self, x):
        return x


class OwnLSTM(L.LSTM):
    pass


def lora():
    layer = L.Dense(3)
    layer.build((None, 4))
    layer.enable_lora(2)
    return layer


def int8():
    layer = L.Dense(3)
    layer.build((None, 4))
    layer.quantize("int8")
    return layer


REFUSED = {
    "own layer": (lambda: OwnLayer(), "custom class|of Keras 3's own classes"),
    "own recurrent layer": (lambda: OwnLSTM(3), "custom class|of Keras 3's own classes"),
    "Lambda": (lambda: L.Lambda(lambda x: x), "layer '.*' \\(Lambda\\).*not supported"),
    "convolution": (lambda: L.Conv1D(3, 2), "Conv1D.*not supported"),
    "Flatten": (lambda: L.Flatten(), "Flatten.*not supported"),
    "LoRA": (lora, "lora_alpha=2 is not supported"),
    "int8": (int8, "QuantizedDTypePolicy"),
    "float16": (lambda: L.Dense(3, dtype="float16"), "'float16' is not supported"),
    "mixed": (lambda: L.LSTM(3, dtype="mixed_bfloat16"), "'mixed_bfloat16' is not supported"),
    "function": (lambda: L.Dense(3, activation=lambda x: x), "activation"),
    "function in recurrent": (lambda: L.LSTM(3, activation="gelu"), "activation='gelu'.*recurrent"),
    "softmax in recurrent": (lambda: L.GRU(3, activation="softmax"), "activation='softmax'.*recurrent"),
    "dtype of a function": (lambda: L.GRU(3, activation=L.ELU(dtype="float64")), "float64 inside"),
    "dtypes": (lambda: L.Bidirectional(L.GRU(3, dtype="float64")), "float64 inside of a layer of float32"),
    "axis": (lambda: L.LayerNormalization(axis=1), "axis.*not supported"),
    "renorm": (lambda: L.BatchNormalization(renorm=True), "renorm=True is not supported"),
    "inside": (lambda: L.TimeDistributed(L.LSTM(2)), "not supported inside of TimeDistributed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    make, why = REFUSED[name]
    layer = make()
    if name == "inside":
        layer.build((None, 3, 5, 4))
    elif not layer.built:
        layer.build((None, 7, 4))
    with pytest.raises((ValueError, TypeError), match=why):
        fastlstm.from_keras(layer)
    if name not in ("inside", "dtypes", "float16", "mixed"):
        with pytest.raises(ValueError, match=why):
            fastlstm.from_keras(keras.Sequential([L.Input((7, 4)), layer]))


def test_refused_models():
    a, b = L.Input((None, 4), name="a"), L.Input((None, 4), name="b")
    shared = L.Dense(4, name="shared")
    split, states = L.Dense(3, name="split")(a), L.LSTM(3, return_state=True, name="states")(a)
    for model, why in (
        (keras.Model([a, b], L.Add(name="sum")([a, b])), "2 inputs"),
        (
            keras.Model(a, L.Add(name="sum")([split, L.Dense(3, name="other")(a)])),
            "sum'.*more than one input",
        ),
        (keras.Model(a, shared(shared(a))), "shared'.*called 2 times"),
        (keras.Model(a, [L.Dense(2, name="x")(split), L.Dense(2, name="y")(split)]), "another reader"),
        (keras.Model(a, L.Dense(2, name="of state")(states[2])), "reads output 2 of 'states'"),
        (keras.Model(a, [split, L.Dense(2, name="more")(split)]), "other layers than its last"),
        (keras.Model(a, a + 1), "more than one input|not supported|something else"),
        (keras.Model({"a": a}, split), "input_layers must be a list"),
    ):
        with pytest.raises(ValueError, match=why):
            fastlstm.from_keras(model)
    with pytest.raises(ValueError, match="different dtypes, float32 and float64"):
        fastlstm.from_keras(keras.Sequential([a, L.Dense(2), L.Dense(3, dtype="float64")]))
    with pytest.raises(ValueError, match="'lstm.*has 0 weights.*not been built"):
        fastlstm.from_keras(L.LSTM(3))


def test_masks_by_hand_are_refused():
    a = L.Input((None, 4))
    x = L.Masking(0.5)(a)
    own = keras.ops.any(keras.ops.not_equal(a, 0.25), axis=-1)
    with pytest.raises(ValueError, match="by hand'.*mask by hand"):
        fastlstm.from_keras(keras.Model(a, L.LSTM(3, name="by hand")(x, mask=own)))


def test_bad_input():
    rng = np.random.default_rng(17)
    layer = built(L.LSTM(3), 4, rng)
    model = fastlstm.from_keras(layer)
    x = np.zeros((2, 5, 4), np.float32)
    for call, why in (
        (lambda: model(x[0]), r"x must be \[B, T, n\], got shape \(5, 4\)"),
        (lambda: model(x[..., :3]), "x must"),
        (lambda: model("text"), "x"),
        (lambda: model(x, mask=np.ones((2, 4))), r"mask must be \[B, T\] = \(2, 5\)"),
        (lambda: model(x, initial_state=[x[:, 0, :3]]), "list of 2 states, got 1"),
        (lambda: model(x, initial_state=[x[:, 0, :2]] * 2), "initial_state"),
        (lambda: model.predict(x, verbose=3), "verbose"),
        (lambda: model.predict(x, verbose=True), "verbose"),
        (lambda: model.predict(x, batch_size=0), "batch_size"),
        (lambda: fastlstm.from_keras(3), "source must be a path"),
        (lambda: fastlstm.from_keras(fastlstm.LSTM(2, 3)), "source must be a path"),
    ):
        with pytest.raises((TypeError, ValueError), match=why):
            call()
    embedding = fastlstm.from_keras(keras.Sequential([L.Input((None,)), L.Embedding(5, 2), L.GRU(2)]))
    for tokens in ([[5]], [[-1]], [[np.nan]]):
        with pytest.raises(ValueError, match="x must"):
            embedding(tokens)
    with pytest.raises(TypeError, match="initial_state is for"):
        embedding([[1]], initial_state=np.zeros((1, 2)))
    softmax = fastlstm.from_keras(keras.Sequential([L.Input((None, 4)), L.Masking(), L.Softmax()]))
    with pytest.raises(ValueError, match="'softmax.*mask"):
        softmax(x)


def test_empty():
    layer = built(L.LSTM(3, return_sequences=True), 4, np.random.default_rng(18))
    model = fastlstm.from_keras(layer)
    assert model(np.zeros((0, 5, 4))).shape == (0, 5, 3)
    assert model(np.zeros((2, 0, 4)), mask=np.zeros((2, 0))).shape == (2, 0, 3)


def test_repr_and_inspection():
    keras_model = keras.Sequential([L.Input((None, 4)), L.LSTM(5, name="a"), L.Dense(2, name="b")], name="m")
    model = fastlstm.from_keras(keras_model)
    assert repr(model) == "KerasModel(Sequential 'm': LSTM('a'), Dense('b'))"
    assert [layer.name for layer in model.layers] == ["a", "b"] and not model.stateful
    weights = model.parameters
    assert list(weights) == ["a/cell/kernel", "a/cell/recurrent_kernel", "a/cell/bias", "b/kernel", "b/bias"]
    for got, w in zip(weights.values(), keras_model.weights, strict=True):
        assert np.array_equal(got, w.numpy())


def test_keras_is_not_imported():
    import subprocess
    import sys

    code = "import sys; sys.modules['keras'] = sys.modules['h5py'] = None; import fastlstm.keras"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# --- to_keras -----------------------------------------------------------------------------------------------

MODELS = {
    "stack": lambda dtype: [
        fastlstm.Embedding(11, 4, dtype=dtype, seed=1),
        fastlstm.LSTM(4, 5, num_layers=2, bidirectional=True, dropout=0.1, dtype=dtype, seed=2),
        fastlstm.Dropout(0.2),
        fastlstm.LayerNorm(10, dtype=dtype),
        fastlstm.Linear(10, 3, dtype=dtype, seed=3),
        fastlstm.Activation("softmax"),
    ],
    "last": lambda dtype: [
        fastlstm.GRU(4, 5, reset_after=False, reverse=True, dtype=dtype, seed=4),
        fastlstm.LastStep(),
        fastlstm.Linear(5, 3, bias=False, dtype=dtype, seed=5),
    ],
    "gru": lambda dtype: [fastlstm.GRU(4, 5, bidirectional=True, dtype=dtype, seed=6)],
    "rnn": lambda dtype: [
        fastlstm.RNN(4, 5, activations=("leaky_relu", 0.3), bias=False, dtype=dtype, seed=7)
    ],
    "activations": lambda dtype: [
        fastlstm.LSTM(
            4, 5, activations=(("hard_sigmoid", 1 / 6), ("elu", 0.4), ("elu", 0.4)), dtype=dtype, seed=8
        )
    ],
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_to_keras_and_back(name, dtype, tmp_path):
    rng = np.random.default_rng(19)
    parts = MODELS[name](dtype)
    for part in parts:
        part.load_state_dict({n: rng.normal(0, 0.5, v.shape) for n, v in part.state_dict().items()})
    model = fastlstm.Sequential(*parts) if len(parts) > 1 else parts[0]
    x = rng.integers(0, 11, (3, 7)) if name == "stack" else rng.normal(size=(3, 7, 4)).astype(dtype)
    want, _ = model(x.swapaxes(0, 1))  # time first
    want = want if want.ndim == 2 else want.swapaxes(0, 1)
    path = tmp_path / "model.keras"
    keras_model = fastlstm.keras.to_keras(model, path)
    agree(numpy_of(keras_model(x)), want, 10)
    agree(fastlstm.from_keras(path)(x), want, 10)
    back = fastlstm.from_keras(path).to_sequential()
    again, _ = back(x)
    assert np.array_equal(again, fastlstm.from_keras(path)(x))
    assert [p.name for p in tmp_path.iterdir()] == ["model.keras"]


def test_to_keras_refuses_by_name():
    for model, why in (
        (fastlstm.GatedRNN(2, 3), "GatedRNN.*no such layer"),
        (fastlstm.LSTM(2, 3, proj_size=2), "proj_size=2"),
        (fastlstm.LSTM(2, 3, peepholes=True), "peepholes=True"),
        (fastlstm.LSTM(2, 3, coupled_gates=True), "coupled_gates=True"),
        (fastlstm.LSTM(2, 3, forget_gate=False), "forget_gate=False"),
        (fastlstm.LSTM(2, 3, clip=1.0), "clip=1.0"),
        (fastlstm.LSTM(2, 3, reverse=True), "reverse"),
        (fastlstm.LSTM(2, 3).quantize("int8"), "int8"),
        (fastlstm.LSTM(2, 3, activations=("sigmoid", "tanh", "relu")), "one activation"),
        (fastlstm.RNN(2, 3, activations=("scaled_tanh", 2.0, 1.0)), "no activation.*scaled_tanh"),
        (fastlstm.Embedding(3, 2, padding_idx=0), "padding_idx=0"),
        (fastlstm.Activation("relu"), "module with weights"),
        ("text", "no such layer"),
    ):
        with pytest.raises((TypeError, ValueError), match=why):
            fastlstm.keras.to_keras(model)
    with pytest.raises(ValueError, match="path must end in"):
        fastlstm.keras.to_keras(fastlstm.GRU(2, 3), "model.onnx")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_convert_and_inspect(suffix, tmp_path):
    """What the command line asks for."""
    rng = np.random.default_rng(20)
    stack = [
        L.Embedding(11, 4, mask_zero=True, name="e"),
        L.Bidirectional(L.GRU(3), name="b"),
        L.Dense(2, name="d"),
    ]
    keras_model = random_weights(keras.Sequential([L.Input((None,)), *stack]), rng)
    path = str(tmp_path / f"model{suffix}")
    keras_model.save(path)
    found = fastlstm.keras.found(path, {})
    assert f"Keras {keras.__version__}" in found.what and "'e' masks" in found.notes[0]
    assert list(found.origins) == list(found.model.state_dict())
    assert found.origins["1.weight_hh_l0_reverse"] == "b/backward_layer/cell/recurrent_kernel"
    assert found.origins["1.bias_hh_l0"] == "b/forward_layer/cell/bias"
    x = rng.integers(1, 11, (3, 7))
    assert np.array_equal(found.model(x)[0], fastlstm.from_keras(path)(x))
    cells = L.StackedRNNCells([L.LSTMCell(3), L.GRUCell(2)])
    keras.Sequential([L.Input((None, 4)), L.RNN(cells, name="r")]).save(tmp_path / f"cells{suffix}")
    origins = fastlstm.keras.found(str(tmp_path / f"cells{suffix}"), {}).origins
    assert origins["0.bias_hh_l0"] == "constant, not of Keras's"
    assert origins["1.weight_ih_l0"] == "r/cell/cells/1/kernel"
    with pytest.raises(ValueError, match="reset_after"):
        fastlstm.keras.found(path, {"reset_after": True})
    fastlstm.keras.written(found.model, str(tmp_path / f"again{suffix}"))
    again = fastlstm.from_keras(tmp_path / f"again{suffix}")
    agree(again(x), numpy_of(keras_model(x)), 3)
    keras.Sequential([L.Input((None, 4)), L.BatchNormalization()]).save(path)
    found = fastlstm.keras.found(path, {})
    assert found.model is None and "fold it" in found.notes[0]
