"""The commands and their options. Each command only turns its arguments into one call; libraries load when it runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import click
from click.core import ParameterSource

from .._version import __version__
from .choose import Best

_Decorator = Callable[[Callable[..., None]], Callable[..., None]]


class _InOrder(click.Group):
    """Lists its commands as they are defined, not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _weights(ctx: click.Context, param: click.Parameter, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter("numbers separated by commas, such as 0.5,0.3,0.2") from None


def _best(command: Callable[..., None]) -> Callable[..., None]:
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


def _refuse(why: str, names: tuple[str, ...]) -> None:
    """A usage error if any of these options was given, though it would do nothing."""
    source = click.get_current_context().get_parameter_source
    given = [f"--{name.replace('_', '-')}" for name in names if source(name) is not ParameterSource.DEFAULT]
    if given:
        raise click.UsageError(f"{why}: {', '.join(given)} cannot go with it.")


def _checkpoints(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the argument, and to the help what it may be."""
    command.__doc__ = f"{cleandoc(command.__doc__ or '')}\n\n{_CHECKPOINT}"
    return click.argument("checkpoints", metavar="CHECKPOINT...", nargs=-1, required=True)(command)


_CHECKPOINT = """A CHECKPOINT is a weight file (.safetensors .pt .pth .bin .ckpt .npz), an index.json, a directory of
one model, or a directory or 'pattern' that stands for several."""
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
_force = click.option("--force", "overwrite", is_flag=True, help="Replace an output that exists.")
_integers = click.option(
    "--integers",
    type=click.Choice(["auto", "first", "max"]),
    default="auto",
    help="Integers that differ: refuse them (counters: the largest), the first's, the largest.",
)
_entry = click.option("--entry", metavar="NAME", help="The state dict to take from nested files, such as ema.")
_task = click.option(
    "--task",
    metavar="FILE.py:NAME",
    required=True,
    help="The model and its data: an object with model() and heldout().",
)
_run_dir = click.option("-o", "--output", metavar="RUN/", required=True, help="The directory to write to.")
_metric = click.option(
    "--metric",
    metavar="accuracy|top5|nll|macro_f1|mcc",
    help="The held-out score. [default: the task's, else accuracy]",
)
_accept = click.option(
    "--accept", type=click.Choice([">=", ">"]), default=">=", help="As good is enough (the paper), or better."
)
_min_delta = click.option(
    "--min-delta", metavar="D", type=click.FloatRange(min=0), default=0.0, help="... by at least so much."
)
_max_ingredients = click.option(
    "--max-ingredients", metavar="N", type=click.IntRange(min=1), help="End with N of them."
)
_memory = click.option(
    "--memory", metavar="SIZE", help="Of cached logits, such as 2GiB; beyond that, a temporary file."
)
_early_rejection = click.option(
    "--early-rejection/--no-early-rejection", default=True, help="End a score as soon as it is sure not to count."
)


@click.group(
    cls=_InOrder,
    context_settings={"show_default": True},
    epilog="Exit codes: 0 done, 1 an error (one line on stderr), 2 wrong usage, 130 interrupted.",
)
# `pysoup --version` alone is answered in main(); this one keeps it in --help and in odd orders of arguments.
@click.version_option(__version__, message="%(prog)s %(version)s", help="Print the version and exit.")
def app() -> None:
    """Average the weights of fine-tuned models: exactly, in bounded memory, as fast as the bytes can move."""


@app.command()
@_checkpoints
@click.option(
    "-o",
    "--output",
    required=True,
    help="The file (.safetensors .pt .pth) or, if the first input is a directory, directory to write.",
)
@click.option(
    "--weights",
    metavar="W1,W2,...",
    callback=_weights,
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
@_entry
@_best
@click.option("--shard-size", metavar="SIZE", help="Most bytes in a file of a directory. [default: as the first input]")
@_integers
@_force
@click.option(
    "--sync/--no-sync",
    default=None,
    help="Wait for the disk before renaming. [default: where a file is replaced]",
)
@click.option("--dry-run", is_flag=True, help="Check everything, plan, and write nothing.")
@_json
def average(checkpoints: tuple[str, ...], **options: Any) -> None:
    """Average checkpoint files into one, streaming: memory stays within --memory whatever the size of the model."""
    from . import files

    files.average(list(checkpoints), **options)


@app.command()
@_checkpoints
@_entry
@_json
def inspect(checkpoints: tuple[str, ...], entry: str | None, as_json: bool) -> None:
    """List tensors, types, shapes and sizes; of several checkpoints, say whether they can be averaged."""
    from . import files

    files.inspect(list(checkpoints), entry=entry, as_json=as_json)


@app.command()
@_json
def doctor(as_json: bool) -> None:
    """Say what this installation can do: the native code, its instruction sets, CUDA, threads, memory bandwidth."""
    from . import doctor as report

    if not report.doctor(as_json=as_json):
        raise click.exceptions.Exit(1)


def _recipe(*options: _Decorator) -> Callable[[Callable[..., None]], click.Command]:
    """A command that makes something of checkpoints for a task: all of them take the same, around ``options``."""

    def decorate(command: Callable[..., None]) -> click.Command:
        taken: list[_Decorator] = [_checkpoints, _task, _run_dir, _metric, *options, _entry, _best, _integers, _force]
        for option in reversed(taken):
            command = option(command)
        return app.command()(command)

    return decorate


@_recipe()
def uniform(checkpoints: tuple[str, ...], task: str, output: str, **options: Any) -> None:
    """Uniform soup: the plain average of all checkpoints, scored on the task's held-out data."""
    from . import recipes

    recipes.uniform(task, list(checkpoints), output, **options)


@_recipe(
    _accept,
    _min_delta,
    click.option(
        "--order",
        type=click.Choice(["score", "given", "random"]),
        default="score",
        help="Try them from the best down, as given, or shuffled by --seed.",
    ),
    click.option("--seed", type=int, default=0, help="Of --order random."),
    _max_ingredients,
    click.option(
        "--passes",
        metavar="N",
        type=click.IntRange(min=1),
        default=1,
        help="Try refused ones again, up to N times in all.",
    ),
    click.option("--replacement", is_flag=True, help="In further passes try all: one may count several times."),
    _early_rejection,
)
def greedy(checkpoints: tuple[str, ...], task: str, output: str, **options: Any) -> None:
    """Greedy soup: add checkpoints from the best down, keeping each that does not lower the held-out score."""
    if options["order"] != "random":
        _refuse(f"--order {options['order']} draws nothing", ("seed",))
    from . import recipes

    recipes.greedy(task, list(checkpoints), output, **options)


@_recipe(
    _accept,
    _min_delta,
    click.option(
        "--passes", metavar="N", type=click.IntRange(min=1), help="Tries for each. [default: until nothing is dropped]"
    ),
    _early_rejection,
)
def pruned(checkpoints: tuple[str, ...], task: str, output: str, **options: Any) -> None:
    """Pruned soup: average all checkpoints, then drop, from the worst up, each without which the soup is no worse."""
    from . import recipes

    recipes.pruned(task, list(checkpoints), output, **options)


@_recipe(
    _accept,
    _min_delta,
    _max_ingredients,
    click.option(
        "--prefilter",
        metavar="M",
        type=click.IntRange(min=1),
        help="Try only the M that do best in an ensemble with it.",
    ),
    _memory,
    _early_rejection,
)
def greedier(checkpoints: tuple[str, ...], task: str, output: str, **options: Any) -> None:
    """Greedier soup: at each step try all checkpoints and add the one with which the soup scores best."""
    from . import recipes

    recipes.greedier(task, list(checkpoints), output, **options)


@_recipe(
    click.option("--all", "every", is_flag=True, help="Average all of them, select nothing."),
    click.option(
        "--select",
        type=click.Choice(["sorted", "best"]),
        default="sorted",
        help="Try them from the best down, or add the best one each time.",
    ),
    click.option("--replacement", is_flag=True, help="One may be added several times; needs --max-ingredients."),
    _accept,
    _min_delta,
    _max_ingredients,
    _memory,
)
def ensemble(checkpoints: tuple[str, ...], task: str, output: str, **options: Any) -> None:
    """Greedy ensemble, or that of all: average the logits, not the weights. Slower to use: what soups are compared
    to."""
    if options["every"]:
        _refuse("--all selects nothing", ("select", "replacement", "accept", "min_delta", "max_ingredients", "memory"))
    from . import recipes

    recipes.ensemble(task, list(checkpoints), output, **options)


@app.command()
@click.argument("sweep", metavar="SWEEP.toml")
@_run_dir
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
