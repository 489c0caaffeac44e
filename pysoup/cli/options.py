"""Options and arguments that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import click
from click.core import ParameterSource

from .choose import Best

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def numbers(ctx: click.Context, param: click.Parameter, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter("numbers separated by commas, such as 0,0.25,0.5") from None


def whole_numbers(ctx: click.Context, param: click.Parameter, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter("whole numbers separated by commas, such as 2,4,8") from None


def weights(ctx: click.Context, param: click.Parameter, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter("numbers separated by commas, such as 0.5,0.3,0.2") from None


def best(command: Callable[..., None]) -> Callable[..., None]:
    """Adds ``--top`` and what belongs to it; the command gets them as one ``best``, or None."""

    @click.option("--top", metavar="N", type=click.IntRange(min=1), help="Take only the N best by a recorded score.")
    @click.option("--by", metavar="METRIC", help="That score: a name in the file of scores, such as metrics.val_acc.")
    @click.option("--lowest", is_flag=True, help="The lowest score is best, as of a loss.")
    @click.option("--scores", metavar="FILE", help="JSON or JSONL. [default: the one beside the checkpoints]")
    @functools.wraps(command)
    def gathered(*, top: int | None, by: str | None, lowest: bool, scores: str | None, **options: Any) -> None:
        if top is None and (by is not None or lowest or scores is not None):
            raise click.UsageError("--by, --lowest and --scores belong to --top.")
        if top is not None and by is None:
            raise click.UsageError("--top needs --by METRIC.")
        best = None if top is None or by is None else Best(top, by, lowest, scores)
        command(best=best, **options)

    return gathered


def refuse(why: str, names: tuple[str, ...]) -> None:
    """A usage error if any of these options was given, though it would do nothing."""
    source = click.get_current_context().get_parameter_source
    given = [f"--{name.replace('_', '-')}" for name in names if source(name) is not ParameterSource.DEFAULT]
    if given:
        raise click.UsageError(f"{why}: {', '.join(given)} cannot go with it.")


def checkpoints(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the argument, and to the help what it may be."""
    command.__doc__ = f"{cleandoc(command.__doc__ or '')}\n\n{_CHECKPOINT}"
    return click.argument("checkpoints", metavar="CHECKPOINT...", nargs=-1, required=True)(command)


_CHECKPOINT = """A CHECKPOINT is a weight file (.safetensors .pt .pth .bin .ckpt .npz), an index.json, a directory of
one model, or a directory or 'pattern' that stands for several."""


def patterns(command: Callable[..., None]) -> Callable[..., None]:
    """Adds ``--include`` and ``--exclude``."""
    command = click.option(
        "--exclude", metavar="REGEX", multiple=True, help="Leave out tensors in whose name it is found. Repeatable."
    )(command)
    return click.option(
        "--include", metavar="REGEX", multiple=True, help="Average only tensors in whose name it is found. Repeatable."
    )(command)


rest = click.option(
    "--rest", type=click.Choice(["drop", "first"]), default="drop", help="What is left out: nothing, or the first's."
)
json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
force = click.option("--force", "overwrite", is_flag=True, help="Replace an output that exists.")
integers = click.option(
    "--integers",
    type=click.Choice(["auto", "first", "max"]),
    default="auto",
    help="Integers that differ: refuse them (counters: the largest), the first's, the largest.",
)
entry = click.option("--entry", metavar="NAME", help="The state dict to take from nested files, such as ema.")
task = click.option(
    "--task",
    metavar="FILE.py:NAME",
    required=True,
    help="The model and its data: an object with model() and heldout().",
)
run_dir = click.option("-o", "--output", metavar="RUN/", required=True, help="The directory to write to.")
metric = click.option(
    "--metric",
    metavar="accuracy|top5|nll|macro_f1|mcc",
    help="The held-out score. [default: the task's, else accuracy]",
)
accept = click.option(
    "--accept", type=click.Choice([">=", ">"]), default=">=", help="As good is enough (the paper), or better."
)
min_delta = click.option(
    "--min-delta", metavar="D", type=click.FloatRange(min=0), default=0.0, help="... by at least so much."
)
max_ingredients = click.option("--max-ingredients", metavar="N", type=click.IntRange(min=1), help="End with N of them.")
memory = click.option("--memory", metavar="SIZE", help="Of cached logits, such as 2GiB; beyond that, a temporary file.")
sum_memory = click.option(
    "--sum-memory",
    metavar="SIZE",
    help="Of the soup's running sum; beyond that, a temporary file. [default: half of what is free]",
)
early_rejection = click.option(
    "--early-rejection/--no-early-rejection", default=True, help="End a score as soon as it is sure not to count."
)
