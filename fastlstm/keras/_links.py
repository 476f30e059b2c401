"""Functional models: whether their layers are one chain, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ._cells import SINGLE
from ._config import Config

MASK_OPS = ("NotEqual", "Any")  # how such models spell the masks of Embedding and Masking


class Links(NamedTuple):
    """A Functional model that is a chain."""

    order: list[int]  # of its layers
    outputs: list[int]  # which of the last layer's outputs it gives
    finals: frozenset[str]  # recurrent layers of which the next one reads the final state h, not the output


class _Call(NamedTuple):
    """How one layer is called: on which output of which layer, with which mask."""

    source: tuple[str, int]
    mask: str | None


def chained(config: Config, inside: list[Config]) -> Links:
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
    finals: set[str] = set()
    for name, call in calls.items():
        source, index = call.source
        if source in after:
            raise inside[number[name]].error(f"{source!r} has another reader, {after[source]!r}")
        if index == 1 and source in number and _ends_in_output(inside[number[source]]):
            finals.add(source)
        elif index:
            raise inside[number[name]].error(f"reads output {index} of {source!r}, not the first")
        after[source] = name
    order: list[int] = []
    name = inputs[0][0]
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
    return Links(order, [index for _, index in outputs], frozenset(finals))


def _ends_in_output(part: Config) -> bool:
    """Whether the second output of a layer, its state h, is what return_sequences=False gives as the first.
    (Zeros for masked steps are not, and a sequence without a valid step keeps the state of a stateful layer.)
    """
    own = [part.values.get(key) for key in ("return_state", "zero_output_for_mask", "stateful")]
    return part.kind in SINGLE and own[0] is True and own[1] in (None, False) and own[2] in (None, False)


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
    if isinstance(value, (list, tuple)):
        raise part.error("is called on more than one input")
    inner = value.get("config") if isinstance(value, Mapping) else None
    if not isinstance(inner, Mapping) or value.get("class_name") != "__keras_tensor__":
        raise part.error("is called on something else than one tensor")
    return _reference(part, inner.get("keras_history"))


def _mask_op(part: Config) -> tuple[str, Any]:
    """What it reads and compares with: of NotEqual(x, value) x and value, of Any(x) x and None."""
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
            found = masks.get(call.mask)
            if found is not None and found[1] is None:  # Any(NotEqual(x, value))
                found = masks.get(found[0])
            if found is None or found != made:
                raise part.error("is given a mask by hand, which is not supported")
        if part.kind == "Embedding" and part.values.get("mask_zero") is True:
            made = call.source[0], 0
        elif part.kind == "Masking":
            made = call.source[0], part.values.get("mask_value", 0.0)
