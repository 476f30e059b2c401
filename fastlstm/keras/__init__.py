"""Keras 3: models and layers of Keras's, from memory or from files, run by fastlstm.

    model = fastlstm.from_keras("tagger.keras")   # or a Keras model or layer, or an .h5 file
    y = model(x)                                  # what keras_model(x) gives, as a NumPy array

Files need h5py, objects of course Keras itself; nothing here imports Keras but `to_keras`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fastlstm._files import Found

from ._model import KerasModel

__all__ = ["KerasModel", "from_keras", "to_keras"]


def from_keras(source: Any) -> KerasModel:
    """A `KerasModel` that gives what a network of Keras's gives, run by fastlstm.

    source: a layer or model of Keras 3, built; or the path of a .keras file, or of an .h5 file that holds a
        whole model (of Keras 2 too). Files are read without Keras, and no class that they name is imported.

    Supported: LSTM, GRU, SimpleRNN, RNN of their cells or of StackedRNNCells, Bidirectional, Embedding,
    Masking, Dense, TimeDistributed, Activation, ReLU, LeakyReLU, ELU, Softmax, LayerNormalization,
    BatchNormalization, Dropout and its like, GlobalAveragePooling1D and GlobalMaxPooling1D, in Sequential and
    in Functional models that are one chain, also nested. Everything is as in inference: dropout does nothing,
    batch normalization has its trained statistics. float32 and float64: a float64 model rounds its input
    where its own InputLayer is float32, as Keras does, but not where only that of a model inside of it is.

    Raises TypeError for what is neither a path nor Keras's, OSError if a file cannot be read, ValueError
    naming the layer and the option that is not supported, or what is wrong with the file; ImportError
    without h5py for files.
    """
    from . import _convert

    if isinstance(source, (str, os.PathLike)):
        return _convert.from_file(source)[0]
    return _convert.from_object(source)


def to_keras(model: Any, path: str | os.PathLike[str] | None = None) -> Any:
    """A `keras.Sequential` that gives what a layer or Sequential of fastlstm's gives, with copies of its
    weights; also written to a .keras or .h5 file, if a path is given.

    Its input is [B, T, ..], whatever batch_first says, and it has no states. Keras has one bias where
    fastlstm has two (but in a GRU with reset_after): their sum. Where neither KERAS_BACKEND nor keras.json
    names one that is installed, Keras is imported with the first of TensorFlow, PyTorch and JAX that is.

    Raises ValueError naming what Keras has no layer for (a gated RNN, projections, peepholes, ..), TypeError
    for what is no module of fastlstm's, OSError if the file cannot be written, ImportError without Keras and
    a backend of its.
    """
    from . import _export

    return _export.to_keras(model, path)


def found(path: str, options: Mapping[str, Any]) -> Found:
    """For `fastlstm convert` and `inspect`: what a .keras or .h5 file holds."""
    from . import _convert

    return _convert.found(path, options)


def written(model: Any, path: str) -> None:
    """For `fastlstm convert`: write a .keras or .h5 file."""
    to_keras(model, path)
