"""`fastlstm train` and `fastlstm generate`: a character or byte language model, from text to text.

The model is p(x_{t+1} | x_1..x_t) = softmax(Linear(recurrent layers(Embedding(x_t)))), trained by truncated
backpropagation through time: `batch` readers walk through the training text side by side, each from its own
place, `bptt` symbols between two updates, their states carried on. The text's tail is held out: its first
part chooses the best weights (and the n-gram baseline's order), the rest says how good they are.

What a run does depends on the text, the settings and the number of the step alone, never on the clock, the
threads or an interruption: everything random is drawn anew from (seed, pass) or (seed, step), and all else is
in the checkpoint. So a run that was killed and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import io
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO, TypeAlias

import numpy as np
import numpy.typing as npt

import fastlstm

from . import _files, _ngram

Array: TypeAlias = npt.NDArray[Any]

VERSION = 1  # of checkpoints, and of what a model's file says about its text
CHECKPOINT_KEY, TEXT_KEY = "fastlstm_checkpoint", "fastlstm_text"  # in a file's metadata
DIGEST_KEY = "fastlstm_digest"  # of a checkpoint: what it says and its arrays
CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN", "gated_rnn": "GatedRNN"}
HELD_OUT = 10  # one part in so many is not learnt from: half of it validates, half is the test,
VALIDATION = 100_000  # but validation, which is done often, takes at most so many symbols
BASELINE = 10_000_000  # symbols at most that the n-gram model counts: it takes some 100 bytes for each
CHUNK = 256  # steps at a time where nothing is learnt,
LOGITS = 1 << 23  # but no more logits than these
WARM_UP = 256  # symbols that each reader of the held-out text reads before those that count
SECONDS = 5.0  # between two lines of progress
LOCK = ".lock"  # what the name of a file beside a checkpoint ends in while a run has it
PATIENCE = 1.0  # seconds after Ctrl-C within which another is taken for the same


class UserError(Exception):
    """What the user can mend; the message is one line."""


class Diverged(UserError):
    """The loss is no number any more."""


class Settings(NamedTuple):
    """What decides the outcome, beside the text. The command line's options, with their defaults."""

    bytes: bool = False
    cell: str = "lstm"
    layers: int = 1
    width: int = 256
    embedding: int = 64
    steps: int = 4000
    batch: int = 32
    bptt: int = 128
    lr: float = 1e-2
    warmup: int = 100
    clip: float = 1.0
    weight_decay: float = 0.0
    dropout: float = 0.0
    seed: int = 0


# What may change when a run is resumed: nothing that the weights, states or places in the text depend on.
CHANGEABLE = frozenset({"steps", "lr", "warmup", "clip", "weight_decay", "dropout"})


# --- the text ---------------------------------------------------------------------------------------------


class Text(NamedTuple):
    """Symbols, their number, and the characters that they stand for ("" for bytes)."""

    codes: Array
    symbols: int
    alphabet: str
    digest: str
    train: int  # symbols to train on; the rest is held out
    validation: int  # symbols after those for validation

    @property
    def unit(self) -> str:
        return "character" if self.alphabet else "byte"


def count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def figure(bits: float, digits: int = 3) -> str:
    return f"{bits:.{digits}f}" if bits < 100 else f"{bits:.4g}"


def read_text(paths: Sequence[str], as_bytes: bool) -> Text:
    """The files one after the other, "-" for standard input. UserError, OSError."""
    parts = [standard_input().read() if path == "-" else Path(path).read_bytes() for path in paths]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    if as_bytes:
        codes: Array = np.frombuffer(b"".join(parts), np.uint8)
        symbols, alphabet = 256, ""
    else:
        advice = ": --bytes learns from any file"
        decoded = "".join(decode(path, part, advice=advice) for path, part in zip(paths, parts, strict=True))
        points = np.frombuffer(decoded.encode("utf-32-le"), "<u4")
        kinds = np.flatnonzero(np.bincount(points))
        places = np.zeros(kinds.max(initial=0) + 1, np.int32)
        places[kinds] = np.arange(len(kinds))
        codes = places[points]
        symbols, alphabet = len(kinds), "".join(map(chr, kinds))
    if not len(codes):
        name = name_of(paths[0]) if len(paths) == 1 else "every file"
        raise UserError(f"{name} is empty: nothing to learn from")
    held = max(2, len(codes) // HELD_OUT)
    validation = min(held // 2, VALIDATION)
    return Text(codes.astype(np.int32), symbols, alphabet, digest.hexdigest(), len(codes) - held, validation)


def name_of(path: str) -> str:
    return "standard input" if path == "-" else path


def standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise UserError("standard input is closed")
    return sys.stdin.buffer


def decode(path: str, data: bytes, *, whole: bool = True, advice: str = "") -> str:
    """UTF-8 without its mark, and without a character that is cut at the end of a part. UserError."""
    try:
        return codecs.utf_8_decode(data, "strict", whole)[0].removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"{name_of(path)} is no UTF-8 text (byte {error.start}){advice}") from None


def check_length(text: Text, s: Settings) -> None:
    wanted = s.batch * s.bptt + 1
    if text.train < wanted:
        raise UserError(
            f"the text is too short: {count(len(text.codes), text.unit)}, {max(text.train, 0):,} of them to "
            f"train on, but --batch {s.batch} times --bptt {s.bptt} needs {wanted:,}: "
            "give more text, or a smaller --batch or --bptt"
        )


def window(text: Text, s: Settings, step: int) -> tuple[Array, bool]:
    """The symbols of a step [bptt + 1, batch], and whether a pass through the text begins with it.

    Every pass begins at another place, so that the same words meet another cut and other neighbours.
    """
    a_pass, at = divmod(step, (text.train - 1) // (s.batch * s.bptt))
    first = np.random.default_rng([s.seed, a_pass]).integers(text.train)
    starts = first + np.arange(s.batch) * (text.train // s.batch)
    places = starts + np.arange(at * s.bptt, (at + 1) * s.bptt + 1)[:, None]
    return text.codes[places % text.train], at == 0


# --- the model --------------------------------------------------------------------------------------------


def build(s: Settings, symbols: int) -> Any:
    seeds = map(int, np.random.default_rng(s.seed).integers(2**31, size=3))
    layer = getattr(fastlstm, CELLS[s.cell])
    between = s.dropout if s.layers > 1 else 0.0
    return fastlstm.Sequential(
        fastlstm.Embedding(symbols, s.embedding, seed=next(seeds)),
        layer(s.embedding, s.width, s.layers, dropout=between, seed=next(seeds)),
        fastlstm.Dropout(s.dropout),
        fastlstm.Linear(s.width, symbols, seed=next(seeds)),
    )


def bits(model: Any, text: Text, start: int, stop: int) -> float:
    """Bits a symbol of text.codes[start:stop], each expected from those before it.

    Several readers share the stretch; each reads WARM_UP symbols before its part, for a state to begin with.
    """
    readers = min(64, max(1, (stop - start) // 1024))
    length = -(-(stop - start) // readers)
    warm_up = min(WARM_UP, start - 1)
    begins = start + np.arange(readers) * length
    total, state, codes = 0.0, None, text.codes
    chunk = max(1, min(CHUNK, LOGITS // (readers * text.symbols)))
    for t in range(-warm_up, length, chunk):
        steps = np.arange(t, min(t + chunk, length))[:, None]
        places = begins + steps
        logits, state = model(codes[np.minimum(places - 1, len(codes) - 1)], state)
        counted = (steps >= 0) & (places < stop)
        targets = np.where(counted, codes[np.minimum(places, len(codes) - 1)], -100)
        total += float(np.sum(fastlstm.cross_entropy(logits, targets, reduction="sum")[0]))
    return total / (stop - start) / math.log(2)


# --- the checkpoint ---------------------------------------------------------------------------------------


class Run:
    """A training run between two steps: all that the next step depends on."""

    def __init__(self, settings: Settings, text: Text) -> None:
        self.settings, self.text = settings, text
        s = settings
        self.model = build(s, text.symbols)
        self.optimizer = fastlstm.AdamW(self.model, s.lr, betas=(0.9, 0.99), weight_decay=s.weight_decay)
        cosine = fastlstm.cosine_schedule(s.lr, s.steps, s.lr / 100)
        self.schedule = fastlstm.warmup_schedule(cosine, min(s.warmup, s.steps // 2))
        self.validate_every = min(500, max(1, s.steps // 20))
        self.step = 0
        self.saved = 0  # the step that the checkpoint holds
        self.state: Any = None  # of the recurrent layers
        self.best: dict[str, Array] = {}  # the parameters that were best in validation
        self.best_bits = math.inf
        self.recent: list[float] = []  # bits of the steps since the last validation
        self.curve: list[tuple[float, float, float]] = []  # step, bits in training, bits in validation

    def save(self, path: str) -> None:
        arrays = {f"model.{name}": v for name, v in self.model.state_dict().items()}
        arrays |= {f"best.{name}": v for name, v in self.best.items()}
        optimizer = self.optimizer.state_dict()
        arrays |= {f"optimizer.{name}": v for name, v in optimizer.items() if isinstance(v, np.ndarray)}
        arrays |= {f"state.{k}": v for k, v in enumerate(_flat(self.state))}
        facts = {
            "version": VERSION,
            "settings": self.settings._asdict(),
            "text": self.text.digest,
            "step": self.step,
            "optimizer": {name: v for name, v in optimizer.items() if not isinstance(v, np.ndarray)},
            "best_bits": self.best_bits if self.best else None,
            "recent": self.recent,
            "curve": self.curve,
        }
        text = json.dumps(facts)
        _files.write_tensors(path, arrays, {CHECKPOINT_KEY: text, DIGEST_KEY: digest(text, arrays)})
        self.saved = self.step

    def load(self, arrays: dict[str, Array], facts: dict[str, Any]) -> None:
        """Go on from what `read_checkpoint` has read. KeyError, TypeError, ValueError."""

        def part(name: str) -> dict[str, Array]:
            return {k.removeprefix(name): v for k, v in arrays.items() if k.startswith(name)}

        self.model.load_state_dict(part("model."))
        decay = {"weight_decay": self.settings.weight_decay}  # which --resume may have changed
        self.optimizer.load_state_dict(part("optimizer.") | facts["optimizer"] | decay)
        self.state = _nested(list(part("state.").values()), self.settings.cell)
        self.best = part("best.")
        self.best_bits = math.inf if facts["best_bits"] is None else float(facts["best_bits"])
        self.step = self.saved = int(facts["step"])
        self.recent = list(facts["recent"])
        self.curve = [(a, b, c) for a, b, c in facts["curve"]]


def _flat(state: Any) -> list[Array]:
    """The arrays in the state of a Sequential with one recurrent layer."""
    if state is None:
        return []
    return list(state[0]) if isinstance(state[0], tuple) else [state[0]]


def _nested(arrays: list[Array], cell: str) -> Any:
    if not arrays:
        return None
    return (tuple(arrays) if cell == "lstm" else arrays[0],)


def digest(text: str, arrays: dict[str, Array]) -> str:
    """Of what a checkpoint says and holds: a flipped bit in the weights would otherwise go unnoticed."""
    found = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        found.update(f"\0{name} {little.dtype.str} {array.shape}\0".encode() + little.tobytes())
    return found.hexdigest()


def read_checkpoint(path: str) -> tuple[dict[str, Array], dict[str, Any], Settings]:
    """Arrays, facts and settings. UserError if it is damaged or something else."""
    with _damage(path):
        arrays, metadata = _files.read_tensors(path)
        facts = json.loads(metadata[CHECKPOINT_KEY])
        version = facts["version"]
        if version == VERSION:
            if metadata[DIGEST_KEY] != digest(metadata[CHECKPOINT_KEY], arrays):
                raise ValueError("not what was written")
            return arrays, facts, Settings(**facts["settings"])
    raise UserError(f"{path} has version {version!r:.20} of fastlstm train, wanted {VERSION}")


@contextlib.contextmanager
def _damage(path: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"the checkpoint {path} is damaged, or something else; remove it to begin anew"
        ) from error


def read_model(path: str) -> tuple[Any, dict[str, Any]]:
    """UserError, OSError."""
    try:
        about = _about(path, _files.read_metadata(path))
        return fastlstm.load(path), about
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def _about(path: str, metadata: dict[str, str]) -> dict[str, Any]:
    """What a model's file says about its text."""
    if CHECKPOINT_KEY in metadata:
        raise UserError(
            f"{path} is the checkpoint of a run that has not ended: fastlstm train --resume goes on with it"
        )
    about = None
    with contextlib.suppress(ValueError, RecursionError):
        about = json.loads(metadata.get(TEXT_KEY, "null"))
    if not isinstance(about, dict) or not isinstance(about.get("alphabet"), str):
        raise UserError(f"{path} was not written by fastlstm train: it does not say what its symbols mean")
    if about.get("version") != VERSION:
        raise UserError(
            f"{path} has version {about.get('version')!r:.20} of fastlstm train, wanted {VERSION}"
        )
    return about


# --- training ---------------------------------------------------------------------------------------------


class Progress:
    """What is shown while a run goes on: on a terminal a bar, if tqdm is there, or else lines."""

    def __init__(self, run: Run, out: TextIO) -> None:
        self.run, self.out, self.validation = run, out, ""
        self.began, self.begun_at = time.monotonic(), run.step
        self.shown = self.began
        self.bar: Any = None
        if out.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                width, height = shutil.get_terminal_size()  # tqdm shows nothing where that is unknown
                self.bar = tqdm(
                    total=run.settings.steps, initial=run.step, unit=" steps",
                    ncols=width, nrows=height, file=out, smoothing=0.05,
                )  # fmt: skip

    def step(self, bits: float) -> None:
        """A step is done."""
        if self.bar is not None:
            self.bar.set_description(f"{figure(bits)} bits{self.validation}", refresh=False)
            self.bar.update()
        elif time.monotonic() - self.shown >= SECONDS:
            self.line(bits)

    def validated(self, trained: float, validated: float) -> None:
        self.validation = f", validation {figure(validated)}"
        if self.bar is None:
            self.line(trained)

    def line(self, bits: float) -> None:
        run, s = self.run, self.run.settings
        self.shown = time.monotonic()
        done = max(run.step - self.begun_at, 1)
        a_step = (self.shown - self.began) / done
        left = a_step * (s.steps - run.step)
        print(
            f"step {run.step}/{s.steps}  {figure(bits)} bits{self.validation}  "
            f"{s.batch * s.bptt / max(a_step, 1e-9):,.0f} {run.text.unit[:4]}/s  {_duration(left)} left",
            file=self.out,
            flush=True,
        )

    def note(self, line: str) -> None:
        """From a signal's handler: where the output is in the middle of something, the line is left out."""
        with contextlib.suppress(RuntimeError, OSError):
            print(line if self.bar is None else f"\n{line}", file=self.out, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextlib.contextmanager
def _interruptions(note: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed: the first time it only asks to stop, a later time it stops at once.

    Within PATIENCE it is the same time: a hand that trembles shall not cost the steps since the checkpoint.
    """
    asked = math.inf  # when

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if time.monotonic() > asked + PATIENCE:
            raise KeyboardInterrupt
        if asked == math.inf:
            asked = time.monotonic()
            note("stopping after this step")

    try:
        old = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not in the main thread
        yield lambda: False
        return
    try:
        yield lambda: asked < math.inf
    finally:
        signal.signal(signal.SIGINT, old)


def learn(run: Run, path: str, checkpoint_every: int, progress: Progress) -> None:
    """Take the steps that are left. KeyboardInterrupt after a checkpoint; Diverged, the last one stays."""
    s, text, model = run.settings, run.text, run.model
    with _interruptions(progress.note) as interrupted:
        while run.step < s.steps:
            codes, begins = window(text, s, run.step)
            seed = None if not s.dropout else (s.seed * 1_000_003 + run.step) % 2**63
            tape = model.record(codes[:-1], None if begins else run.state, dropout_seed=seed)
            loss, d_logits = fastlstm.cross_entropy(tape.output, codes[1:])
            gradients, norm = fastlstm.clip_grad_norm(tape.backward(d_logits).parameters, s.clip)
            if not (math.isfinite(float(loss)) and math.isfinite(norm)):
                raise Diverged(
                    f"step {run.step + 1}: the loss is {float(loss):g}, the norm of the gradients {norm:g}"
                )
            # Weights are kept only once it is known that a step can be taken from them.
            if run.step > run.saved and (interrupted() or run.step % checkpoint_every == 0):
                _keep(run, path)
            if interrupted():
                raise KeyboardInterrupt
            run.optimizer.lr = run.schedule(run.step)
            run.optimizer.step(gradients)
            run.state = tape.state
            run.step += 1
            run.recent.append(float(loss) / math.log(2))
            progress.step(run.recent[-1])
            if run.step % run.validate_every == 0 or run.step == s.steps:
                progress.validated(*_validate(run))
        if not run.best:  # resumed with as many steps as it had taken
            _validate(run)
        if run.step > run.saved:
            _keep(run, path)
        if interrupted():
            raise KeyboardInterrupt


def _keep(run: Run, path: str) -> None:
    """Write the checkpoint in mid-run. UserError says what is lost where that fails."""
    try:
        run.save(path)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; it still holds step {run.saved:,}, --resume goes on from there"
        ) from error


def _validate(run: Run) -> tuple[float, float]:
    """Bits in training since the last time and in validation; the best weights are kept."""
    text = run.text
    validated = bits(run.model, text, text.train, text.train + text.validation)
    if not math.isfinite(validated):
        raise Diverged(f"after step {run.step} validation gives {validated:g}")
    trained = sum(run.recent) / len(run.recent)
    run.curve.append((float(run.step), trained, validated))
    run.recent = []
    if validated < run.best_bits:
        run.best, run.best_bits = run.model.state_dict(), validated
    return trained, validated


def train(
    paths: Sequence[str],
    output: str,
    given: dict[str, Any],
    *,
    resume: bool,
    checkpoint_every: int,
    threads: int | None,
    plot: str | None,
    out: TextIO,
) -> None:
    """The command. `given` are the settings that were asked for; the rest are defaults or the checkpoint's.

    UserError, OSError; KeyboardInterrupt after a checkpoint was written.
    """
    if threads is not None:
        fastlstm.set_num_threads(threads)
    path = output + ".checkpoint"
    _check_targets(paths, output, path, plot)

    def say(line: str) -> None:
        print(line, file=out, flush=True)

    with _alone(path):
        exists = os.path.lexists(path)
        if exists and not resume:
            raise UserError(f"{path} is a run that has not ended: go on with --resume, or remove it")
        if resume and not exists and os.path.lexists(output):
            raise UserError(
                f"--resume: there is no {path}, and {output} is there already: that run has ended"
            )
        run = _resumed(path, paths, given, say) if exists else _begun(paths, given)
        _introduce(run, say)
        say(f"checkpoint: {path}, " + (f"from step {run.step:,}" if exists else "from the beginning"))
        if os.path.lexists(output):
            say(f"{output} is there already: it will be replaced when the run ends")
        if not exists:
            run.save(path)  # what cannot be written shows now
        _learn_visibly(run, path, checkpoint_every, plot, out)
        _finish(run, output, plot, say)
        os.unlink(path)


@contextlib.contextmanager
def _alone(checkpoint: str) -> Iterator[None]:
    """While no other run has this checkpoint, where the system can tell. UserError if one has it."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    lock = checkpoint + LOCK  # not the checkpoint itself, whose file is another one after each writing
    with open(lock, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _same(file.fileno(), lock):  # which the run that had it has just removed
                raise BlockingIOError
        except BlockingIOError:
            raise UserError(f"another run is writing {checkpoint}: wait for it, or name another -o") from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(lock)


def _learn_visibly(run: Run, path: str, checkpoint_every: int, plot: str | None, out: TextIO) -> None:
    """`learn`, with what it shows meanwhile and what it leaves behind however it ends."""
    progress = Progress(run, out)
    try:
        learn(run, path, checkpoint_every, progress)
    except KeyboardInterrupt:
        progress.close()
        line = f"stopped; {path} holds step {run.saved:,}, --resume goes on from there"
        print(line, file=out, flush=True)
        raise
    except Diverged as error:
        raise Diverged(f"{error}; {_advice(run, path)}") from error
    finally:
        progress.close()
        if plot is not None:
            with contextlib.suppress(OSError):  # what ended the run matters more; else it is drawn again
                draw(run.curve, plot, None)


def _begun(paths: Sequence[str], given: dict[str, Any]) -> Run:
    settings = Settings()._replace(**given)
    text = read_text(paths, settings.bytes)
    check_length(text, settings)
    return Run(settings, text)


def _resumed(path: str, paths: Sequence[str], given: dict[str, Any], say: Callable[[str], None]) -> Run:
    """The run in a checkpoint, with the settings that may change and were given anew."""
    arrays, facts, old = read_checkpoint(path)
    settings = old._replace(**given)
    changed = [name for name in given if getattr(settings, name) != getattr(old, name)]
    for name in changed:
        if name not in CHANGEABLE:
            raise UserError(
                _unchangeable(f"--{name.replace('_', '-')}", given[name], getattr(old, name), path)
            )
    text = read_text(paths, settings.bytes)
    if facts.get("text") != text.digest:
        raise UserError(f"--resume: the text is not the one that {path} was trained on")
    with _damage(path):
        run = Run(settings, text)
        run.load(arrays, facts)
    if settings.steps < run.step:
        raise UserError(f"--steps {settings.steps}: the run is at step {run.step} already")
    for name in changed:
        say(f"--{name.replace('_', '-')} {given[name]} from here on, {getattr(old, name)} until now")
    return run


def _unchangeable(option: str, new: Any, old: Any, path: str) -> str:
    if isinstance(new, bool):
        return f"{option} cannot change in a run: {path} began {'with' if old else 'without'} it"
    return f"{option} {new} cannot change in a run: {path} says {old}"


def _introduce(run: Run, say: Callable[[str], None]) -> None:
    s, text = run.settings, run.text
    held = len(text.codes) - text.train - text.validation
    weights = sum(v.size for v in run.model.state_dict().values())
    say(f"text: {count(len(text.codes), text.unit)} of {count(text.symbols, 'kind')}")
    say(f"      {text.train:,} to train on, {text.validation:,} to validate, {held:,} for the test")
    say(f"model: {CELLS[s.cell]}, {s.layers} x {s.width}, {count(weights, 'weight')}")
    passes = s.steps * s.batch * s.bptt / text.train
    say(f"run: {count(s.steps, 'step')} of {s.batch} x {s.bptt}, {passes:,.1f} passes through the text")


def _advice(run: Run, path: str) -> str:
    """What to do after divergence; a checkpoint of the very beginning would only be in the way."""
    lr = f"--lr {min(run.settings.lr / 10, Settings().lr):g}"
    if run.saved:
        return (
            f"{path} still holds step {run.saved:,}: try again with --resume {lr}, or remove it to begin anew"
        )
    os.unlink(path)
    return f"try again with a smaller --lr, say {lr}"


def _finish(run: Run, output: str, plot: str | None, say: Callable[[str], None]) -> None:
    """The model's file, its figures beside the baseline's, and the picture."""
    s, text = run.settings, run.text
    run.model.load_state_dict(run.best)
    test = bits(run.model, text, text.train + text.validation, len(text.codes))
    about = {
        "version": VERSION,
        "alphabet": text.alphabet,
        "settings": s._asdict(),
        "text": text.digest,
        "bits": {"validation": run.best_bits, "test": test},
    }
    _files.save(output, run.model._options, run.best, {TEXT_KEY: json.dumps(about)})
    say(f"model: {output}")
    parts = np.split(text.codes, [text.train, text.train + text.validation])
    found = _ngram.baseline(parts[0][-BASELINE:], parts[1], parts[2], text.symbols)
    if plot is not None:
        draw(run.curve, plot, found.validation)
    say(f"on the {count(len(parts[2]), text.unit)} held out for the test:")
    unit, equal_odds = f"bits per {text.unit}", math.log2(text.symbols)
    say(f"  {CELLS[s.cell]:<10}{figure(test, 4)} {unit}")
    if test > equal_odds:
        say(
            f"  {'':<10}worse than equal odds for all symbols, {figure(equal_odds, 4)}: it has learnt nothing"
        )
    say(f"  {'n-gram':<10}{figure(found.test, 4)} {unit} (interpolated, {found.order} of context)")
    if text.train > BASELINE:
        say(f"  {'':<10}(counted in the last {count(BASELINE, text.unit)} of the training text)")


def _check_targets(texts: Sequence[str], output: str, checkpoint: str, plot: str | None) -> None:
    """That the files can be written, and that nothing is lost by it, before hours are spent on them."""
    targets = {"-o": output} if plot is None else {"-o": output, "--plot": plot}
    for option, path in targets.items():
        _check_target(option, path)
    if plot is not None:
        _check_plotting(plot)
        for what, path in (("the model", output), ("its checkpoint", checkpoint)):
            if _same(plot, path):
                raise UserError(f"--plot {plot} is where {what} is written, wanted another file")
    targets |= {f"-o {output}: its checkpoint": checkpoint, f"-o {output}: its lock": checkpoint + LOCK}
    for text in texts:
        for what, path in targets.items():
            if _same(0 if text == "-" else text, path):
                raise UserError(f"{what} {path} is one of the texts")


def _same(one: str | int, other: str) -> bool:
    """Whether two names, or an open file and a name, are of one file, be it there or not."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return isinstance(one, str) and os.path.realpath(one) == os.path.realpath(other)


def _check_target(option: str, path: str) -> None:
    if not os.path.basename(path) and not os.path.isdir(path):
        raise UserError(f"{option}: wanted the name of a file, got {path!r}")
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise UserError(f"{option} {path}: there is no folder {folder}")
    if os.path.isdir(path):
        raise UserError(f"{option} {path} is a folder, wanted a file")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{option} {path} is a device or the like, wanted a file")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option} {path}: the folder {folder} cannot be written to")


def _check_plotting(path: str) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install 'fastlstm[train]'") from None
    helped = {"eps", "pgf", "ps"}  # by programs that may be missing, which would show at the end
    kinds = sorted(FigureCanvasAgg.get_supported_filetypes().keys() - helped)
    if Path(path).suffix[1:].lower() not in kinds:
        raise UserError(f"--plot {path}: wanted a name that ends in one of {', '.join(kinds)}")


def draw(curve: Sequence[tuple[float, float, float]], path: str, baseline: float | None) -> None:
    """The loss curve as a picture."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(7, 4), layout="constrained")
    axes = picture.add_subplot(xlabel="steps", ylabel="bits per symbol")
    steps = [step for step, _, _ in curve]
    axes.plot(steps, [bits for _, bits, _ in curve], label="training")
    axes.plot(steps, [bits for _, _, bits in curve], label="validation")
    if baseline is not None:
        axes.axhline(baseline, color="grey", linestyle="--", label="n-gram model, validation")
    axes.legend()
    axes.grid(alpha=0.3)
    data = io.BytesIO()
    picture.savefig(data, dpi=150, format=Path(path).suffix[1:].lower())
    _files.replace_file(path, data.getvalue())


# --- generating -------------------------------------------------------------------------------------------


def generate(
    path: str,
    prompt: str | None,
    length: int,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    out: TextIO,
) -> None:
    """The command: the prompt and what follows, symbol by symbol. UserError, OSError."""
    model, about = read_model(path)
    alphabet = about["alphabet"]
    if alphabet:
        places = {c: k for k, c in enumerate(alphabet)}
        text = prompt or ("\n" if "\n" in places else alphabet[0])
        check_prompt(text, alphabet)
        tokens = [places[c] for c in text]
        written: Callable[[int], str] = alphabet.__getitem__
    else:
        tokens = list((prompt or "\n").encode("utf-8", "surrogateescape"))
        decoder = codecs.getincrementaldecoder("utf-8")("replace")

        def written(token: int) -> str:
            return decoder.decode(bytes([token]))

    _put(out, prompt or "")
    for token in model.generate(
        np.array(tokens), length, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    ):
        _put(out, written(int(token)))
    _put(out, "\n")


def check_prompt(prompt: str, alphabet: str) -> None:
    """UserError if it holds what a model with this alphabet has never seen."""
    if any("\ud800" <= c <= "\udfff" for c in prompt):  # how Python hands on bytes that it cannot decode
        raise UserError("--prompt is no UTF-8")
    unknown = sorted(set(prompt) - set(alphabet))
    if unknown:
        raise UserError(f"--prompt: the model has never seen {', '.join(map(repr, unknown[:10]))}")


def _put(out: TextIO, text: str) -> None:
    encoding = getattr(out, "encoding", None) or "utf-8"
    out.write(text.encode(encoding, "replace").decode(encoding))
    out.flush()
