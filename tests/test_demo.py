"""`fastlstm demo`: what it reads, what it says about it, and that its figures are right."""

from __future__ import annotations

import importlib.util
import io
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm import _demo, reference

TOOL = Path(__file__).parent.parent / "tools" / "train_demo_model.py"
SAMPLE = 'def wrap(self, text):\n    """Wrap the text."""\n    return self.fill(text)\n' * 3
BITS_HELD_OUT = 2.0  # at most, per character: the held-out module is another in every version of Python


@pytest.fixture(scope="module")
def model() -> _demo.Model:
    return _demo.Model()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure on little, briefly."""
    monkeypatch.setattr(_demo, "STRETCH", 200)
    monkeypatch.setattr(_demo, "SECONDS", 0.0)


def page(tmp_path: Path, text: str | bytes, **options: object) -> tuple[int, str]:
    path = tmp_path / "sample.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n")
    code = _demo.run(str(path), out=out, **options)  # type: ignore[arg-type]
    out.seek(0)
    return code, out.read()


# --- the model ----------------------------------------------------------------------------------------------


def test_the_bundled_model_is_small_and_good(model: _demo.Model) -> None:
    assert _demo.MODEL.stat().st_size <= 450_000
    assert sorted(model.alphabet) == [*"\n", *map(chr, range(32, 127)), _demo.OTHER]
    bits = model.score(_demo.read(None).text).bits
    assert bits.mean() < BITS_HELD_OUT
    assert model.about["bits"]["test"] < BITS_HELD_OUT


def test_bits_are_those_of_the_reference(model: _demo.Model) -> None:
    """The equations once more, in float64: h_t by the reference, p_t = softmax(W h_t + b), -log2 p_t."""
    text = _demo.read(None).text[:400] + "é\t"
    embedding, lstm, dropout, linear = model.net
    assert isinstance(dropout, fastlstm.Dropout)
    layer = reference.LSTM(embedding.embedding_dim, lstm.hidden_size, dtype="float64")
    layer.load_state_dict(lstm.state_dict())
    codes = [model.alphabet.index(c if c in model.alphabet else _demo.OTHER) for c in "\n" + text]
    h, _ = layer(embedding.state_dict()["weight"][codes[:-1]].astype(float))
    p = np.exp(h @ linear.state_dict()["weight"].T.astype(float) + linear.state_dict()["bias"])
    p /= p.sum(1, keepdims=True)
    scores = model.score(text)
    np.testing.assert_allclose(scores.bits, -np.log2(p[np.arange(len(text)), codes[1:]]), rtol=0, atol=2e-4)
    np.testing.assert_array_equal(scores.guess, p.argmax(1))
    np.testing.assert_allclose(scores.chance, p.max(1), rtol=1e-4)


def test_long_texts_are_scored_as_short_ones_are(model: _demo.Model) -> None:
    text = SAMPLE * 25
    short = model.score(text[:300]).bits
    np.testing.assert_allclose(model.score(text).bits[:300], short, rtol=0, atol=1e-5)


def test_the_continuation_follows_from_the_seed(model: _demo.Model) -> None:
    def drawn(temperature: float, seed: int) -> str:
        stream = model.net.stream(1, model.score(SAMPLE).state)
        return "".join(model.generate(stream, SAMPLE[-1], 80, temperature, seed))

    assert drawn(0.7, 1) == drawn(0.7, 1) != drawn(0.7, 2)
    assert drawn(0.0, 1) == drawn(0.0, 2) == drawn(1e-320, 3)
    assert len(drawn(1e6, 0)) == 80 and set(drawn(1e6, 0)) <= set(model.alphabet) - {_demo.OTHER}


def test_the_likeliest_continuation_is_the_one_pass_guess(model: _demo.Model) -> None:
    """Temperature 0 writes what `score` expects: the stream's state is that of the forward pass."""
    stream = model.net.stream(1, model.score(SAMPLE).state)
    new = "".join(model.generate(stream, SAMPLE[-1], 40, 0, 0))
    guess = model.score(SAMPLE + new).guess[len(SAMPLE) :]
    assert new == "".join(model.alphabet[k] for k in guess)


def test_check_measures_the_error(model: _demo.Model, quick: None) -> None:
    checks = _demo.check(model, SAMPLE)
    assert checks.same_bits and 0 < checks.error < 1e-5
    assert 0 < checks.run_error < 1e-4 and 0 < checks.numpy_error < 1e-4
    assert checks.rates.keys() == {"model", "stream", "numpy"} and min(checks.rates.values()) > 0
    assert checks.characters == min(len(SAMPLE), 200)


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(_demo.MODEL.read_bytes()[:1000])
    with pytest.raises(_demo.UserError, match="model.safetensors: "):
        _demo.Model(path)
    fastlstm.LSTM(2, 3).save(path)
    with pytest.raises(_demo.UserError, match="not written by fastlstm train"):
        _demo.Model(path)


# --- the text -----------------------------------------------------------------------------------------------


def test_encode() -> None:
    """What is not in the alphabet has the place of OTHER."""
    assert _demo.encode("ab\né\U0001f600b", "b\na\ufffd").tolist() == [2, 0, 1, 3, 3, 0]
    assert _demo.encode("\udc80\x7f\ufffd", "a\ufffd").tolist() == [1, 1, 1]
    assert _demo.encode("", "a\ufffd").shape == (0,)


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "t"

    def text(data: bytes) -> str:
        path.write_bytes(data)
        return _demo.read(str(path)).text

    assert text(b"\xef\xbb\xbfa\r\nb\rc\td\n") == "a\nb\nc   d\n"
    assert text("grüße".encode()) == "grüße"


def test_a_huge_file_is_read_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    monkeypatch.setattr(_demo, "LIMIT", 500)
    for huge in (SAMPLE * 10, "é" * 501, "\U0001f600" * 501):
        path = tmp_path / "huge"
        path.write_text(huge, encoding="utf-8")
        source = _demo.read(str(path))
        assert not source.whole and source.text == huge[:500]
    path.write_bytes(b"x" * 1999 + "é".encode() * 2)  # what is read ends within a character
    assert _demo.read(str(path)).text == "x" * 500
    assert "the first 500 characters" in page(tmp_path, SAMPLE * 10)[1]
    path.write_text("é" * 500, encoding="utf-8")
    assert _demo.read(str(path)).whole


def test_without_the_held_out_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_demo, "HELD_OUT", "no_such_module")
    with pytest.raises(_demo.UserError, match="name a text file"):
        _demo.read(None)


# --- the page -----------------------------------------------------------------------------------------------


def test_from_end_to_end_piped(tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text(SAMPLE)
    done = subprocess.run(
        [sys.executable, "-m", "fastlstm", "demo", "sample.py", "--length", "50"],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "COLUMNS": "80"},
        encoding="utf-8",
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    out = done.stdout
    assert "\033" not in out and max(map(len, out.splitlines())) <= 80
    assert f"sample.py, {len(SAMPLE)} characters" in out
    bits = float(re.search(r"([\d.]+) bits per character", out)[1])  # type: ignore[index]
    assert bits == pytest.approx(_demo.Model().score(SAMPLE).bits.mean(), abs=0.006)
    assert float(re.search(r"in any one step (\S+)", out)[1]) < 1e-5  # type: ignore[index]
    assert "stream.step gives the same bits as model(x)" in out
    rates = [float(n.replace(",", "")) for n in re.findall(r"([\d,]+) characters/s(?! with)", out)]
    ratios = [float(n) for n in re.findall(r"([\d.]+) times NumPy", out)]
    assert len(rates) == 3 and len(ratios) == 2
    np.testing.assert_allclose(np.array(rates[:2]) / rates[2], ratios, rtol=0, atol=0.06)


def test_the_same_seed_prints_the_same(tmp_path: Path, quick: None) -> None:
    def drawn(**options: object) -> str:
        out = page(tmp_path, SAMPLE, length=60, **options)[1]
        return out[out.index("How") : out.index("        temperature")]

    assert drawn(seed=3) == drawn(seed=3) != drawn(seed=4)
    assert drawn(prompt="import os\n\n", temperature=1.0) == drawn(prompt="import os\n\n", temperature=1.0)
    assert "import os" in drawn(prompt="import os") and "prompt" in drawn(prompt="")


def test_surprise_is_found_where_it_is(tmp_path: Path, quick: None) -> None:
    out = page(tmp_path, SAMPLE.replace("self.fill", "self~fill", 1) + SAMPLE, show_all=True)[1]
    first = out.split("The most surprising places\n")[1].splitlines()[1]
    assert first.split()[:2] == ["3", "16"] and "return self[~]fill(text)" in first
    rows = out.splitlines()
    row = next(k for k, r in enumerate(rows) if "self~fill" in r)
    assert rows[row + 1][rows[row].index("~")] == "9"


def test_wrong_numbers_are_a_failure(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert page(tmp_path, SAMPLE)[0] == 0
    monkeypatch.setattr(_demo, "TOLERANCE", 0.0)
    code, out = page(tmp_path, SAMPLE)
    assert code == 1 and "WRONG" in out


@pytest.mark.parametrize("color", ["always", "never"])
@pytest.mark.parametrize(
    "text",
    [
        "x",
        "\n",
        "\n\n\n",
        "日本語のテキスト" * 40,
        "a\033[31mb\x07\u0301c\u202e",
        "{" + "1234, " * 400 + "}",
        SAMPLE * 9,
    ],
)
def test_any_text_fits_the_terminal(
    text: str, color: str, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for width in ("40", "80"):
        monkeypatch.setenv("COLUMNS", width)
        code, out = page(tmp_path, text, color=color, length=20, show_all=True)
        assert code == 0
        plain = re.sub(r"\033\[[\d;]*m", "", out)
        assert "\033" not in plain and "\x07" not in plain and "\u202e" not in plain
        assert ("\033" in out) == (color == "always")
        if width == "80":
            assert max(sum(map(_demo.columns, line)) for line in plain.splitlines()) <= 80


@pytest.mark.parametrize("width", [20, 60, 80])
def test_rows_hold_the_whole_text(width: int) -> None:
    text = SAMPLE + "日本" * 50 + "\n\n" + "x" * 200 + "\nend"
    rows = _demo.rows_of(text, width)
    lines = text.split("\n")
    assert [r.number for r in rows if r.number] == list(range(1, len(lines) + 1))
    assert "".join(text[r.start : r.stop] for r in rows) == "".join(lines)
    assert all(sum(map(_demo.columns, text[r.start : r.stop])) < width for r in rows)


def test_a_typical_stretch() -> None:
    text = "\n".join("abcdefgh" for _ in range(30))
    bits = np.repeat([8.0, 2.0, 0.1], 90)[: len(text)]
    picked = _demo.typical(_demo.rows_of(text, 72), bits, 5)
    assert len(picked) == 5
    inside = bits[picked[0].start : picked[-1].stop].mean()
    assert abs(inside - bits.mean()) < 1


def test_an_ascii_terminal(tmp_path: Path, quick: None) -> None:
    path = tmp_path / "t"
    path.write_text("é" + SAMPLE, encoding="utf-8")
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    assert _demo.run(str(path), out=out) == 0
    out.flush()
    assert b"symbols -> embedding" in raw.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_when_there_are_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert _demo.colours("auto", Terminal()) == 256
    assert _demo.colours("auto", io.StringIO()) == 0
    assert _demo.colours("always", io.StringIO()) == 256
    assert _demo.colours("never", Terminal()) == 0
    monkeypatch.setenv("COLORTERM", "truecolor")
    assert _demo.colours("auto", Terminal()) == 1 << 24
    monkeypatch.delenv("COLORTERM")
    monkeypatch.setenv("TERM", "xterm")
    assert _demo.colours("auto", Terminal()) == 16
    monkeypatch.setenv("TERM", "dumb")
    assert _demo.colours("auto", Terminal()) == 0
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert _demo.colours("auto", Terminal()) == 0
    monkeypatch.setenv("NO_COLOR", "")  # no-color.org: only if not empty
    assert _demo.colours("auto", Terminal()) == 16


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("no_color", ["", "1"])
def test_on_a_terminal(tmp_path: Path, no_color: str) -> None:
    (tmp_path / "sample.py").write_text(SAMPLE)
    master, slave = os.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "fastlstm", "demo", "sample.py", "--length", "20"],
            cwd=tmp_path,
            env={**os.environ, "TERM": "xterm-256color", "NO_COLOR": no_color, "COLUMNS": "80"},
            stdout=slave,
            stderr=slave,
            stdin=subprocess.DEVNULL,
        ) as process:
            os.close(slave)
            data = b""
            try:
                while piece := os.read(master, 65536):
                    data += piece
            except OSError:  # how Linux says that the other end is closed
                pass
        assert process.returncode == 0
        assert (b"\033[38;5;" in data) == (not no_color)
        assert b"times NumPy" in data
    finally:
        os.close(master)


# --- the training script ------------------------------------------------------------------------------------


@pytest.mark.skipif(not TOOL.exists(), reason="the training script is not installed")
def test_the_training_script_makes_a_model_that_the_demo_reads(
    tmp_path: Path, model: _demo.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("train_demo_model", TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = tool.corpus()
    assert set(text) <= set(model.alphabet)
    assert "class OptionParser" in text and "class TextWrapper" not in text
    monkeypatch.setattr(tool, "corpus", lambda: text[:20_000] + model.alphabet)
    path = tmp_path / "model.safetensors"
    options = ["--width=8", "--embedding=5", "--batch=2", "--bptt=8", "--steps=3", "-o", str(path)]
    monkeypatch.setattr(sys, "argv", [str(TOOL), *options])
    assert tool.main() == 0
    assert os.listdir(tmp_path) == [path.name]
    made = _demo.Model(path)
    assert made.alphabet == model.alphabet
    assert (made.net[0].embedding_dim, made.net[1].hidden_size) == (5, 8)
    bits = float(made.score(_demo.read(None).text).bits.mean())
    assert bits == pytest.approx(math.log2(97), abs=0.6)  # it has learnt nothing yet
