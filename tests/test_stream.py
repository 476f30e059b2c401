"""Streams: a step is the call, and what a step must not do."""

import copy
import tracemalloc

import numpy as np
import pytest

import fastlstm

CELLS = {
    "lstm": ("LSTM", {}),
    "lstm-2-layers": ("LSTM", {"num_layers": 2}),
    "lstm-projected": ("LSTM", {"num_layers": 2, "proj_size": 5}),
    "lstm-peepholes": ("LSTM", {"peepholes": True, "clip": 1.0}),
    "gru": ("GRU", {"num_layers": 2}),
    "gru-reset-before": ("GRU", {"reset_after": False, "num_layers": 3}),
    "rnn": ("RNN", {"nonlinearity": "relu"}),
    "gated-rnn": ("GatedRNN", {"num_layers": 2}),
}
I, H, T = 6, 21, 8  # noqa: E741
each = pytest.mark.parametrize("cell", CELLS)


def make(cell, seed=4, **more):
    name, options = CELLS[cell]
    return getattr(fastlstm, name)(I, H, seed=seed, **options, **more)


def numbers(steps=T, batch=3, dtype="f4", seed=0):
    return np.random.default_rng(seed).normal(size=(steps, batch, I)).astype(dtype)


def flat(state):
    return state if isinstance(state, tuple) else (state,)


def assert_same_states(a, b):
    for x, y in zip(flat(a), flat(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


@each
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", [1, 3, 40])
def test_steps_are_the_call(cell, dtype, batch):
    layer = make(cell, dtype=dtype)
    x = numbers(batch=batch, dtype=dtype)
    _, state = layer(numbers(2, batch, dtype, 9))  # somewhere else than zero
    wanted, after = layer(x, state)
    stream = layer.stream(batch, state)
    out = np.full(wanted.shape[1:], np.nan, dtype)
    for t in range(T):
        fresh = stream.copy().step(x[t])
        assert stream.step(x[t], out=out) is out
        assert out.tobytes() == fresh.tobytes() == wanted[t].tobytes()
    assert_same_states(stream.state, after)


@each
def test_a_step_allocates_nothing(cell):
    layer = make(cell)
    stream = layer.stream(2)
    x = numbers(batch=2)[0]
    out = stream.step(x)
    stream.step(x, out=out)
    tracemalloc.start(1)
    try:
        for _ in range(5):  # tracemalloc's own bookkeeping settles
            stream.step(x, out=out)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(100):
            stream.step(x, out=out)
        now, peak = tracemalloc.get_traced_memory()
        assert now - before < 256 and peak - before < 256  # the loop's own number
        fresh = [stream.step(x) for _ in range(100)]
        assert tracemalloc.get_traced_memory()[0] - before > 100 * out.nbytes and len(fresh) == 100
    finally:
        tracemalloc.stop()


def test_the_result_of_a_step_without_out_is_fresh():
    stream = make("lstm").stream(1)
    x = numbers(batch=1)
    first = stream.step(x[0])
    kept = first.copy()
    second = stream.step(x[1])
    assert second is not first and np.array_equal(first, kept) and not np.shares_memory(first, second)


def test_overlap_is_refused():
    layer = fastlstm.RNN(8, 8, seed=1)
    memory = np.zeros(64, "f4")
    stream = layer.stream(2)
    x = memory[8:24].reshape(2, 8)
    before = stream.state.tobytes()
    for begin in (0, 1, 8, 23):
        with pytest.raises(ValueError, match="out.*overlaps"):
            stream.step(x, out=memory[begin : begin + 16].reshape(2, 8))
    assert stream.state.tobytes() == before
    for begin in (24, 40):  # side by side is not overlapping
        stream.step(x, out=memory[begin : begin + 16].reshape(2, 8))


@pytest.mark.parametrize(
    "out",
    [
        np.empty((2, H), "f8"),
        np.empty((2, H), ">f4"),
        np.empty((1, H), "f4"),
        np.empty((2, H + 1), "f4"),
        np.empty((H, 2), "f4").T,
        np.empty((2, 2 * H), "f4")[:, ::2],
        np.empty(2 * H, "f4"),
        np.frombuffer(bytes(8 * H), "f4").reshape(2, H),
        np.empty(8 * H + 1, "i1")[1:].view("f4").reshape(2, H),
    ],
    ids=["float64", "big-endian", "rows", "columns", "fortran", "strided", "flat", "read-only", "unaligned"],
)
def test_wrong_out_is_refused_and_left_alone(out):
    stream = make("gru").stream(2)
    x, state, bytes_before = numbers(batch=2)[0], stream.state.tobytes(), out.tobytes()
    with pytest.raises(ValueError, match="out"):
        stream.step(x, out=out)
    assert stream.state.tobytes() == state and out.tobytes() == bytes_before


@each
def test_new_weights_at_the_next_step(cell):
    layer, other = make(cell), make(cell, seed=5)
    x = numbers()
    stream = layer.stream(3)
    stream.step(x[0])
    state = stream.state
    layer.load_state_dict(other.state_dict())
    wanted, after = other(x[1:2], state)
    assert stream.step(x[1]).tobytes() == wanted[0].tobytes()
    assert_same_states(stream.state, after)
    assert_same_states(stream.copy().state, after)


@each
def test_reset_of_some_rows(cell):
    layer = make(cell)
    x = numbers(batch=4)
    _, start = layer(numbers(1, 4, seed=8))
    stream = layer.stream(4, start)
    for t in range(3):
        stream.step(x[t])
    gone = stream.state
    stream.reset([2, 0])
    for now, begin, later in zip(flat(stream.state), flat(start), flat(gone), strict=True):
        assert now[:, [0, 2]].tobytes() == begin[:, [0, 2]].tobytes()
        assert now[:, [1, 3]].tobytes() == later[:, [1, 3]].tobytes()
    stream.reset(3)
    stream.reset([])
    stream.reset()
    assert_same_states(stream.state, start)
    wanted, _ = layer(x, start)
    assert np.stack([stream.step(x[t]) for t in range(T)]).tobytes() == wanted.tobytes()


@each
@pytest.mark.parametrize("duplicate", [lambda s: s.copy(), copy.copy, copy.deepcopy])
def test_a_copy_goes_its_own_way(cell, duplicate):
    layer = make(cell)
    x = numbers()
    stream = layer.stream(3)
    for t in range(3):
        stream.step(x[t])
    twin = duplicate(stream)
    assert type(twin) is type(stream) and twin.batch_size == 3
    assert_same_states(twin.state, stream.state)
    stream.step(x[3])
    ahead = stream.state
    assert twin.step(x[3]).tobytes() == layer(x[:4])[0][3].tobytes()
    twin.step(x[4])
    assert_same_states(stream.state, ahead)


@each
def test_state_is_a_copy_and_can_be_assigned(cell):
    layer = make(cell)
    stream = layer.stream(3)
    stream.step(numbers()[0])
    seen = stream.state
    for s in flat(seen):
        s += 1
    stream.state = seen
    assert_same_states(stream.state, seen)
    stream.step(numbers()[1])
    stream.reset()
    assert_same_states(stream.state, seen)


def test_nan_of_one_row_stays_there():
    layer = make("lstm")
    x = numbers(batch=3)
    wanted, _ = layer(x)
    x[2, 1, 3] = np.nan
    stream = layer.stream(3)
    for t in range(T):
        y = stream.step(x[t])
        assert y[[0, 2]].tobytes() == wanted[t, [0, 2]].tobytes()
        assert np.isnan(y[1]).all() == (t >= 2)
    stream.reset([1])
    assert stream.step(x[0]).tobytes() != wanted[0].tobytes() and not np.isnan(stream.state[0]).any()


def test_a_stream_keeps_its_layer():
    stream = make("lstm").stream()
    assert stream.step(numbers(1, 1)[0]).shape == (1, H)
    twin = stream.copy()
    del stream
    assert twin.step(numbers(1, 1)[0]).shape == (1, H)


@pytest.mark.parametrize("options", [{"reverse": True}, {"bidirectional": True}])
def test_backwards_is_refused(options):
    with pytest.raises((TypeError, ValueError, RuntimeError), match="revers|bidirectional|backwards"):
        fastlstm.LSTM(I, H, **options).stream()
