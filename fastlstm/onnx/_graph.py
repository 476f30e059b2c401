"""A model's graph, read: what is constant, of which type, needed by whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import _engine, _read
from ._read import Array, Proto

# Before this version of the format each initializer was an input too: ONNX Runtime takes it as a constant.
CONSTANT_INITIALIZERS = 4

RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


class Port(NamedTuple):
    """An input or output of a graph."""

    name: str
    dtype: np.dtype[Any] | None  # None if it is no tensor
    shape: tuple[int | str | None, ...] | None  # a name or None: any number; None: anything

    def __repr__(self) -> str:
        dims = "any" if self.shape is None else f"[{', '.join(map(str, self.shape))}]"
        return f"{self.name}: {self.dtype or 'no tensor'} {dims}"


def subgraphs(node: Proto) -> list[Proto]:
    found = [a.g for a in node.attribute if a.HasField("g")]
    return found + [g for a in node.attribute for g in a.graphs]


def reads_of(node: Proto) -> set[str]:
    """What a node reads, its sub-graphs too."""
    names = {name for name in node.input if name}
    for graph in subgraphs(node):
        names |= _free(graph)
    return names


def _free(graph: Proto) -> set[str]:
    """What a sub-graph takes from around it."""
    own = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    own |= {s.values.name for s in graph.sparse_initializer}
    used = {v.name for v in graph.output}
    for node in graph.node:
        own |= set(node.output)
        used |= reads_of(node)
    return used - own


def _port(value: Proto) -> Port:
    onnx = _read.require()
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.elem_type:
        return Port(value.name, None, None)
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    if not tensor.HasField("shape"):
        return Port(value.name, dtype, None)
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]
    return Port(value.name, dtype, tuple(dims))


class Graph:
    """A model's main graph with what follows from it: constants, types, what is needed by whom."""

    def __init__(self, proto: Proto) -> None:
        onnx = _read.require()
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        if proto.ir_version < CONSTANT_INITIALIZERS:
            _fix(proto, {})
        self.proto, self.opset = proto, _read.opset(proto)
        graph = proto.graph
        given = {value.name for value in graph.input}
        self.tensors = {t.name: t for t in graph.initializer}
        self.sparse = {s.values.name: s for s in graph.sparse_initializer}
        self.defaults = given & self.tensors.keys()  # initializers that a caller may replace
        self.inputs = {v.name: _port(v) for v in graph.input}
        self.outputs = {v.name: _port(v) for v in graph.output}
        self.nodes = self._needed()
        self.types = self._inferred()
        self.literals = {
            node.output[0]: a.t
            for node in self.nodes
            if node.op_type == "Constant"
            for a in node.attribute
            if a.name == "value"
        }
        self.constants = self._constant()

    def _needed(self) -> list[Proto]:
        """The nodes that an output depends on, in order."""
        wanted, kept = set(self.outputs), []
        for node in reversed(self.proto.graph.node):
            if wanted.intersection(node.output):
                wanted |= reads_of(node)
                kept.append(node)
        return kept[::-1]

    def _inferred(self) -> dict[str, int]:
        """The element type of every tensor that onnx can tell one for; ValueError for absurd shapes."""
        onnx = _read.require()
        try:
            graph = onnx.shape_inference.infer_shapes(self.proto, data_prop=True).graph
        except Exception as error:  # InferenceError is none of Python's own
            raise ValueError(
                f"its types contradict each other: {' '.join(str(error).split()):.500}"
            ) from error
        types = {name: tensor.data_type for name, tensor in self.tensors.items()}
        for value in [*graph.value_info, *graph.input, *graph.output]:
            tensor = value.type.tensor_type
            dims = [d.dim_value for d in tensor.shape.dim if d.HasField("dim_value")]
            if int(np.prod([float(max(d, 0)) for d in dims])) > _read.MOST_COMPUTED:
                raise ValueError(f"{value.name!r} would have an absurd shape, {dims}")
            if tensor.elem_type:
                types[value.name] = tensor.elem_type
        return types

    def _constant(self) -> set[str]:
        """Names whose value no input changes."""
        found = (self.tensors.keys() | self.sparse.keys()) - self.defaults
        for node in self.nodes:
            if node.op_type not in RANDOM and not subgraphs(node) and reads_of(node) <= found:
                found |= {name for name in node.output if name}
        return found

    def array(self, name: str) -> Array:
        """Of an initializer or a Constant."""
        return _read.array(self.tensors[name] if name in self.tensors else self.literals[name])

    def folded(self, names: Iterable[str], engine: str) -> dict[str, Array]:
        """The values of constants, computed where they are no initializers."""
        wanted = list(dict.fromkeys(names))
        found = {name: self.array(name) for name in wanted if name in self.tensors or name in self.literals}
        rest = [name for name in wanted if name not in found]
        if rest:
            nodes = [node for node in self.nodes if set(node.output) & self.constants]
            model = self.segment(nodes, [], rest)
            found |= dict(zip(rest, _engine.compiled(engine, model, 1)([]), strict=True))
        return found

    def segment(self, nodes: Sequence[Proto], inputs: Sequence[str], outputs: Sequence[str]) -> Proto:
        """A model of some of the nodes, with the initializers that they read."""
        onnx = _read.require()
        reads = set[str]().union(*(reads_of(node) for node in nodes)) - set(inputs)
        graph = onnx.helper.make_graph(
            nodes,
            "segment",
            [self._value(name) for name in inputs],
            [self._value(name) for name in outputs],
            [tensor for name, tensor in self.tensors.items() if name in reads],
            sparse_initializer=[sparse for name, sparse in self.sparse.items() if name in reads],
        )
        model = onnx.helper.make_model(
            graph, opset_imports=self.proto.opset_import, ir_version=self.proto.ir_version
        )
        return model

    def _value(self, name: str) -> Proto:
        """As an input or output of a segment: of unknown shape, for a stated one may be wrong."""
        onnx = _read.require()
        for value in [*self.proto.graph.input, *self.proto.graph.output]:
            if value.name == name and not value.type.HasField("tensor_type"):
                return value
        return onnx.helper.make_tensor_value_info(name, self.types.get(name, 0), None)


def name_of(node: Proto) -> str:
    """A node's name, or else its first output's."""
    return node.name or next((name for name in node.output if name), "")


# --- inputs that are fixed, choices that are settled --------------------------------------------------------


def settled(proto: Proto, fixed: Mapping[str, Array]) -> Graph:
    """The graph with some inputs as constants, and with each If whose condition is then known as the nodes of
    its branch: what is inside can run as any other node."""
    _fix(proto, fixed)
    graph = Graph(proto)
    while known := [n for n in graph.nodes if _is_if(n) and n.input[0] in graph.constants]:
        chosen = {n.output[0]: bool(graph.folded(n.input[:1], "reference")[n.input[0]].any()) for n in known}
        proto = graph.proto
        nodes, k = list(proto.graph.node), 0
        del proto.graph.node[:]
        for node in nodes:
            if node.output[:1] and node.output[0] in chosen and _is_if(node):
                _open(proto.graph, node, chosen[node.output[0]], f"branch{k}/")
                k += 1
            else:
                proto.graph.node.append(node)
        graph = Graph(proto)
    return graph


def _is_if(node: Proto) -> bool:
    return node.op_type == "If" and node.domain in _read.MAIN_DOMAIN


def _fix(proto: Proto, fixed: Mapping[str, Array]) -> None:
    """Make inputs constants; of an early version of the format also all that have a default."""
    graph = proto.graph
    known = {t.name for t in graph.initializer} if proto.ir_version < CONSTANT_INITIALIZERS else set()
    for values, gone in ((graph.input, known | fixed.keys()), (graph.initializer, fixed.keys())):
        kept = [value for value in values if value.name not in gone]
        del values[:]
        values.extend(kept)
    graph.initializer.extend(_read.require().numpy_helper.from_array(v, n) for n, v in fixed.items())


def _open(graph: Proto, node: Proto, which: bool, prefix: str) -> None:
    """Append the nodes of an If's branch; its own names get a prefix, as other branches may have them too."""
    name = "then_branch" if which else "else_branch"
    branch = next(a.g for a in node.attribute if a.name == name)
    own = {t.name for t in branch.initializer} | {s.values.name for s in branch.sparse_initializer}
    own |= {output for inner in branch.node for output in inner.output if output}
    taken = {name for inner in graph.node for name in inner.output}
    while any(prefix + name in taken for name in own):
        prefix += "_"
    names = {name: prefix + name for name in own}
    _rename(branch, names)
    graph.initializer.extend(branch.initializer)
    graph.sparse_initializer.extend(branch.sparse_initializer)
    graph.node.extend(branch.node)
    for value, output in zip(branch.output, node.output, strict=True):
        if output:
            graph.node.append(_read.require().helper.make_node("Identity", [value.name], [output]))


def _rename(graph: Proto, names: Mapping[str, str]) -> None:
    """Wherever these names stand in a sub-graph, also in those within."""
    for value in [*graph.output, *graph.initializer, *(s.values for s in graph.sparse_initializer)]:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
        for inner in subgraphs(node):
            _rename(inner, names)
