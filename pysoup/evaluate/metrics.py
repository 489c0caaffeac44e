"""Metrics: names, factories, or any function of logits and labels, each with its direction."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from ..errors import SoupError
from .classification import NegativeLogLikelihood, TopK, shape_error
from .confusion import MacroF1, Matthews

Direction = Literal["max", "min"]


class Accumulator(Protocol):
    """Takes one batch after the other, then says the score of all."""

    @property
    def samples(self) -> int:
        """The samples that counted so far."""
        ...

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take in a batch: logits ``[N, C]`` and labels ``[N]``, on any device."""
        ...

    def value(self) -> float:
        """The score of all batches so far."""
        ...

    def bound(self, samples: int) -> float | None:
        """The best score still possible if at most ``samples`` count in all; ``None``: unknown.

        Exact: where ``metric.accepts(bound, ...)`` is false, ``metric.accepts(value, ...)`` is false whatever follows.
        """
        ...


@dataclass(frozen=True)
class Metric:
    """A score and which way is better.

    ``fn(logits, labels)`` gets the whole held-out set on the CPU, logits as float32 ``[N, C]``, labels ``[N]``, and
    returns a number. ``direction`` is ``"max"`` (higher is better) or ``"min"``.
    """

    fn: Callable[[Tensor, Tensor], Any]
    direction: Direction
    name: str = ""
    make: Callable[[], Accumulator] | None = field(default=None, repr=False)
    """Makes an accumulator that needs no logits kept; the built-in metrics have one."""
    has_bound: bool = False
    """Whether the accumulator's ``bound`` is known, so that a pass can end once the outcome is certain."""

    def __post_init__(self) -> None:
        if self.direction not in ("max", "min"):
            raise SoupError("a metric needs a direction", found=repr(self.direction), expected="'max' or 'min'")
        if not self.name:
            object.__setattr__(self, "name", getattr(self.fn, "__name__", type(self.fn).__name__))

    def accumulator(self) -> Accumulator:
        """A fresh one, for one model."""
        return _Collected(self) if self.make is None else self.make()

    def sort_key(self, score: float) -> tuple[bool, float]:
        """Ascending keys are best first; NaN is last."""
        return (True, 0.0) if math.isnan(score) else (False, -score if self.direction == "max" else score)

    def accepts(self, candidate: float, best: float | None, *, strict: bool, min_delta: float = 0.0) -> bool:
        """Whether ``candidate`` is as good as ``best`` and ``min_delta`` more (``strict``: better than that).

        No ``best`` yet: yes. NaN: never. ``min_delta`` is in the metric's unit, at least 0. Monotone: a candidate that
        is not accepted makes every worse one not accepted, since the threshold is one number, rounded once.
        """
        if math.isnan(candidate):
            return False
        if best is None:
            return True
        if self.direction == "min":
            candidate, best = -candidate, -best
        threshold = best + min_delta
        return candidate > threshold if strict else candidate >= threshold


MetricLike = str | Metric | Callable[[Tensor, Tensor], Any]
"""``"accuracy"``, ``"top5"`` (or another number), ``"nll"``, ``"macro_f1"``, ``"mcc"``, a :class:`Metric`, or a
function with a ``direction`` or ``higher_is_better`` attribute (torchmetrics objects have the latter)."""


def as_metric(metric: MetricLike) -> Metric:
    """The :class:`Metric` meant; :class:`SoupError` if the name is unknown or the direction unstated."""
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        return _named(metric)
    if not callable(metric):
        raise SoupError("not a metric", found=type(metric).__name__, expected="a name, a Metric or a function")
    direction = getattr(metric, "direction", None)
    higher = getattr(metric, "higher_is_better", None)
    if direction is None and higher is not None:
        direction = "max" if higher else "min"
    if direction is None:
        name = getattr(metric, "__name__", type(metric).__name__)
        raise SoupError(f"metric {name!r} does not say which way is better; write Metric({name}, direction='max')")
    return Metric(metric, cast(Direction, direction))


def top_k(k: int, *, ignore_index: int | None = None) -> Metric:
    """The share of samples whose label is among the k largest logits (``"accuracy"`` is k = 1), in [0, 1].

    The label is in the top k if fewer than k classes are larger, or equal with a lower number; a row with a NaN is
    wrong. Labels equal to ``ignore_index`` are left out.
    """
    if k < 1:
        raise SoupError("top-k accuracy needs a positive k", found=k)
    return _built_in(f"top{k}", "max", partial(TopK, k, ignore_index), ignore_index, has_bound=True)


def nll(*, ignore_index: int | None = None) -> Metric:
    """The mean negative log-likelihood (cross-entropy) in nats per sample, without those of label ``ignore_index``."""
    return _built_in("nll", "min", partial(NegativeLogLikelihood, ignore_index), ignore_index, has_bound=True)


def macro_f1(*, ignore_index: int | None = None) -> Metric:
    """The mean F1 score of the classes that occur as a label or a prediction, in [0, 1].

    As scikit-learn's ``f1_score(average="macro", zero_division=0)``. A row with a NaN predicts no class.
    """
    return _built_in("macro_f1", "max", partial(MacroF1, ignore_index), ignore_index)


def mcc(*, ignore_index: int | None = None) -> Metric:
    """Matthews' correlation coefficient of labels and predictions for any number of classes, in [-1, 1].

    As scikit-learn's ``matthews_corrcoef``; a row with a NaN is a prediction that is never right.
    """
    return _built_in("mcc", "max", partial(Matthews, ignore_index), ignore_index)


class _Collected:
    """Keeps every logit on the CPU for a function of all of them."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.samples = 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        if logits.dim() == 0 or labels.dim() == 0 or len(logits) != len(labels):
            raise shape_error(logits, labels, "logits and labels of the same length")
        if self.logits and self.logits[0].shape[1:] != logits.shape[1:]:
            expected = f"logits of shape {['N', *self.logits[0].shape[1:]]}, as in the first batch"
            raise shape_error(logits, labels, expected)
        # Copies: a forward may give every batch in one buffer.
        self.logits.append(logits.detach().to("cpu", torch.float32, copy=True))
        self.labels.append(labels.detach().to("cpu", copy=True))
        self.samples += len(labels)

    def bound(self, samples: int) -> float | None:
        return None

    def value(self) -> float:
        labels = torch.cat(self.labels) if self.labels else torch.empty(0)
        if not len(labels):
            raise SoupError("the held-out set is empty")
        score = self.metric.fn(torch.cat(self.logits), labels)
        try:
            return float(score)
        except (TypeError, ValueError, RuntimeError) as error:
            raise SoupError(
                f"metric {self.metric.name!r} must return one number", found=type(score).__name__
            ) from error


def _built_in(
    name: str,
    direction: Direction,
    make: Callable[[], Accumulator],
    ignore_index: int | None = None,
    *,
    has_bound: bool = False,
) -> Metric:
    if ignore_index is not None:
        name = f"{name}(ignore_index={ignore_index})"
    return Metric(partial(_whole, make), direction, name, make, has_bound)


def _whole(make: Callable[[], Accumulator], logits: Tensor, labels: Tensor) -> float:
    accumulator = make()
    accumulator.update(logits, labels)
    return accumulator.value()


@cache
def _named(name: str) -> Metric:
    top = re.fullmatch(r"top([1-9][0-9]{0,8})", name)
    if top:
        return top_k(int(top[1]))
    if name not in _BUILT_IN:
        raise SoupError("unknown metric", found=repr(name), expected=f"one of {', '.join(_NAMES)}")
    return _BUILT_IN[name]


_BUILT_IN: dict[str, Metric] = {
    "accuracy": _built_in("accuracy", "max", partial(TopK, 1), has_bound=True),
    "nll": nll(),
    "macro_f1": macro_f1(),
    "mcc": mcc(),
}
_NAMES = ("accuracy", "top5 (any number)", *(name for name in _BUILT_IN if name != "accuracy"))
