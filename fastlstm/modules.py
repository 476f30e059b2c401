"""What surrounds the recurrent layers: Embedding, Linear, Dropout, and Sequential, a model of such modules.

They keep the promises of the layers: a row or a sequence has the same bits alone and in any batch, in one
call or step by step, on any number of threads.
"""

from __future__ import annotations

import contextlib
import copy
import math
import operator
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, NoReturn, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from . import _check, _quantize, layers
from ._core import LinearCore
from .layers import GRU, LSTM, RNN, Array, GatedRNN, LoadResult, Stream, _Layer, _Option
from .tape import Gradients

__all__ = ["Dropout", "Embedding", "Linear", "Sequential", "SequentialStream", "load"]

Part: TypeAlias = "_Layer | _Leaf"


class _Module:
    """What has parameters under names: in memory, in files, in pickles."""

    __slots__ = ()

    _options: Any

    @property
    def _parameters(self) -> dict[str, Array]:
        raise NotImplementedError

    def _locked(self) -> contextlib.AbstractContextManager[Any]:
        """No other thread sets parameters meanwhile."""
        raise NotImplementedError

    def _set_parameters(self, parameters: dict[str, Array]) -> None:
        raise NotImplementedError

    def _held_by(self, parameters: dict[str, Array]) -> dict[str, Array]:
        """These parameters, checked, as `_parameters` holds them."""
        return parameters

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters under PyTorch's names, in PyTorch's order."""
        return {name: v.copy() for name, v in self._parameters.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Take copies of parameters: any array-likes (PyTorch's tensors too), converted to the module's
        dtype.

        All change or, if anything is wrong, none does. With strict=False, what `state_dict` lacks stays and
        what it has too much is ignored. Returns (missing_keys, unexpected_keys). Raises ValueError listing
        all that is missing, unexpected or misshapen (that even if not strict), TypeError for what is no
        mapping or holds no real numbers.
        """
        strict = _check.flag("strict", strict)
        new, missing, unexpected = _check.parameters(state_dict, self._options, strict)
        with self._locked():
            self._set_parameters({**self._parameters, **self._held_by(new)})
        return LoadResult(missing, unexpected)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write parameters and options to a safetensors file, which `fastlstm.load` reads.

        Atomic: the file is whole, old or new, whatever happens. Raises OSError.
        """
        from . import _files

        _files.save(path, self._options, self._parameters)

    def __repr__(self) -> str:
        return repr(self._options)


# --- modules without a state --------------------------------------------------------------------------------


class _Leaf(_Module):
    """Embedding, Linear and Dropout."""

    __slots__ = ("_options", "_lock", "_held", "__weakref__")

    _kind: ClassVar[str]
    _lock: threading.Lock
    _held: dict[str, Array]  # read-only arrays; replaced, never changed

    def _make(self, options: Any, parameters: dict[str, Array]) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._set_parameters(parameters)

    @property
    def _parameters(self) -> dict[str, Array]:
        return self._held

    def _locked(self) -> contextlib.AbstractContextManager[Any]:
        return self._lock

    def _set_parameters(self, parameters: dict[str, Array]) -> None:
        self._held = parameters

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and copy: options and parameters."""
        arguments = (type(self), self._kind, self._options._asdict(), self._held)
        return _restore, arguments, getattr(self, "__dict__", None) or None

    def _input(self, x: Any) -> Array:
        """x as `_apply` takes it, perhaps not a copy."""
        raise NotImplementedError

    def _apply(self, x: Array) -> Array:
        """The output, a fresh array; of Dropout x itself."""
        raise NotImplementedError

    def _keep(self, x: Array, seed: int | None, batch_first: bool = False) -> tuple[Array, Any]:
        """The output, and what `_backward` needs."""
        raise NotImplementedError

    def _backward(self, kept: Any, dy: Array) -> tuple[Array | None, dict[str, Array]]:
        """The derivatives by the input and by the parameters."""
        raise NotImplementedError

    def __call__(self, x: npt.ArrayLike) -> Array:
        return self._apply(self._input(x))

    def record(self, x: npt.ArrayLike, dropout_seed: int | None = None) -> ModuleTape:
        """The call, remembered for `ModuleTape.backward`. `dropout_seed` is Dropout's: others draw nothing.

        Raises TypeError or ValueError naming the argument.
        """
        seed = _check.seed("dropout_seed", dropout_seed)
        return ModuleTape(self, self._input(x).copy(), seed)  # x is the caller's, who may change it


class ModuleTape:
    """A call of an Embedding, a Linear or a Dropout that is remembered; made by `record`.

    `output` is what the call returns. `state` is None, as nothing here has one.
    """

    __slots__ = ("output", "_module", "_held", "_kept")

    state: ClassVar[None] = None

    def __init__(self, module: _Leaf, x: Array, seed: int | None, batch_first: bool = False) -> None:
        self._module, self._held = module, module._held
        self.output, self._kept = module._keep(x, seed, batch_first)

    def backward(self, d_output: npt.ArrayLike) -> Gradients:
        """The gradients of a loss from its derivative by `output`; any number of times.

        Raises RuntimeError if the module has taken other parameters since; TypeError or ValueError naming the
        argument.
        """
        dy = _check.shaped("d_output", d_output, self.output.shape, self.output.dtype)
        if self._module._held is not self._held:
            raise RuntimeError(f"{self._module!r} has taken other parameters since this tape: record again")
        with np.errstate(over="ignore", invalid="ignore"):  # inf and NaN are values like any other
            d_input, parameters = self._module._backward(self._kept, dy)
        return Gradients(d_input, None, parameters)


class Embedding(_Leaf):
    """A vector for each token: y = weight[x].

    num_embeddings, embedding_dim: tokens are 0..num_embeddings - 1, vectors have embedding_dim numbers.
    padding_idx: a token whose vector is zero at first and has no gradient; negative ones count from the end.
    dtype: "float32" or "float64".
    seed: of the initial weights, N(0, 1) from `numpy.random.default_rng(seed)`.

    Parameter: weight [num_embeddings, embedding_dim]. Raises TypeError or ValueError naming the option.

    Bengio et al. 2003, "A neural probabilistic language model".
    """

    __slots__ = ()
    _kind = "Embedding"

    num_embeddings = _Option[int]("The number of tokens.")
    embedding_dim = _Option[int]("Numbers of a token's vector.")
    padding_idx = _Option[int | None]("The token whose vector gets no gradient.")

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dtype: npt.DTypeLike = "float32",
        seed: int | None = None,
    ) -> None:
        options: Any = _check.module(
            self._kind,
            num_embeddings=num_embeddings,
            embedding_dim=embedding_dim,
            padding_idx=padding_idx,
            dtype=dtype,
        )
        rng = np.random.default_rng(_check.seed("seed", seed))
        weight = rng.standard_normal((options.num_embeddings, options.embedding_dim)).astype(options.dtype)
        if options.padding_idx is not None:
            weight[options.padding_idx] = 0
        self._make(options, {"weight": _check.frozen(weight)})

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64: of the weight and of the output."""
        return self._held["weight"].dtype

    def __call__(self, x: npt.ArrayLike) -> Array:
        """x: tokens, integers of any shape. Returns [.., embedding_dim], a fresh array.

        Raises TypeError or ValueError naming the argument, also for a token out of range.
        """
        return super().__call__(x)

    def _input(self, x: Any) -> Array:
        return _check.tokens("x", x, self._options.num_embeddings)

    def _apply(self, x: Array) -> Array:
        return self._held["weight"].take(x, axis=0)

    def _keep(self, x: Array, seed: int | None, batch_first: bool = False) -> tuple[Array, Any]:
        return self._apply(x), x

    def _backward(self, kept: Array, dy: Array) -> tuple[None, dict[str, Array]]:
        """dW[x] += dy, token after token in the order of x."""
        count, size = self._options.num_embeddings, self._options.embedding_dim
        d_weight = np.zeros(count * size, dy.dtype)
        tokens, dy, columns = kept.ravel(), dy.reshape(-1, size), np.arange(size)
        for k in range(0, len(tokens), 4096):  # which bounds the memory of the indices
            places = tokens[k : k + 4096, None] * size + columns  # add.at is slow along rows
            np.add.at(d_weight, places.ravel(), dy[k : k + 4096].ravel())
        d_weight = d_weight.reshape(count, size)
        if self._options.padding_idx is not None:
            d_weight[self._options.padding_idx] = 0
        return None, {"weight": d_weight}


class Linear(_Leaf):
    """y = x Wᵀ + b.

    in_features, out_features: I and O.
    bias: with or without b.
    dtype: "float32" or "float64".
    seed: of the initial parameters, uniform in ±1/sqrt(I) from `numpy.random.default_rng(seed)`.

    Parameters: weight [O, I], bias [O]. Raises TypeError or ValueError naming the option. An output is summed
    from the bias on, its products in the order of x's features: a row has the same bits alone and in any
    batch.
    """

    __slots__ = ("_core",)
    _kind = "Linear"
    _core: LinearCore

    in_features = _Option[int]("Features of x, I.")
    out_features = _Option[int]("Features of y, O.")
    bias = _Option[bool]("Whether there is a bias.")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = "float32",
        seed: int | None = None,
    ) -> None:
        options: Any = _check.module(
            self._kind, in_features=in_features, out_features=out_features, bias=bias, dtype=dtype
        )
        rng = np.random.default_rng(_check.seed("seed", seed))
        bound = 1 / math.sqrt(options.in_features)
        drawn = {name: rng.uniform(-bound, bound, shape) for name, shape in options.shapes().items()}
        self._make(options, {name: _check.frozen(v.astype(options.dtype)) for name, v in drawn.items()})

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64: of the parameters, of all arithmetic, of the output."""
        return self._held["weight"].dtype

    def _set_parameters(self, parameters: dict[str, Array]) -> None:
        self._core = LinearCore(parameters["weight"], parameters.get("bias"))
        self._held = parameters

    def __call__(self, x: npt.ArrayLike) -> Array:
        """x: [.., I], an array-like of any real dtype and stride. Returns [.., O], a fresh array.

        Any number of threads may call at once. Raises TypeError or ValueError naming the argument.
        """
        return super().__call__(x)

    def _input(self, x: Any) -> Array:
        return _check.features("x", x, self._options.in_features, self.dtype)

    def _apply(self, x: Array) -> Array:
        return self._core.forward(x)

    def _keep(self, x: Array, seed: int | None, batch_first: bool = False) -> tuple[Array, Any]:
        core = self._core
        return core.forward(x), (core, x)

    def _backward(self, kept: tuple[LinearCore, Array], dy: Array) -> tuple[Array, dict[str, Array]]:
        core, x = kept
        d_weight, d_bias = core.backward_weights(x, dy)
        gradients = {"weight": d_weight, "bias": d_bias}
        return core.backward_input(dy), {name: gradients[name] for name in self._held}


class Dropout(_Leaf):
    """Zeros with probability p and all else times 1 / (1 - p), but only where a seed says so.

    p: the probability, 0..1.

    A call changes nothing, nor does `record` without `dropout_seed`. With it, x / (1 - p) stays where m =
    `rng.random(x.shape) >= p`, rng = `numpy.random.Generator(numpy.random.Philox(dropout_seed))`. float32
    and narrower floats become float32, all else float64.

    Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting".
    """

    __slots__ = ()
    _kind = "Dropout"

    p = _Option[float]("The probability of a zero.")

    def __init__(self, p: float = 0.5) -> None:
        self._make(_check.module(self._kind, p=p), {})

    def __call__(self, x: npt.ArrayLike) -> Array:
        """x, as a copy: dropout is for training."""
        return self._apply(self._input(x)).copy()

    def _input(self, x: Any) -> Array:
        return _check.floats("x", x)

    def _apply(self, x: Array) -> Array:
        return x

    def _keep(self, x: Array, seed: int | None, batch_first: bool = False) -> tuple[Array, Any]:
        """With batch_first, x [B, T, n] is drawn for in the order of time, as the layers do."""
        p = self._options.p
        if seed is None or not p:
            return x, None
        rng = np.random.Generator(np.random.Philox(seed))
        if batch_first and x.ndim == 3:
            keep = rng.random((x.shape[1], x.shape[0], x.shape[2])).swapaxes(0, 1) >= p
        else:
            keep = rng.random(x.shape) >= p
        return self._dropped(x, keep), keep

    def _backward(self, kept: Array | None, dy: Array) -> tuple[Array, dict[str, Array]]:
        return dy.copy() if kept is None else self._dropped(dy, kept), {}

    def _dropped(self, x: Array, keep: Array) -> Array:
        p = self._options.p
        scale, zero = x.dtype.type(1 / (1 - p) if p < 1 else 1), x.dtype.type(0)
        with np.errstate(over="ignore"):
            y: Array = np.where(keep, x * scale, zero)
        return y


# --- Sequential ---------------------------------------------------------------------------------------------


class Sequential(_Module):
    """Modules one after the other: a model, such as Sequential(Embedding, LSTM, Dropout, Linear).

    modules: recurrent layers (LSTM, GRU, RNN, GatedRNN), Linear and Dropout, and Embedding as the first only.
        Each must read as many features as the one before gives, all have one dtype, all recurrent layers one
        batch_first, and no module may come twice. They stay the caller's: `model[i]` is what was given.

    Parameters are named as torch.nn.Sequential names them: `0.weight`, `1.weight_ih_l0`. The state of the
    whole is a tuple with one entry per recurrent layer, in order, each as that layer has it: h, or (h, c) of
    an LSTM. Raises TypeError or ValueError naming the module that does not fit.
    """

    __slots__ = ("_options", "_modules", "__weakref__")

    _modules: tuple[Part, ...]
    _options: _check.SequentialOptions

    def __init__(self, *modules: Part) -> None:
        self._options = _check.modules("modules", modules, (_Layer, Embedding, Linear, Dropout))
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
            elif valid is None or isinstance(part, Dropout):
                y = part._apply(y)
            else:
                y = _spread(part._apply(y[valid]), valid)
        return y, tuple(final)

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
        final, self._tapes = [], list[Any]()
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
            elif valid is None or isinstance(part, Dropout):
                tape = ModuleTape(part, y, own, options.batch_first)
                y = tape.output
            else:
                tape = ModuleTape(part, y[valid], own)
                y = _spread(tape.output, valid)
            self._tapes.append(tape)
        self.output: Array = y
        self.state: tuple[Any, ...] = tuple(final)
        self._sequential, self._valid = sequential, valid

    def backward(self, d_output: npt.ArrayLike, d_state: Any = None) -> Gradients:
        """The gradients of a loss from its derivatives by `output` and by `state` (in its form; None: 0).

        `input` is None if the first module is an Embedding, `state` has the form of the state, `parameters`
        the names of `state_dict`. Padded steps of d_output are never read. Can be called any number of times.
        Raises RuntimeError if a module has taken other parameters since; TypeError or ValueError naming the
        argument.
        """
        valid, parts = self._valid, self._sequential._modules
        dy: Any = _check.shaped("d_output", d_output, self.output.shape, self.output.dtype)
        d_states = list(_check.state_tuple("d_state", d_state, len(self.state)))
        states: list[Any] = []
        parameters: list[dict[str, Array]] = []
        for i, (part, tape) in reversed(list(enumerate(zip(parts, self._tapes, strict=True)))):
            if isinstance(part, _Layer):
                found = _noted(i, part, tape.backward, dy, d_states.pop())
                states.append(found.state)
                dy = found.input
            elif valid is None or isinstance(part, Dropout):
                found = tape.backward(dy)
                dy = found.input
            else:
                found = tape.backward(dy[valid])
                dy = None if found.input is None else _spread(found.input, valid)
            parameters.append({f"{i}.{name}": v for name, v in found.parameters.items()})
        names = {name: v for own in reversed(parameters) for name, v in own.items()}
        return Gradients(dy, tuple(reversed(states)), names)


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
    """What a step runs, module by module, without Dropout: the module, what holds the states of a recurrent
    one (else None), and an array [rows, n] that all but the last write to."""
    rest, dtype = iter(recurrent), np.dtype(options.dtype)
    return [
        (part, next(rest) if isinstance(part, _Layer) else None, np.empty((rows, _check.width(o)), dtype))
        for part, o in zip(parts, options.modules, strict=True)
        if not isinstance(part, Dropout)
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
        elif isinstance(part, Linear):
            part._core.forward(y, into)
        else:  # checked before; any other mode makes a copy
            part._parameters["weight"].take(y, axis=0, out=into, mode="clip")
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

_LEAVES: dict[str, type[_Leaf]] = {cls._kind: cls for cls in (Embedding, Linear, Dropout)}


def _restore(cls: type[_Leaf], kind: str, options: dict[str, Any], parameters: dict[str, Array]) -> Any:
    module: _Leaf = cls.__new__(cls)
    checked = _check.module(kind, **options)
    module._make(checked, _check.parameters(parameters, checked)[0])
    return module


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
    return _restore(_LEAVES[kind], kind, options._asdict(), parameters)


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
