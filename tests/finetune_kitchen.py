"""A small sweep and the command on it, for the tests of ``pysoup finetune``: three runs of eight steps each."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TASK = """
import os, time
from pathlib import Path
import torch
from torch import nn

class Task:
    head = "2"

    def model(self):
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))

    def data(self, seed):
        x = torch.randn(64, 5, generator=torch.Generator().manual_seed(seed))
        return x, x[:, :3].argmax(1)

    def train(self):
        return self.data(0)

    def heldout(self):
        return self.data(1)

    def tests(self):
        return {"test": self.data(2)}

    def augment(self, inputs, hp, generator):
        if hp.augment_ops == 1:  # slow, and says that it has begun
            Path(f"begun_{hp.seed}").write_text(str(os.getpid()))
            time.sleep(float(os.environ.get("SLOW", "0")))
        if hp.augment_ops == 2:
            raise ValueError("no such picture")
        if hp.augment_ops == 3:
            return inputs * float("inf")
        return inputs

class NoTraining(Task):
    train = None

class NoHead(Task):
    head = None

class NoFile(Task):
    def train(self):
        raise FileNotFoundError("train.tsv")

class NoLabels(Task):
    def train(self):
        return {"input": torch.zeros(4, 5), "label": torch.zeros(4)}

class FloatLabels(Task):
    def train(self):
        x, y = super().train()
        return x, y.float()

class ShortLabels(Task):
    def train(self):
        x, y = super().train()
        return x, y.to(torch.int8)

class Shuffled(Task):
    def train(self):
        x, y = super().train()
        order = torch.randperm(64, generator=torch.Generator().manual_seed(os.getpid()))
        return x[order], y[order]
"""
SWEEP = """
task = "tasks.py:Task"
[start]
epochs = 3
[training]
epochs = 2
batch_size = 16
augment_ops = 1
[grid]
learning_rate = [0.1, 0.01, 0.001]
seed = [1]
"""


def furnish(folder: Path) -> Path:
    """The task and the sweep file in ``folder``."""
    (folder / "tasks.py").write_text(TASK)
    (folder / "sweep.toml").write_text(SWEEP)
    return folder


def finished_sweep(folder: Path) -> Path:
    """A sweep that two processes made, in ``runs/x``; what was printed is in ``said``."""
    furnish(folder)
    run = pysoup(folder, "finetune", "sweep.toml", "-o", "runs/x", "--jobs", "2")
    assert run.returncode == 0, run.stderr
    (folder / "said").write_text(run.stdout)
    return folder


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pysoup", *arguments]


def pysoup(kitchen: Path, *arguments: str, slow: float = 0.0) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SLOW": str(slow)}
    return subprocess.run(command(*arguments), cwd=kitchen, env=environment, capture_output=True, text=True)


def begin(kitchen: Path, *arguments: str, slow: float) -> subprocess.Popen[str]:
    environment = os.environ | {"SLOW": str(slow)}
    return subprocess.Popen(command(*arguments), cwd=kitchen, env=environment, stderr=subprocess.PIPE, text=True)


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # A zombie whose parent is this container's init counts as gone, too.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def sweep_of(kitchen: Path, change: tuple[str, str], name: str = "other.toml") -> str:
    (kitchen / name).write_text(SWEEP.replace(*change))
    return name
