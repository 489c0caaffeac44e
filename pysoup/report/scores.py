"""How scores are read and printed, wherever they are shown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

HELDOUT = "heldout"
_LARGEST = 1e100
"""Larger ones are no scores, and whole numbers may be too large for a float."""
_SHARES = re.compile(r"(accuracy|top[0-9]+|macro_f1|mcc)(\(.*\))?")


def percent(metric: str) -> bool:
    """Whether scores by a metric of this name are shares, printed as the paper does: in percent."""
    return _SHARES.fullmatch(metric) is not None


def value_text(value: object, metric: str) -> str:
    """A score as it is printed: percent with two decimals, other numbers with four; ``-`` where there is none."""
    number = as_number(value)
    if number is None:
        return "-"
    if not math.isfinite(number):
        return str(number)
    return f"{100 * number:.2f}" if percent(metric) else f"{number:.4f}"


def as_number(value: object) -> float | None:
    """A score from JSON: a number, or the text of one that JSON has none for."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, (int, float)):
        return (
            float(value) if -_LARGEST < value < _LARGEST or value in (math.inf, -math.inf) or value != value else None
        )
    return float(value) if isinstance(value, str) and value in ("nan", "inf", "-inf") else None


def set_names(content: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Of evaluations: the held-out set, the test set and its shifts in this order, and the shifts alone."""
    sets = content.get("sets")
    tests = [str(name) for name in sets if name != HELDOUT] if isinstance(sets, Mapping) else []
    return [HELDOUT, *tests], tests[1:]


def mean_of(scores: Mapping[str, Any], names: Sequence[str], key: str = "score") -> float | None:
    """The unweighted mean over these sets (paper, section 3.1); None where one is missing."""
    found = [as_number(scores[name].get(key)) if isinstance(scores.get(name), Mapping) else None for name in names]
    known = [value for value in found if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(found) else None
