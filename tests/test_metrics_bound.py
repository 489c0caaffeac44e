"""The bound of a metric: whatever follows, what it rules out would have been refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pysoup.errors import SoupError
from pysoup.evaluate import HeldOut, Metric, as_metric, nll, run_evaluation, top_k

CLASSES = 6
METRICS = [as_metric("accuracy"), as_metric("top3"), as_metric("nll"), top_k(1, ignore_index=-100)]
METRICS += [nll(ignore_index=-100)]


def random_batches(rng: np.random.Generator, ignored: bool) -> list[tuple[Tensor, Tensor]]:
    """A few batches of odd sizes: logits from coarse to fine and large, sometimes NaN or infinite, labels."""
    batches = []
    for size in rng.integers(1, 9, rng.integers(1, 9)):
        logits = rng.normal(size=(size, CLASSES)) * rng.choice([0.01, 1.0, 30.0])
        if rng.random() < 0.3:
            logits = logits.round()
        if rng.random() < 0.05:
            logits[rng.integers(size), rng.integers(CLASSES)] = rng.choice([np.nan, np.inf, -np.inf])
        labels = rng.integers(0, CLASSES, size)
        if ignored:
            labels[rng.random(size) < 0.3] = -100
        batches.append((torch.tensor(logits, dtype=torch.float32), torch.tensor(labels)))
    return batches


def near(rng: np.random.Generator, value: float) -> float:
    """A score to beat that is close to ``value``: where a bound that is off by one rounding would show."""
    choice = rng.integers(5)
    if choice == 0 or not math.isfinite(value):
        return float(rng.random())
    steps = int(choice) - 2  # -1 to 2 representable numbers away
    for _ in range(abs(steps)):
        value = math.nextafter(value, math.copysign(math.inf, steps))
    return value


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_what_the_bound_rules_out_is_never_accepted(metric: Metric) -> None:
    rng = np.random.default_rng(11)
    ruled_out = attained = 0
    for _ in range(400):
        batches = random_batches(rng, "ignore" in metric.name)
        counted = sum(int((labels != -100).sum()) for _, labels in batches)
        if not counted:
            continue
        samples = counted if rng.random() < 0.5 else sum(len(labels) for _, labels in batches)  # or more than count
        accumulator = metric.accumulator()
        bounds = [accumulator.bound(samples)]
        for logits, labels in batches:
            accumulator.update(logits, labels)
            bounds.append(accumulator.bound(samples))
        value = accumulator.value()
        for min_delta in (0.0, 0.1, 1 / counted):
            best = near(rng, value - min_delta if metric.direction == "max" else value + min_delta)
            for strict in (False, True):
                accepted = metric.accepts(value, best, strict=strict, min_delta=min_delta)
                for bound in bounds:
                    assert bound is not None
                    possible = metric.accepts(bound, best, strict=strict, min_delta=min_delta)
                    assert possible or not accepted
                    ruled_out += not possible
                if samples == counted:
                    attained += bounds[-1] == value
    assert ruled_out > 1000  # the bound does rule things out
    assert attained > 400  # and with nothing left to come it is the score itself


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(["accuracy", "top3", "nll"]))
def test_the_bound_is_reached_by_a_perfect_rest(seed: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    batches = random_batches(rng, ignored=False)
    rest = int(rng.integers(1, 40))
    accumulator = as_metric(name).accumulator()
    for logits, labels in batches:
        accumulator.update(logits, labels)
    bound = accumulator.bound(accumulator.samples + rest)
    perfect = torch.full((rest, CLASSES), -1000.0)
    labels = torch.tensor(rng.integers(0, CLASSES, rest))
    accumulator.update(perfect.scatter(1, labels[:, None], 1000.0), labels)
    assert bound == accumulator.value() or (math.isnan(bound) and math.isnan(accumulator.value()))


def test_a_nan_that_is_certain_makes_the_bound_nan() -> None:
    accumulator = as_metric("nll").accumulator()
    accumulator.update(torch.tensor([[0.0, 1.0], [math.nan, 0.0]]), torch.tensor([0, 1]))
    assert math.isnan(accumulator.bound(50))
    assert not as_metric("nll").accepts(accumulator.bound(50), None, strict=False)
    counts = as_metric("accuracy").accumulator()
    counts.update(torch.tensor([[0.0, 1.0], [math.nan, 0.0]]), torch.tensor([1, 1]))
    assert counts.bound(50) == 49 / 50  # a row with a NaN is wrong, no more


def test_bounds_before_the_first_batch_are_the_best_score_there_is() -> None:
    assert as_metric("accuracy").accumulator().bound(10) == 1.0
    assert as_metric("nll").accumulator().bound(10) == 0.0
    assert as_metric("nll").accumulator().bound(0) is None


def test_more_samples_than_announced_is_an_error_not_a_wrong_bound() -> None:
    accumulator = as_metric("accuracy").accumulator()
    accumulator.update(torch.eye(3), torch.arange(3))
    with pytest.raises(SoupError, match="more held-out samples count than there are: found 3, expected 2"):
        accumulator.bound(2)


@pytest.mark.parametrize("name", ["accuracy", "top2", "nll"])
@pytest.mark.parametrize("strict", [False, True])
def test_stopping_early_decides_as_the_whole_pass_does(name: str, strict: bool) -> None:
    metric = as_metric(name)
    rng = np.random.default_rng(3)
    stopped = 0
    for _ in range(60):
        samples = int(rng.integers(5, 80))
        labels = torch.tensor(rng.integers(0, 4, samples))
        skill = rng.uniform(0, 3)
        logits = torch.tensor(rng.normal(size=(samples, 4)), dtype=torch.float32)
        logits += skill * nn.functional.one_hot(labels, 4)
        held = HeldOut((logits, labels), lambda model, batch: batch, batch_size=int(rng.integers(1, 20)))
        whole = run_evaluation(nn.Identity(), held, metric)
        assert whole.samples == samples
        best = near(rng, whole.score)
        partial = run_evaluation(
            nn.Identity(),
            held,
            metric,
            samples=samples,
            stop=lambda bound, best=best: not metric.accepts(bound, best, strict=strict, min_delta=0.01),
        )
        if partial.score is None:
            stopped += 1
            assert partial.samples < samples
            assert not metric.accepts(partial.bound, best, strict=strict, min_delta=0.01)
            assert not metric.accepts(whole.score, best, strict=strict, min_delta=0.01)
        else:
            assert (partial.score, partial.bound, partial.samples) == (whole.score, None, samples)
    assert stopped > 5
