"""What a step of a greedy path says, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .content import Content, Made
from .scores import as_number, value_text


def step_row(content: Content, made: Made, number: int, step: Mapping[str, Any]) -> list[str]:
    """What a step says, cell by cell."""
    metric = content.metric
    name = str(step.get("ingredient", ""))
    model = content.model_of(name)
    bound = as_number(step.get("bound"))
    with_it = value_text(step.get("candidate_score"), metric)
    if bound is not None:
        with_it = f"{chr(0x2264) if content.direction == 'max' else chr(0x2265)} {value_text(bound, metric)}"
    of, samples = as_number(step.get("of")), as_number(step.get("samples"))
    seen = f"{samples / of:.0%}" if of and samples is not None else "-"
    return [
        str(number),
        name if model is None else model.label,
        value_text(step.get("single_score"), metric),
        with_it,
        value_text(step.get("best_score_before"), metric),
        seen,
        verdict(made, step),
        str(step.get("ingredients_after", "")),
        str(step.get("note", "")),
    ]


def verdict(made: Made, step: Mapping[str, Any]) -> str:
    """What became of the candidate."""
    kept, refused = ("dropped", "stays") if made.recipe == "pruned" else ("kept", "refused")
    if step.get("accepted"):
        return kept
    return f"{refused} early" if as_number(step.get("bound")) is not None else refused


def setting(value: object) -> str:
    """A hyperparameter as it is printed."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
