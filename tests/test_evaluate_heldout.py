"""The held-out set: any kind of data, read once, the same batches in the same order for every model."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from soup_models import HuggingFaceStyle, Output
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pysoup.errors import SoupError
from pysoup.evaluate import HeldOut, evaluate

X = torch.randn(23, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(23) % 6


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True))


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(X[:10], Y[:10]), (X[10:], Y[10:])]


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        TensorDataset(X, Y),
        Stream(),
        DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True),
        batches(),
        iter(batches()),
        (batch for batch in batches()),
        [list(batch) for batch in batches()],
        [Pair(*batch) for batch in batches()],
        tuple(batches()),
    ],
    ids=lambda data: type(data).__name__,
)
def test_every_kind_of_data_gives_the_same_score(data: Any) -> None:
    held = HeldOut(data, batch_size=5)
    expected = (X.argmax(1) == Y).double().mean().item()
    for _ in range(2):  # a second model sees the data again, also if it came from a generator
        assert evaluate(nn.Identity(), held) == pytest.approx(expected, abs=1e-15)


def test_tensors_are_cut_into_batches_without_copies() -> None:
    held = HeldOut((X, Y), batch_size=10)
    found = list(held.batches())
    assert len(held) == 3
    assert [len(x) for x, _ in found] == [10, 10, 3]
    assert all(x.untyped_storage().data_ptr() == X.untyped_storage().data_ptr() for x, _ in found)


def test_a_shuffling_loader_is_seen_in_one_fixed_order_and_decoded_once() -> None:
    decoded = []

    class Counting(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            decoded.append(index)
            return super().__getitem__(index)

    held = HeldOut(DataLoader(Counting(X, Y), batch_size=4, shuffle=True))
    assert not decoded
    one = torch.cat([x for x, _ in held.batches()])
    two = torch.cat([x for x, _ in held.batches()])
    assert torch.equal(one, two)
    assert not torch.equal(one, X)
    assert sorted(decoded) == list(range(23))


@pytest.mark.parametrize("wrap", [dict, UserDict])
def test_dictionary_batches_go_in_as_keyword_arguments(wrap: type) -> None:
    torch.manual_seed(0)
    model = HuggingFaceStyle()
    ids, mask = torch.randint(0, 11, (9, 5)), torch.ones(9, 5).long()
    labels = model(ids, mask).logits.argmax(1)
    labels[0] = (labels[0] + 1) % 7
    batch = wrap({"input_ids": ids, "attention_mask": mask, "labels": labels})
    assert evaluate(model, [batch]) == pytest.approx(8 / 9)
    assert "labels" in batch
    assert evaluate(model, HeldOut(dict(batch), batch_size=4)) == pytest.approx(8 / 9)


def test_a_forward_may_pop_from_the_batch() -> None:
    def forward(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        labels = batch.pop("labels")
        return batch["x"], labels

    held = HeldOut([{"x": X, "labels": Y}], forward)
    assert evaluate(nn.Identity(), held) == evaluate(nn.Identity(), held)


def test_a_model_that_changes_the_data_in_place_is_an_error() -> None:
    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return batch[0].sub_(1.0), batch[1]

    with pytest.raises(SoupError, match="changed held-out batch 0 in place"):
        evaluate(nn.Identity(), HeldOut((X.clone(), Y), forward))


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x, 1), lambda x: {"logits": x}, Output])
def test_logits_are_found_in_every_usual_output(wrap: Any) -> None:
    class Wrapped(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return wrap(x)

    assert evaluate(Wrapped(), (X, X.argmax(1))) == 1.0


def test_further_elements_of_a_tuple_are_further_arguments() -> None:
    class TwoInputs(nn.Module):
        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return x + shift

    shift = nn.functional.one_hot(Y, 6) * 100.0
    assert evaluate(TwoInputs(), (X, shift, Y)) == 1.0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the held-out set is empty"),
        ((X[:0], Y[:0]), "the held-out set is empty"),
        ([(X[:0], Y[:0])], "the held-out set is empty"),
        ((X, Y[:5]), r"same first dimension: found \[23, 6\], \[5\]"),
        ([X], "cannot tell inputs from labels in a batch; .*: found Tensor"),
        ([{"x": X, "label": Y}], r"needs its labels: found keys \['label', 'x'\], expected 'labels'"),
        ("data.csv", "not held-out data: found str"),
        (3, "not held-out data: found int"),
    ],
)
def test_what_is_not_held_out_data_is_refused(data: Any, message: str) -> None:
    with pytest.raises(SoupError, match=message):
        evaluate(nn.Identity(), data)


def test_batches_are_kept_on_the_device_asked_for() -> None:
    held = HeldOut((X, Y), device="meta")
    assert all(x.device.type == "meta" for x, _ in held.batches())
    assert all(x.device.type == "meta" for x, _ in HeldOut((X, Y)).batches(torch.device("meta")))


def test_a_stream_that_failed_midway_is_not_taken_for_the_data() -> None:
    def stream(fail: list[bool]) -> Iterator[tuple[Tensor, Tensor]]:
        yield X[:10], Y[:10]
        if fail.pop():
            raise OSError("disk")
        yield X[10:], Y[10:]

    class Again:
        def __init__(self) -> None:
            self.fail = [False, True]

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return stream(self.fail)

    once, again = HeldOut(stream([True])), HeldOut(Again())
    for held in (once, again):
        with pytest.raises(OSError, match="disk"):
            evaluate(nn.Identity(), held)
    with pytest.raises(SoupError, match="cannot start again; make a new HeldOut"):
        evaluate(nn.Identity(), once)
    assert evaluate(nn.Identity(), again) == evaluate(nn.Identity(), (X, Y))
    assert len(again) == 2
