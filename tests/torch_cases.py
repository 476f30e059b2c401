"""Random recurrent modules of PyTorch, their twins on fastlstm, and inputs for both."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm.torch as accelerated

SIZES = (1, 2, 3, 7, 8, 16, 17, 33)
CELLS = ("LSTMCell", "GRUCell", "RNNCell")


class Case(NamedTuple):
    """One configuration: both modules, and arguments for each call of them."""

    theirs: Any
    ours: Any
    input: Any
    state: Any

    def tensors(self) -> list[torch.Tensor]:
        """What can have gradients besides the parameters."""
        data = self.input.data if isinstance(self.input, PackedSequence) else self.input
        return [data, *flat(self.state)]


def flat(thing: Any) -> list[torch.Tensor]:
    """The tensors in a result, in order."""
    if thing is None:
        return []
    if isinstance(thing, PackedSequence):
        return [thing.data]
    return [t for part in thing for t in flat(part)] if isinstance(thing, (tuple, list)) else [thing]


def twins(name: str, *args: Any, **options: Any) -> tuple[Any, Any]:
    """PyTorch's module and ours with the same parameters."""
    theirs = getattr(torch.nn, name)(*args, **options)
    ours = getattr(accelerated, name)(*args, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def stack(seed: int) -> Case:
    """A random LSTM, GRU or RNN and a batch, a sequence, or a PackedSequence."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    name = ("LSTM", "GRU", "RNN")[seed % 3]
    inputs, hidden = (int(rng.choice(SIZES)) for _ in range(2))
    options: dict[str, Any] = {
        "num_layers": int(rng.integers(1, 4)),
        "bias": bool(rng.random() < 0.8),
        "batch_first": bool(rng.random() < 0.5),
        "bidirectional": bool(rng.random() < 0.4),
        "dtype": torch.float64 if rng.random() < 0.4 else torch.float32,
    }
    if name == "LSTM" and hidden > 1 and rng.random() < 0.35:
        options["proj_size"] = int(rng.integers(1, hidden))
    if name == "RNN" and rng.random() < 0.5:
        options["nonlinearity"] = "relu"
    theirs, ours = twins(name, inputs, hidden, **options)
    steps, batch = int(rng.choice((1, 2, 5, 9))), int(rng.choice((1, 2, 3, 7, 17)))
    form = ("batch", "sequence", "packed")[int(rng.integers(3))]
    rows = options["num_layers"] * (2 if options["bidirectional"] else 1)
    widths = [options.get("proj_size") or hidden, hidden][: 2 if name == "LSTM" else 1]
    dtype = options["dtype"]
    if form == "sequence":
        x: Any = torch.randn(steps, inputs, dtype=dtype)
        state = [torch.randn(rows, n, dtype=dtype) for n in widths]
    else:
        shape = (batch, steps) if options["batch_first"] else (steps, batch)
        x = torch.randn(*shape, inputs, dtype=dtype)
        state = [torch.randn(rows, batch, n, dtype=dtype) for n in widths]
    if form == "packed":
        lengths = torch.from_numpy(rng.integers(1, steps + 1, batch))
        ordered = bool(rng.random() < 0.5)
        if ordered:
            lengths = lengths.sort(descending=True).values
        x = pack_padded_sequence(x, lengths, options["batch_first"], enforce_sorted=ordered)
    elif rng.random() < 0.3:  # memory that is not contiguous
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
        state = [s.transpose(0, -1).contiguous().transpose(0, -1) for s in state]
    given = None if rng.random() < 0.3 else tuple(state) if name == "LSTM" else state[0]
    return Case(theirs, ours, x, given)


def cell(seed: int) -> Case:
    """A random LSTMCell, GRUCell or RNNCell and a step."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    name = CELLS[seed % 3]
    inputs, hidden = (int(rng.choice(SIZES)) for _ in range(2))
    dtype = torch.float64 if rng.random() < 0.4 else torch.float32
    options: dict[str, Any] = {"bias": bool(rng.random() < 0.8), "dtype": dtype}
    if name == "RNNCell" and rng.random() < 0.5:
        options["nonlinearity"] = "relu"
    theirs, ours = twins(name, inputs, hidden, **options)
    batch = () if rng.random() < 0.3 else (int(rng.choice((1, 2, 7, 17))),)
    x = torch.randn(*batch, inputs, dtype=dtype)
    state = [torch.randn(*batch, hidden, dtype=dtype) for _ in range(2 if name == "LSTMCell" else 1)]
    given = None if rng.random() < 0.3 else tuple(state) if name == "LSTMCell" else state[0]
    return Case(theirs, ours, x, given)


def assert_same_form(ours: Any, theirs: Any) -> None:
    """Same nesting, types, shapes, dtypes."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, PackedSequence):
        for a, b in zip(ours[1:], theirs[1:], strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
        assert_same_form(ours.data, theirs.data)
    elif isinstance(theirs, tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same_form(a, b)
    else:
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype and ours.device == theirs.device


def assert_close(ours: list[Any], theirs: list[Any], scale: float = 1.0) -> None:
    """float64: 1e-10; float32: 2e-6 times max(1, largest magnitude) times `scale` for what is summed up."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if b is None or not b.numel():
            continue
        bound = (
            (1e-10 if b.dtype == torch.float64 else 2e-6) * scale * max(1.0, float(b.detach().abs().max()))
        )
        assert float((a - b).detach().abs().max()) <= bound
