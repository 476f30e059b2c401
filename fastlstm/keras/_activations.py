"""Keras's activation functions by name: what the recurrent layers run, and what stands alone.

A function is fastlstm's own where it has one (`spec`), else a line of NumPy over whole arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import fastlstm

from ._config import Config, _short

Array = npt.NDArray[Any]
Spec = str | tuple[Any, ...]


class Function(NamedTuple):
    """An activation function."""

    name: str  # as Keras calls it
    spec: Spec | None  # for `fastlstm.Activation`; None if that has none
    apply: Callable[[Array], Array]

    @property
    def recurrent(self) -> bool:
        """Whether a recurrent layer can run it: it is one of the eleven that work element by element."""
        return self.spec is not None and self.spec not in ("softmax", "log_softmax")


def function(config: Config, key: str, keras_major: int) -> Function:
    """The one that an option names: by a name, None for none, or an activation layer."""
    value = config.get(key, None)
    if isinstance(value, Mapping) and value.get("class_name") in LAYERS:
        inner = Config(value, config.where)
        config.same_dtype(inner)
        return layer_function(inner, keras_major)
    if isinstance(value, Mapping):
        raise config.error(f"{key} is {_short(value)}, a function of its own: only Keras's own are known")
    if value is not None and not isinstance(value, str):
        raise config.error(f"{key} must be the name of a function, got {_short(value)}")
    name = "linear" if value is None else value
    if name == "hard_sigmoid" and keras_major == 2:
        return _own(name, ("hard_sigmoid", 0.2, 0.5))
    if name in SPECS:
        return _own(name, SPECS[name])
    if name in PLAIN:
        return Function(name, None, PLAIN[name])
    raise config.error(f"{key}={_short(value)} is not a function that is known here")


def recurrent_function(config: Config, key: str, keras_major: int) -> Spec:
    """The same for a recurrent layer, as fastlstm's layers take it."""
    found = function(config, key, keras_major)
    if not found.recurrent or found.spec is None:
        known = ", ".join(name for name in SPECS if name not in ("softmax", "log_softmax"))
        raise config.error(f"{key}={found.name!r} is not supported in a recurrent layer: only {known}")
    return found.spec


def layer_function(config: Config, keras_major: int) -> Function:
    """What a layer such as ReLU or Activation applies."""
    found = LAYERS[config.kind](config, keras_major)
    config.finish()
    return found


def _own(name: str, spec: Spec) -> Function:
    """One of fastlstm's own."""
    return Function(name, spec, _linear if spec == LINEAR else fastlstm.Activation(spec))


def _linear(x: Array) -> Array:
    return x


LINEAR = ("affine", 1.0, 0.0)

# Those that fastlstm has; in brackets Keras's own constants.
SPECS: dict[str, Spec] = {
    "linear": LINEAR,
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "relu": "relu",
    "elu": ("elu", 1.0),
    "celu": ("elu", 1.0),
    "leaky_relu": ("leaky_relu", 0.2),
    "hard_sigmoid": ("hard_sigmoid", 1 / 6, 0.5),
    "softplus": "softplus",
    "softsign": "softsign",
    "sparse_sigmoid": ("hard_sigmoid", 0.5, 0.5),
    "softmax": "softmax",
    "log_softmax": "log_softmax",
}

_sigmoid = fastlstm.Activation("sigmoid")
_softplus = fastlstm.Activation("softplus")
_tanh = fastlstm.Activation("tanh")
_elu = fastlstm.Activation(("elu", 1.6732632423543772))  # Klambauer et al. 2017
_hard_sigmoid = fastlstm.Activation(("hard_sigmoid", 1 / 6, 0.5))
_erf = np.frompyfunc(math.erf, 1, 1)  # NumPy has none


def _gelu(x: Array) -> Array:
    """x/2 (1 + erf(x/√2)), Hendrycks & Gimpel 2016."""
    y: Array = 0.5 * x * (1 + np.asarray(_erf(x * math.sqrt(0.5))).astype(x.dtype))
    return y


def _exponential(x: Array) -> Array:
    with np.errstate(over="ignore"):
        y: Array = np.exp(x)
    return y


PLAIN: dict[str, Callable[[Array], Array]] = {
    "relu6": lambda x: np.clip(x, 0, 6),
    "selu": lambda x: x.dtype.type(1.0507009873554805) * _elu(x),
    "silu": lambda x: x * _sigmoid(x),
    "swish": lambda x: x * _sigmoid(x),
    "gelu": _gelu,
    "exponential": _exponential,
    "mish": lambda x: x * _tanh(_softplus(x)),
    "log_sigmoid": lambda x: -_softplus(-x),
    "hard_silu": lambda x: x * _hard_sigmoid(x),
    "hard_swish": lambda x: x * _hard_sigmoid(x),
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "tanh_shrink": lambda x: x - _tanh(x),
}


# --- layers that are a function -----------------------------------------------------------------------------


def _relu(config: Config, keras_major: int) -> Function:
    """x above the threshold, up to max_value; below it negative_slope · (x - threshold)."""
    top = config.get("max_value", None)
    top = None if top is None else config.number("max_value")
    slope = config.number("negative_slope", 0.0) if config.get("negative_slope", None) is not None else 0.0
    level = config.number("threshold", 0.0) if config.get("threshold", None) is not None else 0.0
    if min(slope, level, 0.0 if top is None else top) < 0:
        raise config.error("max_value, negative_slope and threshold must not be below 0")
    if top is None and not level:
        return _own("relu", ("leaky_relu", slope) if slope else "relu")
    if top is None and not slope:
        return _own("relu", ("thresholded_relu", level))

    def apply(x: Array) -> Array:
        kept = np.where(x > level, x if top is None else np.minimum(x, x.dtype.type(top)), x.dtype.type(0))
        return kept - x.dtype.type(slope) * np.maximum(x.dtype.type(level) - x, 0) if slope else kept

    return Function("relu", None, apply)


def _leaky_relu(config: Config, keras_major: int) -> Function:
    slope = config.number("negative_slope" if "negative_slope" in config.values else "alpha", 0.3)
    return _own("leaky_relu", ("leaky_relu", slope))


def _elu_layer(config: Config, keras_major: int) -> Function:
    return _own("elu", ("elu", config.number("alpha", 1.0)))


def _softmax(config: Config, keras_major: int) -> Function:
    if config.last_axis() is not None:
        raise config.error("axis must be -1, the last one")
    return _own("softmax", "softmax")


def _activation(config: Config, keras_major: int) -> Function:
    return function(config, "activation", keras_major)


LAYERS: dict[str, Callable[[Config, int], Function]] = {
    "Activation": _activation,
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "ELU": _elu_layer,
    "Softmax": _softmax,
}
