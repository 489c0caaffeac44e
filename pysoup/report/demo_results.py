"""What ``pysoup demo`` left, as evaluations of its models and as results of its two soups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .content import Made, Model
from .scores import HELDOUT

INGREDIENTS = "ingredients"
_SOUPS = {"Greedy soup": "greedy", "Uniform soup": "uniform"}


def is_demo(results: Mapping[str, Any]) -> bool:
    """Whether a ``results.json`` is the demo's."""
    return isinstance(results.get("rows"), list) and isinstance(results.get("models"), list)


def demo_sets(results: Mapping[str, Any]) -> list[str]:
    """The test set and its shifts."""
    rows = [row for row in results["rows"] if isinstance(row, Mapping) and isinstance(row.get("shifts"), Mapping)]
    return [str(results.get("test", "test")), *(str(name) for name in (rows[0]["shifts"] if rows else ()))]


def take_demo(directory: Path, results: Mapping[str, Any], models: Sequence[Model], made: list[Made]) -> list[Model]:
    """Give the test scores to the ``models`` that the demo recorded and to the soups ``made`` in ``directory``.

    The uniform soup, which has no trace there, is added; returned is the initialisation.
    """
    scores = {str(entry.get("name")): _scores(results, entry) for entry in _entries(results["models"])}
    own = [model for model in models if Path(model.name).parent == directory / INGREDIENTS]
    for model in own:
        model.scores = {**scores.get(Path(model.name).stem, {}), **model.scores}
    heldout = results.get("heldout")
    rows = {str(row.get("name")): _scores(results, row) for row in _entries(results["rows"])}
    greedy = next((one for one in made if one.directory == str(directory)), None)
    for name, recipe in _SOUPS.items():
        if name not in rows:
            continue
        if isinstance(heldout, Mapping) and name in heldout:
            rows[name][HELDOUT] = {"score": heldout[name]}
        if recipe == "greedy" and greedy is not None:
            greedy.scores |= rows[name]
        elif recipe == "uniform" and greedy is not None and own:
            paths = [model.name for model in own]
            trace = {"recipe": recipe, "ingredients": paths, "weights": [1 / len(paths)] * len(paths)}
            made.append(Made(str(directory), greedy.name, trace, rows[name]))
    start = results.get("initialization")
    if not isinstance(start, Mapping):
        return []
    return [Model(str(directory / "start"), "", _scores(results, start), is_start=True)]


def _scores(results: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    shifts = entry.get("shifts")
    found = {str(results.get("test", "test")): entry.get("test"), **(shifts if isinstance(shifts, Mapping) else {})}
    return {str(name): {"score": value} for name, value in found.items()}


def _entries(value: Sequence[Any]) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, Mapping)]
