"""Accelerated models under DistributedDataParallel: two processes, one batch, the result of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import fastlstm.torch as accelerated  # noqa: E402

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch without gloo",
)

STEPS, BATCH = 5, 8


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(5, 7, 2, bidirectional=True)
        self.decoder = nn.GRU(14, 6)
        self.cell = nn.RNNCell(6, 6)
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Any) -> Any:
        y, _ = self.decoder(self.encoder(x)[0])
        return self.linear(self.cell(y[-1], y[0]))


def trained(part: slice, wrap: Any = None, swap: bool = True) -> dict[str, Any]:
    """The parameters after a few steps on this part of each batch."""
    torch.manual_seed(0)
    model: Any = Model().double()
    data = [(torch.randn(6, BATCH, 5).double(), torch.randn(BATCH, 3).double()) for _ in range(STEPS)]
    if swap:
        assert len(accelerated.accelerate(model).swapped) == 3
    runs = wrap(model) if wrap else model
    optimizer = torch.optim.SGD(runs.parameters(), lr=0.5, momentum=0.9)
    for x, target in data:
        optimizer.zero_grad()
        (runs(x[:, part]) - target[part]).square().mean().backward()
        optimizer.step()
    return dict(model.state_dict())


def worker(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    half = BATCH // 2
    state = trained(slice(rank * half, (rank + 1) * half), nn.parallel.DistributedDataParallel)
    torch.save(state, f"{out}.{rank}")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Equal halves, so the mean of the gradients is the gradient of the mean; all-reduce adds them in another
    order: 1e-10, float64."""
    store, out = str(tmp_path / "store"), str(tmp_path / "state")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "FASTLSTM_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, json.dumps([rank, store, out])],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        try:
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == 0, errors
    first, second = (torch.load(f"{out}.{rank}") for rank in range(2))
    alone, plain = trained(slice(None)), trained(slice(None), swap=False)
    start = Model().state_dict()
    assert first.keys() == alone.keys() == plain.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name])
        torch.testing.assert_close(value, alone[name], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(value, plain[name], rtol=1e-9, atol=1e-9)
        assert float((value - start[name]).abs().max()) > 1e-3


if __name__ == "__main__":
    worker(*json.loads(sys.argv[1]))
