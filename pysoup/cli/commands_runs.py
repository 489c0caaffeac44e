"""The commands that make the checkpoints: ``finetune`` and ``demo``."""

from __future__ import annotations

from typing import Any

import click

from .options import run_dir
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
