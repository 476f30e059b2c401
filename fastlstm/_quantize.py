"""Smaller weights: what a layer made by `quantize` holds, and what it stands for.

Held is each matrix as bfloat16 (uint16, the upper half of a float32) or int8 with a float32 scale for each
row; everything else stays float32. Rounding is the core's (`csrc/quantize.c`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from . import _core
from ._check import MATRIX, Array, Options, finite, frozen


def held(parameters: Mapping[str, Array], options: Options, prefix: str = "") -> dict[str, Array]:
    """The arrays that hold these parameters; ValueError names one, with the prefix, that int8 cannot hold."""
    if options.weight_dtype is None:
        return dict(parameters)
    arrays: dict[str, Array] = {}
    for name, value in parameters.items():
        if not MATRIX.fullmatch(name):
            arrays[name] = value
        elif options.weight_dtype == "bfloat16":
            arrays[name] = frozen(_core.to_bfloat16(value))
        else:
            finite(prefix + name, value)
            numbers, scale = _core.to_int8(value)
            arrays[name], arrays[f"{name}.scale"] = frozen(numbers), frozen(scale)
    return arrays


def parameters(held: Mapping[str, Array]) -> dict[str, Array]:
    """The parameters that these arrays stand for, exactly; fresh arrays."""
    values: dict[str, Array] = {}
    for name, value in held.items():
        if value.dtype == np.uint16:
            values[name] = (value.astype(np.uint32) << 16).view(np.float32)
        elif value.dtype == np.int8:
            values[name] = value * held[f"{name}.scale"][:, None]
        elif not name.endswith(".scale"):
            values[name] = value.copy()
    return values
