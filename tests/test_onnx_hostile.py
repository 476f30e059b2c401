"""ONNX files as an attacker writes them: each is a ValueError that says why, before memory is taken."""

import os
import random
import tracemalloc

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from test_onnx_graph import FLOAT, detector, lstm_chain, model_of  # noqa: E402

import fastlstm  # noqa: E402


def refused(source, said):
    for whole in (None, True):
        with pytest.raises(ValueError, match=said):
            fastlstm.from_onnx(source, whole=whole, engine="reference")


def changed(change):
    proto = lstm_chain()
    change(proto)
    return proto


def tensor(proto, name="W"):
    return next(t for t in proto.graph.initializer if t.name == name)


# --- the file -----------------------------------------------------------------------------------------------


def test_truncated_and_other_files(tmp_path):
    data = lstm_chain().SerializeToString()
    assert fastlstm.from_onnx(data) is not None
    for k in [*range(0, 40), *range(40, len(data), 37)]:
        refused(data[:k], "truncated|no graph|malformed|opset|must import|wants|one name|shape|type")
    for junk in (b"", b"PK\x03\x04 zip", b"\x80\x04pickle", b"{}", b"\0" * 100, bytes(range(256))):
        refused(junk, "no ONNX model|truncated")
    path = tmp_path / "m.onnx"
    path.write_bytes(data[:-5])
    refused(path, "m.onnx")
    with pytest.raises(OSError):
        fastlstm.from_onnx(tmp_path / "none.onnx")
    with pytest.raises(OSError):
        fastlstm.from_onnx(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)  # or else it would wait for one
    try:
        refused(tmp_path / "pipe", "no regular file")
    finally:
        os.close(writer)


def test_a_file_beyond_protobufs_limit_is_not_read(tmp_path):
    path = tmp_path / "huge.onnx"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # sparse: it takes no room
    refused(path, "1099511627776 bytes, more than a protobuf can")


@pytest.mark.parametrize("engine", ["reference", "onnxruntime"])
def test_thousands_of_damaged_files_are_valueerrors(engine):
    if engine == "onnxruntime":
        pytest.importorskip("onnxruntime")
    draw = random.Random(0)
    bases = [
        detector(np.random.default_rng(0)).SerializeToString(),
        lstm_chain().SerializeToString(),
        fastlstm.to_onnx(fastlstm.GatedRNN(3, 4, seed=0), states=True, lengths=True).SerializeToString(),
    ]
    survived = 0
    for _ in range(3000):
        data = bytearray(draw.choice(bases))
        for _ in range(draw.choice([1, 1, 2, 4])):
            k = draw.randrange(len(data))
            kind = draw.randrange(4)
            if kind == 0:
                data[k] = draw.randrange(256)
            elif kind == 1:
                data[k] ^= 1 << draw.randrange(8)
            elif kind == 2:
                del data[k : k + draw.randrange(1, 9)]
            else:
                data[k:k] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 5)))
        try:
            fastlstm.from_onnx(bytes(data), engine=engine)
            survived += 1
        except ValueError:
            pass
    assert 0 < survived < 1500  # some damage only changes a weight


# --- structure ----------------------------------------------------------------------------------------------


def cycle(proto):
    proto.graph.node[0].input[0] = "y"


def twice(proto):
    proto.graph.node[2].output[0] = "s"


def versions(proto, **imports):
    del proto.opset_import[:]
    for domain, version in imports.items():
        proto.opset_import.append(helper.make_opsetid(domain.replace("main", "").replace("_", "."), version))


STRUCTURE = {
    "cycle": (cycle, "topologically sorted|malformed"),
    "missing input": (lambda p: p.graph.node[3].input.__setitem__(1, "nowhere"), "malformed.*nowhere"),
    "name twice": (twice, "malformed"),
    "two inputs of one name": (lambda p: p.graph.input.append(p.graph.input[0]), "malformed|one name"),
    "two outputs of one name": (lambda p: p.graph.output.append(p.graph.output[0]), "one name"),
    "two initializers of one name": (lambda p: p.graph.initializer.append(tensor(p)), "one name|malformed"),
    "output that nobody makes": (lambda p: setattr(p.graph.output[0], "name", "nobody"), "nobody|malformed"),
    "no opset": (lambda p: versions(p), "must import ONNX's operators once, got 0"),
    "old opset": (lambda p: versions(p, main=6), "opset 6, wanted 7 or later"),
    "future opset": (lambda p: versions(p, main=999), "opset 999, later than"),
    "negative opset": (lambda p: versions(p, main=-1), "opset -1"),
    "two opsets": (lambda p: versions(p, main=17, ai_onnx=17), "once, got 2"),
    "unknown domain": (lambda p: setattr(p.graph.node[1], "domain", "evil"), "malformed|evil"),
    "unknown operator": (lambda p: setattr(p.graph.node[1], "op_type", "Explode"), "malformed.*Explode"),
    "unknown attribute": (
        lambda p: p.graph.node[0].attribute.append(helper.make_attribute("peep", 1)), "malformed.*peep",
    ),
    "attribute of another type": (
        lambda p: p.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("hidden_size", "7")),
        "malformed",
    ),
    "no nodes' inputs": (lambda p: p.graph.node[0].ClearField("input"), "malformed"),
    "unknown data type": (lambda p: setattr(tensor(p), "data_type", 99), "unknown data type 99"),
    "undefined data type": (lambda p: setattr(tensor(p), "data_type", 0), "unknown data type 0"),
    "unknown type of an input": (
        lambda p: setattr(p.graph.input[0].type.tensor_type, "elem_type", 77), "unknown data type 77",
    ),
    "a segment": (lambda p: setattr(tensor(p).segment, "begin", 1), "is a segment"),
}  # fmt: skip


@pytest.mark.parametrize("name", STRUCTURE)
def test_malformed(name):
    change, said = STRUCTURE[name]
    refused(changed(change), said)


def test_functions_that_call_each_other():
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    functions = [
        helper.make_function(
            "mine", a, ["u"], ["v"], [helper.make_node(b, ["u"], ["v"], domain="mine")], imports
        )
        for a, b in (("A", "B"), ("B", "A"))
    ]
    proto = model_of(
        [helper.make_node("A", ["x"], ["y"], domain="mine")], [("x", FLOAT, [1])], [("y", FLOAT, [1])], {}
    )
    proto.functions.extend(functions)
    proto.opset_import.append(imports[1])
    with pytest.raises(ValueError):
        fastlstm.from_onnx(proto, engine="reference")


def test_deep_nesting():
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y0"])], "g", [], [helper.make_tensor_value_info("y0", FLOAT, None)]
    )
    for k in range(1, 60):
        node = helper.make_node("If", ["which"], [f"y{k}"], then_branch=graph, else_branch=graph)
        if k == 8:
            break  # twice as large with every level
        value = helper.make_tensor_value_info(f"y{k}", FLOAT, None)
        graph = helper.make_graph([node], "g", [], [value])
    proto = model_of(
        [node], [("x", FLOAT, [1]), ("which", TensorProto.BOOL, [])], [(f"y{k}", FLOAT, [1])], {}
    )
    assert fastlstm.from_onnx(proto, engine="reference")(x=[1], which=True)[f"y{k}"] == -1
    data = b""
    for _ in range(5000):  # a type within a type ..
        data = b"\x22" + _length(len(data)) + data
    refused(b"\x3a" + _length(len(data)) + data, "no ONNX model|no graph|must import|truncated")


def _length(n):
    found = bytearray()
    while n > 127:
        found.append(n & 127 | 128)
        n >>= 7
    found.append(n)
    return bytes(found)


# --- shapes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "said"),
    [
        ([-1, 12, 4], "absurd shape"),
        ([2**62, 2**62], "absurd shape"),
        ([2**40], "absurd shape"),
        ([1] * 65, "absurd shape"),
        ([1, 12, 5], "holds 192 bytes, its shape .1, 12, 5. wants 240"),
        ([1, 12, 3], "holds 192 bytes"),
        ([2**31 - 1], "holds 192 bytes, its shape .* wants 8589934588"),
        ([0, 12, 4], "holds 192 bytes"),
    ],
)
def test_absurd_shapes_take_no_memory(dims, said):
    def change(proto):
        del tensor(proto).dims[:]
        tensor(proto).dims.extend(dims)

    proto = changed(change)
    tracemalloc.start()
    try:
        refused(proto, said)
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()


def test_numbers_in_typed_fields_are_counted():
    typed = helper.make_tensor("W", FLOAT, [1, 12, 4], np.zeros(48))
    proto = changed(lambda p: tensor(p).CopyFrom(typed))
    assert fastlstm.from_onnx(proto) is not None
    typed.float_data.append(1)
    refused(changed(lambda p: tensor(p).CopyFrom(typed)), "holds 49 numbers, its shape .* wants 48")
    del typed.float_data[10:]
    refused(changed(lambda p: tensor(p).CopyFrom(typed)), "holds 10 numbers")
    typed.ClearField("float_data")
    typed.int64_data.extend(range(48))
    refused(changed(lambda p: tensor(p).CopyFrom(typed)), "holds 0 numbers")


def test_shapes_that_a_graph_would_make():
    """A few bytes that ask for terabytes: by ConstantOfShape, or as a declared input."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["s"]),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]
    ports = [("x", FLOAT, [1])], [("y", FLOAT, [None] * 3)]
    for shape in ([1 << 20, 1 << 20, 64], [1 << 20, 257], [1 << 29]):
        refused(model_of(nodes, *ports, {"shape": np.array(shape)}), "absurd shape")
    refused(
        changed(lambda p: setattr(p.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", -5)), "absurd"
    )
    refused(
        changed(lambda p: setattr(p.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 1 << 60)),
        "absurd",
    )


@pytest.mark.parametrize(
    ("name", "shape"), [("W", (1, 11, 4)), ("R", (1, 12, 4)), ("W", (12, 4)), ("R", (2, 12, 3))]
)
def test_weights_that_do_not_fit_their_node(name, shape):
    value = numpy_helper.from_array(np.zeros(shape, "f4"), name)
    with pytest.raises(ValueError, match="must|contradict|shape|[Dd]imension|[Rr]ank"):
        fastlstm.from_onnx(changed(lambda p: tensor(p, name).CopyFrom(value)), whole=False)


# --- external data ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(192))
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def external(folder, location="weights", data=None, **entries):
    """The chain with W in a file; `entries` None leaves one out."""
    proto = lstm_chain()
    t = tensor(proto)
    if data is not False:
        path = folder / "weights"
        path.write_bytes(t.raw_data if data is None else data)
    t.ClearField("raw_data")
    t.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        t.external_data.add(key=key, value=str(value))
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return folder / "m.onnx"


def test_external_data_in_the_models_folder(folder):
    wanted = fastlstm.from_onnx(lstm_chain()).state_dict()
    raw = tensor(lstm_chain()).raw_data
    (folder / "sub").mkdir()
    (folder / "sub" / "w").write_bytes(raw)
    for make in (
        lambda: external(folder),
        lambda: external(folder, length=192, checksum="0"),
        lambda: external(folder, data=b"x" * 100 + raw + b"y" * 9, offset=100, length=192),
        lambda: external(folder, location="./weights"),
        lambda: external(folder, location="sub/w", data=False),
    ):
        path = make()
        for source in (path, str(path)):
            got = fastlstm.from_onnx(source).state_dict()
            assert all(np.array_equal(got[name], wanted[name]) for name in wanted)
    here = os.getcwd()
    os.chdir(folder)
    try:
        assert fastlstm.from_onnx("m.onnx") is not None
    finally:
        os.chdir(here)


OUTSIDE = [
    "../secret", "sub/../../secret", "/etc/passwd", "", ".", "..", "//etc/passwd", "sub//weights",
    "C:\\secret", "..\\secret", "\\\\server\\share", "c:secret", "weights/", "weights\0.bin", "file:///etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("location", OUTSIDE)
def test_external_data_outside_the_folder(folder, location):
    path = external(folder, location=location)
    (folder / "sub").mkdir()
    refused(path, "tensor 'W' has its data at .*which (is no path inside the model's folder|cannot be read)")


def test_external_data_that_is_no_plain_file(folder):
    (folder / "sub").mkdir()
    os.symlink("../secret", folder / "link")
    os.symlink("..", folder / "up")
    os.link(folder.parent / "secret", folder / "hard")
    os.mkfifo(folder / "pipe")
    os.symlink("weights", folder / "inner")
    for location in ("link", "up/secret", "hard", "pipe", "sub", "inner", "none", "/dev/zero"):
        refused(external(folder, location=location), "tensor 'W' has its data at")


def test_external_data_with_wrong_numbers(folder):
    for entries, said in (
        ({"offset": 1}, "wants bytes 1..193 of 'weights', which has 192"),
        ({"offset": -1}, "offset of its external data must be a number of bytes, got '-1'"),
        ({"offset": "1e3"}, "must be a number"),
        ({"offset": "9" * 30}, "must be a number"),
        ({"offset": 2**62}, "which has 192"),
        ({"offset": "٣"}, "must be a number"),
        ({"length": 191}, "has 191 bytes of external data, its shape wants 192"),
        ({"length": 2**40}, "its shape wants 192"),
        ({"length": ""}, "must be a number"),
        ({"colour": "red"}, "in an unknown way"),
    ):
        refused(external(folder, **entries), said)
    refused(external(folder, data=b"short"), "which has 5")
    path = external(folder)
    refused(path.read_bytes(), "has its data in another file: give the model's path")
    refused(onnx.load(path, load_external_data=False), "give the model's path")
    proto = onnx.load(path, load_external_data=False)
    tensor(proto).external_data.add(key="location", value="secret")
    path.write_bytes(proto.SerializeToString())
    refused(path, "in an unknown way")


def test_external_data_that_would_fill_the_memory(folder):
    """Many tensors of one sparse file: the sum is refused before anything is read."""
    tracemalloc.start()
    with open(folder / "weights", "wb") as file:
        file.truncate(1 << 30)
    proto = lstm_chain()
    for k in range(8):
        t = proto.graph.initializer.add(name=f"t{k}", data_type=FLOAT, dims=[1 << 28])
        t.data_location = TensorProto.EXTERNAL
        t.external_data.add(key="location", value="weights")
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    try:
        refused(folder / "m.onnx", "external data of more than 2147483647 bytes")
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()


def test_external_data_of_attributes_and_subgraphs(folder):
    """Not only initializers: a Constant inside an If."""
    value = TensorProto(name="inside", data_type=FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    value.external_data.add(key="location", value="../secret")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["k"], value=value)], "b", [],
        [helper.make_tensor_value_info("k", FLOAT, [1])],
    )  # fmt: skip
    node = helper.make_node("If", ["which"], ["y"], then_branch=branch, else_branch=branch)
    proto = model_of([node], [("which", TensorProto.BOOL, [])], [("y", FLOAT, [1])], {})
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    refused(folder / "m.onnx", "tensor 'inside' has its data at '../secret'")
    sparse = onnx.SparseTensorProto(dims=[2**40])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, "f4"), "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, "i8"), "i"))
    refused(changed(lambda p: p.graph.sparse_initializer.append(sparse)), "absurd shape|malformed")


def test_nothing_of_the_callers_model_changes():
    proto = lstm_chain()
    before = proto.SerializeToString(deterministic=True)
    fastlstm.from_onnx(proto, whole=True, engine="reference")
    fastlstm.from_onnx(proto)
    assert proto.SerializeToString(deterministic=True) == before
