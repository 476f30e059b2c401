"""`fastlstm convert` and `fastlstm inspect`: from one file format into another, and what a file holds.

Each format is known by the suffix of a file's name, and its importer reads it: nothing in a file is run, no
class that it names is imported.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import fastlstm

from . import _check, _files
from ._files import Found
from ._train import UserError

# The module that reads and writes a format: it has `found(path, options)` and `written(model, path)`, and
# ONNX's takes `lengths=True` for an input that holds them.
FORMATS = {
    ".safetensors": "fastlstm._convert",
    ".pt": "fastlstm.torch",
    ".pth": "fastlstm.torch",
    ".keras": "fastlstm.keras",
    ".h5": "fastlstm.keras",
    ".hdf5": "fastlstm.keras",
    ".onnx": "fastlstm.onnx",
}


def convert(source: str, target: str, options: Mapping[str, Any], out: TextIO) -> None:
    """Read one file, write another. UserError, OSError."""
    reader, writer = _format(source), _format(target)
    if os.path.exists(target) and os.path.samefile(source, target):
        raise UserError(f"{target}: would replace what it is made of")
    with _blaming(source):
        found = _module(reader).found(source, options)
    if found.model is None:
        raise UserError(f"{source}: {found.what} that is no plain model: " + "; ".join(found.notes))
    if found.lengths and writer == "fastlstm.keras":
        raise UserError(f"{target}: would have no input for lengths: {'; '.join(found.lengths)}")
    inputs = {"lengths": True} if found.lengths and writer == "fastlstm.onnx" else {}
    with _blaming(target):
        _module(writer).written(found.model, target, **inputs)
    print(f"{found.model!r}\n{target}: {os.path.getsize(target):,} bytes", file=out)
    for note in found.notes:
        print(f"not converted: {note}", file=out)


def inspect(path: str, options: Mapping[str, Any], as_json: bool, out: TextIO) -> None:
    """Print what a file holds. UserError, OSError."""
    reader = _format(path)
    with _blaming(path):
        found = _module(reader).found(path, options)
    facts = described(path, found)
    print(json.dumps(facts, indent=2) if as_json else "\n".join(_lines(facts)), file=out)


def described(path: str, found: Found) -> dict[str, Any]:
    """The same as data: the file, the modules with their options, each parameter with its origin; of what is
    no plain model its inputs and outputs, its layers and their parameters."""
    facts: dict[str, Any] = {"file": path, "bytes": os.path.getsize(path), "format": found.what}
    if found.model is not None:
        facts |= _of_model(found.model, found.origins)
    else:
        facts |= found.details
    return facts | {"notes": list(found.notes)}


def _of_model(model: Any, origins: Mapping[str, str]) -> dict[str, Any]:
    options: _check.AnyOptions = model._options
    parts = options.modules if isinstance(options, _check.SequentialOptions) else (options,)
    held = model._parameters
    parameters = [
        _files.row(name, array, origins.get(name, name), _dtype(options, name, array))
        for name, array in held.items()
    ]
    return {
        "model": type(model).__name__,
        "dtype": str(options.dtype),
        "modules": [{"module": repr(part), "options": _options(part)} for part in parts],
        "parameters": parameters,
        "numbers": sum(array.size for array in held.values()),
        "parameter_bytes": sum(array.nbytes for array in held.values()),
    }


def _dtype(options: _check.AnyOptions, name: str, array: Any) -> str:
    small = _check.held_dtype(options, name) == _check.WEIGHT_DTYPES["bfloat16"]
    return "bfloat16" if small else str(array.dtype)


def _options(part: Any) -> dict[str, Any]:
    given: dict[str, Any] = part.given() if isinstance(part, _check.Options) else part._asdict()
    return given


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    yield f"{facts['file']}: {facts['format']}, {facts['bytes']:,} bytes"
    if "model" in facts:
        yield f"{facts['model']} of {facts['numbers']:,} numbers, {facts['parameter_bytes']:,} bytes"
        for i, module in enumerate(facts["modules"]):
            yield ""
            yield f"{i}  {module['module']}"
            options = [f"{name}={value!r}" for name, value in module["options"].items()]
            yield from _wrapped(options)
    for key in ("inputs", "outputs"):
        for port in facts.get(key, ()):
            shape = (
                "of any shape" if port["shape"] is None else " x ".join(map(str, port["shape"])) or "scalar"
            )
            yield f"{key[:-1]} {port['name']}: {port['dtype']} {shape}"
    for i, layer in enumerate(facts.get("layers", ())):
        yield ""
        yield f"{i}  {layer['class']} {layer['name']!r}"
        yield from _wrapped([f"{name}={value!r}" for name, value in layer["options"].items()])
    if facts.get("parameters"):
        yield ""
        yield from _table(facts["parameters"])
    if facts["notes"]:
        yield ""
        yield from facts["notes"]


def _wrapped(words: list[str]) -> Iterator[str]:
    import textwrap

    return iter(textwrap.wrap(", ".join(words), 96, initial_indent="   ", subsequent_indent="   "))


def _table(parameters: list[dict[str, Any]]) -> Iterator[str]:
    rows = [("parameter", "shape", "dtype", "bytes", "from")]
    for p in parameters:
        shape = " x ".join(map(str, p["shape"]))
        rows.append((p["name"], shape, p["dtype"], f"{p['bytes']:,}", p["origin"]))
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1]), row[2].ljust(widths[2])]
        yield "  ".join([*cells, row[3].rjust(widths[3]), row[4]])


# --- formats ------------------------------------------------------------------------------------------------


def found(path: str, options: Mapping[str, Any]) -> Found:
    """A safetensors file: one that `save` wrote, or a bare one with PyTorch's names."""
    model: Any = fastlstm.load(path, **options)
    metadata = _files.read_metadata(path)
    own = _files.METADATA_KEY in metadata
    what = "safetensors file of fastlstm" if own else "bare safetensors file with PyTorch's names"
    others = sorted(metadata.keys() - {_files.METADATA_KEY})
    return Found(what, model, {}, [f"beside the model: {', '.join(others)}"] if others else [])


def written(model: Any, path: str) -> None:
    model.save(path)


def _format(path: str) -> str:
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in FORMATS:
        raise UserError(f"{path}: the format of a file goes by its suffix, one of {', '.join(FORMATS)}")
    return FORMATS[suffix]


def _module(name: str) -> Any:
    return importlib.import_module(name)


@contextlib.contextmanager
def _blaming(path: str) -> Iterator[None]:
    """What an importer refuses, in one line that names the file."""
    try:
        yield
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        text = str(error)
        raise UserError(text if path in text else f"{path}: {text}") from error
