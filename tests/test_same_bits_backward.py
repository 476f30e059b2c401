"""The same bits, for gradients: whatever path, threads, layout or checkpoint, each gradient is the same, byte
for byte; those of a sequence's own input and state also alone and at any place of a batch.

How each path comes to run all of this: same_bits.py.
"""

import sys

import numpy as np
import pytest
from same_bits import (
    NARROW,
    SIZES,
    WIDE,
    bits,
    check_between,
    check_on,
    difference,
    make,
    numbers,
    reports_of,
    run_all,
)

import fastlstm
from fastlstm import _core

OWN = ("input", "d_h", "d_c")  # gradients that belong to one sequence; parameters have a sum over all


def given(layer, steps, batch, spoilt=False, seed=0):
    """x, state, lengths, d_output, d_state; where spoilt, one sequence meets a NaN, another an infinity."""
    x, state, lengths = numbers(layer, steps, batch, seed)
    if not spoilt:
        x = np.nan_to_num(x, nan=0.5, posinf=1, neginf=-1)
    rng = np.random.default_rng(seed + 1)
    width = state[0].shape[2] * (2 if layer.bidirectional else 1)
    d_output = rng.normal(size=(steps, batch, width)).astype(layer.dtype)
    return x, state, lengths, d_output, [rng.normal(size=v.shape).astype(layer.dtype) for v in state]


def form(state):
    state = tuple(np.ascontiguousarray(v) for v in state)
    return state if len(state) > 1 else state[0]


def run(layer, x, state, lengths, d_output, d_state, **how):
    """The gradients by name."""
    tape = layer.record(x, form(state), lengths=lengths, **how)
    grads = tape.backward(d_output, form(d_state))
    states = grads.state if isinstance(grads.state, tuple) else (grads.state,)
    return {"input": grads.input, **dict(zip(OWN[1:], states, strict=False)), **grads.parameters}


def differ(got, wanted, what, names=None):
    """What differs, in words; nothing if nothing does."""
    pairs = ((name, got[name], wanted[name]) for name in names or wanted)
    text = next((text for pair in pairs if (text := difference(*pair))), "")
    return text and f"{what}: {text}"


def row_of(found, b, n):
    """What belongs to sequence b, of n steps."""
    own = {name: found[name][:, b : b + 1] for name in OWN if name in found}
    own["input"] = own["input"][:n]
    return own


def alone(layer, x, state, d_output, d_state, b, n):
    rows = [[v[:, b : b + 1] for v in s] for s in (state, d_state)]
    return run(layer, x[:n, b : b + 1], rows[0], None, d_output[:n, b : b + 1], rows[1])


# --- the comparisons, each a generator of differences -------------------------------------------------------


def alone_and_in_a_batch(cell, dtype):
    for sizes in (*SIZES, NARROW):
        layer = make(cell, dtype, sizes)
        x, state, lengths, d_output, d_state = given(layer, 9, 9, spoilt=True)
        wanted = run(layer, x, state, lengths, d_output, d_state)
        for b in range(9):
            row = row_of(wanted, b, lengths[b])
            got = alone(layer, x, state, d_output, d_state, b, lengths[b])
            yield differ(got, row, f"{sizes}, alone {b}", row)
            padding = wanted["input"][lengths[b] :, b]
            yield "" if not bits(padding).any() else f"{sizes}: padding of {b} is not zero"


def each_place(cell, dtype):
    for sizes in SIZES:
        layer = make(cell, dtype, sizes)
        for batch in (2, 7, 8, 26):
            x, state, lengths, d_output, d_state = given(layer, 5, batch, spoilt=True)
            found = run(layer, x, state, lengths, d_output, d_state)
            for shift in (1, batch // 2, batch - 1):
                order = np.roll(np.arange(batch), shift)
                wanted = {name: found[name][:, order] for name in OWN if name in found}
                states = [[v[:, order] for v in s] for s in (state, d_state)]
                got = run(layer, x[:, order], states[0], lengths[order], d_output[:, order], states[1])
                yield differ(got, wanted, f"{sizes}, B {batch}, shifted by {shift}")


def threads(cell, dtype):
    for sizes, shapes in (
        (WIDE, ((4, 1, 0), (3, 9, 1), (2, 30, 0))),
        (SIZES[0], ((60, 9, 0), (60, 11, 1), (1, 600, 0))),  # more than one chunk of the sums over t and b
        (SIZES[2], ((20, 26, 0),)),
    ):
        layer = make(cell, dtype, sizes)
        for steps, batch, ragged in shapes:
            x, state, lengths, d_output, d_state = given(layer, steps, batch)
            what = (x, state, lengths if ragged else None, d_output, d_state)
            fastlstm.set_num_threads(1)
            _core.force_split("none")
            wanted = run(layer, *what)
            yield "" if _core.last_split() == "none" else "one thread: split"
            for count, split in ((2, "none"), (2, "batch"), (2, "units"), (3, "batch"), (3, "units")):
                fastlstm.set_num_threads(count)
                _core.force_split(split)
                text = f"{sizes}, T {steps}, B {batch}, {'ragged, ' * ragged}{count} threads, {split}"
                for checkpoint in (None, 2):  # the second time the workers are there
                    got = run(layer, *what, checkpoint=checkpoint)
                    yield differ(got, wanted, f"{text}, checkpoint {checkpoint}")
            _core.force_split(None)
            yield differ(run(layer, *what), wanted, f"{sizes}, T {steps}, B {batch}, own choice")
            fastlstm.set_num_threads(1)


def checkpoints(cell, dtype):
    for sizes in SIZES:
        layer = make(cell, dtype, sizes)
        for steps, batch in ((9, 7), (50, 1)):
            x, state, lengths, d_output, d_state = given(layer, steps, batch)
            for some in (None, lengths):
                wanted = run(layer, x, state, some, d_output, d_state)
                for k in (1, 2, 3, 7, steps, steps + 5):
                    got = run(layer, x, state, some, d_output, d_state, checkpoint=k)
                    yield differ(got, wanted, f"{sizes}, T {steps}, checkpoint {k}")


def padded_and_batch_first(cell, dtype):
    for sizes in SIZES:
        layer, other = make(cell, dtype, sizes), make(cell, dtype, sizes, batch_first=True)
        for steps, batch in ((8, 1), (8, 6), (40, 9)):
            x, state, lengths, d_output, d_state = given(layer, steps, batch)
            wanted = run(layer, x, state, lengths, d_output, d_state)
            for filling in (np.nan, 1e30):
                longer = [np.full((steps + 5, *v.shape[1:]), filling, v.dtype) for v in (x, d_output)]
                for b in range(batch):
                    for long, v in zip(longer, (x, d_output), strict=True):
                        long[: lengths[b], b] = v[: lengths[b], b]
                got = run(layer, longer[0], state, lengths, longer[1], d_state)
                yield "" if not bits(got["input"][steps:]).any() else f"{sizes}: padding is not zero"
                got["input"] = got["input"][:steps]
                yield differ(got, wanted, f"{sizes}, T {steps}, B {batch}, padded with {filling}")
            full = [steps] * batch
            dense = run(layer, x, state, None, d_output, d_state)
            yield differ(run(layer, x, state, full, d_output, d_state), dense, f"{sizes}, all of full length")
            views = [v.swapaxes(0, 1) for v in (x, d_output)]
            for pair in (views, [v.copy() for v in views]):
                for some, these in ((lengths, wanted), (None, dense)):
                    got = run(other, pair[0], state, some, pair[1], d_state)
                    got["input"] = got["input"].swapaxes(0, 1)
                    yield differ(got, these, f"{sizes}, T {steps}, B {batch}, batch first")


def large_batches(cell, dtype):
    layer = make(cell, dtype, (7, 20))
    for batch in (127, 260):
        x, state, lengths, d_output, d_state = given(layer, 4, batch)
        for some in (None, lengths):
            what = "dense" if some is None else "ragged"
            wanted = run(layer, x, state, some, d_output, d_state)
            for b in (0, 1, 64, 126, batch // 2, batch - 1):
                n = 4 if some is None else some[b]
                row = row_of(wanted, b, n)
                got = alone(layer, x, state, d_output, d_state, b, n)
                yield differ(got, row, f"B {batch}, {what}, row {b}", row)
            fastlstm.set_num_threads(3)
            for split in ("batch", "units"):
                _core.force_split(split)
                got = run(layer, x, state, some, d_output, d_state)
                yield differ(got, wanted, f"B {batch}, {what}, {split}")
            _core.force_split(None)
            fastlstm.set_num_threads(1)


COMPARISONS = (
    alone_and_in_a_batch, each_place, threads, checkpoints, padded_and_batch_first, large_batches,
)  # fmt: skip


def gradients(cell, dtype):
    shapes = [(sizes, 6, 7) for sizes in (*SIZES, NARROW, WIDE)]
    for sizes, steps, batch in (*shapes, (SIZES[0], 60, 9), (SIZES[0], 5, 5)):
        layer = make(cell, dtype, sizes, dropout=0.3)
        what = given(layer, steps, batch, spoilt=batch == 5)
        for name, value in run(layer, *what, dropout_seed=1).items():
            yield f"{sizes}/{steps}/{name}", value


# --- the tests ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return reports_of(__file__, tmp_path_factory.mktemp("bits"))


@pytest.mark.parametrize("path", _core.isas())
@pytest.mark.parametrize("compare", COMPARISONS, ids=lambda f: f.__name__)
def test_on(path, compare, reports):
    check_on(path, compare, reports, at_least=500)


@pytest.mark.parametrize("path", _core.isas()[1:])
def test_between_paths(path, reports):
    check_between(path, reports, at_least=1000)


def test_a_difference_is_found():
    """Even of one last bit in one gradient; not of the payload of a NaN."""
    a = {"input": np.array([[1, 0, np.nan]], "f4"), "weight_hh_l0": np.ones((2, 2), "f4")}
    b = {name: v.copy() for name, v in a.items()}
    b["input"].view("u4")[0, 2] = 0xFFC12345
    assert not differ(a, b, "")
    b["weight_hh_l0"][1, 0] = np.nextafter(np.float32(1), np.float32(2))
    assert "weight_hh_l0 differs in 1 of 4" in differ(a, b, "") and not differ(a, b, "", ["input"])
    assert "shape" in differ({"input": a["input"][:, :2]}, a, "")


if __name__ == "__main__":
    run_all(COMPARISONS, gradients, *sys.argv[1:])
