"""The commands on checkpoint files, which need no torch, and ``doctor``."""

from __future__ import annotations

from typing import Any

import click

from .options import best, checkpoints, entry, force, integers, json, patterns, rest, weights
from .root import app


@app.command()
@checkpoints
@click.option(
    "-o",
    "--output",
    required=True,
    help="The file (.safetensors .pt .pth) or, if the first input is a directory, directory to write.",
)
@click.option(
    "--weights",
    metavar="W1,W2,...",
    callback=weights,
    help="Mixing weights, one per checkpoint. [default: equal]",
)
@click.option("--normalize/--no-normalize", default=True, help="Scale the weights to sum to 1.")
@click.option("--dtype", help="Output type: f64 f32 f16 bf16 f8_e4m3 f8_e5m2. [default: as the inputs]")
@click.option("--memory", metavar="SIZE", default="64MiB", help="Limit of the buffers, such as 256MiB or 1GB.")
@click.option("--threads", type=int, help="Worker threads. [default: the usable CPUs]")
@click.option("--device", metavar="cpu|cuda[:N]", default="cpu", help="Where the sums are made: the same bits.")
@click.option(
    "--keys",
    type=click.Choice(["same", "intersection", "union"]),
    default="same",
    help="Which tensors: all must have the same ones, those in every input, or those in any.",
)
@patterns
@rest
@entry
@best
@click.option("--shard-size", metavar="SIZE", help="Most bytes in a file of a directory. [default: as the first input]")
@integers
@force
@click.option(
    "--sync/--no-sync",
    default=None,
    help="Wait for the disk before renaming. [default: where a file is replaced]",
)
@click.option("--dry-run", is_flag=True, help="Check everything, plan, and write nothing.")
@json
def average(checkpoints: tuple[str, ...], **options: Any) -> None:
    """Average checkpoint files into one, streaming: memory stays within --memory whatever the size of the model."""
    from . import files

    files.average(list(checkpoints), **options)


@app.command()
@checkpoints
@entry
@json
def inspect(checkpoints: tuple[str, ...], entry: str | None, as_json: bool) -> None:
    """List tensors, types, shapes and sizes; of several checkpoints, say whether they can be averaged."""
    from . import files

    files.inspect(list(checkpoints), entry=entry, as_json=as_json)


@app.command()
@click.argument("adapters", metavar="ADAPTER...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="DIR", required=True, help="The adapter directory to write.")
@click.option(
    "--method",
    type=click.Choice(["exact", "naive"]),
    default="exact",
    help="The mean of the products B A, or of A and of B.",
)
@click.option("--rank", metavar="R", type=click.IntRange(min=1), help="The most of the result. [default: their sum]")
@click.option(
    "--weights",
    metavar="W1,W2,...",
    callback=weights,
    help="Mixing weights, one per adapter, scaled to sum to 1. [default: equal]",
)
@force
@json
def adapters(adapters: tuple[str, ...], **options: Any) -> None:
    """Average LoRA adapters, directories as PEFT saves them, into one: the exact mean of what they add to a model."""
    from .adapters import adapters as average

    average(list(adapters), **options)


@app.command()
@json
def doctor(as_json: bool) -> None:
    """Say what this installation can do: the native code, its instruction sets, CUDA, threads, memory bandwidth."""
    from . import doctor as report

    if not report.doctor(as_json=as_json):
        raise click.exceptions.Exit(1)
