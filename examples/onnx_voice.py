"""Find voice in sound with an ONNX graph whose state is held: python examples/onnx_voice.py [--seconds 60]

Voice-activity detectors are such graphs: convolutions turn 32 ms of sound into a few steps of features, an
LSTM carries what was before, a dense layer says how likely there is voice. The state goes in and comes out,
and who calls has to hand it on. `fastlstm.from_onnx` runs the convolutions on ONNX Runtime and all else on
fastlstm, and `stream` hands the state on.

The graph is made here: a bank of filters, a random convolution, a random LSTM. Only the dense layer learns,
by least squares, from synthetic sound: a hummed tone with overtones, in syllables, among noise. The share of
frames that are called right is measured on sound of another seed.

Needs onnx, and onnxruntime to compare with: pip install "fastlstm[onnx]"
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import fastlstm

Array: TypeAlias = npt.NDArray[Any]

RATE, FRAME = 16_000, 512  # samples a second, and of a frame
BANDS, CHANNELS, UNITS = 40, 64, 128
WINDOW, HOP = 256, 32  # of the filter bank, in samples
STATE = {"h_in": "h_out", "c_in": "c_out"}


def sound(seconds: float, seed: int) -> tuple[Array, Array]:
    """Frames [N, 1, FRAME] of noise, voice in some of them, and which: [N] of 0 and 1."""
    rng = np.random.default_rng(seed)
    count = int(seconds * RATE / FRAME)
    time_ = np.arange(count * FRAME) / RATE
    voiced = np.zeros(count * FRAME)
    start = 0.5
    while start < seconds:  # utterances of a second or so, as much silence between them
        stop = start + rng.uniform(0.5, 1.5)
        voiced[(time_ >= start) & (time_ < stop)] = 1
        start = stop + rng.uniform(0.5, 1.5)
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * time_)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    tone = sum(np.sin(k * phase) / k for k in range(1, 12))
    syllables = 0.6 + 0.4 * np.sin(2 * np.pi * 4 * time_)
    wave = 0.1 * voiced * syllables * tone + 0.1 * rng.standard_normal(len(time_))
    labels = voiced.reshape(count, FRAME).mean(axis=1) > 0.5
    return wave.reshape(count, 1, FRAME).astype(np.float32), labels.astype(np.float64)


def weights(seed: int) -> dict[str, Array]:
    """Of the graph, by name: filters, random numbers, and a dense layer of zeros."""
    rng = np.random.default_rng(seed)
    bands = np.geomspace(80, 4000, BANDS)[:, None] * np.arange(WINDOW) / RATE
    window = np.hanning(WINDOW) / WINDOW
    filters = np.concatenate([np.cos(2 * np.pi * bands), np.sin(2 * np.pi * bands)]) * window
    scale = 1 / np.sqrt(UNITS)
    found = {
        "filters": filters[:, None],
        "pairs": np.concatenate([np.eye(BANDS), np.eye(BANDS)], axis=1)[:, :, None],
        "conv.w": rng.standard_normal((CHANNELS, BANDS, 3)) / np.sqrt(3 * BANDS),
        "conv.b": rng.standard_normal(CHANNELS),
        "lstm.W": rng.uniform(-1, 1, (1, 4 * UNITS, CHANNELS)) / np.sqrt(CHANNELS),
        "lstm.R": rng.uniform(-scale, scale, (1, 4 * UNITS, UNITS)),
        "lstm.B": rng.uniform(-scale, scale, (1, 8 * UNITS)),
        "out.w": np.zeros((UNITS, 1)),
        "out.b": np.zeros(1),
        "little": np.array(1e-6),
    }
    return {name: value.astype(np.float32) for name, value in found.items()}


def graph(held: dict[str, Array]) -> Any:
    """An ONNX model: sound [1, samples] and the state to voice [steps, 1, 1] and the state."""
    from onnx import TensorProto, helper, numpy_helper

    constants = held | {"axis1": np.array([1])}
    nodes = [
        helper.make_node("Unsqueeze", ["sound", "axis1"], ["channel"]),
        helper.make_node("Conv", ["channel", "filters"], ["waves"], strides=[HOP]),
        helper.make_node("Mul", ["waves", "waves"], ["squares"]),
        helper.make_node("Conv", ["squares", "pairs"], ["power"]),
        helper.make_node("Add", ["power", "little"], ["above_zero"]),
        helper.make_node("Log", ["above_zero"], ["loudness"]),
        helper.make_node("Conv", ["loudness", "conv.w", "conv.b"], ["conv"]),
        helper.make_node("Tanh", ["conv"], ["features"]),
        helper.make_node("Transpose", ["features"], ["steps"], perm=[2, 0, 1]),
        helper.make_node(
            "LSTM",
            ["steps", "lstm.W", "lstm.R", "lstm.B", "", "h_in", "c_in"],
            ["Y", "h_out", "c_out"],
            "memory",
            hidden_size=UNITS,
        ),
        helper.make_node("Squeeze", ["Y", "axis1"], ["h"]),
        helper.make_node("MatMul", ["h", "out.w"], ["product"]),
        helper.make_node("Add", ["product", "out.b"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["voice"]),
    ]

    def port(name: str, *shape: int | str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    state = [port(name, 1, 1, UNITS) for name in (*STATE, *STATE.values())]
    made = helper.make_graph(
        nodes,
        "voice",
        [port("sound", 1, "samples"), *state[:2]],
        [port("voice", "steps", 1, 1), *state[2:]],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def fit(held: dict[str, Array], frames: Array, labels: Array) -> None:
    """The dense layer by ridge regression of the labels on the LSTM's states."""
    stream = fastlstm.from_onnx(graph(held)).stream(STATE)
    states = []
    for frame in frames:
        stream.step(sound=frame)
        states.append(stream.state["h_in"].ravel())
    rows = np.column_stack([np.array(states, np.float64), np.ones(len(states))])
    squares = rows.T @ rows + 1e-3 * np.eye(rows.shape[1])
    solution = np.linalg.solve(squares, rows.T @ (8 * labels - 4))  # as logits
    held["out.w"] = solution[:-1, None].astype(np.float32)
    held["out.b"] = solution[-1:].astype(np.float32)


def session_of(model: Any) -> Any:
    """Of ONNX Runtime alone, on one thread as the other."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def silence() -> dict[str, Array]:
    """The state of the beginning."""
    return {name: np.zeros((1, 1, UNITS), np.float32) for name in STATE}


def with_fastlstm(model: Any, frames: Array) -> tuple[Array, float]:
    """The probability of voice at the end of each frame, and the median microseconds of a frame."""
    stream = model.stream(STATE)
    return _timed(frames, lambda frame: stream.step(sound=frame)["voice"])


def with_onnxruntime(session: Any, frames: Array) -> tuple[Array, float]:
    """The same by ONNX Runtime alone, the state handed on by hand."""
    state = silence()

    def step(frame: Array) -> Array:
        voice, state["h_in"], state["c_in"] = session.run(
            ["voice", "h_out", "c_out"], {"sound": frame, **state}
        )
        return np.asarray(voice)

    return _timed(frames, step)


def fastest(call: Any) -> float:
    """Milliseconds of the fastest of five calls."""
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times) * 1e3


def _timed(frames: Array, step: Any) -> tuple[Array, float]:
    found, times = [], []
    for frame in frames:
        begun = time.perf_counter()
        found.append(step(frame)[-1, 0, 0])
        times.append(time.perf_counter() - begun)
    return np.array(found), float(np.median(times)) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="of sound, to learn from and to judge")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not 3 <= arguments.seconds <= 3600:
        parser.error(f"--seconds must be in 3..3600, got {arguments.seconds:g}")
    if arguments.seed < 0:
        parser.error(f"--seed must be at least 0, got {arguments.seed}")
    try:
        import onnx  # noqa: F401
    except ImportError:
        sys.exit('this example needs onnx: pip install "fastlstm[onnx]"')

    held = weights(arguments.seed)
    fit(held, *sound(arguments.seconds, arguments.seed))
    frames, labels = sound(arguments.seconds, arguments.seed + 1)
    proto = graph(held)
    model = fastlstm.from_onnx(proto)
    places = [f"{p.op} on {p.engine}" for p in model.report if p.op in ("Conv", "LSTM", "MatMul")]
    print(f"{model}: {', '.join(places)}")
    voice, own = with_fastlstm(model, frames)
    right = np.mean((voice > 0.5) == labels)
    print(f"{len(frames)} frames of {1000 * FRAME // RATE} ms, {100 * right:.1f} % called right")
    recording = {"sound": frames.reshape(1, -1), **silence()}
    print(
        f"fastlstm:    {own:.1f} us a frame, {fastest(lambda: model(recording)):.0f} ms for all in one call"
    )
    try:
        session = session_of(proto)
    except ImportError:
        print("onnxruntime is not installed: nothing to compare with")
        return
    other, theirs = with_onnxruntime(session, frames)
    whole = fastest(lambda: session.run(None, recording))
    print(f"onnxruntime: {theirs:.1f} us a frame, {whole:.0f} ms for all in one call")
    print(f"largest difference: {np.abs(voice - other).max():.1e}")


if __name__ == "__main__":
    main()
