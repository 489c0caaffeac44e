"""``pysoup greedy`` and ``pysoup uniform``: a task, checkpoints and a directory to write the results to.

``RUN/soup.safetensors`` holds the weights, ``RUN/trace.json`` how they came about, ``RUN/results.json`` the scores on
the held-out data and on the task's test sets, which are reported and never selected on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from torch import nn

from .._version import __version__
from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.index import SUFFIXES
from ..errors import OutputError, SoupError
from ..evaluate import HeldOut, Metric, MetricLike, as_heldout, as_metric, evaluate
from ..progress import StepProgress
from ..task import Task, load_task
from .candidates import naming
from .files import write_json
from .greedy import Accept, greedy_soup
from .soup import Soup, finite
from .uniform import uniform_soup

WEIGHTS, TRACE, RESULTS = "soup.safetensors", "trace.json", "results.json"
Recipe = Callable[[nn.Module, HeldOut, Metric], Soup]


def run_greedy(
    task: str,
    checkpoints: Sequence[str | Checkpoint],
    output: str,
    *,
    metric: MetricLike | None = None,
    accept: Accept = ">=",
    integers: str = "auto",
    overwrite: bool = False,
    progress: StepProgress | None = None,
) -> Soup:
    """Make the greedy soup of ``checkpoints`` for the task ``FILE.py:NAME`` and write the results to ``output``.

    ``metric`` defaults to the task's own, then to accuracy. Results that are there are an :class:`OutputError` unless
    ``overwrite``; nothing is computed before that is known.
    """

    def recipe(model: nn.Module, heldout: HeldOut, metric: Metric) -> Soup:
        return greedy_soup(checkpoints, model, heldout, metric, accept=accept, integers=integers, progress=progress)

    return _run(task, checkpoints, output, metric, overwrite, recipe)


def run_uniform(
    task: str,
    checkpoints: Sequence[str | Checkpoint],
    output: str,
    *,
    metric: MetricLike | None = None,
    integers: str = "auto",
    overwrite: bool = False,
    progress: StepProgress | None = None,
) -> Soup:
    """The same for the uniform soup of all ``checkpoints``."""

    def recipe(model: nn.Module, heldout: HeldOut, metric: Metric) -> Soup:
        return uniform_soup(checkpoints, model, heldout, metric, integers=integers, progress=progress)

    return _run(task, checkpoints, output, metric, overwrite, recipe)


def _run(
    task: str,
    checkpoints: Sequence[str | Checkpoint],
    output: str,
    metric: MetricLike | None,
    overwrite: bool,
    recipe: Recipe,
) -> Soup:
    directory = Path(output)
    _check_output(directory, checkpoints, overwrite)
    loaded = load_task(task)
    resolved = as_metric(metric if metric is not None else getattr(loaded, "metric", "accuracy"))
    with naming(f"model() of {task}", "nothing was written"):
        model = loaded.model()
    if not isinstance(model, nn.Module):
        raise SoupError(f"model() of {task} made no model", found=type(model).__name__, expected="a torch.nn.Module")
    with naming(f"heldout() of {task}", "nothing was written"):
        heldout = _heldout(loaded, loaded.heldout())
    new = not directory.exists()
    _make(directory)
    try:
        soup = recipe(model, heldout, resolved)
    except BaseException:
        if new:
            with suppress(OSError):
                directory.rmdir()
        raise
    # The results of an earlier run first: they must never stand beside another soup.
    (directory / RESULTS).unlink(missing_ok=True)
    (directory / TRACE).unlink(missing_ok=True)
    soup.save(directory / WEIGHTS, overwrite=overwrite)
    soup.save_trace(directory / TRACE, overwrite=overwrite)
    write_json(directory / RESULTS, _results(loaded, model, soup, resolved), overwrite=overwrite)
    return soup


def _make(directory: Path) -> None:
    """Made, and known to take files, before hours of scoring."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the directory: {error.strerror}", file=directory) from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise OutputError("cannot write to the directory", file=directory)


def _check_output(directory: Path, checkpoints: Sequence[str | Checkpoint], overwrite: bool) -> None:
    if directory.name.endswith((*SUFFIXES, ".json")) and not directory.exists():
        raise OutputError(f"the output is a directory for {WEIGHTS}, {TRACE} and {RESULTS}", file=directory)
    for name in (WEIGHTS, TRACE, RESULTS):
        if (directory / name).exists() and not overwrite:
            raise OutputError(
                "results of an earlier run are there; another directory or --force", file=directory / name
            )
    target = directory / WEIGHTS
    opened = (c if isinstance(c, Checkpoint) else open_checkpoint(c) for c in checkpoints)
    files = [file for checkpoint in opened for file in checkpoint.files]
    if target.exists() and any(os.path.samefile(file, target) for file in files):
        raise OutputError("the output is one of the checkpoints", file=target)


def _results(task: Task, model: nn.Module, soup: Soup, metric: Metric) -> dict[str, object]:
    tests: dict[str, object] = {}
    with naming("tests() of the task", "the soup is saved"):
        sets = dict(getattr(task, "tests", dict)())
    for name, data in sets.items():
        with naming(f"scoring test set {name}", "the soup is saved"):
            tests[str(name)] = finite(evaluate(model, _heldout(task, data), metric))
    return {
        "pysoup": __version__,
        "recipe": soup.recipe,
        "metric": metric.name,
        "direction": metric.direction,
        "heldout": finite(soup.score),
        "tests": tests,
        "ingredients": soup.ingredients,
    }


def _heldout(task: Task, data: object) -> HeldOut:
    return as_heldout(data, getattr(task, "forward", None))
