"""Scores of one model: the metrics against scikit-learn and plain loops, and what evaluate leaves behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, log_loss, top_k_accuracy_score
from torch import Tensor, nn

from pysoup.errors import SoupError
from pysoup.evaluate import HeldOut, Metric, as_metric, evaluate, macro_f1, mcc, nll, run_evaluation, top_k

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


def test_nll_is_that_of_float64_and_lets_nan_and_infinity_through() -> None:
    logits = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * 20
    labels = torch.arange(4000) % 3
    expected = nn.functional.cross_entropy(logits.double(), labels).item()
    assert score(logits, labels, "nll", 4000) == pytest.approx(expected, rel=1e-7)
    # A float32 sum would lose the small terms beside the large one.
    logits = torch.tensor([[0.0, 2.0e7]]).repeat(1001, 1)
    logits[1:] = torch.tensor([0.0, -4.0])
    expected = (2.0e7 + 1000 * math.log1p(math.exp(-4.0))) / 1001
    assert score(logits, torch.zeros(1001).long(), "nll", 10) == pytest.approx(expected, rel=1e-9)
    assert math.isnan(score(torch.tensor([[math.nan, 0.0]]), torch.tensor([1]), "nll"))
    assert score(torch.tensor([[-math.inf, 0.0]]), torch.tensor([0]), "nll") == math.inf


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_type_are_class_numbers(dtype: torch.dtype) -> None:
    assert score(torch.eye(3), torch.tensor([0, 1, 0], dtype=dtype), "accuracy") == 2 / 3


@pytest.mark.parametrize(
    ("logits", "labels", "metric", "message"),
    [
        (torch.zeros(2, 4), torch.zeros(2).long(), "top5", "top-5 needs at least 5 classes: found 4 classes"),
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


def test_a_function_gets_every_batch_of_a_forward_with_one_buffer() -> None:
    buffer = torch.empty(2, 3), torch.empty(2).long()

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return buffer[0].copy_(batch[0]), buffer[1].copy_(batch[1])

    logits, labels = torch.randn(6, 3), torch.arange(6) % 3
    found: list[Tensor] = []
    evaluate(nn.Identity(), HeldOut((logits, labels), forward, batch_size=2), Metric(seeing(found), "max"))
    assert torch.equal(found[0], logits)
    assert torch.equal(found[1], labels)


def seeing(found: list[Tensor]) -> Callable[[Tensor, Tensor], float]:
    return lambda logits, labels: found.extend((logits, labels)) or 0.0


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


def counting_metric(asked: list[int]) -> Metric:
    """A metric with a bound that notes after how many batches it is asked for."""

    class Batches:
        samples = 0

        def update(self, logits: Tensor, labels: Tensor) -> None:
            self.samples += 1

        def value(self) -> float:
            return 1.0

        def bound(self, samples: int) -> float:
            asked.append(self.samples)
            return 1.0

    return Metric(lambda logits, labels: 1.0, "max", "batches", Batches, has_bound=True)


def test_a_stop_is_asked_after_each_batch_but_the_last_and_ends_the_pass() -> None:
    logits = torch.eye(4)[torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 1])]
    labels = torch.tensor([0, 1, 0, 0, 0, 1, 0, 0, 0, 1])  # wrong: the third and fourth, seventh and eighth
    forwarded: list[int] = []

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        forwarded.append(len(batch[0]))
        return batch

    held = HeldOut((logits, labels), forward, batch_size=2)
    bounds: list[float] = []
    whole = run_evaluation(nn.Identity(), held, samples=10, stop=lambda bound: bool(bounds.append(bound)))
    assert bounds == [1.0, 0.8, 0.8, 0.6]
    assert (whole.score, whole.bound, whole.samples) == (0.6, None, 10)
    assert forwarded == [2] * 5

    model = nn.Sequential(nn.Identity()).train()
    partial = run_evaluation(model, held, samples=10, stop=lambda bound: bound < 0.9)
    assert (partial.score, partial.bound, partial.samples) == (None, 0.8, 4)
    assert partial.seconds > 0
    assert forwarded == [2] * 7
    assert model.training
    assert model[0].training


def test_a_stop_is_asked_at_most_64_times_on_another_device() -> None:
    for batches, most in ((10, 9), (64, 63), (65, 32), (1000, 62)):
        data = [(torch.zeros(1, 2), torch.zeros(1).long())] * batches
        asked: list[int] = []
        arguments = {"metric": counting_metric(asked), "samples": batches, "stop": lambda bound: False}
        run_evaluation(nn.Identity(), HeldOut(data, logits_of), **arguments)
        assert asked == list(range(1, batches))  # on the CPU
        asked.clear()
        run_evaluation(nn.Identity(), HeldOut(data, logits_of, device="meta"), **arguments)
        assert len(asked) == most <= 64
        assert asked == sorted(set(asked))


def test_a_metric_without_a_bound_is_never_stopped() -> None:
    held = HeldOut((torch.eye(3), torch.arange(3)), logits_of, batch_size=1)
    by_hand = Metric(lambda logits, labels: len(labels), "max", "samples")
    for metric in ("macro_f1", "mcc", by_hand):
        found = run_evaluation(nn.Identity(), held, metric, samples=3, stop=lambda bound: True)
        assert found.score == score(torch.eye(3), torch.arange(3), metric)
        assert found.samples == 3


def test_a_stop_needs_the_number_of_samples() -> None:
    held = HeldOut((torch.eye(3), torch.arange(3)), logits_of, batch_size=1)
    with pytest.raises(SoupError, match="stop needs samples"):
        run_evaluation(nn.Identity(), held, stop=lambda bound: True)
    with pytest.raises(SoupError, match="more held-out samples count than there are: found 2, expected 1"):
        run_evaluation(nn.Identity(), held, samples=1, stop=lambda bound: False)


def test_samples_are_those_that_count() -> None:
    labels = torch.tensor([0, -100, 2, -100])
    held = HeldOut((torch.eye(4), labels), logits_of, batch_size=2)
    found = run_evaluation(nn.Identity(), held, top_k(1, ignore_index=-100))
    assert (found.score, found.samples) == (1.0, 2)


def test_watch_sees_the_output_of_each_batch() -> None:
    logits, labels = torch.tensor(RNG.normal(size=(10, 3))), torch.tensor(RNG.integers(0, 3, 10))
    seen: list[tuple[Tensor, Tensor]] = []
    held = HeldOut((logits, labels), logits_of, batch_size=4)
    run_evaluation(nn.Identity(), held, watch=lambda *pair: seen.append(pair))
    assert [len(batch) for batch, _ in seen] == [4, 4, 2]
    assert torch.equal(torch.cat([batch for batch, _ in seen]), logits)
    assert torch.equal(torch.cat([batch for _, batch in seen]), labels)


@pytest.mark.parametrize("name", ["accuracy", "top3", "nll", "macro_f1", "mcc"])
@pytest.mark.parametrize("ignore_index", [None, -100])
def test_no_batch_waits_for_a_device(name: str, ignore_index: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    # Meta tensors have no values: whatever asks for one raises. Otherwise they are refused, as they cannot be scored.
    monkeypatch.setattr("pysoup.ops.refuse_special", lambda *arguments, **options: None)
    factories = {"accuracy": partial(top_k, 1), "top3": partial(top_k, 3), "nll": nll, "macro_f1": macro_f1, "mcc": mcc}
    accumulator = factories[name](ignore_index=ignore_index).accumulator()
    for size in (8, 8, 3):
        accumulator.update(torch.zeros(size, 5, device="meta"), torch.zeros(size, device="meta").long())
    with pytest.raises(RuntimeError, match=r"meta|Meta"):
        accumulator.value()


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["accuracy", "top3", "nll", "macro_f1", "mcc"])
def test_a_gpu_gives_the_scores_of_the_cpu_without_a_wait_per_batch(name: str) -> None:
    logits, labels = torch.tensor(RNG.normal(size=(200, 7))).float(), torch.tensor(RNG.integers(0, 7, 200))
    accumulator = as_metric(name).accumulator()
    batches = list(zip(logits.cuda().split(32), labels.cuda().split(32), strict=True))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            accumulator.update(*batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert accumulator.value() == pytest.approx(score(logits, labels, name), rel=1e-6)


def test_autocast_applies_the_model_in_that_precision_and_the_metric_in_full() -> None:
    torch.manual_seed(4)
    model, inputs = nn.Linear(16, 5), torch.randn(40, 16)
    labels = torch.arange(40) % 5
    dtypes: set[torch.dtype] = set()

    def seen(logits: Tensor, labels: Tensor) -> None:
        dtypes.add(logits.dtype)
        assert not torch.is_autocast_enabled("cpu")

    held = HeldOut((inputs, labels), batch_size=16, autocast="bfloat16")
    found = run_evaluation(model, held, "nll", watch=seen).score
    assert dtypes == {torch.bfloat16}
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = torch.cat([model(part) for part in inputs.split(16)])
    assert found == score(logits, labels, "nll", 16)
    assert found != evaluate(model, HeldOut((inputs, labels)), "nll")
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_weights_written_between_passes_count_under_the_callers_autocast(autocast: str | None) -> None:
    torch.manual_seed(4)
    model, inputs = nn.Linear(16, 3), torch.randn(40, 16)
    held = HeldOut((inputs, torch.arange(40) % 3), autocast=autocast)
    scores = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(2):
            scores.append(evaluate(model, held, "nll"))
            model.weight.data.neg_()  # in place and unseen by autocast, which keeps low-precision copies of weights
        with torch.no_grad():
            logits = model(inputs)
    assert scores[0] != scores[1]
    assert score(logits, held_labels(held), "nll") == pytest.approx(scores[0], rel=1e-2)


def held_labels(held: HeldOut) -> Tensor:
    return torch.cat([labels for _, labels in held.batches()])
