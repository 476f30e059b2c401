"""The same bits: however a sequence is run, on whatever path, its output is the same, byte for byte.

How each path comes to run all of this: same_bits.py.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from same_bits import (
    CELLS,
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


def call(layer, x, state, lengths=None):
    """Output and states as a list, each as the integers of its bits."""
    state = tuple(np.ascontiguousarray(s) for s in state)
    output, after = layer(x, state if len(state) > 1 else state[0], lengths=lengths)
    return [output, *(after if isinstance(after, tuple) else (after,))]


def differ(got, wanted, what):
    """What differs, in words; nothing if nothing does."""
    pairs = zip(("output", "h", "c"), got, wanted, strict=False)
    text = next((text for pair in pairs if (text := difference(*pair))), "")
    return text and f"{what}: {text}"


def row_of(wanted, b, n):
    return [wanted[0][:n, b : b + 1], *(w[:, b : b + 1] for w in wanted[1:])]


# --- the comparisons, each a generator of differences -------------------------------------------------------


def alone_and_in_a_batch(cell, dtype):
    for sizes in (*SIZES, NARROW):
        layer = make(cell, dtype, sizes)
        x, state, lengths = numbers(layer, 9, 9)
        wanted = call(layer, x, state, lengths)
        for b in range(9):
            n = lengths[b]
            got = call(layer, x[:n, b : b + 1], [s[:, b : b + 1] for s in state])
            # Padded against exact as well: what lies beyond the length is zero, and was not read.
            yield differ(got, row_of(wanted, b, n), f"{sizes}, alone {b}")
            yield "" if not bits(wanted[0][n:, b]).any() else f"{sizes}: padding of {b} is not zero"


def each_place(cell, dtype):
    for sizes in SIZES:
        layer = make(cell, dtype, sizes)
        for batch in (2, 7, 8, 26):
            x, state, lengths = numbers(layer, 5, batch)
            wanted = call(layer, x, state, lengths)
            for shift in (1, batch // 2, batch - 1):
                order = np.roll(np.arange(batch), shift)
                got = call(layer, x[:, order], [s[:, order] for s in state], lengths[order])
                yield differ(got, [w[:, order] for w in wanted], f"{sizes}, B {batch}, shifted by {shift}")


def threads(cell, dtype):
    layer = make(cell, dtype, WIDE)
    for steps, batch, ragged in ((6, 1, 0), (6, 2, 1), (5, 9, 0), (7, 9, 1), (3, 30, 1), (2, 70, 0)):
        x, state, lengths = numbers(layer, steps, batch)
        lengths = lengths if ragged else None
        fastlstm.set_num_threads(1)
        _core.force_split("none")
        wanted = call(layer, x, state, lengths)
        yield "" if _core.last_split() == "none" else "one thread: split"
        for count in (2, 3):
            fastlstm.set_num_threads(count)
            for split in ("batch", "units"):
                _core.force_split(split)
                for _ in range(2):  # the second time the workers are there
                    got = call(layer, x, state, lengths)
                    taken = _core.last_split()
                    yield "" if taken == split else f"{count} threads: {taken}, wanted {split}"
                    yield differ(got, wanted, f"T {steps}, B {batch}, {count} threads, {split}")
        _core.force_split(None)
        yield differ(call(layer, x, state, lengths), wanted, f"T {steps}, B {batch}, own choice")
        fastlstm.set_num_threads(1)


def split_in_time(cell, dtype):
    if CELLS[cell][1].get("bidirectional") or CELLS[cell][1].get("reverse"):
        return  # they need the whole sequence
    for sizes in (*SIZES, WIDE):
        layer = make(cell, dtype, sizes)
        for steps, batch in ((9, 5), (70, 1)):
            x, state, _ = numbers(layer, steps, batch)
            wanted = call(layer, x, state)
            cuts = [[k] for k in range(1, steps, 1 if steps < 20 else 13)]
            for cut in (*cuts, list(range(1, steps)), [2, 3, 7]):
                outputs, now = [], state
                for begin, end in zip([0, *cut], [*cut, steps], strict=True):
                    output, *now = call(layer, x[begin:end], now)
                    outputs.append(output)
                yield differ([np.concatenate(outputs), *now], wanted, f"{sizes}, B {batch}, cut at {cut}")
            for count in (1, 2, 3) if sizes == WIDE else (1,):
                fastlstm.set_num_threads(count)
                _core.force_split("units" if count > 1 else None)
                stream = layer.stream(batch, tuple(state) if len(state) > 1 else state[0])
                outputs = [stream.step(x[t]) for t in range(steps)]
                taken = _core.last_split()
                yield "" if count == 1 or taken == "units" else f"{count} threads: a step took {taken}"
                now = stream.state if isinstance(stream.state, tuple) else (stream.state,)
                yield differ([np.stack(outputs), *now], wanted, f"{sizes}, B {batch}, {count}, stream")
                fastlstm.set_num_threads(1)
                outputs = [stream.step(x[t]) for t in range(steps)]  # fewer than it was made for
                _core.force_split(None)


def padded_and_batch_first(cell, dtype):
    for sizes in SIZES:
        layer, other = make(cell, dtype, sizes), make(cell, dtype, sizes, batch_first=True)
        for batch in (1, 6):
            x, state, lengths = numbers(layer, 8, batch)
            wanted = call(layer, x, state, lengths)
            for filling in (np.nan, np.inf, 1e30):
                longer = np.full((13, *x.shape[1:]), filling, x.dtype)
                for b in range(batch):
                    longer[: lengths[b], b] = x[: lengths[b], b]
                got = call(layer, longer, state, lengths)
                yield differ([got[0][:8], *got[1:]], wanted, f"{sizes}, padded with {filling}")
                yield "" if not bits(got[0][8:]).any() else f"{sizes}: padding is not zero"
            got = call(other, x.swapaxes(0, 1), state, lengths)
            yield differ([got[0].swapaxes(0, 1), *got[1:]], wanted, f"{sizes}, batch first, a view")
            got = call(other, x.swapaxes(0, 1).copy(), state, lengths)
            yield differ([got[0].swapaxes(0, 1), *got[1:]], wanted, f"{sizes}, batch first")


def large_batches(cell, dtype):
    layer = make(cell, dtype, (7, 20))
    for batch in (127, 200, 260):
        x, state, lengths = numbers(layer, 4, batch)
        for given in (None, lengths):
            wanted = call(layer, x, state, given)
            for b in (0, 1, 64, 126, batch // 2, batch - 1):
                n = 4 if given is None else given[b]
                got = call(layer, x[:n, b : b + 1], [s[:, b : b + 1] for s in state])
                what = "dense" if given is None else "ragged"
                yield differ(got, row_of(wanted, b, n), f"B {batch}, {what}, row {b}")
            fastlstm.set_num_threads(3)
            for split in ("batch", "units"):
                _core.force_split(split)
                yield differ(call(layer, x, state, given), wanted, f"B {batch}, {split}")
            _core.force_split(None)
            fastlstm.set_num_threads(1)


COMPARISONS = (
    alone_and_in_a_batch, each_place, threads, split_in_time, padded_and_batch_first, large_batches,
)  # fmt: skip


def outputs(cell, dtype):
    for sizes in (*SIZES, NARROW, WIDE):
        layer = make(cell, dtype, sizes)
        for name, value in zip("yhc", call(layer, *numbers(layer, 6, 7)), strict=False):
            yield f"{sizes}/{name}", value


# --- the tests ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return reports_of(__file__, tmp_path_factory.mktemp("bits"))


@pytest.mark.parametrize("path", _core.isas())
@pytest.mark.parametrize("compare", COMPARISONS, ids=lambda f: f.__name__)
def test_on(path, compare, reports):
    check_on(path, compare, reports, at_least=100)


@pytest.mark.parametrize("path", _core.isas()[1:])
def test_between_paths(path, reports):
    check_between(path, reports, at_least=300)


def test_a_difference_is_found():
    """Even of one last bit, of the sign of zero; not of the payload of a NaN."""
    a = np.array([[1, 0, np.nan]], "f4")
    for at, other in ((0, np.nextafter(np.float32(1), np.float32(2))), (1, np.float32(-0.0))):
        b = a.copy()
        b[0, at] = other
        assert "differs in 1 of 3" in differ([b], [a], "")
    b = a.copy()
    b.view("u4")[0, 2] = 0xFFC12345
    assert np.isnan(b[0, 2]) and not differ([b], [a], "")
    assert "shape" in differ([a[:, :2]], [a], "")


if __name__ == "__main__":
    run_all(COMPARISONS, outputs, *sys.argv[1:])


# --- smaller weights: the paths of int8 are more ------------------------------------------------------------

SMALL_WEIGHTS = """
import hashlib, numpy as np, fastlstm
digest = hashlib.sha256()
for cls in (fastlstm.LSTM, fastlstm.GRU, fastlstm.RNN, fastlstm.GatedRNN):
    for size in ((5, 9, 3), (64, 64, 33), (70, 130, 17), (200, 129, 50), (3, 33, 1), (128, 72, 16)):
        inputs, units, batch = size
        layer = cls(inputs, units, seed=0)
        x = np.random.default_rng(1).standard_normal((3, batch, inputs)).astype(np.float32)
        for dtype, bits in (("bfloat16", None), ("int8", 8), ("int8", 16)):
            small = layer.quantize(dtype, activation_bits=bits)
            y, state = small(x)
            digest.update(y.tobytes())
            for v in state if isinstance(state, tuple) else (state,):
                digest.update(v.tobytes())
print(digest.hexdigest())
"""


def test_small_weights_on_every_path():
    """In processes of their own: a path is chosen once."""
    found = {}
    for path in _core.integer_isas():
        if path == "portable" and "fma" not in _core.cpu_features():
            continue  # bits of its own there, as documented
        run = subprocess.run(
            [sys.executable, "-c", SMALL_WEIGHTS], env={**os.environ, "FASTLSTM_ISA": path},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found[path] = run.stdout
    assert len(set(found.values())) == 1, found
