"""Segments so small that to call an engine would cost more than their work.

What stands between recurrent layers and after them is mostly a few nodes that move numbers about (NumPy does
that by views), a dense layer or a convolution of width 1 (as `Linear`), an activation (as `Activation`). A
segment of nothing else is run here. Whatever else a node may mean is left to the engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .. import _check, _core, leaves
from ._engine import Runner
from ._graph import Graph, name_of
from ._read import MAIN_DOMAIN, Array, Proto, require

Function: TypeAlias = Callable[..., Sequence[Array]]

ELEMENTWISE: dict[str, Any] = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}
ACTIVATIONS = {
    "Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "LeakyRelu": "leaky_relu", "Elu": "elu",
    "HardSigmoid": "hard_sigmoid", "Softsign": "softsign", "Softplus": "softplus",
}  # fmt: skip


class _Node(NamedTuple):
    """What a node does to the values whose names are `reads`; its other inputs are constants."""

    run: Function
    reads: list[str]


class _Step(NamedTuple):
    run: Function
    reads: list[int]  # places in the list of values
    writes: list[int]
    label: str


def runner(
    graph: Graph, nodes: Sequence[Proto], inputs: Sequence[str], outputs: Sequence[str]
) -> Runner | None:
    """What runs these nodes; None if one of them is for an engine."""
    if graph.sparse:
        return None
    nodes = [node for node in nodes if not set(node.output) & graph.constants]  # which are known already
    built = [_Builder(graph, node).node() for node in nodes]
    made = [node for node in built if node is not None]
    if len(made) < len(nodes) or set(outputs) & graph.constants:
        return None
    places = {name: k for k, name in enumerate(inputs)}
    steps = []
    for node, part in zip(nodes, made, strict=True):
        reads = [places[name] for name in part.reads]
        writes = [places.setdefault(name, len(places)) for name in node.output if name]
        steps.append(_Step(part.run, reads, writes, f"{node.op_type} {name_of(node)!r}"))
    wanted, more = [places[name] for name in outputs], [None] * (len(places) - len(inputs))

    def run(given: Sequence[Any]) -> Sequence[Any]:
        values = [*given, *more]
        for step in steps:
            try:
                results = step.run(*[values[k] for k in step.reads])
            except (ValueError, IndexError) as error:
                raise ValueError(f"{step.label}: {error}") from error
            for k, value in zip(step.writes, results, strict=True):
                values[k] = value
        return [values[k] for k in wanted]

    if any(node.op_type in ELEMENTWISE for node in nodes):  # infinities and NaN are values like any other
        return np.errstate(all="ignore")(run)
    return run


def gemm(
    given: Mapping[str, Any], weight: Array | None, bias: Array | None, node: Proto
) -> tuple[Array, Array | None] | None:
    """The weight [O, I] and the bias [O] of a Gemm that is a dense layer; None if it is none."""
    usual = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    if (
        weight is None
        or weight.ndim != 2
        or any(given.get(key, value) != value for key, value in usual.items())
    ):
        return None
    weight = weight if given.get("transB") else weight.T
    if len(node.input) < 3 or not node.input[2]:
        return weight, None
    if bias is None or bias.shape not in (weight.shape[:1], (1, len(weight))):
        return None
    return weight, bias.ravel()


class _Builder:
    """One node: `node` finds the method of its operator, which gives None for what it does not do."""

    def __init__(self, graph: Graph, node: Proto) -> None:
        self.graph, self.proto = graph, node
        self.given = {a.name: require().helper.get_attribute_value(a) for a in node.attribute}

    def node(self) -> _Node | None:
        build = OPERATORS.get(self.proto.op_type)
        if build is None or self.proto.domain not in MAIN_DOMAIN or not all(self.proto.input[:1]):
            return None
        return build(self)

    # --- helpers ---

    def _constant(self, k: int) -> Array | None:
        """The constant at an input; None if it is absent or no constant."""
        name = self.proto.input[k] if k < len(self.proto.input) else ""
        if not name or name not in self.graph.constants:
            return None
        return self.graph.folded([name], "reference")[name]

    def _numbers(self, attribute: str, k: int) -> list[int] | None:
        """Whole numbers that are an attribute in earlier opsets and an input in later ones."""
        if attribute in self.given:
            return list(self.given[attribute])
        constant = self._constant(k)
        return None if constant is None else constant.ravel().tolist()

    def _first(self, run: Callable[[Array], Array]) -> _Node | None:
        """Of the first input alone."""
        return _Node(lambda x: (run(x),), [self.proto.input[0]])

    def _floats(self) -> bool:
        """Whether the first input is float32 or float64."""
        tensor = require().TensorProto
        return self.graph.types.get(self.proto.input[0]) in (tensor.FLOAT, tensor.DOUBLE)

    # --- moving numbers about ---

    def _identity(self) -> _Node | None:
        return self._first(lambda x: x)

    def _squeeze(self) -> _Node | None:
        axes = self._numbers("axes", 1)
        return None if axes is None else self._first(lambda x: x.squeeze(tuple(axes)))

    def _unsqueeze(self) -> _Node | None:
        axes = self._numbers("axes", 1)
        if axes is None:
            return None

        def run(x: Array) -> Array:  # np.expand_dims takes longer
            rank = x.ndim + len(axes)
            places = {axis % rank for axis in axes}
            return x[tuple(None if k in places else slice(None) for k in range(rank))]

        return self._first(run)

    def _transpose(self) -> _Node | None:
        perm = self.given.get("perm")
        return self._first(lambda x: x.transpose(perm))

    def _reshape(self) -> _Node | None:
        shape = self._numbers("shape", 1)
        if shape is None or self.given.get("allowzero"):
            return None
        return self._first(lambda x: x.reshape([x.shape[k] if n == 0 else n for k, n in enumerate(shape)]))

    def _concat(self) -> _Node | None:
        names = list(self.proto.input)
        if any(name in self.graph.constants for name in names):
            return None
        axis = self.given["axis"]
        return _Node(lambda *values: (np.concatenate(values, axis),), names)

    def _split(self) -> _Node | None:
        count, axis = len(self.proto.output), self.given.get("axis", 0)
        sizes = self._numbers("split", 1)
        if not all(self.proto.output) or sizes is None or len(sizes) != count:
            return None
        stops = list(itertools.accumulate(sizes, initial=0))
        parts = [slice(*pair) for pair in itertools.pairwise(stops)]

        def run(x: Array) -> Sequence[Array]:  # np.split takes longer
            if x.shape[axis] != stops[-1]:
                raise ValueError(f"wants {stops[-1]} along axis {axis}, got shape {x.shape}")
            before = (slice(None),) * (axis % x.ndim)
            return [x[(*before, part)] for part in parts]

        return _Node(run, [self.proto.input[0]])

    def _slice(self) -> _Node | None:
        starts, stops, axes = (self._numbers(n, k) for k, n in enumerate(("starts", "ends", "axes"), 1))
        steps = self._constant(4)
        if starts is None or stops is None or (steps is not None and (steps != 1).any()):
            return None
        if len(self.proto.input) > 4 and steps is None or axes is None and len(self.proto.input) > 3:
            return None
        chosen = dict(
            zip(range(len(starts)) if axes is None else axes, map(slice, starts, stops), strict=True)
        )

        def run(x: Array) -> Array:
            own = {axis % x.ndim: part for axis, part in chosen.items()}
            return x[tuple(own.get(axis, slice(None)) for axis in range(x.ndim))]

        return self._first(run)

    def _gather(self) -> _Node | None:
        index = self._constant(1)
        if index is None or self.proto.input[0] in self.graph.constants:
            return None
        axis = self.given.get("axis", 0)
        return self._first(lambda x: x.take(index, axis))

    # --- arithmetic ---

    def _elementwise(self) -> _Node | None:
        if not self._floats():
            return None
        ufunc = ELEMENTWISE[self.proto.op_type]
        first, second = (self._constant(k) for k in (0, 1))
        if first is None and second is None:
            return _Node(lambda a, b: (ufunc(a, b),), list(self.proto.input))
        if first is None:
            return _Node(lambda a: (ufunc(a, second),), [self.proto.input[0]])
        return _Node(lambda b: (ufunc(first, b),), [self.proto.input[1]]) if second is None else None

    def _activation(self) -> _Node | None:
        name = ACTIVATIONS[self.proto.op_type]
        usual = _check.ACTIVATIONS[name]
        values = [self.given.get(key, u) for key, u in zip(("alpha", "beta"), usual, strict=False)]
        if not self._floats():
            return None
        function = leaves.Activation((name, *values) if values else name)._function
        return self._first(lambda x: _core.activate(*function, np.ascontiguousarray(x)))

    def _linear(self, weight: Array, bias: Array | None) -> Callable[[Array], Array] | None:
        """Of weights [O, I]."""
        if weight.dtype not in (np.float32, np.float64) or 0 in weight.shape:
            return None
        core = _core.LinearCore(np.ascontiguousarray(weight), bias)
        return lambda x: core.forward(np.ascontiguousarray(x))

    def _matmul(self) -> _Node | None:
        weight = self._constant(1)
        linear = None if weight is None or weight.ndim != 2 else self._linear(weight.T, None)
        return None if linear is None or self._constant(0) is not None else self._first(linear)

    def _gemm(self) -> _Node | None:
        found = gemm(self.given, self._constant(1), self._constant(2), self.proto)
        linear = None if found is None else self._linear(*found)
        return None if linear is None or self._constant(0) is not None else self._first(linear)

    def _conv(self) -> _Node | None:
        """A convolution of width 1: a dense layer over the channels, [B, C, T] to [B, O, T]."""
        weight, bias = self._constant(1), self._constant(2)
        if weight is None or weight.ndim != 3 or weight.shape[2] != 1 or self.given.get("group", 1) != 1:
            return None
        if len(self.proto.input) > 2 and self.proto.input[2] and bias is None:
            return None
        if any(self.given.get("pads", ())) or self.given.get("strides", [1]) != [1]:
            return None
        linear = self._linear(weight[:, :, 0], bias)
        return (
            None if linear is None else self._first(lambda x: linear(x.transpose(0, 2, 1)).transpose(0, 2, 1))
        )


OPERATORS: dict[str, Callable[[_Builder], _Node | None]] = {
    **dict.fromkeys(ELEMENTWISE, _Builder._elementwise),
    **dict.fromkeys(ACTIVATIONS, _Builder._activation),
    "Identity": _Builder._identity,
    "Squeeze": _Builder._squeeze,
    "Unsqueeze": _Builder._unsqueeze,
    "Transpose": _Builder._transpose,
    "Reshape": _Builder._reshape,
    "Concat": _Builder._concat,
    "Split": _Builder._split,
    "Slice": _Builder._slice,
    "Gather": _Builder._gather,
    "MatMul": _Builder._matmul,
    "Gemm": _Builder._gemm,
    "Conv": _Builder._conv,
}
