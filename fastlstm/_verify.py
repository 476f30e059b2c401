"""`fastlstm verify`: a model in every precision over the same data, held against float64.

Errors are of the output, all steps of all sequences. Signal-to-noise is 10 log10(Σ y² / Σ error²), y being
float64's. Where the last module is a Linear, the output counts as logits of a softmax: the top choice is the
largest, and for text with its true symbols there are bits per symbol.
"""

from __future__ import annotations

import json
import math
import os
import time
from typing import Any, NamedTuple, TextIO

import numpy as np
import numpy.typing as npt

import fastlstm

from . import _check, _demo, _files, _train
from ._train import UserError

Array = npt.NDArray[Any]

PRECISIONS: dict[str, tuple[str, int | None] | None] = {
    "float32": None,
    "bfloat16": ("bfloat16", None),
    "int8, 16-bit activations": ("int8", 16),
    "int8": ("int8", None),
}
SECONDS = 0.3  # for each measurement of speed
STEPS, BATCH = 200, 8  # of random input


class Data(NamedTuple):
    what: str  # in words
    x: Array  # [T, B, I] or tokens [T, B]
    targets: Array | None  # [T, B]: of text, the symbol that follows


class Row(NamedTuple):
    precision: str
    weight_bytes: int  # of all parameters as they are held
    largest: float
    mean: float
    snr: float  # dB; infinite without error
    agreement: float | None  # share of steps with the same top choice
    bits: float | None  # per symbol
    step_us: float  # one step of one sequence
    run_us: float  # a step of a sequence in the whole call


# --- what runs ----------------------------------------------------------------------------------------------


def models(path: str) -> tuple[Any, Any, str | None]:
    """The model in float32 and in float64, and the alphabet of a text model. UserError, OSError."""
    try:
        own: Any = fastlstm.load(path)
        for o in getattr(own._options, "modules", (own._options,)):
            if getattr(o, "weight_dtype", None) is not None:
                raise UserError(f"{path} has {o.weight_dtype} weights already: wanted the float32 model")
        exact, model = (fastlstm.load(path, dtype=dtype) for dtype in ("float64", "float32"))
        metadata = _files.read_metadata(path)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error
    options = model._options
    parts = options.modules if isinstance(options, _check.SequentialOptions) else [options]
    if not any(isinstance(part, _check.Options) for part in parts):
        raise UserError(f"{path} has no recurrent layer, whose weights could be smaller")
    alphabet = _train._about(path, metadata)["alphabet"] if _train.TEXT_KEY in metadata else None
    return model, exact, alphabet


def data_of(model: Any, path: str | None, alphabet: str | None, seed: int, out_of: str) -> Data:
    """The data in a file, or some that is plausible. UserError, OSError."""
    options = model._options
    whole = isinstance(options, _check.SequentialOptions)
    tokens = whole and options.embeds
    size = _check.token_count(options) if tokens else options.widths[0] if whole else options.input_size
    if path is None and alphabet is not None and os.path.samefile(out_of, _demo.MODEL):
        path = str(_demo.held_out_path())
    if path is None:
        rng = np.random.default_rng(seed)
        if tokens:
            return Data("random tokens", rng.integers(0, size, (STEPS, BATCH), np.int32), None)
        return Data("standard normal input", rng.standard_normal((STEPS, BATCH, size), np.float32), None)
    if path.endswith(".npy"):
        return Data(path, _array(path, tokens, size), None)
    if alphabet is None or not tokens:
        raise UserError(f"{path}: wanted a .npy file; a text is for a model that fastlstm train made")
    return _text(path, alphabet)


def _array(path: str, tokens: bool, size: int) -> Array:
    wanted = f"tokens [T] or [T, B] in 0..{size - 1}" if tokens else f"numbers [T, {size}] or [T, B, {size}]"
    try:
        x: Array = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise UserError(f"{path}: no .npy file of numbers: {error}") from error
    kinds, steps = ("iu", x.ndim) if tokens else ("iuf", x.ndim - 1)
    fits = x.dtype.kind in kinds and steps in (1, 2) and x.size and (tokens or x.shape[-1] == size)
    if not fits or (tokens and not (x.min() >= 0 and x.max() < size)):
        raise UserError(f"{path}: holds {x.dtype} {list(x.shape)}, wanted {wanted}, not empty")
    return x[:, None] if steps == 1 else x


def _text(path: str, alphabet: str) -> Data:
    if alphabet:
        text = _demo.read(path).text
        places = {c: k for k, c in enumerate(alphabet)}
        other = places.get(_demo.OTHER)
        unknown = sorted(set(text) - places.keys())
        if unknown and other is None:
            raise UserError(f"{path}: the model has never seen {', '.join(map(repr, unknown[:10]))}")
        codes = np.array([places.get(c, other) for c in text], np.int32)
    else:
        with open(path, "rb") as file:
            codes = np.frombuffer(file.read(_demo.LIMIT), np.uint8).astype(np.int32)
    if len(codes) < 2:
        raise UserError(f"{path} is too short: nothing follows anything")
    return Data(path, codes[:-1, None], codes[1:, None])


# --- measuring ----------------------------------------------------------------------------------------------


def _run(model: Any, data: Data) -> Array:
    x = data.x.swapaxes(0, 1) if model._options.batch_first else data.x
    y: Array = model(x)[0]
    return y.swapaxes(0, 1) if model._options.batch_first else y


def _step_us(model: Any, data: Data) -> float:
    """One step of one sequence: of a stream, or of a call where the model cannot stream."""
    x = np.ascontiguousarray(data.x[0, :1])
    try:
        stream = model.stream()
    except ValueError:
        call = data.x[:1, :1]
        return _median_us(lambda: model(call))
    y = stream.step(x)
    return _median_us(lambda: stream.step(x, out=y))


def _median_us(run: Any) -> float:
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    run()
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 2000):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * 1e6


def _bits(y: Array, targets: Any) -> float:
    log_p = np.take_along_axis(fastlstm.log_softmax(y), targets[..., None], axis=-1)
    return float(-log_p.mean() / math.log(2))


def row(precision: str, model: Any, data: Data, wanted: Array) -> Row:
    got = _run(model, data)
    error = np.abs(got.astype(np.float64) - wanted)
    noise, signal = float((error**2).sum()), float((wanted**2).sum())
    parts = getattr(model._options, "modules", [None])
    softmax = isinstance(parts[-1], _check.LinearOptions)
    steps = data.x.shape[0] * data.x.shape[1]
    return Row(
        precision,
        sum(v.nbytes for v in model._parameters.values()),
        float(error.max()),
        float(error.mean()),
        10 * math.log10(signal / noise) if noise and signal else math.inf,
        float((got.argmax(-1) == wanted.argmax(-1)).mean()) if softmax else None,
        _bits(got, data.targets) if softmax and data.targets is not None else None,
        _step_us(model, data),
        _median_us(lambda: _run(model, data)) / steps,
    )


def verify(path: str | None, data_path: str | None, *, seed: int, as_json: bool, out: TextIO) -> None:
    """The command: a table of the precisions. UserError, OSError."""
    path = str(_demo.MODEL) if path is None else path
    model, exact, alphabet = models(path)
    data = data_of(model, data_path, alphabet, seed, path)
    wanted = _run(exact, data)
    if not np.isfinite(wanted).all():
        raise UserError(f"{data.what}: gives NaN or infinity in float64: there is nothing to compare")
    rows = []
    for precision, small in PRECISIONS.items():
        try:
            own = model if small is None else model.quantize(small[0], activation_bits=small[1])
        except ValueError as error:
            raise UserError(f"{path}: {error}") from error
        rows.append(row(precision, own, data, wanted))
    scored = rows[0].bits is not None and data.targets is not None
    exact_bits = _bits(wanted, data.targets) if scored else None
    if as_json:
        about = {"model": path, "data": data.what, "shape": list(data.x.shape), "bits": exact_bits}
        values = [
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in r._asdict().items()}
            for r in rows
        ]
        print(json.dumps(about | {"precisions": values}, indent=2), file=out)
        return
    shape = "steps" if data.x.shape[1] == 1 else f"steps of {data.x.shape[1]} sequences"
    print(f"{path}\nover {data.what}, {data.x.shape[0]:,} {shape}, against float64", file=out)
    if exact_bits is not None:
        print(f"bits per symbol in float64: {exact_bits:.4f}", file=out)
    print(file=out)
    _table(rows, exact_bits, out)


def _table(rows: list[Row], exact_bits: float | None, out: TextIO) -> None:
    full = rows[0]
    head = ["precision", "bytes", "largest error", "mean error", "signal/noise"]
    head += ["same choice"] * (full.agreement is not None) + ["bits"] * (exact_bits is not None)
    head += ["one step", "in a call", "faster"]
    lines = [head]
    for r in rows:
        line = [r.precision, f"{r.weight_bytes:,}", f"{r.largest:.1e}", f"{r.mean:.1e}", f"{r.snr:.0f} dB"]
        if r.agreement is not None:
            line.append(f"{r.agreement:.2%}")
        if r.bits is not None and exact_bits:
            line.append(f"{r.bits:.4f} ({r.bits / exact_bits - 1:+.2%})")
        line += [f"{r.step_us:.2f} us", f"{r.run_us:.2f} us"]
        lines.append([*line, f"{full.step_us / r.step_us:.1f}x, {full.run_us / r.run_us:.1f}x"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(v.rjust(w) for v, w in zip(line[1:], widths[1:], strict=True))]
        print("  ".join(cells).rstrip(), file=out)
