"""Losses and what they need: each loss returns its value and its gradient by the first argument.

float32 and float64 are computed in their own precision, narrower floats in float32, integers in float64. A
row's numbers do not depend on the rows beside it; their last bits are those of NumPy's exp and log, which in
float64 differ between AVX-512 and other CPUs. Inf and NaN are values like any other.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from . import _check

__all__ = ["binary_cross_entropy_with_logits", "cross_entropy", "log_softmax", "mse_loss", "softmax"]

Array: TypeAlias = npt.NDArray[Any]
Loss: TypeAlias = float | Array  # a float, or with reduction="none" an array

REDUCTIONS = ("mean", "sum", "none")


def softmax(x: npt.ArrayLike, axis: int = -1) -> Array:
    """e^x / Σ e^x along an axis, in x's shape.

    x: an array-like of real numbers with at least one axis.

    The largest entry is subtracted first, so that nothing overflows. Raises TypeError or ValueError naming
    the argument. Bridle 1990, "Probabilistic interpretation of feedforward classification network outputs".
    """
    x = _check.floats("x", x, 1)
    e, total, _ = _exponentials(x, _check.axis("axis", axis, x.ndim))
    with np.errstate(all="ignore"):
        e /= total
    return e


def log_softmax(x: npt.ArrayLike, axis: int = -1) -> Array:
    """log(softmax(x)) without its loss of small probabilities: x - max - log Σ e^(x - max).

    x: an array-like of real numbers with at least one axis. Raises TypeError or ValueError naming the
    argument.
    """
    x = _check.floats("x", x, 1)
    _, total, shifted = _exponentials(x, _check.axis("axis", axis, x.ndim))
    with np.errstate(all="ignore"):
        shifted -= np.log(total)
    return shifted


def _exponentials(x: Array, axis: int) -> tuple[Array, Array, Array]:
    """e^(x - max), its sum along the axis, x - max."""
    with np.errstate(all="ignore"):
        shifted = x - x.max(axis=axis, keepdims=True, initial=-np.inf)
        e = np.exp(shifted)
        return e, e.sum(axis=axis, keepdims=True), shifted


def cross_entropy(
    logits: npt.ArrayLike, targets: npt.ArrayLike, *, ignore_index: int = -100, reduction: str = "mean"
) -> tuple[Loss, Array]:
    """-log softmax(logits)[target], and its gradient by logits: softmax(logits) - one_hot(target).

    logits: [.., C], any real dtype; the classes lie on the last axis.
    targets: [..] integers in 0..C-1, or ignore_index: such a row counts for nothing, its gradient is zero.
    reduction: "mean" over the rows that count (NaN if none does, as PyTorch's), "sum", or "none" for one loss
        a row [..]. The gradient is that of the returned loss, for "none" of the losses' sum.

    Returns (loss, gradient [.., C]). Raises TypeError or ValueError naming the argument.
    """
    x = _check.floats("logits", logits, 1)
    reduction = _check.one_of("reduction", reduction, REDUCTIONS)
    ignore_index = _check.integer("ignore_index", ignore_index, -(2**63), 2**63 - 1)
    classes, counted = _check.targets("targets", targets, x, ignore_index)
    e, total, shifted = _exponentials(x.reshape(len(classes), x.shape[-1]), -1)
    rows = np.arange(len(classes))
    with np.errstate(all="ignore"):
        losses = np.log(total[:, 0]) - shifted[rows, classes]
        e /= total
        e[rows, classes] -= 1
        if not counted.all():
            losses[~counted] = 0
            e[~counted] = 0
        if reduction == "mean":
            e /= max(int(counted.sum()), 1)
    loss = _reduced(losses.reshape(x.shape[:-1]), int(counted.sum()), reduction)
    return loss, e.reshape(x.shape)


def mse_loss(input: npt.ArrayLike, target: npt.ArrayLike, *, reduction: str = "mean") -> tuple[Loss, Array]:
    """(input - target)², and its gradient by input: 2 (input - target).

    input, target: arrays of one shape; target is converted to input's dtype.
    reduction: "mean" over all entries, "sum", or "none" for one loss an entry. The gradient is that of the
        returned loss, for "none" of the losses' sum.

    Returns (loss, gradient in input's shape). Raises TypeError or ValueError naming the argument.
    """
    x = _check.floats("input", input)
    t = _check.floats_like("target", target, "input", x)
    reduction = _check.one_of("reduction", reduction, REDUCTIONS)
    with np.errstate(all="ignore"):
        gradient = np.asarray(x - t)
        loss = _reduced(gradient * gradient, x.size, reduction)
        gradient *= 2 / max(x.size, 1) if reduction == "mean" else 2
    return loss, gradient


def binary_cross_entropy_with_logits(
    input: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    weight: npt.ArrayLike | None = None,
    pos_weight: npt.ArrayLike | None = None,
    reduction: str = "mean",
) -> tuple[Loss, Array]:
    """-w (p t log σ(x) + (1 - t) log(1 - σ(x))), and its gradient by x: w ((p t + 1 - t) σ(x) - p t).

    input: x, logits of any shape; target: t, of the same shape, usually in 0..1.
    weight: w, pos_weight: p, each None (1) or an array that broadcasts to input's shape.
    reduction: "mean" over all entries (whatever their weights, as PyTorch's), "sum", or "none" for one loss
        an entry. The gradient is that of the returned loss, for "none" of the losses' sum.

    Returns (loss, gradient in input's shape). Raises TypeError or ValueError naming the argument.
    """
    x = _check.floats("input", input)
    t = _check.floats_like("target", target, "input", x)
    w = None if weight is None else _check.broadcast_to("weight", weight, "input", x)
    reduction = _check.one_of("reduction", reduction, REDUCTIONS)
    positive = t if pos_weight is None else _check.broadcast_to("pos_weight", pos_weight, "input", x) * t
    with np.errstate(all="ignore"):
        e = np.exp(-np.abs(x))  # no overflow; log σ(x) = min(x, 0) - log(1 + e)
        log_sigmoid = np.minimum(x, 0) - np.log1p(e)
        losses = np.asarray((1 - t) * x - (positive + (1 - t)) * log_sigmoid)
        sigmoid = np.where(x >= 0, 1, e) / (1 + e)
        gradient = np.asarray((positive + (1 - t)) * sigmoid - positive)
        if w is not None:
            losses, gradient = np.asarray(losses * w), np.asarray(gradient * w)
        loss = _reduced(losses, x.size, reduction)
        if reduction == "mean":
            gradient /= max(x.size, 1)
    return loss, gradient


def _reduced(losses: Array, count: int, reduction: str) -> Loss:
    """The sum is taken in float64, so that a long text loses nothing in it."""
    if reduction == "none":
        return np.asarray(losses)
    total = float(losses.sum(dtype=np.float64))
    if reduction == "sum":
        return total
    return total / count if count else float("nan")
