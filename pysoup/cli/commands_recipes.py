"""The recipes: commands that make something of checkpoints for a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from .options import (
    Decorator,
    accept,
    best,
    checkpoints,
    early_rejection,
    entry,
    force,
    integers,
    max_ingredients,
    memory,
    metric,
    min_delta,
    patterns,
    refuse,
    run_dir,
    sum_memory,
    task,
)
from .root import app


def recipe(*options: Decorator) -> Callable[[Callable[..., None]], click.Command]:
    """A command that makes something of checkpoints for a task: all of them take the same, around ``options``."""

    def decorate(command: Callable[..., None]) -> click.Command:
        taken: list[Decorator] = [checkpoints, task, run_dir, metric, *options, patterns, entry, best, integers, force]
        for option in reversed(taken):
            command = option(command)
        return app.command()(command)

    return decorate


@recipe(sum_memory)
def uniform(checkpoints: tuple[str, ...], task: str, output: str, **options: Any) -> None:
    """Uniform soup: the plain average of all checkpoints, scored on the task's held-out data."""
    from . import recipes

    recipes.uniform(task, list(checkpoints), output, **options)


@recipe(
    accept,
    min_delta,
    click.option(
        "--order",
        type=click.Choice(["score", "given", "random"]),
        default="score",
        help="Try them from the best down, as given, or shuffled by --seed.",
    ),
    click.option("--seed", type=int, default=0, help="Of --order random."),
    max_ingredients,
    click.option(
        "--passes",
        metavar="N",
        type=click.IntRange(min=1),
        default=1,
        help="Try refused ones again, up to N times in all.",
    ),
    click.option("--replacement", is_flag=True, help="In further passes try all: one may count several times."),
    early_rejection,
    sum_memory,
)
def greedy(checkpoints: tuple[str, ...], task: str, output: str, **options: Any) -> None:
    """Greedy soup: add checkpoints from the best down, keeping each that does not lower the held-out score."""
    if options["order"] != "random":
        refuse(f"--order {options['order']} draws nothing", ("seed",))
    from . import recipes

    recipes.greedy(task, list(checkpoints), output, **options)


@recipe(
    accept,
    min_delta,
    click.option(
        "--passes", metavar="N", type=click.IntRange(min=1), help="Tries for each. [default: until nothing is dropped]"
    ),
    early_rejection,
    sum_memory,
)
def pruned(checkpoints: tuple[str, ...], task: str, output: str, **options: Any) -> None:
    """Pruned soup: average all checkpoints, then drop, from the worst up, each without which the soup is no worse."""
    from . import recipes

    recipes.pruned(task, list(checkpoints), output, **options)


@recipe(
    accept,
    min_delta,
    max_ingredients,
    click.option(
        "--prefilter",
        metavar="M",
        type=click.IntRange(min=1),
        help="Try only the M that do best in an ensemble with it.",
    ),
    memory,
    early_rejection,
    sum_memory,
)
def greedier(checkpoints: tuple[str, ...], task: str, output: str, **options: Any) -> None:
    """Greedier soup: at each step try all checkpoints and add the one with which the soup scores best."""
    from . import recipes

    recipes.greedier(task, list(checkpoints), output, **options)


@recipe(
    click.option(
        "--preset",
        type=click.Choice(["paper", "official-bylayer", "mehl"]),
        default="paper",
        help="Settings, any of which may be given in its place.",
    ),
    click.option(
        "--granularity",
        metavar="model|layer|tensor|REGEX",
        multiple=True,
        help="What has weights of its own; patterns are repeatable. [default: the preset's]",
    ),
    click.option(
        "--parametrization",
        type=click.Choice(["softmax", "hyperplane"]),
        help="Positive weights, or any with the sum 1. [default: the preset's]",
    ),
    click.option("--no-temperature", is_flag=True, help="Learn no scale of the logits."),
    click.option("--lr", metavar="LR", type=float, help="Of AdamW. [default: the preset's]"),
    click.option("--weight-decay", metavar="D", type=float, help="Of the mixing weights. [default: 0]"),
    click.option("--epochs", metavar="N", type=int, help="Passes over the held-out set. [default: the preset's]"),
    click.option("--batch", metavar="N", type=int, help="Samples a step. [default: the preset's, else the task's]"),
    click.option("--blocks", metavar="B", type=int, help="Move the weights of B checkpoints at a time."),
    click.option("--seed", type=int, default=0, help="Of the order of the samples."),
    click.option(
        "--keep", type=click.Choice(["last", "lowest"]), default="last", help="Weights of the epoch of lowest loss?"
    ),
    click.option("--score-epochs", is_flag=True, help="Score the soup after each epoch."),
    click.option("--memory", metavar="SIZE", default="64MiB", help="Of buffers that checkpoints are read through."),
    click.option(
        "--place",
        type=click.Choice(["files", "memory", "device", "auto"]),
        default="files",
        help="Where checkpoints are while weights are learned.",
    ),
)
def learned(checkpoints: tuple[str, ...], task: str, output: str, **options: Any) -> None:
    """Learned soup: mixing weights by gradient descent on the held-out data. Judge it by the task's test sets."""
    from . import recipes

    recipes.learned(task, list(checkpoints), output, **options)


@recipe(
    click.option("--all", "every", is_flag=True, help="Average all of them, select nothing."),
    click.option(
        "--select",
        type=click.Choice(["sorted", "best"]),
        default="sorted",
        help="Try them from the best down, or add the best one each time.",
    ),
    click.option("--replacement", is_flag=True, help="One may be added several times; needs --max-ingredients."),
    accept,
    min_delta,
    max_ingredients,
    memory,
    click.option("--probabilities", is_flag=True, help="Write those of every sample: RUN/probabilities/*.npy."),
)
def ensemble(checkpoints: tuple[str, ...], task: str, output: str, **options: Any) -> None:
    """Greedy ensemble, or that of all: average the logits, not the weights. Slower to use: what soups are compared
    to."""
    if options["every"]:
        refuse("--all selects nothing", ("select", "replacement", "accept", "min_delta", "max_ingredients", "memory"))
    from . import recipes

    recipes.ensemble(task, list(checkpoints), output, **options)
