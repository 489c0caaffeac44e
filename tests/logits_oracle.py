"""What logits score, in numpy: ranks by sorting, likelihoods in extended precision, one row at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pysoup import LogitScores

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
RELATIVE_ERROR = 1e-6


def name_of(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass
class Expected:
    """Arrays ``[M, N]``; rank is C for a row with a NaN."""

    rank: np.ndarray
    nan: np.ndarray
    prediction: np.ndarray
    margin: np.ndarray
    confidence: np.ndarray
    nll: np.ndarray
    counted: np.ndarray  # [N]


def expected(logits: Tensor, labels: Tensor, ignore_index: int | None = None) -> Expected:
    logits = logits[None] if logits.dim() == 2 else logits
    values = logits.double().numpy()
    m, n, classes = values.shape
    wide = np.longdouble
    found = Expected(*(np.zeros((m, n), t) for t in (int, bool, int, float, wide, wide)), np.ones(n, bool))
    for row, label in enumerate(labels.tolist()):
        if label == ignore_index:
            found.counted[row] = False
            continue
        for candidate in range(m):
            v = values[candidate, row]
            at = candidate, row
            if np.isnan(v).any():
                found.rank[at], found.nan[at], found.prediction[at] = classes, True, -1
                found.margin[at] = found.confidence[at] = found.nll[at] = np.nan
                continue
            order = np.lexsort((np.arange(classes), -v))  # by falling logit, then by class
            found.rank[at] = np.flatnonzero(order == label)[0]
            best = found.prediction[at] = order[0]
            others = np.delete(v, label)
            with np.errstate(invalid="ignore"):
                found.margin[at] = v[label] - (others.max() if classes > 1 else -np.inf)
                exponentials = np.exp(np.delete(v, best).astype(wide) - wide(v[best]))
                rest = exponentials.sum() if np.isfinite(v[best]) else wide(np.nan)
                found.confidence[at] = 1 / (1 + rest)
                found.nll[at] = (wide(v[best]) - wide(v[label])) + np.log1p(rest)
    return found


def check(found: LogitScores, logits: Tensor, labels: Tensor, ignore_index: int | None = None) -> None:
    """Every score that was asked for, against the oracle: exactly, or within the promised error."""
    right = expected(logits, labels, ignore_index)
    counted = right.counted
    assert found.samples == counted.sum()
    for k, count in found.top.items():
        assert count.dtype == torch.int64
        np.testing.assert_array_equal(count.numpy(), ((right.rank < k) & ~right.nan & counted).sum(1))
    np.testing.assert_array_equal(found.nan_rows.numpy(), (right.nan & counted).sum(1))
    if found.nll is not None:
        assert found.nll.dtype == torch.float64
        near(found.nll.numpy(), right.nll[:, counted].sum(1))
    if found.prediction is not None:
        np.testing.assert_array_equal(found.prediction.numpy(), np.where(counted, right.prediction, -1))
    if found.correct is not None:
        assert found.correct.dtype == torch.bool
        np.testing.assert_array_equal(found.correct.numpy(), (right.rank == 0) & counted)
    if found.margin is not None:
        np.testing.assert_array_equal(found.margin.numpy(), np.where(counted, right.margin, np.nan))
    if found.confidence is not None:
        near(found.confidence.numpy(), np.where(counted, right.confidence, np.nan))
    if found.nll_per_sample is not None:
        near(found.nll_per_sample.numpy(), np.where(counted, right.nll, np.nan))


def near(found: np.ndarray, right: np.ndarray) -> None:
    np.testing.assert_allclose(found.astype(np.longdouble), right, rtol=RELATIVE_ERROR, atol=0)


def same_scores(one: LogitScores, other: LogitScores) -> bool:
    """Bit for bit, but that a NaN equals a NaN."""

    def same(a: Tensor | None, b: Tensor | None) -> bool:
        if a is None or b is None:
            return a is b
        assert a.dtype == b.dtype
        return bool(np.array_equal(a.numpy(), b.numpy(), equal_nan=a.is_floating_point()))

    names = ("nll", "nan_rows", "prediction", "correct", "margin", "confidence", "nll_per_sample")
    return (
        list(one.top) == list(other.top)
        and one.samples == other.samples
        and all(same(one.top[k], other.top[k]) for k in one.top)
        and all(same(getattr(one, name), getattr(other, name)) for name in names)
    )


def random_logits(shape: tuple[int, ...], dtype: torch.dtype, seed: int, kind: str = "plain") -> tuple[Tensor, Tensor]:
    """Logits and labels. ``kind``: plain; tied (few values); confident (the label far ahead); odd (NaN, infinities)."""
    generator = torch.Generator().manual_seed(seed)
    classes, rows = shape[-1], shape[-2]
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(classes, (rows,), generator=generator)
    at = labels.expand(shape[:-1])[..., None]
    if kind == "tied":
        logits = logits.div(3).round()
    if kind == "confident":
        gap = torch.rand(*shape[:-1], 1, generator=generator, dtype=torch.float64) * 60
        logits = (logits * 0.2).scatter_add(-1, at, gap)
    if kind == "odd":
        choice = torch.rand(shape, generator=generator)
        for value, below in ((float("nan"), 0.25), (float("inf"), 0.5), (-0.0, 0.75), (1e-42, 1.0)):
            logits[(choice < below / classes) & (choice >= (below - 0.25) / classes)] = value
        logits[torch.rand(shape, generator=generator) < 0.2] = -float("inf")
    return logits.to(dtype), labels
