"""fastlstm.torch's modules beside PyTorch's own: output, states, gradients, errors, weights that change."""

from __future__ import annotations

import copy
import io
import os
import pickle
import signal
import sys
import threading
import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence  # noqa: E402
from torch_cases import CELLS, assert_close, assert_same_form, cell, flat, stack, twins  # noqa: E402

import fastlstm.torch as accelerated  # noqa: E402
from fastlstm.torch import _engine, _modules, _ops  # noqa: E402

STACKS = ("LSTM", "GRU", "RNN")


@pytest.fixture(autouse=True)
def no_warning(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A fall-back to PyTorch's kernel would make every comparison hold: it must not happen unasked."""
    monkeypatch.setattr(_modules, "_warned", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        yield


@pytest.fixture
def own_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls that PyTorch's kernel served."""
    calls: list[Any] = []
    original = _modules._Accelerated._own

    def counted(self: Any, input: Any, hx: Any) -> Any:
        calls.append(type(self))
        return original(self, input, hx)

    monkeypatch.setattr(_modules._Accelerated, "_own", counted)
    return calls


def run_both(case: Any) -> tuple[Any, Any]:
    given = () if case.state is None else (case.state,)
    return case.theirs(case.input, *given), case.ours(case.input, *given)


@pytest.mark.parametrize("make, seed", [(stack, s) for s in range(300)] + [(cell, s) for s in range(90)])
def test_output_states_and_gradients(make: Any, seed: int, own_calls: list[Any]) -> None:
    case = make(seed)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for _ in range(2):  # the second call finds its weights packed
                theirs, ours = run_both(case)
                assert_same_form(ours, theirs)
                assert_close(flat(ours), flat(theirs), 4)
    tensors = [t.requires_grad_() for t in case.tensors() if t.is_floating_point()]
    results = []
    for result, module in zip(run_both(case), (case.theirs, case.ours), strict=True):
        outputs = flat(result)
        torch.manual_seed(seed)
        torch.autograd.backward(outputs, [torch.randn(y.shape, dtype=y.dtype) for y in outputs])
        results.append([*(t.grad for t in tensors), *(p.grad for p in module.parameters())])
        for t in tensors:
            t.grad = None
    assert_close(results[1], results[0], 10)
    assert not own_calls


@pytest.mark.parametrize("name", STACKS + CELLS)
def test_constructor_repr_and_state_dict(name: str) -> None:
    for args, options in [((5, 7), {}), ((5, 7), {"bias": False, "dtype": torch.float64})]:
        theirs, ours = twins(name, *args, **options)
        assert repr(ours) == repr(theirs)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert isinstance(ours, getattr(torch.nn, name))
        torch.manual_seed(1)
        fresh = getattr(torch.nn, name)(*args, **options)
        torch.manual_seed(1)
        again = getattr(accelerated, name)(*args, **options)
        assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), again.parameters(), strict=True))
    if name in STACKS:
        with pytest.warns(UserWarning, match="dropout option"):
            twins(name, 5, 7, dropout=0.5)
        theirs, ours = twins(name, 5, 7, 2, dropout=0.5, bidirectional=True, batch_first=True)
        assert repr(ours) == repr(theirs)
    for wrong in [(0, 7), (5, 0), ("5", 7), (5, 7, 0, "x")]:
        messages = []
        for module in (getattr(torch.nn, name), getattr(accelerated, name)):
            try:
                module(*wrong)
                messages.append(None)
            except Exception as error:
                messages.append((type(error), str(error)))
        assert messages[0] == messages[1]


WRONG: list[tuple[str, Any]] = [
    ("four axes", lambda d: ((torch.randn(1, 2, 3, 5),), {})),
    ("no axes", lambda d: ((torch.tensor(1.0),), {})),
    ("features", lambda d: ((torch.randn(4, 3, 6),), {})),
    ("features unbatched", lambda d: ((torch.randn(4, 6),), {})),
    ("float64 x", lambda d: ((torch.randn(4, 3, 5, dtype=torch.float64),), {})),
    ("integers", lambda d: ((torch.ones(4, 3, 5, dtype=torch.int64),), {})),
    ("no steps", lambda d: ((torch.randn(0, 3, 5),), {})),
    ("empty batch", lambda d: ((torch.randn(4, 0, 5),), {})),
    ("h of another batch", lambda d: ((torch.randn(4, 3, 5), d(torch.randn(1, 2, 7))), {})),
    ("h of other units", lambda d: ((torch.randn(4, 3, 5), d(torch.randn(1, 3, 8))), {})),
    ("h of other layers", lambda d: ((torch.randn(4, 3, 5), d(torch.randn(2, 3, 7))), {})),
    ("h without batch", lambda d: ((torch.randn(4, 3, 5), d(torch.randn(1, 7))), {})),
    ("h with a batch", lambda d: ((torch.randn(4, 5), d(torch.randn(1, 1, 7))), {})),
    ("float64 h", lambda d: ((torch.randn(4, 3, 5), d(torch.randn(1, 3, 7).double())), {})),
    ("h is no tensor", lambda d: ((torch.randn(4, 3, 5), 3), {})),
    ("x is no tensor", lambda d: (([[1.0] * 5],), {})),
    ("x is None", lambda d: ((None,), {})),
    ("packed: features", lambda d: ((pack_padded_sequence(torch.randn(4, 3, 6), [4, 3, 1]),), {})),
    (
        "packed: h of another batch",
        lambda d: ((pack_padded_sequence(torch.randn(4, 3, 5), [4, 3, 1]), d(torch.randn(1, 2, 7))), {}),
    ),
    (
        "packed, unsorted: h of a larger batch",
        lambda d: (
            (
                pack_padded_sequence(torch.randn(4, 3, 5), [1, 3, 4], enforce_sorted=False),
                d(torch.randn(1, 4, 7)),
            ),
            {},
        ),
    ),
    (
        "packed: rising batch sizes",
        lambda d: ((PackedSequence(torch.randn(5, 5), torch.tensor([2, 3])),), {}),
    ),
    ("packed: too few rows", lambda d: ((PackedSequence(torch.randn(4, 5), torch.tensor([3, 2])),), {})),
    ("no argument", lambda d: ((), {})),
    ("unknown argument", lambda d: ((torch.randn(4, 3, 5),), {"lengths": [4, 4, 4]})),
]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", STACKS + CELLS)
@pytest.mark.parametrize("what, make", WRONG, ids=[w[0] for w in WRONG])
def test_wrong_input_is_answered_as_pytorch_does(name: str, what: str, make: Any, grad: bool) -> None:
    """Error type and message, or the result where PyTorch is content."""
    theirs, ours = twins(name, 5, 7)
    double = name.startswith("LSTM")
    torch.manual_seed(0)
    args, kwargs = make(lambda h: (h, h) if double else h)
    answers = []
    with torch.set_grad_enabled(grad):
        if grad is False:
            ours(torch.randn(2, 5) if name in CELLS else torch.randn(2, 2, 5))  # so that weights are packed
        for module in (theirs, ours):
            try:
                answers.append(("result", [y.shape for y in flat(module(*args, **kwargs))]))
            except Exception as error:
                answers.append((type(error), str(error).replace("_Stack", name).replace("_Cell", name)))
    if what in ("no argument", "unknown argument"):
        assert answers[0][0] is answers[1][0] is TypeError  # the name of the method differs
    else:
        assert answers[0] == answers[1]


# --- weights that change ------------------------------------------------------------------------------------


def changes() -> dict[str, Any]:
    """Ways in which the weights of a module may change."""

    def optimizer(m: Any) -> None:
        for p in m.parameters():
            p.grad = torch.full_like(p, 0.1)
        torch.optim.SGD(m.parameters(), lr=1.0).step()

    def data_add(m: Any) -> None:
        for p in m.parameters():
            p.data.add_(0.1)

    def data_new(m: Any) -> None:
        for p in m.parameters():
            p.data = p.data + 0.1

    def numpy(m: Any) -> None:
        for p in m.parameters():
            array = p.detach().numpy()
            array += 0.1

    def copy_(m: Any) -> None:
        with torch.no_grad():
            for p in m.parameters():
                p.copy_(p + 0.1)

    def replaced(m: Any) -> None:
        for name, p in list(m.named_parameters()):
            setattr(m, name, torch.nn.Parameter(p.detach() + 0.1))

    def loaded(m: Any) -> None:
        m.load_state_dict({name: p + 0.1 for name, p in m.state_dict().items()})

    def one(m: Any) -> None:
        with torch.no_grad():
            m.get_parameter(next(n for n, _ in m.named_parameters()))[0, 0] += 1.0

    def double(m: Any) -> None:
        m.double()

    def one_bias(m: Any) -> None:
        with torch.no_grad():
            list(m.parameters())[-1][-1] += 1.0

    def reset(m: Any) -> None:
        torch.manual_seed(99)
        m.reset_parameters()

    functions = (
        optimizer, data_add, data_new, numpy, copy_, replaced, loaded, one, double, one_bias, reset,
    )  # fmt: skip
    return {f.__name__: f for f in functions}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("how", changes())
@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_changed_weights_are_taken(name: str, how: str, mode: Any) -> None:
    theirs, ours = twins(name, 33, 40)
    x = torch.randn(3, 33)
    with mode():
        before = flat(ours(x))
        assert_close(before, flat(theirs(x)))
    for module in (theirs, ours):
        changes()[how](module)
    x = x.to(next(theirs.parameters()).dtype)
    with mode():
        assert_close(flat(ours(x)), flat(theirs(x)))
        if how != "double":
            assert float((flat(ours(x))[0] - before[0]).detach().abs().max()) > 1e-4


def test_weights_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastlstm.torch import _engine

    packed = []
    original = _engine.Packed.__init__

    def counted(self: Any, *args: Any) -> None:
        packed.append(1)
        original(self, *args)

    monkeypatch.setattr(_engine.Packed, "__init__", counted)
    module = accelerated.LSTM(5, 7)
    for _ in range(3):
        module(torch.randn(4, 2, 5))[0].sum().backward()
        with torch.no_grad():
            module(torch.randn(4, 2, 5))
    assert len(packed) == 1
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    for _ in range(3):
        module(torch.randn(4, 2, 5))
    assert len(packed) == 2


def test_an_element_written_behind_the_back_needs_repack() -> None:
    """What `repack` is for, in a weight larger than what is looked at."""
    theirs, ours = twins("LSTM", 64, 300)
    x = torch.randn(2, 1, 64)
    with torch.no_grad():
        ours(x)
        for module in (theirs, ours):
            module.weight_hh_l0.data[17, 5] += 10
            module.weight_hh_l0.data[17, 6] += 10
        ours.repack()
        assert_close(flat(ours(x)), flat(theirs(x)))


def test_the_probes_see_every_element_of_small_weights() -> None:
    for dtype in (torch.float32, torch.float64):
        theirs, ours = twins("GRU", 3, 4, dtype=dtype)
        x = torch.randn(2, 1, 3, dtype=dtype)
        with torch.no_grad():
            for k, (p, q) in enumerate(zip(theirs.parameters(), ours.parameters(), strict=True)):
                for i in range(p.numel()):
                    ours(x)
                    for tensor in (p, q):
                        tensor.data.view(-1)[i] += 0.25
                    assert_close(flat(ours(x)), flat(theirs(x))), (k, i)


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        theirs, ours = twins("LSTM", 5, 7)
        x = torch.randn(4, 3, 5)
        for _ in range(2):
            assert_close(flat(ours(x)), flat(theirs(x)))
        for module in (theirs, ours):
            for p in module.parameters():
                p.mul_(1.5)
        assert_close(flat(ours(x)), flat(theirs(x)))
    with torch.no_grad():
        assert_close(flat(ours(x)), flat(theirs(x)))


def test_weights_that_are_computed_at_each_call() -> None:
    from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

    for wrap in (
        lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
        lambda m: prune.l1_unstructured(m, "weight_hh_l0", amount=0.5),
    ):
        theirs, ours = twins("LSTM", 5, 7)
        for module in (theirs, ours):
            torch.manual_seed(3)
            wrap(module)
        x = torch.randn(4, 3, 5)
        for _ in range(2):
            outputs = [flat(m(x)) for m in (theirs, ours)]
            assert_close(outputs[1], outputs[0])
            for y in outputs:
                y[0].square().sum().backward()
            grads = [[p.grad for p in m.parameters()] for m in (theirs, ours)]
            assert_close(grads[1], grads[0], 10)
            for module in (theirs, ours):
                torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert parametrize is not None and weight_norm is not None


def test_functional_call_with_other_weights() -> None:
    theirs, ours = twins("GRU", 5, 7)
    x = torch.randn(4, 3, 5)
    sets = [{n: torch.randn_like(p).requires_grad_() for n, p in ours.named_parameters()} for _ in range(2)]
    outputs = [[torch.func.functional_call(m, w, (x,))[0] for w in sets] for m in (theirs, ours)]
    assert_close(outputs[1], outputs[0])
    grads = [
        torch.autograd.grad(sum(y.square().sum() for y in ys), [*sets[0].values(), *sets[1].values()])
        for ys in outputs
    ]
    assert_close(list(grads[1]), list(grads[0]), 10)
    assert_close(flat(ours(x)), flat(theirs(x)))


def test_options_changed_afterwards() -> None:
    theirs, ours = twins("RNN", 5, 7, 2, batch_first=True)
    x = torch.randn(3, 3, 5)
    for change in ({"batch_first": False}, {"mode": "RNN_RELU"}):
        for module in (theirs, ours):
            for name, value in change.items():
                setattr(module, name, value)
        with torch.no_grad():
            assert_close(flat(ours(x)), flat(theirs(x)))


# --- copies, pickles, views ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STACKS + CELLS)
def test_copies_and_pickles(name: str) -> None:
    theirs, ours = twins(name, 5, 7)
    x = torch.randn(3, 5)
    with torch.no_grad():
        ours(x)
        buffer = io.BytesIO()
        torch.save(ours, buffer)
        buffer.seek(0)
        copies = [
            copy.deepcopy(ours),
            pickle.loads(pickle.dumps(ours)),
            torch.load(buffer, weights_only=False),
        ]
        for twin in copies:
            assert type(twin) is type(ours) and "_fastlstm" not in twin.__dict__
            assert_close(flat(twin(x)), flat(theirs(x)))
            for p in twin.parameters():
                p.zero_()
            assert float(flat(twin(x))[0].abs().max()) < 0.1
        assert_close(flat(ours(x)), flat(theirs(x)))


def test_no_copies_of_input_and_output() -> None:
    """The output's memory is what the core wrote; x that is contiguous is read where it lies."""
    from fastlstm.torch import _engine

    x = torch.randn(4, 3, 5)
    assert _engine.array_of(x).ctypes.data == x.data_ptr()
    with torch.no_grad():  # and nothing of the caller's becomes unlike it was
        module = accelerated.GRU(5, 7)
        for _ in range(2):
            module(x.requires_grad_())
        module(torch.randn(4, 3, 5))
        x.detach_().untyped_storage().resize_(4 * 4 * 3 * 5)
        assert all(p.untyped_storage().resizable() for p in (x, *module.parameters()))
    view = torch.randn(3, 4, 5).transpose(0, 1)
    assert _engine.array_of(view).ctypes.data == view.data_ptr()
    theirs, ours = twins("LSTM", 5, 7)
    state = torch.randn(1, 3, 7)
    for tensor in (x, state):
        assert torch._neg_view(tensor).is_neg()  # the memory holds the numbers with the other sign
    negative, state = torch._neg_view(x), torch._neg_view(state)
    for args in ((negative,), (x, (state, state)), (x, (state, state * 1)), (x, (state * 1, state))):
        with torch.no_grad():
            for _ in range(2):
                assert_close(flat(ours(*args)), flat(theirs(*args)))
        assert_close(flat(ours(*args)), flat(theirs(*args)))


def test_hooks_and_modes_stay() -> None:
    _, ours = twins("LSTM", 5, 7)
    seen = []
    ours.register_forward_hook(lambda module, args, output: seen.append(output[0].shape))
    ours.eval()
    ours(torch.randn(4, 3, 5))
    assert seen == [(4, 3, 7)]


# --- what PyTorch's kernel runs -----------------------------------------------------------------------------


def check_warns_once(ours: Any, call: Any, match: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with pytest.warns(UserWarning, match=match):
            call()
    call()  # where warnings are errors: no second one


def test_other_dtypes_and_devices_fall_back_with_one_warning() -> None:
    x = torch.randn(4, 3, 5)
    for dtype in (torch.bfloat16, torch.float16):
        theirs, ours = twins("LSTM", 5, 7, dtype=dtype)
        check_warns_once(ours, lambda o=ours, d=dtype: o(x.to(d)), str(dtype))
        assert torch.equal(ours(x.to(dtype))[0], theirs(x.to(dtype))[0])
    meta = accelerated.GRU(5, 7, device="meta")
    check_warns_once(meta, lambda: meta(x.to("meta")), "device meta")
    assert meta(x.to("meta"))[0].shape == (4, 3, 7)


def test_autocast_falls_back() -> None:
    theirs, ours = twins("LSTM", 5, 7)
    x = torch.randn(4, 3, 5)
    with torch.no_grad():
        ours(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            check_warns_once(ours, lambda: ours(x), "autocast")
            assert ours(x)[0].dtype == theirs(x)[0].dtype


def test_transforms_of_torch_func_fall_back() -> None:
    theirs, ours = twins("RNN", 5, 7)
    x = torch.randn(6, 4, 3, 5)
    weights = dict(ours.named_parameters())

    def loss(module: Any, w: Any, x: Any) -> Any:
        return torch.func.functional_call(module, w, (x,))[0].square().sum()

    check_warns_once(ours, lambda: torch.func.grad(lambda w: loss(ours, w, x[0]))(weights), "torch.func")
    found = [torch.func.grad(lambda w, m=m: loss(m, w, x[0]))(weights) for m in (theirs, ours)]
    assert_close(list(found[1].values()), list(found[0].values()), 10)


def test_forward_mode_falls_back() -> None:
    theirs, ours = twins("RNN", 5, 7)
    x, v = torch.randn(4, 3, 5), torch.randn(4, 3, 5)

    def tangent(module: Any) -> Any:
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, v)
            return torch.autograd.forward_ad.unpack_dual(module(dual)[0]).tangent

    check_warns_once(ours, lambda: tangent(ours), "forward-mode")
    for mode in (torch.enable_grad, torch.no_grad):  # which leaves forward mode as it is
        with mode():
            ours(x)
            assert_close([tangent(ours)], [tangent(theirs)], 4)


def test_forward_mode_by_the_weights_falls_back() -> None:
    theirs, ours = twins("RNN", 5, 7)
    x, weights = torch.randn(4, 3, 5), {n: p.detach() for n, p in ours.named_parameters()}
    torch.manual_seed(0)
    tangents = {n: torch.randn_like(p) for n, p in weights.items()}
    for p in ours.parameters():  # the tensors that are packed are those that the duals alias
        p.requires_grad_(False)

    def tangent(module: Any) -> Any:
        own = dict(ours.named_parameters())
        with torch.autograd.forward_ad.dual_level():
            duals = {n: torch.autograd.forward_ad.make_dual(own[n], tangents[n]) for n in own}
            y = torch.func.functional_call(module, duals, (x,))[0]
            return torch.autograd.forward_ad.unpack_dual(y).tangent

    ours(x)
    check_warns_once(ours, lambda: tangent(ours), "forward-mode")
    assert_close([tangent(ours)], [tangent(theirs)], 4)


def test_a_module_that_moves_away_and_back() -> None:
    """Packed weights do not outlive a move to another dtype or device."""
    theirs, ours = twins("LSTM", 5, 7)
    x = torch.randn(4, 3, 5)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float32):
        for module in (theirs, ours):
            module.to(dtype)
        for mode in (torch.no_grad, torch.enable_grad):
            with mode(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "fastlstm.torch: tensors are torch.bfloat16")
                found, wanted = flat(ours(x.to(dtype))), flat(theirs(x.to(dtype)))
            assert all(f.dtype == dtype for f in found)
            assert_close([f.float() for f in found], [w.float() for w in wanted], 4)
    ours(x)
    ours.to("meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours(x)


def test_jit_trace_falls_back() -> None:
    theirs, ours = twins("LSTM", 5, 7)
    x = torch.randn(4, 3, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(ours, (x,))
        assert_close(flat(traced(x)), flat(theirs(x)))


@pytest.mark.parametrize("name", STACKS + CELLS)
def test_jit_script_falls_back(name: str) -> None:
    theirs, ours = twins(name, 5, 7)
    x = torch.randn(3, 5)
    ours(x)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", "fastlstm.torch: torch.jit.script compiles")
        scripted = torch.jit.script(torch.nn.ModuleList([ours]))[0]
    assert_close(flat(scripted(x)), flat(theirs(x)))
    assert type(ours) is getattr(accelerated, name)


def test_subclasses_of_tensors_fall_back() -> None:
    class Mine(torch.Tensor):
        pass

    theirs, ours = twins("GRU", 5, 7)
    x = torch.randn(4, 3, 5).as_subclass(Mine)
    check_warns_once(ours, lambda: ours(x), "Mine is no plain tensor")
    assert type(ours(x)[0]) is Mine
    assert_close(flat(ours(x)), flat(theirs(x)))


def test_many_threads_may_call_one_module() -> None:
    from concurrent.futures import ThreadPoolExecutor

    theirs, ours = twins("LSTM", 33, 40)
    x = torch.randn(16, 5, 1, 33)

    def run(k: int) -> Any:
        with torch.no_grad():
            return [ours(x[k])[0] for _ in range(20)]

    with torch.no_grad():
        wanted = [theirs(x[k])[0] for k in range(16)]
    with ThreadPoolExecutor(4) as pool:
        for k, found in enumerate(pool.map(run, range(16))):
            assert_close(found, [wanted[k]] * 20)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("lock", ["packing", "keeping"])
def test_a_fork_while_another_thread_packs(lock: str) -> None:
    held = {"packing": _engine._packing, "keeping": _ops._keeping}[lock]
    _, ours = twins("LSTM", 3, 4)
    entered, leave = threading.Event(), threading.Event()

    def packing() -> None:
        with held:
            entered.set()
            leave.wait()

    thread = threading.Thread(target=packing)
    thread.start()
    entered.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child = os.fork()
    if child == 0:
        signal.alarm(20)  # the end of a child that hangs
        with torch.no_grad():
            if lock == "packing":
                ours(torch.ones(5, 2, 3))
            else:
                call_operator(ours)
        os._exit(0)
    leave.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def call_operator(module: Any) -> None:
    weights = list(module.parameters())
    torch.ops.fastlstm.recurrent(
        torch.ones(5, 2, 3), None, None, weights, None, "LSTM", 1, True, False, False
    )


def test_many_threads_may_call_operators() -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            for _ in range(60):
                module = accelerated.LSTM(3, 4)
                for _ in range(3):
                    call_operator(module)
        except BaseException as error:
            errors.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert errors == []


# --- accelerate ---------------------------------------------------------------------------------------------


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 5)
        self.stack = torch.nn.LSTM(5, 7, 2, batch_first=True, bidirectional=True)
        self.cells = torch.nn.ModuleList([torch.nn.GRUCell(14, 14), torch.nn.RNNCell(14, 14)])
        self.linear = torch.nn.Linear(14, 3)

    def forward(self, tokens: Any) -> Any:
        y, _ = self.stack(self.embedding(tokens))
        return self.linear(self.cells[1](y[:, 0], self.cells[0](y[:, -1])))


def test_accelerate_swaps_in_place() -> None:
    model = Model()
    tokens = torch.randint(0, 11, (3, 4))
    wanted = model(tokens)
    optimizer = torch.optim.Adam(model.parameters())
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    text = repr(model)
    model.stack.remark = "mine"
    report = accelerated.accelerate(model)
    assert report.swapped == ["stack", "cells.0", "cells.1"] and report.left == []
    assert "stack: runs on fastlstm" in repr(report)
    assert all(a is b for a, b in zip(modules.values(), dict(model.named_modules()).values(), strict=True))
    assert all(
        a is b for a, b in zip(parameters.values(), dict(model.named_parameters()).values(), strict=True)
    )
    assert repr(model) == text and model.stack.remark == "mine"
    assert type(model.stack) is accelerated.LSTM
    assert_close([model(tokens)], [wanted])
    model(tokens).sum().backward()
    optimizer.step()
    plain = Model()
    plain.load_state_dict(model.state_dict())
    assert_close([model(tokens)], [plain(tokens)])
    assert accelerated.accelerate(model).swapped == []


def test_accelerate_of_a_module_itself() -> None:
    module = torch.nn.GRU(5, 7)
    report = accelerated.accelerate(module)
    assert report.swapped == [""] and type(module) is accelerated.GRU
    assert "the model itself" in repr(report)


def test_accelerate_says_what_it_leaves() -> None:
    class Mine(torch.nn.LSTM):
        pass

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(torch.nn.LSTM(3, 4))
        quantized = torch.ao.quantization.quantize_dynamic(
            torch.nn.Sequential(torch.nn.LSTM(3, 4)), {torch.nn.LSTM}, dtype=torch.qint8
        )
    replaced = torch.nn.GRU(3, 4)
    replaced.forward = lambda x: x  # type: ignore[method-assign]
    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.RNN(3, 4), "weight_hh_l0")
    model = torch.nn.ModuleDict(
        {
            "mine": Mine(3, 4),
            "scripted": scripted,
            "quantized": quantized,
            "narrow": torch.nn.LSTM(3, 4, dtype=torch.float16),
            "meta": torch.nn.GRUCell(3, 4, device="meta"),
            "replaced": replaced,
            "normed": normed,
            "fine": torch.nn.RNN(3, 4),
        }
    )
    report = accelerated.accelerate(model)
    assert report.swapped == ["fine"]
    left = {entry.name: entry.reason for entry in report.left}
    assert left.keys() == {"mine", "scripted", "quantized.0", "narrow", "meta", "replaced", "normed"}
    assert (
        "subclass" in left["mine"] and "scripted" in left["scripted"] and "quantized" in left["quantized.0"]
    )
    assert "float16" in left["narrow"] and "meta" in left["meta"] and "replaced" in left["replaced"]
    assert left["normed"] == "it is parametrized: accelerate first, then parametrize"
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got int"):
        accelerated.accelerate(3)
