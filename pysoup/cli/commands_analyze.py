"""``pysoup analyze``: why a soup of these models works, or does not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from .options import Decorator, best, checkpoints, entry, force, integers, json, task
from .root import InOrder, app


@app.group(cls=InOrder)
def analyze() -> None:
    """Look into a soup: distances and angles of weights, error landscapes, soups against ensembles, calibration."""


output = click.option("-o", "--output", metavar="FILE.json", help="Write the numbers as JSON.")
figure = click.option("--figure", metavar="FILE.svg|.png|.pdf", help="Draw it. Needs matplotlib.")
memory = click.option("--memory", metavar="SIZE", default="64MiB", help="Limit of the buffers for weights.")
logit_memory = click.option(
    "--logit-memory", metavar="SIZE", help="Of cached logits, such as 2GiB; beyond that, a temporary file."
)
threads = click.option("--threads", metavar="N", type=int, help="Worker threads. [default: the usable CPUs]")
scores = click.option(
    "--scores-file",
    metavar="FILE.json",
    help="Where scores are kept, also for other analyses. [default: beside the output]",
)
samples = click.option(
    "--samples", metavar="N", type=click.IntRange(min=1), help="Score on N samples of each set. [default: all]"
)
pairs_drawn = click.option(
    "--pairs", metavar="N", type=click.IntRange(min=1), help="Draw so many pairs. [default: all]"
)
pairs_seed = click.option("--seed", type=int, default=0, help="Of the draw.")
base = click.option("--base", metavar="START", help="The checkpoint that all were fine-tuned from.")


def names(*, exclude_norms: bool) -> Decorator:
    """Adds ``--include``, ``--exclude`` and ``--exclude-norms``, with the default for the last one."""
    added: list[Decorator] = [
        click.option(
            "--include", metavar="REGEX", multiple=True, help="Compare only tensors in whose name it is found."
        ),
        click.option("--exclude", metavar="REGEX", multiple=True, help="Leave out tensors in whose name it is found."),
        click.option(
            "--exclude-norms/--all-tensors",
            default=exclude_norms,
            help="Leave out tensors of one dimension: gains and biases.",
        ),
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(added):
            command = option(command)
        return command

    return decorate


def analysis(*options: Decorator, on: Decorator = checkpoints) -> Callable[[Callable[..., None]], click.Command]:
    """A sub-command: what it works ``on``, its own ``options``, and what all of them take."""

    def decorate(command: Callable[..., None]) -> click.Command:
        taken: list[Decorator] = [on, *options, output, figure, entry, force, json]
        for option in reversed(taken):
            command = option(command)
        return analyze.command()(command)

    return decorate


def _grid(ctx: click.Context, param: click.Parameter, text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if match is None:
        raise click.BadParameter("two numbers of points, such as 11x11")
    return int(match[1]), int(match[2])


@analysis(base, names(exclude_norms=False), memory, threads, best)
def geometry(checkpoints: tuple[str, ...], **options: Any) -> None:
    """Norms, distances and angles of checkpoints.

    One pass over the files, whatever their size, for all inner products. Needs no torch and no task.
    """
    from . import analyze as analyses

    analyses.geometry(list(checkpoints), **options)


@analysis(
    task,
    click.option("--grid", metavar="NxM", default="11x11", callback=_grid, help="Points along and across."),
    click.option(
        "--margin",
        metavar="M",
        type=click.FloatRange(min=0),
        default=0.25,
        help="Around the models, as a share of the sides.",
    ),
    click.option(
        "--train",
        metavar="N",
        type=click.IntRange(min=0),
        help="Score N training samples too, 0 for all: their loss is drawn. [default: the held-out loss]",
    ),
    samples,
    scores,
    memory,
    threads,
    integers,
    on=click.argument("checkpoints", metavar="START FIRST SECOND", nargs=3),
)
def plane(checkpoints: tuple[str, ...], task: str, **options: Any) -> None:
    """Loss and error in the plane of three models.

    The paper's Figure 2: START is what FIRST and SECOND were fine-tuned from, or any third model.
    """
    from . import analyze as analyses

    analyses.plane(task, checkpoints, **options)


@analysis(
    task,
    click.option("--base", metavar="START", required=True, help="The checkpoint that all were fine-tuned from."),
    pairs_drawn,
    pairs_seed,
    click.option(
        "--group-by",
        metavar="HYPERPARAMETER",
        multiple=True,
        help="Group pairs by how many of the two use it (above 0). Repeatable: any of them. [default: what differs]",
    ),
    names(exclude_norms=True),
    samples,
    scores,
    memory,
    threads,
    integers,
    best,
)
def angles(checkpoints: tuple[str, ...], task: str, base: str, **options: Any) -> None:
    """Angles of fine-tunings, and gains of averaging.

    The paper's Figure 3: pairs of models that were fine-tuned from one start.
    """
    from . import analyze as analyses

    analyses.angles(task, list(checkpoints), base, **options)


@analysis(
    task,
    pairs_drawn,
    pairs_seed,
    logit_memory,
    samples,
    scores,
    memory,
    threads,
    integers,
    best,
)
def pairs(checkpoints: tuple[str, ...], task: str, **options: Any) -> None:
    """Soups of two models against their ensembles.

    The paper's Figure 4.
    """
    from . import analyze as analyses

    analyses.pairs(task, list(checkpoints), **options)


run_kept = click.option(
    "--run",
    metavar="RUN/",
    help="Keep what was scored there, also for other analyses. [default: beside the output, until it is written]",
)
tests = click.option("--tests", metavar="NAME,...", help="Only these test sets of the task. [default: all]")
metric = click.option(
    "--metric",
    metavar="accuracy|top5|nll|macro_f1|mcc",
    help="What is selected by and shown. [default: the task's, else accuracy]",
)
orders = click.option("--orders", metavar="N", type=click.IntRange(min=1), default=3, help="Random orders.")
orders_seed = click.option("--seed", type=int, default=0, help="Of the first order; the others have the next ones.")


@analysis(task, orders, orders_seed, metric, samples, tests, run_kept, logit_memory, integers, best)
def count(checkpoints: tuple[str, ...], task: str, **options: Any) -> None:
    """Soups and ensembles of the first n models.

    For n = 1, 2, ... over random orders: the paper's Figure B.1.
    """
    from . import analyze_functions as analyses

    analyses.count(task, list(checkpoints), **options)


@analysis(
    task,
    orders,
    orders_seed,
    click.option("--head", metavar="NAME", help="The last layer, a linear one. [default: the task's head]"),
    click.option("--bins", metavar="N", type=click.IntRange(min=1), default=15, help="Of the calibration error."),
    click.option("--reliability", metavar="FILE.svg|.png|.pdf", help="Draw a reliability diagram, too."),
    metric,
    samples,
    tests,
    run_kept,
    logit_memory,
    integers,
    best,
)
def calibration(checkpoints: tuple[str, ...], task: str, **options: Any) -> None:
    """Calibration of soups and ensembles.

    As models are added: the paper's Figure B.2. Temperatures are fitted on the held-out set alone.
    """
    from . import analyze_functions as analyses

    analyses.calibration(task, list(checkpoints), **options)


@analysis(
    task,
    pairs_drawn,
    pairs_seed,
    click.option("--alphas", metavar="N", type=click.IntRange(min=3), default=11, help="Points from 0 to 1."),
    click.option(
        "--derivative",
        type=click.Choice(["central", "autodiff"]),
        default="central",
        help="Of the loss: by differences, or exact but blind to the kinks of ReLU.",
    ),
    click.option(
        "--step",
        metavar="H",
        type=click.FloatRange(min=0, min_open=True, max=0.5),
        default=0.05,
        help="Of differences.",
    ),
    click.option(
        "--highest",
        metavar="RATE",
        type=float,
        help="Set models with a higher learning rate apart. [default: the upper third]",
    ),
    samples,
    tests,
    run_kept,
    memory,
    threads,
    integers,
    best,
)
def approximation(checkpoints: tuple[str, ...], task: str, alphas: int, **options: Any) -> None:
    """Equation (1): is a soup as good as an ensemble?

    The predicted and the true difference, for pairs of models: the paper's Figure 6.
    """
    from . import analyze_functions as analyses

    grid = [number / (alphas - 1) for number in range(alphas)]
    analyses.approximation(task, list(checkpoints), alphas=grid, **options)


@analysis(task, metric, samples, tests, run_kept, logit_memory, integers, best)
def grids(checkpoints: tuple[str, ...], task: str, **options: Any) -> None:
    """Averages of the two ends of a grid.

    Against the best single model of the grid, one hyperparameter at a time: the paper's Appendix F.
    """
    from . import analyze_functions as analyses

    analyses.grids(task, list(checkpoints), **options)


@analyze.command()
@checkpoints
@task
@click.option("--all-pairs", is_flag=True, help="Compare every two. [default: the first with each other one]")
@click.option("--resamples", metavar="N", type=click.IntRange(min=1), default=9999, help="Permutations that are drawn.")
@click.option("--seed", type=int, default=0, help="Of the draw.")
@samples
@tests
@integers
@output
@entry
@force
@json
def compare(checkpoints: tuple[str, ...], task: str, **options: Any) -> None:
    """Tests whether one model is better than another.

    Or is it chance? McNemar's exact test of accuracies and a permutation test of likelihoods, on each set.
    """
    from . import analyze_functions as analyses

    analyses.compare(task, list(checkpoints), **options)
