"""`to_onnx`: what other engines make of it, and the way back."""

import stat

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

import fastlstm  # noqa: E402
from fastlstm import (  # noqa: E402
    GRU,
    LSTM,
    RNN,
    Activation,
    Dropout,
    Embedding,
    GatedRNN,
    LastStep,
    LayerNorm,
    Linear,
    Sequential,
)
from fastlstm.onnx import OnnxModel  # noqa: E402

TOKENS = 11
NODES = {  # recurrent layers that are nodes of ONNX: they come back with the same bits
    "lstm": lambda **o: LSTM(5, 7, seed=1, **o),
    "lstm deep": lambda **o: LSTM(5, 7, 3, bidirectional=True, batch_first=True, seed=1, **o),
    "lstm general": lambda **o: LSTM(
        5,
        33,
        peepholes=True,
        clip=0.5,
        activations=(("hard_sigmoid", 0.25), "softsign", ("scaled_tanh", 0.5, 0.75)),
        **o,
    ),
    "lstm coupled": lambda **o: LSTM(5, 7, 2, coupled_gates=True, peepholes=True, bias=False, **o),
    "lstm reverse": lambda **o: LSTM(5, 1, reverse=True, **o),
    "gru": lambda **o: GRU(5, 33, 2, seed=2, **o),
    "gru before": lambda **o: GRU(
        5, 7, reset_after=False, bidirectional=True, bias=False, batch_first=True, **o
    ),
    "gru general": lambda **o: GRU(5, 7, reverse=True, clip=0.25, activations=("sigmoid", ("elu", 0.5)), **o),
    "rnn": lambda **o: RNN(5, 7, 2, nonlinearity="relu", **o),
    "rnn general": lambda **o: RNN(5, 7, bidirectional=True, activations=("leaky_relu", 0.25), **o),
}
EQUATIONS = {  # those that ONNX has no operator for
    "projection": lambda **o: LSTM(5, 7, 2, proj_size=3, bidirectional=True, peepholes=True, clip=2.0, **o),
    "projection coupled": lambda **o: LSTM(5, 7, proj_size=3, coupled_gates=True, batch_first=True, **o),
    "no forget gate": lambda **o: LSTM(5, 7, forget_gate=False, reverse=True, peepholes=True, **o),
    "gated": lambda **o: GatedRNN(5, 7, 2, bidirectional=True, batch_first=True, **o),
    "gated general": lambda **o: GatedRNN(
        5, 33, bias=False, clip=0.5, activations=(("hard_sigmoid", 0.25), ("affine", 0.5, 0.125)), **o
    ),
}
MODELS = {
    "tagger": lambda **o: Sequential(
        Embedding(TOKENS, 5, **o), LSTM(5, 7, 2, **o), Dropout(0.5), Linear(7, 3, **o), Activation("relu"),
        LayerNorm(3, **o), GRU(3, 4, **o), Linear(4, 2, bias=False, **o), Activation("softmax"),
    ),
    "classifier": lambda **o: Sequential(
        LSTM(5, 7, bidirectional=True, batch_first=True, **o), LastStep(), Linear(14, 3, **o),
        LayerNorm(3, 2**-10, bias=False, **o), Activation("log_softmax"),
    ),
    "two alike": lambda **o: Sequential(GRU(5, 5, **o), GRU(5, 5, **o)),
    "last": lambda **o: Sequential(RNN(5, 7, 2, **o), LastStep()),
}  # fmt: skip
DENSE = {
    "linear": lambda: Linear(5, 3),
    "embedding": lambda: Embedding(TOKENS, 3),
    "mlp": lambda: Sequential(
        Linear(5, 4), Activation(("scaled_tanh", 0.5, 0.3)), Activation(("affine", 2.0, 0.1)), LayerNorm(4),
        Activation(("hard_sigmoid", 0.3, 0.4)), Activation("softsign"), Activation("softplus"),
        LayerNorm(4, elementwise_affine=False), Activation(("elu", 0.3)), Activation("sigmoid"),
    ),
}  # fmt: skip


def parts_of(model):
    return list(model) if isinstance(model, Sequential) else [model]


def recurrent(model):
    return [(i, part._options) for i, part in enumerate(parts_of(model)) if hasattr(part, "hidden_size")]


def feeds_of(model, rng, states=False, lengths=None, steps=6, batch=4):
    """Inputs of the graph, and arguments of a call of the model."""
    first = parts_of(model)[0]
    if isinstance(first, Embedding):
        x = rng.integers(0, TOKENS, (steps, batch))
    else:
        width = first.input_size if recurrent(model) else first.in_features
        x = rng.standard_normal((steps, batch, width)).astype(model.dtype)
    if any(o.batch_first for _, o in recurrent(model)):
        x = np.ascontiguousarray(x.swapaxes(0, 1))
    feeds, state = {"x": x}, []
    for i, o in recurrent(model) if states else []:
        values = [
            rng.standard_normal((o.num_layers * len(o.suffixes), batch, n)).astype(model.dtype)
            for n in o.state_sizes
        ]
        end = "" if len(recurrent(model)) == 1 else f"_{i}"
        feeds |= {f"{what}_in{end}": v for what, v in zip("hc", values, strict=False)}
        state.append(tuple(values) if len(values) == 2 else values[0])
    arguments = [x]
    if states:
        arguments.append(tuple(state) if isinstance(model, Sequential) else state[0])
    options = {}
    if lengths is not None:
        feeds["lengths"] = options["lengths"] = np.array(lengths, np.int32)
    return feeds, arguments, options


def flat(value):
    return [v for part in value for v in flat(part)] if isinstance(value, tuple) else [value]


def call(model, arguments, options):
    """Output and, flat, final states."""
    return flat(model(*arguments, **options))


def by_onnxruntime(proto, feeds):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def near(got, wanted, tolerance=3e-6):
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert (np.abs(a - b) / np.maximum(1, np.abs(b))).max(initial=0) < tolerance


@pytest.mark.parametrize("name", [*NODES, *EQUATIONS, *MODELS])
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("lengths", [None, [6, 1, 3, 2]])
def test_onnxruntime_agrees(name, states, lengths):
    model = (NODES | EQUATIONS | MODELS)[name]()
    rng = np.random.default_rng(0)
    proto = fastlstm.to_onnx(model, states=states, lengths=lengths is not None)
    feeds, arguments, options = feeds_of(model, rng, states, lengths)
    assert [v.name for v in proto.graph.input] and {v.name for v in proto.graph.input} == set(feeds)
    wanted = call(model, arguments, options)
    wanted = wanted if states else wanted[:1]
    near(by_onnxruntime(proto, feeds), wanted)
    whole = fastlstm.from_onnx(proto, whole=True)
    near(list(whole(feeds).values()), wanted)
    assert next(iter(whole.outputs)) == "y"


@pytest.mark.parametrize("name", [*NODES, *MODELS])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_way_back_has_the_same_bits(name, dtype):
    """As a plain model, with or without states in the graph; nodes of a whole graph too."""
    model = (NODES | MODELS)[name](dtype=dtype)
    rng = np.random.default_rng(1)
    lengths = [6, 1, 0, 3]
    for states in (False, True):
        back = fastlstm.from_onnx(fastlstm.to_onnx(model, states=states), whole=False)
        assert type(back) is type(model) and back.dtype == model.dtype
        _, arguments, options = feeds_of(model, rng, True, lengths)
        for chosen in ({}, options):
            for a, b in zip(call(model, arguments, chosen), call(back, arguments, chosen), strict=True):
                assert a.dtype == b.dtype and np.array_equal(a, b)
    if name in NODES:
        assert back.state_dict().keys() == model.state_dict().keys()
        whole = fastlstm.from_onnx(
            fastlstm.to_onnx(model, states=True, lengths=True), whole=True, engine="reference"
        )
        feeds, arguments, options = feeds_of(model, rng, True, lengths)
        for a, b in zip(whole(feeds).values(), call(model, arguments, options), strict=True):
            assert a.dtype == b.dtype and np.array_equal(a, b)


@pytest.mark.parametrize("name", DENSE)
def test_models_without_recurrent_layers(name):
    model = DENSE[name]()
    proto = fastlstm.to_onnx(model)
    back = fastlstm.from_onnx(proto)
    rng = np.random.default_rng(2)
    x = rng.integers(0, TOKENS, 6) if name == "embedding" else rng.standard_normal((6, 5)).astype(np.float32)
    wanted = flat(model(x))[0]
    near(by_onnxruntime(proto, {"x": x}), [wanted])
    if name == "mlp":  # affine and scaled tanh are several operators
        assert isinstance(back, OnnxModel)
        near([back(x=x)["y"]], [wanted])
    else:
        assert type(back) is type(model) and np.array_equal(back(x), wanted)
    for option in ("states", "lengths"):
        with pytest.raises(ValueError, match="states and lengths must be False"):
            fastlstm.to_onnx(model, **{option: True})


@pytest.mark.parametrize("name", ["projection", "no forget gate", "gated", "gated general"])
def test_float64_equations_by_the_reference_evaluator(name):
    model = EQUATIONS[name](dtype="float64")
    rng = np.random.default_rng(3)
    feeds, arguments, options = feeds_of(model, rng, True, [6, 0, 3, 1])
    proto = fastlstm.to_onnx(model, states=True, lengths=True)
    back = fastlstm.from_onnx(proto, engine="reference")
    assert isinstance(back, OnnxModel) and {"Scan"} <= {p.op for p in back.report}
    near(list(back(feeds).values()), call(model, arguments, options), 1e-12)


def test_streams_of_exported_states():
    model = Sequential(LSTM(5, 7, 2, seed=0), Linear(7, 3))
    back = fastlstm.from_onnx(fastlstm.to_onnx(model, states=True), whole=True)
    stream = back.stream({"h_in": "h_out", "c_in": "c_out"}, batch_size=2)
    x = np.random.default_rng(0).standard_normal((4, 2, 5)).astype(np.float32)
    steps = [stream.step(x=frame[None])["y"][0] for frame in x]
    assert np.abs(np.stack(steps) - model(x)[0]).max() < 1e-6


@pytest.mark.parametrize("opset", [13, 14, 17, 18, 22])
def test_opsets(opset):
    model = Sequential(GRU(5, 7, 2, bidirectional=True), LastStep(), Linear(14, 3), Activation("log_softmax"))
    proto = fastlstm.to_onnx(model, opset=opset, states=True)
    assert proto.opset_import[0].version == opset and proto.producer_name == "fastlstm"
    feeds, arguments, options = feeds_of(model, np.random.default_rng(0), True)
    near(by_onnxruntime(proto, feeds), call(model, arguments, options))
    gated = GatedRNN(5, 7)
    feeds, arguments, options = feeds_of(gated, np.random.default_rng(0), True, [6, 2, 1, 3])
    proto = fastlstm.to_onnx(gated, opset=opset, states=True, lengths=True)
    near(by_onnxruntime(proto, feeds), call(gated, arguments, options))


def test_bfloat16_weights_are_what_they_stand_for():
    model = LSTM(5, 7, seed=0).quantize("bfloat16")
    back = fastlstm.from_onnx(fastlstm.to_onnx(model))
    x = np.random.default_rng(0).standard_normal((6, 2, 5))
    assert np.array_equal(model(x)[0], back(x)[0]) and back.weight_dtype == "float32"


def test_a_file_is_written_at_once(tmp_path):
    path = tmp_path / "m.onnx"
    proto = fastlstm.to_onnx(LSTM(5, 7, seed=0), path)
    assert path.read_bytes() == proto.SerializeToString(deterministic=True)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"] and stat.S_ISREG(path.stat().st_mode)
    same = fastlstm.to_onnx(LSTM(5, 7, seed=0), str(path))
    assert same.SerializeToString(deterministic=True) == proto.SerializeToString(deterministic=True)
    before = path.read_bytes()
    with pytest.raises(ValueError):
        fastlstm.to_onnx(LSTM(5, 7).quantize("int8"), path)
    assert path.read_bytes() == before
    with pytest.raises(OSError):
        fastlstm.to_onnx(LSTM(5, 7), tmp_path / "none" / "m.onnx")
    from fastlstm.onnx import found, written

    model = Sequential(Embedding(TOKENS, 5), LSTM(5, 7, 2), Linear(7, 3))
    written(model, str(path))
    facts = found(str(path), {})
    assert repr(facts.model) == repr(model) and facts.origins["1.weight_ih_l1"] == "LSTM '1.l1'"


def test_refused_by_name():
    cases = [
        (lambda: fastlstm.to_onnx(LSTM(5, 7).quantize("int8")), ValueError, "no such int8 layer"),
        (lambda: fastlstm.to_onnx(3), TypeError, "model must be a module of fastlstm, got int"),
        (lambda: fastlstm.to_onnx(LSTM(5, 7), opset=12), ValueError, "opset must be an int in 13.."),
        (lambda: fastlstm.to_onnx(LSTM(5, 7), opset=999), ValueError, "opset"),
        (lambda: fastlstm.to_onnx(LayerNorm(5), opset=16), ValueError, "17 or later for LayerNorm, got 16"),
        (lambda: fastlstm.to_onnx(LayerNorm(5, 1e-3, dtype="float64")), ValueError, "0.001 is no float32"),
        (lambda: fastlstm.to_onnx(LSTM(5, 7), states=1), TypeError, "states must be a bool"),
        (lambda: fastlstm.to_onnx(LSTM(5, 7, dtype="float64", clip=0.1)), ValueError, "0.1 is no float32"),
        (
            lambda: fastlstm.to_onnx(RNN(5, 7, dtype="float64", activations=("elu", 0.1))),
            ValueError, "0.1 is no float32",
        ),
        (lambda: fastlstm.to_onnx(Activation("tanh")), ValueError, "size and dtype of x open"),
    ]  # fmt: skip
    for make, kind, said in cases:
        with pytest.raises(kind, match=said):
            make()


def test_default_parameters_of_activations_stay_exact_in_float64():
    for spec in ("leaky_relu", "hard_sigmoid", "elu", "thresholded_relu", "scaled_tanh", "affine"):
        model = RNN(5, 7, dtype="float64", activations=spec)
        back = fastlstm.from_onnx(fastlstm.to_onnx(model), whole=False)
        x = np.random.default_rng(0).standard_normal((6, 2, 5))
        assert np.array_equal(model(x)[0], back(x)[0]), spec


ELEVEN = (
    "sigmoid", "tanh", "relu", "affine", "leaky_relu", "thresholded_relu", "scaled_tanh", "hard_sigmoid",
    "elu", "softsign", "softplus",
)  # fmt: skip


@pytest.mark.parametrize("spec", ELEVEN)
@pytest.mark.parametrize(
    "cell, role", [("rnn", 0), *(("gru", k) for k in (0, 1)), *(("lstm", k) for k in (0, 1, 2))]
)
def test_onnxruntime_agrees_with_each_activation_at_its_defaults(spec, cell, role):
    """Whose own defaults of some differ: 0 where fastlstm and ONNX's operators have 1."""
    usual = {"rnn": ["tanh"], "gru": ["sigmoid", "tanh"], "lstm": ["sigmoid", "tanh", "tanh"]}[cell]
    for beside in ([], ["hard_sigmoid"] if len(usual) > 1 else []):  # whose parameters come before or after
        specs = usual[:role] + [spec] + usual[role + 1 :]
        if beside:
            specs[role - 1] = beside[0]
        kind = {"rnn": RNN, "gru": GRU, "lstm": LSTM}[cell]
        activations = tuple(specs) if len(specs) > 1 else spec
        model = kind(5, 7, bidirectional=True, activations=activations, seed=1)
        feeds, arguments, options = feeds_of(model, np.random.default_rng(0), True, steps=3)
        proto = fastlstm.to_onnx(model, states=True)
        wanted = call(model, arguments, options)
        near(by_onnxruntime(proto, feeds), wanted, 1e-5)
        for a, b in zip(
            call(fastlstm.from_onnx(proto, whole=False), arguments, options), wanted, strict=True
        ):
            assert np.array_equal(a, b)


def test_float64_defaults_beside_those_that_engines_read_differently_are_refused():
    with pytest.raises(ValueError, match="0.01 is no float32"):
        fastlstm.to_onnx(GRU(5, 7, dtype="float64", activations=("leaky_relu", "affine")))


@pytest.mark.parametrize("wrong", ["gates", "peepholes", "states"])
def test_planted_mistakes_are_noticed(wrong, monkeypatch):
    """The comparison with ONNX Runtime goes red for each."""
    from fastlstm.onnx import _export, _node

    model = LSTM(5, 7, peepholes=True, seed=0)
    feeds, arguments, options = feeds_of(model, np.random.default_rng(0), True)
    wanted = call(model, arguments, options)
    near(by_onnxruntime(fastlstm.to_onnx(model, states=True), feeds), wanted)
    if wrong == "gates":
        operator = _node.OPERATORS["LSTM"]._replace(gates=(0, 1, 2, 3))
        monkeypatch.setitem(_node.OPERATORS, "LSTM", operator)
    elif wrong == "peepholes":
        monkeypatch.setattr(_node, "PEEPHOLES", (0, 1, 2))
    else:
        given = _export._Export._given
        monkeypatch.setattr(_export._Export, "_given", lambda *arguments: given(*arguments)[::-1])
    with pytest.raises(AssertionError):
        near(by_onnxruntime(fastlstm.to_onnx(model, states=True), feeds), wanted)
