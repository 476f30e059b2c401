"""A bidirectional tagger of Keras's runs on fastlstm: python examples/keras_tagger.py [--keep tagger.keras]

Each letter of a made-up word gets a tag: whether it comes after the letter before it in the alphabet, and
whether it comes after the one behind it. So a tagger has to look both ways. Words have 3 to 20 letters;
shorter ones are padded with 0, which the Embedding masks.

The tagger is trained briefly in Keras, saved as a .keras file, and run by

    model = fastlstm.from_keras("tagger.keras")

which is the only line that changes. Then both tag new words: do they agree, and how long does each take?

Needs Keras, h5py and a backend of Keras's, here PyTorch: pip install "fastlstm[keras,torch]"
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import fastlstm

Array: TypeAlias = npt.NDArray[Any]

LETTERS, TAGS = 26, 4
LONGEST = 20


def load_keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import h5py  # noqa: F401  (Keras saves with it)
        import keras
    except ImportError as error:
        sys.exit(f'this example needs Keras and a backend ({error}): pip install "fastlstm[keras,torch]"')
    return keras


def words(count: int, seed: int) -> tuple[Array, Array]:
    """Letters 1..26, padded with 0, and their tags 0..3: [count, LONGEST] each."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, LONGEST + 1, count)
    letters = rng.integers(1, LETTERS + 1, (count, LONGEST))
    letters[np.arange(LONGEST) >= lengths[:, None]] = 0
    before = np.pad(letters, ((0, 0), (1, 0)))[:, :-1]
    behind = np.pad(letters, ((0, 0), (0, 1)))[:, 1:]
    return letters, (letters > before) + 2 * (letters > behind)


def tagger(keras: Any, seed: int) -> Any:
    """The network, in Keras."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            layers.Embedding(LETTERS + 1, 16, mask_zero=True),
            layers.Bidirectional(layers.LSTM(32, return_sequences=True)),
            layers.Dropout(0.1),
            layers.TimeDistributed(layers.Dense(TAGS, activation="softmax")),
        ]
    )


def train(model: Any, steps: int, seed: int) -> None:
    letters, tags = words(64 * steps, seed)
    model.compile("adam", loss="sparse_categorical_crossentropy")
    model.optimizer.learning_rate = 0.01
    model.fit(letters, tags, batch_size=64, epochs=1, shuffle=False, verbose=0)


def seconds(call: Callable[[], Any]) -> float:
    """The fastest of a few calls, after one to warm up."""
    call()
    found = []
    for _ in range(10):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="of training, 64 words each (300)")
    parser.add_argument("--seed", type=int, default=0, help="of words and weights (0)")
    parser.add_argument("--keep", type=Path, help="where to keep the .keras file")
    arguments = parser.parse_args()
    if arguments.steps < 1 or arguments.seed < 0:
        parser.error("--steps must be at least 1, --seed at least 0")
    if arguments.keep is not None and arguments.keep.suffix != ".keras":
        parser.error("--keep must end in .keras")
    keras = load_keras()

    trained = tagger(keras, arguments.seed)
    train(trained, arguments.steps, arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.keep or Path(folder) / "tagger.keras"
        trained.save(path)
        model = fastlstm.from_keras(path)

    letters, tags = words(500, arguments.seed + 1)
    theirs, ours = keras.ops.convert_to_numpy(trained(letters)), model(letters)
    valid = letters > 0
    chosen = ours.argmax(axis=-1)
    print(model)
    print(f"right tags            {(chosen == tags)[valid].mean():.1%}")
    print(f"same tags as Keras    {(chosen == theirs.argmax(axis=-1))[valid].mean():.2%}")
    print(f"largest difference    {np.abs(ours - theirs).max():.1e}")

    print(f"{'milliseconds':22}{'Keras':>10}{'fastlstm':>10}")
    for count in (1, 32, 500):
        x = letters[:count]
        slow, fast = seconds(lambda x=x: trained.predict_on_batch(x)), seconds(lambda x=x: model(x))
        name = "one word" if count == 1 else f"{count} words"
        print(f"{name:22}{slow * 1e3:10.3f}{fast * 1e3:10.3f}  {slow / fast:.0f} times as fast")


if __name__ == "__main__":
    main()
