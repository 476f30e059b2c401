"""fastlstm.torch's modules in graphs: torch.compile, torch.export, fake tensors, operators."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch._dynamo as dynamo  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402
from torch_cases import CELLS, assert_close, flat, twins  # noqa: E402

from fastlstm.torch import _modules, _ops  # noqa: E402

BACKENDS = ("eager", "aot_eager")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No fall-back to PyTorch's kernel, no graphs of other tests."""
    monkeypatch.setattr(
        _modules._Accelerated, "_own", lambda *args: pytest.fail("PyTorch's kernel was asked")
    )
    dynamo.reset()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        yield


class Tagger(torch.nn.Module):
    def __init__(self, recurrent: Any) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.linear = torch.nn.Linear(14, 3)

    def forward(self, x: Any, *state: Any) -> Any:
        y, end = self.recurrent(x, *state)
        return torch.tanh(self.linear(y)), end


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_compiled_around_as_pytorchs_own(name: str, backend: str) -> None:
    """By default Dynamo traces no LSTM, GRU or RNN: it calls them as they are."""
    theirs, ours = twins(name, 5, 7, bidirectional=True)
    plain, model = Tagger(theirs), Tagger(ours)
    model.load_state_dict(plain.state_dict())
    compiled = torch.compile(model, backend=backend)
    x = torch.randn(4, 3, 5)
    assert_close(flat(compiled(x)), flat(plain(x)))
    with torch.no_grad():
        assert_close(flat(compiled(x)), flat(plain(x)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name, hidden, options",
    [
        ("LSTM", 14, {}),
        ("LSTM", 16, {"num_layers": 2, "batch_first": True, "bidirectional": True, "proj_size": 7}),
        ("GRU", 14, {"num_layers": 2, "bias": False}),
        ("RNN", 7, {"nonlinearity": "relu", "bidirectional": True}),
    ],
)
@dynamo.config.patch(allow_rnn=True)
def test_compiled_whole(name: str, hidden: int, options: dict[str, Any], backend: str) -> None:
    """One graph, the network one operator of it: output, states and every gradient, two shapes."""
    theirs, ours = twins(name, 5, hidden, **options)
    plain, model = Tagger(theirs), Tagger(ours)
    model.load_state_dict(plain.state_dict())
    graphs = []

    def seen(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compile(model, backend=seen, fullgraph=True)(torch.randn(4, 3, 5))
    assert (
        sum("recurrent" in str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function")
        == 1
    )
    dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for shape in ((4, 3, 5), (6, 2, 5), (3, 8, 5)):
        results = []
        for call, module in ((plain, plain), (compiled, model)):
            torch.manual_seed(1)
            x = torch.randn(shape, requires_grad=True)
            batch = shape[0 if options.get("batch_first") else 1]
            rows = theirs.num_layers * (2 if theirs.bidirectional else 1)
            widths = [theirs.proj_size or theirs.hidden_size, theirs.hidden_size]
            state = [
                torch.randn(rows, batch, n, requires_grad=True) for n in widths[: 2 if name == "LSTM" else 1]
            ]
            outputs = flat(call(x, tuple(state) if name == "LSTM" else state[0]))
            loss = sum((y * torch.arange(y.numel()).reshape(y.shape).sin()).sum() for y in outputs)
            results.append([*outputs, *torch.autograd.grad(loss, [x, *state, *module.parameters()])])
        assert_close(results[1], results[0], 20)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CELLS)
def test_compiled_cells(name: str, backend: str) -> None:
    theirs, ours = twins(name, 5, 7)

    def loop(module: Any, x: Any) -> Any:
        state = None
        for step in x:
            state = module(step, state)
        return state

    compiled = torch.compile(lambda x: loop(ours, x), backend=backend, fullgraph=True)
    x = torch.randn(3, 2, 5)
    found, wanted = compiled(x), loop(theirs, x)
    assert_close(flat(found), flat(wanted))
    grads = [
        torch.autograd.grad(flat(r)[0].square().sum(), list(m.parameters()))
        for r, m in ((found, ours), (wanted, theirs))
    ]
    assert_close(list(grads[0]), list(grads[1]), 10)


@dynamo.config.patch(allow_rnn=True)
def test_compiled_sees_changed_weights() -> None:
    theirs, ours = twins("LSTM", 5, 7)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 3, 5)
    for _ in range(3):
        assert_close(flat(compiled(x)), flat(theirs(x)), 4)
        for module in (theirs, ours):
            module.zero_grad()
            (compiled if module is ours else theirs)(x)[0].square().sum().backward()
            torch.optim.SGD(module.parameters(), lr=0.5).step()
    with torch.no_grad():
        for module in (theirs, ours):
            module.weight_hh_l0.data[3, 2] += 1.0  # which PyTorch does not count
        assert_close(flat(compiled(x)), flat(theirs(x)), 4)


@dynamo.config.patch(allow_rnn=True)
def test_compiled_dropout() -> None:
    _, ours = twins("GRU", 5, 7, 2, dropout=0.5)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 3, 5)
    assert not torch.equal(compiled(x)[0], compiled(x)[0])
    ours.eval()
    assert_close(flat(compiled(x)), flat(ours(x)))


def test_compiled_packed_sequences() -> None:
    theirs, ours = twins("LSTM", 5, 7, batch_first=True)

    def run(module: Any, x: Any, lengths: Any) -> Any:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, end = module(packed)
        return pad_packed_sequence(y, batch_first=True)[0], end

    compiled = torch.compile(lambda x, lengths: run(ours, x, lengths), backend="aot_eager")
    x, lengths = torch.randn(3, 4, 5), torch.tensor([2, 4, 1])
    assert_close(flat(compiled(x, lengths)), flat(run(theirs, x, lengths)))


@pytest.mark.parametrize("strict", [False, True])
@dynamo.config.patch(allow_rnn=True)
def test_exported(strict: bool, tmp_path: Any) -> None:
    theirs, ours = twins("LSTM", 5, 7, 2, batch_first=True, dropout=0.3, bidirectional=True)
    plain, model = Tagger(theirs).eval(), Tagger(ours).eval()
    model.load_state_dict(plain.state_dict())
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (torch.randn(4, 3, 5),), dynamic_shapes=({0: batch},), strict=strict)
    assert "fastlstm.recurrent" in str(program.graph)
    torch.export.save(program, tmp_path / "model.pt2")
    for loaded in (program, torch.export.load(tmp_path / "model.pt2")):
        for n in (2, 9):
            x = torch.randn(n, 3, 5)
            assert_close(flat(loaded.module()(x)), flat(plain(x)))


def test_fake_tensors_have_the_shapes_of_real_ones() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for name, options in (("LSTM", {"proj_size": 3, "bidirectional": True}), ("GRU", {"batch_first": True})):
        theirs, ours = twins(name, 5, 7, **options)
        real = flat(theirs(torch.randn(4, 3, 5)))
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = flat(ours(mode.from_tensor(torch.randn(4, 3, 5))))
        assert [(f.shape, f.dtype) for f in fake] == [(r.shape, r.dtype) for r in real]


def test_modes_see_one_operator() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    theirs, ours = twins("GRU", 5, 7)
    x = torch.randn(4, 3, 5)
    with Watching(), torch.no_grad():
        found = ours(x)
    assert "fastlstm.recurrent.default" in seen
    assert_close(flat(found), flat(theirs(x)))


def operator_arguments() -> list[tuple[Any, ...]]:
    lstm = torch.nn.LSTM(3, 4, 2, bidirectional=True)
    gru = torch.nn.GRU(3, 4, batch_first=True, dtype=torch.float64)
    weights = list(lstm.parameters()), list(gru.parameters())
    x, h, c = torch.randn(5, 2, 3, requires_grad=True), torch.randn(4, 2, 4), torch.randn(4, 2, 4)
    packed = pack_padded_sequence(torch.randn(5, 2, 3), [5, 2])
    return [
        (x, None, None, weights[0], None, "LSTM", 2, True, True, False),
        (x, h, c, weights[0], None, "LSTM", 2, True, True, False),
        (packed.data, h, c, weights[0], packed.batch_sizes, "LSTM", 2, True, True, False),
        (
            torch.randn(2, 5, 3, dtype=torch.float64),
            None,
            None,
            weights[1],
            None,
            "GRU",
            1,
            True,
            False,
            True,
        ),
    ]


@pytest.mark.parametrize("k", range(4))
def test_operators_keep_the_rules(k: int) -> None:
    """Schema, fake kernels and derivatives, by PyTorch's own checks."""
    torch.library.opcheck(
        torch.ops.fastlstm.recurrent.default,
        operator_arguments()[k],
        test_utils=(
            "test_schema",
            "test_autograd_registration",
            "test_faketensor",
            "test_aot_dispatch_static",
        ),
    )


@pytest.mark.parametrize(
    "place, value, match",
    [
        (0, torch.randn(5, 2, 4), "x must have 3 features"),
        (0, torch.randn(2, 3), "x must have 3 features"),
        (0, torch.randn(5, 2, 3, dtype=torch.float64), "must be torch.float64"),
        (1, torch.randn(4, 3, 4), "a state must be"),
        (2, torch.randn(2, 2, 4), "a state must be"),
        (3, [], "weights"),
        (3, [torch.randn(16, 3), torch.randn(16, 4)], "shorter|longer|argument 2"),
        (5, "lstm", "mode must be one of"),
        (6, 3, "zip|shorter|longer"),
        (4, torch.tensor([2, 3]), "batch_sizes must fall"),
    ],
)
def test_operators_check_what_they_get(place: int, value: Any, match: str) -> None:
    """Anybody may call them: they must not read beyond an array."""
    arguments = list(operator_arguments()[1])
    arguments[place] = value
    with pytest.raises((ValueError, RuntimeError), match=match):
        torch.ops.fastlstm.recurrent(*arguments)


@pytest.mark.parametrize(
    "place, value", [(0, torch.randn(5, 2, 7)), (1, torch.randn(4, 2, 5)), (2, torch.randn(1))]
)
def test_backward_operator_checks_gradients(place: int, value: Any) -> None:
    arguments = operator_arguments()[1]
    gradients = list(torch.ops.fastlstm.recurrent(*arguments))
    good = torch.ops.fastlstm.recurrent_backward(gradients, *arguments)
    assert len(good) == 3 + len(arguments[3])
    gradients[place] = value
    with pytest.raises(ValueError, match="gradients must be"):
        torch.ops.fastlstm.recurrent_backward(gradients, *arguments)


def test_operators_let_go_of_weights() -> None:
    _ops._kept.clear()
    for _ in range(3):
        _, ours = twins("LSTM", 5, 7)
        weights = list(ours.parameters())
        torch.ops.fastlstm.recurrent(
            torch.randn(4, 3, 5), None, None, weights, None, "LSTM", 1, True, False, False
        )
        assert len(_ops._kept) == 1
        del ours, weights


def test_below_a_graph_break_nothing_is_compiled_anew() -> None:
    """torch.compile without allow_rnn breaks the graph at each module, and looks into what it calls."""
    models = [torch.nn.Sequential(twins(n, 3, 4)[1]) for n in ("LSTM", "GRU", "RNN")]
    compiled = [torch.compile(model, backend="eager") for model in models]
    with dynamo.config.patch(allow_rnn=False, fail_on_recompile_limit_hit=True):
        for k in range(12):
            for run in compiled:
                x = torch.randn(2 + k, 1 + k % 3, 3, requires_grad=bool(k % 2))
                y = run(x)[0]
                if k % 2:
                    y.sum().backward()
