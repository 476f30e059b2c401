"""Initial parameters: the constructors' numbers, PyTorch's bounds, orthogonality, forget gates, refusals."""

from __future__ import annotations

import numpy as np
import pytest

import fastlstm

CELLS = [fastlstm.LSTM, fastlstm.GRU, fastlstm.RNN, fastlstm.GatedRNN]
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "GatedRNN": 2}


def same_bits(a, b):
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
def test_uniform_is_what_the_constructor_draws(cell, dtype):
    made = cell(5, 7, 2, bidirectional=True, dtype=dtype, seed=3)
    layer = cell(5, 7, 2, bidirectional=True, dtype=dtype, seed=4)
    assert not same_bits(layer.state_dict(), made.state_dict())
    fastlstm.initialize(layer, seed=3)
    assert same_bits(layer.state_dict(), made.state_dict())


def test_uniform_is_distributed_as_pytorchs():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = fastlstm.LSTM(33, 64, proj_size=7)
    fastlstm.initialize(layer, seed=0)
    theirs = torch.nn.LSTM(33, 64, proj_size=7).state_dict()
    for name, v in layer.state_dict().items():
        wanted = theirs[name].numpy()
        assert v.shape == wanted.shape and np.abs(v).max() <= 1 / 8
        assert v.std() == pytest.approx(wanted.std(), rel=0.2)
        assert np.abs(v).max() == pytest.approx(np.abs(wanted).max(), rel=0.05)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("units", [1, 7, 33])
def test_orthogonal(cell, units, dtype):
    layer = cell(5, units, 2, dtype=dtype)
    fastlstm.initialize(layer, recurrent="orthogonal", seed=1)
    parameters = layer.state_dict()
    bound = 1 / np.sqrt(units)
    for name, v in parameters.items():
        if name.startswith("weight_hh"):
            gates = v.reshape(GATES[cell.__name__], units, units).astype(float)
            for gate in gates:
                assert np.allclose(gate @ gate.T, np.eye(units), atol=1e-6 if dtype == "float32" else 1e-13)
            if units > 1:
                assert len({gate.tobytes() for gate in gates}) == len(gates)
        else:
            assert np.abs(v).max() <= bound
    fastlstm.initialize(layer, recurrent="orthogonal", seed=1)
    assert same_bits(layer.state_dict(), parameters)


def test_orthogonal_with_a_projection_has_orthonormal_columns():
    layer = fastlstm.LSTM(5, 9, proj_size=4, dtype="float64")
    fastlstm.initialize(layer, recurrent="orthogonal", seed=1)
    for gate in layer.state_dict()["weight_hh_l0"].reshape(4, 9, 4):
        assert np.allclose(gate.T @ gate, np.eye(4))


def test_orthogonal_matrices_are_uniform():
    """In one dimension both signs come up; in two, so do rotations and reflections."""
    signs, determinants = set(), set()
    for seed in range(20):
        one, two = fastlstm.RNN(1, 1, seed=0), fastlstm.RNN(1, 2, seed=0)
        fastlstm.initialize(one, recurrent="orthogonal", seed=seed)
        fastlstm.initialize(two, recurrent="orthogonal", seed=seed)
        signs.add(float(one.state_dict()["weight_hh_l0"][0, 0]))
        determinants.add(round(float(np.linalg.det(two.state_dict()["weight_hh_l0"]))))
    assert signs == determinants == {-1, 1}


def test_forget_bias():
    for value in (1.0, 0, -2.5):
        layer = fastlstm.LSTM(5, 7, 2, bidirectional=True, seed=0)
        plain = layer.state_dict()
        fastlstm.initialize(layer, forget_bias=value, seed=0)
        parameters = layer.state_dict()
        for end in ("l0", "l0_reverse", "l1", "l1_reverse"):
            total = parameters[f"bias_ih_{end}"] + parameters[f"bias_hh_{end}"]
            assert np.allclose(total[7:14], value, atol=1e-6)
            parameters[f"bias_ih_{end}"][7:14] = plain[f"bias_ih_{end}"][7:14]
        assert same_bits(parameters, plain)  # nothing else has changed


class Several:
    """What `initialize` asks of a Sequential."""

    def __init__(self, *modules):
        self.modules = modules

    def __len__(self):
        return len(self.modules)

    def __getitem__(self, k):
        return self.modules[k]


def test_every_recurrent_layer_of_several():
    other = object()
    layers = fastlstm.LSTM(3, 5), fastlstm.LSTM(5, 4)
    fastlstm.initialize(Several(other, *layers, other), forget_bias=1, seed=2)
    parameters = layers[0].state_dict()
    wanted = fastlstm.LSTM(3, 5, seed=2).state_dict()
    wanted["bias_ih_l0"][5:10] = parameters["bias_ih_l0"][5:10]
    assert same_bits(parameters, wanted)
    for layer, units in zip(layers, (5, 4), strict=True):
        total = layer.state_dict()["bias_ih_l0"] + layer.state_dict()["bias_hh_l0"]
        assert np.allclose(total[units : 2 * units], 1)


@pytest.mark.parametrize(
    ("make", "options", "error", "blamed"),
    [
        (lambda: object(), {}, TypeError, "module"),
        (lambda: [], {}, TypeError, "module"),
        (lambda: fastlstm.RNN(3, 4), {"recurrent": "normal"}, ValueError, "recurrent"),
        (lambda: fastlstm.RNN(3, 4), {"recurrent": None}, TypeError, "recurrent"),
        (lambda: fastlstm.RNN(3, 4), {"seed": -1}, ValueError, "seed"),
        (lambda: fastlstm.RNN(3, 4), {"forget_bias": 1.0}, ValueError, "forget_bias must be None: RNN"),
        (lambda: fastlstm.LSTM(3, 4, bias=False), {"forget_bias": 1.0}, ValueError, "forget_bias"),
        (lambda: fastlstm.LSTM(3, 4, forget_gate=False), {"forget_bias": 1.0}, ValueError, "forget_bias"),
        (lambda: fastlstm.LSTM(3, 4, coupled_gates=True), {"forget_bias": 1.0}, ValueError, "forget_bias"),
        (lambda: fastlstm.LSTM(3, 4), {"forget_bias": "1"}, TypeError, "forget_bias"),
        (lambda: fastlstm.LSTM(3, 4), {"forget_bias": np.inf}, ValueError, "forget_bias"),
        (
            lambda: Several(fastlstm.LSTM(3, 4), fastlstm.GRU(4, 4)),
            {"forget_bias": 1.0},
            ValueError,
            "forget_bias",
        ),
    ],
)
def test_refusals_name_the_argument(make, options, error, blamed):
    module = make()
    layers = getattr(module, "modules", [module])
    before = [layer.state_dict() for layer in layers if hasattr(layer, "state_dict")]
    with pytest.raises(error, match=blamed):
        fastlstm.initialize(module, **options)
    after = [layer.state_dict() for layer in layers if hasattr(layer, "state_dict")]
    assert all(map(same_bits, before, after))


def test_a_layer_of_another_library_is_refused():
    class Foreign:
        hidden_size, dtype = 3, "torch.float32"

    with pytest.raises(TypeError, match="must be a recurrent layer or a Sequential"):
        fastlstm.initialize(Foreign())
