"""``pysoup pruned``, ``greedier`` and ``ensemble``: the recipes beside the paper's own two soups."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress import step_bar
from .choose import Best
from .models import require_torch, show, sources_of, steps

if TYPE_CHECKING:
    from torch import nn

    from ..evaluate import HeldOut, Metric
    from ..soups import Ensemble, Soup


def pruned(
    task: str,
    checkpoints: list[str],
    output: str,
    *,
    metric: str | None,
    entry: str | None,
    best: Best | None,
    overwrite: bool,
    **options: Any,
) -> None:
    """Make the pruned soup by the recipe's ``options``, and print each step, the score and the files written."""
    require_torch()
    from ..soups import pruned_soup
    from ..soups.command import run_recipe

    sources, notes = sources_of(checkpoints, entry, best)
    with step_bar("pruned soup") as progress:

        def recipe(model: nn.Module, heldout: HeldOut, metric: Metric, run: Path | None) -> Soup:
            return pruned_soup(sources, model, heldout, metric, run=run, progress=progress, **options)

        soup = run_recipe(task, sources, output, metric, overwrite, recipe)
    print(steps(soup, ("soup without it", "soup before"), ("dropped", "stays")))
    show(soup, output, notes)


def greedier(
    task: str,
    checkpoints: list[str],
    output: str,
    *,
    metric: str | None,
    entry: str | None,
    best: Best | None,
    overwrite: bool,
    **options: Any,
) -> None:
    """Make the greedier soup by the recipe's ``options``, and print each step, the score and the files written."""
    require_torch()
    from ..soups import greedier_soup
    from ..soups.command import run_recipe

    sources, notes = sources_of(checkpoints, entry, best)
    with step_bar("greedier soup") as progress:

        def recipe(model: nn.Module, heldout: HeldOut, metric: Metric, run: Path | None) -> Soup:
            return greedier_soup(sources, model, heldout, metric, run=run, progress=progress, **options)

        soup = run_recipe(task, sources, output, metric, overwrite, recipe)
    print(steps(soup))
    show(soup, output, notes)


def ensemble(
    task: str,
    checkpoints: list[str],
    output: str,
    *,
    metric: str | None,
    entry: str | None,
    best: Best | None,
    overwrite: bool,
    every: bool,
    integers: str,
    **options: Any,
) -> None:
    """Make the ensemble of ``every`` checkpoint, or the greedy one by the recipe's ``options``; print what it is."""
    require_torch()
    from ..soups import greedy_ensemble, logit_ensemble
    from ..soups.command import run_recipe

    sources, notes = sources_of(checkpoints, entry, best)
    with step_bar("ensemble") as progress:

        def recipe(model: nn.Module, heldout: HeldOut, metric: Metric, run: Path | None) -> Ensemble:
            if every:
                return logit_ensemble(sources, model, heldout, metric, integers=integers, progress=progress)
            return greedy_ensemble(
                sources, model, heldout, metric, run=run, integers=integers, progress=progress, **options
            )

        made = run_recipe(task, sources, output, metric, overwrite, recipe, selects=not every)
    if made.trace:
        print(steps(made, ("ensemble with it", "ensemble before")))
    show(made, output, notes)
