"""The element-wise functions of the cells on every path: the bounds of the kernel list, asserted from there.

tests/c/kernels.c tests every kernel between guard pages, tests/c/ulp.c over all floats; here are samples.
"""

import numpy as np
import pytest

from fastlstm import _core

PATHS = _core.isas()
DTYPES = {"float32": (np.float32, 90, 23), "float64": (np.float64, 712, 52)}
BOUNDS = {(k["op"], k["dtype"]): k["bound"] for k in _core.kernels() if k["bound"]}
each_path = pytest.mark.parametrize("path", PATHS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


EXACT = {"sigmoid": lambda a, b: sigmoid(a), "tanh": lambda a, b: np.tanh(a),
         "sigmoid_tanh": lambda a, b: sigmoid(a) * np.tanh(b)}  # fmt: skip


def wide(x, dtype):
    """With more bits than the kernel has; float64 where there is nothing wider."""
    return x.astype(np.float64 if dtype == "float32" else np.longdouble)


def sample(dtype, seed):
    real, largest, _ = DTYPES[dtype]
    rng = np.random.default_rng(seed)
    tiny = np.finfo(real).tiny
    x = np.concatenate([
        np.linspace(-largest, largest, 60_001),
        np.linspace(-2, 2, 40_001),
        rng.uniform(-20, 20, 60_000),
        np.ldexp(rng.uniform(-2, 2, 20_000), -rng.integers(0, 60, 20_000)),
        np.log(2) / 2 * rng.integers(-60, 60, 20_000) + rng.normal(0, 1e-4, 20_000),
        [0.0, -0.0, tiny, -tiny, 1, -1, 1e30, -1e30, np.inf, -np.inf, np.finfo(real).max],
    ])  # fmt: skip
    return x.astype(real)


def ulps(got, want, dtype):
    """Errors in units of the last place of the exact value; below the smallest normal number is 0."""
    real, _, mantissa = DTYPES[dtype]
    tiny = np.finfo(real).tiny
    size = np.maximum(np.abs(want), tiny)
    last = np.ldexp(np.ones_like(want), np.frexp(size)[1] - 1 - mantissa)
    error = np.abs(got.astype(want.dtype) - want) / last
    return np.where((np.abs(want) < 1.001 * tiny) & (np.abs(got) <= tiny), 0, error)


def test_the_list():
    listed = _core.kernels()
    assert {k["isa"] for k in listed} == {*PATHS, *_core.integer_isas()}
    assert len({k["name"] for k in listed}) == len(listed)
    for k in listed:
        short = {"float32": "_f32", "float64": "_f64"}[k["dtype"]]
        short = "" if k["op"].endswith("_int8") else short  # their operands are of several types
        assert k["name"] == f"fl_{k['op']}{short}_{k['isa']}" and k["doc"]
    assert BOUNDS.keys() == {(op, dtype) for op in EXACT for dtype in DTYPES}
    assert all(BOUNDS[op, "float32"] <= 2 for op in ("sigmoid", "tanh"))  # what is promised


@each_path
@each_dtype
@pytest.mark.parametrize("op", EXACT)
def test_bounds(op, dtype, path):
    a = sample(dtype, 1)
    b = np.random.default_rng(2).permutation(sample(dtype, 3))
    got = _core.map_kernel(op, a, b, path)
    want = EXACT[op](wide(a, dtype), wide(b, dtype))
    error = ulps(got, want, dtype)
    worst = int(np.argmax(error))
    assert error[worst] <= BOUNDS[op, dtype], f"{error[worst]} ulp at {a[worst]!r}, {b[worst]!r}"
    assert error[worst] > 0.4  # the measure measures


def test_the_measure_bites():
    a = np.linspace(-5, 5, 1001).astype("f4")
    got = _core.map_kernel("tanh", a)
    for _ in range(4):
        got = np.nextafter(got, np.float32(2))
    assert ulps(got, np.tanh(a.astype("f8")), "float32").max() > BOUNDS["tanh", "float32"]


@each_path
@each_dtype
def test_tails_keep_their_relative_accuracy(path, dtype):
    real, largest, _ = DTYPES[dtype]
    eps = np.finfo(real).eps
    x = np.linspace(-0.95 * largest, -10, 4001).astype(real)
    want = np.exp(wide(x, dtype))
    got = _core.map_kernel("sigmoid", x, path=path)
    assert np.all(np.abs(got - want / (1 + want)) <= 2.5 * eps * want) and np.all(got > 0)
    small = np.ldexp(real(1.2345), -np.arange(1, 120)).astype(real)
    for x in (small, -small):
        cubic = wide(x, dtype) - wide(x, dtype) ** 3 / 3
        near = np.abs(x) < (1e-3 if dtype == "float32" else 1e-5)  # where the next term is less than a bit
        tanh = _core.map_kernel("tanh", x, path=path)
        assert np.all(np.abs(tanh - cubic)[near] <= 2.5 * eps * np.abs(x)[near])
        fused = _core.map_kernel("sigmoid_tanh", np.zeros_like(x), x, path)
        assert np.all(np.abs(fused - cubic / 2)[near] <= 2.5 * eps * np.abs(x)[near])


@each_path
@each_dtype
def test_saturation_zero_and_nan(path, dtype):
    real = DTYPES[dtype][0]
    huge = np.array([30 if dtype == "float32" else 50, 800, 1e30, np.finfo(real).max, np.inf], real)
    assert np.all(_core.map_kernel("sigmoid", huge, path=path) == 1)
    assert np.all(_core.map_kernel("sigmoid", -huge[1:], path=path) <= np.finfo(real).tiny)
    assert np.all(_core.map_kernel("tanh", huge, path=path) == 1)
    assert np.all(_core.map_kernel("tanh", -huge, path=path) == -1)
    fused = _core.map_kernel("sigmoid_tanh", huge, -huge, path)
    assert np.all(fused == -1)
    zero = np.array([0.0, -0.0], real)
    for values in (_core.map_kernel("tanh", zero, path=path),
                   _core.map_kernel("sigmoid_tanh", np.ones_like(zero), zero, path)):  # fmt: skip
        assert np.array_equal(np.signbit(values), [False, True]) and not values.any()
    assert np.all(_core.map_kernel("sigmoid", zero, path=path) == 0.5)
    x = np.zeros(67, real)
    for at in (0, 5, 15, 16, 63, 66):  # whole registers and tails
        x[at] = np.nan
        for op, arguments in (("sigmoid", (x,)), ("tanh", (x,)), ("sigmoid_tanh", (x, np.ones_like(x))),
                              ("sigmoid_tanh", (np.ones_like(x), x))):  # fmt: skip
            assert np.flatnonzero(np.isnan(_core.map_kernel(op, *arguments, path=path))).tolist() == [at]
        x[at] = 0


@each_path
@each_dtype
def test_monotone_and_bounded(path, dtype):
    real, largest, _ = DTYPES[dtype]
    x = np.linspace(0, largest, 10_001).astype(real)
    x = np.concatenate([-x[:0:-1], x])  # its own mirror image, to the bit
    sigma, tanh = (_core.map_kernel(op, x, path=path) for op in ("sigmoid", "tanh"))
    assert sigma.min() >= 0 and sigma.max() <= 1 and np.abs(tanh).max() <= 1
    assert np.array_equal(tanh, -tanh[::-1])  # odd, to the bit
    slack = 4 * np.finfo(real).eps
    assert np.all(np.diff(sigma) >= -slack * sigma[:-1]) and np.all(np.diff(tanh) >= -slack)


@each_dtype
@pytest.mark.parametrize("path", PATHS[1:])
@pytest.mark.parametrize("op", EXACT)
def test_the_same_bits_on_every_path(op, dtype, path):
    if path == "portable" and "fma" not in _core.cpu_features():
        pytest.skip("without a fused multiply-add the portable path rounds for itself")
    a, b = sample(dtype, 5), sample(dtype, 6)[::-1].copy()
    assert _core.map_kernel(op, a, b, path).tobytes() == _core.map_kernel(op, a, b, PATHS[0]).tobytes()


def test_unknown_kernels_and_paths_are_refused():
    x = np.zeros(3, "f4")
    with pytest.raises(ValueError, match="op"):
        _core.map_kernel("lstm", x)
    with pytest.raises(ValueError, match="path"):
        _core.map_kernel("tanh", x, path="sse9")
    with pytest.raises(ValueError, match="b"):
        _core.map_kernel("sigmoid_tanh", x, np.zeros(4, "f4"))
