"""StreamPool: thousands of sessions of one model, any of which take a step together."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from . import _check
from ._core import PoolCore, close_in_all, open_in_all, reset_in_all, set_state_in_all
from .layers import Array, _Layer
from .modules import Sequential, _noted, _step_arrays, _step_parts, _step_through

__all__ = ["StreamPool"]


class _Core(PoolCore):
    """The sessions' states in one recurrent layer, with the checks of what cannot be taken as it is."""

    __slots__ = ()

    def _ids(self, ids: Any) -> Array:
        return _check.ids("ids", ids)

    def _converted(self, x: Any, n: int) -> Array:
        return _check.shaped("x", x, (n, self._core.input_size), self._core.dtype)


class StreamPool:
    """Many independent sessions of one model, each with a state of its own, fed at their own pace.

        pool = fastlstm.StreamPool(lstm, capacity=1000)
        a, b = pool.open(), pool.open()
        y = pool.step([b, a], x)  # x [2, I] to y [2, P]: one step of b and one of a, as one batch
        pool.close(a)

    model: a recurrent layer, or a Sequential with one. The pool takes its new parameters at the next step.
    capacity: sessions that there is room for, 1 to 2**24. Where more are opened it doubles; ids and states
        stay. If memory fails, MemoryError is raised and nothing is lost.

    A session has the same bits as alone, whatever it is stepped together with. Its id is an int that no
    other session of the pool ever gets. `ids` are a list of ints or an array [n] of integers; an id that is
    unknown, closed or there twice is refused with a ValueError before anything changes. n = 0 is defined:
    nothing happens. States have the form that the model's `stream` takes for one sequence: h [L, 1, H], or
    (h [L, 1, P], c [L, 1, H]) of an LSTM; of a Sequential a tuple with one entry per recurrent layer.

    Any number of threads may call one pool: calls are run one after the other, in no certain order, and none
    is refused; long ones release the GIL, and pools are independent of each other. A fork waits for the call
    that runs. A pool cannot be pickled, as its model can: keep the sessions' `state`.

    `len(pool)` is the number of sessions that are open, `id in pool` whether that one is. Raises TypeError or
    ValueError naming the argument; ValueError if a layer is reverse or bidirectional: those need a sequence's
    end first.
    """

    __slots__ = ("_model", "_options", "_cores", "_layers", "_parts", "_rows", "_lock", "__weakref__")

    def __init__(self, model: Any, capacity: int) -> None:
        options = _check.pool_model("model", model, _Layer, Sequential)
        capacity = _check.integer("capacity", capacity, 1, 2**24)
        self._model, self._options = model, options
        self._layers = [(i, self._modules[i]) for i in options.recurrent]
        for i, layer in self._layers:
            _noted_in(model, i, layer, _check.streams, "model", layer._options)
        self._cores = [_Core(layer._core, capacity) for _, layer in self._layers]
        self._make_parts()
        self._lock = threading.RLock()  # a finalizer may close a session while this thread is in a call
        with _fork:
            _pools.add(self)

    @property
    def _modules(self) -> tuple[Any, ...]:
        return self._model._modules if isinstance(self._model, Sequential) else (self._model,)

    def _make_parts(self) -> None:
        """What a step runs, with room for all sessions; nothing where the one layer is all of it."""
        rows, alone = self.capacity, not isinstance(self._model, Sequential)
        self._parts = [] if alone else _step_parts(self._modules, self._options, self._cores, rows)
        self._rows = rows

    @property
    def capacity(self) -> int:
        """Sessions that there is room for at present."""
        return self._cores[0].capacity

    def __len__(self) -> int:
        return self._cores[0].count

    def __contains__(self, id: object) -> bool:
        if not isinstance(id, (int, np.integer)) or isinstance(id, bool) or not 0 <= id < 2**63:
            return False
        with self._lock:
            return self._cores[0].has(int(id))

    def __repr__(self) -> str:
        return f"<StreamPool: {len(self)} of {self.capacity} sessions of {self._model!r}>"

    def open(self, state: Any = None) -> int:
        """Begin a session from `state` (zeros if None), which `reset` goes back to. Returns its id.

        Raises TypeError or ValueError if the state does not fit, MemoryError if the pool cannot grow.
        """
        states = self._states(state, 1)
        with self._lock:
            for core in self._cores:
                core.reserve(1)
            if self._rows < self.capacity:
                self._make_parts()
            return open_in_all(self._cores, states)

    def step(self, ids: Any, x: npt.ArrayLike, out: Array | None = None) -> Array:
        """One step of the sessions `ids` [n], as one batch: x [n, I], or tokens [n] if the model's first
        module is an Embedding, to the output [n, P], into `out` where given.

        With `out`, and ids in an int64 array, a recurrent layer's step allocates nothing.

        Raises TypeError or ValueError naming the argument if a dtype or shape is wrong, if ids are, if `out`
        is not a writable C-contiguous array of the model's dtype or overlaps `x`.
        """
        with self._lock:
            if not self._parts:
                return self._cores[0].step(ids, x, out)
            numbers = self._cores[0].checked(ids)
            y, result = _step_arrays(self._options, len(numbers), x, out)
            return _step_through(
                self._parts, y, result, lambda core, rows, into: core.step(numbers, rows, into)
            )

    def run(self, ids: Any, x: npt.ArrayLike, lengths: Any = None) -> Array:
        """Several steps of the sessions `ids` [n]: what a call of the model gives for x from their states,
        which go on from there.

        x: [T, n, I] ([n, T, I] if the model is batch_first), or tokens [T, n] ([n, T]).
        lengths: None, or [n] integers in 0..T: a session takes so many steps. x is not read beyond them, and
            the output there is zero.

        Returns the output [T, n, P] ([n, T, P]). Raises TypeError or ValueError naming the argument; whatever
        is raised, no state has changed.
        """
        with self._lock:
            numbers = self._cores[0].checked(ids)
            x = _check.session_input("x", x, self._options, len(numbers))
            now = self._form([core.get_state(numbers) for core in self._cores])
            y: Array
            y, after = self._model(x, now, lengths=lengths)
            set_state_in_all(self._cores, numbers, self._states(after, len(numbers)))
            return y

    def state(self, id: int) -> Any:
        """The state of a session, as copies."""
        with self._lock:
            numbers = self._number(id)
            return self._form([core.get_state(numbers) for core in self._cores])

    def restore(self, id: int, state: Any) -> None:
        """Give a session another state, such as one that `state` returned; None: zeros. What `reset` goes
        back to stays.

        All changes or, if anything is wrong, nothing. Raises TypeError or ValueError.
        """
        states = self._states(state, 1)
        with self._lock:
            set_state_in_all(self._cores, self._number(id), states)

    def reset(self, id: int) -> None:
        """Take a session back to the state that it was opened with."""
        with self._lock:
            reset_in_all(self._cores, int(self._number(id)[0]))

    def close(self, id: int) -> None:
        """End a session. Its id is never used again, its place is."""
        with self._lock:
            close_in_all(self._cores, int(self._number(id)[0]))

    def _number(self, id: Any) -> Array:
        return np.array([_check.session("id", id, self._cores[0].has)], np.int64)

    def _states(self, state: Any, n: int) -> list[tuple[Array | None, Array | None]]:
        """For each recurrent layer h [L, n, P] and c [L, n, H], None for zeros or where there is no c."""
        alone = not isinstance(self._model, Sequential)
        values = (state,) if alone else _check.state_tuple("state", state, len(self._layers))
        found: list[tuple[Array | None, Array | None]] = []
        for (i, layer), v in zip(self._layers, values, strict=True):
            own: list[Any] = [] if v is None else _noted_in(self._model, i, layer, layer._states, v, n, True)
            h, c, *_ = (*own, None, None)
            found.append((h, c))
        return found

    def _form(self, states: list[tuple[Array, ...]]) -> Any:
        """The layers' states as the model has them."""
        own = [s if len(s) > 1 else s[0] for s in states]
        return tuple(own) if isinstance(self._model, Sequential) else own[0]

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a StreamPool cannot be pickled: keep its model and each session's state, for pool.open(state)"
        )


def _noted_in(model: Any, i: int, layer: Any, call: Any, *arguments: Any) -> Any:
    """What a layer refuses, with a note which one it is of a Sequential."""
    return _noted(i, layer, call, *arguments) if isinstance(model, Sequential) else call(*arguments)


# --- fork ---------------------------------------------------------------------------------------------------

# A child gets the pools between two calls, never in the midst of one of a thread that it does not have.
_pools: weakref.WeakSet[StreamPool] = weakref.WeakSet()
_fork = threading.RLock()  # no pool is made meanwhile
_held: list[StreamPool] = []


def _before_fork() -> None:
    _fork.acquire()
    _held.extend(_pools)
    for pool in _held:
        pool._lock.acquire()


def _after_fork() -> None:
    while _held:
        _held.pop()._lock.release()
    _fork.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
