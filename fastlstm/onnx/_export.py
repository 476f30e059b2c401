"""`to_onnx`: fastlstm's models as ONNX graphs.

What ONNX's RNN, GRU and LSTM can say becomes those nodes, one for each layer. What they cannot (a projection,
an LSTM without a forget gate, the gated RNN) becomes a Scan over the cell's equations, written out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _check, _files
from ..layers import _Layer
from ..modules import Sequential
from . import _node
from ._read import LARGEST, Array, Proto, require

OLDEST = 13  # Squeeze and its like take their axes as an input from here on
WITH_LAYER_NORM = 17
DEFAULT_OPSET = 17
# Activations of recurrent nodes that have the same defaults in every engine: those of ONNX's operators.
SHARED_DEFAULTS = frozenset({"leaky_relu", "hard_sigmoid", "elu"})


def to_onnx(
    model: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    opset: int = DEFAULT_OPSET,
    states: bool = False,
    lengths: bool = False,
) -> Any:
    """A model of fastlstm as an ONNX ModelProto.

    model: a recurrent layer, another module, or a Sequential.
    path: also write it there, at once: the file is whole, old or new, whatever happens.
    opset: 13 or later; 17 or later with LayerNorm.
    states: whether the states are inputs and outputs too: for each recurrent layer `h_in` (and `c_in`) and
        `h_out` (`c_out`), [L*D, B, ..] as fastlstm has them; with more than one such layer followed by its
        number, `h_in_0`, `h_in_2`. Otherwise they begin as zeros.
    lengths: whether there is an input `lengths`, int32 [B].

    The graph reads `x` and gives `y` in the shapes of a call: [T, B, I], [B, T, I] with batch_first, tokens
    int64 [T, B]; T and B are open. A model without recurrent layers reads [B, I] or tokens [B]. Dropout,
    which does nothing in a call, is left out. bfloat16 weights are written as the float32 they stand for.

    A recurrent layer that ONNX has an operator for (LSTM, GRU, RNN with all their options but proj_size and
    forget_gate=False) comes back through `from_onnx` with the same bits. The others run on any engine, but
    come back as its Scan.

    ONNX keeps the parameters of activations as float32. Of the defaults 0.2 and 0.01 are none: float64 layers
    leave them to the engine, which may differ in the ninth digit.

    A sequence of length 0 keeps its initial state; ONNX Runtime gives zeros there.

    Raises TypeError or ValueError naming what ONNX cannot hold: int8 weights, whose inputs are rounded too;
    float64 parameters of activations, or a clip, that are no float32, as ONNX keeps them. OSError.
    """
    onnx = require()
    newest = onnx.defs.onnx_opset_version()
    writer = _Writer(_check.integer("opset", opset, OLDEST, newest))
    if not hasattr(getattr(model, "_options", None), "shapes"):
        raise TypeError(f"model must be a module of fastlstm, got {type(model).__name__}")
    states, lengths = _check.flag("states", states), _check.flag("lengths", lengths)
    _Export(writer, model, states, lengths)
    proto = writer.proto()
    onnx.checker.check_model(proto)
    if path is not None:
        _files.replace_file(os.fspath(os.fsdecode(path)), proto.SerializeToString(deterministic=True))
    return proto


class _Writer:
    """A graph that grows. Nodes give the names of their outputs; constants are shared."""

    def __init__(self, opset: int, prefix: str = "") -> None:
        self.opset, self._prefix = opset, prefix
        self.nodes: list[Proto] = []
        self.inputs: list[Proto] = []
        self.outputs: list[Proto] = []
        self.initializers: list[Proto] = []
        self._count = 0
        self._shared: dict[tuple[Any, ...], str] = {}
        self._bytes = 0

    def name(self, what: str) -> str:
        self._count += 1
        return f"{self._prefix}{what}_{self._count}"

    def node(
        self, op: str, *inputs: str, outputs: int | list[str] = 1, name: str = "", **attributes: Any
    ) -> Any:
        """The name of its output, or a list of them where their names or number are given."""
        names = outputs if isinstance(outputs, list) else [self.name(op.lower()) for _ in range(outputs)]
        made = require().helper.make_node(op, inputs, names, name=name, **attributes)
        self.nodes.append(made)
        return names[0] if outputs == 1 else names

    def constant(self, value: Array, what: str = "") -> str:
        """A small one without a name of its own may be shared."""
        key = (value.dtype.str, value.shape, value.tobytes()) if not what else (what,)
        if key not in self._shared:
            self._bytes += value.nbytes
            if self._bytes > LARGEST:
                raise ValueError(
                    f"the model has more than {LARGEST} bytes of parameters, an ONNX file cannot"
                )
            name = what or self.name("constant")
            self.initializers.append(require().numpy_helper.from_array(np.ascontiguousarray(value), name))
            self._shared[key] = name
        return self._shared[key]

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def port(self, name: str, dtype: Any, shape: Sequence[int | str]) -> Proto:
        helper = require().helper
        element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return helper.make_tensor_value_info(name, element, shape)

    def input(self, name: str, dtype: Any, shape: Sequence[int | str]) -> str:
        self.inputs.append(self.port(name, dtype, shape))
        return name

    def output(self, value: str, name: str, dtype: Any, shape: Sequence[int | str]) -> None:
        """Give what some node makes the name of an output."""
        for node in self.nodes:
            for names in (node.input, node.output):
                for k in [k for k, own in enumerate(names) if own == value]:
                    names[k] = name
        self.outputs.append(self.port(name, dtype, shape))

    def proto(self) -> Proto:
        from .. import __version__

        helper = require().helper
        graph = helper.make_graph(self.nodes, "fastlstm", self.inputs, self.outputs, self.initializers)
        imports = [helper.make_opsetid("", self.opset)]
        return helper.make_model(
            graph,
            opset_imports=imports,
            ir_version=helper.find_min_ir_version_for(imports),
            producer_name="fastlstm",
            producer_version=__version__,
        )


class _Export:
    """One model into a writer: module after module, the value between them in the order that they need."""

    def __init__(self, writer: _Writer, model: Any, states: bool, lengths: bool) -> None:
        self.w = writer
        parts = list(model) if isinstance(model, Sequential) else [model]
        self.recurrent = [i for i, part in enumerate(parts) if isinstance(part, _Layer)]
        self.alone = len(parts) == 1 and not isinstance(model, Sequential)
        self.states, self.dtype = states, np.dtype(model._options.dtype or np.float32)
        options: _check.SequentialOptions = _check.sequential([part._options for part in parts])
        if (states or lengths) and not self.recurrent:
            raise ValueError("states and lengths must be False: the model has no recurrent layer")
        self.batch_first = options.batch_first
        self.axes: list[int | str] = ["time", "batch"] if self.recurrent else ["batch"]
        if self.batch_first:
            self.axes.reverse()
        self.time_first = not self.batch_first
        self.x = self._input(options)
        self.value = self.x
        self.lengths = writer.input("lengths", np.int32, ["batch"]) if lengths else ""
        self.finals: list[tuple[int, _check.Options, list[list[str]]]] = []
        for i, (part, width) in enumerate(zip(parts, _check.widths_after(options), strict=True)):
            self._part(i, part)
            self.width = width
        self._output(options)

    def _input(self, options: _check.SequentialOptions) -> str:
        if options.embeds:
            return self.w.input("x", np.int64, self.axes)
        return self.w.input("x", self.dtype, [*self.axes, options.widths[0]])

    def _part(self, i: int, part: Any) -> None:
        if isinstance(part, _Layer):
            self._turn(time_first=True)
            self._layer(i, part)
        else:
            getattr(self, f"_{part._kind.lower()}")(f"{i}.", part, part.state_dict())

    def _turn(self, time_first: bool) -> None:
        if self.time_first != time_first:
            self.value = self.w.node("Transpose", self.value, perm=[1, 0, 2])
            self.time_first = time_first

    def _output(self, options: _check.SequentialOptions) -> None:
        axes: list[int | str] = ["batch"]
        if not options.has_last_step:
            axes = self.axes
            if self.recurrent:
                self._mask(options)
                self._turn(time_first=not self.batch_first)
        self.w.output(self.value, "y", self.dtype, [*axes, self.width])
        for i, o, finals in self.finals:
            rows = o.num_layers * len(o.suffixes)
            for what, names, size in zip("hc", zip(*finals, strict=True), o.state_sizes, strict=False):
                whole = names[0] if len(names) == 1 else self.w.node("Concat", *names, axis=0)
                self.w.output(whole, self._state_name(what, "out", i), self.dtype, [rows, "batch", size])

    def _mask(self, options: _check.SequentialOptions) -> None:
        """Zeros in the padding, where modules after the last recurrent layer left something else."""
        if not self.lengths or isinstance(options.modules[-1], _check.Options):
            return
        self._turn(time_first=True)
        steps = self.w.node("Unsqueeze", self._counted(self.value), self.w.ints(1, 2))
        valid = self._valid(self.w, steps, self.lengths)
        self.value = self.w.node("Where", valid, self.value, self._number(self.w, 0))

    def _counted(self, x: str) -> str:
        """0..T - 1, of x [T, ..]."""
        w = self.w
        steps = w.node("Squeeze", w.node("Gather", w.node("Shape", x), w.ints(0), axis=0), w.ints(0))
        zero, one = (w.constant(np.array(v, np.int64)) for v in (0, 1))
        return str(w.node("Range", zero, steps, one))

    @staticmethod
    def _valid(w: _Writer, step: str, lengths: str) -> str:
        """Whether a step, or each of [T, 1, 1], is within the lengths, as booleans [.., B, 1]."""
        wide = w.node("Cast", lengths, to=require().TensorProto.INT64)
        return str(w.node("Less", step, w.node("Unsqueeze", wide, w.ints(1))))

    def _number(self, w: _Writer, value: float) -> str:
        return w.constant(np.array(value, self.dtype))

    # --- modules without a state ---

    def _embedding(self, prefix: str, part: Any, held: dict[str, Array]) -> None:
        weight = self.w.constant(held["weight"], f"{prefix}weight")
        self.value = self.w.node("Gather", weight, self.value, axis=0)

    def _linear(self, prefix: str, part: Any, held: dict[str, Array]) -> None:
        weight = self.w.constant(held["weight"].T, f"{prefix}weight")
        self.value = self.w.node("MatMul", self.value, weight)
        if "bias" in held:
            self.value = self.w.node("Add", self.value, self.w.constant(held["bias"], f"{prefix}bias"))

    def _dropout(self, prefix: str, part: Any, held: dict[str, Array]) -> None:
        pass  # for training

    def _activation(self, prefix: str, part: Any, held: dict[str, Array]) -> None:
        self.value = self._activated(self.w, self.value, part.activation)

    def _layernorm(self, prefix: str, part: Any, held: dict[str, Array]) -> None:
        if self.w.opset < WITH_LAYER_NORM:
            raise ValueError(f"opset must be {WITH_LAYER_NORM} or later for LayerNorm, got {self.w.opset}")
        held = {"weight": np.ones(part.normalized_shape, self.dtype)} | held  # which the operator must have
        inputs = [self.w.constant(v, f"{prefix}{name}") for name, v in held.items()]
        keys: dict[str, Any] = (
            {} if part.eps == 1e-5 else {"epsilon": self._attribute(part.eps)}
        )  # the default of both
        self.value = self.w.node("LayerNormalization", self.value, *inputs, **keys)

    def _laststep(self, prefix: str, part: Any, held: dict[str, Array]) -> None:
        self.value = self._side_by_side(*self.last)

    def _activated(self, w: _Writer, x: str, spec: _check.Activation) -> str:
        """An activation written as operators."""
        name = spec if isinstance(spec, str) else spec[0]
        if name in _check.WHOLE_ROW:
            return str(w.node({"softmax": "Softmax", "log_softmax": "LogSoftmax"}[name], x, axis=-1))
        values = _with_defaults(spec)
        if name == "affine":
            scaled = w.node("Mul", x, self._number(w, values[0]))
            return str(w.node("Add", scaled, self._number(w, values[1])))
        if name == "scaled_tanh":
            inner = w.node("Tanh", w.node("Mul", x, self._number(w, values[1])))
            return str(w.node("Mul", inner, self._number(w, values[0])))
        keys: dict[str, Any] = {}
        if values != _check.ACTIVATIONS[name]:
            keys = dict(zip(("alpha", "beta"), map(self._attribute, values), strict=False))
        return str(w.node(_onnx_name(name), x, **keys))

    def _attribute(self, value: float) -> float:
        """What ONNX keeps as a float32."""
        if self.dtype == np.float64 and float(np.float32(value)) != value:
            raise ValueError(
                f"{value!r} is no float32, as which ONNX keeps parameters of activations and clips"
            )
        return value

    # --- recurrent layers ---

    def _layer(self, i: int, layer: Any) -> None:
        o: _check.Options = layer._options
        if o.weight_dtype == "int8":
            raise ValueError(f"modules[{i}], {o!r}: ONNX has no such int8 layer, export the float32 one")
        state = layer.state_dict()
        given = self._given(i, o)
        finals: list[list[str]] = []
        for k in range(o.num_layers):
            before = [names[k] if names else "" for names in given]
            if o.cell in _NODES and not o.proj_size and o.forget_gate:
                self.value, final = self._operator(i, k, o, state, before)
            else:
                self.value, final = _Scan(self, i, k, o, state, before).written
            finals.append(final)
        self.last = (finals[-1][0], o)
        if self.states:
            self.finals.append((i, o, finals))

    def _state_name(self, what: str, way: str, i: int) -> str:
        return f"{what}_{way}" if len(self.recurrent) == 1 else f"{what}_{way}_{i}"

    def _given(self, i: int, o: _check.Options) -> list[list[str]]:
        """For each state the initial one of each layer [D, B, ..]; none if it is zero."""
        if not self.states:
            return [[] for _ in o.state_sizes]
        found = []
        directions = len(o.suffixes)
        for what, size in zip("hc", o.state_sizes, strict=False):
            rows = o.num_layers * directions
            whole = self.w.input(self._state_name(what, "in", i), self.dtype, [rows, "batch", size])
            if o.num_layers == 1:
                found.append([whole])
            else:
                sizes = self.w.ints(*[directions] * o.num_layers)
                found.append(self.w.node("Split", whole, sizes, axis=0, outputs=o.num_layers))
        return found

    def _side_by_side(self, h: str, o: _check.Options) -> str:
        """[D, B, P] as [B, D*P]."""
        if not o.bidirectional:
            return str(self.w.node("Squeeze", h, self.w.ints(0)))
        turned = self.w.node("Transpose", h, perm=[1, 0, 2])
        return str(self.w.node("Reshape", turned, self.w.ints(0, 2 * o.state_sizes[0])))

    def _operator(
        self, i: int, k: int, o: _check.Options, state: dict[str, Array], before: list[str]
    ) -> tuple[str, list[str]]:
        """Layer k as a node: its output [T, B, D*H] and final states [D, B, H]."""
        op, w = _NODES[o.cell], self.w
        weights = [
            w.constant(np.stack(v), f"{i}.{name}_l{k}") if v else "" for name, v in _packed(op, k, o, state)
        ]
        inputs = [self.value, *weights[:3], self.lengths, *before]
        if weights[3]:
            inputs += [""] * (7 - len(inputs)) + [weights[3]]
        while not inputs[-1]:
            inputs.pop()
        y, *final = w.node(
            op,
            *inputs,
            outputs=1 + len(o.state_sizes),
            name=f"{i}.l{k}",
            hidden_size=o.hidden_size,
            **self._attributes(op, o),
        )
        if not o.bidirectional:
            return w.node("Squeeze", y, w.ints(1)), final
        turned = w.node("Transpose", y, perm=[0, 2, 1, 3])
        return w.node("Reshape", turned, w.ints(0, 0, 2 * o.hidden_size)), final

    def _attributes(self, op: str, o: _check.Options) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if o.bidirectional or o.reverse:
            found["direction"] = "bidirectional" if o.bidirectional else "reverse"
        if o.clip is not None:
            found["clip"] = self._attribute(o.clip)
        if o.coupled_gates:
            found["input_forget"] = 1
        if op == "GRU" and o.reset_after:
            found["linear_before_reset"] = 1
        specs = _specs(o) * len(o.suffixes)
        names = [_onnx_name(spec if isinstance(spec, str) else spec[0]) for spec in specs]
        if tuple(names) != _node.OPERATORS[op].defaults * len(o.suffixes):
            found["activations"] = names
        for at, key in enumerate(("activation_alpha", "activation_beta")):
            own = self._parameters(specs, at)
            if own:
                found[key] = own
        return found

    def _parameters(self, specs: Sequence[_check.Activation], at: int) -> list[float]:
        """All alphas (at 0) or betas (at 1), in the order of the functions, also those that are defaults:
        ONNX Runtime has others for some. Only a float64 list of defaults that all engines share and float32
        does not hold is left out."""
        chosen = [(spec if isinstance(spec, str) else spec[0], _with_defaults(spec)) for spec in specs]
        taken = [(name, values[at]) for name, values in chosen if len(values) > at]
        shared = all(n in SHARED_DEFAULTS and v == _check.ACTIVATIONS[n][at] for n, v in taken)
        if shared and self.dtype == np.float64 and any(float(np.float32(v)) != v for _, v in taken):
            return []
        return [self._attribute(value) for _, value in taken]


_NODES = {operator.cell: name for name, operator in _node.OPERATORS.items()}


def _onnx_name(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _with_defaults(spec: _check.Activation) -> tuple[float, ...]:
    """alpha and beta where the function has them."""
    name, *given = (spec,) if isinstance(spec, str) else spec
    usual = _check.ACTIVATIONS[name]
    return tuple(u if g is None else g for u, g in zip(usual, [*given, None, None], strict=False))


def _specs(o: _check.Options) -> tuple[_check.Activation, ...]:
    """The activations of one direction."""
    own = _check.CELLS[o.cell].activations
    return o.activations or ((o.nonlinearity,) if o.cell == "rnn" else own)


def _packed(op: str, k: int, o: _check.Options, state: dict[str, Array]) -> list[tuple[str, list[Array]]]:
    """W, R, B and P of layer k in ONNX's order of gates, a list of the directions' each; empty if absent."""
    order, peepholes = np.argsort(_node.OPERATORS[op].gates), np.argsort(_node.PEEPHOLES)

    def ordered(value: Array) -> Array:
        return np.concatenate([np.split(value, len(order))[g] for g in order])

    found: list[tuple[str, list[Array]]] = [(name, []) for name in "WRBP"]
    for suffix in o.suffixes:
        end = f"_l{k}{suffix}"
        found[0][1].append(ordered(state[f"weight_ih{end}"]))
        found[1][1].append(ordered(state[f"weight_hh{end}"]))
        if o.bias:
            biases = [ordered(state[f"bias_{of}{end}"]) for of in ("ih", "hh")]
            found[2][1].append(np.concatenate(biases))
        if o.peepholes:
            found[3][1].append(state[f"weight_peephole{end}"][peepholes].ravel())
    return found


# --- cells that ONNX has no operator for --------------------------------------------------------------------


class _Direction(NamedTuple):
    suffix: str
    backward: bool


class _Scan:
    """Layer k as Scans over its cell's equations, one for each direction.

    The products with x are made at once before; the body has the rest. A step beyond a sequence's length
    hands the states through, so that a direction that reads backwards begins at the last valid one.
    """

    def __init__(
        self, export: _Export, i: int, k: int, o: _check.Options, state: dict[str, Array], before: list[str]
    ) -> None:
        self.e, self.w, self.o, self.state = export, export.w, o, state
        self.end, self.x, self.label = f"_l{k}", export.value, f"{i}.l{k}"
        outputs, finals = [], []
        directions = [_Direction(s, o.reverse or s != "") for s in o.suffixes]
        starts = [
            self._starts(name, size, len(directions))
            for name, size in zip(before, o.state_sizes, strict=True)
        ]
        for d, direction in enumerate(directions):
            *final, y = self._direction(direction, [names[d] for names in starts])
            outputs.append(y)
            finals.append([self.w.node("Unsqueeze", v, self.w.ints(0)) for v in final])
        self.written = (
            outputs[0] if len(outputs) == 1 else self.w.node("Concat", *outputs, axis=-1),
            [
                v[0] if len(v) == 1 else self.w.node("Concat", *v, axis=0)
                for v in map(list, zip(*finals, strict=True))
            ],
        )

    def _starts(self, given: str, size: int, directions: int) -> list[str]:
        """The initial state [B, ..] of each direction."""
        w = self.w
        if given:
            ones = w.ints(*[1] * directions)
            rows = [given] if directions == 1 else w.node("Split", given, ones, axis=0, outputs=directions)
            return [w.node("Squeeze", row, w.ints(0)) for row in rows]
        batch = w.node("Gather", w.node("Shape", self.x), w.ints(1), axis=0)
        shape = w.node("Concat", batch, w.ints(size), axis=0)
        zero = require().numpy_helper.from_array(np.zeros(1, self.e.dtype))
        return [w.node("ConstantOfShape", shape, value=zero)] * directions

    def _parameter(self, name: str, suffix: str, turned: bool = False) -> str:
        """In the outer graph, where the body sees it."""
        value = self.state[f"{name}{self.end}{suffix}"]
        return self.w.constant(value.T if turned else value, f"{self.label}.{name}{suffix}")

    def _direction(self, d: _Direction, starts: list[str]) -> list[str]:
        """Final states [B, ..] and the output [T, B, P]."""
        w, o = self.w, self.o
        gates = w.node("MatMul", self.x, self._parameter("weight_ih", d.suffix, turned=True))
        if o.bias:
            for name in ("bias_ih", "bias_hh"):
                gates = w.node("Add", gates, self._parameter(name, d.suffix))
        *final, y = w.node(
            "Scan",
            *starts,
            *(self._turned(v, d) for v in (gates, self.e._counted(self.x))),
            outputs=len(starts) + 1,
            name=f"{self.label}{d.suffix}",
            body=self._body(d.suffix, len(starts)),
            num_scan_inputs=2,
        )
        return [*final, self._turned(y, d)]

    def _turned(self, value: str, d: _Direction) -> str:
        """From last to first, if the direction is so: onnx's evaluator knows no backward Scan."""
        if not d.backward:
            return value
        ends = self.w.ints(-1), self.w.ints(np.iinfo(np.int64).min)
        return str(self.w.node("Slice", value, *ends, self.w.ints(0), self.w.ints(-1)))

    def _body(self, suffix: str, count: int) -> Proto:
        """One step: states, products with x [B, G*H] and the step's number, to new states and the output."""
        b = _Writer(self.w.opset, f"{self.label}{suffix}.")
        old = [b.name("state") for _ in range(count)]
        gates, step = b.name("gates"), b.name("step")
        recurrent = b.node("MatMul", old[0], self._parameter("weight_hh", suffix, turned=True))
        added = b.node("Add", gates, recurrent)
        new = self._cell(b, suffix, added, old)
        y = b.node("Identity", new[0])
        if self.e.lengths:
            valid = self.e._valid(b, step, self.e.lengths)
            y = b.node("Where", valid, y, self.e._number(b, 0))
            new = [b.node("Where", valid, n, v) for n, v in zip(new, old, strict=True)]
        dtype, sizes = self.e.dtype, self.o.state_sizes
        wide = _check.CELLS[self.o.cell].gates * self.o.hidden_size
        states = [b.port(name, dtype, ["batch", size]) for name, size in zip(old, sizes, strict=True)]
        inputs = [*states, b.port(gates, dtype, ["batch", wide]), b.port(step, np.int64, [])]
        finals = [b.port(name, dtype, ["batch", size]) for name, size in zip(new, sizes, strict=True)]
        outputs = [*finals, b.port(y, dtype, ["batch", sizes[0]])]
        return require().helper.make_graph(b.nodes, "step", inputs, outputs, b.initializers)

    def _cell(self, b: _Writer, suffix: str, gates: str, old: list[str]) -> list[str]:
        """The new states."""
        count = _check.CELLS[self.o.cell].gates
        sizes = b.ints(*[self.o.hidden_size] * count)
        parts = b.node("Split", gates, sizes, axis=-1, outputs=count)
        if self.o.cell == "lstm":
            return self._lstm(b, suffix, parts, old)
        act = _specs(self.o)
        g, n = (self._act(b, part, a) for part, a in zip(parts, act, strict=True))
        kept = b.node("Mul", self._coupled(b, g), old[0])
        return [b.node("Add", kept, b.node("Mul", g, n))]

    def _lstm(self, b: _Writer, suffix: str, parts: list[str], old: list[str]) -> list[str]:
        o, (gate, candidate, output), c = self.o, _specs(self.o), old[1]
        peepholes: list[str] = []
        if o.peepholes:
            whole = self._parameter("weight_peephole", suffix)
            rows = b.node("Split", whole, b.ints(1, 1, 1), axis=0, outputs=3)
            peepholes = [b.node("Squeeze", row, b.ints(0)) for row in rows]

        def seen(k: int, part: str, cell: str) -> str:
            return b.node("Add", part, b.node("Mul", peepholes[k], cell)) if peepholes else part

        i = self._act(b, seen(0, parts[0], c), gate)
        g = self._act(b, parts[2], candidate)
        if o.forget_gate:
            f = self._act(b, seen(1, parts[1], c), gate) if not o.coupled_gates else self._coupled(b, i)
            c = b.node("Mul", f, c)
        c = b.node("Add", c, b.node("Mul", i, g))
        h = b.node("Mul", self._act(b, seen(2, parts[3], c), gate), self.e._activated(b, c, output))
        if o.proj_size:
            h = b.node("MatMul", h, self._parameter("weight_hr", suffix, turned=True))
        return [h, c]

    def _coupled(self, b: _Writer, i: str) -> str:
        """f = 1 - i"""
        return str(b.node("Sub", self.e._number(b, 1), i))

    def _act(self, b: _Writer, x: str, spec: _check.Activation) -> str:
        """An activation of a clamped argument."""
        if self.o.clip is not None:
            x = b.node("Clip", x, *(self.e._number(b, v) for v in (-self.o.clip, self.o.clip)))
        return self.e._activated(b, x, spec)
