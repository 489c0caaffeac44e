"""Early rejection changes nothing that the recipe decides: against the plain recipe on random tables of scores."""

from __future__ import annotations

import math
import random

import pytest
from score_tables import Plain, Table, tables
from torch import Tensor

from pysoup.errors import SoupError
from pysoup.soups import GreedyStep, greedy_soup

TABLES = 250
pytestmark = pytest.mark.usefixtures("one_thread")


def scored(step: GreedyStep) -> bool:
    return step.note != "its own score is NaN: refused"


def drawn_options(rng: random.Random, table: Table, alone: list[float]) -> dict[str, object]:
    passes = rng.choice([1, 1, 2, 4])
    shuffled = rng.sample(range(table.count), table.count)
    return {
        "accept": rng.choice([">=", ">"]),
        "min_delta": rng.choice([0.0, 0.0, 0.02, 0.1]),
        "max_ingredients": rng.choice([None, None, 1, 3]),
        "passes": passes,
        "replacement": passes > 1 and rng.random() < 0.5,
        "order": rng.choice(["score", "score", "given", shuffled]),
        "scores": rng.choice([None, None, None, alone]),
    }


def plain_recipe(
    table: Table, metric: str, options: dict[str, object], alone: list[float]
) -> tuple[Plain, list[Tensor]]:
    """The same by hand: who is tried in which order, on which batches, and what comes of it."""
    sign = -1.0 if metric == "nll" else 1.0
    order, by_score, given = options["order"], options["order"] == "score", options["scores"] is not None
    if by_score:
        order = sorted(range(table.count), key=lambda i: (math.isnan(alone[i]), -sign * alone[i]))
    order = list(range(table.count)) if order == "given" else order
    usable = [i for i in order if not ((by_score or given) and math.isnan(alone[i]))]
    measured = list(range(table.count)) if by_score and not given else usable[:1]
    # It takes a pass to score the first on the new batches, if it was scored before, or else to see which samples are
    # hard; or both.
    batches = table.hardest_first(measured) if len(usable) - 1 > 1 + given else table.as_given()
    plain = Plain(
        lambda members: table.score(members, metric, batches),
        sign,
        options["accept"] == ">",
        options["min_delta"],
        options["passes"],
        options["replacement"],
        options["max_ingredients"],
    )
    return plain.run(order, alone if by_score or given else None), batches


def check_moment(
    table: Table, metric: str, batches: list[Tensor], before: list[int], step: GreedyStep, options: dict[str, object]
) -> None:
    """It is refused after the first batch whose errors rule it out."""
    right = table.right([*before, step.index], metric)
    threshold = step.best_score_before + options["min_delta"]
    wrong = seen = 0
    for rows in batches:
        seen += len(rows)
        wrong += sum(not right[row] for row in rows.tolist())
        bound = (table.samples - wrong) / table.samples
        if not (bound > threshold if options["accept"] == ">" else bound >= threshold):
            break
    assert (step.samples, step.bound) == (seen, bound)


@pytest.mark.parametrize("metric", ["accuracy", "top2", "nll"])
@pytest.mark.parametrize("part", range(3))
def test_ingredients_order_and_accepted_scores_are_those_of_the_plain_recipe(metric: str, part: int) -> None:
    refused_early = 0
    for table, rng in tables(TABLES * part, TABLES):
        alone = [table.score([i], metric, table.as_given()) for i in range(table.count)]
        options = drawn_options(rng, table, alone)
        expected, batches = plain_recipe(table, metric, options, alone)
        run = lambda: greedy_soup(table.states(), table.model(), table.heldout(), metric, **options)  # noqa: B023, E731
        if not expected.kept:
            with pytest.raises(SoupError, match="every candidate scores NaN"):
                run()
            continue
        soup = run()
        told = f"table {table.seed}: {options}"
        kept = [step.index for step in soup.trace if step.accepted]
        assert kept == expected.kept, told
        assert soup.score == expected.best, told
        scores = [step.candidate_score for step in soup.trace if step.accepted]
        assert scores == [score for _, _, score, accepted in expected.trials if accepted], told
        assert dict(zip(soup.ingredients, soup.weights, strict=True)) == {
            f"checkpoints[{i}]": kept.count(i) / len(kept) for i in kept
        }, told
        # Every decision, in order; only that the plain recipe asks the same soup again in a later pass.
        decisions = [(s.index, s.ingredients_after - s.accepted, s.accepted) for s in soup.trace if scored(s)]
        assert decisions == list(dict.fromkeys((i, size, accepted) for i, size, _, accepted in expected.trials)), told
        for step in soup.trace:
            if step.bound is not None:
                refused_early += 1
                assert step.candidate_score is None, told
                assert step.samples < step.of == table.samples, told
                if metric != "nll":
                    check_moment(table, metric, batches, kept[: step.ingredients_after], step, options)
    assert refused_early > TABLES / 4
