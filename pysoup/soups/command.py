"""``pysoup greedy`` and ``pysoup uniform``: a task, checkpoints and a directory to write the results to.

``RUN/soup.safetensors`` holds the weights, ``RUN/trace.json`` how they came about, ``RUN/results.json`` the scores on
the held-out data and on the task's test sets, which are reported and never selected on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from torch import nn

from .._version import __version__
from ..errors import OutputError
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
    checkpoints: list[str],
    output: str,
    *,
    metric: MetricLike | None = None,
    accept: Accept = ">=",
    overwrite: bool = False,
    progress: StepProgress | None = None,
) -> Soup:
    """Make the greedy soup of ``checkpoints`` for the task ``FILE.py:NAME`` and write the results to ``output``.

    ``metric`` defaults to the task's own, then to accuracy. Results that are there are an :class:`OutputError` unless
    ``overwrite``; nothing is computed before that is known.
    """

    def recipe(model: nn.Module, heldout: HeldOut, metric: Metric) -> Soup:
        return greedy_soup(checkpoints, model, heldout, metric, accept=accept, progress=progress)

    return _run(task, checkpoints, output, metric, overwrite, recipe)


def run_uniform(
    task: str,
    checkpoints: list[str],
    output: str,
    *,
    metric: MetricLike | None = None,
    overwrite: bool = False,
    progress: StepProgress | None = None,
) -> Soup:
    """The same for the uniform soup of all ``checkpoints``."""

    def recipe(model: nn.Module, heldout: HeldOut, metric: Metric) -> Soup:
        return uniform_soup(checkpoints, model, heldout, metric, progress=progress)

    return _run(task, checkpoints, output, metric, overwrite, recipe)


def _run(
    task: str, checkpoints: list[str], output: str, metric: MetricLike | None, overwrite: bool, recipe: Recipe
) -> Soup:
    directory = Path(output)
    _check_output(directory, checkpoints, overwrite)
    loaded = load_task(task)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the directory: {error.strerror}", file=directory) from error
    resolved = as_metric(metric if metric is not None else getattr(loaded, "metric", "accuracy"))
    model = loaded.model()
    soup = recipe(model, _heldout(loaded, loaded.heldout()), resolved)
    # The results of an earlier run first: they must never stand beside another soup.
    (directory / RESULTS).unlink(missing_ok=True)
    (directory / TRACE).unlink(missing_ok=True)
    soup.save(directory / WEIGHTS, overwrite=overwrite)
    soup.save_trace(directory / TRACE, overwrite=overwrite)
    write_json(directory / RESULTS, _results(loaded, model, soup, resolved), overwrite=overwrite)
    return soup


def _check_output(directory: Path, checkpoints: list[str], overwrite: bool) -> None:
    for name in (WEIGHTS, TRACE, RESULTS):
        if (directory / name).exists() and not overwrite:
            raise OutputError(
                "results of an earlier run are there; another directory or --force", file=directory / name
            )
    target = directory / WEIGHTS
    if target.exists() and any(os.path.exists(path) and os.path.samefile(path, target) for path in checkpoints):
        raise OutputError("the output is one of the checkpoints", file=target)


def _results(task: Task, model: nn.Module, soup: Soup, metric: Metric) -> dict[str, object]:
    tests: dict[str, object] = {}
    for name, data in getattr(task, "tests", dict)().items():
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
