"""Metrics: values against scikit-learn, torch and plain loops; what is accepted; names and factories."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, matthews_corrcoef
from torch import Tensor, nn

from pysoup.errors import SoupError
from pysoup.evaluate import HeldOut, Metric, as_metric, evaluate, macro_f1, mcc, nll, top_k
from pysoup.evaluate.confusion import Matthews

RNG = np.random.default_rng(5)


def score(logits: Tensor, labels: Tensor, metric: object, batch_size: int = 256) -> float:
    held = HeldOut((logits, labels), lambda model, batch: batch, batch_size=batch_size)
    return evaluate(nn.Identity(), held, metric)


def wrongful(logits: Tensor) -> np.ndarray:
    """Predictions as scikit-learn takes them: the first of the largest logits, class C for a row with a NaN."""
    rows = logits.double().numpy()
    return np.where(np.isnan(rows).any(1), rows.shape[1], rows.argmax(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("classes", "samples"), [(2, 50), (7, 400), (60, 90), (1000, 300)])
def test_macro_f1_and_matthews_are_those_of_scikit_learn(dtype: torch.dtype, classes: int, samples: int) -> None:
    # Coarse values, so that ties occur; with 60 and 1000 classes some occur as labels only, some not at all.
    logits = torch.tensor(RNG.integers(-6, 6, (samples, classes)) / 2).to(dtype)
    labels = torch.tensor(RNG.integers(0, classes, samples))
    logits[::3].scatter_(1, labels[::3, None], 9)
    truth, predicted = labels.numpy(), wrongful(logits)
    expected = f1_score(truth, predicted, average="macro", zero_division=0)
    for batch_size in (samples, 16):
        assert score(logits, labels, "macro_f1", batch_size) == pytest.approx(expected, rel=1e-13)
        found = score(logits, labels, "mcc", batch_size)
        assert found == pytest.approx(matthews_corrcoef(truth, predicted), rel=1e-12)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_row_with_a_nan_predicts_no_class(data: st.DataObject) -> None:
    classes = data.draw(st.integers(2, 4))
    value = st.sampled_from([0.0, -0.0, 1.0, math.inf, -math.inf, math.nan])
    rows = data.draw(st.lists(st.lists(value, min_size=classes, max_size=classes), min_size=1, max_size=12))
    logits = torch.tensor(rows)
    labels = torch.tensor([data.draw(st.integers(0, classes - 1)) for _ in rows])
    truth, predicted = labels.numpy(), wrongful(logits)
    occurring = sorted({*truth, *predicted} - {classes})
    expected = f1_score(truth, predicted, labels=occurring, average="macro", zero_division=0)
    assert score(logits, labels, "macro_f1", 5) == pytest.approx(expected, rel=1e-13)
    # Class C is one more prediction that is never right. scikit-learn warns about a single class in all.
    correlation = matthews_corrcoef(truth, predicted) if len({*truth, *predicted}) > 1 else 0.0
    assert score(logits, labels, "mcc", 5) == pytest.approx(correlation, rel=1e-12, abs=1e-15)


def test_matthews_is_exact_where_float_sums_are_not() -> None:
    right = torch.tensor([400_000_001, 300_000_003, 0])
    predicted = torch.tensor([500_000_007, 499_999_994, 2])
    actual = torch.tensor([600_000_000, 400_000_003, 0])
    s = 1_000_000_003
    covariance = s * 700_000_004 - sum(int(a) * int(p) for a, p in zip(actual, predicted, strict=True))
    variances = (s * s - sum(int(p) ** 2 for p in predicted)) * (s * s - sum(int(a) ** 2 for a in actual))
    expected = math.sqrt(Fraction(covariance**2, variances))
    assert Matthews().from_counts(right, predicted, actual) == pytest.approx(expected, rel=1e-15)


def test_matthews_is_zero_where_one_class_is_all() -> None:
    one_sided = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    assert score(one_sided, torch.tensor([0, 1, 0, 1]), "mcc") == 0.0
    assert score(torch.eye(2), torch.tensor([1, 1]), "mcc") == 0.0
    assert score(torch.full((4, 2), math.nan), torch.tensor([0, 1, 0, 1]), "mcc") == 0.0


@pytest.mark.parametrize("k", [1, 2, 3, 10, 11])
def test_top_k_of_any_k_has_a_name_and_counts_by_rank(k: int) -> None:
    logits = torch.tensor(RNG.integers(0, 6, (200, 11))).float()  # many ties: the lowest class is ahead
    labels = torch.tensor(RNG.integers(0, 11, 200))
    ranks = [sorted(range(11), key=lambda c: (-row[c], c)).index(y) for row, y in zip(logits, labels, strict=True)]
    expected = sum(rank < k for rank in ranks) / 200
    assert score(logits, labels, f"top{k}", 64) == score(logits, labels, top_k(k), 64) == expected
    assert as_metric(f"top{k}").name == f"top{k}"
    assert as_metric(f"top{k}").direction == "max"


@pytest.mark.parametrize("ignored", [-100, 2, 255])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ignored_labels_are_left_out_as_if_they_were_not_there(ignored: int, dtype: torch.dtype) -> None:
    logits = torch.tensor(RNG.normal(size=(90, 4))).to(dtype)
    labels = torch.tensor(RNG.integers(0, 4, 90))
    labels[torch.tensor(RNG.random(90) < 0.4)] = ignored
    labels[32:48] = ignored  # a whole batch
    kept = labels != ignored
    for factory, name in ((lambda **o: top_k(1, **o), "accuracy"), (lambda **o: top_k(3, **o), "top3"), (nll, "nll")):
        expected = score(logits[kept], labels[kept], name)
        assert score(logits, labels, factory(ignore_index=ignored), 16) == pytest.approx(expected, rel=1e-12)
    for factory in (macro_f1, mcc):
        assert score(logits, labels, factory(ignore_index=ignored), 16) == score(logits[kept], labels[kept], factory())
    torch_mean = nn.functional.cross_entropy(logits.double(), labels, ignore_index=ignored).item()
    assert score(logits, labels, nll(ignore_index=ignored), 16) == pytest.approx(torch_mean, rel=1e-6)


@pytest.mark.parametrize("make", [lambda: top_k(1, ignore_index=-100), lambda: nll(ignore_index=-100)])
def test_a_label_that_is_neither_a_class_nor_ignored_is_an_error(make) -> None:
    labels = torch.tensor([-100, 1, -100, 3, -1])
    with pytest.raises(SoupError, match="held-out sample 3 is not a class of the model: found 3, expected 0 to 2"):
        score(torch.zeros(5, 3), labels, make(), 2)
    with pytest.raises(SoupError, match="no held-out sample counts"):
        score(torch.zeros(2, 3), torch.tensor([-100, -100]), make())


def test_ignored_rows_cannot_spoil_a_score() -> None:
    logits = torch.tensor([[math.nan, 0.0], [-math.inf, 0.0], [0.0, 1.0]])
    labels = torch.tensor([-100, -100, 1])
    assert score(logits, labels, nll(ignore_index=-100)) == pytest.approx(math.log1p(math.exp(-1)), rel=1e-6)
    assert score(logits, labels, macro_f1(ignore_index=-100)) == 1.0


def test_what_is_ignored_is_in_the_name() -> None:
    assert top_k(5, ignore_index=-100).name == "top5(ignore_index=-100)"
    assert nll().name == as_metric("nll").name == "nll"
    assert mcc(ignore_index=0).name == "mcc(ignore_index=0)"


def test_which_metrics_have_a_bound() -> None:
    assert all(as_metric(name).has_bound for name in ("accuracy", "top3", "nll"))
    assert top_k(2, ignore_index=-100).has_bound
    plain = Metric(lambda logits, labels: 0.0, "max")
    for metric in (as_metric("macro_f1"), as_metric("mcc"), plain):
        assert not metric.has_bound
        assert metric.accumulator().bound(10) is None


@pytest.mark.parametrize("name", ["accuracy", "top3", "nll", "macro_f1", "mcc"])
def test_built_in_metrics_travel_to_other_processes(name: str) -> None:
    copy = pickle.loads(pickle.dumps(as_metric(name)))
    logits, labels = torch.randn(20, 5, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 5
    assert score(logits, labels, copy) == score(logits, labels, name) == copy.fn(logits, labels)
    assert as_metric(name) is as_metric(name)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("top0", "unknown metric: found 'top0'"),
        ("top", "expected one of accuracy, top5"),
        ("top-1", "macro_f1, mcc"),
        ("Accuracy", "unknown metric"),
    ],
)
def test_unknown_names_are_one_line(metric: str, message: str) -> None:
    with pytest.raises(SoupError, match=message) as caught:
        as_metric(metric)
    assert "\n" not in str(caught.value)


def test_k_must_be_positive() -> None:
    with pytest.raises(SoupError, match="positive k: found 0"):
        top_k(0)


@pytest.mark.parametrize(
    ("direction", "candidate", "best", "min_delta", "accepted", "strictly"),
    [
        ("max", 0.75, 0.5, 0.0, True, True),
        ("max", 0.5, 0.5, 0.0, True, False),
        ("max", 0.75, 0.5, 0.25, True, False),
        ("max", 0.74, 0.5, 0.25, False, False),
        ("min", 0.5, 0.75, 0.0, True, True),
        ("min", 0.5, 0.5, 0.0, True, False),
        ("min", 0.5, 0.75, 0.25, True, False),
        ("min", 0.51, 0.75, 0.25, False, False),
        ("max", -1.0, None, 0.25, True, True),
        ("max", math.nan, None, 0.0, False, False),
        ("min", math.nan, 0.5, 0.0, False, False),
        ("min", math.inf, math.inf, 0.0, True, False),
    ],
)
def test_accepted_is_what_reaches_the_best_by_min_delta(
    direction: str, candidate: float, best: float | None, min_delta: float, accepted: bool, strictly: bool
) -> None:
    metric = Metric(lambda logits, labels: 0.0, direction)
    assert metric.accepts(candidate, best, strict=False, min_delta=min_delta) is accepted
    assert metric.accepts(candidate, best, strict=True, min_delta=min_delta) is strictly
