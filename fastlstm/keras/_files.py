"""Keras's files, read as if an attacker had made them: .keras archives and HDF5.

Nothing is extracted, no class is looked up, no link is followed, nothing outside the file is opened, and
memory is taken only for what the file really holds, within a bounded expansion for compressed data.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

CONFIG_LIMIT = 16 << 20  # bytes of a model's configuration
NAMES_LIMIT = 100_000  # names that an attribute may list
FLOOR = 64 << 20  # bytes below which data may be stored as small as it likes
EXPANSION = 20  # times that larger data may grow: Keras stores it uncompressed
CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
PLAIN_FILTERS = frozenset({1, 2, 3})  # deflate, shuffle, Fletcher32: built in, while others load plugins


class Opened(NamedTuple):
    """A file: what the model is, where its weights are, and which Keras wrote it."""

    config: Any
    weights: Group
    legacy: bool  # an .h5 file's layout
    keras_version: str

    @property
    def keras_major(self) -> int:
        return int(self.keras_version.split(".")[0])


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Opened]:
    """A .keras or whole-model .h5 file, told apart by its first bytes.

    Raises OSError if it cannot be read, ValueError if it is neither or malformed.
    """
    with open(path, "rb") as file:
        start = file.read(8)
        file.seek(0)
        if start[:4] == b"PK\x03\x04":
            with _archive(file) as found:
                yield found
        elif start == b"\x89HDF\r\n\x1a\n":
            with _hdf5(file, os.fstat(file.fileno()).st_size) as root:
                yield _legacy(root)
        else:
            raise ValueError("neither a .keras archive nor an HDF5 file")


# --- .keras: a zip archive ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _archive(file: BinaryIO) -> Iterator[Opened]:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError) as error:
        raise ValueError(f"no valid .keras archive: {error}") from error
    with archive:
        config = _json(_member(archive, CONFIG, CONFIG_LIMIT), CONFIG)
        metadata = _json(_member(archive, METADATA, CONFIG_LIMIT), METADATA)
        version = _version(metadata.get("keras_version") if isinstance(metadata, dict) else None)
        weights = _member(archive, WEIGHTS, None)
        with _hdf5(io.BytesIO(weights), len(weights)) as root:
            yield Opened(config, root, False, version)


def _member(archive: zipfile.ZipFile, name: str, limit: int | None) -> bytes:
    """One member by its exact name. Other members are never read."""
    found = [info for info in archive.infolist() if info.filename == name]
    if len(found) != 1:
        raise ValueError(f"a .keras archive has one {name}, this has {len(found)}")
    info = found[0]
    if limit is not None and info.file_size > limit:
        raise ValueError(f"{name} declares {info.file_size:,} bytes, more than {limit:,}")
    if info.file_size > max(FLOOR, EXPANSION * info.compress_size):
        raise ValueError(f"{name} declares {info.file_size:,} bytes in {info.compress_size:,}: too many")
    try:
        with archive.open(info) as member:
            data = member.read(info.file_size + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
    if len(data) != info.file_size:
        raise ValueError(f"{name} declares {info.file_size:,} bytes and holds {len(data):,}")
    return data


def _json(data: bytes | str, what: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is no valid JSON: {error}") from error


def _version(value: Any) -> str:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    if not isinstance(text, str) or not re.match(r"[23]\.\d", text):
        raise ValueError(f"must be a file of Keras 2 or 3, got keras_version {text!r:.80}")
    return text


# --- .h5: HDF5 ----------------------------------------------------------------------------------------------


def _legacy(root: Group) -> Opened:
    """A whole model in HDF5, as Keras 2 wrote it and Keras 3 still does."""
    if not root.has_attribute("model_config"):
        raise ValueError(
            "this .h5 file holds weights alone, without the model: load them with Keras and save the whole "
            "model, or hand over the model itself"
        )
    config = _json(root.text("model_config"), "model_config")
    version = _version(root.text("keras_version") if root.has_attribute("keras_version") else None)
    return Opened(config, root.group("model_weights"), True, version)


@contextlib.contextmanager
def _hdf5(file: Any, size: int) -> Iterator[Group]:
    """The root of an HDF5 file that is read through Python's own file object, so that it opens no other."""
    h5py = _h5py()
    with _hdf5_errors("no valid HDF5 file"):
        opened_file = h5py.File(file, "r")
    with opened_file:
        yield Group(opened_file, "", _Budget(size))


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("Keras's files need h5py: pip install 'fastlstm[keras]'") from error
    return h5py


@contextlib.contextmanager
def _hdf5_errors(what: str) -> Iterator[None]:
    """What h5py raises for a malformed file, as ValueError."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, TypeError, UnicodeError, OverflowError, ValueError) as error:
        raise ValueError(f"{what}: {error}") from error


class _Budget:
    """How many bytes may be read out of a file, all in all: one dataset can have many names."""

    def __init__(self, file_size: int) -> None:
        self.file_size = file_size
        self._left = max(FLOOR, EXPANSION * file_size)

    def spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ValueError(f"more data than a file of {self.file_size:,} bytes should hold")


class Group:
    """A group of an HDF5 file, walked by exact names."""

    def __init__(self, group: Any, path: str, budget: _Budget) -> None:
        self._group, self._path, self._budget = group, path, budget

    def count(self) -> int:
        with _hdf5_errors(self._path):
            return len(self._group)

    def has(self, name: str) -> bool:
        _check_part(name)
        with _hdf5_errors(f"{self._path}/{name}"):
            return self._group.get(name, getlink=True) is not None

    def group(self, name: str) -> Group:
        return Group(self._child(name, "Group"), f"{self._path}/{name}", self._budget)

    def dataset(self, path: str) -> Dataset:
        *groups, name = path.split("/")
        inside = self
        for part in groups:
            inside = inside.group(part)
        return Dataset(inside._child(name, "Dataset"), f"{inside._path}/{name}", self._budget)

    def _child(self, name: str, kind: str) -> Any:
        """What a hard link of that name leads to; other links may lead anywhere, even out of the file."""
        _check_part(name)
        h5py, path = _h5py(), f"{self._path}/{name}"
        with _hdf5_errors(path):
            link = self._group.get(name, getlink=True)
        if type(link) is not h5py.HardLink:
            raise ValueError(f"{path}: {'missing' if link is None else 'a link that is not followed'}")
        with _hdf5_errors(path):
            child = self._group[name]
        if not isinstance(child, getattr(h5py, kind)):
            raise ValueError(f"{path} must be a {kind}, got a {type(child).__name__}")
        return child

    def has_attribute(self, name: str) -> bool:
        with _hdf5_errors(f"attributes of {self._path}/"):
            return name in self._group.attrs

    def text(self, name: str) -> str:
        """An attribute that is one string."""
        value = self._attribute(name, 1)
        if isinstance(value, bytes):
            with _hdf5_errors(f"attribute {name}"):
                value = value.decode("utf-8")
        if not isinstance(value, str):
            raise ValueError(f"attribute {name} must be a string, got a {type(value).__name__}")
        return value

    def names(self, name: str) -> list[str]:
        """An attribute that is a list of strings; a long one is in parts, name0, name1, .."""
        parts = [name]
        if not self.has_attribute(name):
            parts = []
            while self.has_attribute(f"{name}{len(parts)}"):
                parts.append(f"{name}{len(parts)}")
        if not parts:
            raise ValueError(f"{self._path}: attribute {name} is missing")
        found = []
        for part in parts:
            for item in np.ravel(self._attribute(part, NAMES_LIMIT)):
                text = item.decode("utf-8", "replace") if isinstance(item, bytes) else item
                if not isinstance(text, str):
                    raise ValueError(f"{self._path}: attribute {part} must list names")
                found.append(text)
        return found

    def _attribute(self, name: str, most: int) -> Any:
        with _hdf5_errors(f"attribute {name}"):
            attribute = self._group.attrs.get_id(name)
            size = math.prod(attribute.shape or ())
            if size > most or size * attribute.dtype.itemsize > CONFIG_LIMIT:
                raise ValueError(f"{attribute.shape} is too large")
            return self._group.attrs[name]


class Dataset:
    """An array of an HDF5 file that is stored in it, plainly."""

    def __init__(self, dataset: Any, path: str, budget: _Budget) -> None:
        self._dataset, self._path, self._budget = dataset, path, budget
        with _hdf5_errors(path):
            self.shape: tuple[int, ...] = tuple(dataset.shape or ())
            self._bytes = self._checked(dataset, budget.file_size)

    def _checked(self, dataset: Any, file_size: int) -> int:
        """The bytes that it takes in memory."""
        if dataset.shape is None or dataset.dtype.kind != "f" or dataset.dtype.itemsize not in (2, 4, 8):
            raise ValueError(f"must hold float16, float32 or float64, got {dataset.dtype}")
        if dataset.external or dataset.is_virtual:
            raise ValueError("its data is elsewhere: external and virtual datasets are not followed")
        made = dataset.id.get_create_plist()
        filters = {made.get_filter(i)[0] for i in range(made.get_nfilters())}
        if not filters <= PLAIN_FILTERS:
            raise ValueError(f"unknown filter {sorted(filters - PLAIN_FILTERS)[0]}")
        declared = math.prod(self.shape) * dataset.dtype.itemsize
        stored = dataset.id.get_storage_size()
        if stored > file_size:
            raise ValueError(f"declares {stored:,} bytes in a file of {file_size:,}")
        if declared > max(FLOOR, EXPANSION * stored):
            raise ValueError(f"declares {declared:,} bytes and stores {stored:,}: too few")
        if declared and not stored:
            raise ValueError("holds no data")
        return int(declared)

    def read(self) -> Array:
        """A fresh array."""
        self._budget.spend(self._bytes)
        with _hdf5_errors(self._path):
            return np.array(self._dataset[()])


def _check_part(name: str) -> None:
    if not name or "/" in name or name in (".", "..") or "\0" in name:
        raise ValueError(f"{name[:80]!r} is no name of a group or dataset")


def same_or_unknown(got: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether a shape is the wanted one, where None stands for any size."""
    return len(got) == len(wanted) and all(w in (None, g) for g, w in zip(got, wanted, strict=True))
