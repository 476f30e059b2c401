"""fastlstm.from_torch and to_torch: the same numbers, and refusals that name the part."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402
from torch_cases import cell, flat, stack  # noqa: E402

import fastlstm  # noqa: E402
import fastlstm.torch as accelerated  # noqa: E402
from fastlstm import from_torch  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def assert_near(found: Any, wanted: Any, scale: float = 4) -> None:
    """float64: 1e-10; float32: 2e-6, both times max(1, largest magnitude) times scale."""
    found, wanted = np.asarray(found), np.asarray(wanted.detach())
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    bound = 1e-10 if wanted.dtype == np.float64 else 2e-6
    assert np.abs(found - wanted).max() <= bound * scale * max(1, np.abs(wanted).max())


# --- recurrent modules --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_stacks(seed: int) -> None:
    case = stack(seed)
    layer = from_torch(case.theirs)
    assert type(layer).__name__ == type(case.theirs).__name__
    if isinstance(case.input, torch.Tensor):
        state = None if case.state is None else tuple(map(np.asarray, flat(case.state)))
        given = state[0] if state is not None and len(state) == 1 else state
        output, end = layer(case.input.numpy(), given)
        wanted = flat(case.theirs(case.input, case.state))
        for a, b in zip([output, *(end if isinstance(end, tuple) else [end])], wanted, strict=True):
            assert_near(a, b)
    back = layer.to_torch()
    assert type(back) is type(case.theirs) and repr(back) == repr(case.theirs)
    for name, value in case.theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)
    ours = from_torch(case.ours)  # fastlstm's own modules, too
    assert repr(ours) == repr(layer)


@pytest.mark.parametrize("seed", range(30))
def test_cells(seed: int) -> None:
    case = cell(seed)
    layer = from_torch(case.theirs)
    x = case.input if case.input.dim() == 2 else case.input[None]
    states = [s if s.dim() == 2 else s[None] for s in flat(case.state)]
    wanted = flat(case.theirs(case.input, case.state))
    given = None if not states else tuple(s[None].numpy() for s in states)
    _, end = layer(x[None].numpy(), given if given is None or len(given) == 2 else given[0])
    for a, b in zip(end if isinstance(end, tuple) else [end], wanted, strict=True):
        assert_near(a[0].reshape(b.shape), b)


def test_the_result_is_free_of_torch() -> None:
    module = nn.LSTM(3, 4)
    layer = from_torch(module)
    before = layer.state_dict()
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    assert all(np.array_equal(before[n], v) for n, v in layer.state_dict().items())
    assert isinstance(layer, fastlstm.LSTM) and layer.stream() is not None


def test_narrow_types_are_widened() -> None:
    module = nn.GRU(3, 4, dtype=torch.bfloat16)
    layer = from_torch(module)
    assert layer.dtype == np.float32
    assert np.array_equal(layer.state_dict()["weight_hh_l0"], module.weight_hh_l0.detach().float().numpy())


# --- models -------------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """The shape of many a tutorial."""

    def __init__(self, take: Any, bidirectional: bool = False, cell: Any = nn.LSTM) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5, padding_idx=0)
        self.drop = nn.Dropout(0.4)
        self.rnn = cell(5, 7, 2, batch_first=True, bidirectional=bidirectional)
        self.norm = nn.LayerNorm(14 if bidirectional else 7)
        self.fc = nn.Linear(14 if bidirectional else 7, 3)
        self.take = take

    def forward(self, tokens: Any) -> Any:
        y, state = self.rnn(self.drop(self.embedding(tokens)))
        return F.log_softmax(self.fc(F.relu(self.norm(self.take(y, state)))), dim=-1)


TAKES: dict[str, tuple[bool, Any, Any]] = {
    "h[-1]": (False, nn.LSTM, lambda y, s: s[0][-1]),
    "h[-1, :, :]": (False, nn.LSTM, lambda y, s: s[0][-1, :, :]),
    "h[1]": (False, nn.GRU, lambda y, s: s[1]),
    "y[:, -1]": (False, nn.GRU, lambda y, s: y[:, -1]),
    "y[:, -1, :]": (False, nn.RNN, lambda y, s: y[:, -1, :]),
    "both": (True, nn.LSTM, lambda y, s: torch.cat((s[0][-2], s[0][-1]), dim=1)),
    "both, by numbers": (True, nn.GRU, lambda y, s: torch.cat([s[2], s[3]], -1)),
    "all": (True, nn.RNN, lambda y, s: y.contiguous()),
}


@pytest.mark.parametrize("what", TAKES)
def test_classifiers(what: str) -> None:
    torch.manual_seed(1)
    bidirectional, kind, take = TAKES[what]
    model = Classifier(take, bidirectional, kind).eval()
    tokens = torch.randint(0, 11, (4, 6))
    converted = from_torch(model)
    output, _ = converted(tokens.numpy())
    assert_near(output, model(tokens))
    assert sum(isinstance(part, fastlstm.LastStep) for part in converted) == (what != "all")
    back = converted.to_torch().eval()
    assert_near(output, back(tokens)[0])
    again = from_torch(back)
    assert repr(again) == repr(converted)
    assert np.array_equal(again(tokens.numpy())[0], output)


class Packing(nn.Module):
    def __init__(self, last: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.gru = nn.GRU(5, 7, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(14, 3)
        self.last = last

    def forward(self, tokens: Any, lengths: Any) -> Any:
        embedded = self.embedding(tokens)
        pack = pack_padded_sequence if self.last else nn.utils.rnn.pack_padded_sequence
        y, h = self.gru(pack(embedded, lengths, batch_first=True, enforce_sorted=False))
        if self.last:
            return self.fc(torch.cat((h[-2], h[-1]), dim=1))
        padded, _ = pad_packed_sequence(y, batch_first=True)
        return torch.sigmoid(self.fc(padded))


@pytest.mark.parametrize("last", [False, True])
def test_packed_sequences_become_lengths(last: bool) -> None:
    torch.manual_seed(2)
    model = Packing(last).eval()
    tokens, lengths = torch.randint(0, 11, (4, 6)), torch.tensor([3, 6, 1, 2])
    converted = from_torch(model)
    output, _ = converted(tokens.numpy(), lengths=lengths.numpy())
    wanted = model(tokens, lengths)
    if last:
        assert_near(output, wanted)
    else:
        for b, n in enumerate(lengths):
            assert_near(output[b, :n], wanted[b, :n])
            assert not output[b, n:].any()
    back = converted.to_torch()
    found, states = back(tokens, lengths=lengths)
    assert_near(output, found)
    assert len(states) == 1


class ZeroState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 7, 2, batch_first=True)
        self.fc = nn.Linear(7, 3)

    def forward(self, x: Any) -> Any:
        h = torch.zeros(2, x.size(0), 7)
        c = torch.zeros(2, x.shape[0], 7).to(x.device)
        y, _ = self.lstm(x, (h, c))
        return self.fc(y[:, -1, :])


class Streaming(nn.Module):
    """Hands the state on: as it is, or taken apart and put together."""

    def __init__(self, kind: Any, apart: bool) -> None:
        super().__init__()
        self.rnn = kind(5, 7)
        self.fc = nn.Linear(7, 3)
        self.apart = apart

    def forward(self, x: Any, state: Any = None) -> Any:
        y, state = self.rnn(x, state)
        return self.fc(y), (state[0], state[1]) if self.apart else state


def test_states_in_and_out() -> None:
    x = torch.randn(4, 6, 5)
    model: Any = ZeroState()
    assert_near(from_torch(model)(x.numpy())[0], model(x))
    h, c = torch.randn(1, 6, 7), torch.randn(1, 6, 7)
    for kind, apart in ((nn.GRU, False), (nn.LSTM, False), (nn.LSTM, True)):
        model = Streaming(kind, apart)
        given = h if kind is nn.GRU else (h, c)
        y, end = model(x, given)
        found, (state,) = from_torch(model)(
            x.numpy(), (h.numpy() if kind is nn.GRU else (h.numpy(), c.numpy()),)
        )
        assert_near(found, y)
        for a, b in zip([state] if kind is nn.GRU else state, flat(end), strict=True):
            assert_near(a, b)


ACTIVATIONS = [
    nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.Softmax(-1), nn.LogSoftmax(-1), nn.LeakyReLU(0.3), nn.ELU(0.7),
    nn.Softplus(), nn.Softsign(), nn.Hardsigmoid(),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_activations(activation: Any) -> None:
    x = torch.cat([torch.randn(50, 7) * 5, torch.tensor([[0.0, -0.0, 0.25, 25.0, -25.0, 3.0, -3.0]])])
    for dtype in (torch.float32, torch.float64):
        converted = from_torch(activation)
        assert_near(converted(x.to(dtype).numpy()), activation(x.to(dtype)))
    assert repr(from_torch(converted.to_torch())) == repr(converted)
    model = nn.Sequential(nn.Linear(7, 7), activation)
    assert_near(from_torch(model)(x.numpy())[0], model(x))


FUNCTIONS: list[Any] = [
    lambda x: torch.relu(x),
    lambda x: x.relu(),
    lambda x: F.relu(x),
    lambda x: torch.tanh(x),
    lambda x: x.tanh(),
    lambda x: torch.sigmoid(x),
    lambda x: x.sigmoid(),
    lambda x: torch.softmax(x, -1),
    lambda x: x.softmax(dim=-1),
    lambda x: F.log_softmax(x, dim=-1),
    lambda x: F.leaky_relu(x, 0.3),
    lambda x: F.leaky_relu(x),
    lambda x: F.elu(x, alpha=0.7),
    lambda x: F.softplus(x),
    lambda x: F.softsign(x),
    lambda x: F.hardsigmoid(x),
    lambda x: F.dropout(x, 0.5, training=False),
]


@pytest.mark.parametrize("k", range(len(FUNCTIONS)))
def test_functions(k: int) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(7, 7)

        def forward(self, x: Any) -> Any:
            return FUNCTIONS[k](self.fc(x))

    model, x = Model(), torch.randn(9, 7) * 3
    assert_near(from_torch(model)(x.numpy())[0], model(x))


def by_names(s: Any, x: Any, h: Any) -> Any:
    """Every argument by its name."""
    packed = pack_padded_sequence(input=x, lengths=h.cpu(), batch_first=True, enforce_sorted=False)
    y, _ = s.a(input=packed, hx=None)
    y, _ = pad_packed_sequence(sequence=y, batch_first=True, total_length=x.size(1))
    y = F.dropout(input=F.relu(input=y), training=False)
    packed = pack_padded_sequence(y, h.to(x.device), True, False)  # again
    _, h_n = s.b(packed)
    y = torch.cat(tensors=(h_n[-2], h_n[-1]), dim=-1)
    return F.log_softmax(input=s.fc(input=F.elu(input=y, alpha=0.5)), dim=-1)


def test_arguments_by_name() -> None:
    parts = {
        "a": nn.GRU(5, 6, batch_first=True, bidirectional=True),
        "b": nn.GRU(12, 7, batch_first=True, bidirectional=True),
        "fc": nn.Linear(14, 3),
    }
    model, x, lengths = traced(by_names, **parts), torch.randn(4, 6, 5), torch.tensor([3, 6, 1, 2])
    assert_near(from_torch(model)(x.numpy(), lengths=lengths.numpy())[0], model(x, lengths))


HEADS: dict[str, Any] = {
    "F.softmax of axis 1": lambda s, y, h: F.softmax(s.fc(h[-1]), dim=1),
    "F.log_softmax of axis 1": lambda s, y, h: F.log_softmax(s.fc(h[-1]), 1),
    "torch.softmax of axis 1": lambda s, y, h: torch.softmax(s.fc(y[:, -1]), dim=1),
    "Tensor.softmax of axis 1": lambda s, y, h: s.fc(h[-1]).softmax(1),
    "Softmax of axis 1": lambda s, y, h: s.softmax(s.fc(h[-1])),
    "LogSoftmax of axis 1": lambda s, y, h: s.log_softmax(s.fc(h[-1])),
    "softmax in its own type": lambda s, y, h: F.softmax(s.fc(y), dim=-1, dtype=torch.float32),
    "last step after a Dropout": lambda s, y, h: s.fc(s.drop(y)[:, -1]),
    "last step after two": lambda s, y, h: s.fc(F.dropout(s.drop(y), 0.5, False)[:, -1, :]),
    "tokens made integer": lambda s, y, h: s.fc(h[-1]),
    "squeezed by name": lambda s, y, h: s.fc(h.squeeze(dim=0)),
}


@pytest.mark.parametrize("what", HEADS)
def test_heads(what: str) -> None:
    model = traced(
        lambda s, x, h: (lambda r: HEADS[what](s, r[0], r[1]))(
            s.rnn(s.embedding(x.long() if "integer" in what else x))
        ),
        embedding=nn.Embedding(11, 5),
        rnn=nn.GRU(5, 7, batch_first=True),
        fc=nn.Linear(7, 3),
        drop=nn.Dropout(0.3),
        softmax=nn.Softmax(1),
        log_softmax=nn.LogSoftmax(1),
    ).eval()
    tokens = torch.randint(0, 11, (4, 6))
    assert_near(from_torch(model)(tokens.numpy())[0], model(tokens))


def test_modes_come_back_and_do_not_matter() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(7, 7)
            self.rnn = nn.GRU(7, 7)

        def forward(self, x: Any) -> Any:
            return self.rnn(F.dropout(self.fc(x), 0.5, self.training))[1][-1]

    model, x = Model(), torch.randn(4, 3, 7)
    model.rnn.eval()
    converted = from_torch(model)
    assert model.training and model.fc.training and not model.rnn.training
    assert_near(converted(x.numpy())[0], model.eval()(x))
    assert [type(part).__name__ for part in converted] == ["Linear", "Dropout", "GRU", "LastStep"]


def test_plain_sequential_hands_recurrent_output_on() -> None:
    model = nn.Sequential(
        nn.Linear(3, 5),
        nn.Sequential(nn.GRU(5, 7, batch_first=True), nn.Identity(), nn.Dropout()),
        nn.Linear(7, 2),
    )
    x = torch.randn(4, 6, 3)
    converted = from_torch(model)
    wanted = model[2](model[1][0](model[0](x))[0])
    assert_near(converted(x.numpy())[0], wanted)


def test_other_leaves() -> None:
    x, tokens = torch.randn(4, 7), torch.tensor([[1, 2], [0, 4]])
    for module in (
        nn.Linear(7, 3, bias=False),
        nn.LayerNorm(7, 1e-3),
        nn.LayerNorm(7, elementwise_affine=False),
    ):
        converted = from_torch(module)
        assert_near(converted(x.numpy()), module(x))
        assert repr(converted.to_torch()) == repr(module)
    with torch.no_grad():
        norm = nn.LayerNorm(7, bias=False)
        norm.weight.normal_()
    assert_near(from_torch(norm)(x.numpy()), norm(x))
    embedding = nn.Embedding(6, 3, padding_idx=2, dtype=torch.float64)
    assert_near(from_torch(embedding)(tokens.numpy()), embedding(tokens))
    assert from_torch(embedding).padding_idx == 2
    assert from_torch(nn.Dropout(0.3)).p == 0.3


# --- what is refused ----------------------------------------------------------------------------------------


def traced(forward: Any, **parts: Any) -> Any:
    """A model with these parts and this forward."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

        def forward(self, x: Any, h: Any = None) -> Any:
            return forward(self, x, h)

    return Odd()


def shared() -> Any:
    embedding, linear = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    linear.weight = embedding.weight
    return nn.Sequential(embedding, linear)


def hooked() -> Any:
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    return model


def patched() -> Any:
    linear = nn.Linear(3, 3)
    linear.forward = lambda x: x  # type: ignore[method-assign]
    return nn.Sequential(linear)


def twice() -> Any:
    linear = nn.Linear(3, 3)
    return nn.Sequential(linear, linear)


class MyLSTM(nn.LSTM):
    pass


REFUSED: dict[str, tuple[Any, str]] = {
    "unknown leaf": (lambda: nn.Sequential(nn.Linear(3, 3), nn.GELU()), "1 is a GELU"),
    "in a nested one": (lambda: nn.Sequential(nn.Sequential(nn.Conv1d(1, 1, 1))), r"0\.0 is a Conv1d"),
    "subclass": (lambda: MyLSTM(3, 4), "MyLSTM"),
    "max_norm": (lambda: nn.Embedding(3, 4, max_norm=1.0), "max_norm=1.0"),
    "softmax of another axis": (lambda: nn.Sequential(nn.Softmax(1)), "0: dim=1"),
    "softplus beta": (lambda: nn.Softplus(2.0), "beta=2.0"),
    "threshold, which is 0 at its threshold": (lambda: nn.Threshold(0.1, 0.0), "Threshold"),
    "layer norm of two axes": (lambda: nn.LayerNorm((3, 4)), r"normalized_shape=\(3, 4\)"),
    "shared": (shared, "1: .*shared"),
    "hooks": (hooked, "0 has forward hooks"),
    "patched": (patched, "0: its forward was replaced"),
    "twice": (twice, "twice|shared"),
    "meta": (lambda: nn.LSTM(3, 4, device="meta"), "weight_ih_l0 is on the device meta"),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0"),
        "ParametrizedLSTM|Parametrized",
    ),
    "nothing": (lambda: nn.Identity(), "nothing is left"),
    "residual": (lambda: traced(lambda s, x, h: s.fc(x) + x, fc=nn.Linear(3, 3)), "add"),
    "branch": (
        lambda: traced(lambda s, x, h: (s.a(x), s.b(x))[1], a=nn.Linear(3, 3), b=nn.Linear(3, 3)),
        r"b \(Linear\) reads an earlier output",
    ),
    "a part without use": (
        lambda: traced(
            lambda s, x, h: (s.b(s.a(x)), s.a(x))[0] if False else s.skip(x),
            a=nn.Linear(3, 3),
            b=nn.Linear(3, 3),
            skip=nn.GELU(),
        ),
        "skip is a GELU",
    ),
    "first step": (
        lambda: traced(lambda s, x, h: s.rnn(x)[0][0], rnn=nn.GRU(3, 3)),
        "indexes the output with 0",
    ),
    "last step of the wrong axis": (
        lambda: traced(
            lambda s, x, h: s.fc(s.rnn(x)[0][-1]), rnn=nn.GRU(3, 3, batch_first=True), fc=nn.Linear(3, 3)
        ),
        "indexes the output with -1",
    ),
    "last step of two directions": (
        lambda: traced(
            lambda s, x, h: s.rnn(x)[0][:, -1], rnn=nn.GRU(3, 3, batch_first=True, bidirectional=True)
        ),
        "indexes the output",
    ),
    "h of one direction of two": (
        lambda: traced(
            lambda s, x, h: s.fc(s.rnn(x)[1][-1]), rnn=nn.GRU(3, 3, bidirectional=True), fc=nn.Linear(3, 3)
        ),
        r"fc \(Linear\) reads row",
    ),
    "h of the first layer": (
        lambda: traced(lambda s, x, h: s.fc(s.rnn(x)[1][0]), rnn=nn.GRU(3, 3, 2), fc=nn.Linear(3, 3)),
        r"fc \(Linear\) reads row",
    ),
    "directions swapped": (
        lambda: traced(
            lambda s, x, h: (lambda e: s.fc(torch.cat((e[-1], e[-2]), 1)))(s.rnn(x)[1]),
            rnn=nn.GRU(3, 3, bidirectional=True),
            fc=nn.Linear(6, 3),
        ),
        "calls cat of something else",
    ),
    "directions of the first layer": (
        lambda: traced(
            lambda s, x, h: (lambda e: s.fc(torch.cat((e[0], e[1]), 1)))(s.rnn(x)[1]),
            rnn=nn.GRU(3, 3, 2, bidirectional=True),
            fc=nn.Linear(6, 3),
        ),
        "calls cat of something else",
    ),
    "cell state": (
        lambda: traced(lambda s, x, h: s.fc(s.rnn(x)[1][1][-1]), rnn=nn.LSTM(3, 3), fc=nn.Linear(3, 3)),
        "indexes c",
    ),
    "a state of ones": (
        lambda: traced(lambda s, x, h: s.rnn(x, torch.ones(1, x.size(1), 3))[0], rnn=nn.GRU(3, 3)),
        r"ones|rnn \(GRU\) starts from a computed state",
    ),
    "states swapped": (
        lambda: traced(lambda s, x, h: s.rnn(x, (h[1], h[0]))[0], rnn=nn.LSTM(3, 3)),
        "indexes argument|computed state",
    ),
    "state doubled": (
        lambda: traced(lambda s, x, h: s.rnn(x, h * 2)[0], rnn=nn.GRU(3, 3)),
        "mul|computed state",
    ),
    "whole result": (
        lambda: traced(lambda s, x, h: s.fc(s.rnn(x)), rnn=nn.GRU(3, 3), fc=nn.Linear(3, 3)),
        "whole result",
    ),
    "transposed": (lambda: traced(lambda s, x, h: s.fc(x.transpose(0, 1)), fc=nn.Linear(3, 3)), "transpose"),
    "own parameter": (
        lambda: traced(lambda s, x, h: s.fc(x) * s.w, fc=nn.Linear(3, 3), w=nn.Parameter(torch.ones(3))),
        "attribute w",
    ),
    "control flow": (
        lambda: traced(lambda s, x, h: s.fc(x) if x.sum() > 0 else x, fc=nn.Linear(3, 3)),
        "cannot be followed by torch.fx",
    ),
    "dropout in eval mode": (
        lambda: traced(lambda s, x, h: F.dropout(s.fc(x), 0.5), fc=nn.Linear(3, 3)),
        "drops out in eval mode",
    ),
    "another float type": (
        lambda: traced(lambda s, x, h: s.fc(x.float()), fc=nn.Linear(3, 3)),
        "calls Tensor.float",
    ),
    "packed the other way round": (
        lambda: traced(
            lambda s, x, h: s.rnn(pack_padded_sequence(x, h, batch_first=True))[1][-1], rnn=nn.GRU(3, 3)
        ),
        r"rnn \(GRU\) was made with batch_first=False",
    ),
    "unpacked the other way round": (
        lambda: traced(
            lambda s, x, h: pad_packed_sequence(s.rnn(pack_padded_sequence(x, h))[0], batch_first=True)[0],
            rnn=nn.GRU(3, 3),
        ),
        "unpacks with another batch_first",
    ),
    "padded with ones": (
        lambda: traced(
            lambda s, x, h: pad_packed_sequence(s.rnn(pack_padded_sequence(x, h))[0], padding_value=1.0)[0],
            rnn=nn.GRU(3, 3),
        ),
        "pads with something else than 0",
    ),
    "last step of a padded output": (
        lambda: traced(
            lambda s, x, h: pad_packed_sequence(s.rnn(pack_padded_sequence(x, h, True))[0], True)[0][:, -1],
            rnn=nn.GRU(3, 3, batch_first=True),
        ),
        r"indexes a padded output with .*: take h_n\[-1\]",
    ),
    "last step of a padded output after dropout": (
        lambda: traced(
            lambda s, x, h: s.drop(pad_packed_sequence(s.rnn(pack_padded_sequence(x, h))[0])[0])[-1],
            rnn=nn.GRU(3, 3),
            drop=nn.Dropout(),
        ),
        r"indexes a padded output with -1,.*: take h_n\[-1\]",
    ),
    "a recurrent module over padding": (
        lambda: traced(
            lambda s, x, h: s.b(pad_packed_sequence(s.a(pack_padded_sequence(x, h))[0])[0])[1][-1],
            a=nn.GRU(3, 3),
            b=nn.GRU(3, 3),
        ),
        r"b \(GRU\) reads the padding of short sequences,.*: pack it again",
    ),
    "packed after two directions": (
        lambda: traced(
            lambda s, x, h: s.b(pack_padded_sequence(s.a(x)[0], h))[1][-1],
            a=nn.GRU(3, 3, bidirectional=True),
            b=nn.GRU(6, 3),
        ),
        "packs what two directions have read with its padding,.*: pack before",
    ),
    "softmax of another axis of three": (
        lambda: traced(lambda s, x, h: F.softmax(s.rnn(x)[0], dim=1), rnn=nn.GRU(3, 3)),
        "softmax dim=1: .*, dim=-1",
    ),
    "Softmax of another axis of three": (
        lambda: traced(lambda s, x, h: s.end(s.rnn(x)[0]), rnn=nn.GRU(3, 3), end=nn.Softmax(1)),
        "end: dim=1: .*, dim=-1",
    ),
    "softmax of the batch": (
        lambda: traced(lambda s, x, h: F.softmax(s.rnn(x)[1][-1], dim=0), rnn=nn.GRU(3, 3)),
        "softmax dim=0: .*, dim=-1",
    ),
    "softmax in another type": (
        lambda: traced(lambda s, x, h: F.softmax(s.fc(x), -1, dtype=torch.float64), fc=nn.Linear(3, 3)),
        "softmax changes to dtype=torch.float64",
    ),
    "method softmax in another type": (
        lambda: traced(lambda s, x, h: s.fc(x).softmax(-1, torch.float64), fc=nn.Linear(3, 3)),
        "softmax changes to dtype=torch.float64",
    ),
    "softplus of its own": (
        lambda: traced(lambda s, x, h: F.softplus(input=s.fc(x), beta=2), fc=nn.Linear(3, 3)),
        "softplus softplus with beta=2",
    ),
    "an argument without a meaning here": (
        lambda: traced(lambda s, x, h: torch.tanh(s.fc(x), out=h), fc=nn.Linear(3, 3)),
        "tanh is called with out=h",
    ),
    "an argument that is computed": (
        lambda: traced(lambda s, x, h: F.elu(s.fc(x), alpha=h), fc=nn.Linear(3, 3)),
        "elu is called in an unusual way",
    ),
    "dropout as the argument says": (
        lambda: traced(lambda s, x, h: F.dropout(s.fc(x), training=h), fc=nn.Linear(3, 3)),
        "drops out in eval mode",
    ),
    "lengths that never change": (
        lambda: traced(lambda s, x, h: s.rnn(pack_padded_sequence(x, [4, 4, 4]))[1][-1], rnn=nn.GRU(3, 3)),
        "packs by lengths that are no argument of the model",
    ),
    "padded to a length that never changes": (
        lambda: traced(
            lambda s, x, h: pad_packed_sequence(s.rnn(pack_padded_sequence(x, h))[0], total_length=9)[0],
            rnn=nn.GRU(3, 3),
        ),
        "pads to total_length=9",
    ),
    "squeezed": (
        lambda: traced(
            lambda s, x, h: s.fc(s.rnn(x)[1][-1]).squeeze(-1), rnn=nn.GRU(3, 3), fc=nn.Linear(3, 1)
        ),
        "squeeze calls Tensor.squeeze,.*: leave the squeeze to the caller",
    ),
    "flattened": (
        lambda: traced(lambda s, x, h: torch.flatten(s.fc(x)), fc=nn.Linear(3, 1)),
        "flatten calls flatten,.*: leave the flatten to the caller",
    ),
    "integers for a Linear": (
        lambda: traced(lambda s, x, h: s.fc(x.int()), fc=nn.Linear(3, 1)),
        "only what an Embedding reads may be made integer",
    ),
    "integers for nothing": (
        lambda: traced(lambda s, x, h: x.long()),
        "only what an Embedding reads may be made integer",
    ),
    "only h_n": (lambda: traced(lambda s, x, h: s.rnn(x)[1], rnn=nn.GRU(3, 3)), "does not return the end"),
    "the last step beside the output": (
        lambda: traced(lambda s, x, h: (lambda r: (r[0], r[1][-1]))(s.rnn(x)), rnn=nn.GRU(3, 3)),
        "does not return the end",
    ),
    "cell in a loop": (
        lambda: traced(lambda s, x, h: s.cell(x[0]), cell=nn.GRUCell(3, 3)),
        "getitem|index|cell",
    ),
    "final states swapped": (
        lambda: traced(
            lambda s, x, h: (lambda r: (s.fc(r[0]), (r[1][1], r[1][0])))(s.rnn(x)),
            rnn=nn.LSTM(3, 3),
            fc=nn.Linear(3, 3),
        ),
        "does not return the end",
    ),
    "output of the middle": (
        lambda: traced(
            lambda s, x, h: (lambda y: (s.b(y), y)[1])(s.a(x)), a=nn.Linear(3, 3), b=nn.Linear(3, 3)
        ),
        "does not return the end",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_name(what: str) -> None:
    make, match = REFUSED[what]
    with pytest.raises(ValueError, match=match):
        from_torch(make())


def test_wrong_arguments() -> None:
    with pytest.raises(
        TypeError, match="module must be a torch.nn.Module or the path of a .pt file, got int"
    ):
        from_torch(3)
    with pytest.raises(TypeError, match="nonlinearity"):
        from_torch(nn.RNN(3, 4), nonlinearity="tanh")


TO_REFUSED: dict[str, tuple[Any, str]] = {
    "peepholes": (lambda: fastlstm.LSTM(3, 4, peepholes=True), "no peepholes=True"),
    "no forget gate": (lambda: fastlstm.LSTM(3, 4, forget_gate=False), "no forget_gate=False"),
    "coupled": (lambda: fastlstm.LSTM(3, 4, coupled_gates=True), "no coupled_gates=True"),
    "reverse": (lambda: fastlstm.GRU(3, 4, reverse=True), "no reverse=True"),
    "reset before": (lambda: fastlstm.GRU(3, 4, reset_after=False), "no reset_after=False"),
    "clip": (lambda: fastlstm.RNN(3, 4, clip=1.0), "no clip=1.0"),
    "activations": (lambda: fastlstm.GRU(3, 4, activations=("sigmoid", "relu")), "no activations"),
    "one activation": (lambda: fastlstm.RNN(3, 4, activations="elu"), "no activations"),
    "gated": (lambda: fastlstm.GatedRNN(3, 4), "no gated RNN"),
    "int8": (lambda: fastlstm.LSTM(3, 4).quantize("int8"), "no weight_dtype='int8'"),
    "threshold": (lambda: fastlstm.Activation(("thresholded_relu", 0.5)), "no such activation"),
    "affine": (lambda: fastlstm.Activation(("affine", 2.0, 1.0)), "no such activation"),
    "last step": (lambda: fastlstm.LastStep(), "no such module"),
    "in a model": (
        lambda: fastlstm.Sequential(fastlstm.Linear(3, 3), fastlstm.GRU(3, 4, clip=1.0)),
        "module 1: .*clip",
    ),
}


@pytest.mark.parametrize("what", TO_REFUSED)
def test_to_torch_refuses_by_name(what: str) -> None:
    make, match = TO_REFUSED[what]
    with pytest.raises(ValueError, match=match):
        make().to_torch()


def test_to_torch_takes_fastlstm_objects_only() -> None:
    with pytest.raises(TypeError, match="got LSTM"):
        accelerated.to_torch(nn.LSTM(3, 4))
    assert accelerated.to_torch(fastlstm.RNN(3, 4, activations="relu")).nonlinearity == "relu"
    assert isinstance(
        accelerated.to_torch(fastlstm.LSTM(3, 4, activations=("sigmoid", "tanh", "tanh"))), nn.LSTM
    )


def test_to_torch_copies() -> None:
    layer = fastlstm.LSTM(3, 4, dtype="float64", seed=1)
    module = layer.to_torch()
    assert module.weight_ih_l0.dtype == torch.float64
    with torch.no_grad():
        module.weight_ih_l0.zero_()
    assert layer.state_dict()["weight_ih_l0"].any()


def test_a_model_trains_after_to_torch() -> None:
    model = fastlstm.Sequential(
        fastlstm.Embedding(11, 5), fastlstm.LSTM(5, 7), fastlstm.LastStep(), fastlstm.Linear(7, 3)
    )
    module = model.to_torch()
    assert accelerated.accelerate(module).swapped == ["1"]
    output, _ = module(torch.randint(0, 11, (6, 4)))
    output.sum().backward()
    assert all(p.grad is not None for p in module.parameters())


# --- files --------------------------------------------------------------------------------------------------


def test_state_dicts_in_files(tmp_path: Any) -> None:
    x = torch.randn(4, 2, 3)
    for prefix in ("", "encoder.", "model.rnn."):
        for module, options in (
            (nn.LSTM(3, 5, 2, bidirectional=True, proj_size=2), {}),
            (nn.RNN(3, 5, nonlinearity="relu"), {"nonlinearity": "relu"}),
            (nn.GRU(3, 5, bias=False, dtype=torch.float64), {"reset_after": True}),
        ):
            path = tmp_path / "m.pt"
            torch.save({prefix + name: value for name, value in module.state_dict().items()}, path)
            layer = from_torch(path, **options)
            assert_near(
                layer(x.to(next(module.parameters()).dtype).numpy())[0],
                module(x.to(next(module.parameters()).dtype))[0],
            )
            for key in ("state_dict", "model_state_dict", "model_state", "model", "net"):
                torch.save({"epoch": 3, key: module.state_dict(), "optimizer": {}}, path)
                assert repr(from_torch(str(path), **options)) == repr(layer)


@pytest.mark.parametrize("prefix", ["", "decoder.cell."])
@pytest.mark.parametrize(
    ("kind", "options"), [("LSTM", {}), ("GRU", {"reset_after": True}), ("RNN", {"nonlinearity": "tanh"})]
)
def test_state_dicts_of_cells(tmp_path: Any, prefix: str, kind: str, options: dict[str, Any]) -> None:
    path = str(tmp_path / "m.pt")
    for bias in (True, False):
        module = getattr(nn, f"{kind}Cell")(3, 5, bias=bias)
        torch.save({prefix + name: value for name, value in module.state_dict().items()}, path)
        layer, wanted = from_torch(path, **options), from_torch(module)
        assert repr(layer) == repr(wanted)
        for name, value in wanted.state_dict().items():
            assert np.array_equal(layer.state_dict()[name], value)
        origins = accelerated.found(path, options).origins
        assert origins["weight_hh_l0"] == f"{prefix}weight_hh"


def test_a_file_that_leaves_something_open(tmp_path: Any) -> None:
    torch.save(nn.RNN(3, 5).state_dict(), tmp_path / "m.pt")
    with pytest.raises(ValueError, match="nonlinearity"):
        from_torch(tmp_path / "m.pt")


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def test_files_are_read_safely(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = {
        "pickled code": Evil(),
        "a whole module": nn.LSTM(3, 4),
        "a list": [1, 2],
        "nothing": {},
        "not tensors": {"weight_ih_l0": 3},
        "numbers for names": {1: torch.ones(3)},
        "integers": {"weight_ih_l0": torch.ones(4, 3, dtype=torch.int64), "weight_hh_l0": torch.ones(4, 1)},
        "another model": nn.Linear(3, 4).state_dict(),
        "two layers": {f"{p}.{n}": v for p in ("a", "b") for n, v in nn.LSTM(3, 4).state_dict().items()},
        "a missing bias": {n: v for n, v in nn.LSTM(3, 4).state_dict().items() if n != "bias_hh_l0"},
        "a wrong shape": nn.LSTM(3, 4).state_dict() | {"weight_hh_l0": torch.ones(16, 5)},
    }
    for what, value in values.items():
        torch.save(value, "m.pt")
        with pytest.raises(ValueError, match=r"m\.pt"):
            from_torch("m.pt")
        assert not os.path.exists("evil"), what
    torch.save({f"{p}.{n}": v for p in ("a", "b") for n, v in nn.LSTM(3, 4).state_dict().items()}, "m.pt")
    with pytest.raises(ValueError, match=r" 'a\.weight_ih_l0'| a\.weight_ih_l0"):
        from_torch("m.pt")  # names that have nothing in common
    for data in (b"", b"\x80\x02", b"PK\x03\x04garbage", b"\x00" * 100):
        with open("m.pt", "wb") as file:
            file.write(data)
        with pytest.raises(ValueError, match=r"m\.pt"):
            from_torch("m.pt")
    with pytest.raises(OSError):
        from_torch("missing.pt")


def test_found_and_written(tmp_path: Any) -> None:
    path = str(tmp_path / "m.pt")
    layer = fastlstm.GRU(3, 5, 2, bidirectional=True, batch_first=True, seed=1)
    whole = fastlstm.Sequential(layer, fastlstm.LastStep(), fastlstm.Linear(10, 2, seed=2))
    for model in (layer, whole):
        accelerated.written(model, path)
        found = accelerated.found(path, {})
        assert repr(found.model) == repr(model)
        assert all(np.array_equal(a, found.model.state_dict()[n]) for n, a in model.state_dict().items())
    torch.save({f"enc.{n}": torch.from_numpy(v) for n, v in layer.state_dict().items()}, path)
    found = accelerated.found(path, {"batch_first": True})
    assert repr(found.model) == repr(layer) and found.origins["weight_ih_l0"] == "enc.weight_ih_l0"
    with pytest.raises(ValueError, match="clip"):
        accelerated.written(fastlstm.GRU(3, 5, clip=1.0), path)
