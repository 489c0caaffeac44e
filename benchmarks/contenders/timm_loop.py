"""timm's way: whole checkpoints one after another, sums in f64 with a count per name, clamped to f32, saved as f32.

Our rendering of what pytorch-image-models/avg_checkpoints.py does; its SHA-256 of the output is left out.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from invocation import StateDict, run


def average(models: Iterable[StateDict]) -> StateDict:
    sums: StateDict = {}
    counts: dict[str, int] = {}
    for model in models:
        for name, tensor in model.items():
            if name in sums:
                sums[name] += tensor.to(torch.float64)
                counts[name] += 1
            else:
                sums[name] = tensor.clone().to(torch.float64)
                counts[name] = 1
    for name, tensor in sums.items():
        tensor.div_(counts[name])
    limits = torch.finfo(torch.float32)
    return {name: tensor.clamp(limits.min, limits.max).to(torch.float32) for name, tensor in sums.items()}


if __name__ == "__main__":
    run(average)
