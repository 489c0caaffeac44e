"""Comparisons of models on each set against the tests by hand, and the permutation test of a mean of sets."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from function_task import Blobs, average, logits_of, pool
from scipy.stats import binomtest
from torch import Tensor

from pysoup.analysis.compare import Comparisons, Samples, compare_models, compare_samples, samples_of
from pysoup.analysis.orders import MEAN_SHIFT
from pysoup.analysis.sets import Sets
from pysoup.errors import SoupError
from pysoup.evaluate import permutation_test


@pytest.fixture(scope="module")
def models() -> list[dict[str, Tensor]]:
    return pool(3)


@pytest.fixture(scope="module")
def found(models: list[dict[str, Tensor]]) -> Comparisons:
    return compare_models(Sets(Blobs()), models, all_pairs=True, resamples=500)


def data(name: str) -> list[tuple[Tensor, Tensor]]:
    return Blobs().heldout() if name == "heldout" else Blobs().tests()[name]


@pytest.mark.parametrize("name", ["heldout", "clean", "noisier"])
@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (1, 2)])
def test_each_set_has_both_tests(
    models: list[dict[str, Tensor]], found: Comparisons, pair: tuple[int, int], name: str
) -> None:
    one = found.found[pair][name]
    right, losses = [], []
    for index in pair:
        logits, labels = logits_of(models[index], data(name))
        right.append(logits.argmax(1) == labels)
        losses.append(torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none"))
    only = [int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())]
    assert [one.mcnemar.only_a, one.mcnemar.only_b] == only
    assert one.mcnemar.p_value == pytest.approx(binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0)
    assert one.accuracy_test.p_value == one.mcnemar.p_value
    assert one.accuracy == tuple(float(r.double().mean()) for r in right)
    assert one.nll == pytest.approx(tuple(float(loss.mean()) for loss in losses), rel=1e-6)
    assert one.nll_test.difference == pytest.approx(float((losses[0] - losses[1]).mean()), rel=1e-5)
    assert one.nll_test.p_value == permutation_test(losses[0], losses[1], resamples=500).p_value


def test_the_first_is_compared_with_the_others_unless_all_pairs_are_asked_for(
    models: list[dict[str, Tensor]], found: Comparisons
) -> None:
    some = compare_models(Sets(Blobs()), models, resamples=500)
    assert list(some.found) == [(0, 1), (0, 2)]
    assert list(found.found) == [(0, 1), (0, 2), (1, 2)]
    assert some.found[0, 1] == found.found[0, 1]


def test_the_mean_of_the_shifts_weighs_sets_not_samples() -> None:
    generator = torch.Generator().manual_seed(0)

    def samples(counts: tuple[int, ...]) -> dict[str, Samples]:
        return {
            f"set{number}": Samples(
                torch.rand(count, generator=generator) < 0.6, torch.rand(count, generator=generator).double()
            )
            for number, count in enumerate(counts)
        }

    one, other = samples((3, 5)), samples((3, 5))
    result = compare_samples({"a": one, "b": other}, ["set0", "set1"]).found[0, 1][MEAN_SHIFT]
    for what, pair, test in (
        ("correct", result.accuracy, result.accuracy_test),
        ("nll", result.nll, result.nll_test),
    ):
        means = [[getattr(side[name], what).double().mean().item() for name in side] for side in (one, other)]
        assert pair == pytest.approx(tuple(np.mean(m) for m in means))
        assert test.difference == pytest.approx(np.mean(means[0]) - np.mean(means[1]))
        # Every way to swap, by hand.
        d = np.concatenate(
            [(getattr(one[n], what).double() - getattr(other[n], what).double()).numpy() / len(one[n].nll) for n in one]
        )
        sums = [abs((np.array(signs) * d).sum()) for signs in itertools.product((1, -1), repeat=len(d))]
        assert test.p_value == np.mean([s >= abs(d.sum()) - 1e-12 for s in sums])
    assert result.mcnemar is None


def test_an_ensemble_can_be_compared_too(models: list[dict[str, Tensor]]) -> None:
    logits = [logits_of(state, data("noisy")) for state in models]
    ensemble = torch.stack([one for one, _ in logits]).mean(0), logits[0][1]
    soup = logits_of(average(models), data("noisy"))
    outputs = {"soup": samples_of({"noisy": soup}), "ensemble": samples_of({"noisy": ensemble})}
    result = compare_samples(outputs).found[0, 1]["noisy"]
    assert result.accuracy[1] == (ensemble[0].argmax(1) == ensemble[1]).double().mean().item()


def test_a_model_that_has_diverged_has_no_likelihood_and_is_compared_all_the_same(
    models: list[dict[str, Tensor]],
) -> None:
    broken = {name: tensor * torch.nan for name, tensor in models[0].items()}
    found = compare_models(Sets(Blobs()), {"good": models[0], "broken": broken})
    one = found.found[0, 1]["clean"]
    assert (one.nll_test, one.accuracy[1]) == (None, 0.0)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["models"] == ["good", "broken"]


def test_one_model_alone_is_refused(models: list[dict[str, Tensor]]) -> None:
    with pytest.raises(SoupError, match="a comparison needs two models or more: found 1"):
        compare_models(Sets(Blobs()), models[:1])
