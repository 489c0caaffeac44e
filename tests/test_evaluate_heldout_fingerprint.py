"""The fingerprint of a held-out set: the same for the same data in every place and process, and for no other."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from soup_models import conv_batchnorm
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pysoup.errors import SoupError
from pysoup.evaluate import HeldOut, default_forward, recalibrate_batchnorm

X = torch.arange(60.0).view(20, 3)
Y = torch.arange(20) % 3


def forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    return model(batch[0]), batch[1]


def other_forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    return model(batch[0]), batch[1]


def scaled(model: nn.Module, batch: Any, scale: Any) -> tuple[Tensor, Tensor]:
    return model(batch[0]), batch[1]


class Scaled:
    func = "no function"

    def __call__(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        return model(batch[0]), batch[1]


def batches() -> list[tuple[Tensor, Tensor]]:
    return list(zip(X.split(8), Y.split(8), strict=True))


def test_the_same_data_has_the_same_fingerprint_wherever_it_comes_from_and_is_kept() -> None:
    expected = HeldOut((X, Y), batch_size=8).fingerprint
    assert len(expected) == 64
    same = [
        HeldOut(batches()),
        HeldOut((batch for batch in batches()), memory=0),
        HeldOut(TensorDataset(X, Y), batch_size=8),
        HeldOut(DataLoader(TensorDataset(X, Y), batch_size=8), memory=0),
        HeldOut((X, Y), default_forward, batch_size=8, device="cpu"),
        HeldOut(HeldOut((X, Y), batch_size=8)),
        HeldOut((X, Y), batch_size=3).reordered(range(20), 8),
        HeldOut(batches()[::-1]).with_batches([2, 1, 0]),
    ]
    assert [held.fingerprint for held in same] == [expected] * len(same)


def test_whatever_a_score_depends_on_changes_the_fingerprint() -> None:
    changed = Y.clone()
    changed[-1] += 1
    held = HeldOut((X, Y), batch_size=8)
    different = [
        held,
        HeldOut((X, changed), batch_size=8),
        HeldOut((X.double(), Y), batch_size=8),
        HeldOut((X, Y), batch_size=9),
        HeldOut((X[:16], Y[:16]), batch_size=8),
        HeldOut({"x": X, "labels": Y}, batch_size=8),
        held.with_batches([1, 0, 2]),
        held.reordered([1, 0, *range(2, 20)]),
        HeldOut((X, Y), batch_size=8, autocast="bfloat16"),
        HeldOut((X, Y), batch_size=8, autocast="float16"),
        HeldOut((X, Y), forward, batch_size=8),
        HeldOut((X, Y), other_forward, batch_size=8),
        HeldOut((X, Y), Scaled(), batch_size=8),
        HeldOut((X, Y), partial(scaled, scale=2), batch_size=8),
        HeldOut((X, Y), partial(scaled, scale=3), batch_size=8),
        HeldOut((X, Y), partial(scaled, scale=Y), batch_size=8),
        HeldOut((X, Y), partial(scaled, scale=changed), batch_size=8),
    ]
    found = [one.fingerprint for one in different]
    assert len(set(found)) == len(found)


def test_a_forward_is_known_by_its_qualified_name() -> None:
    expected = HeldOut((X, Y), forward).fingerprint
    assert HeldOut((X, Y), partial(forward)).fingerprint == expected
    assert HeldOut(HeldOut((X, Y), forward), batch_size=2).fingerprint == expected
    assert HeldOut((X, Y), Scaled()).fingerprint == HeldOut((X, Y), Scaled()).fingerprint
    made = [
        HeldOut((X, Y), partial(scaled, scale=[Y.clone(), "a", Scaled()][i])).fingerprint for i in (0, 0, 1, 1, 2, 2)
    ]
    assert made[::2] == made[1::2]


def test_fingerprints_agree_across_processes() -> None:
    code = (
        "import torch; from pysoup.evaluate import HeldOut\n"
        "x, y = torch.arange(60.0).view(20, 3), torch.arange(20) % 3\n"
        "print(HeldOut({'labels': y, 'x': x}, batch_size=8, memory=0, autocast='bf16').fingerprint)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    run = [sys.executable, "-c", code]
    printed = subprocess.run(run, capture_output=True, text=True, check=True, env=environment).stdout.strip()
    assert printed == HeldOut({"x": X, "labels": Y}, batch_size=8, autocast=torch.bfloat16).fingerprint


def test_data_that_cannot_be_read_is_named_where_the_fingerprint_is_asked_for() -> None:
    class Image:
        pass

    held = HeldOut([(X, Y), (Image(), Y)])
    assert len(list(held.batches())) == 2
    with pytest.raises(SoupError, match=r"held-out batch 1 has no fingerprint.*: found .*\.Image, expected tensors"):
        _ = held.fingerprint


@pytest.mark.parametrize(
    ("autocast", "dtype"),
    [
        (None, None),
        ("bfloat16", torch.bfloat16),
        ("bf16", torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        ("float16", torch.float16),
        (torch.float16, torch.float16),
    ],
)
def test_autocast_is_a_dtype_or_its_name(autocast: Any, dtype: torch.dtype | None) -> None:
    held = HeldOut((X, Y), autocast=autocast)
    assert held.autocast is dtype
    assert HeldOut(held).autocast is dtype


@pytest.mark.parametrize("autocast", ["int8", "float32", torch.float32, 16, True, [torch.bfloat16]])
def test_another_precision_is_refused(autocast: Any) -> None:
    with pytest.raises(SoupError, match=r"not a precision for autocast: found .*, expected 'bfloat16'"):
        HeldOut((X, Y), autocast=autocast)


def test_statistics_of_batchnorm_are_estimated_in_the_precision_of_the_set() -> None:
    seen = []

    def watching(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        seen.append(model(batch[0]).dtype)
        return batch[0], batch[1]

    data = HeldOut([(torch.randn(8, 6), Y[:8])], watching, autocast="bfloat16")
    recalibrate_batchnorm(conv_batchnorm(), data)
    assert seen == [torch.bfloat16]
    assert not torch.is_autocast_enabled("cpu")
