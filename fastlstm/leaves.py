"""Modules without a state: Embedding, Linear, Dropout, Activation, LayerNorm, and LastStep, which reads one.

A row has the same bits alone and in any batch, on any number of threads.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

import numpy as np
import numpy.typing as npt

from . import _check, _core, losses
from ._core import LinearCore
from .layers import Array, LoadResult, _Option
from .tape import Gradients

__all__ = ["Activation", "Dropout", "Embedding", "LastStep", "LayerNorm", "Linear"]


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

    def to_torch(self) -> Any:
        """PyTorch's module of the same kind with copies of the parameters: what `fastlstm.from_torch` takes.

        Raises ValueError naming what PyTorch has no module for, ImportError without PyTorch.
        """
        from .torch import to_torch

        return to_torch(self)

    def __repr__(self) -> str:
        return repr(self._options)


# --- modules without a state --------------------------------------------------------------------------------


class _Leaf(_Module):
    """What all of them have in common."""

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
        return restore, arguments, getattr(self, "__dict__", None) or None

    def _input(self, x: Any) -> Array:
        """x as `_apply` takes it, perhaps not a copy."""
        raise NotImplementedError

    def _apply(self, x: Array) -> Array:
        """The output, a fresh array; of Dropout x itself."""
        raise NotImplementedError

    def _write(self, x: Array, out: Array) -> None:
        """The output, into an array of its shape that does not overlap x: what a step of a stream calls."""
        out[...] = self._apply(x)

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
    """A call of a module without a state that is remembered; made by `record`.

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

    def _write(self, x: Array, out: Array) -> None:
        self._held["weight"].take(x, axis=0, out=out, mode="clip")  # tokens are checked; other modes copy

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

    def _write(self, x: Array, out: Array) -> None:
        self._core.forward(x, out)

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


class Activation(_Leaf):
    """y = f(x), element by element, or softmax or log_softmax over the last axis.

    activation: a name or (name[, alpha[, beta]]): one of the eleven that the recurrent layers take (see
        `LSTM`), "softmax" or "log_softmax".

    float32 and narrower floats become float32, all else float64. The eleven have the same bits on every CPU;
    the other two are `fastlstm.softmax` and `log_softmax`, whose last bits are those of NumPy's exp and log.
    The derivative at a kink is the one from the left, as PyTorch's. Raises TypeError or ValueError.
    """

    __slots__ = ()
    _kind = "Activation"

    activation = _Option[_check.Activation]("The function: a name, or (name, alpha[, beta]).")

    def __init__(self, activation: str | tuple[Any, ...]) -> None:
        self._make(_check.module(self._kind, activation=activation), {})

    def __call__(self, x: npt.ArrayLike) -> Array:
        """x: an array-like of real numbers; softmax and log_softmax want an axis. Returns its shape."""
        return super().__call__(x)

    @property
    def _function(self) -> tuple[str, float, float]:
        function: tuple[str, float, float] = self._options.core
        return function

    def _input(self, x: Any) -> Array:
        return _check.floats("x", x, self._options.least_ndim)

    def _apply(self, x: Array) -> Array:
        whole = WHOLE.get(self._options.activation)
        y: Array = whole[0](x) if whole else _core.activate(*self._function, x)
        return y

    def _write(self, x: Array, out: Array) -> None:
        if self._options.activation in WHOLE:
            out[...] = self._apply(x)
        else:
            _core.activate(*self._function, x, out)

    def _keep(self, x: Array, seed: int | None, batch_first: bool = False) -> tuple[Array, Any]:
        y = self._apply(x)
        return y, y if self._options.activation in WHOLE else x

    def _backward(self, kept: Array, dy: Array) -> tuple[Array, dict[str, Array]]:
        whole = WHOLE.get(self._options.activation)
        return whole[1](kept, dy) if whole else _core.activate_backward(*self._function, kept, dy), {}


def _softmax_backward(y: Array, dy: Array) -> Array:
    """dx = y ⊙ (dy - Σ dy ⊙ y)"""
    dx: Array = y * (dy - (dy * y).sum(axis=-1, keepdims=True))
    return dx


def _log_softmax_backward(y: Array, dy: Array) -> Array:
    """dx = dy - e^y Σ dy"""
    dx: Array = dy - np.exp(y) * dy.sum(axis=-1, keepdims=True)
    return dx


# Those that look at a whole row, forward and backward; the latter from their output.
WHOLE: dict[Any, Any] = {
    "softmax": (losses.softmax, _softmax_backward),
    "log_softmax": (losses.log_softmax, _log_softmax_backward),
}


class LayerNorm(_Leaf):
    """y = (x - mean) / sqrt(var + eps) ⊙ weight + bias, mean and variance over the last axis.

    normalized_shape: features of x, I, as an int.
    eps: added to the variance, which is divided by I.
    elementwise_affine: with or without weight (and bias).
    bias: with or without bias.
    dtype: "float32" or "float64".

    Parameters: weight [I], ones at first, bias [I], zeros. Raises TypeError or ValueError naming the option.

    Ba, Kiros & Hinton 2016, "Layer normalization".
    """

    __slots__ = ()
    _kind = "LayerNorm"

    normalized_shape = _Option[int]("Features of x, I.")
    eps = _Option[float]("What is added to the variance.")
    elementwise_affine = _Option[bool]("Whether there is a weight.")
    bias = _Option[bool]("Whether there is a bias.")

    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = "float32",
    ) -> None:
        options: Any = _check.module(
            self._kind,
            normalized_shape=normalized_shape,
            eps=eps,
            elementwise_affine=elementwise_affine,
            bias=bias,
            dtype=dtype,
        )
        first = {"weight": np.ones, "bias": np.zeros}
        made = {name: first[name](shape, options.dtype) for name, shape in options.shapes().items()}
        self._make(options, {name: _check.frozen(v) for name, v in made.items()})

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64: of the parameters, of all arithmetic, of the output."""
        dtype: np.dtype[Any] = np.dtype(self._options.dtype)
        return dtype

    def __call__(self, x: npt.ArrayLike) -> Array:
        """x: [.., I], an array-like of any real dtype and stride. Returns its shape, a fresh array."""
        return super().__call__(x)

    def _input(self, x: Any) -> Array:
        return _check.features("x", x, self._options.normalized_shape, self.dtype)

    def _apply(self, x: Array) -> Array:
        return self._keep(x, None)[0]

    def _keep(self, x: Array, seed: int | None, batch_first: bool = False) -> tuple[Array, Any]:
        held, eps = self._held, self.dtype.type(self._options.eps)
        with np.errstate(all="ignore"):  # inf and NaN are values like any other
            centred = x - x.mean(axis=-1, keepdims=True)
            scale = 1 / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + eps)
            normal = centred * scale
            y = normal * held["weight"] if "weight" in held else normal.copy()
            if "bias" in held:
                y += held["bias"]
        return y, (normal, scale)

    def _backward(self, kept: tuple[Array, Array], dy: Array) -> tuple[Array, dict[str, Array]]:
        """dx = scale ⊙ (d - mean(d) - normal ⊙ mean(d ⊙ normal)), d = dy ⊙ weight."""
        normal, scale = kept
        size = self._options.normalized_shape
        gradients = {
            "weight": (dy * normal).reshape(-1, size).sum(axis=0),
            "bias": dy.reshape(-1, size).sum(axis=0),
        }
        d = dy * self._held["weight"] if "weight" in self._held else dy
        means = d.mean(axis=-1, keepdims=True), (d * normal).mean(axis=-1, keepdims=True)
        return scale * (d - means[0] - normal * means[1]), {name: gradients[name] for name in self._held}


class LastStep(_Leaf):
    """The output of each sequence's last valid step alone, without the axis of time: [T, B, n] to [B, n].

    It stands in a Sequential, directly after a recurrent layer, and is that layer's final h: of its last
    layer, both directions side by side. So a direction that reads backwards gives its output at the first
    step, and a sequence of length 0 its initial state. Modules after it see [B, n], and none of them may be
    recurrent. In a stream or pool, whose every step is the last one so far, it changes nothing. Keras calls
    it return_sequences=False.
    """

    __slots__ = ()
    _kind = "LastStep"

    def __init__(self) -> None:
        self._make(_check.module(self._kind), {})

    def __call__(self, x: npt.ArrayLike) -> NoReturn:
        """Raises TypeError: only a Sequential knows the states that it reads."""
        raise TypeError("LastStep acts in a Sequential only, directly after a recurrent layer")

    def record(self, x: npt.ArrayLike, dropout_seed: int | None = None) -> NoReturn:
        """Raises TypeError, as a call."""
        self(x)


LEAVES: dict[str, type[_Leaf]] = {
    cls._kind: cls for cls in (Embedding, Linear, Dropout, Activation, LayerNorm, LastStep)
}


def restore(cls: type[_Leaf], kind: str, options: dict[str, Any], parameters: dict[str, Array]) -> Any:
    module: _Leaf = cls.__new__(cls)
    checked = _check.module(kind, **options)
    module._make(checked, _check.parameters(parameters, checked)[0])
    return module
