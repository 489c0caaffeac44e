"""The commands around runs: ``finetune`` and ``demo`` make checkpoints, the others score them and tell of them."""

from __future__ import annotations

from typing import Any

import click

from .options import best, checkpoints, entry, force, integers, json, metric, run_dir, task
from .root import app


@app.command()
@click.argument("sweep", metavar="SWEEP.toml")
@run_dir
@click.option("--jobs", type=click.IntRange(min=1), help="Processes at a time. [default: one for each device]")
@click.option(
    "--devices", metavar="D1,D2,...", help="Such as cuda:0,cuda:1 or cpu. [default: every CUDA device, or cpu]"
)
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="Only the first N runs.")
@click.option("--retry", is_flag=True, help="Make runs again that failed.")
@click.option("--force", "overwrite", is_flag=True, help="Replace what another sweep left under the same names.")
def finetune(sweep: str, output: str, **options: Any) -> None:
    """Fine-tune one model with many hyperparameters: the ingredients of a soup, with their held-out scores.

    SWEEP.toml names the task and the search (random, grid or points). What an earlier, stopped run finished is kept.
    """
    from . import finetune as cooking

    if not cooking.finetune(sweep, output, **options):
        raise click.exceptions.Exit(1)


@app.command()
@checkpoints
@task
@run_dir
@metric
@click.option("--bins", metavar="N", type=click.IntRange(min=1), default=15, help="Of the calibration error.")
@entry
@best
@integers
@force
@json
def evaluate(checkpoints: tuple[str, ...], task: str, output: str, **options: Any) -> None:
    """Score models on the held-out set and all test sets: checkpoints, and what recipes left in their directories.

    Written to RUN/evaluations.json after each; what is known there is not scored again. Nothing is selected.
    """
    from . import evaluate as scoring

    scoring.evaluate(list(checkpoints), task, output, **options)


@app.command()
@click.argument("runs", metavar="RUN/...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="FILE", required=True, help="The file to write, such as report.html.")
@click.option(
    "--format",
    type=click.Choice(["html", "md", "json", "csv"]),
    help="One page, Markdown, everything unrounded, or a line a model. [default: as FILE ends]",
)
def report(runs: tuple[str, ...], **options: Any) -> None:
    """Tell what was found, in one file: tables, figures, weights, calibration, cost, and how to make it again.

    RUN/ is a directory that holds, itself or further down, what the other commands wrote. Needs no torch.
    """
    from . import report as telling

    telling.report(list(runs), **options)


@app.command()
@click.argument("run", metavar="RUN/")
@click.option("-o", "--output", metavar="DIR", required=True, help="The directory to write.")
@click.option("--config", metavar="DIR", help="Where config and tokenizer are. [default: the first ingredient's]")
@click.option("--license", metavar="ID", help="The card's licence field, such as apache-2.0. [default: left to you]")
@click.option("--shard-size", metavar="SIZE", help="Most bytes in a file. [default: one file]")
@force
def share(run: str, output: str, **options: Any) -> None:
    """Make a directory of a soup that can be shared: weights, config and tokenizer files, and a model card.

    RUN/ is the directory of a recipe. from_pretrained of transformers loads the result. Needs no torch.
    """
    from . import report as telling

    telling.share(run, output, **options)


@app.command()
@click.option("-o", "--output", default="runs/demo", help="The directory to write to.")
@click.option("--seed", type=int, default=0, help="Seeds the search and the fine-tuning; the start stays the same.")
@click.option(
    "--force",
    "overwrite",
    is_flag=True,
    help="Use a directory with files: a stopped demo goes on, another is replaced.",
)
def demo(**options: Any) -> None:
    """Fine-tune small models on data that ships with a library, make soups of them, and compare: a few minutes."""
    from . import models

    models.demo(**options)
