"""TensorFlow's engines: Keras's layers in a tf.function, and LiteRT, which runs them converted."""

from __future__ import annotations

import importlib
import os
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..grid import Array, Problem
from .base import Call, Cannot, Peer

LAYERS = {"lstm": "LSTM", "gru": "GRU", "rnn": "SimpleRNN"}
ORDER = {"lstm": [0, 1, 2, 3], "gru": [1, 0, 2], "rnn": [0]}  # rzn to Keras's zrh, and back; ifgo is its own
UNROLLED = 100  # steps at most: the graph grows with them
LOOPED = 5000  # likewise of LiteRT's loop, which copies all outputs so far at each: 48,000 took 17 seconds


def _tensorflow(threads: int) -> Any:
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # or it tells of graphics cards it has not found
    tf: Any = importlib.import_module("tensorflow")
    if tf.config.threading.get_intra_op_parallelism_threads() != threads:  # the second engine finds them set
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    return tf


def _reordered(cell: str, rows: Array) -> Array:
    parts = np.split(rows, len(ORDER[cell]))
    return np.concatenate([parts[i] for i in ORDER[cell]])


def _layer(p: Problem, unroll: bool) -> Any:
    """The layer with its weights: kernels [I, G*H], one bias, of a GRU two rows of it."""
    if p.row.cell == "gated_rnn":
        raise Cannot("no GatedRNN")
    if p.row.options:
        raise Cannot("only plain layers of one layer are built here")
    layers: Any = importlib.import_module("keras").layers
    layer = getattr(layers, LAYERS[p.row.cell])(
        p.row.units, return_sequences=True, return_state=True, unroll=unroll, dtype=p.row.dtype,
        zero_output_for_mask=True,
    )  # fmt: skip
    layer.build((p.row.batch, p.row.steps, p.row.inputs))
    w_ih, w_hh, b_ih, b_hh = (_reordered(p.row.cell, v) for v in p.weights.values())
    layer.set_weights([w_ih.T, w_hh.T, np.stack([b_ih, b_hh]) if p.row.cell == "gru" else b_ih + b_hh])
    return layer


def _inputs(p: Problem) -> list[Array]:
    """x [B, T, I], then the states [B, H]."""
    return [np.ascontiguousarray(p.x.swapaxes(0, 1)), *(v[0] for v in p.state)]


def _read(result: Any) -> tuple[Array, ...]:
    y, *states = (np.array(v) for v in result)
    return (y.swapaxes(0, 1), *(v[None] for v in states))


def _variants(p: Problem) -> list[tuple[bool, str]]:
    loop = [(False, "loop")]
    return [*loop, (True, "unrolled")] if p.row.steps <= UNROLLED and p.lengths is None else loop


class Keras(Peer):
    """keras.layers on TensorFlow in a tf.function of constant shapes, with or without XLA (jit_compile); one
    step: unrolled too; ragged: masked. Training: GradientTape in the tf.function, forward and gradients."""

    name: ClassVar[str] = "keras"
    needs: ClassVar[tuple[str, ...]] = ("keras", "tensorflow")
    distributions: ClassVar[tuple[str, ...]] = ("keras", "tensorflow", "numpy")

    def __init__(self, threads: int) -> None:
        self.tf = _tensorflow(threads)

    def calls(self, p: Problem) -> list[Call]:
        tf, calls = self.tf, []
        inputs = [tf.constant(v) for v in _inputs(p)]
        mask = None if p.lengths is None else tf.constant(np.arange(p.row.steps) < p.lengths[:, None])
        for unroll, name in _variants(p):
            if unroll and p.row.steps > 1:
                continue  # a graph of a hundred steps takes XLA minutes
            layer = _layer(p, unroll)
            body, read = self._training(p, layer, mask) if p.row.train else (None, _read)
            for jit in (False, True):

                def forward(x: Any, *states: Any, layer: Any = layer) -> Any:
                    return layer(x, initial_state=list(states), mask=mask)

                function = tf.function(body or forward, jit_compile=jit, autograph=False)
                run = partial(function.get_concrete_function(*inputs), *inputs)
                run()  # XLA compiles now, and no call that is timed
                calls.append(Call(run, read, f"{name}, XLA" if jit else name))
        return calls

    def _training(self, p: Problem, layer: Any, mask: Any) -> tuple[Any, Any]:
        tf = self.tf
        assert p.d_output is not None
        d_output = tf.constant(p.d_output.swapaxes(0, 1))

        def body(x: Any, *states: Any) -> Any:
            with tf.GradientTape() as tape:
                for leaf in (x, *states):
                    tape.watch(leaf)
                result = layer(x, initial_state=list(states), mask=mask)
            return result, tape.gradient(
                result[0], [x, *states, *layer.trainable_variables], output_gradients=d_output
            )

        def read(result: Any) -> tuple[Array, ...]:
            outputs, gradients = result
            dx, *d_states = _read(gradients[:-3])
            d_ih, d_hh, d_bias = (np.array(v) for v in gradients[-3:])
            biases = d_bias if p.row.cell == "gru" else (d_bias, d_bias)
            weights = (_reordered(p.row.cell, v) for v in (d_ih.T, d_hh.T, *biases))
            return (*_read(outputs), dx, *d_states, *weights)

        return body, read

    def cold(self, p: Problem, folder: Path) -> str:
        keras: Any = importlib.import_module("keras")
        x = keras.Input(batch_shape=(1, 1, p.row.inputs))
        layer = _layer(p, unroll=False)
        keras.Model(x, layer(x)[0]).save(folder / "model.keras")
        return (
            "import os; os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'; import keras; "
            "m = keras.models.load_model('model.keras', compile=False); y = numpy.array(m(x))"
        )


class LiteRT(Peer):
    """The Keras layer converted with frozen weights, one interpreter (with XNNPACK); the loop, or up to 100
    steps unrolled; inputs are set once."""

    name: ClassVar[str] = "litert"
    needs: ClassVar[tuple[str, ...]] = ("ai_edge_litert", "tensorflow", "keras")
    distributions: ClassVar[tuple[str, ...]] = ("ai-edge-litert", "numpy")

    def __init__(self, threads: int) -> None:
        self.tf = _tensorflow(threads)
        self.interpreter: Any = importlib.import_module("ai_edge_litert.interpreter").Interpreter
        self.threads = threads

    def _converted(self, p: Problem, unroll: bool) -> bytes:
        """Inputs x, h(, c); outputs y, h(, c), known by their order in the names."""
        convert: Any = importlib.import_module("tensorflow.python.framework.convert_to_constants")
        layer = _layer(p, unroll)

        def forward(*inputs: Any) -> Any:
            return tuple(layer(inputs[0], initial_state=list(inputs[1:])))

        specs = [self.tf.TensorSpec(v.shape, name=f"in{i}") for i, v in enumerate(_inputs(p))]
        function = self.tf.function(forward, autograph=False).get_concrete_function(*specs)
        frozen = convert.convert_variables_to_constants_v2(function, lower_control_flow=False)
        return bytes(self.tf.lite.TFLiteConverter.from_concrete_functions([frozen]).convert())

    def calls(self, p: Problem) -> list[Call]:
        if p.row.train:
            raise Cannot("no training")
        if p.row.dtype != "float32":
            raise Cannot(f"no {p.row.dtype}")
        if p.lengths is not None:
            raise Cannot("no lengths")
        if p.row.steps > LOOPED:
            raise Cannot("too slow to wait for")
        return [self._call(p, unroll, name) for unroll, name in _variants(p)]

    def _call(self, p: Problem, unroll: bool, name: str) -> Call:
        model = self.interpreter(model_content=self._converted(p, unroll), num_threads=self.threads)
        model.allocate_tensors()
        inputs = sorted(model.get_input_details(), key=lambda d: str(d["name"]))
        for detail, value in zip(inputs, _inputs(p), strict=True):
            model.set_tensor(detail["index"], value)
        outputs = sorted(model.get_output_details(), key=lambda d: str(d["name"]))

        def read(_: object) -> tuple[Array, ...]:
            return _read([model.get_tensor(detail["index"]) for detail in outputs])

        return Call(model.invoke, read, name)

    def cold(self, p: Problem, folder: Path) -> str:
        (folder / "model.tflite").write_bytes(self._converted(p, unroll=True))
        return (
            "from ai_edge_litert.interpreter import Interpreter; m = Interpreter('model.tflite'); "
            "m.allocate_tensors(); ins = sorted(m.get_input_details(), key=lambda d: d['name']); "
            "m.set_tensor(ins[0]['index'], x); "
            "[m.set_tensor(d['index'], numpy.zeros(d['shape'], 'float32')) for d in ins[1:]]; m.invoke(); "
            "outs = sorted(m.get_output_details(), key=lambda d: d['name']); "
            "y = m.get_tensor(outs[0]['index'])"
        )
