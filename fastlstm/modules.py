"""Sequential: a model of recurrent layers and what surrounds them (leaves.py), its streams and tapes; `load`.

It keeps the promises of the layers: a row or a sequence has the same bits alone and in any batch, in one
call or step by step, on any number of threads.
"""

from __future__ import annotations

import contextlib
import copy
import operator
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from . import _check, _quantize, layers, leaves
from .layers import GRU, LSTM, RNN, Array, GatedRNN, Stream, _Layer
from .leaves import (
    Dropout,
    Embedding,
    LastStep,
    Linear,
    ModuleTape,
    _Leaf,
    _Module,
)
from .tape import Gradients

__all__ = ["Sequential", "SequentialStream", "load"]

Part: TypeAlias = "_Layer | _Leaf"


# --- Sequential ---------------------------------------------------------------------------------------------


class Sequential(_Module):
    """Modules one after the other: a model, such as Sequential(Embedding, LSTM, Dropout, Linear).

    modules: recurrent layers (LSTM, GRU, RNN, GatedRNN), Linear, Dropout, Activation and LayerNorm; Embedding
        as the first only; LastStep after a recurrent layer, none following. Each must read as many features
        as the one before gives, all have one dtype, all recurrent layers one batch_first, and no module may
        come twice. They stay the caller's: `model[i]` is what was given.

    Parameters are named as torch.nn.Sequential names them: `0.weight`, `1.weight_ih_l0`. The state of the
    whole is a tuple with one entry per recurrent layer, in order, each as that layer has it: h, or (h, c) of
    an LSTM. Raises TypeError or ValueError naming the module that does not fit.
    """

    __slots__ = ("_options", "_modules", "__weakref__")

    _modules: tuple[Part, ...]
    _options: _check.SequentialOptions

    def __init__(self, *modules: Part) -> None:
        self._options = _check.modules("modules", modules, (_Layer, _Leaf))
        self._modules = modules

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, index: int) -> Any:
        return self._modules[operator.index(index)]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules)

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64: of the parameters, of all arithmetic, of output and state."""
        return np.dtype(self._options.dtype)

    @property
    def _parameters(self) -> dict[str, Array]:
        return {f"{i}.{n}": v for i, part in enumerate(self._modules) for n, v in part._parameters.items()}

    def _held_by(self, parameters: dict[str, Array]) -> dict[str, Array]:
        arrays = dict(parameters)
        for i, o in enumerate(self._options.modules):
            if isinstance(o, _check.Options):
                own = {n: arrays.pop(f"{i}.{n}") for n in o.shapes() if f"{i}.{n}" in arrays}
                arrays |= {f"{i}.{n}": v for n, v in _quantize.held(own, o, f"{i}.").items()}
        return arrays

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters under torch.nn.Sequential's names; rounded ones of quantized layers."""
        return {f"{i}.{n}": v for i, part in enumerate(self._modules) for n, v in part.state_dict().items()}

    def quantize(self, dtype: str, *, activation_bits: int | None = None) -> Self:
        """A new model whose recurrent layers have smaller weights, as `LSTM.quantize` makes them; copies of
        the others, which stay float32. Raises ValueError as that does, and if no module is recurrent."""
        if not self._options.recurrent:
            raise ValueError("quantize: no module of the Sequential is a recurrent layer")
        with self._locked():  # all of one moment
            held = [part._parameters for part in self._modules]
        parts: list[Part] = []
        for i, (part, own) in enumerate(zip(self._modules, held, strict=True)):
            if isinstance(part, _Layer):
                parts.append(_noted(i, part, part._quantized, own, dtype, activation_bits))
            else:
                parts.append(copy.copy(part))
                parts[-1]._set_parameters(own)
        model = type(self).__new__(type(self))
        Sequential.__init__(model, *parts)
        getattr(model, "__dict__", {}).update(getattr(self, "__dict__", {}))
        return model

    def _locked(self) -> contextlib.AbstractContextManager[Any]:
        with contextlib.ExitStack() as stack:
            for part in sorted(self._modules, key=id):  # in one order, whatever other models they are in
                stack.enter_context(part._lock)
            return stack.pop_all()

    def _set_parameters(self, parameters: dict[str, Array]) -> None:
        before = [part._parameters for part in self._modules]
        try:
            for part, own in zip(self._modules, _by_module(self._options, parameters), strict=True):
                part._set_parameters(own)
        except BaseException:  # no memory to pack them, say
            for part, own in zip(self._modules, before, strict=True):
                part._set_parameters(own)
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and copy: the modules."""
        return _restore_sequential, (type(self), *self._modules), getattr(self, "__dict__", None) or None

    def __call__(
        self, x: npt.ArrayLike, state: Any = None, *, lengths: Any = None
    ) -> tuple[Array, tuple[Any, ...]]:
        """Run whole sequences: `output, state = model(x, state)`.

        x: [T, B, I] ([B, T, I] if the recurrent layers are batch_first) or unbatched [T, I]; tokens [T, B]
            ([B, T]) or [T] if the first module is an Embedding. Without recurrent layers, any shape that the
            first module takes.
        state: a tuple with one entry per recurrent layer, None meaning zeros; None: all zeros.
        lengths: None, or [B] integers in 0..T: x is not read beyond them, the output there is zero, and the
            final state of a sequence is that of its last valid step.

        Returns the output of the last module and the final state, fresh arrays. Dropout does nothing in a
        call. While another thread loads parameters, some modules may still run with the old ones. Raises
        TypeError or ValueError naming the argument, with a note of the module where it is one's own.
        """
        return self._run(x, state, lengths, len(self._modules))

    def _run(self, x: Any, state: Any, lengths: Any, stop: int) -> tuple[Array, tuple[Any, ...]]:
        """The first `stop` modules."""
        y, lengths, valid = self._input(x, lengths)
        states = iter(_check.state_tuple("state", state, len(self._options.recurrent)))
        final = []
        for i, part in enumerate(self._modules[:stop]):
            if isinstance(part, _Layer):
                layer: Any = part
                y, now = _noted(i, part, layer, y, next(states), lengths=lengths)
                final.append(now)
            elif isinstance(part, LastStep):
                y, valid = self._last(final[-1], i), None
            elif valid is None or isinstance(part, Dropout):
                y = part._apply(y)
            else:
                y = _spread(part._apply(y[valid]), valid)
        return y, tuple(final)

    def _last(self, state: Any, i: int) -> Array:
        """LastStep's output [B, D*P] ([D*P]): of the state of the recurrent layer before module i."""
        layer: Any = self._options.modules[i - 1]
        h: Array = state if len(layer.state_sizes) == 1 else state[0]
        return np.concatenate(h[-len(layer.suffixes) :], axis=-1)

    def _input(self, x: Any, lengths: Any) -> tuple[Array, Any, Array | None]:
        """x and lengths, checked, and which steps are valid: None if all are, else [T, B] ([B, T])."""
        options, valid = self._options, None
        array = _check.sequential_input("x", x, options, lengths is not None)
        if lengths is not None:
            first, second = array.shape[:2]
            steps, batch = (second, first) if options.batch_first else (first, second)
            lengths = _check.lengths("lengths", lengths, steps, batch)
            if (lengths < steps).any():
                valid = np.arange(steps)[:, None] < lengths
                valid = valid.T if options.batch_first else valid
                array = _zeroed(array, valid)
        if options.embeds:
            array = _check.tokens("x", array, _check.token_count(options))
        return array, lengths, valid

    def record(
        self,
        x: npt.ArrayLike,
        state: Any = None,
        *,
        lengths: Any = None,
        dropout_seed: int | None = None,
        checkpoint: int | None = None,
    ) -> SequentialTape:
        """The call, remembered for `SequentialTape.backward`.

        With `dropout_seed`, module i (counted from 0, whatever it is) draws from a stream of its own: Dropout
        and the recurrent layers get as theirs the seed `int(numpy.random.SeedSequence([dropout_seed, i])
        .generate_state(1, numpy.uint64)[0])`. Masks are drawn time first, whatever batch_first says.
        `checkpoint` goes to the recurrent layers. Raises as the call.
        """
        return SequentialTape(self, x, state, lengths, dropout_seed, checkpoint)

    def stream(self, batch_size: int = 1, state: Any = None) -> SequentialStream:
        """A `SequentialStream` of batch_size sequences that are fed step by step, from `state` (None: zeros).

        Raises TypeError or ValueError naming the argument; ValueError if a layer is reverse or bidirectional:
        those need a sequence's end first.
        """
        return SequentialStream(self, batch_size, state)

    def generate(
        self,
        prompt: Any,
        n: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Iterator[Any]:
        """Iterate over n tokens that continue the prompt, or each of many prompts.

        The model reads tokens (its first module is an Embedding) and gives a logit for each.

        prompt: a list of tokens, for tokens that are ints; or a list of such lists, of any lengths, or an
            array [B, T], for int64 arrays [B] with the next token of each prompt. None may be empty.
        temperature: divides the logits; 0 takes the largest (of equal ones the first) and draws nothing.
        top_k: draw from the k most likely tokens only. Of equally likely ones the smaller go first.
        top_p: after that, from the fewest most likely tokens that have this share of the probability, 0..1.
        seed: of the numbers drawn; None takes fresh ones. Prompt b draws from `numpy.random.Generator(
            numpy.random.Philox(numpy.random.SeedSequence([seed, b])))`, one number a token: what continues it
            depends on no other prompt.

        The prompt is read at once, then each token is one step of a stream. Raises TypeError or ValueError
        naming the argument; ValueError for a layer that is reverse or bidirectional, and if the logits are
        NaN or infinite.

        Fan, Lewis & Dauphin 2018, "Hierarchical neural story generation" (top_k); Holtzman et al. 2020, "The
        curious case of neural text degeneration" (top_p).
        """
        options = self._options
        prompts, many = _check.prompts("prompt", prompt, _check.token_model(options))
        n = _check.integer("n", n, 0)
        choose = _Choice(
            _check.temperature("temperature", temperature),
            None if top_k is None else _check.integer("top_k", top_k, 1),
            None if top_p is None else _check.portion("top_p", top_p),
            _check.seed("seed", seed),
            len(prompts),
        )
        stream = self.stream(len(prompts))
        lengths = [len(p) - 1 for p in prompts]  # the last token is the first step's
        tokens = np.zeros((max(lengths), len(prompts)), np.int64)
        for b, p in enumerate(prompts):
            tokens[: lengths[b], b] = p[:-1]
        stop = max(options.recurrent, default=-1) + 1
        if stop:
            stream.state = self._run(tokens.T if options.batch_first else tokens, None, lengths, stop)[1]
        return _tokens(stream, np.array([p[-1] for p in prompts]), n, choose, many)


class SequentialTape:
    """A call of a Sequential that is remembered; made by `record`. `output` and `state` are what the call
    returns."""

    __slots__ = ("output", "state", "_sequential", "_valid", "_tapes")

    def __init__(
        self, sequential: Sequential, x: Any, state: Any, lengths: Any, dropout_seed: Any, checkpoint: Any
    ) -> None:
        y, lengths, valid = sequential._input(x, lengths)
        seed = _check.seed("dropout_seed", dropout_seed)
        if checkpoint is not None:
            checkpoint = _check.integer("checkpoint", checkpoint, 1)
        options = sequential._options
        states = iter(_check.state_tuple("state", state, len(options.recurrent)))
        if not isinstance(sequential[0], _Layer):
            y = y.copy()  # it is the caller's, who may change it
        final, self._tapes, self._valid = [], list[Any](), valid
        for i, part in enumerate(sequential):
            own = None if seed is None else _module_seed(seed, i)
            if isinstance(part, _Layer):
                layer: Any = part
                tape = _noted(
                    i,
                    part,
                    layer.record,
                    y,
                    next(states),
                    lengths=lengths,
                    dropout_seed=own,
                    checkpoint=checkpoint,
                )
                final.append(tape.state)
                y = tape.output
            elif isinstance(part, LastStep):
                tape = _LastStepTape(y.shape, final[-1])
                y, valid = sequential._last(final[-1], i), None
            elif valid is None or isinstance(part, Dropout):
                tape = ModuleTape(part, y, own, options.batch_first)
                y = tape.output
            else:
                tape = ModuleTape(part, y[valid], own)
                y = _spread(tape.output, valid)
            self._tapes.append(tape)
        self.output: Array = y
        self.state: tuple[Any, ...] = tuple(final)
        self._sequential = sequential

    def backward(self, d_output: npt.ArrayLike, d_state: Any = None) -> Gradients:
        """The gradients of a loss from its derivatives by `output` and by `state` (in its form; None: 0).

        `input` is None if the first module is an Embedding, `state` has the form of the state, `parameters`
        the names of `state_dict`. Padded steps of d_output are never read. Can be called any number of times.
        Raises RuntimeError if a module has taken other parameters since; TypeError or ValueError naming the
        argument.
        """
        valid, parts = self._valid, self._sequential._modules
        dy: Any = _check.shaped("d_output", d_output, self.output.shape, self.output.dtype)
        if self._sequential._options.has_last_step:
            valid = None  # until it is passed, there is no axis of time
        d_states = list(_check.state_tuple("d_state", d_state, len(self.state)))
        states: list[Any] = []
        parameters: list[dict[str, Array]] = []
        for i, (part, tape) in reversed(list(enumerate(zip(parts, self._tapes, strict=True)))):
            if isinstance(part, _Layer):
                found = _noted(i, part, tape.backward, dy, d_states.pop())
                states.append(found.state)
                dy = found.input
            elif isinstance(tape, _LastStepTape):
                dy, d_states[-1] = tape.backward(dy, d_states[-1])
                valid = self._valid
                continue
            elif valid is None or isinstance(part, Dropout):
                found = tape.backward(dy)
                dy = found.input
            else:
                found = tape.backward(dy[valid])
                dy = None if found.input is None else _spread(found.input, valid)
            parameters.append({f"{i}.{name}": v for name, v in found.parameters.items()})
        names = {name: v for own in reversed(parameters) for name, v in own.items()}
        return Gradients(dy, tuple(reversed(states)), names)


class _LastStepTape:
    """What LastStep adds to the derivative by the state that it read."""

    def __init__(self, shape: tuple[int, ...], state: Any) -> None:
        self._shape, self._state = shape, state  # of the output that it left out, of the layer before

    def backward(self, dy: Array, d_state: Any) -> tuple[Array, Any]:
        """The derivatives by that layer's output, which are zeros, and by its final state, with d_state."""
        both = isinstance(self._state, tuple)
        now = self._state if both else (self._state,)
        shapes = [v.shape for v in now]
        if d_state is None:
            d_h, *rest = [np.zeros_like(v) for v in now]
        else:
            d_h, *rest = _check.states("d_state", d_state, shapes, dy.dtype)
            d_h = d_h.copy()
        width = shapes[0][-1]
        directions = dy.shape[-1] // width
        for k in range(directions):
            d_h[len(d_h) - directions + k] += dy[..., k * width : (k + 1) * width]
        return np.zeros(self._shape, dy.dtype), (d_h, *rest) if both else d_h


def _noted(i: int, part: _Layer, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a layer of a Sequential refuses, with a note which one it is."""
    try:
        return call(*arguments, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        error.add_note(f"in modules[{i}] of a Sequential, {part!r}")
        raise


def _spread(rows: Array, valid: Array) -> Array:
    """[N, n] as [T, B, n] with zeros where a step is not valid."""
    array = np.zeros((*valid.shape, rows.shape[-1]), rows.dtype)
    array[valid] = rows
    return array


def _zeroed(array: Array, valid: Array) -> Array:
    """[T, B, ..] with zeros where a step is not valid."""
    return np.where(valid.reshape(valid.shape + (1,) * (array.ndim - 2)), array, array.dtype.type(0))


def _module_seed(seed: int, i: int) -> int:
    """Of module i's own stream; independent, as the words of a SeedSequence are mixed."""
    return int(np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0])


def _by_module(
    options: _check.SequentialOptions, parameters: Mapping[str, Array]
) -> Iterator[dict[str, Array]]:
    """The parameters of a Sequential, of each module under its own names."""
    for i, o in enumerate(options.modules):
        yield {name: parameters[f"{i}.{name}"] for name in _check.held(o)}


# --- streams ------------------------------------------------------------------------------------------------


class _Alone:
    """What one thread at a time may do; another one is refused."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("stream: another call is using it")

    def __exit__(self, *error: object) -> None:
        self._lock.release()


def _step_parts(
    parts: Iterable[Part], options: _check.SequentialOptions, recurrent: Iterable[Any], rows: int
) -> list[tuple[Any, Any, Array]]:
    """What a step runs, module by module, without what changes nothing in one: the module, what holds the
    states of a recurrent one (else None), and an array [rows, n] that all but the last write to."""
    rest, dtype = iter(recurrent), np.dtype(options.dtype)
    widths = _check.widths_after(options)
    return [
        (part, next(rest) if isinstance(part, _Layer) else None, np.empty((rows, width), dtype))
        for part, width in zip(parts, widths, strict=True)
        if not isinstance(part, (Dropout, LastStep))
    ]


def _step_arrays(options: _check.SequentialOptions, rows: int, x: Any, out: Any) -> tuple[Any, Array]:
    """x of a step, checked, and the array for its output: `out`, checked, where given."""
    dtype, shape = np.dtype(options.dtype), (rows, options.widths[1])
    if options.embeds:
        x = _check.tokens("x", x, _check.token_count(options), (rows,))
    else:
        x = _check.shaped("x", x, (rows, options.widths[0]), dtype)
    return x, np.empty(shape, dtype) if out is None else _check.target("out", out, shape, dtype, x)


def _step_through(
    parts: list[tuple[Any, Any, Array]], y: Any, result: Array, step: Callable[[Any, Any, Array], Any]
) -> Array:
    """One step of rows y through `parts`, the recurrent ones by step(holder, y, into), to `result`."""
    for k, (part, holder, own) in enumerate(parts, 1):
        into = result if k == len(parts) else own[: len(result)]
        if holder is not None:
            step(holder, y, into)
        else:
            part._write(y, into)
        y = into
    return result


class SequentialStream:
    """Sequences fed to a Sequential step by step; made by `model.stream(batch_size, state)`.

    `y = stream.step(x, out=y)` runs one step and keeps the state. A stream takes a module's new parameters
    at its next step. It is for one thread at a time (a concurrent use raises RuntimeError); different streams
    are independent. It cannot be pickled, as its Sequential can: keep `state`. `copy.copy` and
    `copy.deepcopy` are `copy`.
    """

    __slots__ = ("_sequential", "_batch_size", "_parts", "_streams", "_alone", "__weakref__")

    def __init__(self, sequential: Sequential, batch_size: int, state: Any) -> None:
        self._sequential = sequential
        self._batch_size = _check.integer("batch_size", batch_size, 1, 2**31 - 1)
        states = iter(_check.state_tuple("state", state, len(sequential._options.recurrent)))
        streams = [
            _noted(i, part, part.stream, self._batch_size, next(states))
            for i, part in enumerate(sequential)
            if isinstance(part, _Layer)
        ]
        self._take(streams)

    def _take(self, streams: list[Stream]) -> None:
        """Make these streams of the recurrent layers this one's."""
        self._streams, self._alone = streams, _Alone()
        self._parts = _step_parts(self._sequential, self._sequential._options, streams, self._batch_size)

    @property
    def batch_size(self) -> int:
        """The number of sequences, B."""
        return self._batch_size

    def step(self, x: npt.ArrayLike, out: Array | None = None) -> Array:
        """One step: x [B, I], or tokens [B] if the first module is an Embedding, to the output [B, n], into
        `out` where given.

        Raises TypeError or ValueError naming the argument if a dtype or shape is wrong, if `out` is not a
        writable C-contiguous array of the model's dtype or overlaps `x`; RuntimeError if another thread is
        using this stream.
        """
        with self._alone:
            y, result = _step_arrays(self._sequential._options, self._batch_size, x, out)
            return _step_through(self._parts, y, result, lambda stream, y, into: stream.step(y, into))

    @property
    def state(self) -> tuple[Any, ...]:
        """The state as copies: a tuple with one entry per recurrent layer. Can be assigned, any array-likes.

        What is assigned is also what `reset` goes back to. All changes or, if anything is wrong, nothing.
        Raises TypeError or ValueError.
        """
        with self._alone:
            return tuple(stream.state for stream in self._streams)

    @state.setter
    def state(self, value: Any) -> None:
        with self._alone:
            values = _check.state_tuple("state", value, len(self._streams))
            now = [stream.get_state() for stream in self._streams]
            new = [
                _check.states(f"state[{i}]", v, [a.shape for a in old], old[0].dtype)
                for i, (v, old) in enumerate(zip(values, now, strict=True))
            ]
            for stream, arrays in zip(self._streams, new, strict=True):
                stream.set_state(*arrays)

    def reset(self, rows: Any = None) -> None:
        """Go back to the state given at creation or last assigned: all sequences, or those whose numbers
        `rows` holds.

        rows: an int or a list of ints in 0..B-1. Raises TypeError or ValueError.
        """
        checked = None if rows is None else _check.rows("rows", rows, self._batch_size)
        with self._alone:
            for stream in self._streams:
                stream.reset(checked)

    def copy(self) -> Self:
        """An independent stream on the same model in the same state."""
        twin = type(self).__new__(type(self))
        twin._sequential, twin._batch_size = self._sequential, self._batch_size
        with self._alone:
            twin._take([stream.copy() for stream in self._streams])
        return twin

    def __copy__(self) -> Self:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> Self:
        return self.copy()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a stream cannot be pickled: keep its Sequential and stream.state, for stream(batch_size, state)"
        )


# --- generating tokens --------------------------------------------------------------------------------------


class _Choice:
    """Draws a token for each prompt from its logits [B, V]."""

    def __init__(
        self, temperature: float, top_k: int | None, top_p: float | None, seed: int | None, prompts: int
    ) -> None:
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        first: Any = np.random.SeedSequence().entropy if seed is None else seed
        seeds = [np.random.SeedSequence([first, b]) for b in range(prompts)]
        self.rngs = [np.random.Generator(np.random.Philox(s)) for s in seeds]

    def __call__(self, logits: Array) -> Array:
        scores = _check.logits(logits)
        if self.temperature == 0:
            return np.asarray(scores.argmax(axis=1))
        with np.errstate(over="ignore"):  # to -inf, which is probability 0
            p = np.exp((scores - scores.max(axis=1, keepdims=True)) / self.temperature)
        if self.top_k is not None or self.top_p is not None:
            order = np.argsort(-scores, axis=1, kind="stable")
            ranked = np.take_along_axis(p, order, axis=1)
            if self.top_k is not None:
                ranked[:, self.top_k :] = 0
            if self.top_p is not None:
                sums = ranked.cumsum(axis=1)
                ranked[:, 1:][sums[:, :-1] >= self.top_p * sums[:, -1:]] = 0
            np.put_along_axis(p, order, ranked, axis=1)
        sums = p.cumsum(axis=1)
        drawn = np.array([rng.random() for rng in self.rngs])  # below 1, so that the last sum is above it
        token: Array = (sums > drawn[:, None] * sums[:, -1:]).argmax(axis=1)
        return token


def _tokens(stream: SequentialStream, last: Array, n: int, choose: _Choice, many: bool) -> Iterator[Any]:
    for _ in range(n):
        last = choose(stream.step(last))
        yield last.copy() if many else int(last[0])


# --- files and pickles --------------------------------------------------------------------------------------

def _restore_sequential(cls: type[Sequential], *modules: Part) -> Sequential:
    sequential = cls.__new__(cls)
    Sequential.__init__(sequential, *modules)
    return sequential


def _built(options: _check.AnyOptions, parameters: dict[str, Array]) -> Any:
    """The layer or module that has these options, checked, and parameters."""
    if isinstance(options, _check.SequentialOptions):
        parts = zip(options.modules, _by_module(options, parameters), strict=True)
        return Sequential(*(_built(o, own) for o, own in parts))
    if isinstance(options, _check.Options):
        classes: dict[str, type[Any]] = {cls._cell: cls for cls in (LSTM, GRU, RNN, GatedRNN)}
        return layers._restore(classes[options.cell], options.cell, options.given(), parameters)
    kind = next(name for name, cls in _check.MODULES.items() if isinstance(options, cls))
    return leaves.restore(leaves.LEAVES[kind], kind, options._asdict(), parameters)


def load(
    path: str | os.PathLike[str], **options: Any
) -> LSTM | GRU | RNN | GatedRNN | Embedding | Linear | Dropout | Sequential:
    """Read a layer or module from a safetensors file: one that `save` wrote, or a bare one of a recurrent
    layer with PyTorch's names.

    A file that `save` wrote says all: options may only confirm it, but for batch_first, dropout, p and dtype,
    which may differ; of a Sequential only dtype can be given. From a bare file the cell, its sizes, bias,
    bidirectional, proj_size and peepholes follow by names and shapes, and the dtype is float64 if any entry
    is, else float32; what a file cannot tell is taken from options (or their defaults), except that
    `nonlinearity` or `activations` of an RNN and `reset_after` of a GRU must be given. float16 and bfloat16
    are widened.

    Raises OSError if the file cannot be read; ValueError if it is no safetensors file (truncated,
    overlapping, inconsistent), does not hold the parameters that it should, or contradicts options; TypeError
    for options that the cell or module does not take. Memory is taken only for what the file really holds.
    """
    from . import _files

    module: LSTM | GRU | RNN | GatedRNN | Embedding | Linear | Dropout | Sequential = _built(
        *_files.load(path, options)
    )
    return module
