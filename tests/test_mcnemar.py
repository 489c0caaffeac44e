"""McNemar's exact test against scipy's binomial test, and which samples a model has right."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pysoup.errors import SoupError
from pysoup.evaluate import HeldOut, McNemar, correct, evaluate, mcnemar


def flags(both: int, only_a: int, only_b: int, neither: int) -> tuple[Tensor, Tensor]:
    a = [True] * both + [True] * only_a + [False] * only_b + [False] * neither
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(0))
    return torch.tensor(a)[order], torch.tensor(b)[order]


@pytest.mark.parametrize(
    ("only_a", "only_b"),
    [(0, 1), (1, 0), (1, 1), (5, 5), (0, 12), (3, 17), (17, 3), (40, 61), (500, 430), (3000, 3300), (2, 4000)],
)
def test_the_p_value_is_the_two_sided_binomial_test(only_a: int, only_b: int) -> None:
    found = mcnemar(*flags(30, only_a, only_b, 7))
    expected = binomtest(only_a, only_a + only_b, 0.5).pvalue
    assert found == McNemar(only_a, only_b, pytest.approx(expected, rel=1e-9))


def test_the_p_value_of_every_small_split_is_a_count_of_coin_tosses() -> None:
    for coins in range(1, 11):
        tosses = [bin(outcome).count("1") for outcome in range(2**coins)]
        for heads in range(coins + 1):
            as_uneven = sum(abs(2 * toss - coins) >= abs(2 * heads - coins) for toss in tosses)
            assert mcnemar(*flags(1, heads, coins - heads, 1)).p_value == as_uneven / 2**coins


def test_models_that_differ_nowhere_have_a_p_value_of_one() -> None:
    same = torch.tensor([True, False, True])
    assert mcnemar(same, same) == McNemar(0, 0, 1.0)
    assert mcnemar(same[:0], same[:0]) == McNemar(0, 0, 1.0)


def test_numpy_arrays_and_lists_are_taken_too() -> None:
    assert mcnemar(np.array([True, False]), [True, True]) == McNemar(0, 1, 1.0)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.ones(3).bool(), torch.ones(4).bool(), "on the same samples: found 3 and 4"),
        (torch.ones(3), torch.ones(3).bool(), r"found torch.float32 \[3\], expected torch.bool \[N\]"),
        (torch.ones(3).bool(), torch.ones(3, 1).bool(), r"found torch.bool \[3, 1\]"),
    ],
)
def test_what_cannot_be_compared_is_one_line(a: Tensor, b: Tensor, message: str) -> None:
    with pytest.raises(SoupError, match=message):
        mcnemar(a, b)


def test_correct_says_which_samples_accuracy_counts() -> None:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(50, 8, generator=generator)
    inputs[7] = math.nan
    labels = torch.randint(0, 3, (50,), generator=generator)
    model = nn.Linear(8, 3)
    held = HeldOut((inputs, labels), batch_size=16)
    right = correct(model, held)
    with torch.no_grad():
        expected = model(inputs).argmax(1) == labels
    expected[7] = False
    assert right.dtype == torch.bool
    assert torch.equal(right, expected)
    assert evaluate(model, held) == expected.sum().item() / 50


def test_correct_refuses_data_that_may_come_in_another_order() -> None:
    loader = DataLoader(TensorDataset(torch.zeros(3, 2), torch.arange(3)), shuffle=True)
    with pytest.raises(SoupError, match="in the same order: found DataLoader, expected a HeldOut"):
        correct(nn.Linear(2, 3), loader)


def test_correct_refuses_labels_that_are_no_class() -> None:
    held = HeldOut((torch.zeros(3, 2), torch.tensor([0, 5, 1])), lambda model, batch: batch)
    with pytest.raises(SoupError, match="held-out sample 1 is not a class of the model: found 5"):
        correct(nn.Identity(), held)
