"""Weights: checked once, then factors and a divisor."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysoup.errors import WeightsError
from pysoup.weights import check_weights, mix

FINITE = st.floats(min_value=-1e100, max_value=1e100, allow_nan=False)


def test_no_weights_mean_the_plain_sum_over_k() -> None:
    law = mix(check_weights(None, 5), [0, 2, 4])
    assert law.members == (0, 2, 4)
    assert law.factors == (1.0, 1.0, 1.0)
    assert law.divisor == 3.0
    assert law.shares == (1 / 3,) * 3


@given(st.floats(min_value=1e-300, max_value=1e300), st.integers(1, 9))
def test_equal_weights_are_the_law_of_no_weights(weight: float, count: int) -> None:
    assert mix(check_weights([weight] * count, count), range(count)) == mix(None, range(count))


@given(st.lists(FINITE, min_size=1, max_size=8))
def test_factors_are_weights_over_their_exact_sum(weights: list[float]) -> None:
    total = float(sum(map(Fraction, weights)))
    if abs(total) <= 2.0**-40 * float(sum(map(abs, map(Fraction, weights)))):  # 0, as near as weights are written down
        with pytest.raises(WeightsError):
            mix(check_weights(weights, len(weights)), range(len(weights)))
        return
    law = mix(check_weights(weights, len(weights)), range(len(weights)))
    assert law.members == tuple(i for i, w in enumerate(weights) if w != 0)
    used = [weights[i] for i in law.members]
    if len(set(used)) > 1:
        assert law.factors == tuple(w / total for w in used)
        assert law.divisor == 1.0
    assert law.shares == pytest.approx([w / total for w in used])


def test_weights_are_renormalised_over_those_present() -> None:
    weights = check_weights([1, 2, 5], 3)
    assert mix(weights, [0, 2]).factors == (1 / 6, 5 / 6)
    assert mix(weights, [1]).factors == (1.0,)


def test_raw_weights_are_untouched_and_may_sum_to_zero() -> None:
    law = mix(check_weights([1, -1, 0, 0.5], 4), range(4), normalize=False)
    assert (law.members, law.factors, law.divisor) == ((0, 1, 3), (1.0, -1.0, 0.5), 1.0)
    equal = mix(check_weights([2, 2], 2), range(2), normalize=False)
    assert (equal.factors, equal.divisor) == ((2.0, 2.0), 1.0)


@pytest.mark.parametrize("weights", [[1e308, 1e308, 1e308], [1.7e308, 1.7e308, 1.0]])
def test_sum_beyond_the_range_is_no_crash(weights: list[float]) -> None:
    try:
        law = mix(check_weights(weights, 3), range(3))
    except WeightsError:
        return
    assert law.shares == pytest.approx([w / 2 / sum(v / 2 for v in weights) for w in weights])


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([1], "wrong number"),
        ([1, 2, 3], "wrong number"),
        ([1, float("nan")], "weight 2"),
        ([0, 0], "zero"),
        ("ab", "numbers"),
    ],
)
def test_bad_weights_say_what_is_wrong(weights: object, says: str) -> None:
    with pytest.raises(WeightsError, match=says):
        check_weights(weights, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [(1.0, -1.0), (0.1, 0.3, -0.4), (1e300, 1e-30, -1e300)])
def test_weights_that_cancel_are_refused_also_where_rounding_leaves_a_rest(weights: tuple[float, ...]) -> None:
    with pytest.raises(WeightsError, match="cannot be normalised"):
        mix(weights, range(len(weights)))
    assert mix(weights, range(len(weights)), normalize=False).factors == weights
