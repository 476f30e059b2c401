"""KerasModel: a chain of Keras's layers, run by fastlstm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import fastlstm
from fastlstm import _check

from ._layers import Embedding, Layer
from ._masks import Steps
from ._recurrent import Recurrent

Array = npt.NDArray[Any]


class KerasModel:
    """A trained network of Keras's that runs on fastlstm; made by `from_keras`.

    `model(x)` gives what Keras's own gives: the same shapes, masks and states, as NumPy arrays. All weights
    were converted once; later changes of the Keras object have no effect. Threads may share a model unless
    a layer is stateful.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        layers: Sequence[Layer],
        input_dtype: np.dtype[Any] | None = None,
        input_axes: int | None = None,
        chosen: Sequence[int] | None = None,
    ) -> None:
        """For `from_keras`: kind is the class of the model or layer; `input_dtype` and `input_axes` are those
        of its InputLayer, if any; `chosen` are the outputs of the last layer that the model gives."""
        self.name, self._kind = name, kind
        self._layers = tuple(layers)
        self._input_dtype, self._input_axes, self._chosen = input_dtype, input_axes, chosen

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that do something, in order; those of models inside of the model among them."""
        return self._layers

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64: of all arithmetic and of the output."""
        return self._layers[0].dtype

    @property
    def parameters(self) -> dict[str, Array]:
        """Copies of all weights as Keras packs them, named by layer: `lstm/cell/kernel`."""
        return {f"{layer.name}/{n}": v.copy() for layer in self._layers for n, v in layer.weights.items()}

    @property
    def stateful(self) -> bool:
        """Whether a layer keeps its state from call to call."""
        return any(layer.stateful for layer in self._recurrent())

    def _recurrent(self) -> Iterator[Recurrent]:
        return (layer for layer in self._layers if isinstance(layer, Recurrent))

    def reset_states(self) -> None:
        """Let the stateful layers begin with zeros again, and with any number of sequences."""
        for layer in self._recurrent():
            layer.reset_states()

    reset_state = reset_states

    def __call__(self, x: npt.ArrayLike, mask: npt.ArrayLike | None = None, initial_state: Any = None) -> Any:
        """Run whole sequences.

        x: [B, T, n], or tokens [B, T] if the first layer is an Embedding; without recurrent layers, what the
            first layer takes. Converted to the model's dtype (through that of its InputLayer, as Keras does).
        mask: [B, T], nonzero where a step counts; what Embedding(mask_zero=True) and Masking find replaces
            it. It may have holes. A masked step keeps the state; its output is the one before it or zero, as
            the layer says.
        initial_state: of a single recurrent layer: h [B, H], or a list of all states, as Keras takes it.

        Returns the output, [B, T, m] or [B, m]; a list of output and states if the last layer has
        return_state=True, of two outputs if it is Bidirectional with merge_mode=None. Raises TypeError or
        ValueError naming the argument or the layer.
        """
        y: Any = self._input(x)
        steps = None if mask is None else Steps(_mask(mask, y.shape))
        if initial_state is not None:
            (first, *others) = self._layers
            if others or not isinstance(first, Recurrent):
                raise TypeError("initial_state is for a model of one recurrent layer alone")
            return self._selected(first(y, steps, initial_state)[0])
        for layer in self._layers:
            y, steps = layer(y, steps)
        return self._selected(y)

    def predict(self, x: npt.ArrayLike, batch_size: int | None = None, verbose: Any = 0) -> Any:
        """The same, in batches of that many sequences; None: all at once, which a stateful model wants.

        verbose: 0, 1, 2 or "auto", as Keras takes it: nothing is printed. Raises as a call.
        """
        if isinstance(verbose, bool) or verbose not in (0, 1, 2, "auto"):
            raise ValueError(f"verbose must be 0, 1, 2 or 'auto', got {verbose!r}")
        array = np.asarray(x)
        if batch_size is None or len(array) <= _check.integer("batch_size", batch_size, 1):
            return self(array)
        parts = [self(array[i : i + batch_size]) for i in range(0, len(array), batch_size)]
        if not isinstance(parts[0], list):
            return np.concatenate(parts)
        return [_joined(values) for values in zip(*parts, strict=True)]

    def _input(self, x: Any) -> Array:
        """x as the first layer takes it, by way of the InputLayer's dtype and axes."""
        array = _check.real_array("x", x)
        if self._input_axes is not None and array.ndim != self._input_axes:
            if array.ndim == self._input_axes + 1 and array.shape[-1] == 1:
                array = array[..., 0]
            elif array.ndim == self._input_axes - 1:
                array = array[..., None]
            else:
                raise ValueError(f"x must have {self._input_axes} axes, got shape {array.shape}")
        embeds, dtype = isinstance(self._layers[0], Embedding), self._input_dtype
        if dtype is not None and dtype != array.dtype and not (embeds and array.dtype.kind in "iu"):
            array = array.astype(dtype)
        return array if embeds else array.astype(self.dtype, copy=False)

    def _selected(self, y: Any) -> Any:
        if self._chosen is None:
            return y
        values = y if isinstance(y, list) else [y]
        found = [values[i] for i in self._chosen]
        return found[0] if len(found) == 1 else found

    def to_sequential(self, masks_as_lengths: bool = False) -> fastlstm.Sequential:
        """A plain `fastlstm.Sequential` of the same layers, batch_first, with copies of the weights: it
        streams, trains and saves.

        masks_as_lengths: take a model that finds its own masks (mask_zero, Masking) too, without them: pass
            `lengths` instead. Outputs beyond a sequence's length are zero there, whatever Keras gives.

        What Keras keeps in a stateful layer is the Sequential's explicit state. Raises ValueError naming the
        layer that has no counterpart and why; nothing is left out but what does nothing in a call.
        """
        masks_as_lengths = _check.flag("masks_as_lengths", masks_as_lengths)
        if self._chosen is not None and tuple(self._chosen) != (0,):
            raise self._layers[-1].refuse("the model gives states")
        parts = [part for layer in self._layers for part in layer.modules(masks_as_lengths)]
        if not any(isinstance(part, (fastlstm.Linear, fastlstm.Embedding)) or hasattr(part, "hidden_size")
                   for part in parts):  # fmt: skip
            raise ValueError(f"{self!r} has no layer with weights that a Sequential could hold")
        return fastlstm.Sequential(*_copies(parts))

    def origins(self, masks_as_lengths: bool = False) -> dict[str, str]:
        """For each parameter of `to_sequential`, the weight of Keras's that it was made of."""
        found: dict[str, str] = {}
        number = 0
        for layer in self._layers:
            for i, part in enumerate(layer.modules(masks_as_lengths)):
                cell = f"cell/cells/{i}/"  # of several, each is a module
                own = {n: v for n, v in layer.weights.items() if "cell/cells/" not in n or cell in n}
                for name in part.state_dict():
                    found[f"{number}.{name}"] = _origin(name, layer.name, own)
                number += 1
        return found

    def __repr__(self) -> str:
        inside = ", ".join(map(repr, self._layers))
        return f"KerasModel({self._kind} {self.name!r}: {inside})"


_ROLES = {  # of fastlstm's parameters: what Keras calls such a weight
    "weight_ih": ("kernel",),
    "weight_hh": ("recurrent_kernel",),
    "bias_ih": ("bias",),
    "bias_hh": ("bias",),
    "weight": ("kernel", "embeddings", "gamma"),
    "bias": ("bias", "beta"),
}


def _origin(name: str, layer: str, weights: Mapping[str, Array]) -> str:
    """The weight that a parameter such as weight_ih_l0_reverse was made of."""
    role, _, rest = name.partition("_l0")
    for weight, array in weights.items():
        backward = weight.startswith("backward_layer/")
        if weight.split("/")[-1] in _ROLES[role] and backward == (rest == "_reverse"):
            if role != "bias_hh" or array.ndim == 2:  # Keras has one bias but for GRU's reset_after
                return f"{layer}/{weight}"
    return "constant, not of Keras's"


def _joined(values: Any) -> Any:
    """Batches of one output, which may be a list of states."""
    if isinstance(values[0], list):
        return [_joined(inner) for inner in zip(*values, strict=True)]
    return np.concatenate(values)


def _mask(mask: Any, shape: tuple[int, ...]) -> Array:
    valid: Array = _check.real_array("mask", mask) != 0
    if len(shape) < 2 or valid.shape != shape[:2]:
        raise ValueError(f"mask must be [B, T] = {shape[:2]}, got shape {valid.shape}")
    return valid


def _copies(parts: list[Any]) -> list[Any]:
    """So that what happens to one object does not happen to the other."""
    import copy

    return [copy.copy(part) for part in parts]
