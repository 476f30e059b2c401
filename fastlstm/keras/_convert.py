"""From a configuration and weights to a KerasModel: models of one chain, flattened."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from . import _files
from ._config import Config
from ._layers import Flow, Layer, stateless
from ._model import KerasModel
from ._recurrent import Recurrent, recurrent
from ._weights import KerasFileWeights, LegacyWeights, LiveWeights, Weights

MODELS = ("Sequential", "Functional", "Model")
MASK_OPS = ("NotEqual", "Any")  # how Functional models spell the masks of Embedding and Masking
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
        links = None if config.kind == "Sequential" else _links(config, inside)
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


# --- functional models: are they a chain? -------------------------------------------------------------------


class _Links(NamedTuple):
    """A Functional model that is a chain."""

    order: list[int]  # of its layers
    outputs: list[int]  # which of the last layer's outputs it gives


class _Call(NamedTuple):
    """How one layer is called: on which output of which layer, with which mask."""

    source: tuple[str, int]
    mask: str | None


def _links(config: Config, inside: list[Config]) -> _Links:
    """The order of a Functional model's layers; ValueError naming the layer where it is no chain."""
    number = {part.name: i for i, part in enumerate(inside)}
    if len(number) != len(inside):
        raise config.error("two of its layers have one name")
    inputs, outputs = _references(config, "input_layers"), _references(config, "output_layers")
    if len(inputs) != 1:
        raise config.error(f"has {len(inputs)} inputs, only one is supported")
    calls = {p.name: _call(p) for p in inside if p.kind not in ("InputLayer", *MASK_OPS)}
    masks = {p.name: _mask_op(p) for p in inside if p.kind in MASK_OPS}
    after: dict[str, str] = {}
    for name, call in calls.items():
        source, index = call.source
        if source in after:
            raise inside[number[name]].error(f"{source!r} has another reader, {after[source]!r}")
        if index:
            raise inside[number[name]].error(f"reads output {index} of {source!r}, only the first is supported")
        after[source] = name
    order, name = [], inputs[0][0]
    while name in number and len(order) < len(inside):
        order.append(number[name])
        if name not in after:
            break
        name = after[name]
    if len(order) != len(calls) + 1 or inside[order[0]].kind != "InputLayer":
        raise config.error("is no single chain of layers from one input on")
    if any(source != inside[order[-1]].name for source, _ in outputs) or not outputs:
        raise config.error(f"gives outputs of other layers than its last, {inside[order[-1]].name!r}")
    _check_masks([inside[i] for i in order], calls, masks)
    return _Links(order, [index for _, index in outputs])


def _references(config: Config, key: str) -> list[tuple[str, int]]:
    """input_layers or output_layers: [name, 0, index], or a list of such."""
    value = config.items(key)
    listed = [value] if value and isinstance(value[0], str) else value
    return [_reference(config, item) for item in listed]


def _reference(config: Config, value: Any) -> tuple[str, int]:
    if isinstance(value, (list, tuple)) and len(value) >= 3:
        name, node, index = value[:3]
        plain = all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in (node, index))
        if isinstance(name, str) and plain:
            return name, index
    raise config.error("its links must be [layer, node, output]: dictionaries of inputs are not supported")


def _call(part: Config) -> _Call:
    """The one call of a layer: as Keras 3 writes it, {"args", "kwargs"}, or Keras 2, [[[name, 0, 0, {}]]]."""
    nodes = part.inbound
    if not isinstance(nodes, (list, tuple)) or len(nodes) != 1:
        count = len(nodes) if isinstance(nodes, (list, tuple)) else 0
        raise part.error(f"is called {count} times, only once is supported")
    (node,) = nodes
    if not isinstance(node, Mapping):
        return _old_call(part, node)
    args, kwargs = node.get("args"), node.get("kwargs")
    if not isinstance(args, (list, tuple)) or len(args) != 1 or not isinstance(kwargs, Mapping):
        raise part.error("is called on more than one input")
    for key, value in kwargs.items():
        if key != "mask" and value not in (None, False):
            raise part.error(f"is called with {key!s:.80}, which is not supported")
    mask = kwargs.get("mask")
    return _Call(_tensor(part, args[0]), None if mask is None else _tensor(part, mask)[0])


def _old_call(part: Config, node: Any) -> _Call:
    if isinstance(node, (list, tuple)) and node and isinstance(node[0], str):
        node = [node]
    if not isinstance(node, (list, tuple)) or len(node) != 1:
        raise part.error("is called on more than one input")
    (link,) = node
    options = link[3] if isinstance(link, (list, tuple)) and len(link) > 3 else {}
    if not isinstance(options, Mapping) or any(v not in (None, False) for v in options.values()):
        raise part.error("is called with options, which is not supported")
    return _Call(_reference(part, link), None)


def _tensor(part: Config, value: Any) -> tuple[str, int]:
    inner = value.get("config") if isinstance(value, Mapping) else None
    if not isinstance(inner, Mapping) or value.get("class_name") != "__keras_tensor__":
        raise part.error("is called on something else than one tensor")
    return _reference(part, inner.get("keras_history"))


def _mask_op(part: Config) -> tuple[str, Any]:
    """What it reads and compares with: of NotEqual(x, value) a name and the value, of Any(x) a name and None."""
    nodes = part.inbound if isinstance(part.inbound, (list, tuple)) else []
    args = nodes[0].get("args") if len(nodes) == 1 and isinstance(nodes[0], Mapping) else None
    if not isinstance(args, (list, tuple)) or len(args) != (2 if part.kind == "NotEqual" else 1):
        raise part.error("is an operation that is not supported here")
    source = _tensor(part, args[0])[0]
    if part.kind == "NotEqual":
        return source, args[1]
    part.fixed("axis", -1)
    part.fixed("keepdims", False)
    return source, None


def _check_masks(
    order: list[Config], calls: Mapping[str, _Call], masks: Mapping[str, tuple[str, Any]]
) -> None:
    """Each mask that is handed over by name is the one that Embedding or Masking made last."""
    made: tuple[str, Any] | None = None  # what it reads and compares with
    for part in order[1:]:
        call = calls[part.name]
        if call.mask is not None:
            found = masks.get(call.mask, (None, None))
            if found[1] is None and found[0] in masks:  # Any(NotEqual(x, value))
                found = masks[found[0]]
            if made is None or found[0] != made[0] or found[1] != made[1]:
                raise part.error("is given a mask by hand, which is not supported")
        if part.kind == "Embedding" and part.values.get("mask_zero") is True:
            made = call.source[0], 0
        elif part.kind == "Masking":
            made = call.source[0], part.values.get("mask_value", 0.0)


def described(model: KerasModel) -> Iterator[str]:
    """One line for each layer."""
    for i, layer in enumerate(model.layers):
        yield f"{i}  {layer!r}"
