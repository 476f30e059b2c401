"""Tensors in, tensors out: the core with weights that follow PyTorch's, and a call that autograd can reverse.

Notation as in `fastlstm.layers`. A *call* runs some layers of a stack: all, unless dropout acts between.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import _check
from .._core import Core, Exporter, TapeCore, Watch

Array: TypeAlias = npt.NDArray[Any]
Tensors: TypeAlias = Mapping[str, Tensor]

DTYPES = {torch.float32: "float32", torch.float64: "float64"}
CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn", "RNN_RELU": "rnn"}  # by PyTorch's `mode`

# Either takes a fraction of the time of `Tensor.numpy`, and minds no requires_grad.
export = Exporter(getattr(Tensor, "__dlpack_c_exchange_api__", torch._C._to_dlpack))


def options_of(mode: str, dtype: str, **sizes: Any) -> _check.Options:
    """fastlstm's words for a module of PyTorch's."""
    extra = {"nonlinearity": mode[4:].lower()} if CELLS[mode] == "rnn" else {}
    return _check.options(CELLS[mode], dtype=dtype, **sizes, **extra)


def array_of(tensor: Tensor) -> Array:
    """The tensor's own memory if its last axis is contiguous, else a copy."""
    array = export.array(tensor.detach().resolve_neg())  # an alias: `tensor.data = ..` frees nothing
    return array if array.strides[-1] == array.itemsize else np.ascontiguousarray(array)


_F = TypeVar("_F", bound=Callable[..., Any])


def run_as_it_is(function: _F) -> _F:
    """A decorator that keeps torch.compile off a function and what it calls: below a graph break it looks
    into each frame, and would compile it anew for each shape where there is no graph.

    `torch.compiler.disable` does this by a wrapper, which costs every call, and loads the compiler at once.
    """
    dynamo: Any = getattr(torch._C._dynamo, "eval_frame", None)
    if hasattr(dynamo, "set_code_exec_strategy"):
        skip = dynamo._FrameAction.SKIP
        dynamo.set_code_exec_strategy(function.__code__, dynamo._FrameExecStrategy(skip, skip))
    return function


# --- weights ------------------------------------------------------------------------------------------------


class _Lease:
    """Held by every recorded call that may still go back: the core may not take other weights meanwhile."""

    __slots__ = ("__weakref__",)


class Packed:
    """A core that has packed the weights of certain tensors, and knows whether they have changed since.

    It keeps an alias of each tensor, so that no other one can come to lie at its address; an alias shares the
    version that PyTorch counts up at changes in place.
    """

    __slots__ = ("options", "core", "watch", "layers", "dtype", "_aliases", "_lease")

    def __init__(self, options: _check.Options, core: Core, weights: Tensors) -> None:
        self.options, self.core = options, core
        self.layers = [options.layer_shapes(index) for index in range(options.num_layers)]
        self.dtype = next(iter(weights.values())).dtype
        self._aliases = [weight.detach() for weight in weights.values()]
        arrays = {
            name: np.ascontiguousarray(array_of(weight))
            for name, weight in zip(options.shapes(), weights.values(), strict=True)
        }
        if any(array.dtype != core.dtype for array in arrays.values()):
            raise TypeError(f"weights must all be {core.dtype}")
        plain = all(w.is_contiguous() and not w.is_neg() for w in weights.values())
        self.watch = Watch(export, dict(weights), core.dtype.itemsize) if plain else None
        core.set_weights(arrays)
        self._lease: Callable[[], _Lease | None] = lambda: None

    def unchanged(self, weights: Tensors, thorough: bool) -> bool:
        """Whether these tensors still hold what was packed."""
        try:
            return self.watch is not None and self.watch.unchanged(dict(weights), thorough)
        except (AttributeError, BufferError, RuntimeError, TypeError):  # no tensors with memory of their own
            return False

    def lease(self) -> _Lease:
        held = self._lease()
        if held is None:
            held = _Lease()
            self._lease = weakref.ref(held)
        return held

    def storages_alive(self) -> bool:
        """Whether somebody else still holds the weights."""
        return all(_uses(alias) > 1 for alias in self._aliases)

    @property
    def sample(self) -> list[Tensor]:
        """One of the weights: all are of one kind."""
        return self._aliases[:1]

    @property
    def leased(self) -> bool:
        return self._lease() is not None


def _uses(tensor: Tensor) -> int:
    """How many tensors hold this memory."""
    storage = tensor.untyped_storage()  # which holds it too
    return int(torch._C._storage_Use_Count(storage._cdata)) - 1


class Lock:
    """A lock that is free in a forked process, where the thread that held it is not."""

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


_packing = Lock()


@run_as_it_is
def follow(packed: Packed | None, options: _check.Options, weights: Tensors, thorough: bool) -> Packed:
    """What is packed if it still holds, else these weights packed anew. `options.shapes` are theirs."""
    with _packing:
        same = packed is not None and packed.options == options
        if packed is not None and same and packed.unchanged(weights, thorough):
            return packed
        core = packed.core if packed is not None and same and not packed.leased else Core(**options.core())
        return Packed(options, core, weights)


def fits(options: _check.Options, weights: Tensors) -> bool:
    """Whether the weights have the shapes that they should."""
    shapes = list(options.shapes().values())
    return [tuple(w.shape) for w in weights.values()] == shapes


# --- a call -------------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """Layers first..last - 1 of the stack over x: [T, B, n], [B, T, n] with batch_first, or, with
    batch_sizes, the valid steps alone [N, n] as `PackedSequence` orders them.

    Its results are the output and the final states; of a cell, with x [B, n] and states [B, ..], these alone.
    """

    packed: Packed
    first: int
    last: int
    batch_first: bool = False
    batch_sizes: npt.NDArray[np.int64] | None = None
    cell: bool = False

    def valid(self) -> npt.NDArray[np.bool_]:
        """[T, B]: whether a sequence has that step."""
        assert self.batch_sizes is not None
        return np.arange(self.batch_sizes[0]) < self.batch_sizes[:, None]

    def steps(self, x: Array) -> tuple[Array, npt.NDArray[np.int64] | None]:
        """x as [T, B, n], and the lengths of its sequences. What lies beyond them is anything."""
        if self.batch_sizes is None:
            return x[None] if self.cell else x.swapaxes(0, 1) if self.batch_first else x, None
        valid = self.valid()
        padded = np.empty((*valid.shape, x.shape[-1]), x.dtype)
        padded[valid] = x
        return padded, valid.sum(axis=0, dtype=np.int64)

    def empty(self, steps: int, batch: int, width: int) -> Array:
        """[T, B, n] that is contiguous in the caller's order."""
        swapped = self.batch_first and self.batch_sizes is None
        array = np.empty((batch, steps, width) if swapped else (steps, batch, width), self.packed.core.dtype)
        return array.swapaxes(0, 1) if swapped else array

    def caller_order(self, y: Array) -> Array:
        if self.batch_sizes is not None:
            packed: Array = y[self.valid()]
            return packed
        return y[0] if self.cell else y.swapaxes(0, 1) if self.batch_first else y

    def stacked(self, states: Sequence[Array | None]) -> list[Array | None]:
        """States as [L*D, B, n]."""
        return [None if s is None else s[None] for s in states] if self.cell else list(states)

    def results(self, y: Array, states: Sequence[Array]) -> tuple[Tensor, ...]:
        """From the output [T, B, n] and stacked states."""
        arrays = [s[0] for s in states] if self.cell else [self.caller_order(y), *states]
        return tuple(map(torch.from_numpy, arrays))


class Recording:
    """A call that is remembered: `results`, `backward`."""

    __slots__ = ("results", "shapes", "_call", "_tapes", "_lease", "_shape")

    def __init__(self, call: Call, x: Array, states: Sequence[Array | None]) -> None:
        self._call, self._lease = call, call.packed.lease()
        core, rows = call.packed.core, self._rows
        x, lengths = call.steps(x)
        states = call.stacked(states)
        steps, batch, width = x.shape
        self._shape = (steps, batch, width)
        count = (call.last - call.first) * core.directions
        ends = [np.empty((count, batch, n), core.dtype) for n in call.packed.options.state_sizes]
        self._tapes: list[TapeCore] = []
        for index in range(call.first, call.last):
            y = call.empty(steps, batch, core.directions * core.output_size)
            h, c = rows(index, states)
            h_n, c_n = rows(index, ends)
            self._tapes.append(TapeCore(core, index, x, h, c, lengths, y, h_n, c_n, 0))
            x = y
        self.results = call.results(x, ends)
        self.shapes = [tuple(y.shape) for y in self.results]

    def _rows(self, index: int, states: Sequence[Array | None]) -> tuple[Array | None, Array | None]:
        """A layer's part of the states (h, c) of all; c is None for cells without."""
        directions = self._call.packed.core.directions
        first = (index - self._call.first) * directions
        parts = [None if s is None else s[first : first + directions] for s in states]
        return (parts[0], parts[1]) if len(parts) == 2 else (parts[0], None)

    def _split(self, d_results: Sequence[Tensor | None]) -> tuple[Array, list[Array | None]]:
        """The derivatives by the output [T, B, n], zeros for None, and by the final states."""
        call, core = self._call, self._call.packed.core
        given = [(tuple(d.shape), d.dtype) if d is not None else None for d in d_results]
        if any(
            g not in (None, (shape, call.packed.dtype)) for g, shape in zip(given, self.shapes, strict=True)
        ):
            raise ValueError(
                f"gradients must be {call.packed.dtype} of the shapes {self.shapes}, got {given}"
            )
        d_output, d_states = (None, d_results) if call.cell else (d_results[0], d_results[1:])
        if d_output is None:
            dy = np.zeros((*self._shape[:2], core.directions * core.output_size), core.dtype)
        else:
            dy, _ = call.steps(array_of(d_output))
        return dy, call.stacked([contiguous(d) for d in d_states])

    def backward(self, d_results: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None]:
        """The derivatives by x, by each initial state and by each weight; None where not wanted.

        d_results: by each of the results, None for zeros.
        """
        call, core = self._call, self._call.packed.core
        options = call.packed.options
        steps, batch, width = self._shape
        dy, d_states = self._split(d_results)
        sizes = options.state_sizes
        count = (call.last - call.first) * core.directions
        by_state: list[Array | None] = [
            np.empty((count, batch, n), core.dtype) if wanted[1 + i] else None for i, n in enumerate(sizes)
        ]
        shapes = {n: s for layer in call.packed.layers[call.first : call.last] for n, s in layer.items()}
        by_weight = {
            name: np.empty(shape, core.dtype)
            for (name, shape), want in zip(shapes.items(), wanted[1 + len(sizes) :], strict=True)
            if want
        }
        dx = None
        for index in reversed(range(call.first, call.last)):
            inner = index > call.first
            columns = core.directions * core.output_size if inner else width
            dx = call.empty(steps, batch, columns) if inner or wanted[0] else None
            parameters = [
                {kind: by_weight.get(f"{kind}_l{index}{suffix}") for kind in _KINDS}
                for suffix in options.suffixes
            ]
            self._tapes[index - call.first].backward(
                dy, *self._rows(index, d_states), dx, *self._rows(index, by_state), parameters
            )
            if dx is not None:
                dy = dx
        by_x = None if dx is None else call.caller_order(dx)
        if call.cell:
            by_state = [None if s is None else s[0] for s in by_state]
        found = [by_x, *by_state, *(by_weight.get(name) for name in shapes)]
        return [None if g is None else torch.from_numpy(g) for g in found]


_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_peephole")


def contiguous(tensor: Tensor | None) -> Array | None:
    return None if tensor is None else np.ascontiguousarray(array_of(tensor))


def forward(call: Call, x: Tensor, states: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """The output and the final states, without a way back."""
    core, options = call.packed.core, call.packed.options
    if (call.first, call.last) != (0, options.num_layers):
        return Recording(call, array_of(x), [contiguous(s) for s in states]).results
    steps, lengths = call.steps(array_of(x))
    y = call.empty(steps.shape[0], steps.shape[1], core.directions * core.output_size)
    rows = options.num_layers * core.directions
    h_n, *c_n = [np.empty((rows, steps.shape[1], n), core.dtype) for n in options.state_sizes]
    h, *c = call.stacked([contiguous(s) for s in states])
    core.forward(steps, h, c[0] if c else None, lengths, y, h_n, c_n[0] if c_n else None, False)
    return call.results(y, [h_n, *c_n])


class Recorded(torch.autograd.Function):  # type: ignore[misc]
    """A call with its derivative: backpropagation through time by the core. A derivative of that again is
    left to PyTorch's own operations."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, *rest: Tensor | None) -> Any:
        """rest: the initial states, then the weights of these layers."""
        count = len(call.packed.options.state_sizes)
        ctx.call = call
        ctx.x = x.detach()
        ctx.at = ctx.x.data_ptr()
        recording = Recording(call, array_of(x), [contiguous(s) for s in rest[:count]])
        ctx.save_for_backward(x, *rest)
        ctx.set_materialize_grads(False)
        results, recording.results = recording.results, ()  # or they and their graph would hold each other
        # Hooks on what is saved, of activation checkpointing say, are there to save memory.
        hooked = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
        ctx.recording = None if hooked else recording
        return results

    @staticmethod
    def backward(ctx: Any, *d_results: Tensor | None) -> Any:
        saved = ctx.saved_tensors  # which raises if one has changed in place since, or the graph was freed
        wanted = ctx.needs_input_grad[1:]
        if _gradients_are_batched() or torch.is_grad_enabled():  # is_grads_batched=True, create_graph=True
            return None, *differentiable_gradients(ctx.call, saved, d_results, wanted)
        recording = ctx.recording or record_again(ctx.call, saved)
        if ctx.x.data_ptr() != ctx.at:
            raise RuntimeError("fastlstm.torch: the input's storage was resized between forward and backward")
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            ctx.recording = None
        return None, *recording.backward(d_results, wanted)


def _gradients_are_batched() -> bool:
    """Whether it runs in the vmap that is_grads_batched=True has to itself."""
    depth = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return bool(depth)


def record_again(call: Call, saved: Sequence[Tensor | None]) -> Recording:
    """The call from the tensors that were saved, or that hooks put in their place."""
    x, *rest = [t if t is None else t.to("cpu", call.packed.dtype) for t in saved]
    assert x is not None
    options = call.packed.options
    count = len(options.state_sizes)
    if (call.first, call.last) != (0, options.num_layers):
        options = options._replace(num_layers=call.last - call.first, input_size=x.shape[-1])
    weights: Any = dict(zip(options.shapes(), rest[count:], strict=True))
    packed = Packed(options, Core(**options.core()), weights)
    whole = call._replace(packed=packed, first=0, last=options.num_layers)
    return Recording(whole, array_of(x), [contiguous(s) for s in rest[:count]])


# --- derivatives of derivatives -----------------------------------------------------------------------------


def differentiable_gradients(
    call: Call, saved: Sequence[Tensor | None], d_outputs: Sequence[Tensor | None], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients from PyTorch's own operations, which can be differentiated again, and batched."""
    again = torch.is_grad_enabled()
    with torch.enable_grad(), _without_mkldnn():
        outputs = _by_torch(call, saved)
        pairs = [(y, d) for y, d in zip(outputs, d_outputs, strict=True) if d is not None]
        inputs = [s for s, want in zip(saved, wanted, strict=True) if want]
        ys, ds = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(ys, inputs, ds, create_graph=again, allow_unused=True))
    return [next(found) if want else None for want in wanted]


@contextlib.contextmanager
def _without_mkldnn() -> Iterator[None]:
    """Its recurrent kernels cannot be differentiated twice. (torch.backends.mkldnn.flags warns of TF32.)"""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def _by_torch(call: Call, saved: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    options = call.packed.options
    count = len(options.state_sizes)
    x, given, weights = saved[0], saved[1 : 1 + count], saved[1 + count :]
    assert x is not None
    if call.cell:
        x, given = x[None], [None if s is None else s[None] for s in given]
    rows = (call.last - call.first) * len(options.suffixes)
    batch = x.shape[0 if call.batch_first else 1] if call.batch_sizes is None else int(call.batch_sizes[0])
    states = [
        x.new_zeros(rows, batch, n) if s is None else s
        for s, n in zip(given, options.state_sizes, strict=True)
    ]
    name = f"rnn_{options.nonlinearity}" if options.cell == "rnn" else options.cell
    hx = states[0] if count == 1 else tuple(states)
    how = (options.bias, call.last - call.first, 0.0, False, options.bidirectional)
    function = getattr(torch, name)
    result: tuple[Tensor, ...]
    if call.batch_sizes is None:
        result = function(x, hx, weights, *how, call.batch_first)
    else:
        result = function(x, torch.from_numpy(call.batch_sizes), hx, weights, *how)
    return tuple(end[0] for end in result[1:]) if call.cell else result
