"""`fastlstm demo`: a small character model reads a text, and fastlstm shows what it does on it.

The model is one of `fastlstm train`: p_t = softmax(Linear(h_t)), h_t from an LSTM layer that reads embeddings
of the characters before. The surprise of a character is -log2 p_t bits; its mean is what an ideal compressor
with this model would need per character. Trained by tools/train_demo_model.py on the Python standard library,
but for one module, which the demo reads by default.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import sys
import sysconfig
import time
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

import numpy as np
import numpy.typing as npt

import fastlstm

from . import _train
from ._train import UserError as UserError
from .modules import _Choice

Array = npt.NDArray[Any]

HELD_OUT = "textwrap"  # the module of the standard library that the model has never seen
OTHER = "\ufffd"  # in the alphabet, for every character that the model does not know
MODEL = Path(__file__).parent / "data" / "charlm.safetensors"
LIMIT = 200_000  # characters that are read of a text: its logits take 80 MB
STRETCH = 3_000  # characters on which the NumPy reference runs along
SECONDS = 0.3  # for each measurement of speed
TOLERANCE = 1e-5  # of the logits of a step; whole runs of a trained network may be chaotic: they have none


# --- the text ---------------------------------------------------------------------------------------------


def normalise(text: str) -> str:
    """Lines end in a line feed and tabs are spaces, in training as in the demo."""
    return text.replace("\r\n", "\n").replace("\r", "\n").expandtabs(4)


def encode(text: str, alphabet: str) -> Array:
    """The characters' places in the alphabet, int32 [T]; that of OTHER for all that are not in it."""
    places = {c: k for k, c in enumerate(alphabet)}
    other = places[OTHER]
    return np.array([places.get(c, other) for c in text], np.int32)


class Text(NamedTuple):
    name: str  # its path
    text: str
    whole: bool  # False: the file goes on


def held_out_path() -> Path:
    path = Path(sysconfig.get_path("stdlib")) / f"{HELD_OUT}.py"
    if not path.is_file():
        raise UserError(f"this Python comes without {path}: name a text file instead")
    return path


def read(file: str | None) -> Text:
    """The text to score: a path, "-" for standard input, None for the held-out module. UserError, OSError."""
    if file == "-":
        return _decode(file, _train.standard_input())
    path = held_out_path() if file is None else Path(file)
    with path.open("rb") as stream:
        return _decode(str(path), stream)


def _decode(path: str, stream: BinaryIO) -> Text:
    name, data = _train.name_of(path), stream.read(4 * LIMIT + 1)  # a character has at most 4 bytes
    if b"\0" in data:
        raise UserError(f"{name} is no UTF-8 text: it holds NUL bytes")
    whole = len(data) <= 4 * LIMIT
    text = normalise(_train.decode(path, data, whole=whole))
    if not text:
        raise UserError(f"{name} is empty: nothing to score")
    return Text(name, text[:LIMIT], whole and len(text) <= LIMIT)


# --- the model --------------------------------------------------------------------------------------------


class Scores(NamedTuple):
    bits: Array  # [T] surprise of each character
    guess: Array  # [T] place in the alphabet of the likeliest character
    chance: Array  # [T] its probability
    state: tuple[Any, ...]  # of the model before the last character
    seconds: float  # of model(x)


class Model:
    """The bundled character model. UserError or OSError if its file is damaged or missing."""

    def __init__(self, path: Path = MODEL) -> None:
        self.net, self.about = _train.read_model(str(path))
        self.alphabet: str = self.about["alphabet"]
        self.other = self.alphabet.index(OTHER)

    def inputs(self, text: str) -> Array:
        """x [T, 1]: each step sees the character before; the first sees the end of a line."""
        return encode("\n" + text[:-1], self.alphabet)[:, None]

    def score(self, text: str) -> Scores:
        """Every character of the text in one forward pass."""
        x, codes = self.inputs(text), encode(text, self.alphabet)
        start = time.perf_counter()
        logits, state = self.net(x)
        seconds = time.perf_counter() - start
        log_p = fastlstm.log_softmax(logits[:, 0])
        bits = log_p[np.arange(len(codes)), codes] / -math.log(2)
        return Scores(bits, log_p.argmax(1), np.exp(log_p.max(1)), state, seconds)

    def generate(
        self, stream: fastlstm.SequentialStream, last: str, length: int, temperature: float, seed: int
    ) -> Iterator[str]:
        """Characters drawn one after the other, each fed back through `stream`, which has yet to read `last`.

        The temperature divides the log-odds: 0 takes the likeliest character each time. OTHER is never drawn.
        """
        choose = _Choice(temperature, None, None, seed, 1)
        code = encode(last, self.alphabet)
        for _ in range(length):
            logits = stream.step(code)
            logits[:, self.other] = -np.inf
            code = choose(logits)
            yield self.alphabet[code[0]]


class Checks(NamedTuple):
    characters: int
    # Largest differences of the logits from the reference in float64, as parts of the largest logit:
    error: float  # each step from the same state
    run_error: float  # the same for the whole run, where differences add up, or grow
    numpy_error: float  # for the whole run of the reference in float32
    same_bits: bool  # stream.step against model(x)
    rates: dict[str, float]  # characters per second: "model", "stream", "numpy"


def numpy_model(model: Model, dtype: str) -> Callable[..., Array]:
    """The same in plain NumPy: x [T, B], state (h, c) -> logits [T, B, V]."""
    from fastlstm import reference

    embedding, layer, _, linear = model.net
    weights = [v.astype(dtype) for m in (embedding, linear) for v in m.state_dict().values()]
    table, weight, bias = weights
    lstm = reference.LSTM(layer.input_size, layer.hidden_size, dtype=dtype)
    lstm.load_state_dict(layer.state_dict())

    def run(x: Array, state: Any = None) -> Array:
        y: Array = lstm(table[x], state)[0] @ weight.T + bias
        return y

    return run


def check(model: Model, text: str) -> Checks:
    """The model against NumPy on a stretch of text: numbers, bits and speed."""
    x = model.inputs(text[:STRETCH])
    stream, y_stream = model.net.stream(), np.empty((len(x), 1, len(model.alphabet)), np.float32)

    def steps() -> None:
        stream.reset()
        for x_t, y_t in zip(x, y_stream, strict=True):
            stream.step(x_t, out=y_t)

    exact, rounded = numpy_model(model, "float64"), numpy_model(model, "float32")
    rates = {
        "model": _rate(lambda: model.net(x), len(x)),
        "stream": _rate(steps, len(x)),
        "numpy": _rate(lambda: rounded(x), len(x)),
    }
    stream.reset()
    states = []
    for x_t, y_t in zip(x, y_stream, strict=True):
        states.append(stream.state[0])
        stream.step(x_t, out=y_t)
    y, _ = model.net(x)

    # All steps as one batch: one step each, from the states that the stream was in.
    h, c = (np.concatenate(parts, axis=1) for parts in zip(*states, strict=True))
    step, run = exact(x.T, (h, c)), exact(x)

    def error(got: Array, wanted: Array) -> float:
        return float(np.abs(got - wanted).max() / np.abs(wanted).max())

    return Checks(
        len(x),
        error(y_stream.transpose(1, 0, 2), step),
        error(y, run),
        error(rounded(x), run),
        y.tobytes() == y_stream.tobytes(),
        rates,
    )


def _rate(run: Callable[[], Any], characters: int) -> float:
    """Characters per second in the best of several runs within SECONDS or so."""
    best, end = math.inf, time.perf_counter() + SECONDS
    for n in range(1000):
        start = time.perf_counter()
        if n >= 2 and start > end:
            break
        run()
        best = min(best, time.perf_counter() - start)
    return characters / best


# --- the page ---------------------------------------------------------------------------------------------

EDGES = (1, 2, 4, 8)  # bits: between the bands of surprise
BANDS = tuple(f" {low}-{high} " for low, high in zip((0, *EDGES), EDGES, strict=False)) + (f" {EDGES[-1]}+ ",)
# Of each band but the lowest, which stays as the terminal has it: on black or white letters a background from
# pale yellow to red, for terminals of 16 colours, of 256, and of all.
COLOURS: dict[int, tuple[str, ...]] = {
    16: ("33", "30;43", "97;41", "97;45"),
    256: ("38;5;16;48;5;229", "38;5;16;48;5;221", "38;5;16;48;5;209", "38;5;231;48;5;160"),
    1 << 24: (
        "38;2;0;0;0;48;2;255;240;170",
        "38;2;0;0;0;48;2;255;200;90",
        "38;2;0;0;0;48;2;245;130;80",
        "38;2;255;255;255;48;2;200;20;45",
    ),
}
BOLD, DIM = "1", "2"
ASCII = str.maketrans({"│": "|", "·": ".", "→": "->", "…": "~", "↵": "$"})


def colours(when: str, out: TextIO) -> int:
    """How many colours to use on `out`: 0, 16, 256 or 2**24. `when` is auto, always or never."""
    term = os.environ.get("TERM", "")
    if when == "never" or (
        when == "auto" and (os.environ.get("NO_COLOR") or not out.isatty() or term in ("", "dumb"))
    ):
        return 0
    if os.environ.get("COLORTERM") in ("truecolor", "24bit"):
        return 1 << 24
    return 256 if "256" in term or term in ("", "dumb") else 16


def glyph(character: str) -> str:
    """A character as it may be shown: nothing that moves the cursor or joins what stands before."""
    return character if character.isprintable() and not unicodedata.combining(character) else "·"


def columns(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fit(text: str, room: int) -> str:
    """The beginning of the text that takes at most so many columns."""
    for k, character in enumerate(text):
        room -= columns(character)
        if room < 0:
            return text[:k]
    return text


class Row(NamedTuple):
    """A row of the screen: text[start:stop] of a line; without a number it goes on from the row above."""

    number: int | None
    start: int
    stop: int


def rows_of(text: str, width: int) -> list[Row]:
    """The rows that the text takes in so many columns, one of them kept for the end of the line."""
    rows, start = [], 0
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        stop, at, used = start + len(line), start, 0
        shown: int | None = number
        for k in range(start, stop):
            wide = columns(text[k])
            if used + wide > width - 1:
                rows.append(Row(shown, at, k))
                shown, at, used = None, k, 0
            used += wide
        rows.append(Row(shown, at, stop))
        start = stop + 1
    return rows


def typical(rows: list[Row], bits: Array, count: int) -> list[Row]:
    """As many rows together as asked for, chosen so that they surprise as the whole text does on average."""
    if len(rows) <= count:
        return rows
    sums = np.concatenate([[0], bits.cumsum()])
    first = np.array([r.start for r in rows[: len(rows) - count + 1]])
    last = np.array([r.stop for r in rows[count - 1 :]])
    length = np.maximum(last - first, 1)
    off = np.abs((sums[last] - sums[first]) / length - bits.mean())
    off[length < np.quantile(length, 0.6)] = np.inf  # no stretch of empty lines
    folded = np.array([r.number is None for r in rows]).cumsum()
    off += 1e3 * (folded[count - 1 :] - folded[: len(off)])  # rather lines that fit into a row each
    off[[r.number is None or r.start == r.stop for r in rows[: len(off)]]] += 1e6  # begin as a line does
    best = int(off.argmin())
    return rows[best : best + count]


class Page:
    """What the demo prints, on a terminal or plain."""

    def __init__(self, out: TextIO, depth: int) -> None:
        self.out, self.depth = out, depth
        self.width = max(40, min(100, shutil.get_terminal_size((80, 24)).columns))
        self.unicode = (getattr(out, "encoding", None) or "").lower().startswith("utf")

    def paint(self, text: str, style: str) -> str:
        return f"\033[{style}m{text}\033[0m" if self.depth and text else text

    def line(self, text: str = "") -> None:
        if not self.unicode:
            encoding = getattr(self.out, "encoding", None) or "ascii"
            text = text.translate(ASCII).encode(encoding, "replace").decode(encoding)
        print(text, file=self.out)

    def head(self, title: str, rest: str = "") -> None:
        self.line()
        self.line(self.paint(title, BOLD) + rest)

    def fact(self, name: str, text: str) -> None:
        self.line(f"  {name:<10}{text}")

    def band(self, text: str, band: int) -> str:
        return self.paint(text, COLOURS[self.depth][band - 1]) if self.depth and band else text

    def surprise(self, row: Row, text: str, bits: Array) -> None:
        """A row of the text by surprise: coloured, or else with the bits of what surprised below it."""
        gutter = "     " if row.number is None else f"{row.number:>5}"
        shown = [glyph(c) for c in text[row.start : row.stop]]
        if text[row.stop : row.stop + 1] == "\n" and bits[row.stop] >= EDGES[0]:
            shown.append("↵")  # the line's end itself surprises
        surprise = bits[row.start : row.start + len(shown)]
        if not self.depth:
            digits = "".join(
                f"{min(int(b), 9) if b >= EDGES[0] else ' '!s:<{columns(c)}}"
                for c, b in zip(shown, surprise, strict=True)
            )
            self.line(f"{gutter} │ {''.join(shown)}")
            if digits.strip():
                self.line(f"      │ {digits.rstrip()}")
            return
        bands, painted, k = np.digitize(surprise, EDGES), "", 0
        while k < len(shown):  # one escape sequence for each run of a band
            end = k + 1
            while end < len(shown) and bands[end] == bands[k]:
                end += 1
            painted += self.band("".join(shown[k:end]), int(bands[k]))
            k = end
        self.line(self.paint(f"{gutter} │ ", DIM) + painted)


def run(
    file: str | None = None,
    *,
    show_all: bool = False,
    prompt: str | None = None,
    length: int = 300,
    temperature: float = 0.6,
    seed: int = 0,
    color: str = "auto",
    out: TextIO | None = None,
) -> int:
    """Read, score, show, generate, check and time; returns the exit code, 1 if a check failed."""
    out = out or sys.stdout
    source, model = read(file), Model()
    if prompt is not None:
        prompt = normalise(prompt)
        _train.check_prompt(prompt, model.alphabet.replace(OTHER, ""))
    page = Page(out, colours(color, out))
    scores = model.score(source.text)
    _show_summary(page, source, model, scores, file is None)
    _show_surprise(page, source.text, model, scores, show_all)
    _show_continuation(page, source.text, model, scores, prompt, length, temperature, seed)
    return 0 if _show_checks(page, check(model, source.text)) else 1


def _show_summary(page: Page, source: Text, model: Model, scores: Scores, held_out: bool) -> None:
    text, bits = source.text, float(scores.bits.mean())
    packed = 8 * len(zlib.compress(text.encode("utf-8", "replace"), 9)) / len(text)
    unknown = int((encode(text, model.alphabet) == model.other).sum())
    page.line(page.paint(f"fastlstm {fastlstm.__version__}", BOLD) + "  a character model reads a text")
    page.line()
    count = _train.count(len(text), "character")
    if not source.whole:
        count = f"the first {count}"
    where = f" of Python {platform.python_version()}" if held_out else ""
    name = "".join(map(glyph, Path(source.name).name))
    page.fact("Text", f"{name if len(name) <= 36 else name[:35] + '…'}{where}, {count}")
    if held_out:
        page.fact("", "(the model was trained on the standard library without it)")
    if unknown:
        page.fact("", f"({unknown:,} of them outside the alphabet, all scored as one symbol)")
    took = f"{scores.seconds:.2f} s" if scores.seconds > 0.5 else f"{1e3 * scores.seconds:.3g} ms"
    symbols, (embedding, layer, *_) = len(model.alphabet), model.net
    parts = f"embedding, {embedding.embedding_dim} → LSTM, {layer.hidden_size} units → softmax"
    page.fact("Model", f"{symbols} symbols → {parts}, {MODEL.stat().st_size / 1e3:.0f} kB")
    mean = page.paint(f"{bits:.2f} bits per character", BOLD)
    page.fact("Surprise", f"{mean}, all scored in one call, {took}")
    rivals = f"equal odds for all symbols, {math.log2(symbols):.2f}"
    if len(text) >= 1000:  # a shorter text is mostly zlib's header
        rivals = f"zlib -9 needs {packed:.2f}; {rivals}"
    page.fact("", f"({rivals})")


def _show_surprise(page: Page, text: str, model: Model, scores: Scores, show_all: bool) -> None:
    rows = rows_of(text, page.width - 8)
    picked = rows if show_all else typical(rows, scores.bits, 12 if page.depth else 8)
    if page.depth:
        page.head("By surprise", ", in bits: " + "".join(page.band(name, k) for k, name in enumerate(BANDS)))
    else:
        page.head("By surprise", ": below a character, its bits (9 is 9 or more, none is less than 1)")
    for row in picked:
        page.surprise(row, text, scores.bits)
    if len(picked) < len(rows):
        page.line(page.paint("        a typical stretch; --all shows the whole text", DIM))

    page.head("The most surprising places")
    page.line(page.paint("   line   col   bits  expected    read", DIM))
    order = np.argsort(-scores.bits, kind="stable")[: 5 if page.depth else 10]
    for at in map(int, order):
        line = text.count("\n", 0, at) + 1
        begin = text.rfind("\n", 0, at) + 1
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        code = int(scores.guess[at])
        likely = "other" if code == model.other else repr(model.alphabet[code])
        chance = f"{scores.chance[at]:.0%}" if scores.chance[at] < 0.995 else ">99%"
        room = max(8, page.width - 40)
        before = fit("".join(map(glyph, text[begin:at].lstrip()))[::-1], room // 2)[::-1]
        after = fit("".join(map(glyph, text[at + 1 : end])), room - sum(map(columns, before)))
        came = "↵" if text[at] == "\n" else glyph(text[at])
        marked = page.band(came, int(np.digitize(scores.bits[at], EDGES))) if page.depth else f"[{came}]"
        page.line(
            f"{line:>7}{at - begin + 1:>6}{scores.bits[at]:>7.1f}  {likely:<6}{chance:>4}   "
            f"{before}{marked}{after}"
        )


def _show_continuation(
    page: Page,
    text: str,
    model: Model,
    scores: Scores,
    prompt: str | None,
    length: int,
    temperature: float,
    seed: int,
) -> None:
    if length == 0:
        return
    if prompt is None:  # go on where the forward pass ended: its state is the stream's
        context, stream = text, model.net.stream(1, scores.state)
        title = "How it might go on"
    else:
        context, stream = "\n" + prompt, model.net.stream()
        title = "How the prompt might go on"
        for x_t in encode(context[:-1], model.alphabet)[:, None]:
            stream.step(x_t)
    start = time.perf_counter()
    new = "".join(model.generate(stream, context[-1], length, temperature, seed))
    seconds = time.perf_counter() - start
    page.head(title, f": {_train.count(length, 'character')} drawn one by one through stream.step")
    begin = context.rfind("\n", 0, len(context.rstrip("\n"))) + 1  # its last line, for a start
    old = context[max(begin, len(context) - 300) :]
    shown = old + new
    for row in rows_of(shown, page.width - 8):
        split = min(max(len(old), row.start), row.stop)
        known = "".join(map(glyph, shown[row.start : split]))
        page.line(page.paint(f"      │ {known}", DIM) + "".join(map(glyph, shown[split : row.stop])).rstrip())
    rate = f"{length / seconds:,.0f} characters/s with the drawing"
    page.line(page.paint(f"        temperature {temperature:g}, seed {seed}, {rate}", DIM))


def _show_checks(page: Page, checks: Checks) -> bool:
    """True if all is well."""
    page.head("Against NumPy", f" (fastlstm.reference), {_train.count(checks.characters, 'character')}")
    right = checks.error <= TOLERANCE
    verdict = "" if right else f": WRONG, more than {TOLERANCE}"
    size = f"{checks.error:.1e} of the largest{verdict}"
    page.fact("Numbers", f"error of logits from float64 in any one step {size}")
    page.fact("", f"(in the whole run {checks.run_error:.1e}; NumPy in float32, {checks.numpy_error:.1e})")
    if min(checks.run_error, checks.numpy_error) > 1e-3:
        page.fact("", "(the model is chaotic on this text: it enlarges every rounding)")
    verdict = "gives the same bits as" if checks.same_bits else "DIFFERS from"
    page.fact("Bits", f"stream.step {verdict} model(x)")
    numpy = checks.rates["numpy"]
    for key, name in (("model", "model(x)"), ("stream", "stream.step"), ("numpy", "NumPy, float32")):
        rate = checks.rates[key]
        ratio = "" if key == "numpy" else f"{rate / numpy:>7.1f} times NumPy"
        page.fact("Speed" if key == "model" else "", f"{name:<15}{rate:>11,.0f} characters/s{ratio}")
    config = fastlstm.show_config("dicts")
    page.fact("", f"({config['cpu_path']}, at most {_train.count(config['num_threads'], 'thread')})")
    return right and checks.same_bits
