"""Recurrent nodes: the onnx package's own cases through the backend, what is refused, what is absent."""

import re

import numpy as np
import onnx_oracle as oracle
import pytest

onnx = pytest.importorskip("onnx")

from onnx import helper  # noqa: E402

import fastlstm  # noqa: E402
from fastlstm.onnx import _node, backend  # noqa: E402

OFFICIAL = r"test_(lstm|gru|rnn|simple_rnn)_"


@pytest.fixture(scope="module")
def official():
    """The recurrent node cases that the onnx package ships, by name."""
    import warnings

    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the other operators' cases
        cases = load_model_tests(kind="node")
    return {c.name: c for c in cases if any(map(_node.is_recurrent, c.model.graph.node))}


@pytest.mark.parametrize("engine", ["onnxruntime", "reference"])
def test_all_recurrent_cases_of_the_onnx_package(official, engine):
    if engine == "onnxruntime":
        pytest.importorskip("onnxruntime")
    assert len(official) >= 18 and all(re.match(OFFICIAL, name) for name in official)
    for case in official.values():
        rep = backend.prepare(case.model, engine=engine)
        assert {p.engine for p in rep._model.report} == {"fastlstm"}, case.name
        for inputs, wanted in case.data_sets:
            for got, right in zip(rep.run(inputs), wanted, strict=True):
                assert got.dtype == right.dtype and got.shape == right.shape, case.name
                np.testing.assert_allclose(got, right, case.rtol, case.atol, err_msg=case.name)


def test_the_onnx_packages_runner_passes():
    """Its own harness, as `onnx.backend` means it."""
    import unittest
    import warnings

    from onnx.backend.test import BackendTest

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner = BackendTest(backend, __name__)
    runner.include(OFFICIAL)
    result = unittest.TestResult()
    runner.test_suite.run(result)
    assert not result.failures and not result.errors, (result.failures + result.errors)[:1]
    assert result.testsRun - len(result.skipped) >= 18


def test_the_backend_as_onnx_defines_it():
    rng = np.random.default_rng(0)
    attributes, feeds = oracle.random_node(rng, "GRU", np.float32, clip=False)
    node, wanted = oracle.node_of("GRU", attributes, feeds), oracle.run("GRU", feeds, attributes)
    order = [feeds[name] for name in node.input if name]
    for outputs in (
        backend.run_node(node, order),
        backend.run_node(node, order, opset_version=14),
        backend.run_model(oracle.model_of("GRU", attributes, feeds), list(feeds.values())),
        backend.prepare(oracle.model_of("GRU", attributes, feeds)).run(feeds),
    ):
        assert outputs._fields == ("Y", "Y_h")
        assert all(np.abs(a - b).max(initial=0) < 1e-5 for a, b in zip(outputs, wanted, strict=True))
    (total,) = backend.run_node(
        helper.make_node("CumSum", ["x", "axis"], ["y"]), [np.ones(3, "f4"), np.array(0)]
    )
    assert total.tolist() == [1, 2, 3]
    assert backend.supports_device("CPU") and not backend.supports_device("CUDA")
    assert not backend.supports_device("PIGEON")
    with pytest.raises(ValueError, match="device must be 'CPU', got 'CUDA'"):
        backend.prepare(oracle.model_of("GRU", attributes, feeds), "CUDA")
    rep = backend.prepare(oracle.model_of("GRU", attributes, feeds))
    with pytest.raises(ValueError, match="at most"):
        rep.run([*feeds.values(), feeds["X"]])
    with pytest.raises(TypeError, match="no option speed"):
        rep.run(feeds, speed=2)


def test_absent_inputs_and_outputs():
    rng = np.random.default_rng(1)
    attributes, feeds = oracle.random_node(rng, "LSTM", states=True, peepholes=True, lengths=False)
    full = oracle.run("LSTM", feeds, attributes)
    for outputs in (["Y"], ["", "Y_h"], ["", "", "Y_c"], ["Y", "", "Y_c"], ["", "Y_h", ""]):
        proto = oracle.model_of("LSTM", attributes, feeds)
        node = proto.graph.node[0]
        del node.output[:]
        node.output.extend(outputs)
        kept = [v for v in proto.graph.output if v.name in outputs]
        del proto.graph.output[:]
        proto.graph.output.extend(kept)
        got = fastlstm.from_onnx(proto, whole=True)(feeds)
        for name, value in got.items():
            assert np.abs(value - full[["Y", "Y_h", "Y_c"].index(name)]).max(initial=0) < 1e-9
    for missing in (["h"], ["c"], ["h", "c"], ["B", "h", "c", "P"]):
        fewer = {name: v for name, v in feeds.items() if name not in missing}
        got = fastlstm.from_onnx(oracle.model_of("LSTM", attributes, fewer), whole=True)(fewer)
        for a, b in zip(got.values(), oracle.run("LSTM", fewer, attributes), strict=True):
            assert np.abs(a - b).max(initial=0) < 1e-9, missing


REFUSED = [
    ("LSTM", {"activations": ["Sigmoid", "Tanh"]}, "activations must be 3 names for 1 direction"),
    ("LSTM", {"activations": ["Sigmoid", "Tanh", "Swish"]}, "activations must be of .* got 'Swish'"),
    ("GRU", {"activations": ["LeakyRelu", "Tanh"], "activation_alpha": [0.1, 0.2]}, "activation_alpha has 1"),
    ("GRU", {"activation_beta": [0.1]}, "activation_beta has 1 value"),
    ("RNN", {"clip": 0.0}, "clip must be above 0, got 0"),
    ("RNN", {"clip": -1.0}, "clip must be above 0"),
    ("RNN", {"clip": float("nan")}, "clip must be above 0, got nan"),
    ("RNN", {"activations": ["Tanh", "Relu"]}, "activations must be 1 names"),
    ("GRU", {"direction": "sideways"}, "direction must be forward, reverse or bidirectional, got 'sideways'"),
    ("LSTM", {"layout": 2}, "layout must be 0 or 1, got 2"),
    ("LSTM", {"input_forget": 3}, "input_forget must be 0 or 1, got 3"),
    ("GRU", {"linear_before_reset": -1}, "linear_before_reset must be 0 or 1"),
    ("GRU", {"output_sequence": 1}, "has no attribute output_sequence in opset 22"),
    ("GRU", {"hidden_size": 0}, "hidden_size must be an int of at least 1"),
    ("LSTM", {"input_forget": 0, "peep": 1}, "has no attribute peep"),
]


@pytest.mark.parametrize(("op", "attributes", "said"), REFUSED)
def test_what_a_node_must_not_say(op, attributes, said):
    node = helper.make_node(op, ["X", "W", "R"], ["Y"], "mine", **attributes)
    with pytest.raises(ValueError, match=f"{op} 'mine': .*{said}"):
        _node.recipe(node, 22)


def test_attributes_of_later_opsets_are_refused_in_earlier_ones():
    node = helper.make_node("LSTM", ["X", "W", "R"], ["Y"], layout=1)
    with pytest.raises(ValueError, match="has no attribute layout in opset 13"):
        _node.recipe(node, 13)
    assert _node.recipe(node, 14).batch_first


def test_names_of_activations_in_any_case_and_the_standards_default():
    node = helper.make_node("RNN", ["X", "W", "R"], ["Y"], activations=["Tanh", "Tanh"])
    assert _node.recipe(node, 14).activations == (("tanh",),)
    node = helper.make_node("RNN", ["X", "W", "R"], ["Y"], activations=["ReLU"])
    assert _node.recipe(node, 14).activations == (("relu",),)


def weights(**changed):
    shapes = {"W": (1, 12, 4), "R": (1, 12, 3), "B": (1, 24), "P": (1, 9)}
    return _node.Weights(**{name: np.zeros(s, np.float32) for name, s in shapes.items()} | changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"W": np.zeros((1, 11, 4), "f4")}, r"W must have shape \(1, 12, 4\), got \(1, 11, 4\)"),
        ({"W": np.zeros((2, 12, 4), "f4")}, "W must have shape"),
        ({"R": np.zeros((1, 12), "f4")}, "W and R must have 3 axes"),
        ({"R": np.zeros((1, 12, 5), "f4")}, r"must have shape"),
        ({"B": np.zeros((1, 12), "f4")}, r"B must have shape \(1, 24\), got \(1, 12\)"),
        ({"P": np.zeros((1, 12), "f4")}, r"P must have shape \(1, 9\)"),
        ({"B": np.zeros((1, 24))}, "B must be float32 as W is, got float64"),
        ({"R": np.zeros((1, 0, 0), "f4")}, "must fit hidden_size"),
    ],
)
def test_weights_that_do_not_fit(changed, said):
    recipe = _node.recipe(helper.make_node("LSTM", ["X", "W", "R"], ["Y"]), 14)
    _node.Recurrent(recipe, weights())
    with pytest.raises(ValueError, match=said):
        _node.Recurrent(recipe, weights(**changed))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"x": np.zeros((2, 3, 4))}, "X must be float32 as W is, got float64"),
        ({"x": np.zeros((2, 3), "f4")}, "X must have 3 axes"),
        ({"x": np.zeros((2, 3, 5), "f4")}, "I = 4, got shape"),
        ({"lengths": np.array([1, 2, 3], np.int32)}, "sequence_lens must be .*0..2"),
        ({"lengths": np.array([1, 2], np.int32)}, r"sequence_lens must have shape \(3,\)"),
        ({"lengths": np.array([1, -1, 2], np.int32)}, "sequence_lens"),
        ({"h": np.zeros((1, 2, 3), "f4")}, "initial_h must be"),
        ({"c": np.zeros((1, 3, 3))}, "initial_c must be float32"),
    ],
)
def test_inputs_that_do_not_fit(arguments, said):
    recipe = _node.recipe(helper.make_node("LSTM", ["X", "W", "R"], ["Y"]), 14)
    node = _node.Recurrent(recipe, weights())
    with pytest.raises((TypeError, ValueError), match=said):
        node(**{"x": np.zeros((2, 3, 4), "f4")} | arguments)


def test_no_steps_and_no_sequences():
    rng = np.random.default_rng(3)
    attributes, feeds = oracle.random_node(
        rng, "LSTM", np.float32, lengths=False, states=True, layout=False, direction="forward"
    )
    for axis in (0, 1):
        empty = {
            n: v[:, :0] if axis and n in ("X", "h", "c") else v[:0] if n == "X" else v
            for n, v in feeds.items()
        }
        proto = oracle.model_of("LSTM", attributes, empty, constant=("W", "R", "B", "P"))
        outputs = fastlstm.from_onnx(proto, whole=True)(
            {n: v for n, v in empty.items() if n in ("X", "h", "c")}
        )
        assert outputs["Y"].shape[0 if not axis else 2] == 0
        assert np.array_equal(outputs["Y_h"], empty["h"]) and np.array_equal(outputs["Y_c"], empty["c"])
