"""Losses: known answers, PyTorch, finite differences, edges and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastlstm

DTYPES = ("float32", "float64")
REDUCTIONS = ("mean", "sum", "none")
BOUND = {"float32": 2e-6, "float64": 1e-14}
SHAPES = [(1, 1), (7, 1), (1, 33), (7, 33), (3, 7, 5), (2, 1, 7, 33), (0, 7), (7,)]


def assert_close(got, wanted, dtype):
    """To within rounding of the largest entry; NaN and inf in the same places."""
    got, wanted = np.asarray(got, float), np.asarray(wanted, float)
    assert got.shape == wanted.shape
    finite = np.isfinite(wanted)
    assert np.array_equal(got[~finite], wanted[~finite], equal_nan=True)
    scale = max(np.abs(wanted[finite]).max(initial=0), 1e-3)
    assert np.abs(got[finite] - wanted[finite]).max(initial=0) <= BOUND[dtype] * scale


def assert_is_torchs(loss, torch_loss, arrays, reduction):
    """Value and gradient against PyTorch's."""
    torch = pytest.importorskip("torch")
    x, *rest = (torch.from_numpy(np.array(a)) for a in arrays)
    x.requires_grad_(True)
    wanted = torch_loss(x, *rest, reduction=reduction)
    wanted.sum().backward()
    got, gradient = loss(*arrays, reduction=reduction)
    dtype = arrays[0].dtype.name
    assert isinstance(got, np.ndarray if reduction == "none" else float)
    assert gradient.dtype == dtype and gradient.flags.writeable
    assert_close(got, wanted.detach().numpy(), dtype)
    assert_close(gradient, x.grad.numpy(), dtype)


def assert_slopes(loss, x, *rest, **options):
    """The gradient is the slope of the loss, by central differences in float64."""
    _, gradient = loss(x, *rest, **options)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = 1e-5
        slope = (loss(x + step, *rest, **options)[0] - loss(x - step, *rest, **options)[0]) / 2e-5
        assert abs(slope - gradient[index]) <= 1e-8, index


def targets_for(rng, shape, ignored):
    targets = rng.integers(0, shape[-1], shape[:-1])
    return np.where(rng.random(shape[:-1]) < 0.3, ignored, targets) if ignored is not None else targets


# --- known answers ----------------------------------------------------------------------------------------


def test_known_answers():
    assert np.allclose(fastlstm.softmax([math.log(1), math.log(2), math.log(5)]), [1 / 8, 2 / 8, 5 / 8])
    assert np.allclose(fastlstm.log_softmax([[0.0, 0.0]]), -math.log(2))
    loss, gradient = fastlstm.cross_entropy([[math.log(1), math.log(3)]] * 2, [0, 1])
    assert loss == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)
    assert np.allclose(gradient, [[-3 / 8, 3 / 8], [1 / 8, -1 / 8]])
    loss, gradient = fastlstm.mse_loss([1.0, 2.0, 3.0], [1.0, 0.0, 0.0])
    assert loss == pytest.approx(13 / 3) and np.allclose(gradient, [0, 4 / 3, 2])
    loss, gradient = fastlstm.binary_cross_entropy_with_logits([0.0, math.log(3)], [1.0, 0.0])
    assert loss == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert np.allclose(gradient, [-1 / 4, 3 / 8])


def test_extreme_logits_neither_overflow_nor_lose_the_tail():
    for dtype, big in (("float32", 3e38), ("float64", 1.7e308)):
        x = np.array([[big, 0, -big], [-big, -big, -big]], dtype)
        assert np.allclose(fastlstm.softmax(x), [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])
    assert fastlstm.log_softmax([0.0, 1000.0])[0] == -1000
    loss, gradient = fastlstm.binary_cross_entropy_with_logits(np.array([-80.0, 80.0, 1e4]), [0.0, 1.0, 0.0])
    assert loss == pytest.approx((2 * math.exp(-80) + 1e4) / 3)
    assert gradient[0] == pytest.approx(math.exp(-80) / 3, rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_alone(dtype):
    rng = np.random.default_rng(1)
    x, targets = rng.normal(size=(33, 70)).astype(dtype), rng.integers(0, 70, 33)
    whole, probabilities = fastlstm.cross_entropy(x, targets, reduction="none"), fastlstm.softmax(x)
    for k in range(33):
        loss, gradient = fastlstm.cross_entropy(x[k : k + 1], targets[k : k + 1], reduction="none")
        assert loss.tobytes() == whole[0][k : k + 1].tobytes()
        assert gradient.tobytes() == whole[1][k : k + 1].tobytes()
        assert fastlstm.softmax(x[k]).tobytes() == probabilities[k].tobytes()


# --- PyTorch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_is_pytorchs(shape, dtype):
    torch = pytest.importorskip("torch")
    x = 5 * np.random.default_rng(2).normal(size=shape).astype(dtype)
    before = x.copy()
    given = torch.from_numpy(x)
    for axis in range(-len(shape), len(shape)):
        assert_close(fastlstm.softmax(x, axis), torch.softmax(given, axis).numpy(), dtype)
        assert_close(fastlstm.log_softmax(x, axis), torch.log_softmax(given, axis).numpy(), dtype)
    assert np.array_equal(x, before)


def test_softmax_of_infinities_is_pytorchs():
    torch = pytest.importorskip("torch")
    inf = math.inf
    x = np.array([[-inf, 0, 1], [-inf, -inf, -inf], [inf, 0, 1], [math.nan, 0, 1]])
    assert_close(fastlstm.softmax(x), torch.softmax(torch.from_numpy(x), -1).numpy(), "float64")
    assert_close(fastlstm.log_softmax(x), torch.log_softmax(torch.from_numpy(x), -1).numpy(), "float64")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignored", [None, -100, 0, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_is_pytorchs(shape, ignored, reduction, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    x, targets = 3 * rng.normal(size=shape).astype(dtype), targets_for(rng, shape, ignored)
    ignore = {} if ignored is None else {"ignore_index": ignored}

    def torch_loss(x, targets, reduction):  # whose classes are the second axis
        flat = torch.nn.functional.cross_entropy(
            x.reshape(-1, shape[-1]), targets.reshape(-1), reduction=reduction, **ignore
        )
        return flat.reshape(shape[:-1]) if reduction == "none" else flat

    assert_is_torchs(
        lambda x, t, reduction: fastlstm.cross_entropy(x, t, reduction=reduction, **ignore),
        torch_loss,
        (x, targets),
        reduction,
    )


def test_cross_entropy_with_nothing_to_count():
    loss, gradient = fastlstm.cross_entropy(np.ones((2, 3)), [-100, -100])
    assert math.isnan(loss) and not gradient.any()
    x = np.array([[math.nan, 1.0], [0.0, 0.0]])
    loss, gradient = fastlstm.cross_entropy(x, [-100, 1])
    assert loss == math.log(2) and np.array_equal(gradient, [[0, 0], [0.5, -0.5]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [*SHAPES, ()])
def test_mse_loss_is_pytorchs(shape, reduction, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    arrays = [np.asarray(rng.normal(size=shape), dtype) for _ in range(2)]
    assert_is_torchs(fastlstm.mse_loss, torch.nn.functional.mse_loss, arrays, reduction)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", ["", "weight", "pos_weight", "both"])
@pytest.mark.parametrize("shape", [*SHAPES, ()])
def test_binary_cross_entropy_is_pytorchs(shape, weighted, reduction, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    x = np.asarray(20 * rng.normal(size=shape), dtype)
    target = np.asarray(rng.random(shape) if weighted else rng.random(shape) < 0.5, dtype)
    extras = {}
    if weighted in ("weight", "both"):
        extras["weight"] = np.asarray(rng.random(shape), dtype)
    if weighted in ("pos_weight", "both"):
        extras["pos_weight"] = np.asarray(3 * rng.random(shape[-1:]), dtype)

    def torch_loss(x, target, reduction):
        tensors = {name: torch.from_numpy(v) for name, v in extras.items()}
        return torch.nn.functional.binary_cross_entropy_with_logits(x, target, reduction=reduction, **tensors)

    assert_is_torchs(
        lambda x, t, reduction: fastlstm.binary_cross_entropy_with_logits(
            x, t, reduction=reduction, **extras
        ),
        torch_loss,
        (x, target),
        reduction,
    )


# --- finite differences -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_are_slopes(reduction):
    rng = np.random.default_rng(6)
    x, t = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3, 5))
    classes = np.array([[0, 4, -1], [2, 2, 1]])
    assert_slopes(fastlstm.cross_entropy, x, classes, ignore_index=-1, reduction=reduction)
    assert_slopes(fastlstm.mse_loss, x, t, reduction=reduction)
    assert_slopes(
        fastlstm.binary_cross_entropy_with_logits, x, rng.random(x.shape), weight=rng.random((3, 1)),
        pos_weight=[1, 2, 3, 0.5, 0], reduction=reduction,
    )  # fmt: skip


# --- dtypes and refusals ----------------------------------------------------------------------------------


def test_dtypes():
    assert fastlstm.softmax(np.ones(3, np.float16)).dtype == np.float32
    assert fastlstm.softmax([1, 2]).dtype == np.float64
    assert fastlstm.softmax(np.ones(3, ">f4")).dtype == np.float32
    _, gradient = fastlstm.mse_loss(np.ones(3, np.float32), [1, 2, 3])
    assert gradient.dtype == np.float32
    strided = np.arange(24.0).reshape(4, 6)[::2, ::-2]
    assert np.array_equal(fastlstm.softmax(strided), fastlstm.softmax(strided.copy()))


@pytest.mark.parametrize(
    ("call", "error", "blamed"),
    [
        (lambda: fastlstm.softmax(1.0), ValueError, "x must have at least 1 axis"),
        (lambda: fastlstm.softmax([1j]), TypeError, "x must hold real numbers"),
        (lambda: fastlstm.softmax([1.0], 1), ValueError, "axis"),
        (lambda: fastlstm.log_softmax([1.0], -2), ValueError, "axis"),
        (lambda: fastlstm.log_softmax([1.0], 0.0), TypeError, "axis"),
        (lambda: fastlstm.cross_entropy([[1.0, 2.0]], [2]), ValueError, "targets must be in 0..1, got 2"),
        (lambda: fastlstm.cross_entropy([[1.0, 2.0]], [-1]), ValueError, "targets"),
        (lambda: fastlstm.cross_entropy(np.ones((2, 1, 2)), [[1], [3]]), ValueError, "got 3 at 1, 0"),
        (lambda: fastlstm.cross_entropy(np.ones((3, 0)), [0, 0, 0]), ValueError, "logits must hold"),
        (lambda: fastlstm.cross_entropy([[1.0, 2.0]], [0.0]), TypeError, "targets must be integers"),
        (lambda: fastlstm.cross_entropy([[1.0, 2.0]], 0), ValueError, "targets"),
        (lambda: fastlstm.cross_entropy([[1.0, 2.0]], [[0]]), ValueError, "targets"),
        (lambda: fastlstm.cross_entropy([["a"]], [0]), TypeError, "logits"),
        (lambda: fastlstm.cross_entropy([[1.0]], [0], ignore_index=None), TypeError, "ignore_index"),
        (lambda: fastlstm.cross_entropy([[1.0]], [0], reduction="avg"), ValueError, "reduction"),
        (lambda: fastlstm.mse_loss([1.0], [1.0], reduction=None), TypeError, "reduction"),
        (lambda: fastlstm.mse_loss([1.0, 2.0], [1.0]), ValueError, "target must have the shape of input"),
        (lambda: fastlstm.mse_loss([1.0], ["x"]), TypeError, "target"),
        (lambda: fastlstm.binary_cross_entropy_with_logits([1.0], [[1.0]]), ValueError, "target"),
        (
            lambda: fastlstm.binary_cross_entropy_with_logits([1.0], [1.0], weight=[1.0, 2.0]),
            ValueError,
            "weight must broadcast",
        ),
        (
            lambda: fastlstm.binary_cross_entropy_with_logits([1.0], [1.0], pos_weight=[[1.0]]),
            ValueError,
            "pos_weight must broadcast",
        ),
    ],
)
def test_refusals_name_the_argument(call, error, blamed):
    with pytest.raises(error, match=blamed.replace("(", r"\(")):
        call()
