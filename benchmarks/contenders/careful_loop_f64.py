"""The careful loop with an f64 sum: what one would write for the smallest error."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from careful_loop import average as careful
from invocation import StateDict, run


def average(models: Sequence[StateDict]) -> StateDict:
    return careful(models, torch.float64)


if __name__ == "__main__":
    run(average, mapped=True)
