"""Where the weights of a layer come from: an object in memory, a .keras file, or an .h5 file.

All three answer the same questions: `attribute` for a layer inside of another, `items` for a list of them,
`take` for a layer's own arrays, by name and shape. What comes does not fit is refused, before it is read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ._config import Config
from ._files import Dataset, Group, same_or_unknown

Array = npt.NDArray[Any]
Shape = tuple[int | None, ...]  # None: any size


class Weights(Protocol):
    """The weights of one layer."""

    def attribute(self, name: str) -> Weights:
        """Of the layer that is its attribute."""

    def items(self, name: str, layers: Sequence[Config]) -> list[Weights]:
        """Of the layers that it lists, which have these configurations."""

    def take(self, config: Config, shapes: Mapping[str, Shape]) -> dict[str, Array]:
        """Its own arrays, in this order: fresh ones of float16, float32 or float64."""

    def finish(self) -> None:
        """Refuse what is left over, where that can be told."""


def _check_count(config: Config, names: Sequence[str], count: int) -> None:
    if count != len(names):
        wanted = ", ".join(names) or "none"
        hint = ": it has not been built, so call it once" if not count else ""
        raise config.error(f"has {count} weights, wanted {len(names)} ({wanted}){hint}")


def _check_shape(config: Config, name: str, got: tuple[int, ...], wanted: Shape) -> None:
    if not same_or_unknown(got, wanted):
        sizes = ", ".join("any" if size is None else str(size) for size in wanted)
        raise config.error(f"{name} must have shape ({sizes}), got {got}")


class LiveWeights:
    """Of an object of Keras's, read through its public attributes."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def attribute(self, name: str) -> LiveWeights:
        return LiveWeights(getattr(self._layer, name))

    def items(self, name: str, layers: Sequence[Config]) -> list[Weights]:
        inside = [item for item in getattr(self._layer, name) if type(item).__name__ != "InputLayer"]
        return [LiveWeights(item) for item in inside]

    def take(self, config: Config, shapes: Mapping[str, Shape]) -> dict[str, Array]:
        variables = list(self._layer.weights)
        _check_count(config, list(shapes), len(variables))
        found = {}
        for (name, wanted), variable in zip(shapes.items(), variables, strict=True):
            if variable.name != name:
                raise config.error(f"its weights must be {', '.join(shapes)}, got {variable.name}")
            array = np.array(variable.numpy())
            if array.dtype not in (np.float32, np.float64):
                raise config.error(f"{name} must be float32 or float64, got {array.dtype}")
            _check_shape(config, name, array.shape, wanted)
            found[name] = array
        return found

    def finish(self) -> None:
        pass


class KerasFileWeights:
    """Of model.weights.h5 in a .keras file, which has a group for each layer, named by its class and number
    among the layers of that class, and in it `vars` with arrays 0, 1, .."""

    def __init__(self, root: Group, path: tuple[str, ...] = ()) -> None:
        self._root, self._path = root, path

    def attribute(self, name: str) -> KerasFileWeights:
        return KerasFileWeights(self._root, (*self._path, name))

    def items(self, name: str, layers: Sequence[Config]) -> list[Weights]:
        seen: Counter[str] = Counter()
        found: list[Weights] = []
        if name == "layers" and not self._root.has(name):
            name = "_layer_checkpoint_dependencies"  # as Keras 2.12 and 2.13 called it
        for config in layers:
            group = snake_case(config.kind)
            number = f"_{seen[group]}" if seen[group] else ""
            seen[group] += 1
            found.append(KerasFileWeights(self._root, (*self._path, name, group + number)))
        return found

    def take(self, config: Config, shapes: Mapping[str, Shape]) -> dict[str, Array]:
        group = self._root
        for part in (*self._path, "vars"):
            if not group.has(part):
                raise config.error(f"the file lacks its weights, {'/'.join((*self._path, 'vars'))}")
            group = group.group(part)
        _check_count(config, list(shapes), group.count())
        datasets = {name: group.dataset(str(i)) for i, name in enumerate(shapes)}
        return _read(config, datasets, shapes)

    def finish(self) -> None:
        pass


def snake_case(name: str) -> str:
    """BatchNormalization to batch_normalization, as Keras names groups."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


class LegacyWeights:
    """Of `model_weights` in an .h5 file: a group for each layer of the model, named as the layer is, which
    lists its arrays and those of all layers inside of it, those to be trained first."""

    def __init__(self, root: Group, pool: _Pool | None = None, inside: bool = False) -> None:
        """pool: of the layer of the model that this is, or that it is inside of; None: the model itself."""
        self._root, self._pool, self._inside = root, pool, inside

    def attribute(self, name: str) -> LegacyWeights:
        return LegacyWeights(self._root, self._pool, inside=True)

    def items(self, name: str, layers: Sequence[Config]) -> list[Weights]:
        if self._pool is not None:
            return [self.attribute(name) for _ in layers]
        return [LegacyWeights(self._root, _Pool(self._root, config)) for config in layers]

    def take(self, config: Config, shapes: Mapping[str, Shape]) -> dict[str, Array]:
        if self._pool is None:
            raise config.error("an .h5 file holds a whole model only")
        datasets = {name: self._pool.next(config, name) for name in shapes}
        return _read(config, datasets, shapes)

    def finish(self) -> None:
        if self._pool is not None and not self._inside:
            self._pool.finish()


class _Pool:
    """The arrays of one layer of the model, handed out by their own name, each once and in order."""

    def __init__(self, root: Group, config: Config) -> None:
        self._config = config
        self._group = root.group(config.name) if root.has(config.name) else None
        self._left = [] if self._group is None else self._group.names("weight_names")
        self._trained: set[bool] = set()

    def next(self, config: Config, name: str) -> Dataset:
        # Frozen layers come last, so that the order is no longer that of the layers.
        self._trained.add(config.values.get("trainable") is not False)
        if len(self._trained) > 1:
            raise self._config.error("is frozen in part, which an .h5 file mixes up: save it as .keras")
        for path in self._left:
            if path.split("/")[-1].split(":")[0] == name and self._group is not None:
                self._left.remove(path)
                return self._group.dataset(path)
        raise config.error(f"the file lacks its weight {name}")

    def finish(self) -> None:
        if self._left:
            raise self._config.error(f"the file has more weights than it takes: {self._left[0][:80]!r}")


def _read(config: Config, datasets: Mapping[str, Dataset], shapes: Mapping[str, Shape]) -> dict[str, Array]:
    """All of them, once all are known to fit."""
    for name, dataset in datasets.items():
        _check_shape(config, name, dataset.shape, shapes[name])
    return {name: dataset.read() for name, dataset in datasets.items()}
