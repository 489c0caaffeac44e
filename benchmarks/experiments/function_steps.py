"""Steps of analyze.py: soups against ensembles as functions. Their budgets leave all of a seed in ten minutes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from pysoup.record import read_record


@dataclass(frozen=True)
class FunctionBudget:
    """Samples of the held-out set and of each of these tests, for curves and for Equation (1); orders; its models and
    points between two of them."""

    samples: int
    tests: tuple[str, ...]
    orders: int
    line_samples: int
    models: int
    alphas: int


BUDGETS = {
    "images": FunctionBudget(1024, ("mnist", "rotation", "blur"), orders=3, line_samples=512, models=4, alphas=11),
    "text": FunctionBudget(600, ("packages",), orders=3, line_samples=128, models=3, alphas=6),
}


def calibration(sweep: Any) -> dict[str, Any]:
    """Calibration of soups and ensembles as models are added."""
    from pysoup.analysis import calibration_curve
    from pysoup.analysis.figures_functions import calibration_figure, reliability_figure

    budget = BUDGETS[sweep.experiment]
    found = calibration_curve(
        _sets(sweep, budget.samples),
        sweep.paths,
        orders=budget.orders,
        run=_run(sweep, "added"),
        progress=sweep.progress,
    )
    if sweep.figure is not None:
        calibration_figure(found, sweep.figure)
        reliability_figure(found, sweep.figure.with_name(f"{sweep.experiment}_reliability.svg"))
    content = found.to_json()
    keys = ("bins", "betas", "curves", "reliability")
    return {"models": _stems(found.checkpoints), "samples": budget.samples, **{key: content[key] for key in keys}}


def count(sweep: Any) -> dict[str, Any]:
    """Soups and ensembles of the first n models; the passes are those of the calibration."""
    from pysoup.analysis import count_curve
    from pysoup.analysis.figures_functions import count_figure

    budget = BUDGETS[sweep.experiment]
    found = count_curve(
        _sets(sweep, budget.samples),
        sweep.paths,
        orders=budget.orders,
        run=_run(sweep, "added"),
        progress=sweep.progress,
    )
    if sweep.figure is not None:
        count_figure(found, sweep.figure)
    content = found.to_json()
    keys = ("orders", "kept", "curves")
    return {"models": _stems(found.checkpoints), "samples": budget.samples, **{key: content[key] for key in keys}}


def approximation(sweep: Any) -> dict[str, Any]:
    """Equation (1) between models from the lowest to the highest learning rate, and from the start to each."""
    from pysoup.analysis import soup_approximation
    from pysoup.analysis.figures_functions import approximation_figure

    budget = BUDGETS[sweep.experiment]
    by_rate = sorted(sweep.paths, key=_learning_rate)
    chosen = [by_rate[round(i * (len(by_rate) - 1) / (budget.models - 1))] for i in range(budget.models)]
    found = soup_approximation(
        _sets(sweep, budget.line_samples),
        [sweep.start, *chosen],
        pairs=list(combinations(range(1 + budget.models), 2)),
        alphas=[number / (budget.alphas - 1) for number in range(budget.alphas)],
        step=0.5 / (budget.alphas - 1),
        run=_run(sweep, "approximation"),
        progress=sweep.progress,
    )
    if sweep.figure is not None:
        approximation_figure(found, sweep.figure)
    content = found.to_json()
    keys = ("options", "learning_rates", "highest", "agreement", "points")
    return {"models": _stems(found.names), "samples": budget.line_samples, **{key: content[key] for key in keys}}


def compare(sweep: Any) -> dict[str, Any]:
    """The best model, the second best, the uniform soup and the ensemble of all, every two of them."""
    from pysoup import logit_ensemble, uniform_soup
    from pysoup.analysis.compare import compare_samples, samples_of

    budget = BUDGETS[sweep.experiment]
    sets = _sets(sweep, budget.samples)
    models = {}
    for name, paths in (("best", sweep.ranked[:1]), ("second", sweep.ranked[1:2]), ("uniform soup", sweep.paths)):
        uniform_soup(paths, sets.model)
        logits = sets.logits()
        models[name] = samples_of(logits)
    ensemble = logit_ensemble(sweep.paths, sets.model)
    models["ensemble"] = samples_of(
        {name: (ensemble.logits(sets.model, data), logits[name][1]) for name, data in sets.all.items()}
    )
    return {"samples": budget.samples, **compare_samples(models, sets.shifts, all_pairs=True).to_json()}


STEPS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "calibration": calibration,
    "count": count,
    "approximation": approximation,
    "compare": compare,
}
UNDRAWN = ("compare",)
"""Steps without a figure."""
_sets_of: dict[tuple[str, int], Any] = {}


def _sets(sweep: Any, samples: int) -> Any:
    """The task's model, and samples of some of its sets; the same for all seeds."""
    from pysoup.analysis import Sets
    from pysoup.analysis.views import chosen

    key = sweep.experiment, samples
    if key not in _sets_of:
        _sets_of[key] = chosen(Sets(sweep.task, samples=samples), BUDGETS[sweep.experiment].tests)
    return _sets_of[key]


def _run(sweep: Any, name: str) -> Path:
    folder: Path = sweep.folder / "analysis"
    folder.mkdir(exist_ok=True)
    return folder / name


def _learning_rate(path: Path) -> float:
    record = read_record(path)
    return 0.0 if record is None else float(record.hyperparameters["learning_rate"])


def _stems(names: list[str]) -> list[str]:
    return [Path(name).stem for name in names]
