"""The paired permutation test against scipy's, against McNemar's, and against counting by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import permutation_test as scipy_permutation_test

from pysoup.errors import SoupError
from pysoup.evaluate import Permutation, mcnemar, permutation_test


def scores(count: int, *, shift: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    a = generator.normal(size=count)
    return a, a + generator.normal(shift, 1.0, count)


def test_the_p_value_of_few_samples_counts_every_way_to_swap() -> None:
    a, b = scores(7)
    d = a - b
    sums = [abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in itertools.product((1, -1), repeat=7)]
    found = permutation_test(a, b)
    assert found.resamples is None
    assert found.p_value == sum(s >= abs(d.sum()) - 1e-9 for s in sums) / 2**7
    assert found.difference == pytest.approx(d.mean(), rel=1e-12)


@pytest.mark.parametrize("count", [9, 13])
def test_the_exact_p_value_is_that_of_scipy(count: int) -> None:
    a, b = scores(count, seed=count)
    found = scipy_permutation_test(
        (a, b), lambda x, y, axis: np.abs((x - y).sum(axis)), permutation_type="samples", vectorized=True,
        n_resamples=np.inf, alternative="greater",
    )  # fmt: skip
    assert permutation_test(a, b).p_value == pytest.approx(found.pvalue, rel=1e-9)


def test_up_to_eighteen_differences_the_p_value_is_exact() -> None:
    assert permutation_test(*scores(18)).resamples is None
    assert permutation_test(*scores(19), resamples=100).resamples == 100


def test_of_right_and_wrong_it_is_mcnemars_test() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(600, generator=generator) < 0.8
    b = torch.rand(600, generator=generator) < 0.75
    expected = mcnemar(a, b)
    found = permutation_test(a, b)
    assert found.p_value == expected.p_value
    assert (found.differing, found.resamples) == (expected.only_a + expected.only_b, None)
    assert found.difference == pytest.approx((expected.only_a - expected.only_b) / 600, rel=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.08, 0.2])
def test_drawn_permutations_come_near_the_normal_approximation(shift: float) -> None:
    a, b = scores(2000, shift=shift, seed=3)
    d = a - b
    z = abs(d.sum()) / math.sqrt((d**2).sum())
    found = permutation_test(a, b, resamples=20_000)
    assert found.resamples == 20_000
    assert found.p_value == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.01)


def test_a_p_value_is_never_zero_and_the_same_for_a_seed() -> None:
    a, b = scores(500, shift=5.0)
    assert permutation_test(a, b, resamples=999).p_value == 1 / 1000
    a, b = scores(500, shift=0.1)
    assert permutation_test(a, b, seed=4) == permutation_test(a, b, seed=4)
    assert permutation_test(a, b, seed=4).p_value != permutation_test(a, b, seed=5).p_value


def test_the_two_models_may_be_exchanged() -> None:
    a, b = scores(300, shift=0.05)
    one, other = permutation_test(a, b), permutation_test(b, a)
    assert one.p_value == other.p_value
    assert one.difference == -other.difference


def test_ties_are_as_uneven_whatever_the_rounding() -> None:
    # 0.1 + 0.2 - 0.3 is not 0 in floating point, yet every split of these is as uneven as the other way round.
    d = torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64)
    assert permutation_test(d, torch.zeros(3)).p_value == 1.0


def test_samples_that_do_not_differ_do_not_matter_for_the_p_value() -> None:
    a, b = scores(15)
    same = np.linspace(0, 1, 100)
    found = permutation_test(np.concatenate([a, same]), np.concatenate([b, same]))
    assert found.p_value == permutation_test(a, b).p_value
    assert found.difference == pytest.approx(permutation_test(a, b).difference * 15 / 115, rel=1e-12)
    assert permutation_test(same, same) == Permutation(0.0, 1.0, 0, None)
    assert permutation_test([math.inf, 1.0], [math.inf, 1.0]).p_value == 1.0


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        (torch.ones(3), torch.ones(4), {}, r"torch.float32 \[3\] and torch.float32 \[4\]"),
        (torch.ones(3, 1), torch.ones(3, 1), {}, r"expected numbers \[N\]"),
        (
            torch.tensor([1.0, math.nan]),
            torch.ones(2),
            {},
            "the scores of sample 1 have no difference: found nan and 1",
        ),
        (torch.tensor([math.inf]), torch.ones(1), {}, "found inf and 1.0"),
        (torch.ones(2), torch.ones(2), {"resamples": 0}, "resamples must be a positive integer"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    a: torch.Tensor, b: torch.Tensor, options: dict[str, int], message: str
) -> None:
    with pytest.raises(SoupError, match=message):
        permutation_test(a, b, **options)
