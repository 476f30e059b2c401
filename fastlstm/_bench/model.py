"""`fastlstm bench --model FILE`: a user's own model, one step, a sequence and a batch, beside the peers that
its layer can be built in."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fastlstm

from .. import _check, reference
from . import measure, peers, report
from .grid import LAYERS, Problem, Row, with_answer
from .peers import Call, Cannot, Column

STEPS, BATCH = 100, 32
NOT_OF_THE_EQUATION = {"input_size", "hidden_size", "batch_first", "dropout", "dtype"}


class _Layer(peers.FastLSTM):
    """The layer of the file itself, in the precision that it has."""

    def __init__(self, threads: int, layer: Any) -> None:
        super().__init__(threads)
        self.layer = layer

    def _layer(self, p: Problem) -> Any:
        return self.layer

    def beside(self, p: Problem) -> list[Column]:
        return []


class _Sequential(_Layer):
    """The whole model of the file. Nobody else's output is at hand, so its own is what is expected."""

    def calls(self, p: Problem) -> list[Call]:
        if p.row.steps > 1:
            return [Call(lambda: self.layer(p.x), lambda result: (result[0],), "call", self.enter)]
        try:
            stream = self.layer.stream(p.row.batch)
        except ValueError as error:  # it reads from the end
            raise Cannot(str(error)) from None
        steps = slice(None) if self.layer._options.has_last_step else None  # an axis of time, unless none
        return [Call(lambda: stream.step(p.x[0]), lambda y: (y[steps],), "Stream.step", self.enter)]


def run(
    path: str, options: Mapping[str, Any], steps: int | None, batch: int | None, names: Sequence[str],
    settings: measure.Settings, out: Path | None,
) -> int:  # fmt: skip
    """Measure and print a table; with `out`, also write model.json and model.md there."""
    try:
        module = fastlstm.load(path, **options)
        if getattr(module, "batch_first", False):  # only the order of the axes
            module = fastlstm.load(path, **{**options, "batch_first": False})
    except (OSError, ValueError, TypeError) as error:
        print(f"fastlstm bench: --model: {error}", file=sys.stderr)
        return 2
    steps, batch = steps or STEPS, batch or BATCH
    shapes = {"one step": (1, 1), "a sequence": (steps, 1), "a batch": (steps, batch)}
    if isinstance(module, fastlstm.Sequential):
        fast: Any = _Sequential(settings.threads, module)
        others = []  # they have no such models at hand
        problems = [_whole(module, name, t, b) for name, (t, b) in shapes.items()]
    elif not isinstance(module, fastlstm.LSTM | fastlstm.GRU | fastlstm.RNN | fastlstm.GatedRNN):
        print(f"fastlstm bench: --model: {path}: wanted a recurrent layer or a Sequential", file=sys.stderr)
        return 2
    else:
        fast = _Layer(settings.threads, module)
        others = [peers.PEERS[name](settings.threads) for name in names]
        problems = [_bare(module, name, t, b) for name, (t, b) in shapes.items()]
    try:
        rows = [_measured(p, fast, others, settings) for p in problems]
    finally:
        for peer in others:
            peer.close()
    result = {
        "schema": 2, "model": repr(module), "file": path, "alone": not others, "machine": report.machine(),
        "versions": peers.versions(), "settings": settings._asdict(), "rows": rows,
    }  # fmt: skip
    text = report.model_markdown(result)
    print(text, end="")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "model.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (out / "model.md").write_text(text, encoding="utf-8")
    return 1 if any("left_out" in row for row in rows) else 0


def _measured(p: Problem, fast: Any, others: Sequence[Any], settings: measure.Settings) -> dict[str, Any]:
    gathered = measure.gather(p, fast, others, settings)
    row: dict[str, Any] = {"name": p.row.name, "T": p.row.steps, "B": p.row.batch} | gathered.reasons()
    if not gathered.has(fast.name):
        return row
    measure.take_turns(gathered.engines, lambda: measure.Clock(0, 0), settings)
    found = measure.summaries(gathered.engines)
    return row | {"engines": found, "us": found[fast.name]["median_us"]} | measure.comparisons(found)


def _bare(layer: Any, name: str, steps: int, batch: int) -> Problem:
    """A layer's problem: random input and states, the answer from the reference with the layer's weights."""
    cell, dtype = layer._cell, layer.dtype.name
    defaults, given = _check.Options._field_defaults, layer._options.given()
    # Its equations' options, which the reference takes; batch_first is only an order, the precision its own.
    known = inspect.signature(getattr(reference, LAYERS[cell])).parameters.keys() - NOT_OF_THE_EQUATION
    options = {name: given[name] for name in known & given.keys() if given[name] != defaults.get(name)}
    row = Row("model", name, cell, layer.input_size, layer.hidden_size, steps, batch, dtype=dtype,
              kind="model", options=options)  # fmt: skip
    rng = np.random.default_rng(1)
    x = rng.standard_normal((steps, batch, layer.input_size)).astype(dtype)
    _, final = layer(x[:1])
    shapes = [v.shape for v in (final if isinstance(final, tuple) else (final,))]
    state = tuple(rng.uniform(-0.9, 0.9, shape).astype(dtype) for shape in shapes)
    return with_answer(row, layer.state_dict(), x, state, rng)


def _whole(model: Any, name: str, steps: int, batch: int) -> Problem:
    """A Sequential's: random tokens or features; from zero states."""
    options, rng = model._options, np.random.default_rng(1)
    shape = (batch, steps) if options.batch_first else (steps, batch)
    if options.embeds:
        x = rng.integers(0, _check.token_count(options), shape)
    else:
        x = rng.standard_normal((*shape, options.widths[0])).astype(model.dtype)
    # What the row says of a cell is of no layer.
    row = Row("model", name, "lstm", 1, 1, steps, batch, dtype=model.dtype.name, kind="model")
    return Problem(row, {}, x, (), None, model(x)[:1])
