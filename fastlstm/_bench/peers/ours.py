"""fastlstm, and its reference in NumPy."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import fastlstm

from ... import reference
from ..grid import LAYERS, PRECISIONS, SCALING, Array, Problem, flat, problem, trained
from .base import Call, Cannot, Column, Peer, nested

NUMPY_TRAINS = 1e9  # flops of a step of training, at most: a larger one would take most of the row's time


def _train(layer: Any, p: Problem) -> tuple[Any, Any]:
    """A step of training, but for the optimizer: forward, then all gradients."""
    tape = layer.record(p.x, nested(p.state), lengths=p.lengths)
    return tape, tape.backward(p.d_output)


def _read_trained(result: tuple[Any, Any]) -> tuple[Array, ...]:
    return trained(*result)


class FastLSTM(Peer):
    """Stream.step for one step, else the layer; training: record and backward. And what belongs beside."""

    name: ClassVar[str] = "fastlstm"
    needs: ClassVar[tuple[str, ...]] = ("fastlstm",)
    distributions: ClassVar[tuple[str, ...]] = ("fastlstm",)

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.enter = partial(fastlstm.set_num_threads, threads)

    def _layer(self, p: Problem) -> Any:
        kind = getattr(fastlstm, LAYERS[p.row.cell])
        layer = kind(p.row.inputs, p.row.units, **p.row.options, dtype=p.row.dtype)
        layer.load_state_dict(p.weights)
        return layer

    def _plain(self, p: Problem, threads: int) -> Call:
        options = {} if p.lengths is None else {"lengths": p.lengths}
        run = partial(self._layer(p), p.x, nested(p.state), **options)
        return Call(run, flat, "layer", partial(fastlstm.set_num_threads, threads))

    def calls(self, p: Problem) -> list[Call]:
        if p.row.train:
            return [Call(partial(_train, self._layer(p), p), _read_trained, "record, backward", self.enter)]
        if p.row.streams:
            return [self._step(p, self._layer(p))]
        return [self._plain(p, self.threads)]

    def _step(self, p: Problem, layer: Any) -> Call:
        stream = layer.stream(p.row.batch, nested(p.state))
        run = partial(stream.step, p.x[0], out=np.empty((p.row.batch, p.row.outputs), p.row.dtype))

        def read(y: Array) -> tuple[Array, ...]:
            return flat((y[None], stream.state))

        return Call(run, read, "Stream.step", self.enter)

    def beside(self, p: Problem) -> list[Column]:
        """More columns of this row: the plain call of one step, the dense batch, one thread of two."""
        if p.row.train:
            return []
        if p.row.streams:
            return [Column("fastlstm call", p, lambda: [self._plain(p, self.threads)])]
        if p.row.ragged:
            dense = problem(p.row.dense)
            return [Column("fastlstm dense", dense, lambda: [self._plain(dense, self.threads)])]
        if self.threads > 1 and p.row.name in SCALING:
            return [Column("fastlstm 1 thread", p, lambda: [self._plain(p, 1)])]
        return []

    def reduced(self, p: Problem) -> list[Column]:
        """float32, which the others are held against, then each precision."""
        return [
            Column(self.name, p, partial(self.calls, p)),
            *(Column(f"fastlstm {name}", p, partial(self._quantized, p, name)) for name in PRECISIONS),
        ]

    def _quantized(self, p: Problem, precision: str) -> list[Call]:
        kind, _, bits = precision.partition("/")
        layer = self._layer(p).quantize(kind, **({"activation_bits": int(bits)} if bits else {}))
        if p.row.streams:
            return [self._step(p, layer)]
        return [Call(partial(layer, p.x, nested(p.state)), flat, "layer", self.enter)]

    def pooled(self, p: Problem) -> list[Column]:
        """The pool; the same steps by a stream a session; and one batch whose states are at hand."""
        return [
            Column(self.name, p, partial(self._pool, p)),
            Column("fastlstm streams", p, partial(self._streams, p)),
            Column("fastlstm batch", p, partial(self._batch, p)),
        ]

    def _pool(self, p: Problem) -> list[Call]:
        pool = fastlstm.StreamPool(self._layer(p), p.row.batch)
        ids = np.array([pool.open() for _ in range(p.row.batch)])
        run = partial(pool.step, ids, p.x[0], out=np.empty((p.row.batch, p.row.units), np.float32))
        return [Call(run, lambda y: (y[None],), "StreamPool.step", self.enter)]

    def _streams(self, p: Problem) -> list[Call]:
        layer, x = self._layer(p), p.x[0]
        y = np.empty((p.row.batch, 1, p.row.units), np.float32)
        steps = [partial(layer.stream().step, x[i : i + 1], out=y[i]) for i in range(p.row.batch)]

        def run() -> None:
            for step in steps:
                step()

        return [Call(run, lambda _: (y[:, 0][None],), "Stream.step of each", self.enter)]

    def _batch(self, p: Problem) -> list[Call]:
        run = partial(self._layer(p), p.x, nested(p.state))
        return [Call(run, lambda result: (result[0],), "layer", self.enter)]

    def cold(self, p: Problem, folder: Path) -> str:
        self._layer(p).save(folder / "model.safetensors")
        return "import fastlstm; y = fastlstm.load('model.safetensors').stream().step(x[0])"


class NumPy(Peer):
    """fastlstm.reference: a loop over steps, products by NumPy's BLAS. Trains on small rows."""

    name: ClassVar[str] = "numpy"
    needs: ClassVar[tuple[str, ...]] = ("numpy",)
    distributions: ClassVar[tuple[str, ...]] = ("numpy",)

    def __init__(self, threads: int) -> None:
        pass  # NumPy's BLAS takes its threads from the environment

    def calls(self, p: Problem) -> list[Call]:
        kind = getattr(reference, LAYERS[p.row.cell])
        layer = kind(p.row.inputs, p.row.units, **p.row.options, dtype=p.row.dtype)
        layer.load_state_dict(p.weights)
        if p.row.train:
            if p.row.flops >= NUMPY_TRAINS:
                raise Cannot("too slow to wait for")
            return [Call(partial(_train, layer, p), _read_trained, "reference")]
        return [Call(partial(layer, p.x, nested(p.state), lengths=p.lengths), flat, "reference")]
