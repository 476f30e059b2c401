"""examples/torch_classifier.py runs: it learns, and both engines agree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "torch_classifier.py"

pytestmark = pytest.mark.skipif(not EXAMPLE.exists(), reason="no examples beside the tests")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)


def test_learns_and_agrees() -> None:
    done = run("--steps", "120")
    assert done.returncode == 0, done.stderr
    assert "swapped 1, left 0" in done.stdout

    def figure(name: str) -> float:
        found = re.search(rf"^{name} +([\d.e+-]+)$", done.stdout, flags=re.M)
        assert found, done.stdout
        return float(found[1])

    assert figure("right, PyTorch") > 0.75  # of a balanced half
    assert (
        abs(figure("right, fastlstm") - figure("right, PyTorch")) < 0.002
    )  # a tie or two may fall otherwise
    assert 0 < figure("largest difference of a logit") < 1e-4
    assert figure("largest difference without PyTorch") < 1e-4
    assert len(re.findall(r"[\d.]+x$", done.stdout, flags=re.M)) == 3


def test_refuses_before_it_trains() -> None:
    done = run("--steps", "0")
    assert done.returncode == 2 and "--steps" in done.stderr and not done.stdout


def test_without_torch_says_so() -> None:
    code = (
        "import sys, runpy; sys.modules['torch'] = None; sys.argv = ['x']; "
        f"runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 1 and "needs PyTorch" in done.stderr and "Traceback" not in done.stderr
