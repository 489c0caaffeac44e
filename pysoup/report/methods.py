"""The rows of a run's Table 3: single models, soups and ensembles side by side (paper, section 3.1)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from .content import Content, Made, Model, Row
from .scores import HELDOUT

LABELS = {
    "uniform": "Uniform soup",
    "greedy": "Greedy soup",
    "pruned": "Pruned soup",
    "greedier": "Greedier soup",
    "learned": "Learned soup",
    "interpolated": "Interpolation (WiSE-FT)",
    "stock": "Model stock",
    "swa": "SWA",
    "ema": "EMA",
    "lawa": "LAWA",
    "ensemble": "Ensemble",
    "greedy ensemble": "Greedy ensemble",
}
"""By recipe, in the order of the rows; other recipes come last under their own names."""
MEAN = "mean of shifts"


def label_of(made: Made) -> str:
    """What it is called where no other of its kind is near."""
    label = LABELS.get(made.recipe, f"{made.recipe} soup".capitalize())
    granularity = made.options.get("granularity")
    if made.recipe == "learned" and granularity != "model":
        return f"{label} (by {granularity if isinstance(granularity, str) else 'group'})"
    return f"{label} (random order, seed {made.options.get('seed')})" if made.random_order else label


def methods(content: Content) -> list[Row]:
    """The best single models by held-out score, then what recipes made; random orders of one recipe share a row."""
    rows = [
        _single(content, model, label)
        for model, label in zip(content.ranked(), ("Best individual model", "Second best model"), strict=False)
    ]
    orders = [made for made in content.made if made.random_order]
    for made in content.made:
        if not made.random_order or len(orders) == 1:
            rows.append(_made(content, made))
        elif made is orders[0]:
            rows.append(_orders(content, orders))
    return rows


def columns(content: Content) -> list[str]:
    """The names of the columns with scores: held-out, test, the mean of the shifts, each shift."""
    names = [HELDOUT, *content.tests[:1]]
    return [*names, MEAN, *content.shifts] if content.shifts else names


def values(content: Content, row: Row) -> list[float | None]:
    """The scores of a row, in the order of :func:`columns`."""
    tests = [row.tests.get(name) for name in content.tests]
    return [row.heldout, *tests[:1], *([row.mean, *tests[1:]] if content.shifts else [])]


def ingredients_text(row: Row) -> str:
    """How many were taken of how many."""
    return f"{row.ingredients} of {row.candidates}" if row.candidates > 1 else str(row.ingredients)


def cost_text(row: Row) -> str:
    """Forward passes for an answer: the paper's O(1) or O(k), and how many."""
    return f"{row.order}, {row.cost}\u00d7"


def _single(content: Content, model: Model, label: str) -> Row:
    return Row(label, model.label, *_scores(content, model), ingredients=1, cost=1, scores=model.scores)


def _made(content: Content, made: Made) -> Row:
    count = len(made.ingredients)
    cost = count if made.is_ensemble else 1
    found = _scores(content, made)
    return Row(
        made.label, made.name, *found, ingredients=count, cost=cost, scores=made.scores, candidates=len(made.candidates)
    )


def _scores(content: Content, item: Model | Made) -> tuple[float | None, dict[str, float | None], float | None]:
    return item.score(HELDOUT), {name: item.score(name) for name in content.tests}, content.mean_shift(item)


def _orders(content: Content, orders: Sequence[Made]) -> Row:
    """Means over several random orders, with their sample standard deviations, as in the paper's table."""
    rows = [_made(content, made) for made in orders]
    spread: dict[str, float] = {}

    def mean(name: str, found: Sequence[float | None]) -> float | None:
        known = [value for value in found if value is not None]
        if len(known) < len(found):
            return None
        spread[name] = statistics.stdev(known)
        return statistics.fmean(known)

    return Row(
        f"Greedy soup (random order, {len(rows)} orders)",
        ", ".join(row.detail for row in rows),
        mean(HELDOUT, [row.heldout for row in rows]),
        {name: mean(name, [row.tests[name] for row in rows]) for name in content.tests},
        mean(MEAN, [row.mean for row in rows]) if content.shifts else None,
        ingredients=round(statistics.fmean(row.ingredients for row in rows)),
        cost=1,
        candidates=max(row.candidates for row in rows),
        spread=spread,
    )
