"""Segments that need no engine: each operator as ONNX Runtime has it, and what is left to the engine."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402
from test_onnx_graph import FLOAT, by_onnxruntime, close, model_of, normal  # noqa: E402

import fastlstm  # noqa: E402

INTS = {
    "zero": [0], "one": [1], "minus": [-1], "two": [2], "halves": [2, 3], "all": [2**62], "far": [-(2**62)],
    "shape": [0, -1, 2], "flat": [-1], "picked": [4, 0], "first_axis": [-3], "three": [3],
}  # fmt: skip


def constants(rng):
    found = {name: np.array(value, np.int64) for name, value in INTS.items()}
    found |= {"last": np.array(-1), "k": normal(rng, 4), "column": normal(rng, 5, 1), "M": normal(rng, 4, 3)}
    found |= {"Mt": normal(rng, 3, 4), "b": normal(rng, 3), "row": normal(rng, 1, 3)}
    found |= {"K": normal(rng, 3, 5, 1), "K3": normal(rng, 3, 5, 3), "big": np.full(4, 3e38, np.float32)}
    return found


def node(op, *inputs, outputs=("y",), **attributes):
    return helper.make_node(op, inputs, outputs, **attributes)


# x is [2, 5, 4]; those on the left are run here, those on the right are the engine's
HERE = {
    "Identity": [node("Identity", "x")],
    "Squeeze": [node("Unsqueeze", "x", "one", outputs=["u"]), node("Squeeze", "u", "one")],
    "Unsqueeze negative": [node("Unsqueeze", "x", "minus")],
    "Transpose": [node("Transpose", "x", perm=[2, 0, 1])],
    "Transpose by default": [node("Transpose", "x")],
    "Reshape": [node("Reshape", "x", "shape")],
    "Reshape flat": [node("Reshape", "x", "flat")],
    "Concat": [node("Concat", "x", "h", axis=-1)],
    "Split": [node("Split", "x", "halves", axis=1, outputs=["s", "y"])],
    "Slice": [node("Slice", "x", "one", "three", "minus")],
    "Slice to the end": [node("Slice", "x", "minus", "all", "one")],
    "Slice from before": [node("Slice", "x", "far", "two", "first_axis", "one")],
    "Slice of the first axes": [node("Slice", "x", "one", "two")],
    "Gather": [node("Gather", "x", "last", axis=1)],
    "Gather many": [node("Gather", "x", "picked", axis=1)],
    "Add": [node("Add", "x", "k")],
    "Add from the left": [node("Add", "column", "x")],
    "Add of two": [node("Add", "x", "x")],
    "Sub": [node("Sub", "k", "x")],
    "Mul": [node("Mul", "x", "column")],
    "overflow": [node("Mul", "x", "big", outputs=["m"]), node("Mul", "m", "big")],
    "Relu": [node("Relu", "x")],
    "Sigmoid": [node("Sigmoid", "x")],
    "Tanh": [node("Tanh", "x")],
    "LeakyRelu": [node("LeakyRelu", "x", alpha=0.3)],
    "Elu": [node("Elu", "x", alpha=0.5)],
    "HardSigmoid": [node("HardSigmoid", "x", alpha=0.3, beta=0.4)],
    "HardSigmoid by default": [node("HardSigmoid", "x")],
    "Softsign": [node("Softsign", "x")],
    "Softplus": [node("Softplus", "x")],
    "of a view": [node("Transpose", "x", perm=[1, 0, 2], outputs=["t"]), node("Tanh", "t")],
    "MatMul": [node("MatMul", "x", "M")],
    "MatMul of a view": [node("Transpose", "x", perm=[1, 0, 2], outputs=["t"]), node("MatMul", "t", "M")],
    "Gemm": [node("Gather", "x", "last", axis=1, outputs=["g"]), node("Gemm", "g", "M", "b")],
    "Gemm turned": [
        node("Gather", "x", "last", axis=1, outputs=["g"]),
        node("Gemm", "g", "Mt", "row", transB=1),
    ],
    "Gemm without a bias": [node("Gather", "x", "last", axis=1, outputs=["g"]), node("Gemm", "g", "M")],
    "Conv of width 1": [node("Conv", "x", "K", "b")],
    "Conv without a bias": [node("Conv", "x", "K", strides=[1], pads=[0, 0])],
    "Constant": [node("Constant", outputs=["c"], value_float=2.0), node("Mul", "x", "c")],
}
ENGINES = {
    "Exp": [node("Exp", "x")],
    "Softmax": [node("Softmax", "x")],
    "Slice by steps": [node("Slice", "x", "zero", "all", "one", "two")],
    "Slice backwards": [node("Slice", "x", "minus", "far", "one", "minus")],
    "Split by number": [node("Split", "x", axis=2, outputs=["s", "y"], num_outputs=2)],
    "Conv of width 3": [node("Conv", "x", "K3", "b")],
    "Conv with pads": [node("Conv", "x", "K", pads=[1, 1])],
    "Conv with strides": [node("Conv", "x", "K", strides=[2])],
    "Gemm scaled": [node("Gather", "x", "last", axis=1, outputs=["g"]), node("Gemm", "g", "M", alpha=0.5)],
    "MatMul from the left": [node("MatMul", "Mt", "x2")],
    "Reshape that keeps zeros": [node("Reshape", "x", "flat", allowzero=1)],
    "one of many": [node("Relu", "x", outputs=["r"]), node("Exp", "r")],
}  # fmt: skip
RANK = {
    "Squeeze": 3, "Unsqueeze negative": 4, "Reshape flat": 1, "Gather": 2, "Gemm": 2, "Gemm turned": 2,
    "Gemm without a bias": 2, "Gemm scaled": 2, "MatMul from the left": 3, "Reshape that keeps zeros": 1,
}  # fmt: skip


def made(name, nodes):
    rng = np.random.default_rng(0)
    used = {i for n in nodes for i in n.input}
    inputs = [("x", FLOAT, [None, None, 4])] if "x" in used else []
    if "h" in used:
        inputs.append(("h", FLOAT, [None, None, 4]))
    if "x2" in used:
        inputs.append(("x2", FLOAT, [None, 4, None]))
    weights = {n: v for n, v in constants(rng).items() if n in used}
    return model_of(nodes, inputs, [("y", FLOAT, [None] * RANK.get(name, 3))], weights, opset=18)


@pytest.mark.parametrize("name", [*HERE, *ENGINES])
def test_as_onnxruntime_has_it(name):
    proto = made(name, (HERE | ENGINES)[name])
    rng = np.random.default_rng(1)
    every = {"x": normal(rng, 2, 5, 4) * 4, "h": normal(rng, 2, 5, 4), "x2": normal(rng, 2, 4, 5)}
    feeds = {value.name: every[value.name] for value in proto.graph.input}
    model = fastlstm.from_onnx(proto, whole=True)
    engines = {p.engine for p in model.report if p.op != "Constant"}
    assert engines == ({"fastlstm"} if name in HERE else {"onnxruntime"})
    before = {n: v.copy() for n, v in feeds.items()}
    outputs, wanted = model(feeds), by_onnxruntime(proto, feeds)
    if name == "overflow":
        assert np.array_equal(outputs["y"], wanted["y"]) and np.isinf(outputs["y"]).any()
    else:
        close(outputs, wanted, 2e-6)
    outputs["y"][...] = 7  # the caller's own
    assert all(np.array_equal(feeds[n], before[n]) for n in feeds)
    again = model(feeds)
    assert (
        np.array_equal(again["y"], wanted["y"]) if name == "overflow" else close(again, wanted, 2e-6) is None
    )


@pytest.mark.parametrize(
    ("nodes", "x", "said"),
    [
        ([node("Squeeze", "x", "one")], (2, 5, 4), "Squeeze 'y'"),
        (
            [node("Split", "x", "halves", axis=1, outputs=["s", "y"])],
            (2, 4, 4),
            "Split 's': wants 5 along axis 1",
        ),
        ([node("Gather", "x", "picked", axis=1)], (2, 3, 4), "Gather 'y'"),
        ([node("Add", "x", "column")], (2, 3, 4), "Add 'y'"),
        ([node("Conv", "x", "K", "b")], (2, 4, 4), "Conv 'y'"),
    ],
)
def test_shapes_that_do_not_fit_are_named(nodes, x, said):
    model = fastlstm.from_onnx(made("", nodes), whole=True)
    with pytest.raises(ValueError, match=said):
        model(x=np.zeros(x, np.float32))


def test_integers_and_narrow_floats_are_the_engines():
    nodes = [node("Add", "x", "x")]
    proto = model_of(nodes, [("x", TensorProto.INT32, [None])], [("y", TensorProto.INT32, [None])], {})
    model = fastlstm.from_onnx(proto, whole=True)
    assert model.report[0].engine == "onnxruntime" and model(x=[2**31 - 1])["y"].tolist() == [-2]
    proto = model_of(nodes, [("x", TensorProto.FLOAT16, [None])], [("y", TensorProto.FLOAT16, [None])], {})
    assert fastlstm.from_onnx(proto, whole=True).report[0].engine == "onnxruntime"


def test_earlier_opsets_have_axes_as_attributes():
    nodes = [
        helper.make_node("Unsqueeze", ["x"], ["u"], axes=[0]),
        helper.make_node("Slice", ["u"], ["s"], starts=[1], ends=[3], axes=[2]),
        helper.make_node("Split", ["s"], ["a", "b"], axis=3, split=[1, 3]),
        helper.make_node("Squeeze", ["b"], ["y"], axes=[0]),
    ]
    proto = model_of(nodes, [("x", FLOAT, [2, 5, 4])], [("y", FLOAT, [2, 2, 3])], {}, opset=9)
    model = fastlstm.from_onnx(proto, whole=True)
    assert {p.engine for p in model.report} == {"fastlstm"}
    x = normal(np.random.default_rng(0), 2, 5, 4)
    close(model(x=x), by_onnxruntime(proto, {"x": x}), 1e-9)
