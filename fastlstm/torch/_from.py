"""`from_torch`: a module of PyTorch, or a .pt file, as a fastlstm object that needs no PyTorch.

A model's forward is followed by torch.fx. It must be a chain: each part reads the output of the one before.
"""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import rnn as packing

import fastlstm

from .. import _check, _files, modules
from .._files import Entry, Found
from . import _leaves, _to
from ._leaves import Unsupported

__all__ = ["found", "from_torch"]


def from_torch(module: Any, **options: Any) -> Any:
    """A fastlstm object that computes what a module of PyTorch does, with copies of its parameters.

    module: torch.nn.LSTM, GRU, RNN (those of `fastlstm.torch` too) give a layer, LSTMCell, GRUCell and
            RNNCell a layer of one step; Embedding, Linear, Dropout, LayerNorm over the last axis and
            activations their namesakes; a model of such parts a `fastlstm.Sequential`, which returns
            `output, state`.
        A model is a torch.nn.Sequential (a recurrent module's output goes on) or any module whose forward
            torch.fx can follow, each part reading the output of the one before: also functions such as
            torch.relu, `pack_padded_sequence` (call the result with `lengths=`), and a layer's final state or
            last step (h_n[-1], output[:, -1]), which become a `LastStep`. Beyond a sequence's length the
            output is zero, where PyTorch has what its later parts make of padding.
        A path: a state dict in a .pt file, read with torch.load(weights_only=True), whose names are those of
            one recurrent layer or cell, perhaps after a common prefix, perhaps inside a checkpoint under
            "state_dict", "model_state_dict", "model_state", "model" or "net"; or one that `fastlstm convert`
            wrote.
    options: with a path, the layer's options that a state dict does not tell, as in `fastlstm.load`:
        nonlinearity (must be given for an RNN), batch_first, dropout, dtype.

    Everything is converted as it is in eval mode. float16 and bfloat16 are widened to float32.

    Raises ValueError naming the part that fastlstm has nothing for; TypeError for what is no module or path;
    OSError if a file cannot be read.
    """
    if isinstance(module, (str, os.PathLike)):
        return _model_of(os.fspath(module), options)[0]
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module must be a torch.nn.Module or the path of a .pt file, got {type(module).__name__}"
        )
    if options:
        raise TypeError(f"{', '.join(options)}: only a .pt file leaves options open, a module tells its own")
    if type(module) in _leaves.LEAVES:
        made = _leaves.leaf("the module", module)
        if made is None:
            raise Unsupported(f"the module is a {type(module).__name__}: nothing is left of it")
        return made
    if type(module) is _to.Sequential:
        return fastlstm.Sequential(*_parts_of_own(module))
    chain = _Chain(module)
    parts = [made for name, part in chain.parts if (made := _converted(name, part)) is not None]
    if not parts:
        raise Unsupported(f"{type(module).__name__} has no part that fastlstm has a module for")
    return fastlstm.Sequential(*parts)


def _converted(name: str, part: Any) -> Any:
    return _leaves.leaf(name, part) if isinstance(part, nn.Module) else part


def _parts_of_own(module: nn.Module) -> list[Any]:
    """Of what `to_torch` made."""
    return [
        fastlstm.LastStep() if isinstance(part, _to.LastStep) else _leaves.leaf(name, part)
        for name, part in module.named_children()
    ]


# --- following a forward ------------------------------------------------------------------------------------


class _Value(NamedTuple):
    """What a node of the graph stands for."""

    kind: str  # see `_Chain`
    at: int = -1  # how many parts of the chain are behind it
    layer: Any = None  # of a recurrent module's results: that module
    row: int = 0  # of h_n
    batch_first: bool = False  # of what is packed


_SAME = {"contiguous", "detach", "clone"}  # methods that change no number
_FUNCTIONS = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.tanh: "tanh",
    F.tanh: "tanh",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    F.softsign: "softsign",
    F.softmax: "softmax",
    torch.softmax: "softmax",
    F.log_softmax: "log_softmax",
    torch.log_softmax: "log_softmax",
}
_METHODS = {"relu", "tanh", "sigmoid", "softmax", "log_softmax"}
_SOFTMAXES = {nn.Softmax: "softmax", nn.LogSoftmax: "log_softmax"}
_SHAPES = {"squeeze", "flatten"}  # often the end of a classifier


class _Tracer(fx.Tracer):  # type: ignore[misc]
    """Stops at the modules that fastlstm knows, and at those of torch.nn."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=(packing.pack_padded_sequence, packing.pad_packed_sequence))
        self._autowrap_search.append(packing)  # also where they are called as attributes of their module

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        # A plain torch.nn.Sequential is followed too, for its children's names.
        known = type(module) in _leaves.LEAVES
        return known or bool(super().is_leaf_module(module, name))


class _Chain:
    """The parts of a model in order: `parts` holds (where, module) with fastlstm's or PyTorch's modules.

    Kinds of values: "chain" is what the chain has come to; "packed" the same as a `PackedSequence`;
    "results" a recurrent module's (output, states), "state" its states, "h" the h_n among them, "row" one row
    of that; "argument" another argument of the model, "size" numbers about a tensor, "zeros" a state.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parts: list[tuple[str, Any]] = []
        self._model = model
        self._kind = type(model).__name__
        self._used: set[int] = set()  # ids of modules and parameters
        self._is_integer = False  # the input was made so
        self._is_padded = False  # since `pad_packed_sequence`: PyTorch reads the padding, fastlstm does not
        if isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward:
            self._children("", model)
        else:
            self._follow()

    def _children(self, prefix: str, sequential: nn.Sequential) -> None:
        _leaves.plain(prefix or self._kind, sequential)
        for name, child in sequential.named_children():
            path = f"{prefix}{name}"
            if isinstance(child, nn.Sequential) and type(child).forward is nn.Sequential.forward:
                self._children(f"{path}.", child)
            else:
                self._add(path, child)
        if len(list(sequential.named_children())) != len(sequential):
            raise Unsupported(f"{prefix or self._kind}: a module stands in it twice")

    def _add(self, where: str, part: Any) -> None:
        if isinstance(part, nn.Module):
            for what, thing in (("the module", part), *part.named_parameters()):
                if id(thing) in self._used:
                    raise Unsupported(f"{where}: {what} is shared with another part: clone it first")
                self._used.add(id(thing))
        self.parts.append((where, part))

    def _follow(self) -> None:
        _leaves.plain(self._kind, self._model)
        try:
            with _eval_mode(self._model):
                self._graph = _Tracer().trace(self._model)
        except Exception as error:  # whatever the model's own code does with a placeholder
            raise Unsupported(f"{self._kind}.forward cannot be followed by torch.fx: {error}") from error
        self._values: dict[Any, _Value] = {}
        for node in self._graph.nodes:
            try:
                self._values[node] = getattr(self, f"_{node.op}")(node)
            except Unsupported:
                raise
            except Exception as error:  # of arguments that nobody foresaw
                raise self._cannot(node, f"is called in an unusual way ({error!r:.200})") from error
        if self._is_integer and not any(isinstance(part, nn.Embedding) for _, part in self.parts[:1]):
            raise Unsupported(f"{self._kind}: only what an Embedding reads may be made integer")

    # --- nodes of the graph ---------------------------------------------------------------------------------

    def _placeholder(self, node: Any) -> _Value:
        first = not self._values
        return _Value("chain", 0) if first else _Value("argument")

    def _get_attr(self, node: Any) -> _Value:
        raise self._cannot(node, f"reads the attribute {node.target}")

    def _output(self, node: Any) -> _Value:
        result = node.args[0]
        if isinstance(result, (tuple, list)) and len(result) == 2 and self._is_final_state(result[1]):
            result = result[0]  # (output, state), as fastlstm gives them
        value = self._value(result)
        if value.kind == "row":
            value = self._chain(node, result)
        if value.kind not in ("chain", "results") or value.at != len(self.parts):
            raise self._cannot(node, "does not return the end of a chain of supported parts")
        return value

    def _is_final_state(self, thing: Any) -> bool:
        """Whether it is the whole final state of the one recurrent module."""
        if isinstance(thing, (tuple, list)):
            found = [self._value(v) for v in thing]
            whole = [v.kind for v in found] == ["h", "c"]
        else:
            found = [self._value(thing)]
            whole = found[0].kind == ("state" if isinstance(found[0].layer, nn.LSTM) else "h")
        recurrent = [part for _, part in self.parts if type(part) in _leaves.RECURRENT]
        return whole and all([v.layer] == recurrent for v in found)

    def _call_module(self, node: Any) -> _Value:
        module = self._model.get_submodule(node.target)
        if type(module) not in _leaves.LEAVES:
            raise Unsupported(_leaves.no_leaf(node.target, module))
        given = self._arguments(node, input=None, hx=None)
        x = self._chain(node, given["input"])
        if given["hx"] is not None and not self._is_state(given["hx"]):
            raise self._cannot(node, "starts from a computed state")
        if isinstance(module, nn.RNNCellBase):
            raise self._cannot(node, "is a cell in a loop", "use the recurrent module of a whole sequence")
        self._add(node.target, self._two_axes(node.target, module))
        recurrent = type(module) in _leaves.RECURRENT
        if x.kind == "packed" and not recurrent:
            raise self._cannot(node, "reads a PackedSequence")
        if not recurrent:
            keeps = isinstance(module, (nn.Dropout, nn.Identity))
            return _Value("chain", len(self.parts), x.layer if keeps else None)
        if x.kind == "packed" and x.batch_first != module.batch_first:
            raise self._cannot(
                node,
                f"was made with batch_first={module.batch_first} and reads what was packed with the other",
            )
        if self._is_padded:
            raise self._cannot(node, "reads the padding of short sequences", "pack it again")
        kind = "packed results" if x.kind == "packed" else "results"
        return _Value(kind, len(self.parts), module, batch_first=bool(module.batch_first))

    def _call_method(self, node: Any) -> _Value:
        value, name = self._value(node.args[0]), node.target
        if name in ("size", "dim"):
            return _Value("size")
        if name == "new_zeros" or name in ("to", "cpu") and value.kind == "zeros":
            return _Value("zeros")
        if name in _SAME and value.kind in ("chain", "row"):
            return value
        if name in ("cpu", "to") and value.kind == "argument" and self._is_place(node.args[1:], node.kwargs):
            return value
        if name in ("int", "long") and value.kind == "chain" and value.at == 0:
            self._is_integer = True
            return value
        if name == "squeeze" and value.kind == "h" and _rows(value.layer) == 1:
            if self._arguments(node, input=None, dim=None)["dim"] == 0:
                return value._replace(kind="row", row=0)
        if name in _METHODS:
            return self._activation(node, name)
        raise self._cannot(node, f"calls Tensor.{name}", _left_to_the_caller(name))

    def _is_place(self, args: Any, kwargs: Any) -> bool:
        """Whether it names the CPU or the device of another value."""
        return not kwargs and all(a == "cpu" or self._value(a).kind == "size" for a in args)

    def _call_function(self, node: Any) -> _Value:
        function = node.target
        if function is operator.getitem:
            return self._item(node)
        if function is getattr and node.args[1] in ("shape", "device", "dtype"):
            return _Value("size")
        if function in (torch.zeros, torch.zeros_like):
            return _Value("zeros")
        if node.all_input_nodes and all(self._values[n].kind == "size" for n in node.all_input_nodes):
            return _Value("size")
        if function is packing.pack_padded_sequence:
            return self._packed(node)
        if function is packing.pad_packed_sequence:
            return self._padded(node)
        if function is torch.cat:
            return self._cat(node)
        if function is F.dropout:
            return self._dropout(node)
        if function in _FUNCTIONS:
            return self._activation(node, _FUNCTIONS[function])
        made = self._other_activation(node)
        if made is not None:
            self._add(str(node), made)
            return _Value("chain", len(self.parts))
        name = getattr(function, "__name__", str(function))
        raise self._cannot(node, f"calls {name}", _left_to_the_caller(name))

    def _dropout(self, node: Any) -> _Value:
        given = self._arguments(node, input=None, p=0.5, training=True, inplace=False)
        x = self._chain(node, given["input"])
        if given["training"] is not False:
            raise self._cannot(node, "drops out in eval mode too")
        self._add(str(node), fastlstm.Dropout(float(given["p"])))
        return _Value("chain", len(self.parts), x.layer)

    def _packed(self, node: Any) -> _Value:
        given = self._arguments(node, input=None, lengths=None, batch_first=False, enforce_sorted=True)
        value = self._chain(node, given["input"])
        if self._value(given["lengths"]).kind != "argument":
            raise self._cannot(node, "packs by lengths that are no argument of the model")
        if any(getattr(part, "bidirectional", False) and not self._is_padded for _, part in self.parts):
            raise self._cannot(node, "packs what two directions have read with its padding", "pack before")
        self._is_padded = False
        return value._replace(kind="packed", batch_first=bool(given["batch_first"]))

    def _padded(self, node: Any) -> _Value:
        given = self._arguments(node, sequence=None, batch_first=False, padding_value=0.0, total_length=None)
        value = self._chain(node, given["sequence"])
        if value.kind != "packed" or value.batch_first != bool(given["batch_first"]):
            raise self._cannot(node, "unpacks with another batch_first than was packed")
        if given["padding_value"] != 0:
            raise self._cannot(node, "pads with something else than 0")
        total = given["total_length"]
        if total is not None and self._value(total).kind != "size":
            raise self._cannot(node, f"pads to total_length={total}")
        self._is_padded = True
        return value._replace(kind="padded")

    def _activation(self, node: Any, name: str) -> _Value:
        if not name.endswith("softmax"):
            self._chain(node, self._arguments(node, input=None, inplace=False)["input"])
        else:
            level = {"_stacklevel": 3} if node.target in (F.softmax, F.log_softmax) else {}
            given = self._arguments(node, input=None, dim=None, **level, dtype=None)
            self._chain(node, given["input"])
            if given["dtype"] not in (None, getattr(torch, _leaves.dtype_of(self._model))):
                raise self._cannot(node, f"changes to dtype={given['dtype']}")
            self._need(node, _leaves.last_axis, -1 if self._is_matrix(given["dim"]) else given["dim"])
        self._add(str(node), fastlstm.Activation(name))
        return _Value("chain", len(self.parts))

    def _is_matrix(self, dim: Any) -> bool:
        """Whether axis 1 is asked for and is the last: after a last step, which gives [B, n]."""
        return dim == 1 and any(isinstance(part, fastlstm.LastStep) for _, part in self.parts)

    def _two_axes(self, where: str, module: Any) -> Any:
        """A softmax over axis 1 of two as one over the last; else the module itself."""
        if type(module) not in _SOFTMAXES or not self._is_matrix(module.dim):
            return module
        _leaves.plain(where, module)
        return fastlstm.Activation(_SOFTMAXES[type(module)])

    def _other_activation(self, node: Any) -> Any:
        """Those with parameters, given as in torch.nn.functional."""

        def given(**known: Any) -> list[float]:
            found = self._arguments(node, input=None, **known, inplace=False)
            self._chain(node, found["input"])
            return [float(found[name]) for name in known]

        if node.target is F.leaky_relu:
            return fastlstm.Activation(("leaky_relu", *given(negative_slope=0.01)))
        if node.target is F.elu:
            return fastlstm.Activation(("elu", *given(alpha=1.0)))
        if node.target is F.softplus:
            return self._need(node, _leaves.softplus, *given(beta=1.0, threshold=20.0))
        if node.target is F.hardsigmoid:
            given()
            return fastlstm.Activation(_leaves.HARD_SIGMOID)
        return None

    # --- what is picked out of results ----------------------------------------------------------------------

    def _item(self, node: Any) -> _Value:
        value, index = self._value(node.args[0]), node.args[1]
        kind = value.kind
        if kind == "size":
            return value
        if kind in ("results", "packed results") and index == 0:
            return value._replace(kind="chain" if kind == "results" else "packed")
        if kind in ("results", "packed results") and index == 1:
            return value._replace(kind="state" if isinstance(value.layer, nn.LSTM) else "h")
        if kind == "padded" and index in (0, 1):
            return value._replace(kind="chain") if index == 0 else _Value("size")
        if kind == "state" and index == 0:
            return value._replace(kind="h")
        if kind == "state" and index == 1:
            return value._replace(kind="c")
        if kind == "h" and _is_row(index):
            row = index[0] if isinstance(index, tuple) else index
            return self._row(value, row if row >= 0 else row + _rows(value.layer))
        if kind == "chain" and self._is_padded:
            raise self._cannot(node, f"indexes a padded output with {index!r}", "take h_n[-1]")
        if kind == "chain" and value.layer is not None and self._is_last_step(value.layer, index):
            return self._last_step(node, value)
        raise self._cannot(node, f"indexes {kind if kind != 'chain' else 'the output'} with {index!r}")

    def _row(self, value: _Value, row: int) -> _Value:
        """A row of h_n: of a single direction's last layer it is a LastStep, of two one half of it."""
        return value._replace(kind="row", row=row)

    def _is_last_step(self, layer: Any, index: Any) -> bool:
        """Whether it picks the last step of a single direction's output."""
        everything = slice(None, None, None)
        wanted = [everything, -1, everything] if layer.batch_first else [-1, everything, everything]
        given = list(index) if isinstance(index, tuple) else [index]
        least = 2 if layer.batch_first else 1
        return not layer.bidirectional and least <= len(given) <= 3 and given == wanted[: len(given)]

    def _cat(self, node: Any) -> _Value:
        """torch.cat((h_n[-2], h_n[-1]), dim=1)"""
        given = self._arguments(node, tensors=(), dim=0)
        rows, dim = [self._value(v) for v in given["tensors"]], given["dim"]
        if (
            len(rows) == 2
            and all(r.kind == "row" and r.layer is rows[0].layer for r in rows)
            and rows[0].layer.bidirectional
            and [r.row for r in rows] == [_rows(rows[0].layer) - 2, _rows(rows[0].layer) - 1]
            and dim in (1, -1)
        ):
            return self._last_step(node, rows[0])
        raise self._cannot(node, "calls cat of something else than a last layer's two final states")

    def _last_step(self, node: Any, value: _Value) -> _Value:
        if value.at != len(self.parts):
            raise self._cannot(node, "goes back to an earlier output")
        after = len(self.parts)  # directly after the layer: a Dropout between them may as well follow
        while isinstance(self.parts[after - 1][1], (nn.Dropout, nn.Identity, fastlstm.Dropout)):
            after -= 1
        self.parts.insert(after, (str(node), fastlstm.LastStep()))
        return _Value("chain", len(self.parts))

    # --- helpers --------------------------------------------------------------------------------------------

    def _value(self, thing: Any) -> _Value:
        return self._values[thing] if isinstance(thing, fx.Node) else _Value("constant")

    def _chain(self, node: Any, thing: Any) -> _Value:
        """The value, which must be what the chain has come to."""
        value = self._value(thing)
        if value.kind == "row" and value.row == _rows(value.layer) - 1 and not value.layer.bidirectional:
            value = self._last_step(node, value)
        if value.kind not in ("chain", "packed"):
            what = (
                "a recurrent module's whole result: take output, state = .."
                if "results" in value.kind
                else value.kind
            )
            raise self._cannot(node, f"reads {what}")
        if value.at != len(self.parts):
            raise self._cannot(node, "reads an earlier output: the model branches")
        return value

    def _is_state(self, thing: Any) -> bool:
        """Whether it is an argument of the model, to be handed on as it is, or zeros."""
        if isinstance(thing, (tuple, list)):
            return all(self._value(v).kind == "zeros" for v in thing)
        return self._value(thing).kind in ("argument", "zeros")

    def _arguments(self, node: Any, **known: Any) -> dict[str, Any]:
        """Of a call, by place or by name. known: the parameters in order with their defaults; what is not
        among them is refused."""
        if len(node.args) > len(known):
            raise self._cannot(node, f"is called with {len(node.args)} arguments")
        for name, value in node.kwargs.items():
            if name not in known:
                raise self._cannot(node, f"is called with {name}={value}")
        return {**known, **dict(zip(known, node.args, strict=False)), **node.kwargs}

    def _need(self, node: Any, check: Any, *args: Any) -> Any:
        """What a function of `_leaves` gives; its refusal names the node."""
        try:
            return check(*args)
        except Unsupported as error:
            raise self._cannot(node, str(error)) from None

    def _cannot(self, node: Any, what: str, instead: str = "") -> Unsupported:
        where = (
            f"{node.target} ({type(self._model.get_submodule(node.target)).__name__})"
            if (node.op == "call_module")
            else f"{node}"
        )
        hint = f": {instead}" if instead else ""
        return Unsupported(f"{self._kind}: {where} {what}, which fastlstm has nothing for{hint}")


def _left_to_the_caller(name: str) -> str:
    return f"leave the {name} to the caller" if name in _SHAPES else ""


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Each module's mode comes back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _rows(layer: Any) -> int:
    """Of its states."""
    return int(layer.num_layers) * (2 if layer.bidirectional else 1)


def _is_row(index: Any) -> bool:
    if isinstance(index, tuple):
        everything = slice(None, None, None)
        return bool(index) and isinstance(index[0], int) and all(i == everything for i in index[1:])
    return isinstance(index, int)


# --- files --------------------------------------------------------------------------------------------------


def found(path: str, options: Mapping[str, Any]) -> Found:
    """For `fastlstm convert` and `inspect`."""
    model, origins, own = _model_of(path, options)
    return Found("PyTorch state dict" + (" that fastlstm wrote" if own else ""), model, origins)


def _model_of(path: str, options: Mapping[str, Any]) -> tuple[Any, dict[str, str], bool]:
    """The layer or model in a .pt file, its parameters' names there, and whether fastlstm wrote the file."""
    state = _state(path)
    text = _description(path, state)
    prefix = "" if text is not None else _prefix(state)
    origins = {name[len(prefix) :]: name for name in state}
    if origins.keys() <= _OF_A_CELL:
        origins = {f"{name}_l0": origin for name, origin in origins.items()}
    arrays = {name: _leaves.array(f"{path}: {origin}", state[origin]) for name, origin in origins.items()}
    kinds = {"float64": "F64", "float32": "F32"}
    entries = {n: Entry(kinds[str(a.dtype)], a.shape, 0, 0) for n, a in arrays.items()}
    checked = _files.options_of(path, entries, text, options, OWN if text is None else {})
    if getattr(checked, "cell", "lstm") == "gated_rnn":
        raise ValueError(f"{path}: PyTorch has no gated_rnn layer")
    model = modules._built(checked, _check.parameters(arrays, checked)[0])
    return model, origins, text is not None


_OF_A_CELL = {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}
_NESTED = ("state_dict", "model_state_dict", "model_state", "model", "net")  # in checkpoints
OWN = {"gru": {"reset_after": True}}  # what a layer is that comes from PyTorch


def _prefix(names: Iterable[str]) -> str:
    """What the names of all parameters begin with, up to a dot."""
    modules_of = [name.rpartition(".")[0] + "." for name in names]
    common = os.path.commonprefix(modules_of).rpartition(".")[0]
    return "" if "." in modules_of or not common else f"{common}."


def _description(path: str, state: Mapping[str, Tensor]) -> str | None:
    """What `written` left of the options."""
    metadata = getattr(state, "_metadata", None)
    own = metadata.get(_to.OPTIONS) if isinstance(metadata, Mapping) else None
    if own is None:
        return None
    text = own.get("options") if isinstance(own, Mapping) else None
    if not isinstance(text, str):
        raise ValueError(f"{path}: its metadata {_to.OPTIONS} hold no description")
    return text


def _state(path: str) -> Mapping[str, Tensor]:
    """ValueError for what is no state dict; nothing in the file is run."""
    import pickle

    with open(path, "rb") as file:
        try:
            value = torch.load(file, map_location="cpu", weights_only=True)
        except (
            pickle.UnpicklingError,
            RuntimeError,
            EOFError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ) as error:
            raise ValueError(
                f"{path} is no state dict that torch.load(weights_only=True) reads: it is damaged, or a "
                "pickled model, which would have to be run: load that in Python for from_torch(model), or "
                "save its state_dict()"
            ) from error
    for name in _NESTED:
        if isinstance(value, Mapping) and isinstance(value.get(name), Mapping):
            value = value[name]
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{path} holds a {type(value).__name__}, wanted a state dict")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(
                f"{path}: {name!s:.200} is a {type(tensor).__name__}, wanted a tensor under a name"
            )
    return value
