"""One adapter per engine. Each turns a Problem into Calls: functions that do its work once, and nothing else.

Every engine gets the same weights, x, initial state and number of threads. Where an engine has several
sensible ways of running, its adapter offers all, and the fastest on the row counts (the JSON has them all).
An engine without calls for a row sits it out, as those do that only infer where training is measured.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np

import fastlstm

from .. import reference
from .grid import LAYERS, SCALING, Array, Problem, flat, problem, trained

NUMPY_TRAINS = 1e9  # flops of a step of training, at most: a larger one would take most of the row's time


def _nothing() -> None:
    pass


class Call(NamedTuple):
    run: Callable[[], Any]  # the work that is timed
    read: Callable[[Any], tuple[Array, ...]]  # what run returned -> what Problem.expected holds
    variant: str
    enter: Callable[[], object] = _nothing  # once before each batch of timed runs


def _nested(state: tuple[Any, ...]) -> Any:
    """(h,) -> h, (h, c) as it is: how layers take states"""
    return state if len(state) > 1 else state[0]


Beside: TypeAlias = list[tuple[str, Problem, list[Call]]]  # more columns of a row


def _train(layer: Any, p: Problem) -> tuple[Any, Any]:
    """A step of training, but for the optimizer: forward, then all gradients."""
    tape = layer.record(p.x, _nested(p.state), lengths=p.lengths)
    return tape, tape.backward(p.d_output)


def _read_trained(result: tuple[Any, Any]) -> tuple[Array, ...]:
    return trained(*result)


class Peer:
    """What an engine has if it does not say otherwise."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, threads: int) -> None:
        raise NotImplementedError

    def calls(self, p: Problem) -> list[Call]:
        raise NotImplementedError

    def beside(self, p: Problem) -> Beside:
        return []


class FastLSTM(Peer):
    """Stream.step for one step, else the layer; training: record and backward. And what belongs beside."""

    name: ClassVar[str] = "fastlstm"

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def _layer(self, p: Problem) -> Any:
        layer = getattr(fastlstm, LAYERS[p.row.cell])(p.row.inputs, p.row.units)
        layer.load_state_dict(p.weights)
        return layer

    def _plain(self, p: Problem, threads: int) -> Call:
        options = {} if p.lengths is None else {"lengths": p.lengths}
        run = partial(self._layer(p), p.x, _nested(p.state), **options)
        return Call(run, flat, "layer", partial(fastlstm.set_num_threads, threads))

    def calls(self, p: Problem) -> list[Call]:
        if p.row.train:
            threads = partial(fastlstm.set_num_threads, self.threads)
            return [Call(partial(_train, self._layer(p), p), _read_trained, "record, backward", threads)]
        if p.row.steps > 1:
            return [self._plain(p, self.threads)]
        stream = self._layer(p).stream(p.row.batch, _nested(p.state))
        run = partial(stream.step, p.x[0], out=np.empty((p.row.batch, p.row.units), np.float32))

        def read(y: Array) -> tuple[Array, ...]:
            return flat((y[None], stream.state))

        return [Call(run, read, "Stream.step", partial(fastlstm.set_num_threads, self.threads))]

    def beside(self, p: Problem) -> Beside:
        """More engines of this row: the plain call of one step, the dense batch, one thread of two."""
        if p.row.train:
            return []
        if p.row.steps == 1:
            return [("fastlstm call", p, [self._plain(p, self.threads)])]
        if p.row.ragged:
            dense = problem(p.row.dense)
            return [("fastlstm dense", dense, [self._plain(dense, self.threads)])]
        if self.threads > 1 and p.row.name in SCALING:
            return [("fastlstm 1 thread", p, [self._plain(p, 1)])]
        return []


class NumPy(Peer):
    """fastlstm.reference in float32: a loop over steps, products by NumPy's BLAS. Trains on small rows."""

    name: ClassVar[str] = "numpy"

    def __init__(self, threads: int) -> None:
        pass  # NumPy's BLAS takes its threads from the environment

    def calls(self, p: Problem) -> list[Call]:
        layer = getattr(reference, LAYERS[p.row.cell])(p.row.inputs, p.row.units, dtype="float32")
        layer.load_state_dict(p.weights)
        if p.row.train:
            small = p.row.flops < NUMPY_TRAINS
            return [Call(partial(_train, layer, p), _read_trained, "reference")] if small else []
        return [Call(partial(layer, p.x, _nested(p.state), lengths=p.lengths), flat, "reference")]


class Torch(Peer):
    """torch.nn in inference_mode, with or without oneDNN; one step: its Cell too; ragged: packed. Training:
    zero_grad(set_to_none=True), forward, backward; ragged: packed, and padded in a column of its own."""

    name: ClassVar[str] = "torch"
    needs: ClassVar[tuple[str, ...]] = ("torch",)

    def __init__(self, threads: int) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.torch.set_num_threads(threads)
        self.mode, self.inferring = self.torch.inference_mode(), False

    def _enter(self, infer: bool, onednn: bool = True) -> None:
        """Without a context manager's share in what is timed."""
        self.torch.backends.mkldnn.set_flags(onednn)
        if infer and not self.inferring:
            self.mode.__enter__()
        elif self.inferring and not infer:
            self.mode.__exit__(None, None, None)
        self.inferring = infer

    def _layer(self, p: Problem) -> Any:
        layer = getattr(self.torch.nn, LAYERS[p.row.cell])(p.row.inputs, p.row.units)
        layer.load_state_dict({name: self.torch.from_numpy(w) for name, w in p.weights.items()})
        return layer

    def _training(self, p: Problem, padded: bool) -> list[Call]:
        """Padded: the whole rectangle, whose last states are none of the sequences' own."""
        self._enter(infer=False)
        torch, layer, rnn = self.torch, self._layer(p), self.torch.nn.utils.rnn
        x, *states = (torch.from_numpy(v.copy()).requires_grad_() for v in (p.x, *p.state))
        state, d_output = _nested(tuple(states)), torch.from_numpy(p.d_output)
        lengths = None if p.lengths is None or padded else torch.from_numpy(p.lengths)

        def run() -> Any:
            layer.zero_grad(set_to_none=True)
            for leaf in (x, *states):
                leaf.grad = None
            if lengths is None:
                y, last = layer(x, state)
            else:
                packed, last = layer(rnn.pack_padded_sequence(x, lengths, enforce_sorted=False), state)
                y = rnn.pad_packed_sequence(packed, total_length=p.row.steps)[0]
            y.backward(d_output)
            return y, last

        def read(result: Any) -> tuple[Array, ...]:
            y, *last = (t.detach().numpy().copy() for t in flat(result))
            if padded and p.lengths is not None:
                y[np.arange(p.row.steps)[:, None] >= p.lengths] = 0
                last = []
            gradients = [t.grad.numpy().copy() for t in (x, *states, *layer.parameters())]
            return (y, *last, *gradients)

        variants = ((True, "oneDNN"), (False, "no oneDNN"))
        kind = f"nn.{LAYERS[p.row.cell]}"
        return [Call(run, read, f"{kind}, {name}", partial(self._enter, False, on)) for on, name in variants]

    def beside(self, p: Problem) -> Beside:
        """Training on the padded batch, as most people do: the same gradients, as d_output is 0 there."""
        if not (p.row.train and p.row.ragged):
            return []
        states = len(p.state)
        q = replace(p, expected=(p.expected[0], *p.expected[1 + states :]))
        return [("torch padded", q, self._training(q, padded=True))]

    def calls(self, p: Problem) -> list[Call]:
        if p.row.train:
            return self._training(p, padded=False)
        self._enter(infer=True)
        torch, kind = self.torch, LAYERS[p.row.cell]
        layer = self._layer(p)
        x, states = torch.from_numpy(p.x), [torch.from_numpy(s) for s in p.state]
        state = _nested(tuple(states))

        def read(result: Any) -> tuple[Array, ...]:
            return tuple(np.array(t) for t in flat(result))

        if p.lengths is not None:
            rnn, lengths = torch.nn.utils.rnn, torch.from_numpy(p.lengths)

            def run() -> Any:
                y, last = layer(rnn.pack_padded_sequence(x, lengths, enforce_sorted=False), state)
                return rnn.pad_packed_sequence(y, total_length=p.row.steps)[0], last

        else:
            run = partial(layer, x, state)
        calls = []
        for on, variant in ((True, "oneDNN"), (False, "no oneDNN")):
            calls.append(Call(run, read, f"nn.{kind}, {variant}", partial(self._enter, True, on)))
        if p.row.steps == 1:
            cell = getattr(torch.nn, kind + "Cell")(p.row.inputs, p.row.units)
            cell.load_state_dict({name.removesuffix("_l0"): w for name, w in layer.state_dict().items()})

            def read_cell(last: Any) -> tuple[Array, ...]:
                last = last if isinstance(last, tuple) else (last,)
                return tuple(np.array(t)[None] for t in (last[0], *last))

            run = partial(cell, x[0], _nested(tuple(s[0] for s in states)))
            calls.append(Call(run, read_cell, f"nn.{kind}Cell", partial(self._enter, True)))
        return calls


def _onnx_model(p: Problem) -> bytes:
    """An ONNX model of one node: constant weights, x and states as inputs. One step has no Y, only Y_h."""
    onnx: Any = importlib.import_module("onnx")
    helper, cell = onnx.helper, p.row.cell
    hidden = p.row.units
    order = {"lstm": [0, 3, 1, 2], "gru": [1, 0, 2], "rnn": [0]}[cell]  # ifgo, rzn to ONNX's iofc, zrh
    w = {k: np.concatenate([np.split(v, len(order))[i] for i in order])[None] for k, v in p.weights.items()}
    bias = np.concatenate([w["bias_ih_l0"], w["bias_hh_l0"]], 1)
    constants = {"W": w["weight_ih_l0"], "R": w["weight_hh_l0"], "B": bias}
    states, outputs = ["h", "c"][: len(p.state)], ["hn", "cn"][: len(p.state)]
    options = {"linear_before_reset": 1} if cell == "gru" else {}
    node = helper.make_node(
        LAYERS[cell], ["x", "W", "R", "B", "" if p.lengths is None else "lengths", *states],
        ["" if p.row.steps == 1 else "y", *outputs], hidden_size=hidden, **options,
    )  # fmt: skip

    def declare(names: list[str], shape: tuple[int, ...]) -> list[Any]:
        return [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in names]

    inputs = declare(["x"], p.x.shape) + declare(states, p.state[0].shape)
    if p.lengths is not None:
        inputs.append(helper.make_tensor_value_info("lengths", onnx.TensorProto.INT32, p.lengths.shape))
    y = [] if p.row.steps == 1 else declare(["y"], (p.row.steps, 1, p.row.batch, hidden))
    graph = helper.make_graph(
        [node], "bench", inputs, y + declare(outputs, p.state[0].shape),
        [onnx.numpy_helper.from_array(v, name) for name, v in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def _onnx_feed(p: Problem) -> dict[str, Array]:
    feed = {"x": p.x, **dict(zip("hc", p.state, strict=False))}
    return feed if p.lengths is None else {**feed, "lengths": p.lengths.astype(np.int32)}


def _read_onnx(p: Problem, outputs: Any) -> tuple[Array, ...]:
    outputs = [np.array(o) for o in outputs]
    return (outputs[0], *outputs) if p.row.steps == 1 else (outputs[0][:, 0], *outputs[1:])


class OnnxRuntime(Peer):
    """run, or inputs and outputs bound once (IOBinding); the threads spin or not as they do by default."""

    name: ClassVar[str] = "onnxruntime"
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")

    def __init__(self, threads: int) -> None:
        self.ort: Any = importlib.import_module("onnxruntime")
        self.options = self.ort.SessionOptions()
        self.options.intra_op_num_threads, self.options.inter_op_num_threads = threads, 1

    def calls(self, p: Problem) -> list[Call]:
        if p.row.train:
            return []
        session = self.ort.InferenceSession(_onnx_model(p), self.options, providers=["CPUExecutionProvider"])
        feed, binding = _onnx_feed(p), session.io_binding()
        for name, value in feed.items():
            binding.bind_cpu_input(name, value)
        outputs = []
        for o in session.get_outputs():
            outputs.append(self.ort.OrtValue.ortvalue_from_shape_and_type(o.shape, np.float32, "cpu"))
            binding.bind_ortvalue_output(o.name, outputs[-1])

        def read_bound(_: None) -> tuple[Array, ...]:
            return _read_onnx(p, [o.numpy() for o in outputs])

        return [
            Call(partial(session.run, None, feed), partial(_read_onnx, p), "run"),
            Call(partial(session.run_with_iobinding, binding), read_bound, "IOBinding"),
        ]


class OpenVINO(Peer):
    """One infer request, latency hint, float32 precision; inputs are set once, as shared memory."""

    name: ClassVar[str] = "openvino"
    needs: ClassVar[tuple[str, ...]] = ("openvino", "onnx")

    def __init__(self, threads: int) -> None:
        self.ov: Any = importlib.import_module("openvino")
        self.core = self.ov.Core()
        self.options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        self.options["INFERENCE_NUM_THREADS"] = threads

    def calls(self, p: Problem) -> list[Call]:
        if p.row.train:
            return []
        compiled = self.core.compile_model(self.core.read_model(_onnx_model(p), b""), "CPU", self.options)
        request = compiled.create_infer_request()
        for name, value in _onnx_feed(p).items():
            request.set_tensor(name, self.ov.Tensor(value, shared_memory=True))

        def read(_: object) -> tuple[Array, ...]:
            return _read_onnx(p, [request.get_output_tensor(i).data for i in range(len(compiled.outputs))])

        return [Call(request.infer, read, "infer request")]


_ALL: tuple[type[Peer], ...] = (NumPy, Torch, OnnxRuntime, OpenVINO)
PEERS = {peer.name: peer for peer in _ALL}


def installed(name: str) -> bool:
    return all(importlib.util.find_spec(module) for module in PEERS[name].needs)


def versions() -> dict[str, str]:
    """Of every package that has part in a run and is installed here."""
    found = {"fastlstm": fastlstm.__version__}
    for name in ("numpy", "torch", "onnxruntime", "openvino", "onnx"):
        if importlib.util.find_spec(name):
            found[name] = importlib.metadata.version(name)
    return found
