"""Samples of a held-out set in another order: new batches hold the same rows, checked one by one."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from soup_models import HuggingFaceStyle
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from pysoup.errors import SoupError
from pysoup.evaluate import HeldOut, evaluate

N = 23
X = torch.randn(N, 3, 2, generator=torch.Generator().manual_seed(1))
Z = (torch.arange(N * 2).view(N, 2) * 3).to(torch.bfloat16)
Y = torch.arange(N)


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


def cut(sizes: list[int]) -> list[slice]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]


@st.composite
def regroupings(draw: st.DrawFn) -> tuple[list[int], list[int], int | None]:
    """Sizes of the present batches (empty ones too), an order of their samples, and a new batch size."""
    sizes = draw(st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(lambda sizes: 0 < sum(sizes) <= N))
    order = draw(st.permutations(range(sum(sizes))))
    return sizes, order, draw(st.none() | st.integers(1, 9))


@given(regroupings(), st.sampled_from([None, 0, 300]))
def test_every_new_batch_holds_the_samples_asked_for(case: Any, memory: int | None) -> None:
    sizes, order, batch_size = case
    data = [{"x": X[part], "extra": (Z[part], "flag"), "labels": Y[part]} for part in cut(sizes)]
    held = HeldOut(data, memory=memory)
    other = held.reordered(order, batch_size)
    size = max(sizes) if batch_size is None else batch_size
    rest = [len(order) % size] if len(order) % size else []
    assert other.samples == [size] * (len(order) // size) + rest
    position = 0
    for batch in other.batches():
        assert list(batch) == ["x", "extra", "labels"]
        assert batch["extra"][1] == "flag"
        for row in range(len(batch["labels"])):
            sample = order[position]  # rows were cut in order, so positions and rows are the same numbers
            assert torch.equal(batch["x"][row], X[sample])
            assert torch.equal(batch["extra"][0][row], Z[sample])
            assert int(batch["labels"][row]) == sample
            position += 1
    assert position == len(order)


@given(regroupings(), st.randoms())
def test_reordering_twice_composes(case: Any, shuffler: random.Random) -> None:
    sizes, order, batch_size = case
    again = list(range(len(order)))
    shuffler.shuffle(again)
    held = HeldOut([(X[part], Y[part]) for part in cut(sizes)])
    twice = held.reordered(order, batch_size).reordered(again, 4)
    assert torch.cat([y for _, y in twice.batches()]).tolist() == [order[place] for place in again]
    at_once = held.reordered([order[place] for place in again], 4)
    assert twice.fingerprint == at_once.fingerprint


@given(st.permutations(range(5)), st.sampled_from([None, 0]))
def test_whole_batches_are_reordered_as_they_are(order: list[int], memory: int | None) -> None:
    ragged = [(torch.randn(n + 1, n + 2), torch.arange(n + 1)) for n in range(5)]
    held = HeldOut(ragged, memory=memory)
    other = held.with_batches(order)
    assert other.samples == [n + 1 for n in order]
    for (x, y), number in zip(other.batches(), order, strict=True):
        assert torch.equal(x, ragged[number][0])
        assert torch.equal(y, ragged[number][1])
    assert [len(y) for _, y in held.batches()] == [1, 2, 3, 4, 5]


def test_whole_batches_are_not_copied() -> None:
    other = HeldOut((X, Y), batch_size=10).with_batches([2, 0, 1])
    assert all(x.untyped_storage().data_ptr() == X.untyped_storage().data_ptr() for x, _ in other.batches())


@pytest.mark.parametrize("order", [list, tuple, torch.tensor, np.array, lambda order: torch.tensor(order).int()])
def test_an_order_is_any_sequence_of_integers(order: Any) -> None:
    positions = list(range(N))[::-1]
    other = HeldOut((X, Y), batch_size=4).reordered(order(positions))
    assert torch.cat([y for _, y in other.batches()]).tolist() == positions


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 1], r"each of 0 to 22 must be in it once: found 2 numbers, 0, 1"),
        ([0, *range(22)], r"must be in it once: found 23 numbers, 0, 0, 1, 2, 3, 4, 5, 6, \.\.\."),
        ([*range(22), 23], "must be in it once"),
        ([-1, *range(22)], "must be in it once"),
        (torch.arange(23.0), "found torch.float32, expected integers"),
        (torch.arange(23).view(1, 23), "must be in it once"),
        ("hardest", "found str, expected integers"),
        (None, "found NoneType, expected integers"),
        ([], "must be in it once"),
    ],
)
def test_what_is_not_a_permutation_is_refused(order: Any, message: str) -> None:
    with pytest.raises(SoupError, match=f"not an order of the held-out samples.*{message}"):
        HeldOut((X, Y)).reordered(order)
    with pytest.raises(SoupError, match="not an order of the held-out batches"):
        HeldOut(list(zip(X.split(1), Y.split(1), strict=True))).with_batches(order)
    with pytest.raises(SoupError, match="batch_size must be positive"):
        HeldOut((X, Y)).reordered(range(N), 0)


def test_a_reordered_set_is_applied_as_the_first_one() -> None:
    def forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        return model(batch["image"]).flatten(1), batch["target"]

    held = HeldOut([{"image": X, "target": Y % 6}], forward, autocast="bfloat16", device="cpu")
    for other in (held.reordered(range(N), 5), held.with_batches([0])):
        assert other.forward is forward
        assert other.autocast is torch.bfloat16
        assert evaluate(nn.Identity(), other) == evaluate(nn.Identity(), held)


@pytest.mark.parametrize(
    "kind", [tuple, list, lambda batch: Pair(*batch), lambda batch: {"x": batch[0], "labels": batch[1]}]
)
def test_the_new_batches_are_of_the_same_kind(kind: Any) -> None:
    data = [kind((X[part], Y[part])) for part in cut([9, 9, 5])]
    first = next(HeldOut(data).reordered(range(N)).batches())
    assert type(first) is type(data[0])


@pytest.mark.parametrize("memory", [None, 0])
def test_batches_of_a_tokenizer_are_reordered_and_scored(memory: int | None) -> None:
    encoding = pytest.importorskip("transformers").BatchEncoding
    ids, model = torch.randint(0, 11, (N, 5)), HuggingFaceStyle()
    rows = {"input_ids": ids, "attention_mask": torch.ones(N, 5).long()}
    labels = model(**rows).logits.argmax(1)
    labels[::3] = (labels[::3] + 1) % 7
    whole = {**rows, "labels": labels}
    held = HeldOut([encoding({name: v[part] for name, v in whole.items()}) for part in cut([9, 9, 5])], memory=memory)
    other = held.reordered(torch.randperm(N), 4)
    assert all(type(batch) is encoding for batch in other.batches())
    assert evaluate(model, other) == evaluate(model, held) == pytest.approx(1 - 8 / N)
    assert held.fingerprint == HeldOut([{n: v[part] for n, v in whole.items()} for part in cut([9, 9, 5])]).fingerprint


def test_values_that_are_the_same_in_every_batch_are_carried_along() -> None:
    nan = torch.tensor(float("nan"))
    data = [
        {"x": X[part], "scale": nan.clone(), "flag": True, "sizes": [224, 224], "labels": Y[part]}
        for part in cut([9, 9, 5])
    ]
    for batch in HeldOut(data).reordered(range(N), 2).batches():
        assert batch["scale"].isnan()
        assert batch["flag"] is True
        assert batch["sizes"] == [224, 224]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ([(X[:9], Y[:9]), (X[9:, :2], Y[9:])], r"\[0\] of batch 1 is torch.float32 \['N', 2, 2\] on cpu, of batch 0"),
        ([(X[:9], Y[:9]), (X[9:].double(), Y[9:])], r"\[0\] of batch 1 is torch.float64"),
        ([(X, torch.ones(5), Y)], r"\[1\] of batch 0 has a first dimension of 5 for 23 samples"),
        ([(X[:9], 1, Y[:9]), (X[9:], 2, Y[9:])], r"\[1\] of batch 1 is the value 2, of batch 0 the value 1"),
        ([(X[:9], torch.tensor(1), Y[:9]), (X[9:], torch.tensor(2), Y[9:])], r"\[1\] of batch 1 is the value 2"),
        ([(X[:9], True, Y[:9]), (X[9:], 1, Y[9:])], r"\[1\] of batch 1 is the value 1, of batch 0 the value True"),
        ([(X[:9], Y[:9]), {"x": X[9:], "labels": Y[9:]}], "batch 1 holds other things than batch 0"),
        ([(X[:9], Y[:9]), (X[9:], X[9:], Y[9:])], "batch 1 holds other things than batch 0"),
        ([(X[:2], ["a", "b"], Y[:2])], r"\[1\] may be a list with one entry a sample"),
        ([(list(torch.ones(2, 3, 3, 4)[i]), Y[:3]) for i in (0, 1)], r"\[0\] may be a list with one entry a sample"),
        ([{"x": X[:3], "meta": {"name": ("a", "b", "c")}, "labels": Y[:3]}], r"\['meta'\]\['name'\] may be a list"),
        ([(X, np.zeros(N), Y)], r"\[1\] of batch 0 is a ndarray, not a plain tensor"),
        ([(X.view(N, 6).to_sparse(), Y)], r"\[0\] of batch 0 is a Tensor, not a plain tensor"),
        ([(pack_sequence([X[0], X[1]]), Y[:2])], r"\[0\] of batch 0 is a PackedSequence, not a plain tensor"),
    ],
)
def test_what_cannot_be_put_into_new_batches_is_refused_by_name(data: Any, reason: str) -> None:
    held = HeldOut(data)
    assert not held.rebatchable
    message = f"held-out samples cannot be put into new batches: {reason}.*with_batches reorders whole ones"
    with pytest.raises(SoupError, match=message):
        held.reordered(range(sum(held.samples)))
    assert len(held.with_batches(range(len(data)))) == len(data)


def test_samples_are_counted_by_the_label_or_by_what_all_tensors_share() -> None:
    assert HeldOut((X, Y), batch_size=9).samples == [9, 9, 5]
    assert HeldOut([(torch.ones(4, 7), Y[:2])]).samples == [2]  # two labels; the inputs may be anything
    assert HeldOut([{"image": X, "target": Y}, {"image": X[:2], "target": Y[:2]}]).samples == [23, 2]
    assert HeldOut([(X, Y), (X[:0], Y[:0])]).samples == [23, 0]
    for unknown in (None, {"a": X, "b": X[:2]}, "text", ()):
        held = HeldOut([(X, Y), unknown])
        assert not held.rebatchable
        with pytest.raises(SoupError, match="how many samples are in held-out batch 1"):
            _ = held.samples
        assert [type(batch) for batch in held.with_batches([1, 0]).batches()] == [type(unknown), tuple]


def test_samples_are_counted_without_reading_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from pysoup.evaluate import batch_file

    held = HeldOut([(X, Y), (X, Y)], memory=0)
    assert held.place == "file"
    monkeypatch.setattr(Tensor, "item", lambda self: pytest.fail("data was looked at"))
    monkeypatch.setattr(Tensor, "tolist", lambda self: pytest.fail("data was looked at"))
    assert held.samples == [N, N]
    assert held.rebatchable
    assert batch_file.Slot(0, torch.int64, Y.shape).nbytes == Y.nbytes


@given(regroupings())
def test_gathered_batches_are_those_of_the_reordered_set(case: tuple[list[int], list[int], int | None]) -> None:
    sizes, order, batch_size = case
    held = HeldOut([(X[part], Y[part]) for part in cut(sizes)])
    expected = list(held.reordered(order, batch_size))
    found = list(held.gathered(order, batch_size))
    assert [len(y) for _, y in found] == [len(y) for _, y in expected]
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
