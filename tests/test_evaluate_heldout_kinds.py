"""What users have at hand as held-out data: arrays, lists of samples, Hugging Face data sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from pysoup import HeldOut, SoupError, greedy_soup
from pysoup.evaluate import evaluate

X = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(50) % 7
MODEL = nn.Linear(6, 7)


class Named(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return MODEL(x)


@pytest.mark.parametrize("writable", [True, False])
def test_arrays_are_taken_as_tensors_are(writable: bool) -> None:
    x, y = X.numpy().copy(), Y.numpy().copy()
    x.flags.writeable = writable
    expected = HeldOut((X, Y), batch_size=20)
    for data in ((x, y), (X, y), (x[::-1][::-1], y)):
        held = HeldOut(data, batch_size=20)
        assert held.samples == [20, 20, 10]
        assert held.fingerprint == expected.fingerprint
        assert evaluate(MODEL, held) == evaluate(MODEL, expected)
    first = next(iter(HeldOut((x, y))))[0]
    assert first.data_ptr() == x.ctypes.data  # no copy
    assert evaluate(Named(), {"x": x, "labels": y}) == evaluate(MODEL, expected)


def test_arrays_that_are_no_numbers_are_named() -> None:
    names = np.array(["cat", "dog"])
    with pytest.raises(SoupError, match="the held-out data: tensor '1': array is not supported"):
        HeldOut((np.zeros((2, 6), np.float32), names))
    with pytest.raises(SoupError, match=r"same first dimension: found \[2, 6\], \[3\]"):
        HeldOut((np.zeros((2, 6)), np.zeros(3)))


@pytest.mark.parametrize("label", [int, lambda y: y, lambda y: y.numpy(), lambda y: y.numpy()[()]])
@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_samples_is_cut_into_batches_like_a_data_set(label: Any, kind: Any) -> None:
    held = HeldOut(kind((x, label(y)) for x, y in zip(X, Y, strict=True)), batch_size=20)
    expected = HeldOut(TensorDataset(X, Y), batch_size=20)
    assert held.samples == [20, 20, 10]
    assert held.fingerprint == expected.fingerprint
    named = HeldOut(kind({"x": x.numpy(), "labels": label(y)} for x, y in zip(X, Y, strict=True)))
    assert evaluate(Named(), named) == evaluate(MODEL, expected)


def test_samples_that_only_their_owner_can_put_together_are_named() -> None:
    expected = "expected tensors, arrays and numbers; or a DataLoader with a collate_fn"
    with pytest.raises(SoupError, match=f"found a list as part 'input_ids' of a sample, {expected}"):
        HeldOut([{"input_ids": [1, 2, 3], "labels": 0}, {"input_ids": [1], "labels": 1}])
    with pytest.raises(SoupError, match=f"found a list as part 0 of a sample, {expected}"):
        HeldOut([([1, 2, 3], 0), ([1], 1)])


def test_batches_stay_what_they_are() -> None:
    """A list of batches, whatever a forward of one's own takes for one, and a single batch."""
    assert HeldOut([(X, Y), (X[:9], Y[:9])]).samples == [50, 9]

    def forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        x, label = batch
        assert x.dim() == 2
        return model(x), torch.full((len(x),), label)

    held = HeldOut([(X, 1), (X, 2)], forward)
    assert len(held) == 2
    assert 0 <= evaluate(MODEL, held) <= 1
    with pytest.raises(SoupError, match="scoring checkpoints"):
        greedy_soup([MODEL.state_dict() | {"bias": torch.ones(7)}] * 2, nn.Linear(6, 7), [(X, Y[:9])])


class HuggingFace:
    """What is asked of a ``datasets.Dataset``."""

    column_names = ("x", "labels")

    def __init__(self, form: str | None = None) -> None:
        self.format = {"type": form}

    def with_format(self, form: str) -> HuggingFace:
        return HuggingFace(form)

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {"x": X[index], "labels": Y[index]}
        return row if self.format["type"] == "torch" else {name: value.tolist() for name, value in row.items()}


def test_a_hugging_face_data_set_is_taken_once_it_gives_tensors() -> None:
    with pytest.raises(SoupError, match=r"lists, not tensors: found HuggingFace, expected data.with_format\('torch'"):
        HeldOut(HuggingFace())
    held = HeldOut(HuggingFace().with_format("torch"), batch_size=20)
    assert held.samples == [20, 20, 10]
    assert evaluate(Named(), held) == evaluate(MODEL, (X, Y))
