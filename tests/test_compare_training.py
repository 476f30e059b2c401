"""tools/compare_training.py: losses as PyTorch's, step by step, and a difference that is not overlooked."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[1] / "tools" / "compare_training.py"

pytestmark = pytest.mark.skipif(not TOOL.is_file(), reason="no tools beside the tests")


@pytest.fixture
def tool(monkeypatch, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    import fastlstm

    threads = torch.get_num_threads(), fastlstm.get_num_threads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    spec = importlib.util.spec_from_file_location("compare_training", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = ["--steps", "12", "--width", "7", "--batch", "3", "--bptt", "9", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["compare_training.py", *small])
    yield module
    if cores is not None:
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads[0])
    fastlstm.set_num_threads(threads[1])


def test_it_agrees_and_writes(tool, tmp_path, capsys):
    assert tool.main() == 0
    found = json.loads((tmp_path / "training.json").read_text())
    for dtype, most in (("float64", 1e-12), ("float32", 1e-5)):
        assert len(found[dtype]["fastlstm"]["bits"]) == 12
        assert tool.difference(found[dtype]) <= max(most, 1e-9)  # written with ten digits
    assert "| float64 |" in (tmp_path / "training.md").read_text()
    assert (tmp_path / "training.svg").stat().st_size > 5000


def test_it_tells_a_difference(tool, tmp_path, monkeypatch, capsys):
    import torch

    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda parameters, lr: adam(parameters, 1.2 * lr))
    assert tool.main() == 1
    assert "DIFFER" in capsys.readouterr().out
