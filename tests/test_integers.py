"""The policy for tensors without a mean."""

from __future__ import annotations

import pytest

from pysoup.errors import IncompatibleError, SoupError
from pysoup.integers import POLICIES, check_policy, choose

LABELS = ["a.safetensors", "b.safetensors", "c.safetensors"]


@pytest.mark.parametrize("policy", POLICIES)
def test_equal_values_are_the_first_whatever_the_policy(policy: str) -> None:
    assert choose("ids", policy, LABELS, None) == "first"


def test_batch_counters_are_the_largest_by_their_last_name_only() -> None:
    for name in ("num_batches_tracked", "layers.0.bn.num_batches_tracked"):
        assert choose(name, "auto", LABELS, 2) == "max"
    for name in ("num_batches_tracked.x", "my_num_batches_tracked", "bn.num_batches"):
        with pytest.raises(IncompatibleError):
            choose(name, "auto", LABELS, 2)


def test_an_explicit_policy_wins() -> None:
    assert choose("bn.num_batches_tracked", "first", LABELS, 1) == "first"
    assert choose("ids", "max", LABELS, 1) == "max"


def test_error_names_the_tensor_and_both_inputs() -> None:
    with pytest.raises(IncompatibleError) as caught:
        choose("ids", "auto", LABELS, 2)
    assert caught.value.tensor == "ids"
    assert caught.value.file == "c.safetensors"
    assert "a.safetensors" in str(caught.value)


@pytest.mark.parametrize("policy", ["mean", "", "MAX"])
def test_unknown_policies_are_refused(policy: str) -> None:
    with pytest.raises(SoupError, match=r"auto, first, max"):
        check_policy(policy)
