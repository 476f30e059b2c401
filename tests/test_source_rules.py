"""The layering of ARCHITECTURE.md, read from the sources: calls go downward, each thing has one place."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastlstm import _core

ROOT = Path(__file__).resolve().parents[1]
CORE, PACKAGE = ROOT / "csrc", ROOT / "fastlstm"

pytestmark = pytest.mark.skipif(not CORE.is_dir(), reason="no sources beside the tests")


def without_comments(path):
    text = re.sub(r"/\*.*?\*/", " ", path.read_text(), flags=re.S)
    return re.sub(r"//.*", "", text)


def core_files(pattern="*.[ch]"):
    return sorted([*CORE.glob(pattern), *(CORE / "kernels").glob(pattern)])


def included(path):
    return set(re.findall(r'#\s*include\s*[<"]([^">]+)[">]', without_comments(path)))


def names_in(path):
    return set(re.findall(r"[A-Za-z_]\w*", without_comments(path)))


def users_of(pattern, files):
    return {path.name for path in files if re.search(pattern, without_comments(path))}


def test_kernels_allocate_nothing_and_know_neither_threads_nor_the_system():
    forbidden = {
        "malloc", "calloc", "realloc", "free", "posix_memalign", "aligned_alloc", "alloca", "getenv",
        "printf", "fprintf", "abort", "exit", "pthread_create", "pthread_mutex_lock", "sched_yield", "mmap",
        "atomic_int",
        "fl_fail", "fl_os_alloc", "fl_fp_begin", "fl_layer", "fl_config", "fl_stream", "fl_pack",
    }  # fmt: skip
    allowed = {"math.h", "string.h", "stdbool.h", "stdint.h", "stddef.h", "immintrin.h", "arm_neon.h"}
    files = sorted((CORE / "kernels").glob("*.[ch]"))
    assert len(files) > 15
    for path in files:
        assert not names_in(path) & forbidden, path.name
        for name in included(path):
            inside = (path.parent / name).resolve()
            assert (
                name in allowed
                or inside in {f.resolve() for f in [*files, CORE / "fastlstm.h"]}
                or (name == "kernels.inc")
            ), f"{path.name} includes {name}"


def test_only_dispatch_knows_cpus():
    files = core_files()
    assert users_of(r"__builtin_cpu_|cpuid|FASTLSTM_ISA", files) == {"dispatch.c"}
    assert users_of(r"\bfl_os_hardware\b", files) == {"dispatch.c", "os.c", "os.h"}
    outside = [path for path in files if path.parent == CORE]
    assert users_of(r"\bfl_kernels_f(32|64)_\w+", outside) == {"dispatch.c"}
    # And only the instruction sets' own files use their intrinsics.
    assert users_of(r"\b_mm\d*_\w+|\bv\w+q_[fsu](32|64)\b", files) <= {
        "simd_avx2.h", "simd_avx512.h", "simd_neon.h", "dispatch.c", "threads.c",
        "simd_integer_avx2.h", "simd_integer_avx512.h", "simd_integer_neon.h",
    }  # fmt: skip


def test_only_os_talks_to_the_system():
    headers = {"pthread.h", "sched.h", "unistd.h", "signal.h", "time.h", "sys/mman.h"}
    for path in core_files():
        system = {name for name in included(path) if name in headers or name.startswith("sys/")}
        assert path.name == "os.c" or not system, f"{path.name} includes {system}"
    assert "pthread.h" in included(CORE / "os.c")


def test_calls_go_downward():
    """What each file of the core may use of the others: only what is below it."""
    below = {
        "scan.c": ["fl_forward", "fl_stream_", "fl_pool_", "fl_create", "fl_set_weights", "fl_pack_create"],
        "threads.c": ["fl_forward", "fl_stream_", "fl_scan_", "fl_pack", "fl_layer", "fl_kernels"],
        "pack.c": ["fl_forward", "fl_stream_", "fl_scan_", "fl_parallel", "fl_team"],
        "cells.c": ["fl_forward", "fl_stream_", "fl_scan_", "fl_parallel", "fl_team", "fl_layer"],
        "dispatch.c": [
            "fl_forward",
            "fl_stream_",
            "fl_scan_",
            "fl_parallel",
            "fl_team",
            "fl_layer",
            "fl_pack",
        ],
        "os.c": [
            "fl_forward",
            "fl_stream_",
            "fl_scan_",
            "fl_parallel",
            "fl_team",
            "fl_layer",
            "fl_pack",
            "fl_fail",
        ],
        "stream.c": ["fl_forward", "fl_pool_"],
        "pool.c": ["fl_forward", "fl_stream_"],
        "forward.c": ["fl_stream_", "fl_pool_"],
        "linear.c": ["fl_forward", "fl_stream_", "fl_scan_", "fl_layer"],
    }
    for name, above in below.items():
        used = names_in(CORE / name)
        for prefix in above:
            assert not any(word.startswith(prefix) for word in used), f"{name} uses {prefix}"


def kernel_ops(macro="FL_KERNEL"):
    text = (CORE / "kernels" / "kernels.inc").read_text()
    return re.findall(rf"^{macro}\((\w+),", text, flags=re.M)


def test_every_kernel_is_spelled_in_full():
    """So that the name which a profiler shows is found by grep."""
    ops = kernel_ops()
    assert len(ops) == len(set(ops)) > 10
    single, integer = kernel_ops("FL_KERNEL_F32"), kernel_ops("FL_INTEGER_KERNEL")
    assert single and integer and {k["op"] for k in _core.kernels()} == {*ops, *single, *integer}
    paths = sorted((CORE / "kernels").glob("isa_*.c"))
    assert {"isa_avx512.c", "isa_avx2.c", "isa_neon.c", "isa_portable.c"} <= {p.name for p in paths}
    for path in paths:
        suffix = path.stem.removeprefix("isa_")
        defined = dict(re.findall(r"^#define (fl_\w+) (fl_\w+)$", path.read_text(), flags=re.M))
        wanted = {"fl_integers", *(f"fl_{op}" for op in integer)}
        if path.stem not in ("isa_avx512_amx", "isa_avx512_vnni", "isa_avx2_vnni", "isa_neon_dot"):
            wanted |= {f"fl_{op}_{dtype}" for op in [*ops, "kernels"] for dtype in ("f32", "f64")}
            wanted |= {f"fl_{op}_f32" for op in single}
        assert defined.keys() == wanted, path.name
        assert all(full == f"{short}_{suffix}" for short, full in defined.items()), path.name


def test_every_bound_is_of_a_kernel():
    text = (CORE / "kernels" / "kernels.inc").read_text()
    bounds = re.findall(r"^FL_BOUND\((\w+),", text, flags=re.M)
    assert bounds and set(bounds) <= set(kernel_ops()) and len(bounds) == len(set(bounds))


def test_kernel_headers_name_their_tests():
    for path in (CORE / "kernels").glob("*_template.h"):
        if path.name.startswith(("simd_", "cell_")):
            continue
        header = path.read_text().split("*/")[0]
        named = re.findall(r"tests/[\w/.]+\w", header)
        assert named, f"{path.name} does not say which test proves it"
        for name in named:
            assert (ROOT / name).is_file(), f"{path.name} names {name}"


def test_python_validates_in_one_place():
    """Elsewhere: what a method does not do at all, whatever it is given."""
    known = (
        "stream", "mode must be", "a Stream cannot", "a StreamPool cannot", "a Tape cannot",
        "record: a layer", "quantize: no", "LastStep acts",
    )  # fmt: skip
    others = ("_check.py", "_files.py", "reference.py", "cli.py", "_demo.py", "_train.py", "__main__.py")
    for path in PACKAGE.glob("*.py"):
        if path.name in others:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                text = ast.unparse(node.exc)
                refusal = getattr(node.exc.func, "id", "") in ("ValueError", "TypeError")
                assert not refusal or any(part in text for part in known), f"{path.name}: {text}"


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level


def test_reference_shares_code_with_nobody():
    for name, level in imports_of(PACKAGE / "reference.py"):
        assert level == 0
        assert name.split(".")[0] in {"numpy", *sys.stdlib_module_names}, name


def test_check_and_files_do_not_know_the_layers():
    for name in ("_check.py", "_files.py"):
        text = (PACKAGE / name).read_text()
        assert not re.search(
            r"^\s*(from \.|from fastlstm)[\w.]* import .*\b(layers|LSTM|GRU)\b", text, flags=re.M
        )
        assert "from .layers" not in text and "_core" not in {m for m, _ in imports_of(PACKAGE / name)}


def test_no_large_file_and_nothing_left_to_do():
    generated = {"_core.c"}
    sources = [
        path
        for folder, patterns in ((CORE, ("**/*.[ch]", "**/*.inc")),
                                 (PACKAGE, ("**/*.py", "**/*.pyi", "*.pyx")),
                                 (ROOT / "tests", ("*.py", "c/*.[ch]")))
        for pattern in patterns
        for path in folder.glob(pattern)
        if path.name not in generated
    ]  # fmt: skip
    assert len(sources) > 50
    marks = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)))
    for path in sources:
        text = path.read_text()
        assert len(text) <= 70_000, path.name
        assert not marks.search(text), path.name


@pytest.mark.skipif(not (shutil.which("cc") and shutil.which("nm")), reason="no cc or nm")
def test_every_symbol_has_the_prefix(tmp_path):
    """Also those between the files of the core: it may be linked statically into anything."""
    for source in CORE.glob("*.c"):
        done = subprocess.run(["cc", "-std=c11", "-O0", "-c", str(source), "-o", str(tmp_path / "x.o")])
        assert done.returncode == 0
        listed = subprocess.run(
            ["nm", "-g", "--defined-only", str(tmp_path / "x.o")], capture_output=True, text=True
        )
        strays = [
            line.split()[-1] for line in listed.stdout.splitlines() if not line.split()[-1].startswith("fl_")
        ]
        assert not strays, f"{source.name}: {strays}"
    for path in (CORE / "kernels").glob("isa_*.c"):  # too long to compile here: their names are in the text
        assert re.search(r"#define fl_(kernels_f32|integers) fl_", path.read_text())
