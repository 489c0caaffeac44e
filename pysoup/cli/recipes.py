"""``pysoup uniform``, ``greedy``, ``pruned``, ``greedier``, ``learned`` and ``ensemble``: recipes, which run models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress import step_bar
from .choose import Best, choose
from .models import require_torch, show, steps
from .text import printable

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


def learned(
    task: str,
    checkpoints: list[str],
    output: str,
    *,
    granularity: Sequence[str],
    no_temperature: bool,
    **options: Any,
) -> None:
    """Make the learned soup, and print the loss of each epoch, the weights, and the same."""
    from .learned import epochs, granules, weights

    made, notes = _made(
        "learned_soup",
        "learned soup",
        task,
        checkpoints,
        output,
        granularity=granules(granularity),
        temperature=False if no_temperature else None,
        **options,
    )
    print(epochs(made))
    print(weights(made))
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
    include: Sequence[str],
    exclude: Sequence[str],
    probabilities: bool,
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
        include=include,
        exclude=exclude,
        probabilities=probabilities,
        **({} if every else options),
    )
    if made.trace:
        print(steps(made, ("ensemble with it", "ensemble before")))
    show(made, output, notes)
    if probabilities:
        from ..soups.command import PROBABILITIES

        print(f"wrote {printable(str(Path(output) / PROBABILITIES))}")


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

    sources, notes = sources_of(checkpoints, entry, best)
    with step_bar(title) as progress:
        return run_recipe(getattr(soups, recipe), task, sources, output, progress=progress, **options), notes


def sources_of(
    checkpoints: list[str], entry: str | None, best: Best | None
) -> tuple[list[str | Checkpoint], list[str]]:
    """What the recipes take, and notes on what was found."""
    from ..checkpoint.find import open_found

    paths, notes = choose(checkpoints, best)
    return [str(path) for path in paths] if entry is None else [*open_found(paths, entry)], notes
