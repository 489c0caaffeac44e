"""Everything that runs left in some directories, as the content of a report."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.index import SUFFIX, natural_key
from ..errors import SoupError
from ..record import FORMAT as RECORD
from ..record import read_json
from .analyses import analysis_in
from .content import Content, Made, Model
from .demo_results import demo_sets, is_demo, take_demo
from .methods import LABELS, label_of, methods
from .missing import missing
from .scores import HELDOUT, as_number, set_names

TRACE, RESULTS, EVALUATIONS = "trace.json", "results.json", "evaluations.json"
_DEEPEST = 6
_MOST_FILES = 20_000
_NOT_OURS = ("journal", "arrays")
_OTHER_POOLS = ("ema_", "earlier")
"""Of a sweep: averages and checkpoints on the way are pools of their own."""


def collect(runs: Sequence[str | os.PathLike[str]]) -> Content:
    """Read ``runs``: directories that hold, themselves or further down, what recipes, ``pysoup evaluate``, ``pysoup
    finetune`` and ``pysoup analyze`` wrote. Symbolic links to directories are not followed.

    Raises :class:`SoupError` where a directory is missing, holds nothing of that, or where scores are by several
    metrics, which no table can hold.
    """
    found = _Found()
    for run in runs:
        before = found.count
        root = Path(run)
        if not root.is_dir():
            raise SoupError("not a directory", file=root, expected="one with the results of runs")
        for directory, names in _walk(root):
            found.take(root, directory, names)
        if found.count == before:
            what = "nothing to report in it: no results of recipes, evaluations or fine-tuning"
            raise SoupError(what, file=root, expected=f"{TRACE}, {EVALUATIONS} or model_*.json")
    return found.content(", ".join(os.path.basename(os.path.abspath(run)) for run in runs))


class _Found:
    """What was read so far."""

    def __init__(self) -> None:
        self.count = 0
        self._made: list[Made] = []
        self._evaluations: list[Mapping[str, Any]] = []
        self._demos: list[tuple[Path, Mapping[str, Any]]] = []
        self._records: list[tuple[Path, Mapping[str, Any]]] = []
        self._metrics: dict[tuple[str, str], str] = {}
        self._content = Content("")

    def take(self, root: Path, directory: Path, names: Sequence[str]) -> None:
        """Read the files of these ``names`` in ``directory``, which is ``root`` or below it."""
        if TRACE in names and (trace := read_json(directory / TRACE)) is not None and "recipe" in trace:
            self._take_made(root, directory, trace)
        if EVALUATIONS in names and (known := read_json(directory / EVALUATIONS)) is not None:
            self._take_evaluations(directory, known)
        pool = directory == root or not directory.name.startswith(_OTHER_POOLS)
        for name in names:
            if not name.endswith(".json") or name in (TRACE, RESULTS, EVALUATIONS):
                continue
            known = read_json(directory / name)
            if known is None:
                continue
            if known.get("record") == RECORD and "failed" not in known and pool and directory.name != "start":
                self._records.append((directory / name, known))
                self._metric(known, directory / name)
                self.count += 1
            elif (analysis := analysis_in(directory / name, known, names)) is not None:
                self._content.analyses.append(analysis)
                self.count += 1

    def content(self, title: str) -> Content:
        content = self._content
        content.title = title
        for known in self._evaluations:
            self._set_names(known)
            content.models += [_model(entry) for entry in _dicts(known.get("models")) if _is_single(entry)]
        content.models += [_recorded(path, record) for path, record in self._records]
        for directory, results in self._demos:
            content.models += take_demo(directory, results, content.models, self._made)
        content.models = _merged(content.models)
        content.start = next((model for model in content.models if model.is_start), None)
        content.models = [model for model in content.models if not model.is_start]
        _label(content.models)
        content.made = self._methods()
        content.rows = methods(content)
        content.missing = missing(content, evaluated=bool(self._evaluations))
        return content

    def _take_made(self, root: Path, directory: Path, trace: Mapping[str, Any]) -> None:
        results = read_json(directory / RESULTS) or {}
        if is_demo(results):
            self._demos.append((directory, results))
            for name in demo_sets(results):
                self._add_set(name)
        tests = results.get("tests")
        scores = {str(name): {"score": value} for name, value in tests.items()} if isinstance(tests, Mapping) else {}
        if trace.get("score") is not None:
            scores[HELDOUT] = {"score": trace["score"]}
        made = Made(str(directory), _below(root, directory), trace, scores)
        if isinstance(results.get("task"), str):
            made.task = results["task"]
        if isinstance(results.get("checkpoints"), list):
            made.given = [str(name) for name in results["checkpoints"]]
        self._made.append(made)
        self._metric(trace, directory / TRACE)
        for name in scores:
            self._add_set(name)
        self._version("pysoup", trace.get("pysoup"))
        self.count += 1

    def _take_evaluations(self, directory: Path, known: Mapping[str, Any]) -> None:
        if not isinstance(known.get("metric"), Mapping) or not isinstance(known.get("models"), list):
            return
        self._evaluations.append(known)
        self._metric({"metric": known["metric"].get("name"), **_without_name(known["metric"])}, directory / EVALUATIONS)
        for key in ("pysoup", "torch"):
            self._version(key, known.get(key))
        if isinstance(known.get("task"), str):
            self._content.task = known["task"]
        self.count += 1

    def _metric(self, known: Mapping[str, Any], file: Path) -> None:
        if known.get("metric") is None:
            return
        name, direction = str(known["metric"]), str(known.get("direction", "max"))
        self._metrics.setdefault((name, direction), str(file))
        if len(self._metrics) > 1:
            (first, _), *_ = self._metrics
            what = "scores by several metrics are in these directories; report on them one at a time"
            raise SoupError(what, file=file, found=name, expected=f"{first} as in {next(iter(self._metrics.values()))}")
        self._content.metric, self._content.direction = name, direction

    def _set_names(self, known: Mapping[str, Any]) -> None:
        """The order of an evaluation is the task's; sets of results alone come after."""
        names, _ = set_names(known)
        content = self._content
        content.sets = [*names, *(name for name in content.sets if name not in names)]

    def _add_set(self, name: str) -> None:
        if name not in self._content.sets:
            self._content.sets.append(name)

    def _version(self, key: str, value: object) -> None:
        if isinstance(value, str):
            known = self._content.versions.get(key)
            self._content.versions[key] = value if known in (None, value) else f"{known}, {value}"

    def _methods(self) -> list[Made]:
        """Those of recipes, with what evaluations say of them; by rank, then in the order found."""
        for known in self._evaluations:
            for entry in _dicts(known.get("models")):
                for made in self._made:
                    if not _is_single(entry) and _is_of(entry, made):
                        made.scores |= _scores(entry)
        ranks = list(LABELS)
        for made in self._made:
            made.rank = ranks.index(made.recipe) if made.recipe in ranks else len(ranks)
            made.label = label_of(made)
        ordered = sorted(self._made, key=lambda made: (made.rank, made.random_order))
        labels = [made.label for made in ordered]
        for made in ordered:
            if labels.count(made.label) > 1:
                made.label = f"{made.label}, {made.name}"
        return ordered


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Directories from ``root`` down, and the visible files in each, in natural order."""
    seen = 0
    pending = [(root, 0)]
    while pending:
        directory, depth = pending.pop(0)
        try:
            with os.scandir(directory) as entries:
                listed = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: natural_key(e.name))
        except OSError as error:
            raise SoupError(f"cannot read the directory: {error.strerror}", file=directory) from error
        seen += len(listed)
        if seen > _MOST_FILES:
            raise SoupError(f"more than {_MOST_FILES:,} files; name the directories of results", file=root)
        yield directory, [entry.name for entry in listed if entry.is_file()]
        if depth < _DEEPEST:
            inside = [e for e in listed if e.is_dir(follow_symlinks=False) and e.name not in _NOT_OURS]
            pending += [(directory / entry.name, depth + 1) for entry in inside]


def _below(root: Path, directory: Path) -> str:
    """A directory as it is shown: from the one that was named on."""
    return os.path.normpath(os.path.join(os.path.basename(os.path.abspath(root)), directory.relative_to(root)))


def _dicts(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _without_name(metric: Mapping[str, Any]) -> dict[str, Any]:
    return {"direction": metric.get("direction", "max")}


def _is_single(entry: Mapping[str, Any]) -> bool:
    return entry.get("kind") == "checkpoint"


def _is_of(entry: Mapping[str, Any], made: Made) -> bool:
    """Whether scores are of what a recipe made: the same recipe, ingredients and weights, wherever they are now."""
    return all(entry.get(key) == made.trace.get(key) for key in ("recipe", "ingredients", "weights"))


def _scores(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found = entry.get("scores")
    items = found.items() if isinstance(found, Mapping) else ()
    return {str(name): dict(value) for name, value in items if isinstance(value, Mapping)}


def _model(entry: Mapping[str, Any]) -> Model:
    path = Path(str(entry.get("path") or entry.get("name", "")))
    hyperparameters = entry.get("hyperparameters")
    seconds = as_number(entry.get("training_seconds"))
    return Model(
        name=str(entry.get("name", "")),
        label="",
        scores=_scores(entry),
        hyperparameters=dict(hyperparameters) if isinstance(hyperparameters, Mapping) else {},
        content=str(entry.get("content", "")),
        seconds=seconds,
        is_start=path.parent.name == "start" or path.name == "start",
    )


def _recorded(path: Path, record: Mapping[str, Any]) -> Model:
    hyperparameters = record.get("hyperparameters")
    seconds = as_number(record.get("seconds"))
    return Model(
        name=str(path.with_suffix(SUFFIX)),  # as recipes name it
        label="",
        scores={HELDOUT: {"score": record.get("score")}},
        hyperparameters=dict(hyperparameters) if isinstance(hyperparameters, Mapping) else {},
        content=str(record.get("weights", "")),
        seconds=seconds,
    )


def _merged(models: Sequence[Model]) -> list[Model]:
    """One of each content, the first one found, with what the others know besides."""
    found: dict[str, Model] = {}
    for model in models:
        first = found.setdefault(model.content or model.name, model)
        if first is not model:
            first.scores = {**model.scores, **first.scores}
            first.hyperparameters = first.hyperparameters or model.hyperparameters
            first.seconds = model.seconds if first.seconds is None else first.seconds
    return list(found.values())


def _label(models: Sequence[Model]) -> None:
    """The shortest end of each path that no other has."""
    for model in models:
        parts = Path(model.name).parts or (model.name,)
        for length in range(1, len(parts) + 1):
            end = parts[-length:]
            if sum(Path(other.name).parts[-length:] == end for other in models) == 1:
                break
        label = "/".join(end)
        model.label = label.removesuffix(".safetensors") or model.name
