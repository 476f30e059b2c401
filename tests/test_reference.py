"""The oracle itself: known answers, finite differences, other implementations where they are installed."""

from __future__ import annotations

import inspect
import itertools
import math
import pickle
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastlstm import reference
from fastlstm.reference import GRU, LSTM, RNN, Activation, GatedRNN

ACTIVATIONS = [  # with parameters that are not the defaults
    "sigmoid",
    "tanh",
    "relu",
    ("affine", 0.7, -0.2),
    ("leaky_relu", 0.3),
    ("thresholded_relu", 0.2),
    ("scaled_tanh", 1.3, 0.6),
    ("hard_sigmoid", 0.4, 0.3),
    ("elu", 0.6),
    "softsign",
    "softplus",
]
CELLS: list[tuple[Any, dict[str, Any]]] = [
    *[
        (LSTM, {"proj_size": p, "peepholes": peepholes, **forget})
        for p in (0, 2)
        for peepholes in (False, True)
        for forget in ({}, {"forget_gate": False}, {"coupled_gates": True})
    ],
    (GRU, {}),
    (GRU, {"reset_after": False}),
    (RNN, {}),
    (RNN, {"nonlinearity": "relu"}),
    (GatedRNN, {}),
]
STRUCTURES: list[dict[str, Any]] = [
    {},
    {"reverse": True, "batch_first": True},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.3},
    {"num_layers": 3, "bias": False, "clip": 0.6},
    {"bidirectional": True, "clip": 0.9, "batch_first": True},
]


def name_of(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items()) or "plain"
    if isinstance(value, type):
        return value.__name__
    return str(value[0] if isinstance(value, tuple) else value)


def each(cells: Any = CELLS, structures: Any = STRUCTURES) -> pytest.MarkDecorator:
    """One test for each cell in each structure."""
    cases = [(cls, {**options, **more}) for (cls, options), more in itertools.product(cells, structures)]
    return pytest.mark.parametrize("cls, options", cases, ids=name_of)


def generator(*seed: Any) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(seed).encode()))


def make(cls: Any, input_size: int, hidden_size: int, *, scale: float = 1.0, **options: Any) -> Any:
    """A float64 layer whose parameters are normal with the given deviation: none is zero, none small."""
    layer = cls(input_size, hidden_size, **{"dtype": "float64", "seed": 0, **options})
    rng = generator(cls.__name__, input_size, hidden_size, options)
    layer.load_state_dict({k: scale * rng.normal(size=v.shape) for k, v in layer.state_dict().items()})
    return layer


def problem(layer: Any, steps: int, batch: int, rng: np.random.Generator) -> tuple[Any, ...]:
    """x, state, d_output, d_state: all random, none zero; the states as tuples."""
    directions = 2 if layer.bidirectional else 1
    out = layer.proj_size or layer.hidden_size
    shape = (batch, steps) if layer.batch_first else (steps, batch)
    widths = (out, layer.hidden_size) if isinstance(layer, LSTM) else (out,)
    shapes = [(layer.num_layers * directions, batch, width) for width in widths]
    state, d_state = (tuple(rng.normal(size=v) for v in shapes) for _ in range(2))
    x, d_output = (rng.normal(size=(*shape, width)) for width in (layer.input_size, directions * out))
    return x, state, d_output, d_state


def form(state: Any) -> Any:
    """(h,) -> h, (h, c) -> (h, c), and back."""
    return (state,) if isinstance(state, np.ndarray) else state if len(state) == 2 else state[0]


def parts(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


def both(*pairs: tuple[Any, Any]) -> Any:
    """Each pair of arrays, where a pair of states counts as one or two."""
    return [pair for a, b in pairs for pair in zip(parts(a), parts(b), strict=True)]


def assert_close(a: Any, b: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


# --- known answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "x, expected", [([0, 0, 1, 1, 1, 0], [0, 0, 1, -1, 1, 0]), ([1, 1, 0, 1, 1], [1, -1, 0, 1, -1])]
)
def test_parity_of_a_run_of_ones(x: list[int], expected: list[int], dtype: str) -> None:
    """MITx 6.86x, homework 3: a scalar LSTM whose rounded h carries the parity of the current run of ones."""
    lstm = LSTM(1, 1, dtype=dtype)
    lstm.load_state_dict(  # i, f, g, o
        {
            "weight_ih_l0": [[100], [0], [50], [100]],
            "weight_hh_l0": [[0], [0], [-100], [0]],
            "bias_ih_l0": [100, -100, 0, 0],
            "bias_hh_l0": [0, 0, 0, 0],
        }
    )
    output, _ = lstm(np.reshape(x, (-1, 1)))
    h = output[:, 0].astype(np.float64)
    assert np.where(np.abs(h) <= 0.5, 0, np.round(h)).tolist() == expected


def scalar(cls: Any, w: Any, x: list[float], h: list[float], c: list[float], **options: Any) -> Any:
    """One step with Python's floats alone: the equations of the cells, unit by unit."""
    units = len(c)

    def dot(row: list[float], v: list[float]) -> float:
        return sum(a * b for a, b in zip(row, v, strict=True))

    def sigma(s: float) -> float:
        return 1 / (1 + math.exp(-s))

    a = [dot(row, x) + b for row, b in zip(w["weight_ih"], w["bias_ih"], strict=True)]
    u = [dot(row, h) + b for row, b in zip(w["weight_hh"], w["bias_hh"], strict=True)]
    h_new, c_new, m = [], [], []
    for k in range(units):
        A, U = a[k::units], u[k::units]
        if cls is LSTM:
            p_i, p_f, p_o = (row[k] for row in w["weight_peephole"])
            i = sigma(A[0] + U[0] + p_i * c[k])
            f = sigma(A[1] + U[1] + p_f * c[k])
            f = 1 - i if options.get("coupled_gates") else f if options.get("forget_gate", True) else 1.0
            c_new.append(f * c[k] + i * math.tanh(A[2] + U[2]))
            m.append(sigma(A[3] + U[3] + p_o * c_new[k]) * math.tanh(c_new[k]))
        elif cls is GRU:
            r = [sigma(a[j] + u[j]) for j in range(units)]
            z = sigma(A[1] + U[1])
            row, bias = w["weight_hh"][2 * units + k], w["bias_hh"][2 * units + k]
            before = dot(row, [v * s for v, s in zip(r, h, strict=True)]) + bias
            n = math.tanh(A[2] + (r[k] * U[2] if options.get("reset_after", True) else before))
            h_new.append((1 - z) * n + z * h[k])
        elif cls is GatedRNN:
            g, n = sigma(A[0] + U[0]), math.tanh(A[1] + U[1])
            h_new.append((1 - g) * h[k] + g * n)
        else:
            s = A[0] + U[0]
            h_new.append(max(s, 0.0) if options.get("nonlinearity") == "relu" else math.tanh(s))
    return [dot(row, m) for row in w["weight_hr"]] if cls is LSTM else h_new, c_new


@each([case for case in CELLS if case[0] is not LSTM or case[1]["proj_size"] and case[1]["peepholes"]], [{}])
def test_equations_unit_by_unit(cls: Any, options: dict[str, Any]) -> None:
    layer, rng = make(cls, 2, 3, **options), generator("scalar")
    x, state, *_ = problem(layer, 4, 1, rng)
    w = {name.removesuffix("_l0"): v.tolist() for name, v in layer.state_dict().items()}
    output, final = layer(x, form(state))
    h, c = state[0][0, 0].tolist(), state[-1][0, 0].tolist()
    for t in range(len(x)):
        h, c = scalar(cls, w, x[t, 0].tolist(), h, c or [0.0] * 3, **options)
        assert_close(output[t, 0], h)
    assert_close(parts(final)[0][0, 0], h)
    if cls is LSTM:
        assert_close(final[1][0, 0], c)


# --- gradients by finite differences ----------------------------------------------------------------------


def gradient_error(layer: Any, steps: int, batch: int, *seed: Any, **how: Any) -> float:
    """The worst relative error of the derivatives along random directions: x, each state, each parameter."""
    rng = generator(*seed)
    x, state, d_output, d_state = problem(layer, steps, batch, rng)
    parameters = layer.state_dict()

    def record() -> Any:
        layer.load_state_dict(parameters)
        return layer.record(x, form(state), **how)

    def loss() -> float:
        tape = record()
        return sum(float((a * b).sum()) for a, b in both((tape.output, d_output), (tape.state, d_state)))

    grads = record().backward(d_output, form(d_state))
    assert grads.parameters.keys() == parameters.keys()
    worst, epsilon = 0.0, 1e-6
    by_name = [(v, grads.parameters[name]) for name, v in parameters.items()]
    for variable, gradient in both((x, grads.input), (state, grads.state), *by_name):
        assert gradient.shape == variable.shape
        direction, start = rng.normal(size=variable.shape), variable.copy()
        variable[...] = start + epsilon * direction
        above = loss()
        variable[...] = start - epsilon * direction
        numeric = (above - loss()) / (2 * epsilon)
        variable[...] = start
        worst = max(worst, abs(numeric - (gradient * direction).sum()) / (1 + abs(numeric)))
    return worst


SIZES = [(1, 3), (3, 7), (7, 3), (3, 3)]
BOUND = 1e-7  # of the relative error; finite differences themselves reach some 1e-9


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@each()
def test_gradients(cls: Any, options: dict[str, Any], ragged: bool) -> None:
    case = (cls.__name__, options, ragged)
    layer = make(cls, *SIZES[zlib.crc32(repr(case).encode()) % 4], scale=0.6, **options)
    how = {"lengths": [5, 0, 1, 4] if ragged else None, "dropout_seed": 7 if layer.dropout else None}
    assert gradient_error(layer, 5, 4, case, **how) < BOUND


@pytest.mark.parametrize("size", [1, 3, 7])
@each([case for case in CELLS if not case[1].get("proj_size")], [{}, {"clip": 0.5}])
def test_gradients_of_single_units_and_single_steps(cls: Any, options: dict[str, Any], size: int) -> None:
    assert gradient_error(make(cls, size, 1, **options), 3, 2, "H = 1", cls.__name__, options, size) < BOUND
    assert gradient_error(make(cls, 1, size, **options), 1, 1, "T = 1", cls.__name__, options, size) < BOUND


@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=name_of)
@pytest.mark.parametrize(
    "cls, options",
    [
        (LSTM, {}),
        (LSTM, {"peepholes": True, "coupled_gates": True}),
        (GRU, {}),
        (GRU, {"reset_after": False}),
        (RNN, {}),
        (GatedRNN, {}),
    ],
    ids=name_of,
)
def test_gradients_of_activations(cls: Any, options: Any, activation: Any, clip: float | None) -> None:
    own = {LSTM: ["sigmoid", "tanh", "tanh"], RNN: ["tanh"]}.get(cls, ["sigmoid", "tanh"])
    for role in range(len(own)):
        specs = [*own[:role], activation, *own[role + 1 :]]
        layer = make(cls, 3, 3, scale=0.5, activations=specs, clip=clip, **options)
        assert gradient_error(layer, 4, 3, cls.__name__, activation, role) < BOUND


def test_the_gradient_test_bites(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three mistakes that have been made in public: each must show up far above the bound."""
    right, step_backward = reference.recurrent_backward, reference.lstm_step_backward

    def error() -> float:
        return gradient_error(make(LSTM, 3, 3), 4, 2, "bites")

    def swapped(dstate: Any, *rest: Any) -> Any:  # the gradients of h0 and c0 exchanged
        da, (dh, dc) = step_backward(dstate, *rest)
        return da, (dc, dh)

    def late(dstate: Any, memory: Any, *rest: Any) -> Any:  # dW_hh off by one step
        h_new = memory[9] * memory[10]
        return step_backward(dstate, (h_new, *memory[1:]), *rest)

    seen: list[int] = []

    def short(du: Any, h: Any, w: Any, dw: Any) -> Any:  # dW_hh without step 0
        seen.append(1)
        return right(du, h if len(seen) % 4 else 0 * h, w, dw)

    assert error() < BOUND
    step = "lstm_step_backward"
    for name, wrong in [(step, swapped), (step, late), ("recurrent_backward", short)]:
        with monkeypatch.context() as patch:
            patch.setattr(reference, name, wrong)
            assert error() > 1000 * BOUND, wrong.__name__


# --- activations and extreme values -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spec", ACTIVATIONS, ids=name_of)
def test_activation_values(spec: Any, dtype: Any) -> None:
    """Against Python's floats, at ordinary, huge and infinite arguments, with no warning on the way."""
    parameters: list[Any] = [spec] if isinstance(spec, str) else list(spec)
    name, a, b, *_ = [*parameters, 0.0, 0.0]
    formulas: dict[str, Callable[[float], float]] = {
        "sigmoid": lambda s: 1 / (1 + math.exp(-s)) if s > -700 else 0.0,
        "tanh": math.tanh,
        "relu": lambda s: max(s, 0.0),
        "affine": lambda s: a * s + b,
        "leaky_relu": lambda s: s if s >= 0 else a * s,
        "thresholded_relu": lambda s: s if s >= a else 0.0,
        "scaled_tanh": lambda s: a * math.tanh(b * s),
        "hard_sigmoid": lambda s: min(max(a * s + b, 0.0), 1.0),
        "elu": lambda s: s if s >= 0 else a * math.expm1(s),
        "softsign": lambda s: math.copysign(1.0, s) if math.isinf(s) else s / (1 + abs(s)),
        "softplus": lambda s: s if s > 700 else math.log1p(math.exp(s)),
    }
    points = np.array([0, 1e-6, 0.2, 0.5, 1, 3, 20, 80, 1e30, np.inf], dtype)
    points = np.concatenate([points, -points])
    with np.errstate(all="raise", under="ignore"):
        y = Activation(name, a, b)(points)
        slope = Activation(name, a, b).backward(points, y, np.ones_like(y))
        nothing = Activation(name, a, b)(np.array([np.nan], dtype))
        clipped = Activation(name, a, b, clip=0.5)(np.append(points, dtype(np.nan)))
    assert y.dtype == slope.dtype == clipped.dtype == dtype
    exact = [formulas[name](float(s)) for s in points]
    np.testing.assert_allclose(y, exact, rtol=4 * np.finfo(dtype).eps, atol=1e-45)
    assert np.isfinite(slope).all()
    assert np.isnan(nothing).all() and np.isnan(clipped[-1])
    np.testing.assert_array_equal(clipped[:-1], Activation(name, a, b)(np.clip(points, -0.5, 0.5)))


def test_activation_defaults_are_those_of_onnx() -> None:
    defaults = {
        "affine": (1, 0),
        "leaky_relu": (0.01, 0),
        "thresholded_relu": (1, 0),
        "scaled_tanh": (1, 1),
        "hard_sigmoid": (0.2, 0.5),
        "elu": (1, 0),
    }
    for name in reference.FUNCTIONS:
        for spec in (name, (name,), (name, None), (name, None, None), [name]):
            (activation,) = RNN(1, 1, activations=spec)._options.activations
            assert activation == (name, *defaults.get(name, (0, 0)), None)
    (activation,) = RNN(1, 1, activations=("scaled_tanh", None, 3))._options.activations
    assert activation == ("scaled_tanh", 1, 3, None)


def test_slopes_at_kinks() -> None:
    """By convention: from the left, hard_sigmoid's 0 on both sides, the clip's 1 at its very edge."""
    for name, s, expected in [
        ("relu", 0, 0),
        ("leaky_relu", 0, 0.25),
        ("elu", 0, 0.25),
        ("thresholded_relu", 0.25, 0),
        ("hard_sigmoid", -2, 0),
        ("hard_sigmoid", 2, 0),
        ("affine", 0.5, 0.25),
    ]:
        activation, point = Activation(name, 0.25, 0.5, 2.0), np.array([s], np.float64)
        assert activation.backward(point, activation(point), np.ones(1)) == expected, name
    edge = np.array([-2.1, -2.0, 2.0, 2.1])
    assert Activation("affine", 1.0, 0.0, 2.0).backward(edge, edge, np.ones(4)).tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each(structures=[{}, {"clip": 5.0}])
def test_saturation(cls: Any, options: dict[str, Any], dtype: str) -> None:
    """Pre-activations of ±1e30 and ±inf: outputs and gradients are finite, and nothing warns."""
    if options.get("nonlinearity") == "relu" and "clip" not in options:
        pytest.skip("relu has no limit")
    layer = make(cls, 1, 3, dtype=dtype, **options)
    huge = np.array([1e30, -1e30, np.inf, -np.inf])[:, None, None] * np.ones((1, 2, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tape = layer.record(huge)
        grads = tape.backward(np.ones_like(tape.output))
    assert np.isfinite(tape.output).all()
    assert np.isfinite(grads.parameters["weight_hh_l0"]).all() and np.isfinite(grads.input).all()


def test_saturated_lstm() -> None:
    lstm = LSTM(1, 1, dtype="float64")
    lstm.load_state_dict({name: v * 0 + (name == "weight_ih_l0") for name, v in lstm.state_dict().items()})
    for x, h, c in [(np.inf, math.tanh(3001), 3001), (1e30, 1, 3001), (-np.inf, 0, 0), (-1e30, 0, 0)]:
        output, state = lstm([[x]], ([[0.0]], [[3000.0]]))
        assert (output.item(), state[0].item(), state[1].item()) == (h, h, c)


# --- sequences: ragged, split, empty, with NaN ------------------------------------------------------------


@each(structures=STRUCTURES[:3])
def test_ragged_batch_is_each_sequence_alone(cls: Any, options: dict[str, Any]) -> None:
    layer, lengths = make(cls, 3, 3, scale=0.5, **{**options, "dropout": 0.0}), [3, 0, 5, 1]
    x, state, d_output, d_state = problem(layer, 5, 4, generator("ragged"))

    def batch(v: Any, b: int) -> Any:
        return v[b : b + 1] if layer.batch_first else v[:, b : b + 1]

    def time(v: Any, n: int) -> Any:
        return v[:, :n] if layer.batch_first else v[:n]

    for b, length in enumerate(lengths):
        for v in (x, d_output):
            (v[b, length:] if layer.batch_first else v[length:, b])[:] = np.nan
    tape = layer.record(x, form(state), lengths=lengths)
    grads = tape.backward(d_output, form(d_state))
    total = {name: np.zeros_like(v) for name, v in grads.parameters.items()}
    for b, length in enumerate(lengths):
        alone = layer.record(time(batch(x, b), length), form(tuple(v[:, b : b + 1] for v in state)))
        back = alone.backward(time(batch(d_output, b), length), form(tuple(v[:, b : b + 1] for v in d_state)))
        for whole, one in [(tape.output, alone.output), (grads.input, back.input)]:
            padded = np.zeros_like(batch(whole, b))
            time(padded, length)[...] = one
            assert_close(batch(whole, b), padded)
        for whole, one in both((tape.state, alone.state), (grads.state, back.state)):
            assert_close(whole[:, b : b + 1], one)
        for name, v in back.parameters.items():
            total[name] += v
    for name, v in total.items():
        assert_close(grads.parameters[name], v)


@each(structures=[{}, {"num_layers": 2, "clip": 0.8}])
@pytest.mark.parametrize("split", [1, 3])
def test_split_over_time_is_one_call(cls: Any, options: dict[str, Any], split: int) -> None:
    layer = make(cls, 3, 3, **options)
    x, state, d_output, d_state = problem(layer, 6, 2, generator("split"))
    whole = layer.record(x, form(state))
    grads = whole.backward(d_output, form(d_state))
    tapes, carried = [], form(state)
    for part in np.split(x, range(split, 6, split)):
        tapes.append(layer.record(part, carried))
        carried = tapes[-1].state
    assert_close(np.concatenate([tape.output for tape in tapes]), whole.output)
    dcarried, dx = form(d_state), np.zeros((0, 2, 3))
    for tape, part in zip(reversed(tapes), reversed(np.split(d_output, range(split, 6, split))), strict=True):
        back = tape.backward(part, dcarried)
        dcarried, dx = back.state, np.concatenate([back.input, dx])
    assert_close(dx, grads.input)
    for a, b in both((carried, whole.state), (dcarried, grads.state)):
        assert_close(a, b)


@each(structures=[{}, {"reverse": True}, {"clip": 0.8}])
def test_nan_stays_in_its_sequence(cls: Any, options: dict[str, Any]) -> None:
    layer = make(cls, 3, 3, **options)
    x, state, d_output, _ = problem(layer, 5, 3, generator("nan"))
    clean = layer(x, form(state))[0]
    x[2, 1, 0] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tape = layer.record(x, form(state))
        back = tape.backward(d_output)
    touched = slice(0, 3) if layer.reverse else slice(2, None)
    assert np.isnan(tape.output[touched, 1]).all() and np.isnan(parts(tape.state)[0][0, 1]).all()
    clean[touched, 1] = np.nan
    np.testing.assert_array_equal(tape.output, clean)
    assert np.isfinite(back.input[:, [0, 2]]).all()


@pytest.mark.parametrize("spec", ACTIVATIONS, ids=name_of)
def test_nan_passes_every_activation(spec: Any) -> None:
    for clip in (None, 0.5):
        assert np.isnan(RNN(1, 2, activations=spec, clip=clip)([[np.nan]])[0]).all()
        assert np.isnan(LSTM(1, 2, activations=[spec] * 3, clip=clip)([[np.nan]])[0]).all()


@each(structures=STRUCTURES[:3])
def test_empty(cls: Any, options: dict[str, Any]) -> None:
    """T = 0 and length 0 hand the state through, both ways; B = 0 is an empty batch."""
    layer = make(cls, 3, 3, **options)
    cases = [(0, 2, None), (0, 2, [0, 0]), (4, 2, [0, 0]), (4, 0, None), (4, 0, []), (0, 0, None)]
    for steps, batch, lengths in cases:
        x, state, d_output, d_state = problem(layer, steps, batch, generator("empty"))
        tape = layer.record(x, form(state), lengths=lengths, dropout_seed=1)
        grads = tape.backward(d_output, form(d_state))
        assert tape.output.shape == d_output.shape and not tape.output.any()
        assert grads.input.shape == x.shape and not grads.input.any()
        for name, v in layer.state_dict().items():
            assert grads.parameters[name].shape == v.shape and not grads.parameters[name].any()
        for a, b in both((tape.state, state), (grads.state, d_state)):
            np.testing.assert_array_equal(a, b)


@each(structures=STRUCTURES[:2])
def test_unbatched_is_a_batch_of_one(cls: Any, options: dict[str, Any]) -> None:
    layer = make(cls, 3, 3, **options)
    x, state, d_output, d_state = problem(layer, 4, 1, generator("unbatched"))
    one = 0 if layer.batch_first else 1
    tape = layer.record(x, form(state))
    grads = tape.backward(d_output, form(d_state))
    lone = layer.record(x.squeeze(one), form(tuple(v[:, 0] for v in state)))
    back = lone.backward(d_output.squeeze(one), form(tuple(v[:, 0] for v in d_state)))
    assert_close(lone.output, tape.output.squeeze(one))
    assert_close(back.input, grads.input.squeeze(one))
    for a, b in both((lone.state, tape.state), (back.state, grads.state)):
        assert_close(a, b[:, 0])
    for name, v in grads.parameters.items():
        assert_close(back.parameters[name], v)


# --- options and arguments --------------------------------------------------------------------------------


def test_unused_rows_have_no_effect_and_no_gradient() -> None:
    for options in ({"forget_gate": False}, {"coupled_gates": True}):
        lstm = make(LSTM, 3, 4, peepholes=True, proj_size=2, **options)
        x, state, d_output, d_state = problem(lstm, 3, 2, generator("unused"))
        before, grads = lstm(x, state), lstm.record(x, state).backward(d_output, d_state)
        poisoned = lstm.state_dict()
        for name, v in poisoned.items():
            if name != "weight_hr_l0":
                v[1 if "peephole" in name else slice(4, 8)] = np.nan
        lstm.load_state_dict(poisoned)
        tape = lstm.record(x, state)
        back = tape.backward(d_output, d_state)
        np.testing.assert_array_equal(tape.output, before[0])
        np.testing.assert_array_equal(back.input, grads.input)
        for name, v in back.parameters.items():
            np.testing.assert_array_equal(v, grads.parameters[name])
            if name != "weight_hr_l0":
                assert not v[1 if "peephole" in name else slice(4, 8)].any()
        np.testing.assert_array_equal(lstm.state_dict()["weight_ih_l0"], poisoned["weight_ih_l0"])


def test_dropout() -> None:
    """None without a seed; with one, the documented masks between layers, the same for either axis order."""
    gru = make(GRU, 3, 4, num_layers=2, bidirectional=True, dropout=0.4)
    x, *_ = problem(gru, 5, 2, generator("dropout"))
    np.testing.assert_array_equal(gru.record(x).output, gru(x)[0])
    lower, upper = (make(GRU, n, 4, bidirectional=True) for n in (3, 8))
    weights = gru.state_dict()
    lower.load_state_dict({k: v for k, v in weights.items() if "_l0" in k})
    upper.load_state_dict({k.replace("_l1", "_l0"): v for k, v in weights.items() if "_l1" in k})
    masks = np.random.Generator(np.random.Philox(5)).random((5, 2, 8)) >= 0.4
    expected = upper(lower(x)[0] * masks / 0.6)[0]
    assert_close(gru.record(x, dropout_seed=5).output, expected)
    first = make(GRU, 3, 4, num_layers=2, bidirectional=True, dropout=0.4, batch_first=True)
    first.load_state_dict(weights)
    assert_close(first.record(x.swapaxes(0, 1), dropout_seed=5).output, expected.swapaxes(0, 1))
    everything = make(GRU, 3, 4, num_layers=2, dropout=1.0)
    tape = everything.record(x, dropout_seed=0)
    assert not tape.backward(np.ones_like(tape.output)).input.any()


def test_parameters_are_drawn_in_state_dict_order() -> None:
    lstm = LSTM(3, 4, 2, bidirectional=True, proj_size=2, peepholes=True, seed=11)
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_peephole"]
    ends = ["_l0", "_l0_reverse", "_l1", "_l1_reverse"]
    assert list(lstm.state_dict()) == [name + end for end in ends for name in names]
    rng = np.random.default_rng(11)
    for v in lstm.state_dict().values():
        np.testing.assert_array_equal(v, rng.uniform(-0.5, 0.5, v.shape).astype(np.float32))


def test_parameters_are_copies() -> None:
    gru = GRU(2, 3, seed=0)
    given = gru.state_dict()
    gru.load_state_dict(given)
    tape = gru.record(np.ones((2, 1, 2)))
    before = tape.backward(np.ones((2, 1, 3)))
    given["weight_hh_l0"][:] = 0
    gru.state_dict()["weight_hh_l0"][:] = 0
    np.testing.assert_array_equal(gru(np.ones((2, 1, 2)))[0], tape.output)
    gru.load_state_dict(GRU(2, 3, seed=1).state_dict())  # a tape keeps the weights it ran with
    np.testing.assert_array_equal(tape.backward(np.ones((2, 1, 3))).input, before.input)


@each(structures=[{}])
def test_float32_agrees_with_float64(cls: Any, options: dict[str, Any]) -> None:
    double, single = make(cls, 3, 4, scale=0.5, **options), cls(3, 4, **options)
    single.load_state_dict(double.state_dict())
    x, state, d_output, _ = problem(double, 6, 2, generator("single"))
    tapes = [layer.record(x, form(state)) for layer in (double, single)]
    grads = [tape.backward(d_output) for tape in tapes]
    assert {v.dtype for v in grads[1].parameters.values()} == {np.dtype(np.float32)}
    fields = [(t.output, t.state, g.input, g.state) for t, g in zip(tapes, grads, strict=True)]
    for a, b in both(*zip(*fields, strict=True)):
        assert (a.dtype, b.dtype) == (np.float64, np.float32)
        assert_close(b, a, 1e-5)


def test_array_likes() -> None:
    rnn = RNN(2, 3, dtype="float64", seed=0)
    x = np.arange(8).reshape(4, 1, 2) % 2
    expected = rnn(x.astype(np.float64))[0]
    kinds = [x.astype(kind) for kind in (bool, np.int8, np.float16, ">f8")]
    for like in (x, x.tolist(), *kinds, np.asfortranarray(x), x[::-1].copy()[::-1]):
        np.testing.assert_array_equal(rnn(like)[0], expected)
    assert pickle.loads(pickle.dumps(rnn))(x)[0].tolist() == expected.tolist()


ANY: Any = reference  # what a type checker would refuse, too
BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: LSTM(0, 1), ValueError, "input_size"),
    (lambda: LSTM(1, 1, num_layers=0), ValueError, "num_layers"),
    (lambda: ANY.LSTM(1, 2.5), TypeError, "float"),
    (lambda: LSTM(1, 2, proj_size=2), ValueError, "proj_size"),
    (lambda: LSTM(1, 2, dropout=1.5), ValueError, "dropout"),
    (lambda: LSTM(1, 2, dtype="float16"), ValueError, "dtype"),
    (lambda: LSTM(1, 2, reverse=True, bidirectional=True), ValueError, "reverse"),
    (lambda: LSTM(1, 2, forget_gate=False, coupled_gates=True), ValueError, "coupled_gates"),
    *[(lambda clip=clip: GRU(1, 2, clip=clip), ValueError, "clip") for clip in (0, -1, math.inf, math.nan)],
    (lambda: RNN(1, 2, nonlinearity="elu"), ValueError, "nonlinearity"),
    (lambda: RNN(1, 2, nonlinearity="relu", activations="tanh"), ValueError, "nonlinearity"),
    (lambda: RNN(1, 2, activations=("tanh", "tanh", "tanh")), ValueError, "activations"),
    (lambda: GRU(1, 2, activations="tanh"), ValueError, "activations"),
    (lambda: GRU(1, 2, activations=("sigmoid", "tanh", "tanh")), ValueError, "activations"),
    (lambda: GRU(1, 2, activations=("sigmoid", "swish")), ValueError, "activations"),
    (lambda: GRU(1, 2, activations=("sigmoid", ("elu", 1, 2))), ValueError, "activations"),
    (lambda: GRU(1, 2, activations=("sigmoid", ("elu", math.nan))), ValueError, "activations"),
    (lambda: ANY.GRU(1, 2, proj_size=1), TypeError, "proj_size"),
    (lambda: LSTM(1, 2)([1.0]), ValueError, "x"),
    (lambda: LSTM(1, 2)(np.ones((3, 1, 2))), ValueError, "x"),
    (lambda: LSTM(1, 2)(np.ones((3, 1, 1), complex)), TypeError, "x"),
    (lambda: LSTM(1, 2)(np.ones((3, 1, 1)), np.ones((2, 1, 2))), TypeError, "state"),
    (lambda: LSTM(1, 2)([[[1]]], [np.ones((1, 1, 2)), np.ones((1, 2))]), ValueError, r"state\[1\]"),
    (lambda: GRU(1, 2)(np.ones((3, 1, 1)), (np.ones((1, 1, 2)),)), ValueError, "state"),
    (lambda: GRU(1, 2)(np.ones((3, 1)), lengths=[3]), ValueError, "lengths"),
    (lambda: GRU(1, 2)(np.ones((3, 1, 1)), lengths=[4]), ValueError, "lengths"),
    (lambda: GRU(1, 2)(np.ones((3, 1, 1)), lengths=[-1]), ValueError, "lengths"),
    (lambda: GRU(1, 2)(np.ones((3, 1, 1)), lengths=[1, 1]), ValueError, "lengths"),
    (lambda: GRU(1, 2)(np.ones((3, 1, 1)), lengths=[1.0]), TypeError, "lengths"),
    (lambda: GRU(1, 2).record(np.ones((3, 1, 1))).backward(np.ones((3, 1, 1))), ValueError, "d_output"),
    (lambda: GRU(1, 2).load_state_dict({}), ValueError, "state_dict"),
    (lambda: GRU(1, 2).load_state_dict(LSTM(1, 2).state_dict()), ValueError, "weight_ih_l0"),
    (lambda: GRU(1, 2).load_state_dict(GRU(1, 2, 2).state_dict()), ValueError, "state_dict"),
]


@pytest.mark.parametrize("call, error, name", BAD, ids=range(len(BAD)))
def test_refusals_name_the_argument(call: Any, error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=name):
        call()


@pytest.mark.parametrize("method", ["__init__", "__call__", "record"])
@pytest.mark.parametrize("cls", [LSTM, GRU, RNN, GatedRNN])
def test_signatures_are_those_of_the_fast_layers(cls: Any, method: str) -> None:
    fast = getattr(pytest.importorskip("fastlstm.layers"), cls.__name__)
    if not hasattr(fast, method):
        pytest.skip(f"the fast layers have no {method} yet")
    ours, theirs = (inspect.signature(getattr(c, method)).parameters.values() for c in (cls, fast))
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]


# --- PyTorch ----------------------------------------------------------------------------------------------

TORCH: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"proj_size": 2}),
    ("GRU", {}),
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
]


@pytest.mark.parametrize("kind", ["batch", "packed", "unbatched"])
@each(TORCH, [{}, {"batch_first": True, "bias": False}, {"num_layers": 2, "bidirectional": True}])
def test_torch(cls: str, options: dict[str, Any], kind: str) -> None:
    torch = pytest.importorskip("torch")
    module = getattr(torch.nn, cls)(3, 4, dtype=torch.float64, **options)
    layer = getattr(reference, cls)(3, 4, dtype="float64", **options)
    rng = generator(cls, options, kind)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.from_numpy(0.6 * rng.normal(size=tuple(parameter.shape))))
    layer.load_state_dict(module.state_dict())
    x, state, d_output, d_state = problem(layer, 6, 3, rng)
    lengths = [4, 6, 1] if kind == "packed" else None
    if kind == "unbatched":
        x, d_output = (v[1] if layer.batch_first else v[:, 1] for v in (x, d_output))
        state, d_state = (tuple(v[:, 1] for v in s) for s in (state, d_state))
    x_t = torch.from_numpy(x).requires_grad_()
    state_t = tuple(torch.from_numpy(v).requires_grad_() for v in state)
    given: Any = x_t
    if lengths:
        options_t = {"batch_first": layer.batch_first, "enforce_sorted": False}
        given = torch.nn.utils.rnn.pack_padded_sequence(x_t, torch.tensor(lengths), **options_t)
    output_t, final_t = module(given, form(state_t))
    if lengths:
        output_t, _ = torch.nn.utils.rnn.pad_packed_sequence(output_t, batch_first=layer.batch_first)
    d_t = [torch.from_numpy(v) for v in (d_output, *d_state)]
    torch.autograd.backward([output_t, *parts(final_t)], d_t)

    tape = layer.record(x, form(state), lengths=lengths)
    grads = tape.backward(d_output, form(d_state))
    for ours, theirs in both((tape.output, output_t), (tape.state, final_t)):
        assert_close(ours, theirs.detach())
    for ours, theirs in both((grads.input, x_t), (grads.state, state_t)):
        assert_close(ours, theirs.grad)
    for key, parameter in module.named_parameters():
        assert_close(grads.parameters[key], parameter.grad)
    assert list(grads.parameters) == [key for key, _ in module.named_parameters()]


# --- ONNX -------------------------------------------------------------------------------------------------

ONNX_GATES = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN": [0]}  # ONNX has i, o, f, c and z, r, h
DIRECTIONS: list[tuple[str, dict[str, Any]]] = [
    ("forward", {}),
    ("reverse", {"reverse": True}),
    ("bidirectional", {"bidirectional": True}),
]


def onnx_case(layer: Any, dtype: Any, lengths: Any, **attributes: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    """The layer as an ONNX model of one node with its weights inside, its inputs, and what the layer says."""
    from onnx import TensorProto, helper, numpy_helper

    cell, hidden = type(layer).__name__, layer.hidden_size
    weights, suffixes = layer.state_dict(), ["_l0", "_l0_reverse"] if layer.bidirectional else ["_l0"]

    def gates(v: Any, order: list[int]) -> Any:
        return np.concatenate([v[k * hidden : (k + 1) * hidden] for k in order])

    def stacked(name: str) -> Any:
        return np.stack([gates(weights[name + end], ONNX_GATES[cell]) for end in suffixes]).astype(dtype)

    bias = np.concatenate([stacked("bias_ih"), stacked("bias_hh")], axis=1)
    constants = {"W": stacked("weight_ih"), "R": stacked("weight_hh"), "B": bias}
    x, state, *_ = problem(layer, 5, 3, generator("onnx"))
    feeds = {"X": x.astype(dtype), "initial_h": state[0].astype(dtype)}
    names = ["X", "W", "R", "B", "", "initial_h"]
    if lengths is not None:
        constants["sequence_lens"], names[4] = np.array(lengths, np.int32), "sequence_lens"
    if cell == "LSTM":
        feeds["initial_c"] = state[1].astype(dtype)
        names.append("initial_c")
    if layer.peepholes:
        peepholes = [weights["weight_peephole" + end][[0, 2, 1]].reshape(-1) for end in suffixes]
        constants["P"] = np.stack(peepholes).astype(dtype)
        names.append("P")
    outputs = ["Y", "Y_h", "Y_c"][: 3 if cell == "LSTM" else 2]
    kind = TensorProto.FLOAT if dtype == np.float32 else TensorProto.DOUBLE
    graph = helper.make_graph(
        [helper.make_node(cell, names, outputs, hidden_size=hidden, **attributes)],
        "g",
        [helper.make_tensor_value_info(name, kind, v.shape) for name, v in feeds.items()],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(v, name) for name, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    output, final = layer(x, form(state), lengths=lengths)
    output = output.reshape(5, 3, len(suffixes), hidden).transpose(0, 2, 1, 3)  # ONNX's Y [T, D, B, H]
    return model, feeds, (output, *parts(final))


@pytest.mark.parametrize("direction, how", DIRECTIONS, ids=name_of)
@pytest.mark.parametrize(
    "cls, options, attributes",
    [
        (LSTM, {}, {}),
        (LSTM, {"peepholes": True}, {}),
        (GRU, {"reset_after": False}, {}),
        (GRU, {}, {"linear_before_reset": 1}),
        (RNN, {}, {}),
    ],
    ids=name_of,
)
def test_onnx_reference(cls: Any, options: Any, attributes: Any, direction: str, how: Any) -> None:
    """ONNX's own evaluator, in float64. It ignores clip, sequence_lens, input_forget and most activations."""
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    layer = make(cls, 3, 4, scale=0.6, **options, **how)
    model, feeds, expected = onnx_case(layer, np.float64, None, direction=direction, **attributes)
    for ours, theirs in zip(expected, evaluator(model).run(None, feeds), strict=True):
        assert_close(ours, theirs)


def onnx_attributes(layer: Any) -> dict[str, Any]:
    """The layer's activations and clip in ONNX's words, once for each direction."""
    chosen = layer._options.activations * (2 if layer.bidirectional else 1)
    counts = [len(reference.DEFAULTS.get(f.name, ())) for f in chosen]
    attributes = {
        "activations": ["".join(word.capitalize() for word in f.name.split("_")) for f in chosen],
        "activation_alpha": [f.alpha for f, count in zip(chosen, counts, strict=True) if count],
        "activation_beta": [f.beta for f, count in zip(chosen, counts, strict=True) if count == 2],
        "clip": chosen[0].clip,
    }
    return {name: value for name, value in attributes.items() if value}


def assert_onnxruntime_agrees(layer: Any, lengths: Any = None, **attributes: Any) -> None:
    """In float32: ONNX Runtime knows no other here."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    model, feeds, expected = onnx_case(layer, np.float32, lengths, **onnx_attributes(layer), **attributes)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for ours, theirs in zip(expected, session.run(None, feeds), strict=True):
        assert_close(ours, theirs, 2e-5)


@pytest.mark.parametrize("lengths", [None, [5, 2, 3]], ids=["full", "ragged"])
@pytest.mark.parametrize("direction, how", DIRECTIONS, ids=name_of)
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize(
    "cls, options, attributes",
    [
        (LSTM, {"peepholes": True}, {}),
        (LSTM, {"peepholes": True, "coupled_gates": True}, {"input_forget": 1}),
        (GRU, {"reset_after": False}, {}),
        (GRU, {}, {"linear_before_reset": 1}),
        (RNN, {}, {}),
    ],
    ids=name_of,
)
def test_onnxruntime(
    cls: Any, options: Any, attributes: Any, clip: Any, direction: str, how: Any, lengths: Any
) -> None:
    layer = make(cls, 3, 4, scale=0.6, clip=clip, **options, **how)
    assert_onnxruntime_agrees(layer, lengths, direction=direction, **attributes)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=name_of)
@pytest.mark.parametrize("cls", [LSTM, GRU, RNN])
def test_onnxruntime_activations(cls: Any, activation: Any) -> None:
    own = {LSTM: ["sigmoid", "tanh", "tanh"], GRU: ["sigmoid", "tanh"], RNN: ["tanh"]}[cls]
    for role in range(len(own)):
        layer = make(cls, 3, 4, scale=0.4, activations=[*own[:role], activation, *own[role + 1 :]])
        assert_onnxruntime_agrees(layer, **({"linear_before_reset": 1} if cls is GRU else {}))
