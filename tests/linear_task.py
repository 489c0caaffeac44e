"""A task of linear models for tests of the commands: its file, checkpoints for it, and its data."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pysoup import HeldOut

TASK = '''
import torch

class Task:
    """Labels of a linear rule; held-out and test data differ."""

    def model(self):
        return torch.nn.Linear(8, 3, bias=False)

    def heldout(self):
        return self._data(1)

    def tests(self):
        return {"shifted": self._data(2)}

    def _data(self, seed):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(300, 8, generator=g)
        rule = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
        return [(x, (x @ rule.T).argmax(1))]
'''
NAMES = ("useless", "good", "better", "fair")


def write_task(folder: Path) -> str:
    """The task's file in ``folder``; returns its name for ``--task``."""
    (folder / "task.py").write_text(TASK)
    return f"{folder / 'task.py'}:Task"


def write_checkpoints(folder: Path) -> list[str]:
    """Three noisy copies of the true weights and one that is all noise, in ``folder``; their paths."""
    noise = torch.Generator().manual_seed(3)
    paths = []
    for name, scale in zip(NAMES, (30.0, 0.5, 0.4, 0.6), strict=True):
        paths.append(str(folder / f"{name}.safetensors"))
        save_file({"weight": rule() + scale * torch.randn(3, 8, generator=noise)}, paths[-1])
    return paths


def rule() -> Tensor:
    return torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def linear() -> nn.Module:
    return nn.Linear(8, 3, bias=False)


def held_out(seed: int) -> HeldOut:
    """The held-out data for ``seed`` 1, the test data for 2."""
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(seed))
    return HeldOut([(x, (x @ rule().T).argmax(1))])
