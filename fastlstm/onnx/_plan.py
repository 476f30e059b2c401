"""Whole graphs: recurrent nodes on fastlstm, all others on another engine, in as few pieces as possible.

A node's level is the number of recurrent nodes before it on the longest way from the inputs. The other nodes
of one level are one segment, which the engine gets as a model of its own; then come the recurrent nodes of
that level, then the segment of the next. The plan is made once; a call only follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from . import _engine, _node
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
    """Part of the plan: what it reads and writes, as places in the list of values."""

    run: Callable[[Sequence[Any]], Sequence[Any]]
    reads: tuple[int, ...]
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
    """The steps of a graph in order. `run` takes and gives values by name."""

    def __init__(self, graph: Graph, engine: str, num_threads: int) -> None:
        self.report: list[Placement] = []
        self._graph, self._engine, self._threads = graph, engine, num_threads
        self._places: dict[str, int] = {"": ABSENT}
        self._initial: list[Any] = [None, None]
        recurrent = self._recurrent()
        levels = self._levels(recurrent)
        steps: list[_Step] = []
        readers = self._readers(levels, recurrent)
        for level, (others, own) in sorted(levels.items()):
            steps += self._segment(level, others, readers)
            steps += [self._step(recurrent[k], recurrent[k].reads, recurrent[k].writes) for k in own]
        self._steps = steps
        for name in graph.inputs:  # one that nobody reads may be given
            self._place(name)
        self._outputs = {name: self._place(name) for name in graph.outputs}
        handed = (graph.inputs.keys() | graph.tensors.keys()) & graph.outputs.keys()
        self._copied = handed  # outputs that are the caller's own arrays, or the model's
        for name in graph.outputs.keys() & graph.tensors.keys():
            self._initial[self._place(name)] = graph.array(name)

    def _place(self, name: str) -> int:
        """Of a name in the list of values."""
        if name not in self._places:
            self._places[name] = len(self._initial)
            self._initial.append(self._graph.array(name) if name in self._graph.defaults else None)
        return self._places[name]

    def _step(self, run: Any, reads: Sequence[str], writes: Sequence[str]) -> _Step:
        for name in reads:
            if name in self._graph.tensors:
                self._initial[self._place(name)] = self._graph.array(name)
        into = tuple(self._place(name) if name else UNUSED for name in writes)
        return _Step(run, tuple(map(self._place, reads)), into)

    def _recurrent(self) -> dict[int, _RecurrentStep]:
        """The nodes that fastlstm takes, by their number; all others are reported with a reason."""
        graph, found = self._graph, {}
        candidates = [k for k, node in enumerate(graph.nodes) if _node.is_recurrent(node)]
        weights = {
            name
            for k in candidates
            for name in [*graph.nodes[k].input[1:4], *graph.nodes[k].input[7:8]]
            if name in graph.constants
        }
        constants = graph.folded(weights, self._engine) if weights else {}
        for k, node in enumerate(graph.nodes):
            reason = "not recurrent"
            if k in candidates:
                try:
                    self._check_types(node)
                    found[k] = _RecurrentStep(node, graph.opset, constants)
                    reason = "recurrent"
                except (TypeError, ValueError) as error:
                    reason = str(error)
            engine = "fastlstm" if k in found else self._engine
            self.report.append(Placement(name_of(node), node.op_type, engine, reason))
            self.report += self._inner(node)
        return found

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

    def _segment(self, level: int, numbers: Sequence[int], readers: Mapping[str, set[int]]) -> list[_Step]:
        """The other nodes of a level as one step; none if nobody needs what they make."""
        graph = self._graph
        nodes = [graph.nodes[k] for k in numbers]
        made = {name for node in nodes for name in node.output if name}
        inside = graph.tensors.keys() | graph.sparse.keys()
        reads = dict.fromkeys(name for node in nodes for name in sorted(reads_of(node)))
        inputs = [n for n in reads if n not in made and (n not in inside or n in graph.defaults)]
        outputs = sorted(name for name in made if readers.get(name, set()) - {level})
        if not outputs:
            return []
        run = _engine.compiled(self._engine, graph.segment(nodes, inputs, outputs), self._threads)
        return [self._step(run, inputs, outputs)]

    def run(self, given: Named) -> Named:
        """The outputs of inputs that were checked, both by name."""
        values, places = self._initial.copy(), self._places
        for name, value in given.items():
            values[places[name]] = value
        for step in self._steps:
            results = step.run([values[k] for k in step.reads])
            for k, value in zip(step.writes, results, strict=False):  # a node may leave out its last outputs
                values[k] = value
        found = {name: values[k] for name, k in self._outputs.items()}
        for name in self._copied:
            found[name] = np.array(found[name])
        return found
