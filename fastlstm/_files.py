"""Layers and modules in safetensors files: written atomically, read with nothing taken on trust.

A safetensors file is the header's length (8 bytes, little endian), the header (JSON: for each tensor its
dtype, its shape and where its bytes begin and end; strings under "__metadata__") and the bytes. They are
written here, because the safetensors library orders several metadata differently from run to run, and the
same model shall make the same file. Models are read here, because the library's NumPy reader knows no
bfloat16, and so that each number of the header is checked against the size of the file before memory is taken
for anything; `tests/test_hostile_files.py` holds the two readers against each other.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from . import _check
from ._check import AnyOptions, Array, Options, PartOptions, SequentialOptions, Shape

METADATA_KEY = "fastlstm"  # of the options, as JSON, in a file's metadata
VERSION = 1  # of that JSON, where it describes a recurrent layer
MODULE_VERSION = 2  # where it describes any other module: whoever reads layers only refuses it by this
HEADER_LIMIT = 1 << 21  # bytes; enough for _check.MAX_LAYERS layers with all that they can have
FREE = frozenset(
    {"batch_first", "dropout", "dtype", "p"}
)  # options of `load` that may differ from what a file says
DTYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I8": np.dtype("i1"),
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


class Found(NamedTuple):
    """What a file of any format holds, as `fastlstm convert` and `inspect` want it."""

    what: str  # the file is, in words
    model: Any  # a layer or module; else None, and `notes` say why
    origins: Mapping[str, str]  # where each parameter of the model came from
    notes: Sequence[str] = ()  # lines on what is beside it
    lengths: Sequence[str] = ()  # of `notes` those because of which a call needs lengths
    details: Mapping[str, Any] = {}  # of what is no plain model: inputs, outputs, layers, parameters


def row(name: str, array: Array, origin: str, dtype: str = "") -> dict[str, Any]:
    """A parameter, as `fastlstm inspect` lists it."""
    return {
        "name": name,
        "shape": list(array.shape),
        "dtype": dtype or str(array.dtype),
        "bytes": array.nbytes,
        "origin": origin,
    }


# --- writing ------------------------------------------------------------------------------------------------


def save(
    path: str | os.PathLike[str],
    options: AnyOptions,
    parameters: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """A layer or module, and perhaps more metadata."""
    write_tensors(path, parameters, {METADATA_KEY: description(options), **(metadata or {})})


def description(options: AnyOptions) -> str:
    """The options as JSON, which `options_of` reads."""
    version = VERSION if isinstance(options, Options) else MODULE_VERSION
    return json.dumps({"version": version, **_described(options)})


def write_tensors(
    path: str | os.PathLike[str], arrays: Mapping[str, Array], metadata: Mapping[str, str]
) -> None:
    """A file of any arrays and metadata; the same for the same arguments, to the last byte."""
    names = {dtype.newbyteorder("<"): name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    parts, stop = [], 0
    # Wide types first: so each tensor is aligned to its own type.
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])):
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        start, stop = stop, stop + little.nbytes
        shape = list(array.shape)
        header[name] = {"dtype": names[little.dtype], "shape": shape, "data_offsets": [start, stop]}
        parts.append(little.tobytes())
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    replace_file(os.fspath(path), b"".join([len(text).to_bytes(8, "little"), text, *parts]))


def _described(options: AnyOptions) -> dict[str, Any]:
    """{"cell": ..} of a recurrent layer, {"module": ..} of another module, a Sequential's with "modules"."""
    if isinstance(options, Options):
        return {"cell": options.cell, **options.given()}
    if isinstance(options, SequentialOptions):
        return {"module": "Sequential", "modules": [_described(o) for o in options.modules]}
    kind = next(name for name, cls in _check.MODULES.items() if isinstance(options, cls))
    return {"module": kind, **options._asdict()}


def replace_file(target: str, data: bytes) -> None:
    """Replace the file at target at once: a reader, or a crash, finds the old one or the new one.

    OSError names the target, not the temporary file beside it.
    """
    path = os.path.realpath(target)  # a link stays a link
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EISDIR if os.path.isdir(path) else errno.EINVAL, "is no regular file", target)
    temporary = os.path.join(os.path.dirname(path), f".fastlstm-{os.urandom(8).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            with contextlib.suppress(FileNotFoundError):
                os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))  # as if the old file were written to
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, target) from error
        raise


# --- reading ------------------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str], given: Mapping[str, Any]) -> tuple[AnyOptions, dict[str, Array]]:
    """The options and parameters of the layer or module in a file; `given` are the user's options."""
    path = os.fspath(path)
    with open(path, "rb") as file:
        _refuse_others(path, file)
        with _blaming(path):
            entries, metadata = _header(file)
        options = options_of(path, entries, metadata.get(METADATA_KEY), given)
        with _blaming(path):
            dtypes = {name: _check.held_dtype(options, name) for name in _check.held(options)}
            arrays = {name: _tensor(file, name, entries[name], dtype) for name, dtype in dtypes.items()}
            _check.check_held(arrays, options)
            return options, arrays


def options_of(
    path: str,
    entries: Mapping[str, Entry],
    text: str | None,
    given: Mapping[str, Any],
    implied: Mapping[str, Mapping[str, Any]] = {},
) -> AnyOptions:
    """The options of the layer or module whose parameters a file holds: what its description says, or if it
    has none, what PyTorch's names and the shapes tell, and for each cell what the format implies; `given` are
    the user's."""
    options: AnyOptions
    with _blaming(path):
        kind, facts = _inferred(entries) if text is None else _own(text)
        parts = _parts(facts) if kind == "Sequential" else None
    if parts is None:
        options = _merged(path, kind, facts, {**implied.get(kind, {}), **given}, text is not None)
    else:
        options = _converted(parts, given)
    with _blaming(path):
        wrong = _check.mismatch(_check.held(options), {name: e.shape for name, e in entries.items()})
        if wrong:
            raise ValueError(f"does not hold the parameters of {options!r}: {wrong}")
    return options


@contextlib.contextmanager
def _blaming(path: str) -> Iterator[None]:
    """Whatever is wrong with a file is a ValueError that names it (UnicodeDecodeError is one, and JSON's)."""
    try:
        yield
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: {str(error) or type(error).__name__:.2000}") from error


def _refuse_others(path: str, file: BinaryIO) -> None:
    """ValueError for what is plainly something else, in words for who took the wrong file."""
    begin = file.read(9)
    file.seek(0)
    if begin[8:] == b"{":  # only now: a header's length may begin with any two bytes
        return
    if begin.startswith((b"PK", b"\x80")):
        raise ValueError(
            f"{path} is no safetensors file but, it seems, a PyTorch pickle: write the state_dict with "
            "safetensors.torch.save_file instead of torch.save"
        )
    raise ValueError(f"{path} is no safetensors file")


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    """The safetensors library's reader, for files of any arrays. ValueError, OSError."""
    from safetensors import SafetensorError, safe_open

    with open(path, "rb") as file:  # also for an OSError that says what and where
        _refuse_others(path, file)
    try:
        with safe_open(path, "np") as reader:
            yield reader
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}") from error


def read_tensors(path: str) -> tuple[dict[str, Array], dict[str, str]]:
    """All arrays of a file by name, in the order of their names, and its metadata. ValueError, OSError."""
    with _opened(path) as reader:
        return {name: reader.get_tensor(name) for name in sorted(reader.keys())}, reader.metadata() or {}


def read_metadata(path: str) -> dict[str, str]:
    """ValueError, OSError."""
    with _opened(path) as reader:
        metadata: dict[str, str] = reader.metadata() or {}
    return metadata


def _header(file: BinaryIO) -> tuple[dict[str, Entry], dict[str, str]]:
    """Tensors and metadata, checked: the tensors fill the file, in some order, without gap or overlap."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= size - 8:
        raise ValueError(f"is cut off: {size} bytes cannot hold 8 bytes and a header of {length}")
    if length > HEADER_LIMIT:
        raise ValueError(f"its header of {length} bytes is longer than any layer's ({HEADER_LIMIT})")
    text = file.read(length)
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


def _tensor(file: BinaryIO, name: str, entry: Entry, wanted: np.dtype[Any]) -> Array:
    """The tensor in the wanted type: of small weights as it is, else from float16 and bfloat16 by float32."""
    dtype, count = DTYPES[entry.dtype], math.prod(entry.shape)
    small = wanted in _check.WEIGHT_DTYPES.values()
    if dtype != wanted if small else entry.dtype == "I8":
        names = [n for n, d in DTYPES.items() if (d == wanted if small else n != "I8")]
        raise ValueError(f"{name} has dtype {entry.dtype}, wanted {' or '.join(names)}")
    file.seek(entry.start)
    array: Array = np.fromfile(file, dtype, count)
    if len(array) != count:
        raise ValueError(f"ends within {name}")
    if entry.dtype == "BF16" and not small:  # the upper half of a float32
        array = (array.astype("<u4") << 16).view("<f4")
    if entry.dtype == "F16":
        array = array.astype("<f4")
    return array.reshape(entry.shape).astype(wanted, copy=False)


# --- what a file says ---------------------------------------------------------------------------------------


def _own(text: str) -> tuple[str, dict[str, Any]]:
    """What `save` wrote: a cell or a module, by name, and what describes it."""
    facts = _json(text)
    version = facts.pop("version", None)
    if type(version) is not int or version not in (VERSION, MODULE_VERSION):
        raise ValueError(
            f"has format version {version!r:.20} of fastlstm, "
            f"this fastlstm reads {VERSION} and {MODULE_VERSION}"
        )
    if version == MODULE_VERSION and facts.get("module") == "Sequential":
        return facts.pop("module"), facts
    return _part(facts, "cell" if version == VERSION else "module")


def _part(facts: dict[str, Any], key: str) -> tuple[str, dict[str, Any]]:
    """A cell or a module other than Sequential, by name, and all its options."""
    wanted = _check.CELLS if key == "cell" else _check.MODULES
    kind = facts.pop(key, None)
    if not isinstance(kind, str) or kind not in wanted:
        raise ValueError(f"has {key} {kind!r:.20}, wanted one of {', '.join(wanted)}")
    checked = _check.module(kind, **facts)
    return kind, checked.given() if isinstance(checked, Options) else checked._asdict()


def _parts(facts: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The modules of a Sequential, as `_part` gives them, which fit together."""
    modules = facts.get("modules")
    if facts.keys() != {"modules"} or not isinstance(modules, list) or len(modules) > _check.MAX_MODULES:
        raise ValueError(f"describes no Sequential of at most {_check.MAX_MODULES} modules")
    parts = []
    for i, module in enumerate(modules):
        if not isinstance(module, dict):
            raise ValueError(f"module {i} is no object but a {type(module).__name__}")
        parts.append(_part(module, "cell" if "cell" in module else "module"))
    _converted(parts, {})
    return parts


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


def _converted(parts: list[tuple[str, dict[str, Any]]], given: Mapping[str, Any]) -> SequentialOptions:
    """A Sequential of these modules, in the dtype that may have been given: all else is a module's own."""
    unknown = given.keys() - {"dtype"}
    if unknown:
        raise TypeError(f"Sequential takes no option {', '.join(sorted(unknown))}")
    return _check.sequential(
        [_check.module(kind, **facts | (dict(given) if "dtype" in facts else {})) for kind, facts in parts]
    )


def _merged(
    path: str, cell: str, facts: Mapping[str, Any], given: Mapping[str, Any], own: bool
) -> PartOptions:
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
    if not own and given.keys() & _check.QUANTIZED:
        raise ValueError(f"{path}: a bare file holds no quantized layer: load it, then call quantize")
    for name in given.keys() & _check.QUANTIZED:  # before they would be refused together with the file's
        if given[name] != facts.get(name):
            raise ValueError(
                f"{path}: {name}={given[name]!r} contradicts the file, which says {facts.get(name)!r}"
            )
    with _blaming(path):
        told = _check.module(cell, **facts)
    merged = _check.module(cell, **{**facts, **given})
    for name in given.keys() & facts.keys() - FREE:
        if getattr(merged, name) != getattr(told, name):
            raise ValueError(
                f"{path}: {name}={given[name]!r} contradicts the file, which says {getattr(told, name)!r}"
            )
    return merged
