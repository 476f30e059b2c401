"""The Keras example runs, and its network agrees with Keras's."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastlstm

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "keras_tagger.py"

pytestmark = pytest.mark.skipif(not EXAMPLE.is_file(), reason="no examples beside the tests")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("keras_tagger", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments):
    command = [sys.executable, str(EXAMPLE), *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)


def test_it_runs(tmp_path, example, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    for name in ("keras", "torch", "h5py"):
        pytest.importorskip(name)
    path = tmp_path / "tagger.keras"
    done = run("--steps", "40", "--keep", str(path))
    assert done.returncode == 0, done.stderr
    figures = dict(re.findall(r"^(right tags|same tags as Keras) +([\d.]+)%$", done.stdout, flags=re.M))
    assert float(figures["same tags as Keras"]) > 99.9
    assert float(figures["right tags"]) > 50  # of four tags: it has learnt
    difference = re.search(r"^largest difference +(\S+)$", done.stdout, flags=re.M)
    assert 0 <= float(difference[1]) < 1e-5
    for row in ("one word", "32 words", "500 words"):
        assert re.search(rf"^{row} +[\d.]+ +[\d.]+  \d+ times as fast$", done.stdout, flags=re.M)
    letters, _ = example.words(3, 5)
    assert fastlstm.from_keras(path)(letters).shape == (3, example.LONGEST, example.TAGS)


def test_it_refuses_before_it_trains():
    for arguments, said in (
        (["--steps", "0"], "--steps must be"),
        (["--seed", "-1"], "--seed at least"),
        (["--keep", "tagger.h5"], "--keep must end in .keras"),
    ):
        done = run(*arguments)
        assert done.returncode == 2 and said in done.stderr


def test_words(example):
    letters, tags = example.words(200, 3)
    assert letters.shape == tags.shape == (200, example.LONGEST)
    assert letters.min() == 0 and letters.max() == example.LETTERS
    for word, own in zip(letters, tags, strict=True):
        length = np.count_nonzero(word)
        assert 3 <= length and not word[length:].any()
        for t in range(length):
            after_last = t == 0 or word[t] > word[t - 1]
            after_next = t == length - 1 or word[t] > word[t + 1]
            assert own[t] == after_last + 2 * after_next
