"""Initial parameters of recurrent layers."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from . import _check

__all__ = ["initialize"]

Array: TypeAlias = npt.NDArray[Any]


def initialize(
    module: Any, *, recurrent: str = "uniform", forget_bias: float | None = None, seed: int | None = None
) -> None:
    """Set the parameters of a recurrent layer, or of every one in a Sequential, anew.

    module: a layer or a Sequential; other modules in it stay as they are.
    recurrent: "uniform" draws all parameters from ±1/√H, as PyTorch does and the layers' constructors do,
        with the same numbers for the same seed. "orthogonal" makes each gate's part of weight_hh [H, P] a
        random orthogonal matrix, with orthonormal columns if a projection makes P < H; all else is uniform.
    forget_bias: None, or what b_ih + b_hh of every LSTM's forget gate shall be: bias_ih is set to it less
        bias_hh there. 1.0 opens the gate at the start.
    seed: of `numpy.random.default_rng`, which draws layer after layer in the order of `state_dict`.

    Raises TypeError or ValueError naming the argument, before anything has changed; forget_bias is refused if
    a layer has no forget gate with biases. Saxe, McClelland & Ganguli 2014, "Exact solutions to the nonlinear
    dynamics of learning in deep linear neural networks" (orthogonal); Jozefowicz, Zaremba & Sutskever 2015,
    "An empirical exploration of recurrent network architectures" (forget_bias).
    """
    layers = _check.recurrent_layers("module", module)
    recurrent = _check.one_of("recurrent", recurrent, ("uniform", "orthogonal"))
    rng = np.random.default_rng(None if seed is None else _check.integer("seed", seed, 0))
    if forget_bias is not None:
        for layer in layers:
            forget_bias = _check.forget_bias("forget_bias", forget_bias, layer)
    drawn = [_drawn(layer, recurrent, forget_bias, rng) for layer in layers]
    for layer, parameters in zip(layers, drawn, strict=True):
        layer.load_state_dict(parameters)


def _drawn(
    layer: Any, recurrent: str, forget_bias: float | None, rng: np.random.Generator
) -> dict[str, Array]:
    units = layer.hidden_size
    bound, f = 1 / math.sqrt(units), slice(units, 2 * units)  # the gates of an LSTM are i, f, g, o
    parameters = {}
    for name, old in layer.state_dict().items():
        if recurrent == "orthogonal" and name.startswith("weight_hh"):
            gates = [_orthogonal(rng, units, old.shape[1]) for _ in range(len(old) // units)]
            parameters[name] = np.concatenate(gates).astype(old.dtype)
        else:
            parameters[name] = rng.uniform(-bound, bound, old.shape).astype(old.dtype)
    if forget_bias is not None:
        for name in [name for name in parameters if name.startswith("bias_ih")]:
            other = parameters[name.replace("bias_ih", "bias_hh")]
            parameters[name][f] = forget_bias - other[f]
    return parameters


def _orthogonal(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Q of the QR decomposition of a normal matrix, rows ≥ columns; R's diagonal made positive, or else Q
    would not be uniform (Mezzadri 2007, "How to generate random matrices from the classical compact
    groups")."""
    q, r = np.linalg.qr(rng.standard_normal((rows, columns)))
    return np.asarray(q * np.where(np.diagonal(r) < 0, -1.0, 1.0))
