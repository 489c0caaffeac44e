"""One step of a trace, from what was scored."""

from __future__ import annotations

from collections.abc import Sequence

from .scorer import Scorer
from .soup import GreedyStep
from .trial import Trial


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
