"""score_ensemble equals score_logits of the sums it never writes: bit for bit, in exact rational arithmetic."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from logits_oracle import FLOATS, check, name_of, random_logits, same_scores
from oracle import F32, F64, fma, multiply, narrow
from torch import Tensor

from pysoup import SoupError, score_ensemble, score_logits

FACTORS = [(1.0, 1.0), (1.0, 0.5), (0.3, 1 / 3), (-2.5, -1.0), (0.0, 1e-30)]


def summed(base: Tensor, candidates: Tensor, weight: float, scale: float) -> Tensor:
    """``scale * fma(weight, candidate, base)``, each step rounded once, by the laws of tests/oracle.py."""
    wide = torch.float64 in (base.dtype, candidates.dtype)
    to = F64 if wide else F32
    w, s = narrow(weight, to), narrow(scale, to)
    pairs = zip(
        candidates.double().flatten().tolist(), base.double().expand(candidates.shape).flatten().tolist(), strict=True
    )
    values = [multiply(s, fma(w, x, b, to), to) for x, b in pairs]
    return torch.tensor(values, dtype=torch.float64).to(to.torch).view(candidates.shape)


@functools.cache
def cases(base_dtype: torch.dtype, dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor, float, float, Tensor]]:
    """Base, candidates, labels, weight, scale and what they sum to."""
    found = []
    for number, (weight, scale) in enumerate(FACTORS):
        for classes in (5, 21, 70):
            candidates, labels = random_logits((2, 3, classes), dtype, number)
            base, _ = random_logits((3, classes), base_dtype, 100 + number)
            found.append((base, candidates, labels, weight, scale, summed(base, candidates, weight, scale)))
    return found


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("base_dtype", FLOATS, ids=name_of)
def test_ensemble_scores_are_those_of_the_sums(isa: str, base_dtype: torch.dtype, dtype: torch.dtype) -> None:
    for base, candidates, labels, weight, scale, sums in cases(base_dtype, dtype):
        found = score_ensemble(base, candidates, labels, weight, scale=scale, per_sample=True)
        assert same_scores(found, score_logits(sums, labels, per_sample=True)), (weight, scale, sums.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
def test_ensemble_of_many_candidates_and_blocks_equals_the_sums(isa: str, dtype: torch.dtype) -> None:
    for count, classes in ((70, 40), (3, 9001)):
        candidates, labels = random_logits((count, 3, classes), dtype, count)
        base, _ = random_logits((3, classes), torch.bfloat16, 1)
        # Exact in f64, as the numbers are of like size: rounded once, to f32.
        sums = (base.double() + candidates.double() * 0.5).float() * 0.25
        found = score_ensemble(base, candidates, labels, 0.5, scale=0.25, per_sample=True)
        assert same_scores(found, score_logits(sums, labels, per_sample=True))


def test_ensemble_follows_the_oracle_with_odd_values(isa: str) -> None:
    for seed in range(10):
        candidates, labels = random_logits((2, 12, 30), torch.float32, seed, "odd")
        base, _ = random_logits((12, 30), torch.float32, 50 + seed, "odd")
        labels[seed] = -100
        # With weight and scale 1 there is one rounding, that of the sum.
        sums = base + candidates
        found = score_ensemble(base, candidates, labels, per_sample=True, ignore_index=-100)
        check(found, sums, labels, ignore_index=-100)


def test_one_candidate_may_come_without_its_dimension() -> None:
    candidates, labels = random_logits((1, 12, 30), torch.float32, 1)
    base, _ = random_logits((12, 30), torch.float32, 2)
    one = score_ensemble(base, candidates[0], labels, 0.5)
    assert same_scores(one, score_ensemble(base, candidates, labels, 0.5))
    assert one.nan_rows.shape == (1,)


def test_strides_of_base_and_candidates_do_not_change_bits(isa: str) -> None:
    candidates, labels = random_logits((3, 12, 30), torch.bfloat16, 1)
    base, _ = random_logits((12, 30), torch.float16, 2)
    right = score_ensemble(base, candidates, labels, 0.3, per_sample=True)
    wide = torch.cat([base.new_zeros(12, 5), base, base.new_zeros(12, 8)], 1)[:, 5:35]
    swapped = candidates.transpose(0, 1).contiguous().transpose(0, 1)
    for b in (wide, base.t().contiguous().t()):
        assert same_scores(score_ensemble(b, swapped, labels, 0.3, per_sample=True), right)
    row = base[:1].expand(12, 30)
    assert same_scores(score_ensemble(row, candidates, labels), score_ensemble(row.contiguous(), candidates, labels))


def test_greedy_ensemble_step_finds_the_best_candidate() -> None:
    """The use it is made for: a sum of logits, the candidate that helps most, the average over n + 1."""
    generator = np.random.default_rng(0)
    labels = torch.from_numpy(generator.integers(0, 10, 500))
    logits = torch.from_numpy(generator.normal(size=(6, 500, 10)).astype(np.float32))
    logits += torch.nn.functional.one_hot(labels, 10) * torch.arange(6)[:, None, None] * 0.3
    base = logits[:2].sum(0)
    found = score_ensemble(base, logits, labels, scale=1 / 3, k=1)
    right = [(((base + x) / 3).argmax(1) == labels).sum().item() for x in logits]
    assert found.top[1].tolist() == right
    assert max(right) == right[5]


@pytest.mark.parametrize("name", ["weight", "scale"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e39])
def test_factors_that_are_not_finite_are_refused(name: str, value: float) -> None:
    logits = torch.zeros(2, 3)
    labels = torch.tensor([0, 0])
    with pytest.raises(SoupError, match=f"{name} must be finite in f32: found"):
        score_ensemble(logits, logits, labels, k=1, **{name: value})
    if value == -1e39:
        assert score_ensemble(logits.double(), logits, labels, k=1, **{name: value}).top[1].tolist() == [2]
    else:
        with pytest.raises(SoupError, match=f"{name} must be finite: found"):
            score_ensemble(logits, logits.double(), labels, k=1, **{name: value})
