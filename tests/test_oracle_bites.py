"""The tests bite: bugs planted in the core, the field's classic ones among them, turn the oracle red.

tests/c/oracle.c compares every cell with a naive implementation in double; here it is built against a copy of
the core, as it is and with each bug in turn. A bug whose place is not found any more is an error: move it
along with the code.
"""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[1] / "csrc"
ORACLE = Path(__file__).resolve().parent / "c" / "oracle.c"
CC = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
FLAGS = ["-std=c11", "-O1", "-DFL_PLANTED_BUG"]

pytestmark = [
    pytest.mark.skipif(CC is None, reason="no C compiler"),
    pytest.mark.skipif(not SOURCES.is_dir(), reason="no sources beside the tests"),
]

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
        "const int64_t state = item * q->B + b;",
        "const int64_t state = item * q->B + (b + 1) % q->B;",
    ),
    "h of the step before the last": (
        "scan.c",
        "return s->h[(s->parity + ago) & 1]",
        "return s->h[(s->parity + ago + 1) & 1]",
    ),
    "ragged state of the longest, not its own": (
        "forward.c",
        "fl_scan_h(&s, r, m->steps[0] - m->steps[r])",
        "fl_scan_h(&s, r, 0)",
    ),
    "step 0 left out": (
        "scan.c",
        "for (int64_t t = 0; t < steps; t++) {",
        "for (int64_t t = 1; t < steps; t++) {",
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
        "for (; unroll > 1 && k < depth; k++)",
        "for (; unroll > 1 && k < depth - 1; k++)",
    ),
    "projection of another step": (
        "scan.c",
        "p.part[0].a = s->between_rows;",
        "p.part[0].a = s->h_rows[s->parity];",
    ),
    "stream gets the first row's input": (
        "stream.c",
        "s->x[b] = (const char *)x + b * x_bytes;",
        "s->x[b] = (const char *)x;",
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
    program = folder / "oracle"
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
    """The core as it is, one object per source, and the oracle; all but one path are left out."""
    folder = tmp_path_factory.mktemp("clean")
    root = copy_of_the_core(folder)
    sources = objects_of(root)
    with ThreadPoolExecutor(2) as pool:
        objects = {
            name: pool.submit(compiled, path, root, folder / (name.replace("/", "_") + ".o"))
            for name, path in sources.items()
        }
        oracle = pool.submit(compiled, ORACLE, root, folder / "oracle.o")
        return {name: future.result() for name, future in objects.items()}, oracle.result(), folder


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
    dispatch.write_text(
        text[:begin] + "static const isa isas[] = {\n"
        '    {"portable", {&fl_kernels_f32_portable, &fl_kernels_f64_portable}, always}};\n' + text[end:]
    )
    return root


def test_the_core_as_it_is_passes(clean):
    objects, oracle, folder = clean
    done = verdict([*objects.values(), oracle], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout


@pytest.mark.parametrize("bug", BUGS)
def test_planted(bug, clean, tmp_path):
    objects, oracle, _ = clean
    file, there, planted = BUGS[bug]
    root = copy_of_the_core(tmp_path)
    source = root / file
    text = source.read_text()
    assert text.count(there) >= 1, f"{file} has changed: {there!r} is not there"
    text = text.replace(there, planted)
    if bug == "o sees c, not c'":
        text = text.replace("vec z[4], c = vload(state);", "vec z[4], c = vload(state), old = c;")
        assert "old = c;" in text
    source.write_text(text)
    changed = "kernels/isa_portable.c" if file.startswith("kernels/") else file
    mine = compiled(root / changed, root, tmp_path / "changed.o")
    done = verdict([*(o for name, o in objects.items() if name != changed), mine, oracle], tmp_path)
    assert done.returncode != 0, f"nobody noticed: {done.stdout}"
    assert "failed" in done.stdout or done.returncode < 0  # wrong numbers, or a crash
