"""The layers as users call them: against the reference, in every form of input that the docs name."""

import copy
import inspect
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlstm
from fastlstm import reference

TOLERANCE = {"float32": 2e-6, "float64": 1e-13}

ODD = ("hard_sigmoid", ("scaled_tanh", 1.7, 0.6), "softsign")
LAYERS = [
    ("LSTM", {}),
    ("LSTM", {"bias": False, "num_layers": 2}),
    ("LSTM", {"bidirectional": True, "num_layers": 2, "proj_size": 3}),
    ("LSTM", {"peepholes": True, "reverse": True}),
    ("LSTM", {"forget_gate": False, "peepholes": True}),
    ("LSTM", {"coupled_gates": True, "peepholes": True, "proj_size": 2, "bidirectional": True}),
    ("LSTM", {"clip": 0.3, "peepholes": True}),
    ("LSTM", {"activations": ODD, "clip": 0.7}),
    ("LSTM", {"activations": (("hard_sigmoid", None, 0.4), ("leaky_relu", 0.2), "tanh")}),
    ("GRU", {}),
    ("GRU", {"reset_after": False}),
    ("GRU", {"reset_after": False, "bias": False, "bidirectional": True, "num_layers": 2}),
    ("GRU", {"clip": 0.25, "activations": ODD[:2], "reverse": True}),
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu", "num_layers": 3}),
    ("RNN", {"activations": ("elu", 0.5), "bidirectional": True}),
    ("RNN", {"activations": "softplus", "clip": 0.5}),
    ("RNN", {"activations": (("thresholded_relu", 0.1),), "bias": False}),
    ("GatedRNN", {}),
    ("GatedRNN", {"num_layers": 2, "bidirectional": True}),
    ("GatedRNN", {"activations": ("sigmoid", ("affine", 0.5, 0.1)), "reverse": True}),
]
IDS = [f"{name}-{'-'.join(f'{k}={v}' for k, v in options.items())}" for name, options in LAYERS]
I, H, T, B = 5, 7, 6, 4  # noqa: E741


def pair(name, options, **more):
    """The layer, and the reference in float64 with the same parameters."""
    options = {**options, **more}
    fast = getattr(fastlstm, name)(I, H, seed=11, **options)
    oracle = getattr(reference, name)(I, H, **{**options, "dtype": "float64"})
    oracle.load_state_dict(fast.state_dict())
    return fast, oracle


def random_state(layer, batch, rng, batched=True):
    sizes = [getattr(layer, "proj_size", 0) or layer.hidden_size, layer.hidden_size][
        : 2 if isinstance(layer, fastlstm.LSTM) else 1
    ]
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    state = tuple(
        rng.normal(size=(rows, batch, n) if batched else (rows, n)).astype(layer.dtype) for n in sizes
    )
    return state if len(state) > 1 else state[0]


def arrays(result):
    output, state = result
    return [output, *(state if isinstance(state, tuple) else (state,))]


def assert_close(got, wanted, tolerance):
    for a, b in zip(arrays(got), arrays(wanted), strict=True):
        assert a.shape == b.shape
        assert np.all(np.abs(a - b) <= tolerance * np.maximum(1, np.abs(b))), np.abs(a - b).max()


def assert_same(got, wanted):
    for a, b in zip(arrays(got), arrays(wanted), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "options"), LAYERS, ids=IDS)
def test_against_reference(name, options, dtype):
    rng = np.random.default_rng(5)
    fast, oracle = pair(name, options, dtype=dtype)
    x = rng.normal(size=(T, B, I)).astype(dtype)
    state = random_state(fast, B, rng)
    for lengths in (None, [3, T, 0, 1]):
        got = fast(x, state, lengths=lengths)
        assert_close(got, oracle(x, state, lengths=lengths), TOLERANCE[dtype])
        assert_close(fast(x, lengths=lengths), oracle(x, lengths=lengths), TOLERANCE[dtype])
        assert all(a.dtype == dtype and a.flags.c_contiguous for a in arrays(got))
    one = random_state(fast, None, rng, batched=False)
    assert_close(fast(x[:, 1], one), oracle(x[:, 1], one), TOLERANCE[dtype])
    first, oracle = pair(name, options, dtype=dtype, batch_first=True)
    got = first(x.swapaxes(0, 1), state, lengths=[3, T, 0, 1])
    assert_close(got, oracle(x.swapaxes(0, 1), state, lengths=[3, T, 0, 1]), TOLERANCE[dtype])
    assert_close(first(x[:, 1], one), oracle(x[:, 1], one), TOLERANCE[dtype])


BOUNDED = ["sigmoid", "tanh", "softsign", "hard_sigmoid", ("scaled_tanh", 1.2, 0.8), ("hard_sigmoid", 0.3)]
UNBOUNDED = [
    "relu",
    "softplus",
    ("leaky_relu", 0.2),
    ("affine", 0.7, 0.1),
    ("thresholded_relu", 0.2),
    ("elu", 0.5),
]


@st.composite
def any_layer(draw):
    """A cell and options that do not exclude each other."""
    name = draw(st.sampled_from(["LSTM", "GRU", "RNN", "GatedRNN"]))
    hidden = draw(st.sampled_from([1, 2, 3, 7, 8, 16, 17, 33]))
    options = {
        "input_size": draw(st.sampled_from([1, 2, 5, 16, 19])),
        "hidden_size": hidden,
        "num_layers": draw(st.integers(1, 3)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "dtype": draw(st.sampled_from(["float32", "float64"])),
        "clip": draw(st.sampled_from([None, 0.4, 2.0])),
        "seed": draw(st.integers(0, 99)),
        **draw(st.sampled_from([{}, {"reverse": True}, {"bidirectional": True}])),
    }
    roles = {"LSTM": 3, "RNN": 1}.get(name, 2)
    kind = st.sampled_from(BOUNDED + UNBOUNDED)
    options["activations"] = draw(st.none() | st.lists(kind, min_size=roles, max_size=roles).map(tuple))
    if name == "LSTM":
        options |= draw(st.sampled_from([{}, {"forget_gate": False}, {"coupled_gates": True}]))
        options |= {"peepholes": draw(st.booleans()), "proj_size": draw(st.integers(0, min(hidden - 1, 9)))}
    elif name == "GRU":
        options["reset_after"] = draw(st.booleans())
    elif name == "RNN" and options["activations"] is None:
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    return name, options


@settings(max_examples=250)
@given(any_layer(), st.integers(0, 9), st.integers(0, 7), st.booleans(), st.integers(0, 99))
def test_any_options_together(layer, steps, batch, ragged, seed):
    name, options = layer
    rng = np.random.default_rng(seed)
    fast = getattr(fastlstm, name)(**options)
    oracle = getattr(reference, name)(**{**options, "dtype": "float64"})
    oracle.load_state_dict(fast.state_dict())
    shape = (batch, steps) if fast.batch_first else (steps, batch)
    x = rng.normal(size=(*shape, fast.input_size)).astype(fast.dtype)
    state = random_state(fast, batch, rng)
    lengths = rng.integers(0, steps + 1, batch) if ragged else None
    wanted = oracle(x, state, lengths=lengths)
    largest = max(np.abs(v).max(initial=0) for v in arrays(wanted))
    slack = 1 if options["activations"] is None and "nonlinearity" not in options else 5 * max(1, largest)
    assert_close(fast(x, state, lengths=lengths), wanted, TOLERANCE[str(fast.dtype)] * slack)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "GatedRNN"])
def test_signature_and_seed_are_the_references(name):
    fast, oracle = getattr(fastlstm, name), getattr(reference, name)
    wanted = inspect.signature(oracle).parameters
    got = inspect.signature(fast).parameters
    assert [(p.name, p.kind, p.default) for p in got.values()] == [
        (p.name, p.kind, p.default) for p in wanted.values()
    ]
    wanted = oracle(3, 4, 2, bidirectional=True, seed=7).state_dict()
    got = fast(3, 4, 2, bidirectional=True, seed=7).state_dict()
    assert list(got) == list(wanted)
    for n, value in got.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, wanted[n])
    assert np.abs(got["weight_ih_l0"]).max() <= 0.5
    unseeded = fast(3, 4).state_dict()["weight_ih_l0"]
    assert not np.array_equal(unseeded, fast(3, 4).state_dict()["weight_ih_l0"])


def test_options_are_read_only_attributes():
    lstm = fastlstm.LSTM(
        3, np.int64(5), 2, False, True, 0.5, proj_size=2, dtype=np.float64, peepholes=True,
        coupled_gates=True, reverse=True, activations=["hard_sigmoid", ("tanh",), ("scaled_tanh", None, 2)],
        clip=3, seed=1,
    )  # fmt: skip
    wanted = {
        "input_size": 3, "hidden_size": 5, "num_layers": 2, "bias": False, "batch_first": True,
        "dropout": 0.5, "bidirectional": False, "proj_size": 2, "dtype": np.dtype("float64"),
        "peepholes": True, "forget_gate": True, "coupled_gates": True, "reverse": True, "clip": 3.0,
        "activations": (("hard_sigmoid", 0.2, 0.5), "tanh", ("scaled_tanh", 1.0, 2.0)),
    }  # fmt: skip
    assert {name: getattr(lstm, name) for name in wanted} == wanted
    assert type(lstm.hidden_size) is int and type(lstm.clip) is float
    for name, value in wanted.items():
        with pytest.raises(AttributeError):
            setattr(lstm, name, value)
    with pytest.raises(AttributeError):
        lstm.hiden_size = 5
    assert fastlstm.GRU(1, 2, reset_after=False).reset_after is False
    assert fastlstm.RNN(1, 2, nonlinearity="relu").nonlinearity == "relu"
    assert fastlstm.RNN(1, 2, activations="relu").activations == ("relu",)
    assert not hasattr(fastlstm.GRU(1, 2), "proj_size")


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (fastlstm.LSTM(32, 64, 2, bidirectional=True), "LSTM(32, 64, num_layers=2, bidirectional=True)"),
        (
            fastlstm.GRU(1, 2, reset_after=False, dtype="float64"),
            "GRU(1, 2, dtype='float64', reset_after=False)",
        ),
        (fastlstm.RNN(1, 2, nonlinearity="relu", clip=2), "RNN(1, 2, nonlinearity='relu', clip=2.0)"),
        (
            fastlstm.GatedRNN(1, 2, activations=("elu", "tanh")),
            "GatedRNN(1, 2, activations=(('elu', 1.0), 'tanh'))",
        ),
    ],
)
def test_repr_makes_the_layer_again(layer, text):
    assert repr(layer) == text
    assert repr(eval(text, vars(fastlstm))) == text


def test_own_activations_by_name_are_the_cell_itself():
    x = np.random.default_rng(0).normal(size=(T, B, I)).astype("f4")
    plain = fastlstm.LSTM(I, H, seed=3)
    named = fastlstm.LSTM(I, H, seed=3, activations=("sigmoid", ("tanh", None), ["tanh", None, None]))
    assert_same(named(x), plain(x))
    assert_same(
        fastlstm.RNN(I, H, seed=3, activations="relu")(x), fastlstm.RNN(I, H, seed=3, nonlinearity="relu")(x)
    )


def test_dropout_does_nothing_in_a_call():
    x = np.random.default_rng(0).normal(size=(T, B, I)).astype("f4")
    assert_same(fastlstm.GRU(I, H, 2, dropout=1.0, seed=3)(x), fastlstm.GRU(I, H, 2, seed=3)(x))


class Dlpack:
    """Offers DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


FORMS = {
    "list": lambda x: x.tolist(),
    "float64": lambda x: x.astype("f8"),
    "float16": lambda x: x.astype("f2"),
    "longdouble": lambda x: x.astype("g"),
    "int8": lambda x: x.astype("i1"),
    "uint64": lambda x: x.astype("u8"),
    "bool": lambda x: x.astype("?"),
    "big endian": lambda x: x.astype(">f4"),
    "fortran": np.asfortranarray,
    "reversed": lambda x: np.flip(np.flip(x).copy()),
    "reversed steps": lambda x: x[::-1].copy()[::-1],
    "every other": lambda x: np.repeat(np.repeat(x, 2, axis=-1), 3, axis=0)[::3, ..., ::2],
    "wide rows": lambda x: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 2)])[..., 1:-2],
    "read-only": lambda x: np.frombuffer(x.tobytes(), "f4").reshape(x.shape),
    "unaligned": lambda x: np.frombuffer(b"x" + x.tobytes(), "i1")[1:].view("f4").reshape(x.shape),
    "memoryview": lambda x: memoryview(np.ascontiguousarray(x)),
    "dlpack": Dlpack,
    "subclass": lambda x: np.ascontiguousarray(x).view(np.recarray),
}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_any_array_like(form, batch_first):
    layer = fastlstm.LSTM(I, H, seed=1, batch_first=batch_first)
    rng = np.random.default_rng(2)
    small = (0, 2) if form in ("bool", "uint64") else (-3, 4)
    x = rng.integers(*small, size=(T, B, I)).astype("f4")
    h, c = rng.integers(*small, size=(2, 1, T if batch_first else B, H)).astype("f4")
    make = FORMS[form]
    assert_same(layer(make(x), (make(h), make(c))), layer(x, (h, c)))
    assert_same(layer(make(x[:, 0])), layer(np.ascontiguousarray(x[:, 0])))


class Witness:
    """Stands in for the core and checks what the core takes on trust."""

    def __init__(self, core):
        self.core, self.seen = core, 0

    def forward(self, x, h, c, lengths, y, h_end, c_end, batch_first):
        self.seen += 1
        assert type(x) is np.ndarray and x.dtype == y.dtype and x.ndim == 3 and x.flags.aligned
        assert x.strides[2] == x.itemsize or x.shape[2] == 1
        for a in (h, c):
            assert a is None or (a.dtype == y.dtype and a.flags.c_contiguous and a.flags.aligned)
        assert lengths is None or (lengths.dtype == np.int64 and lengths.flags.c_contiguous)
        self.core.forward(x, h, c, lengths, y, h_end, c_end, batch_first)

    def forward_plain(self, x, state, batch_first):
        """What the core takes without checks must not be what the checks would have changed."""
        plain = self.core.forward_plain(x, state, batch_first)
        if plain is not None:
            self.seen += 1
            given = (x, *(state if isinstance(state, tuple) else () if state is None else (state,)))
            for a in given:
                assert type(a) is np.ndarray and a.dtype == plain[0].dtype
                assert a.flags.c_contiguous and a.flags.aligned
        return plain


@pytest.mark.parametrize("form", FORMS)
def test_what_the_core_is_given(form):
    layer = fastlstm.LSTM(I, H, seed=1)
    layer._core = Witness(layer._core)
    make, x, state = FORMS[form], np.ones((T, B, I), "f4"), np.ones((1, B, H), "f4")
    layer(make(x), (make(state), make(state)), lengths=np.full(2 * B, T, ">u2")[::2])
    layer(x, (make(state), state))
    layer(x, (state, make(state)))
    layer(make(x[:, 0]))
    assert layer._core.seen == 4  # each call was looked at


def test_torch_tensors_and_bfloat16():
    torch = pytest.importorskip("torch")
    layer = fastlstm.GRU(I, H, seed=1)
    x = np.random.default_rng(2).integers(-3, 4, size=(T, B, I)).astype("f4")
    h = np.ones((1, B, H), "f4")
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32):
        tensor = torch.tensor(x).to(dtype)
        if tensor.is_floating_point():
            tensor.requires_grad_()
        assert_same(
            layer(tensor, torch.tensor(h), lengths=torch.tensor([1, 2, 3, 4])),
            layer(x, h, lengths=[1, 2, 3, 4]),
        )
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert_same(layer(x.astype(ml_dtypes.bfloat16)), layer(x))


def test_one_input_feature_with_any_stride():
    layer = fastlstm.LSTM(1, H, seed=1)
    audio = np.random.default_rng(2).normal(size=2 * T).astype("f4")
    wanted = layer(np.array(audio[:T].reshape(T, 1, 1)))
    assert_same(layer(audio[:T, None, None]), wanted)
    assert_same(layer(audio[:T].repeat(2)[::2, None, None]), wanted)
    assert_same(layer(np.broadcast_to(audio[:1, None, None], (T, 1, 1))), layer(np.full((T, 1, 1), audio[0])))


def test_input_and_state_are_left_alone_and_results_are_fresh():
    layer = fastlstm.LSTM(I, H, seed=1)
    rng = np.random.default_rng(2)
    x, h, c = rng.normal(size=(T, B, I)), rng.normal(size=(1, B, H)), rng.normal(size=(1, B, H))
    x, h, c = (v.astype("f4") for v in (x, h, c))
    kept = [v.copy() for v in (x, h, c)]
    first = layer(x, (h, c))
    copies = [v.copy() for v in arrays(first)]
    for v in arrays(layer(x, (h, c))):
        v[...] = np.nan
    for a, b in zip([x, h, c, *arrays(first)], kept + copies, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("name", "options"), LAYERS, ids=IDS)
def test_nothing_to_do_hands_the_state_through(name, options):
    rng = np.random.default_rng(3)
    layer = getattr(fastlstm, name)(I, H, **options)
    width = layer(np.zeros((1, 1, I)))[0].shape[2]
    state = random_state(layer, B, rng)
    x = np.full((T, B, I), np.nan, "f4")
    assert_same(layer(x[:0], state), (np.zeros((0, B, width), "f4"), state))
    assert_same(layer(x, state, lengths=[0] * B), (np.zeros((T, B, width), "f4"), state))
    none = random_state(layer, 0, rng)
    assert_same(layer(x[:, :0], none), (np.zeros((T, 0, width), "f4"), none))
    assert_same(layer(x[:, :0], none, lengths=[]), (np.zeros((T, 0, width), "f4"), none))
    assert_same(layer(x[:0, :0]), (np.zeros((0, 0, width), "f4"), none))
    wide = tuple(v.astype("f8") for v in none) if isinstance(none, tuple) else none.astype("f8")
    assert_same(layer(x[:, :0], wide), (np.zeros((T, 0, width), "f4"), none))
    one = random_state(layer, None, rng, batched=False)
    assert_same(layer(x[:0, 0], one), (np.zeros((0, width), "f4"), one))
    assert all(not v.any() for v in arrays(layer(x[:0])))


@pytest.mark.parametrize(("name", "options"), LAYERS, ids=IDS)
def test_nan_stays_in_its_sequence_and_padding_is_not_read(name, options):
    layer = getattr(fastlstm, name)(I, H, seed=4, **options)
    x = np.random.default_rng(4).normal(size=(T, B, I)).astype("f4")
    lengths = np.array([T, 2, T, 4])
    clean = layer(x, lengths=lengths)
    x[np.arange(T)[:, None] >= lengths] = np.nan
    assert_same(layer(x, lengths=lengths), clean)
    x[3, 2, 0] = np.nan
    got, wanted = arrays(layer(x, lengths=lengths)), arrays(clean)
    for a, b in zip(got, wanted, strict=True):
        others = [0, 1, 3]
        np.testing.assert_array_equal(a[:, others], b[:, others])
    if not (layer.bidirectional or layer.reverse):
        np.testing.assert_array_equal(got[0][:3, 2], wanted[0][:3, 2])
        assert np.isnan(got[0][3, 2]).all()


def test_lengths_in_any_integer_form():
    layer = fastlstm.GRU(I, H, seed=4)
    x = np.random.default_rng(4).normal(size=(T, B, I)).astype("f4")
    wanted = layer(x, lengths=[1, 6, 0, 3])
    for form in (
        tuple,
        np.uint8,
        np.array,
        lambda v: np.array(v).repeat(2)[::2],
        lambda v: np.array(v, ">i2"),
    ):
        assert_same(layer(x, lengths=form([1, 6, 0, 3])), wanted)


def test_split_anywhere_gives_the_same_bits():
    layer = fastlstm.LSTM(I, H, 2, proj_size=3, seed=4)
    rng = np.random.default_rng(4)
    x, state = rng.normal(size=(T, B, I)).astype("f4"), random_state(layer, B, rng)
    whole = layer(x, state)
    for t in range(T + 1):
        first, middle = layer(x[:t], state)
        second, last = layer(x[t:], middle)
        assert_same((np.concatenate([first, second]), last), whole)


# --- streams ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"), [c for c in LAYERS if not {"bidirectional", "reverse"} & c[1].keys()]
)
def test_stream_steps_are_the_call(name, options):
    rng = np.random.default_rng(6)
    layer = getattr(fastlstm, name)(I, H, seed=6, **options)
    x, state = rng.normal(size=(T, B, I)).astype("f4"), random_state(layer, B, rng)
    stream = layer.stream(B, state)
    assert isinstance(stream, fastlstm.Stream)
    y = np.empty_like(layer(x)[0][0])
    outputs = []
    for t in range(T):
        if t % 2:
            assert stream.step(x[t], out=y) is y
            outputs.append(y.copy())
        else:
            outputs.append(stream.step(x[t]))
    assert_same((np.stack(outputs), stream.state), layer(x, state))
    zeros = layer.stream(batch_size=B)
    assert_same((zeros.step(x[0]), zeros.state), ((r := layer(x[:1]))[0][0], r[1]))


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_stream_state_reset_and_copy(name):
    rng = np.random.default_rng(6)
    layer = getattr(fastlstm, name)(I, H, 2, seed=6)
    x, state, other = (
        rng.normal(size=(T, B, I)).astype("f4"),
        random_state(layer, B, rng),
        random_state(layer, B, rng),
    )
    nothing = np.zeros(0, "f4")

    def now(stream):
        return (nothing, stream.state)

    theirs = copy.deepcopy(state)
    stream = layer.stream(B, theirs)
    for v in [*arrays((nothing, theirs)), *arrays(now(stream))]:
        v[...] = 7  # the stream has copies, and gives copies
    assert_same(now(stream), (nothing, state))
    for t in range(3):
        stream.step(x[t])
    after = layer(x[:3], state)
    twins = [stream.copy(), copy.copy(stream), copy.deepcopy(stream)]
    stream.reset([1, 3])
    for a, b, c in zip(
        arrays(now(stream)), arrays((nothing, state)), arrays((nothing, after[1])), strict=True
    ):
        if a.size:
            np.testing.assert_array_equal(a[:, [1, 3]], b[:, [1, 3]])
            np.testing.assert_array_equal(a[:, [0, 2]], c[:, [0, 2]])
    stream.reset(2)
    stream.reset(np.array([], int))
    stream.reset(rows=[0, 0])
    assert_same(now(stream), (nothing, state))
    for twin in twins:
        assert type(twin) is fastlstm.Stream
        assert_same(now(twin), (nothing, after[1]))
        twin.reset()
        assert_same(now(twin), (nothing, state))
    stream.state = [v.astype("f8") for v in other] if name == "LSTM" else other.tolist()
    assert_same(now(stream), (nothing, other))
    theirs = copy.deepcopy(other)
    stream.state = theirs
    for v in arrays((nothing, theirs)):
        v[...] = 7
    assert_same(now(stream), (nothing, other))
    stream.step(x[0])
    stream.reset()
    assert_same(now(stream), (nothing, other))


def test_streams_are_independent_and_take_new_weights():
    layer, new = fastlstm.LSTM(I, H, seed=6), fastlstm.LSTM(I, H, seed=7)
    x = np.random.default_rng(6).normal(size=(2, 1, I)).astype("f4")
    stream, other = layer.stream(), layer.stream()
    other.step(x[1])
    stream.step(x[0])
    layer.load_state_dict(new.state_dict())
    wanted, state = new(x[1:], fastlstm.LSTM(I, H, seed=6)(x[:1])[1])
    assert_same((stream.step(x[1]), stream.state), (wanted[0], state))


# --- threads ------------------------------------------------------------------------------------------------


def test_new_weights_are_never_torn():
    a, b = (fastlstm.LSTM(I, 24, 3, seed=s) for s in (1, 2))
    x = np.random.default_rng(6).normal(size=(300, 2, I)).astype("f4")
    wanted = {a(x)[0].tobytes(), b(x)[0].tobytes()}
    layer, sets = fastlstm.LSTM(I, 24, 3, seed=1), [a.state_dict(), b.state_dict()]
    wrong, seen, done = [], set(), threading.Event()

    def call():
        while not done.is_set():
            bits = layer(x)[0].tobytes()
            seen.add(bits)
            if bits not in wanted:
                wrong.append(bits)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for k in range(200):
        layer.load_state_dict(sets[k % 2])
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert seen


def test_num_threads():
    before = fastlstm.get_num_threads()
    assert before >= 1
    try:
        fastlstm.set_num_threads(np.int32(3))
        assert fastlstm.get_num_threads() == 3
    finally:
        fastlstm.set_num_threads(before)


def test_show_config(capsys):
    config = fastlstm.show_config(mode="dicts")
    assert config["fastlstm"] == fastlstm.__version__
    assert config["numpy"] == np.__version__
    assert config["cpu_path"] in config["cpu_paths"]
    assert config["int8_path"] in config["int8_paths"]
    assert config["num_threads"] == fastlstm.get_num_threads()
    assert capsys.readouterr().out == ""
    assert fastlstm.show_config() is None
    assert f"cpu_path: {config['cpu_path']}\n" in capsys.readouterr().out
    with pytest.raises(ValueError, match="mode"):
        fastlstm.show_config("yaml")
