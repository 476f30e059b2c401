"""The forward pass against the reference in float64: every cell, option, shape; and against PyTorch.

Tolerances are those that the project promises: 2e-6·max(1, |v|) in float32 with PyTorch's default weights and
bounded activations, 1e-13 likewise in float64.
"""

import itertools

import numpy as np
import pytest

import fastlstm
from fastlstm import reference

TOLERANCE = {"float32": 2e-6, "float64": 1e-13}

LSTM_KINDS = [{}, {"peepholes": True}, {"coupled_gates": True}, {"coupled_gates": True, "peepholes": True}]
CELLS = [
    *[("LSTM", kind) for kind in LSTM_KINDS],
    ("LSTM", {"proj_size": 0.5}),
    ("LSTM", {"proj_size": 0.5, "peepholes": True, "clip": 0.7}),
    ("LSTM", {"forget_gate": False}),
    ("LSTM", {"forget_gate": False, "peepholes": True, "proj_size": 0.5}),
    ("LSTM", {"clip": 0.3}),
    ("LSTM", {"bias": False}),
    ("GRU", {}),
    ("GRU", {"bias": False}),
    ("GRU", {"clip": 0.3}),
    ("GRU", {"reset_after": False}),
    ("GRU", {"reset_after": False, "bias": False, "clip": 0.3}),
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
    ("RNN", {"clip": 0.3, "bias": False}),
    ("GatedRNN", {}),
    ("GatedRNN", {"bias": False, "clip": 0.3}),
]
STRUCTURES = [
    {},
    {"num_layers": 3},
    {"bidirectional": True},
    {"bidirectional": True, "num_layers": 2},
    {"reverse": True, "num_layers": 2},
]
DTYPES = ["float32", "float64"]


def name_of(value):
    if isinstance(value, tuple):
        return "-".join([value[0], *map(name_of, [value[1]])]).rstrip("-")
    return ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else None


each_cell = pytest.mark.parametrize("cell", CELLS, ids=name_of)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def pair(cell, sizes, dtype, seed=1, **more):
    """The layer and the reference in float64, with the same parameters."""
    name, options = cell
    options = {**options, **more}
    if options.get("proj_size") == 0.5:
        options["proj_size"] = sizes[1] // 2
    fast = getattr(fastlstm, name)(*sizes, dtype=dtype, seed=seed, **options)
    oracle = getattr(reference, name)(*sizes, **options, dtype="float64")
    oracle.load_state_dict(fast.state_dict())
    return fast, oracle


def numbers(layer, steps, batch, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(steps, batch, layer.input_size)).astype(layer.dtype)
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = [getattr(layer, "proj_size", 0) or layer.hidden_size, layer.hidden_size]
    state = tuple(rng.normal(size=(rows, batch, n)).astype(layer.dtype) for n in sizes)
    return x, state if isinstance(layer, fastlstm.LSTM) else state[0]


def flat(result):
    output, state = result
    return [output, *(state if isinstance(state, tuple) else (state,))]


def assert_close(got, wanted, tolerance):
    for name, a, b in zip("yhc", flat(got), flat(wanted), strict=False):
        assert a.shape == b.shape
        error = np.abs(a - b) / np.maximum(1, np.abs(b))
        assert not np.isnan(a).any() and error.max(initial=0) <= tolerance, f"{name}: {error.max()}"


@each_cell
@pytest.mark.parametrize("structure", STRUCTURES, ids=name_of)
@each_dtype
def test_against_the_reference(cell, structure, dtype):
    for sizes, batch in itertools.product(((3, 1), (1, 7), (5, 33)), (1, 2, 5)):
        fast, oracle = pair(cell, sizes, dtype, **structure)
        steps = 6
        x, state = numbers(fast, steps, batch)
        ragged = np.random.default_rng(batch).integers(0, steps + 1, batch)
        for lengths in (None, ragged):
            wanted = oracle(x, state, lengths=lengths)
            assert_close(fast(x, state, lengths=lengths), wanted, TOLERANCE[dtype])
        assert_close(fast(x), oracle(x), TOLERANCE[dtype])


@each_cell
@each_dtype
def test_many_steps(cell, dtype):
    """T = 100; and every number of rows that a tile may have."""
    if cell[1].get("forget_gate") is False:
        pytest.skip("c grows: see test_the_constant_error_carousel")
    fast, oracle = pair(cell, (9, 40), dtype)
    x, state = numbers(fast, 100, 3)
    assert_close(fast(x, state), oracle(x, state), TOLERANCE[dtype])
    for batch in (6, 7, 13, 27, 64, 130):
        x, state = numbers(fast, 3, batch)
        assert_close(fast(x, state), oracle(x, state), TOLERANCE[dtype])


@each_dtype
@pytest.mark.parametrize("options", [{}, {"peepholes": True}], ids=name_of)
def test_the_constant_error_carousel(options, dtype):
    """Without a forget gate c never decays, and neither does any rounding of it: each of T additions to a c
    of that size leaves up to half a unit of its last place, whoever adds. NumPy in float32 errs as much."""
    fast, oracle = pair(("LSTM", {"forget_gate": False, **options}), (9, 40), dtype)
    x, state = numbers(fast, 20, 3)
    assert_close(fast(x, state), oracle(x, state), TOLERANCE[dtype])
    steps = 200
    x, state = numbers(fast, steps, 3)
    wanted = oracle(x, state)
    size = max(1, np.abs(wanted[1][1]).max())
    assert_close(fast(x, state), wanted, TOLERANCE[dtype] + steps * np.finfo(dtype).eps / 2 * size)


@pytest.mark.parametrize(("name", "batch"), [("LSTM", 2), ("GRU", 1), ("RNN", 1), ("GatedRNN", 1)])
def test_a_large_layer(name, batch):
    """H = 1024, T = 100: what the tolerance is promised for."""
    fast, oracle = pair((name, {}), (64, 1024), "float32")
    x, state = numbers(fast, 100 if name == "LSTM" else 30, batch)
    assert_close(fast(x, state), oracle(x, state), TOLERANCE["float32"])


@each_dtype
@pytest.mark.parametrize("kind", LSTM_KINDS, ids=name_of)
def test_cell_states_in_the_thousands(kind, dtype):
    """Trained initial states may be large. A peephole makes a gate of them, with the absolute error that a
    number of that size has: NumPy in the same dtype has it too."""
    fast, oracle = pair(("LSTM", kind), (5, 33), dtype)
    numpy = reference.LSTM(5, 33, dtype=dtype, **kind)
    numpy.load_state_dict(fast.state_dict())
    x, (h, c) = numbers(fast, 9, 4)
    c *= np.linspace(1000, 9000, c.size).reshape(c.shape).astype(dtype)
    wanted = oracle(x, (h, c))
    error = max(np.abs(a - b).max() for a, b in zip(flat(numpy(x, (h, c))), flat(wanted), strict=True))
    tolerance = 2 * TOLERANCE[dtype] + (4 * error if kind.get("peepholes") else 0)
    assert_close(fast(x, (h, c)), wanted, tolerance)


# --- the edges ----------------------------------------------------------------------------------------------


@each_cell
@pytest.mark.parametrize("structure", STRUCTURES[::2], ids=name_of)
def test_nothing_to_do(cell, structure):
    fast, _ = pair(cell, (3, 7), "float32", **structure)
    for steps, batch in ((0, 4), (5, 0), (0, 0)):
        x, state = numbers(fast, steps, batch)
        output, *after = flat(fast(x, state))
        assert output.shape[:2] == (steps, batch) and not output.any()
        for a, b in zip(after, flat((None, state))[1:], strict=True):
            assert a.tobytes() == b.tobytes() and a is not b
    x, state = numbers(fast, 5, 3)
    output, *after = flat(fast(x, state, lengths=[0, 0, 0]))
    assert not output.any() and not np.signbit(output).any()
    for a, b in zip(after, flat((None, state))[1:], strict=True):
        assert a.tobytes() == b.tobytes()


@each_cell
@pytest.mark.parametrize("where", ["x", "h", "c"])
def test_nan_stays_in_its_sequence_and_is_never_swallowed(cell, where):
    if where == "c" and cell[0] != "LSTM":
        pytest.skip("has no c")
    fast, _ = pair(cell, (5, 9), "float32")
    steps, batch, b, begin = 8, 4, 2, 3
    x, state = numbers(fast, steps, batch)
    wanted, *wanted_after = flat(fast(x, state))
    if where == "x":
        x[begin, b, 1] = np.nan
        first = begin
    else:
        (state if isinstance(state, np.ndarray) else state["hc".index(where)])[0, b, :] = np.nan
        first = 0
    output, *after = flat(fast(x, state))
    others = [k for k in range(batch) if k != b]
    assert output[:, others].tobytes() == wanted[:, others].tobytes()
    assert output[:first, b].tobytes() == wanted[:first, b].tobytes()
    assert np.isnan(output[first:, b]).all()
    for a, w in zip(after, wanted_after, strict=True):
        assert a[:, others].tobytes() == w[:, others].tobytes() and np.isnan(a[:, b]).all()


@each_cell
@pytest.mark.parametrize("structure", STRUCTURES, ids=name_of)
def test_padding_is_never_read_and_zero_in_the_output(cell, structure):
    fast, _ = pair(cell, (5, 9), "float32", **structure)
    lengths = [4, 0, 7, 1]
    x, state = numbers(fast, 7, 4)
    wanted = flat(fast(x, state, lengths=lengths))
    for filling in (np.nan, np.inf, 3e38):
        for b, n in enumerate(lengths):
            x[n:, b] = filling
        for got, w in zip(flat(fast(x, state, lengths=lengths)), wanted, strict=True):
            assert got.tobytes() == w.tobytes()
    for b, n in enumerate(lengths):
        assert not wanted[0][n:, b].any() and not np.signbit(wanted[0][n:, b]).any()


@each_dtype
@pytest.mark.parametrize("big", [1e30, np.inf])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "GatedRNN"])
def test_saturation(name, big, dtype):
    """±inf and 1e30 give what the mathematics gives. One input feature: no inf - inf in a sum."""
    for cell in (c for c in CELLS if c[0] == name and c[1].get("nonlinearity") != "relu"):
        fast, oracle = pair(cell, (1, 9), dtype)
        x, state = numbers(fast, 6, 3)
        x[2] = big
        x[4, 1] = -big
        with np.errstate(all="ignore"):
            wanted = oracle(x, state)
        assert all(np.isfinite(w).all() for w in flat(wanted))
        assert_close(fast(x, state), wanted, TOLERANCE[dtype])


def test_relu_grows_as_it_must():
    fast, oracle = pair(("RNN", {"nonlinearity": "relu"}), (1, 4), "float64")
    x, state = numbers(fast, 4, 2)
    x[1] = 1e30
    wanted = oracle(x, state)
    assert_close(fast(x, state), wanted, 1e-13)
    assert np.abs(wanted[0]).max() > 1e25


@each_cell
def test_subnormal_numbers_count_as_zero(cell):
    fast, _ = pair(cell, (5, 9), "float32")
    x, state = numbers(fast, 4, 2)
    x[1] = 0
    wanted = flat(fast(x, state))
    x[1] = 1e-40
    for got, w in zip(flat(fast(x, state)), wanted, strict=True):
        assert np.array_equal(got, w)
    assert np.float32(1e-40) * np.float32(1) != 0  # and not outside of the call


def test_the_parity_of_a_run_of_ones():
    """The scalar LSTM of MITx 6.86x, homework 3."""
    lstm = fastlstm.LSTM(1, 1)
    zero = [0.0]
    lstm.load_state_dict({
        "weight_ih_l0": np.array([[100.0], zero, [50.0], [100.0]]),
        "weight_hh_l0": np.array([zero, zero, [-100.0], zero]),
        "bias_ih_l0": np.array([100.0, -100.0, 0.0, 0.0]),
        "bias_hh_l0": np.zeros(4),
    })  # fmt: skip
    for x, wanted in (([0, 0, 1, 1, 1, 0], [0, 0, 1, -1, 1, 0]), ([1, 1, 0, 1, 1], [1, -1, 0, 1, -1])):
        output, _ = lstm(np.array(x, "f4").reshape(-1, 1, 1))
        h = output.ravel()
        assert np.array_equal(np.where(np.abs(h) <= 0.5, 0, np.rint(h)), wanted)


# --- PyTorch ------------------------------------------------------------------------------------------------

TORCH = [
    ("LSTM", {}), ("LSTM", {"bias": False}), ("LSTM", {"proj_size": 0.5}), ("GRU", {}),
    ("GRU", {"bias": False}), ("RNN", {}), ("RNN", {"nonlinearity": "relu"}),
]  # fmt: skip


@pytest.mark.parametrize("cell", TORCH, ids=name_of)
@pytest.mark.parametrize("structure", STRUCTURES[:4], ids=name_of)
@each_dtype
def test_torch(cell, structure, dtype):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    name, options = cell
    for (inputs, hidden), batch_first in itertools.product(((5, 33), (3, 2)), (False, True)):
        options = {**options, **({"proj_size": hidden // 2} if "proj_size" in cell[1] else {})}
        torch.manual_seed(0)
        theirs = getattr(torch.nn, name)(
            inputs, hidden, **options, **structure, batch_first=batch_first, dtype=getattr(torch, dtype)
        )
        ours = getattr(fastlstm, name)(
            inputs, hidden, **options, **structure, batch_first=batch_first, dtype=dtype
        )
        ours.load_state_dict(theirs.state_dict())
        x, state = numbers(ours, 7, 4)
        if batch_first:
            x = np.ascontiguousarray(x.swapaxes(0, 1))
        lengths = np.array([3, 7, 1, 5])  # PyTorch takes no length 0
        tensors = tuple(torch.from_numpy(s) for s in state) if name == "LSTM" else torch.from_numpy(state)
        tolerance = 2 * TOLERANCE[dtype] * (5 if "nonlinearity" in options else 1)  # both of them err
        with torch.no_grad():
            output, after = theirs(torch.from_numpy(x), tensors)
            assert_close(ours(x, state), as_numpy(output, after), tolerance)
            packed = torch.nn.utils.rnn.pack_padded_sequence(
                torch.from_numpy(x), torch.from_numpy(lengths), batch_first=batch_first, enforce_sorted=False
            )
            output, after = theirs(packed, tensors)
            output, _ = torch.nn.utils.rnn.pad_packed_sequence(
                output, batch_first=batch_first, total_length=7
            )
            assert_close(ours(x, state, lengths=lengths), as_numpy(output, after), tolerance)
            one = x[0] if batch_first else x[:, 0]
            alone = tuple(t[:, 0] for t in tensors) if name == "LSTM" else tensors[:, 0]
            output, after = theirs(torch.from_numpy(one), alone)
            mine = tuple(s[:, 0] for s in state) if name == "LSTM" else state[:, 0]
            assert_close(ours(one, mine), as_numpy(output, after), tolerance)


def as_numpy(output, after):
    return output.numpy(), tuple(a.numpy() for a in after) if isinstance(after, tuple) else after.numpy()
