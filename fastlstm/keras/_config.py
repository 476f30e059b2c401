"""The configuration of a layer, as Keras writes it, read value by value.

What a file says is not trusted: each value has the type and range that its reader asks for, and what nobody
has read is refused by its name, so that no option is passed over in silence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

_UNSET = object()

# What matters to training or to Keras's own bookkeeping alone. `dropout` and `recurrent_dropout` of cells are
# among them: they act in training only.
INERT_ENDS = ("_initializer", "_regularizer", "_constraint")
INERT = frozenset({"trainable", "seed", "autocast", "dynamic", "batch_input_shape", "batch_shape"})
_SCALARS = (bool, int, float, str)
DTYPES = ("float32", "float64")


class Config:
    """One layer: its class and what its config says."""

    def __init__(self, value: Any, where: str = "") -> None:
        """value: {"class_name": .., "config": {..}}; where: the layer that it is inside of, for errors."""
        if not isinstance(value, Mapping) or not isinstance(value.get("class_name"), str):
            raise ValueError(f"{where or 'the model'}: no layer where one should be, {_short(value)}")
        self.kind: str = value["class_name"]
        self.values: dict[str, Any] = {}
        self._read: set[str] = set()
        self.where = f"{where}/{self.kind}" if where else self.kind
        self._check_class(value)
        values = value.get("config")
        if isinstance(values, list):  # as early Keras wrote the layers of a Sequential
            values = {"layers": values}
        if not isinstance(values, Mapping):
            raise self.error(f"its config must be a mapping, got {_short(values)}")
        self.values = {str(key): item for key, item in values.items()}
        self.inbound: Any = value.get("inbound_nodes")
        self.name = self.text("name", self.kind)
        self.where = f"{where}/{self.name}" if where else self.name

    def _check_class(self, value: Mapping[str, Any]) -> None:
        """Only classes of Keras's own: nothing that a file names is looked up."""
        module, registered = value.get("module"), value.get("registered_name")
        own = module is None or isinstance(module, str) and module.split(".")[0] in ("keras", "tf_keras")
        if not own or registered not in (None, self.kind):
            raise self.error(f"is a custom class, {_short(registered or module)}: only Keras's own are known")

    def error(self, what: str) -> ValueError:
        """What is wrong with this layer, by its name and class."""
        name = self.values.get("name")
        label = f"layer {self.where!r} ({self.kind})" if isinstance(name, str) else f"layer {self.where}"
        return ValueError(f"{label}: {what}")

    def get(self, key: str, default: Any = _UNSET) -> Any:
        """A value of any kind, which the caller looks at."""
        if key in self.values:
            self._read.add(key)
            return self.values[key]
        if default is _UNSET:
            raise self.error(f"its config lacks {key}")
        return default

    def text(self, key: str, default: Any = _UNSET) -> str:
        value = self.get(key, default)
        if not isinstance(value, str):
            raise self.error(f"{key} must be a string, got {_short(value)}")
        return value

    def flag(self, key: str, default: Any = _UNSET) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(f"{key} must be true or false, got {_short(value)}")
        return value

    def size(self, key: str) -> int:
        """An integer of at least 1. How large it may be, the weights decide."""
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
            raise self.error(f"{key} must be an integer in 1..2147483647, got {_short(value)}")
        return value

    def number(self, key: str, default: Any = _UNSET) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.error(f"{key} must be a finite number, got {_short(value)}")
        return float(value)

    def items(self, key: str) -> list[Any]:
        value = self.get(key)
        if not isinstance(value, (list, tuple)):
            raise self.error(f"{key} must be a list, got {_short(value)}")
        return list(value)

    def fixed(self, key: str, wanted: Any) -> None:
        """An option that may have one value only."""
        value = self.get(key, wanted)
        if value is None or value == wanted and type(value) is type(wanted):
            return
        raise self.error(f"{key}={_short(value)} is not supported, only {wanted!r}")

    def last_axis(self) -> int | None:
        """`axis`, which must be the last; None, or the number of axes that this makes x have."""
        value = self.get("axis", -1)
        if isinstance(value, (list, tuple)) and len(value) == 1:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or value in (0, 1) or not -1 <= value < 32:
            raise self.error(f"axis={_short(value)} is not supported, only the last one")
        return None if value == -1 else value + 1

    def dtype(self) -> str:
        """float32 or float64, of arithmetic and weights both."""
        value = self.get("dtype", "float32")
        if isinstance(value, Mapping):  # a policy, as Keras 3 writes it
            kind, inner = value.get("class_name"), value.get("config")
            name = inner.get("name") if isinstance(inner, Mapping) else None
            if kind not in ("DTypePolicy", "Policy"):
                raise self.error(f"dtype policy {_short(kind)} is not supported: only float32 and float64")
            value = name
        if not isinstance(value, str) or value not in DTYPES:
            raise self.error(f"dtype {_short(value)} is not supported: only float32 and float64")
        return value

    def same_dtype(self, inner: Config) -> None:
        """Refuse a layer inside of this one that computes in another dtype."""
        if inner.dtype() != self.dtype():
            raise inner.error(f"dtype {inner.dtype()} inside of a layer of {self.dtype()} is not supported")

    def part(self, key: str) -> Config:
        """The layer inside of this one."""
        return Config(self.get(key), self.where)

    def parts(self, key: str) -> list[Config]:
        """The layers inside of this one."""
        return [Config(item, self.where) for item in self.items(key)]

    def scalars(self) -> dict[str, Any]:
        """Its options that are a number, a string or a flag, for who looks at the file."""
        rest = self.values.keys() - INERT - {"name"}
        return {k: self.values[k] for k in self.values if k in rest and isinstance(self.values[k], _SCALARS)}

    def finish(self, inert: Iterable[str] = ()) -> None:
        """Refuse every option that has not been read, unless it is unset or matters to training alone.

        inert: more such options, of this class.
        """
        rest = self.values.keys() - self._read - INERT - set(inert) - {"dtype"}
        for key in sorted(rest):
            if self.values[key] is not None and not key.endswith(INERT_ENDS):
                raise self.error(f"{key}={_short(self.values[key])} is not supported")


def _short(value: Any) -> str:
    """For an error message, however large the value is."""
    if isinstance(value, str):
        return repr(value[:80])
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < 2**64 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, Mapping) and isinstance(value.get("class_name"), str):
        return f"a {value['class_name'][:80]}"
    if isinstance(value, (list, tuple)) and len(value) <= 4:
        return f"[{', '.join(_short(item) for item in value)}]"[:120]
    return f"a {type(value).__name__}"
