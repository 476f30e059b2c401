"""The public names: what users may import. A change here is a change of the contract."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastlstm

PACKAGE = {
    "GRU",
    "LSTM",
    "RNN",
    "SGD",
    "Activation",
    "Adam",
    "AdamW",
    "Dropout",
    "Embedding",
    "GatedRNN",
    "LastStep",
    "LayerNorm",
    "Linear",
    "Sequential",
    "SequentialStream",
    "Stream",
    "StreamPool",
    "binary_cross_entropy_with_logits",
    "clip_grad_norm",
    "constant_schedule",
    "cosine_schedule",
    "cross_entropy",
    "get_num_threads",
    "initialize",
    "load",
    "log_softmax",
    "mse_loss",
    "reference",
    "set_num_threads",
    "show_config",
    "softmax",
    "warmup_schedule",
}
LAZY = {"from_keras", "from_onnx", "from_torch", "keras", "onnx", "to_onnx", "torch"}  # optional packages
LAYER = {
    "batch_first", "bias", "bidirectional", "clip", "dropout", "dtype", "hidden_size", "input_size",
    "num_layers", "record", "reverse", "activations", "load_state_dict", "save", "state_dict", "stream",
    "activation_bits", "quantize", "to_torch", "weight_dtype",
}  # fmt: skip
OWN = {
    "LSTM": {"coupled_gates", "forget_gate", "peepholes", "proj_size"},
    "GRU": {"reset_after"},
    "RNN": {"nonlinearity"},
    "GatedRNN": set(),
}
MODULE = {"load_state_dict", "record", "save", "state_dict", "to_torch"}
MODULES = {
    "Embedding": {"dtype", "embedding_dim", "num_embeddings", "padding_idx"},
    "Linear": {"bias", "dtype", "in_features", "out_features"},
    "Dropout": {"p"},
    "Activation": {"activation"},
    "LayerNorm": {"bias", "dtype", "elementwise_affine", "eps", "normalized_shape"},
    "LastStep": set(),
    "Sequential": {"dtype", "generate", "quantize", "stream"},
}
C_FUNCTIONS = {
    "fl_activate", "fl_activate_backward",
    "fl_backward", "fl_config_init", "fl_cpu_features", "fl_create", "fl_estimate_us", "fl_forward",
    "fl_free", "fl_get_num_threads", "fl_integer_isa", "fl_integer_isa_at", "fl_isa",
    "fl_isa_at", "fl_to_bfloat16", "fl_to_int8", "fl_last_error", "fl_linear_backward_input",
    "fl_linear_backward_weights", "fl_linear_create", "fl_linear_estimate_us", "fl_linear_forward",
    "fl_linear_free", "fl_pool_capacity", "fl_pool_check", "fl_pool_close", "fl_pool_count", "fl_pool_create",
    "fl_pool_free", "fl_pool_get_state", "fl_pool_open", "fl_pool_reserve", "fl_pool_reset",
    "fl_pool_set_state", "fl_pool_step", "fl_record", "fl_set_num_threads", "fl_set_spin_us",
    "fl_set_weights", "fl_stream_copy", "fl_stream_create", "fl_stream_free", "fl_stream_get_state",
    "fl_stream_reset", "fl_stream_set_state", "fl_stream_step", "fl_tape_bytes", "fl_tape_free", "fl_version",
}  # fmt: skip
# For tests and benchmarks; not in fastlstm.h.
C_PRIVATE = {
    "fl_force_split", "fl_integers_named", "fl_kernel_at", "fl_kernel_bound", "fl_kernels_named",
    "fl_last_split",
}  # fmt: skip
HEADERS = Path(__file__).resolve().parents[1] / "csrc"
CORE = {"core", "get_state", "set_state"}  # of StreamCore, for Stream's own use


def public(obj):
    return {name for name in dir(obj) if not name.startswith("_")}


def test_package():
    assert set(fastlstm.__all__) == PACKAGE
    assert public(fastlstm) == PACKAGE | LAZY
    assert all(hasattr(fastlstm, name) for name in PACKAGE)
    star = {}
    exec("from fastlstm import *", star)
    assert star.keys() - {"__builtins__"} == PACKAGE
    assert fastlstm.__version__.count(".") == 2


def test_layers():
    for name, own in OWN.items():
        assert public(getattr(fastlstm, name)) == LAYER | own


def test_modules():
    for name, own in MODULES.items():
        assert public(getattr(fastlstm, name)) == MODULE | own
    tapes = (fastlstm.Dropout().record([1.0]), fastlstm.Sequential(fastlstm.Linear(1, 1)).record([1.0]))
    assert all(public(tape) == {"backward", "output", "state"} for tape in tapes)


def test_stream():
    assert public(fastlstm.Stream) - CORE == {"batch_size", "copy", "reset", "state", "step"}
    assert public(fastlstm.SequentialStream) == {"batch_size", "copy", "reset", "state", "step"}
    pool = {"capacity", "close", "open", "reset", "restore", "run", "state", "step"}
    assert public(fastlstm.StreamPool) == pool
    assert "step" not in vars(fastlstm.Stream)  # the core's own method: no Python on the step path


def test_everything_public_is_documented():
    for name in PACKAGE - {"reference"}:
        value = getattr(fastlstm, name)
        assert value.__doc__
        if isinstance(value, type):
            for attribute in public(value) - CORE:
                assert getattr(value, attribute).__doc__, f"{name}.{attribute}"
            if name in OWN.keys() | MODULES.keys():
                assert value.__call__.__doc__


def test_import_brings_nothing_that_it_does_not_need():
    code = (
        "import sys, numpy; before = set(sys.modules); import fastlstm; print(*set(sys.modules) - before); "
        "assert 'reference' in dir(fastlstm); fastlstm.reference.LSTM"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"fastlstm.layers", "fastlstm.modules"} <= loaded
    for name in (
        "fastlstm.reference",
        "fastlstm._files",
        "safetensors",
        "json",
        "torch",
        "tempfile",
        "inspect",
    ):
        assert name not in loaded


def exported(header):
    """The functions that a header marks as exported."""
    text = re.sub(r"/\*.*?\*/", "", (HEADERS / header).read_text(), flags=re.S)
    return set(re.findall(r"^FL_API [^;]*?(fl_\w+)\(", text, flags=re.M))


@pytest.mark.skipif(not HEADERS.is_dir(), reason="no sources beside the tests")
def test_c_functions():
    assert exported("fastlstm.h") == C_FUNCTIONS
    assert exported("internal.h") | exported("kernels/kernels.h") == C_PRIVATE


@pytest.mark.skipif(not HEADERS.is_dir(), reason="no sources beside the tests")
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_c_header_stands_alone(tmp_path):
    """In C11 and in C++, as the only include, all warnings errors."""
    program = '#include "fastlstm.h"\nint main(void) { return fl_version() == 0; }\n'
    for name, flags in (("user.c", ["-std=c11", "-pedantic"]), ("user.cpp", ["-x", "c++"])):
        if name.endswith("cpp") and shutil.which("c++") is None:
            continue
        (tmp_path / name).write_text(program)
        compiler = "c++" if name.endswith("cpp") else "cc"
        command = [compiler, *flags, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{HEADERS}"]
        subprocess.run([*command, str(tmp_path / name)], check=True)
