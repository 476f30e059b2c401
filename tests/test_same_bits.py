"""The same bits: however a sequence is run, on whatever path, its output is the same, byte for byte.

Each path that the CPU has runs all comparisons in a process of its own (this file as a program), which
reports what differed; the outputs themselves are kept and compared between the paths. -0 is not 0; NaN is
NaN, whatever its payload.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm import _core

CELLS = {
    "lstm": ("LSTM", {}),
    "lstm-projected": ("LSTM", {"proj_size": 0.5, "num_layers": 2}),
    "lstm-peepholes": ("LSTM", {"peepholes": True, "clip": 1.5, "bidirectional": True}),
    "lstm-no-forget-gate": ("LSTM", {"forget_gate": False, "reverse": True}),
    "lstm-coupled": (
        "LSTM",
        {"coupled_gates": True, "peepholes": True, "proj_size": 0.5, "bidirectional": True},
    ),  # fmt: skip
    "lstm-stack": ("LSTM", {"num_layers": 3, "bidirectional": True}),
    "lstm-activations": ("LSTM", {"activations": ("hard_sigmoid", "softsign", ("scaled_tanh", 1.2, 0.7))}),
    "gru": ("GRU", {"num_layers": 2}),
    "gru-both": ("GRU", {"bidirectional": True, "num_layers": 2}),
    "gru-clip": ("GRU", {"clip": 0.5, "bias": False}),
    "gru-reset-before": ("GRU", {"reset_after": False, "num_layers": 2}),
    "gru-reset-before-both": ("GRU", {"reset_after": False, "bidirectional": True, "clip": 2}),
    "rnn": ("RNN", {"num_layers": 2, "bidirectional": True}),
    "rnn-relu": ("RNN", {"nonlinearity": "relu", "reverse": True}),
    "gated-rnn": ("GatedRNN", {"num_layers": 3}),
    "gated-rnn-activations": ("GatedRNN", {"activations": ("hard_sigmoid", "elu"), "bidirectional": True}),
}
DTYPES = ("float32", "float64")
SIZES = ((5, 7), (1, 33), (40, 40))  # I, H
WIDE = (19, 200)  # units to split for three threads on any path
NARROW = (3, 1)


def make(cell, dtype, sizes, **more):
    name, options = CELLS[cell]
    options = dict(options)
    if "proj_size" in options:
        options["proj_size"] = sizes[1] // 2
    return getattr(fastlstm, name)(*sizes, seed=3, dtype=dtype, **options, **more)


def numbers(layer, steps, batch, seed=0):
    """x [T, B, I], state and lengths; one sequence meets a NaN, another an infinity, half-way."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(steps, batch, layer.input_size)).astype(layer.dtype)
    if batch > 3 and steps > 2:
        x[steps // 2, 1, 0] = np.nan
        x[steps // 2, 3, -1] = -np.inf
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = [getattr(layer, "proj_size", 0) or layer.hidden_size, layer.hidden_size]
    state = [rng.normal(size=(rows, batch, n)).astype(layer.dtype) for n in sizes]
    lengths = rng.integers(0, steps + 1, batch)
    if batch > 1:
        lengths[0] = steps
    return x, state if isinstance(layer, fastlstm.LSTM) else state[:1], lengths


def call(layer, x, state, lengths=None):
    """Output and states as a list, each as the integers of its bits."""
    state = tuple(np.ascontiguousarray(s) for s in state)
    output, after = layer(x, state if len(state) > 1 else state[0], lengths=lengths)
    return [output, *(after if isinstance(after, tuple) else (after,))]


def bits(array):
    array = np.array(array)
    array[np.isnan(array)] = np.nan
    return array.view(np.uint32 if array.dtype == np.float32 else np.uint64)


def differ(got, wanted, what):
    """What differs, in words; nothing if nothing does."""
    for name, a, b in zip(("output", "h", "c"), got, wanted, strict=False):
        if a.shape != b.shape:
            return f"{what}: {name} has shape {a.shape}, wanted {b.shape}"
        unequal = np.argwhere(bits(a) != bits(b))
        if len(unequal):
            at = tuple(int(i) for i in unequal[0])
            text = f"{what}: {name} differs in {len(unequal)} of {a.size}"
            return f"{text}, first at {at}: {a[at]!r}, wanted {b[at]!r}"
    return ""


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


def run_all(report, kept):
    fastlstm.set_num_threads(1)
    results, outputs = {}, {}
    for cell in CELLS:
        for dtype in DTYPES:
            for compare in COMPARISONS:
                found = list(compare(cell, dtype))
                wrong = [text for text in found if text]
                results[f"{compare.__name__}/{cell}/{dtype}"] = [len(found), *wrong[:5]]
            for sizes in (*SIZES, NARROW, WIDE):
                layer = make(cell, dtype, sizes)
                x, state, lengths = numbers(layer, 6, 7)
                for name, value in zip("yhc", call(layer, x, state, lengths), strict=False):
                    outputs[f"{cell}/{dtype}/{sizes}/{name}"] = value
    Path(report).write_text(json.dumps({"path": _core.isa(), "results": results}))
    np.savez(kept, **outputs)


# --- the tests ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Of every path: which one it was, the differences, the outputs."""
    folder = tmp_path_factory.mktemp("bits")
    running = {
        path: subprocess.Popen(
            [sys.executable, __file__, folder / f"{path}.json", folder / f"{path}.npz"],
            env={**os.environ, "FASTLSTM_ISA": path}, stderr=subprocess.PIPE, text=True,
        )
        for path in _core.isas()
    }  # fmt: skip
    reports = {}
    for path, process in running.items():
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        report = json.loads((folder / f"{path}.json").read_text())
        with np.load(folder / f"{path}.npz") as kept:
            reports[path] = report["path"], report["results"], dict(kept)
    return reports


@pytest.mark.parametrize("path", _core.isas())
@pytest.mark.parametrize("compare", COMPARISONS, ids=lambda f: f.__name__)
def test_on(path, compare, reports):
    ran, results, _ = reports[path]
    assert ran == path
    mine = {key: value for key, value in results.items() if key.startswith(compare.__name__ + "/")}
    assert len(mine) == len(CELLS) * len(DTYPES)
    assert sum(count for count, *_ in mine.values()) > 100
    wrong = {key: texts for key, (_, *texts) in mine.items() if texts}
    assert not wrong, "\n".join(f"{key}: {texts[0]}" for key, texts in wrong.items())


@pytest.mark.parametrize("path", _core.isas()[1:])
def test_between_paths(path, reports):
    _, _, mine = reports[path]
    first = _core.isas()[0]
    _, _, wanted = reports[first]
    assert mine.keys() == wanted.keys() and len(mine) > 300
    if path == "portable" and not portable_has_fma():
        pytest.skip("without a fused multiply-add the portable path rounds for itself")
    wrong = [differ([mine[key]], [wanted[key]], key) for key in mine]
    assert not any(wrong), f"{path} against {first}: {[text for text in wrong if text][:5]}"


def portable_has_fma():
    return "fma" in _core.cpu_features()


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
    run_all(*sys.argv[1:])
