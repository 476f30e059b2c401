"""All validation of what users hand in, and the only one in Python (`Stream.step` checks its two arrays in
`_core`).

Every function takes the name of the argument it judges and raises TypeError (wrong kind of thing) or
ValueError (right kind, wrong value) with that name, what came and what was wanted.
"""

from __future__ import annotations

import math
import operator
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, ...]
Activation: TypeAlias = (
    str | tuple[Any, ...]
)  # a name, or (name, alpha[, beta]) where the function has parameters

MOST_THREADS = 256  # the core's bound
MAX_LAYERS = (
    1024  # bounds what a hostile file can ask for, and the header of an honest one (see _files.HEADER_LIMIT)
)

MAX_MODULES = 256  # of a Sequential, which has at most MAX_LAYERS recurrent layers, for the same reason

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
# Of the module Activation, which has the eleven too.
WHOLE_ROW = ("softmax", "log_softmax")


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
    # Of a layer that `quantize` made; no constructor takes them.
    weight_dtype: str | None = None  # of its matrices: one of WEIGHT_DTYPES; None: dtype
    activation_bits: int | None = None

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
        names |= {name for name in QUANTIZED if getattr(self, name) is not None}
        return {name: value for name, value in self._asdict().items() if name in names}

    def core(self) -> dict[str, Any]:
        """The arguments of `_core.Core`."""
        own = CELLS[self.cell].activations
        chosen = self.activations or ((self.nonlinearity,) if self.cell == "rnn" else own)
        resolved = None if chosen == own else tuple(_with_defaults(spec) for spec in chosen)
        python_only = {"batch_first", "dropout", "nonlinearity"}
        bits = self.activation_bits or 0
        return {n: v for n, v in self._asdict().items() if n not in python_only} | {
            "activations": resolved,
            "activation_bits": bits,
        }

    def __repr__(self) -> str:
        """As PyTorch writes a module: the sizes, then what differs from the default."""
        words = [str(self.input_size), str(self.hidden_size)]
        for name, default in self._field_defaults.items():
            value = getattr(self, name)
            if value != default:
                words.append(f"{name}={value!r}")
        return f"{CELLS[self.cell].name}({', '.join(words)})"


QUANTIZED = frozenset({"weight_dtype", "activation_bits"})
COMMON = (
    frozenset(Options._fields)
    - {"cell"}
    - QUANTIZED
    - frozenset().union(*(cell.options for cell in CELLS.values()))
)
# Smaller ones, and what holds them.
WEIGHT_DTYPES: dict[str, np.dtype[Any]] = {"bfloat16": np.dtype(np.uint16), "int8": np.dtype(np.int8)}
MATRIX = re.compile(r"(?:weight_ih|weight_hh|weight_hr)_l\d+(?:_reverse)?")  # the parameters that shrink
MOST_INT8 = 1 << 16  # inputs of a layer with int8 weights, and twice its units: their sums are proven


def options(cell: str, /, **given: Any) -> Options:
    """Check the options of a constructor. TypeError or ValueError name the option."""
    kind = CELLS[cell]
    unknown = given.keys() - COMMON - QUANTIZED - kind.options
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
    if o.dropout and o.num_layers == 1:
        what = f"dropout={o.dropout:g} does nothing with num_layers=1: it acts between the layers of a stack"
        warnings.warn(what, stacklevel=3)
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
    if o.weight_dtype is None and o.activation_bits is None:
        return o
    if not isinstance(o.weight_dtype, str) or o.weight_dtype not in WEIGHT_DTYPES:
        known = " or ".join(map(repr, WEIGHT_DTYPES))
        raise ValueError(f"weight_dtype must be {known}, got {_got(o.weight_dtype)}")
    if o.weight_dtype == "int8" and o.activation_bits is None:
        raise ValueError("activation_bits must be 8 or 16 with int8 weights, got none")
    return quantized(o._replace(weight_dtype=None, activation_bits=None), o.weight_dtype, o.activation_bits)


def quantized(o: Options, dtype: Any, activation_bits: int | None) -> Options:
    """The options of the layer whose weights `quantize` made smaller."""
    if not isinstance(dtype, str) or dtype not in WEIGHT_DTYPES:
        raise ValueError(f"dtype must be {' or '.join(map(repr, WEIGHT_DTYPES))}, got {_got(dtype)}")
    if o.weight_dtype is not None and (o.weight_dtype, dtype) != ("int8", "int8"):
        raise ValueError(f"quantize: the weights are {o.weight_dtype} already: quantize the float32 layer")
    if o.dtype != "float32":
        raise ValueError(f"quantize: {dtype} weights are for float32 layers, not {o.dtype}")
    if dtype != "int8" and activation_bits is not None:
        raise ValueError(f"activation_bits is for int8 weights, not {dtype}")
    if dtype == "int8":
        activation_bits = integer("activation_bits", 8 if activation_bits is None else activation_bits, 8, 16)
        if activation_bits not in (8, 16):
            raise ValueError(f"activation_bits must be 8 or 16, got {activation_bits}")
        for name, most in (("input_size", MOST_INT8), ("hidden_size", MOST_INT8 // 2)):
            if getattr(o, name) > most:
                raise ValueError(f"{name} must be at most {most} with int8 weights, got {getattr(o, name)}")
    return o._replace(weight_dtype=dtype, activation_bits=activation_bits)


class EmbeddingOptions(NamedTuple):
    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None = None
    dtype: str = "float32"

    def shapes(self) -> dict[str, Shape]:
        return {"weight": (self.num_embeddings, self.embedding_dim)}

    def __repr__(self) -> str:
        return _call("Embedding", self, sizes=2)


class LinearOptions(NamedTuple):
    in_features: int
    out_features: int
    bias: bool = True
    dtype: str = "float32"

    def shapes(self) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {"weight": (self.out_features, self.in_features)}
        return shapes | {"bias": (self.out_features,)} if self.bias else shapes

    def __repr__(self) -> str:
        return _call("Linear", self, sizes=2)


class DropoutOptions(NamedTuple):
    p: float = 0.5

    @property
    def dtype(self) -> None:
        """That of its input."""

    def shapes(self) -> dict[str, Shape]:
        return {}

    def __repr__(self) -> str:
        return _call("Dropout", self, sizes=1)


class ActivationOptions(NamedTuple):
    activation: Activation

    @property
    def dtype(self) -> None:
        """That of its input."""

    @property
    def core(self) -> tuple[str, float, float]:
        """The form that `_core` takes; not for softmax and log_softmax."""
        return _with_defaults(self.activation)

    @property
    def least_ndim(self) -> int:
        """Axes that the input must have."""
        return int(self.activation in WHOLE_ROW)

    def shapes(self) -> dict[str, Shape]:
        return {}

    def __repr__(self) -> str:
        return _call("Activation", self, sizes=1)


class LayerNormOptions(NamedTuple):
    normalized_shape: int
    eps: float = 1e-5
    elementwise_affine: bool = True
    bias: bool = True
    dtype: str = "float32"

    def shapes(self) -> dict[str, Shape]:
        names = ("weight", "bias")[: self.elementwise_affine * (1 + self.bias)]
        return {name: (self.normalized_shape,) for name in names}

    def __repr__(self) -> str:
        return _call("LayerNorm", self, sizes=1)


class LastStepOptions(NamedTuple):
    @property
    def dtype(self) -> None:
        """That of its input."""

    def shapes(self) -> dict[str, Shape]:
        return {}

    def __repr__(self) -> str:
        return "LastStep()"


PartOptions: TypeAlias = (
    Options
    | EmbeddingOptions
    | LinearOptions
    | DropoutOptions
    | ActivationOptions
    | LayerNormOptions
    | LastStepOptions
)


class SequentialOptions(NamedTuple):
    """Of each module; `sequential` has seen to it that they fit together."""

    modules: tuple[PartOptions, ...]

    @property
    def dtype(self) -> str:
        return next(o.dtype for o in self.modules if o.dtype is not None)

    @property
    def recurrent(self) -> list[int]:
        """The numbers of the recurrent layers."""
        return [i for i, o in enumerate(self.modules) if isinstance(o, Options)]

    @property
    def batch_first(self) -> bool:
        return any(isinstance(o, Options) and o.batch_first for o in self.modules)

    @property
    def has_last_step(self) -> bool:
        """Whether the output has no axis of time."""
        return any(isinstance(o, LastStepOptions) for o in self.modules)

    @property
    def embeds(self) -> bool:
        """Whether the input is tokens."""
        return isinstance(self.modules[0], EmbeddingOptions)

    @property
    def widths(self) -> tuple[int, int]:
        """Features of the input (tokens count as one) and of the output."""
        found = [w for o in self.modules if (w := _widths(o)) is not None]
        return found[0][0], found[-1][1]

    def shapes(self) -> dict[str, Shape]:
        return {f"{i}.{n}": shape for i, o in enumerate(self.modules) for n, shape in o.shapes().items()}

    def __repr__(self) -> str:
        return f"Sequential({', '.join(map(repr, self.modules))})"


AnyOptions: TypeAlias = PartOptions | SequentialOptions


def _call(name: str, o: Any, sizes: int) -> str:
    """As `Options.__repr__`: the sizes, then what differs from the default."""
    words = [repr(value) for value in o[:sizes]]
    for field, value in zip(o._fields[sizes:], o[sizes:], strict=True):
        if value != o._field_defaults[field]:
            words.append(f"{field}={value!r}")
    return f"{name}({', '.join(words)})"


def _widths(o: PartOptions) -> tuple[int, int] | None:
    """Features that a module reads and gives; None: as many as it is given."""
    if isinstance(o, Options):
        return o.input_size, len(o.suffixes) * o.state_sizes[0]
    if isinstance(o, EmbeddingOptions):
        return 1, o.embedding_dim
    if isinstance(o, LayerNormOptions):
        return o.normalized_shape, o.normalized_shape
    return (o.in_features, o.out_features) if isinstance(o, LinearOptions) else None


def widths_after(o: SequentialOptions) -> list[int]:
    """Features after each module of a Sequential."""
    found, width = [], o.widths[0]
    for part in o.modules:
        width = (_widths(part) or (0, width))[1]
        found.append(width)
    return found


MODULES: dict[str, type[Any]] = {
    "Embedding": EmbeddingOptions, "Linear": LinearOptions, "Dropout": DropoutOptions,
    "Activation": ActivationOptions, "LayerNorm": LayerNormOptions, "LastStep": LastStepOptions,
}  # fmt: skip


def module(kind: str, /, **given: Any) -> PartOptions:
    """Check the options of a constructor: of a cell, or of one of `MODULES`."""
    if kind in CELLS:
        return options(kind, **given)
    cls = MODULES[kind]
    unknown = given.keys() - set(cls._fields)
    if unknown:
        raise TypeError(f"{kind} takes no option {', '.join(sorted(unknown))}")
    missing = set(cls._fields) - cls._field_defaults.keys() - given.keys()
    if missing:
        raise TypeError(f"{kind} needs {', '.join(sorted(missing))}")
    o = cls(**given)
    if isinstance(o, DropoutOptions):
        return DropoutOptions(number("p", o.p, 0.0, 1.0))
    if isinstance(o, LastStepOptions):
        return o
    if isinstance(o, ActivationOptions):
        return ActivationOptions(_activation("activation", o.activation, WHOLE_ROW))
    if isinstance(o, LayerNormOptions):
        return LayerNormOptions(
            integer("normalized_shape", o.normalized_shape, 1, 2**40),
            number("eps", o.eps, 0.0, float(np.finfo(np.float32).max)),
            flag("elementwise_affine", o.elementwise_affine),
            flag("bias", o.bias),
            float_dtype("dtype", o.dtype).name,
        )
    dtype, (first, second) = float_dtype("dtype", o.dtype), o._fields[:2]
    rows, columns = integer(first, o[0], 1), integer(second, o[1], 1)
    if rows * columns * dtype.itemsize > sys.maxsize:
        raise ValueError(
            f"{first}={rows}, {second}={columns}: "
            f"the parameters would take more bytes than can be addressed ({sys.maxsize})"
        )
    if isinstance(o, LinearOptions):
        return LinearOptions(rows, columns, flag("bias", o.bias), dtype.name)
    index = o.padding_idx
    if index is not None:
        index = integer("padding_idx", index, -rows, rows - 1) % rows
    return EmbeddingOptions(rows, columns, index, dtype.name)


def sequential(parts: Sequence[PartOptions]) -> SequentialOptions:
    """Whether the modules of a Sequential fit together; ValueError names the first that does not."""
    if not 1 <= len(parts) <= MAX_MODULES:
        raise ValueError(f"modules must be 1 to {MAX_MODULES}, got {len(parts)}")
    depth = sum(o.num_layers for o in parts if isinstance(o, Options))
    if depth > MAX_LAYERS:
        raise ValueError(f"modules must have at most {MAX_LAYERS} recurrent layers, got {depth}")
    sized = [i for i, o in enumerate(parts) if _widths(o) is not None]
    if not sized:
        raise ValueError(
            "modules must not be Dropout, Activation or LastStep alone: that leaves size and dtype of x open"
        )
    for before, i in zip(sized, sized[1:], strict=False):
        o, last = parts[i], parts[before]
        if isinstance(o, EmbeddingOptions):
            raise ValueError(f"modules[{i}], {o!r}, reads tokens: it must be the first")
        gives, reads = cast(Shape, _widths(last))[1], cast(Shape, _widths(o))[0]
        if gives != reads:
            raise ValueError(
                f"modules[{i}], {o!r}, must read what modules[{before}], {last!r}, gives: {gives} features"
            )
        if o.dtype != last.dtype:
            raise ValueError(
                f"modules must have one dtype: modules[{i}] has {o.dtype}, modules[{before}] {last.dtype}"
            )
    if sized[0] and isinstance(parts[sized[0]], EmbeddingOptions):
        raise ValueError(f"modules[{sized[0]}], {parts[sized[0]]!r}, reads tokens: it must be the first")
    layers = [(i, o) for i, o in enumerate(parts) if isinstance(o, Options)]
    last_steps = [i for i, o in enumerate(parts) if isinstance(o, LastStepOptions)]
    for i in last_steps:
        if not i or not isinstance(parts[i - 1], Options):
            raise ValueError(f"modules[{i}], LastStep(), must directly follow a recurrent layer")
        if i < layers[-1][0]:
            raise ValueError(
                f"modules[{layers[-1][0]}], {layers[-1][1]!r}, must not follow modules[{i}], LastStep(), "
                "which leaves no steps"
            )
    for i, layer in layers[1:]:
        if layer.batch_first != layers[0][1].batch_first:
            raise ValueError(
                f"modules must agree in batch_first: modules[{layers[0][0]}] has {layers[0][1].batch_first}, "
                f"modules[{i}] {layer.batch_first}"
            )
    return SequentialOptions(tuple(parts))


def modules(name: str, values: Sequence[Any], kinds: tuple[type[Any], ...]) -> SequentialOptions:
    """The options of a Sequential of these modules, none of them twice."""
    for i, value in enumerate(values):
        if not isinstance(value, kinds):
            raise TypeError(
                f"{name}[{i}] must be a recurrent layer of fastlstm or one of {', '.join(MODULES)}, "
                f"got {_got(value)}"
            )
        first = next(k for k, other in enumerate(values) if other is value)
        if first != i:
            raise ValueError(f"{name}[{i}] must not be {name}[{first}] again: its parameters have one name")
    return sequential([value._options for value in values])


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


def seed(name: str, value: Any) -> int | None:
    """None, or an int of at least 0."""
    return None if value is None else integer(name, value, 0)


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
    places = ["activations" if role == "one" else f"activations ({role})" for role in roles]
    return tuple(_activation(where, spec) for where, spec in zip(places, specs, strict=True))


def _activation(where: str, spec: Any, more: Iterable[str] = ()) -> Activation:
    """A name, or (name, alpha[, beta]) where the function has parameters; `more` are names beside ONNX's."""
    if not (isinstance(spec, str) or _is_list(spec) and 1 <= len(spec) <= 3 and isinstance(spec[0], str)):
        raise TypeError(f"{where}: wanted a name or a tuple (name[, alpha[, beta]]), got {_got(spec)}")
    name, *given = (spec,) if isinstance(spec, str) else spec
    known = (*ACTIVATIONS, *more)
    if name not in known:
        raise ValueError(f"{where}: {_got(name)} is unknown, wanted one of {', '.join(known)}")
    defaults = ACTIVATIONS.get(name, ())
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


def like(name: str, value: Any, shape: Shape, dtype: np.dtype[Any]) -> Array:
    """An array of the output's shape: layer's dtype, aligned, last axis contiguous."""
    array = real_array(name, value)
    if array.shape != shape:
        raise ValueError(f"{name} must have the output's shape {shape}, got {array.shape}")
    if array.dtype == dtype and array.flags.aligned and array.strides[-1:] in ((), (array.itemsize,)):
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


def lengths(name: str, value: Any, steps: int, batch: int, batched: bool = True) -> Array:
    """int64 [B], each in 0..T; none for an unbatched x."""
    if not batched:
        raise ValueError(f"{name} must be None for an unbatched x [T, I]: leave out the steps instead")
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
    wrong = np.argwhere((array < low) | (array > high))
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        raise ValueError(f"{name} must be in {low}..{high}, got {array[at]} at {', '.join(map(str, at))}")
    return np.ascontiguousarray(array, np.int64)


def ids(name: str, value: Any) -> Array:
    """int64 [n], each at least 0; whether sessions have them is the core's to say."""
    array = _integers(name, value)
    if array.ndim != 1:
        raise ValueError(f"{name} must be a list of ints or an array [n] of them, got shape {array.shape}")
    return _in_range(name, array, 0, 2**63 - 1)


def session(name: str, value: Any, has: Callable[[int], bool]) -> int:
    """The id of a session that is open."""
    result = integer(name, value, 0, 2**63 - 1)
    if not has(result):
        raise ValueError(f"{name} must be that of a session that is open, got {result}")
    return result


# --- training -----------------------------------------------------------------------------------------------


def one_of(name: str, value: Any, wanted: Sequence[str]) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(map(repr, wanted))}, got {_got(value)}")
    if value not in wanted:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, wanted))}, got {_got(value)}")
    return value


def positive(name: str, value: Any) -> float:
    """A number above 0, infinity included."""
    result = number(name, value, 0.0, math.inf)
    if result == 0:
        raise ValueError(f"{name} must be a number above 0, got {_got(value)}")
    return result


def fraction(name: str, value: Any) -> float:
    """A number in 0..1, but not 1."""
    result = number(name, value, 0.0, 1.0)
    if result == 1:
        raise ValueError(f"{name} must be a number of at least 0 and below 1, got {_got(value)}")
    return result


def floats(name: str, value: Any, least_ndim: int = 0) -> Array:
    """float32 for float32 and narrower floats, float64 for all else; C-contiguous."""
    array = real_array(name, value)
    narrow = array.dtype.kind == "f" and array.dtype.itemsize <= 4
    array = _contiguous(array, np.dtype(np.float32 if narrow else np.float64))
    if array.ndim < least_ndim:
        raise ValueError(f"{name} must have at least {least_ndim} axis, got shape {array.shape}")
    return array


def floats_like(name: str, value: Any, like_name: str, like: Array) -> Array:
    """An array of the shape and in the dtype of another."""
    array = real_array(name, value)
    if array.shape != like.shape:
        raise ValueError(f"{name} must have the shape of {like_name}, {like.shape}, got {array.shape}")
    return _contiguous(array, like.dtype)


def broadcast_to(name: str, value: Any, like_name: str, like: Array) -> Array:
    """An array that broadcasts to the shape of another, in its dtype."""
    array = real_array(name, value)
    try:
        return np.broadcast_to(_contiguous(array, like.dtype), like.shape)
    except ValueError:
        raise ValueError(
            f"{name} must broadcast to the shape of {like_name}, {like.shape}, got {array.shape}"
        ) from None


def axis(name: str, value: Any, ndim: int) -> int:
    result = integer(name, value, -ndim)
    if result >= ndim:
        raise ValueError(f"{name} must be an int in {-ndim}..{ndim - 1}, got {_got(result)}")
    return result


def targets(name: str, value: Any, logits: Array, ignore_index: int) -> tuple[Array, Array]:
    """int64 class of each row of logits [.., C], flat, 0 where it is to be ignored; and where it is not."""
    array = _integers(name, value)
    if array.shape != logits.shape[:-1]:
        raise ValueError(
            f"{name} must hold one class for each row of logits [.., C], "
            f"of shape {logits.shape[:-1]}, got {array.shape}"
        )
    if logits.shape[-1] == 0:
        raise ValueError(f"logits must hold at least one class, got shape {logits.shape}")
    counted = array != ignore_index
    found = _in_range(name, np.where(counted, array, 0), 0, logits.shape[-1] - 1)
    return found.reshape(-1), counted.reshape(-1)


def trainable(name: str, value: Any) -> Any:
    """What has `state_dict` and `load_state_dict`."""
    if not all(callable(getattr(value, method, None)) for method in ("state_dict", "load_state_dict")):
        raise TypeError(f"{name} must be a layer or a Sequential, got {_got(value)}")
    options = getattr(value, "_options", None)
    for o in getattr(options, "modules", (options,)):
        if getattr(o, "weight_dtype", None) is not None:
            raise ValueError(f"{name} must have float weights to train, got {o!r}")
    return value


def gradients(name: str, value: Any, parameters: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """Gradients by parameter, C-contiguous. Given the parameters: no others, in their shapes and dtypes."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must map parameter names to arrays, got {type(value).__name__}")
    if parameters is None:
        return {key: floats(f"{name}[{key!r}]", v) for key, v in value.items()}
    arrays = {key: real_array(f"{name}[{key!r}]", v) for key, v in value.items()}
    unexpected = [key for key in arrays if key not in parameters]
    wanted = {key: v.shape for key, v in parameters.items()}
    wrong = mismatch(wanted, {key: a.shape for key, a in arrays.items()}, strict=False)
    if unexpected:
        wrong = "; ".join(filter(None, [f"unexpected: {_listing(unexpected)}", wrong]))
    if wrong:
        raise ValueError(f"{name} does not fit the module's parameters: {wrong}")
    return {key: _contiguous(a, parameters[key].dtype) for key, a in arrays.items()}


def optimizer_state(
    name: str,
    value: Any,
    numbers: Sequence[str],
    all_slots: Mapping[str, str | None],
    parameters: Mapping[str, Array],
) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """An optimizer's settings, and for each parameter that has taken a step its "step" and its slots.

    `value` is flat: the settings by name, the rest as "slot/parameter". A slot that names a setting is there
    only if that is not 0.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must map names to numbers and arrays, got {type(value).__name__}")
    settings = {key: number(f"{name}[{key!r}]", value[key], 0.0, math.inf) for key in numbers if key in value}
    slots = [slot for slot, setting in all_slots.items() if setting is None or settings.get(setting)]
    keys = ("step", *slots)
    begun = [p for p in parameters if any(f"{key}/{p}" in value for key in keys)]
    wanted = [*numbers, *(f"{key}/{p}" for p in begun for key in keys)]
    found = {
        "missing": [key for key in wanted if key not in value],
        "unexpected": [key for key in value if key not in set(wanted)],
    }
    wrong = "; ".join(f"{what}: {_listing(names)}" for what, names in found.items() if names)
    if wrong:
        raise ValueError(f"{name} does not fit this optimizer and its module: {wrong}")
    states: dict[str, dict[str, Any]] = {}
    for p in begun:
        arrays = {
            slot: floats_like(f"{name}[{slot + '/' + p!r}]", value[f"{slot}/{p}"], p, parameters[p])
            for slot in slots
        }
        step = integer(f"{name}[{'step/' + p!r}]", value[f"step/{p}"], 0, 2**63 - 1)
        states[p] = {"step": step} | {slot: a.copy() for slot, a in arrays.items()}
    return settings, states


def nesterov(momentum: float, dampening: float) -> None:
    if momentum == 0 or dampening != 0:
        raise ValueError(
            f"nesterov=True needs a momentum above 0 and no dampening, "
            f"got momentum={momentum:g}, dampening={dampening:g}"
        )


def betas(name: str, value: Any) -> tuple[float, float]:
    if not _is_list(value) or len(value) != 2:
        raise TypeError(f"{name} must be a pair of numbers, got {_got(value)}")
    return fraction(f"{name}[0]", value[0]), fraction(f"{name}[1]", value[1])


def function(name: str, value: Any) -> Any:
    if not callable(value):
        raise TypeError(f"{name} must be a function of the step, got {_got(value)}")
    return value


def forget_bias(name: str, value: Any, layer: Any) -> float:
    """A bias for the forget gate of a layer that has one."""
    if type(layer).__name__ != "LSTM" or not layer.bias:
        raise ValueError(f"{name} must be None: {layer!r} has no forget gate with biases")
    for option, wanted in (("forget_gate", True), ("coupled_gates", False)):
        if getattr(layer, option, wanted) is not wanted:
            raise ValueError(f"{name} must be None: {layer!r} has no forget gate of its own")
    limit = float(np.finfo(np.float32).max)
    return number(name, value, -limit, limit)


def recurrent_layers(name: str, value: Any) -> list[Any]:
    """The recurrent layer itself, or those of a Sequential; at least one."""

    def recurrent(layer: Any) -> bool:  # and not PyTorch's, whose dtype is no NumPy dtype
        return hasattr(layer, "hidden_size") and isinstance(getattr(layer, "dtype", None), np.dtype)

    if recurrent(value):
        return [value]
    try:
        layers = [value[k] for k in range(len(value))]
    except TypeError:
        layers = []
    found = [layer for layer in layers if recurrent(layer)]
    if not found:
        raise TypeError(f"{name} must be a recurrent layer or a Sequential with one, got {_got(value)}")
    return found


# --- arrays of modules --------------------------------------------------------------------------------------


def streams(what: str, o: Options) -> None:
    """Whether a layer can run step by step."""
    for name in ("reverse", "bidirectional"):
        if getattr(o, name):
            raise ValueError(
                f"{what}: a layer with {name}=True cannot stream, it needs each sequence's end first"
            )


def pool_model(name: str, value: Any, layer: type[Any], model: type[Any]) -> SequentialOptions:
    """The options of a Sequential with a recurrent layer, or of such a layer as if it stood in one alone."""
    if isinstance(value, layer):
        return SequentialOptions((value._options,))
    if not isinstance(value, model) or not value._options.recurrent:
        raise TypeError(f"{name} must be a recurrent layer or a Sequential with one, got {_got(value)}")
    options: SequentialOptions = value._options
    return options


def features(name: str, value: Any, width: int, dtype: np.dtype[Any]) -> Array:
    """x [.., width] in the module's dtype, C-contiguous."""
    array = real_array(name, value)
    if array.ndim < 1 or array.shape[-1] != width:
        raise ValueError(f"{name} must be [.., {width}], got shape {array.shape}")
    return _contiguous(array, dtype)


def tokens(name: str, value: Any, count: int, shape: Shape | None = None) -> Array:
    """int64 of any shape, or of the given one, each in 0..count - 1."""
    array = _integers(name, value)
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    return _in_range(name, array, 0, count - 1).reshape(array.shape)  # a lone token has no axis


def shaped(name: str, value: Any, shape: Shape, dtype: np.dtype[Any]) -> Array:
    """Of exactly that shape, in the module's dtype, C-contiguous."""
    return _state(name, value, shape, dtype)


def sequential_input(name: str, value: Any, o: SequentialOptions, ragged: bool) -> Array:
    """x of a Sequential, whose tokens are not looked at yet: padding may hold any.

    With recurrent layers or lengths it has the axes of time and batch, without lengths perhaps of time alone.
    """
    width, dtype = o.widths[0], np.dtype(o.dtype)
    if o.embeds:
        array = _integers(name, value)
    elif isinstance(o.modules[0], Options):
        array = sequence(name, value, width, dtype, o.batch_first)
    else:
        array = features(name, value, width, dtype)
    axes = array.ndim if o.embeds else array.ndim - 1
    if axes == 1 and ragged:
        raise ValueError("lengths must be None for an unbatched x: leave out the steps instead")
    if axes not in (1, 2) and o.recurrent or axes != 2 and ragged:
        order = "[B, T" if o.batch_first else "[T, B"
        end = "]" if o.embeds else f", {width}]"
        unbatched = "" if ragged else f" or [T{end}"
        raise ValueError(f"{name} must be {order}{end}{unbatched}, got shape {array.shape}")
    return array


def session_input(name: str, value: Any, o: SequentialOptions, n: int) -> Array:
    """x of a Sequential, of so many sequences."""
    array = sequential_input(name, value, o, False)
    axes = array.ndim if o.embeds else array.ndim - 1
    if axes != 2 or array.shape[0 if o.batch_first else 1] != n:
        order = f"[{n}, T" if o.batch_first else f"[T, {n}"
        end = "]" if o.embeds else f", {o.widths[0]}]"
        raise ValueError(f"{name} must be {order}{end}, a sequence for each of ids, got shape {array.shape}")
    return array


def state_tuple(name: str, value: Any, count: int) -> tuple[Any, ...]:
    """One entry for each recurrent layer; None: None for each."""
    if value is None:
        return (None,) * count
    if not _is_list(value) or len(value) != count:
        length = f" of {len(value)}" if _is_list(value) else ""
        raise TypeError(
            f"{name} must be None or a tuple of {count}, one entry for each recurrent layer, "
            f"got a {type(value).__name__}{length}"
        )
    return tuple(value)


def target(name: str, value: Any, shape: Shape, dtype: np.dtype[Any], x: Array) -> Array:
    """An array to write to: C-contiguous, and apart from x."""
    if type(value) is not np.ndarray:
        raise TypeError(f"{name} must be a numpy array, got {type(value).__name__}")
    if value.shape != shape or value.dtype != dtype or not value.flags.carray:
        raise ValueError(
            f"{name} must be a writable C-contiguous {dtype} array {shape}, got {value.dtype} {value.shape}"
        )
    if np.may_share_memory(value, x):
        raise ValueError(f"{name} must not overlap x")
    return value


# --- generating tokens --------------------------------------------------------------------------------------


def token_count(o: SequentialOptions) -> int:
    """How many tokens the Embedding at the beginning knows."""
    return cast(EmbeddingOptions, o.modules[0]).num_embeddings


def token_model(o: SequentialOptions) -> int:
    """The number of tokens of a model that reads tokens and gives a logit for each."""
    if not o.embeds:
        raise ValueError(f"generate needs a Sequential that begins with an Embedding, got {o!r}")
    count = token_count(o)
    if o.widths[1] > count:
        raise ValueError(
            f"generate needs a Sequential that gives a logit for each token it reads: it gives {o.widths[1]} "
            f"and reads {count}"
        )
    return count


def prompts(name: str, value: Any, count: int) -> tuple[list[Array], bool]:
    """Each prompt's tokens, at least one, and whether they are many: a list of prompts or an array [B, T]."""
    wanted = f"{name} must be a prompt (a list of tokens) or a list of prompts"
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{wanted}, got {_got(value)}")
    if _is_list(value) and any(_is_list(v) or getattr(v, "ndim", 0) for v in value):
        found, many = [tokens(f"{name}[{i}]", v, count) for i, v in enumerate(value)], True
    else:
        array = tokens(name, value, count)
        many = array.ndim == 2
        found = list(array) if many else [array]
    for i, prompt in enumerate(found):
        if prompt.ndim != 1 or not prompt.size:
            where = f"{name}[{i}]" if many else name
            raise ValueError(f"{wanted}, at least one token each, got {where} of shape {prompt.shape}")
    if not found:
        raise ValueError(f"{wanted}, got none")
    return found, many


def temperature(name: str, value: Any) -> float:
    """A finite number of at least 0."""
    return number(name, value, 0.0, sys.float_info.max)


def portion(name: str, value: Any) -> float:
    """A number above 0 and up to 1."""
    result = number(name, value, 0.0, 1.0)
    if result == 0:
        raise ValueError(f"{name} must be above 0, got {_got(value)}")
    return result


def logits(array: Array) -> Array:
    """In float64; ValueError where they tell no token: NaN, infinity, or -infinity for all."""
    largest = array.max(axis=-1)
    wrong = np.flatnonzero(~np.isfinite(largest))
    if wrong.size:
        raise ValueError(
            f"generate: the model's largest output is {largest[wrong[0]]} for prompt {wrong[0]}, "
            "wanted a finite one"
        )
    return array.astype(np.float64)


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


def finite(name: str, value: Array) -> None:
    if not np.isfinite(value).all():
        raise ValueError(f"{name} holds NaN or infinity, which int8 cannot")


def held(o: AnyOptions) -> dict[str, Shape]:
    """The arrays that hold the parameters, in memory and in files: those of `shapes`, and beside each int8
    matrix a `.scale` for each row."""
    if isinstance(o, SequentialOptions):
        return {f"{i}.{n}": shape for i, part in enumerate(o.modules) for n, shape in held(part).items()}
    if not isinstance(o, Options) or o.weight_dtype != "int8":
        return o.shapes()
    shapes: dict[str, Shape] = {}
    for name, shape in o.shapes().items():
        shapes[name] = shape
        if MATRIX.fullmatch(name):
            shapes[f"{name}.scale"] = shape[:1]
    return shapes


def held_dtype(o: AnyOptions, name: str) -> np.dtype[Any]:
    """Of one of those arrays; smaller weights are of their own type."""
    if isinstance(o, SequentialOptions):
        number, _, name = name.partition(".")
        return held_dtype(o.modules[int(number)], name)
    if isinstance(o, Options) and o.weight_dtype is not None and MATRIX.fullmatch(name):
        return WEIGHT_DTYPES[o.weight_dtype]
    return np.dtype(o.dtype or "float32")


def check_held(value: Mapping[str, Array], o: AnyOptions) -> None:
    """ValueError if the arrays of a file or a pickle are not as `held` says."""
    wanted = held(o)
    wrong = mismatch(wanted, {n: np.shape(a) for n, a in value.items()})
    if wrong:
        raise ValueError(f"the parameters do not fit {o!r}: {wrong}")
    for name in wanted:
        array, dtype = np.asarray(value[name]), held_dtype(o, name)
        if array.dtype.newbyteorder("=") != dtype:
            raise ValueError(f"{name} must hold {dtype}, got {array.dtype}")
        if dtype == np.int8 and (array == -128).any():
            raise ValueError(f"{name} must hold numbers in -127..127, got -128")
        if name.endswith(".scale"):
            _check_scale(name, array.astype(np.float32))


def _check_scale(name: str, scale: Array) -> None:
    """As `csrc/quantize.c` makes it: 17 bits, so that every multiple up to 127 is a float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        fine = np.isfinite(scale * np.float32(127)) & ((scale == 0) | (scale > 1e-33))
    if not (fine & (scale.view(np.uint32) & 0x7F == 0)).all():
        raise ValueError(f"{name} must hold 0 or numbers of 17 bits in 1e-33..2.6e36")


def held_arrays(value: Mapping[str, Array], o: AnyOptions) -> dict[str, Array]:
    """Read-only copies of such arrays; ValueError as `check_held`."""
    check_held(value, o)
    return {name: frozen(np.array(value[name], held_dtype(o, name), order="C")) for name in held(o)}


def parameters(
    value: Any, o: AnyOptions, strict: bool = True
) -> tuple[dict[str, Array], list[str], list[str]]:
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
