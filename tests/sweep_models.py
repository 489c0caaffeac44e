"""A small sweep for tests: a network of two layers, 64 samples, three points of eight steps each."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pysoup.finetune import Hyperparameters, Sweep

POINTS = [Hyperparameters(learning_rate=10**-k, epochs=2, mixup=0.3, seed=k, batch_size=16) for k in (1, 2, 3)]


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 5, generator=generator)
    return x, x[:, :3].argmax(1)


def net() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def make(directory: Path, points: list[Hyperparameters] = POINTS, seed: int = 0, **options: object) -> Sweep:
    return Sweep(directory, net(), data(seed), points, data(1), **options)  # type: ignore[arg-type]


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.safetensors"))}
