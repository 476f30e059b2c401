"""The tests bite: bugs planted in the core, the field's classic ones among them, turn the oracle red.

tests/c/oracle.c compares every cell with a naive implementation in double, tests/c/gradients.c its gradients
with finite differences; here they are built against a copy of the core, as it is and with each bug in turn.
The comparison of gradients in Python, `compare` of test_backward.py, is tried in the same way on copies of
reference.py. A bug whose place is not found any more is an error: move it along with the code.
"""

import os
import shutil
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import test_backward

from fastlstm import reference

SOURCES = Path(__file__).resolve().parents[1] / "csrc"
PROGRAMS = Path(__file__).resolve().parent / "c"
CC = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
FLAGS = ["-std=c11", "-O1", "-DFL_PLANTED_BUG", "-DFL_QUICK_BUILD"]

on_the_core = pytest.mark.skipif(CC is None or not SOURCES.is_dir(), reason="no C compiler, or no sources")

# name: (file, what stands there, what the bug makes of it)
BUGS = {
    "h0 and c0 swapped": (
        "forward.c",
        "q->h0 ? (const char *)q->h0 + state * P * size : NULL",
        "q->c0 ? (const char *)q->c0 + state * P * size : NULL",
    ),
    "h0 ignored": (
        "forward.c",
        "q->h0 ? (const char *)q->h0 + state * P * size : NULL",
        "NULL",
    ),
    "state of another sequence": (
        "forward.c",
        "const int64_t state = states * q->B + b;",
        "const int64_t state = states * q->B + (b + 1) % q->B;",
    ),
    "h of the step before the last": (
        "scan.c",
        "s->h[(s->parity + ago) & 1]",
        "s->h[(s->parity + ago + 1) & 1]",
    ),
    "ragged state of the longest, not its own": (
        "forward.c",
        "fl_scan_h(&s, r, ago)",
        "fl_scan_h(&s, r, 0)",
    ),
    "step 0 left out": (
        "scan.c",
        "for (int64_t t = rows->begin; t < steps; t++) {",
        "for (int64_t t = rows->begin + 1; t < steps; t++) {",
    ),
    "rows that have ended still run": (
        "scan.c",
        "rows->steps[active - 1] <= t",
        "rows->steps[active - 1] < t",
    ),
    "padding not cleared": ("forward.c", "clear_padding(f, chunk);\n}", "(void)clear_padding;\n}"),
    "backwards from the end of the padding": (
        "forward.c",
        "begin = backwards && n ? n - 1 : 0",
        "begin = backwards && n ? q->T - 1 : 0",
    ),
    "both directions forward": (
        "forward.c",
        "const int64_t sign = backwards ? -1 : 1;",
        "const int64_t sign = 1;",
    ),
    "one bias dropped": (
        "pack.c",
        "const void *second = cell->separate ? NULL : w->bias_hh.data;",
        "const void *second = NULL;",
    ),
    "gates packed in another order": (
        "pack.c",
        "return (s->first + n / width) * s->units",
        "return (s->first + (n / width ^ (s->gates == 4))) * s->units",
    ),
    "tail units packed as whole blocks": (
        "pack.c",
        "width = s->units - whole;",
        "width = s->units - whole > 1 ? s->units - whole - 1 : 1;",
    ),
    "peepholes i and f swapped": (
        "pack.c",
        "(const char *)w->weight_peephole.data + i * H * size",
        "(const char *)w->weight_peephole.data + (i < 2 ? 1 - i : i) * H * size",
    ),
    "f and g swapped": (
        "kernels/lstm_template.h",
        "f = cell_load(p, at, p->z, p->z_stride, 4, 1);",
        "f = cell_load(p, at, p->z, p->z_stride, 4, 2);",
    ),
    "o sees c, not c'": (
        "kernels/lstm_template.h",
        "z[3] = vfma(vload(peephole + 2 * p->state_stride), c, z[3]);",
        "z[3] = vfma(vload(peephole + 2 * p->state_stride), old, z[3]);",
    ),
    "coupled gate is i": ("kernels/lstm_template.h", "vfma(vsub(vset(1), i), c, ig)", "vfma(i, c, ig)"),
    "no clip of the output gate": (
        "kernels/lstm_template.h",
        "if (s->clip > 0) z[3] = vclip(z[3], s->clip);",
        "",
    ),
    "reset gate before its bias": (
        "kernels/gru_template.h",
        "vec n = vfma(r, cell_load(p, at, p->z, p->z_stride, 3, 2), "
        "cell_load(p, at, p->zx, p->zx_stride, 3, 2));",
        "vec n = vmul(r, vadd(cell_load(p, at, p->z, p->z_stride, 3, 2), "
        "cell_load(p, at, p->zx, p->zx_stride, 3, 2)));",
    ),
    "reset gate left out": (
        "kernels/gru_template.h",
        "vmul(vactivate(&s->act[0], gru_limit(s, r)), vload(cell_state(p, at, p->h)))",
        "vload(cell_state(p, at, p->h))",
    ),
    "update gate the other way round": (
        "kernels/gru_template.h",
        "const vec z = vactivate(&s->act[0], vload(cell_state(p, at, p->c)));",
        "const vec z = vsub(vset(1), vactivate(&s->act[0], vload(cell_state(p, at, p->c))));",
    ),
    "gated RNN keeps what it should overwrite": (
        "kernels/rnn_template.h",
        "vexp_minus(vsub(vset(0), g), 0)",
        "vexp_minus(g, 0)",
    ),
    "last lane of a tail not stored": (
        "kernels/cell_template.h",
        "else vstore_part(y, at.n, h);",
        "else vstore_part(y, at.n - 1, h);",
    ),
    "last product of the sum left out": (
        "kernels/product_template.h",
        "k < end; k++, at++)",
        "k < end - 1; k++, at++)",
    ),
    "projection of another step": (
        "scan.c",
        "p.part[0].a = factor_rows(s, s->between_rows,",
        "p.part[0].a = factor_rows(s, (const void *const *)s->h_rows[s->parity],",
    ),
    "stream gets the first row's input": (
        "stream.c",
        "s->x[b] = (const char *)x + b * x_bytes;",
        "s->x[b] = (const char *)x;",
    ),
}  # fmt: skip

# Seen by tests/c/gradients.c; those in kernels take longer, for there all of a path is compiled again.
BACKWARD_BUGS = {
    "gradients of h0 and c0 swapped": (
        "backward.c",
        "call->g->dh0 + b * P * size, d->dh + r * l->output_stride * size",
        "call->g->dh0 + b * P * size, d->dc + r * l->hidden_stride * size",
    ),
    "d_state ignored": ("backward.c", "fl_set_row(row, from ?", "fl_set_row(row, 0 ?"),
    "d_state of another sequence": ("backward.c", "g->dh_n, direction * B + b", "g->dh_n, direction * B + r"),
    "dW_hh off by one step": (
        "backward.c",
        "const char *h = fl_memory_h(l, d->memory, step);",
        "const char *h = fl_memory_h(l, d->memory, step + 1);",
    ),
    "step 0 left out": (
        "backward.c",
        "step-- > call->block_first;",
        "step-- > call->block_first + !call->block_first;",
    ),
    "step 0 left out of dh0": (
        "backward.c",
        "pull_dh(call, d, &s, d->first);",
        "if (d->first) pull_dh(call, d, &s, d->first);",
    ),
    "first steps of a segment left out of the sums": (
        "backward.c",
        "weight_gradients(call, d, depth, slice, slices);",
        "weight_gradients(call, d, depth - active_at(call->tape, d->end - 1), slice, slices);",
    ),
    "x from the end of the padding": (
        "backward.c",
        "at = backwards ? t->length[b] - 1 - step : step",
        "at = backwards ? q->T - 1 - step : step",
    ),
    "d_output of the padding": (
        "backward.c",
        "first = backwards && n ? n - 1 : 0;",
        "first = backwards && n ? t->sequence.T - 1 : 0;",
    ),
    "padding of dx not cleared": ("backward.c", "clear_dx(call);\n", "(void)clear_dx;\n"),
    "one direction's dx alone": ("backward.c", "if (l->directions == 1) {", "if (l->directions) {"),
    "recurrent weights get the input's share": (
        "backward.c",
        "d->dz + cell->recurrent_delta[gate] * H * size",
        "d->dz + gate * H * size",
    ),
    "reset gate's share missing in dh": (
        "backward.c",
        "a[g] = d->dz_rows[l->cell->recurrent_delta[g]] + row;",
        "a[g] = d->dz_rows[g] + row;",
    ),
    "o's peephole at c, not c'": (
        "backward.c",
        "stride, m, d->c_new_rows, past(&w->weight_peephole, 2 * H * size)",
        "stride, m, d->c_rows, past(&w->weight_peephole, 2 * H * size)",
    ),
    "projection of another step": (
        "backward.c",
        "&d->back->projection, d->dh_new_rows + row",
        "&d->back->projection, d->dh_new_rows",
    ),
    "states of the first checkpoint": (
        "forward.c",
        "f->first_step / f->tape->every, first + r, &h, &c",
        "0, first + r, &h, &c",
    ),
    "reset gate's share missing": (
        "kernels/gru_template.h",
        "back_store(p, at, 3, vmul(dz_n, r));",
        "back_store(p, at, 3, dz_n);",
    ),
    "carousel cut": (
        "kernels/lstm_template.h",
        "vec dc_new = vfma(dh_dy, o, vload(dc));",
        "vec dc_new = vmul(dh_dy, o);",
    ),
    "last row of a tile left out of the sums": (
        "kernels/outer_template.h",
        "outer_rows((int)rows, p",
        "outer_rows((int)(rows - (t + 1 == tiles && rows > 1)), p",
    ),
}  # fmt: skip


def compiled(source, include, target):
    command = [CC, *FLAGS, f"-I{include}", "-c", str(source), "-o", str(target)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return target


def objects_of(root):
    """Object file by source, without the paths that the oracle does not run."""
    sources = [*root.glob("*.c"), *root.glob("kernels/*.c")]
    return {str(source.relative_to(root)): source for source in sources}


def verdict(objects, folder):
    program = folder / "program"
    subprocess.run(
        [CC, *map(str, objects), "-lm", "-lpthread", "-o", str(program)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return subprocess.run(
        [str(program)],
        env={**os.environ, "FASTLSTM_ISA": "portable"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """The core as it is, one object per source, and the programs; all but one path are left out."""
    folder = tmp_path_factory.mktemp("clean")
    root = copy_of_the_core(folder)
    sources = objects_of(root)
    with ThreadPoolExecutor(2) as pool:
        objects = {
            name: pool.submit(compiled, path, root, folder / (name.replace("/", "_") + ".o"))
            for name, path in sources.items()
        }
        programs = {
            name: pool.submit(compiled, PROGRAMS / f"{name}.c", root, folder / f"{name}.o")
            for name in ("oracle", "gradients")
        }
        return *({n: future.result() for n, future in some.items()} for some in (objects, programs)), folder


def copy_of_the_core(folder):
    """The portable path alone: one to compile. Others hold the same templates."""
    root = folder / "csrc"
    shutil.copytree(SOURCES, root)
    for path in root.glob("kernels/isa_*.c"):
        if path.name != "isa_portable.c":
            path.unlink()
    dispatch = root / "dispatch.c"
    text = dispatch.read_text()
    begin, end = text.index("static const isa isas[] = {"), text.index("enum { ISAS")
    text = (
        text[:begin] + "static const isa isas[] = {\n"
        '    {"portable", {&fl_kernels_f32_portable, &fl_kernels_f64_portable}, always}};\n' + text[end:]
    )
    begin, end = text.index("static const integer_isa integer_isas"), text.index("enum { INTEGER_ISAS")
    dispatch.write_text(
        text[:begin] + "static const integer_isa integer_isas[] = {\n"
        '    {"portable", "portable", &fl_integers_portable, always}};\n' + text[end:]
    )
    return root


@on_the_core
@pytest.mark.parametrize("program", ["oracle", "gradients"])
def test_the_core_as_it_is_passes(program, clean):
    objects, programs, folder = clean
    done = verdict([*objects.values(), programs[program]], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout


def assert_noticed(program, bug, clean, folder):
    objects, programs, _ = clean
    file, there, planted = bug
    root = copy_of_the_core(folder)
    source = root / file
    text = source.read_text()
    assert text.count(there) >= 1, f"{file} has changed: {there!r} is not there"
    text = text.replace(there, planted)
    if "old, z[3]" in planted:
        c = "c = vload(cell_state(p, at, p->c))"
        text = text.replace(f"vec z[4], {c};", f"vec z[4], {c}, old = c;")
        assert "old = c;" in text
    source.write_text(text)
    changed = "kernels/isa_portable.c" if file.startswith("kernels/") else file
    mine = compiled(root / changed, root, folder / "changed.o")
    others = [o for name, o in objects.items() if name != changed]
    done = verdict([*others, mine, programs[program]], folder)
    assert done.returncode != 0, f"nobody noticed: {done.stdout}"
    assert "failed" in done.stdout or done.returncode < 0  # wrong numbers, or a crash


@on_the_core
@pytest.mark.parametrize("bug", BUGS)
def test_planted(bug, clean, tmp_path):
    assert_noticed("oracle", BUGS[bug], clean, tmp_path)


@on_the_core
@pytest.mark.parametrize("bug", BACKWARD_BUGS)
def test_planted_in_backward(bug, clean, tmp_path):
    assert_noticed("gradients", BACKWARD_BUGS[bug], clean, tmp_path)


# --- gradients ----------------------------------------------------------------------------------------------

# name: (what stands in reference.py, what the bug makes of it)
GRADIENT_BUGS = {
    "h0 and c0 swapped": (
        "first = tuple(v[len(self._runs)] for v in states)",
        "first = tuple(v[len(self._runs)] for v in states[::-1])",
    ),
    "gradients of h0 and c0 swapped": ("axes=1), dstate, dw", "axes=1), dstate[::-1], dw"),
    "d_state of h and c swapped": (
        "dstate = tuple(v.copy() for v in dstate)",
        "dstate = tuple(v.copy() for v in dstate[::-1])",
    ),
    "d_state left out": (
        "dstate = tuple(v.copy() for v in dstate)",
        "dstate = tuple(np.zeros_like(v) for v in dstate)",
    ),
    "dW_hh of an LSTM off by one step": (
        "return (h_new, c_new), (h, c,",
        "return (h_new, c_new), (h_new, c,",
    ),
    "dW_hh of an RNN off by one step": (
        "return (h_new,), (h, s, h_new)",
        "return (h_new,), (h_new, s, h_new)",
    ),
    "step 0 left out": (
        "in zip(reversed(self.path), reversed(self.memories), strict=True):",
        "in zip(self.path[:0:-1], self.memories[:0:-1], strict=True):",
    ),
    "step 0 left out of the weights": (
        "memory, self.w, self.opt, dw\n",
        "memory, self.w, self.opt, "
        "{n: v.copy() for n, v in dw.items()} if memory is self.memories[0] else dw\n",
    ),
    "first step first": (
        "in zip(reversed(self.path), reversed(self.memories), strict=True):",
        "in zip(self.path, self.memories, strict=True):",
    ),
    "reset gate's share missing": (
        "du = np.concatenate([ds_r, ds_z, ds_n * r], axis=1)",
        "du = np.concatenate([ds_r, ds_z, ds_n], axis=1)",
    ),
    "reset gate's share missing, reset before": ("dh * z + drh * r +", "dh * z + drh +"),
    "no gradient of the reset gate": ("ds_r = gate.backward(s_r, r, ds_n * u_n)", "ds_r = 0 * r"),
    "no gradient of the reset gate, reset before": (
        "ds_r = gate.backward(s_r, r, drh * h)",
        "ds_r = 0 * r",
    ),
    "h kept by the update gate forgotten": (
        "return da, (dh * z + recurrent_backward(du, h, w, dw),)",
        "return da, (recurrent_backward(du, h, w, dw),)",
    ),
    "padding leaks into gradients": ("< self._lengths[:, None], x", "<= self._lengths[:, None], x"),
    "padding runs": ("rows = np.flatnonzero(lengths > k)", "rows = np.flatnonzero(lengths >= k)"),
    "gradient through a clip": (
        "ds = ds if self.clip is None else np.where(np.abs(s) > self.clip, 0, ds)",
        "ds = ds if self.clip is None else ds",
    ),
    "coupled gate's sign": ("di = di - df", "di = di + df"),
    "gradient of a gate that is not there": (
        "ds_f = gate.backward(s_f, f, df) if opt.forget_gate and not opt.coupled_gates else",
        "ds_f = gate.backward(s_f, f, df) if opt.forget_gate else",
    ),
    "o's peephole not followed": ("dc = dc + p[2] * ds_o", "dc = dc + 0 * ds_o"),
    "o's peephole at c, not c'": ("(ds_o * c_new).sum(0)", "(ds_o * c).sum(0)"),
    "peepholes of i and f swapped": ("p[0] * ds_i + p[1] * ds_f", "p[1] * ds_i + p[0] * ds_f"),
    "projection of c', not o y": (
        'dw["weight_hr"] += dh.T @ (o * y)',
        'dw["weight_hr"] += dh.T @ (o * c_new)',
    ),
    "gated RNN's gate the other way round": ("dh * (n - h)", "dh * (h - n)"),
    "a bias averaged": ('dw["bias_hh"] += du.sum(0)', 'dw["bias_hh"] += du.mean(0)'),
    "dropout not differentiated": ("dy += dx * self._masks[k]", "dy += dx"),
    "one direction's share of dx": ("dy += dx * self._masks[k]", "dy = dx * self._masks[k]"),
}


def changed_reference(there, planted):
    text = Path(reference.__file__).read_text()
    assert text.count(there) >= 1, f"reference.py has changed: {there!r} is not there"
    module = types.ModuleType("changed_reference")
    sys.modules[module.__name__] = module
    exec(text.replace(there, planted), module.__dict__)
    return module


def assert_gradients_agree(module):
    for cell in test_backward.CELLS:
        what = {"cls": lambda name: getattr(module, name), "dtypes": ["float64"]}
        lengths = [5, 0, 3, 4]
        test_backward.assert_agrees(cell, (5, 7), 5, 4, **what, how={"lengths": lengths})
        how = {"lengths": lengths, "dropout_seed": 1}
        test_backward.assert_agrees(
            cell, (5, 7), 5, 4, **what, how=how, num_layers=2, bidirectional=True, dropout=0.3
        )


def test_gradients_as_they_are_agree():
    assert_gradients_agree(changed_reference("def lstm_step", "def lstm_step"))


@pytest.mark.parametrize("bug", GRADIENT_BUGS)
def test_planted_in_gradients(bug):
    module = changed_reference(*GRADIENT_BUGS[bug])
    with pytest.raises(AssertionError):
        assert_gradients_agree(module)


@pytest.mark.parametrize("dtype", test_backward.DTYPES)
def test_planted_in_results(dtype):
    """Errors just above the tolerance, and exchanges of whole arrays, in copies of good results."""
    layer = test_backward.make(("LSTM", {"bias": False}), (9, 9), dtype, test_backward.oracle)
    wanted = test_backward.run(layer, *test_backward.numbers(layer, 5, 3))
    tolerance = test_backward.TOLERANCE[dtype]
    test_backward.assert_close(wanted, wanted, 0)

    def refused(**changed):
        with pytest.raises(AssertionError):
            test_backward.assert_close({**wanted, **changed}, wanted, tolerance)

    for name, v in wanted.items():
        for error in (1.5 * tolerance * np.abs(v).max(), np.nan):
            wrong = v.copy()
            wrong.flat[-1] += error
            refused(**{name: wrong})
        refused(**{name: v[:-1]})
        refused(**{name: 0 * v})
        for other in wanted:
            if other != name:
                refused(**{name: wanted[other]})
