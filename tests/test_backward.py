"""Gradients of every cell, option and shape: against the reference in float64, against finite differences of
the forward pass, against PyTorch; and what a tape promises besides.

An error counts relative to the largest entry of its array: at most 1e-10 in float64, 1e-5 in float32.
"""

import copy
import gc
import itertools
import threading
import warnings

import numpy as np
import pytest

import fastlstm
from fastlstm import reference

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
DTYPES = list(TOLERANCE)
SIZES = ((3, 1), (1, 7), (5, 33))  # I, H

CELLS = [
    ("LSTM", {}),
    ("LSTM", {"bias": False}),
    ("LSTM", {"proj_size": 0.5}),
    ("LSTM", {"peepholes": True}),
    ("LSTM", {"forget_gate": False}),
    ("LSTM", {"coupled_gates": True}),
    ("LSTM", {"clip": 0.3}),
    ("LSTM", {"coupled_gates": True, "peepholes": True, "bias": False}),
    ("LSTM", {"forget_gate": False, "peepholes": True, "proj_size": 0.5}),
    ("LSTM", {"proj_size": 0.5, "peepholes": True, "clip": 0.7}),
    ("LSTM", {"coupled_gates": True, "proj_size": 0.5, "peepholes": True, "clip": 0.5}),
    ("LSTM", {"activations": ("hard_sigmoid", "softsign", ("scaled_tanh", 1.2, 0.7)), "peepholes": True}),
    ("GRU", {}),
    ("GRU", {"bias": False}),
    ("GRU", {"clip": 0.3}),
    ("GRU", {"activations": ("hard_sigmoid", "elu")}),
    ("GRU", {"reset_after": False}),
    ("GRU", {"reset_after": False, "bias": False, "clip": 0.3}),
    ("GRU", {"reset_after": False, "activations": ("softsign", ("leaky_relu", 0.3))}),
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
    ("RNN", {"clip": 0.3, "bias": False}),
    ("GatedRNN", {}),
    ("GatedRNN", {"bias": False, "clip": 0.3}),
]
FEW = [CELLS[k] for k in (0, 9, 10, 12, 16, 19, 22)]  # of every kind
STRUCTURES = [
    {},
    {"num_layers": 3, "dropout": 0.3},
    {"bidirectional": True},
    {"bidirectional": True, "num_layers": 2, "dropout": 0.4, "batch_first": True},
    {"reverse": True, "num_layers": 2},
    {"reverse": True, "batch_first": True},
]
STACKS = [STRUCTURES[k] for k in (0, 3, 4)]
ACTIVATIONS = [  # with parameters that are not the defaults
    "sigmoid", "tanh", "relu", ("affine", 0.7, -0.2), ("leaky_relu", 0.3), ("thresholded_relu", 0.2),
    ("scaled_tanh", 1.3, 0.6), ("hard_sigmoid", 0.4, 0.3), ("elu", 0.6), "softsign", "softplus",
]  # fmt: skip


def name_of(value):
    if isinstance(value, tuple):
        return "-".join(name_of(part) for part in value if part != {})
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items()) or "plain"
    return str(value)


each_cell = pytest.mark.parametrize("cell", CELLS, ids=name_of)
few_cells = pytest.mark.parametrize("cell", FEW, ids=name_of)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def fast(name):
    """The class that is tested."""
    return getattr(fastlstm, name)


def make(cell, sizes, dtype, cls=fast, **more):
    """A layer with parameters that both dtypes hold, the same ones for the same options."""
    name, options = cell
    options = {**options, **more}
    if options.get("proj_size") == 0.5:
        options["proj_size"] = sizes[1] // 2
    layer = cls(name)(*sizes, dtype=dtype, **options)
    rng, bound = np.random.default_rng(sizes), 1.2 / np.sqrt(sizes[1])
    drawn = {n: rng.uniform(-bound, bound, v.shape).astype("f4") for n, v in layer.state_dict().items()}
    layer.load_state_dict(drawn)
    return layer


def oracle(name):
    return getattr(reference, name)


def numbers(layer, steps, batch, seed=0):
    """x, state, d_output, d_state: all random, none zero; in numbers that both dtypes hold."""
    rng = np.random.default_rng((steps, batch, seed))
    directions = 2 if layer.bidirectional else 1
    out = getattr(layer, "proj_size", 0) or layer.hidden_size
    widths = (out, layer.hidden_size) if has_c(layer) else (out,)
    shapes = [(layer.num_layers * directions, batch, width) for width in widths]

    def draw(*shape):
        return rng.normal(size=shape).astype("f4").astype(layer.dtype)

    first = (batch, steps) if layer.batch_first else (steps, batch)
    x, d_output = (draw(*first, width) for width in (layer.input_size, directions * out))
    state, d_state = (form(tuple(draw(*shape) for shape in shapes)) for _ in range(2))
    return x, state, d_output, d_state


def has_c(layer):
    return type(layer).__name__ == "LSTM"


def form(state):
    return state if len(state) > 1 else state[0]


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def each_part(act, state):
    """act on h, or on h and c."""
    return form(tuple(act(v) for v in parts(state)))


def collect(tape, grads):
    """All arrays by name, after their kinds and order were seen to."""
    found = {"output": tape.output, "input": grads.input}
    found |= {f"state {n}": v for n, v in zip("hc", parts(tape.state), strict=False)}
    assert isinstance(grads.state, tuple) == isinstance(tape.state, tuple)
    found |= {f"d_state {n}": v for n, v in zip("hc", parts(grads.state), strict=False)}
    return found | grads.parameters


def run(layer, x, state, d_output, d_state, **how):
    tape = layer.record(x, state, **how)
    grads = tape.backward(d_output, d_state)
    assert list(grads.parameters) == list(layer.state_dict())
    found = collect(tape, grads)
    assert {v.dtype for v in found.values()} == {np.dtype(layer.dtype)}
    return found


def assert_close(got, wanted, tolerance):
    """Every array; an error counts relative to the largest entry."""
    assert got.keys() == wanted.keys()
    for name, w in wanted.items():
        g = np.asarray(got[name])
        assert g.shape == w.shape, f"{name} has shape {g.shape}, wanted {w.shape}"
        error, largest = (np.abs(v).max(initial=0) for v in (g.astype("f8") - w, w))
        assert error <= tolerance * largest, f"{name}: off by {error:.3g}, largest entry {largest:.3g}"


def assert_same(got, wanted):
    """Byte for byte."""
    assert got.keys() == wanted.keys()
    for name, w in wanted.items():
        assert got[name].shape == w.shape and got[name].dtype == w.dtype, name
        assert got[name].tobytes() == w.tobytes(), f"{name} has other bits"


def assert_agrees(cell, sizes, steps, batch, cls=fast, dtypes=DTYPES, seed=0, how=None, **more):
    """In both dtypes against the reference in float64, from one set of numbers. Padding is NaN."""
    exact = make(cell, sizes, "float64", oracle, **more)
    given, how = numbers(exact, steps, batch, seed), how or {}
    for b, n in enumerate([] if how.get("lengths") is None else how["lengths"]):
        for v in (given[0], given[2]):
            (v[b, n:] if exact.batch_first else v[n:, b])[:] = np.nan
    wanted = run(exact, *given, **how)
    for dtype in dtypes:
        layer = make(cell, sizes, dtype, cls, **more)
        x, state, d_output, d_state = given
        lower = [x.astype(dtype), each_part(lambda v, d=dtype: v.astype(d), state), d_output.astype(dtype)]
        lower.append(each_part(lambda v, d=dtype: v.astype(d), d_state))
        assert_close(run(layer, *lower, **how), wanted, TOLERANCE[dtype])


def some_lengths(steps, batch):
    """Random in 0..T, one of them 0 and one T where there is room."""
    lengths = np.random.default_rng((steps, batch)).integers(0, steps + 1, batch)
    lengths[: min(2, batch)] = [steps, 0][: min(2, batch)]
    return lengths


# --- against the reference ----------------------------------------------------------------------------------


@each_cell
@pytest.mark.parametrize("structure", STRUCTURES, ids=name_of)
def test_against_the_reference(cell, structure):
    for k, (sizes, batch) in enumerate(itertools.product(SIZES, (1, 5))):
        steps = (1, 6, 4)[k % 3]
        how = {"dropout_seed": k} if "dropout" in structure and k % 4 else {}
        assert_agrees(cell, sizes, steps, batch, how=how, **structure)
        how["lengths"] = some_lengths(steps, batch)
        assert_agrees(cell, sizes, steps, batch, how=how, **structure)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=name_of)
@pytest.mark.parametrize(
    "cell",
    [("LSTM", {}), ("LSTM", {"coupled_gates": True, "peepholes": True, "proj_size": 0.5}), ("GRU", {}),
     ("GRU", {"reset_after": False}), ("RNN", {}), ("GatedRNN", {})],
    ids=name_of,
)  # fmt: skip
def test_activations(cell, activation):
    """In every role, with a clip and without."""
    own = {"LSTM": ["sigmoid", "tanh", "tanh"], "RNN": ["tanh"]}.get(cell[0], ["sigmoid", "tanh"])
    for role, clip in itertools.product(range(len(own)), (None, 0.6)):
        specs = [*own[:role], activation, *own[role + 1 :]]
        assert_agrees(cell, (3, 9), 4, 3, seed=role, activations=specs, clip=clip, how={"lengths": [4, 3, 1]})


@few_cells
@pytest.mark.parametrize("structure", STACKS[:2], ids=name_of)
def test_long_sums(cell, structure):
    """More steps than any chunk of the sums over t and b holds, and sizes beyond any tile."""
    lengths = some_lengths(90, 9)
    assert_agrees(cell, (70, 20), 90, 9, **structure)
    assert_agrees(cell, (70, 20), 90, 9, how={"lengths": lengths}, **structure)
    if not structure:
        assert_agrees(cell, (19, 100), 45, 6)
        assert_agrees(cell, (2, 10), 300, 1)


@few_cells
def test_every_tail_of_a_tile(cell):
    for batch in (2, 3, 4, 6, 7, 8, 13, 27, 64, 130):
        assert_agrees(cell, (9, 20), 3, batch)
    for size in (2, 3, 4, 5, 6, 8, 9, 15, 16, 17, 24, 31, 40, 48, 63, 64, 65):
        assert_agrees(cell, (size, 12), 3, 2)
        assert_agrees(cell, (6, size), 3, 2)


@few_cells
def test_states_of_any_size(cell):
    """Trained initial states may be in the thousands, and zero."""
    exact = make(cell, (5, 9), "float64", oracle)
    x, state, d_output, d_state = numbers(exact, 6, 3)
    for scale in (0, 3000):
        big = each_part(lambda v, s=scale: v * s, state)
        wanted = run(exact, x, big, d_output, d_state)
        assert_close(run(make(cell, (5, 9), "float64"), x, big, d_output, d_state), wanted, 1e-10)


@pytest.mark.parametrize("cell", [c for c in FEW if "relu" not in str(c)], ids=name_of)
def test_saturated(cell):
    """Pre-activations of ±1e30 and ±inf leave gradients that are finite, and right."""
    huge = np.array([1e30, -1e30, np.inf, -np.inf])[:, None, None] * np.ones((1, 2, 1))
    exact = make(cell, (1, 3), "float64", oracle)
    _, state, d_output, d_state = numbers(exact, 4, 2)
    wanted = run(exact, huge, state, d_output, d_state)
    for dtype in DTYPES:
        got = run(make(cell, (1, 3), dtype), huge, state, d_output, d_state)
        for some in (got, wanted):
            some.pop("weight_ih_l0", None)  # 0 · inf
        assert all(np.isfinite(v).all() for v in got.values())
        assert_close(got, wanted, TOLERANCE[dtype])


@each_dtype
def test_slopes_at_kinks(dtype):
    """From the left; hard_sigmoid's is 0 at both ends, and the clip's 1 at its very edge, 0 beyond."""
    for name, s, slope in [
        ("relu", 0, 0), ("relu", -0.0, 0), ("leaky_relu", 0, 0.25), ("elu", 0, 0.25),
        ("thresholded_relu", 0.25, 0), ("thresholded_relu", 0.5, 1), ("hard_sigmoid", -2, 0),
        ("hard_sigmoid", 2, 0), ("hard_sigmoid", 1.5, 0.25), ("affine", 3, 0.25), ("affine", -3, 0.25),
        ("affine", 3.5, 0), ("affine", -3.5, 0),
    ]:  # fmt: skip
        takes = len(reference.DEFAULTS.get(name, ()))
        rnn = fast("RNN")(1, 1, bias=False, dtype=dtype, clip=3.0, activations=(name, 0.25, 0.5)[: 1 + takes])
        rnn.load_state_dict({"weight_ih_l0": [[1.0]], "weight_hh_l0": [[0.0]]})
        assert rnn.record([[s]]).backward([[1.0]]).input.item() == slope, (name, s)


def test_rows_of_a_gate_that_is_not_there_have_no_gradient():
    for options in ({"forget_gate": False}, {"coupled_gates": True}):
        lstm = make(("LSTM", {**options, "peepholes": True, "proj_size": 3}), (5, 9), "float32", num_layers=2)
        grads = lstm.record(*numbers(lstm, 5, 3)[:2]).backward(*numbers(lstm, 5, 3)[2:])
        for name, v in grads.parameters.items():
            if "weight_hr" not in name:
                row = v[1] if "peephole" in name else v[9:18]
                assert not row.any() and not np.signbit(row).any() and v.any(), name


# --- against the forward pass, and PyTorch ------------------------------------------------------------------


@each_cell
@pytest.mark.parametrize("structure", STACKS, ids=name_of)
def test_finite_differences(cell, structure):
    """Every entry of every gradient, by central differences of the layer's own calls."""
    layer = make(cell, (2, 3), "float64", **{**structure, "dropout": 0.0})
    x, state, d_output, d_state = numbers(layer, 3, 2, seed=5)
    lengths, parameters = [3, 2], layer.state_dict()
    found = run(layer, x, state, d_output, d_state, lengths=lengths)

    def loss():
        output, after = layer(x, state, lengths=lengths)
        valid = np.arange(3)[:, None] < np.array(lengths)
        d = d_output * (valid.T if layer.batch_first else valid)[:, :, None]
        pairs = [(output, d), *zip(parts(after), parts(d_state), strict=True)]
        return sum(float((a * b).sum()) for a, b in pairs)

    step = 1e-5
    variables = {"input": x} | {f"d_state {n}": v for n, v in zip("hc", parts(state), strict=False)}
    for name, variable in (variables | parameters).items():
        numeric = np.zeros_like(variable)
        for at in np.ndindex(variable.shape):
            there = variable[at]
            losses = []
            for moved in (there + step, there - step):
                variable[at] = moved
                if name in parameters:
                    layer.load_state_dict(parameters)
                losses.append(loss())
            variable[at] = there
            numeric[at] = (losses[0] - losses[1]) / (2 * step)
        if name in parameters:
            layer.load_state_dict(parameters)
        assert_close({name: found[name]}, {name: numeric}, 1e-6)


TORCH = [
    ("LSTM", {}), ("LSTM", {"bias": False}), ("LSTM", {"proj_size": 0.5}), ("GRU", {}),
    ("GRU", {"bias": False}), ("RNN", {}), ("RNN", {"nonlinearity": "relu"}),
]  # fmt: skip


@pytest.mark.parametrize("cell", TORCH, ids=name_of)
@pytest.mark.parametrize(
    "structure", [{}, {"num_layers": 3, "batch_first": True}, {"bidirectional": True, "num_layers": 2}],
    ids=name_of,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["dense", "packed", "unbatched"])
def test_torch(cell, structure, kind):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    for sizes, steps in (((5, 33), 7), ((3, 1), 2), ((1, 7), 1), ((20, 30), 40)):
        layer = make(cell, sizes, "float64", **structure)
        options = {**cell[1], **structure}
        if "proj_size" in options:
            options["proj_size"] = layer.proj_size
        theirs = getattr(torch.nn, cell[0])(*sizes, **options, dtype=torch.float64)
        theirs.load_state_dict({name: torch.from_numpy(v) for name, v in layer.state_dict().items()})
        batch_first, batch = layer.batch_first, 9
        x, state, d_output, d_state = numbers(layer, steps, batch)
        lengths = np.maximum(some_lengths(steps, batch), 1) if kind == "packed" else None
        if kind == "unbatched":
            x, d_output = (v[0] if batch_first else v[:, 0] for v in (x, d_output))
            state, d_state = (each_part(lambda v: v[:, 0], s) for s in (state, d_state))
        x_t = torch.from_numpy(x.copy()).requires_grad_()
        state_t = each_part(lambda v: torch.from_numpy(v.copy()).requires_grad_(), state)
        given = x_t
        if lengths is not None:
            given = torch.nn.utils.rnn.pack_padded_sequence(
                x_t, torch.from_numpy(lengths), batch_first=batch_first, enforce_sorted=False
            )
        y, after = theirs(given, state_t)
        if lengths is not None:
            y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=batch_first, total_length=steps)
        torch.autograd.backward([y, *parts(after)], [torch.tensor(v) for v in (d_output, *parts(d_state))])
        wanted = {"output": y.detach().numpy(), "input": x_t.grad.numpy()}
        wanted |= {f"state {n}": v.detach().numpy() for n, v in zip("hc", parts(after), strict=False)}
        wanted |= {f"d_state {n}": v.grad.numpy() for n, v in zip("hc", parts(state_t), strict=False)}
        wanted |= {name: p.grad.numpy() for name, p in theirs.named_parameters()}
        assert_close(run(layer, x, state, d_output, d_state, lengths=lengths), wanted, 1e-10)


# --- sequences: empty, unbatched, padded, cut, with NaN -----------------------------------------------------


@each_cell
@pytest.mark.parametrize("structure", STACKS, ids=name_of)
def test_nothing_to_do(cell, structure):
    layer = make(cell, (3, 7), "float32", **structure)
    for steps, batch, lengths in ((0, 4, None), (0, 2, [0, 0]), (5, 0, None), (5, 0, []), (5, 3, [0] * 3)):
        x, state, d_output, d_state = numbers(layer, steps, batch)
        for checkpoint in (None, 2):
            how = {"lengths": lengths, "dropout_seed": 1, "checkpoint": checkpoint}
            found = run(layer, x, state, d_output, d_state, **how)
            handed = {"state": state, "d_state": d_state}
            for name, v in found.items():
                kind, _, part = name.partition(" ")
                if kind in handed:  # through, both ways, as copies
                    given = parts(handed[kind])["hc".index(part)]
                    assert v.tobytes() == given.tobytes() and not np.shares_memory(v, given)
                else:
                    assert not v.any() and not np.signbit(v).any(), name
            assert found["output"].shape == d_output.shape and found["input"].shape == x.shape
            assert all(found[n].shape == v.shape for n, v in layer.state_dict().items())


@few_cells
@pytest.mark.parametrize("structure", STRUCTURES, ids=name_of)
def test_unbatched_is_a_batch_of_one(cell, structure):
    layer = make(cell, (5, 9), "float32", **structure)
    for steps in (0, 1, 6):
        x, state, d_output, d_state = numbers(layer, steps, 1)
        one = 0 if layer.batch_first else 1
        wanted = run(layer, x, state, d_output, d_state, dropout_seed=3)
        alone = [x.squeeze(one), each_part(lambda v: v[:, 0], state), d_output.squeeze(one)]
        got = run(layer, *alone, each_part(lambda v: v[:, 0], d_state), dropout_seed=3)
        for name in ("output", "input"):
            wanted[name] = wanted[name].squeeze(one)
        assert_same(got, {n: v[:, 0] if "state" in n else v for n, v in wanted.items()})


@each_cell
@pytest.mark.parametrize("structure", STRUCTURES, ids=name_of)
def test_padding_is_never_read_and_has_no_gradient(cell, structure):
    layer, lengths = make(cell, (5, 9), "float32", **structure), [4, 0, 7, 1]
    x, state, d_output, d_state = numbers(layer, 7, 4)
    wanted = None
    for filling in (0, np.nan, np.inf, 3e38):
        for b, n in enumerate(lengths):
            for v in (x, d_output):
                (v[b, n:] if layer.batch_first else v[n:, b])[:] = filling
        found = run(layer, x, state, d_output, d_state, lengths=lengths, dropout_seed=1)
        wanted = wanted or found
        assert_same(found, wanted)
    assert all(np.isfinite(v).all() for v in found.values())
    for b, n in enumerate(lengths):
        for name in ("output", "input"):
            padding = found[name][b, n:] if layer.batch_first else found[name][n:, b]
            assert not padding.any() and not np.signbit(padding).any()


@few_cells
@pytest.mark.parametrize("where", ["x", "h", "d_output", "d_state"])
def test_nan_stays_in_its_sequence(cell, where):
    layer = make(cell, (5, 9), "float32", num_layers=2)
    given = dict(zip(("x", "h", "d_output", "d_state"), numbers(layer, 6, 4), strict=True))
    clean = run(layer, *given.values())
    spoilt = parts(given[where])[0]
    spoilt[3 if where in ("x", "d_output") else 1, 2] = np.nan
    found = run(layer, *given.values())
    others = [0, 1, 3]
    for name in clean:
        if name in ("output", "input") or "state" in name:
            assert found[name][:, others].tobytes() == clean[name][:, others].tobytes(), name
        else:  # a sum over the batch
            assert np.isnan(found[name]).any(), name
    assert np.isnan(found["input"][:4, 2]).any() and np.isnan(found["d_state h"][:, 2]).any()


@few_cells
@pytest.mark.parametrize("structure", [{}, {"num_layers": 2}, {"bias": False}], ids=name_of)
def test_truncated_and_handed_on_is_the_whole(cell, structure):
    layer = make((cell[0], {**cell[1], **structure}), (5, 9), "float64")
    steps = 12
    x, state, d_output, d_state = numbers(layer, steps, 3)
    wanted = run(layer, x, state, d_output, d_state)
    for cuts in ([1], [5], [11], [3, 4, 9], range(1, steps)):
        pieces, tapes, carried = np.split(x, cuts), [], state
        for piece in pieces:
            tapes.append(layer.record(piece, carried))
            carried = tapes[-1].state
        grads, d_carried = [], d_state
        for tape, d in reversed(list(zip(tapes, np.split(d_output, cuts), strict=True))):
            grads.insert(0, tape.backward(d, d_carried))
            d_carried = grads[0].state
        got = {
            "output": np.concatenate([tape.output for tape in tapes]),
            "input": np.concatenate([g.input for g in grads]),
        }
        got |= {f"state {n}": v for n, v in zip("hc", parts(carried), strict=False)}
        got |= {f"d_state {n}": v for n, v in zip("hc", parts(d_carried), strict=False)}
        got |= {name: sum(g.parameters[name] for g in grads) for name in grads[0].parameters}
        assert_close(got, wanted, 1e-12)
        for name in got.keys() - grads[0].parameters.keys():  # no sums over time: even the same bits
            assert got[name].tobytes() == wanted[name].tobytes(), name


@few_cells
def test_left_out_is_zero(cell):
    """No state, no d_state, no d_output but zeros."""
    layer = make(cell, (5, 9), "float32", num_layers=2)
    x, state, d_output, d_state = numbers(layer, 5, 3)
    zero = each_part(np.zeros_like, state)
    assert_same(run(layer, x, None, d_output, d_state), run(layer, x, zero, d_output, d_state))
    tape = layer.record(x, state)
    wanted = collect(tape, tape.backward(d_output, zero))
    assert_same(collect(tape, tape.backward(d_output)), wanted)
    assert_same(collect(tape, tape.backward(d_output, None)), wanted)
    nothing = tape.backward(0 * d_output)
    for v in (nothing.input, *parts(nothing.state), *nothing.parameters.values()):
        assert not v.any()


# --- dropout ------------------------------------------------------------------------------------------------


@few_cells
@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
def test_dropout(cell, dropout):
    """Other masks for other seeds, none without a seed, the same in either order of the axes."""
    structure = {"num_layers": 3, "dropout": dropout}
    for seed in (0, 12345, 2**64, np.int64(7)):
        assert_agrees(cell, (5, 7), 5, 4, how={"dropout_seed": seed, "lengths": [5, 0, 2, 4]}, **structure)
        assert_agrees(cell, (5, 7), 5, 4, how={"dropout_seed": seed}, bidirectional=True, **structure)
    layer, plain = (make(cell, (5, 7), "float32", num_layers=3, dropout=p) for p in (dropout, 0.0))
    given = numbers(layer, 5, 4)
    seeds = [run(layer, *given, dropout_seed=seed) for seed in (1, 2, 1)]
    assert_same(seeds[0], seeds[2])
    assert (seeds[0]["output"].tobytes() != seeds[1]["output"].tobytes()) == (dropout == 0.3)
    assert_same(run(layer, *given), run(plain, *given))
    assert_same(run(layer, *given, dropout_seed=None), run(plain, *given))
    if dropout == 1:
        grads = layer.record(*given[:2], dropout_seed=1).backward(given[2])
        assert not grads.input.any() and not grads.parameters["weight_ih_l0"].any()


# --- what a tape promises -----------------------------------------------------------------------------------


@few_cells
@pytest.mark.parametrize("structure", STRUCTURES, ids=name_of)
def test_a_tape_records_what_a_call_returns(cell, structure):
    layer = make(cell, (5, 33), "float32", **structure)
    for steps, batch in ((6, 5), (40, 1), (1, 1), (3, 40)):
        x, state, *_ = numbers(layer, steps, batch)
        for lengths, checkpoint in itertools.product((None, some_lengths(steps, batch)), (None, 2)):
            output, after = layer(x, state, lengths=lengths)
            tape = layer.record(x, state, lengths=lengths, checkpoint=checkpoint)
            assert tape.output.tobytes() == output.tobytes() and tape.output.shape == output.shape
            for a, b in zip(parts(tape.state), parts(after), strict=True):
                assert a.tobytes() == b.tobytes() and a.shape == b.shape


@few_cells
@pytest.mark.parametrize("structure", STACKS, ids=name_of)
@pytest.mark.parametrize("checkpoint", [None, 3])
def test_used_several_times(cell, structure, checkpoint):
    """The same bits each time, whatever came between; fresh arrays, that nobody else holds."""
    layer = make(cell, (5, 9), "float32", **structure)
    x, state, d_output, d_state = numbers(layer, 7, 3)
    tape = layer.record(x, state, dropout_seed=5, checkpoint=checkpoint)
    kept = copy.deepcopy(collect(tape, tape.backward(d_output, d_state)))
    tape.backward(3 * d_output)
    again = tape.backward(d_output, d_state)
    assert_same(collect(tape, again), kept)
    arrays = [again.input, *parts(again.state), *again.parameters.values()]
    others = [x, *parts(state), d_output, *parts(d_state), tape.output, *parts(tape.state)]
    for a, b in itertools.combinations([*arrays, *others], 2):
        assert not np.shares_memory(a, b)
    for v in arrays:
        assert v.flags.writeable and v.flags.c_contiguous and v.flags.owndata | (v.base is not None)
        v[...] = np.nan
    assert_same(collect(tape, tape.backward(d_output, d_state)), kept)


@few_cells
@pytest.mark.parametrize("structure", STACKS, ids=name_of)
@pytest.mark.parametrize("checkpoint", [None, 3])
def test_what_the_caller_overwrites_afterwards(cell, structure, checkpoint):
    """x, state, lengths are the caller's again after `record`; and so are output and state of the tape."""
    layer, lengths = make(cell, (5, 9), "float32", **structure), np.array([7, 3, 5])
    x, state, d_output, d_state = numbers(layer, 7, 3)
    wanted = run(layer, x, state, d_output, d_state, lengths=lengths, checkpoint=checkpoint)
    tape = layer.record(x, state, lengths=lengths, checkpoint=checkpoint)
    for v in (x, *parts(state), lengths):
        v[...] = 1
    for v in (tape.output, *parts(tape.state)):
        if v.flags.writeable:
            v[...] = 1
    found = collect(tape, tape.backward(d_output, d_state))
    for name in wanted:
        if name != "output" and not name.startswith("state"):
            assert found[name].tobytes() == wanted[name].tobytes(), f"{name} has changed"


@few_cells
def test_weights_that_have_changed(cell):
    layer = make(cell, (5, 9), "float32")
    x, state, d_output, d_state = numbers(layer, 4, 2)
    tape = layer.record(x, state)
    wanted = collect(tape, tape.backward(d_output, d_state))
    before = layer.state_dict()
    layer.load_state_dict({name: 2 * v for name, v in before.items()})
    for _ in range(2):
        with pytest.raises(RuntimeError, match="(?i)weights|parameters"):
            tape.backward(d_output, d_state)
    assert run(layer, x, state, d_output, d_state)["input"].tobytes() != wanted["input"].tobytes()
    layer.load_state_dict(before)
    assert_same(run(layer, x, state, d_output, d_state), wanted)


@few_cells
def test_a_tape_outlives_its_layer(cell):
    layer = make(cell, (5, 9), "float32")
    given = numbers(layer, 4, 2)
    wanted = run(layer, *given)
    tape = layer.record(*given[:2])
    del layer
    gc.collect()
    assert_same(collect(tape, tape.backward(*given[2:])), wanted)


@each_cell
@pytest.mark.parametrize("structure", STRUCTURES, ids=name_of)
def test_checkpoints_change_no_bit(cell, structure):
    layer, steps = make(cell, (5, 9), "float32", **structure), 11
    given = numbers(layer, steps, 3)
    for lengths, seed in ((None, None), ([11, 0, 6], 2)):
        wanted = run(layer, *given, lengths=lengths, dropout_seed=seed)
        for k in (1, 2, 3, 7, steps, steps + 5, np.int64(4), 2**40):
            assert_same(run(layer, *given, lengths=lengths, dropout_seed=seed, checkpoint=k), wanted)


@pytest.mark.parametrize("cell", FEW, ids=name_of)
@pytest.mark.parametrize("structure", STRUCTURES, ids=name_of)
@each_dtype
def test_memory(cell, structure, dtype):
    """At most (gates + 2) · T · B · H numbers a layer and direction besides input and output."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1, "GatedRNN": 2}[cell[0]]
    for hidden, steps, batch in ((33, 60, 4), (7, 200, 3), (40, 300, 1), (64, 50, 8)):
        layer = make(cell, (5, hidden), dtype, **structure)
        x, state, d_output, d_state = numbers(layer, steps, batch)
        row = -(-hidden * layer.dtype.itemsize // 64) * 64  # bytes: rows are whole vectors
        rows = steps * batch * layer.num_layers * (2 if layer.bidirectional else 1)
        tape = layer.record(x, state, dropout_seed=1)
        assert 0 <= tape.nbytes <= (gates + 2) * rows * row
        sparse = layer.record(x, state, dropout_seed=1, checkpoint=20)
        if cell[0] == "RNN":  # its memory is its output
            assert sparse.nbytes <= tape.nbytes
        else:
            assert sparse.nbytes < tape.nbytes
        if cell[0] == "LSTM" and layer.num_layers == 1:
            assert sparse.nbytes < tape.nbytes / 2
        held = tape.nbytes, sparse.nbytes
        for t in (tape, sparse):
            t.backward(d_output, d_state)
        assert (tape.nbytes, sparse.nbytes) == held  # nothing stays behind


@few_cells
def test_many_threads_on_one_layer_and_one_tape(cell):
    layer = make(cell, (5, 33), "float32", num_layers=2)
    given = numbers(layer, 30, 6)
    wanted = run(layer, *given)
    shared, wrong, barrier = layer.record(*given[:2]), [], threading.Barrier(4)

    def work(own):
        try:
            barrier.wait(30)
            for _ in range(5):
                tape = layer.record(*given[:2]) if own else shared
                assert_same(collect(tape, tape.backward(*given[2:])), wanted)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(k % 2,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong, wrong[0]


# --- arguments ----------------------------------------------------------------------------------------------


@few_cells
def test_array_likes(cell):
    layer = make(cell, (5, 9), "float32")
    x, state, d_output, d_state = numbers(layer, 4, 3)
    x, d_output = np.round(4 * x) / 4, np.round(4 * d_output) / 4
    wanted = run(layer, x, state, d_output, d_state)
    wide = np.full((4, 3, 2 * d_output.shape[2]), np.nan, "f4")
    wide[:, :, ::2] = d_output
    kinds = [
        lambda v: v.tolist(), lambda v: v.astype("f8"), lambda v: v.astype(">f4"), np.asfortranarray,
        lambda v: v[::-1].copy()[::-1], lambda v: v.swapaxes(0, 1).copy().swapaxes(0, 1),
    ]  # fmt: skip
    for kind in kinds:
        given = [kind(x), each_part(kind, tuple(state) if has_c(layer) else (state,)), kind(d_output)]
        assert_same(run(layer, *given, each_part(kind, d_state)), wanted)
    assert_same(run(layer, x, state, wide[:, :, ::2], d_state), wanted)
    if has_c(layer):
        assert_same(run(layer, x, list(state), d_output, list(d_state)), wanted)
    whole = np.full(x.shape, 2, np.int8)
    assert_same(
        run(layer, whole, state, np.ones(d_output.shape, bool), d_state),
        run(layer, whole.astype("f4"), state, np.ones(d_output.shape, "f4"), d_state),
    )


NAN = float("nan")
BAD_RECORD = [  # argument, value, error
    ("checkpoint", 0, ValueError), ("checkpoint", -1, ValueError), ("checkpoint", 1.5, TypeError),
    ("checkpoint", 2.0, TypeError), ("checkpoint", "2", TypeError), ("checkpoint", True, TypeError),
    ("checkpoint", [2], TypeError), ("checkpoint", NAN, TypeError), ("checkpoint", np.array([2]), TypeError),
    ("dropout_seed", -1, ValueError), ("dropout_seed", 1.5, TypeError), ("dropout_seed", "1", TypeError),
    ("dropout_seed", True, TypeError), ("dropout_seed", [1], TypeError), ("dropout_seed", NAN, TypeError),
    ("lengths", [1, 2], ValueError), ("lengths", [1, 2, 5], ValueError), ("lengths", [1, 2, -1], ValueError),
    ("lengths", [1.0, 2.0, 3.0], TypeError), ("lengths", "abc", TypeError), ("lengths", 3, ValueError),
    ("x", np.ones((4, 3, 4)), ValueError), ("x", np.ones(5), ValueError), ("x", None, TypeError),
    ("x", np.ones((4, 3, 5), complex), TypeError), ("x", np.ones((1, 4, 3, 5)), ValueError),
    ("x", "x", TypeError), ("x", [[1, 2], [3]], ValueError),
    ("state", np.ones((2, 3, 9)), None), ("state", "h", TypeError), ("state", 1.0, None),
]  # fmt: skip
BAD_BACKWARD = [
    ("d_output", np.ones((4, 3, 8)), ValueError), ("d_output", np.ones((3, 4, 9)), ValueError),
    ("d_output", np.ones((4, 3)), ValueError), ("d_output", 1.0, ValueError), ("d_output", None, TypeError),
    ("d_output", np.ones((5, 3, 9)), ValueError), ("d_output", np.ones((4, 1, 9)), ValueError),
    ("d_output", np.ones((4, 3, 9), complex), TypeError), ("d_output", "d", TypeError),
    ("d_output", np.full((4, 3, 9), "d"), TypeError), ("d_output", [[1, 2], [3]], ValueError),
    ("d_output", np.full((4, 3, 9), None), TypeError), ("d_output", {}, TypeError),
    ("d_output", np.ma.masked_all((4, 3, 9)), TypeError), ("d_state", "d", TypeError),
    ("d_state", np.ones((2, 3, 9)), None), ("d_state", 1.0, None), ("d_state", {}, TypeError),
    ("d_state", (np.ones((1, 3, 9)),), None), ("d_state", (np.ones((1, 3, 9)),) * 3, None),
    ("d_state", (np.ones((1, 3, 9)), np.ones((1, 4, 9))), None),
    ("d_state", (np.ones((1, 3, 9)), None), None),
    ("d_state", (np.ones((1, 3, 9), complex), np.ones((1, 3, 9))), None),
]  # fmt: skip


def ids(cases):
    return [f"{name}-{type(value).__name__}-{k}" for k, (name, value, _) in enumerate(cases)]


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN", "GatedRNN"])
@pytest.mark.parametrize(("name", "value", "error"), BAD_RECORD, ids=ids(BAD_RECORD))
def test_record_refuses(cell, name, value, error):
    layer = fast(cell)(5, 9)
    with pytest.raises(error or (TypeError, ValueError), match=name):
        layer.record(**{"x": np.ones((4, 3, 5)), name: value})


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN", "GatedRNN"])
@pytest.mark.parametrize(("name", "value", "error"), BAD_BACKWARD, ids=ids(BAD_BACKWARD))
def test_backward_refuses(cell, name, value, error):
    layer = fast(cell)(5, 9)
    good = {"d_output": np.ones((4, 3, 9), "f4")}
    tape = layer.record(np.ones((4, 3, 5)))
    wanted = collect(tape, tape.backward(**good))
    with pytest.raises(error or (TypeError, ValueError), match=name):
        tape.backward(**{**good, name: value})
    assert_same(collect(tape, tape.backward(**good)), wanted)  # the tape is none the worse


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN", "GatedRNN"])
def test_refused_by_shape_in_either_order_and_unbatched(cell):
    layer = fast(cell)(5, 9, batch_first=True, bidirectional=True)
    tape = layer.record(np.ones((3, 4, 5)))
    with pytest.raises(ValueError, match=r"d_output.*\(3, 4, 18\).*\(4, 3, 18\)"):
        tape.backward(np.ones((4, 3, 18)))
    with pytest.raises(ValueError, match="lengths"):
        layer.record(np.ones((4, 5)), lengths=[4])
    alone = layer.record(np.ones((4, 5)))
    with pytest.raises(ValueError, match="d_output"):
        alone.backward(np.ones((1, 4, 18)))
    with pytest.raises((TypeError, ValueError), match="d_state"):
        alone.backward(np.ones((4, 18)), form((np.ones((2, 1, 9)),) * len(parts(alone.state))))
    for call in (lambda: layer.record(), lambda: alone.backward(), lambda: layer.record(1, 2, 3)):
        with pytest.raises(TypeError):
            call()


def test_infinities_meet_dropout_in_silence():
    """inf times 0 is NaN, as in PyTorch, and no warning."""
    layer = fastlstm.RNN(1, 2, 2, nonlinearity="relu", dropout=0.5)
    layer.load_state_dict({name: np.abs(v) * np.float32(1e30) for name, v in layer.state_dict().items()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tape = layer.record(np.full((3, 1, 1), 1e9, np.float32), dropout_seed=0)
        gradients = tape.backward(np.ones((3, 1, 2), np.float32))
    assert np.isnan(tape.output).any() and np.isnan(gradients.parameters["weight_ih_l1"]).any()
