"""The paired permutation test: does one model score better than another on the same samples, or is it chance?

For any score of single samples (0 or 1 for right, a likelihood); where the scores are 0 and 1 it is McNemar's test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import SoupError
from .mcnemar import two_sided

RESAMPLES = 9999
MOST_EXACT = 18
"""Samples that differ up to which all 2^m permutations are looked at."""
_RELATIVE = 1e-12
"""Sums closer than this share of all differences are equal: they are sums of the same numbers in another order."""
_SIGNS = 1 << 22
"""Signs that are drawn at a time; fixed, so that a seed has one result."""


@dataclass(frozen=True)
class Permutation:
    """How much better one model scores, and how likely a difference as large is by chance."""

    difference: float
    """The mean of ``a - b`` over all samples."""
    p_value: float
    """Two-sided."""
    differing: int
    """Samples with different scores; no others matter for the p-value."""
    resamples: int | None
    """Permutations that were drawn; ``None``: the p-value is exact."""


def permutation_test(a: Tensor | Any, b: Tensor | Any, *, resamples: int = RESAMPLES, seed: int = 0) -> Permutation:
    """Compare two models by a score of each sample: ``[N]``, floats, integers or bool, in the same order.

    If neither model is better, the two scores of a sample could as well be swapped: the mean difference is compared
    with those of all ways to swap. Exact where at most 18 samples differ, and where all differences are of one size
    (then it is :func:`mcnemar`); else ``resamples`` ways are drawn with ``seed``, and the p-value is (b + 1) / (n + 1)
    for b of n as uneven as the observed one (Davison and Hinkley 1997), so never 0. The same seed gives the same
    p-value in every run. Infinite scores must be in both or neither: :class:`SoupError` for differences that are not
    finite, and for lengths that differ.
    """
    differences = _differences(a, b)
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 1:
        raise SoupError("resamples must be a positive integer", found=repr(resamples))
    mean = math.fsum(differences.tolist()) / len(differences) if len(differences) else 0.0
    moved = differences[differences != 0]
    sizes = moved.abs()
    count = len(moved)
    if not count:
        return Permutation(0.0, 1.0, 0, None)
    if bool((sizes == sizes[0]).all()):
        ahead = int((moved > 0).sum())
        return Permutation(mean, two_sided(ahead, count - ahead), count, None)
    threshold = abs(math.fsum(moved.tolist())) - _RELATIVE * math.fsum(sizes.tolist())
    if count <= MOST_EXACT:
        return Permutation(mean, _exact(sizes, threshold), count, None)
    reached = _drawn(sizes, threshold, resamples, seed)
    return Permutation(mean, (reached + 1) / (resamples + 1), count, resamples)


def _exact(sizes: Tensor, threshold: float) -> float:
    sums = torch.zeros(1, dtype=torch.float64)
    for size in sizes:
        sums = torch.cat([sums + size, sums - size])
    return int((sums.abs() >= threshold).sum()) / len(sums)


def _drawn(sizes: Tensor, threshold: float, resamples: int, seed: int) -> int:
    """How many of the draws are as uneven."""
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, _SIGNS // len(sizes))
    total = sizes.sum()
    reached = 0
    for start in range(0, resamples, rows):
        shape = (min(rows, resamples - start), len(sizes))
        swapped = torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8).double() @ sizes
        reached += int(((total - 2 * swapped).abs() >= threshold).sum())
    return reached


def _differences(a: Any, b: Any) -> Tensor:
    one, other = torch.as_tensor(a).detach().cpu(), torch.as_tensor(b).detach().cpu()
    if one.dim() != 1 or one.shape != other.shape or one.is_complex() or other.is_complex():
        found = f"{one.dtype} {list(one.shape)} and {other.dtype} {list(other.shape)}"
        raise SoupError("a score for each of the same samples", found=found, expected="numbers [N] of both models")
    one, other = one.double(), other.double()
    differences = (one - other).where(one != other, 0.0)  # the same infinity is no difference
    bad = ~torch.isfinite(differences)
    if bool(bad.any()):
        row = int(bad.to(torch.int8).argmax())
        found = f"{float(one[row])} and {float(other[row])}"
        raise SoupError(f"the scores of sample {row} have no difference", found=found, expected="finite numbers")
    return differences
