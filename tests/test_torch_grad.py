"""Derivatives of fastlstm.torch's modules: against finite differences, derivatives of derivatives, dropout,
and what autograd promises."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence  # noqa: E402
from torch_cases import CELLS, assert_close, flat, twins  # noqa: E402

import fastlstm.torch as accelerated  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

CONFIGURATIONS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 2, "bidirectional": True}),
    ("LSTM", {"proj_size": 2, "num_layers": 2}),
    ("LSTM", {"proj_size": 1, "bidirectional": True, "bias": False}),
    ("LSTM", {"batch_first": True, "bias": False}),
    ("GRU", {"num_layers": 2}),
    ("GRU", {"bidirectional": True, "batch_first": True}),
    ("GRU", {"bias": False}),
    ("RNN", {"bidirectional": True, "num_layers": 2}),
    ("RNN", {"nonlinearity": "relu"}),
]


def checked(module: Any, x: Any, state: Any, check: Any) -> bool:
    """`check` (gradcheck or gradgradcheck) over input, states and every parameter."""
    names = [name for name, _ in module.named_parameters()]
    count = len(state)

    def call(data: Any, *rest: Any) -> Any:
        given = rest[:count]
        input = x._replace(data=data) if isinstance(x, PackedSequence) else data
        hx = () if not count else (tuple(given) if count == 2 else given[0],)
        weights = dict(zip(names, rest[count:], strict=True))
        return tuple(flat(torch.func.functional_call(module, weights, (input, *hx))))

    data = x.data if isinstance(x, PackedSequence) else x
    leaves = [t.detach().clone().requires_grad_() for t in (data, *state, *module.parameters())]
    result: bool = check(call, tuple(leaves))
    return result


def states_for(module: Any, batch: tuple[int, ...]) -> list[Any]:
    rows = module.num_layers * (2 if module.bidirectional else 1)
    widths = [module.proj_size or module.hidden_size, module.hidden_size]
    return [
        torch.randn(rows, *batch, n, dtype=torch.float64)
        for n in widths[: 2 if isinstance(module, torch.nn.LSTM) else 1]
    ]


@pytest.mark.parametrize("form", ["batch", "sequence", "packed", "no state"])
@pytest.mark.parametrize("name, options", CONFIGURATIONS)
def test_gradcheck(name: str, options: dict[str, Any], form: str) -> None:
    torch.manual_seed(0)
    module = getattr(accelerated, name)(2, 3, dtype=torch.float64, **options)
    x: Any = torch.randn(3, 2, dtype=torch.float64)
    state = states_for(module, ())
    if form != "sequence":
        x = torch.randn(3, 3, 2, dtype=torch.float64)
        state = states_for(module, (3,)) if form != "no state" else []
    if form == "packed":
        x = pack_padded_sequence(x, [2, 3, 1], options.get("batch_first", False), enforce_sorted=False)
    assert checked(module, x, state, torch.autograd.gradcheck)


@pytest.mark.parametrize("form", ["batch", "packed"])
@pytest.mark.parametrize("name, options", CONFIGURATIONS[:1] + CONFIGURATIONS[2:3] + CONFIGURATIONS[6:9])
def test_derivatives_of_derivatives(name: str, options: dict[str, Any], form: str) -> None:
    torch.manual_seed(0)
    module = getattr(accelerated, name)(2, 3, dtype=torch.float64, **options)
    x: Any = torch.randn(2, 2, 2, dtype=torch.float64)
    if form == "packed":
        x = pack_padded_sequence(x, [1, 2], options.get("batch_first", False), enforce_sorted=False)
    assert checked(module, x, states_for(module, (2,)), torch.autograd.gradgradcheck)


@pytest.mark.parametrize("name", CELLS)
def test_gradcheck_of_cells(name: str) -> None:
    torch.manual_seed(0)
    module = getattr(accelerated, name)(2, 3, dtype=torch.float64)
    count = 2 if name == "LSTMCell" else 1
    for batch in ((), (3,)):
        state = [torch.randn(*batch, 3, dtype=torch.float64) for _ in range(count)]
        x = torch.randn(*batch, 2, dtype=torch.float64)
        assert checked(module, x, state, torch.autograd.gradcheck)
    assert checked(module, x, state, torch.autograd.gradgradcheck)


def test_gradcheck_through_data_of_a_module() -> None:
    """gradcheck writes single elements through `.data`, which PyTorch does not count."""
    module = accelerated.GRU(3, 4, dtype=torch.float64)
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    parameters = tuple(module.parameters())
    assert torch.autograd.gradcheck(lambda *_: module(x)[0], parameters)


# --- dropout ------------------------------------------------------------------------------------------------


def reference_with_dropout(module: Any, x: Any, state: Any, p: float) -> Any:
    """Layer by layer with PyTorch's modules and the masks that `module` draws."""
    directions = 2 if module.bidirectional else 1
    ends = []
    for index in range(module.num_layers):
        with torch.random.fork_rng():  # for it draws weights
            layer = torch.nn.LSTM(
                x.shape[-1], module.hidden_size, bidirectional=module.bidirectional, dtype=x.dtype
            )
        own = {n.replace("_l0", f"_l{index}"): n for n, _ in layer.named_parameters()}
        weights = {own[n]: w for n, w in module.named_parameters() if n in own}
        rows = slice(index * directions, (index + 1) * directions)
        if index:
            x = torch.nn.functional.dropout(x, p, True)
        x, end = torch.func.functional_call(layer, weights, (x, tuple(s[rows] for s in state)))
        ends.append(end)
    return x, tuple(torch.cat(parts) for parts in zip(*ends, strict=True))


@pytest.mark.parametrize("p", [0.3, 1.0])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_between_layers_is_differentiated_exactly(bidirectional: bool, p: float) -> None:
    torch.manual_seed(0)
    module = accelerated.LSTM(3, 7, 3, dropout=p, bidirectional=bidirectional, dtype=torch.float64)
    x = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    state = tuple(s.requires_grad_() for s in states_for(module, (4,)))
    wanted = [x, *state, *module.parameters()]
    results = []
    for call in (module, lambda x, s: reference_with_dropout(module, x, s, p)):
        torch.manual_seed(7)
        outputs = flat(call(x, state))
        loss = sum((y * torch.arange(y.numel()).view_as(y).sin()).sum() for y in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, wanted)])
    assert_close(results[0], results[1], 10)
    with torch.no_grad():
        assert not torch.equal(module(x)[0], module(x)[0]) or p == 1.0
        module.eval()
        assert torch.equal(module(x)[0], module(x)[0])


def test_dropout_keeps_the_mean_and_its_rate() -> None:
    """Through a second layer that hands on its input, nearly."""
    torch.manual_seed(0)
    module = accelerated.RNN(1, 50, 2, dropout=0.25, nonlinearity="relu", bias=False)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
        module.weight_ih_l0.fill_(1.0)
        module.weight_ih_l1.copy_(torch.eye(50))
        y, _ = module(torch.ones(20, 40, 1))
    zeros = (y == 0).double().mean()
    assert abs(float(zeros) - 0.25) < 0.01  # 40,000 draws: 4.6 standard deviations
    assert torch.equal(y[y != 0], torch.full_like(y[y != 0], 1 / 0.75))
    packed = pack_padded_sequence(torch.ones(20, 40, 1), [20] * 40)
    with torch.no_grad():
        assert abs(float((module(packed)[0].data == 0).double().mean()) - 0.25) < 0.01


# --- autograd's promises ------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", range(6))
def test_what_needs_no_gradient_gets_none(frozen: int) -> None:
    torch.manual_seed(0)
    theirs, ours = twins("LSTM", 5, 7, 2)
    results = []
    for module in (theirs, ours):
        x, h, c = torch.ones(4, 3, 5), torch.ones(2, 3, 7), torch.ones(2, 3, 7)
        tensors = [x, h, c, *module.parameters()]
        for k, t in enumerate(tensors):
            t.requires_grad_(k % 6 != frozen)
        module(x, (h, c))[0].square().sum().backward()
        results.append([t.grad for t in tensors])
    assert_close(results[1], results[0], 10)
    assert any(g is None for g in results[1])


def test_some_outputs_alone_are_differentiated() -> None:
    theirs, ours = twins("LSTM", 5, 7, bidirectional=True)
    x = torch.randn(4, 3, 5)
    for pick in range(3):
        grads = [
            torch.autograd.grad(flat(m(x))[pick].square().sum(), list(m.parameters())) for m in (theirs, ours)
        ]
        assert_close(list(grads[1]), list(grads[0]), 10)


def test_two_calls_before_one_backward() -> None:
    theirs, ours = twins("GRU", 5, 7)
    x, y = torch.randn(4, 3, 5), torch.randn(6, 2, 5)
    grads = [
        torch.autograd.grad((m(x)[0].sum() * m(y)[0].sum()), list(m.parameters())) for m in (theirs, ours)
    ]
    assert_close(list(grads[1]), list(grads[0]), 20)


def test_backward_after_the_weights_were_packed_anew() -> None:
    """`p.data = ..` is allowed between forward and backward; the recorded call keeps its weights."""
    module = accelerated.LSTM(5, 7, dtype=torch.float64)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    wanted = torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters()))
    loss = module(x)[0].square().sum()
    kept = [p.data for p in module.parameters()]
    for p in module.parameters():
        p.data = torch.randn_like(p)
    with torch.no_grad():
        module(x)
    for p, old in zip(module.parameters(), kept, strict=True):
        p.data = old
    found = torch.autograd.grad(loss, list(module.parameters()))
    assert_close(list(found), list(wanted))


@pytest.mark.parametrize("what", ["weight", "x"])
def test_changes_in_place_before_backward_are_refused(what: str) -> None:
    for module in twins("LSTM", 5, 7):
        x = torch.randn(4, 3, 5)
        loss = module(x)[0].square().sum()
        with torch.no_grad():
            (module.weight_hh_l0 if what == "weight" else x).add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_other_memory_for_the_input_before_backward() -> None:
    """`x.data = ..` leaves the recorded numbers as they are; a storage that is gone is not read."""
    module = accelerated.LSTM(5, 7, dtype=torch.float64)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    wanted = torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters()))
    loss = module(x)[0].square().sum()
    x.data = torch.zeros(4, 3, 5, dtype=torch.float64)
    assert_close(list(torch.autograd.grad(loss, list(module.parameters()))), list(wanted))
    loss = module(x)[0].square().sum()
    x.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="storage was resized between forward and backward"):
        loss.backward()


def test_backward_twice() -> None:
    _, module = twins("LSTM", 5, 7)
    loss = module(torch.randn(4, 3, 5))[0].square().sum()
    loss.backward(retain_graph=True)
    first = [p.grad.clone() for p in module.parameters()]
    loss.backward()
    assert_close([p.grad for p in module.parameters()], [2 * g for g in first])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_training_matches_step_by_step() -> None:
    """Adam, clipping, changing lengths: the same weights as PyTorch's after 20 steps."""
    torch.manual_seed(0)
    theirs, ours = twins("GRU", 4, 9, 2, dtype=torch.float64)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (theirs, ours)]
    for step in range(20):
        x = torch.randn(1 + step % 7, 3, 4, dtype=torch.float64)
        for module, optimizer in zip((theirs, ours), optimizers, strict=True):
            optimizer.zero_grad()
            module(x)[0].square().mean().backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 0.1)
            optimizer.step()
    assert_close(list(ours.parameters()), list(theirs.parameters()), 100)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    theirs, ours = twins("LSTM", 5, 7, 2)
    grads = []
    for module in (theirs, ours):
        x = torch.ones(4, 3, 5, requires_grad=True)
        y = checkpoint(lambda x, m=module: m(x)[0], x, use_reentrant=reentrant)
        y.square().sum().backward()
        grads.append([x.grad, *(p.grad for p in module.parameters())])
    assert_close(grads[1], grads[0], 10)


@pytest.mark.parametrize(
    "name, options", [("LSTM", {"num_layers": 3, "dropout": 0.5}), ("GRU", {"bidirectional": True})]
)
def test_hooks_on_saved_tensors(name: str, options: dict[str, Any]) -> None:
    """What they put away is what the way back is computed from, whatever happens to the originals."""
    torch.manual_seed(0)
    module = getattr(accelerated, name)(3, 7, dtype=torch.float64, **options)
    grads = []
    for hooked in (False, True):
        x = torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(5, 4, 3).requires_grad_()
        given = x * 1.0
        torch.manual_seed(1)
        if hooked:
            with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
                y = module(given)[0]
            with torch.no_grad():
                given.zero_()
        else:
            y = module(given)[0]
        grads.append(torch.autograd.grad(y.square().sum(), [x, *module.parameters()]))
    assert_close(list(grads[1]), list(grads[0]))


def test_memory_of_a_finished_backward_is_given_back() -> None:
    """As PyTorch's: what is recorded goes with backward, although the output stays."""
    import weakref

    from fastlstm.torch import _engine

    module = accelerated.LSTM(5, 7)
    y, _ = module(torch.randn(4, 3, 5))
    node = y.grad_fn
    kept = weakref.ref(node.recording._lease)
    assert isinstance(node.recording, _engine.Recording)
    y.sum().backward(retain_graph=True)
    assert kept() is not None
    y.sum().backward()
    assert kept() is None and y.grad_fn is node


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_batched_gradients(name: str, create_graph: bool) -> None:
    """Many rows of a Jacobian in one call."""
    theirs, ours = twins(name, 3, 4, dtype=torch.float64)
    x = torch.randn((2, 3) if name.endswith("Cell") else (5, 2, 3), dtype=torch.float64)

    def first(module: Any) -> Any:
        return lambda x: flat(module(x))[0]

    def jacobian(module: Any, **how: Any) -> Any:
        return torch.autograd.functional.jacobian(first(module), x, create_graph=create_graph, **how)

    assert_close([jacobian(ours, vectorize=True)], [jacobian(theirs)])
    y = first(ours)(x)
    directions = torch.randn(7, *y.shape, dtype=torch.float64)
    weights = list(ours.parameters())
    found = torch.autograd.grad(y, weights, directions, is_grads_batched=True, retain_graph=True)
    for k, d in enumerate(directions):
        assert_close([f[k] for f in found], list(torch.autograd.grad(y, weights, d, retain_graph=True)))


@pytest.mark.parametrize(("name", "options"), CONFIGURATIONS)
def test_batched_gradients_of_stacks(name: str, options: dict[str, Any]) -> None:
    _, ours = twins(name, 3, 4, dtype=torch.float64, **options)
    x = pack_padded_sequence(torch.randn(5, 3, 3, dtype=torch.float64), [5, 3, 1])
    results = [ours(x)[0].data, flat(ours(torch.randn(4, 2, 3, dtype=torch.float64)))[1]]
    for y in results:
        directions = torch.randn(3, *y.shape, dtype=torch.float64)
        how: Any = {"retain_graph": True, "allow_unused": True}
        weights = list(ours.parameters())
        found = torch.autograd.grad(y, weights, directions, is_grads_batched=True, **how)
        for k, d in enumerate(directions):
            assert_close([f[k] for f in found], list(torch.autograd.grad(y, weights, d, **how)))
