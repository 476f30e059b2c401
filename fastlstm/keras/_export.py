"""The other way: fastlstm's layers and Sequentials as models of Keras's, made with Keras itself."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

import fastlstm
from fastlstm import _check

from ._activations import SPECS
from ._cells import keras_weights

BACKENDS = ("tensorflow", "torch", "jax")
SUFFIXES = (".keras", ".h5", ".hdf5")
CELLS: dict[type[Any], str] = {fastlstm.LSTM: "LSTM", fastlstm.GRU: "GRU", fastlstm.RNN: "SimpleRNN"}
# What Keras's cells have no counterpart of, and the values that mean none.
ABSENT = {"proj_size": 0, "peepholes": False, "forget_gate": True, "coupled_gates": False, "clip": None}


def to_keras(model: Any, path: str | os.PathLike[str] | None) -> Any:
    parts = list(model) if isinstance(model, fastlstm.Sequential) else [model]
    if path is not None and os.path.splitext(os.fspath(path))[1].lower() not in SUFFIXES:
        raise ValueError(f"path must end in one of {', '.join(SUFFIXES)}, got {os.fspath(path)!r}")
    dtype = next((part.dtype.name for part in parts if hasattr(part, "dtype")), "float32")
    made = _Maker(_keras(), dtype)
    for i, part in enumerate(parts):
        following = parts[i + 1] if i + 1 < len(parts) else None
        try:
            made.add(part, isinstance(following, fastlstm.LastStep))
        except (TypeError, ValueError) as error:
            raise type(error)(f"modules[{i}], {part!r}: {error}") from None
    result = made.model(parts)
    if path is not None:
        _save(result, os.fspath(path))
    return result


def _keras() -> Any:
    with _some_backend():
        try:
            import keras
        except ImportError as error:
            raise ImportError(
                "to_keras needs Keras and a backend of its: pip install 'fastlstm[keras]' and "
                f"set KERAS_BACKEND to one of {', '.join(BACKENDS)} that is installed ({error})"
            ) from error
    return keras


@contextlib.contextmanager
def _some_backend() -> Iterator[None]:
    """Where nobody chose a backend that is there, Keras is imported with the first one installed: its own
    default is TensorFlow, which few have. The environment is afterwards as before."""
    installed = [name for name in BACKENDS if importlib.util.find_spec(name) is not None]
    if (
        "keras" in sys.modules
        or os.environ.get("KERAS_BACKEND")
        or _configured() in installed
        or not installed
    ):
        yield
        return
    os.environ["KERAS_BACKEND"] = installed[0]
    try:
        yield
    finally:
        del os.environ["KERAS_BACKEND"]


def _configured() -> Any:
    """The backend of keras.json; Keras writes TensorFlow there by itself, installed or not."""
    home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    try:
        with open(os.path.join(home, "keras.json"), encoding="utf-8") as file:
            return json.load(file)["backend"]
    except (OSError, ValueError, TypeError, KeyError):
        return None


class _Maker:
    """Collects Keras's layers and the weights that they are to have."""

    def __init__(self, keras: Any, dtype: str) -> None:
        self._keras, self._dtype = keras, dtype
        self._layers: list[Any] = []
        self._weights: list[list[Any]] = []  # of each layer

    def _append(self, layer: Any, weights: list[Any] | None = None) -> None:
        self._layers.append(layer)
        self._weights.append(weights or [])

    def add(self, part: Any, last_step: bool) -> None:
        """Append a module; last_step: whether only its last output is wanted."""
        layers = self._keras.layers
        if type(part) in CELLS:
            self._add_recurrent(part, last_step)
        elif isinstance(part, fastlstm.LastStep):
            if not self._layers:
                raise ValueError("acts in a Sequential only")
        elif isinstance(part, fastlstm.Embedding):
            if part.padding_idx is not None:
                raise ValueError(f"Keras has no padding_idx={part.padding_idx}, a token without a gradient")
            size = part.num_embeddings, part.embedding_dim
            self._append(layers.Embedding(*size, dtype=self._dtype), [part.state_dict()["weight"]])
        elif isinstance(part, fastlstm.Linear):
            state = part.state_dict()
            dense = layers.Dense(part.out_features, use_bias=part.bias, dtype=self._dtype)
            self._append(dense, [state["weight"].T, *([state["bias"]] if part.bias else [])])
        elif isinstance(part, fastlstm.Dropout):
            self._append(layers.Dropout(part.p, dtype=self._dtype))
        elif isinstance(part, fastlstm.Activation):
            function = self._activation(part.activation)
            self._append(layers.Activation(function, dtype=self._dtype))
        elif isinstance(part, fastlstm.LayerNorm):
            state = part.state_dict()
            norm = layers.LayerNormalization(
                epsilon=part.eps, center="bias" in state, scale="weight" in state, dtype=self._dtype
            )
            self._append(norm, list(state.values()))
        else:
            raise TypeError("Keras has no such layer")

    def _add_recurrent(self, part: Any, last_step: bool) -> None:
        for name, none in ABSENT.items():
            if getattr(part, name, none) != none:
                raise ValueError(f"Keras has no {name}={getattr(part, name)!r}")
        if part.weight_dtype != part.dtype.name:
            raise ValueError(f"Keras has no {part.weight_dtype} weights in such a layer")
        if part.reverse and (not last_step or part.num_layers > 1):
            raise ValueError("Keras gives the outputs of reverse=True reversed: only LastStep may follow")
        layers = self._keras.layers
        for k in range(part.num_layers):
            last = k == part.num_layers - 1
            one = getattr(layers, CELLS[type(part)])(
                part.hidden_size,
                use_bias=part.bias,
                return_sequences=not (last and last_step),
                go_backwards=part.reverse,
                dtype=self._dtype,
                **self._cell_options(part),
            )
            weights = keras_weights(part, k, "")
            if part.bidirectional:
                one = layers.Bidirectional(one, dtype=self._dtype)
                weights += keras_weights(part, k, "_reverse")
            self._append(one, weights)
            if part.dropout and not last:
                self._append(layers.Dropout(part.dropout, dtype=self._dtype))

    def _cell_options(self, part: Any) -> dict[str, Any]:
        """Activations, and where the reset gate is."""
        if isinstance(part, fastlstm.RNN):
            chosen = part.activations[0] if part.activations else part.nonlinearity
            return {"activation": self._activation(chosen)}
        gates, candidate, *output = part.activations or ("sigmoid", "tanh")
        if output and output[0] != candidate:
            raise ValueError(
                f"Keras has one activation for candidate and output, not {candidate}, {output[0]}"
            )
        options = {
            "recurrent_activation": self._activation(gates),
            "activation": self._activation(candidate),
        }
        if isinstance(part, fastlstm.GRU):
            options["reset_after"] = part.reset_after
        return options

    def _activation(self, activation: Any) -> Any:
        """A name of Keras's, or a layer where Keras has the parameters there."""
        spec = _with_defaults(activation)
        for name, known in SPECS.items():
            if _with_defaults(known) == spec:
                return name
        layers = self._keras.layers
        kind, *parameters = spec
        if kind == "leaky_relu" and parameters[0] >= 0:
            return layers.LeakyReLU(*parameters, dtype=self._dtype)
        if kind == "elu":
            return layers.ELU(*parameters, dtype=self._dtype)
        if kind == "thresholded_relu" and parameters[0] >= 0:
            return layers.ReLU(threshold=parameters[0], dtype=self._dtype)
        raise ValueError(f"Keras has no activation {activation!r}")

    def model(self, parts: list[Any]) -> Any:
        """A Sequential of all that was added."""
        keras = self._keras
        if isinstance(parts[0], fastlstm.Embedding):
            source = keras.Input((None,), dtype="int32")
        else:
            sized = [
                p for p in parts if type(p) in CELLS or isinstance(p, (fastlstm.Linear, fastlstm.LayerNorm))
            ]
            if not sized:
                raise ValueError("there must be a module with weights, which says how wide the input is")
            width = next(getattr(sized[0], n) for n in _WIDTHS if hasattr(sized[0], n))
            source = keras.Input((None, width), dtype=self._dtype)
        result = keras.Sequential([source, *self._layers])
        for layer, weights in zip(self._layers, self._weights, strict=True):
            for variable, array in zip(layer.weights, weights, strict=True):
                variable.assign(np.ascontiguousarray(array))
        return result


_WIDTHS = ("input_size", "in_features", "normalized_shape")


def _with_defaults(activation: Any) -> tuple[Any, ...]:
    """(name, alpha, beta) with all that the function takes."""
    name, *given = (activation,) if isinstance(activation, str) else activation
    defaults = _check.ACTIVATIONS.get(name, ())
    given += [None] * (len(defaults) - len(given))
    return name, *(d if g is None else float(g) for g, d in zip(given, defaults, strict=True))


def _save(model: Any, path: str) -> None:
    """Atomic: the file is whole, old or new, whatever happens."""
    folder, name = os.path.split(os.path.abspath(path))
    with _beside(folder, os.path.splitext(name)[1].lower()) as temporary:
        model.save(temporary)
        os.replace(temporary, path)


@contextlib.contextmanager
def _beside(folder: str, suffix: str) -> Iterator[str]:
    handle, temporary = tempfile.mkstemp(suffix, dir=folder)
    os.close(handle)
    try:
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
