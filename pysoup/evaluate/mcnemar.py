"""McNemar's exact test: do two models differ on the same samples, or is it chance?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SoupError
from ..logits import LogitScores
from .classification import TopK
from .heldout import HeldOut
from .metrics import Metric, as_metric
from .scoring import run_evaluation


@dataclass(frozen=True)
class McNemar:
    """The samples on which two models differ, and how likely so uneven a split of them is by chance."""

    only_a: int
    """Samples that the first model alone has right."""
    only_b: int
    """Samples that the second model alone has right."""
    p_value: float
    """Two-sided and exact: of ``only_a + only_b`` fair coins. 1.0 where the models differ nowhere."""


def mcnemar(correct_a: Tensor | Any, correct_b: Tensor | Any) -> McNemar:
    """Compare two models by what each has right: bool ``[N]``, the same samples in the same order (:func:`correct`).

    The exact binomial form (McNemar 1947; Edwards 1948): the samples that exactly one model has right are coins, fair
    if the models are equally good. The tail is summed in integers and rounded once. :class:`SoupError` for other dtypes
    or lengths that differ.
    """
    a, b = _flags(correct_a), _flags(correct_b)
    if len(a) != len(b):
        raise SoupError("the models must be compared on the same samples", found=f"{len(a)} and {len(b)}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return McNemar(only_a, only_b, two_sided(only_a, only_b))


def correct(model: nn.Module, heldout: HeldOut | Any) -> Tensor:
    """Which held-out samples ``model`` has right: bool ``[N]`` on the CPU, in the order of the set.

    As for ``"accuracy"``: the label's logit is the largest, of equal ones the lowest class counts, a NaN row is wrong.
    :class:`SoupError` for other data than a :class:`HeldOut`: a loader that shuffles would give the next model another
    order.
    """
    if not isinstance(heldout, HeldOut):
        what = "it is not certain that another model would get these samples in the same order"
        raise SoupError(what, found=type(heldout).__name__, expected="a HeldOut, the same one for both models")
    accumulator = _Right()
    run_evaluation(model, heldout, Metric(as_metric("accuracy").fn, "max", "accuracy", lambda: accumulator))
    return torch.cat(accumulator.batches).cpu()


class _Right(TopK):
    """Accuracy that keeps which samples were right, on the device."""

    per_sample = ("correct",)

    def __init__(self) -> None:
        super().__init__(1)
        self.batches: list[Tensor] = []

    def adds(self, scores: LogitScores, labels: Tensor) -> Tensor:
        assert scores.correct is not None
        self.batches.append(scores.correct[0])
        return super().adds(scores, labels)


def two_sided(only_a: int, only_b: int) -> float:
    """How likely so uneven a split of fair coins is, or a more uneven one."""
    coins = only_a + only_b
    tail = term = 1
    for heads in range(min(only_a, only_b)):
        term = term * (coins - heads) // (heads + 1)  # binomial(coins, heads + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << coins))


def _flags(correct: Tensor | Any) -> Tensor:
    flags = torch.as_tensor(correct)
    if flags.dtype != torch.bool or flags.dim() != 1:
        found = f"{flags.dtype} {list(flags.shape)}"
        raise SoupError("whether each sample is right", found=found, expected="torch.bool [N]")
    return flags.cpu()
