"""Keras's cells as fastlstm's layers: options and weights, converted once.

Keras packs a kernel as [I, gates·H], LSTM's gates in the order i, f, c, o, GRU's in the order z, r, h.
fastlstm has [gates·H, I], in the order i, f, g, o and r, z, n.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import fastlstm

from ._activations import Spec, recurrent_function
from ._config import Config
from ._weights import Shape, Weights

Array = npt.NDArray[Any]

SINGLE = {"LSTM": "LSTMCell", "GRU": "GRUCell", "SimpleRNN": "SimpleRNNCell"}  # layers that have such a cell
INERT = ("dropout", "recurrent_dropout", "implementation", "unit_forget_bias")  # in a call


class Cell(NamedTuple):
    """A cell with its weights."""

    kind: str
    options: dict[str, Any]  # of fastlstm's layer, but for its directions
    weights: dict[str, Array]  # as Keras names and packs them

    @property
    def states(self) -> int:
        return 2 if self.kind == "LSTMCell" else 1


def cell(config: Config, weights: Weights, width: int | None, keras_major: int) -> Cell:
    """The cell that a config of LSTM, LSTMCell, .. describes. The caller finishes the config.

    width: features of the input where they are known; `weights` are the cell's.
    """
    kind = SINGLE.get(config.kind, config.kind)
    if kind not in SINGLE.values():
        raise config.error("is no cell that is known here: only LSTMCell, GRUCell and SimpleRNNCell")
    units, bias = config.size("units"), config.flag("use_bias", True)
    names = ["activation"] if kind == "SimpleRNNCell" else ["recurrent_activation", "activation"]
    activations = [recurrent_function(config, name, keras_major) for name in names]
    options: dict[str, Any] = {"hidden_size": units, "bias": bias, "dtype": config.dtype()}
    options |= _activation_options(kind, activations)
    if kind == "GRUCell":
        options["reset_after"] = config.flag("reset_after")
    gates = {"LSTMCell": 4, "GRUCell": 3, "SimpleRNNCell": 1}[kind]
    shapes: dict[str, Shape] = {"kernel": (width, gates * units), "recurrent_kernel": (units, gates * units)}
    if bias:
        shapes["bias"] = (2, gates * units) if options.get("reset_after") else (gates * units,)
    found = weights.take(config, shapes)
    options["input_size"] = len(found["kernel"])
    return Cell(kind, options, found)


def _activation_options(kind: str, chosen: list[Spec]) -> dict[str, Any]:
    """Of fastlstm's layer; none where they are its own."""
    if kind == "SimpleRNNCell":
        return {"nonlinearity": chosen[0]} if chosen[0] in ("tanh", "relu") else {"activations": chosen[0]}
    if chosen == ["sigmoid", "tanh"]:
        return {}
    gates, candidate = chosen
    return {"activations": (gates, candidate, candidate) if kind == "LSTMCell" else (gates, candidate)}


def layer(cells: list[Cell], reverse: bool) -> Any:
    """fastlstm's layer that runs one cell, or two of the same options in both directions.

    reverse: of the one direction; of two, the second runs backwards, or the first if `reverse`.
    """
    kind, options = cells[0].kind, dict(cells[0].options)
    cls: Any = {"LSTMCell": fastlstm.LSTM, "GRUCell": fastlstm.GRU, "SimpleRNNCell": fastlstm.RNN}[kind]
    if len(cells) == 1:
        made = cls(**options, batch_first=True, reverse=reverse, seed=0)
    else:
        made = cls(**options, batch_first=True, bidirectional=True, seed=0)
    state: dict[str, Array] = {}
    for suffix, one in zip(("", "_reverse"), cells, strict=False):
        state |= {f"{name}_l0{suffix}": array for name, array in _converted(one).items()}
    made.load_state_dict(state)
    return made


def _converted(one: Cell) -> dict[str, Array]:
    """weight_ih, weight_hh, bias_ih, bias_hh: fastlstm's, of one direction."""
    found = {
        "weight_ih": _gates(one, one.weights["kernel"].T),
        "weight_hh": _gates(one, one.weights["recurrent_kernel"].T),
    }
    if "bias" in one.weights:
        bias = one.weights["bias"]
        given, added = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
        found |= {"bias_ih": _gates(one, given), "bias_hh": _gates(one, added)}
    return found


def _gates(one: Cell, array: Array) -> Array:
    """Rows of Keras's gates in fastlstm's order."""
    if one.kind != "GRUCell":
        return array
    z, r, h = np.split(array, 3)
    return np.concatenate([r, z, h])


def keras_weights(layer: Any, number: int, suffix: str) -> list[Array]:
    """The other way: kernel, recurrent kernel and bias as Keras packs them, of one layer of fastlstm's stack
    and one direction ("" or "_reverse")."""
    kinds: dict[type[Any], str] = {fastlstm.LSTM: "LSTMCell", fastlstm.GRU: "GRUCell", fastlstm.RNN: ""}
    one = Cell(kinds[type(layer)], {}, {})  # for its gates: the change of order is its own inverse
    state, end = layer.state_dict(), f"_l{number}{suffix}"
    found = [_gates(one, state[f"weight_{name}{end}"]).T for name in ("ih", "hh")]
    if layer.bias:
        given, added = (_gates(one, state[f"bias_{name}{end}"]) for name in ("ih", "hh"))
        both = isinstance(layer, fastlstm.GRU) and layer.reset_after
        found.append(np.stack([given, added]) if both else given + added)
    return found
