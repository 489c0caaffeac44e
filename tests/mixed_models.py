"""Models to be mixed, with all that makes them hard to mix, and their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pysoup import open_checkpoint


class Net(nn.Module):
    """A tied pair, buffers with and without a mean, a 0-dim parameter, a channels-last weight, and ``large``,
    by default a matrix of several tiles."""

    def __init__(self, large: nn.Module | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm1d(6)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.large = nn.Linear(131, 127, bias=False) if large is None else large


def states(count: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[dict[str, Tensor]]:
    """Tied names are one tensor; an ingredient's number of batches is its index."""
    made = []
    for k in range(count):
        generator = torch.Generator().manual_seed(seed + k)
        state = Net().state_dict()
        for name, tensor in state.items():
            if tensor.is_floating_point():
                state[name] = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(dtype)
        state["head.weight"] = state["embed.weight"]
        state["norm.num_batches_tracked"] = torch.tensor(k)
        made.append(state)
    return made


def saved(directory: Path, given: Sequence[dict[str, Tensor]]) -> list[tuple[str, Any]]:
    """In two formats, alternating; safetensors has one of the tied names."""
    sources = []
    for k, state in enumerate(given):
        path = directory / f"{k}.{'pt' if k % 2 else 'safetensors'}"
        if k % 2:
            torch.save(state, path)
        else:
            save_file({n: t.contiguous() for n, t in state.items() if n != "head.weight"}, path)
        sources.append((path.name, open_checkpoint(path)))
    return sources


def granules(names: Sequence[str]) -> list[list[str]]:
    """Three: in turn, so that none is a run of neighbours."""
    return [list(names[g::3]) for g in range(3)]


def gradients(names: Sequence[str], state: dict[str, Tensor], seed: int = 9) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(state[name].shape, generator=generator) for name in names]
