"""The commands and their options. Each command only turns its arguments into one call; libraries load when it runs."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

app = typer.Typer(
    name="pysoup",
    help="Average the weights of fine-tuned models: exactly, in bounded memory, as fast as the bytes can move.",
    epilog="Exit codes: 0 done, 1 an error (one line on stderr), 2 wrong usage, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Checkpoints = Annotated[
    list[str],
    typer.Argument(metavar="CHECKPOINT", help="safetensors files, index.json files or directories of one model."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Task = Annotated[
    str,
    typer.Option(metavar="FILE.py:NAME", help="The model and its data: an object with model() and heldout()."),
]
RunDir = Annotated[str, typer.Option("--output", "-o", metavar="RUN/", help="The directory to write to.")]
Metric = Annotated[
    str | None,
    typer.Option(metavar="accuracy|top5|nll", help="The held-out score. [default: the task's, else accuracy]"),
]


@app.callback()
def _commands(
    # `pysoup --version` alone is answered in main(); this one keeps it in --help and in odd orders of arguments.
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        from .._version import __version__

        typer.echo(f"pysoup {__version__}")
        raise typer.Exit


@app.command()
def average(
    checkpoints: Checkpoints,
    output: Annotated[
        str, typer.Option("--output", "-o", help="The file or, if the first input is a directory, directory to write.")
    ],
    weights: Annotated[
        str | None, typer.Option(metavar="W1,W2,...", help="Mixing weights, one per checkpoint. [default: equal]")
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Scale the weights to sum to 1.")
    ] = True,
    dtype: Annotated[
        str | None, typer.Option(help="Output type: f64 f32 f16 bf16 f8_e4m3 f8_e5m2. [default: as the inputs]")
    ] = None,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Limit of the buffers, such as 256MiB or 1GB.")] = "64MiB",
    threads: Annotated[int | None, typer.Option(help="Worker threads. [default: the usable CPUs]")] = None,
    keys: Annotated[
        Literal["same", "intersection", "union"],
        typer.Option(help="Which tensors: all must have the same ones, those in every input, or those in any."),
    ] = "same",
    integers: Annotated[
        Literal["auto", "first", "max"],
        typer.Option(help="Integers that differ: refuse them (counters: the largest), the first's, the largest."),
    ] = "auto",
    force: Force = False,
    sync: Annotated[
        bool | None,
        typer.Option("--sync/--no-sync", help="Wait for the disk before renaming. [default: where a file is replaced]"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, plan, and write nothing.")] = False,
    json: Json = False,
) -> None:
    """Average checkpoint files into one, streaming: memory stays within --memory whatever the size of the model."""
    from . import files

    files.average(
        checkpoints,
        output,
        weights=_weights(weights),
        normalize=normalize,
        dtype=dtype,
        memory=memory,
        threads=threads,
        keys=keys,
        integers=integers,
        overwrite=force,
        sync=sync,
        dry_run=dry_run,
        as_json=json,
    )


@app.command()
def inspect(
    paths: Annotated[list[str], typer.Argument(metavar="CHECKPOINT", help="Files or directories to look into.")],
    json: Json = False,
) -> None:
    """List tensors, types, shapes and sizes; of several checkpoints, say whether they can be averaged."""
    from . import files

    files.inspect(paths, as_json=json)


@app.command()
def doctor(json: Json = False) -> None:
    """Say what this installation can do: the native code, its instruction sets, CUDA, threads, memory bandwidth."""
    from . import doctor as report

    if not report.doctor(as_json=json):
        raise typer.Exit(1)


@app.command()
def uniform(checkpoints: Checkpoints, task: Task, output: RunDir, metric: Metric = None, force: Force = False) -> None:
    """Uniform soup: the plain average of all checkpoints, scored on the task's held-out data."""
    from . import models

    models.uniform(task, checkpoints, output, metric=metric, overwrite=force)


@app.command()
def greedy(
    checkpoints: Checkpoints,
    task: Task,
    output: RunDir,
    metric: Metric = None,
    accept: Annotated[
        Literal[">=", ">"],
        typer.Option(help="Keep a checkpoint if it makes the soup's score >= (the paper) or > the one before."),
    ] = ">=",
    force: Force = False,
) -> None:
    """Greedy soup: add checkpoints from the best down, keeping each that does not lower the held-out score."""
    from . import models

    models.greedy(task, checkpoints, output, metric=metric, accept=accept, overwrite=force)


@app.command()
def demo(
    output: Annotated[str, typer.Option("--output", "-o", help="The directory to write to.")] = "runs/demo",
    seed: Annotated[int, typer.Option(help="Seed of the hyperparameters and the fine-tuning.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Use a directory with files: a stopped demo goes on, another is replaced.")
    ] = False,
) -> None:
    """Fine-tune small models on data that ships with a library, make soups of them, and compare: a few minutes."""
    from . import models

    models.demo(output, seed=seed, overwrite=force)


def _weights(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter("numbers separated by commas, such as 0.5,0.3,0.2", param_hint="--weights") from None
