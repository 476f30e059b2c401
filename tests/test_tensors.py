"""`Core.forward_tensors` and `Watch`, which read memory that other libraries describe: with NumPy's DLPack
capsules, so that PyTorch is not needed. Nothing is read that a capsule does not vouch for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastlstm
from fastlstm._core import Exporter, Watch

INPUTS, H = 5, 7


export = Exporter(lambda array: array.__dlpack__())


LAYERS = {
    "LSTM": lambda **o: fastlstm.LSTM(INPUTS, H, seed=1, **o),
    "GRU": lambda **o: fastlstm.GRU(INPUTS, H, seed=1, **o),
    "RNN": lambda **o: fastlstm.RNN(INPUTS, H, seed=1, **o),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_same_bits_as_a_call(name: str, batch_first: bool, dtype: str) -> None:
    layer = LAYERS[name](num_layers=2, bidirectional=True, batch_first=batch_first, dtype=dtype)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3, INPUTS)).astype(dtype)
    batch = 4 if batch_first else 3
    h, c = (rng.standard_normal((4, batch, H)).astype(dtype) for _ in range(2))
    has_c = name == "LSTM"
    for state in (None, (h, c) if has_c else h):
        wanted, end = layer(x, state)
        given = (None, None) if state is None else (h, c if has_c else None)
        y, h_n, c_n = layer._core.forward_tensors(export, x, *given, batch_first, False)
        assert np.array_equal(y, wanted)
        assert np.array_equal(h_n, end[0] if has_c else end)
        assert c_n is None if not has_c else np.array_equal(c_n, end[1])


@pytest.mark.parametrize("name", LAYERS)
def test_a_cell_is_a_step(name: str) -> None:
    layer = LAYERS[name]()
    rng = np.random.default_rng(0)
    x, h, c = (rng.standard_normal((3, n)).astype("float32") for n in (INPUTS, H, H))
    has_c = name == "LSTM"
    _, end = layer(x[None], (h[None], c[None]) if has_c else h[None])
    y, h_n, c_n = layer._core.forward_tensors(export, x, h, c if has_c else None, False, True)
    assert h_n is None and np.array_equal(y, (end[0] if has_c else end)[0])
    assert c_n is None if not has_c else np.array_equal(c_n, end[1][0])


def good() -> dict[str, Any]:
    return {
        "x": np.ones((4, 3, INPUTS), "float32"),
        "h": np.ones((1, 3, H), "float32"),
        "c": np.ones((1, 3, H), "float32"),
    }


WRONG: dict[str, tuple[str, Any]] = {
    "x float64": ("x", np.ones((4, 3, INPUTS))),
    "x of integers": ("x", np.ones((4, 3, INPUTS), "int32")),
    "x float16": ("x", np.ones((4, 3, INPUTS), "float16")),
    "x of other features": ("x", np.ones((4, 3, INPUTS + 1), "float32")),
    "x of two axes": ("x", np.ones((4, INPUTS), "float32")),
    "x of four axes": ("x", np.ones((1, 4, 3, INPUTS), "float32")),
    "x without steps": ("x", np.ones((0, 3, INPUTS), "float32")),
    "x without batch": ("x", np.ones((4, 0, INPUTS), "float32")),
    "x strided": ("x", np.ones((4, 3, 2 * INPUTS), "float32")[..., ::2]),
    "x transposed": ("x", np.ones((3, 4, INPUTS), "float32").swapaxes(0, 1)),
    "x of one number": ("x", np.broadcast_to(np.ones(1, "float32"), (4, 3, INPUTS)).copy()[:, :, :1]),
    "h of a smaller batch": ("h", np.ones((1, 2, H), "float32")),
    "h of fewer layers": ("h", np.ones((0, 3, H), "float32")),
    "h of other units": ("h", np.ones((1, 3, H - 1), "float32")),
    "h of two axes": ("h", np.ones((3, H), "float32")),
    "h float64": ("h", np.ones((1, 3, H))),
    "h strided": ("h", np.ones((1, 6, H), "float32")[:, ::2]),
    "c of a smaller batch": ("c", np.ones((1, 2, H), "float32")),
    "c of other units": ("c", np.ones((1, 3, H + 1), "float32")),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_left_alone(what: str) -> None:
    core = LAYERS["LSTM"]()._core
    name, value = WRONG[what]
    arguments = good() | {name: value}
    assert core.forward_tensors(export, *good().values(), False, False) is not None
    assert core.forward_tensors(export, *arguments.values(), False, False) is None


def test_a_cell_state_where_there_is_none_is_left_alone() -> None:
    core = LAYERS["GRU"]()._core
    assert core.forward_tensors(export, *good().values(), False, False) is None


def test_capsules_only() -> None:
    core = LAYERS["GRU"]()._core
    x = good()["x"]
    for bad in (lambda a: None, lambda a: 3, lambda a: a, lambda a: a.__dlpack__(max_version=(1, 0))):
        with pytest.raises((ValueError, TypeError)):
            core.forward_tensors(Exporter(bad), x, None, None, False, False)
    with pytest.raises(TypeError, match="give: int, wanted"):
        Exporter(3)
    for wrong in (None, lambda a: a.__dlpack__()):
        with pytest.raises(TypeError):
            core.forward_tensors(wrong, x, None, None, False, False)
    with pytest.raises(ZeroDivisionError):
        core.forward_tensors(Exporter(lambda a: 1 / 0), x, None, None, False, False)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_of_the_same_memory(dtype: str) -> None:
    a = np.arange(60.0).astype(dtype).reshape(3, 4, 5)
    for view in (a, a[1], a[:, ::2], a.swapaxes(0, 2), a[..., :1], a[:0], a[1, 2, 3:4], np.array(3.0, dtype)):
        found = export.array(view)
        assert found.dtype == a.dtype and found.shape == view.shape and np.array_equal(found, view)
        assert not view.size or found.ctypes.data == view.ctypes.data
    kept = export.array(np.arange(1000.0))  # alive by this alone
    assert np.array_equal(kept, np.arange(1000.0))
    for wrong in (a.astype("int32"), a.astype("float16"), a.astype("complex64"), np.ones((1,) * 9)):
        with pytest.raises(TypeError, match="x: wanted float32 or float64"):
            export.array(wrong)


# --- weights ------------------------------------------------------------------------------------------------


class Weight:
    """An array as PyTorch's tensors are: with a count of changes that somebody may forget to raise."""

    def __init__(self, array: Any, version: int = 0) -> None:
        self.array, self.version = array, version

    @property
    def _version(self) -> int:
        if self.version < 0:
            raise RuntimeError("Inference tensors do not track version counter.")
        return self.version


def watch(**arrays: Any) -> tuple[Any, dict[str, Weight]]:
    weights = {name: Weight(array) for name, array in arrays.items()}
    size = next(iter(arrays.values())).itemsize
    return Watch(Exporter(lambda w: w.array.__dlpack__()), weights, size), weights


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_watch_sees_changes(dtype: str) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((40, 30)).astype(dtype), rng.standard_normal(33).astype(dtype)
    seen, weights = watch(a=a, b=b)
    for thorough in (False, True):
        assert seen.unchanged(weights, thorough)
        assert seen.unchanged({**weights, "other": None}, thorough)
        assert not seen.unchanged({"a": weights["a"]}, thorough)
        assert not seen.unchanged({**weights, "b": None}, thorough)
        assert not seen.unchanged({**weights, "a": Weight(a.copy())}, thorough)  # other memory
        assert not seen.unchanged({**weights, "a": Weight(a[:20])}, thorough)  # the same, but less
        assert not seen.unchanged({**weights, "a": Weight(a.reshape(30, 40))}, thorough)
        assert not seen.unchanged({**weights, "a": Weight(a.T)}, thorough)
        assert not seen.unchanged({**weights, "a": Weight(a.view("int32"))}, thorough)
        assert not seen.unchanged({**weights, "a": Weight(a, 1)}, thorough)  # counted
        assert not seen.unchanged({**weights, "a": Weight(a, -1)}, thorough)
    for k in range(b.size):  # small ones are looked at whole
        b[k] += 1
        assert not seen.unchanged(weights, False)
        b[k] = np.nan
        assert not seen.unchanged(weights, False)
        seen, weights = watch(a=a, b=b)
        assert seen.unchanged(weights, False)  # bits, not values: NaN is itself
    for k in range(a.size):
        a.reshape(-1)[k] += 1
        assert not seen.unchanged(weights, True)
        a.reshape(-1)[k] = 0
        seen, weights = watch(a=a, b=b)


def test_watch_sees_minus_zero() -> None:
    a = np.zeros((3, 4), "float32")
    seen, weights = watch(a=a)
    a[1, 1] = -0.0
    assert not seen.unchanged(weights, False)


@pytest.mark.parametrize(
    "shape", [(1,), (64,), (65,), (129,), (4096, 1), (300, 300), (1, 200001), (512, 640)]
)
def test_watch_looks_everywhere(shape: tuple[int, ...]) -> None:
    """A change of a whole row or column of a large weight, or of all of it, does not escape."""
    a = np.random.default_rng(0).standard_normal(shape).astype("float32")
    seen, weights = watch(a=a)
    assert seen.unchanged(weights, False) and seen.unchanged(weights, True)
    a *= np.float32(1.0001)
    assert not seen.unchanged(weights, False) and not seen.unchanged(weights, True)
    if len(shape) == 2 and min(shape) > 1:
        for index in range(shape[0]):
            seen, weights = watch(a=a)
            a[index] += 1
            assert not seen.unchanged(weights, True)
        for index in range(0, shape[1], 7):
            seen, weights = watch(a=a)
            a[:, index] += 1
            assert not seen.unchanged(weights, True)


def test_watch_without_versions() -> None:
    a = np.ones((3, 4), "float32")
    weights = {"a": Weight(a, -1)}
    seen = Watch(Exporter(lambda w: w.array.__dlpack__()), weights, 4)
    assert seen.unchanged(weights, False)
    assert not seen.unchanged({"a": Weight(a, 0)}, False)
    a[0, 0] = 2
    assert not seen.unchanged(weights, False)


@pytest.mark.parametrize(
    "array",
    [
        np.ones((2, 3, 4), "float32"),
        np.ones(3, "float64"),
        np.ones((3, 4), "float32").T,
        np.ones((0, 3), "float32"),
    ],
    ids=["three axes", "other type", "transposed", "empty"],
)
def test_watch_refuses_what_it_cannot_watch(array: Any) -> None:
    with pytest.raises(ValueError, match="weights: wanted C-contiguous"):
        Watch(
            Exporter(lambda w: w.array.__dlpack__()),
            {"a": Weight(np.ones(3, "float32")), "b": Weight(array)},
            4,
        )
