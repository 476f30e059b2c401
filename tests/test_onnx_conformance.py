"""What the cases of the onnx package leave out, with random weights, against a literal float64 oracle."""

import itertools

import numpy as np
import onnx_oracle as oracle
import pytest

onnx = pytest.importorskip("onnx")

from onnx import numpy_helper  # noqa: E402

import fastlstm  # noqa: E402
from fastlstm.onnx import _node  # noqa: E402

OPS = ("LSTM", "GRU", "RNN")
WEIGHTS = ("W", "R", "B", "P")
PLAIN = {"sizes": ([3], [2], [4], [7]), "activations": False, "lengths": False, "bias": True}
TOLERANCE = {np.dtype(np.float64): 1e-11, np.dtype(np.float32): 4e-6}


def agree(op, attributes, feeds, opset=22, constant=WEIGHTS):
    model = fastlstm.from_onnx(oracle.model_of(op, attributes, feeds, opset, constant), whole=True)
    assert all(p.engine == "fastlstm" for p in model.report), model.report
    outputs = model({name: v for name, v in feeds.items() if name not in constant})
    dtype = feeds["X"].dtype
    for (name, got), wanted in zip(outputs.items(), oracle.run(op, feeds, attributes), strict=True):
        assert got.dtype == dtype and got.shape == wanted.shape, name
        error = np.abs(got - wanted) / np.maximum(1, np.abs(wanted))
        assert error.max(initial=0) < TOLERANCE[dtype], f"{op} {attributes} {name}"


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("op", OPS)
def test_random_nodes(op, dtype):
    rng = np.random.default_rng([OPS.index(op), np.dtype(dtype).itemsize])
    for trial in range(120):
        opset = (7, 14, 22, onnx.defs.onnx_opset_version())[trial % 4]
        attributes, feeds = oracle.random_node(rng, op, dtype, opset)
        agree(op, attributes, feeds, opset, WEIGHTS if trial % 3 else ())


@pytest.mark.parametrize("name", oracle.FUNCTIONS)
@pytest.mark.parametrize("op", OPS)
def test_every_activation_in_every_role(op, name):
    """Other ones elsewhere, and parameters that differ from role to role and from the defaults."""
    rng = np.random.default_rng(7)
    for role, direction in itertools.product(range(oracle.ROLES[op]), ("forward", "bidirectional")):
        names = list(oracle.DEFAULTS[op]) * (2 if direction == "bidirectional" else 1)
        names[role] = names[-1] = name
        attributes = {"activations": names, "direction": direction}
        taken = len(oracle.PARAMETERS.get(name, ()))
        for key in ("activation_alpha", "activation_beta")[:taken]:
            attributes[key] = [float(v) for v in rng.uniform(0.2, 0.9, names.count(name)).astype(np.float32)]
        for extra in (attributes, {k: v for k, v in attributes.items() if k != "activation_alpha"}):
            agree(op, *oracle.random_node(rng, op, direction=direction, activations=False, extra=extra))


def test_alpha_and_beta_are_consumed_by_those_who_take_them():
    """ONNX's order: HardSigmoid takes both, Tanh none, LeakyRelu an alpha; in the second direction Affine."""
    rng = np.random.default_rng(3)
    attributes = {
        "direction": "bidirectional",
        "activations": ["HardSigmoid", "Tanh", "LeakyRelu", "Sigmoid", "Affine", "ScaledTanh"],
        "activation_alpha": [0.25, 0.125, 0.5, 0.75],
        "activation_beta": [0.375, 0.0625, 1.5],
    }
    attributes, feeds = oracle.random_node(rng, "LSTM", direction="bidirectional", extra=attributes)
    agree("LSTM", attributes, feeds)
    recipe = _node.recipe(oracle.node_of("LSTM", attributes, feeds), 14)
    assert recipe.activations == (
        (("hard_sigmoid", 0.25, 0.375), "tanh", ("leaky_relu", 0.125)),
        ("sigmoid", ("affine", 0.5, 0.0625), ("scaled_tanh", 0.75, 1.5)),
    )


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lengths_zero_included(op, layout, direction):
    """Padding is never read, the output there is 0, and a sequence of length 0 keeps its state."""
    rng = np.random.default_rng(11)
    attributes, feeds = oracle.random_node(
        rng, op, direction=direction, layout=layout, lengths=False, activations=False
    )
    feeds["X"] = np.concatenate([feeds["X"]] * 3, axis=1 if layout else 0)
    steps, batch = feeds["X"].shape[:2][:: -1 if layout else 1]
    feeds["lengths"] = np.array([0, steps, 1, steps - 1, 0][:batch], np.int32)
    agree(op, attributes, feeds)
    x = feeds["X"].swapaxes(0, 1) if layout else feeds["X"]
    for b, n in enumerate(feeds["lengths"]):
        x[n:, b] = np.nan
    model = fastlstm.from_onnx(oracle.model_of(op, attributes, feeds, constant=WEIGHTS), whole=True)
    outputs = model({name: v for name, v in feeds.items() if name not in WEIGHTS})
    assert all(np.isfinite(v).all() for v in outputs.values())
    if "h" in feeds:
        at = (0, slice(None)) if layout else (slice(None), 0)
        assert np.array_equal(outputs["Y_h"][at], feeds["h"][at])


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_narrow_floats_are_widened(op, kind):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    narrow = np.dtype(np.float16 if kind == "float16" else ml_dtypes.bfloat16)
    rng = np.random.default_rng(5)
    attributes, feeds = oracle.random_node(rng, op, np.float32)
    small = {name: v.astype(narrow) if v.dtype.kind == "f" else v for name, v in feeds.items()}
    wide = {name: v.astype(np.float32) if v.dtype == narrow else v for name, v in small.items()}
    for constant in (WEIGHTS, ()):
        models = [fastlstm.from_onnx(oracle.model_of(op, attributes, f, 22, constant)) for f in (small, wide)]
        got, wanted = (
            m({name: v for name, v in f.items() if name not in constant})
            for m, f in zip(models, (small, wide), strict=True)
        )
        for name, value in got.items():
            assert value.dtype == narrow and np.array_equal(value, wanted[name].astype(narrow)), name


def test_weights_that_change_are_packed_again():
    rng = np.random.default_rng(2)
    attributes, feeds = oracle.random_node(
        rng, "LSTM", peepholes=True, clip=False, input_forget=False, **PLAIN
    )
    model = fastlstm.from_onnx(oracle.model_of("LSTM", attributes, feeds), whole=True)
    for name in WEIGHTS:
        before = model(feeds)
        feeds[name][0, -1] += 0.5  # in place: the same array, other numbers
        after, wanted = model(feeds), oracle.run("LSTM", feeds, attributes)
        assert not np.array_equal(before["Y_h"], after["Y_h"]), name
        for got, right in zip(after.values(), wanted, strict=True):
            assert np.abs(got - right).max(initial=0) < 1e-10 * max(1, np.abs(right).max(initial=0)), name
        again = model(feeds)
        assert all(np.array_equal(again[k], after[k]) for k in after)


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_a_swap_of_any_two_gates_is_noticed(op, monkeypatch):
    rng = np.random.default_rng(1)
    coupled = {"input_forget": False} if op == "LSTM" else {}
    attributes, feeds = oracle.random_node(rng, op, clip=False, **coupled, **PLAIN)
    right = _node.OPERATORS[op]
    agree(op, attributes, feeds)
    for a, b in itertools.combinations(range(len(right.gates)), 2):
        gates = list(right.gates)
        gates[a], gates[b] = gates[b], gates[a]
        monkeypatch.setitem(_node.OPERATORS, op, right._replace(gates=tuple(gates)))
        with pytest.raises(AssertionError):
            agree(op, attributes, feeds)


def test_swapped_peepholes_biases_states_and_directions_are_noticed(monkeypatch):
    rng = np.random.default_rng(9)
    attributes, feeds = oracle.random_node(
        rng, "LSTM", direction="bidirectional", peepholes=True, clip=False, input_forget=False, **PLAIN
    )
    agree("LSTM", attributes, feeds)
    for order in set(itertools.permutations(range(3))) - {_node.PEEPHOLES}:
        monkeypatch.setattr(_node, "PEEPHOLES", order)
        with pytest.raises(AssertionError):
            agree("LSTM", attributes, feeds)
    monkeypatch.undo()
    state = "h" if "h" in feeds else "c"
    feeds.setdefault("h", np.zeros_like(feeds[state]))
    feeds.setdefault("c", np.zeros_like(feeds[state]))
    feeds["h"], feeds["c"] = (rng.standard_normal(feeds["h"].shape) for _ in range(2))
    call = _node._called
    for wrong in (
        lambda layer, x, lengths, h, c: call(layer, x, lengths, c, h),
        lambda layer, x, lengths, h, c: call(layer, x, lengths, h[::-1], c[::-1]),
    ):
        agree("LSTM", attributes, feeds)
        monkeypatch.setattr(_node, "_called", wrong)
        with pytest.raises(AssertionError):
            agree("LSTM", attributes, feeds)
        monkeypatch.undo()


def test_constant_weights_notice_no_swap(monkeypatch):
    """Why the onnx package's own cases do not suffice."""
    rng = np.random.default_rng(4)
    attributes, feeds = oracle.random_node(rng, "LSTM", peepholes=False, input_forget=False, **PLAIN)
    del feeds["B"]
    feeds["W"], feeds["R"] = np.full_like(feeds["W"], 0.1), np.full_like(feeds["R"], 0.1)
    monkeypatch.setitem(_node.OPERATORS, "LSTM", _node.OPERATORS["LSTM"]._replace(gates=(1, 2, 3, 0)))
    agree("LSTM", attributes, feeds)


def test_onnxruntime_reads_clip_as_fastlstm_does():
    """The cell state is not clipped, nor what the last activation reads."""
    onnxruntime = pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(6)
    for op in OPS:
        for direction in ("forward", "bidirectional"):
            attributes, feeds = oracle.random_node(
                rng, op, np.float32, direction=direction, clip=True, layout=False, hidden_size=True, **PLAIN
            )  # fmt: skip
            if op == "LSTM":
                feeds["c"] = np.full(
                    feeds["R"].shape[:1] + feeds["X"].shape[1:2] + feeds["R"].shape[2:], 4.0, "f4"
                )
            if op == "RNN":
                attributes["activations"] = ["Tanh"] * feeds["W"].shape[0]
            proto = oracle.model_of(op, attributes, feeds, 14)
            session = onnxruntime.InferenceSession(proto.SerializeToString())
            for got, wanted in zip(session.run(None, feeds), oracle.run(op, feeds, attributes), strict=True):
                assert np.abs(got - wanted).max() < 1e-5, (op, attributes)
            agree(op, attributes, feeds, 14)


def test_the_oracle_reads_onnx_as_numpy_helper_writes_it():
    rng = np.random.default_rng(8)
    attributes, feeds = oracle.random_node(rng, "GRU")
    proto = oracle.model_of("GRU", attributes, feeds, constant=WEIGHTS)
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert all(np.array_equal(stored[name], feeds[name]) for name in stored) and set(stored) >= {"W", "R"}
