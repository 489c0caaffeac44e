"""``pysoup uniform``, ``greedy``, ``pruned``, ``greedier`` and ``ensemble``: recipes, which run models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..progress import step_bar
from .choose import Best, choose
from .models import require_torch, show, steps

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint


def uniform(task: str, checkpoints: list[str], output: str, **options: Any) -> None:
    """Make the uniform soup, and print its score and the files written."""
    made, notes = _made("uniform_soup", "uniform soup", task, checkpoints, output, records=False, **options)
    show(made, output, notes)


def greedy(task: str, checkpoints: list[str], output: str, **options: Any) -> None:
    """Make the greedy soup by the recipe's ``options``, and print each step, the score and the files written."""
    made, notes = _made("greedy_soup", "greedy soup", task, checkpoints, output, **options)
    print(steps(made))
    show(made, output, notes)


def pruned(task: str, checkpoints: list[str], output: str, **options: Any) -> None:
    """The same of the pruned soup."""
    made, notes = _made("pruned_soup", "pruned soup", task, checkpoints, output, **options)
    print(steps(made, ("soup without it", "soup before"), ("dropped", "stays")))
    show(made, output, notes)


def greedier(task: str, checkpoints: list[str], output: str, **options: Any) -> None:
    """The same of the greedier soup."""
    made, notes = _made("greedier_soup", "greedier soup", task, checkpoints, output, **options)
    print(steps(made))
    show(made, output, notes)


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
    made, notes = _made(
        "logit_ensemble" if every else "greedy_ensemble",
        "ensemble",
        task,
        checkpoints,
        output,
        metric=metric,
        entry=entry,
        best=best,
        overwrite=overwrite,
        integers=integers,
        **({} if every else options),
    )
    if made.trace:
        print(steps(made, ("ensemble with it", "ensemble before")))
    show(made, output, notes)


def _made(
    recipe: str,
    title: str,
    task: str,
    checkpoints: list[str],
    output: str,
    *,
    entry: str | None,
    best: Best | None,
    **options: Any,
) -> tuple[Any, list[str]]:
    """What the ``recipe`` of :mod:`pysoup.soups` makes, under a bar with a ``title``, and notes on what was found."""
    require_torch()
    from .. import soups
    from ..soups.command import run_recipe

    sources, notes = _sources(checkpoints, entry, best)
    with step_bar(title) as progress:
        return run_recipe(getattr(soups, recipe), task, sources, output, progress=progress, **options), notes


def _sources(checkpoints: list[str], entry: str | None, best: Best | None) -> tuple[list[str | Checkpoint], list[str]]:
    """What the recipes take, and notes on what was found."""
    from ..checkpoint.find import open_found

    paths, notes = choose(checkpoints, best)
    return [str(path) for path in paths] if entry is None else [*open_found(paths, entry)], notes
