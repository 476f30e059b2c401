"""Train the character model that `fastlstm demo` ships: python tools/train_demo_model.py [options]

The text is the source of the running Python's own standard library, without tests, without tables of data
and without the one module that the demo reads by default. The model is p_t = softmax(W_o h_t) over an
alphabet of 97 symbols, h_t from one LSTM layer that sees the character before as a one-hot vector. Such an
input picks one column of W_ih, so a bias would add nothing to that table and there is none. Trained by
truncated backpropagation through time with the state carried on: sixteen readers walk through the text side
by side, each from its own place.

Needs PyTorch. One thread takes some 25 minutes; the seed, the Python version and the machine fix the outcome.
Tried: forget gates biased open by 1 and a wider W_ih to begin with, each worse; rates from 3e-3 to 2.5e-2.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save

from fastlstm._demo import HELD_OUT, encode, normalise

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))  # and one symbol more for all other characters
TARGET = Path(__file__).parent.parent / "fastlstm" / "data" / "charlm.safetensors"
# Tests repeat themselves, tables are neither prose nor program, and installed packages are not the library.
LEFT_OUT = {"dist-packages", "encodings", "idle_test", "pydoc_data", "site-packages", "test", "tests"}


def corpus(rng: random.Random, modules: int) -> list[str]:
    """So many modules of the standard library (0: all), in random order, but not the one held out."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(p for p in root.rglob("*.py") if not LEFT_OUT & set(p.relative_to(root).parts))
    rng.shuffle(paths)
    texts = []
    for path in paths[: modules or None]:
        if path != root / f"{HELD_OUT}.py" and not path.name.startswith("_sysconfigdata"):
            try:
                texts.append(normalise(path.read_text(encoding="utf-8")))
            except UnicodeDecodeError:
                continue
    return texts


class Model(torch.nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.symbols = len(ALPHABET) + 1
        self.lstm = torch.nn.LSTM(self.symbols, hidden, bias=False)
        self.out = torch.nn.Linear(hidden, self.symbols, bias=False)

    def forward(
        self, codes: torch.Tensor, state: tuple[torch.Tensor, ...] | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """codes [T, B] -> log-odds [T, B, symbols] of the next character, state."""
        y, state = self.lstm(torch.nn.functional.one_hot(codes, self.symbols).float(), state)
        return self.out(y), tuple(s.detach() for s in state)

    @torch.no_grad()
    def bits(self, texts: list[str]) -> float:
        """Bits per character, each text read from its start with a fresh state, as the demo does it."""
        total, count = 0.0, 0
        for text in texts:
            codes = torch.from_numpy(encode("\n" + text, ALPHABET))[:, None]
            log_odds, _ = self(codes[:-1])
            total += torch.nn.functional.cross_entropy(log_odds[:, 0], codes[1:, 0], reduction="sum").item()
            count += len(text)
        return total / count / math.log(2)


def train(model: Model, codes: np.ndarray, options: argparse.Namespace, validation: list[str]) -> None:
    batch, steps, updates = options.batch, options.steps, options.updates
    per_epoch = (len(codes) - 1) // batch // steps  # updates
    optimiser = torch.optim.Adam(model.parameters(), lr=options.rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(  # a warm-up, then half a cosine down to nothing
        optimiser, lambda n: min((n + 1) / 300, 0.5 + 0.5 * math.cos(math.pi * n / updates))
    )
    text = torch.from_numpy(codes)
    rng = random.Random(options.seed)
    started = shown = time.monotonic()
    state, mean, starts = None, math.nan, torch.zeros(0)
    for update in range(updates):
        at = update % per_epoch
        if at == 0:  # another offset for every pass: the same words meet another cut and other neighbours
            first = rng.randrange(len(codes))
            starts = (first + torch.arange(batch) * (len(codes) // batch)) % len(codes)
            state = None
        window = text[(starts + torch.arange(at * steps, (at + 1) * steps + 1)[:, None]) % len(codes)]
        log_odds, state = model(window[:-1], state)
        loss = torch.nn.functional.cross_entropy(log_odds.flatten(0, 1), window[1:].flatten())
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        bits = loss.item() / math.log(2)
        mean = bits if math.isnan(mean) else 0.995 * mean + 0.005 * bits
        now = time.monotonic()
        if now - shown > 20 or update + 1 == updates:
            shown = now
            share, spent = (update + 1) / updates, now - started
            print(
                f"{share:6.1%}  pass {update / per_epoch:5.2f}  {mean:.3f} bits/char"
                f"  held back {model.bits(validation[:6]):.3f}"
                f"  {batch * steps * (update + 1) / spent / 1e3:.0f}k char/s"
                f"  {spent / share - spent:.0f} s left",
                flush=True,
            )


def write(path: Path, model: Model, about: dict[str, str]) -> None:
    """Halve the weights to float16 and write them in one go: a reader sees the old file or the new one."""
    tensors = {
        **model.lstm.state_dict(),  # weight_ih_l0 [4H, symbols], weight_hh_l0 [4H, H]
        "weight_out": model.out.weight.detach(),  # [symbols, H]
    }
    halves = {name: tensor.half().numpy() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(save(halves, metadata=about))
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Train the character model that `fastlstm demo` ships.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--hidden", type=int, default=176, help="units of the LSTM layer")
    parser.add_argument("--batch", type=int, default=16, help="readers side by side")
    parser.add_argument("--steps", type=int, default=128, help="characters between two updates")
    parser.add_argument("--updates", type=int, default=36_000)
    parser.add_argument("--rate", type=float, default=1.5e-2, help="the highest learning rate")
    parser.add_argument("--modules", type=int, default=0, help="read only so many modules, for a try; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=TARGET)
    options = parser.parse_args()
    for name in ("hidden", "batch", "steps", "updates", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if options.modules < 0:
        parser.error("--modules must be at least 0")

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    texts = corpus(random.Random(options.seed), options.modules)
    if len(texts) < 20:
        print(f"only {len(texts)} modules in {sysconfig.get_path('stdlib')}", file=sys.stderr)
        return 1
    tail = len(texts) // 20
    codes = encode("\n".join(texts[:-tail]), ALPHABET)
    if len(codes) <= options.batch * options.steps:
        parser.error(f"--batch and --steps ask for more than {len(codes)} characters at a time")
    held_out = normalise((Path(sysconfig.get_path("stdlib")) / f"{HELD_OUT}.py").read_text(encoding="utf-8"))
    model = Model(options.hidden)
    print(
        f"{len(texts) - tail} modules, {len(codes) / 1e6:.2f}M characters; {tail} modules and {HELD_OUT} held"
        f" back; {sum(p.numel() for p in model.parameters())} weights",
        flush=True,
    )
    train(model, codes, options, texts[-tail:])

    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.half())  # measure what is shipped
    bits, bits_held_out = model.bits(texts[-tail:]), model.bits([held_out])
    about = {
        "format": "fastlstm character model",
        "version": "1",
        "alphabet": json.dumps(ALPHABET),
        "hidden_size": str(options.hidden),
        "held_out": HELD_OUT,
        "bits_per_character": f"{bits_held_out:.4f}",
        "bits_per_character_held_back": f"{bits:.4f}",
        "text": f"standard library of Python {platform.python_version()} (PSF licence)",
        "options": json.dumps({k: v for k, v in vars(options).items() if k not in ("output", "threads")}),
    }
    write(options.output, model, about)
    size = options.output.stat().st_size
    print(f"{options.output}: {size} bytes; bits/char: {bits:.4f} held back, {bits_held_out:.4f} {HELD_OUT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
