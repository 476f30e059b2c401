"""From a configuration and weights to a KerasModel: models of one chain, flattened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fastlstm._files import Found, row

from . import _files
from ._config import Config
from ._layers import Flow, Layer, stateless
from ._links import MASK_OPS, chained
from ._model import KerasModel
from ._recurrent import Recurrent, recurrent
from ._weights import KerasFileWeights, LegacyWeights, LiveWeights, Weights

MODELS = ("Sequential", "Functional", "Model")
MAX_LAYERS = 1024  # and as deep as they may be nested: what a hostile file can ask for
MAX_DEPTH = 32


def from_object(source: Any) -> KerasModel:
    """Of a layer or model of Keras 3's."""
    kind = type(source)
    package = kind.__module__.split(".")[0]
    if package != "keras" or not callable(getattr(source, "get_config", None)):
        raise TypeError(
            "source must be a path or a layer or model of Keras 3's own classes, got a "
            f"{kind.__module__}.{kind.__qualname__}"
        )
    value = {"class_name": kind.__name__, "module": kind.__module__, "config": source.get_config()}
    return _model(Config(value), LiveWeights(source), 3)


def from_file(path: str | os.PathLike[str]) -> tuple[KerasModel, str]:
    """Of a .keras or .h5 file, and what that is."""
    with _files.opened(path) as found:
        weights: Weights = LegacyWeights(found.weights) if found.legacy else KerasFileWeights(found.weights)
        model = _model(Config(found.config), weights, found.keras_major)
        return model, f"{'HDF5' if found.legacy else '.keras'} file of Keras {found.keras_version}"


def found(path: str, options: Mapping[str, Any]) -> Found:
    """What a file holds, for `fastlstm convert` and `inspect`: a Sequential, or None and why it is none."""
    if options:
        raise ValueError(f"{', '.join(sorted(options))}: a file of Keras's says all itself")
    model, what = from_file(path)
    masks = [
        f"layer {layer.name!r} masks steps: pass lengths instead" for layer in model.layers if layer.masks
    ]
    try:
        return Found(what, model.to_sequential(True), model.origins(True), masks, masks)
    except ValueError as error:
        return Found(what, None, {}, [str(error)], details=_details(model))


def _details(model: KerasModel) -> dict[str, Any]:
    """Layers and weights of what is no Sequential."""
    return {
        "layers": [{"name": v.name, "class": v.kind, "options": v.options} for v in model.layers],
        "parameters": [row(name, array, name) for name, array in model.parameters.items()],
    }


class Input(NamedTuple):
    """What an InputLayer says."""

    dtype: np.dtype[Any] | None
    axes: int | None
    width: int | None


def _model(config: Config, weights: Weights, keras_major: int) -> KerasModel:
    if config.kind not in MODELS:
        layer = _layer(config, weights, Flow(None, None), keras_major)
        return KerasModel(config.name, config.kind, [layer])
    chain = _Chain(keras_major)
    chain.model(config, weights, 0)
    if not chain.layers:
        raise config.error("has no layers")
    dtypes = sorted({layer.dtype.name for layer in chain.layers})
    if len(dtypes) > 1:
        raise config.error(f"its layers have different dtypes, {' and '.join(dtypes)}")
    given = chain.input or Input(None, None, None)
    return KerasModel(config.name, config.kind, chain.layers, given.dtype, given.axes, chain.chosen)


def _layer(config: Config, weights: Weights, flow: Flow, keras_major: int) -> Layer:
    found = recurrent(config, weights, flow, keras_major)
    layer = found if found is not None else stateless(config, weights, flow, keras_major)
    if layer is None:
        raise config.error("layers of this class are not supported")
    return layer


class _Chain:
    """The layers of a model, and of the models inside of it, one after the other."""

    def __init__(self, keras_major: int) -> None:
        self._major = keras_major
        self.layers: list[Layer] = []
        self.input: Input | None = None  # of the outermost model
        self.chosen: list[int] | None = None
        self._flow = Flow(None, None)

    def model(self, config: Config, weights: Weights, depth: int) -> None:
        """Append a model's layers."""
        if depth > MAX_DEPTH:
            raise config.error(f"models are nested more than {MAX_DEPTH} deep")
        inside = config.parts("layers")
        links = None if config.kind == "Sequential" else chained(config, inside)
        config.finish(("build_input_shape",))
        own = [part for part in inside if part.kind not in ("InputLayer", *MASK_OPS)]
        of_layer = dict(zip((part.name for part in own), weights.items("layers", own), strict=True))
        if len(of_layer) != len(own):
            raise config.error("two of its layers have one name")
        last = len(inside) - 1 if links is None else links.order[-1]
        order = range(len(inside)) if links is None else links.order
        for i in order:
            part = inside[i]
            if part.kind == "InputLayer":
                self._input_layer(part, first=i == order[0])
                continue
            if self.chosen is not None or self.layers and self.layers[-1].outputs > 1:
                raise self.layers[-1].refuse_many()
            if links is not None and part.name in links.finals:
                part.values["return_sequences"] = False
            if part.kind in MODELS:
                self.model(part, of_layer[part.name], depth + 1)
            else:
                self._append(part, of_layer[part.name], used=None if links is None or i == last else (0,))
            of_layer[part.name].finish()
        if links is not None:
            self._choose(links.outputs, depth)

    def _input_layer(self, part: Config, first: bool) -> None:
        if not first:
            raise part.error("is not the first layer")
        found = _input(part)
        if self.input is None and not self.layers:
            self.input = found
            self._flow = Flow(found.axes, found.width)

    def _append(self, part: Config, weights: Weights, used: tuple[int, ...] | None) -> None:
        if len(self.layers) >= MAX_LAYERS:
            raise part.error(f"is one more than {MAX_LAYERS} layers")
        layer = _layer(part, weights, self._flow, self._major)
        if used is not None and isinstance(layer, Recurrent):
            layer.return_state = False  # nobody reads them
        self.layers.append(layer)
        self._flow = layer.flow

    def _choose(self, outputs: list[int], depth: int) -> None:
        """The outputs of the last layer that a Functional model gives."""
        count = self.layers[-1].outputs if self.layers else 0
        if any(i >= count for i in outputs):
            raise ValueError(f"output_layers: the last layer gives {count} outputs, not {max(outputs) + 1}")
        if count > 1:
            if depth:
                raise self.layers[-1].refuse_many()
            self.chosen = outputs


def _input(config: Config) -> Input:
    """What an InputLayer says of the input: its dtype, axes and last axis."""
    for name in ("sparse", "ragged", "optional"):
        config.fixed(name, False)
    dtype = config.get("dtype", None)
    if dtype is not None and (not isinstance(dtype, str) or dtype not in _INPUT_DTYPES):
        raise config.error(f"dtype {dtype!r:.80} is not supported, only {', '.join(_INPUT_DTYPES)}")
    shape = next((config.get(k) for k in ("batch_shape", "batch_input_shape") if k in config.values), None)
    config.finish()
    if shape is None:
        return Input(None if dtype is None else np.dtype(dtype), None, None)
    if not isinstance(shape, (list, tuple)) or not 1 <= len(shape) <= 8:
        raise config.error("its shape must be a list")
    width = shape[-1] if len(shape) > 1 else None
    if width is not None and (isinstance(width, bool) or not isinstance(width, int) or width < 1):
        raise config.error(f"its shape must hold sizes, got {width!r:.80}")
    return Input(None if dtype is None else np.dtype(dtype), len(shape), width)


_INPUT_DTYPES = (
    "float16", "float32", "float64", "bool",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
)  # fmt: skip
