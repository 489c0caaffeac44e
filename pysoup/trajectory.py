"""Weights for the checkpoints of one run, in the order of training: SWA, EMA, LAWA. Needs no torch."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .errors import SoupError

Kind = Literal["swa", "ema", "lawa"]
KINDS = ("swa", "ema", "lawa")
Whole = int | Sequence[int]
Real = float | Sequence[float]
"""One value, or several to choose from; so :data:`Whole`."""


@dataclass(frozen=True)
class Window:
    """One average along a run: its kind, the ``weights`` of all checkpoints (they sum to 1), and what it was made by:
    the number of checkpoints ``last`` up to number ``end``, or the ``decay``."""

    kind: Kind
    weights: tuple[float, ...]
    last: int | None = None
    end: int | None = None
    decay: float | None = None

    @property
    def text(self) -> str:
        """Such as ``lawa, last 3 up to 7`` or ``ema, decay 0.9``."""
        parts = [f"last {self.last}" if self.last is not None else "", f"up to {self.end}" if self.end else ""]
        parts.append(f"decay {self.decay:g}" if self.decay is not None else "")
        return ", ".join(filter(None, [self.kind, " ".join(filter(None, parts))]))

    def to_json(self) -> dict[str, Any]:
        values = {"last": self.last, "end": self.end, "decay": self.decay}
        return {"kind": self.kind} | {name: value for name, value in values.items() if value is not None}


def trajectory_weights(
    kind: Kind,
    count: int,
    *,
    last: int | None = None,
    end: int | None = None,
    decay: float | None = None,
    classic: bool = False,
) -> list[float]:
    """The weights of ``count`` checkpoints of one run, in the order of training; they sum to 1.

    ``"swa"``: equal ones for the ``last`` checkpoints, or for all (Izmailov et al. 2018, arXiv 1803.05407).

    ``"lawa"``: equal ones for the ``last`` k up to and with checkpoint number ``end``, from 1; by default the final one
    (Kaddour 2022, arXiv 2209.14981; Sanyal et al. 2023, arXiv 2306.03241).

    ``"ema"``: ``(1 - d) d**(T - t) / (1 - d**T)`` for checkpoint t of T and the ``decay`` d, which corrects the bias to
    the start as Adam does; ``classic`` is the plain recursion ``e_t = d e_(t-1) + (1 - d) w_t`` from ``e_1 = w_1``. The
    decay is that between checkpoints: between steps it is its n-th root, where a checkpoint comes every n steps.

    Raises :class:`SoupError` for values out of range, and for those of another kind.
    """
    found = windows(kind, count, last=last, end=end, decay=decay, classic=classic)
    return list(found[0].weights)


def windows(
    kind: Kind | str,
    count: int,
    *,
    last: Whole | None = None,
    end: Whole | None = None,
    decay: Real | None = None,
    classic: bool = False,
) -> list[Window]:
    """Every average that the values of ``last``, ``end`` and ``decay`` make, in their order. Of windows that begin
    before the first checkpoint there is none, unless a single one was asked for."""
    if kind not in KINDS:
        raise SoupError("unknown kind of average", found=repr(kind), expected=", ".join(map(repr, KINDS)))
    if count < 1:
        raise SoupError("no checkpoints given")
    for option, value, kinds in (
        ("last", last, ("swa", "lawa")),
        ("end", end, ("lawa",)),
        ("decay", decay, ("ema",)),
        ("classic", classic or None, ("ema",)),
    ):
        if value is not None and kind not in kinds:
            raise SoupError(f"{option} does nothing for {kind}", expected=f"kind {' or '.join(kinds)}")
    if kind == "ema":
        if decay is None:
            raise SoupError("an EMA needs its decay")
        return [Window("ema", _ema(count, value, classic), decay=value) for value in _decays(decay)]
    if kind == "lawa" and last is None:
        raise SoupError("LAWA needs last: how many checkpoints are averaged")
    sizes = _places("last", count if last is None else last, count)
    ends = _places("end", count if end is None else end, count)
    chosen = [(k, e) for e in ends for k in sizes if k <= e]
    if not chosen:
        raise SoupError("no window of this size ends there", found=f"last {sizes[0]}, end {ends[0]}")
    return [
        Window("swa", _equal(count, k, e), k) if kind == "swa" else Window("lawa", _equal(count, k, e), k, e)
        for k, e in chosen
    ]


def _equal(count: int, size: int, end: int) -> tuple[float, ...]:
    return tuple(1.0 / size if end - size <= place < end else 0.0 for place in range(count))


def _ema(count: int, decay: float, classic: bool) -> tuple[float, ...]:
    weights = [(1.0 - decay) * decay ** (count - 1 - place) for place in range(count)]
    if classic:
        weights[0] = decay ** (count - 1)
        return tuple(weights)
    # Divided by their own sum and not by 1 - d**T, which has no digits left for d near 1.
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


def _places(option: str, given: Whole, count: int) -> list[int]:
    values = _listed(given)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 1 <= int(value) <= count:
            expected = f"a whole number from 1 to {count}"
            raise SoupError(f"{option} is out of range", found=repr(value), expected=expected)
    if not values:
        raise SoupError(f"{option}: no value given")
    return list(dict.fromkeys(map(int, values)))


def _decays(given: Real) -> list[float]:
    values = _listed(given)
    for value in values:
        if not isinstance(value, numbers.Real) or not 0 < float(value) < 1:
            raise SoupError("the decay is out of range", found=repr(value), expected="a number between 0 and 1")
    if not values:
        raise SoupError("decay: no value given")
    return [float(value) for value in dict.fromkeys(values)]


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
