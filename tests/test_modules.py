"""Embedding, Linear, Dropout and Sequential: known answers, PyTorch's numbers, the same bits however a model
is run, gradients, streams, files and generated text."""

import copy
import json
import math
import os
import pickle
import sys
import threading

import numpy as np
import pytest
from each_path import output_on_each_path
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import fastlstm
from fastlstm import (
    GRU,
    LSTM,
    RNN,
    Dropout,
    Embedding,
    GatedRNN,
    Linear,
    Sequential,
    leaves,
    reference,
)

DTYPES = ("float32", "float64")
SIZES = (1, 7, 33)
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


def close(got, wanted, dtype="float64"):
    """To the tolerance of the dtype, relative to the largest entry."""
    wanted = np.asarray(wanted)
    assert got.shape == wanted.shape
    largest = float(np.abs(wanted).max(initial=0)) or 1.0
    assert np.abs(np.asarray(got, "f8") - wanted).max(initial=0) <= TOLERANCE[dtype] * largest


def same(a, b):
    """The same bits, through tuples."""
    if isinstance(a, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def model(dtype="float32", batch_first=False, seed=0, p=0.3):
    """Tokens in, logits out, with everything between."""
    return Sequential(
        Embedding(11, 5, dtype=dtype, seed=seed),
        LSTM(5, 7, 2, True, batch_first, p, proj_size=3, dtype=dtype, seed=seed),
        Dropout(p),
        Linear(3, 33, dtype=dtype, seed=seed),
        GRU(33, 4, batch_first=batch_first, dtype=dtype, seed=seed),
        Linear(4, 11, dtype=dtype, seed=seed),
    )


def reader(dtype="float32", batch_first=False):
    """Numbers in: a Linear at the beginning, a Dropout at the end, both directions between."""
    return Sequential(
        Linear(3, 7, dtype=dtype, seed=1),
        GRU(7, 5, bidirectional=True, batch_first=batch_first, dtype=dtype, seed=2),
        Linear(10, 4, bias=False, dtype=dtype, seed=3),
        Dropout(0.5),
    )


def tokens(*shape, count=11, seed=0):
    return np.random.default_rng(seed).integers(0, count, shape)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# --- Embedding ----------------------------------------------------------------------------------------------


def test_embedding_known_answer():
    embedding = Embedding(3, 2, padding_idx=1)
    embedding.load_state_dict({"weight": [[1, 2], [3, 4], [5, 6]]})
    assert embedding([2, 0, 1]).tolist() == [[5, 6], [1, 2], [3, 4]]
    assert embedding(2).tolist() == [5, 6] and embedding(np.uint8([[0]])).tolist() == [[[1, 2]]]
    assert embedding([]).shape == (0, 2) and embedding(np.zeros((4, 0, 3), int)).shape == (4, 0, 3, 2)
    tape = embedding.record([[2, 2], [1, 0]])
    assert tape.output.tolist() == [[[5, 6], [5, 6]], [[3, 4], [1, 2]]] and tape.state is None
    gradients = tape.backward([[[1, 10], [2, 20]], [[3, 30], [4, 40]]])
    assert gradients.input is None and gradients.state is None
    assert gradients.parameters["weight"].tolist() == [[4, 40], [0, 0], [3, 30]]


def test_embedding_starts_as_pytorchs():
    weight = Embedding(4000, 5, padding_idx=-2, seed=3).state_dict()["weight"]
    assert not weight[3998].any() and weight.dtype == np.float32
    assert Embedding(4, 1, -3).padding_idx == 1
    assert repr(Embedding(4, 1, -3)) == "Embedding(4, 1, padding_idx=1)"
    assert same(weight[:9], np.random.default_rng(3).standard_normal((9, 5)).astype("f4"))
    rest = np.delete(weight, 3998, 0)
    assert abs(rest.mean()) < 0.03 and abs(rest.std() - 1) < 0.03
    assert same(weight, Embedding(4000, 5, padding_idx=3998, seed=3).state_dict()["weight"])
    assert not same(weight, Embedding(4000, 5, padding_idx=3998).state_dict()["weight"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_sums_repeated_tokens_in_order(dtype):
    x, dy = tokens(9, 1000, count=7), normal(9, 1000, 5).astype(dtype)
    wanted = np.zeros((7, 5), dtype)
    np.add.at(wanted, x, dy)
    assert same(Embedding(7, 5, dtype=dtype).record(x).backward(dy).parameters["weight"], wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_as_pytorchs(dtype):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Embedding(11, 7, padding_idx=4, dtype=getattr(torch, dtype))
    ours = Embedding(11, 7, padding_idx=4, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    x, dy = tokens(6, 5), normal(6, 5, 7).astype(dtype)
    output = theirs(torch.from_numpy(x))
    output.backward(torch.from_numpy(dy))
    tape = ours.record(x)
    assert same(tape.output, output.detach().numpy()) and same(ours(x), tape.output)
    close(tape.backward(dy).parameters["weight"], theirs.weight.grad.numpy(), dtype)


# --- Linear -------------------------------------------------------------------------------------------------


def test_linear_known_answer():
    linear = Linear(2, 3)
    linear.load_state_dict({"weight": [[1, 2], [3, 4], [5, 6]], "bias": [10, 20, 30]})
    assert linear([1, 10]).tolist() == [31, 63, 95]
    assert linear([[[1, 10]], [[0, 0]]]).tolist() == [[[31, 63, 95]], [[10, 20, 30]]]
    assert linear(np.zeros((0, 2))).shape == (0, 3) and linear(np.zeros((3, 0, 2))).shape == (3, 0, 3)
    gradients = linear.record([[1, 10], [2, 20]]).backward([[1, 0, 2], [0, 1, 0]])
    assert gradients.input.tolist() == [[11, 14], [3, 4]] and gradients.state is None
    assert gradients.parameters["weight"].tolist() == [[1, 10], [2, 20], [2, 20]]
    assert gradients.parameters["bias"].tolist() == [1, 1, 2]
    assert list(Linear(2, 3, bias=False).record([[1, 1]]).backward([[1, 1, 1]]).parameters) == ["weight"]
    nothing = linear.record(np.zeros((0, 2))).backward(np.zeros((0, 3)))
    assert nothing.input.shape == (0, 2) and not nothing.parameters["weight"].any()


def test_linear_starts_as_pytorchs():
    parameters = Linear(16, 3000, seed=2).state_dict()
    for v in parameters.values():
        assert np.abs(v).max() <= 0.25 and abs(v.std() - 0.25 / math.sqrt(3)) < 0.005
    assert all(same(v, Linear(16, 3000, seed=2).state_dict()[n]) for n, v in parameters.items())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inputs", SIZES)
@pytest.mark.parametrize("outputs", (*SIZES, 600))
def test_linear_as_pytorchs(dtype, bias, inputs, outputs):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Linear(inputs, outputs, bias, dtype=getattr(torch, dtype))
    ours = Linear(inputs, outputs, bias, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    x, dy = normal(5, 3, inputs).astype(dtype), normal(5, 3, outputs, seed=1).astype(dtype)
    given = torch.from_numpy(x).requires_grad_()
    output = theirs(given)
    output.backward(torch.from_numpy(dy))
    tape = ours.record(x)
    assert same(tape.output, ours(x))
    close(tape.output, output.detach().numpy(), dtype)
    gradients = tape.backward(dy)
    close(gradients.input, given.grad.numpy(), dtype)
    assert list(gradients.parameters) == [name for name, _ in theirs.named_parameters()]
    for name, parameter in theirs.named_parameters():
        close(gradients.parameters[name], parameter.grad.numpy(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs, outputs", [(1, 1), (7, 33), (33, 7), (300, 700)])
def test_a_row_has_the_same_bits_in_any_batch(dtype, inputs, outputs):
    linear = Linear(inputs, outputs, dtype=dtype, seed=1)
    x, dy = normal(150, inputs).astype(dtype), normal(150, outputs).astype(dtype)
    threads = fastlstm.get_num_threads()
    try:
        for count in (1, 2, 3):
            fastlstm.set_num_threads(count)
            y, dx = linear(x), linear.record(x).backward(dy).input
            for b in (0, 1, 77, 149):
                assert same(linear(x[b]), y[b]) and same(linear(x[b : b + 3])[0], y[b])
                assert same(linear.record(x[b]).backward(dy[b]).input, dx[b])
            assert same(linear(x[::-1])[::-1].copy(), y)
            assert same(linear(x.reshape(5, 30, -1)).reshape(y.shape), y)
    finally:
        fastlstm.set_num_threads(threads)


def test_linear_takes_what_layers_take():
    torch = pytest.importorskip("torch")
    linear = Linear(3, 5, seed=0)
    x = normal(4, 6).astype("f4")[:, ::2]
    for given in (x.tolist(), x.astype("f8"), torch.from_numpy(x.copy()), x.T.copy().T, x.astype(">f4")):
        assert same(linear(given), linear(x.copy()))
    assert np.isnan(linear([[np.nan, 1, 1], [1, 1, 1]])).all(1).tolist() == [True, False]


@pytest.mark.parametrize("make", [lambda: Linear(3, 2), lambda: Embedding(4, 2), lambda: Dropout(0.5)])
def test_a_tape_keeps_what_it_saw(make):
    module = make()
    x = np.array([[1, 2, 0]]) if isinstance(module, Embedding) else normal(1, 3).astype("f4")
    tape = module.record(x, 3)
    dy = normal(*tape.output.shape).astype("f4")
    before = tape.backward(dy)
    x[:] = 0
    for gradients in (tape.backward(dy), tape.backward(dy.tolist())):
        assert gradients.input is None or same(gradients.input, before.input)
        assert all(same(v, before.parameters[n]) for n, v in gradients.parameters.items())
    with pytest.raises(ValueError, match="d_output must have shape"):
        tape.backward(dy[..., None])
    module.load_state_dict(module.state_dict())
    with pytest.raises(RuntimeError, match=f"{type(module).__name__}.*other parameters.*record again"):
        tape.backward(dy)


# --- Dropout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_draws_as_it_says(dtype):
    x, dy = normal(5, 4, 7).astype(dtype), normal(5, 4, 7, seed=1).astype(dtype)
    keep = np.random.Generator(np.random.Philox(9)).random(x.shape) >= 0.25
    tape = Dropout(0.25).record(x, dropout_seed=9)
    scale = np.dtype(dtype).type(1 / 0.75)
    assert same(tape.output, np.where(keep, x * scale, np.dtype(dtype).type(0)))
    assert same(tape.backward(dy).input, np.where(keep, dy * scale, np.dtype(dtype).type(0)))
    assert tape.backward(dy).parameters == {}
    assert not Dropout(1).record(x, 9).output.any() and not Dropout(1.0).record(x, 9).backward(dy).input.any()


def test_dropout_does_nothing_unless_asked():
    x = normal(3, 4)
    for output in (Dropout()(x), Dropout().record(x).output, Dropout(0).record(x, 1).output):
        assert same(output, x) and not np.may_share_memory(output, x)
    assert same(Dropout().record(x).backward(2 * x).input, 2 * x)
    assert Dropout()([1, 2]).dtype == np.float64 and Dropout()(np.float32([1])).dtype == np.float32
    assert Dropout(0.5).state_dict() == {} and Dropout().load_state_dict({}) == ([], [])


# --- Sequential: forward ------------------------------------------------------------------------------------


def test_sequential_is_its_modules_in_turn():
    net, x = model(), tokens(6, 4)
    y, (hc, h) = net(x)
    output, wanted_hc = net[1](net[0](x))
    output, wanted_h = net[4](net[3](output))
    assert same(y, net[5](output)) and same(hc, wanted_hc) and same(h, wanted_h)
    assert len(net) == 6 and list(net) == [net[i] for i in range(6)] and net[-1] is net[5]
    with pytest.raises(IndexError):
        net[6]
    assert net.dtype == np.float32
    linear = Linear(3, 2)
    y, state = Sequential(linear)(normal(2, 3, 4, 3))
    assert state == () and same(y, linear(normal(2, 3, 4, 3)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_names_and_numbers_are_those_of_pytorch(dtype):
    torch = pytest.importorskip("torch")
    net = Sequential(
        Embedding(11, 5, dtype=dtype), LSTM(5, 7, 2, dtype=dtype), Dropout(), Linear(7, 3, dtype=dtype)
    )
    kind = getattr(torch, dtype)
    parts = [
        torch.nn.Embedding(11, 5, dtype=kind), torch.nn.LSTM(5, 7, 2, dtype=kind), torch.nn.Dropout(),
        torch.nn.Linear(7, 3, dtype=kind),
    ]  # fmt: skip
    theirs = torch.nn.Sequential(*parts)
    assert list(net.state_dict()) == list(theirs.state_dict())
    assert net.load_state_dict(theirs.state_dict()) == ([], [])
    x, dy, dh = tokens(6, 4), normal(6, 4, 3).astype(dtype), normal(2, 4, 7).astype(dtype)
    state = tuple(normal(2, 4, 7, seed=s).astype(dtype) for s in (1, 2))
    given = [torch.from_numpy(v).requires_grad_() for v in state]
    hidden, (h, c) = parts[1](parts[0](torch.from_numpy(x)), given)
    output = parts[3](hidden)
    torch.autograd.backward([output, h], [torch.from_numpy(dy), torch.from_numpy(dh)])
    tape = net.record(x, (state,))
    close(tape.output, output.detach().numpy(), dtype)
    close(tape.state[0][1], c.detach().numpy(), dtype)
    gradients = tape.backward(dy, ((dh, np.zeros_like(dh)),))
    assert gradients.input is None and list(gradients.parameters) == list(net.state_dict())
    for name, parameter in theirs.named_parameters():
        close(gradients.parameters[name], parameter.grad.numpy(), dtype)
    for ours, leaf in zip(gradients.state[0], given, strict=True):
        close(ours, leaf.grad.numpy(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_however_a_model_is_run(dtype):
    net, x = model(dtype), tokens(9, 5)
    y, state = net(x)
    for b in range(5):  # alone, unbatched
        alone, (hc, h) = net(x[:, b])
        assert same(alone, y[:, b].copy()) and same(h, state[1][:, b].copy())
        assert same(hc[1], state[0][1][:, b].copy())
    first, between = net(x[:4])
    rest, final = net(x[4:], between)
    assert same(np.concatenate([first, rest]), y) and same(final, state)
    stream = net.stream(5)
    assert same(np.stack([stream.step(v) for v in x]), y) and same(stream.state, state)
    turned = model(dtype, batch_first=True)(x.T)
    assert same(turned[0].swapaxes(0, 1).copy(), y) and same(turned[1], state)
    tape = net.record(x)
    assert same(tape.output, y) and same(tape.state, state)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("make", [model, reader])
def test_padding_is_neither_read_nor_written(make, batch_first):
    net, lengths = make("float64", batch_first), np.array([6, 0, 3, 1])
    turn = (lambda v: v.swapaxes(0, 1)) if batch_first else (lambda v: v)
    x = tokens(6, 4) if make is model else normal(6, 4, 3)
    padded = x.copy()
    for b, n in enumerate(lengths):
        padded[n:, b] = -(10**9) if make is model else np.nan
    y, state = net(turn(padded), lengths=lengths)
    tape = net.record(turn(padded), lengths=lengths, dropout_seed=None)
    assert same(tape.output, y) and same(tape.state, state)
    dy, total = normal(6, 4, y.shape[-1]), None
    poisoned = dy.copy()
    for b, n in enumerate(lengths):
        poisoned[n:, b] = np.nan
    gradients = tape.backward(turn(poisoned))
    for b, n in enumerate(lengths):
        assert not turn(y)[n:, b].any()
        alone = net.record(x[:n, b])
        assert same(alone.output, turn(y)[:n, b].copy())
        found = alone.backward(dy[:n, b])
        if found.input is not None:
            close(turn(gradients.input)[:n, b], found.input)
            assert not turn(gradients.input)[n:, b].any()
        total = {k: v + (total[k] if total else 0) for k, v in found.parameters.items()}
    assert gradients.parameters.keys() == total.keys() == net.state_dict().keys()
    for name, v in total.items():
        close(gradients.parameters[name], v)
    whole = net(turn(x), lengths=[6] * 4)
    assert same(whole[0], net(turn(x))[0])


@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_without_recurrent_layers(batch_first):
    net = Sequential(Dropout(0.5), Linear(3, 2, seed=0))
    x = normal(4, 2, 3).astype("f4")
    x[1:, 0] = np.nan
    y, _ = net(x, lengths=[1, 4])
    assert not y[1:, 0].any() and same(y[:, 1], net[1](x[:, 1])) and same(y[0, 0], net[1](x[0, 0]))
    tape = net.record(x, lengths=[1, 4], dropout_seed=1)
    gradients = tape.backward(np.where(np.isnan(x[..., :2]), np.nan, 1))
    assert all(np.isfinite(v).all() for v in (tape.output, gradients.input, *gradients.parameters.values()))


def test_the_same_bits_on_every_path():
    code = """
import hashlib, numpy as np
from fastlstm import GRU, Dropout, Embedding, Linear, Sequential
for dtype in ("float32", "float64"):
    net = Sequential(Embedding(11, 5, dtype=dtype), GRU(5, 33, dtype=dtype), Linear(33, 70, dtype=dtype))
    net.load_state_dict({n: np.sin(np.arange(v.size)).reshape(v.shape) for n, v in net.state_dict().items()})
    x = np.random.default_rng(0).integers(0, 11, (6, 7))
    y = net(x)[0]
    dx = net[2].record(np.ones((7, 33))).backward(y[0]).input
    print(hashlib.sha256(y.tobytes() + dx.tobytes()).hexdigest())
"""
    found = output_on_each_path(code)
    assert len(set(found.values())) == 1, found


# --- Sequential: training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_of_a_model_against_the_reference(batch_first):
    """Each module draws from the stream that `record` says, time first; outputs and gradients are those of
    the modules in turn, in plain NumPy."""
    net, seed, rate = model("float64", batch_first), 5, 0.3
    turn = (lambda v: v.swapaxes(0, 1)) if batch_first else (lambda v: v)
    seeds = [int(np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0]) for i in range(6)]
    p = {i: part.state_dict() for i, part in enumerate(net)}
    lstm = reference.LSTM(5, 7, 2, dropout=rate, proj_size=3, dtype="float64")
    gru = reference.GRU(33, 4, dtype="float64")
    lstm.load_state_dict(p[1])
    gru.load_state_dict(p[4])
    x, dy = tokens(6, 4), normal(6, 4, 11)
    first = lstm.record(p[0]["weight"][x], dropout_seed=seeds[1])
    mask = (np.random.Generator(np.random.Philox(seeds[2])).random((6, 4, 3)) >= rate) / (1 - rate)
    dropped = first.output * mask
    second = gru.record(dropped @ p[3]["weight"].T + p[3]["bias"], dropout_seed=seeds[4])
    output = second.output @ p[5]["weight"].T + p[5]["bias"]

    tape = net.record(turn(x), dropout_seed=seed)
    close(turn(tape.output), output)
    gradients = tape.backward(turn(dy))
    back = second.backward(dy @ p[5]["weight"])
    d_first = first.backward((back.input @ p[3]["weight"]) * mask)
    d_embedding = np.zeros_like(p[0]["weight"])
    np.add.at(d_embedding, x, d_first.input)
    wanted = {
        "0.weight": d_embedding,
        **{f"1.{name}": v for name, v in d_first.parameters.items()},
        "3.weight": np.einsum("tbo,tbi->oi", back.input, dropped),
        "3.bias": back.input.sum((0, 1)),
        **{f"4.{name}": v for name, v in back.parameters.items()},
        "5.weight": np.einsum("tbo,tbi->oi", dy, second.output),
        "5.bias": dy.sum((0, 1)),
    }
    close(gradients.state[0][1], d_first.state[1])
    close(gradients.state[1], back.state)
    assert list(gradients.parameters) == list(wanted)
    for name, v in wanted.items():
        close(gradients.parameters[name], v)
    assert same(net.record(turn(x), dropout_seed=seed).output, tape.output)
    assert not same(net.record(turn(x), dropout_seed=6).output, tape.output)


def test_two_dropouts_of_a_model_are_independent():
    net = Sequential(Dropout(0.5), Linear(1000, 1000, bias=False), Dropout(0.5))
    net.load_state_dict({"1.weight": np.eye(1000)})
    output = net.record(np.ones((1, 1000)), dropout_seed=0).output
    assert set(output.ravel()) == {0, 4} and abs((output > 0).mean() - 0.25) < 0.05


def test_gradients_by_finite_differences():
    """With dropout, lengths, states in and out."""
    net, x, lengths = reader("float64"), normal(4, 3, 3), [4, 2, 3]
    state = (normal(2, 3, 5, seed=1),)
    dy, dh = normal(4, 3, 4, seed=2), normal(2, 3, 5, seed=3)

    def loss(x, h):
        tape = net.record(x, (h,), lengths=lengths, dropout_seed=4)
        valid = np.arange(4)[:, None] < np.array(lengths)
        return (tape.output * dy * valid[..., None]).sum() + (tape.state[0] * dh).sum()

    gradients = net.record(x, state, lengths=lengths, dropout_seed=4).backward(dy, (dh,))
    step = 1e-6
    for array, gradient, at in ((x, gradients.input, (1, 1, 2)), (state[0], gradients.state[0], (1, 2, 3))):
        up, down = array.copy(), array.copy()
        up[at] += step
        down[at] -= step
        moved = loss(up, state[0]) - loss(down, state[0]) if array is x else loss(x, up) - loss(x, down)
        assert abs(moved / (2 * step) - gradient[at]) < 1e-6
    parameters = net.state_dict()
    for name, gradient in gradients.parameters.items():
        at = tuple(n // 2 for n in gradient.shape)
        found = []
        for sign in (1, -1):
            moved = {n: v.copy() for n, v in parameters.items()}
            moved[name][at] += sign * step
            net.load_state_dict(moved)
            found.append(loss(x, state[0]))
        net.load_state_dict(parameters)
        assert abs((found[0] - found[1]) / (2 * step) - gradient[at]) < 1e-6, name


def test_a_tape_of_a_model_is_of_its_weights():
    net, x = model(), tokens(3, 2)
    tape = net.record(x, checkpoint=2)
    dy = normal(3, 2, 11).astype("f4")
    once, again = tape.backward(dy), tape.backward(dy)
    assert all(same(v, again.parameters[n]) for n, v in once.parameters.items())
    assert same(once.state[0], again.state[0])
    plain = net.record(x).backward(dy)
    assert all(same(v, plain.parameters[n]) for n, v in once.parameters.items())
    net[3].load_state_dict(net[3].state_dict())
    with pytest.raises(RuntimeError, match="Linear"):
        tape.backward(dy)
    tape = net.record(x)
    net[1].load_state_dict(net[1].state_dict())
    with pytest.raises(RuntimeError):
        tape.backward(dy)


def test_the_input_of_a_tape_may_change():
    for net, x in ((reader(), normal(3, 2, 3)), (model(), tokens(3, 2))):
        x = x.astype("f4") if x.dtype == float else x
        tape = net.record(x)
        wanted = tape.backward(np.ones_like(tape.output))
        x[:] = 0
        got = tape.backward(np.ones_like(tape.output))
        assert all(same(v, wanted.parameters[n]) for n, v in got.parameters.items())


# --- parameters, files, pickles -----------------------------------------------------------------------------


def test_all_parameters_change_or_none(monkeypatch):
    net = model()
    before = net.state_dict()
    new = {name: v + 1 for name, v in before.items()}
    short = {name: v for name, v in new.items() if name != "5.bias"}
    for wrong in ({**new, "5.bias": np.zeros(3)}, {**new, "7.bias": 0}, short):
        with pytest.raises(ValueError, match=r"[57]\.bias"):
            net.load_state_dict(wrong)
        assert all(same(v, before[n]) for n, v in net.state_dict().items())
    assert net.load_state_dict({"3.bias": np.ones(33), "x": 0}, strict=False)[1] == ["x"]
    assert net[3].state_dict()["bias"].tolist() == [1] * 33
    net.load_state_dict(before)

    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(leaves, "LinearCore", fail)
    with pytest.raises(MemoryError):
        net.load_state_dict(new)
    monkeypatch.undo()
    assert all(same(v, before[n]) for n, v in net.state_dict().items())
    y = net(tokens(3, 2))[0]
    net.load_state_dict(before)
    assert same(net(tokens(3, 2))[0], y)


def test_weights_loaded_from_two_models_at_once():
    """Which share modules in the other order: no deadlock, and what a part says is what it runs with."""
    first, second = Linear(3, 3, seed=1), Linear(3, 3, seed=2)
    nets = [Sequential(first, second), Sequential(second, first)]
    loads = [nets[0].state_dict(), {n: v * 2 for n, v in nets[1].state_dict().items()}]

    def load(i):
        for _ in range(2000):
            with nets[i]._locked():
                pass
        for _ in range(200):
            nets[i].load_state_dict(loads[i])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=load, args=(i,), daemon=True) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    sys.setswitchinterval(interval)
    assert not any(thread.is_alive() for thread in threads)
    for linear in (first, second):
        twin = Linear(3, 3)
        twin.load_state_dict(linear.state_dict())
        assert same(linear(np.eye(3)), twin(np.eye(3)))


MODULES = {
    "embedding": lambda: Embedding(4, 3, padding_idx=1, dtype="float64", seed=0),
    "linear": lambda: Linear(3, 5, bias=False, seed=0),
    "dropout": lambda: Dropout(0.25),
    "model": lambda: model("float64"),
    "reader": reader,
    "recurrent": lambda: Sequential(LSTM(3, 5, peepholes=True, clip=2), RNN(5, 2, activations=("elu", 0.5))),
}  # fmt: skip


def run(module):
    if isinstance(module, Sequential):
        found = module(tokens(4, 2) if isinstance(module[0], Embedding) else normal(4, 2, 3))
        return found[0], *found[1]
    return (module(tokens(2, 2, count=4) if isinstance(module, Embedding) else normal(2, 3)),)


@pytest.mark.parametrize("name", MODULES)
def test_saved_and_loaded(name, tmp_path):
    module, path = MODULES[name](), tmp_path / "m.safetensors"
    module.save(path)
    twin = fastlstm.load(path)
    assert type(twin) is type(module) and repr(twin) == repr(module)
    assert same(run(twin), run(module))
    with safe_open(path, "np") as file:
        assert list(file.keys()) == sorted(module.state_dict())
        config = json.loads(file.metadata()["fastlstm"])
    assert config["version"] == 2 and config["module"] == type(module).__name__
    assert os.listdir(tmp_path) == ["m.safetensors"]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("twin", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy, copy.copy])
def test_pickled_and_copied(name, twin):
    module = MODULES[name]()
    other = twin(module)
    assert repr(other) == repr(module) and same(run(other), run(module))
    before = run(module)
    if twin is not copy.copy:
        other.load_state_dict({n: v * 2 + 1 for n, v in other.state_dict().items()})
        assert same(run(module), before)


class Named(Linear):
    """A user's class, with an attribute of its own."""


class NamedModel(Sequential):
    def __init__(self, size):
        super().__init__(Named(size, size), GatedRNN(size, size))
        self.size = size


def test_users_classes_survive():
    net = NamedModel(3)
    net[0].name = "first"
    for twin in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert type(twin) is NamedModel and twin.size == 3
        assert type(twin[0]) is Named and twin[0].name == "first"


def test_options_of_load(tmp_path):
    path = tmp_path / "m.safetensors"
    Linear(3, 5, seed=0).save(path)
    assert fastlstm.load(path, dtype="float64").dtype == np.float64
    assert fastlstm.load(path, in_features=3, bias=True).out_features == 5
    with pytest.raises(ValueError, match="in_features=4 contradicts the file, which says 3"):
        fastlstm.load(path, in_features=4)
    with pytest.raises(TypeError, match="Linear takes no option hidden_size"):
        fastlstm.load(path, hidden_size=3)
    Dropout(0.5).save(path)
    assert fastlstm.load(path, p=0.1).p == 0.1
    model().save(path)
    wide = fastlstm.load(path, dtype=np.float64)
    assert wide.dtype == np.float64 and all(v.dtype == np.float64 for v in wide.state_dict().values())
    with pytest.raises(TypeError, match="Sequential takes no option batch_first"):
        fastlstm.load(path, batch_first=True)
    narrow = Sequential(Linear(3, 3, dtype="float64"), LSTM(3, 3, clip=1e-300, dtype="float64"))
    narrow.save(path)
    with pytest.raises(ValueError, match="clip"):
        fastlstm.load(path, dtype="float32")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c | {"version": 3}, "version 3"),
        (lambda c: c | {"version": 1}, "has cell None"),
        (lambda c: c | {"module": "Conv"}, "has module 'Conv'"),
        (lambda c: c | {"module": ["Linear"]}, "has module"),
        (lambda c: c | {"module": "Linear"}, "Linear takes no option modules"),
        (lambda c: c | {"x": 1}, "no Sequential"),
        (lambda c: c | {"modules": {}}, "no Sequential"),
        (lambda c: c | {"modules": []}, "modules must be 1 to"),
        (lambda c: c | {"modules": c["modules"] * 2}, "tokens: it must be the first"),
        (lambda c: c | {"modules": c["modules"][1:]}, "does not hold the parameters"),
        (lambda c: c | {"modules": [*c["modules"], 5]}, "module 6 is no object but a int"),
        (lambda c: c | {"modules": [*c["modules"], {}]}, "has module None"),
        (lambda c: c | {"modules": [*c["modules"], c]}, "has module 'Sequential'"),
        (lambda c: c | {"modules": [*c["modules"], {"cell": "lstm"}]}, "LSTM needs hidden_size, input_size"),
        (lambda c: c | {"modules": [*c["modules"], {"module": "Linear"}]}, "Linear needs in_features"),
        (lambda c: c | {"modules": c["modules"] * 99}, "no Sequential of at most 256"),
        (lambda c: c | {"modules": [*c["modules"], {"module": "Dropout", "p": 2}]}, "p must be"),
    ],
)  # fmt: skip
def test_files_that_describe_no_model(change, message, tmp_path):
    net, path = model(), tmp_path / "m.safetensors"
    net.save(path)
    with safe_open(path, "np") as file:
        config = json.loads(file.metadata()["fastlstm"])
    save_file(net.state_dict(), path, {"fastlstm": json.dumps(change(config))})
    with pytest.raises(ValueError, match=message) as caught:
        fastlstm.load(path)
    assert str(path) in str(caught.value)


def test_files_of_modules_hold_their_parameters(tmp_path):
    path = tmp_path / "m.safetensors"
    Linear(3, 2).save(path)
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    good = load_file(path)
    for wrong in ({"weight": good["weight"]}, good | {"x": good["bias"]}, good | {"bias": good["weight"]}):
        save_file(wrong, path, metadata)
        with pytest.raises(ValueError, match="does not hold the parameters of Linear"):
            fastlstm.load(path)
    save_file({n: v.astype("f2") for n, v in good.items()}, path, metadata)
    assert fastlstm.load(path).dtype == np.float32


def test_a_large_model_fits_into_a_file(tmp_path):
    net = Sequential(*[RNN(1, 1, 5) if k % 2 else Linear(1, 1) for k in range(200)])
    net.save(tmp_path / "m.safetensors")
    assert len(fastlstm.load(tmp_path / "m.safetensors")) == 200


# --- streams ------------------------------------------------------------------------------------------------


def test_stream_as_a_layers_stream():
    net, x = model(), tokens(5, 3)
    y, state = net(x)
    start = net(tokens(2, 3, seed=1))[1]
    stream = net.stream(3, start)
    assert stream.batch_size == 3 and same(stream.state, start)
    wanted = net(x, start)
    out = np.empty((3, 11), "f4")
    for t in range(5):
        assert stream.step(x[t], out=out) is out and same(out, wanted[0][t])
    assert same(stream.state, wanted[1])
    twin = stream.copy()
    for other in (twin, copy.copy(stream), copy.deepcopy(stream)):
        assert same(other.state, stream.state) and other is not stream
    twin.step([1, 2, 3])
    assert same(stream.state, wanted[1]) and not same(twin.state, wanted[1])
    stream.reset(rows=[1])
    assert same(stream.state[1][:, 1].copy(), start[1][:, 1].copy())
    assert same(stream.state[1][:, 0].copy(), wanted[1][1][:, 0].copy())
    stream.state = state
    stream.step(x[0])
    stream.reset()
    assert same(stream.state, state)
    numbers = Sequential(Dropout(), Linear(3, 4, seed=0), GRU(4, 5, seed=0), Dropout()).stream(2)
    assert numbers.step(np.ones((2, 3))).shape == (2, 5)
    only = Sequential(Linear(3, 4, seed=0))
    assert only.stream(1).state == () and same(only.stream(1).step([[1, 2, 3]]), only([[1, 2, 3]])[0])


def test_stream_takes_new_parameters():
    net = model()
    stream, twin = net.stream(), model(seed=5)
    stream.step([1])
    between = stream.state
    net.load_state_dict(twin.state_dict())
    assert same(stream.step([2]), twin(np.array([[2]]), between)[0][0])


def test_stream_refuses(tmp_path):
    net = model()
    stream = net.stream(2)
    before = stream.state
    for x in ([1], [1, 11], [1, -1], [[1, 2]]):
        with pytest.raises(ValueError, match="^x must"):
            stream.step(x)
    with pytest.raises(TypeError, match="^x must be integers"):
        stream.step([0.5, 1.0])
    for out in (np.empty((2, 10), "f4"), np.empty((2, 11)), np.empty((2, 22), "f4")[:, ::2]):
        with pytest.raises(ValueError, match="^out must"):
            stream.step([1, 2], out)
    with pytest.raises(TypeError, match="^out must"):
        stream.step([1, 2], [0] * 22)
    x = np.zeros((1, 4), "f4")
    with pytest.raises(ValueError, match="overlap"):
        Sequential(Linear(4, 4)).stream().step(x, x)
    with pytest.raises(ValueError, match="rows must"):
        stream.reset(2)
    for state in (before[:1], 5, [before]):
        with pytest.raises(TypeError, match="state must be None or a tuple of 2"):
            stream.state = state
        with pytest.raises(TypeError, match="state must be None or a tuple of 2"):
            net.stream(2, state)
    stream.step([3, 4])
    now = stream.state
    with pytest.raises(ValueError, match=r"state\[1\] must have shape"):
        stream.state = (before[0], before[1][:, :1])
    assert same(stream.state, now)  # nothing has changed
    with pytest.raises(ValueError, match="batch_size must"):
        net.stream(0)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(stream)
    for layer in (LSTM(3, 2, reverse=True), GRU(3, 2, bidirectional=True)):
        with pytest.raises(ValueError, match="stream: a layer with") as caught:
            Sequential(Linear(3, 3), layer).stream()
        assert "modules[1]" in caught.value.__notes__[0]


def test_stream_serves_one_thread_at_a_time():
    stream = Sequential(Linear(400, 2000), LSTM(2000, 300)).stream(32)
    x, found, go = normal(32, 400), [], threading.Event()

    def step():
        go.wait()
        for _ in range(20):
            try:
                stream.step(x)
                found.append("ok")
            except RuntimeError as error:
                assert "another call" in str(error)
                found.append("busy")

    threads = [threading.Thread(target=step) for _ in range(2)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert len(found) == 40 and "ok" in found
    with stream._alone:
        for use in (lambda: stream.step(x), lambda: stream.state, stream.reset, stream.copy):
            with pytest.raises(RuntimeError, match="another call"):
                use()
    stream.step(x)


# --- generate -----------------------------------------------------------------------------------------------


def table(logits):
    """A model whose logits after token i are row i."""
    count = len(logits)
    last = Linear(count, len(logits[0]), False, dtype="float64")
    net = Sequential(Embedding(count, count, dtype="float64"), last)
    net.load_state_dict({"0.weight": np.eye(count), "1.weight": np.transpose(logits)})
    return net


def test_generate_by_hand():
    """Temperature 0 is the most likely token, step by step."""
    net, prompt = model(), [1, 2, 3, 4]
    wanted = list(prompt)
    for _ in range(12):
        wanted.append(int(net(wanted)[0][-1].argmax()))
    got = list(net.generate(prompt, 12, temperature=0))
    assert got == wanted[4:] and all(type(token) is int for token in got)
    for options in ({"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-300}, {"temperature": 5e-324}):
        assert list(net.generate(np.array(prompt), 12, seed=3, **options)) == got
    assert list(model(batch_first=True).generate(prompt, 12, temperature=0)) == got
    assert list(net.generate(prompt, 0)) == []


def test_generate_many_prompts():
    net = model()
    prompts = [[1, 2, 3, 4], [5], [6, 7]]
    many = list(net.generate(prompts, 9, seed=4))
    assert len(many) == 9 and all(v.shape == (3,) and v.dtype == np.int64 for v in many)
    assert [int(v[0]) for v in many] == list(net.generate(prompts[0], 9, seed=4))
    fewer = list(net.generate(prompts[:2], 9, seed=4))
    assert all(np.array_equal(a[:2], b) for a, b in zip(many, fewer, strict=True))
    cold = list(net.generate(prompts, 9, temperature=0))
    for b, prompt in enumerate(prompts):
        assert [int(v[b]) for v in cold] == list(net.generate(prompt, 9, temperature=0))
    turned = list(model(batch_first=True).generate(prompts, 9, seed=4))
    assert np.array_equal(turned, many)
    square = list(net.generate(np.array([[1, 2], [3, 4]]), 5, seed=1))
    assert np.array_equal(square, list(net.generate([np.array([1, 2]), (3, 4)], 5, seed=1)))
    assert [v.shape for v in net.generate([[1, 2]], 2)] == [(1,), (1,)]


def test_what_generate_gives_is_the_callers_to_change():
    circle, found = table(np.roll(np.eye(5), 1, axis=1)), []
    for now in circle.generate([[0], [3]], 4, temperature=0):
        found.append(now.tolist())
        now[:] = 0
    assert found == [[1, 4], [2, 0], [3, 1], [4, 2]]


def test_generate_is_decided_by_its_seed():
    net = model()
    first = list(net.generate([1], 30, seed=1))
    assert list(net.generate([1], 30, seed=1)) == first != list(net.generate([1], 30, seed=2))
    assert list(net.generate([1], 30)) != list(net.generate([1], 30))
    twins = list(net.generate([[1], [1]], 30, seed=1))  # each draws its own
    assert [int(v[0]) for v in twins] == first != [int(v[1]) for v in twins]


def test_generate_draws_with_the_models_probabilities():
    p = np.array([0.5, 0.25, 0.15, 0.1])
    net = table([np.log(p)] * 4)

    def shares(**options):
        drawn = np.array(list(net.generate([[0]] * 500, 20, seed=0, **options)))
        return np.bincount(drawn.ravel(), minlength=4) / drawn.size

    assert np.abs(shares() - p).max() < 0.015
    assert np.abs(shares(temperature=0.5) - p**2 / (p**2).sum()).max() < 0.015
    assert np.abs(shares(top_k=2) - [2 / 3, 1 / 3, 0, 0]).max() < 0.015
    assert np.abs(shares(top_p=0.8) - np.array([0.5, 0.25, 0.15, 0]) / 0.9).max() < 0.015
    assert np.abs(shares(top_k=3, top_p=0.6) - [2 / 3, 1 / 3, 0, 0]).max() < 0.015
    assert np.array_equal(shares(top_k=99), shares()) and np.array_equal(shares(top_p=1.0), shares())
    even = table([[0.0, 1.0] * 100] * 200)
    assert set(even.generate([2], 50, top_k=3, seed=0)) == {1, 3, 5}
    assert set(even.generate([2], 50, temperature=0)) == {1}
    assert set(table([[-1e300, 0.0, -1e300]] * 3).generate([0], 50, temperature=9, seed=0)) == {1}
    fewer = Sequential(Embedding(4, 2), Linear(2, 3))  # token 3 can be read, and is never given
    assert set(fewer.generate([3], 50, seed=0)) <= {0, 1, 2}


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (("abc", 3), TypeError, "prompt must be"),
        ((b"abc", 3), TypeError, "prompt must be"),
        (([], 3), ValueError, "prompt must be.*at least one"),
        (([[1], []], 3), ValueError, r"prompt\[1\]"),
        ((np.zeros((0, 3), int), 3), ValueError, "prompt must be"),
        ((5, 3), ValueError, "prompt must be"),
        (([[[1]]], 3), ValueError, r"prompt\[0\]"),
        (([1.5], 3), TypeError, "prompt must be integers"),
        (([11], 3), ValueError, "prompt must be in 0..10"),
        (([[1], [-1]], 3), ValueError, r"prompt\[1\] must be in 0..10"),
        (([1], -1), ValueError, "n must be"),
        (([1], 2.0), TypeError, "n must be"),
        (([1], 2, -0.1), ValueError, "temperature must be"),
        (([1], 2, np.nan), ValueError, "temperature must be"),
        (([1], 2, np.inf), ValueError, "temperature must be"),
        (([1], 2, 1, 0), ValueError, "top_k must be"),
        (([1], 2, 1, 2.0), TypeError, "top_k must be"),
        (([1], 2, 1, None, 0), ValueError, "top_p must be"),
        (([1], 2, 1, None, 1.1), ValueError, "top_p must be"),
        (([1], 2, 1, None, None, -1), ValueError, "seed must be"),
    ],
)
def test_generate_refuses_at_once(arguments, error, message):
    with pytest.raises(error, match=message):
        model().generate(*arguments)


def test_generate_refuses_models():
    with pytest.raises(ValueError, match="begins with an Embedding"):
        reader().generate([1], 2)
    with pytest.raises(ValueError, match="a logit for each"):
        Sequential(Embedding(3, 4)).generate([1], 2)
    with pytest.raises(ValueError, match="bidirectional=True cannot stream"):
        Sequential(Embedding(4, 4), GRU(4, 2, bidirectional=True)).generate([1], 2)
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="largest output"):
            next(table([[0.0, value], [0.0, 0.0]]).generate([0], 2))


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: Embedding(0, 1), ValueError, "num_embeddings must be"),
        (lambda: Embedding(1, 1.5), TypeError, "embedding_dim must be"),
        (lambda: Embedding(3, 1, 3), ValueError, "padding_idx must be"),
        (lambda: Embedding(3, 1, -4), ValueError, "padding_idx must be"),
        (lambda: Embedding(3, 1, dtype="float16"), ValueError, "dtype must be"),
        (lambda: Embedding(3, 1, seed=-1), ValueError, "seed must be"),
        (lambda: Embedding(2**40, 2**40), ValueError, "num_embeddings="),
        (lambda: Linear(0, 1), ValueError, "in_features must be"),
        (lambda: Linear(1, True), TypeError, "out_features must be"),
        (lambda: Linear(1, 1, 1), TypeError, "bias must be"),
        (lambda: Linear(1, 1, dtype=None), TypeError, "dtype must be"),
        (lambda: Linear(1, 1, seed="a"), TypeError, "seed must be"),
        (lambda: Linear(2**40, 2**40), ValueError, "in_features="),
        (lambda: Dropout(1.5), ValueError, "p must be"),
        (lambda: Dropout("a"), TypeError, "p must be"),
        (lambda: Embedding(3, 1)([3]), ValueError, "x must be in 0..2, got 3 at 0"),
        (lambda: Embedding(3, 1)([-1]), ValueError, "x must be in 0..2"),
        (lambda: Embedding(9, 1)([[1, 2], [3, 99], [9, 9]]), ValueError, "x must be in 0..8, got 99 at 1, 1"),
        (lambda: Embedding(3, 1)([1.0]), TypeError, "x must be integers"),
        (lambda: Embedding(3, 1)(["a"]), TypeError, "x must be"),
        (lambda: Linear(3, 1)(np.zeros((2, 4))), ValueError, r"x must be \[.., 3\], got shape \(2, 4\)"),
        (lambda: Linear(3, 1)(1.0), ValueError, "x must be"),
        (lambda: Linear(3, 1)(np.zeros(3, complex)), TypeError, "x must hold real numbers"),
        (lambda: Dropout()([1j]), TypeError, "x must hold real numbers"),
        (lambda: Dropout().record([1.0], dropout_seed=-1), ValueError, "dropout_seed must be"),
        (lambda: Linear(3, 1).record([1.0] * 3, "a"), TypeError, "dropout_seed must be"),
        (lambda: Linear(3, 1).load_state_dict({"weight": [[1, 2, 3]]}), ValueError, "missing: bias"),
        (lambda: Sequential(), ValueError, "modules must be 1 to 256"),
        (lambda: Sequential([Linear(1, 1)]), TypeError, r"modules\[0\] must be .*, got list"),
        (lambda: Sequential(Sequential(Linear(1, 1))), TypeError, r"modules\[0\] must be .*got Sequential"),
        (lambda: Sequential(reference.LSTM(1, 1)), TypeError, r"modules\[0\] must be"),
        (lambda: Sequential(Dropout()), ValueError, "must not be Dropout, Activation or LastStep alone"),
        (lambda: Sequential(Linear(1, 2), Linear(1, 2)), ValueError, r"modules\[1\].*modules\[0\].*: 2 feat"),
        (lambda: Sequential(RNN(1, 2), Dropout(), GRU(3, 1)), ValueError, r"modules\[2\], GRU.*s\[0\], RNN"),
        (lambda: Sequential(LSTM(1, 2, bidirectional=True), Linear(2, 1)), ValueError, "4 features"),
        (lambda: Sequential(Linear(1, 1), Embedding(1, 1)), ValueError, "tokens: it must be the first"),
        (lambda: Sequential(Dropout(), Embedding(1, 1)), ValueError, "tokens: it must be the first"),
        (lambda: Sequential(Linear(1, 1), Linear(1, 1, dtype="float64")), ValueError, "one dtype"),
        (lambda: Sequential(RNN(1, 1), RNN(1, 1, batch_first=True)), ValueError, "agree in batch_first"),
        (lambda: Sequential(*[Linear(1, 1)] * 2), ValueError, r"modules\[1\] must not be modules\[0\] again"),
        (lambda: Sequential(*[RNN(1, 1, 600) for _ in "ab"]), ValueError, "at most 1024 .* layers, got 1200"),
        (lambda: model()(np.zeros((2, 3))), TypeError, "x must be integers"),
        (lambda: model()(tokens(2, 3, 4)), ValueError, r"x must be \[T, B\] or \[T\], got shape"),
        (lambda: model(batch_first=True)(3), ValueError, r"x must be \[B, T\] or \[T\]"),
        (lambda: model()([[11]]), ValueError, "x must be in 0..10"),
        (lambda: model().record([[1, 2], [3, -1]]), ValueError, "x must be in 0..10, got -1 at 1, 1"),
        (lambda: reader()(np.zeros((2, 3, 2))), ValueError, "x must be"),
        (lambda: reader()(np.zeros(3)), ValueError, r"x must be \[T, B, 3\] or \[T, 3\]"),
        (lambda: model()([1], lengths=[1]), ValueError, "lengths must be None for an unbatched"),
        (lambda: model()([[1]], lengths=[2]), ValueError, "lengths must be in 0..1"),
        (lambda: model()([[1]], lengths=[1, 1]), ValueError, "lengths must have shape"),
        (lambda: Sequential(Linear(1, 1))(np.zeros((2, 2, 2, 1)), lengths=[1]), ValueError, "x must be"),
        (lambda: model()([[1]], 5), TypeError, "state must be None or a tuple of 2"),
        (lambda: model().record([[1]], dropout_seed=1.5), TypeError, "dropout_seed must be"),
        (lambda: Sequential(Linear(1, 1)).record([[1]], checkpoint=0), ValueError, "checkpoint must be"),
        (lambda: model().record([[1]]).backward(0), ValueError, "d_output must have shape"),
        (lambda: model().record([[1]]).backward(np.zeros((1, 1, 11)), 5), TypeError, "d_state must be"),
        (lambda: Linear(1, 1).p, AttributeError, "p"),
        (lambda: setattr(Linear(1, 1), "in_features", 2), AttributeError, "in_features .* is read-only"),
        (lambda: Linear(1, 1).save("/nowhere/at/all"), OSError, "nowhere"),
    ],
)  # fmt: skip
def test_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_layers_refusal_says_which_one():
    with pytest.raises(ValueError, match="state must have shape") as caught:
        model()([[1]], (None, np.zeros((1, 2, 4))))
    assert caught.value.__notes__ == ["in modules[4] of a Sequential, GRU(33, 4)"]
