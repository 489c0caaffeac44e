"""The loop of a careful torch user: files mapped, tensor by tensor, summed in f32 in place, rounded once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from invocation import StateDict, run


def average(models: Sequence[StateDict], accumulator: torch.dtype = torch.float32) -> StateDict:
    soup: StateDict = {}
    for name, first in models[0].items():
        total = first.to(accumulator, copy=True)
        for model in models[1:]:
            total.add_(model[name])
        soup[name] = total.div_(len(models)).to(first.dtype)
    return soup


if __name__ == "__main__":
    run(average, mapped=True)
