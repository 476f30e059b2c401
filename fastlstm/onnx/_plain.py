"""A graph that is just embedding, recurrent layers and dense ones, as a plain fastlstm model.

The graph is followed node by node with the axes of every value as marks: numbers for the axes of the input,
FEATURES, DIRECTIONS of a recurrent node's output, LAYERS of joined states, INSERTED ones of length 1. So one
sees that a Transpose, a Squeeze or a Reshape between two layers only moves numbers about, and that the output
has the order of the input. Whatever is not understood makes the graph no plain model, with a reason; nothing
is guessed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .. import _check, layers, leaves
from ..modules import Sequential
from . import _node, _read
from ._graph import Graph, name_of
from ._read import Array, Proto
from ._small import ACTIVATIONS as ELEMENTWISE
from ._small import gemm

FEATURES, DIRECTIONS, LAYERS, INSERTED = "features", "directions", "layers", "inserted"
Axes: TypeAlias = tuple[int | str, ...]

# Of operators with one input. ThresholdedRelu is none of them: it differs at the threshold.
ACTIVATIONS = ELEMENTWISE | {"Softmax": "softmax", "LogSoftmax": "log_softmax"}
MOVES = frozenset(
    {"Identity", "Squeeze", "Unsqueeze", "Transpose", "Reshape", "Split", "Slice", "Gather", "Concat"}
)
SHAPES = frozenset({"Shape", "Gather", "Unsqueeze", "Concat", "Cast"})  # may serve a zero state alone
OWN_NAME = re.compile(r"(\d+)\.l\d+")  # of nodes that `to_onnx` writes: the module's number first


class NotPlain(Exception):
    """Why a graph is no plain model."""


class Value(NamedTuple):
    """What a name holds.

    kind: "input", of the graph; "data", after the first `parts` parts of the model; "final", a final state;
        "zeros"; "initial", a state made of an input by moving numbers.
    rows: the first and the end of those of a state input's first axis that it holds; None: all of them.
    state: 0 of h, 1 of c, and numbers: of recurrent layers, whose final states it holds in this order.
    """

    kind: str
    axes: Axes = ()
    parts: int = 0
    name: str = ""  # of the graph's input
    rows: tuple[int, int] | None = None
    state: int = 0
    numbers: tuple[int, ...] = ()


class Dense(NamedTuple):
    """A module without a state, by its kind, options and parameters."""

    kind: str
    options: dict[str, Any]
    parameters: dict[str, Array]

    def made(self, batch_first: bool) -> Any:
        return leaves.restore(leaves.LEAVES[self.kind], self.kind, self.options, self.parameters)


class Layer(NamedTuple):
    """A recurrent node with its weights."""

    recipe: _node.Recipe
    weights: _node.Weights
    name: str

    def made(self, batch_first: bool) -> Any:
        found = _node.make_layers(self.recipe, self.weights, batch_first)
        if len(found) > 1:
            raise NotPlain(f"{self.name}: its directions have different activations")
        return found[0]


class Plain(NamedTuple):
    """A plain model, and from where each of its parameters is."""

    model: Any
    origins: dict[str, str]
    lengths: str | None  # the graph's input that holds them


def plain(graph: Graph) -> Plain:
    """The model, or NotPlain with a reason."""
    if graph.sparse:
        raise NotPlain("it has sparse parameters")
    walk = _Walk(graph)
    try:
        walk.nodes()
        return walk.result()
    except NotPlain as error:
        if not walk.unknown:
            raise
        raise NotPlain(f"{error}; no part of such a model are {', '.join(walk.unknown[:5])}") from None


class _Walk:
    """One pass over the nodes, in order."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.parts: list[Dense | Layer] = []
        self.x: Value | None = None
        self.time: int | str | None = None  # the axes
        self.batch: int | str | None = None
        self.end: Axes = ()
        self.lengths: str | None = None
        self.last_step = False
        self.taken: dict[str, tuple[int, int]] = {}  # of a state input: 0 for h, 1 for c, and rows so far
        self.in_parts: set[str] = set()  # state inputs of which the layers read rows
        self.values: dict[str, Value] = {}
        for name, port in graph.inputs.items():
            if name not in graph.defaults and port.shape is not None:
                self.values[name] = Value("input", tuple(range(len(port.shape))), name=name)
        self.unknown: list[str] = []  # nodes that are not understood

    def nodes(self) -> None:
        for node in self.graph.nodes:
            if set(node.output) & self.graph.constants:
                continue
            self._visit(node)
            if not self.values.keys() & set(node.output) and node.op_type not in SHAPES:
                self.unknown.append(f"{name_of(node)!r} ({node.op_type})")

    def _visit(self, node: Proto) -> None:
        """What a node does to what is known; outputs that nobody understands stay unknown."""
        op = node.op_type if node.domain in _read.MAIN_DOMAIN else ""
        first = self.values.get(node.input[0]) if node.input else None
        if _node.is_recurrent(node):
            self._recurrent(node)
        elif op == "ConstantOfShape" and not self._fill(node).any():
            self._put(node, Value("zeros"))
        elif op == "Expand" and self._is_zero(node.input[0]):
            self._put(node, Value("zeros"))
        elif first is not None and first.kind == "zeros" and op in MOVES:
            self._put(node, first)
        elif op == "Gather" and node.input[0] in self.graph.constants:
            self._embedding(node)
        elif op in ("MatMul", "Gemm", "Add"):
            self._dense(node)
        elif first is not None and op in ACTIVATIONS:
            self._activation(node, first)
        elif first is not None and op == "LayerNormalization":
            self._layer_norm(node, first)
        elif first is not None and op in MOVES | {"Dropout"}:
            self._move(node, first)

    # --- helpers ---

    def _put(self, node: Proto, value: Value | None) -> None:
        if value is not None:
            self.values |= dict.fromkeys(filter(None, node.output), value)

    def _constant(self, name: str) -> Array | None:
        if name not in self.graph.constants:
            return None
        return self.graph.folded([name], "reference")[name]

    def _fill(self, node: Proto) -> Array:
        value = self._attributes(node).get("value")
        return np.zeros(1) if value is None else _read.array(value)

    def _is_zero(self, name: str) -> bool:
        constant = self._constant(name)
        return constant is not None and not constant.any()

    @staticmethod
    def _attributes(node: Proto) -> dict[str, Any]:
        return {a.name: _read.require().helper.get_attribute_value(a) for a in node.attribute}

    def _data(self, node: Proto, name: str) -> Axes:
        """The axes of what a part of the model reads; it must be what the part before gives."""
        value = self.values.get(name)
        if value is not None and value.kind == "input" and not self.parts and self.x in (None, value):
            self.x = value
        elif value is None or value.kind not in ("data", "final") or value.parts != len(self.parts):
            raise NotPlain(f"{name_of(node)!r} ({node.op_type}) reads more than what comes before it")
        elif value.kind == "final":
            return self._last(value)
        if DIRECTIONS in value.axes:
            raise NotPlain(f"{name_of(node)!r} ({node.op_type}) reads two directions apart")
        return value.axes

    def _append(self, part: Dense | Layer, node: Proto, axes: Axes) -> None:
        self.parts.append(part)
        self._put(node, Value("data", axes, len(self.parts)))

    # --- parts of the model ---

    def _embedding(self, node: Proto) -> None:
        weight = self._constant(node.input[0])
        if weight is None or weight.ndim != 2 or self._attributes(node).get("axis", 0) != 0:
            return
        if node.input[1] not in self.values or weight.dtype not in (np.float32, np.float64):
            return
        axes = self._data(node, node.input[1])
        rows, width = weight.shape
        options = {"num_embeddings": rows, "embedding_dim": width, "dtype": weight.dtype.name}
        self._append(Dense("Embedding", options, {"weight": weight}), node, (*axes, FEATURES))

    def _dense(self, node: Proto) -> None:
        known = [k for k in (0, 1) if node.input[k] in self.values]
        if len(known) != 1:
            return
        x = node.input[known[0]]
        if node.op_type == "Add":
            self._bias(node, x, self._constant(node.input[1 - known[0]]))
            return
        weight, bias = self._constant(node.input[1]), None
        if known != [0] or weight is None or weight.ndim != 2 or weight.dtype not in (np.float32, np.float64):
            return
        if node.op_type == "Gemm":
            own = self._constant(node.input[2]) if len(node.input) > 2 else None
            found = gemm(self._attributes(node), weight, own, node)
            if found is None:
                return
            weight, bias = found
        else:
            weight = weight.T
        self._append(_linear(weight, bias), node, self._features(node, x))

    def _features(self, node: Proto, name: str) -> Axes:
        """The axes after a part that maps the last one."""
        axes = self._data(node, name)
        if not _ends_in_features(axes):
            raise NotPlain(f"{name_of(node)!r} ({node.op_type}) does not read features")
        return (*axes[:-1], FEATURES)

    def _bias(self, node: Proto, x: str, bias: Array | None) -> None:
        """Of the Linear just before."""
        last = self.parts[-1] if self.parts else None
        if bias is None or not isinstance(last, Dense) or last.kind != "Linear" or last.options["bias"]:
            return
        if bias.shape != (last.options["out_features"],):
            return
        axes = self._data(node, x)
        self.parts[-1] = _linear(last.parameters["weight"], bias)
        self._spoil()
        self._put(node, Value("data", axes, len(self.parts)))

    def _spoil(self) -> None:
        """The Linear's output without its bias is no value of the model: who else reads it is not plain."""
        now = len(self.parts)
        self.values = {n: v for n, v in self.values.items() if v.kind != "data" or v.parts != now}

    def _activation(self, node: Proto, first: Value) -> None:
        if first.kind not in ("data", "final"):
            return
        given, name = self._attributes(node), ACTIVATIONS[node.op_type]
        axes = self._data(node, node.input[0])
        if name in _check.WHOLE_ROW:
            usual = -1 if self.graph.opset >= 13 else 1
            if given.pop("axis", usual) not in (-1, len(axes) - 1) or axes[-1] != FEATURES:
                return
        usual_values = _check.ACTIVATIONS.get(name, ())
        keys = ("alpha", "beta")[: len(usual_values)]
        if given.keys() - set(keys):
            return
        values = [given.get(key, u) for key, u in zip(keys, usual_values, strict=True)]
        self._append(Dense("Activation", {"activation": (name, *values) if values else name}, {}), node, axes)

    def _layer_norm(self, node: Proto, first: Value) -> None:
        given = {"axis": -1, "epsilon": 1e-5, "stash_type": 1} | self._attributes(node)
        scale, bias = (self._constant(n) if n else None for n in [*node.input[1:], "", ""][:2])
        if first.kind not in ("data", "input", "final"):
            return
        axes = self._features(node, node.input[0])
        if given["axis"] not in (-1, len(axes) - 1) or given["stash_type"] != 1:
            return
        arrays = {n: v for n, v in (("weight", scale), ("bias", bias)) if v is not None}
        if scale is None or any(v.shape != scale.shape or v.ndim != 1 for v in arrays.values()):
            return
        if scale.dtype not in (np.float32, np.float64) or any(node.output[1:]):
            return
        options = {"normalized_shape": scale.size, "eps": given["epsilon"], "bias": bias is not None}
        self._append(Dense("LayerNorm", options | {"dtype": scale.dtype.name}, arrays), node, axes)

    def _recurrent(self, node: Proto) -> None:
        inputs = [*node.input, *[""] * (8 - len(node.input))]
        made = _node.recipe(node, self.graph.opset)
        weights = [self._constant(inputs[k]) if inputs[k] else None for k in (1, 2, 3, 7)]
        missing = [inputs[k] for k, v in zip((1, 2, 3, 7), weights, strict=True) if inputs[k] and v is None]
        if missing:
            raise NotPlain(f"{_node.label(node)}: {', '.join(missing)} are no constants")
        if weights[0] is None or _read.narrow(weights[0].dtype):
            raise NotPlain(f"{_node.label(node)}: its weights are narrower than float32")
        axes = self._data(node, inputs[0])
        if len(axes) != 3 or not _ends_in_features(axes) or self.last_step:
            raise NotPlain(f"{_node.label(node)} does not read a sequence")
        time, batch = (axes[1], axes[0]) if made.batch_first else (axes[0], axes[1])
        if self.time not in (None, time) or time in (INSERTED, DIRECTIONS) or batch == DIRECTIONS:
            raise NotPlain(f"{_node.label(node)} runs along another axis than time")
        self.time, self.batch = time, batch
        self._lengths(node, inputs[4])
        for state, name in enumerate(inputs[5:7]):
            self._initial(node, name, state, made.directions)
        self.parts.append(Layer(made, _node.Weights(*weights), _node.label(node)))  # type: ignore[arg-type]  # W, R are there
        self._outputs(node, made, batch)

    def _lengths(self, node: Proto, name: str) -> None:
        value = self.values.get(name)
        earlier = any(isinstance(part, Layer) for part in self.parts)
        if name and (value is None or value.kind != "input") or earlier and self.lengths != (name or None):
            raise NotPlain(f"{_node.label(node)}: its sequence_lens are no input that all such nodes share")
        self.lengths = name or None

    def _initial(self, node: Proto, name: str, state: int, directions: int) -> None:
        """Zeros, or the next rows of an input: its rows are in the order of the layers, each read once."""
        value = self.values.get(name)
        if not name or self._is_zero(name) or value is not None and value.kind == "zeros":
            return
        where = f"{_node.label(node)}: its initial state {name!r}"
        if value is None or value.kind not in ("input", "initial") or not self._no_x(value):
            raise NotPlain(f"{where} is neither zero nor an input")
        before, start = self.taken.get(value.name, (state, 0))
        wanted = (start, start + directions)
        if before != state or (value.rows or (0, directions)) != wanted:
            raise NotPlain(f"{where} is not the part of {value.name!r} that is this layer's")
        self.taken[value.name] = (state, wanted[1])
        if value.rows is not None:
            self.in_parts.add(value.name)

    def _no_x(self, value: Value) -> bool:
        return self.x is None or value.name != self.x.name

    def _outputs(self, node: Proto, made: _node.Recipe, batch: int | str) -> None:
        count, names = len(self.parts), [*node.output, "", ""]
        y: Axes = (self.time or 0, DIRECTIONS, batch, FEATURES)
        state: Axes = (DIRECTIONS, batch, FEATURES)
        if made.batch_first:
            y, state = (batch, self.time or 0, DIRECTIONS, FEATURES), (batch, DIRECTIONS, FEATURES)
        number = (sum(isinstance(part, Layer) for part in self.parts) - 1,)
        own = {names[0]: Value("data", y, count), names[1]: Value("final", state, count, numbers=number)}
        if names[2]:  # c, which nothing reads on
            own[names[2]] = Value("final", state, -1, state=1, numbers=number)
        self.values |= {name: value for name, value in own.items() if name}

    # --- moving numbers about ---

    def _move(self, node: Proto, first: Value) -> None:
        op = node.op_type
        state = first.kind == "initial" or first.kind == "input" and self._no_x(first)
        if state and op in ("Split", "Slice", "Gather"):
            self._rows(node, first)
        elif op in ("Split", "Slice", "Gather", "Concat"):
            self._pick(node, first)
        elif op in ("Identity", "Dropout"):
            if op == "Identity" or not any(node.output[1:]) and not any(node.input[2:3]):
                self._put(node, first)
        else:
            moved = getattr(self, f"_{op.lower()}")(node, first.axes)
            if moved is not None:
                self._put(node, first._replace(axes=moved))
            elif state:
                self._put(node, first._replace(kind="initial", axes=()))

    def _rows(self, node: Proto, first: Value) -> None:
        """Some rows of a state input's first axis, one after the other."""
        axis = self._attributes(node).get("axis", 0)
        if node.op_type == "Slice":
            chosen = self._numbers(node, "axes", 3)
            axis = (
                chosen[0] if chosen is not None and len(chosen) == 1 else 0 if len(node.input) < 4 else None
            )
        if axis is None or not -len(first.axes) <= axis < len(first.axes) or first.axes[axis] != 0:
            return
        shape = self.graph.inputs[first.name].shape or (None,)
        start, stop = first.rows or (0, shape[0] if isinstance(shape[0], int) else None)
        found = self._picked(node, None if stop is None else stop - start)
        if found is None:
            return
        scalar = node.op_type == "Gather" and self._constant(node.input[1]).ndim == 0  # type: ignore[union-attr]  # it was found
        for name, (begin, end) in zip(node.output, found, strict=True):
            axes = () if scalar else first.axes
            if name:
                rows = (start + begin, start + end)
                self.values[name] = Value("initial", axes, name=first.name, rows=rows)

    def _numbers(self, node: Proto, attribute: str, k: int) -> list[int] | None:
        """Whole numbers that are an attribute in earlier opsets and an input in later ones."""
        given = self._attributes(node).get(attribute)
        if given is None and k < len(node.input):
            constant = self._constant(node.input[k])
            given = None if constant is None else constant.ravel().tolist()
        return given

    def _picked(self, node: Proto, count: int | None) -> list[tuple[int, int]] | None:
        """For each output the first and the end of the rows that it takes of so many; None if that is unknown
        or they are not one after the other."""
        if node.op_type == "Gather":
            index = self._constant(node.input[1])
            rows = [] if index is None or index.ndim > 1 else index.ravel().tolist()
            if any(k < 0 for k in rows):
                rows = [k % count for k in rows] if count else []
            return [(rows[0], rows[-1] + 1)] if rows and rows == list(range(rows[0], rows[-1] + 1)) else None
        if node.op_type == "Split":
            sizes = self._numbers(node, "split", 1)
            if sizes is None and len(node.input) < 2 and count and count % len(node.output) == 0:
                sizes = [count // len(node.output)] * len(node.output)
            if sizes is None or len(sizes) != len(node.output):
                return None
            return list(itertools.pairwise(itertools.accumulate(sizes, initial=0)))
        starts, stops = self._numbers(node, "starts", 1), self._numbers(node, "ends", 2)
        steps = self._numbers(node, "steps", 4) if len(node.input) > 4 else [1]
        if not starts or not stops or len(starts) != 1 or len(stops) != 1 or steps != [1]:
            return None
        if count is None:
            return [(starts[0], stops[0])] if 0 <= starts[0] < stops[0] else None
        begin, end, _ = slice(starts[0], stops[0]).indices(count)
        return [(begin, end)] if begin < end else None

    def _pick(self, node: Proto, first: Value) -> None:
        """The last step of a sequence; final states joined, or the last of them."""
        axis = self._attributes(node).get("axis", 0)
        if node.op_type == "Concat":
            values = [self.values.get(name) for name in node.input]
            finals = [v for v in values if v is not None and v.kind == "final"]
            if len(finals) == len(values):
                self._joined(node, finals, axis)
            return
        index = self._constant(node.input[1]) if node.op_type == "Gather" else None
        if (
            index is None
            or index.shape != ()
            or index != -1
            or not -len(first.axes) <= axis < len(first.axes)
        ):
            return
        rest = tuple(a for k, a in enumerate(first.axes) if k != axis % len(first.axes))
        gone = first.axes[axis]
        if first.kind == "final" and (gone == LAYERS or gone == DIRECTIONS and self._one_direction()):
            self._put(node, first._replace(axes=rest))
        elif (
            first.kind == "data" and gone == self.time and first.parts == len(self.parts) and not self.lengths
        ):
            layer = self.parts[-1]
            if isinstance(layer, Layer) and layer.recipe.direction == "forward":
                self._put(node, first._replace(kind="final", axes=rest))

    def _joined(self, node: Proto, finals: list[Value], axis: int) -> None:
        """Final states of layers one after the other, in their order, as fastlstm has them."""
        last, numbers = finals[-1], [n for v in finals for n in v.numbers]
        beside = all(
            -len(v.axes) <= axis < len(v.axes) and v.axes[axis] in (DIRECTIONS, LAYERS) for v in finals
        )
        if not beside or len({v.state for v in finals}) > 1:
            raise NotPlain(
                f"{name_of(node)!r} ({node.op_type}) joins final states in another way than layers"
            )
        if not all(v.numbers for v in finals) or numbers != list(
            range(numbers[0], numbers[0] + len(numbers))
        ):
            raise NotPlain(
                f"{name_of(node)!r} ({node.op_type}) joins final states in another order than layers"
            )
        stacked = axis == 0 and self._one_direction()
        axes = (LAYERS, *last.axes[1:]) if stacked else ()
        self._put(node, last._replace(axes=axes, numbers=tuple(numbers)))

    def _one_direction(self) -> bool:
        """Whether the last part is a recurrent layer of one direction."""
        layer = self.parts[-1] if self.parts else None
        return isinstance(layer, Layer) and layer.recipe.directions == 1

    def _transpose(self, node: Proto, axes: Axes) -> Axes | None:
        perm = self._attributes(node).get("perm", range(len(axes))[::-1])
        return tuple(axes[k] for k in perm) if sorted(perm) == list(range(len(axes))) else None

    def _squeeze(self, node: Proto, axes: Axes) -> Axes | None:
        """Of directions, where there is one, and of what was inserted."""
        given = self._numbers(node, "axes", 1)
        if given is None or any(not -len(axes) <= k < len(axes) for k in given):
            return None
        gone = {k % len(axes) for k in given}
        if any(axes[k] != INSERTED and not (axes[k] == DIRECTIONS and self._one_direction()) for k in gone):
            return None
        return tuple(a for k, a in enumerate(axes) if k not in gone)

    def _unsqueeze(self, node: Proto, axes: Axes) -> Axes | None:
        given = self._numbers(node, "axes", 1)
        if given is None:
            return None
        rank = len(axes) + len(given)
        places, rest = {k % rank for k in given}, iter(axes)
        return tuple(INSERTED if k in places else next(rest) for k in range(rank))

    def _reshape(self, node: Proto, axes: Axes) -> Axes | None:
        """Directions beside features into one axis, all others kept."""
        shape = self._constant(node.input[1])
        if shape is None or axes[-2:] != (DIRECTIONS, FEATURES) or self._attributes(node).get("allowzero"):
            return None
        *kept, width = shape.ravel().tolist()
        layer = self.parts[-1]
        assert isinstance(layer, Layer)  # only its output has directions
        full = layer.recipe.directions * layer.weights.R.shape[2]
        if len(kept) != len(axes) - 2 or any(kept) or width not in (-1, full):
            return None
        return (*axes[:-2], FEATURES)

    # --- the end ---

    def result(self) -> Plain:
        if self.x is None:
            raise NotPlain("no part of it is one that fastlstm knows")
        self._check_outputs()
        if self.lengths and not self.last_step and not isinstance(self.parts[-1], Layer):
            # Sequential leaves zeros in the padding, the graph a bias or what an activation makes of 0.
            raise NotPlain("with sequence_lens its last parts give other values than zeros in the padding")
        for name, (_, rows) in self.taken.items():
            shape = self.graph.inputs[name].shape
            if name in self.in_parts and shape and isinstance(shape[0], int) and shape[0] != rows:
                raise NotPlain(f"its layers read {rows} of the {shape[0]} parts of {name!r}")
        embeds = isinstance(self.parts[0], Dense) and self.parts[0].kind == "Embedding"
        axes = range(_rank(self.x.axes) - (not embeds))  # of the input, its features left out
        wanted = (*(a for a in axes if not (self.last_step and a == self.time)), FEATURES)
        if self.end != wanted:
            raise NotPlain("its output does not have the order of its input")
        made = [part.made(self.time == 1) for part in self.parts]
        labels = [[part.name if isinstance(part, Layer) else part.kind] for part in self.parts]
        _merge(made, labels)
        try:
            model = made[0] if len(made) == 1 else Sequential(*made)
        except (TypeError, ValueError) as error:
            raise NotPlain(str(error)) from error
        return Plain(model, _origins(made, labels), self.lengths)

    def _check_outputs(self) -> None:
        """One output is the model's; the others may be final states."""
        known = {name: self.values.get(name) for name in self.graph.outputs}
        if unknown := [name for name, value in known.items() if value is None]:
            raise NotPlain(
                f"its output {unknown[0]!r} is made by more than embedding, layers and dense parts"
            )
        ends = [v for v in known.values() if v is not None and v.kind == "data"]
        if not ends:  # a graph that gives the last state alone
            finals = [v for v in known.values() if v is not None and v.parts == len(self.parts)]
            ends = [Value("data", self._last(v), len(self.parts)) for v in finals[:1]]
        if len(ends) != 1 or ends[0].parts != len(self.parts):
            raise NotPlain("its outputs are more than what its last part gives and final states")
        self.end = ends[0].axes

    def _last(self, value: Value) -> Axes:
        """Of a final state that is read as the last step's output."""
        layer = self.parts[-1]
        if not isinstance(layer, Layer) or value.axes != (self.batch, FEATURES):
            raise NotPlain("it reads a final state in another form than the last step's output")
        self.parts.append(Dense("LastStep", {}, {}))
        self.last_step = True
        return value.axes


def _rank(axes: Axes) -> int:
    """Of the input, of whose axes none is lost."""
    return sum(isinstance(a, int) for a in axes)


def _ends_in_features(axes: Axes) -> bool:
    """Whether the last axis is features: a module's, or the input's last one."""
    return axes[-1:] == (FEATURES,) or axes[-1:] == (_rank(axes) - 1,)


def _linear(weight: Array, bias: Array | None) -> Dense:
    rows, width = weight.shape
    options = {
        "in_features": width,
        "out_features": rows,
        "bias": bias is not None,
        "dtype": weight.dtype.name,
    }
    return Dense("Linear", options, {"weight": weight} | ({} if bias is None else {"bias": bias}))


def _merge(made: list[Any], labels: list[list[str]]) -> None:
    """Equal recurrent layers, one after the other, become one with more layers, in place.

    Of nodes that `to_onnx` wrote only those of one module do.
    """
    k = 1
    while k < len(made):
        before, after = made[k - 1], made[k]
        if isinstance(before, layers._Layer) and isinstance(after, layers._Layer) and _stack(before, after):
            own = [
                OWN_NAME.fullmatch(names[-1].partition(" ")[2].strip("'")) for names in labels[k - 1 : k + 1]
            ]
            if None in own or own[0][1] == own[1][1]:  # type: ignore[index]  # none is None
                made[k - 1 : k + 1] = [_stacked(before, after)]
                labels[k - 1 : k + 1] = [labels[k - 1] + labels[k]]
                continue
        k += 1


def _stack(before: Any, after: Any) -> bool:
    """Whether two layers differ in nothing but their inputs."""
    a, b = before._options, after._options
    width = len(a.suffixes) * a.state_sizes[0]
    return bool(b.input_size == width and b == a._replace(input_size=width, num_layers=1))


def _stacked(before: Any, after: Any) -> Any:
    o = before._options
    more = {name.replace("_l0", f"_l{o.num_layers}"): v for name, v in after._parameters.items()}
    options = o.given() | {"num_layers": o.num_layers + 1}
    return layers._restore(type(before), o.cell, options, before._parameters | more)


def _origins(made: Sequence[Any], labels: Sequence[list[str]]) -> dict[str, str]:
    """For each parameter of the model the node that it came from."""
    found = {}
    for i, (part, names) in enumerate(zip(made, labels, strict=True)):
        for name in part._parameters:
            layer = re.search(r"_l(\d+)", name)
            prefix = f"{i}." if len(made) > 1 else ""
            found[prefix + name] = names[int(layer[1]) if layer else 0]
    return found
