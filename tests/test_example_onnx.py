"""The ONNX example runs, finds the voice, and agrees with ONNX Runtime."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "onnx_voice.py"

pytestmark = pytest.mark.skipif(not EXAMPLE.is_file(), reason="no examples beside the tests")


@pytest.fixture(scope="module")
def voice():
    spec = importlib.util.spec_from_file_location("onnx_voice", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments, code=None):
    command = [sys.executable, *(["-c", code] if code else [str(EXAMPLE)]), *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)


def test_it_runs_and_agrees():
    pytest.importorskip("onnxruntime")
    done = run("--seconds", "30")
    assert done.returncode == 0, done.stderr
    assert "LSTM on fastlstm" in done.stdout and "Conv on onnxruntime" in done.stdout
    right = float(re.search(r"([\d.]+) % called right", done.stdout)[1])
    assert right > 90
    assert float(re.search(r"largest difference: (\S+)", done.stdout)[1]) < 1e-4
    assert len(re.findall(r"[\d.]+ us a frame, \d+ ms for all in one call", done.stdout)) == 2


def test_without_the_packages_it_says_so():
    blocked = (
        "import sys, runpy; sys.modules[{!r}] = None; sys.argv = ['x', '--seconds', '3']; "
        "runpy.run_path({!r}, run_name='__main__')"
    )
    done = run(code=blocked.format("onnx", str(EXAMPLE)))
    assert done.returncode == 1 and "needs onnx" in done.stderr and "Traceback" not in done.stderr
    done = run(code=blocked.format("onnxruntime", str(EXAMPLE)))
    assert done.returncode == 0 and "Conv on reference" in done.stdout and "nothing to compare" in done.stdout


def test_wrong_arguments(voice, monkeypatch, capsys):
    for arguments, said in ((["--seconds", "1"], "--seconds must be"), (["--seed", "-1"], "--seed must be")):
        monkeypatch.setattr(sys, "argv", ["onnx_voice.py", *arguments])
        with pytest.raises(SystemExit):
            voice.main()
        assert said in capsys.readouterr().err


def test_the_sound_has_voice_where_it_says(voice):
    frames, labels = voice.sound(10, 0)
    loud = np.square(frames).mean(axis=(1, 2))
    assert frames.shape == (len(labels), 1, 512) and set(labels) == {0, 1}
    assert loud[labels == 1].mean() > 1.3 * loud[labels == 0].mean()
    assert not np.array_equal(frames, voice.sound(10, 1)[0])


def test_the_memory_is_used(voice):
    """Frames in another order give something else: the state is carried."""
    import fastlstm

    held = voice.weights(0)
    frames, labels = voice.sound(5, 0)
    voice.fit(held, frames, labels)
    model = fastlstm.from_onnx(voice.graph(held))
    forward, _ = voice.with_fastlstm(model, frames)
    backward, _ = voice.with_fastlstm(model, frames[::-1])
    assert np.abs(forward - backward[::-1]).max() > 1e-3
