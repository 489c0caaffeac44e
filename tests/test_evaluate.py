"""Scores of one model: the metrics against scikit-learn and plain loops, and what evaluate leaves behind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, log_loss, top_k_accuracy_score
from torch import Tensor, nn

from pysoup.errors import SoupError
from pysoup.evaluate import HeldOut, Metric, as_metric, evaluate

RNG = np.random.default_rng(0)


def logits_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


def score(logits: Tensor, labels: Tensor, metric: object, batch_size: int = 256) -> float:
    return evaluate(nn.Identity(), HeldOut((logits, labels), logits_of, batch_size=batch_size), metric)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_metrics_agree_with_scikit_learn(dtype: torch.dtype) -> None:
    logits = torch.tensor(RNG.normal(size=(501, 9))).to(dtype)
    labels = torch.tensor(RNG.integers(0, 9, 501))
    exact = logits.double().numpy()
    # Distinct logits only: scikit-learn breaks ties the other way.
    keep = np.array([len(set(row)) == 9 for row in exact])
    logits, labels, exact = logits[keep], labels[keep], exact[keep]
    y = labels.numpy()
    assert score(logits, labels, "accuracy", 100) == accuracy_score(y, exact.argmax(1))
    assert score(logits, labels, "top5", 64) == top_k_accuracy_score(y, exact, k=5, labels=range(9))
    probability = np.exp(exact) / np.exp(exact).sum(1, keepdims=True)
    assert score(logits, labels, "nll", 7) == pytest.approx(log_loss(y, probability, labels=range(9)), rel=1e-6)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_top_k_follows_the_rank_rule_with_ties_and_nan(data: st.DataObject) -> None:
    classes = data.draw(st.integers(5, 8))
    value = st.sampled_from([0.0, -0.0, 1.0, 2.0, math.inf, -math.inf, math.nan])
    rows = data.draw(st.lists(st.lists(value, min_size=classes, max_size=classes), min_size=1, max_size=6))
    labels = [data.draw(st.integers(0, classes - 1)) for _ in rows]
    for metric, k in (("accuracy", 1), ("top5", 5)):
        hits = 0
        for row, label in zip(rows, labels, strict=True):
            ranked = sorted(range(classes), key=lambda c: (-row[c], c)) if not any(map(math.isnan, row)) else []
            hits += label in ranked[:k]
        assert score(torch.tensor(rows), torch.tensor(labels), metric, 2) == hits / len(rows)


def test_nll_sums_in_float64_and_lets_nan_and_infinity_through() -> None:
    logits = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * 20
    labels = torch.arange(4000) % 3
    per_sample = nn.functional.cross_entropy(logits, labels, reduction="none")
    assert score(logits, labels, "nll", 4000) == per_sample.double().sum().item() / 4000
    assert math.isnan(score(torch.tensor([[math.nan, 0.0]]), torch.tensor([1]), "nll"))
    assert score(torch.tensor([[-math.inf, 0.0]]), torch.tensor([0]), "nll") == math.inf


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_type_are_class_numbers(dtype: torch.dtype) -> None:
    assert score(torch.eye(3), torch.tensor([0, 1, 0], dtype=dtype), "accuracy") == 2 / 3


@pytest.mark.parametrize(
    ("logits", "labels", "metric", "message"),
    [
        (torch.zeros(2, 4), torch.zeros(2).long(), "top5", "top-5 accuracy needs 5 classes: found 4 classes"),
        (torch.zeros(2, 4, 5), torch.zeros(2, 5).long(), "accuracy", r"found logits \[2, 4, 5\] and labels \[2, 5\]"),
        (torch.zeros(2, 4), torch.zeros(2, 1).long(), "nll", r"expected logits \[N, C\] and labels \[N\]"),
        (torch.zeros(2, 0), torch.zeros(2).long(), "accuracy", r"found logits \[2, 0\]"),
        (torch.zeros(2, 4), torch.tensor([0.0, 1.0]), "accuracy", "class numbers: found torch.float32"),
        (torch.zeros(5, 4), torch.tensor([0, 1, 2, 4, 9]), "nll", "held-out sample 3 is .*: found 4, expected 0 to 3"),
        (
            torch.zeros(5, 4),
            torch.tensor([0, 1, -100, 0, 1]),
            "accuracy",
            "sample 2 is .*: found -100, expected 0 to 3",
        ),
        (torch.zeros(0, 4), torch.zeros(0).long(), "accuracy", "held-out set is empty"),
        (torch.zeros(2, 4), torch.zeros(2).long(), "f2", "unknown metric: found 'f2', expected one of accuracy, top5"),
        (torch.zeros(2, 4), torch.zeros(2).long(), lambda x, y: 1.0, "which way is better"),
        (
            torch.zeros(2, 4),
            torch.zeros(2).long(),
            Metric(lambda x, y: x, "max", "raw"),
            "'raw' must return one number",
        ),
        (torch.zeros(2, 4), torch.zeros(2).long(), 3, "not a metric: found int"),
    ],
)
def test_what_does_not_fit_is_one_line(logits: Tensor, labels: Tensor, metric: object, message: str) -> None:
    with pytest.raises(SoupError, match=message) as caught:
        score(logits, labels, metric, 3)
    assert "\n" not in str(caught.value)


def test_a_function_gets_all_logits_and_labels_on_the_cpu_in_float32() -> None:
    logits = torch.tensor(RNG.normal(size=(50, 3))).bfloat16()
    labels = torch.tensor(RNG.integers(0, 3, 50))

    def macro_f1(seen: Tensor, truth: Tensor) -> float:
        assert seen.dtype == torch.float32
        assert seen.device.type == "cpu"
        assert torch.equal(seen, logits.float())
        return f1_score(truth, seen.argmax(1), average="macro")

    expected = f1_score(labels, logits.float().argmax(1), average="macro")
    assert score(logits, labels, Metric(macro_f1, "max"), 7) == expected
    macro_f1.higher_is_better = True
    assert score(logits, labels, macro_f1, 7) == expected


def test_a_metric_takes_its_direction_from_the_function() -> None:
    def error(logits: Tensor, labels: Tensor) -> float:
        return 0.0

    error.higher_is_better = False
    assert as_metric(error).direction == "min"
    assert as_metric(error).name == "error"
    assert as_metric("nll").direction == "min"
    assert as_metric("accuracy").direction == "max"
    with pytest.raises(SoupError, match="direction: found 'up'"):
        Metric(error, "up")


def test_evaluate_restores_each_training_flag_also_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    model.train()
    model[2].eval()
    seen: list[bool] = []

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        seen.extend(module.training for module in model.modules())
        if len(batch[0]) == 1:
            raise RuntimeError("boom")
        logits = model(batch[0])
        assert not logits.requires_grad
        assert not logits.is_inference()
        return logits, batch[1]

    data = (torch.randn(4, 3), torch.zeros(4).long())
    evaluate(model, HeldOut(data, forward))
    assert not any(seen)
    assert [module.training for module in model.modules()] == [True, True, True, False]
    with pytest.raises(RuntimeError, match="boom"):
        evaluate(model, HeldOut(data, forward, batch_size=1))
    assert [module.training for module in model.modules()] == [True, True, True, False]


def test_forward_must_return_a_pair_of_tensors() -> None:
    held = HeldOut((torch.zeros(2, 3), torch.zeros(2).long()), lambda model, batch: batch[0])
    with pytest.raises(SoupError, match=r"forward must return \(logits, labels\), both tensors: found Tensor"):
        evaluate(nn.Identity(), held)
