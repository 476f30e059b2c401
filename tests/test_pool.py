"""Pools: each session has the bits that it has alone, and what goes wrong changes nothing."""

import copy
import gc
import os
import pickle
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from same_bits import CELLS as ALL_CELLS
from same_bits import bits

import fastlstm
from fastlstm import _core
from fastlstm.pool import _pools

I, H, T = 6, 21, 5  # noqa: E741
STREAMING = {
    name: (cell, {k: v for k, v in options.items() if k not in ("reverse", "bidirectional")})
    for name, (cell, options) in ALL_CELLS.items()
}
each = pytest.mark.parametrize("cell", STREAMING)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def make(cell="lstm-projected", seed=4, **more):
    name, options = STREAMING[cell]
    options = {k: 5 if k == "proj_size" else v for k, v in options.items()}
    return getattr(fastlstm, name)(I, H, seed=seed, **options, **more)


def model(dtype="float32", seed=0, batch_first=False):
    """All modules that can stand in a Sequential, and two recurrent layers."""
    return fastlstm.Sequential(
        fastlstm.Embedding(11, I, dtype=dtype, seed=seed),
        fastlstm.LSTM(I, 9, 2, proj_size=4, dtype=dtype, seed=seed + 1, batch_first=batch_first),
        fastlstm.Dropout(0.5),
        fastlstm.Linear(4, 7, dtype=dtype, seed=seed + 2),
        fastlstm.GRU(7, 8, dtype=dtype, seed=seed + 3, batch_first=batch_first),
        fastlstm.Linear(8, 11, dtype=dtype, seed=seed + 4),
    )


def numbers(*shape, dtype="f4", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 11, shape)


def flat(state):
    """The arrays of a state, whatever its form."""
    return [a for part in state for a in flat(part)] if isinstance(state, tuple) else [state]


def assert_same(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype and a.shape == b.shape and np.array_equal(bits(a), bits(b))


def assert_same_states(a, b):
    for x, y in zip(flat(a), flat(b), strict=True):
        assert_same(x, y)


def states_of(pool, ids):
    return [pool.state(id) for id in ids]


def assert_unchanged(pool, ids, before):
    for now, then in zip(states_of(pool, ids), before, strict=True):
        assert_same_states(now, then)


# --- the same bits as alone ---------------------------------------------------------------------------------


@each
@each_dtype
def test_each_session_is_the_stream_alone(cell, dtype):
    """Sessions come, go at their own pace and leave, and the pool grows."""
    layer = make(cell, dtype=dtype)
    rng = np.random.default_rng(1)
    pool, alone = fastlstm.StreamPool(layer, 2), {}
    _, start = layer(numbers(2, 1, I, dtype=dtype, seed=8))
    sizes = set()
    for turn in range(40):
        for _ in range(rng.integers(0, 4)):
            state = start if rng.random() < 0.5 else None
            id = pool.open(state)
            assert id not in alone
            alone[id] = layer.stream(1, state)
        if alone and rng.random() < 0.4:
            id = int(rng.choice(list(alone)))
            pool.close(id)
            del alone[id]
        ids = rng.permutation(np.array(list(alone), np.int64))[: rng.integers(0, len(alone) + 1)]
        sizes.add(len(ids))
        x = numbers(len(ids), I, dtype=dtype, seed=turn)
        if len(ids) > 2:
            x[1, 2] = np.nan  # stays where it is
        y = pool.step(ids if turn % 2 else ids.tolist(), x)
        assert y.shape == (len(ids), flat(start)[0].shape[-1])
        for id, row, got in zip(ids.tolist(), x, y, strict=True):
            assert_same(got, alone[id].step(row[None])[0])
    assert len(pool) == len(alone) > 10 and max(sizes) > 10 and pool.capacity >= len(alone)
    for id, stream in alone.items():
        assert_same_states(pool.state(id), stream.state)


@each_dtype
@pytest.mark.parametrize("batch_first", [False, True])
def test_each_session_of_a_sequential_is_the_stream_alone(dtype, batch_first):
    net = model(dtype, batch_first=batch_first)
    rng = np.random.default_rng(1)
    _, start = net(tokens(1, 3))
    start = tuple(tuple(a[:, :1] for a in s) if isinstance(s, tuple) else s[:, :1] for s in start)
    pool, alone = fastlstm.StreamPool(net, 1), {}
    for turn in range(25):
        for state in (None, start, (start[0], None))[: 1 + turn % 3]:
            alone[pool.open(state)] = net.stream(1, state)
        if turn % 3 == 2:
            gone = int(rng.choice(list(alone)))
            pool.close(gone)
            del alone[gone]
        ids = rng.permutation(list(alone))[: rng.integers(0, len(alone) + 1)]
        x = tokens(len(ids), seed=turn)
        out = np.full((len(ids), 11), np.nan, dtype)
        assert pool.step(ids, x, out=out) is out
        for id, token, got in zip(ids.tolist(), x, out, strict=True):
            assert_same(got, alone[id].step([token])[0])
    for id, stream in alone.items():
        assert_same_states(pool.state(id), stream.state)
    steps, ids = rng.integers(0, T + 1, len(alone)), list(alone)
    x = tokens(T, len(ids), seed=99)
    y = pool.run(ids, x.T if batch_first else x, steps)
    y = y.swapaxes(0, 1) if batch_first else y
    for k, (id, n) in enumerate(zip(ids, steps, strict=True)):
        for t in range(n):
            assert_same(y[t, k], alone[id].step(x[t, k : k + 1])[0])
        assert not y[n:, k].any()
        assert_same_states(pool.state(id), alone[id].state)


@each
@each_dtype
@pytest.mark.parametrize("batch_first", [False, True])
def test_run(cell, dtype, batch_first):
    layer = make(cell, dtype=dtype, batch_first=batch_first)
    pool = fastlstm.StreamPool(layer, 8)
    ids = [pool.open() for _ in range(8)]
    alone = [layer.stream() for _ in ids]
    for turn, order in enumerate(([3, 0, 5, 1, 7], [1, 3], [], [4, 3, 2, 1, 0, 6])):
        lengths = [[4, 0, 5, 1, 2], None, [], [0, 0, 3, 5, 5, 1]][turn]
        x = numbers(T, len(order), I, dtype=dtype, seed=turn)
        y = pool.run([ids[k] for k in order], x.swapaxes(0, 1) if batch_first else x, lengths)
        y = y.swapaxes(0, 1) if batch_first else y
        for column, k in enumerate(order):
            n = T if lengths is None else lengths[column]
            for t in range(n):
                assert_same(y[t, column], alone[k].step(x[t, column : column + 1])[0])
            assert not y[n:, column].any()
        if turn == 1:  # nothing is read of padding, and no step is none
            empty = x[:0].swapaxes(0, 1) if batch_first else x[:0]
            assert pool.run([ids[k] for k in order], empty).size == 0
    for id, stream in zip(ids, alone, strict=True):
        assert_same_states(pool.state(id), stream.state)


def test_padding_is_not_read():
    layer = make()
    pool = fastlstm.StreamPool(layer, 2)
    ids = [pool.open(), pool.open()]
    x = numbers(T, 2, I)
    wanted, _ = layer(x, lengths=[2, 4])
    x[2:, 0] = x[4:, 1] = np.nan
    assert_same(pool.run(ids, x, lengths=[2, 4]), wanted)


@pytest.mark.parametrize("split", [None, "none", "batch", "units"])
@pytest.mark.parametrize("cell", ["lstm", "lstm-projected", "gru-reset-before", "gated-rnn"])
def test_threads_do_not_change_the_bits(cell, split):
    """Hundreds of sessions, in several chunks, the last one smaller."""
    name, options = STREAMING[cell]
    options = {k: 30 if k == "proj_size" else v for k, v in options.items()}
    layer = getattr(fastlstm, name)(40, 100, seed=2, **options)
    count, x = 201, numbers(3, 201, 40)
    wanted, after = layer(x)
    threads = fastlstm.get_num_threads()
    try:
        fastlstm.set_num_threads(3)
        _core.force_split(split)
        pool = fastlstm.StreamPool(layer, count)
        ids = [pool.open() for _ in range(count)]
        for t in range(3):
            assert_same(pool.step(ids, x[t]), wanted[t])
            assert split is None or _core.last_split() == split
        for k in (0, 1, 63, 64, 128, 200):
            own = tuple(a[:, k : k + 1] for a in flat(after))
            assert_same_states(tuple(flat(pool.state(ids[k]))), own)
    finally:
        _core.force_split(None)
        fastlstm.set_num_threads(threads)


@each
def test_new_weights_at_the_next_step(cell):
    layer, other = make(cell), make(cell, seed=5)
    pool = fastlstm.StreamPool(layer, 3)
    ids = [pool.open() for _ in range(3)]
    x = numbers(3, 3, I)
    pool.step(ids, x[0])
    parts = zip(*map(flat, states_of(pool, ids)), strict=True)
    state = tuple(np.concatenate(part, axis=1) for part in parts)
    layer.load_state_dict(other.state_dict())
    wanted, _ = other(x[1:], state if len(state) > 1 else state[0])
    assert_same(pool.step(ids, x[1]), wanted[0])
    for _ in range(5):  # a pool that grows keeps them
        pool.open()
    assert_same(pool.run(ids, x[2:]), wanted[1:])


@pytest.mark.parametrize("dtype, bits", [("bfloat16", None), ("int8", 8), ("int8", 16)])
@pytest.mark.parametrize("kind", ["lstm-projected", "gru-reset-before", "rnn", "gated-rnn", "sequential"])
def test_smaller_weights(kind, dtype, bits):
    """More sessions than a chunk holds, and then a few, against streams of their own."""
    net = make("gru" if kind == "sequential" else kind)
    if kind == "sequential":
        net = fastlstm.Sequential(net, fastlstm.Linear(H, 3, seed=0))
    net = net.quantize(dtype, activation_bits=bits)
    pool, alone = fastlstm.StreamPool(net, 1), {}
    for _ in range(70):
        alone[pool.open()] = net.stream()
    for turn, ids in enumerate((list(alone), list(alone)[::9], list(alone)[3:5])):
        x = numbers(2, len(ids), I, seed=turn) * 3
        y = np.concatenate([pool.step(ids, x[0])[None], pool.run(ids, x[1:])])
        for column, id in enumerate(ids):
            for t in range(2):
                assert_same(y[t, column], alone[id].step(x[t, column : column + 1])[0])
            assert_same_states(pool.state(id), alone[id].state)


def test_new_weights_of_a_sequential():
    net, other = model(), model(seed=7)
    pool = fastlstm.StreamPool(net, 2)
    id = pool.open()
    pool.step([id], [3])
    state = pool.state(id)
    net.load_state_dict(other.state_dict())
    assert_same(pool.step([id], [4]), other(np.array([[4]]), state)[0][0])


# --- sessions -----------------------------------------------------------------------------------------------


def test_ids_are_never_used_again():
    pool = fastlstm.StreamPool(make(), 2)
    seen = set()
    for _ in range(50):
        ids = [pool.open(), pool.open()]
        assert not seen & set(ids) and all(type(id) is int and id >= 0 for id in ids)
        seen |= set(ids)
        assert all(id in pool for id in ids) and len(pool) == 2
        for id in ids:
            pool.close(id)
    assert pool.capacity == 2 and len(pool) == 0 and not any(id in pool for id in seen)
    assert fastlstm.StreamPool(make(), 5).open() == 0


def test_the_pool_grows_by_doubling_and_keeps_its_sessions():
    layer = make()
    pool = fastlstm.StreamPool(layer, 3)
    _, start = layer(numbers(2, 1, I, seed=8))
    ids, x = [], numbers(100, I)
    capacities = [pool.capacity]
    for k in range(100):
        ids.append(pool.open(start if k % 2 else None))
        pool.step(ids[-1:], x[k : k + 1])
        if pool.capacity != capacities[-1]:
            capacities.append(pool.capacity)
    assert capacities == [3, 6, 12, 24, 48, 96, 192] and len(pool) == 100
    for k, id in enumerate(ids):
        stream = layer.stream(1, start if k % 2 else None)
        stream.step(x[k : k + 1])
        assert_same_states(pool.state(id), stream.state)
        pool.reset(id)
        stream.reset()
        assert_same_states(pool.state(id), stream.state)


def test_a_pool_that_cannot_grow_loses_nothing():
    pool = fastlstm.StreamPool(model(), 2)
    ids = [pool.open(), pool.open()]
    x = tokens(3, 2)
    wanted = model()(x)[0]
    assert_same(pool.step(ids, x[0]), wanted[0])
    before = states_of(pool, ids)
    with pytest.raises(MemoryError):
        pool._cores[1].reserve(2**24)  # more than there can be
    assert len(pool) == 2
    assert_unchanged(pool, ids, before)
    assert_same(pool.step(ids, x[1]), wanted[1])
    third = pool.open()
    assert third not in ids and all(core.has(third) for core in pool._cores)
    assert_same(pool.step(ids, x[2]), wanted[2])


@each
def test_state_restore_and_reset(cell):
    layer = make(cell)
    _, start = layer(numbers(2, 1, I, seed=8))
    pool = fastlstm.StreamPool(layer, 4)
    a, b, zero = pool.open(start), pool.open(start), pool.open()
    x = numbers(3, I)
    pool.step([a, b, zero], x)
    before = states_of(pool, [a, b, zero])
    snapshot = pool.state(a)
    for array in flat(snapshot):
        array += 1  # a copy: the pool's own stays
    assert_unchanged(pool, [a, b, zero], before)
    pool.restore(b, snapshot)
    assert_same_states(pool.state(b), snapshot)
    assert_unchanged(pool, [a, zero], [before[0], before[2]])
    assert_same(pool.step([b], x[:1])[0], layer(x[None, :1], snapshot)[0][0, 0])
    pool.reset(b)  # to where it was opened, not to where it was restored
    assert_same_states(pool.state(b), start)
    pool.reset(zero)
    assert not any(array.any() for array in flat(pool.state(zero)))
    assert_unchanged(pool, [a], before[:1])
    pool.restore(a, None)
    assert not any(array.any() for array in flat(pool.state(a)))


def test_a_slot_is_clean_when_it_is_used_again():
    layer = make()
    _, start = layer(numbers(2, 1, I, seed=8))
    pool = fastlstm.StreamPool(layer, 1)
    for state in (start, None, start, None):
        id = pool.open(state)
        stream = layer.stream(1, state)
        for _ in range(2):
            assert_same_states(pool.state(id), stream.state)
            assert_same(pool.step([id], numbers(1, I)), stream.step(numbers(1, I)))
            pool.reset(id)
            stream.reset()
        pool.close(id)


def test_states_move_between_pool_stream_and_call():
    net = model()
    pool, stream = fastlstm.StreamPool(net, 2), net.stream()
    id = pool.open()
    pool.run([id], tokens(T, 1))
    stream.state = pool.state(id)
    x = tokens(1, 1, seed=5)
    wanted = net(x, pool.state(id))[0][0]
    assert_same(stream.step(x[0]), wanted)
    assert_same(pool.step([id], x[0]), wanted)


class Sessions(RuleBasedStateMachine):
    """Whatever is done in whatever order, a pool is a dict of streams."""

    @initialize(capacity=st.integers(1, 3), sequential=st.booleans())
    def create(self, capacity, sequential):
        gru = make("gru")
        self.model = fastlstm.Sequential(gru, fastlstm.RNN(H, 3, seed=1)) if sequential else gru
        self.pool = fastlstm.StreamPool(self.model, capacity)
        self.alone, self.closed, self.count = {}, [], 0

    def x(self, n):
        self.count += 1
        return numbers(n, I, seed=self.count)

    @rule(from_state=st.booleans())
    def open(self, from_state):
        state = self.model(self.x(1)[None])[1] if from_state else None
        id = self.pool.open(state)
        assert id not in self.alone and id not in self.closed
        self.alone[id] = self.model.stream(1, state)

    @precondition(lambda self: self.alone)
    @rule(data=st.data())
    def close(self, data):
        id = data.draw(st.sampled_from(list(self.alone)))
        self.pool.close(id)
        del self.alone[id]
        self.closed.append(id)

    @precondition(lambda self: self.alone)
    @rule(data=st.data())
    def reset(self, data):
        id = data.draw(st.sampled_from(list(self.alone)))
        self.pool.reset(id)
        self.alone[id].reset()

    @precondition(lambda self: self.alone)
    @rule(data=st.data())
    def step(self, data):
        ids = data.draw(st.lists(st.sampled_from(list(self.alone)), unique=True))
        x = self.x(len(ids))
        for id, row, got in zip(ids, x, self.pool.step(ids, x), strict=True):
            assert_same(got, self.alone[id].step(row[None])[0])

    @precondition(lambda self: self.alone)
    @rule(data=st.data())
    def refused(self, data):
        ids = data.draw(st.lists(st.sampled_from(list(self.alone)), unique=True))
        wrong = data.draw(st.sampled_from([*self.closed, *ids, 2**40, 2**63 - 1, -1]))
        ids.insert(data.draw(st.integers(0, len(ids))), wrong)
        with pytest.raises(ValueError, match="ids"):
            self.pool.step(ids, self.x(len(ids)))

    @invariant()
    def states_are_equal(self):
        if not hasattr(self, "pool"):
            return
        assert len(self.pool) == len(self.alone) <= self.pool.capacity
        for id, stream in self.alone.items():
            assert id in self.pool
            assert_same_states(self.pool.state(id), stream.state)


Sessions.TestCase.settings = settings(max_examples=30, stateful_step_count=30)
TestSessions = Sessions.TestCase


# --- what is refused, and changes nothing -------------------------------------------------------------------


@pytest.fixture(params=["layer", "sequential"])
def three(request):
    """A pool with three sessions that are somewhere, one that is closed, and an x for three."""
    if request.param == "layer":
        pool = fastlstm.StreamPool(make(), 8)
        x = numbers(3, I)
    else:
        pool = fastlstm.StreamPool(fastlstm.Sequential(fastlstm.Linear(I, I, seed=0), make("gru")), 3)
        x = numbers(3, I)
    closed = pool.open()
    pool.close(closed)
    ids = [pool.open() for _ in range(3)]
    pool.step(ids, x)
    return pool, ids, closed, x


def test_wrong_ids_change_nothing(three):
    pool, (a, b, c), closed, x = three
    before = states_of(pool, (a, b, c))
    out = np.full((3, flat(before[0])[0].shape[-1]), 7, "f4")
    for ids in ([a, b, a], [a, b, closed], [a, b, 12345], [a, b, -1], [a, b, 2**62], [closed, a, b], [a] * 3):
        for given in (ids, tuple(ids), np.array(ids), np.array(ids, np.int64)[::-1]):
            with pytest.raises(ValueError, match="ids"):
                pool.step(given, x)
            with pytest.raises(ValueError, match="ids"):
                pool.run(given, x[None])
    wrong = [
        ([a, b, 2**64], TypeError), ([a, b, 2**63], (TypeError, ValueError)), ([a, b, 1.0], TypeError),
        ([a, b, True], ValueError), ([True, True, True], TypeError), ([a, b, None], TypeError),
        ("abc", TypeError), (None, TypeError), (a, ValueError), ([[a], [b], [c]], ValueError),
        (np.array([a, b, 2.0]), TypeError), (np.array([a, b, 2**63 + b], np.uint64), ValueError),
        ([a, b], ValueError), ([a, b, c, c], ValueError), (list(range(50)), ValueError),
    ]  # fmt: skip
    for ids, error in wrong:
        with pytest.raises(error, match="ids|x must"):
            pool.step(ids, x)
        with pytest.raises(error, match="ids|x must"):
            pool.run(ids, x[None])
    for ids in ([a, b, a], [a, b, closed]):
        with pytest.raises(ValueError, match="ids"):
            pool.step(ids, x, out=out)
    assert_unchanged(pool, (a, b, c), before)
    assert (out == 7).all()
    assert len(pool.step([c, a, b], x)) == 3  # and it still works


def test_wrong_arrays_change_nothing(three):
    pool, ids, _, x = three
    before = states_of(pool, ids)
    y = pool.step([], x[:0])
    assert y.shape == (0, y.shape[1])
    width = y.shape[1]
    for bad, error in (
        (x[:2], ValueError), (x[:, :-1], ValueError), (x[None], ValueError), (x[0], ValueError),
        (x + 1j, TypeError), ("x", TypeError), (None, TypeError),
    ):  # fmt: skip
        with pytest.raises(error, match="x "):
            pool.step(ids, bad)
        with pytest.raises(error, match="x "):
            pool.run(ids, bad if bad is x[0] or not isinstance(bad, np.ndarray) else bad[None])
    with pytest.raises(ValueError, match="x must be .* a sequence for each of ids"):
        pool.run(ids, x)  # unbatched: [T, I]
    for lengths in ([1, 1], [1, 1, 2], [1, 1, -1], [[1, 1, 1]], [1.0, 1, 1]):
        with pytest.raises((TypeError, ValueError), match="lengths"):
            pool.run(ids, x[None], lengths)
    for out in (
        np.empty((3, width), "f8"), np.empty((2, width), "f4"), np.empty((3, width + 1), "f4"),
        np.empty((width, 3), "f4").T, np.frombuffer(bytes(12 * width), "f4").reshape(3, width),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="out"):
            pool.step(ids, x, out=out)
    with pytest.raises(TypeError, match="out"):
        pool.step(ids, x, out=[[0.0] * width] * 3)
    memory = np.zeros(200, "f4")
    with pytest.raises(ValueError, match="out.*overlap"):
        pool.step(ids, memory[: 3 * I].reshape(3, I), out=memory[1 : 1 + 3 * width].reshape(3, width))
    assert_unchanged(pool, ids, before)


def test_wrong_single_ids_and_states_change_nothing(three):
    pool, ids, closed, _ = three
    before = states_of(pool, ids)
    for call in (pool.state, pool.reset, pool.close, lambda id: pool.restore(id, before[0])):
        for id, error in (
            (closed, ValueError), (99, ValueError), (-1, ValueError), (2**63, ValueError),
            (2**80, ValueError), (1.0, TypeError), ("1", TypeError), (None, TypeError), (True, TypeError),
            ([ids[0]], TypeError),
        ):  # fmt: skip
            with pytest.raises(error, match="^id must"):
                call(id)
    wide = tuple(a[:, [0, 0]] for a in flat(before[0]))
    for state in ("x", 1, [1, 2, 3], wide, (*flat(before[0]), None), flat(before[0])[0][:, :, 1:]):
        with pytest.raises((TypeError, ValueError), match="state"):
            pool.open(state)
        with pytest.raises((TypeError, ValueError), match="state"):
            pool.restore(ids[0], state)
    assert len(pool) == 3
    assert_unchanged(pool, ids, before)


def test_membership():
    pool = fastlstm.StreamPool(make(), 1)
    id = pool.open()
    assert id in pool and np.int64(id) in pool and np.uint8(id) in pool
    for other in (id + 1, id + 2**24, -1, 2**63, 2**80, float(id), str(id), None, False, [id]):
        assert other not in pool


def test_models_that_cannot_be_pooled():
    for option in ("reverse", "bidirectional"):
        layer = fastlstm.LSTM(I, H, **{option: True})
        with pytest.raises(ValueError, match=f"model.*{option}"):
            fastlstm.StreamPool(layer, 4)
        with pytest.raises(ValueError, match=f"model.*{option}") as caught:
            fastlstm.StreamPool(fastlstm.Sequential(fastlstm.Dropout(), layer), 4)
        assert "modules[1]" in caught.value.__notes__[0]
    linear = fastlstm.Linear(2, 2)
    for wrong in (linear, fastlstm.Sequential(linear), None, "lstm", make().stream(), fastlstm.LSTM,
                  fastlstm.reference.LSTM(2, 3)):  # fmt: skip
        with pytest.raises(TypeError, match="model must be"):
            fastlstm.StreamPool(wrong, 4)
    for capacity, error in ((0, ValueError), (-1, ValueError), (2**24 + 1, ValueError), (1.0, TypeError),
                            (True, TypeError), (None, TypeError)):  # fmt: skip
        with pytest.raises(error, match="capacity"):
            fastlstm.StreamPool(make(), capacity)


def test_a_pool_is_not_copied_and_says_what_it_is():
    pool = fastlstm.StreamPool(fastlstm.GRU(3, 4), 8)
    pool.open()
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="StreamPool cannot be pickled"):
            duplicate(pool)
    assert repr(pool) == "<StreamPool: 1 of 8 sessions of GRU(3, 4)>"


@pytest.mark.parametrize("cell", ["lstm", "lstm-projected", "gru-reset-before"])
def test_a_step_allocates_nothing(cell):
    layer = make(cell)
    pool = fastlstm.StreamPool(layer, 150)
    ids = np.array([pool.open() for _ in range(150)])
    x = numbers(150, I)
    out = pool.step(ids, x)
    tracemalloc.start(1)
    try:
        for _ in range(5):  # tracemalloc's own bookkeeping settles
            pool.step(ids, x, out=out)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(100):
            pool.step(ids, x, out=out)
        now, peak = tracemalloc.get_traced_memory()
        assert now - before < 256 and peak - before < 256  # the loop's own number
        pool.step(ids, x)
        assert tracemalloc.get_traced_memory()[1] - before > out.nbytes
    finally:
        tracemalloc.stop()


# --- threads, fork ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["layer", "sequential"])
def test_many_threads_share_a_pool(kind):
    """Each opens, steps and closes sessions of its own: no call is refused, and all have their own bits."""
    net = make("lstm-stack")
    if kind == "sequential":
        net = fastlstm.Sequential(net, fastlstm.Linear(H, 4, seed=0))
    pool, wrong, start = fastlstm.StreamPool(net, 1), [], threading.Barrier(4)

    def sessions(seed):
        try:
            start.wait()
            for turn in range(15):
                ids = [pool.open() for _ in range(1 + (seed + turn) % 5)]
                x = numbers(6, len(ids), I, seed=seed * 100 + turn)
                wanted, after = net(x)
                for t in range(4):
                    assert_same(pool.step(ids, x[t]), wanted[t])
                assert_same(pool.run(ids, x[4:]), wanted[4:])
                for k, id in enumerate(ids):
                    assert_same_states(pool.state(id), tuple(a[:, k : k + 1] for a in flat(after)))
                    assert id in pool
                    pool.close(id)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=sessions, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(pool) == 0 and 4 <= pool.capacity <= 64


def test_steps_of_one_session_in_many_threads_come_one_after_the_other():
    """As many steps as were asked for, none lost, none torn: an accumulator counts them."""
    layer = fastlstm.RNN(1, 64, nonlinearity="relu", bias=False)
    layer.load_state_dict({"weight_ih_l0": np.ones((64, 1)), "weight_hh_l0": np.eye(64)})
    pool = fastlstm.StreamPool(layer, 300)
    ids = [pool.open() for _ in range(300)]  # so many that the GIL is released
    x = np.ones((300, 1), "f4")

    def steps():
        for turn in range(20):
            if turn % 5:
                pool.step(ids, x)
            else:
                pool.run(ids, x[None])

    threads = [threading.Thread(target=steps) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((pool.state(id) == 80).all() for id in ids)


def test_a_finalizer_may_close_a_session_in_the_midst_of_a_call():
    pool = fastlstm.StreamPool(make("gru"), 4)
    kept, gone = pool.open(), pool.open()

    class Closing:
        """An x whose conversion closes a session, in the thread that is in the call."""

        def __array__(self, dtype=None, copy=None):
            pool.close(gone)
            return numbers(1, I)

    assert pool.step([kept], Closing()).shape == (1, H) and gone not in pool


def interrupted(call, at):
    """Runs `call` with a KeyboardInterrupt at the at-th instruction of Python; false if it has fewer."""
    seen = 0

    def trace(frame, event, arg):
        nonlocal seen
        frame.f_trace_opcodes = True
        seen += 1
        if seen == at:
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return seen >= at


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # where a finalizer meets it
@pytest.mark.parametrize("what", ["open", "close", "reset", "restore", "run"])
def test_an_interrupt_leaves_all_layers_of_a_model_with_the_same_sessions(what):
    """Wherever it comes, a session is open in all or in none, and its state is the old or the new one."""
    net = fastlstm.Sequential(fastlstm.GRU(2, 3, seed=0), fastlstm.RNN(3, 4, seed=1))
    pool = fastlstm.StreamPool(net, 1)
    x = numbers(2, 1, 2)
    _, start = net(x)
    id = pool.open(start)
    pool.run([id], x)
    old = pool.state(id)
    new = {"reset": start, "restore": start, "run": net(x, old)[1]}.get(what, old)
    call = {
        "open": pool.open, "close": lambda: pool.close(id), "reset": lambda: pool.reset(id),
        "restore": lambda: pool.restore(id, start), "run": lambda: pool.run([id], x),
    }[what]  # fmt: skip
    at, changed = 1, 0
    while interrupted(call, at):
        at += 1
        assert len({core.count for core in pool._cores}) == 1
        assert all(core.has(id) for core in pool._cores) or (what == "close" and id not in pool)
        if what == "close":
            if id not in pool:  # it had been closed already when it was interrupted
                changed += 1
                id = pool.open()
                assert all(core.has(id) for core in pool._cores)
            continue
        now = [a.tobytes() for a in flat(pool.state(id))]
        assert now in ([a.tobytes() for a in flat(old)], [a.tobytes() for a in flat(new)])
        changed += now == [a.tobytes() for a in flat(new)]
        pool.restore(id, old)
        if what == "open":
            number = pool.open()
            assert all(core.has(number) for core in pool._cores)
            pool.close(number)
    assert at > 20 and changed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_gets_a_pool_between_two_calls():
    """While another thread is in calls all the time, a child finds a pool that works and is in step."""
    layer = fastlstm.RNN(1, 64, nonlinearity="relu", bias=False)
    layer.load_state_dict({"weight_ih_l0": np.ones((64, 1)), "weight_hh_l0": np.eye(64)})
    net = fastlstm.Sequential(layer, fastlstm.Linear(64, 64))
    pool = fastlstm.StreamPool(net, 1000)
    ids = [pool.open() for _ in range(1000)]
    x, done = np.ones((1000, 1), "f4"), threading.Event()

    def steps():
        while not done.is_set():
            pool.step(ids, x)

    thread = threading.Thread(target=steps)
    thread.start()
    try:
        codes = []
        for _ in range(10):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    import signal

                    signal.alarm(20)  # a child that hangs is a failure, not a wait
                    counts = {float(pool.state(id)[0][0, 0, k]) for id in ids for k in (0, 63)}
                    pool.step(ids, x)
                    after = {float(pool.state(id)[0][0, 0, 0]) for id in ids}
                    fastlstm.StreamPool(net, 1).open()
                    code = 0 if len(counts) == 1 and after == {counts.pop() + 1} else 3
                finally:
                    os._exit(code)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    finally:
        done.set()
        thread.join()
    assert codes == [0] * 10
    pool.step(ids, x)


def test_pools_that_are_gone_are_forgotten():
    gc.collect()
    before = len(_pools)
    pool = fastlstm.StreamPool(make(), 4)
    assert len(_pools) == before + 1
    del pool
    gc.collect()
    assert len(_pools) == before
