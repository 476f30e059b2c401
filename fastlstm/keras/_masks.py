"""Masks: which steps of which sequence count. A mask may have holes, and fastlstm runs lengths.

The valid steps of each sequence are packed to the front, run with their number as the length, and their
outputs are spread to where they belong. Nothing is computed for a masked step, and nothing there is read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Steps:
    """The valid steps of a batch; valid [B, T] bool."""

    def __init__(self, valid: Array) -> None:
        self.valid = valid
        self.lengths: Array = valid.sum(axis=1)
        # Right-padded sequences are packed as they are.
        holes = bool((valid[:, 1:] > valid[:, :-1]).any())
        self._order = np.argsort(~valid, axis=1, kind="stable") if holes else None

    def pack(self, x: Array) -> Array:
        """x [B, T, n] with the valid steps of each sequence in front, in their order."""
        return x if self._order is None else np.take_along_axis(x, self._order[..., None], axis=1)

    def spread(self, y: Array, reverse: bool, zeros: bool) -> Array:
        """Packed outputs y [B, T, n] at their own steps.

        A masked step is zero, or (zeros=False) repeats the output of the step before it in the order of
        running, from the end on if `reverse`; zero if there is none.
        """
        if zeros and self._order is None:
            return y  # zero beyond each length already
        until = self.valid.cumsum(axis=1)
        if zeros:
            source = np.where(self.valid, until - 1, -1)
        elif reverse:
            source = until - self.valid
            source[source == self.lengths[:, None]] = -1
        else:
            source = until - 1
        spread = np.take_along_axis(y, np.maximum(source, 0)[..., None], axis=1)
        spread[source < 0] = 0
        return spread

    def last(self, h: Array, reverse: bool, zeros: bool) -> Array:
        """The output of the step that is run last, given each sequence's final h [B, n]."""
        kept = self.valid[:, 0 if reverse else -1] if zeros and self.valid.size else self.lengths > 0
        return np.where(kept[:, None], h, h.dtype.type(0))
