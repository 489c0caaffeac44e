"""What a recipe tells of the scorer's work: the steps of a trace, and the soup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .candidates import names_of, own_tensors, soup_notes
from .scorer import Scorer
from .soup import GreedyStep, Soup
from .trial import Trial


def soup_of(
    scorer: Scorer,
    recipe: str,
    kept: Sequence[int],
    score: float | None,
    trace: list[GreedyStep],
    *,
    options: Mapping[str, Any],
) -> Soup:
    """The soup of the candidates ``kept``, each as often as it counts: the scorer's running sum."""
    ingredients = list(dict.fromkeys(kept))
    members = [scorer.candidates[index] for index in ingredients]
    return Soup(
        recipe=recipe,
        ingredients=[candidate.name for candidate in members],
        weights=[kept.count(index) / len(kept) for index in ingredients],
        score=score,
        metric=scorer.metric.name,
        direction=scorer.metric.direction,
        trace=trace,
        averager=scorer.averager,
        kept=own_tensors(scorer.model, scorer.candidates),
        options={**options, **names_of(scorer.candidates)},
        notes=[*scorer.notes, *soup_notes(scorer.averager, members)],
        passes={"used": scorer.passes_used, "saved": scorer.passes_saved},
        timing=scorer.timing,
    )


def step_of(
    scorer: Scorer,
    number: int,
    index: int,
    trial: Trial | None,
    *,
    score: float | None,
    before: float | None,
    accepted: bool,
    after: int,
    notes: Sequence[str] = (),
) -> GreedyStep:
    """The ``trial`` of candidate ``index`` (``None``: there was none), its ``score``, against the score ``before``.

    ``after`` it the soup has so many ingredients.
    """
    seen = trial or Trial(None, accepted=False, bound=None, samples=0, of=0, mix_seconds=0.0, score_seconds=0.0)
    return GreedyStep(
        step=number,
        index=index,
        ingredient=scorer.candidates[index].name,
        single_score=scorer.known[index],
        candidate_score=score,
        best_score_before=before,
        accepted=accepted,
        ingredients_after=after,
        seconds=seen.mix_seconds + seen.score_seconds,
        samples=seen.samples,
        of=seen.of,
        bound=seen.bound,
        mix_seconds=seen.mix_seconds,
        score_seconds=seen.score_seconds,
        note="; ".join(note for note in notes if note),
    )
