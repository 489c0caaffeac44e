"""What a caller of a recipe gives of scores and orders, checked."""

from __future__ import annotations

import math
import operator
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal

from ..errors import SoupError
from ..evaluate import Metric
from .candidates import Candidate

Accept = Literal[">=", ">"]
Scores = Sequence[float] | Mapping[Any, float]
Order = Literal["score", "given", "random"] | Sequence[int]


def is_strict(accept: str) -> bool:
    """Whether a candidate must be better, not only as good."""
    if accept not in (">=", ">"):
        raise SoupError("unknown accept rule", found=repr(accept), expected="'>=' or '>'")
    return accept == ">"


def given_scores(scores: Scores | None, candidates: Sequence[Candidate]) -> list[float] | None:
    """Scores in the order of ``candidates``, from a sequence or a mapping by name."""
    if scores is None:
        return None
    if not isinstance(scores, Mapping):
        values = _floats(scores)
        if len(values) != len(candidates):
            raise SoupError("one score per checkpoint", found=len(values), expected=len(candidates))
        return values
    by_name = {os.fspath(name) if isinstance(name, os.PathLike) else str(name): score for name, score in scores.items()}
    missing = [candidate.name for candidate in candidates if candidate.name not in by_name]
    unknown = set(by_name) - {candidate.name for candidate in candidates}
    if missing or unknown:
        which = f"no score for {missing[0]}" if missing else f"a score for {min(unknown)}, which is no checkpoint"
        raise SoupError("scores must be for the checkpoints", found=which)
    return _floats(by_name[candidate.name] for candidate in candidates)


def given_order(order: Order, count: int, seed: int = 0) -> list[int] | None:
    """Positions, or ``None`` for the order by score. ``"random"`` is the same in every process for one ``seed``."""
    if isinstance(order, str):
        if order not in ("score", "given", "random"):
            expected = "'score', 'given', 'random' or a list of positions"
            raise SoupError("unknown order", found=repr(order), expected=expected)
        positions = list(range(count))
        if order == "random":
            random.Random(whole_number("seed", seed)).shuffle(positions)
        return None if order == "score" else positions
    try:
        positions = [operator.index(position) for position in order]
    except TypeError as error:
        raise SoupError(f"order must be a list of positions: {error}") from None
    if sorted(positions) != list(range(count)):
        raise SoupError(f"order must have every position from 0 to {count - 1} once", found=positions)
    return positions


def best_first(singles: Sequence[float], metric: Metric) -> list[int]:
    """Positions from the best score to the worst, ties in the given order, NaN last."""
    keys = [metric.sort_key(score) for score in singles]
    return sorted(range(len(keys)), key=keys.__getitem__)


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """``value`` as an integer, at least ``least``; the error has its ``name``."""
    expected = "an integer" if least is None else f"an integer, at least {least}"
    try:
        number = operator.index(value)
    except TypeError:
        raise SoupError(f"{name} must be a whole number", found=repr(value), expected=expected) from None
    if least is not None and number < least:
        raise SoupError(f"{name} is too small", found=number, expected=expected)
    return number


def least_gain(min_delta: Any) -> float:
    """``min_delta`` as a float: 0 or more, and finite."""
    number = math.nan if isinstance(min_delta, bool) or not isinstance(min_delta, Real) else float(min_delta)
    if not 0 <= number < math.inf:
        raise SoupError("min_delta must be a number", found=repr(min_delta), expected="0 or more, and finite")
    return number


def _floats(scores: Iterable[float]) -> list[float]:
    try:
        return [float(score) for score in scores]
    except (TypeError, ValueError) as error:
        raise SoupError(f"scores must be numbers: {error}") from None
