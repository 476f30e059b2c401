"""One RNN, GRU or LSTM node of ONNX on fastlstm's layers.

`recipe` reads a node's attributes, `Recurrent` joins them with weights and runs. How the standard is read
where it leaves something open, or where engines differ:

- `clip` bounds the inputs of the gates' and the candidate's activations, peepholes included. The cell state
  is not bounded, nor what the LSTM's last activation reads: so does ONNX Runtime.
- `activation_alpha` and `activation_beta` are consumed in the order of `activations`, only by functions that
  have such a parameter; where a list ends, the defaults of the operators of these names follow (`Affine`: 1
  and 0). Values that no function takes are refused.
- A sequence of length 0 has outputs 0 and keeps its initial state. (ONNX Runtime gives zeros there.)
- float16 and bfloat16 are widened to float32, and the outputs rounded back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _check, layers
from ._read import MAIN_DOMAIN, RECURRENT, Array, Proto, narrow, require, widened

ACTIVATIONS = {name.replace("_", ""): name for name in _check.ACTIVATIONS}  # by ONNX's names in lower case


class Operator(NamedTuple):
    """What one of the three operators is in fastlstm's words."""

    cell: str
    gates: tuple[int, ...]  # where ONNX has each of fastlstm's gates
    defaults: tuple[str, ...]  # activations of one direction


OPERATORS = {
    "LSTM": Operator("lstm", (0, 2, 3, 1), ("Sigmoid", "Tanh", "Tanh")),  # i o f c, to i f g o
    "GRU": Operator("gru", (1, 0, 2), ("Sigmoid", "Tanh")),  # z r h, to r z n
    "RNN": Operator("rnn", (0,), ("Tanh",)),
}
PEEPHOLES = (0, 2, 1)  # i o f, to i f o


class Recipe(NamedTuple):
    """The attributes of a node, checked."""

    op: str
    hidden_size: int | None  # None: as the weights say
    direction: str
    activations: tuple[tuple[_check.Activation, ...], ...]  # per direction
    clip: float | None
    batch_first: bool
    coupled_gates: bool
    reset_after: bool

    @property
    def directions(self) -> int:
        return len(self.activations)


def is_recurrent(node: Proto) -> bool:
    return node.op_type in RECURRENT and node.domain in MAIN_DOMAIN


def label(node: Proto) -> str:
    """For messages: the node's name, or else its first output's."""
    return f"{node.op_type} {node.name or next((name for name in node.output if name), '')!r}"


def recipe(node: Proto, opset: int) -> Recipe:
    """Raises ValueError naming the attribute."""
    try:
        return _recipe(node, opset)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{label(node)}: {error}") from error


def _recipe(node: Proto, opset: int) -> Recipe:
    onnx = require()
    if any(a.ref_attr_name for a in node.attribute):
        raise ValueError("its attributes refer to those of a function")
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    known = set(onnx.defs.get_schema(node.op_type, opset, "").attributes)
    if unknown := given.keys() - known:
        raise ValueError(f"has no attribute {', '.join(sorted(unknown))} in opset {opset}")
    direction = given.pop("direction", b"forward").decode("utf-8", "replace")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise ValueError(f"direction must be forward, reverse or bidirectional, got {direction!r:.100}")
    clip, size = given.pop("clip", None), given.pop("hidden_size", None)
    made = Recipe(
        op=node.op_type,
        hidden_size=None if size is None else _check.integer("hidden_size", size, 1),
        direction=direction,
        activations=_activations(node.op_type, 1 + (direction == "bidirectional"), given),
        clip=None if clip is None or clip == np.inf else _positive("clip", clip),
        batch_first=_flag("layout", given.pop("layout", 0)),
        coupled_gates=_flag("input_forget", given.pop("input_forget", 0)),
        reset_after=_flag("linear_before_reset", given.pop("linear_before_reset", 0)),
    )
    assert not given, given  # every attribute of the schema was taken
    return made


def _positive(name: str, value: float) -> float:
    if not value > 0:  # NaN too
        raise ValueError(f"{name} must be above 0, got {value:g}")
    return value


def _flag(name: str, value: int) -> bool:
    if value not in (0, 1):
        raise ValueError(f"{name} must be 0 or 1, got {value}")
    return bool(value)


def _activations(
    op: str, directions: int, given: dict[str, Any]
) -> tuple[tuple[_check.Activation, ...], ...]:
    """The functions of each direction with their parameters, taken out of the attributes."""
    defaults = OPERATORS[op].defaults
    names = [name.decode("utf-8", "replace") for name in given.pop("activations", ())] or list(
        defaults
    ) * directions
    if op == "RNN" and directions == 1 and names == ["Tanh", "Tanh"]:
        names = names[:1]  # the standard's default, whose second one is the other direction's
    if len(names) != directions * len(defaults):
        raise ValueError(
            f"activations must be {directions * len(defaults)} names for {directions} direction(s), "
            f"got {len(names)}"
        )
    lists = {key: given.pop(key, ()) for key in ("activation_alpha", "activation_beta")}
    rest = [iter(values) for values in lists.values()]
    specs = [_activation(name, rest) for name in names]
    for key, values in zip(lists, rest, strict=True):
        if left := len(list(values)):
            raise ValueError(f"{key} has {left} value(s) more than {', '.join(names)} take")
    n = len(defaults)
    return tuple(tuple(specs[k : k + n]) for k in range(0, len(specs), n))


def _activation(name: str, rest: Sequence[Iterator[float]]) -> _check.Activation:
    key = ACTIVATIONS.get(name.lower())
    if key is None:
        raise ValueError(f"activations must be of {', '.join(ACTIVATIONS)}, got {name!r:.100}")
    parameters = _check.ACTIVATIONS[key]  # alpha, or alpha and beta, or none
    values = [next(own, default) for own, default in zip(rest, parameters, strict=False)]
    return (key, *map(float, values)) if values else key


# --- weights ------------------------------------------------------------------------------------------------


class Weights(NamedTuple):
    """W [D, G*H, I], R [D, G*H, H], B [D, 2*G*H] and P [D, 3*H] of a node, in ONNX's order of gates."""

    W: Array
    R: Array
    B: Array | None = None
    P: Array | None = None

    def check(self, r: Recipe) -> tuple[int, int]:
        """I and H; ValueError if the shapes do not fit each other or the node."""
        gates, d = len(OPERATORS[r.op].gates), r.directions
        if self.R.ndim != 3 or self.W.ndim != 3:
            raise ValueError(f"W and R must have 3 axes, got {self.W.shape} and {self.R.shape}")
        size, width = self.R.shape[2], self.W.shape[2]
        if size < 1 or width < 1 or r.hidden_size not in (None, size):
            raise ValueError(f"W {self.W.shape} and R {self.R.shape} must fit hidden_size={r.hidden_size}")
        wanted = {
            "W": (d, gates * size, width),
            "R": (d, gates * size, size),
            "B": (d, 2 * gates * size),
            "P": (d, 3 * size),
        }
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
            if value is not None and value.dtype != self.W.dtype:
                raise ValueError(f"{name} must be {self.W.dtype} as W is, got {value.dtype}")
        if self.W.dtype not in (np.float32, np.float64) and not narrow(self.W.dtype):
            raise ValueError(f"W must be of float16, bfloat16, float32 or float64, got {self.W.dtype}")
        return width, size


def _state_dict(r: Recipe, weights: Weights, direction: int, suffix: str) -> dict[str, Array]:
    """One direction's weights under fastlstm's names, in its order of gates."""
    w, gates = weights, OPERATORS[r.op].gates

    def ordered(value: Array, order: Sequence[int]) -> Array:
        blocks = np.split(widened(value), len(order))
        return np.concatenate([blocks[k] for k in order])

    found = {
        f"weight_ih_l0{suffix}": ordered(w.W[direction], gates),
        f"weight_hh_l0{suffix}": ordered(w.R[direction], gates),
    }
    if w.B is not None:
        of_x, of_h = np.split(w.B[direction], 2)
        found |= {
            f"bias_ih_l0{suffix}": ordered(of_x, gates),
            f"bias_hh_l0{suffix}": ordered(of_h, gates),
        }
    if w.P is not None:
        peepholes = ordered(w.P[direction], PEEPHOLES)
        found[f"weight_peephole_l0{suffix}"] = peepholes.reshape(3, -1)
    return found


def make_layers(r: Recipe, weights: Weights, batch_first: bool) -> list[Any]:
    """One layer, or two where the directions have different activations: no layer has two sets of them."""
    width, size = weights.check(r)
    options: dict[str, Any] = {
        "input_size": width,
        "hidden_size": size,
        "bias": weights.B is not None,
        "batch_first": batch_first,
        "dtype": widened(weights.W[:0]).dtype.name,
        "clip": r.clip,
    }
    if r.op == "LSTM":
        options |= {"peepholes": weights.P is not None, "coupled_gates": r.coupled_gates}
    if r.op == "GRU":
        options["reset_after"] = r.reset_after
    if r.directions == 2 and r.activations[0] == r.activations[1]:
        state = _state_dict(r, weights, 0, "") | _state_dict(r, weights, 1, "_reverse")
        return [_layer(r, state, r.activations[0], options | {"bidirectional": True})]
    backward = [r.direction == "reverse"] if r.directions == 1 else [False, True]
    return [
        _layer(r, _state_dict(r, weights, d, ""), r.activations[d], options | {"reverse": reverse})
        for d, reverse in enumerate(backward)
    ]


def _layer(
    r: Recipe, state: dict[str, Array], activations: tuple[_check.Activation, ...], options: dict[str, Any]
) -> Any:
    cell = OPERATORS[r.op].cell
    if cell == "rnn" and activations == ("relu",):
        options = options | {"nonlinearity": "relu"}
    elif activations != _check.CELLS[cell].activations:
        options = options | {"activations": activations}
    classes: dict[str, Any] = {"lstm": layers.LSTM, "gru": layers.GRU, "rnn": layers.RNN}
    return layers._restore(classes[cell], cell, options, state)


# --- running ------------------------------------------------------------------------------------------------


class Recurrent:
    """A node with its weights: X, lengths and states in, Y, Y_h and Y_c out, all in ONNX's shapes.

    Raises ValueError naming the input if shapes or dtypes do not fit. Any number of threads may call one.
    """

    __slots__ = ("_layers", "_given", "_narrow", "_batch_first", "_directions", "_size")

    def __init__(self, r: Recipe, weights: Weights) -> None:
        self._layers = make_layers(r, weights, r.batch_first)
        self._given, self._narrow = weights.W.dtype, narrow(weights.W.dtype)
        self._batch_first, self._directions = r.batch_first, r.directions
        self._size: int = self._layers[0].hidden_size

    def __call__(
        self, x: Array, lengths: Array | None = None, h: Array | None = None, c: Array | None = None
    ) -> tuple[Array, ...]:
        """x [T, B, I], lengths [B], h and c [D, B, H] to Y [T, D, B, H], Y_h and Y_c [D, B, H]; with layout 1
        x [B, T, I], h and c [B, D, H] to [B, T, D, H] and [B, D, H]."""
        if x.dtype != self._given:
            raise ValueError(f"X must be {self._given} as W is, got {x.dtype}")
        if x.ndim != 3:
            raise ValueError(f"X must have 3 axes, got shape {x.shape}")
        steps, batch = x.shape[1::-1] if self._batch_first else x.shape[:2]
        if lengths is not None:
            lengths = _check.lengths("sequence_lens", lengths, steps, batch)
            if (lengths == steps).all():
                lengths = None  # which is the faster call
        h = None if h is None else self._state("initial_h", h, batch)
        c = None if c is None else self._state("initial_c", c, batch)
        if not self._narrow:
            return self._run(x, lengths, h, c)
        outputs = self._run(widened(x), lengths, h, c)
        return tuple(value.astype(self._given) for value in outputs)

    def _state(self, name: str, value: Array, batch: int) -> Array:
        """An initial state as the layers take it, [D, B, H]."""
        if value.dtype != self._given:
            raise ValueError(f"{name} must be {self._given} as W is, got {value.dtype}")
        if self._batch_first and value.ndim == 3:
            value = value.transpose(1, 0, 2)
        shape = (self._directions, batch, self._size)
        if value.shape != shape:
            order = "[B, D, H]" if self._batch_first else "[D, B, H]"
            raise ValueError(f"{name} must be {order} with D, B, H = {shape}")
        return widened(value) if self._narrow else value

    def _run(self, x: Array, lengths: Array | None, h: Array | None, c: Array | None) -> tuple[Array, ...]:
        if len(self._layers) == 1:
            outputs = _called(self._layers[0], x, lengths, h, c)
        else:
            halves = [
                _called(layer, x, lengths, *(None if v is None else v[d : d + 1] for v in (h, c)))
                for d, layer in enumerate(self._layers)
            ]
            outputs = tuple(
                np.concatenate(parts, axis=-1 if k == 0 else 0)
                for k, parts in enumerate(zip(*halves, strict=True))
            )
        y, *states = outputs
        if self._directions == 1 and not self._batch_first:
            return (y[:, None], *states)
        y = y.reshape(*y.shape[:2], self._directions, self._size)
        if self._batch_first:
            return (y, *(v.transpose(1, 0, 2) for v in states))
        return (y.transpose(0, 2, 1, 3), *states)


def _called(
    layer: Any, x: Array, lengths: Array | None, h: Array | None, c: Array | None
) -> tuple[Array, ...]:
    """Output, h and perhaps c of a layer. Of two states one alone may be given: the other is zero."""
    state: Any = h
    if isinstance(layer, layers.LSTM) and (h is not None or c is not None):
        state = np.zeros_like(c) if h is None else h, np.zeros_like(h) if c is None else c
    y, h_end, c_end = layer._run(x, state, lengths)
    return (y, h_end) if c_end is None else (y, h_end, c_end)
