"""score_logits against sorting and extended precision, on every instruction set."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from logits_oracle import FLOATS, RELATIVE_ERROR, check, name_of, random_logits

from pysoup import score_logits

KINDS = ("plain", "tied", "confident", "odd")
SIZES = (1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 64, 65, 127, 1000)
INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_the_oracle_for_all_numbers_of_classes(isa: str, kind: str, dtype: torch.dtype) -> None:
    for classes in SIZES:
        logits, labels = random_logits((2, 9, classes), dtype, classes, kind)
        check(score_logits(logits, labels, k=(1, (classes + 1) // 2, classes), per_sample=True), logits, labels)


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("classes", [4095, 4096, 4097, 8192, 20_001])
def test_scores_equal_the_oracle_for_rows_of_several_blocks(isa: str, classes: int, dtype: torch.dtype) -> None:
    for kind in KINDS:
        logits, labels = random_logits((5, classes), dtype, classes, kind)
        labels[0], labels[1] = 0, classes - 1
        check(score_logits(logits, labels, k=(1, 5, 100), per_sample=True), logits, labels)


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_scores_equal_the_oracle_for_a_whole_vocabulary(isa: str, dtype: torch.dtype) -> None:
    logits, labels = random_logits((2, 262_144), dtype, 1)
    logits[1, labels[1]] += 25
    check(score_logits(logits, labels, per_sample=True), logits, labels)


@given(
    st.data(),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=20),
)
def test_any_logits_score_as_the_oracle_says(data: st.DataObject, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 88.0, -104.0, 1e-45, 3e38, -3e38, INF, -INF, NAN])
    values = data.draw(hnp.arrays(np.float64, shape, elements=few | st.floats(-50, 50, width=32)))
    labels = data.draw(hnp.arrays(np.int64, shape[-2], elements=st.integers(0, shape[-1] - 1)))
    logits = torch.from_numpy(values).to(dtype)
    check(
        score_logits(logits, torch.from_numpy(labels), k=range(1, shape[-1] + 1), per_sample=True),
        logits,
        torch.from_numpy(labels),
    )


def test_lowest_class_wins_where_logits_are_equal(isa: str) -> None:
    logits = torch.tensor([[2.0, 5.0, 5.0, 5.0, 1.0]]).repeat(5, 1)
    found = score_logits(logits, torch.arange(5), k=(1, 2, 3, 4, 5), per_sample=True)
    assert {k: int(count) for k, count in found.top.items()} == {1: 1, 2: 2, 3: 3, 4: 4, 5: 5}
    assert found.prediction is not None
    assert found.prediction.tolist() == [[1] * 5]
    assert found.correct is not None
    assert found.correct.tolist() == [[False, True, False, False, False]]
    assert found.margin is not None
    assert found.margin.tolist() == [[-3.0, 0.0, 0.0, 0.0, -4.0]]


def test_both_zeros_are_equal(isa: str) -> None:
    logits = torch.tensor([[-1.0, -0.0, 0.0], [-1.0, 0.0, -0.0]])
    found = score_logits(logits, torch.tensor([1, 1]), k=1, per_sample=True)
    assert found.top[1].tolist() == [2]
    assert found.margin is not None
    assert [str(x) for x in found.margin[0].tolist()] == ["0.0", "0.0"], "never -0.0"


def test_row_with_nan_is_wrong_for_every_k_and_counted(isa: str) -> None:
    for classes in (1, 2, 17, 1000, 5000):
        for place in {0, classes // 2, classes - 1}:
            logits = torch.zeros(3, classes)
            logits[1, place] = NAN
            for options in ({"nll": False}, {"per_sample": True}):
                found = score_logits(logits, torch.zeros(3, dtype=torch.int64), k=(1, classes), **options)
                assert [int(c) for c in found.top.values()] == ([2, 2] if classes > 1 else [2])
                assert found.nan_rows.tolist() == [1]
            assert found.nll is not None
            assert math.isnan(found.nll)
            assert found.prediction is not None
            assert found.prediction.tolist() == [[0, -1, 0]]


@pytest.mark.parametrize(
    "row",
    [[INF, 0, 1], [0, INF, INF], [-INF, 0, 1], [-INF, -INF, 3], [-INF] * 3, [NAN, 0, 1], [3e38, -3e38, 0], [1e5, 0, 0]],
)
def test_infinite_and_huge_logits_score_as_cross_entropy_in_float64(isa: str, row: list[float]) -> None:
    logits = torch.tensor([row])
    for label in range(3):
        labels = torch.tensor([label])
        right = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="sum")
        found = score_logits(logits, labels, k=1).nll
        torch.testing.assert_close(found, right[None], rtol=RELATIVE_ERROR, atol=0, equal_nan=True)


def test_likelihood_of_a_label_far_ahead_keeps_its_relative_error(isa: str) -> None:
    """Where a probability is within 1e-16 of 1, and where the next logits are far below it."""
    for gap in (0.5, 10.0, 16.2, 17.0, 40.0, 85.0, 104.0, 500.0):
        for offset in (0.0, 0.1234567, -77.7, 1e4):
            logits = torch.tensor([[offset, offset + gap, offset - 0.7, offset - 300.0]])
            found = score_logits(logits, torch.tensor([1]), k=1).nll
            assert found is not None
            v = logits[0].double().numpy().astype(np.longdouble)
            right = np.log1p(np.exp(v - v[1]).sum() - 1) if gap < 1 else np.exp(v[[0, 2, 3]] - v[1]).sum()
            if 1 <= gap < 17:
                right = np.log1p(right)
            assert abs(found.item() - right) <= RELATIVE_ERROR * right, (gap, offset)


def test_likelihood_keeps_its_relative_error_where_rounding_is_all_one_way(isa: str) -> None:
    """Many equal logits, so far from the next that their difference from it is rounded, and always alike."""
    rounded = []
    for low, far in itertools.product(
        np.linspace(0.7, 0.8, 9, dtype=np.float32), np.linspace(8.8, 9.2, 9, dtype=np.float32)
    ):
        rounded.append(abs(float(low - far) - (float(low) - float(far))))
        logits = torch.full((1, 4096), float(low))
        logits[0, 5] = float(far)
        logits[0, 9] = float(far) + 30
        check(score_logits(logits, torch.tensor([9])), logits, torch.tensor([9]))
    assert max(rounded) > 3e-7, "the inputs are as meant"


def test_a_single_class_is_always_right(isa: str) -> None:
    found = score_logits(torch.tensor([[3.0], [-7.0]]), torch.tensor([0, 0]), k=1, per_sample=True)
    assert found.top[1].tolist() == [2]
    assert found.nll is not None
    assert found.nll.tolist() == [0.0]
    assert found.margin is not None
    assert found.margin.tolist() == [[INF, INF]]
    assert found.confidence is not None
    assert found.confidence.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_ignored_labels_take_no_part(isa: str, dtype: torch.dtype) -> None:
    logits, labels = random_logits((3, 40, 20), dtype, 3, "odd")
    for ignored in (-100, 255, 7):
        marked = labels.clone()
        marked[::3] = ignored
        logits[:, 3] = NAN
        found = score_logits(logits, marked, per_sample=True, ignore_index=ignored)
        check(found, logits, marked, ignored)
        kept = marked != ignored
        alone = score_logits(logits[:, kept], marked[kept])
        assert found.samples == alone.samples == int(kept.sum())
        assert all(torch.equal(found.top[k], alone.top[k]) for k in (1, 5))
        torch.testing.assert_close(found.nll, alone.nll, rtol=0, atol=0, equal_nan=True)


def test_all_labels_ignored_count_nothing(isa: str) -> None:
    found = score_logits(torch.full((4, 6), NAN), torch.full((4,), -100), ignore_index=-100)
    assert (found.samples, found.nan_rows.tolist(), found.top[1].tolist()) == (0, [0], [0])
    assert found.nll is not None
    assert found.nll.tolist() == [0.0]


def test_no_rows_score_zero() -> None:
    found = score_logits(torch.zeros(2, 0, 7), torch.zeros(0, dtype=torch.int64), per_sample=True)
    assert (found.samples, found.nan_rows.tolist(), found.top[5].tolist()) == (0, [0, 0], [0, 0])
    assert found.prediction is not None
    assert found.prediction.shape == (2, 0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16])
def test_labels_of_any_integer_type_and_stride(dtype: torch.dtype) -> None:
    logits, labels = random_logits((50, 30), torch.float32, 5)
    strided = torch.zeros(150, dtype=dtype)
    strided[::3] = labels.to(dtype)
    check(score_logits(logits, strided[::3]), logits, labels)


def test_only_what_is_asked_for_is_there() -> None:
    logits, labels = random_logits((2, 30, 10), torch.float32, 6)
    bare = score_logits(logits, labels)
    assert [bare.prediction, bare.correct, bare.margin, bare.confidence, bare.nll_per_sample] == [None] * 5
    assert list(score_logits(logits, labels, k=3).top) == [3]
    assert score_logits(logits, labels, k=()).top == {}
    counts = score_logits(logits, labels, nll=False, per_sample=True)
    assert counts.nll is None
    assert counts.nll_per_sample is None
    full = score_logits(logits, labels, per_sample=True)
    for name in ("prediction", "correct", "margin", "confidence", "nll"):
        one = score_logits(logits, labels, per_sample=[name], nll=name == "nll")
        field = "nll_per_sample" if name == "nll" else name
        assert torch.equal(getattr(one, field), getattr(full, field))
        others = {"prediction", "correct", "margin", "confidence", "nll_per_sample"} - {field}
        assert all(getattr(one, other) is None for other in others)
