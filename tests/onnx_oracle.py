"""ONNX's RNN, GRU and LSTM, literally: one line per equation of the standard, in float64, sharing no code.

And random nodes with all that they read, as one-node models.
"""

import numpy as np

GATES = {"LSTM": "iofc", "GRU": "zrh", "RNN": "i"}
ROLES = {"LSTM": 3, "GRU": 2, "RNN": 1}
PARAMETERS = {  # alpha and beta where a function has them, by default those of the operator of that name
    "Affine": (1.0, 0.0), "LeakyRelu": (0.01,), "ThresholdedRelu": (1.0,), "ScaledTanh": (1.0, 1.0),
    "HardSigmoid": (0.2, 0.5), "Elu": (1.0,),
}  # fmt: skip
FUNCTIONS = {
    "Relu": lambda x: np.maximum(0, x),
    "Tanh": np.tanh,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Affine": lambda x, alpha, beta: alpha * x + beta,
    "LeakyRelu": lambda x, alpha: np.where(x >= 0, x, alpha * x),
    "ThresholdedRelu": lambda x, alpha: np.where(x >= alpha, x, 0),
    "ScaledTanh": lambda x, alpha, beta: alpha * np.tanh(beta * x),
    "HardSigmoid": lambda x, alpha, beta: np.minimum(np.maximum(alpha * x + beta, 0), 1),
    "Elu": lambda x, alpha: np.where(x >= 0, x, alpha * (np.exp(np.minimum(x, 0)) - 1)),
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Softplus": lambda x: np.logaddexp(0, x),
}
DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def functions(op, attributes, directions):
    """Per direction the activation functions, with alphas and betas consumed in order."""
    names = attributes.get("activations", DEFAULTS[op] * directions)
    alphas = list(attributes.get("activation_alpha", ()))
    betas = list(attributes.get("activation_beta", ()))
    found = []
    for name in names:
        values = list(PARAMETERS.get(name, ()))
        for k, given in enumerate((alphas, betas)[: len(values)]):
            if given:
                values[k] = given.pop(0)
        found.append(lambda x, f=FUNCTIONS[name], v=tuple(values): f(x, *v))
    n = ROLES[op]
    return [found[k : k + n] for k in range(0, len(found), n)]


def blocks(value, names):
    """Gate by gate: {"i": .., "o": ..}."""
    return dict(zip(names, np.split(value, len(names)), strict=True))


def lstm(xs, h, c, W, R, B, P, act, clip, attributes):
    W, R = blocks(W, "iofc"), blocks(R, "iofc")
    Wb, Rb = (blocks(b, "iofc") for b in np.split(B, 2))
    P = blocks(P, "iof")
    f, g, hh = act
    ys = []
    for x in xs:
        i = f(clip(W["i"] @ x + R["i"] @ h + P["i"] * c + Wb["i"] + Rb["i"]))
        ft = f(clip(W["f"] @ x + R["f"] @ h + P["f"] * c + Wb["f"] + Rb["f"]))
        ft = 1 - i if attributes.get("input_forget") else ft
        ct = g(clip(W["c"] @ x + R["c"] @ h + Wb["c"] + Rb["c"]))
        c = ft * c + i * ct
        o = f(clip(W["o"] @ x + R["o"] @ h + P["o"] * c + Wb["o"] + Rb["o"]))
        h = o * hh(c)
        ys.append(h)
    return ys, h, c


def gru(xs, h, c, W, R, B, P, act, clip, attributes):
    W, R = blocks(W, "zrh"), blocks(R, "zrh")
    Wb, Rb = (blocks(b, "zrh") for b in np.split(B, 2))
    f, g = act
    ys = []
    for x in xs:
        z = f(clip(W["z"] @ x + R["z"] @ h + Wb["z"] + Rb["z"]))
        r = f(clip(W["r"] @ x + R["r"] @ h + Wb["r"] + Rb["r"]))
        if attributes.get("linear_before_reset"):
            n = g(clip(W["h"] @ x + r * (R["h"] @ h + Rb["h"]) + Wb["h"]))
        else:
            n = g(clip(W["h"] @ x + R["h"] @ (r * h) + Rb["h"] + Wb["h"]))
        h = (1 - z) * n + z * h
        ys.append(h)
    return ys, h, c


def rnn(xs, h, c, W, R, B, P, act, clip, attributes):
    Wb, Rb = np.split(B, 2)
    ys = []
    for x in xs:
        h = act[0](clip(W @ x + R @ h + Wb + Rb))
        ys.append(h)
    return ys, h, c


CELLS = {"LSTM": lstm, "GRU": gru, "RNN": rnn}


def run(op, feeds, attributes):
    """Y, Y_h and, of an LSTM, Y_c in ONNX's shapes."""
    given = {name: v.astype(np.float64) if v.dtype.kind != "i" else v for name, v in feeds.items()}
    layout = attributes.get("layout", 0)
    X = given["X"].swapaxes(0, 1) if layout else given["X"]
    T, batch, _ = X.shape
    D, _, H = given["R"].shape
    gates = len(GATES[op])
    B = given.get("B", np.zeros((D, 2 * gates * H)))
    P = given.get("P", np.zeros((D, 3 * H)))
    h0, c0 = (given.get(name, np.zeros((batch, D, H) if layout else (D, batch, H))) for name in ("h", "c"))
    if layout:
        h0, c0 = h0.swapaxes(0, 1), c0.swapaxes(0, 1)
    lengths = given.get("lengths", np.full(batch, T))
    bound = attributes.get("clip", np.inf)
    Y, Yh, Yc = np.zeros((T, D, batch, H)), np.zeros((D, batch, H)), np.zeros((D, batch, H))
    act = functions(op, attributes, D)
    for d in range(D):
        backward = attributes.get("direction") == "reverse" or d == 1
        for b in range(batch):
            steps = list(range(lengths[b]))[:: -1 if backward else 1]
            ys, Yh[d, b], Yc[d, b] = CELLS[op](
                X[steps, b], h0[d, b], c0[d, b], given["W"][d], given["R"][d], B[d], P[d], act[d],
                lambda v: np.clip(v, -bound, bound), attributes,
            )  # fmt: skip
            for t, y in zip(steps, ys, strict=True):
                Y[t, d, b] = y
    if layout:
        Y, Yh, Yc = Y.transpose(2, 0, 1, 3), Yh.swapaxes(0, 1), Yc.swapaxes(0, 1)
    return [Y, Yh, Yc][: 3 if op == "LSTM" else 2]


# --- random nodes -------------------------------------------------------------------------------------------


def random_activations(rng, op, directions):
    names = [str(rng.choice(list(FUNCTIONS))) for _ in range(ROLES[op] * directions)]
    attributes = {"activations": names}
    for k, key in enumerate(("activation_alpha", "activation_beta")):
        takers = [name for name in names if len(PARAMETERS.get(name, ())) > k]
        count = int(rng.integers(0, len(takers) + 1))  # the rest have their defaults
        if count:
            attributes[key] = [float(v) for v in rng.uniform(0.1, 0.9, count).astype(np.float32)]
    return attributes


def random_node(rng, op, dtype=np.float64, opset=22, extra=None, **fixed):
    """Attributes and feeds by name; `fixed` decides what would be drawn, `extra` are more attributes.

    Values stay moderate: unbounded activations may multiply rounding errors without end."""
    while True:
        attributes, feeds = _drawn(rng, op, dtype, opset, dict(fixed))
        attributes |= extra or {}
        with np.errstate(all="ignore"):
            if all(np.abs(v).max(initial=0) < 20 for v in run(op, feeds, attributes)):
                return attributes, feeds


def _drawn(rng, op, dtype, opset, fixed):
    sizes = fixed.pop("sizes", ([1, 3, 7], [1, 2, 5], [1, 4, 7], [1, 3, 7, 33]))
    T, B, width, H = (int(rng.choice(s)) for s in sizes)
    chance = lambda name, p=0.5: fixed.pop(name) if name in fixed else bool(rng.random() < p)  # noqa: E731
    direction = fixed.pop("direction", None) or str(rng.choice(["forward", "reverse", "bidirectional"]))
    D = 2 if direction == "bidirectional" else 1
    attributes = {} if direction == "forward" and rng.random() < 0.5 else {"direction": direction}
    if chance("hidden_size"):
        attributes["hidden_size"] = H
    if chance("activations", 0.6):
        attributes |= random_activations(rng, op, D)
    if chance("clip", 0.4):
        attributes["clip"] = float(np.float32(rng.uniform(0.2, 1.5)))
    if opset >= 14 and chance("layout", 0.4):
        attributes["layout"] = 1
    if op == "LSTM" and chance("input_forget", 0.3):
        attributes["input_forget"] = 1
    if op == "GRU" and chance("linear_before_reset"):
        attributes["linear_before_reset"] = 1
    layout, gates, scale = attributes.get("layout", 0), len(GATES[op]), 1 / np.sqrt(H)

    def array(*shape, scale=1.0):
        return (rng.standard_normal(shape) * scale).astype(dtype)

    feeds = {
        "X": array(B, T, width) if layout else array(T, B, width),
        "W": array(D, gates * H, width, scale=0.7),
        "R": array(D, gates * H, H, scale=scale),
    }
    state = (B, D, H) if layout else (D, B, H)
    if chance("bias", 0.7):
        feeds["B"] = array(D, 2 * gates * H)
    if chance("lengths"):
        feeds["lengths"] = rng.integers(0, T + 1, B).astype(np.int32)
    if chance("states", 0.7):
        feeds["h"] = array(*state)
    if op == "LSTM":
        if chance("states", 0.7):
            feeds["c"] = array(*state, scale=2)
        if chance("peepholes"):
            feeds["P"] = array(D, 3 * H)
    assert not fixed, fixed
    return attributes, feeds


ORDER = ("X", "W", "R", "B", "lengths", "h", "c", "P")


def node_of(op, attributes, feeds, outputs=None):
    from onnx import helper

    names = [name if name in feeds else "" for name in ORDER[: 8 if op == "LSTM" else 6]]
    while not names[-1]:
        names.pop()
    return helper.make_node(
        op, names, outputs or ["Y", "Y_h", "Y_c"][: 3 if op == "LSTM" else 2], **attributes
    )


def model_of(op, attributes, feeds, opset=22, constant=()):
    """A model of one node; inputs in `constant` are initializers."""
    from onnx import helper, numpy_helper

    node = node_of(op, attributes, feeds)
    element = {name: helper.np_dtype_to_tensor_dtype(v.dtype) for name, v in feeds.items()}
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(n, element[n], v.shape)
            for n, v in feeds.items()
            if n not in constant
        ],
        [helper.make_tensor_value_info(name, element["X"], None) for name in node.output],
        [numpy_helper.from_array(feeds[name], name) for name in constant if name in feeds],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
