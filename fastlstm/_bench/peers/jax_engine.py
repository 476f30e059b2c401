"""JAX has no recurrent layers of its own: the equations, written plainly, in a jitted jax.lax.scan."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np

from ..grid import Array, Problem
from .base import Call, Cannot, Peer

Step: TypeAlias = Callable[[Any, Any, Any, Any], Any]  # states, W_x x + b_x, W_hh, b_hh -> states


def _steps(jax: Any) -> dict[str, Step]:
    """One step of each cell."""
    sigmoid, tanh, split = jax.nn.sigmoid, jax.numpy.tanh, jax.numpy.split

    def lstm(state: Any, a: Any, w: Any, b: Any) -> Any:
        h, c = state
        i, f, g, o = split(a + h @ w.T + b, 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        return sigmoid(o) * tanh(c), c

    def gru(state: Any, a: Any, w: Any, b: Any) -> Any:
        (h,) = state
        r_x, z_x, n_x = split(a, 3, -1)
        r_h, z_h, n_h = split(h @ w.T + b, 3, -1)
        z = sigmoid(z_x + z_h)
        return ((1 - z) * tanh(n_x + sigmoid(r_x + r_h) * n_h) + z * h,)

    def rnn(state: Any, a: Any, w: Any, b: Any) -> Any:
        (h,) = state
        return (tanh(a + h @ w.T + b),)

    def gated_rnn(state: Any, a: Any, w: Any, b: Any) -> Any:
        (h,) = state
        g, n = split(a + h @ w.T + b, 2, -1)
        g = sigmoid(g)
        return ((1 - g) * h + g * tanh(n),)

    return {"lstm": lstm, "gru": gru, "rnn": rnn, "gated_rnn": gated_rnn}


class JAX(Peer):
    """The cell written plainly: jax.jit, jax.lax.scan over the projected input, unrolled by four or not;
    weights are constants. Ragged: masked. Training: jax.value_and_grad, weights are arguments."""

    name: ClassVar[str] = "jax"
    needs: ClassVar[tuple[str, ...]] = ("jax",)
    distributions: ClassVar[tuple[str, ...]] = ("jax", "numpy")

    def __init__(self, threads: int) -> None:
        if threads == 1:  # with more, it takes the cores that the process may use
            flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
        self.jax: Any = importlib.import_module("jax")
        self.jax.config.update("jax_platforms", "cpu")
        self.jax.config.update("jax_enable_x64", True)  # allows float64; float32 stays what it is

    def _forward(self, p: Problem, unroll: int) -> Callable[..., Any]:
        """(weights, x, states) -> output, states"""
        jax, step = self.jax, _steps(self.jax)[p.row.cell]
        valid = None if p.lengths is None else np.arange(p.row.steps)[:, None] < p.lengths

        def forward(weights: Any, x: Any, states: Any) -> Any:
            w_ih, w_hh, b_ih, b_hh = weights

            def advance(state: Any, given: Any) -> Any:
                a, runs = given
                new = step(state, a, w_hh, b_hh)
                if runs is None:
                    return new, new[0]
                kept = tuple(
                    jax.numpy.where(runs[:, None], n, old) for n, old in zip(new, state, strict=True)
                )
                return kept, jax.numpy.where(runs[:, None], new[0], 0)

            last, y = jax.lax.scan(advance, states, (x @ w_ih.T + b_ih, valid), unroll=unroll)
            return y, last

        return forward

    def calls(self, p: Problem) -> list[Call]:
        if p.row.options:
            raise Cannot("only plain layers of one layer are written here")
        jax = self.jax
        weights = tuple(jax.numpy.asarray(v) for v in p.weights.values())
        x, states = jax.numpy.asarray(p.x), tuple(jax.numpy.asarray(v[0]) for v in p.state)
        calls: list[Call] = []
        given: tuple[Any, ...]
        work: Callable[..., Any]
        read: Callable[[Any], tuple[Array, ...]]
        for unroll in (1, 4) if p.row.steps > 1 else (1,):
            forward = self._forward(p, unroll)
            work, given, read = partial(forward, weights), (x, states), _read
            if p.row.train:
                work, given, read = self._training(p, forward), (weights, x, states), _read_trained
            compiled = jax.jit(work).lower(*given).compile()  # now, and in no call that is timed

            def run(compiled: Any = compiled, given: Any = given) -> Any:
                return jax.block_until_ready(compiled(*given))

            calls.append(Call(run, read, "scan" if unroll == 1 else f"scan, unroll={unroll}"))
        return calls

    def _training(self, p: Problem, forward: Callable[..., Any]) -> Callable[..., Any]:
        d_output = self.jax.numpy.asarray(p.d_output)

        def loss(weights: Any, x: Any, states: Any) -> Any:
            y, last = forward(weights, x, states)
            return (y * d_output).sum(), (y, last)

        step: Callable[..., Any] = self.jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        return step

    def cold(self, p: Problem, folder: Path) -> str:
        arrays: Any = p.weights
        np.savez(folder / "jax.npz", **arrays)
        return (
            "import jax; w = numpy.load('jax.npz'); sigmoid, tanh = jax.nn.sigmoid, jax.numpy.tanh\n"
            "def step(x, h, c):\n"
            "    a = x @ w['weight_ih_l0'].T + w['bias_ih_l0'] + h @ w['weight_hh_l0'].T + w['bias_hh_l0']\n"
            "    i, f, g, o = jax.numpy.split(a, 4, -1)\n"
            "    c = sigmoid(f) * c + sigmoid(i) * tanh(g)\n"
            "    return sigmoid(o) * tanh(c), c\n"
            f"zero = numpy.zeros((1, {p.row.units}), 'float32')\n"
            "y = numpy.array(jax.jit(step)(x[0], zero, zero)[0])\n"
        )


def _read(result: Any) -> tuple[Array, ...]:
    y, last = result
    return (np.array(y), *(np.array(v)[None] for v in last))


def _read_trained(result: Any) -> tuple[Array, ...]:
    (_, outputs), (d_weights, dx, d_states) = result
    return (*_read(outputs), *_read((dx, d_states)), *(np.array(v) for v in d_weights))
