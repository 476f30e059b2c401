"""Random chains of layers and of nodes that move axes about: where a plain model comes out, it is right.

Most chains are no plain model, because the axes come out in another order, or another axis is run along or
read as features. The whole graph, which reads nothing into the axes, says what the numbers must be.
"""

import random

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402
from test_onnx_graph import FLOAT, model_of, normal  # noqa: E402

import fastlstm  # noqa: E402

TOKENS, GATES = 11, {"LSTM": (4, 3), "GRU": (3, 2), "RNN": (1, 2)}  # gates, outputs


class Chain:
    """A graph that grows at its end; `shape` is that of the value there, all of whose sizes differ."""

    def __init__(self, seed):
        self.draw, self.rng = random.Random(seed), np.random.default_rng(seed)
        self.nodes, self.weights, self.states = [], {}, []
        self.value = "x"
        self.shape = self.draw.choice([[5, 2, 4], [5, 2, 4], [5, 4]])
        self.start = list(self.shape)
        self.embeds = self.draw.random() < 0.2
        if self.embeds:
            self.start.pop()
            self.node("Gather", self.shape, self.constant(normal(self.rng, TOKENS, 4)), "x")
        kinds = ["transpose", "squeeze", "unsqueeze", "reshape", "dense", "dense", "last", "state", "norm"]
        for _ in range(self.draw.randrange(1, 9)):
            getattr(self, self.draw.choice([*kinds, *["recurrent"] * 4]))()

    def constant(self, value):
        name = f"k{len(self.weights)}"
        self.weights[name] = value
        return name

    def node(self, op, shape, *inputs, outputs=1, **attributes):
        names = [f"v{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs or [self.value], names, **attributes))
        self.value, self.shape = names[0], list(shape)
        return names

    def transpose(self):
        order = list(range(len(self.shape)))
        self.draw.shuffle(order)
        self.node("Transpose", [self.shape[k] for k in order], perm=order)

    def squeeze(self):
        ones = [k for k, n in enumerate(self.shape) if n == 1]
        if ones:
            k = self.draw.choice(ones)
            self.node(
                "Squeeze", self.shape[:k] + self.shape[k + 1 :], self.value, self.constant(np.array([k]))
            )

    def unsqueeze(self):
        if len(self.shape) < 4:
            k = self.draw.randrange(len(self.shape) + 1)
            shape = [*self.shape[:k], 1, *self.shape[k:]]
            self.node("Unsqueeze", shape, self.value, self.constant(np.array([k])))

    def reshape(self):
        if len(self.shape) >= 3:
            *kept, a, b = self.shape
            wanted = [0] * len(kept) + [self.draw.choice([-1, a * b])]
            self.node("Reshape", [*kept, a * b], self.value, self.constant(np.array(wanted)))

    def dense(self):
        width = self.shape[-1]
        kind = self.draw.choice(["MatMul", "Add", "Relu", "Softmax"])
        if kind == "MatMul":
            out = self.draw.choice([width, 3, 6])
            self.node(kind, [*self.shape[:-1], out], self.value, self.constant(normal(self.rng, width, out)))
        elif kind == "Add":
            self.node(kind, self.shape, self.value, self.constant(normal(self.rng, width)))
        else:
            self.node(kind, self.shape)

    def norm(self):
        scale, bias = (self.constant(normal(self.rng, self.shape[-1])) for _ in range(2))
        self.node("LayerNormalization", self.shape, self.value, scale, bias)

    def last(self):
        if len(self.shape) > 1:
            axis = self.draw.randrange(len(self.shape))
            index = self.constant(np.array(self.draw.choice([-1, -1, 0])))
            shape = self.shape[:axis] + self.shape[axis + 1 :]
            self.node("Gather", shape, self.value, index, axis=axis)

    def state(self):
        if self.states:
            self.value, self.shape = self.states[-1]

    def recurrent(self):
        if len(self.shape) != 3:
            return
        op = self.draw.choice(list(GATES))
        (gates, outputs), size = GATES[op], self.draw.choice([3, 4, self.shape[-1]])
        direction = self.draw.choice(["forward", "forward", "forward", "reverse", "bidirectional"])
        count, layout = 1 + (direction == "bidirectional"), int(self.draw.random() < 0.25)
        first, second, width = self.shape
        w = self.constant(normal(self.rng, count, gates * size, width))
        r = self.constant(normal(self.rng, count, gates * size, size))
        shape = [first, second, count, size] if layout else [first, count, second, size]
        state = [first, count, size] if layout else [count, second, size]
        names = self.node(
            op, shape, self.value, w, r, outputs=outputs, hidden_size=size, direction=direction, layout=layout
        )
        self.states.append((names[1], state))
        if self.draw.random() < 0.7:  # as exporters do
            self._joined(first, second, count, size, layout)

    def _joined(self, first, second, count, size, layout):
        if count == 1:
            axis = self.constant(np.array([2 if layout else 1]))
            self.node("Squeeze", [first, second, size], self.value, axis)
            return
        if not layout:
            self.node("Transpose", [first, second, count, size], perm=[0, 2, 1, 3])
        self.node("Reshape", [first, second, count * size], self.value, self.constant(np.array([0, 0, -1])))

    def model(self):
        outputs = [(self.value, FLOAT, [None] * len(self.shape))]
        if self.states and self.draw.random() < 0.3 and self.states[-1][0] != self.value:
            outputs.append((self.states[-1][0], FLOAT, [None] * 3))
        kind = TensorProto.INT64 if self.embeds else FLOAT
        shape = [None] * len(self.start) if self.embeds else [None] * (len(self.start) - 1) + [4]
        return model_of(self.nodes, [("x", kind, shape)], outputs, self.weights)

    def x(self):
        if self.embeds:
            return self.rng.integers(0, TOKENS, self.start)
        return self.rng.standard_normal(self.start).astype(np.float32)


@pytest.mark.parametrize("part", range(4))
def test_plain_models_are_right(part):
    plain, others = 0, 0
    for seed in range(part * 700, (part + 1) * 700):
        chain = Chain(seed)
        if not chain.nodes:
            continue
        proto, x = chain.model(), chain.x()
        try:
            whole = fastlstm.from_onnx(proto, whole=True, engine="reference")
            wanted = next(iter(whole(x=x).values()))
            model = fastlstm.from_onnx(proto, whole=False)
        except ValueError:  # of shapes that do not fit, or no plain model
            others += 1
            continue
        plain += 1
        got = model(x)
        got = got[0] if isinstance(got, tuple) else got
        assert got.shape == wanted.shape, (seed, model)
        assert np.abs(got - wanted).max(initial=0) < 1e-5 * max(1, np.abs(wanted).max(initial=0)), (
            seed,
            model,
        )
    assert plain > 50 and others > 50


def test_a_model_that_misreads_an_axis_is_noticed(monkeypatch):
    """With every Transpose taken for none, plain models come out that are wrong."""
    from fastlstm.onnx import _plain

    monkeypatch.setattr(_plain._Walk, "_transpose", lambda self, node, axes: axes)
    with pytest.raises((AssertionError, ValueError)):
        test_plain_models_are_right(0)
