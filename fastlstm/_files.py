"""Layers in safetensors files: written atomically, read with nothing taken on trust.

A safetensors file is the header's length (8 bytes, little endian), the header (JSON: for each tensor its
dtype, its shape and where its bytes begin and end; strings under "__metadata__") and the bytes. Files are
written by the safetensors library and read here, because the library's NumPy reader knows no bfloat16, and so
that each number of the header is checked against the size of the file before memory is taken for anything.
`tests/test_hostile_files.py` holds the two against each other.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from . import _check
from ._check import Array, Options, Shape

METADATA_KEY = "fastlstm"  # of the options, as JSON, in a file's metadata
VERSION = 1  # of that JSON
HEADER_LIMIT = 1 << 21  # bytes; enough for _check.MAX_LAYERS layers with all that they can have
FREE = frozenset(
    {"batch_first", "dropout", "dtype"}
)  # options of `load` that may differ from what a file says
DTYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
PARAMETER = re.compile(
    r"(?:weight_ih|weight_hh|bias_ih|bias_hh|weight_hr|weight_peephole)_l(\d{1,4})(_reverse)?", re.ASCII
)


class Entry(NamedTuple):
    """A tensor, as the header describes it."""

    dtype: str
    shape: Shape
    start: int  # in the file
    stop: int


# --- writing ------------------------------------------------------------------------------------------------


def save(path: str | os.PathLike[str], options: Options, parameters: Mapping[str, Array]) -> None:
    from safetensors.numpy import save as serialize

    config = json.dumps({"version": VERSION, "cell": options.cell, **options.given()})
    _write(os.fspath(path), serialize(dict(parameters), {METADATA_KEY: config}))


def _write(path: str, data: bytes) -> None:
    """Replace the file at path at once: a reader, or a crash, finds the old one or the new one."""
    path = os.path.realpath(path)  # a link stays a link
    temporary = os.path.join(os.path.dirname(path), f".fastlstm-{os.urandom(8).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))  # as if the old file had been written to
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


# --- reading ------------------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str], given: Mapping[str, Any]) -> tuple[Options, dict[str, Array]]:
    """The options and parameters of the layer in a file; `given` are the user's options."""
    path = os.fspath(path)
    with open(path, "rb") as file:
        with _blaming(path):
            entries, metadata = _header(file)
            cell, facts = _own(metadata[METADATA_KEY]) if METADATA_KEY in metadata else _inferred(entries)
        options = _merged(path, cell, facts, given, own=METADATA_KEY in metadata)
        with _blaming(path):
            wrong = _check.mismatch(options.shapes(), {name: e.shape for name, e in entries.items()})
            if wrong:
                raise ValueError(f"does not hold the parameters of {options!r}: {wrong}")
            return options, {name: _tensor(file, name, entries[name]) for name in options.shapes()}


@contextlib.contextmanager
def _blaming(path: str) -> Iterator[None]:
    """Whatever is wrong with a file is a ValueError that names it (UnicodeDecodeError is one, and JSON's)."""
    try:
        yield
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: {str(error) or type(error).__name__:.2000}") from error


def _header(file: BinaryIO) -> tuple[dict[str, Entry], dict[str, str]]:
    """Tensors and metadata, checked: the tensors fill the file, in some order, without gap or overlap."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= size - 8:
        raise ValueError(f"no safetensors file: {size} bytes cannot hold 8 bytes and a header of {length}")
    if length > HEADER_LIMIT:
        raise ValueError(f"its header of {length} bytes is longer than any layer's ({HEADER_LIMIT})")
    text = file.read(length)
    if not text.startswith(b"{"):
        raise ValueError("no safetensors file: its header does not begin with '{'")
    header = _json(text)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("no safetensors file: its metadata are not strings")
    begin = 8 + length
    entries = {name: _entry(name, value, begin) for name, value in header.items()}
    end = begin
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.start != end:
            raise ValueError(
                f"{name:.200} begins at byte {entry.start}, not at {end} where the one before ends"
            )
        end = entry.stop
    if end != size:
        raise ValueError(f"its tensors end at byte {end}, the file at {size}")
    return entries, metadata


def _json(text: bytes | str) -> dict[str, Any]:
    """A JSON object; ValueError or RecursionError if it is none, has a name twice, or NaN or infinity."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a name occurs twice in its JSON")
        return result

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} in its JSON")

    if isinstance(text, bytes):
        text = text.decode()  # json.loads would guess the encoding
    value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    if not isinstance(value, dict):
        raise ValueError(f"its JSON is no object but a {type(value).__name__}")
    return value


def _entry(name: str, value: Any, begin: int) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name:.200} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name:.200} has dtype {dtype!r:.20}, wanted one of {', '.join(DTYPES)}")
    if not _are_sizes(shape) or len(shape) > 2:
        raise ValueError(f"{name:.200} has shape {shape!r:.60}, wanted one or two sizes")
    if (
        not _are_sizes(offsets)
        or len(offsets) != 2
        or offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize
    ):
        raise ValueError(
            f"{name:.200} has data_offsets {offsets!r:.60}, which do not fit {dtype} {shape!r:.60}"
        )
    return Entry(dtype, tuple(shape), begin + offsets[0], begin + offsets[1])


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in value)


def _tensor(file: BinaryIO, name: str, entry: Entry) -> Array:
    """The tensor; float16 and bfloat16 become float32, exactly."""
    dtype, count = DTYPES[entry.dtype], math.prod(entry.shape)
    file.seek(entry.start)
    array: Array = np.fromfile(file, dtype, count)
    if len(array) != count:
        raise ValueError(f"ends within {name}")
    if entry.dtype == "BF16":  # the upper half of a float32
        array = (array.astype("<u4") << 16).view("<f4")
    if entry.dtype == "F16":
        array = array.astype("<f4")
    return array.reshape(entry.shape)


# --- what a file says ---------------------------------------------------------------------------------------


def _own(text: str) -> tuple[str, dict[str, Any]]:
    """Cell and options that `save` wrote."""
    facts = _json(text)
    version, cell = facts.pop("version", None), facts.pop("cell", None)
    if type(version) is not int or version != VERSION:
        raise ValueError(f"has format version {version!r:.20} of fastlstm, this fastlstm reads {VERSION}")
    if not isinstance(cell, str) or cell not in _check.CELLS:
        raise ValueError(f"has cell {cell!r:.20}, wanted one of {', '.join(_check.CELLS)}")
    return cell, _check.options(cell, **facts).given()


def _inferred(entries: Mapping[str, Entry]) -> tuple[str, dict[str, Any]]:
    """Cell and options as far as PyTorch's names and the shapes tell them."""
    found = [PARAMETER.fullmatch(name) for name in entries]
    unknown = [name for name, match in zip(entries, found, strict=True) if match is None]
    if unknown:
        raise ValueError(
            f"holds no single layer under PyTorch's names: unexpected: {_check._listing(unknown)}"
        )
    for name in ("weight_ih_l0", "weight_hh_l0"):
        if name not in entries:
            raise ValueError(f"holds no single layer under PyTorch's names: missing: {name}")
    shapes = {name: (*e.shape, 0, 0)[:2] for name, e in entries.items()}
    rows, columns = shapes["weight_hh_l0"]
    proj_size, hidden_size = shapes.get("weight_hr_l0", (0, columns))
    cells = {kind.gates: cell for cell, kind in _check.CELLS.items()}
    gates = rows // hidden_size if hidden_size and rows % hidden_size == 0 else 0
    if gates not in cells or (proj_size and gates != 4):
        ratios = ", ".join(
            f"{gates} ({_check.CELLS[cell].name})" for gates, cell in sorted(cells.items(), reverse=True)
        )
        raise ValueError(
            f"weight_hh_l0 has shape {entries['weight_hh_l0'].shape}: wanted rows per unit {ratios}"
        )
    facts = {
        "input_size": shapes["weight_ih_l0"][1],
        "hidden_size": hidden_size,
        "num_layers": 1 + max(int(match[1]) for match in found if match),
        "bias": "bias_ih_l0" in entries,
        "bidirectional": any(match[2] for match in found if match),
        "dtype": "float64" if any(e.dtype == "F64" for e in entries.values()) else "float32",
    }
    if cells[gates] == "lstm":
        facts |= {"proj_size": proj_size, "peepholes": "weight_peephole_l0" in entries}
    return cells[gates], facts


def _merged(path: str, cell: str, facts: Mapping[str, Any], given: Mapping[str, Any], own: bool) -> Options:
    """The file's options and the user's; ValueError where they disagree or a bare file leaves one open."""
    if not own and cell == "gru" and "reset_after" not in given:
        raise ValueError(
            f"{path}: a bare GRU file does not tell whether the reset gate is applied after the product "
            "(PyTorch, cuDNN, Keras) or before it (ONNX' default): say load(path, reset_after=True) or False"
        )
    if not own and cell == "rnn" and not given.keys() & {"nonlinearity", "activations"}:
        raise ValueError(
            f"{path}: a bare RNN file does not tell its activation: "
            "say load(path, nonlinearity='tanh') or 'relu', or give activations"
        )
    with _blaming(path):
        told = _check.options(cell, **facts)
    merged = _check.options(cell, **{**facts, **given})
    for name in given.keys() & facts.keys() - FREE:
        if getattr(merged, name) != getattr(told, name):
            raise ValueError(
                f"{path}: {name}={given[name]!r} contradicts the file, which says {getattr(told, name)!r}"
            )
    return merged
