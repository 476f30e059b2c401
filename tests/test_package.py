"""What is installed: version, files, size; what an import brings; stubs that agree with the module."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fastlstm
from fastlstm import _core

PACKAGE = Path(fastlstm.__file__).parent
ROOT = Path(__file__).parents[1]
INSTALLED = os.environ.get("FASTLSTM_TEST_INSTALLED") == "1"  # `make test`: the wheel, and nothing else
WHEEL_BYTES = 1_500_000


@pytest.fixture(scope="module")
def wheel() -> importlib.metadata.Distribution:
    """The installed distribution, if that is where fastlstm comes from."""
    try:
        found = importlib.metadata.distribution("fastlstm")
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found and Path(str(found.locate_file("fastlstm"))) == PACKAGE and PACKAGE.parent != ROOT:
        return found
    assert not INSTALLED, f"not the installed wheel: {PACKAGE}"
    pytest.skip("fastlstm is not installed from a wheel here")


def test_one_version(wheel: importlib.metadata.Distribution) -> None:
    assert fastlstm.__version__ == wheel.version == _core.version()
    assert f"## {fastlstm.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_needs_numpy_and_safetensors_only(wheel: importlib.metadata.Distribution) -> None:
    needed = [line for line in wheel.requires or [] if "extra ==" not in line]
    assert sorted(re.match(r"[\w-]+", line).group() for line in needed) == ["numpy", "safetensors"]  # type: ignore[union-attr]


def test_files(wheel: importlib.metadata.Distribution) -> None:
    files = [Path(str(wheel.locate_file(f))) for f in wheel.files or [] if "__pycache__" not in f.parts]
    inside = {f.relative_to(PACKAGE).as_posix() for f in files if f.is_relative_to(PACKAGE)}
    assert {"py.typed", "_core.pyi", "data/charlm.safetensors", "_bench/__init__.py"} <= inside
    assert {Path(name).suffix for name in inside} <= {".py", ".pyi", ".typed", ".so", ".safetensors", ""}
    assert sum(name.endswith(".so") for name in inside) == 1
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for f in files:
            archive.write(f)
    assert packed.tell() <= WHEEL_BYTES


@pytest.mark.parametrize("module", ["fastlstm", "fastlstm.cli"])
def test_import_brings_no_other_package(module: str) -> None:
    code = f"import sys, numpy; before = set(sys.modules); import {module}; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    # Cython adds a module of its own, named after its version, for what extensions share.
    others = {n for n in loaded if n not in sys.stdlib_module_names and not n.startswith("_cython")}
    assert others - {"cython_runtime"} <= {"fastlstm", "numpy"}


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("torch", "fastlstm.torch"),
        ("torch", "fastlstm.LSTM(1, 1).to_torch()"),
        ("torch", "fastlstm.from_torch"),
        ("onnx", "fastlstm.from_onnx(b'')"),
        ("onnx", "fastlstm.to_onnx(fastlstm.LSTM(1, 1))"),
        ("h5py", "fastlstm.from_keras(sys.argv[1])"),
        ("keras", "fastlstm.keras.to_keras(fastlstm.LSTM(1, 1))"),
    ],
)
def test_what_is_missing_is_named(package: str, use: str, tmp_path: Path) -> None:
    """Each importer says which extra brings what it lacks; without it the rest of fastlstm works."""
    (tmp_path / "model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600))
    code = f"import sys, fastlstm; sys.modules[{package!r}] = None; {use}"
    run = [sys.executable, "-c", code, str(tmp_path / "model.h5")]
    done = subprocess.run(run, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    extra = "keras" if package == "h5py" else package
    assert last.startswith("ImportError: ") and f"pip install 'fastlstm[{extra}]'" in last, last


# --- the stub of the extension ------------------------------------------------------------------------------

STUB = ast.parse((PACKAGE / "_core.pyi").read_text(encoding="utf-8"))
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef) and node.name != "Kernel"}
FUNCTIONS = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}


def parameters(node: ast.FunctionDef) -> list[str]:
    return [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]


def test_stub_names_all_there_is() -> None:
    real = {n for n, value in vars(_core).items() if not n.startswith("_") and not inspect.ismodule(value)}
    assert real == CLASSES.keys() | FUNCTIONS.keys()


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_stub_of_function(name: str) -> None:
    assert parameters(FUNCTIONS[name]) == list(inspect.signature(getattr(_core, name)).parameters)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_stub_of_class(name: str) -> None:
    cls = getattr(_core, name)
    stub = {node.name: node for node in CLASSES[name].body if isinstance(node, ast.FunctionDef)}
    assert {n for n in vars(cls) if not n.startswith("_")} == {n for n in stub if not n.startswith("_")}
    for name, node in stub.items():
        if not name.startswith("_") and not node.decorator_list:  # nor a property
            assert parameters(node) == list(inspect.signature(getattr(cls, name)).parameters), name


def test_stub_of_kernels() -> None:
    (node,) = (n for n in STUB.body if isinstance(n, ast.ClassDef) and n.name == "Kernel")
    fields = [ast.unparse(f.target) for f in node.body if isinstance(f, ast.AnnAssign)]
    assert all(list(kernel) == fields for kernel in _core.kernels())
