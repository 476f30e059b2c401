"""One adapter per engine. Each turns a Problem into Calls: functions that do its work once, and nothing else.

Every engine gets the same weights, x, initial state and number of threads. Where an engine has several
sensible ways of running, its adapter offers all, and the fastest on the row counts (the JSON has them all).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np

import fastlstm

from .. import reference
from .grid import LAYERS, SCALING, Array, Problem, problem


def _nothing() -> None:
    pass


class Call(NamedTuple):
    run: Callable[[], Any]  # the work that is timed
    read: Callable[[Any], tuple[Array, ...]]  # what run returned -> output [T, B, H], h [1, B, H](, c)
    variant: str
    enter: Callable[[], object] = _nothing  # once before each batch of timed runs


def _flat(result: Any) -> tuple[Array, ...]:
    """(output, h) or (output, (h, c)) -> (output, h(, c))"""
    return (result[0], *(result[1] if isinstance(result[1], tuple) else (result[1],)))


def _nested(state: tuple[Any, ...]) -> Any:
    """(h,) -> h, (h, c) as it is: how layers take states"""
    return state if len(state) > 1 else state[0]


class FastLSTM:
    """Stream.step for a single step, else the layer; and what belongs beside it on some rows."""

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
        return Call(run, _flat, "layer", partial(fastlstm.set_num_threads, threads))

    def calls(self, p: Problem) -> list[Call]:
        if p.row.steps > 1:
            return [self._plain(p, self.threads)]
        stream = self._layer(p).stream(p.row.batch, _nested(p.state))
        run = partial(stream.step, p.x[0], out=np.empty((p.row.batch, p.row.units), np.float32))

        def read(y: Array) -> tuple[Array, ...]:
            return _flat((y[None], stream.state))

        return [Call(run, read, "Stream.step", partial(fastlstm.set_num_threads, self.threads))]

    def beside(self, p: Problem) -> list[tuple[str, Problem, list[Call]]]:
        """More engines of this row: the plain call of one step, the dense batch, one thread of two."""
        if p.row.steps == 1:
            return [("fastlstm call", p, [self._plain(p, self.threads)])]
        if p.row.ragged:
            dense = problem(p.row.dense)
            return [("fastlstm dense", dense, [self._plain(dense, self.threads)])]
        if self.threads > 1 and p.row.name in SCALING:
            return [("fastlstm 1 thread", p, [self._plain(p, 1)])]
        return []


class NumPy:
    """fastlstm.reference in float32: a loop over the steps, the products by NumPy's BLAS."""

    name: ClassVar[str] = "numpy"
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, threads: int) -> None:
        pass  # NumPy's BLAS takes its threads from the environment

    def calls(self, p: Problem) -> list[Call]:
        layer = getattr(reference, LAYERS[p.row.cell])(p.row.inputs, p.row.units, dtype="float32")
        layer.load_state_dict(p.weights)
        return [Call(partial(layer, p.x, _nested(p.state), lengths=p.lengths), _flat, "reference")]


class Torch:
    """torch.nn in inference_mode, with or without oneDNN; one step: its Cell too; ragged: packed."""

    name: ClassVar[str] = "torch"
    needs: ClassVar[tuple[str, ...]] = ("torch",)

    def __init__(self, threads: int) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.torch.set_num_threads(threads)
        self.mode = self.torch.inference_mode()
        self.mode.__enter__()  # for good: this process only infers

    def _onednn(self, on: bool) -> None:
        self.torch.backends.mkldnn.set_flags(on)

    def calls(self, p: Problem) -> list[Call]:
        torch, kind = self.torch, LAYERS[p.row.cell]
        layer = getattr(torch.nn, kind)(p.row.inputs, p.row.units)
        layer.load_state_dict({name: torch.from_numpy(w) for name, w in p.weights.items()})
        x, states = torch.from_numpy(p.x), [torch.from_numpy(s) for s in p.state]
        state = _nested(tuple(states))

        def read(result: Any) -> tuple[Array, ...]:
            return tuple(np.array(t) for t in _flat(result))

        if p.lengths is not None:
            rnn, lengths = torch.nn.utils.rnn, torch.from_numpy(p.lengths)

            def run() -> Any:
                y, last = layer(rnn.pack_padded_sequence(x, lengths, enforce_sorted=False), state)
                return rnn.pad_packed_sequence(y, total_length=p.row.steps)[0], last

        else:
            run = partial(layer, x, state)
        calls = []
        for on, variant in ((True, "oneDNN"), (False, "no oneDNN")):
            calls.append(Call(run, read, f"nn.{kind}, {variant}", partial(self._onednn, on)))
        if p.row.steps == 1:
            cell = getattr(torch.nn, kind + "Cell")(p.row.inputs, p.row.units)
            cell.load_state_dict({name.removesuffix("_l0"): w for name, w in layer.state_dict().items()})

            def read_cell(last: Any) -> tuple[Array, ...]:
                last = last if isinstance(last, tuple) else (last,)
                return tuple(np.array(t)[None] for t in (last[0], *last))

            run = partial(cell, x[0], _nested(tuple(s[0] for s in states)))
            calls.append(Call(run, read_cell, f"nn.{kind}Cell"))
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


class OnnxRuntime:
    """run, or inputs and outputs bound once (IOBinding); the threads spin or not as they do by default."""

    name: ClassVar[str] = "onnxruntime"
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")

    def __init__(self, threads: int) -> None:
        self.ort: Any = importlib.import_module("onnxruntime")
        self.options = self.ort.SessionOptions()
        self.options.intra_op_num_threads, self.options.inter_op_num_threads = threads, 1

    def calls(self, p: Problem) -> list[Call]:
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


class OpenVINO:
    """One infer request, latency hint, float32 precision; inputs are set once, as shared memory."""

    name: ClassVar[str] = "openvino"
    needs: ClassVar[tuple[str, ...]] = ("openvino", "onnx")

    def __init__(self, threads: int) -> None:
        self.ov: Any = importlib.import_module("openvino")
        self.core = self.ov.Core()
        self.options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        self.options["INFERENCE_NUM_THREADS"] = threads

    def calls(self, p: Problem) -> list[Call]:
        compiled = self.core.compile_model(self.core.read_model(_onnx_model(p), b""), "CPU", self.options)
        request = compiled.create_infer_request()
        for name, value in _onnx_feed(p).items():
            request.set_tensor(name, self.ov.Tensor(value, shared_memory=True))

        def read(_: object) -> tuple[Array, ...]:
            return _read_onnx(p, [request.get_output_tensor(i).data for i in range(len(compiled.outputs))])

        return [Call(request.infer, read, "infer request")]


Peer: TypeAlias = NumPy | Torch | OnnxRuntime | OpenVINO
PEERS: dict[str, type[Peer]] = {a.name: a for a in (NumPy, Torch, OnnxRuntime, OpenVINO)}


def installed(name: str) -> bool:
    return all(importlib.util.find_spec(module) for module in PEERS[name].needs)


def versions() -> dict[str, str]:
    """Of every package that has part in a run and is installed here."""
    found = {"fastlstm": fastlstm.__version__}
    for name in ("numpy", "torch", "onnxruntime", "openvino", "onnx"):
        if importlib.util.find_spec(name):
            found[name] = importlib.metadata.version(name)
    return found
