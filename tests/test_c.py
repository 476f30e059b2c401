"""The C programs of tests/c, built with each compiler at hand against the C files alone, and run."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastlstm import _core

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)] or [
    c for c in ("cc",) if shutil.which(c)
]
# gcc builds all of them; another compiler only what shows whether its kernels are right.
PROGRAMS = {
    "api": [], "backward": [], "gradients": [], "integers": [], "kernels": [], "linear": [], "oracle": [],
    "pool": [],
    "threads": ["20"], "training": [], "ulp": ["20011"],
}  # fmt: skip

pytestmark = [
    pytest.mark.skipif(not COMPILERS, reason="no C compiler"),
    pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="no sources beside the tests"),
]
# One at least is named where there is none, so that the reason for skipping is seen.
each_compiler = pytest.mark.parametrize("compiler", COMPILERS or ["cc"], scope="module")


@pytest.fixture(scope="module")
def build(compiler, tmp_path_factory):
    """Builds a program by name; the core once."""
    folder = tmp_path_factory.mktemp(compiler)
    sources = [*ROOT.glob("csrc/*.c"), *ROOT.glob("csrc/kernels/*.c")]

    def compiled(source):
        target = folder / f"{source.stem}.o"
        subprocess.run([compiler, *FLAGS, "-c", str(source), "-o", str(target)], check=True)
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))

    def program(name):
        target = folder / name
        if not target.exists():
            source = str(ROOT / "tests" / "c" / f"{name}.c")
            libraries = ["-lm", "-lpthread"]
            command = [
                compiler,
                *FLAGS,
                f"-I{ROOT / 'csrc'}",
                source,
                *objects,
                *libraries,
                "-o",
                str(target),
            ]
            subprocess.run(command, check=True)
        return target

    return program


def run(program, *arguments, **environment):
    return subprocess.run(
        [str(program), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
    )


@each_compiler
@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name, compiler, build):
    if compiler != COMPILERS[0] and name not in ("kernels", "backward", "integers", "api"):
        pytest.skip(f"{COMPILERS[0]} runs it; the kernels are what another compiler may get wrong")
    done = run(build(name), *PROGRAMS[name])
    assert done.returncode == 0, done.stderr[-4000:]
    last = done.stdout.splitlines()[-1].split()
    assert last[1:] == ["passed,", "0", "failed"] and int(last[0]) > 10, done.stdout[-1000:]


@each_compiler
def test_vectors_are_the_same_on_every_path(build):
    outputs = {}
    for path in _core.isas():
        done = run(build("vectors"), FASTLSTM_ISA=path)
        assert done.returncode == 0, done.stderr
        first, *lines = done.stdout.splitlines()
        assert first == f"path {path}" and len(lines) > 200
        if path != "portable" or "fma" in _core.cpu_features():
            outputs[path] = lines
    reference = next(iter(outputs.values()))
    for path, lines in outputs.items():
        assert lines == reference, path


@each_compiler
def test_the_environment_is_checked(build):
    done = run(build("vectors"), FASTLSTM_ISA="none such")
    assert done.returncode != 0 and "FASTLSTM_ISA" in done.stderr and "none such" in done.stderr


def test_every_program_is_run():
    assert {path.stem for path in (ROOT / "tests" / "c").glob("*.c")} == {*PROGRAMS, "vectors"}
