"""ONNX models from files, bytes or protos, with nothing taken on trust.

Everything a model claims is checked before memory is taken for it: what its tensors hold against their
shapes, where their data may lie, then its structure by onnx's own checker. Whatever is wrong is a ValueError.
"""

from __future__ import annotations

import importlib
import math
import os
import stat
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Proto: TypeAlias = Any  # onnx's types are not known where it is not installed

OLDEST_OPSET = 7
LARGEST = 2**31 - 1  # bytes of a protobuf, and so of a model with all its data
MOST_ELEMENTS = 2**31 - 1  # of any tensor whose shape a model states
MOST_COMPUTED = 2**28  # of one that a graph makes from less, of a shape that is known beforehand
MOST_AXES = 64  # NumPy's bound
RECURRENT = ("RNN", "GRU", "LSTM")
MAIN_DOMAIN = ("", "ai.onnx")


def require() -> Any:
    """The onnx package. ImportError says how to get it."""
    try:
        import onnx
        import onnx.checker
        import onnx.defs
        import onnx.helper
        import onnx.inliner
        import onnx.numpy_helper
        import onnx.shape_inference
    except ImportError as error:
        raise ImportError("ONNX models need the onnx package: pip install 'fastlstm[onnx]'") from error
    return onnx


def _protobuf() -> Any:
    return importlib.import_module("google.protobuf.message")  # which has no types of its own


def model(source: Any) -> tuple[Proto, str]:
    """A ModelProto of one's own from a path, bytes or a ModelProto, all data within; and a name for it in
    messages.

    Raises OSError, TypeError, ValueError.
    """
    onnx = require()
    folder = None
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        name = os.fsdecode(name)
        data, folder = _file(name), os.path.dirname(os.path.abspath(name))
    elif isinstance(source, (bytes, bytearray, memoryview)):
        name, data = "the model", bytes(source)
    elif isinstance(source, onnx.ModelProto):
        name = "the model"
        data = _serialized(source)
    else:
        raise TypeError(f"source must be a path, bytes or an onnx.ModelProto, got {type(source).__name__}")
    proto = _parsed(name, data)
    try:
        _check_header(proto)
        _check_tensors(proto, folder)
        _check_structure(proto)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return proto, name


def _file(path: str) -> bytes:
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is no regular file")
        if status.st_size > LARGEST:
            raise ValueError(f"{path} has {status.st_size} bytes, more than a protobuf can: {LARGEST}")
        return file.read()


def _serialized(proto: Proto) -> bytes:
    try:
        data: bytes = proto.SerializeToString()
    except (_protobuf().EncodeError, ValueError) as error:
        raise ValueError(f"the model cannot be serialized: {error}") from error
    return data


def _parsed(name: str, data: bytes) -> Proto:
    proto = require().ModelProto()
    try:
        proto.ParseFromString(data)
    except (_protobuf().DecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"{name} is no ONNX model, or truncated: {error}") from error
    return proto


# --- the header ---------------------------------------------------------------------------------------------


def opset(proto: Proto) -> int:
    """The version of ONNX's own operators that a model imports."""
    versions = [entry.version for entry in proto.opset_import if entry.domain in MAIN_DOMAIN]
    if len(versions) != 1:
        raise ValueError(f"must import ONNX's operators once, got {len(versions)} times")
    return int(versions[0])


def _check_header(proto: Proto) -> None:
    if not proto.HasField("graph") or not proto.graph.output:
        raise ValueError("is no ONNX model: it has no graph with outputs")
    version, newest = opset(proto), require().defs.onnx_opset_version()
    if version < OLDEST_OPSET:
        raise ValueError(
            f"has opset {version}, wanted {OLDEST_OPSET} or later: onnx.version_converter brings it there"
        )
    if version > newest:
        raise ValueError(f"has opset {version}, later than {newest}, the newest that this onnx knows")
    domains = [entry.domain for entry in proto.opset_import]
    if len(set(domains)) != len(domains):
        raise ValueError("imports a domain twice")


# --- tensors ------------------------------------------------------------------------------------------------


def messages(proto: Proto, kind: str) -> Iterator[Proto]:
    """Every message of a kind within another one, however deep."""
    message = _protobuf().Message
    for field, value in proto.ListFields():
        if field.message_type is None:
            continue  # numbers or strings
        for part in [value] if isinstance(value, message) else value:
            if part.DESCRIPTOR.name == kind:
                yield part
            yield from messages(part, kind)


def _check_tensors(proto: Proto, folder: str | None) -> None:
    outside = []
    for tensor in messages(proto, "TensorProto"):
        size = _size(tensor)
        if tensor.data_location == require().TensorProto.EXTERNAL or tensor.external_data:
            outside.append((tensor, size))
        else:
            _check_data(tensor, size)
    if sum(size for _, size in outside) > LARGEST:
        raise ValueError(f"has external data of more than {LARGEST} bytes: too much for one model")
    for tensor, size in outside:
        _load_external(tensor, folder, size)
    for sparse in messages(proto, "SparseTensorProto"):
        _check_shape(f"sparse tensor {sparse.values.name!r}", sparse.dims)
    types = set(require().TensorProto.DataType.values())
    for kind in ("Tensor", "SparseTensor"):  # within a TypeProto
        for tensor in messages(proto, kind):
            if tensor.elem_type not in types:
                raise ValueError(f"states the unknown data type {tensor.elem_type}")
    for shape in messages(proto, "TensorShapeProto"):
        stated = [d.dim_value for d in shape.dim if d.HasField("dim_value")]
        if any(d < 0 for d in stated) or math.prod(stated) > MOST_ELEMENTS:
            raise ValueError(f"states an absurd shape, {stated}")


def _check_shape(what: str, dims: Any) -> int:
    """The number of elements."""
    shape = tuple(dims)
    if len(shape) > MOST_AXES or any(d < 0 for d in shape) or math.prod(shape) > MOST_ELEMENTS:
        raise ValueError(f"{what} has an absurd shape, {str(shape):.200}")
    return math.prod(shape)


def _bits(tensor: Proto) -> int:
    """Of one element; 0 of a string."""
    onnx = require()
    if tensor.data_type == onnx.TensorProto.STRING:
        return 0
    name = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    for digits in ("128", "64", "32", "16", "8", "4", "2"):
        if name.startswith(("float", "bfloat", "int", "uint", "complex")) and digits in name:
            return int(digits)
    return {"float": 32, "double": 64, "bool": 8}[name]


def _size(tensor: Proto) -> int:
    """The bytes that a tensor's shape asks for."""
    onnx = require()
    known = set(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}
    if tensor.data_type not in known:
        raise ValueError(f"tensor {tensor.name!r} has the unknown data type {tensor.data_type}")
    if tensor.HasField("segment"):
        raise ValueError(f"tensor {tensor.name!r} is a segment of another, which no reader supports")
    return (_check_shape(f"tensor {tensor.name!r}", tensor.dims) * _bits(tensor) + 7) // 8


def _check_data(tensor: Proto, size: int) -> None:
    """Whether a tensor holds what its shape says."""
    onnx = require()
    elements, bits = math.prod(tensor.dims), _bits(tensor)
    if tensor.HasField("raw_data"):
        if bits == 0 or len(tensor.raw_data) != size:
            raise ValueError(
                f"tensor {tensor.name!r} holds {len(tensor.raw_data)} bytes, its shape "
                f"{tuple(tensor.dims)} wants {size}"
            )
        return
    field = getattr(tensor, onnx.helper.tensor_dtype_to_field(tensor.data_type))
    wanted = elements
    if onnx.TensorProto.DataType.Name(tensor.data_type).startswith("COMPLEX"):
        wanted *= 2
    elif 0 < bits < 8:
        wanted = size
    if len(field) != wanted:
        raise ValueError(
            f"tensor {tensor.name!r} holds {len(field)} numbers, "
            f"its shape {tuple(tensor.dims)} wants {wanted}"
        )


# --- external data ------------------------------------------------------------------------------------------


def _load_external(tensor: Proto, folder: str | None, size: int) -> None:
    """Put the data of a tensor that lies in a file of the model's own folder into it.

    An offset and a length are honoured; a checksum is not read.
    """
    what = f"tensor {tensor.name!r}"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) != len(tensor.external_data) or entries.keys() - {
        "location", "offset", "length", "checksum", "basepath",
    }:  # fmt: skip
        raise ValueError(f"{what} describes its external data in an unknown way: {sorted(entries)!s:.200}")
    if folder is None:
        raise ValueError(f"{what} has its data in another file: give the model's path instead")
    if _bits(tensor) == 0 or tensor.HasField("raw_data"):
        raise ValueError(f"{what} must not have external data: it is of strings, or has data of its own")
    offset = _number(what, "offset", entries.get("offset", "0"))
    length = _number(what, "length", entries.get("length", str(size)))
    if length != size:
        raise ValueError(f"{what} has {length} bytes of external data, its shape wants {size}")
    descriptor = _open_inside(what, folder, entries.get("location", ""))
    try:
        available = os.fstat(descriptor).st_size
        if offset + length > available:
            raise ValueError(
                f"{what} wants bytes {offset}..{offset + length} of {entries['location']!r}, "
                f"which has {available}"
            )
        tensor.raw_data = _read(descriptor, offset, length)
    finally:
        os.close(descriptor)
    del tensor.external_data[:]
    tensor.ClearField("data_location")


def _number(what: str, key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError(
            f"{what}: the {key} of its external data must be a number of bytes, got {text!r:.100}"
        )
    return int(text)


def _open_inside(what: str, folder: str, location: str) -> int:
    """A file below a folder, reached through no link, `..` or absolute path, as a descriptor.

    Step by step from the folder's own descriptor, so that nobody can swap a part for a link meanwhile.
    """
    parts = [part for part in location.split("/") if part != "."]
    if not parts or location.startswith("/") or any(
        part in ("", "..") or "\\" in part or ":" in part or "\0" in part for part in parts
    ):  # fmt: skip
        raise ValueError(
            f"{what} has its data at {location!r:.200}, which is no path inside the model's folder"
        )
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        file = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=here)
    except OSError as error:
        raise ValueError(
            f"{what} has its data at {location!r:.200}, which cannot be read without following links: "
            f"{error.strerror}"
        ) from error
    finally:
        os.close(here)
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(file)
        raise ValueError(f"{what} has its data at {location!r:.200}, which is no regular file of one name")
    return file


def _read(descriptor: int, offset: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.pread(descriptor, length, offset)
        if not part:
            raise ValueError("the file of the external data became shorter while it was read")
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return b"".join(parts)


# --- structure ----------------------------------------------------------------------------------------------


def _check_structure(proto: Proto) -> None:
    """What onnx's checker sees: nodes in order, names once, inputs defined, attributes known."""
    onnx = require()
    ports = [value.type.tensor_type for value in [*proto.graph.input, *proto.graph.output]]
    open_ = [t for t in ports if t.elem_type and not t.HasField("shape")]
    try:
        for tensor in open_:  # which engines run, but the checker refuses
            tensor.shape.SetInParent()
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise ValueError(f"is malformed: {' '.join(str(error).split()):.500}") from error
    finally:
        for tensor in open_:
            tensor.ClearField("shape")
    names = [value.name for value in proto.graph.input]
    if len(set(names)) != len(names) or "" in names:
        raise ValueError("has two inputs of one name, or one without")
    for what, values in (("output", proto.graph.output), ("initializer", proto.graph.initializer)):
        names = [value.name for value in values]
        if len(set(names)) != len(names):
            raise ValueError(f"has two {what}s of one name")


def array(tensor: Proto) -> Array:
    """What a tensor that was checked holds."""
    found: Array = require().numpy_helper.to_array(tensor)
    return found


def widened(value: Array) -> Array:
    """float16 and bfloat16 as float32, all else as it is."""
    return value.astype(np.float32) if narrow(value.dtype) else value


def narrow(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is float16, or bfloat16 as ml_dtypes has it."""
    return dtype == np.float16 or dtype.name == "bfloat16"
