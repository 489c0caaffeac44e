"""Metrics: top-k accuracy, negative log-likelihood, or any function of logits and labels, each with its direction."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from ..errors import SoupError

Direction = Literal["max", "min"]


class Accumulator(Protocol):
    """Takes one batch after the other, then says the score of all."""

    def update(self, logits: Tensor, labels: Tensor) -> None: ...

    def value(self) -> float: ...


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

    def accepts(self, candidate: float, best: float | None, *, strict: bool) -> bool:
        """Whether ``candidate`` is as good as ``best`` (``strict``: better). No ``best`` yet: yes. NaN: never."""
        if math.isnan(candidate):
            return False
        if best is None:
            return True
        if self.direction == "min":
            candidate, best = -candidate, -best
        return candidate > best if strict else candidate >= best


MetricLike = str | Metric | Callable[[Tensor, Tensor], Any]
"""``"accuracy"``, ``"top5"``, ``"nll"``, a :class:`Metric`, or a function with a ``direction`` or
``higher_is_better`` attribute (torchmetrics objects have the latter)."""


def as_metric(metric: MetricLike) -> Metric:
    """The :class:`Metric` meant; :class:`SoupError` if the name is unknown or the direction unstated."""
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric not in _BUILT_IN:
            raise SoupError("unknown metric", found=repr(metric), expected=f"one of {', '.join(_BUILT_IN)}")
        return _BUILT_IN[metric]
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


class _Collected:
    """Keeps every logit on the CPU for a function of all of them."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []

    def update(self, logits: Tensor, labels: Tensor) -> None:
        if logits.dim() == 0 or labels.dim() == 0 or len(logits) != len(labels):
            raise _shape_error(logits, labels, "logits and labels of the same length")
        if self.logits and self.logits[0].shape[1:] != logits.shape[1:]:
            expected = f"logits of shape {['N', *self.logits[0].shape[1:]]}, as in the first batch"
            raise _shape_error(logits, labels, expected)
        self.logits.append(logits.detach().to("cpu", torch.float32))
        self.labels.append(labels.detach().to("cpu"))

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


class _Classification(ABC):
    """Shape and label checks, and a total that stays on the device: nothing waits for the device before ``value``."""

    def __init__(self) -> None:
        self.samples = 0
        self.classes = 0
        self.total: Tensor | None = None
        self.checks: list[tuple[int, Tensor]] = []

    def update(self, logits: Tensor, labels: Tensor) -> None:
        if logits.dim() != 2 or labels.dim() != 1 or len(logits) != len(labels) or not logits.shape[1]:
            raise _shape_error(logits, labels, "logits [N, C] and labels [N]")
        if labels.is_floating_point() or labels.is_complex():
            raise SoupError("labels must be class numbers", found=labels.dtype, expected="an integer dtype")
        if self.classes not in (0, logits.shape[1]):
            raise _shape_error(logits, labels, f"{self.classes} classes, as in the first batch")
        self.classes = logits.shape[1]
        if not len(labels):
            return
        labels = labels.to(logits.device, torch.int64)
        outside = (labels < 0) | (labels >= self.classes)
        first = outside.to(torch.int8).argmax().view(1)
        self.checks.append((self.samples, torch.cat([outside.any().view(1), first, labels.index_select(0, first)])))
        # Clamped, because indexing with a wrong label would abort a CUDA context before the error can name it.
        batch = self.score(logits.detach(), labels.clamp(0, self.classes - 1))
        self.total = batch if self.total is None else self.total + batch
        self.samples += len(labels)

    @abstractmethod
    def score(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum over the batch, a 0-dim tensor."""

    def value(self) -> float:
        if self.total is None:
            raise SoupError("the held-out set is empty")
        found = torch.stack([check for _, check in self.checks]).tolist()
        for (start, _), (wrong, first, label) in zip(self.checks, found, strict=True):
            if wrong:
                raise SoupError(
                    f"the label of held-out sample {start + first} is not a class of the model",
                    found=label,
                    expected=f"0 to {self.classes - 1}",
                )
        return float(self.total.item()) / self.samples


class _TopK(_Classification):
    """The share of samples whose label is among the k largest logits, exactly: ``int64`` counts, one division.

    The label is in the top k iff fewer than k classes are ahead of it; a class is ahead if its logit is larger, or
    equal and its number lower. A row with a NaN is wrong.
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def score(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.k > self.classes:
            raise SoupError(f"top-{self.k} accuracy needs {self.k} classes", found=f"{self.classes} classes")
        own = labels[:, None]
        target = logits.gather(1, own)
        lower = torch.arange(self.classes, device=logits.device) < own
        ahead = ((logits > target) | ((logits == target) & lower)).sum(1)
        return ((ahead < self.k) & ~logits.isnan().any(1)).sum()


class _NegativeLogLikelihood(_Classification):
    """The mean cross-entropy in nats: each sample in at least float32, summed in float64."""

    def score(self, logits: Tensor, labels: Tensor) -> Tensor:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return torch.nn.functional.cross_entropy(wide, labels, reduction="none").sum(dtype=torch.float64)


def _shape_error(logits: Tensor, labels: Tensor, expected: str) -> SoupError:
    found = f"logits {list(logits.shape)} and labels {list(labels.shape)}"
    return SoupError("the shapes do not fit the metric", found=found, expected=expected)


def _built_in(name: str, direction: Direction, make: Callable[[], Accumulator]) -> Metric:
    def whole(logits: Tensor, labels: Tensor) -> float:
        accumulator = make()
        accumulator.update(logits, labels)
        return accumulator.value()

    return Metric(whole, direction, name, make)


_BUILT_IN: dict[str, Metric] = {
    "accuracy": _built_in("accuracy", "max", lambda: _TopK(1)),
    "top5": _built_in("top5", "max", lambda: _TopK(5)),
    "nll": _built_in("nll", "min", _NegativeLogLikelihood),
}
