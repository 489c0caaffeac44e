"""``pysoup greedy`` and its like: a task, checkpoints and a directory to write the results to.

``RUN/soup.safetensors`` holds the weights, ``RUN/trace.json`` how they came about, ``RUN/results.json`` the scores on
the held-out data and on the task's test sets, which are reported and never selected on. An ensemble has no weights of
its own. ``RUN/journal`` is there while a recipe is at work that selects: what a killed run has left of it is not
computed again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from .._version import __version__
from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.index import SUFFIXES
from ..errors import OutputError, SoupError
from ..evaluate import HeldOut, Metric, MetricLike, as_heldout, as_metric, evaluate
from ..progress import StepProgress
from ..task import HELDOUT_SEED, Task, load_task, seed_draws
from .candidates import naming, read_heldout
from .ensemble import Ensemble
from .files import write_json
from .given import Accept, Order
from .greedy import greedy_soup
from .soup import Soup, finite
from .uniform import uniform_soup

WEIGHTS, TRACE, RESULTS = "soup.safetensors", "trace.json", "results.json"
JOURNAL = "journal"
Made = TypeVar("Made", bound=Soup | Ensemble)


def run_greedy(
    task: str,
    checkpoints: Sequence[str | Checkpoint],
    output: str,
    *,
    metric: MetricLike | None = None,
    accept: Accept = ">=",
    min_delta: float = 0.0,
    order: Order = "score",
    seed: int = 0,
    max_ingredients: int | None = None,
    passes: int = 1,
    replacement: bool = False,
    early_rejection: bool = True,
    integers: str = "auto",
    overwrite: bool = False,
    progress: StepProgress | None = None,
) -> Soup:
    """Make the greedy soup of ``checkpoints`` for the task ``FILE.py:NAME`` and write the results to ``output``.

    ``metric`` defaults to the task's own, then to accuracy; the other options are those of :func:`greedy_soup`. Results
    that are there are an :class:`OutputError` unless ``overwrite``; nothing is computed before that is known. A run
    that was killed goes on where it was.
    """

    def recipe(model: nn.Module, heldout: HeldOut, metric: Metric, run: Path | None) -> Soup:
        return greedy_soup(
            checkpoints,
            model,
            heldout,
            metric,
            accept=accept,
            min_delta=min_delta,
            order=order,
            seed=seed,
            max_ingredients=max_ingredients,
            passes=passes,
            replacement=replacement,
            early_rejection=early_rejection,
            run=run,
            integers=integers,
            progress=progress,
        )

    return run_recipe(task, checkpoints, output, metric, overwrite, recipe)


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

    def recipe(model: nn.Module, heldout: HeldOut, metric: Metric, run: Path | None) -> Soup:
        return uniform_soup(checkpoints, model, heldout, metric, integers=integers, progress=progress)

    return run_recipe(task, checkpoints, output, metric, overwrite, recipe, selects=False)


def run_recipe(
    task: str,
    checkpoints: Sequence[str | Checkpoint],
    output: str,
    metric: MetricLike | None,
    overwrite: bool,
    recipe: Callable[[nn.Module, HeldOut, Metric, Path | None], Made],
    *,
    selects: bool = True,
) -> Made:
    """What all of them do: check, make what ``recipe`` makes of the task's model and held-out data, write, score.

    A recipe that ``selects`` gets a directory to record its scores in, or None.
    """
    directory = Path(output)
    # A run that ended while it scored the test sets has its journal still, and no results.
    unfinished = selects and (directory / JOURNAL).exists() and not (directory / RESULTS).exists()
    overwrite = overwrite or unfinished
    _check_output(directory, checkpoints, overwrite)
    loaded = load_task(task)
    resolved = as_metric(metric if metric is not None else getattr(loaded, "metric", "accuracy"))
    with naming(f"model() of {task}", "nothing was written"):
        model = loaded.model()
    if not isinstance(model, nn.Module):
        raise SoupError(f"model() of {task} made no model", found=type(model).__name__, expected="a torch.nn.Module")
    seed_draws(HELDOUT_SEED)
    with naming(f"heldout() of {task}", "nothing was written"):
        heldout = _heldout(loaded, loaded.heldout())
    read_heldout(heldout)
    new = not directory.exists()
    _make(directory)
    try:
        run, notes = _journal(directory, heldout) if selects else (None, [])
        made = recipe(model, heldout, resolved, run)
        made.notes += notes
    except BaseException:
        if new:
            with suppress(OSError):
                directory.rmdir()
        raise
    # The results of an earlier run first: they must never stand beside another soup.
    (directory / RESULTS).unlink(missing_ok=True)
    (directory / TRACE).unlink(missing_ok=True)
    if isinstance(made, Soup):
        made.save(directory / WEIGHTS, overwrite=overwrite)
    else:
        (directory / WEIGHTS).unlink(missing_ok=True)
    made.save_trace(directory / TRACE, overwrite=overwrite)
    write_json(directory / RESULTS, _results(loaded, model, made, resolved), overwrite=overwrite)
    if run is not None:
        shutil.rmtree(run, ignore_errors=True)
    return made


def _journal(directory: Path, heldout: HeldOut) -> tuple[Path | None, list[str]]:
    """Where scores are recorded; nowhere, with a note, for data that a later run would not know again."""
    try:
        _ = heldout.fingerprint
    except SoupError as error:
        return None, [f"had it been killed, this run could not have gone on: {error}"]
    return directory / JOURNAL, []


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
    if directory.exists() and any(os.path.samefile(file.parent, directory) for file in files):
        raise OutputError(
            "the checkpoints are in this directory, and would have the soup among them; another one", file=directory
        )


def _results(task: Task, model: nn.Module, made: Soup | Ensemble, metric: Metric) -> dict[str, object]:
    tests: dict[str, object] = {}
    saved = "the soup is saved" if isinstance(made, Soup) else "the trace is saved"
    with naming("tests() of the task", saved):
        sets: Any = getattr(task, "tests", dict)()
        if not isinstance(sets, Mapping):
            raise SoupError("not test sets", found=type(sets).__name__, expected="a dictionary: name -> data")
    for name, data in sets.items():
        with naming(f"scoring test set {name}", saved):
            test = _heldout(task, data)
            score = evaluate(model, test, metric) if isinstance(made, Soup) else made.evaluate(model, test)
            tests[str(name)] = finite(score)
    return {
        "pysoup": __version__,
        "recipe": made.recipe,
        "metric": metric.name,
        "direction": metric.direction,
        "heldout": finite(made.score),
        "tests": tests,
        "ingredients": made.ingredients,
    }


def _heldout(task: Task, data: object) -> HeldOut:
    return as_heldout(data, getattr(task, "forward", None))
