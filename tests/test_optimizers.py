"""Optimizers, clipping and schedules: known answers, PyTorch over 50 steps, restoring, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastlstm
from fastlstm import reference

DTYPES = ("float32", "float64")
STEPS = 50
BOUND = {"float32": 2e-5, "float64": 1e-13}
CASES = [
    ("SGD", {}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}),
    ("Adam", {}),
    ("Adam", {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-3}),
    ("Adam", {"lr": 0.02, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.02, "betas": (0.0, 0.5), "amsgrad": True}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.02, "weight_decay": 0.3, "amsgrad": True}),
]


class Weights:
    """A module that holds arrays and nothing else."""

    def __init__(self, dtype, seed=0):
        rng = np.random.default_rng(seed)
        shapes = {"a": (1,), "b": (7, 33), "c": (33, 1), "d": (3, 4, 5)}
        self.parameters = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}

    def state_dict(self):
        return {name: v.copy() for name, v in self.parameters.items()}

    def load_state_dict(self, state_dict):
        assert state_dict.keys() == self.parameters.keys()
        self.parameters = {name: v.copy() for name, v in state_dict.items()}


def gradients(step, weights):
    """Of all sizes, some of them zero, from step to step."""
    rng = np.random.default_rng([9, step])
    scale = 10 ** rng.uniform(-4, 2)
    return {
        name: (scale * rng.normal(size=v.shape) * (rng.random(v.shape) < 0.7)).astype(v.dtype)
        for name, v in weights.parameters.items()
    }


def same_bits(a, b):
    return a.keys() == b.keys() and all(np.asarray(a[k]).tobytes() == np.asarray(b[k]).tobytes() for k in a)


# --- known answers ----------------------------------------------------------------------------------------


def test_known_answers():
    module = Weights("float64")
    module.parameters = {"w": np.array([1.0, -2.0])}
    sgd = fastlstm.SGD(module, lr=0.1, momentum=0.5)
    sgd.step({"w": [1.0, 2.0]})
    assert np.allclose(module.parameters["w"], [0.9, -2.2])
    sgd.step({"w": [0.0, 2.0]})  # the buffer is half of the first and all of the second
    assert np.allclose(module.parameters["w"], [0.85, -2.5])
    module.parameters = {"w": np.array([1.0, -2.0])}
    adam = fastlstm.Adam(module, lr=0.1, eps=0)
    adam.step({"w": [1e-6, -1e6]})  # the first step of Adam is lr in size, whatever the gradient's
    assert np.allclose(module.parameters["w"], [0.9, -1.9])
    module.parameters = {"w": np.array([1.0])}
    fastlstm.AdamW(module, lr=0.1, weight_decay=0.5).step({"w": [0.0]})
    assert np.allclose(module.parameters["w"], [0.95])


# --- PyTorch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_fifty_steps_are_pytorchs(kind, options, dtype):
    torch = pytest.importorskip("torch")
    weights = Weights(dtype)
    tensors = {name: torch.from_numpy(v.copy()) for name, v in weights.parameters.items()}
    theirs = getattr(torch.optim, kind)(list(tensors.values()), **{"lr": 1e-3, **options})
    ours = getattr(fastlstm, kind)(weights, **options)
    for step in range(STEPS):
        lr = ours.lr * (1.05 if step % 3 else 0.9)  # as a schedule would
        ours.lr = theirs.param_groups[0]["lr"] = lr
        given = gradients(step, weights)
        if step % 7 == 3:
            del given["c"]  # no gradient, no step: its own count lags behind
        for name, tensor in tensors.items():
            tensor.grad = torch.from_numpy(given[name].copy()) if name in given else None
        theirs.step()
        kept = {name: v.copy() for name, v in given.items()}
        ours.step(given)
        assert same_bits(given, kept)
    for name, tensor in tensors.items():
        got, wanted = weights.parameters[name], tensor.numpy()
        assert got.dtype == dtype
        assert np.abs(got - wanted).max() <= BOUND[dtype] * np.abs(wanted).max(), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_fifty_steps_of_training_a_layer_are_pytorchs(dtype):
    """Recurrent layer, loss, clipping, schedule and optimizer together."""
    torch = pytest.importorskip("torch")
    steps, batch, inputs, units = 7, 3, 5, 4
    layer = reference.LSTM(inputs, units, dtype=dtype, seed=1)
    theirs = torch.nn.LSTM(inputs, units, dtype=getattr(torch, dtype))
    theirs.load_state_dict({name: torch.from_numpy(v) for name, v in layer.state_dict().items()})
    optimizer = fastlstm.Adam(layer, lr=0.05)
    torch_optimizer = torch.optim.Adam(theirs.parameters(), lr=0.05)
    schedule = fastlstm.warmup_schedule(fastlstm.cosine_schedule(0.05, STEPS), 5)
    rng = np.random.default_rng(2)
    for step in range(STEPS):
        x, target = (rng.normal(size=(steps, batch, n)).astype(dtype) for n in (inputs, units))
        tape = layer.record(x)
        loss, d_output = fastlstm.mse_loss(tape.output, target)
        clipped, norm = fastlstm.clip_grad_norm(tape.backward(d_output).parameters, 0.05)
        optimizer.lr = torch_optimizer.param_groups[0]["lr"] = schedule(step)
        optimizer.step(clipped)
        torch_optimizer.zero_grad()
        torch_loss = torch.nn.functional.mse_loss(theirs(torch.from_numpy(x))[0], torch.from_numpy(target))
        torch_loss.backward()
        torch_norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.05)
        torch_optimizer.step()
        bound = 1e-10 if dtype == "float64" else 1e-4
        assert loss == pytest.approx(torch_loss.item(), rel=bound)
        assert norm == pytest.approx(torch_norm.item(), rel=20 * bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e9, math.inf])
def test_clipping_is_pytorchs(max_norm, dtype):
    torch = pytest.importorskip("torch")
    weights = Weights(dtype)
    for step in range(STEPS):
        given = gradients(step, weights)
        kept = {name: v.copy() for name, v in given.items()}
        tensors = [torch.zeros(v.shape, dtype=getattr(torch, dtype)) for v in given.values()]
        for tensor, v in zip(tensors, given.values(), strict=True):
            tensor.grad = torch.from_numpy(v.copy())
        wanted = torch.nn.utils.clip_grad_norm_(tensors, max_norm)
        clipped, norm = fastlstm.clip_grad_norm(given, max_norm)
        assert same_bits(given, kept)
        assert norm == pytest.approx(wanted.item(), rel=1e-6 if dtype == "float32" else 1e-14)
        for tensor, v in zip(tensors, clipped.values(), strict=True):
            assert v.dtype == dtype and v.shape == tuple(tensor.shape)
            assert np.allclose(v, tensor.grad.numpy(), rtol=1e-5 if dtype == "float32" else 1e-13, atol=0)


def test_clipping_known_answers():
    clipped, norm = fastlstm.clip_grad_norm({"a": [3.0], "b": [[4.0]]}, 1.0)
    assert norm == 5 and np.allclose([clipped["a"][0], clipped["b"][0, 0]], [0.6, 0.8])
    assert fastlstm.clip_grad_norm({}, 1.0) == ({}, 0.0)
    huge = np.full(4, 1e30, np.float32)  # whose squares float32 cannot hold
    clipped, norm = fastlstm.clip_grad_norm({"a": huge}, 1.0)
    assert norm == pytest.approx(2e30) and np.allclose(clipped["a"], 0.5)
    for bad in (math.nan, math.inf):
        clipped, norm = fastlstm.clip_grad_norm({"a": [1.0, bad]}, 1.0)
        assert not math.isfinite(norm) and math.isnan(clipped["a"][1])


def test_schedules_are_pytorchs():
    torch = pytest.importorskip("torch")

    def rates(*schedulers):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
        chain = [make(optimizer) for make in schedulers]
        for _ in range(STEPS):
            yield optimizer.param_groups[0]["lr"]
            optimizer.step()
            for scheduler in chain:
                scheduler.step()

    rate = torch.optim.lr_scheduler
    cosine = fastlstm.cosine_schedule(0.3, STEPS, 0.01)
    for step, wanted in enumerate(rates(lambda o: rate.CosineAnnealingLR(o, STEPS, 0.01))):
        assert cosine(step) == pytest.approx(wanted, rel=1e-12)
    warm = fastlstm.warmup_schedule(fastlstm.constant_schedule(0.3), 10)
    for step, wanted in enumerate(rates(lambda o: rate.LinearLR(o, 1 / 10, 1.0, 9))):
        assert warm(step) == pytest.approx(wanted, rel=1e-12)


def test_schedules_known_answers():
    cosine = fastlstm.cosine_schedule(2.0, 10, 1.0)
    assert [cosine(step) for step in (0, 5, 10, 1000)] == pytest.approx([2, 1.5, 1, 1])
    warm = fastlstm.warmup_schedule(fastlstm.constant_schedule(1.0), 4)
    assert [warm(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert fastlstm.warmup_schedule(cosine, 0)(0) == 2


# --- restoring --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_restored_it_goes_on_with_the_same_bits(kind, options, dtype):
    make = getattr(fastlstm, kind)
    weights = Weights(dtype)
    optimizer = make(weights, **options)
    for step in range(5):
        optimizer.step({name: v for name, v in gradients(step, weights).items() if name != "d"})
    saved = optimizer.state_dict()
    assert all(isinstance(v, (int, float, np.ndarray)) for v in saved.values())
    other = Weights(dtype)
    other.load_state_dict(weights.state_dict())
    restored = make(other, lr=7.0)  # settings come from the state
    restored.load_state_dict(saved)
    for v in saved.values():
        if isinstance(v, np.ndarray):
            v[...] = math.nan  # a copy: nobody minds
    for step in range(5, 10):
        optimizer.step(gradients(step, weights))
        restored.step(gradients(step, weights))
    assert same_bits(weights.parameters, other.parameters)
    assert same_bits(optimizer.state_dict(), restored.state_dict())


def test_a_state_that_does_not_fit_changes_nothing():
    weights = Weights("float64")
    optimizer = fastlstm.Adam(weights)
    optimizer.step(gradients(0, weights))
    good = optimizer.state_dict()
    for change, error, blamed in (
        ({"lr": None}, TypeError, "lr"),
        ({"exp_avg/a": np.zeros(2)}, ValueError, "exp_avg/a"),
        ({"step/a": -1}, ValueError, "step/a"),
        ({"step/a": 1.5}, TypeError, "step/a"),
        ({"step/a": 10**400}, ValueError, "step/a"),
        ({"beta1": 1.0}, ValueError, "betas"),
        ({"beta2": 5.0}, ValueError, "betas"),
        ({"amsgrad": np.ones(2)}, TypeError, "amsgrad"),
        ({"what": 1}, ValueError, "unexpected: what"),
        ({"max_exp_avg_sq/a": np.zeros(1)}, ValueError, "unexpected: max_exp_avg_sq/a"),
        ({"momentum": 0.9}, ValueError, "unexpected: momentum"),
    ):
        with pytest.raises(error, match=blamed):
            optimizer.load_state_dict(good | change)
        assert same_bits(good, optimizer.state_dict())
    for missing in ("lr", "exp_avg/b", "step/b"):
        with pytest.raises(ValueError, match=f"missing: {missing}"):
            optimizer.load_state_dict({name: v for name, v in good.items() if name != missing})
    with pytest.raises(TypeError, match="state_dict"):
        optimizer.load_state_dict([])


def test_a_state_that_the_constructor_would_refuse():
    weights = Weights("float32")
    optimizer = fastlstm.SGD(weights)
    with pytest.raises(ValueError, match="nesterov"):
        optimizer.load_state_dict(optimizer.state_dict() | {"nesterov": 1.0})


def test_a_mean_without_memory_is_the_gradient():
    """As PyTorch's, however large the one before was."""
    weights = Weights("float32")
    optimizer = fastlstm.Adam(weights, lr=0.1, betas=(0.0, 0.0))
    for size in (1e9, 1e-2):
        before = weights.state_dict()
        optimizer.step({name: np.full_like(v, size) for name, v in before.items()})
        for name, v in weights.state_dict().items():
            assert np.allclose(before[name] - v, 0.1, rtol=1e-4)


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "blamed"),
    [
        (lambda w: fastlstm.SGD(w, lr=-1), ValueError, "lr"),
        (lambda w: fastlstm.SGD(w, lr=math.nan), ValueError, "lr"),
        (lambda w: fastlstm.SGD(w.state_dict()), TypeError, "module must be a layer .*, got dict"),
        (lambda w: fastlstm.Adam(None), TypeError, "module"),
        (lambda w: fastlstm.SGD(w, lr="1"), TypeError, "lr"),
        (lambda w: fastlstm.SGD(w, momentum=-0.1), ValueError, "momentum"),
        (lambda w: fastlstm.SGD(w, weight_decay=-1), ValueError, "weight_decay"),
        (lambda w: fastlstm.SGD(w, nesterov=True), ValueError, "nesterov"),
        (lambda w: fastlstm.SGD(w, nesterov=True, momentum=0.9, dampening=0.1), ValueError, "nesterov"),
        (lambda w: fastlstm.SGD(w, nesterov=1, momentum=0.9), TypeError, "nesterov"),
        (lambda w: fastlstm.Adam(w, betas=(0.9, 1.0)), ValueError, r"betas\[1\]"),
        (lambda w: fastlstm.Adam(w, betas=(-0.1, 0.9)), ValueError, r"betas\[0\]"),
        (lambda w: fastlstm.Adam(w, betas=0.9), TypeError, "betas"),
        (lambda w: fastlstm.Adam(w, eps=-1), ValueError, "eps"),
        (lambda w: fastlstm.AdamW(w, amsgrad=None), TypeError, "amsgrad"),
        (lambda w: fastlstm.Adam(w).step([]), TypeError, "gradients"),
        (lambda w: fastlstm.Adam(w).step({"x": [1.0]}), ValueError, "unexpected: x"),
        (lambda w: fastlstm.Adam(w).step({"a": [1.0, 2.0]}), ValueError, "misshapen: a"),
        (lambda w: fastlstm.Adam(w).step({"a": ["x"]}), TypeError, r"gradients\['a'\]"),
        (lambda w: fastlstm.clip_grad_norm({}, 0), ValueError, "max_norm"),
        (lambda w: fastlstm.clip_grad_norm({}, math.nan), ValueError, "max_norm"),
        (lambda w: fastlstm.clip_grad_norm([1.0], 1), TypeError, "gradients"),
        (lambda w: fastlstm.clip_grad_norm({"a": "x"}, 1), TypeError, r"gradients\['a'\]"),
        (lambda w: fastlstm.constant_schedule(-1), ValueError, "lr"),
        (lambda w: fastlstm.cosine_schedule(1.0, 0), ValueError, "steps"),
        (lambda w: fastlstm.cosine_schedule(1.0, 5, 2.0), ValueError, "minimum"),
        (lambda w: fastlstm.warmup_schedule(1.0, 5), TypeError, "schedule"),
        (lambda w: fastlstm.warmup_schedule(fastlstm.constant_schedule(1), -1), ValueError, "steps"),
    ],
)
def test_refusals_name_the_argument(call, error, blamed):
    weights = Weights("float32")
    before = weights.state_dict()
    with pytest.raises(error, match=blamed):
        call(weights)
    assert same_bits(before, weights.parameters)


def test_lr_is_checked_when_assigned():
    optimizer = fastlstm.SGD(Weights("float32"))
    with pytest.raises(ValueError, match="lr"):
        optimizer.lr = -1
    assert optimizer.lr == 1e-3
