"""What the two files of the same bits share: the layers, the inputs, and a process of its own for each path.

Each path that the CPU has runs all comparisons in a process (the test file as a program), which reports what
differed; the arrays themselves are kept and compared between the paths. -0 is not 0; NaN is NaN, whatever its
payload.
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


def bits(array):
    array = np.array(array)
    array[np.isnan(array)] = np.nan
    return array.view(np.uint32 if array.dtype == np.float32 else np.uint64)


def difference(name, a, b):
    """How `a` differs from `b`, in words; nothing if it does not."""
    if a.shape != b.shape:
        return f"{name} has shape {a.shape}, wanted {b.shape}"
    unequal = np.argwhere(bits(a) != bits(b))
    if not len(unequal):
        return ""
    at = tuple(int(i) for i in unequal[0])
    text = f"{name} differs in {len(unequal)} of {a.size}"
    return f"{text}, first at {at}: {a[at]!r}, wanted {b[at]!r}"


# --- in the process of a path -------------------------------------------------------------------------------


def run_all(comparisons, arrays, report, kept):
    """All comparisons, generators of differences, for every cell and dtype; and the arrays by name."""
    fastlstm.set_num_threads(1)
    results, all_arrays = {}, {}
    for cell in CELLS:
        for dtype in DTYPES:
            for compare in comparisons:
                found = list(compare(cell, dtype))
                wrong = [text for text in found if text]
                results[f"{compare.__name__}/{cell}/{dtype}"] = [len(found), *wrong[:5]]
            all_arrays |= {f"{cell}/{dtype}/{name}": value for name, value in arrays(cell, dtype)}
    Path(report).write_text(json.dumps({"path": _core.isa(), "results": results}))
    np.savez(kept, **all_arrays)


# --- in the tests -------------------------------------------------------------------------------------------


def reports_of(program, folder):
    """Of every path: which one it was, the differences, the arrays."""
    running = {
        path: subprocess.Popen(
            [sys.executable, program, folder / f"{path}.json", folder / f"{path}.npz"],
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


def check_on(path, compare, reports, at_least):
    """The path ran, it made that many comparisons, and nothing differed."""
    ran, results, _ = reports[path]
    assert ran == path
    mine = {key: value for key, value in results.items() if key.startswith(compare.__name__ + "/")}
    assert len(mine) == len(CELLS) * len(DTYPES)
    assert sum(count for count, *_ in mine.values()) > at_least
    wrong = {key: texts for key, (_, *texts) in mine.items() if texts}
    assert not wrong, "\n".join(f"{key}: {texts[0]}" for key, texts in wrong.items())


def check_between(path, reports, at_least):
    """All arrays of the path are those of the first one."""
    _, _, mine = reports[path]
    first = _core.isas()[0]
    _, _, wanted = reports[first]
    assert mine.keys() == wanted.keys() and len(mine) > at_least
    if path == "portable" and "fma" not in _core.cpu_features():
        pytest.skip("without a fused multiply-add the portable path rounds for itself")
    wrong = [text for key in mine if (text := difference(key, mine[key], wanted[key]))]
    assert not wrong, f"{path} against {first}: {len(wrong)} of {len(mine)}, {wrong[:5]}"
