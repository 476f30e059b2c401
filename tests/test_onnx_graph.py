"""Whole graphs: plain models, graphs with other nodes, held state, weights and states of any origin."""

import io
import pickle
import threading
import warnings

import numpy as np
import onnx_oracle as oracle
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import fastlstm  # noqa: E402
from fastlstm.onnx import OnnxModel  # noqa: E402

ENGINES = ["onnxruntime", "reference"]
FLOAT = TensorProto.FLOAT


@pytest.fixture(params=ENGINES)
def engine(request):
    if request.param == "onnxruntime":
        pytest.importorskip("onnxruntime")
    return request.param


def model_of(nodes, inputs, outputs, initializers, opset=17):
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, e, s) for n, e, s in inputs],
        [helper.make_tensor_value_info(n, e, s) for n, e, s in outputs],
        [numpy_helper.from_array(v, n) for n, v in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def normal(rng, *shape):
    return (rng.standard_normal(shape) * 0.5).astype(np.float32)


def detector(rng, frame=32, hidden=7):
    """Convolution, LSTM with held state, convolution: as voice-activity detectors are."""
    weights = {
        "conv.w": normal(rng, 5, 1, 8), "conv.b": normal(rng, 5),
        "lstm.W": normal(rng, 1, 4 * hidden, 5), "lstm.R": normal(rng, 1, 4 * hidden, hidden),
        "lstm.B": normal(rng, 1, 8 * hidden),
        "out.w": normal(rng, 1, hidden, 1), "out.b": normal(rng, 1),
        "one": np.array([1]), "two": np.array([2]), "zero": np.array([0]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Unsqueeze", ["sound", "one"], ["sound3"]),
        helper.make_node("Conv", ["sound3", "conv.w", "conv.b"], ["conv"], strides=[4]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("Transpose", ["relu"], ["steps"], perm=[2, 0, 1]),
        helper.make_node(
            "LSTM", ["steps", "lstm.W", "lstm.R", "lstm.B", "", "h_in", "c_in"], ["Y", "h_out", "c_out"],
            "rnn", hidden_size=hidden,
        ),
        helper.make_node("Squeeze", ["h_out", "zero"], ["last"]),
        helper.make_node("Unsqueeze", ["last", "two"], ["last3"]),
        helper.make_node("Conv", ["last3", "out.w", "out.b"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["speech"]),
    ]  # fmt: skip
    state = [1, "batch", hidden]
    return model_of(
        nodes,
        [("sound", FLOAT, ["batch", frame]), ("h_in", FLOAT, state), ("c_in", FLOAT, state)],
        [("speech", FLOAT, ["batch", 1, 1]), ("h_out", FLOAT, state), ("c_out", FLOAT, state)],
        weights,
    )


def by_onnxruntime(proto, feeds):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def close(got, wanted, tolerance=4e-6):
    assert got.keys() == wanted.keys()
    for name, right in wanted.items():
        assert got[name].dtype == right.dtype and got[name].shape == right.shape, name
        error = np.abs(got[name] - right) / np.maximum(1, np.abs(right))
        assert error.max(initial=0) < tolerance, name


# --- graphs with other nodes --------------------------------------------------------------------------------


def test_a_detector_runs_with_its_recurrent_node_on_fastlstm(engine):
    rng = np.random.default_rng(0)
    proto = detector(rng)
    model = fastlstm.from_onnx(proto, engine=engine)
    assert isinstance(model, OnnxModel) and "'conv' (Conv)" in model.reason
    placed = {p.node: p for p in model.report}
    assert placed["rnn"].engine == "fastlstm" and placed["rnn"].op == "LSTM"
    assert [p.engine for p in model.report] == [engine] * 4 + ["fastlstm"] * 5  # the tail needs no engine
    assert [p.op for p in model.report] == [node.op_type for node in proto.graph.node]
    assert repr(model) == "OnnxModel(5 of 9 nodes on fastlstm)"
    for batch in (1, 3):
        feeds = {
            "sound": normal(rng, batch, 32),
            "h_in": normal(rng, 1, batch, 7),
            "c_in": normal(rng, 1, batch, 7),
        }
        wanted = by_onnxruntime(proto, feeds)
        close(model(feeds), wanted)
        close(model(**feeds), wanted)
        close(model({"sound": feeds["sound"]}, h_in=feeds["h_in"].tolist(), c_in=feeds["c_in"]), wanted)


def test_what_a_model_refuses():
    import copy

    model = fastlstm.from_onnx(detector(np.random.default_rng(0)), engine="reference")
    sound = np.ones((1, 32))
    for call in (model, model.stream({"h_in": "h_out", "c_in": "c_out"}).step):
        with pytest.raises(TypeError, match="inputs must map names to arrays, or be keywords, got ndarray"):
            call(sound)
        with pytest.raises(ValueError, match="inputs lack"):
            call({})
    for take in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="keep the ONNX file"):
            take(model)


def test_what_is_declared():
    model = fastlstm.from_onnx(detector(np.random.default_rng(0)), engine="reference")
    assert list(model.inputs) == ["sound", "h_in", "c_in"] and list(model.outputs) == [
        "speech",
        "h_out",
        "c_out",
    ]
    assert model.inputs["sound"].shape == ("batch", 32) and model.inputs["sound"].dtype == np.float32
    assert repr(model.inputs["h_in"]) == "h_in: float32 [1, batch, 7]"


def test_stream_carries_the_state(engine):
    rng = np.random.default_rng(1)
    proto = detector(rng)
    model = fastlstm.from_onnx(proto, engine=engine)
    names = {"h_in": "h_out", "c_in": "c_out"}
    sound = normal(rng, 6, 2, 32)
    stream = model.stream(names, batch_size=2)
    state = {name: np.zeros((1, 2, 7), np.float32) for name in names}
    frames = []
    for frame in sound:
        outputs = model(sound=frame, **state)
        state = {name: outputs.pop(source) for name, source in names.items()}
        frames.append(outputs)
        got = stream.step(sound=frame)
        assert list(got) == ["speech"] and np.array_equal(got["speech"], outputs["speech"])
        assert all(np.array_equal(stream.state[name], state[name]) for name in names)
    assert not np.array_equal(frames[0]["speech"], frames[1]["speech"])
    stream.reset()
    again = stream.run({"sound": frame} for frame in sound)
    assert all(np.array_equal(a["speech"], b["speech"]) for a, b in zip(again, frames, strict=True))
    begun = model.stream(names, state)  # from a state given
    twin = begun.copy()
    assert np.array_equal(begun.step(sound=sound[0])["speech"], twin.step(sound=sound[0])["speech"])
    twin.step(sound=sound[1])
    assert not np.array_equal(begun.state["h_in"], twin.state["h_in"])
    begun.state = {"h_in": np.zeros((1, 2, 7))}
    assert not begun.state["h_in"].any() and begun.state["c_in"].any()
    begun.step(sound=sound[1])
    begun.reset()
    assert not begun.state["h_in"].any()


def test_a_default_that_one_step_replaced_is_back_at_the_next(engine):
    """Also where that step raised."""
    rng, state = np.random.default_rng(3), [1, 1, 5]
    weights = {"W": normal(rng, 1, 15, 3), "R": normal(rng, 1, 15, 5), "scale": np.ones(5, np.float32)}
    nodes = [
        helper.make_node("GRU", ["x", "W", "R", "", "", "h"], ["Y", "h_out"], "rnn", hidden_size=5),
        helper.make_node("Mul", ["Y", "scale"], ["y"]),
    ]
    inputs = [("x", FLOAT, ["time", 1, 3]), ("h", FLOAT, state), ("scale", FLOAT, ["n"])]
    proto = model_of(nodes, inputs, [("y", FLOAT, [1, 1, 1, 5]), ("h_out", FLOAT, state)], weights)
    model = fastlstm.from_onnx(proto, whole=True, engine=engine)
    x = normal(rng, 3, 1, 1, 3)
    stream, other = (model.stream({"h": "h_out"}) for _ in range(2))
    assert np.array_equal(stream.step(x=x[0], scale=np.full(5, 8))["y"], 8 * other.step(x=x[0])["y"])
    assert np.array_equal(stream.step(x=x[1])["y"], other.step(x=x[1])["y"])
    with pytest.raises(ValueError):
        stream.step(x=x[2], scale=np.full(4, 8))
    twin = stream.copy()
    assert np.array_equal(stream.step(x=x[2])["y"], other.step(x=x[2])["y"])
    assert np.array_equal(twin.step(x=x[2])["y"], stream.state["h"][None])


def test_stream_refuses():
    rng = np.random.default_rng(2)
    model = fastlstm.from_onnx(detector(rng), engine="reference")
    names = {"h_in": "h_out", "c_in": "c_out"}
    cases = [
        (({"h": "h_out"},), ValueError, "no input 'h'"),
        (({"h_in": "h"},), ValueError, "no output 'h'"),
        (({"h_in": "h_out", "c_in": "h_out"},), ValueError, "each output once"),
        (({},), TypeError, "state must map"),
        ((["h_in"],), TypeError, "state must map"),
        ((names, {"sound": 1}), ValueError, "initial must be of h_in, c_in, got sound"),
        ((names, {"h_in": np.zeros((1, 1, 8))}), ValueError, r"h_in must have shape \[1, batch, 7\]"),
    ]
    for arguments, kind, said in cases:
        with pytest.raises(kind, match=said):
            model.stream(*arguments)
    with pytest.raises(ValueError, match="batch_size"):
        model.stream(names, batch_size=0)
    stream = model.stream(names)
    before = stream.step(sound=np.ones((1, 32)))["speech"]
    state = stream.state
    for inputs, kind, said in (
        ({}, ValueError, "inputs lack sound"),
        ({"sound": np.ones((1, 31))}, ValueError, r"sound must have shape \[batch, 32\], got \(1, 31\)"),
        ({"sound": np.ones((1, 32)), "h_in": state["h_in"]}, ValueError, "got h_in"),
        ({"sound": np.ones((1, 32)), "noise": 1}, ValueError, "got noise"),
        ({"sound": ["a"]}, TypeError, "sound"),
        ({"sound": np.ones((2, 32))}, ValueError, "initial_h"),  # another batch than the state's
    ):
        with pytest.raises(kind, match=said):
            stream.step(inputs)
        assert all(np.array_equal(stream.state[n], state[n]) for n in names)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(stream)
    with pytest.raises(ValueError, match="state must be of"):
        stream.state = {"x": 1}
    with pytest.raises(ValueError, match="h_in must have shape"):
        stream.state = {"h_in": np.zeros((1, 2, 7))}
    assert before.shape == (1, 1, 1)


def test_a_stream_is_for_one_thread_at_a_time():
    model = fastlstm.from_onnx(detector(np.random.default_rng(2)), engine="reference")
    stream = model.stream({"h_in": "h_out", "c_in": "c_out"})
    inside, go = threading.Event(), threading.Event()
    follow = model._plan.follow

    def slow(values):
        inside.set()
        assert go.wait(20)
        follow(values)

    model._plan.follow = slow
    thread = threading.Thread(target=stream.step, kwargs={"sound": np.ones((1, 32))})
    thread.start()
    assert inside.wait(20)
    with pytest.raises(RuntimeError, match="another call"):
        stream.step(sound=np.ones((1, 32)))
    go.set()
    thread.join()


def test_branches_between_recurrent_nodes(engine):
    """Two recurrent nodes side by side, one after both, and nodes that skip them."""
    rng = np.random.default_rng(3)
    shapes = {"a": (4, 3), "b": (4, 5), "c": (8, 2)}
    weights = {}
    for name, (width, hidden) in shapes.items():
        weights |= {
            f"{name}.W": normal(rng, 1, 3 * hidden, width),
            f"{name}.R": normal(rng, 1, 3 * hidden, hidden),
        }
    weights["one"] = np.array([1])
    nodes = [helper.make_node("Tanh", ["x"], ["t"])]
    for name, x in (("a", "x"), ("b", "t")):
        nodes.append(
            helper.make_node("GRU", [x, f"{name}.W", f"{name}.R"], [f"{name}.Y"], hidden_size=shapes[name][1])
        )
        nodes.append(helper.make_node("Squeeze", [f"{name}.Y", "one"], [f"{name}.y"]))
    nodes += [
        helper.make_node("Concat", ["a.y", "b.y"], ["both"], axis=-1),
        helper.make_node("GRU", ["both", "c.W", "c.R"], ["c.Y"], hidden_size=2),
        helper.make_node("Squeeze", ["c.Y", "one"], ["c.y"]),
        helper.make_node("ReduceMean", ["t"], ["mean"], keepdims=1, axes=[2]),
        helper.make_node("Mul", ["c.y", "mean"], ["y"]),
    ]
    proto = model_of(
        nodes,
        [("x", FLOAT, ["T", "B", 4])],
        [("y", FLOAT, ["T", "B", 2]), ("both", FLOAT, ["T", "B", 8])],
        weights,
    )
    model = fastlstm.from_onnx(proto, engine=engine)
    assert sum(p.reason == "recurrent" and p.engine == "fastlstm" for p in model.report) == 3
    x = normal(rng, 6, 2, 4)
    close(model(x=x), by_onnxruntime(proto, {"x": x}))
    results = [None] * 4

    def work(k):
        results[k] = [model(x=x * (k + 1)) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, found in enumerate(results):
        assert all(np.array_equal(f["y"], model(x=x * (k + 1))["y"]) for f in found)


def test_recurrent_nodes_in_subgraphs_stay_with_the_engine(engine):
    """An LSTM inside If; with the reference evaluator fastlstm runs it nevertheless, with all attributes."""
    rng = np.random.default_rng(4)
    inner = [helper.make_node("RNN", ["x", "W", "R"], ["Y"], "inner", hidden_size=3, clip=0.25)]
    branch = helper.make_graph(inner, "then", [], [helper.make_tensor_value_info("Y", FLOAT, None)])
    other = helper.make_graph(
        [helper.make_node("RNN", ["x", "W", "R"], ["Z"], "outer", hidden_size=3, direction="reverse")],
        "else", [], [helper.make_tensor_value_info("Z", FLOAT, None)],
    )  # fmt: skip
    nodes = [helper.make_node("If", ["which"], ["y"], "choice", then_branch=branch, else_branch=other)]
    proto = model_of(
        nodes,
        [("x", FLOAT, ["T", "B", 2]), ("which", TensorProto.BOOL, [])],
        [("y", FLOAT, ["T", 1, "B", 3])],
        {"W": normal(rng, 1, 3, 2), "R": normal(rng, 1, 3, 3)},
    )
    model = fastlstm.from_onnx(proto, engine=engine)
    inside = {p.node: p for p in model.report if p.op == "RNN"}
    assert {p.engine for p in inside.values()} == {engine} and inside["inner"].reason == "inside If 'choice'"
    x = normal(rng, 4, 2, 2)
    for which in (True, False):
        close(model(x=x, which=which), by_onnxruntime(proto, {"x": x, "which": np.array(which)}))
    with pytest.raises(TypeError, match="which must be bool"):
        model(x=x, which=1.0)


def choosing(rng):
    """Two detectors in the branches of an If, with the same names inside, as those that are for two rates."""
    branches = []
    for hidden in (7, 7):
        inner = detector(rng, hidden=hidden).graph
        for value in inner.output:
            for node in inner.node:
                node.output[:] = [value.name + "_inner" if o == value.name else o for o in node.output]
                node.input[:] = [value.name + "_inner" if i == value.name else i for i in node.input]
            value.name += "_inner"
        branches.append(helper.make_graph(inner.node, "branch", [], inner.output, inner.initializer))
    whole = detector(rng)
    nodes = [
        helper.make_node("Equal", ["rate", "sixteen"], ["fast"]),
        helper.make_node(
            "If",
            ["fast"],
            ["speech", "h_out", "c_out"],
            "rates",
            then_branch=branches[0],
            else_branch=branches[1],
        ),
    ]
    proto = model_of(nodes, [("rate", TensorProto.INT64, [])], [], {"sixteen": np.array(16000)})
    proto.graph.input.extend(whole.graph.input)
    proto.graph.output.extend(whole.graph.output)
    return proto


@pytest.mark.parametrize("rate", [16000, 8000])
def test_fixed_inputs_settle_an_if(engine, rate):
    """The recurrent node in the branch then runs on fastlstm."""
    rng = np.random.default_rng(10)
    proto = choosing(rng)
    feeds = {"sound": normal(rng, 2, 32), "h_in": normal(rng, 1, 2, 7), "c_in": normal(rng, 1, 2, 7)}
    wanted = by_onnxruntime(proto, {**feeds, "rate": np.array(rate)})
    other = by_onnxruntime(proto, {**feeds, "rate": np.array(24000 - rate)})
    assert not np.array_equal(wanted["speech"], other["speech"])
    model = fastlstm.from_onnx(proto, engine=engine, fixed={"rate": rate})
    assert list(model.inputs) == ["sound", "h_in", "c_in"]
    assert [p.engine for p in model.report if p.op == "LSTM"] == ["fastlstm"]
    close(model(feeds), wanted)
    open_ = fastlstm.from_onnx(proto, engine=engine)
    assert {p.engine for p in open_.report if p.op == "LSTM"} == {engine}
    close(open_(feeds, rate=rate), wanted)
    stream = model.stream({"h_in": "h_out", "c_in": "c_out"}, {"h_in": feeds["h_in"], "c_in": feeds["c_in"]})
    assert np.array_equal(stream.step(sound=feeds["sound"])["speech"], model(feeds)["speech"])


def test_nested_choices_are_settled(engine):
    """An If in a branch whose condition is another fixed input, beside one that stays open."""
    leaf = [
        helper.make_graph(
            [helper.make_node(op, ["x"], ["z"])], op, [], [helper.make_tensor_value_info("z", FLOAT, None)]
        )
        for op in ("Exp", "Sin", "Cos")
    ]
    inner = helper.make_node("If", ["b"], ["z1"], "inner", then_branch=leaf[0], else_branch=leaf[1])
    open_ = helper.make_node("If", ["c"], ["z2"], "open", then_branch=leaf[0], else_branch=leaf[1])
    outer = helper.make_graph(
        [inner, open_, helper.make_node("Add", ["z1", "z2"], ["z"])], "outer", [],
        [helper.make_tensor_value_info("z", FLOAT, None)],
    )  # fmt: skip
    nodes = [helper.make_node("If", ["a"], ["y"], then_branch=outer, else_branch=leaf[2])]
    flags = [(name, TensorProto.BOOL, []) for name in "abc"]
    proto = model_of(nodes, [("x", FLOAT, [2]), *flags], [("y", FLOAT, [2])], {})
    x = np.array([0.5, 2], np.float32)
    for a in (True, False):
        for b in (True, False):
            model = fastlstm.from_onnx(proto, engine=engine, fixed={"a": a, "b": b})
            assert [p.node for p in model.report if p.op == "If"] == (["open"] if a else [])
            for c in (True, False):
                feeds = {"x": x, "a": np.array(a), "b": np.array(b), "c": np.array(c)}
                close(model(x=x, c=c), by_onnxruntime(proto, feeds))


def test_fixed_inputs_are_checked():
    proto = choosing(np.random.default_rng(10))
    for fixed, kind, said in (
        ({"speed": 1}, ValueError, "fixed must be of rate, sound, h_in, c_in, got speed"),
        ({"rate": 1.5}, TypeError, "rate must be integers"),
        ({"rate": [1, 2]}, ValueError, "rate must have shape"),
        ([16000], TypeError, "fixed must map names of inputs to arrays, got list"),
    ):
        with pytest.raises(kind, match=said):
            fastlstm.from_onnx(proto, fixed=fixed)


def test_nodes_that_fastlstm_refuses_stay_with_the_engine():
    pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(5)
    attributes = {"activations": ["LeakyRelu"], "activation_alpha": [0.1, 0.2], "hidden_size": 3}
    feeds = {"X": normal(rng, 3, 2, 4), "W": normal(rng, 1, 3, 4), "R": normal(rng, 1, 3, 3)}
    proto = oracle.model_of("RNN", attributes, feeds, 14)
    model = fastlstm.from_onnx(proto)
    (placed,) = model.report
    assert placed.engine == "onnxruntime" and "activation_alpha has 1 value" in placed.reason
    close(model(feeds), by_onnxruntime(proto, feeds))


def test_weights_that_the_graph_computes(engine):
    """Folded once where they are constant: here a Cast from float16 and a Concat."""
    rng = np.random.default_rng(6)
    weights = {
        "W16": normal(rng, 1, 12, 4).astype(np.float16),
        "R1": normal(rng, 1, 5, 3),
        "R2": normal(rng, 1, 7, 3),
    }
    nodes = [
        helper.make_node("Cast", ["W16"], ["W"], to=FLOAT),
        helper.make_node("Concat", ["R1", "R2"], ["R"], axis=1),
        helper.make_node("LSTM", ["x", "W", "R"], ["Y", "Y_h"], hidden_size=3),
        helper.make_node("Exp", ["Y_h"], ["y"]),
    ]
    proto = model_of(nodes, [("x", FLOAT, [None, None, 4])], [("y", FLOAT, [1, None, 3])], weights)
    model = fastlstm.from_onnx(proto, engine=engine)
    assert [p.engine for p in model.report] == [engine, engine, "fastlstm", engine]
    x = normal(rng, 5, 2, 4)
    close(model(x=x), by_onnxruntime(proto, {"x": x}))


def test_initializers_that_are_inputs_may_be_given(engine):
    rng = np.random.default_rng(7)
    attributes, feeds = oracle.random_node(
        rng, "GRU", np.float32, clip=False, sizes=([3], [2], [4], [7]), lengths=False
    )
    proto = oracle.model_of("GRU", attributes, feeds, 14)
    for name in ("W", "R"):
        proto.graph.initializer.append(numpy_helper.from_array(feeds[name], name))
    model = fastlstm.from_onnx(proto, engine=engine)
    less = {name: v for name, v in feeds.items() if name not in ("W", "R")}
    close(
        model(less),
        dict(zip(("Y", "Y_h"), map(np.float32, oracle.run("GRU", feeds, attributes)), strict=True)),
    )
    other = feeds | {"W": -feeds["W"]}
    close(
        model(less, W=other["W"]),
        dict(zip(("Y", "Y_h"), map(np.float32, oracle.run("GRU", other, attributes)), strict=True)),
    )
    close(model(less), model(feeds))


def test_initializers_of_the_early_format_are_constants(engine):
    """Each had to be an input as well."""
    proto = lstm_chain(opset=8, change=before_13)
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    assert type(fastlstm.from_onnx(proto, whole=False)).__name__ == "Sequential"
    model = fastlstm.from_onnx(proto, whole=True, engine=engine)
    assert list(model.inputs) == ["x"] and len(proto.graph.input) > 1
    x = normal(np.random.default_rng(1), 5, 2, 4)
    close(model(x=x), by_onnxruntime(proto, {"x": x}))


def before_13(nodes, weights, outputs):
    nodes[1] = helper.make_node("Squeeze", ["Y"], ["s"], axes=[1])


def test_outputs_are_the_callers(engine):
    """An input handed through or a constant is copied: whoever writes to the output changes nothing."""
    nodes = [helper.make_node("Neg", ["x"], ["y"])]
    proto = model_of(
        nodes,
        [("x", FLOAT, [2])],
        [("y", FLOAT, [2]), ("x", FLOAT, [2]), ("k", FLOAT, [1])],
        {"k": np.ones(1, "f4")},
    )
    model = fastlstm.from_onnx(proto, engine=engine)
    x = np.ones(2, np.float32)
    outputs = model(x=x)
    outputs["x"][:] = outputs["k"][:] = 7
    assert x[0] == 1 and model(x=x)["k"] == 1


def test_integer_inputs_are_converted_if_they_fit():
    nodes = [helper.make_node("Neg", ["x"], ["y"])]
    proto = model_of(nodes, [("x", TensorProto.INT32, [None])], [("y", TensorProto.INT32, [None])], {})
    model = fastlstm.from_onnx(proto, engine="reference")
    assert model(x=[1, 2])["y"].tolist() == [-1, -2] and model(x=np.array([3]))["y"].dtype == np.int32
    for wrong in ([1.5], [2**40], [True]):
        with pytest.raises((TypeError, ValueError), match="x"):
            model(x=wrong)


def test_functions_are_looked_into(engine):
    rng = np.random.default_rng(8)
    body = [
        helper.make_node("GRU", ["u", "W", "R"], ["Y"], hidden_size=3),
        helper.make_node("Sin", ["Y"], ["v"]),
    ]
    function = helper.make_function(
        "mine", "Wave", ["u", "W", "R"], ["v"], body, [helper.make_opsetid("", 17)]
    )
    proto = model_of(
        [helper.make_node("Wave", ["x", "W", "R"], ["y"], domain="mine")],
        [("x", FLOAT, [None, None, 2])], [("y", FLOAT, [None, 1, None, 3])],
        {"W": normal(rng, 1, 9, 2), "R": normal(rng, 1, 9, 3)},
    )  # fmt: skip
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    model = fastlstm.from_onnx(proto, engine=engine)
    assert [(p.op, p.engine) for p in model.report] == [("GRU", "fastlstm"), ("Sin", engine)]
    x = normal(rng, 4, 2, 2)
    close(model(x=x), by_onnxruntime(proto, {"x": x}))


def test_options_of_from_onnx():
    proto = detector(np.random.default_rng(0))
    with pytest.raises(ValueError, match="engine must be None, 'onnxruntime' or 'reference', got 'tvm'"):
        fastlstm.from_onnx(proto, engine="tvm")
    with pytest.raises(ValueError, match="num_threads must be"):
        fastlstm.from_onnx(proto, num_threads=0)
    with pytest.raises(TypeError, match="whole must be a bool"):
        fastlstm.from_onnx(proto, whole=1)
    with pytest.raises(ValueError, match=r"is no plain model: .*'conv' \(Conv\)"):
        fastlstm.from_onnx(proto, whole=False)
    with pytest.raises(TypeError, match="source must be a path, bytes or an onnx.ModelProto, got int"):
        fastlstm.from_onnx(3)
    assert isinstance(fastlstm.from_onnx(proto.SerializeToString(), whole=True), OnnxModel)


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_an_engine_that_refuses_prints_nothing(kind, monkeypatch, capfd):
    """ONNX Runtime prints a banner where it may try another provider."""
    onnxruntime = pytest.importorskip("onnxruntime")

    def refuse(*arguments):
        raise kind("not this one")

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", refuse)
    with pytest.raises(ValueError, match="onnxruntime refuses the model: not this one"):
        fastlstm.from_onnx(detector(np.random.default_rng(0)), engine="onnxruntime")
    assert capfd.readouterr() == ("", "")


def test_a_missing_engine_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    proto = detector(np.random.default_rng(0))
    assert {p.engine for p in fastlstm.from_onnx(proto).report} == {"fastlstm", "reference"}
    with pytest.raises(ImportError, match=r"fastlstm\[onnx\]"):
        fastlstm.from_onnx(proto, engine="onnxruntime")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'fastlstm\[onnx\]'"):
        fastlstm.from_onnx(proto)


# --- plain models -------------------------------------------------------------------------------------------


def exported(module, x, **options):
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    open_axes = {0: "a", 1: "b"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the older exporter, which needs no more packages
        torch.onnx.export(
            module.eval(), (x,), file, dynamo=False, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": open_axes, "y": open_axes}, opset_version=17, **options,
        )  # fmt: skip
    return file.getvalue()


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(("bidirectional", "last"), [(True, None), (False, None), (False, "h"), (False, "y")])
def test_what_pytorch_exports_becomes_a_plain_model(cell, batch_first, bidirectional, last):
    torch = pytest.importorskip("torch")

    class Tagger(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(11, 5)
            self.rnn = getattr(torch.nn, cell)(
                5, 7, 2, batch_first=batch_first, bidirectional=bidirectional, dropout=0.1
            )
            width = 14 if bidirectional else 7
            self.norm, self.out = torch.nn.LayerNorm(width), torch.nn.Linear(width, 3)

        def forward(self, x):
            y, state = self.rnn(self.embed(x))
            h = state[0] if isinstance(state, tuple) else state
            y = {None: y, "h": h[-1], "y": y[:, -1] if batch_first else y[-1]}[last]
            return torch.log_softmax(self.out(torch.relu(self.norm(y))), -1)

    torch.manual_seed(0)
    module = Tagger()
    data = exported(module, torch.zeros(2, 4, dtype=torch.long))
    model = fastlstm.from_onnx(data, whole=False)
    x = np.random.default_rng(0).integers(0, 11, (6, 5))
    wanted = module(torch.from_numpy(x)).detach().numpy()
    assert np.abs(model(x)[0] - wanted).max() < 5e-6
    kinds = [type(part).__name__ for part in model]
    assert kinds == [
        "Embedding",
        cell,
        *(["LastStep"] if last else []),
        "LayerNorm",
        "Activation",
        "Linear",
        "Activation",
    ]
    assert model[1].num_layers == 2 and model[1].batch_first == batch_first
    whole = fastlstm.from_onnx(data, whole=True)
    assert sum(p.reason == "recurrent" for p in whole.report) == 2
    assert np.abs(whole(x=x)["y"] - wanted).max() < 5e-6
    if not bidirectional and last is None:
        stream = model.stream(1)
        step = [stream.step(x[0, t : t + 1] if batch_first else x[t, :1]) for t in range(5)]
        assert np.array_equal(
            np.stack(step)[:, 0], model(x)[0][(0, slice(0, 5)) if batch_first else (slice(0, 5), 0)]
        )


def lstm_chain(change=lambda nodes, weights, outputs: None, opset=17):
    """x [T, B, 4], LSTM, Squeeze, MatMul, Add: a plain model, unless `change` makes it none."""
    rng = np.random.default_rng(9)
    weights = {
        "W": normal(rng, 1, 12, 4), "R": normal(rng, 1, 12, 3), "one": np.array([1]), "zero": np.array([0]),
        "M": normal(rng, 3, 2), "b": normal(rng, 2), "h0": np.zeros((1, 2, 3), "f4"), "k": normal(rng, 2),
        "last": np.array(-1), "first": np.array(0),
    }  # fmt: skip
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R", "", "", "h0", "h0"], ["Y", "h", "c"], "rnn", hidden_size=3),
        helper.make_node("Squeeze", ["Y", "one"], ["s"]),
        helper.make_node("MatMul", ["s", "M"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    outputs = [("y", FLOAT, None)]
    change(nodes, weights, outputs)
    used = {name for node in nodes for name in node.input}
    outputs = [(n, e, [None] * 3 if s is None else s) for n, e, s in outputs]
    return model_of(
        nodes, [("x", FLOAT, ["T", 2, 4])], outputs, {n: v for n, v in weights.items() if n in used}, opset
    )


def replaced(k, *arguments, **attributes):
    def change(nodes, weights, outputs):
        nodes[k] = helper.make_node(*arguments, **attributes)

    return change


def appended(*arguments, **attributes):
    def change(nodes, weights, outputs):
        nodes.append(helper.make_node(*arguments, **attributes))
        outputs[0] = (nodes[-1].output[0], *outputs[0][1:])

    return change


def output_too(name, rank):
    return lambda nodes, weights, outputs: outputs.append((name, FLOAT, [None] * rank))


def started_with(value):
    return lambda nodes, weights, outputs: weights.update(h0=value)


PLAIN = {
    "as it is": lambda nodes, weights, outputs: None,
    "final states are outputs": lambda n, w, o: (output_too("h", 3)(n, w, o), output_too("c", 3)(n, w, o)),
    "Identity": appended("Identity", ["y"], ["z"]),
    "Add the other way round": replaced(3, "Add", ["b", "m"], ["y"]),
    "Softmax over the last axis": appended("Softmax", ["y"], ["z"], axis=2),
    "LeakyRelu": appended("LeakyRelu", ["y"], ["z"], alpha=0.25),
}
NOT_PLAIN = {
    "a state that is trained": (started_with(np.ones((1, 2, 3), "f4")), "initial state 'h0' is neither zero"),
    "another axis order": (appended("Transpose", ["y"], ["z"], perm=[1, 0, 2]), "order of its input"),
    "Softmax over time": (appended("Softmax", ["y"], ["z"], axis=0), "'z'"),
    "ThresholdedRelu": (appended("ThresholdedRelu", ["y"], ["z"]), "'z'"),
    "a sum of two values": (appended("Add", ["y", "m"], ["z"]), "'z'"),
    "a bias per sequence": (lambda n, w, o: w.update(b=np.ones((2, 1), "f4")), "'y'"),
    "an intermediate value is an output": (output_too("s", 3), "outputs are more"),
    "the product without its bias is an output": (output_too("m", 3), "'m'"),
    "two biases": (appended("Add", ["y", "k"], ["z"]), "'z'"),
    "a product from the left": (replaced(2, "MatMul", ["M", "s"], ["m"]), "'y'"),
    "the first step": (appended("Gather", ["y", "first"], ["z"], axis=0), "'z'"),
    "another node": (appended("Sin", ["y"], ["z"]), "'z'"),
    "a reversed product": (
        replaced(1, "Transpose", ["Y"], ["s"], perm=[0, 2, 1, 3]), "reads two directions apart",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_plain(name):
    proto = lstm_chain(PLAIN[name])
    model = fastlstm.from_onnx(proto, whole=False)
    x = normal(np.random.default_rng(1), 5, 2, 4)
    y, ((h, c),) = model(x)
    wanted = list(by_onnxruntime(proto, {"x": x}).values())
    for got, right in zip((y, h, c), wanted, strict=False):
        assert np.abs(got - right).max() < 1e-6


def two_layers(
    op="LSTM", h=((0, 1), (1, 2)), c=((0, 1), (1, 2)), sources="hhcc", finals=(0, 1), axis=0, parts=2
):
    """Two layers whose initial states are slices of inputs, and whose final states are joined."""
    rng, weights, nodes = np.random.default_rng(0), {"one": np.array([1]), "axis": np.array([axis])}, []
    gates = {"LSTM": 4, "GRU": 3}[op]
    x = "x"
    for k in (0, 1):
        own = {f"W{k}": normal(rng, 1, gates * 5, 5), f"R{k}": normal(rng, 1, gates * 5, 5)}
        states = {f"h{k}": (sources[k], h[k])} | ({f"c{k}": (sources[2 + k], c[k])} if op == "LSTM" else {})
        for name, (source, rows) in states.items():
            weights |= {f"{name}.from": np.array(rows[:1]), f"{name}.to": np.array(rows[1:])}
            nodes.append(helper.make_node("Slice", [source, f"{name}.from", f"{name}.to", "axis"], [name]))
        outputs = [f"Y{k}", f"hn{k}", *([f"cn{k}"] if op == "LSTM" else [])]
        nodes.append(helper.make_node(op, [x, *own, "", "", *states], outputs, f"l{k}", hidden_size=5))
        nodes.append(helper.make_node("Squeeze", [f"Y{k}", "one"], [f"y{k}"]))
        weights |= own
        x = f"y{k}"
    nodes.append(helper.make_node("Concat", [f"hn{k}" for k in finals], ["hn"], axis=0))
    state = [parts, "batch", 5]
    inputs = [("x", FLOAT, ["time", "batch", 5]), ("h", FLOAT, state)] + [("c", FLOAT, state)] * (
        op == "LSTM"
    )
    outputs = [("y1", FLOAT, ["time", "batch", 5]), ("hn", FLOAT, [2, "batch", 5])]
    return model_of(nodes, inputs, outputs, weights)


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
@pytest.mark.parametrize("rows", [((0, 1), (1, 2)), ((-2, -1), (-1, 2**63 - 1))])
def test_parts_of_states_are_those_of_layers(op, rows):
    proto = two_layers(op, rows, rows)
    model = fastlstm.from_onnx(proto, whole=False)
    rng = np.random.default_rng(1)
    x, h, c = normal(rng, 3, 4, 5), normal(rng, 2, 4, 5), normal(rng, 2, 4, 5)
    feeds = {"x": x, "h": h} | ({"c": c} if op == "LSTM" else {})
    y, state = model(x, (h, c) if op == "LSTM" else h)
    close({"y1": y, "hn": state[0] if op == "LSTM" else state}, by_onnxruntime(proto, feeds))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"h": ((1, 2), (0, 1)), "c": ((1, 2), (0, 1))}, "is not the part of 'h'"),
        ({"c": ((1, 2), (0, 1))}, "is not the part of 'c'"),
        ({"h": ((0, 1), (0, 1))}, "is not the part of 'h'"),
        ({"op": "GRU", "h": ((0, 1), (0, 1))}, "is not the part of 'h'"),
        ({"sources": "hcch"}, "is not the part of 'c'"),
        ({"sources": "hhhh"}, "is not the part of 'h'"),
        ({"parts": 3}, "read 2 of the 3 parts of 'h'"),
        ({"h": ((0, 5), (0, 5)), "axis": 2}, "is neither zero nor an input"),
        ({"finals": (1, 0)}, "in another order than layers"),
        ({"finals": (1, 1)}, "in another order than layers"),
    ],
)  # fmt: skip
def test_states_in_another_order_are_not_plain(change, said):
    proto = two_layers(**change)
    with pytest.raises(ValueError, match=f"is no plain model: .*{said}"):
        fastlstm.from_onnx(proto, whole=False)


def test_two_nodes_that_begin_with_one_input_are_not_plain():
    proto = two_layers("GRU")
    for node in proto.graph.node:
        if node.op_type == "GRU":
            node.input[5] = "h"
    with pytest.raises(ValueError, match="is not the part of 'h'"):
        fastlstm.from_onnx(proto, whole=False)


@pytest.mark.parametrize("last", [False, True])
def test_dense_parts_after_lengths_are_plain_behind_the_last_step_only(last):
    """Elsewhere the graph gives a bias in the padding and `Sequential` zeros."""
    rng = np.random.default_rng(5)
    weights = {
        "W": normal(rng, 1, 15, 4), "R": normal(rng, 1, 15, 5), "w": normal(rng, 5, 2), "b": normal(rng, 2),
        "axis": np.array([0 if last else 1]),
    }  # fmt: skip
    nodes = [
        helper.make_node("GRU", ["x", "W", "R", "", "n"], ["Y", "h"], "rnn", hidden_size=5),
        helper.make_node("Squeeze", ["h" if last else "Y", "axis"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    shape = ["batch", 2] if last else ["time", "batch", 2]
    inputs = [("x", FLOAT, ["time", "batch", 4]), ("n", TensorProto.INT32, ["batch"])]
    proto = model_of(nodes, inputs, [("y", FLOAT, shape)], weights)
    feeds = {"x": normal(rng, 4, 3, 4), "n": np.array([4, 2, 1], np.int32)}
    wanted = by_onnxruntime(proto, feeds)
    if last:
        model = fastlstm.from_onnx(proto, whole=False)
        close({"y": model(feeds["x"], lengths=feeds["n"])[0]}, wanted)
    else:
        with pytest.raises(ValueError, match="is no plain model: .*other values than zeros in the padding"):
            fastlstm.from_onnx(proto, whole=False)
        close(fastlstm.from_onnx(proto)(feeds), wanted)


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_not_plain(name):
    """Each runs as a whole graph nevertheless, with the right numbers."""
    change, said = NOT_PLAIN[name]
    proto = lstm_chain(change)
    with pytest.raises(ValueError, match=f"is no plain model: .*{said}"):
        fastlstm.from_onnx(proto, whole=False)
    if name == "a product from the left":
        return  # of shapes that do not fit
    model = fastlstm.from_onnx(proto)
    assert isinstance(model, OnnxModel)
    x = normal(np.random.default_rng(1), 5, 2, 4)
    close(model(x=x), by_onnxruntime(proto, {"x": x}))


def test_gemm_becomes_linear():
    rng = np.random.default_rng(2)
    for turned in (0, 1):
        weight = normal(rng, 3, 4) if turned else normal(rng, 4, 3)
        nodes = [
            helper.make_node("Gemm", ["x", "M", "b"], ["m"], transB=turned),
            helper.make_node("Elu", ["m"], ["y"]),
        ]
        weights = {"M": weight, "b": normal(rng, 3)}
        proto = model_of(nodes, [("x", FLOAT, [None, 4])], [("y", FLOAT, [None, 3])], weights)
        model = fastlstm.from_onnx(proto, whole=False)
        x = normal(rng, 5, 4)
        assert np.abs(model(x)[0] - by_onnxruntime(proto, {"x": x})["y"]).max() < 1e-6
        nodes[0].attribute.append(helper.make_attribute("alpha", 0.5))
        proto = model_of(nodes, [("x", FLOAT, [None, 4])], [("y", FLOAT, [None, 3])], weights)
        with pytest.raises(ValueError, match="no plain model"):
            fastlstm.from_onnx(proto, whole=False)


def test_gemm_with_a_bias_for_each_row_is_no_linear():
    """Of as many rows as outputs: the bias has the right size, along the wrong axis."""
    rng = np.random.default_rng(3)
    nodes = [helper.make_node("Gemm", ["x", "M", "b"], ["y"])]
    weights = {"M": normal(rng, 4, 3), "b": normal(rng, 3, 1)}
    proto = model_of(nodes, [("x", FLOAT, [None, 4])], [("y", FLOAT, [None, 3])], weights)
    model = fastlstm.from_onnx(proto)
    assert isinstance(model, OnnxModel)
    x = normal(rng, 3, 4)
    close(model(x=x), by_onnxruntime(proto, {"x": x}))


def test_without_onnx_the_package_can_be_imported():
    import subprocess
    import sys

    code = """
import sys
sys.modules["onnx"] = sys.modules["onnxruntime"] = None
import fastlstm, fastlstm.onnx
for call in (lambda: fastlstm.from_onnx(b""), lambda: fastlstm.to_onnx(fastlstm.LSTM(1, 1))):
    try:
        call()
    except ImportError as error:
        assert "pip install 'fastlstm[onnx]'" in str(error)
    else:
        raise SystemExit("no ImportError")
try:
    import fastlstm.onnx.backend
except ImportError as error:
    assert "fastlstm[onnx]" in str(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr + done.stdout


def test_a_plain_model_knows_where_its_parameters_are_from(tmp_path):
    from fastlstm.onnx import found

    path = tmp_path / "m.onnx"
    onnx.save(lstm_chain(), path)
    facts = found(str(path), {})
    assert facts.origins["0.weight_ih_l0"] == "LSTM 'rnn'" and facts.model is not None
    assert facts.origins.keys() == facts.model.state_dict().keys()
    onnx.save(detector(np.random.default_rng(0)), path)
    facts = found(str(path), {})
    assert facts.model is None and "'conv' (Conv)" in facts.notes[0]
    with pytest.raises(TypeError, match="cannot be given"):
        found(str(path), {"dtype": "float64"})
