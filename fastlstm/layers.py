"""The objects that users hold: LSTM, GRU, RNN, GatedRNN and Stream. They keep options and parameters and call
`_core`.

Notation of all shapes: T steps, B sequences, I = input_size, H = hidden_size, P = proj_size or H, L =
num_layers, D = 2 if bidirectional, else 1.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, Never, NoReturn, Self, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from . import _check, _quantize
from ._core import Core, StreamCore
from .tape import Tape

__all__ = ["GRU", "LSTM", "RNN", "GatedRNN", "Stream"]

Array: TypeAlias = npt.NDArray[Any]
ActivationLike: TypeAlias = str | Sequence[Any]  # a name, or (name[, alpha[, beta]])
V = TypeVar("V")
L = TypeVar("L", bound="_Layer")


class LoadResult(NamedTuple):
    """What `load_state_dict` found, as PyTorch reports it: both lists are empty if it was strict."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class _Option(Generic[V]):
    """A read-only attribute: an option that the layer was made with."""

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, layer: Any, owner: type | None = None) -> V:
        value: V = self if layer is None else getattr(layer._options, self._name)  # type: ignore[assignment]
        return value

    def __set__(self, layer: Any, value: Never) -> NoReturn:
        raise AttributeError(f"{self._name} of a layer is read-only: make a new layer")


class _Layer:
    """What the four kinds of layer have in common."""

    __slots__ = (
        "_options",
        "_core",
        "_dtype",
        "_input_size",
        "_batch_first",
        "_rows",
        "_sizes",
        "_width",
        "_lock",
        "_parameters",
        "__weakref__",
    )

    _cell: ClassVar[str]

    input_size = _Option[int]("Features of x, I.")
    hidden_size = _Option[int]("Units, H.")
    num_layers = _Option[int]("Layers, L: each but the first reads the output of the one before.")
    bias = _Option[bool]("Whether there are bias_ih and bias_hh.")
    batch_first = _Option[bool](
        "Whether x and the output are [B, T, ..] rather than [T, B, ..]. States never are."
    )
    dropout = _Option[float](
        "Probability of a zero between layers. Training only: it does nothing in a call."
    )
    bidirectional = _Option[bool](
        "Whether a second direction runs from each sequence's last valid step to its first."
    )
    reverse = _Option[bool](
        "Whether the one direction runs from each sequence's last valid step to its first."
    )
    clip = _Option[float | None](
        "Pre-activations of gates and candidates are clamped to ±clip; c' is not. NaN stays."
    )

    _options: _check.Options
    _core: Core
    _dtype: np.dtype[Any]
    _input_size: int
    _batch_first: bool
    _rows: int  # of a state: L*D
    _sizes: _check.Shape  # the width of each state
    _width: int  # of the output: D*P
    _lock: threading.Lock
    _parameters: dict[str, Array]  # as `_check.held` says

    def _make(self, options: _check.Options, parameters: dict[str, Array]) -> None:
        self._options = options
        self._core = Core(**options.core())
        self._dtype = np.dtype(options.dtype)
        self._input_size = options.input_size
        self._batch_first = options.batch_first
        self._sizes = options.state_sizes
        self._rows = options.num_layers * len(options.suffixes)
        self._width = len(options.suffixes) * self._sizes[0]
        self._lock = threading.Lock()
        self._set_parameters(parameters)

    def _set_parameters(self, parameters: dict[str, Array]) -> None:
        self._core.set_weights(parameters)  # packs; calls that run keep the pack that they began with
        self._parameters = parameters

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64: of the parameters, of all arithmetic, of output and state."""
        return self._dtype

    def _run(self, x: Any, state: Any, lengths: Any) -> tuple[Array, Array, Array | None]:
        """The output and the final state, in the caller's form. Nothing is converted that need not be."""
        if lengths is None and (plain := self._core.forward_plain(x, state, self._batch_first)) is not None:
            return plain
        dtype, batch_first, batched = self._dtype, self._batch_first, True
        x = _check.sequence("x", x, self._input_size, dtype, batch_first)
        if x.ndim == 2:  # unbatched: a batch of one
            x, batched, batch_first = x[:, None], False, False
        first, second, _ = x.shape
        batch = first if batch_first else second
        rows, sizes = self._rows, self._sizes
        shape = (rows, batch, sizes[0])
        h = c = c_end = None
        if len(sizes) == 1:
            if state is not None:
                h = self._states(state, batch, batched)[0]
        else:
            c_shape = (rows, batch, sizes[1])
            c_end = np.empty(c_shape, dtype)
            if state is not None:
                h, c = self._states(state, batch, batched)
        if lengths is not None:
            lengths = _check.lengths("lengths", lengths, second if batch_first else first, batch, batched)
        y = np.empty((first, second, self._width), dtype)
        h_end = np.empty(shape, dtype)
        self._core.forward(x, h, c, lengths, y, h_end, c_end, batch_first)
        if batched:
            return y, h_end, c_end
        return y[:, 0], h_end[:, 0], None if c_end is None else c_end[:, 0]

    def _states(self, state: Any, batch: int, batched: bool) -> list[Array]:
        """The given state, converted, as [L*D, B, ..]."""
        shapes = [(self._rows, batch, size) if batched else (self._rows, size) for size in self._sizes]
        states = _check.states("state", state, shapes, self._dtype)
        return states if batched else [v[:, None] for v in states]

    def record(
        self,
        x: npt.ArrayLike,
        state: Any = None,
        *,
        lengths: Any = None,
        dropout_seed: int | None = None,
        checkpoint: int | None = None,
    ) -> Tape:
        """Run whole sequences as a call does, and remember: `tape.output`, `tape.state`, `tape.backward`.

        x, state, lengths: as in a call.
        dropout_seed: None for no dropout. Otherwise the input of every layer after the first is multiplied by
            m / (1 - dropout), m = `rng.random([T, B, D*P]) >= dropout`, layer after layer, time first
            whatever batch_first says, rng = `numpy.random.Generator(numpy.random.Philox(dropout_seed))`.
        checkpoint: k keeps the states before every k-th step only and runs the steps between them again in
            `backward`: less memory, more work, the same bits.

        Raises TypeError or ValueError naming the argument.
        """
        if self._options.weight_dtype is not None:
            raise ValueError(
                f"record: a layer with {self._options.weight_dtype} weights cannot be trained: "
                "record the float32 layer"
            )
        return Tape(self, x, state, lengths, dropout_seed, checkpoint)

    def stream(self, batch_size: int = 1, state: Any = None) -> Stream:
        """A `Stream` of batch_size sequences that are fed step by step, from `state` [L, B, ..] (zeros if
        None).

        Raises ValueError if the layer is reverse or bidirectional: those need a sequence's end first.
        """
        _check.streams("stream", self._options)
        batch = _check.integer("batch_size", batch_size, 1, 2**31 - 1)
        h, *c = [None] * len(self._sizes) if state is None else self._states(state, batch, True)
        return Stream(self._core, batch, h, c[0] if c else None)

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters under PyTorch's names, in PyTorch's order.

        `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`, `bias_hh_l0`, `weight_hr_l0` (projection),
        `weight_peephole_l0`; the number is the layer's, and a bidirectional layer's second direction ends in
        `_reverse`. Of a layer that `quantize` made, these are the rounded weights.
        """
        return _quantize.parameters(self._parameters)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Take copies of parameters: any array-likes (PyTorch's tensors too), converted to the layer's dtype.

        All change at once or, if anything is wrong, none does. Calls that are running end with the old ones;
        a stream takes the new ones at its next step. A quantized layer rounds them. With strict=False, what
        `state_dict` lacks stays and what it has too much is ignored. Returns (missing_keys, unexpected_keys).
        Raises ValueError listing all that is missing, unexpected or misshapen (that even if not strict) or
        naming a weight that int8 cannot hold, TypeError for what is no mapping or holds no real numbers.
        """
        strict = _check.flag("strict", strict)
        new, missing, unexpected = _check.parameters(state_dict, self._options, strict)
        arrays = _quantize.held(new, self._options)
        with self._lock:
            self._set_parameters({name: arrays.get(name, old) for name, old in self._parameters.items()})
        return LoadResult(missing, unexpected)

    def quantize(self, dtype: str, *, activation_bits: int | None = None) -> Self:
        """A new layer with smaller weights; input, output, states, biases and peepholes stay float32.

        dtype: "bfloat16" rounds the matrices to bfloat16, to nearest even; all arithmetic stays float32, so
            the output has the bits of a float32 layer with the rounded weights. Half the memory; faster where
            weights come from beyond the first caches.
            "int8" makes them whole numbers of ±127 with a scale for each output channel. What they are
            multiplied with is rounded to whole numbers row by row: x by the row's largest magnitude, h by
            that or 1, whichever is more, so a state never saturates; a row that holds NaN or an infinity
            gives NaN. A quarter of the memory; from some 100 units on several times faster.
        activation_bits: of those whole numbers, with int8: 8 (the default) or, for more accuracy, 16.

        The promise of the same bits holds as in float32. `state_dict` gives the rounded weights, `save` and
        `load` keep the small ones. Such a layer cannot be trained: `record` refuses. An int8 layer may be
        quantized to int8 again, for other activation_bits: the weights stay.

        Raises ValueError if dtype or activation_bits is none of these, the layer is float64 or has smaller
        weights already, a weight is NaN or infinite (int8), or it has more than 65,536 inputs or 32,768 units
        (int8).
        """
        with self._lock:
            held = self._parameters
        return self._quantized(held, dtype, activation_bits)

    def _quantized(self, held: dict[str, Array], dtype: str, activation_bits: int | None) -> Self:
        """From parameters that are or were its own."""
        options = _check.quantized(self._options, dtype, activation_bits)
        layer = type(self).__new__(type(self))
        layer._make(options, held if self._options.weight_dtype else _quantize.held(held, options))
        getattr(layer, "__dict__", {}).update(getattr(self, "__dict__", {}))
        return layer

    @property
    def weight_dtype(self) -> str:
        """Of the weight matrices: "bfloat16" or "int8" if `quantize` made the layer, else as `dtype`."""
        return self._options.weight_dtype or self._options.dtype

    activation_bits = _Option[int | None](
        "Of what int8 weights are multiplied with, 8 or 16; None without such weights."
    )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write parameters and options to a safetensors file, which `fastlstm.load` reads.

        Atomic: the file is whole, old or new, whatever happens. Raises OSError.
        """
        from . import _files

        _files.save(path, self._options, self._parameters)

    def to_torch(self) -> Any:
        """PyTorch's module of the same kind with copies of the parameters: what `fastlstm.from_torch` takes.

        Raises ValueError naming what PyTorch has no module for, ImportError without PyTorch.
        """
        from .torch import to_torch

        return to_torch(self)

    def __repr__(self) -> str:
        return repr(self._options)

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and copy: options and parameters."""
        arguments = (type(self), self._options.cell, self._options.given(), self._parameters)
        return _restore, arguments, getattr(self, "__dict__", None) or None


def _restore(cls: type[L], cell: str, options: dict[str, Any], parameters: dict[str, Array]) -> L:
    layer = cls.__new__(cls)
    checked = _check.options(cell, **options)
    layer._make(checked, _check.held_arrays(parameters, checked))
    return layer


def _initial(options: _check.Options, seed: int | None) -> dict[str, Array]:
    """Uniform in ±1/sqrt(H), as PyTorch's; drawn in the order of `state_dict`."""
    rng = np.random.default_rng(None if seed is None else _check.integer("seed", seed, 0))
    bound, dtype = 1 / math.sqrt(options.hidden_size), options.dtype
    return {
        n: _check.frozen(rng.uniform(-bound, bound, s).astype(dtype)) for n, s in options.shapes().items()
    }


class _OneState(_Layer):
    """The layers whose state is h alone."""

    __slots__ = ()

    def __call__(
        self, x: npt.ArrayLike, state: npt.ArrayLike | None = None, *, lengths: Any = None
    ) -> tuple[Array, Array]:
        """Run whole sequences: `output, h = layer(x, h)`.

        x: [T, B, I] ([B, T, I] with batch_first) or unbatched [T, I]; an array-like of any real dtype and
            stride, converted to the layer's dtype.
        state: h [L*D, B, H] ([L*D, H] if x is unbatched), zeros if None.
        lengths: None, or [B] integers in 0..T: x is not read beyond them, the output there is zero, and the
            final state of a sequence is that of its last valid step.

        Returns the output [T, B, D*H] ([B, T, D*H], [T, D*H]) of the last layer and the final state in the
        form of `state`, fresh arrays. T = 0, B = 0 and length 0 are defined: no output, the state is handed
        through. NaN in x or state gives NaN for its own sequence, from its step on. Any number of threads may
        call one layer at once. Raises TypeError or ValueError naming the argument.
        """
        y, h, _ = self._run(x, state, lengths)
        return y, h


class LSTM(_Layer):
    """Long short-term memory.

        i = σ(W_ii x + b_ii + W_hi h + b_hi)      f = σ(W_if x + b_if + W_hf h + b_hf)
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)   o = σ(W_io x + b_io + W_ho h + b_ho)
        c' = f⊙c + i⊙g                            h' = o⊙tanh(c')

    input_size, hidden_size: I and H.
    num_layers: L layers, each on the output of the one before. At most 1024.
    bias: with or without bias_ih and bias_hh.
    batch_first: x and output are [B, T, ..]. States stay [L*D, B, ..].
    dropout: probability of a zero between layers in training, 0..1; no effect in a call, nor with one layer
        (which warns).
    bidirectional: D = 2, the output is [.., forward, backward].
    proj_size: P > 0 makes h' = W_hr (o⊙tanh(c')) [.., P]; 0 ≤ P < H.
    dtype: "float32" or "float64".
    peepholes: i and f see c, o sees c', through diagonal weights `weight_peephole` [3, H] (i, f, o).
    forget_gate: False is the constant error carousel, c' = c + i⊙g. The rows of f stay, unused.
    coupled_gates: f = 1 - i. The rows of f stay, unused.
    reverse: the one direction runs from each sequence's last valid step to its first; the output is in input
        order.
    activations: those of (gates, candidate, output), each a name or (name[, alpha[, beta]]) of ONNX's eleven:
        sigmoid, tanh, relu, affine (1, 0), leaky_relu (.01), thresholded_relu (1), scaled_tanh (1, 1),
        hard_sigmoid (.2, .5), elu (1), softsign, softplus; in brackets alpha and beta where they are missing
        or None.
    clip: the pre-activation of every gate and of the candidate, peephole included, is clamped to ±clip; c' is
        not.
    seed: of the initial parameters, uniform in ±1/sqrt(H) from `numpy.random.default_rng(seed)`.

    Parameters, per layer and direction: weight_ih [4H, I] (D*P columns from the second layer on), weight_hh
    [4H, P], bias_ih and bias_hh [4H], weight_hr [P, H], weight_peephole [3, H]; gates in the order i, f, g,
    o. Raises TypeError or ValueError naming the option, also for options that exclude each other.

    Hochreiter & Schmidhuber 1997, "Long short-term memory"; the forget gate: Gers, Schmidhuber & Cummins
    2000, "Learning to forget"; peepholes: Gers & Schmidhuber 2000, "Recurrent nets that time and count";
    coupled gates: Greff et al. 2017, "LSTM: a search space odyssey"; projection: Sak, Senior & Beaufays 2014,
    "Long short-term memory recurrent neural network architectures for large scale acoustic modeling".
    """

    __slots__ = ()
    _cell = "lstm"

    proj_size = _Option[int]("Width of the projected h, P; 0 means none.")
    peepholes = _Option[bool]("Whether the gates see the cell state.")
    forget_gate = _Option[bool]("Whether there is a forget gate.")
    coupled_gates = _Option[bool]("Whether f = 1 - i.")
    activations = _Option[tuple[_check.Activation, ...] | None](
        "Those of (gates, candidate, output), if given."
    )

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        dtype: npt.DTypeLike = "float32",
        peepholes: bool = False,
        forget_gate: bool = True,
        coupled_gates: bool = False,
        reverse: bool = False,
        activations: Sequence[ActivationLike] | None = None,
        clip: float | None = None,
        seed: int | None = None,
    ) -> None:
        options = _check.options(
            "lstm",
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
            dtype=dtype,
            peepholes=peepholes,
            forget_gate=forget_gate,
            coupled_gates=coupled_gates,
            reverse=reverse,
            activations=activations,
            clip=clip,
        )
        self._make(options, _initial(options, seed))

    def __call__(
        self,
        x: npt.ArrayLike,
        state: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
        *,
        lengths: Any = None,
    ) -> tuple[Array, tuple[Array, Array]]:
        """Run whole sequences: `output, (h, c) = lstm(x, (h, c))`.

        x: [T, B, I] ([B, T, I] with batch_first) or unbatched [T, I]; an array-like of any real dtype and
            stride, converted to the layer's dtype.
        state: (h [L*D, B, P], c [L*D, B, H]) ([L*D, P], [L*D, H] if x is unbatched), zeros if None.
        lengths: None, or [B] integers in 0..T: x is not read beyond them, the output there is zero, and the
            final state of a sequence is that of its last valid step.

        Returns the output [T, B, D*P] ([B, T, D*P], [T, D*P]) of the last layer and the final state in the
        form of `state`, fresh arrays. T = 0, B = 0 and length 0 are defined: no output, the state is handed
        through. NaN in x or state gives NaN for its own sequence, from its step on. Any number of threads may
        call one layer at once. Raises TypeError or ValueError naming the argument.
        """
        y, h, c = self._run(x, state, lengths)
        return y, (h, c)  # type: ignore[return-value]  # c is None for the other cells only


class GRU(_OneState):
    """Gated recurrent unit.

        r = σ(W_ir x + b_ir + W_hr h + b_hr)      z = σ(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r⊙(W_hn h + b_hn))     (reset_after=True: PyTorch, cuDNN, Keras' default)
        n = tanh(W_in x + b_in + W_hn (r⊙h) + b_hn)     (reset_after=False: ONNX' default)
        h' = (1 - z)⊙n + z⊙h

    reset_after: whether the reset gate is applied after the product with W_hn, or before it.
    activations: those of (gates, candidate). All other options, and what is raised: as for `LSTM`.
    clip: clamps the candidate's whole argument, W_in x + b_in + r⊙(W_hn h + b_hn).

    Parameters, per layer and direction: weight_ih [3H, I] (D*H columns from the second layer on), weight_hh
    [3H, H], bias_ih and bias_hh [3H]; gates in the order r, z, n.

    Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder for statistical machine
    translation": arXiv 1406.1078v1 resets after the product, v3 before it.
    """

    __slots__ = ()
    _cell = "gru"

    reset_after = _Option[bool]("Whether the reset gate is applied after the product with W_hn.")
    activations = _Option[tuple[_check.Activation, ...] | None]("Those of (gates, candidate), if given.")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: npt.DTypeLike = "float32",
        reset_after: bool = True,
        reverse: bool = False,
        activations: Sequence[ActivationLike] | None = None,
        clip: float | None = None,
        seed: int | None = None,
    ) -> None:
        options = _check.options(
            "gru",
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            dtype=dtype,
            reset_after=reset_after,
            reverse=reverse,
            activations=activations,
            clip=clip,
        )
        self._make(options, _initial(options, seed))


class RNN(_OneState):
    """Simple recurrent network: h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu.

    nonlinearity: "tanh" or "relu".
    activations: the one of the cell instead, a name or (name[, alpha[, beta]]); not together with
        nonlinearity="relu".
    All other options, and what is raised: as for `LSTM`.

    Parameters, per layer and direction: weight_ih [H, I] (D*H columns from the second layer on), weight_hh
    [H, H], bias_ih and bias_hh [H].

    Elman 1990, "Finding structure in time".
    """

    __slots__ = ()
    _cell = "rnn"

    nonlinearity = _Option[str]('"tanh" or "relu", unless activations says otherwise.')
    activations = _Option[tuple[_check.Activation, ...] | None](
        "The one of the cell, if given, as a tuple of one."
    )

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: npt.DTypeLike = "float32",
        nonlinearity: str = "tanh",
        reverse: bool = False,
        activations: ActivationLike | None = None,
        clip: float | None = None,
        seed: int | None = None,
    ) -> None:
        options = _check.options(
            "rnn",
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            dtype=dtype,
            nonlinearity=nonlinearity,
            reverse=reverse,
            activations=activations,
            clip=clip,
        )
        self._make(options, _initial(options, seed))


class GatedRNN(_OneState):
    """Recurrent network with a single gate, which says how much of the old state to overwrite.

        g = σ(W_ig x + b_ig + W_hg h + b_hg)      n = tanh(W_in x + b_in + W_hn h + b_hn)
        h' = (1 - g)⊙h + g⊙n

    With g near 0 a unit remembers; with g near 1 it is a simple recurrent network. It is a GRU without reset
    gate (z = 1 - g) and goes by no standard name elsewhere.

    activations: those of (gates, candidate): of g and of n. All other options, and what is raised: as for
        `LSTM`.

    Parameters, per layer and direction: weight_ih [2H, I] (D*H columns from the second layer on), weight_hh
    [2H, H], bias_ih and bias_hh [2H]; rows in the order g, n.

    MITx 6.86x, "Machine learning with Python: from linear models to deep learning", recurrent networks.
    """

    __slots__ = ()
    _cell = "gated_rnn"

    activations = _Option[tuple[_check.Activation, ...] | None]("Those of (gates, candidate), if given.")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: npt.DTypeLike = "float32",
        reverse: bool = False,
        activations: Sequence[ActivationLike] | None = None,
        clip: float | None = None,
        seed: int | None = None,
    ) -> None:
        options = _check.options(
            "gated_rnn",
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            dtype=dtype,
            reverse=reverse,
            activations=activations,
            clip=clip,
        )
        self._make(options, _initial(options, seed))


class Stream(StreamCore):
    """Sequences fed step by step; made by `layer.stream(batch_size, state)`.

    `y = stream.step(x, out=y)` runs one step, x [B, I] -> y [B, P], and keeps the state. `step` is the core's
    own method: with `out` given it allocates nothing. A stream takes a layer's new parameters at its next
    step. It is for one thread at a time (a concurrent step raises RuntimeError); different streams are
    independent. It cannot be pickled, as its layer can: keep `state`. `copy.copy` and `copy.deepcopy` are
    `copy`.
    """

    __slots__ = ()

    def _converted(self, x: Any) -> Array:
        """What `step` calls for an x that the core cannot take as it is."""
        shape = (self.batch_size, self._core.input_size)
        return _check.states("x", x, [shape], self._core.dtype)[0]

    @property
    def batch_size(self) -> int:
        """The number of sequences, B."""
        return super().batch_size

    @property
    def state(self) -> Any:
        """The state as copies: h [L, B, H], or (h [L, B, P], c [L, B, H]) of an LSTM. Can be assigned, any
        array-likes.

        What is assigned is also what `reset` goes back to. Raises TypeError or ValueError.
        """
        state = self.get_state()
        return state if len(state) > 1 else state[0]

    @state.setter
    def state(self, value: Any) -> None:
        now = self.get_state()
        self.set_state(*_check.states("state", value, [v.shape for v in now], now[0].dtype))

    def reset(self, rows: Any = None) -> None:
        """Go back to the state given at creation or last assigned: all sequences, or those whose numbers
        `rows` holds.

        rows: an int or a list of ints in 0..B-1. Raises TypeError or ValueError.
        """
        super().reset(None if rows is None else _check.rows("rows", rows, self.batch_size))

    def copy(self) -> Self:
        """An independent stream on the same layer in the same state."""
        return super().copy()

    def __copy__(self) -> Self:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> Self:
        return self.copy()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Stream cannot be pickled: keep its layer and stream.state, for layer.stream(batch_size, state)"
        )
