"""Files of Keras's: what was saved comes back to the last bit, and what an attacker made is refused."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest

import fastlstm

os.environ.setdefault("KERAS_BACKEND", "torch")
h5py = pytest.importorskip("h5py")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    keras = pytest.importorskip("keras", reason="Keras and a backend of its")
    pytest.importorskip("torch")
    L = keras.layers

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

MB = 1 << 20


def randomised(model, seed=0):
    rng = np.random.default_rng(seed)
    for w in model.weights:
        value = rng.normal(0, 0.5, w.shape)
        w.assign(np.abs(value) + 0.1 if "variance" in w.name else value)
    return model


def sequential():
    return keras.Sequential([
        L.Input((None,)),
        L.Embedding(11, 7, mask_zero=True),
        L.Bidirectional(L.LSTM(5, return_sequences=True, dropout=0.1)),
        L.TimeDistributed(L.Dense(4, activation="relu")),
        L.BatchNormalization(),
        L.GRU(6, return_sequences=True, reset_after=False),
        L.Dense(3),
        L.Dense(2, activation="softmax"),
    ])  # fmt: skip


def functional():
    x = first = L.Input((None,), name="tokens")
    x = L.Embedding(11, 4, mask_zero=True)(x)
    x, *_ = L.GRU(5, return_sequences=True, return_state=True)(x)
    x = L.Masking(0.5)(x)
    x = L.LSTM(3, return_sequences=True)(x)
    return keras.Model(first, L.Dense(2)(x))


def nested():
    inner = keras.Sequential(
        [L.Input((None, 4)), L.GRU(3, return_sequences=True), L.BatchNormalization(), L.Dense(4)],
        name="inner",
    )
    first = L.Input((None, 4))
    other = keras.Model(first, L.LayerNormalization()(L.SimpleRNN(4, return_sequences=True)(first)))
    stack = [L.Embedding(11, 4), inner, other, L.RNN(L.StackedRNNCells([L.LSTMCell(3), L.GRUCell(2)]))]
    return keras.Sequential([L.Input((None,)), *stack])


def frozen():
    model = sequential()
    model.layers[0].trainable = model.layers[1].trainable = False
    return model


MODELS = {"sequential": sequential, "functional": functional, "nested": nested, "frozen": frozen}
TOKENS = np.random.default_rng(1).integers(0, 11, (4, 7))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("name", MODELS)
def test_saved_models_come_back(name, suffix, tmp_path):
    keras_model = randomised(MODELS[name]())
    keras_model.save(tmp_path / f"model{suffix}")
    live, read = fastlstm.from_keras(keras_model), fastlstm.from_keras(tmp_path / f"model{suffix}")
    assert np.array_equal(live(TOKENS), read(TOKENS)) and np.ptp(live(TOKENS)) > 0
    weights = live.parameters
    assert list(weights) == list(read.parameters)
    for key, array in read.parameters.items():
        assert np.array_equal(array, weights[key])


def test_files_are_read_without_keras(tmp_path):
    import subprocess
    import sys

    keras_model = randomised(sequential())
    for name in ("model.keras", "model.h5"):
        keras_model.save(tmp_path / name)
        code = f"""
import sys
sys.modules["keras"] = sys.modules["torch"] = sys.modules["tensorflow"] = None
import fastlstm
print(fastlstm.from_keras({str(tmp_path / name)!r})([[1, 2, 0]]).shape)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.stdout.strip() == "(1, 3, 2)", done.stderr


def test_without_h5py(tmp_path, monkeypatch):
    randomised(sequential()).save(tmp_path / "model.keras")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install 'fastlstm\[keras\]'"):
        fastlstm.from_keras(tmp_path / "model.keras")


def test_an_h5_file_frozen_in_part_is_refused(tmp_path):
    """Keras writes trained arrays first, so that whose kernel is whose is no longer told by the order."""
    model = sequential()
    model.layers[1].forward_layer.trainable = False
    randomised(model).save(tmp_path / "model.h5")
    with pytest.raises(ValueError, match="frozen in part"):
        fastlstm.from_keras(tmp_path / "model.h5")


# --- Keras 2 ------------------------------------------------------------------------------------------------


def keras_2_file(path):
    """A Functional model as Keras 2.12 wrote it to HDF5; returns its weights."""
    rng = np.random.default_rng(2)
    w = {
        "emb": [("emb/embeddings:0", rng.normal(size=(11, 4)))],
        "gru": [("gru/gru_cell_7/kernel:0", rng.normal(size=(4, 9))),
                ("gru/gru_cell_7/recurrent_kernel:0", rng.normal(size=(3, 9))),
                ("gru/gru_cell_7/bias:0", rng.normal(size=(2, 9)))],
        "out": [("out/kernel:0", rng.normal(size=(3, 2))), ("out/bias:0", rng.normal(size=2))],
    }  # fmt: skip

    def layer(kind, name, inbound, **config):
        nodes = [[[inbound, 0, 0, {}]]] if inbound else []
        config |= {"name": name, "trainable": True, "dtype": "float32"}
        return {"class_name": kind, "config": config, "name": name, "inbound_nodes": nodes}

    gru = {
        "return_sequences": True, "return_state": False, "go_backwards": False, "stateful": False,
        "unroll": False, "time_major": False, "units": 3, "activation": "tanh", "dropout": 0.0,
        "recurrent_activation": "sigmoid", "use_bias": True, "recurrent_dropout": 0.0, "implementation": 2,
        "reset_after": True, "kernel_initializer": {"class_name": "Zeros", "config": {}},
    }  # fmt: skip
    layers = [
        layer("InputLayer", "in", None, batch_input_shape=[None, None], sparse=False, ragged=False),
        layer("Embedding", "emb", "in", input_dim=11, output_dim=4, mask_zero=True, input_length=None),
        layer("GRU", "gru", "emb", **gru),
        layer("Dense", "out", "gru", units=2, activation="linear", use_bias=True),
    ]
    config = {"name": "m", "trainable": True, "layers": layers, "input_layers": [["in", 0, 0]],
              "output_layers": [["out", 0, 0]]}  # fmt: skip
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = b"2.12.0"
        file.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": config})
        root = file.create_group("model_weights")
        for name, arrays in w.items():
            group = root.create_group(name)
            group.attrs["weight_names"] = np.array([key.encode() for key, _ in arrays])
            for key, array in arrays:
                group[key] = array.astype(np.float32)
    return {name: [array.astype(np.float32) for _, array in arrays] for name, arrays in w.items()}


def test_a_file_of_keras_2(tmp_path):
    weights = keras_2_file(tmp_path / "old.h5")
    stack = [L.Embedding(11, 4, mask_zero=True), L.GRU(3, return_sequences=True), L.Dense(2)]
    keras_model = keras.Sequential([L.Input((None,)), *stack])
    for layer, arrays in zip(keras_model.layers, weights.values(), strict=True):
        layer.set_weights(arrays)
    got = fastlstm.from_keras(tmp_path / "old.h5")(TOKENS)
    assert np.array_equal(got, fastlstm.from_keras(keras_model)(TOKENS))


# --- an attacker's files ------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """A good .keras file's path, and what to overwrite it with: {member: bytes}, or functions of them."""
    path = tmp_path / "model.keras"
    randomised(sequential()).save(path)
    return path


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, contents, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)


def with_config(path, change):
    """Change config.json of a .keras file."""
    contents = members(path)
    config = json.loads(contents["config.json"])
    change(config)
    write(path, contents | {"config.json": json.dumps(config)})


def with_hdf5(path, change, name="model.weights.h5"):
    """Change the HDF5 file inside of a .keras file."""
    contents = members(path)
    buffer = io.BytesIO(contents[name])
    with h5py.File(buffer, "r+") as file:
        change(file)
    write(path, contents | {name: buffer.getvalue()})


def refused(path, why):
    with pytest.raises(ValueError, match=why):
        fastlstm.from_keras(path)


def test_a_file_of_keras_2_12(saved):
    """Which called the list of layers by another name."""
    before = fastlstm.from_keras(saved)(TOKENS)
    with_hdf5(saved, lambda file: file.move("layers", "_layer_checkpoint_dependencies"))
    assert np.array_equal(fastlstm.from_keras(saved)(TOKENS), before)


def test_the_helpers_change_nothing_else(saved):
    before = fastlstm.from_keras(saved)(TOKENS)
    with_config(saved, lambda config: None)
    with_hdf5(saved, lambda file: None)
    assert np.array_equal(fastlstm.from_keras(saved)(TOKENS), before)
    write(saved, members(saved), zipfile.ZIP_DEFLATED)
    assert np.array_equal(fastlstm.from_keras(saved)(TOKENS), before)
    write(saved, members(saved) | {"../../escape": b"x", "/etc/x": b"x", "assets/a": b"x"})
    assert np.array_equal(fastlstm.from_keras(saved)(TOKENS), before)  # never read, nothing extracted
    assert [p.name for p in saved.parent.iterdir()] == ["model.keras"]


def test_no_file_of_keras(tmp_path):
    path = tmp_path / "x.keras"
    with pytest.raises(FileNotFoundError):
        fastlstm.from_keras(path)
    with pytest.raises(IsADirectoryError):
        fastlstm.from_keras(tmp_path)
    for data in (b"", b"PK", b"not a file of Keras's", b"PK\x03\x04", b"PK\x03\x04" + bytes(100)):
        path.write_bytes(data)
        refused(path, "neither a .keras archive nor an HDF5 file|no valid .keras archive")
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    refused(path, "no valid HDF5 file")


def test_truncated_anywhere(saved):
    data = saved.read_bytes()
    for size in range(1, len(data), 997):
        saved.write_bytes(data[:size])
        refused(saved, "")


def test_damaged_anywhere(saved):
    """One changed byte is an error or changes weights, never anything else than ValueError."""
    data, rng = saved.read_bytes(), np.random.default_rng(3)
    for place in rng.integers(0, len(data), 150):
        saved.write_bytes(data[:place] + bytes([data[place] ^ (1 << rng.integers(8))]) + data[place + 1 :])
        try:
            fastlstm.from_keras(saved)
        except ValueError:
            pass


def test_damaged_hdf5(tmp_path):
    """The same without the checksums of an archive."""
    path = tmp_path / "model.h5"
    randomised(sequential()).save(path)
    data, rng = path.read_bytes(), np.random.default_rng(4)
    for place in rng.integers(0, len(data), 150):
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << rng.integers(8))]) + data[place + 1 :])
        try:
            fastlstm.from_keras(path)
        except ValueError:
            pass


@pytest.mark.parametrize("name", ["config.json", "metadata.json", "model.weights.h5"])
def test_members(saved, name):
    contents = members(saved)
    write(saved, {key: data for key, data in contents.items() if key != name})
    refused(saved, f"one {name}, this has 0")
    with zipfile.ZipFile(saved, "w") as archive:
        for key, data in [*contents.items(), (name, contents[name])]:
            archive.writestr(key, data)
    refused(saved, f"one {name}, this has 2")
    write(saved, contents | {name: b"\x00" * 50})
    refused(saved, "JSON|no valid HDF5 file")


def test_zip_bombs(saved):
    contents = members(saved)
    write(saved, contents | {"config.json": b" " * (17 * MB)}, zipfile.ZIP_DEFLATED)
    refused(saved, "config.json declares 17,825,792 bytes, more than")
    write(saved, contents | {"model.weights.h5": bytes(100 * MB)}, zipfile.ZIP_DEFLATED)
    refused(saved, "model.weights.h5 declares 104,857,600 bytes in .*: too many")


def test_a_member_that_lies_about_its_size(saved):
    data = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        size = archive.getinfo("model.weights.h5").file_size
    place = data.rindex(struct.pack("<I", size))  # in the central directory
    for lie in (size - 1000, size + 1000, 2**32 - 2):
        data[place : place + 4] = struct.pack("<I", lie)
        saved.write_bytes(data)
        refused(saved, "model.weights.h5")


def test_json_bombs(saved):
    contents = members(saved)
    for text, why in (
        ("[" * 100_000, "JSON"),
        ('{"a":' * 100_000, "JSON"),
        ("1" * 10_000, "JSON|no layer"),
        ("[]", "no layer"),
        ("{}", "no layer"),
        ('{"class_name": 3}', "no layer"),
        ('{"class_name": "Sequential"}', "config must be a mapping"),
        ('{"class_name": "Sequential", "config": {"name": 5}}', "name must be a string"),
        ('{"class_name": "Sequential", "config": {"name": "m", "layers": {}}}', "layers must be a list"),
        ('{"class_name": "Sequential", "config": {"name": "m", "layers": []}}', "no layers"),
        ('{"class_name": "Sequential", "config": {"name": "m", "layers": [null]}}', "no layer"),
    ):
        write(saved, contents | {"config.json": text})
        refused(saved, why)


def test_deep_and_long_models(saved):
    def deep(config):
        for _ in range(100):
            config["config"] = {"name": "m", "layers": [json.loads(json.dumps(config))]}

    def long(config):
        one = {"class_name": "ReLU", "config": {"max_value": 1}}
        config["config"]["layers"] = [one | {"config": {"name": f"r{i}"}} for i in range(5000)]

    contents = members(saved)
    with_config(saved, deep)
    refused(saved, "nested more than 32 deep")
    write(saved, contents)
    with_config(saved, long)
    refused(saved, "more than 1024 layers")


def test_versions(saved):
    contents = members(saved)
    for version in ('"1.0"', '"4.1"', "3", "null", '"x"', '"3"'):
        write(saved, contents | {"metadata.json": f'{{"keras_version": {version}}}'})
        refused(saved, "keras_version")
    write(saved, contents | {"metadata.json": "[]"})
    refused(saved, "keras_version")


def layer_of(config, name):
    return next(part for part in config["config"]["layers"] if part["class_name"] == name)


CHANGES = {
    "another class": (("Dense", "class_name", "Conv1D"), "Conv1D.*not supported"),
    "a class of Python": (("Dense", "class_name", "os.system"), "os.system.*not supported"),
    "Lambda": (("Dense", "class_name", "Lambda"), "Lambda.*not supported"),
    "a module": (("Dense", "module", "os"), "custom class, 'os'"),
    "a module alike": (("Dense", "module", "kerasx.layers"), "custom class"),
    "a module of another type": (("Dense", "module", ["keras"]), "custom class"),
    "a registered name": (("Dense", "registered_name", "mine>Dense"), "custom class, 'mine>Dense'"),
    "no config": (("Dense", "config", None), "config must be a mapping"),
}
OPTIONS = {
    "units": (("GRU", "units", 2**31), "units must be an integer"),
    "more units": (("GRU", "units", 2**31 - 1), "kernel must have shape"),
    "units as text": (("GRU", "units", "6"), "units must be an integer"),
    "units as a float": (("GRU", "units", 6.0), "units must be an integer"),
    "units as a bool": (("GRU", "units", True), "units must be an integer"),
    "no units": (("GRU", "units", 0), "units must be an integer"),
    "fewer units": (("GRU", "units", 5), "kernel must have shape"),
    "tokens": (("Embedding", "input_dim", 10**9), "embeddings must have shape"),
    "a flag": (("GRU", "use_bias", 1), "use_bias must be true or false"),
    "no bias": (("GRU", "use_bias", False), "has 3 weights, wanted 2"),
    "another form": (("GRU", "reset_after", True), "bias must have shape"),
    "an unknown option": (("GRU", "warp", 7), "warp=7 is not supported"),
    "time major": (("GRU", "time_major", True), "time_major=True is not supported"),
    "a function": (
        ("GRU", "activation", {"module": "os", "class_name": "function", "config": "system"}),
        "activation is a function, a function of its own",
    ),
    "a function by path": (("GRU", "activation", "os.system"), "'os.system' is not a function"),
    "a list": (("GRU", "activation", ["tanh"]), "activation must be the name"),
    "dtype": (("GRU", "dtype", "float16"), "dtype 'float16'"),
    "a dtype policy": (
        ("GRU", "dtype", {"class_name": "Evil", "config": {"name": "float32"}}), "dtype policy 'Evil'"
    ),
    "lora": (("Dense", "lora_rank", 4), "lora_rank=4 is not supported"),
    "quantization": (("Dense", "quantization_config", {"class_name": "X"}), "quantization_config=a X"),
    "infinity": (("BatchNormalization", "epsilon", float("inf")), "epsilon must be a finite number"),
    "a huge integer": (("BatchNormalization", "axis", 10**400), "axis=an integer of 1329 bits"),
    "a cell": (("Bidirectional", "layer", {"class_name": "Dense", "config": {}}), "no recurrent layer"),
    "a merge": (("Bidirectional", "merge_mode", "os.system"), "merge_mode must be one of"),
    "a merge of another type": (("Bidirectional", "merge_mode", ["sum"]), "merge_mode must be one of"),
    "inside": (("TimeDistributed", "layer", {"class_name": "Lambda", "config": {}}), "not supported inside"),
    "a sparse input": (("InputLayer", "sparse", True), "sparse=True is not supported"),
    "an input's dtype": (("InputLayer", "dtype", "object"), "dtype 'object' is not supported"),
    "an input's shape": (("InputLayer", "batch_shape", 10**9), "shape must be a list"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_classes_in_configs(saved, name):
    (kind, key, value), why = CHANGES[name]
    with_config(saved, lambda config: layer_of(config, kind).update({key: value}))
    refused(saved, why)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_in_configs(saved, name):
    (kind, key, value), why = OPTIONS[name]
    with_config(saved, lambda config: layer_of(config, kind)["config"].update({key: value}))
    refused(saved, why)


def test_names_in_configs(tmp_path):
    """In .h5 files a layer's name is the name of a group."""
    path = tmp_path / "model.h5"
    randomised(keras.Sequential([L.Input((None, 4)), L.GRU(3, name="gru")])).save(path)
    with h5py.File(path) as file:
        text = file.attrs["model_config"]
    for name in ("", ".", "..", "../model_weights/gru", "/etc", "a/b", "a\\u0000b"):
        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = text.replace('"name": "gru"', f'"name": "{name}"')
        refused(path, "is no name of a group|lacks its weight")


KERNEL = "layers/gru/cell/vars/0"
GROUP = "layers/gru/cell/vars"


def replaced(make):
    """Put another thing in the place of a dataset [4, 18]."""

    def change(file):
        del file[KERNEL]
        make(file)

    return change


def external_storage(file):
    shape = (4, 18)
    file[GROUP].create_dataset("0", shape, "float32", external=[("/etc/passwd", 0, 288)])


def virtual(file):
    layout = h5py.VirtualLayout((4, 18), "float32")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4, 18))
    file[GROUP].create_virtual_dataset("0", layout)


def never_written(file):
    file[GROUP].create_dataset("0", (4, 18), "float32", chunks=(4, 18), fillvalue=1.0)


def plugin_filter(file):
    data = np.zeros((4, 18), np.float32)
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk((4, 18))
    made.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple((4, 18))
    h5py.h5d.create(file[GROUP].id, b"0", h5py.h5t.IEEE_F32LE, space, made).write(space, space, data)


THINGS = {
    "external link": (lambda f: f.__setitem__(KERNEL, h5py.ExternalLink("other.h5", "/x")), "not followed"),
    "soft link": (lambda f: f.__setitem__(KERNEL, h5py.SoftLink("/layers/gru/cell/vars/1")), "not followed"),
    "soft link to itself": (lambda f: f.__setitem__(KERNEL, h5py.SoftLink("/" + KERNEL)), "not followed"),
    "dangling link": (lambda f: f.__setitem__(KERNEL, h5py.SoftLink("/nowhere")), "not followed"),
    "external storage": (external_storage, "external and virtual datasets are not followed"),
    "virtual": (virtual, "external and virtual datasets are not followed"),
    "group": (lambda f: f.create_group(KERNEL), "must be a Dataset, got a Group"),
    "objects": (lambda f: f.create_dataset(KERNEL, (4, 18), h5py.string_dtype()), "must hold float16"),
    "integers": (lambda f: f.create_dataset(KERNEL, (4, 18), "int8"), "must hold float16"),
    "pairs": (lambda f: f.create_dataset(KERNEL, (4, 18), "f4,f4"), "must hold float16"),
    "no space": (lambda f: f.create_dataset(KERNEL, dtype="f4", data=h5py.Empty("f4")), "must hold|shape"),
    "never written": (never_written, "holds no data"),
    "unknown filter": (plugin_filter, "unknown filter 32015"),
    "other shape": (
        lambda f: f.create_dataset(KERNEL, data=np.zeros((5, 18), "f4")),
        "kernel must have shape",
    ),
    "other axes": (lambda f: f.create_dataset(KERNEL, data=np.zeros((72,), "f4")), "kernel must have shape"),
    "nothing": (lambda f: f[GROUP].create_dataset("3", data=np.zeros((4, 18), "f4")), "missing"),
}


@pytest.mark.parametrize("name", THINGS)
def test_things_in_hdf5(saved, name):
    make, why = THINGS[name]
    with_hdf5(saved, replaced(make))
    refused(saved, why)


def test_links_in_the_way(saved):
    contents = members(saved)
    for make in (lambda: h5py.SoftLink("/layers/gru"), lambda: h5py.ExternalLink("other.h5", "/")):

        def change(file, make=make):
            file.move("layers/gru", "layers/kept")
            file["layers/gru"] = make()

        write(saved, contents)
        with_hdf5(saved, change)
        refused(saved, "not followed")


def test_shape_bombs(saved, tmp_path):
    """A dataset that declares gigabytes and stores nothing, or little: refused before it is read."""

    def huge(units):
        def change(file):
            del file[KERNEL]
            chunk = (1, 1 << 20)
            made = {"dtype": "float32", "chunks": chunk, "compression": "gzip"}
            data = file[GROUP].create_dataset("0", (4, 3 * units), **made)
            data[0, : 1 << 20] = 0

        return change

    units = 1 << 28
    with_hdf5(saved, huge(units))
    with_config(saved, lambda config: layer_of(config, "GRU")["config"].update(units=units))
    refused(saved, "declares 12,884,901,888 bytes and stores")


def test_many_names_of_one_dataset(tmp_path):
    """Hard links multiply what a small file seems to hold."""
    path = tmp_path / "model.keras"
    units, count = 1000, 30
    stack = [L.Dense(units, use_bias=False) for _ in range(count)]
    keras.Sequential([L.Input((units,)), stack[0]]).save(path)
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        made = {"data": np.zeros((units, units), np.float32), "chunks": (100, 1000), "compression": "gzip"}
        file.create_dataset("layers/dense/vars/0", **made)
        for i in range(1, count):
            file[f"layers/dense_{i}"] = file["layers/dense"]

    def longer(config):
        first, dense = config["config"]["layers"]
        more = [json.loads(json.dumps(dense)) for _ in range(count)]
        for i, one in enumerate(more):
            one["config"]["name"] = f"dense{i}"
        config["config"]["layers"] = [first, *more]

    with_config(path, longer)
    write(path, members(path) | {"model.weights.h5": weights.getvalue()})
    refused(path, "more data than a file of .* bytes should hold")


def test_cells_that_do_not_follow_each_other(tmp_path):
    path = tmp_path / "model.keras"
    randomised(nested()).save(path)
    kernel = "layers/rnn/cell/cells/gru_cell/vars/0"

    def wider(file):
        del file[kernel]
        file[kernel] = np.zeros((5, 6), np.float32)

    with_hdf5(path, wider)
    refused(path, r"kernel must have shape \(3, 6\), got \(5, 6\)")


def test_half_precision_is_widened(saved):
    """float16 arrays in a float32 model; no precision is lost on the way."""

    def narrow(file):
        data = file[KERNEL][()].astype(np.float16)
        del file[KERNEL]
        file[KERNEL] = data

    with_hdf5(saved, narrow)
    model = fastlstm.from_keras(saved)
    kernel = next(v for k, v in model.parameters.items() if k.startswith("gru") and k.endswith("/kernel"))
    assert kernel.dtype == np.float16 and model(TOKENS).dtype == np.float32


def test_a_file_that_lacks_or_has_too_much(saved, tmp_path):
    contents = members(saved)
    with_hdf5(saved, lambda file: file.__delitem__("layers/gru"))
    refused(saved, "'sequential.*/gru.*lacks its weights, layers/gru/vars|lacks its weights")
    write(saved, contents)
    with_hdf5(saved, lambda file: file[GROUP].create_dataset("3", data=np.zeros(3, "f4")))
    refused(saved, "has 4 weights, wanted 3")


def test_h5_files(tmp_path):
    path = tmp_path / "model.h5"
    model = randomised(sequential())
    model.save(path)
    before = fastlstm.from_keras(path)(TOKENS)
    gru = next(layer.name for layer in model.layers if layer.name.startswith("gru"))

    own = g_names(path, gru)

    def changed(change, why):
        model.save(path)
        with h5py.File(path, "r+") as file:
            change(file, file[f"model_weights/{gru}"])
        refused(path, why)

    changed(lambda f, g: f.attrs.__delitem__("model_config"), "holds weights alone")
    changed(lambda f, g: f.attrs.__setitem__("model_config", 3), "model_config must be a string")
    changed(lambda f, g: f.attrs.__setitem__("model_config", ["{}", "{}"]), r"\(2,\) is too large")
    changed(lambda f, g: f.attrs.__setitem__("model_config", "{"), "model_config is no valid JSON")
    changed(lambda f, g: f.attrs.__delitem__("keras_version"), "keras_version None")
    changed(lambda f, g: f.__delitem__("model_weights"), "model_weights: missing")
    changed(lambda f, g: f.__delitem__(f"model_weights/{gru}"), "lacks its weight kernel")
    changed(lambda f, g: g.attrs.__delitem__("weight_names"), "weight_names is missing")
    changed(lambda f, g: g.attrs.__setitem__("weight_names", [1, 2]), "must list names")
    changed(lambda f, g: g.attrs.__setitem__("weight_names", own[:2]), "lacks its weight bias|missing")
    more = [*own, "x/kernel"]
    changed(lambda f, g: g.attrs.__setitem__("weight_names", more), "more weights than it takes: 'x/kernel'")
    for name in ("../../x/kernel", "/etc/kernel", "./kernel", "kernel"):
        changed(lambda f, g, n=name: g.attrs.__setitem__("weight_names", [n, *own[1:]]), "no name|missing")
    model.save(path)
    assert np.array_equal(fastlstm.from_keras(path)(TOKENS), before)
    model.save_weights(tmp_path / "x.weights.h5")
    refused(tmp_path / "x.weights.h5", "holds weights alone")


def g_names(path, layer):
    with h5py.File(path) as file:
        return [str(n) for n in file[f"model_weights/{layer}"].attrs["weight_names"]]


def test_many_weight_names_are_in_parts(tmp_path):
    """HDF5 has a limit, so that Keras splits long lists into weight_names0, weight_names1, .."""
    path = tmp_path / "model.h5"
    model = randomised(keras.Sequential([L.Input((None, 4)), L.GRU(3, name="gru")]))
    model.save(path)
    with h5py.File(path, "r+") as file:
        attributes = file["model_weights/gru"].attrs
        names = list(attributes["weight_names"])
        del attributes["weight_names"]
        attributes["weight_names0"], attributes["weight_names1"] = names[:1], names[1:]
    x = np.ones((2, 5, 4), np.float32)
    assert np.array_equal(fastlstm.from_keras(path)(x), fastlstm.from_keras(model)(x))


@pytest.mark.parametrize("configured", [None, "tensorflow", "torch"])
def test_to_keras_finds_a_backend_where_nobody_chose_one(configured, tmp_path):
    """Keras's default, which it also writes to keras.json, is TensorFlow, installed or not."""
    if importlib.util.find_spec("tensorflow"):
        pytest.skip("TensorFlow is installed")
    if configured:
        (tmp_path / "keras.json").write_text(json.dumps({"backend": configured}))
    code = """
import os, fastlstm
fastlstm.keras.to_keras(fastlstm.LSTM(3, 2, batch_first=True))
import keras
print(keras.backend.backend(), os.environ.get("KERAS_BACKEND"))
"""
    environment = {n: v for n, v in os.environ.items() if n != "KERAS_BACKEND"} | {
        "KERAS_HOME": str(tmp_path)
    }
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.split() == ["torch", "None"], ran.stderr


def test_without_any_backend_to_keras_says_what_to_set(tmp_path):
    code = """
import importlib.util, sys, fastlstm
none = dict.fromkeys(("torch", "jax", "tensorflow"))
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in none else find(name, *more)
sys.modules |= none
try:
    fastlstm.keras.to_keras(fastlstm.LSTM(3, 2, batch_first=True))
except ImportError as error:
    print(error)
"""
    environment = {n: v for n, v in os.environ.items() if n != "KERAS_BACKEND"} | {
        "KERAS_HOME": str(tmp_path)
    }
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0 and "set KERAS_BACKEND" in ran.stdout, ran.stderr
