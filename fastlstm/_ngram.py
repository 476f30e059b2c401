"""The baseline of `fastlstm train`: an interpolated n-gram model of the same text.

The probability of a symbol w after a context h of k symbols mixes its share there with its probability after
the context h' without its first symbol, by Witten and Bell's estimate of how likely something new is:

    p(w | h) = (c(hw) + t(h) p(w | h')) / (c(h) + t(h))

c counts occurrences in the training text, t(h) the different symbols that follow h; where h never occurs
p(w | h) is p(w | h'), and below the empty context all symbols are alike. Witten & Bell 1991, "The
zero-frequency problem: estimating the probabilities of novel events in adaptive text compression" (method C),
interpolated as in Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

MAX_ORDER = 16  # the longest context that is tried


class Baseline(NamedTuple):
    """The model that was best on the validation text."""

    order: int  # symbols of context; an n-gram model's n less 1
    validation: float  # bits a symbol
    test: float


def baseline(train: Array, validation: Array, test: Array, symbols: int) -> Baseline:
    """Bits a symbol of the n-gram model of the training text, its order chosen on the validation text.

    train, validation, test: integers [n] in 0..symbols - 1, stretches of one text in this order, none empty.

    Longer contexts are tried until two in a row were no better.
    """
    codes = np.concatenate([train, validation, test]).astype(np.int64)
    best: Baseline | None = None
    for order, chances in enumerate(probabilities(codes, len(train), symbols)):
        bits = -np.log2(chances)
        found = Baseline(order, float(bits[: len(validation)].mean()), float(bits[len(validation) :].mean()))
        if best is None or found.validation < best.validation:
            best = found
        elif order >= best.order + 2:
            break
    assert best is not None
    return best


def probabilities(codes: Array, train: int, symbols: int) -> Iterator[Array]:
    """With contexts of 0, 1, 2, .. symbols: what codes[train:] were expected at, counting in codes[:train].

    All positions are treated at once: contexts get numbers, and a context of k + 1 symbols is known by the
    number of the first k and the symbol after them.
    """
    chances = np.full(len(codes) - train, 1 / symbols)
    context = np.zeros(len(codes), np.int64)  # the number of each position's context, from `order` on
    for order in range(min(MAX_ORDER, train - 1) + 1):
        known = train - order  # positions of the training text that have such a context
        events, event = np.unique(context * symbols + codes[order:], return_inverse=True)
        count = np.bincount(event[:known], minlength=len(events))
        contexts = int(context.max()) + 1
        total = np.bincount(context[:known], minlength=contexts)
        kinds = np.bincount(events[count > 0] // symbols, minlength=contexts)
        held = context[known:]
        seen = total[held] > 0
        mixed = (count[event[known:]] + kinds[held] * chances) / np.maximum(total[held] + kinds[held], 1)
        chances = np.where(seen, mixed, chances)
        yield chances
        if not seen.any():
            return
        context = event[:-1]
