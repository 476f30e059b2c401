"""A PyTorch classifier of text, trained in plain PyTorch and then sped up by one line:
python examples/torch_classifier.py [--steps 200] [--threads 1]

The task: is a line out of a Python file code, or prose of a docstring? The lines are those of Python's own
standard library, which is wherever this runs. The model reads a line character by character, both ways, and
sees a batch of lines of any lengths as a PackedSequence. Modules that it is tested on are not those that it
learnt from; their lines are balanced, so guessing is right half the time.

Needs PyTorch: pip install "fastlstm[torch]"
"""

from __future__ import annotations

import argparse
import ast
import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

try:
    import torch
except ImportError:
    sys.exit('this example needs PyTorch: pip install "fastlstm[torch]"')

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
import fastlstm.torch

LEARN = (
    "argparse",
    "ast",
    "calendar",
    "difflib",
    "email/message",
    "inspect",
    "logging/__init__",
    "mailbox",
    "pickle",
    "random",
    "statistics",
    "tarfile",
    "typing",
    "unittest/mock",
    "urllib/request",
)
TEST = ("bdb", "doctest", "fractions", "heapq", "optparse", "shutil", "subprocess", "textwrap")
LONGEST = 80  # characters of a line


def lines(name: str) -> Iterator[tuple[str, int]]:
    """Stripped lines of a module of the standard library: 1 for prose of docstrings, 0 for code."""
    source = (Path(ast.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    prose: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            text = node.body[0]
            prose.update(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    for number, line in enumerate(source.splitlines(), 1):
        stripped = line.strip().strip('"')
        if len(stripped) > 3 and stripped.isascii() and not stripped.startswith("#"):
            yield stripped[:LONGEST], int(number in prose)


def balanced(names: tuple[str, ...], seed: int) -> list[tuple[str, int]]:
    """As many lines of prose as of code, shuffled."""
    found = sorted({line for name in names for line in lines(name)})
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
    kinds = [[found[i] for i in order if found[i][1] == kind] for kind in (0, 1)]
    return [line for pair in zip(*kinds, strict=False) for line in pair]


class Classifier(nn.Module):
    """Characters, a bidirectional LSTM, a linear layer on what both directions end with."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 24, padding_idx=0)
        self.lstm = nn.LSTM(24, hidden, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * hidden, 2)

    def forward(self, characters: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            self.embedding(characters), lengths, batch_first=True, enforce_sorted=False
        )
        _, (h, _) = self.lstm(packed)
        return self.linear(torch.cat((h[-2], h[-1]), dim=1))


def batch(examples: list[tuple[str, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Padded characters [B, T], lengths and answers."""
    lengths = torch.tensor([len(line) for line, _ in examples])
    characters = torch.zeros(len(examples), int(lengths.max()), dtype=torch.int64)
    for row, (line, _) in zip(characters, examples, strict=True):
        row[: len(line)] = torch.tensor(list(line.encode()))
    return characters, lengths, torch.tensor([kind for _, kind in examples])


def step(model: nn.Module, optimizer: torch.optim.Optimizer, examples: list[tuple[str, int]]) -> float:
    characters, lengths, answers = batch(examples)
    loss = nn.functional.cross_entropy(model(characters, lengths), answers)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def train(model: nn.Module, examples: list[tuple[str, int]], steps: int, size: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for k in range(steps):
        begin = k * size % (len(examples) - size)
        loss = step(model, optimizer, examples[begin : begin + size])
        if k % 50 == 0 or k == steps - 1:
            print(f"step {k + 1:4}: loss {loss:.3f}", flush=True)


def in_turns(calls: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Median milliseconds of each, measured in turns so that a busy machine slows all alike."""
    times: list[list[float]] = [[] for _ in calls]
    for k in range(rounds + 2):
        for call, found in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            if k >= 2:  # the first ones warm up
                found.append(1e3 * (time.perf_counter() - begin))
    return [statistics.median(found) for found in times]


def main() -> None:
    parser = argparse.ArgumentParser(description="A PyTorch classifier of text, sped up by one line.")
    parser.add_argument("--steps", type=int, default=200, help="steps of training")
    parser.add_argument("--threads", type=int, default=1, help="threads of either engine")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.steps < 1 or arguments.threads < 1:
        parser.error("--steps and --threads must be at least 1")
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    fastlstm.set_num_threads(arguments.threads)

    learn, test = balanced(LEARN, arguments.seed), balanced(TEST, arguments.seed)
    print(f"{len(learn)} lines to learn from, {len(test)} to test, half of them prose")
    model = Classifier()
    train(model, learn, arguments.steps, 32)

    plain = copy.deepcopy(model).eval()
    model.eval()
    report = fastlstm.torch.accelerate(model)  # the one line
    print(report)

    characters, lengths, answers = batch(test)
    with torch.no_grad():
        wanted, found = plain(characters, lengths), model(characters, lengths)
    print(f"right, PyTorch   {float((wanted.argmax(1) == answers).double().mean()):.3f}")
    print(f"right, fastlstm  {float((found.argmax(1) == answers).double().mean()):.3f}")
    print(f"largest difference of a logit {float((wanted - found).abs().max()):.1e}")

    free = fastlstm.from_torch(plain)  # NumPy in and out, PyTorch no longer needed
    output, _ = free(characters.numpy(), lengths=lengths.numpy())
    print(f"largest difference without PyTorch {float(abs(output - wanted.numpy()).max()):.1e}")

    print(f"{'milliseconds':28}{'PyTorch':>10}{'fastlstm':>10}{'gain':>8}")
    many, one = test[:32], test[:1]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.0) for m in (plain, model)]
    with torch.no_grad():
        rows = {
            "32 lines": in_turns([lambda m=m: m(*batch(many)[:2]) for m in (plain, model)], 15),
            "one line": in_turns([lambda m=m: m(*batch(one)[:2]) for m in (plain, model)], 60),
        }
    rows["a training step of 32 lines"] = in_turns(
        [lambda m=m, o=o: step(m, o, many) for m, o in zip((plain, model), optimizers, strict=True)],
        15,
    )
    for name, (theirs, ours) in rows.items():
        print(f"{name:28}{theirs:10.2f}{ours:10.2f}{theirs / ours:7.1f}x")


if __name__ == "__main__":
    main()
