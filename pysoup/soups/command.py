"""``pysoup greedy`` and its like: a task, checkpoints and a directory to write the results to.

``RUN/soup.safetensors`` holds the weights, ``RUN/trace.json`` how they came about, ``RUN/results.json`` the scores on
the held-out data and on the task's test sets, which are reported and never selected on. An ensemble has no weights of
its own. ``RUN/journal`` is there while a recipe is at work that records its scores: what a killed run has left of it
is not computed again.
"""

from __future__ import annotations

import os
import re
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
from ..task import HELDOUT_SEED, Task, load_task, seed_draws
from .candidates import naming, read_heldout
from .ensemble import Ensemble
from .files import write_array, write_json
from .journal import JOURNAL as RECORDED
from .journal import remove_run
from .soup import Soup, finite

WEIGHTS, TRACE, RESULTS = "soup.safetensors", "trace.json", "results.json"
JOURNAL = "journal"
PROBABILITIES = "probabilities"
_NOT_IN_FILES = re.compile(r"[^\w.-]")
Made = TypeVar("Made", bound=Soup | Ensemble)


def run_recipe(
    make: Callable[..., Made],
    task: str,
    checkpoints: Sequence[str | Checkpoint],
    output: str,
    *,
    metric: MetricLike | None = None,
    overwrite: bool = False,
    records: bool = True,
    reports: bool = False,
    training: bool = False,
    probabilities: bool = False,
    **options: Any,
) -> Made:
    """Make what the recipe ``make`` (:func:`greedy_soup`, say) makes of ``checkpoints`` for the task ``FILE.py:NAME``,
    and write the results to ``output``.

    ``metric`` defaults to the task's own, then to accuracy; ``options`` are the recipe's. Results that are there are an
    :class:`OutputError` unless ``overwrite``; nothing is computed before that is known. A recipe that ``records`` its
    scores gets a directory for them: killed, it goes on where it was. One that ``reports`` scores on the task's test
    sets of its own gets them as ``tests``, and with ``training`` it gets the task's training data. ``probabilities``,
    of an ensemble, writes those of every sample of the held-out data and the test sets as arrays ``[N, C]``.
    """
    directory = Path(output)
    # A run that ended while it scored the test sets has its journal still, and no results.
    unfinished = records and (directory / JOURNAL / RECORDED).exists() and not (directory / RESULTS).exists()
    overwrite = overwrite or unfinished
    _check_output(directory, checkpoints, overwrite)
    loaded = load_task(task)
    resolved = _metric(metric, loaded, task)
    seed_draws(HELDOUT_SEED)  # what patterns leave out of the average stays as model() made it
    with naming(f"model() of {task}", "nothing was written"):
        model = loaded.model()
    if not isinstance(model, nn.Module):
        raise SoupError(f"model() of {task} made no model", found=type(model).__name__, expected="a torch.nn.Module")
    seed_draws(HELDOUT_SEED)
    with naming(f"heldout() of {task}", "nothing was written"):
        heldout = _heldout(loaded, loaded.heldout())
    read_heldout(heldout)
    if reports:
        options["tests"] = _test_sets(loaded, "nothing was written")
    if training:
        options["training"] = _training(loaded, task)
    new = not directory.exists()
    _make(directory)
    try:
        sets = [heldout, *options.get("also", {}).values(), *options.get("tests", {}).values()]
        run, notes = _journal(directory, sets) if records else (None, [])
        made = make(checkpoints, model, heldout, resolved, **options, **({"run": run} if records else {}))
        made.notes += notes
    except SoupError as error:
        if new:
            _remove(directory)
        raise error.but(left=None) from error  # the model is not the user's
    except BaseException:
        if new:
            _remove(directory)
        raise
    # The results of an earlier run first: they must never stand beside another soup.
    (directory / RESULTS).unlink(missing_ok=True)
    (directory / TRACE).unlink(missing_ok=True)
    if isinstance(made, Soup):
        made.save(directory / WEIGHTS, overwrite=overwrite)
    else:
        (directory / WEIGHTS).unlink(missing_ok=True)
    made.save_trace(directory / TRACE, overwrite=overwrite)
    arrays = directory / PROBABILITIES if probabilities else None
    if arrays is not None and isinstance(made, Ensemble):
        with naming("applying the ensemble to the held-out data", "the trace is saved"):
            write_array(arrays / "heldout.npy", made.probabilities(model, heldout))
    results = _results(loaded, model, made, resolved, arrays)
    given = [os.fspath(c.path) if isinstance(c, Checkpoint) else c for c in checkpoints]
    write_json(directory / RESULTS, {"task": task, "checkpoints": given, **results}, overwrite=overwrite)
    if run is not None:
        remove_run(run)
    return made


def _training(loaded: Task, task: str) -> Any:
    """The training data of the task."""
    if not callable(getattr(loaded, "train", None)):
        raise SoupError(f"{task} has no train(): no data to estimate the BatchNorm statistics from")
    with naming(f"train() of {task}", "nothing was written"):
        return loaded.train()  # type: ignore[attr-defined]


def heldout_sets(tasks: Sequence[str]) -> dict[str, HeldOut]:
    """The held-out sets of further tasks, each by the name of its task, and applied as that says."""
    found = {}
    for task in tasks:
        loaded = load_task(task)
        seed_draws(HELDOUT_SEED)
        with naming(f"heldout() of {task}", "nothing was written"):
            found[task] = _heldout(loaded, loaded.heldout())
    return found


def _journal(directory: Path, sets: Sequence[HeldOut]) -> tuple[Path | None, list[str]]:
    """Where scores are recorded; nowhere, with a note, for data that a later run would not know again."""
    try:
        _ = [data.fingerprint for data in sets]
    except SoupError as error:
        return None, [f"had it been killed, this run could not have gone on: {error}"]
    return directory / JOURNAL, []


def _metric(asked: MetricLike | None, loaded: Task, task: str) -> Metric:
    """Of what is wrong with it, the error says where it was asked for."""
    where = f"metric of {task}" if asked is None else "--metric"
    try:
        return as_metric(getattr(loaded, "metric", "accuracy") if asked is None else asked)
    except SoupError as error:
        raise error.but(what=f"{where}: {error.what}") from error


def _remove(directory: Path) -> None:
    with suppress(OSError):  # it is not empty
        directory.rmdir()


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


def _results(
    task: Task, model: nn.Module, made: Soup | Ensemble, metric: Metric, arrays: Path | None
) -> dict[str, object]:
    """The scores; ``arrays`` is the directory for the probabilities of an ensemble."""
    tests: dict[str, object] = {}
    saved = "the soup is saved" if isinstance(made, Soup) else "the trace is saved"
    for name, test in _test_sets(task, saved).items():
        with naming(f"scoring test set {name}", saved):
            if isinstance(made, Soup):
                score = evaluate(model, test, metric)
            else:
                logits, score = made.scored(model, test)
                if arrays is not None:
                    write_array(arrays / f"test-{_NOT_IN_FILES.sub('_', name)}.npy", logits.softmax(-1))
            tests[name] = finite(score)
    return {
        "pysoup": __version__,
        "recipe": made.recipe,
        "metric": metric.name,
        "direction": metric.direction,
        "heldout": finite(made.score),
        "tests": tests,
        "ingredients": made.ingredients,
    }


def _test_sets(task: Task, left: str) -> dict[str, HeldOut]:
    with naming("tests() of the task", left):
        sets: Any = getattr(task, "tests", dict)()
        if not isinstance(sets, Mapping):
            raise SoupError("not test sets", found=type(sets).__name__, expected="a dictionary: name -> data")
        return {str(name): _heldout(task, data) for name, data in sets.items()}


def _heldout(task: Task, data: object) -> HeldOut:
    return as_heldout(data, getattr(task, "forward", None))
