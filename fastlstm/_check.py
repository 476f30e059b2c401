"""All validation of what users hand in, and the only one in Python (`Stream.step` checks its two arrays in
`_core`).

Every function takes the name of the argument it judges and raises TypeError (wrong kind of thing) or
ValueError (right kind, wrong value) with that name, what came and what was wanted.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, ...]
Activation: TypeAlias = (
    str | tuple[Any, ...]
)  # a name, or (name, alpha[, beta]) where the function has parameters

MAX_LAYERS = (
    1024  # bounds what a hostile file can ask for, and the header of an honest one (see _files.HEADER_LIMIT)
)

# --- options ------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """What Python needs to know of a cell."""

    name: str  # of its class
    gates: int
    activations: tuple[str, ...]  # its own
    roles: tuple[str, ...]  # of each activation
    options: frozenset[str] = frozenset()  # that this cell alone takes
    states: int = 1


CELLS = {
    "lstm": Cell(
        "LSTM",
        4,
        ("sigmoid", "tanh", "tanh"),
        ("gates", "candidate", "output"),
        frozenset({"proj_size", "peepholes", "forget_gate", "coupled_gates"}),
        states=2,
    ),
    "gru": Cell("GRU", 3, ("sigmoid", "tanh"), ("gates", "candidate"), frozenset({"reset_after"})),
    "rnn": Cell("RNN", 1, ("tanh",), ("one",), frozenset({"nonlinearity"})),
    "gated_rnn": Cell("GatedRNN", 2, ("sigmoid", "tanh"), ("gates", "candidate")),
}

# ONNX's eleven, with the defaults of alpha, or of alpha and beta (operators RNN, GRU and LSTM)
ACTIVATIONS: dict[str, tuple[float, ...]] = {
    "sigmoid": (),
    "tanh": (),
    "relu": (),
    "affine": (1.0, 0.0),
    "leaky_relu": (0.01,),
    "thresholded_relu": (1.0,),
    "scaled_tanh": (1.0, 1.0),
    "hard_sigmoid": (0.2, 0.5),
    "elu": (1.0,),
    "softsign": (),
    "softplus": (),
}


class Options(NamedTuple):
    """The validated options of a layer, in the constructors' words. Those that a cell does not take keep
    their default."""

    cell: str
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    proj_size: int = 0
    dtype: str = "float32"
    peepholes: bool = False
    forget_gate: bool = True
    coupled_gates: bool = False
    reset_after: bool = True
    nonlinearity: str = "tanh"
    reverse: bool = False
    activations: tuple[Activation, ...] | None = None
    clip: float | None = None

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What the parameter names of each direction end in."""
        return ("", "_reverse") if self.bidirectional else ("",)

    @property
    def state_sizes(self) -> Shape:
        """The width of each state: (P,), or (P, H) for an LSTM."""
        return (self.proj_size or self.hidden_size, self.hidden_size)[: CELLS[self.cell].states]

    def layer_shapes(self, layer: int) -> dict[str, Shape]:
        """The parameters of one layer in the order of `state_dict`."""
        rows, size, directions = (
            CELLS[self.cell].gates * self.hidden_size,
            self.state_sizes[0],
            len(self.suffixes),
        )
        shapes: dict[str, Shape] = {}
        for suffix in self.suffixes:
            end = f"_l{layer}{suffix}"
            shapes[f"weight_ih{end}"] = (rows, size * directions if layer else self.input_size)
            shapes[f"weight_hh{end}"] = (rows, size)
            if self.bias:
                shapes[f"bias_ih{end}"] = shapes[f"bias_hh{end}"] = (rows,)
            if self.proj_size:
                shapes[f"weight_hr{end}"] = (self.proj_size, self.hidden_size)
            if self.peepholes:
                shapes[f"weight_peephole{end}"] = (3, self.hidden_size)
        return shapes

    def shapes(self) -> dict[str, Shape]:
        """The parameters in the order of `state_dict`."""
        return {name: shape for k in range(self.num_layers) for name, shape in self.layer_shapes(k).items()}

    def given(self) -> dict[str, Any]:
        """The options that this cell takes."""
        names = COMMON | CELLS[self.cell].options
        return {name: value for name, value in self._asdict().items() if name in names}

    def core(self) -> dict[str, Any]:
        """The arguments of `_core.Core`."""
        own = CELLS[self.cell].activations
        chosen = self.activations or ((self.nonlinearity,) if self.cell == "rnn" else own)
        resolved = None if chosen == own else tuple(_with_defaults(spec) for spec in chosen)
        python_only = {"batch_first", "dropout", "nonlinearity"}
        return {n: v for n, v in self._asdict().items() if n not in python_only} | {"activations": resolved}

    def __repr__(self) -> str:
        """As PyTorch writes a module: the sizes, then what differs from the default."""
        words = [str(self.input_size), str(self.hidden_size)]
        for name, default in self._field_defaults.items():
            value = getattr(self, name)
            if value != default:
                words.append(f"{name}={value!r}")
        return f"{CELLS[self.cell].name}({', '.join(words)})"


COMMON = frozenset(Options._fields) - {"cell"} - frozenset().union(*(cell.options for cell in CELLS.values()))


def options(cell: str, /, **given: Any) -> Options:
    """Check the options of a constructor. TypeError or ValueError name the option."""
    kind = CELLS[cell]
    unknown = given.keys() - COMMON - kind.options
    if unknown:
        raise TypeError(f"{kind.name} takes no option {', '.join(sorted(unknown))}")
    missing = {"input_size", "hidden_size"} - given.keys()
    if missing:
        raise TypeError(f"{kind.name} needs {', '.join(sorted(missing))}")
    o = Options(cell, **given)
    dtype = float_dtype("dtype", o.dtype)
    o = o._replace(
        input_size=integer("input_size", o.input_size, 1),
        hidden_size=integer("hidden_size", o.hidden_size, 1),
        num_layers=integer("num_layers", o.num_layers, 1, MAX_LAYERS),
        bias=flag("bias", o.bias),
        batch_first=flag("batch_first", o.batch_first),
        dropout=number("dropout", o.dropout, 0.0, 1.0),
        bidirectional=flag("bidirectional", o.bidirectional),
        proj_size=integer("proj_size", o.proj_size, 0),
        dtype=dtype.name,
        peepholes=flag("peepholes", o.peepholes),
        forget_gate=flag("forget_gate", o.forget_gate),
        coupled_gates=flag("coupled_gates", o.coupled_gates),
        reset_after=flag("reset_after", o.reset_after),
        reverse=flag("reverse", o.reverse),
        activations=None if o.activations is None else _activations(kind, o.activations),
        clip=None if o.clip is None else _clip(o.clip, dtype),
    )
    if not isinstance(o.nonlinearity, str):
        raise TypeError(f"nonlinearity must be 'tanh' or 'relu', got {_got(o.nonlinearity)}")
    if o.nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {_got(o.nonlinearity)}")
    if o.nonlinearity != "tanh" and o.activations is not None:
        raise ValueError(
            f"activations and nonlinearity={o.nonlinearity!r} exclude each other: give one of them"
        )
    if o.proj_size >= o.hidden_size:
        raise ValueError(
            f"proj_size must be in 0..hidden_size - 1 = 0..{o.hidden_size - 1}, got {o.proj_size}"
        )
    if o.reverse and o.bidirectional:
        raise ValueError(
            "reverse=True and bidirectional=True exclude each other: bidirectional has both directions"
        )
    if o.coupled_gates and not o.forget_gate:
        raise ValueError(
            "coupled_gates=True and forget_gate=False exclude each other: the coupled gate is the forget gate"
        )
    elements = sum(
        math.prod(s) * n for k, n in ((0, 1), (1, o.num_layers - 1)) for s in o.layer_shapes(k).values()
    )
    if elements * dtype.itemsize > sys.maxsize:
        raise ValueError(
            f"input_size={o.input_size}, hidden_size={o.hidden_size}, num_layers={o.num_layers}: "
            f"the parameters would take more bytes than can be addressed ({sys.maxsize})"
        )
    return o


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """An int (a bool or a float is none) in low..high."""
    wanted = f"an int of at least {low}" if high is None else f"an int in {low}..{high}"
    if (
        isinstance(value, (bool, np.bool_))
        or not hasattr(value, "__index__")
        or isinstance(value, np.ndarray)
    ):
        raise TypeError(f"{name} must be {wanted}, got {_got(value)}")
    result = operator.index(value)
    if result < low or (high is not None and result > high):
        raise ValueError(f"{name} must be {wanted}, got {_got(result)}")
    return result


def number(name: str, value: Any, low: float, high: float) -> float:
    """A real number in low..high, as a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number in {low:g}..{high:g}, got {_got(value)}")
    if not low <= value <= high:  # NaN too
        raise ValueError(f"{name} must be a number in {low:g}..{high:g}, got {_got(value)}")
    return float(value)


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a bool, got {_got(value)}")
    return bool(value)


def float_dtype(name: str, value: Any) -> np.dtype[Any]:
    """float32 or float64 in the machine's byte order, from whatever `numpy.dtype` takes, but for None."""
    try:
        if value is None:  # NumPy's float64
            raise TypeError
        dtype = np.dtype(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be 'float32' or 'float64', got {_got(value)}") from None
    for known in (np.dtype(np.float32), np.dtype(np.float64)):
        if dtype == known:
            return known
    raise ValueError(f"{name} must be 'float32' or 'float64', got {_got(value)}")


def _clip(value: Any, dtype: np.dtype[Any]) -> float:
    """A bound that the layer's dtype holds as a normal number, so that the clamp is what was asked for."""
    info = np.finfo(dtype)
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"clip must be None or a finite number above 0, got {_got(value)}")
    if not float(info.tiny) <= value <= float(info.max):
        raise ValueError(
            f"clip must be None or a finite number above 0 (a normal {dtype.name}), got {_got(value)}"
        )
    return float(value)


def _activations(cell: Cell, given: Any) -> tuple[Activation, ...]:
    """In one form: per role a name, or (name, alpha[, beta]) where the function has parameters."""
    roles = cell.roles
    lone = len(roles) == 1 and (
        isinstance(given, str) or _is_list(given) and given and isinstance(given[0], str)
    )
    specs: Any = (given,) if lone else given
    if not _is_list(specs):
        raise TypeError(f"activations must be a tuple ({', '.join(roles)}), got {_got(given)}")
    if len(specs) != len(roles):
        raise ValueError(
            f"activations must be {len(roles)} ({', '.join(roles)}), got {len(specs)}: {_got(given)}"
        )
    return tuple(_activation(role, spec) for role, spec in zip(roles, specs, strict=True))


def _activation(role: str, spec: Any) -> Activation:
    where = "activations" if role == "one" else f"activations ({role})"
    if not (isinstance(spec, str) or _is_list(spec) and 1 <= len(spec) <= 3 and isinstance(spec[0], str)):
        raise TypeError(f"{where}: wanted a name or a tuple (name[, alpha[, beta]]), got {_got(spec)}")
    name, *given = (spec,) if isinstance(spec, str) else spec
    if name not in ACTIVATIONS:
        raise ValueError(f"{where}: {_got(name)} is unknown, wanted one of {', '.join(ACTIVATIONS)}")
    defaults = ACTIVATIONS[name]
    for word, value in zip(("alpha", "beta")[len(defaults) :], given[len(defaults) :], strict=False):
        if value is not None:
            raise ValueError(f"{where}: {name} has no {word}, got {_got(value)}")
    values = [*given, None, None]
    limit = float(np.finfo(np.float32).max)
    words = zip(("alpha", "beta"), defaults, values, strict=False)
    chosen = [
        d if v is None else number(f"{where}: {word} of {name}", v, -limit, limit) for word, d, v in words
    ]
    return (name, *chosen) if chosen else name


def _with_defaults(spec: Activation) -> tuple[str, float, float]:
    """The form that `_core` takes: a parameter that the function does not have is 0."""
    name, *given = (spec,) if isinstance(spec, str) else spec
    alpha, beta, *_ = (*given, 0.0, 0.0)
    return name, alpha, beta


def _is_list(value: Any) -> bool:
    return isinstance(value, (tuple, list))


def _got(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.80}"


# --- arrays -------------------------------------------------------------------------------------------------


def real_array(name: str, value: Any) -> Array:
    """Any array-like of real numbers as an ndarray, not copied if that can be helped; bfloat16 is widened to
    float32.

    Takes what has `__array__`, the buffer protocol or DLPack (PyTorch's tensors too, whether or not they want
    a gradient), and nested sequences of numbers.
    """
    array = value if type(value) is np.ndarray else _to_ndarray(name, value)
    if array.dtype.kind in "fiub":
        return array
    if array.dtype.name == "bfloat16":  # ml_dtypes: NumPy itself has none
        return array.astype(np.float32)
    raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")


def _to_ndarray(name: str, value: Any) -> Array:
    if type(value).__name__ == "MaskedArray":
        raise TypeError(
            f"{name} must be a plain array, got a MaskedArray, whose mask would be lost: fill it first"
        )
    try:
        if hasattr(value, "detach"):  # a PyTorch tensor hands out its values only without its gradient …
            value = value.detach()
            if str(value.dtype) == "torch.bfloat16":  # … and in a type that NumPy knows
                value = value.float()
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be an array of real numbers: {error}") from error
    except (TypeError, RuntimeError, BufferError, AttributeError) as error:
        raise TypeError(
            f"{name} must be an array of real numbers, got {type(value).__name__}: {error}"
        ) from error


def _contiguous(array: Array, dtype: np.dtype[Any]) -> Array:
    """In the layer's dtype, aligned and C-contiguous. What the dtype cannot hold becomes ±inf."""
    with np.errstate(over="ignore"):
        return np.require(array, dtype, ["C", "A"])


def sequence(name: str, value: Any, input_size: int, dtype: np.dtype[Any], batch_first: bool) -> Array:
    """x [T, B, I] ([B, T, I] with batch_first) or [T, I]: layer's dtype, aligned, last axis contiguous."""
    array = real_array(name, value)
    if array.ndim not in (2, 3) or array.shape[-1] != input_size:
        order = "[B, T, I]" if batch_first else "[T, B, I]"
        raise ValueError(f"{name} must be {order} or [T, I] with I = {input_size}, got shape {array.shape}")
    if array.dtype == dtype and array.flags.aligned and array.strides[-1] == array.itemsize:
        return array
    return _contiguous(array, dtype)


def states(name: str, value: Any, shapes: Sequence[Shape], dtype: np.dtype[Any]) -> list[Array]:
    """One C-contiguous array per state: h, or a pair (h, c)."""
    if len(shapes) == 1:
        return [_state(name, value, shapes[0], dtype)]
    if not _is_list(value) or len(value) != len(shapes):
        length = f" of {len(value)}" if _is_list(value) else ""
        raise TypeError(f"{name} must be a pair (h, c), got a {type(value).__name__}{length}")
    return [
        _state(f"{name} ({part})", v, shape, dtype)
        for part, v, shape in zip("hc", value, shapes, strict=True)
    ]


def _state(name: str, value: Any, shape: Shape, dtype: np.dtype[Any]) -> Array:
    array = real_array(name, value)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    return _contiguous(array, dtype)


def lengths(name: str, value: Any, steps: int, batch: int) -> Array:
    """int64 [B], each in 0..T."""
    array = _integers(name, value)
    if array.shape != (batch,):
        raise ValueError(
            f"{name} must have shape ({batch},), one for each sequence of the batch, got {array.shape}"
        )
    return _in_range(name, array, 0, steps)


def rows(name: str, value: Any, batch: int) -> Array:
    """int64 [any], each in 0..B-1; an int stands for one row."""
    array = np.atleast_1d(_integers(name, value))
    if array.ndim != 1:
        raise ValueError(f"{name} must be None, an int or a list of ints, got shape {array.shape}")
    return _in_range(name, array, 0, batch - 1)


def _integers(name: str, value: Any) -> Array:
    array = value if type(value) is np.ndarray else _to_ndarray(name, value)
    if array.size == 0 and _is_list(value):  # NumPy calls an empty list float64
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
    return array


def _in_range(name: str, array: Array, low: int, high: int) -> Array:
    wrong = np.flatnonzero((array < low) | (array > high))
    if wrong.size:
        raise ValueError(f"{name} must be in {low}..{high}, got {array[wrong[0]]} at {wrong[0]}")
    return np.ascontiguousarray(array, np.int64)


# --- parameters ---------------------------------------------------------------------------------------------


def mismatch(wanted: Mapping[str, Shape], got: Mapping[str, Shape], strict: bool = True) -> str:
    """What keeps parameters of these shapes from fitting, all of it; empty if nothing does."""
    found = {
        "missing": [n for n in wanted if n not in got] if strict else [],
        "unexpected": [n for n in got if n not in wanted] if strict else [],
        "misshapen": [f"{n} {got[n]} instead of {s}" for n, s in wanted.items() if n in got and got[n] != s],
    }
    return "; ".join(f"{what}: {_listing(names)}" for what, names in found.items() if names)


def _listing(names: Iterable[Any], most: int = 40) -> str:
    texts = [f"{name!s:.200}" for name in names]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def parameters(value: Any, o: Options, strict: bool = True) -> tuple[dict[str, Array], list[str], list[str]]:
    """Read-only C-contiguous copies of the parameters in the layer's dtype, and the names missing and
    unexpected.

    Raises ValueError that lists all that is missing, unexpected (unless not strict) or misshapen; TypeError
    for what is no mapping or holds no real numbers.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"state_dict must map names to arrays, got {type(value).__name__}")
    wanted = o.shapes()
    arrays = {name: real_array(f"state_dict[{name!r}]", value[name]) for name in wanted if name in value}
    unexpected = {name: () for name in value if name not in wanted}
    wrong = mismatch(wanted, {name: a.shape for name, a in arrays.items()} | unexpected, strict)
    if wrong:
        raise ValueError(f"state_dict does not fit {o!r}: {wrong}")
    copies = {name: frozen(np.array(a, o.dtype, order="C")) for name, a in arrays.items()}
    return copies, [name for name in wanted if name not in copies], [str(name) for name in unexpected]


def frozen(array: Array) -> Array:
    array.setflags(write=False)
    return array
