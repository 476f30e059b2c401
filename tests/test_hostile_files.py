"""Files that mean harm, or were harmed: `load` gives a layer or ValueError, and never takes much memory.

Valid files are mutated in their bytes and in their header. What the safetensors library refuses we
must refuse.
"""

import json
import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

import fastlstm
from fastlstm import _files

BUDGET = 1 << 20  # bytes that reading any of these small files may take
CONFIG = {"version": 1, "cell": "lstm", "input_size": 3, "hidden_size": 2, "num_layers": 1, "proj_size": 1}

MODEL = {
    "version": 2,
    "module": "Sequential",
    "modules": [
        {"module": "Embedding", "num_embeddings": 3, "embedding_dim": 2},
        {"cell": "gru", "input_size": 2, "hidden_size": 2},
        {"module": "Linear", "in_features": 2, "out_features": 3},
    ],
}


def valid_files():
    lstm = fastlstm.LSTM(3, 2, proj_size=1, seed=1)
    yield save(lstm.state_dict(), {"fastlstm": json.dumps(CONFIG)})
    yield save(lstm.state_dict(), {"format": "pt"})
    yield save(fastlstm.GatedRNN(2, 3, 2, bias=False, bidirectional=True, seed=1).state_dict())
    yield save(
        {n: v.astype("f2") for n, v in fastlstm.LSTM(1, 1, peepholes=True, seed=1).state_dict().items()}
    )
    yield save(model().state_dict(), {"fastlstm": json.dumps(MODEL)})


def model():
    return fastlstm.Sequential(fastlstm.Embedding(3, 2), fastlstm.GRU(2, 2), fastlstm.Linear(2, 3))


FILES = list(valid_files())


def split(data):
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header, body, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile") / "m.safetensors"


def attempt(path, data, **options):
    """Whether data loads; anything but a layer that runs or a ValueError naming the file fails the test."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        layer = fastlstm.load(path, **options)
    except ValueError as error:
        assert str(path) in str(error)
        assert len(str(error)) < 10_000
        layer = None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < BUDGET + 40 * len(data), f"{peak} bytes for a file of {len(data)}"
    if layer is None:
        return False
    assert sum(v.nbytes for v in layer.state_dict().values()) <= 4 * len(data)
    if isinstance(layer, fastlstm.Sequential):
        tokens = isinstance(layer[0], fastlstm.Embedding)
        x = np.zeros((2, 1) if tokens else (2, 1, layer._options.widths[0]), int if tokens else float)
    else:
        x = np.zeros((2, 1, layer.input_size))
    assert layer(x)[0].shape[:2] == (2, 1)
    try:
        with safe_open(path, "np") as file:
            assert set(file.keys()) == set(layer.state_dict())
    except SafetensorError as error:
        pytest.fail(f"taken, but refused by the library: {error}")
    return True


@pytest.mark.parametrize("data", FILES)
def test_the_files_are_valid(path, data):
    assert attempt(path, data)


# --- bytes --------------------------------------------------------------------------------------------------

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "copy", "cut"]),
        st.one_of(st.integers(0, 700), st.integers(0, 9)),
        st.binary(min_size=1, max_size=4)
        | st.sampled_from([b"9", b"-", b"0", b'"', b",", b"{}", b"[", b"null", b"1e3"]),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FILES), EDITS)
@example(FILES[0], [("set", 0, b"\xff" * 8)])
@example(FILES[0], [("cut", 4, b"")])
def test_mutated_bytes(path, data, edits):
    for what, at, new in edits:
        at = min(at, len(data))
        end = at + len(new)
        if what == "set":
            data = data[:at] + new + data[end:]
        elif what == "insert":
            data = data[:at] + new + data[at:]
        elif what == "delete":
            data = data[:at] + data[end:]
        elif what == "copy":
            data = data[:end] + data[at:]
        else:
            data = data[:at]
    attempt(path, data)


# --- header -------------------------------------------------------------------------------------------------

NUMBERS = st.sampled_from(
    [0, 1, 2, 3, 5, 8, -1, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64, 10**30, 1.0, 1e300, True, None]
)
NAMES = st.sampled_from(
    ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "weight_hr_l0", "weight_hh_l1023", "x", ""]
)
JSON = st.recursive(
    NUMBERS | st.sampled_from(["F32", "F64", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "", "lstm"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
CHANGES = st.lists(
    st.one_of(
        st.tuples(
            st.just("field"),
            st.integers(0, 20),
            st.sampled_from(["dtype", "shape", "data_offsets", "x"]),
            JSON,
        ),
        st.tuples(st.just("shape"), st.integers(0, 20), st.integers(0, 1), NUMBERS),
        st.tuples(st.just("offset"), st.integers(0, 20), st.integers(0, 1), NUMBERS),
        st.tuples(st.just("rename"), st.integers(0, 20), NAMES, st.none()),
        st.tuples(st.just("drop"), st.integers(0, 20), st.none(), st.none()),
        st.tuples(st.just("swap"), st.integers(0, 20), st.integers(0, 20), st.none()),
        st.tuples(
            st.just("config"),
            st.sampled_from([*CONFIG, "clip", "activations", "bias", "dtype", "bidirectional", "x"]),
            JSON,
            st.none(),
        ),
        st.tuples(st.just("metadata"), JSON, st.none(), st.none()),
        st.tuples(
            st.just("module"),
            st.integers(0, 3),
            st.sampled_from([*MODEL, *MODEL["modules"][0], *MODEL["modules"][1], "out_features", "p"]),
            JSON | st.sampled_from(["Linear", "Dropout", "Sequential", "rnn"]),
        ),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FILES), CHANGES)
def test_mutated_header(path, data, changes):
    header, body = split(data)
    for what, first, second, third in changes:
        names = sorted(header.keys() - {"__metadata__"})
        name = names[first % len(names)] if isinstance(first, int) and names else None
        if what == "config":
            header["__metadata__"] = {"fastlstm": json.dumps(CONFIG | {first: second})}
        elif what == "module":
            described = json.loads(json.dumps(MODEL))
            ([described, *described["modules"]][first])[second] = third
            header["__metadata__"] = {"fastlstm": json.dumps(described)}
        elif what == "metadata":
            header["__metadata__"] = first
        elif name is None:
            continue
        elif what == "field" and isinstance(header[name], dict):
            header[name][second] = third
        elif what in ("shape", "offset") and isinstance(header[name], dict):
            numbers = header[name].get("shape" if what == "shape" else "data_offsets")
            if isinstance(numbers, list) and len(numbers) > second:
                numbers[second] = third
        elif what == "rename":
            header[second] = header.pop(name)
        elif what == "drop":
            del header[name]
        elif what == "swap":
            other = names[second % len(names)]
            header[name], header[other] = header[other], header[name]
    attempt(path, joined(header, body))


# --- known bad ones -----------------------------------------------------------------------------------------


def changed(**entries):
    header, body = split(FILES[1])
    for name, fields in entries.items():
        header[name].update(fields)
    return joined(header, body)


HEADER, BODY = split(FILES[1])
TEXT = json.dumps(HEADER).encode()
FIRST = '{"bias_hh_l0": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}, '
BAD = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "no header": b"\0" * 8,
    "header of one byte": joined(b"{", b""),
    "header longer than the file": joined(TEXT, BODY, len(TEXT) + len(BODY) + 1),
    "header of 2^60": joined(TEXT, BODY, 2**60),
    "header of 2^64 - 1": joined(TEXT, BODY, 2**64 - 1),
    "header of 3 MB": joined(TEXT + b" " * 3_000_000, BODY),
    "truncated body": FILES[1][:-1],
    "trailing byte": FILES[1] + b"\0",
    "no tensors": joined({}, b""),
    "header a list": joined(b"[]", b""),
    "header begins with a space": joined(b" " + TEXT, BODY),
    "header not utf-8": joined(TEXT.replace(b"bias_hh", b"bias_\xff\xff"), BODY),
    "header a bomb of lists": joined(b'{"a":' + b"[" * 500_000, b""),
    "header a bomb of objects": joined(b'{"a":' * 200_000, b""),
    "number of 100,000 digits": joined(TEXT.replace(b"[8]", b"[" + b"9" * 100_000 + b"]"), BODY),
    "tensor twice": joined((FIRST + TEXT.decode()[1:]).encode(), BODY),
    "field twice": joined(TEXT.replace(b'"dtype"', b'"dtype": "F32", "dtype"', 1), BODY),
    "NaN": joined(TEXT.replace(b"[8]", b"[NaN]"), BODY),
    "shape bomb": changed(weight_ih_l0={"shape": [2**31, 2**31]}),
    "shape that wraps around": changed(weight_ih_l0={"shape": [2**61 + 8, 3]}),
    "many sizes": changed(weight_ih_l0={"shape": [1] * 60 + [8, 3]}),
    "negative sizes": changed(weight_ih_l0={"shape": [-8, -3]}),
    "size true": changed(weight_hr_l0={"shape": [True, 2]}),
    "size 8.0": changed(weight_ih_l0={"shape": [8.0, 3]}),
    "zero of everything": changed(weight_ih_l0={"shape": [2**62, 0]}),
    "integers": changed(weight_ih_l0={"dtype": "I32"}),
    "overlap": changed(bias_ih_l0={"data_offsets": [0, 32]}),
    "beyond the end": changed(weight_ih_l0={"data_offsets": [10**6, 10**6 + 96]}),
    "backwards": changed(weight_ih_l0={"data_offsets": [160, 64]}),
    "three offsets": changed(bias_ih_l0={"data_offsets": [32, 64, 64]}),
    "extra field": changed(bias_ih_l0={"extra": 1}),
    "metadata a list": joined({**HEADER, "__metadata__": ["pt"]}, BODY),
    "metadata a number": joined({**HEADER, "__metadata__": {"fastlstm": 1}}, BODY),
    "gap": joined(
        {
            n: v | {"data_offsets": [o + 4 for o in v["data_offsets"]]}
            for n, v in HEADER.items()
            if n[0] != "_"
        },
        b"\0" * 4 + BODY,
    ),
    **{
        f"{name} of {value}": joined(
            {**HEADER, "__metadata__": {"fastlstm": json.dumps(CONFIG | {name: value})}}, BODY
        )
        for name, value in (
            ("hidden_size", 2**40),
            ("hidden_size", 2**27),
            ("input_size", 2**60),
            ("num_layers", 1024),
        )
    },
    **{
        f"a model of {name}": joined(
            {"__metadata__": {"fastlstm": json.dumps(MODEL | {"modules": modules})}}, b""
        )
        for name, modules in (
            ("many layers", [{"cell": "gru", "input_size": 2, "hidden_size": 2, "num_layers": 1024}] * 256),
            ("many tokens", [{"module": "Embedding", "num_embeddings": 2**40, "embedding_dim": 2**20}]),
            ("many modules", [{"module": "Dropout"}] * 60_000),
        )
    },
    "a text file": b"import fastlstm\n" * 9,
    "a pickle": b"\x80\x04\x95" + b"a" * 100,
}


@pytest.mark.parametrize("name", BAD)
def test_refused(path, name):
    began = time.perf_counter()
    assert not attempt(path, BAD[name])
    assert time.perf_counter() - began < 2


def test_other_kinds_of_files_are_called_so(path):
    """Though a header may be as long as a zip file's first bytes say."""
    for data, said in (
        (b"import fastlstm\n" * 9, "is no safetensors file"),
        (b"", "is no safetensors file"),
        (b"PK\x03\x04\0\0\x08\x08\0\0", "PyTorch pickle: .*safetensors.torch.save_file"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9", "PyTorch pickle"),
    ):
        for read in (fastlstm.load, _files.read_metadata, _files.read_tensors):
            path.write_bytes(data)
            with pytest.raises(ValueError, match=f"^{path} .*{said}"):
                read(str(path))
    for begin in (b"\x80\x02\0", b"PK\0"):
        length = int.from_bytes(begin, "little")
        data = joined(TEXT.ljust(length), BODY)
        assert data.startswith(begin) and attempt(path, data)


def test_sparse_file_is_not_read(path):
    for length in (2**20, 2**35):
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", length) + b"{")
            try:
                file.truncate(2**36)
            except OSError:
                pytest.skip("no sparse files of this size here")
        tracemalloc.start()
        with pytest.raises(ValueError):
            fastlstm.load(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 << 20


def test_file_that_shrinks_while_it_is_read(path, monkeypatch):
    path.write_bytes(FILES[1])
    read = _files._tensor

    def shrink(file, name, entry, wanted):
        with open(path, "r+b") as other:
            other.truncate(len(FILES[1]) - 40)
        return read(file, name, entry, wanted)

    monkeypatch.setattr(_files, "_tensor", shrink)
    with pytest.raises(ValueError, match="ends within"):
        fastlstm.load(path)
