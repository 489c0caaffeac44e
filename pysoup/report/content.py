"""What a report tells, apart from how it looks: models, soups and ensembles with their scores, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .scores import HELDOUT, as_number, mean_of

SetScore = dict[str, Any]
"""``score``, and, where it is known, ``nll``, ``ece``, ``samples`` and ``bins``."""


@dataclass
class Model:
    """A single model: an ingredient, or the start that all ingredients share.

    ``scores`` are by set; ``content`` is the SHA-256 of its file.
    """

    name: str
    label: str
    scores: dict[str, SetScore]
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    content: str = ""
    seconds: float | None = None
    is_start: bool = False

    def score(self, name: str) -> float | None:
        return as_number(self.scores.get(name, {}).get("score"))


@dataclass
class Made:
    """What a recipe made: the trace and the results that it left in its ``directory``, which is shown as ``name``."""

    directory: str
    name: str
    trace: Mapping[str, Any]
    scores: dict[str, SetScore]
    label: str = ""
    task: str | None = None
    given: list[str] = field(default_factory=list)
    """The checkpoints that the recipe was given, where the results say so."""
    rank: int = 0

    @property
    def recipe(self) -> str:
        return str(self.trace.get("recipe", ""))

    @property
    def is_ensemble(self) -> bool:
        return self.recipe.endswith("ensemble")

    @property
    def ingredients(self) -> list[str]:
        found = self.trace.get("ingredients")
        return [str(name) for name in found] if isinstance(found, list) else []

    @property
    def weights(self) -> list[float]:
        """One for each ingredient; empty where they differ by granule."""
        found = self.trace.get("weights")
        numbers = [as_number(value) for value in found] if isinstance(found, list) else []
        known = [value for value in numbers if value is not None]
        return known if len(known) == len(self.ingredients) else []

    @property
    def steps(self) -> list[Mapping[str, Any]]:
        found = self.trace.get("trace")
        return [step for step in found if isinstance(step, Mapping)] if isinstance(found, list) else []

    @property
    def options(self) -> dict[str, Any]:
        found = self.trace.get("options")
        return dict(found) if isinstance(found, Mapping) else {}

    @property
    def candidates(self) -> list[str]:
        """The same, or what is known of them: by their positions in the trace, else the ingredients."""
        if self.given:
            return self.given
        found: dict[int, str] = {}
        for step in self.steps:
            if isinstance(step.get("index"), int) and isinstance(step.get("ingredient"), str):
                found[step["index"]] = step["ingredient"]
        return [found[index] for index in sorted(found)] or self.ingredients

    @property
    def random_order(self) -> bool:
        return self.recipe == "greedy" and self.options.get("order") == "random"

    def numbers(self, key: str) -> dict[str, float]:
        """``passes`` or ``timing`` of the trace."""
        found = self.trace.get(key)
        items = found.items() if isinstance(found, Mapping) else ()
        known = {str(name): as_number(value) for name, value in items}
        return {name: value for name, value in known.items() if value is not None}

    def score(self, name: str) -> float | None:
        return as_number(self.scores.get(name, {}).get("score"))


@dataclass
class Row:
    """A line of the methods' table: so many ``ingredients`` of so many ``candidates``.

    ``cost`` is that of using it, in forward passes of one model.
    """

    label: str
    detail: str
    heldout: float | None
    tests: dict[str, float | None]
    mean: float | None
    ingredients: int
    cost: int
    candidates: int = 1
    spread: dict[str, float] = field(default_factory=dict)
    """Of several runs: the sample standard deviation, by column."""
    scores: dict[str, SetScore] = field(default_factory=dict)

    @property
    def order(self) -> str:
        """As the paper's Table 2 has it."""
        return "O(1)" if self.cost == 1 else "O(k)"


@dataclass
class Content:
    """All of it. ``sets`` are the held-out set, the test set and its shifts, in this order."""

    title: str
    metric: str = "accuracy"
    direction: str = "max"
    sets: list[str] = field(default_factory=lambda: [HELDOUT])
    models: list[Model] = field(default_factory=list)
    start: Model | None = None
    made: list[Made] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """What is left out, and the command that makes it."""
    versions: dict[str, str] = field(default_factory=dict)
    task: str | None = None
    analyses: list[Analysis] = field(default_factory=list)

    @property
    def tests(self) -> list[str]:
        return self.sets[1:]

    @property
    def test(self) -> str | None:
        return self.sets[1] if len(self.sets) > 1 else None

    @property
    def shifts(self) -> list[str]:
        return self.sets[2:]

    def better(self, one: float, other: float) -> bool:
        return one > other if self.direction == "max" else one < other

    def best(self, values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None and value == value]
        return None if not known else max(known) if self.direction == "max" else min(known)

    def ranked(self) -> list[Model]:
        """Single models with a held-out score, best first, ties in the given order."""
        known = [(score, model) for model in self.models if (score := model.score(HELDOUT)) is not None]
        known = [(score, model) for score, model in known if score == score]
        return [model for _, model in sorted(known, key=lambda pair: pair[0], reverse=self.direction == "max")]

    def model_of(self, ingredient: str) -> Model | None:
        """The model that a trace calls so."""
        return next((model for model in self.models if model.name == ingredient), None)

    def mean_shift(self, item: Model | Made) -> float | None:
        return mean_of(item.scores, self.shifts)


@dataclass
class Analysis:
    """A JSON file of ``pysoup analyze`` by its ``name``, and figures (the bytes of each file) beside it."""

    name: str
    content: Mapping[str, Any]
    figures: dict[str, bytes] = field(default_factory=dict)


def content_json(content: Content) -> dict[str, Any]:
    """Everything, unrounded, for ``--format json``."""
    return {
        "report": 1,
        "title": content.title,
        "metric": content.metric,
        "direction": content.direction,
        "sets": content.sets,
        "versions": content.versions,
        "task": content.task,
        "methods": [
            {
                "method": row.label,
                "what": row.detail,
                "heldout": row.heldout,
                "tests": row.tests,
                "mean_shift": row.mean,
                "spread": row.spread,
                "ingredients": row.ingredients,
                "cost": row.cost,
                "scores": row.scores,
            }
            for row in content.rows
        ],
        "start": None if content.start is None else _model_json(content.start),
        "models": [_model_json(model) for model in content.models],
        "made": [
            {"directory": made.directory, "label": made.label, "task": made.task, "scores": made.scores, **made.trace}
            for made in content.made
        ],
        "analyses": [{"file": analysis.name, **analysis.content} for analysis in content.analyses],
        "missing": content.missing,
    }


def _model_json(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "label": model.label,
        "sha256": model.content,
        "hyperparameters": model.hyperparameters,
        "training_seconds": model.seconds,
        "scores": model.scores,
    }
