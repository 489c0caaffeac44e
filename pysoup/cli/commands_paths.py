"""The commands for models on one path: between two models, from a start, along the checkpoints of one run."""

from __future__ import annotations

from typing import Any

import click

from .options import (
    checkpoints,
    entry,
    force,
    integers,
    json,
    metric,
    numbers,
    patterns,
    refuse,
    rest,
    run_dir,
    task,
    whole_numbers,
)
from .root import app


@app.command()
@click.argument("theta0", metavar="THETA0")
@click.argument("theta1", metavar="THETA1")
@task
@run_dir
@metric
@click.option("--alphas", metavar="A1,A2,...", callback=numbers, help="Shares of THETA1. [default: 0,0.1,...,1]")
@click.option(
    "--also", metavar="FILE.py:NAME", multiple=True, help="Choose by the held-out set of this task too (PAINT)."
)
@patterns
@entry
@integers
@force
def interpolate(theta0: str, theta1: str, task: str, output: str, **options: Any) -> None:
    """Score (1 - a) THETA0 + a THETA1 for every alpha, and keep the best on the held-out data (WiSE-FT).

    THETA0 is the initialisation, say, and THETA1 a fine-tuned model or a soup. Test sets are scored too, and choose
    nothing.
    """
    from . import interpolation

    interpolation.interpolate(theta0, theta1, task, output, **options)


output = click.option("-o", "--output", metavar="FILE|RUN/", required=True, help="A file; with --task, a directory.")
optional_task = click.option(
    "--task", metavar="FILE.py:NAME", help="Score the result: an object with model() and heldout()."
)
memory = click.option("--memory", metavar="SIZE", default="64MiB", help="Limit of the buffers, such as 256MiB or 1GB.")


@app.command()
@click.argument("start", metavar="START")
@checkpoints
@output
@optional_task
@metric
@patterns
@rest
@entry
@integers
@memory
@force
@json
def stock(start: str, checkpoints: tuple[str, ...], output: str, task: str | None, **options: Any) -> None:
    """Model Stock: from START towards the mean of the checkpoints, tensor by tensor as far as their angles say.

    START is what all of them were fine-tuned from. No data is needed, and without --task no torch.
    """
    if task is None:
        refuse("without --task nothing is scored", ("metric",))
    else:
        refuse("with --task all is written to its directory", ("rest", "as_json"))
    from . import stock as made

    made.stock(start, list(checkpoints), output, task, **options)


@app.command()
@checkpoints
@click.option("--kind", type=click.Choice(["swa", "ema", "lawa"]), default="swa", help="Which average.")
@click.option("--last", metavar="K[,K...]", callback=whole_numbers, help="Of swa and lawa: how many checkpoints.")
@click.option("--end", metavar="N[,N...]", callback=whole_numbers, help="Of lawa: the last one, from 1. [default: all]")
@click.option("--decay", metavar="D[,D...]", callback=numbers, help="Of ema, between checkpoints, such as 0.9.")
@click.option("--classic", is_flag=True, help="Of ema: begin with the first checkpoint, no correction of the bias.")
@output
@optional_task
@metric
@click.option("--recalibrate", is_flag=True, help="Estimate BatchNorm statistics anew on the task's train() data.")
@patterns
@rest
@entry
@memory
@force
@json
def trajectory(checkpoints: tuple[str, ...], output: str, task: str | None, **options: Any) -> None:
    """SWA, EMA or LAWA: average the checkpoints of one run, given in the order of training.

    Of several values of --last, --end or --decay, the best on the held-out data of --task is taken. Without --task, it
    is one average of files, and needs no torch.
    """
    if task is None:
        refuse("without --task there is no data", ("metric", "recalibrate"))
    else:
        refuse("with --task all is written to its directory", ("rest", "as_json", "memory"))
    from . import trajectory as made

    made.trajectory(list(checkpoints), output, task, **options)
