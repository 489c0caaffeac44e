"""One pass for each checkpoint: what both ensembles begin with."""

from __future__ import annotations

import os
from collections.abc import Callable

from ..evaluate import Metric
from .candidates import naming
from .logit_cache import LogitCache
from .logit_sum import LogitSum
from .scorer import Scorer


def collect_logits(
    scorer: Scorer,
    cache: LogitCache,
    metric: Metric,
    run: str | os.PathLike[str] | None,
    take: Callable[[int], None] | None = None,
) -> None:
    """Have ``cache`` get the logits of all candidates in turn, and call ``take(index)`` after each.

    What does not fit ``metric`` is an error after the first one: it must not show after the last one's pass. ``run`` is
    the same for every ensemble of these candidates, whatever its metric and options.
    """
    scorer.cache = cache

    def check(index: int) -> None:
        if index == 0:
            with naming(f"scoring {scorer.candidates[0].name}", "the model holds it"):
                LogitSum(cache, metric).with_each([0])
        if take is not None:
            take(index)

    with scorer.recording(run, "greedy ensemble"):
        scorer.evaluations = len(scorer.candidates)
        scorer.logits(range(len(scorer.candidates)), check)
