"""Every method of the paper's Table 3 on the ingredients of one sweep, and what making the greedy soup cost."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pool import Correct, Pool

from pysoup.evaluate import mcnemar
from pysoup.soups import (
    Soup,
    greedy_ensemble,
    greedy_soup,
    interpolate,
    learned_soup,
    logit_ensemble,
    model_stock,
    pruned_soup,
    random_orders,
    uniform_soup,
)

MARGIN = 0.08
"""A refused candidate should cost at most the share that must be seen (one less the soup's accuracy) and this."""
MIXING = 0.05
"""Mixing a candidate should cost at most this share of scoring it in full."""
ORDERS = 3
LEARNED: dict[str, dict[str, Any]] = {
    "learned": {"preset": "paper"},
    "learned_layer": {"preset": "official-bylayer"},
    "learned_mehl": {"preset": "mehl"},
}
"""Methods whose mixing weights are learned, and their settings."""
MEHL_BLOCKS = 4
"""Its authors move 18 of 72 models at a time: a block is a fourth."""


def compare(pool: Pool, *, orders: int = ORDERS) -> dict[str, Any]:
    """Scores of all methods and single models, McNemar's test of each against the best single model, and the cost.

    Selection sees the held-out set alone. The random orders are those with the seeds 0, 1, ...
    """
    ranking = pool.ranked()
    singles = [pool.correct(pool.logits(index)) for index in range(len(ranking))]
    best, second = ranking[0], ranking[1]
    rows: dict[str, Any] = {}

    def enter(name: str, heldout: float | None, correct: Correct, ingredients: Sequence[int]) -> None:
        rows[name] = _row(heldout, correct, ingredients, None if name == "best" else singles[best])

    for name, index in (("best", best), ("second", second)):
        enter(name, pool.ingredients[index].record.score, singles[index], [index])
    uniform = uniform_soup(pool.paths, pool.model, pool.heldout)
    enter("uniform", uniform.score, pool.correct_now(), range(len(ranking)))
    greedy = greedy_soup(pool.paths, pool.model, pool.heldout, run=_run(pool, "greedy"))
    enter("greedy", greedy.score, pool.correct_now(), _positions(pool, greedy.ingredients))
    pruned = pruned_soup(pool.paths, pool.model, pool.heldout, run=_run(pool, "pruned"))
    enter("pruned", pruned.score, pool.correct_now(), _positions(pool, pruned.ingredients))
    for name, recipe in (("ensemble", logit_ensemble), ("greedy_ensemble", greedy_ensemble)):
        made = recipe(pool.paths, pool.model, pool.heldout)
        members = _positions(pool, made.ingredients)
        enter(name, made.score, pool.correct(pool.ensemble_logits(members)), members)
    random = []
    for soup in random_orders(pool.paths, pool.model, pool.heldout, orders=orders, run=_run(pool, "orders")).soups:
        pool.load(soup.state_dict())
        members = _positions(pool, soup.ingredients)
        random.append({**_accuracy(soup.score, pool.correct_now()), "ingredients": members})
    measured = greedy_soup(_without_records(pool), pool.model, pool.heldout, run=_run(pool, "measured"))
    pool.load(pool.start)
    start = pool.correct_now()
    return {
        "methods": {**rows, **mixed(pool)},
        "random_orders": random,
        "start": _accuracy(None, start),
        "models": [
            {**_accuracy(ingredient.record.score, correct), "seconds": ingredient.record.seconds}
            for ingredient, correct in zip(pool.ingredients, singles, strict=True)
        ],
        "early_rejection": {
            "recorded scores": _rejection(greedy),
            "measured scores": _rejection(measured),
        },
        "cost": _cost(greedy),
    }


def mixed(pool: Pool) -> dict[str, Any]:
    """The rows of unequal weights: learned on the held-out set (paper, appendix I), or between start and soup.

    WiSE-FT goes from the start to the uniform soup, its alpha chosen on the held-out set.
    """
    best, count = pool.correct(pool.logits(pool.ranked()[0])), len(pool.paths)
    rows = {}
    for name, options in LEARNED.items():
        blocks = {"blocks": max(1, count // MEHL_BLOCKS)} if name == "learned_mehl" else {}
        run = _run(pool, name)
        soup = learned_soup(pool.paths, pool.model, pool.heldout, run=run, place="auto", **options, **blocks)
        rows[name] = _row(soup.score, pool.correct_now(), range(count), best) | {
            "weights": soup.weights,
            "granules": len(soup.granules),
            "beta": soup.beta,
            "loss": [epoch.loss for epoch in soup.epochs],
            "seconds": soup.timing,
        }
    stock = model_stock(pool.start, pool.paths, pool.model, pool.heldout)
    rows["stock"] = _row(stock.score, pool.correct_now(), range(count), best) | {"ratios": stock.ratios}
    uniform = uniform_soup(pool.paths, pool.model)
    path = interpolate(pool.start, uniform, pool.model, pool.heldout, run=_run(pool, "wise"))
    rows["wise"] = _row(path.score, pool.correct_now(), range(count), best) | {"alpha": path.alpha}
    return rows


def _row(heldout: float | None, correct: Correct, ingredients: Sequence[int], best: Correct | None) -> dict[str, Any]:
    row = {**_accuracy(heldout, correct), "ingredients": list(ingredients)}
    return row if best is None else row | {"mcnemar": _mcnemar(correct, best)}


def _without_records(pool: Pool) -> list[Path]:
    """The same files under a name with no record beside it: their scores are then measured, and their logits seen."""
    folder = pool.folder / "unrecorded"
    folder.mkdir(exist_ok=True)
    links = [folder / path.name for path in pool.paths]
    for link, path in zip(links, pool.paths, strict=True):
        if not link.exists():
            link.symlink_to(path.resolve())
    return links


def _run(pool: Pool, name: str) -> Path:
    folder = pool.folder / "runs"
    folder.mkdir(exist_ok=True)
    return folder / name


def _positions(pool: Pool, names: Sequence[str]) -> list[int]:
    known = {str(path): index for index, path in enumerate(pool.paths)}
    return [known[name] for name in names]


def _accuracy(heldout: float | None, correct: Correct) -> dict[str, Any]:
    """The first test set, its shifts and their unweighted mean."""
    scores = {name: flags.double().mean().item() for name, flags in correct.items()}
    test = next(iter(scores))
    shifts = {name: score for name, score in scores.items() if name != test}
    return {"heldout": heldout, "test": scores[test], "mean_shift": statistics.fmean(shifts.values()), "shifts": shifts}


def _mcnemar(correct: Correct, best: Correct) -> dict[str, Any]:
    test = next(iter(best))
    found = mcnemar(correct[test], best[test])
    return {"only_this": found.only_a, "only_best": found.only_b, "p_value": found.p_value}


def _rejection(soup: Soup) -> dict[str, Any]:
    """How much of the held-out set was seen of the candidates that were refused, against the least that must be."""
    refused = [step for step in soup.trace if not step.accepted and step.of]
    shares = [step.samples / step.of for step in refused]
    needed = [1.0 - step.best_score_before for step in refused if step.best_score_before is not None]
    report: dict[str, Any] = {"refused": len(refused), "passes": dict(soup.passes)}
    if refused:
        mean = statistics.fmean(shares)
        limit = statistics.fmean(needed) + MARGIN
        report |= {"mean_share": mean, "largest_share": max(shares), "limit": limit, "met": mean <= limit}
    return report


def _cost(soup: Soup) -> dict[str, Any]:
    """Seconds by kind, and mixing one candidate against scoring it in full (what was seen, scaled up)."""
    steps = [step for step in soup.trace if step.of and step.score_seconds]
    full = sum(step.score_seconds for step in steps) / sum(step.samples / step.of for step in steps)
    mix = statistics.fmean(step.mix_seconds for step in steps)
    timing: Mapping[str, float] = soup.timing
    return {"seconds": dict(timing), "mix": mix, "full_pass": full, "share": mix / full, "met": mix / full <= MIXING}
