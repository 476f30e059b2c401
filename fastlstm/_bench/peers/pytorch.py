"""PyTorch."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..grid import LAYERS, Array, Problem, flat
from .base import Call, Cannot, Column, Peer, nested, refuse_options

OPTIONS = ("num_layers", "bias", "bidirectional", "proj_size", "nonlinearity")  # that torch.nn takes too


class Torch(Peer):
    """torch.nn in inference_mode, with or without oneDNN; one step: its Cell too; ragged: packed. Training:
    zero_grad(set_to_none=True), forward, backward; ragged: packed, and padded in a column of its own. int8:
    quantize_dynamic by each of its engines. bfloat16: the module converted."""

    name: ClassVar[str] = "torch"
    needs: ClassVar[tuple[str, ...]] = ("torch",)
    distributions: ClassVar[tuple[str, ...]] = ("torch", "numpy")

    def __init__(self, threads: int) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.torch.set_num_threads(threads)
        self.mode, self.inferring = self.torch.inference_mode(), False

    def _enter(self, infer: bool, onednn: bool = True) -> None:
        """Without a context manager's share in what is timed."""
        self.torch.backends.mkldnn.set_flags(onednn)
        if infer and not self.inferring:
            self.mode.__enter__()
        elif self.inferring and not infer:
            self.mode.__exit__(None, None, None)
        self.inferring = infer

    def close(self) -> None:
        self._enter(infer=False)

    def _layer(self, p: Problem) -> Any:
        if p.row.cell == "gated_rnn":
            raise Cannot("no GatedRNN")
        refuse_options(p, *OPTIONS)
        kind, dtype = getattr(self.torch.nn, LAYERS[p.row.cell]), getattr(self.torch, p.row.dtype)
        layer = kind(p.row.inputs, p.row.units, **p.row.options, dtype=dtype)
        layer.load_state_dict({name: self.torch.from_numpy(w) for name, w in p.weights.items()})
        return layer

    def _training(self, p: Problem, padded: bool) -> list[Call]:
        """Padded: the whole rectangle, whose last states are none of the sequences' own."""
        self._enter(infer=False)
        torch, layer, rnn = self.torch, self._layer(p), self.torch.nn.utils.rnn
        x, *states = (torch.from_numpy(v.copy()).requires_grad_() for v in (p.x, *p.state))
        state, d_output = nested(tuple(states)), torch.from_numpy(p.d_output)
        lengths = None if p.lengths is None or padded else torch.from_numpy(p.lengths)

        def run() -> Any:
            layer.zero_grad(set_to_none=True)
            for leaf in (x, *states):
                leaf.grad = None
            if lengths is None:
                y, last = layer(x, state)
            else:
                packed, last = layer(rnn.pack_padded_sequence(x, lengths, enforce_sorted=False), state)
                y = rnn.pad_packed_sequence(packed, total_length=p.row.steps)[0]
            y.backward(d_output)
            return y, last

        def read(result: Any) -> tuple[Array, ...]:
            y, *last = (t.detach().numpy().copy() for t in flat(result))
            if padded and p.lengths is not None:
                y[np.arange(p.row.steps)[:, None] >= p.lengths] = 0
                last = []
            gradients = [t.grad.numpy().copy() for t in (x, *states, *layer.parameters())]
            return (y, *last, *gradients)

        variants = ((True, "oneDNN"), (False, "no oneDNN"))
        kind = f"nn.{LAYERS[p.row.cell]}"
        return [Call(run, read, f"{kind}, {name}", partial(self._enter, False, on)) for on, name in variants]

    def beside(self, p: Problem) -> list[Column]:
        """Training on the padded batch, as most people do: the same gradients, as d_output is 0 there."""
        if not (p.row.train and p.row.ragged):
            return []
        states = len(p.state)
        q = replace(p, expected=(p.expected[0], *p.expected[1 + states :]))
        return [Column("torch padded", q, partial(self._training, q, padded=True))]

    def calls(self, p: Problem) -> list[Call]:
        if p.row.train:
            return self._training(p, padded=False)
        self._enter(infer=True)
        torch, kind = self.torch, LAYERS[p.row.cell]
        layer = self._layer(p)
        x, states = torch.from_numpy(p.x), [torch.from_numpy(s) for s in p.state]
        state = nested(tuple(states))

        def read(result: Any) -> tuple[Array, ...]:
            return tuple(t.numpy().copy() for t in flat(result))

        if p.lengths is not None:
            rnn, lengths = torch.nn.utils.rnn, torch.from_numpy(p.lengths)

            def run() -> Any:
                y, last = layer(rnn.pack_padded_sequence(x, lengths, enforce_sorted=False), state)
                return rnn.pad_packed_sequence(y, total_length=p.row.steps)[0], last

        else:
            run = partial(layer, x, state)
        calls = []
        for on, variant in ((True, "oneDNN"), (False, "no oneDNN")):
            calls.append(Call(run, read, f"nn.{kind}, {variant}", partial(self._enter, True, on)))
        if p.row.steps == 1 and not p.row.options:
            dtype = getattr(torch, p.row.dtype)
            cell = getattr(torch.nn, kind + "Cell")(p.row.inputs, p.row.units, dtype=dtype)
            cell.load_state_dict({name.removesuffix("_l0"): w for name, w in layer.state_dict().items()})

            def read_cell(last: Any) -> tuple[Array, ...]:
                last = last if isinstance(last, tuple) else (last,)
                return tuple(t.numpy()[None].copy() for t in (last[0], *last))

            run = partial(cell, x[0], nested(tuple(s[0] for s in states)))
            calls.append(Call(run, read_cell, f"nn.{kind}Cell", partial(self._enter, True)))
        return calls



    def reduced(self, p: Problem) -> list[Column]:
        return [
            Column("torch bfloat16", p, partial(self._bfloat16, p)),
            Column("torch int8", p, partial(self._int8, p)),
        ]

    def _bfloat16(self, p: Problem) -> list[Call]:
        self._enter(infer=True)
        torch = self.torch
        layer = self._layer(p).to(torch.bfloat16)
        x, *states = (torch.from_numpy(v).to(torch.bfloat16) for v in (p.x, *p.state))
        run = partial(layer, x, nested(tuple(states)))

        def read(result: Any) -> tuple[Array, ...]:
            return tuple(t.float().numpy() for t in flat(result))

        variants = ((True, "oneDNN"), (False, "no oneDNN"))
        return [Call(run, read, name, partial(self._enter, True, on)) for on, name in variants]

    def _int8(self, p: Problem) -> list[Call]:
        torch, found = self.torch, []
        self._enter(infer=True)
        x, *states = (torch.from_numpy(v) for v in (p.x, *p.state))

        def read(result: Any) -> tuple[Array, ...]:
            return tuple(t.numpy().copy() for t in flat(result))

        def enter(engine: str) -> None:
            self._enter(infer=True)
            torch.backends.quantized.engine = engine

        for engine in torch.backends.quantized.supported_engines:
            if engine == "none":
                continue
            enter(engine)  # it packs the weights
            plain = torch.nn.Sequential(self._layer(p))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that this entrance is old: it is the one that there is
                (layer,) = torch.ao.quantization.quantize_dynamic(plain, {type(plain[0])}, dtype=torch.qint8)
            found.append(Call(partial(layer, x, nested(tuple(states))), read, engine, partial(enter, engine)))
        return found

    def pooled(self, p: Problem) -> list[Column]:
        return [Column(self.name, p, partial(self._carried, p))]

    def _carried(self, p: Problem) -> list[Call]:
        """One batch; its states go from call to call, of each variant its own."""
        torch, layer = self.torch, self._layer(p)

        def carrying() -> Callable[[], Any]:
            x, *states = (torch.from_numpy(v.copy()) for v in (p.x, *p.state))
            state = nested(tuple(states))

            def run() -> Any:
                nonlocal state
                y, state = layer(x, state)
                return y

            return run

        variants = ((True, "oneDNN"), (False, "no oneDNN"))
        return [
            Call(carrying(), lambda y: (y.numpy().copy(),), f"batch, {name}", partial(self._enter, True, on))
            for on, name in variants
        ]

    def cold(self, p: Problem, folder: Path) -> str:
        self.torch.save(self._layer(p).state_dict(), folder / "model.pt")
        return (
            f"import torch; m = torch.nn.LSTM({p.row.inputs}, {p.row.units}); "
            "m.load_state_dict(torch.load('model.pt')); torch.set_grad_enabled(False); "
            "y = m(torch.from_numpy(x))[0].numpy()"
        )
