"""The paper's experiment in small: fine-tune on real digits, make soups, compare. See docs/demo.md.

The data ships inside packages: nothing is downloaded. Importing this costs nothing and needs no torch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pipeline import DemoResult as DemoResult

INGREDIENTS = 12


def run(
    output: str | os.PathLike[str],
    *,
    seed: int = 0,
    ingredients: int = INGREDIENTS,
    threads: int = 1,
    quiet: bool = False,
) -> DemoResult:
    """Run the whole demo in the directory ``output``; a run that was stopped is continued.

    ``seed`` draws the hyperparameters and seeds the fine-tuning; data, splits and the shared start are the same for
    all seeds. ``threads`` is torch's for the time of the demo: other counts round differently, and one gives the same
    result whatever the number of cores. ``quiet`` prints nothing. What is in ``output`` from another demo is replaced.
    Raises :class:`pysoup.SoupError` where a package is missing.
    """
    from .packages import require

    require("torch", "numpy", "mlxtend", "sklearn", "matplotlib")
    from .pipeline import run_demo

    return run_demo(output, seed=seed, ingredients=ingredients, threads=threads, quiet=quiet)
