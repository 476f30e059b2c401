"""What an adapter is: it turns a Problem into Calls, functions that do its work once, and nothing else.

Every engine gets the same weights, x, initial state and number of threads. Where an engine has several
sensible ways of running, its adapter offers all, and the fastest on the row counts (the JSON has them all).
What an engine cannot do it says by raising Cannot, and the reason stands where its time would.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn

from ..grid import Array, Problem


class Cannot(Exception):
    """What an engine, or this adapter of it, does not do: a few words, as in "no GatedRNN"."""


def _nothing() -> None:
    pass


class Call(NamedTuple):
    run: Callable[[], Any]  # the work that is timed
    read: Callable[[Any], tuple[Array, ...]]  # what run returned -> what Problem.expected holds
    variant: str
    enter: Callable[[], object] = _nothing  # once before each batch of timed runs


class Column(NamedTuple):
    """One column of a row; `calls` may raise Cannot."""

    name: str
    problem: Problem
    calls: Callable[[], list[Call]]


def nested(state: tuple[Any, ...]) -> Any:
    """(h,) -> h, (h, c) as it is: how layers take states"""
    return state if len(state) > 1 else state[0]


def refuse(reason: str) -> NoReturn:
    raise Cannot(reason)


def refuse_options(p: Problem, *known: str) -> None:
    """For adapters that build a layer of their own: what they do not know must not be left out silently."""
    for name, value in p.row.options.items():
        if name not in known:
            raise Cannot(f"{name}={value} is not built here")


class Peer:
    """What an engine has if it does not say otherwise."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()  # modules, the first of which is the engine itself
    distributions: ClassVar[tuple[str, ...]] = ()  # what a user installs to run a model, by pip's names

    def __init__(self, threads: int) -> None:
        raise NotImplementedError

    def columns(self, p: Problem) -> list[Column]:
        """All that this engine has to show on a row."""
        if p.row.kind == "precision":
            return self.reduced(p)
        if p.row.kind == "pool":
            return self.pooled(p)
        return [Column(self.name, p, partial(self.calls, p)), *self.beside(p)]

    def calls(self, p: Problem) -> list[Call]:
        raise NotImplementedError

    def beside(self, p: Problem) -> list[Column]:
        return []

    def reduced(self, p: Problem) -> list[Column]:
        """In bfloat16 and int8."""
        return [Column(self.name, p, partial(refuse, "measured in float32 only"))]

    def pooled(self, p: Problem) -> list[Column]:
        """One step of many sessions whose states are kept from call to call."""
        return [Column(self.name, p, partial(refuse, "measured on torch and onnxruntime only"))]

    def close(self) -> None:
        """Leave the process as it was."""

    def cold(self, p: Problem, folder: Path) -> str:
        """Write a model file into the folder; returns Python that loads it and leaves a step's output in `y`.

        It runs there, alone in a fresh process, with `numpy` imported and the input `x` [1, 1, I]; the state
        is zero. What it imports is what a user would.
        """
        raise Cannot("reads no model files")
