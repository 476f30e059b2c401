"""Keras's layers without a state, each with what it needs for a call: fastlstm's modules, made once.

A layer takes x and the mask [B, T] (or None) that comes with it and gives both, as Keras hands them on. It
also knows the modules of fastlstm that do the same, for `KerasModel.to_sequential`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import fastlstm
from fastlstm import _check

from ._activations import LAYERS as FUNCTIONS
from ._activations import Function, function, layer_function
from ._config import Config
from ._masks import Steps
from ._weights import Weights

Array = npt.NDArray[Any]
Mask = Steps | None
_LEFT = "With masks_as_lengths=True the mask is left to you: pass lengths"


class Flow(NamedTuple):
    """What is known of a layer's input before anything runs."""

    axes: int | None  # with those of batch and time
    width: int | None  # of the last axis


class Layer:
    """One layer of a model. It changes neither x nor the mask unless a subclass says so."""

    def __init__(self, config: Config, flow: Flow) -> None:
        self.name, self.kind, self.flow = config.name, config.kind, flow
        self.options = config.scalars()
        self.dtype = np.dtype(config.dtype())
        self.weights: dict[str, Array] = {}  # under Keras's names

    def __call__(self, x: Array, mask: Mask) -> tuple[Any, Mask]:
        return x, mask

    def modules(self, masks_as_lengths: bool) -> list[Any]:
        """fastlstm's modules that do the same. ValueError, by `refuse`, if there are none."""
        return []

    def refuse(self, why: str) -> ValueError:
        return ValueError(f"layer {self.name!r} ({self.kind}) has no counterpart in a Sequential: {why}")

    @property
    def outputs(self) -> int:
        """How many arrays it gives."""
        return 1

    @property
    def masks(self) -> bool:
        """Whether it makes a mask."""
        return False

    def refuse_many(self) -> ValueError:
        return ValueError(f"layer {self.name!r} ({self.kind}) gives {self.outputs} arrays, not one")

    def __repr__(self) -> str:
        return f"{self.kind}({self.name!r})"


class Embedding(Layer):
    def __init__(self, config: Config, weights: Weights, flow: Flow) -> None:
        count, size = config.size("input_dim"), config.size("output_dim")
        self._masks = config.flag("mask_zero", False)
        super().__init__(config, Flow(None if flow.axes is None else flow.axes + 1, size))
        config.finish(("input_length",))
        self.weights = weights.take(config, {"embeddings": (count, size)})
        self._module = fastlstm.Embedding(count, size, dtype=self.dtype, seed=0)
        self._module.load_state_dict({"weight": self.weights["embeddings"]})

    @property
    def masks(self) -> bool:
        return self._masks

    def __call__(self, x: Array, mask: Mask) -> tuple[Array, Mask]:
        tokens = x if x.dtype.kind in "iu" else _whole(x)
        return self._module(tokens), Steps(x != 0) if self._masks else None

    def modules(self, masks_as_lengths: bool) -> list[Any]:
        if self._masks and not masks_as_lengths:
            raise self.refuse(f"mask_zero=True. {_LEFT}")
        return [self._module]


def _whole(x: Array) -> Array:
    """Tokens that came as floats, without their fraction, as Keras takes them."""
    if not np.isfinite(x).all():
        raise ValueError("x must hold tokens, got NaN or infinity")
    return x.astype(np.int64)


class Masking(Layer):
    def __init__(self, config: Config, weights: Weights, flow: Flow) -> None:
        super().__init__(config, flow)
        self._value = config.number("mask_value", 0.0)
        config.finish()

    @property
    def masks(self) -> bool:
        return True

    def __call__(self, x: Array, mask: Mask) -> tuple[Array, Mask]:
        valid = (x != x.dtype.type(self._value)).any(axis=-1)
        return np.where(valid[..., None], x, x.dtype.type(0)), Steps(valid)

    def modules(self, masks_as_lengths: bool) -> list[Any]:
        if not masks_as_lengths:
            raise self.refuse(f"it masks. {_LEFT}")
        return []


class Dense(Layer):
    def __init__(self, config: Config, weights: Weights, flow: Flow, keras_major: int) -> None:
        units, bias = config.size("units"), config.flag("use_bias", True)
        self._function = function(config, "activation", keras_major)
        super().__init__(config, Flow(flow.axes, units))
        config.finish()
        shapes = {"kernel": (flow.width, units)} | ({"bias": (units,)} if bias else {})
        self.weights = weights.take(config, shapes)
        state = {"weight": self.weights["kernel"].T} | ({"bias": self.weights["bias"]} if bias else {})
        width = len(self.weights["kernel"])
        self._module = fastlstm.Linear(width, units, bias, dtype=self.dtype, seed=0)
        self._module.load_state_dict(state)

    def __call__(self, x: Array, mask: Mask) -> tuple[Array, Mask]:
        return self._function.apply(self._module(x)), mask

    def modules(self, masks_as_lengths: bool) -> list[Any]:
        return [self._module, *_modules_of(self, self._function)]


class Elementwise(Layer):
    """Activation, ReLU, LeakyReLU, ELU, Softmax."""

    def __init__(self, config: Config, weights: Weights, flow: Flow, keras_major: int) -> None:
        super().__init__(config, flow)
        self._function = layer_function(config, keras_major)

    def __call__(self, x: Array, mask: Mask) -> tuple[Array, Mask]:
        if mask is not None and self.kind == "Softmax":
            raise ValueError(f"layer {self.name!r} (Softmax): a mask of steps does not fit its input")
        return self._function.apply(x), mask

    def modules(self, masks_as_lengths: bool) -> list[Any]:
        return _modules_of(self, self._function)


def _modules_of(layer: Layer, function: Function) -> list[Any]:
    if function.name == "linear":
        return []
    if function.spec is None:
        raise layer.refuse(f"the function {function.name}")
    return [fastlstm.Activation(function.spec)]


class Noise(Layer):
    """Dropout and its like: they act in training only."""

    def __init__(self, config: Config, weights: Weights, flow: Flow) -> None:
        super().__init__(config, flow)
        self._rate = config.number("rate") if self.kind == "Dropout" else None
        config.finish(("rate", "stddev", "noise_shape", "l1", "l2"))

    def modules(self, masks_as_lengths: bool) -> list[Any]:
        return [] if self._rate is None else [fastlstm.Dropout(self._rate)]


class LayerNormalization(Layer):
    def __init__(self, config: Config, weights: Weights, flow: Flow) -> None:
        super().__init__(config, flow)
        epsilon = config.number("epsilon", 1e-3)
        _check_axes(config, flow)
        names = [n for n, option in (("gamma", "scale"), ("beta", "center")) if config.flag(option, True)]
        config.fixed("rms_scaling", False)
        config.finish()
        self.weights = weights.take(config, {name: (flow.width,) for name in names})
        width = next((len(v) for v in self.weights.values()), flow.width)
        if width is None:
            raise config.error("without weights it leaves its size open")
        self.flow = Flow(flow.axes, width)
        bias = "beta" in names
        self._module = fastlstm.LayerNorm(width, epsilon, bool(names), bias, dtype=self.dtype)
        state = {{"gamma": "weight", "beta": "bias"}[name]: v for name, v in self.weights.items()}
        self._module.load_state_dict(state, strict=False)

    def __call__(self, x: Array, mask: Mask) -> tuple[Array, Mask]:
        return self._module(x), mask

    def modules(self, masks_as_lengths: bool) -> list[Any]:
        return [self._module]


class BatchNormalization(Layer):
    """With the statistics that training found: y = (x - mean) · scale + shift."""

    def __init__(self, config: Config, weights: Weights, flow: Flow) -> None:
        super().__init__(config, flow)
        epsilon = config.number("epsilon", 1e-3)
        _check_axes(config, flow)
        names = [n for n, option in (("gamma", "scale"), ("beta", "center")) if config.flag(option, True)]
        config.fixed("renorm", False)
        config.finish(("momentum", "synchronized", "renorm_momentum"))
        names += ["moving_mean", "moving_variance"]
        self.weights = weights.take(config, {name: (flow.width,) for name in names})
        wide = {name: array.astype(np.float64) for name, array in self.weights.items()}
        if len({array.shape for array in wide.values()}) != 1:
            raise config.error("its weights differ in size")
        scale = wide.get("gamma", 1) / np.sqrt(wide["moving_variance"] + epsilon)
        self._mean, self._scale = wide["moving_mean"].astype(self.dtype), scale.astype(self.dtype)
        self._shift = wide.get("beta", np.zeros(1)).astype(self.dtype)
        self.flow = Flow(flow.axes, len(self._mean))

    def __call__(self, x: Array, mask: Mask) -> tuple[Array, Mask]:
        x = _check.features("x", x, len(self._mean), self.dtype)
        return (x - self._mean) * self._scale + self._shift, mask

    def modules(self, masks_as_lengths: bool) -> list[Any]:
        raise self.refuse("fold it into the layer beside it first")


def _check_axes(config: Config, flow: Flow) -> None:
    """The axis, given from the front, is the last one."""
    axes = config.last_axis()
    if axes is not None and axes != flow.axes:
        raise config.error(f"axis={axes - 1} is not supported, only the last one")


class GlobalPooling(Layer):
    """The mean or the maximum over time, [B, T, n] to [B, n]. As in Keras masked steps do not count in the
    mean (of none it is NaN), and do in the maximum."""

    def __init__(self, config: Config, weights: Weights, flow: Flow) -> None:
        super().__init__(config, Flow(2, flow.width))
        config.fixed("data_format", "channels_last")
        config.fixed("keepdims", False)
        if flow.axes not in (None, 3):
            raise config.error(f"its input must have 3 axes, got {flow.axes}")
        config.finish()

    def __call__(self, x: Array, mask: Mask) -> tuple[Array, Mask]:
        if x.ndim != 3 or not x.shape[1]:
            raise ValueError(f"layer {self.name!r} ({self.kind}): x must be [B, T, n], got {x.shape}")
        if self.kind.startswith("GlobalMax"):
            return x.max(axis=1), None
        if mask is None:
            return x.mean(axis=1), None
        total = np.where(mask.valid[..., None], x, x.dtype.type(0)).sum(axis=1)
        with np.errstate(invalid="ignore"):
            return total / mask.lengths[:, None].astype(x.dtype), None

    def modules(self, masks_as_lengths: bool) -> list[Any]:
        raise self.refuse("no module takes a mean or maximum over time")


class TimeDistributed(Layer):
    """A layer on each step, which is what a layer does that works along the last axis."""

    def __init__(self, config: Config, inner: Layer, flow: Flow) -> None:
        super().__init__(config, inner.flow)
        config.finish()
        self._inner = inner
        self.weights = {f"layer/{name}": array for name, array in inner.weights.items()}

    def __call__(self, x: Array, mask: Mask) -> tuple[Array, Mask]:
        if x.ndim < 3:
            raise ValueError(f"layer {self.name!r} (TimeDistributed): x must be [B, T, ..], got {x.shape}")
        return self._inner(x, mask)[0], mask

    def modules(self, masks_as_lengths: bool) -> list[Any]:
        return self._inner.modules(masks_as_lengths)


_NOISE = (
    "Dropout", "SpatialDropout1D", "GaussianNoise", "GaussianDropout", "AlphaDropout",
    "ActivityRegularization",
)  # fmt: skip
_POOLING = (
    "GlobalAveragePooling1D", "GlobalAvgPool1D", "GlobalMaxPooling1D", "GlobalMaxPool1D",
)  # fmt: skip
_MAKERS: dict[str, Callable[..., Layer]] = {
    "Embedding": Embedding,
    "Masking": Masking,
    "LayerNormalization": LayerNormalization,
    "BatchNormalization": BatchNormalization,
    **dict.fromkeys(_NOISE, Noise),
    **dict.fromkeys(_POOLING, GlobalPooling),
}
_WITH_FUNCTION: dict[str, Callable[..., Layer]] = {"Dense": Dense, **dict.fromkeys(FUNCTIONS, Elementwise)}
STEPWISE = frozenset(_MAKERS.keys() | _WITH_FUNCTION.keys()) - {
    "Embedding",
    "Masking",
    *_POOLING,
}  # work on each row


def stateless(config: Config, weights: Weights, flow: Flow, keras_major: int) -> Layer | None:
    """The layer that a config describes; None if it is not one of those here."""
    if config.kind in _MAKERS:
        return _MAKERS[config.kind](config, weights, flow)
    if config.kind in _WITH_FUNCTION:
        return _WITH_FUNCTION[config.kind](config, weights, flow, keras_major)
    if config.kind != "TimeDistributed":
        return None
    inner = config.part("layer")
    if inner.kind not in STEPWISE:
        raise inner.error(f"is not supported inside of TimeDistributed, only {', '.join(sorted(STEPWISE))}")
    found = stateless(inner, weights.attribute("layer"), flow, keras_major)
    assert found is not None
    config.same_dtype(inner)
    return TimeDistributed(config, found, flow)
