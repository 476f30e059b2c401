"""A user's script passes `mypy --strict`, and what is wrong in one is found."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastlstm

pytest.importorskip("mypy")

GOOD = """
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastlstm
from fastlstm import GRU, LSTM, RNN, Dropout, Embedding, GatedRNN, Linear, Sequential
from fastlstm import SequentialStream, Stream
from fastlstm import reference

F32 = npt.NDArray[np.float32]
x: F32 = np.zeros((5, 2, 3), np.float32)

lstm = LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2, dtype=np.float32, peepholes=True, clip=3.0,
            seed=1, activations=("hard_sigmoid", ("leaky_relu", 0.1), "tanh"))
output, (h, c) = lstm(x)
output, (h, c) = lstm(x, (h, c), lengths=[5, 3])
total: float = float(output.sum() + h.sum() + c.sum())

one: GRU | RNN | GatedRNN = GRU(3, 4, reset_after=False)
one = RNN(3, 4, nonlinearity="relu", activations=None)
one = GatedRNN(3, 4, batch_first=True, dtype="float64")
y, state = one(x.tolist(), None)
y, state = one(x, state, lengths=np.array([1, 2]))
shape: tuple[int, ...] = state.shape

hidden: int = lstm.hidden_size
clip: float | None = lstm.clip
both: bool = lstm.bidirectional
dtype: np.dtype[Any] = lstm.dtype
name: str = RNN(3, 4).nonlinearity

weights: dict[str, npt.NDArray[Any]] = lstm.state_dict()
result = lstm.load_state_dict(weights, strict=False)
names: list[str] = result.missing_keys + result.unexpected_keys
lstm.save(Path("m.safetensors"))
layer = fastlstm.load("m.safetensors", batch_first=True)
assert isinstance(layer, LSTM)
out, (hn, cn) = layer(x)

stream: Stream = lstm.stream(batch_size=2, state=(h, c))
step: npt.NDArray[Any] = stream.step(x[0])
step = stream.step(x[0], out=step)
stream.state = stream.copy().state
stream.reset()
stream.reset(rows=[0])
twin: Stream = stream.copy()

fastlstm.set_num_threads(2)
threads: int = fastlstm.get_num_threads()
config: dict[str, Any] = fastlstm.show_config(mode="dicts")
fastlstm.show_config()
version: str = fastlstm.__version__
oracle = reference.LSTM(3, 4)

model = Sequential(Embedding(5, 3, padding_idx=0), LSTM(3, 4), Dropout(0.2), Linear(4, 5, bias=False))
logits, states = model([[1, 2]], lengths=[1, 1])
feature: int = Linear(3, 4).in_features
rows: npt.NDArray[Any] = Linear(3, 4)(x)
tape = model.record([[1, 2]], states, dropout_seed=0, checkpoint=2)
gradient: npt.NDArray[Any] = tape.backward(tape.output).parameters["0.weight"]
model.load_state_dict(model.state_dict())
feed: SequentialStream = model.stream(2)
step = feed.step([1, 2])
text: list[int] = list(model.generate([1, 2], 5, temperature=0.5, top_k=3, top_p=0.9, seed=0))
"""

BAD = """
import fastlstm

lstm = fastlstm.LSTM(3, 4)
lstm.hidden_size = 5
fastlstm.LSTM(3, "4")
fastlstm.LSTM(3, 4, hiden=2)
fastlstm.GRU(3, 4, proj_size=2)
text: str = lstm.bias
output, h, c = lstm([[0.0]])
h = fastlstm.GRU(3, 4)([[0.0]])[1].no_such
lstm.stream().no_such()
fastlstm.set_num_threads("2")
fastlstm.no_such
fastlstm.Linear(3, "4")
fastlstm.Linear(3, 4).p
fastlstm.Sequential([lstm])
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("mypy_cache")


def mypy(script, cache, tmp_path):
    path = tmp_path / "script.py"
    path.write_text(script)
    root = Path(fastlstm.__file__).parents[1]
    found = {} if root.name in ("site-packages", "dist-packages") else {"MYPYPATH": str(root)}
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--cache-dir",
        str(cache),
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **found})
    return done.stdout + done.stderr


def test_typing_of_a_users_script(cache, tmp_path):
    assert mypy(GOOD, cache, tmp_path).startswith("Success")


def test_typing_finds_what_is_wrong(cache, tmp_path):
    found = {int(line) for line in re.findall(r"script\.py:(\d+): error", mypy(BAD, cache, tmp_path))}
    wanted = [n for n, line in enumerate(BAD.splitlines(), 1) if n > 4]
    assert sorted(found) == wanted
