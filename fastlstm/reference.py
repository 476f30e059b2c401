"""Every cell of fastlstm in plain NumPy, forward and backward, one line per equation.

The text book and the oracle of the package: the C core is tested against this module, which shares no code
with it. `reference.LSTM`, `GRU`, `RNN` and `GatedRNN` are made and called exactly as the fast layers are, in
float32 or float64. They have no `stream` and no `save`; to go step by step, hand on the state.

Notation: T steps, B sequences, I inputs, H units, P outputs (P = H but for a projection), G gates, L layers,
D directions; σ the logistic function, ⊙ the element-wise product; a prime marks the new value of a state;

    a = W_ih x + b_ih    what the input says, computed for all steps at once
    u = W_hh h + b_hh    what the state says, computed step by step
    s                    a pre-activation: a + u and what else there is; an activation makes f(clip(s)) of it
    dv                   the derivative of the loss by v

A cell is a pair of functions that do one step for B sequences,

    step(a, state, w, opt) -> state', memory
    step_backward(dstate', memory, w, opt, dw) -> da, dstate

where a is [B, G·H], the state (h [B, P],) or (h [B, P], c [B, H]), and w holds the parameters of one layer
and direction by name ("weight_hh", "bias_hh", ...; biases may be missing). Their gradients are added to dw,
except for W_ih and b_ih, which act on all steps at once.

The second one over time, last step first, is backpropagation through time (Werbos 1990, "Backpropagation
through time: what it does and how to do it").
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["GRU", "LSTM", "RNN", "Activation", "GatedRNN", "Gradients", "Tape"]

Array: TypeAlias = npt.NDArray[Any]
States: TypeAlias = tuple[Array, ...]
Weights: TypeAlias = dict[str, Array]
Stepped: TypeAlias = tuple[States, States]  # state', memory
SteppedBack: TypeAlias = tuple[Array, States]  # da, dstate
Spec: TypeAlias = str | Sequence[Any]  # of an activation: its name, or (name[, alpha[, beta]])

# --- activations ------------------------------------------------------------------------------------------


def sigmoid(s: Array) -> Array:
    """1 / (1 + e^-s), written so that the exponential cannot overflow and both tails keep their accuracy."""
    e = np.exp(-np.abs(s))
    return np.where(s >= 0, 1 / (1 + e), e / (1 + e))


def softsign(s: Array) -> Array:
    """s / (1 + |s|), with its limits ±1 at ±inf."""
    largest = np.finfo(s.dtype).max
    s = np.clip(s, -largest, largest)
    y: Array = s / (1 + np.abs(s))
    return y


# ONNX's eleven (operators LSTM, GRU and RNN); a and b are alpha and beta. NaN stays NaN.
FUNCTIONS: dict[str, Callable[[Array, float, float], Array]] = {
    "sigmoid": lambda s, a, b: sigmoid(s),
    "tanh": lambda s, a, b: np.tanh(s),
    "relu": lambda s, a, b: np.maximum(s, 0),
    "affine": lambda s, a, b: a * s + b,
    "leaky_relu": lambda s, a, b: np.where(s >= 0, s, a * s),
    "thresholded_relu": lambda s, a, b: np.where(s < a, 0, s),
    "scaled_tanh": lambda s, a, b: a * np.tanh(b * s),
    "hard_sigmoid": lambda s, a, b: np.clip(a * s + b, 0, 1),
    "elu": lambda s, a, b: np.where(s >= 0, s, a * np.expm1(np.minimum(s, 0))),
    "softsign": lambda s, a, b: softsign(s),
    "softplus": lambda s, a, b: np.maximum(s, 0) + np.log1p(np.exp(-np.abs(s))),
}

# Their derivatives, from s and y = f(s). At a kink it is the one from the left, as PyTorch's; at both of
# hard_sigmoid's it is 0.
SLOPES: dict[str, Callable[[Array, Array, float, float], Any]] = {
    "sigmoid": lambda s, y, a, b: y * (1 - y),
    "tanh": lambda s, y, a, b: 1 - y * y,
    "relu": lambda s, y, a, b: np.where(s <= 0, 0, 1),
    "affine": lambda s, y, a, b: a,
    "leaky_relu": lambda s, y, a, b: np.where(s <= 0, a, 1),
    "thresholded_relu": lambda s, y, a, b: np.where(s <= a, 0, 1),
    "scaled_tanh": lambda s, y, a, b: a * b * (1 - np.tanh(b * s) ** 2),
    "hard_sigmoid": lambda s, y, a, b: np.where((y <= 0) | (y >= 1), 0, a),
    "elu": lambda s, y, a, b: np.where(s <= 0, a * np.exp(np.minimum(s, 0)), 1),
    "softsign": lambda s, y, a, b: (1 / (1 + np.abs(s))) ** 2,
    "softplus": lambda s, y, a, b: sigmoid(s),
}

# ONNX's defaults of alpha, or of alpha and beta, for those that take them.
DEFAULTS: dict[str, tuple[float, ...]] = {
    "affine": (1.0, 0.0), "leaky_relu": (0.01,), "thresholded_relu": (1.0,), "scaled_tanh": (1.0, 1.0),
    "hard_sigmoid": (0.2, 0.5), "elu": (1.0,),
}


class Activation(NamedTuple):
    """y = f(min(max(s, -clip), clip)), or f(s) without clip. Beyond ±clip, not at it, the derivative is 0."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0
    clip: float | None = None

    def __call__(self, s: Array) -> Array:
        return FUNCTIONS[self.name](self._clamp(s), self.alpha, self.beta).astype(s.dtype, copy=False)

    def backward(self, s: Array, y: Array, dy: Array) -> Array:
        ds = dy * SLOPES[self.name](self._clamp(s), y, self.alpha, self.beta)
        ds = ds if self.clip is None else np.where(np.abs(s) > self.clip, 0, ds)
        return ds.astype(s.dtype, copy=False)

    def _clamp(self, s: Array) -> Array:
        return s if self.clip is None else np.clip(s, -self.clip, self.clip)


class Options(NamedTuple):
    """What a step needs to know besides its weights."""

    activations: tuple[Activation, ...]
    forget_gate: bool = True
    coupled_gates: bool = False


# --- the cells --------------------------------------------------------------------------------------------


def product(x: Array, name: str, w: Weights, least: float = 1.0) -> Array:
    """W x: [.., n] -> [.., m]; of a layer with int8 weights in whole numbers, and a scale for each row.

        W ≈ s_W⊙n_W, s_W = max|W| / 127 by output;  x ≈ s_x n_x, s_x = max(max|x|, least) / most by row.

    `most` is 127 of 8 bits and 127·256 + 127 of 16 (two signed bytes). NaN or an infinity in x makes its row
    NaN. Jacob et al. 2018, "Quantization and training of neural networks for efficient
    integer-arithmetic-only inference", symmetric.
    """
    weight = w[name]
    if "activation_bits" not in w:
        return x @ weight.T
    most = x.dtype.type(127 if w["activation_bits"] == 8 else 127 * 256 + 127)
    largest = np.maximum(np.abs(x).max(-1, keepdims=True), x.dtype.type(least))
    fine = np.isfinite(largest)
    n_x = np.rint(np.where(fine, x, 0) * (most / np.where(fine, largest, 1)))
    s_weight = np.abs(weight).max(-1) / weight.dtype.type(127)
    n_weight = np.rint(weight / np.where(s_weight > 0, s_weight, 1)[:, None])
    sums = n_x.astype(np.float64) @ n_weight.T.astype(np.float64)  # exact: whole numbers below 2^53
    return np.where(fine, sums * (largest / most * s_weight), np.nan).astype(x.dtype)


def recurrent(h: Array, w: Weights) -> Array:
    """u = W_hh h + b_hh: [B, P] -> [B, G·H]."""
    return product(h, "weight_hh", w) + w.get("bias_hh", 0)


def recurrent_backward(du: Array, h: Array, w: Weights, dw: Weights) -> Array:
    """dW_hh += duᵀ h, db_hh += Σ du; returns dh = W_hhᵀ du."""
    dw["weight_hh"] += du.T @ h
    if "bias_hh" in w:
        dw["bias_hh"] += du.sum(0)
    return du @ w["weight_hh"]


def bfloat16(weight: Array) -> Array:
    """Rounded to 8 bits of mantissa, to nearest even."""
    mantissa, exponent = np.frexp(weight)
    rounded: Array = np.ldexp(np.rint(mantissa * 256) / 256, exponent)
    return rounded.astype(weight.dtype)


def int8(weight: Array) -> Array:
    """Each row rounded to multiples of -127 to 127 of a scale that has 17 bits."""
    largest = np.abs(weight).max(-1, keepdims=True)
    mantissa, exponent = np.frexp(np.where(largest < 1e-30, 0, largest) / 127)
    scale = np.ldexp(np.ceil(mantissa * 2**17) / 2**17, exponent)
    rounded: Array = np.rint(weight / np.where(scale > 0, scale, 1)) * scale
    return rounded.astype(weight.dtype)


def split(s: Array, gates: int) -> Array:
    """[B, G·H] -> [G, B, H], a view."""
    return s.reshape(len(s), gates, s.shape[1] // gates).swapaxes(0, 1)


def lstm_step(a: Array, state: States, w: Weights, opt: Options) -> Stepped:
    """Long short-term memory. Gates i, f, g, o; optional diagonal peepholes p and projection W_hr.

        i = σ(a_i + u_i + p_i⊙c);  f = σ(a_f + u_f + p_f⊙c);  g = tanh(a_g + u_g);  c' = f⊙c + i⊙g;
        o = σ(a_o + u_o + p_o⊙c');  h' = W_hr (o⊙tanh(c')).

    With forget_gate=False f = 1, with coupled_gates f = 1 - i.

    Hochreiter & Schmidhuber 1997, "Long short-term memory" (f = 1, the constant error carousel); Gers,
    Schmidhuber & Cummins 2000, "Learning to forget" (f); Gers & Schmidhuber 2000, "Recurrent nets that time
    and count" (p); Sak, Senior & Beaufays 2014, "Long short-term memory based recurrent neural network
    architectures for large vocabulary speech recognition" (W_hr); Greff et al. 2017, "LSTM: a search space
    odyssey" (f = 1 - i).
    """
    h, c = state
    gate, candidate, output = opt.activations
    p = w.get("weight_peephole")
    s_i, s_f, s_g, s_o = split(a + recurrent(h, w), 4)
    if p is not None:
        s_i, s_f = s_i + p[0] * c, s_f + p[1] * c
    i = gate(s_i)
    f = 1 - i if opt.coupled_gates else gate(s_f) if opt.forget_gate else np.ones_like(i)
    g = candidate(s_g)
    c_new = f * c + i * g
    if p is not None:
        s_o = s_o + p[2] * c_new
    o = gate(s_o)
    y = output(c_new)
    h_new = product(o * y, "weight_hr", w) if "weight_hr" in w else o * y
    return (h_new, c_new), (h, c, s_i, s_f, s_g, s_o, i, f, g, o, y, c_new)


def lstm_step_backward(dstate: States, memory: States, w: Weights, opt: Options, dw: Weights) -> SteppedBack:
    """`lstm_step` differentiated, last equation first (Greff et al. 2017, section II-B)."""
    dh, dc = dstate
    h, c, s_i, s_f, s_g, s_o, i, f, g, o, y, c_new = memory
    gate, candidate, output = opt.activations
    p = w.get("weight_peephole")
    if "weight_hr" in w:  # h' = W_hr (o⊙y)
        dw["weight_hr"] += dh.T @ (o * y)
        dh = dh @ w["weight_hr"]
    ds_o = gate.backward(s_o, o, dh * y)  # h' = o⊙y
    dc = dc + output.backward(c_new, y, dh * o)  # y = tanh(c')
    if p is not None:  # s_o = … + p_o⊙c'
        dc = dc + p[2] * ds_o
    di, df, dg = dc * g, dc * c, dc * i  # c' = f⊙c + i⊙g
    if opt.coupled_gates:  # f = 1 - i
        di = di - df
    ds_i = gate.backward(s_i, i, di)
    ds_f = gate.backward(s_f, f, df) if opt.forget_gate and not opt.coupled_gates else np.zeros_like(df)
    ds_g = candidate.backward(s_g, g, dg)
    dc = dc * f  # c' = f⊙c + …
    if p is not None:  # s_i = … + p_i⊙c, s_f = … + p_f⊙c
        dc = dc + p[0] * ds_i + p[1] * ds_f
        dw["weight_peephole"] += np.stack([(ds_i * c).sum(0), (ds_f * c).sum(0), (ds_o * c_new).sum(0)])
    ds = np.concatenate([ds_i, ds_f, ds_g, ds_o], axis=1)  # s = a + u + …
    return ds, (recurrent_backward(ds, h, w, dw), dc)


def gru_step(a: Array, state: States, w: Weights, opt: Options) -> Stepped:
    """Gated recurrent unit that resets after the product. Gates r, z, n.

        r = σ(a_r + u_r);  z = σ(a_z + u_z);  n = tanh(a_n + r⊙u_n);  h' = (1 - z)⊙n + z⊙h.

    Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder for statistical machine
    translation", first version (arXiv 1406.1078v1); the form of PyTorch and cuDNN, Keras's default, ONNX's
    linear_before_reset=1.
    """
    (h,) = state
    gate, candidate = opt.activations
    (a_r, a_z, a_n), (u_r, u_z, u_n) = split(a, 3), split(recurrent(h, w), 3)
    r = gate(s_r := a_r + u_r)
    z = gate(s_z := a_z + u_z)
    n = candidate(s_n := a_n + r * u_n)
    h_new = (1 - z) * n + z * h
    return (h_new,), (h, s_r, s_z, s_n, u_n, r, z, n)


def gru_step_backward(dstate: States, memory: States, w: Weights, opt: Options, dw: Weights) -> SteppedBack:
    """`gru_step` differentiated, last equation first."""
    (dh,) = dstate
    h, s_r, s_z, s_n, u_n, r, z, n = memory
    gate, candidate = opt.activations
    ds_z = gate.backward(s_z, z, dh * (h - n))  # h' = (1 - z)⊙n + z⊙h
    ds_n = candidate.backward(s_n, n, dh * (1 - z))
    ds_r = gate.backward(s_r, r, ds_n * u_n)  # s_n = a_n + r⊙u_n
    da = np.concatenate([ds_r, ds_z, ds_n], axis=1)
    du = np.concatenate([ds_r, ds_z, ds_n * r], axis=1)
    return da, (dh * z + recurrent_backward(du, h, w, dw),)


def gru_reset_before_step(a: Array, state: States, w: Weights, opt: Options) -> Stepped:
    """Gated recurrent unit that resets before the product. Gates r, z, n.

        r = σ(a_r + u_r);  z = σ(a_z + u_z);  n = tanh(a_n + W_hn (r⊙h) + b_hn);  h' = (1 - z)⊙n + z⊙h.

    Cho et al. 2014 (arXiv 1406.1078v3), equations 5 to 8; Keras's reset_after=False, ONNX's default.
    """
    (h,) = state
    gate, candidate = opt.activations
    a_r, a_z, a_n = split(a, 3)
    u_r, u_z = split(recurrent(h, gru_part(w, "rz")), 2)
    r = gate(s_r := a_r + u_r)
    z = gate(s_z := a_z + u_z)
    n = candidate(s_n := a_n + recurrent(r * h, gru_part(w, "n")))
    h_new = (1 - z) * n + z * h
    return (h_new,), (h, s_r, s_z, s_n, r, z, n)


def gru_reset_before_step_backward(
    dstate: States, memory: States, w: Weights, opt: Options, dw: Weights
) -> SteppedBack:
    """`gru_reset_before_step` differentiated, last equation first."""
    (dh,) = dstate
    h, s_r, s_z, s_n, r, z, n = memory
    gate, candidate = opt.activations
    ds_z = gate.backward(s_z, z, dh * (h - n))  # h' = (1 - z)⊙n + z⊙h
    ds_n = candidate.backward(s_n, n, dh * (1 - z))
    drh = recurrent_backward(ds_n, r * h, gru_part(w, "n"), gru_part(dw, "n"))  # s_n = … + W_hn (r⊙h) + b_hn
    ds_r = gate.backward(s_r, r, drh * h)
    du = np.concatenate([ds_r, ds_z], axis=1)
    dh = dh * z + drh * r + recurrent_backward(du, h, gru_part(w, "rz"), gru_part(dw, "rz"))
    return np.concatenate([du, ds_n], axis=1), (dh,)


def gru_part(w: Weights, gates: str) -> Weights:
    """The rows of "rz" or of "n" in the parameters that act on the state, as views."""
    size = len(w["weight_hh"]) // 3
    rows = slice(2 * size) if gates == "rz" else slice(2 * size, None)
    part = {name: w[name][rows] for name in ("weight_hh", "bias_hh") if name in w}
    return part | {name: w[name] for name in ("activation_bits",) if name in w}


def gated_rnn_step(a: Array, state: States, w: Weights, opt: Options) -> Stepped:
    """Single-gate recurrent network. Gates g, n; g says how much of the old state to overwrite.

        g = σ(a_g + u_g);  n = tanh(a_n + u_n);  h' = (1 - g)⊙h + g⊙n.

    MITx 6.86x, "Machine learning with Python: from linear models to deep learning", on recurrent networks.
    """
    (h,) = state
    gate, candidate = opt.activations
    s_g, s_n = split(a + recurrent(h, w), 2)
    g = gate(s_g)
    n = candidate(s_n)
    h_new = (1 - g) * h + g * n
    return (h_new,), (h, s_g, s_n, g, n)


def gated_rnn_step_backward(
    dstate: States, memory: States, w: Weights, opt: Options, dw: Weights
) -> SteppedBack:
    """`gated_rnn_step` differentiated, last equation first."""
    (dh,) = dstate
    h, s_g, s_n, g, n = memory
    gate, candidate = opt.activations
    ds_g = gate.backward(s_g, g, dh * (n - h))  # h' = (1 - g)⊙h + g⊙n
    ds_n = candidate.backward(s_n, n, dh * g)
    ds = np.concatenate([ds_g, ds_n], axis=1)  # s = a + u
    return ds, (dh * (1 - g) + recurrent_backward(ds, h, w, dw),)


def rnn_step(a: Array, state: States, w: Weights, opt: Options) -> Stepped:
    """h' = tanh(a + u). Elman 1990, "Finding structure in time"."""
    (h,) = state
    h_new = opt.activations[0](s := a + recurrent(h, w))
    return (h_new,), (h, s, h_new)


def rnn_step_backward(dstate: States, memory: States, w: Weights, opt: Options, dw: Weights) -> SteppedBack:
    """`rnn_step` differentiated."""
    (dh,) = dstate
    h, s, h_new = memory
    ds = opt.activations[0].backward(s, h_new, dh)
    return ds, (recurrent_backward(ds, h, w, dw),)


# --- one layer and direction over time --------------------------------------------------------------------


class Cell(NamedTuple):
    """A cell as the loops over time see it."""

    step: Callable[[Array, States, Weights, Options], Stepped]
    step_backward: Callable[[States, States, Weights, Options, Weights], SteppedBack]
    gates: int
    activations: tuple[str, ...]  # its own, where no others are asked for
    states: int = 1


def walk(steps: int, lengths: Array | None, reverse: bool) -> Iterator[tuple[Any, Any]]:
    """(rows, t) step by step: the sequences that still run, and where each of them is.

    In reverse every sequence starts at its own last valid step.
    """
    for k in range(steps if lengths is None else int(lengths.max(initial=0))):
        if lengths is None:
            yield slice(None), steps - 1 - k if reverse else k
        else:
            rows = np.flatnonzero(lengths > k)
            yield rows, lengths[rows] - 1 - k if reverse else k


class Run:
    """One layer and direction over x [T, B, I], along `path`. y [T, B, P] and `state` are what comes out."""

    def __init__(
        self, cell: Cell, opt: Options, w: Weights, x: Array, state: States, path: list[Any], keep: bool
    ) -> None:
        self.cell, self.opt, self.w, self.x, self.path = cell, opt, w, x, path
        self.memories: list[States] = []
        a = product(x, "weight_ih", w, least=2.0**-100) + w.get("bias_ih", 0)
        self.y = np.zeros((*x.shape[:2], state[0].shape[1]), x.dtype)
        self.state = tuple(v.copy() for v in state)
        for rows, t in path:
            new, memory = cell.step(a[t, rows], tuple(v[rows].copy() for v in self.state), w, opt)
            for v, v_new in zip(self.state, new, strict=True):
                v[rows] = v_new
            self.y[t, rows] = new[0]
            if keep:
                self.memories.append(memory)

    def backward(self, dy: Array, dstate: States) -> tuple[Array, States, Weights]:
        """dy [T, B, P] and the final dstate -> dx [T, B, I], the initial dstate, the gradients by w."""
        da = np.zeros((*self.x.shape[:2], len(self.w["weight_ih"])), self.x.dtype)
        dw = {name: np.zeros_like(v) for name, v in self.w.items()}
        dstate = tuple(v.copy() for v in dstate)
        for (rows, t), memory in zip(reversed(self.path), reversed(self.memories), strict=True):
            dstate[0][rows] += dy[t, rows]
            da[t, rows], old = self.cell.step_backward(
                tuple(v[rows] for v in dstate), memory, self.w, self.opt, dw
            )
            for v, v_old in zip(dstate, old, strict=True):
                v[rows] = v_old
        dw["weight_ih"] = np.tensordot(da, self.x, axes=((0, 1), (0, 1)))  # a = W_ih x + b_ih
        if "bias_ih" in dw:
            dw["bias_ih"] = da.sum((0, 1))
        return np.tensordot(da, self.w["weight_ih"], axes=1), dstate, dw


# --- the layers -------------------------------------------------------------------------------------------


class Gradients(NamedTuple):
    """Derivatives of the loss by x (in its shape), by the initial state (in its form), by each parameter."""

    input: Array
    state: Any
    parameters: dict[str, Array]


class _Layer:
    """What the four layers share: options, parameters, calls."""

    def __init__(
        self, cell: Cell, input_size: int, hidden_size: int, num_layers: int, bias: bool, batch_first: bool,
        dropout: float, bidirectional: bool, dtype: npt.DTypeLike, reverse: bool, activations: Any,
        clip: float | None, seed: int | None, proj_size: int = 0, peepholes: bool = False,
        forget_gate: bool = True, coupled_gates: bool = False,
    ) -> None:
        self.input_size, self.hidden_size = operator.index(input_size), operator.index(hidden_size)
        self.num_layers, self.proj_size = operator.index(num_layers), operator.index(proj_size)
        self.bias, self.batch_first, self.dropout = bool(bias), bool(batch_first), float(dropout)
        self.bidirectional, self.reverse, self.peepholes = bool(bidirectional), bool(reverse), bool(peepholes)
        self.dtype = np.dtype(dtype)
        for name in ("input_size", "hidden_size", "num_layers"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        _require(0 <= self.proj_size < self.hidden_size, "proj_size", "in 0..hidden_size - 1", proj_size)
        _require(0 <= self.dropout <= 1, "dropout", "in 0..1", dropout)
        _require(self.dtype in (np.float32, np.float64), "dtype", "float32 or float64", dtype)
        _require(clip is None or 0 < clip < math.inf, "clip", "None or a finite number above 0", clip)
        _require(not (reverse and bidirectional), "reverse", "False for a bidirectional layer", reverse)
        _require(forget_gate or not coupled_gates, "coupled_gates", "False like forget_gate", coupled_gates)
        self._cell = cell
        self._options = Options(_activations(cell, activations, clip), bool(forget_gate), bool(coupled_gates))
        self._widths = (self.proj_size or self.hidden_size, self.hidden_size)[: cell.states]  # P, or P and H
        self._directions = [("", False), ("_reverse", True)] if bidirectional else [("", self.reverse)]
        rng, k = np.random.default_rng(seed), 1 / math.sqrt(self.hidden_size)
        drawn = {name: rng.uniform(-k, k, shape) for name, shape in self._shapes().items()}
        self._parameters = {name: v.astype(self.dtype) for name, v in drawn.items()}
        self._activation_bits: int | None = None

    def quantize(self, dtype: str, *, activation_bits: int | None = None) -> Self:
        """A copy with matrices rounded to "bfloat16" or "int8", as the fast layers' `quantize`, whose scales
        are rounded up to 17 bits. It runs in this layer's dtype, and does not refuse `record`."""
        _require(dtype in ("bfloat16", "int8"), "dtype", "'bfloat16' or 'int8'", dtype)
        bits = (None, 8, 16) if dtype == "int8" else (None,)
        _require(activation_bits in bits, "activation_bits", "8 or 16, with int8 only", activation_bits)
        again = self._activation_bits is not None and dtype != "int8"
        _require(not again, "dtype", "'int8' for a layer with int8 weights", dtype)
        layer = copy.copy(self)
        layer._activation_bits = (activation_bits or 8) if dtype == "int8" else None
        small = bfloat16 if dtype == "bfloat16" else int8
        layer._parameters = {
            n: small(v) if n.startswith(("weight_ih", "weight_hh", "weight_hr")) else v.copy()
            for n, v in self._parameters.items()
        }
        return layer

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the parameters, in PyTorch's order; in this order they are drawn, too."""
        rows, out = self._cell.gates * self.hidden_size, self._widths[0]
        shapes: dict[str, tuple[int, ...]] = {}
        for k in range(self.num_layers):
            for suffix, _ in self._directions:
                end = f"_l{k}{suffix}"
                shapes[f"weight_ih{end}"] = (rows, out * len(self._directions) if k else self.input_size)
                shapes[f"weight_hh{end}"] = (rows, out)
                if self.bias:
                    shapes[f"bias_ih{end}"] = shapes[f"bias_hh{end}"] = (rows,)
                if self.proj_size:
                    shapes[f"weight_hr{end}"] = (out, self.hidden_size)
                if self.peepholes:
                    shapes[f"weight_peephole{end}"] = (3, self.hidden_size)
        return shapes

    def _weights(self, end: str) -> Weights:
        """The parameters of one layer and direction. Those of an f that isn't computed count as 0."""
        w = {name.removesuffix(end): v for name, v in self._parameters.items() if name.endswith(end)}
        if self._activation_bits is not None:
            w["activation_bits"] = np.array(self._activation_bits)
        if self._options.coupled_gates or not self._options.forget_gate:
            for name in w.keys() - {"weight_hr", "activation_bits"}:
                w[name] = w[name].copy()
                w[name][1 if name == "weight_peephole" else slice(self.hidden_size, 2 * self.hidden_size)] = 0
        return w

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters, under PyTorch's names (and `weight_peephole_l0` [3, H] for i, f, o)."""
        return {name: v.copy() for name, v in self._parameters.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take parameters: all the names of `state_dict()` and no others, in its shapes, or ValueError."""
        shapes = self._shapes()
        _require(state_dict.keys() == shapes.keys(), "state_dict", f"of {list(shapes)}", list(state_dict))
        arrays = {n: self._array(f"state_dict[{n!r}]", state_dict[n], shape) for n, shape in shapes.items()}
        self._parameters = {name: np.array(v, order="C") for name, v in arrays.items()}

    def __call__(self, x: Any, state: Any = None, *, lengths: Any = None) -> tuple[Array, Any]:
        """Run x [T, B, I] ([B, T, I] with batch_first, [T, I] unbatched) from `state` (None: zeros).

        Returns the output [T, B, D·P] and the final state: h [L·D, B, P], or (h, c [L·D, B, H]) for an LSTM.
        With `lengths`, B integers in 0..T, x beyond them is never read, the output there is 0, and the final
        state of a sequence is that of its last valid step. TypeError and ValueError name the argument.
        """
        tape = Tape(self, x, state, lengths, None, keep=False)
        return tape.output, tape.state

    def record(
        self, x: Any, state: Any = None, *, lengths: Any = None, dropout_seed: int | None = None,
        checkpoint: Any = None,
    ) -> Tape:
        """The same, remembered for `Tape.backward`.

        With `dropout_seed`, the input of every layer after the first is multiplied by m / (1 - dropout) with
        m = `rng.random([T, B, D·P]) >= dropout`, layer after layer, time first whatever batch_first says, and
        rng = `numpy.random.Generator(numpy.random.Philox(dropout_seed))`. `checkpoint` makes the fast layers
        recompute instead of remember; the numbers are the same, and here it is ignored.
        """
        return Tape(self, x, state, lengths, dropout_seed, keep=True)

    def _array(self, name: str, value: Any, shape: tuple[int, ...] | None = None) -> Array:
        """value in the layer's dtype, perhaps not a copy."""
        dlpack = hasattr(value, "__dlpack__") and not hasattr(value, "__array__")
        array = np.from_dlpack(value) if dlpack else np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
        _require(shape is None or array.shape == shape, name, f"of shape {shape}", array.shape)
        with np.errstate(over="ignore"):
            return array.astype(self.dtype, copy=False)


class Tape:
    """A forward pass that remembers. `output` and `state` are what the call returns."""

    def __init__(
        self, layer: _Layer, x: Any, state: Any, lengths: Any, dropout_seed: int | None, keep: bool
    ) -> None:
        x = layer._array("x", x)
        wanted = f"[T, B, {layer.input_size}], [B, T, ..] with batch_first, or unbatched [T, ..]"
        _require(x.ndim in (2, 3) and x.shape[-1] == layer.input_size, "x", wanted, x.shape)
        self._layer, self._batched = layer, x.ndim == 3
        x = self._time_first(x)
        self._lengths = _lengths(lengths, len(x), x.shape[1], self._batched)
        x = self._zero_padding(x)
        states = self._split_state("state", state, x.shape[1])
        rng = None if dropout_seed is None else np.random.Generator(np.random.Philox(dropout_seed))
        self._masks: list[Any] = []  # of each layer's input
        self._runs: list[Run] = []  # layer by layer, direction by direction
        with np.errstate(over="ignore", invalid="ignore"):  # inf and NaN are values like any other
            for k in range(layer.num_layers):
                self._masks.append(_dropout_mask(rng, layer.dropout, x) if k else 1)
                x = x * self._masks[k]
                for suffix, reverse in layer._directions:
                    w, path = layer._weights(f"_l{k}{suffix}"), list(walk(len(x), self._lengths, reverse))
                    first = tuple(v[len(self._runs)] for v in states)
                    self._runs.append(Run(layer._cell, layer._options, w, x, first, path, keep))
                x = np.concatenate([run.y for run in self._runs[-len(layer._directions) :]], axis=2)
        self.output = self._caller_order(x)
        self.state = self._join_state([run.state for run in self._runs])

    def backward(self, d_output: Any, d_state: Any = None) -> Gradients:
        """The gradients of a loss from its derivatives by `output` and (None: 0) by `state`.

        Padded steps of d_output are never read. Can be called any number of times.
        """
        directions = self._layer._directions
        dy = self._zero_padding(self._time_first(self._layer._array("d_output", d_output, self.output.shape)))
        dstates = list(zip(*self._split_state("d_state", d_state, dy.shape[1]), strict=True))
        parameters = {}
        with np.errstate(over="ignore", invalid="ignore"):
            for k in reversed(range(self._layer.num_layers)):
                parts, first = np.split(dy, len(directions), axis=2), k * len(directions)
                dy = np.zeros_like(self._runs[first].x)
                for n, (part, (suffix, _)) in enumerate(zip(parts, directions, strict=True), first):
                    dx, dstates[n], dw = self._runs[n].backward(part, dstates[n])
                    dy += dx * self._masks[k]
                    parameters.update({f"{name}_l{k}{suffix}": v for name, v in dw.items()})
        return Gradients(
            self._caller_order(self._zero_padding(dy)),
            self._join_state(dstates),
            {name: parameters[name] for name in self._layer._parameters},
        )

    def _time_first(self, x: Array) -> Array:
        """[T, B, n], whatever the caller's order."""
        return x[:, None] if not self._batched else x.swapaxes(0, 1) if self._layer.batch_first else x

    def _caller_order(self, y: Array) -> Array:
        y = y[:, 0] if not self._batched else y.swapaxes(0, 1) if self._layer.batch_first else y
        return np.ascontiguousarray(y)

    def _zero_padding(self, x: Array) -> Array:
        """x [T, B, n] with zeros beyond each sequence's length."""
        if self._lengths is None:
            return x
        return np.where(np.arange(len(x))[:, None, None] < self._lengths[:, None], x, x.dtype.type(0))

    def _split_state(self, name: str, state: Any, batch: int) -> States:
        """The caller's state as (h,) or (h, c), each [L·D, B, n]; zeros for None."""
        layer = self._layer
        shapes = [(layer.num_layers * len(layer._directions), batch, width) for width in layer._widths]
        if state is None:
            return tuple(np.zeros(shape, layer.dtype) for shape in shapes)
        if len(shapes) == 1:
            parts = {name: state}
        elif isinstance(state, (tuple, list)) and len(state) == 2:
            parts = {f"{name}[0] (h)": state[0], f"{name}[1] (c)": state[1]}
        else:
            raise TypeError(f"{name} must be a pair (h, c), got {type(state).__name__}")
        return tuple(
            layer._array(key, part, shape if self._batched else shape[::2]).reshape(shape)
            for (key, part), shape in zip(parts.items(), shapes, strict=True)
        )

    def _join_state(self, states: list[States]) -> Any:
        """The states of all layers and directions in the caller's form."""
        joined = tuple(np.stack(v) if self._batched else np.concatenate(v) for v in zip(*states, strict=True))
        return joined if len(joined) == 2 else joined[0]


class LSTM(_Layer):
    """Long short-term memory, `lstm_step`. The options are those of `fastlstm.LSTM`.

    weight_ih [4H, I], weight_hh [4H, P], bias_ih and bias_hh [4H] in the order i, f, g, o; with proj_size
    weight_hr [P, H]; with peepholes weight_peephole [3, H] in the order i, f, o. activations: gates,
    candidate, output.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0, *,
        dtype: npt.DTypeLike = "float32", peepholes: bool = False, forget_gate: bool = True,
        coupled_gates: bool = False, reverse: bool = False, activations: Sequence[Spec] | None = None,
        clip: float | None = None, seed: int | None = None,
    ) -> None:
        super().__init__(
            Cell(lstm_step, lstm_step_backward, 4, ("sigmoid", "tanh", "tanh"), states=2),
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, reverse,
            activations, clip, seed, proj_size, peepholes, forget_gate, coupled_gates,
        )


class GRU(_Layer):
    """Gated recurrent unit, `gru_step`; with reset_after=False `gru_reset_before_step`.

    The options are those of `fastlstm.GRU`. weight_ih [3H, I], weight_hh [3H, H], bias_ih and bias_hh [3H] in
    the order r, z, n. activations: gates, candidate.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, *,
        dtype: npt.DTypeLike = "float32", reset_after: bool = True, reverse: bool = False,
        activations: Sequence[Spec] | None = None, clip: float | None = None, seed: int | None = None,
    ) -> None:
        after, before = (gru_step, gru_step_backward), (gru_reset_before_step, gru_reset_before_step_backward)
        super().__init__(
            Cell(*(after if reset_after else before), 3, ("sigmoid", "tanh")),
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, reverse,
            activations, clip, seed,
        )


class RNN(_Layer):
    """Elman network, `rnn_step`, of nonlinearity tanh or relu or the one of `activations`.

    The options are those of `fastlstm.RNN`. weight_ih [H, I], weight_hh [H, H], bias_ih and bias_hh [H].
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, *,
        dtype: npt.DTypeLike = "float32", nonlinearity: str = "tanh", reverse: bool = False,
        activations: Spec | None = None, clip: float | None = None, seed: int | None = None,
    ) -> None:
        _require(nonlinearity in ("tanh", "relu"), "nonlinearity", "tanh or relu", nonlinearity)
        both = activations is not None and nonlinearity != "tanh"
        _require(not both, "nonlinearity", "left out beside activations", nonlinearity)
        super().__init__(
            Cell(rnn_step, rnn_step_backward, 1, (nonlinearity,)),
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, reverse,
            activations, clip, seed,
        )


class GatedRNN(_Layer):
    """Single-gate recurrent network, `gated_rnn_step`. The options are those of `fastlstm.GatedRNN`.

    weight_ih [2H, I], weight_hh [2H, H], bias_ih and bias_hh [2H] in the order g, n. activations: gate,
    candidate.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, *,
        dtype: npt.DTypeLike = "float32", reverse: bool = False, activations: Sequence[Spec] | None = None,
        clip: float | None = None, seed: int | None = None,
    ) -> None:
        super().__init__(
            Cell(gated_rnn_step, gated_rnn_step_backward, 2, ("sigmoid", "tanh")),
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, reverse,
            activations, clip, seed,
        )


# --- arguments --------------------------------------------------------------------------------------------


def _require(condition: bool, name: str, wanted: str, got: Any) -> None:
    if not condition:
        raise ValueError(f"{name} must be {wanted}, got {got!r}")


def _activations(cell: Cell, given: Any, clip: float | None) -> tuple[Activation, ...]:
    """Those of a cell from its `activations` argument; an LSTM's third sees c' and is not clipped."""
    wanted = len(cell.activations)
    specs = cell.activations if given is None else given
    if given and wanted == 1 and isinstance(given[0], str):
        specs = (given,)  # a lone spec needs no tuple around it
    _require(not isinstance(specs, str) and len(specs) == wanted, "activations", f"{wanted} of them", given)
    return tuple(_activation(spec, clip if k < 2 else None) for k, spec in enumerate(specs))


def _activation(spec: Any, clip: float | None) -> Activation:
    name, *given = (spec,) if isinstance(spec, str) else spec
    _require(name in FUNCTIONS, "activations", f"out of {', '.join(FUNCTIONS)}", name)
    values = list(DEFAULTS.get(name, ()))
    for k, value in enumerate(given):
        if value is not None:
            wanted = f"{name} with at most {len(values)} finite parameters"
            _require(k < len(values) and math.isfinite(value), "activations", wanted, spec)
            values[k] = float(value)
    alpha, beta, *_ = *values, 0.0, 0.0
    return Activation(name, alpha, beta, clip)


def _lengths(lengths: Any, steps: int, batch: int, batched: bool) -> Array | None:
    if lengths is None:
        return None
    _require(batched, "lengths", "None for an unbatched x", lengths)
    array = np.asarray(lengths)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"lengths must be integers, got dtype {array.dtype}")
    _require(array.shape == (batch,), "lengths", f"of shape {(batch,)}", array.shape)
    _require(bool(np.all((array >= 0) & (array <= steps))), "lengths", f"in 0..{steps}", lengths)
    return array.astype(np.int64)


def _dropout_mask(rng: np.random.Generator | None, dropout: float, x: Array) -> Any:
    """Of x [T, B, n], scaled; 1 where there is no dropout."""
    if rng is None or not dropout:
        return 1
    keep = rng.random(x.shape) >= dropout
    return (keep / (1 - dropout) if dropout < 1 else keep).astype(x.dtype)
