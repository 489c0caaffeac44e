"""``pysoup evaluate``: every model on the held-out set and all test sets, written down after each.

What is known of the same content, data and metric is not computed again, so a run that was killed goes on, and a run
with more checkpoints only scores these.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..analysis.sets import HELDOUT, Sets
from ..errors import OutputError, SoupError
from ..evaluate import HeldOut, Metric, MetricLike, as_metric
from ..evaluate.calibration import BINS
from ..load import average_into
from ..progress import StepProgress
from ..record import read_json
from ..soups.candidates import naming
from ..soups.files import write_json
from ..soups.identity import architecture_of, metric_identity
from ..soups.model_logits import ModelLogits
from ..task import Task
from .evaluated import Evaluated, EvaluatedLike, open_evaluated
from .set_scores import score_model, score_outputs

FORMAT = 1
"""The value of the key ``evaluations``; a file without it is not ours."""
EVALUATIONS = "evaluations.json"
_SAME = ("metric", "bins", "model", "sets")
"""What has to be the same for scores to stand beside one another."""


@dataclass
class Evaluations:
    """``content`` is what the file holds; ``given`` are its models that were asked for, in that order.

    Of these, ``scored`` were computed and the others known. ``notes`` has what should be known about the checkpoints.
    """

    content: dict[str, Any]
    given: list[dict[str, Any]]
    scored: int
    notes: list[str] = field(default_factory=list)


def evaluate_checkpoints(
    checkpoints: EvaluatedLike,
    task: str | Task,
    output: str | os.PathLike[str] | None = None,
    *,
    metric: MetricLike | None = None,
    bins: int = BINS,
    entry: str | None = None,
    integers: str = "auto",
    overwrite: bool = False,
    progress: StepProgress | None = None,
) -> Evaluations:
    """Score each of ``checkpoints`` on the held-out set and the test sets of ``task`` (an object or ``FILE.py:NAME``).

    ``checkpoints`` are what recipes take, and directories that recipes left: of a soup, its weights are scored; of an
    ensemble, the mean of its ingredients' logits. ``metric`` defaults to the task's own, then to accuracy; beside it
    each set has the likelihood and the expected calibration error with so many ``bins`` of equal mass.

    ``output`` is a directory that gets ``evaluations.json``, after each model anew: models that are known there, by
    their content, are not scored again. Scores of another metric, model or data are an :class:`OutputError` there
    unless ``overwrite``. Data without a fingerprint is scored each time. Raises :class:`SoupError` as recipes do.
    """
    asked = None if metric is None else as_metric(metric)
    sets = Sets(task)
    resolved = asked or as_metric(getattr(sets.task, "metric", "accuracy"))
    notes: list[str] = []
    evaluated = open_evaluated(checkpoints, sets.model, entry, integers, notes)
    file = None if output is None else _file(Path(output))  # after what is likely wrong: nothing is left then
    content = _document(sets, resolved, bins)
    known = _known(file, content, overwrite)
    if file is not None:
        _check_place(file.parent, evaluated)
    hashed = known.pop("files", {})
    document: dict[str, Any] = {**content, "models": list(known.get("models", [])), "files": hashed}
    recognised = all(data["fingerprint"] for data in content["sets"].values())
    result = Evaluations(document, [], 0, notes)
    for number, item in enumerate(evaluated, 1):
        facts = item.facts(hashed)
        scores = _scores_of(document["models"], facts) if recognised else None
        if scores is None:
            scores = _scores(item, sets, resolved, bins)
            result.scored += 1
        model = {**facts, "scores": scores}
        _put(document["models"], model)
        result.given.append(model)
        if file is not None:
            write_json(file, document, overwrite=True)
        if progress is not None:
            progress(number, len(evaluated), item.name)
    return result


def read_evaluations(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What ``evaluations.json``, or the directory with it, holds; None where there is none, or something else."""
    file = Path(path)
    known = read_json(file / EVALUATIONS if file.is_dir() else file)
    if known is None or known.get("evaluations") != FORMAT or not isinstance(known.get("models"), list):
        return None
    fits = all(isinstance(model, dict) and isinstance(model.get("scores"), dict) for model in known["models"])
    return known if fits and isinstance(known.get("files", {}), dict) else None


def _file(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the directory: {error.strerror}", file=directory) from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise OutputError("cannot write to the directory", file=directory)
    return directory / EVALUATIONS


def _check_place(directory: Path, evaluated: Sequence[Evaluated]) -> None:
    """Beside checkpoints, a second file of scores would make ``--top`` ambiguous; beside a trace it is at home."""
    for item in evaluated:
        if item.kind == "checkpoint" and any(os.path.samefile(file.parent, directory) for file in item.files):
            what = "the checkpoints are in this directory, with scores of their own; another one"
            raise OutputError(what, file=directory)


def _document(sets: Sets, metric: Metric, bins: int) -> dict[str, Any]:
    """The file without models."""
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise SoupError("bins must be a positive integer", found=repr(bins))
    device = next((t.device.type for t in sets.model.state_dict().values()), "cpu")
    return {
        "evaluations": FORMAT,
        "pysoup": __version__,
        "torch": torch.__version__,
        "device": device,
        "task": sets.name,
        "metric": metric_identity(metric),
        "bins": bins,
        "model": architecture_of(sets.model),
        "test": sets.test,
        "sets": {
            name: {"fingerprint": _fingerprint(data, name), "selects": name == HELDOUT}
            for name, data in sets.all.items()
        },
    }


def _fingerprint(data: HeldOut, name: str) -> str | None:
    with naming(f"reading {name}", "nothing was scored"):
        len(data)
    try:
        return data.fingerprint
    except SoupError:  # of data that has none
        return None


def _known(file: Path | None, content: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """What the file holds, as far as it can stand beside what is to come."""
    if file is None or not file.exists():
        return {}
    known = read_evaluations(file)
    same = known is not None and all(known.get(key) == content[key] for key in _SAME)
    if same and known is not None:
        return known
    if not overwrite:
        what = "not evaluations, or a broken file" if known is None else "scores of other data or by another metric"
        found = "" if known is None else ", ".join(key for key in _SAME if known.get(key) != content[key])
        raise OutputError(f"{what} are there; another directory or --force", file=file, found=found or None)
    return {}


def _scores_of(models: Sequence[Any], facts: dict[str, Any]) -> dict[str, Any] | None:
    key = (facts["kind"], facts["content"], facts["entry"])
    for model in models:
        if isinstance(model, dict) and tuple(map(model.get, ("kind", "content", "entry"))) == key:
            scores: dict[str, Any] = model["scores"]
            return scores
    return None


def _put(models: list[Any], model: dict[str, Any]) -> None:
    """In place of what had the same path (or, without one, name), or the same content at a path that is gone."""
    key = "name" if model["path"] is None else "path"
    for index, other in enumerate(models):
        same = other.get(key) == model[key] and other.get("entry") == model["entry"]
        gone = other.get("path") is not None and not os.path.exists(other["path"])
        if same or (gone and other.get("content") == model["content"]):
            models[index] = model
            return
    models.append(model)


def _scores(item: Evaluated, sets: Sets, metric: Metric, bins: int) -> dict[str, Any]:
    """By set. An ensemble's ingredients take a pass each."""
    scores: dict[str, Any] = {}
    if not item.members:
        with naming(f"loading {item.name}", "the model may hold part of it", file=True):
            item.load_into(sets.model, average_into)
    for name, data in sets.all.items():
        with naming(f"scoring {item.name} on {name}", "what was scored before is kept"):
            if item.members:
                started = time.perf_counter()
                logits, labels = ModelLogits(item.candidates, item.integers).mean(sets.model, data, item.members)
                found = score_outputs(logits, labels, metric, time.perf_counter() - started, bins=bins)
            else:
                found = score_model(sets.model, data, metric, bins=bins)
        scores[name] = found.to_json()
    return scores
