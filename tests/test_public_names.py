"""The public names: what users may import. A change here is a change of the contract."""

import subprocess
import sys

import fastlstm

PACKAGE = {
    "GRU", "LSTM", "RNN", "GatedRNN", "Stream", "get_num_threads", "load", "reference", "set_num_threads",
    "show_config",
}  # fmt: skip
LAYER = {
    "batch_first", "bias", "bidirectional", "clip", "dropout", "dtype", "hidden_size", "input_size",
    "num_layers", "reverse", "activations", "load_state_dict", "save", "state_dict", "stream",
}  # fmt: skip
OWN = {
    "LSTM": {"coupled_gates", "forget_gate", "peepholes", "proj_size"},
    "GRU": {"reset_after"},
    "RNN": {"nonlinearity"},
    "GatedRNN": set(),
}
CORE = {"core", "get_state", "set_state"}  # of StreamCore, for Stream's own use


def public(obj):
    return {name for name in dir(obj) if not name.startswith("_")}


def test_package():
    assert set(fastlstm.__all__) == PACKAGE
    assert public(fastlstm) == PACKAGE
    assert all(hasattr(fastlstm, name) for name in PACKAGE)
    star = {}
    exec("from fastlstm import *", star)
    assert star.keys() - {"__builtins__"} == PACKAGE
    assert fastlstm.__version__.count(".") == 2


def test_layers():
    for name, own in OWN.items():
        assert public(getattr(fastlstm, name)) == LAYER | own


def test_stream():
    assert public(fastlstm.Stream) - CORE == {"batch_size", "copy", "reset", "state", "step"}
    assert "step" not in vars(fastlstm.Stream)  # the core's own method: no Python on the step path


def test_everything_public_is_documented():
    for name in PACKAGE - {"reference"}:
        value = getattr(fastlstm, name)
        assert value.__doc__
        if isinstance(value, type):
            for attribute in public(value) - CORE:
                assert getattr(value, attribute).__doc__, f"{name}.{attribute}"
            if name in OWN:
                assert value.__call__.__doc__


def test_import_brings_nothing_that_it_does_not_need():
    code = (
        "import sys, numpy; before = set(sys.modules); import fastlstm; print(*set(sys.modules) - before); "
        "assert 'reference' in dir(fastlstm); fastlstm.reference.LSTM"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "fastlstm.layers" in loaded
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
