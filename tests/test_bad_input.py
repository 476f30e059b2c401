"""Bad input raises TypeError or ValueError that names the argument, what came and what was wanted."""

import warnings

import numpy as np
import pytest

import fastlstm

CELLS = [fastlstm.LSTM, fastlstm.GRU, fastlstm.RNN, fastlstm.GatedRNN]
NAN, INF = float("nan"), float("inf")

# option, value, error, what its message must hold besides the option's name
COMMON = [
    *(
        case
        for name in ("input_size", "hidden_size", "num_layers")
        for case in (
            (name, 0, ValueError, "got int 0"),
            (name, -1, ValueError, "got int -1"),
            (name, 3.0, TypeError, "got float 3.0"),
            (name, True, TypeError, "got bool True"),
            (name, np.True_, TypeError, "got bool"),
            (name, "3", TypeError, "got str '3'"),
            (name, None, TypeError, "got NoneType None"),
            (name, np.float32(3), TypeError, "got float32"),
            (name, [3], TypeError, "got list"),
            (name, np.array([3]), TypeError, "got ndarray"),
        )
    ),
    ("input_size", 2**62, ValueError, "more bytes than"),
    ("input_size", 10**30, ValueError, "more bytes than"),
    ("hidden_size", 2**31, ValueError, "more bytes than"),
    ("hidden_size", 2**64, ValueError, "more bytes than"),
    ("num_layers", 2**40, ValueError, "1..1024"),
    *(
        (name, value, TypeError, "must be a bool, got")
        for name in ("bias", "batch_first", "bidirectional", "reverse")
        for value in (1, 0, None, "yes", 1.0)
    ),
    ("dropout", -0.1, ValueError, "0..1"),
    ("dropout", 1.5, ValueError, "0..1"),
    ("dropout", NAN, ValueError, "nan"),
    ("dropout", True, TypeError, "got bool"),
    ("dropout", "0", TypeError, "got str"),
    ("dropout", None, TypeError, "got NoneType"),
    ("dtype", "float16", ValueError, "'float32' or 'float64'"),
    ("dtype", "int32", ValueError, "'float32' or 'float64'"),
    ("dtype", ">f4", ValueError, "'float32' or 'float64'"),
    ("dtype", "no such", TypeError, "'float32' or 'float64'"),
    ("dtype", None, TypeError, "NoneType"),
    ("dtype", 3, TypeError, "got int 3"),
    ("clip", 0, ValueError, "above 0"),
    ("clip", -1.0, ValueError, "above 0"),
    ("clip", NAN, ValueError, "nan"),
    ("clip", INF, ValueError, "inf"),
    ("clip", 1e-46, ValueError, "normal float32"),
    ("clip", 1e39, ValueError, "normal float32"),
    ("clip", True, TypeError, "got bool"),
    ("clip", "1", TypeError, "got str"),
    ("seed", -1, ValueError, "got int -1"),
    ("seed", 1.5, TypeError, "got float"),
    ("seed", "x", TypeError, "got str"),
    ("no_such", 1, TypeError, ""),
]
OWN = {
    fastlstm.LSTM: [
        ("proj_size", 5, ValueError, "0..4"),
        ("proj_size", 10, ValueError, "0..4"),
        ("proj_size", -1, ValueError, "got int -1"),
        ("proj_size", 1.0, TypeError, "got float"),
        ("proj_size", False, TypeError, "got bool"),
        ("peepholes", 1, TypeError, "a bool"),
        ("forget_gate", None, TypeError, "a bool"),
        ("coupled_gates", "no", TypeError, "a bool"),
        ("reset_after", True, TypeError, ""),
        ("nonlinearity", "tanh", TypeError, ""),
        ("activations", "tanh", TypeError, "gates, candidate, output"),
        ("activations", ("tanh",), ValueError, "gates, candidate, output"),
        ("activations", ("tanh",) * 4, ValueError, "got 4"),
        ("activations", 3, TypeError, "got int"),
        ("activations", {"tanh", "relu", "elu"}, TypeError, "got set"),
        (
            "activations",
            ("sigmoid", "tanh", "Tanh"),
            ValueError,
            "(output): str 'Tanh' is unknown, wanted one of sigm",
        ),
        ("activations", ("sigmoid", 5, "tanh"), TypeError, "(candidate): wanted a name"),
        ("activations", ("sigmoid", (), "tanh"), TypeError, "(candidate): wanted a name"),
        ("activations", (("elu", 1, None, None), "tanh", "tanh"), TypeError, "(gates): wanted a name"),
        (
            "activations",
            ("sigmoid", ("tanh", 1.0), "tanh"),
            ValueError,
            "(candidate): tanh has no alpha, got float 1.0",
        ),
        ("activations", ("sigmoid", ("tanh", None, 1), "tanh"), ValueError, "(candidate): tanh has no beta"),
        ("activations", (("leaky_relu", 0.1, 0.2), "tanh", "tanh"), ValueError, "leaky_relu has no beta"),
        ("activations", (("elu", NAN), "tanh", "tanh"), ValueError, "alpha of elu"),
        ("activations", (("affine", 1, INF), "tanh", "tanh"), ValueError, "beta of affine"),
        ("activations", (("elu", "1"), "tanh", "tanh"), TypeError, "alpha of elu"),
        ("activations", (("elu", True), "tanh", "tanh"), TypeError, "alpha of elu"),
    ],
    fastlstm.GRU: [
        ("reset_after", 1, TypeError, "a bool"),
        ("proj_size", 2, TypeError, ""),
        ("peepholes", False, TypeError, ""),
        ("forget_gate", True, TypeError, ""),
        ("activations", ("sigmoid", "tanh", "tanh"), ValueError, "gates, candidate"),
    ],
    fastlstm.RNN: [
        ("nonlinearity", "sigmoid", ValueError, "'tanh' or 'relu'"),
        ("nonlinearity", None, TypeError, "'tanh' or 'relu'"),
        ("activations", ("tanh", "tanh"), ValueError, "tanh has no alpha, got str 'tanh'"),
        ("activations", (("tanh",), ("tanh",)), ValueError, "got 2"),
        ("activations", (), ValueError, "got 0"),
        ("activations", "swish", ValueError, "'swish' is unknown"),
        ("activations", ("relu", 1), ValueError, "relu has no alpha"),
    ],
    fastlstm.GatedRNN: [("activations", "tanh", TypeError, "gates, candidate")],
}


@pytest.mark.parametrize("cls", CELLS)
def test_options(cls):
    for name, value, error, part in COMMON + OWN[cls]:
        with pytest.raises(error) as caught:
            cls(**{"input_size": 3, "hidden_size": 5, name: value})
        assert name in str(caught.value), (name, value)
        assert part in str(caught.value), (name, value, str(caught.value))


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (fastlstm.LSTM, {"forget_gate": False, "coupled_gates": True}),
        *((cls, {"reverse": True, "bidirectional": True}) for cls in CELLS),
        (fastlstm.RNN, {"nonlinearity": "relu", "activations": "tanh"}),
    ],
)
def test_options_that_exclude_each_other(cls, options):
    with pytest.raises(ValueError) as caught:
        cls(3, 5, **options)
    assert all(name in str(caught.value) for name in options)


def test_sizes_that_are_missing_or_positional():
    with pytest.raises(TypeError, match="hidden_size"):
        fastlstm.GRU(3)
    with pytest.raises(TypeError, match="bias must be a bool"):
        fastlstm.RNN(3, 5, 1, "relu")  # PyTorch's place for the nonlinearity
    with pytest.raises(TypeError):
        fastlstm.LSTM(3, 5, 1, True, False, 0.0, False, 0, "float64")


class Broken:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("no values today")


@pytest.mark.parametrize("cls", CELLS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    ("x", "error", "part"),
    [
        (np.zeros((4, 2, 4)), ValueError, "I = 3, got shape (4, 2, 4)"),
        (np.zeros((4, 2, 4), "f4"), ValueError, "I = 3, got shape (4, 2, 4)"),
        (np.zeros((4, 2, 2), "f4"), ValueError, "I = 3, got shape (4, 2, 2)"),
        (np.zeros((4, 2)), ValueError, "got shape (4, 2)"),
        (np.zeros(3), ValueError, "got shape (3,)"),
        (np.zeros(()), ValueError, "got shape ()"),
        (np.zeros((1, 1, 1, 3)), ValueError, "got shape (1, 1, 1, 3)"),
        (np.zeros((4, 2, 3), "f4")[..., :2], ValueError, "got shape (4, 2, 2)"),
        (5.0, ValueError, "got shape ()"),
        (np.zeros((4, 2, 3), "c8"), TypeError, "complex64"),
        (np.zeros((4, 2, 3), object), TypeError, "object"),
        (np.zeros((4, 2, 3), "U1"), TypeError, "<U1"),
        (np.zeros((4, 2, 3), "S1"), TypeError, "|S1"),
        (np.zeros((4, 2, 3), "M8[s]"), TypeError, "datetime64"),
        (np.zeros((4, 2, 3), "m8[s]"), TypeError, "timedelta64"),
        (np.zeros((4, 2, 3), "V4"), TypeError, "V4"),
        (np.zeros((4, 2), [("a", "f4", 3)]), TypeError, "('a'"),
        ("abc", TypeError, "<U3"),
        (b"abc", TypeError, "|S3"),
        (None, TypeError, "object"),
        ({"a": 1}, TypeError, "object"),
        ([[1j] * 3] * 4, TypeError, "complex128"),
        ([[[0, 0, 2**70]]], TypeError, "object"),
        ([[[0, 0, 0]], [[0, 0]]], ValueError, "inhomogeneous"),
        (np.ma.masked_array(np.zeros((4, 2, 3)), np.ones((4, 2, 3))), TypeError, "MaskedArray"),
        (Broken(), TypeError, "no values today"),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else None,
)
def test_x(cls, batch_first, x, error, part):
    with pytest.raises(error) as caught:
        cls(3, 5, batch_first=batch_first)(x)
    message = str(caught.value)
    assert message.startswith("x must ")
    assert part in message
    if "I = 3" in message:
        assert ("[B, T, I]" if batch_first else "[T, B, I]") in message


X = np.zeros((4, 2, 3), "f4")
GOOD = np.zeros((2, 2, 5), "f4")


@pytest.mark.parametrize("cls", [fastlstm.GRU, fastlstm.RNN, fastlstm.GatedRNN])
@pytest.mark.parametrize(
    ("state", "error", "part"),
    [
        (np.zeros((1, 2, 5), "f4"), ValueError, "must have shape (2, 2, 5), got (1, 2, 5)"),
        (np.zeros((2, 1, 5), "f4"), ValueError, "must have shape (2, 2, 5), got (2, 1, 5)"),
        (np.zeros((2, 5), "f4"), ValueError, "got (2, 5)"),
        ((GOOD,), ValueError, "got (1, 2, 2, 5)"),
        ((GOOD, GOOD), ValueError, "got (2, 2, 2, 5)"),
        (GOOD.astype("c8"), TypeError, "complex64"),
        (GOOD.astype(object), TypeError, "object"),
        ("zeros", TypeError, "<U5"),
        (0, ValueError, "got ()"),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else None,
)
def test_state(cls, state, error, part):
    layer = cls(3, 5, 2)
    with pytest.raises(error) as caught:
        layer(X, state)
    assert str(caught.value).startswith("state must ")
    assert part in str(caught.value)
    with pytest.raises(error, match="state must "):
        layer.stream(2, state)
    with pytest.raises(error, match="state must "):
        layer.stream(2).state = state


@pytest.mark.parametrize(
    ("state", "error", "part"),
    [
        (GOOD, TypeError, "state must be a pair (h, c), got a ndarray"),
        (np.stack([GOOD, GOOD]), TypeError, "state must be a pair (h, c), got a ndarray"),
        ((GOOD,), TypeError, "state must be a pair (h, c), got a tuple of 1"),
        ([GOOD] * 3, TypeError, "state must be a pair (h, c), got a list of 3"),
        ("hc", TypeError, "state must be a pair (h, c), got a str"),
        ({"h": GOOD, "c": GOOD}, TypeError, "got a dict"),
        ((GOOD, GOOD), ValueError, "state (h) must have shape (2, 2, 4), got (2, 2, 5)"),
        ((GOOD[..., :4], GOOD[..., :4]), ValueError, "state (c) must have shape (2, 2, 5), got (2, 2, 4)"),
        ((GOOD[..., :4], GOOD[:1]), ValueError, "state (c) must have shape (2, 2, 5), got (1, 2, 5)"),
        ((None, GOOD), TypeError, "state (h) must hold real numbers"),
        ((GOOD[..., :4], None), TypeError, "state (c) must hold real numbers"),
        ((GOOD[..., :4], GOOD * 1j), TypeError, "state (c) must hold real numbers, got dtype complex64"),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else None,
)
def test_lstm_state(state, error, part):
    layer = fastlstm.LSTM(3, 5, 2, proj_size=4)
    for use in (
        lambda: layer(X, state),
        lambda: layer.stream(2, state),
        lambda: setattr(layer.stream(2), "state", state),
    ):
        with pytest.raises(error) as caught:
            use()
        assert part in str(caught.value)


def test_state_of_an_unbatched_call():
    layer = fastlstm.GRU(3, 5, 2)
    with pytest.raises(ValueError, match=r"state must have shape \(2, 5\), got \(2, 1, 5\)"):
        layer(X[:, 0], np.zeros((2, 1, 5)))
    with pytest.raises(ValueError, match=r"state must have shape \(2, 1, 5\), got \(2, 5\)"):
        layer(X[:, :1], np.zeros((2, 5)))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    ("lengths", "error", "part"),
    [
        ([1, 5], ValueError, "0..4, got 5 at 1"),
        ([-1, 2], ValueError, "0..4, got -1 at 0"),
        (np.array([1, 2**64 - 1], "u8"), ValueError, "0..4, got 18446744073709551615 at 1"),
        (np.array([1, 255], "u1"), ValueError, "0..4, got 255 at 1"),
        ([1.0, 2.0], TypeError, "float64"),
        (np.array([1, 2], "f4"), TypeError, "float32"),
        ([True, False], TypeError, "bool"),
        (["1", "2"], TypeError, "<U1"),
        ([2**70, 1], TypeError, "object"),
        ([None, 1], TypeError, "object"),
        ([1j, 1], TypeError, "complex128"),
        (np.zeros(0), TypeError, "float64"),
        ([1], ValueError, "shape (2,), one for each sequence of the batch, got (1,)"),
        ([], ValueError, "got (0,)"),
        ([1, 2, 3], ValueError, "got (3,)"),
        ([[1, 2]], ValueError, "got (1, 2)"),
        (3, ValueError, "got ()"),
        ([[1], [1, 2]], ValueError, "inhomogeneous"),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else None,
)
def test_lengths(batch_first, lengths, error, part):
    layer = fastlstm.LSTM(3, 5, batch_first=batch_first)
    with pytest.raises(error) as caught:
        layer(X.swapaxes(0, 1) if batch_first else X, lengths=lengths)
    assert str(caught.value).startswith("lengths must ")
    assert part in str(caught.value)


def test_lengths_of_an_unbatched_call():
    with pytest.raises(ValueError, match="lengths must be None for an unbatched x"):
        fastlstm.GRU(3, 5)(X[:, 0], lengths=[2])


@pytest.mark.parametrize("cls", CELLS)
def test_stream_arguments(cls):
    layer = cls(3, 5)
    for value, error in (
        (0, ValueError),
        (-1, ValueError),
        (2**62, ValueError),
        (1.0, TypeError),
        (True, TypeError),
        ("1", TypeError),
    ):
        with pytest.raises(error, match="batch_size must be an int"):
            layer.stream(value)
    for name in ("reverse", "bidirectional"):
        with pytest.raises(ValueError, match=f"{name}=True cannot stream"):
            cls(3, 5, **{name: True}).stream()
    stream = layer.stream(2)
    cases = (
        (2, ValueError), ([0, -1], ValueError), ([[0]], ValueError), (0.0, TypeError),
        ([True, False], TypeError), ("all", TypeError), (np.array([], float), TypeError),
    )  # fmt: skip
    for rows, error in cases:
        with pytest.raises(error, match="rows must be"):
            stream.reset(rows)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_step_arguments(dtype):
    layer = fastlstm.LSTM(3, 5, proj_size=4, dtype=dtype)
    stream = layer.stream(2)
    before = [v.copy() for v in stream.state]
    x, y = np.ones((2, 3), dtype), np.zeros((2, 4), dtype)
    for bad in (
        x[:1],
        x[:, :2],
        x[0],
        x[None],
        np.ones((3, 2), dtype),
        1.0,
        x.astype("c8"),
        x.astype(object),
        "x",
        None,
    ):
        with pytest.raises((TypeError, ValueError), match="^x"):
            stream.step(bad)
    frozen = y.copy()
    frozen.flags.writeable = False
    other = np.dtype("float32" if dtype == "float64" else "float64")
    for bad in (
        y[:1],
        y[:, :3],
        y[0],
        np.zeros((2, 5), dtype),
        np.zeros((4, 2), dtype).T,
        y.astype(other),
        frozen,
        y.tolist(),
    ):
        with pytest.raises((TypeError, ValueError), match="^out"):
            stream.step(x, out=bad)
    room = np.zeros(16, dtype)
    with pytest.raises(ValueError, match="overlap"):
        stream.step(room[:6].reshape(2, 3), out=room[4:12].reshape(2, 4))
    for a, b in zip(stream.state, before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("given", "error", "part"),
    [
        ([1, 2], TypeError, "state_dict must map names to arrays, got list"),
        (None, TypeError, "state_dict must map names to arrays, got NoneType"),
        (
            {"weight_ih_l0": np.zeros((20, 3), "c8")},
            TypeError,
            "state_dict['weight_ih_l0'] must hold real numbers",
        ),
        ({"weight_ih_l0": "random"}, TypeError, "state_dict['weight_ih_l0'] must hold real numbers"),
        ({"weight_ih_l0": [[1], [1, 2]]}, ValueError, "state_dict['weight_ih_l0'] must be an array"),
        ({}, ValueError, "missing: weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0"),
        ({3: 4}, ValueError, "unexpected: 3"),
    ],
)
def test_state_dict(given, error, part):
    with pytest.raises(error) as caught:
        fastlstm.LSTM(3, 5).load_state_dict(given)
    assert part in str(caught.value)


def test_strict_and_threads():
    layer = fastlstm.LSTM(3, 5)
    with pytest.raises(TypeError, match="strict must be a bool"):
        layer.load_state_dict(layer.state_dict(), strict="no")
    for value, error in (
        (0, ValueError),
        (-2, ValueError),
        (1.0, TypeError),
        (True, TypeError),
        (257, ValueError),
    ):
        with pytest.raises(error, match=r"n must be an int in 1\.\.256"):
            fastlstm.set_num_threads(value)


def test_dropout_needs_layers():
    """As PyTorch, which warns too."""
    with pytest.warns(UserWarning, match="dropout=0.5 does nothing with num_layers=1"):
        assert fastlstm.GRU(3, 4, dropout=0.5).dropout == 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fastlstm.GRU(3, 4, 2, dropout=0.5).dropout == 0.5
