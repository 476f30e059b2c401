"""The README's code runs, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm import _core

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> object:
    """PyTorch, or what the README uses of it: a module with a state dict."""
    try:
        import torch

        return torch
    except ImportError:
        stand_in = types.ModuleType("torch")
        stand_in.nn = types.SimpleNamespace(LSTM=fastlstm.reference.LSTM)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "torch", stand_in)
        return stand_in


def blocks() -> list[tuple[int, str]]:
    """Line number and text of each block of Python."""
    found = re.finditer(r"^```python\n(.*?)^```$", README, re.M | re.S)
    return [(README.count("\n", 0, m.start(1)), m.group(1)) for m in found]


def test_the_code(
    torch: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a reader would type it: one block after the other."""
    monkeypatch.chdir(tmp_path)
    threads = fastlstm.get_num_threads()
    names: dict[str, object] = {}
    try:
        for line, text in blocks():
            exec(compile("\n" * line + text, str(ROOT / "README.md"), "exec"), names)
    finally:
        fastlstm.set_num_threads(threads)
    assert isinstance(names["lstm"], fastlstm.LSTM) and len(blocks()) >= 8
    assert "cpu_path" in capsys.readouterr().out


def test_the_first_lines_give_pytorchs_numbers() -> None:
    torch = pytest.importorskip("torch")
    names: dict[str, object] = {}
    exec(blocks()[0][1], names)
    wanted = names["trained"](torch.from_numpy(names["x"]))[0].detach().numpy()  # type: ignore[operator]
    np.testing.assert_allclose(names["output"], wanted, rtol=0, atol=2e-6)
    assert len(blocks()[0][1].splitlines()) <= 12


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_and_commands(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        if not path.startswith("http"):
            assert (ROOT / path).exists(), link
            assert not anchor or path or f"# {anchor}" in text.lower(), link
    for target in re.findall(r"(?:^\$ |`)make ([a-z-]+)", text, re.M):
        assert target in TARGETS, target


def test_the_benchmark_has_its_place() -> None:
    assert README.index("<!-- benchmark -->") < README.index("<!-- /benchmark -->")


def test_the_kernels_table() -> None:
    """ARCHITECTURE.md's table is that of kernels.inc."""
    kernels = {k["op"]: k for k in _core.kernels() if k["dtype"] == "float32"}.values()
    bounds = {(k["op"], k["dtype"]): k["bound"] for k in _core.kernels()}
    lines = ["| op | what it does | bound in ulp, f32, f64 |", "|---|---|---|"]
    for k in kernels:
        f32, f64 = (bounds.get((k["op"], dtype), 0) for dtype in ("float32", "float64"))
        lines.append(f"| {k['op']} | {k['doc']} | {f'{f32:g}, {f64:g}' if f32 else ''} |")
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text.partition("<!-- kernels -->")[2].partition("<!-- /kernels -->")[0].strip()
    assert table == "\n".join(lines), "the table should be:\n" + "\n".join(lines)
