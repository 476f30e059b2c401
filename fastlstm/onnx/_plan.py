"""Whole graphs: recurrent nodes on fastlstm, all others on another engine, in as few pieces as possible.

A node's level is the number of recurrent nodes before it on the longest way from the inputs. The other nodes
of one level are one segment, which the engine gets as a model of its own; then come the recurrent nodes of
that level, then the segment of the next. The plan is made once; a call only follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from . import _engine, _node, _small
from ._graph import Graph, name_of, reads_of, subgraphs
from ._read import Array, Proto

Named: TypeAlias = dict[str, Any]
Levels: TypeAlias = dict[
    int, tuple[list[int], list[int]]
]  # numbers of the other nodes, of the recurrent ones

ABSENT, UNUSED = 0, 1  # places in the list of values: None for whoever reads it, for whatever is not wanted
OUTSIDE = -1  # stands for a reader that is no segment


class Placement(NamedTuple):
    """Where a node runs, and why not on fastlstm if it is recurrent and does not."""

    node: str
    op: str
    engine: str
    reason: str


class _Step(NamedTuple):
    """Part of the plan: what runs, what takes its inputs from the list of values, places of its outputs."""

    run: Callable[[Sequence[Any]], Sequence[Any]]
    read: Callable[[list[Any]], Sequence[Any]]
    writes: tuple[int, ...]


class _RecurrentStep:
    """A recurrent node in a plan. Its inputs come in ONNX's order; names that are absent come as None."""

    def __init__(self, node: Proto, opset: int, constants: Mapping[str, Array]) -> None:
        self._label, self._recipe = _node.label(node), _node.recipe(node, opset)
        inputs = [*node.input, *[""] * (8 - len(node.input))]
        names = [inputs[k] for k in (1, 2, 3, 7)]  # W R B P
        self._fixed = all(not name or name in constants for name in names)
        self._made: tuple[list[Array | None], _node.Recurrent] | None = None
        if self._fixed:
            self._made = self._make([constants[name] if name else None for name in names])
            names = []
        self.reads = [inputs[k] for k in (0, 4, 5, 6)] + names
        self.writes = list(node.output)

    def _make(self, weights: list[Any]) -> tuple[list[Array | None], _node.Recurrent]:
        try:
            made = _node.Recurrent(self._recipe, _node.Weights(*weights))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self._label}: {error}") from error
        return ([] if self._fixed else [None if w is None else w.copy() for w in weights]), made

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        made = self._made
        if not self._fixed and (made is None or not _same(made[0], values[4:])):
            self._made = made = self._make(list(values[4:]))  # other threads may do the same
        assert made is not None
        try:
            return made[1](*values[:4])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self._label}: {error}") from error


def _same(old: Sequence[Array | None], new: Sequence[Array | None]) -> bool:
    """Whether weights are those of before, to the last bit."""
    for a, b in zip(old, new, strict=True):
        if a is None or b is None:
            if a is not b:
                return False
        elif a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != np.asarray(b).tobytes():
            return False
    return True


class Plan:
    """The steps of a graph in order. `run` takes and gives values by name; `follow` works on a list of them,
    in which `places` are those of the names and `outputs` those of the outputs."""

    def __init__(self, graph: Graph, engine: str, num_threads: int) -> None:
        self._graph, self._engine, self._threads = graph, engine, num_threads
        self.places: dict[str, int] = {"": ABSENT}
        self._initial: list[Any] = [None, None]
        self._reasons: dict[int, str] = {}  # by a node's number, where there is more to say
        self._small: set[int] = set()  # numbers of nodes that need no engine
        # Outputs that are the caller's own arrays, or the model's, or may be views of such.
        self._copied = (graph.inputs.keys() | graph.tensors.keys()) & graph.outputs.keys()
        recurrent = self._recurrent()
        levels = self._levels(recurrent)
        self._steps: list[_Step] = []
        readers = self._readers(levels, recurrent)
        for level, (others, own) in sorted(levels.items()):
            self._segment(level, others, readers)
            for k in own:
                self._add(recurrent[k], recurrent[k].reads, recurrent[k].writes)
        for name in graph.inputs:  # one that nobody reads may be given
            self._place(name)
        self.outputs = {name: self._place(name) for name in graph.outputs}
        for name in graph.outputs.keys() & graph.tensors.keys():
            self._initial[self._place(name)] = graph.array(name)
        self.report = list(self._reported(recurrent))
        del self._graph  # with all its weights, of which the steps hold what they need

    def _place(self, name: str) -> int:
        """Of a name in the list of values."""
        if name not in self.places:
            self.places[name] = len(self._initial)
            self._initial.append(self._graph.array(name) if name in self._graph.defaults else None)
        return self.places[name]

    def _add(self, run: Any, reads: Sequence[str], writes: Sequence[str]) -> None:
        for name in reads:
            if name in self._graph.tensors:
                self._initial[self._place(name)] = self._graph.array(name)
        into = tuple(self._place(name) if name else UNUSED for name in writes)
        places = [self._place(name) for name in reads]
        # Of one place an itemgetter gives the value itself; of none there is no itemgetter.
        read = itemgetter(*places) if len(places) > 1 else lambda values: [values[k] for k in places]
        self._steps.append(_Step(run, read, into))

    def _recurrent(self) -> dict[int, _RecurrentStep]:
        """The nodes that fastlstm takes, by their number."""
        graph, found = self._graph, {}
        candidates = [k for k, node in enumerate(graph.nodes) if _node.is_recurrent(node)]
        weights = {
            name
            for k in candidates
            for name in [*graph.nodes[k].input[1:4], *graph.nodes[k].input[7:8]]
            if name in graph.constants
        }
        constants = graph.folded(weights, self._engine) if weights else {}
        for k in candidates:
            try:
                self._check_types(graph.nodes[k])
                found[k] = _RecurrentStep(graph.nodes[k], graph.opset, constants)
            except (TypeError, ValueError) as error:
                self._reasons[k] = str(error)
        return found

    def _reported(self, recurrent: Mapping[int, Any]) -> Iterable[Placement]:
        for k, node in enumerate(self._graph.nodes):
            if k in recurrent:
                engine, reason = "fastlstm", "recurrent"
            elif k in self._small:
                engine, reason = "fastlstm", "needs no engine"
            else:
                engine, reason = self._engine, self._reasons.get(k, "not recurrent")
            yield Placement(name_of(node), node.op_type, engine, reason)
            yield from self._inner(node)

    def _check_types(self, node: Proto) -> None:
        """A segment needs the types of what comes in."""
        if unknown := [n for n in [node.input[0], *node.output] if n and n not in self._graph.types]:
            raise ValueError(f"the types of {', '.join(unknown)} are unknown")

    def _inner(self, node: Proto) -> Iterable[Placement]:
        """The recurrent nodes in a node's sub-graphs, which stay with the engine."""
        for graph in subgraphs(node):
            for inner in graph.node:
                if _node.is_recurrent(inner):
                    reason = f"inside {node.op_type} {name_of(node)!r}"
                    yield Placement(name_of(inner), inner.op_type, self._engine, reason)
                yield from self._inner(inner)

    def _levels(self, recurrent: Mapping[int, Any]) -> Levels:
        """Of each level the other nodes and the recurrent ones, by number, in order."""
        available: dict[str, int] = {}
        levels: Levels = {}
        for k, node in enumerate(self._graph.nodes):
            level = max((available.get(name, 0) for name in reads_of(node)), default=0)
            levels.setdefault(level, ([], []))[k in recurrent].append(k)
            available |= dict.fromkeys(node.output, level + (k in recurrent))
        return levels

    def _readers(self, levels: Levels, recurrent: Mapping[int, _RecurrentStep]) -> dict[str, set[int]]:
        """By name the levels whose segments read it, and OUTSIDE where others do."""
        readers: dict[str, set[int]] = {name: {OUTSIDE} for name in self._graph.outputs}
        for level, (others, own) in levels.items():
            for k in others:
                for name in reads_of(self._graph.nodes[k]):
                    readers.setdefault(name, set()).add(level)
            for k in own:
                for name in recurrent[k].reads:
                    readers.setdefault(name, set()).add(OUTSIDE)
        return readers

    def _segment(self, level: int, numbers: Sequence[int], readers: Mapping[str, set[int]]) -> None:
        """Add the other nodes of a level as one step; none if nobody needs what they make."""
        graph = self._graph
        nodes = [graph.nodes[k] for k in numbers]
        made = {name for node in nodes for name in node.output if name}
        inside = graph.tensors.keys() | graph.sparse.keys()
        reads = dict.fromkeys(name for node in nodes for name in sorted(reads_of(node)))
        inputs = [n for n in reads if n not in made and (n not in inside or n in graph.defaults)]
        outputs = sorted(name for name in made if readers.get(name, set()) - {level})
        if not outputs:
            return
        run = _small.runner(graph, nodes, inputs, outputs)
        if run is None:
            run = _engine.compiled(self._engine, graph.segment(nodes, inputs, outputs), self._threads)
        else:
            self._small |= set(numbers)
            self._copied |= graph.outputs.keys() & set(outputs)
        self._add(run, inputs, outputs)

    def run(self, given: Named) -> Named:
        """The outputs of inputs that were checked, both by name."""
        values = self.begun()
        for name, value in given.items():
            values[self.places[name]] = value
        self.follow(values)
        return {name: self.output(name, values) for name in self.outputs}

    def begun(self) -> list[Any]:
        """Values for a call: constants where they are read, None elsewhere."""
        return self._initial.copy()

    def follow(self, values: list[Any]) -> None:
        """Compute all that depends on the inputs, which stand at their places."""
        for run, read, writes in self._steps:
            for k, value in zip(
                writes, run(read(values)), strict=False
            ):  # a node may leave out its last outputs
                values[k] = value

    def output(self, name: str, values: list[Any]) -> Any:
        """An output of one's own."""
        value = values[self.outputs[name]]
        return np.array(value) if name in self._copied else value
