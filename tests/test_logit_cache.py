"""The cache of logits: what goes in comes out, in memory or in a file, and only what can be averaged goes in."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pysoup import IncompatibleError, SoupError
from pysoup.soups import LogitCache
from pysoup.soups.journal import Journal

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
PLACES = [(None, "memory"), ("1GiB", "memory"), (5 * 7 * 3 * 4 * 8, "memory"), (100, "file"), (0, "file")]


def drawn(seed: int, dtype: torch.dtype = torch.float32, samples: int = 7, classes: int = 3) -> Tensor:
    return torch.randn(samples, classes, generator=torch.Generator().manual_seed(seed)).to(dtype)


LABELS = torch.tensor([0, 2, 1, 1, 0, 2, 2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("memory", "place"), PLACES)
def test_logits_come_out_as_they_went_in(dtype: torch.dtype, memory: object, place: str) -> None:
    cache = LogitCache(5, memory)
    assert cache.place == ""
    for index in (3, 0, 4, 1):
        cache.put(index, drawn(index, dtype), LABELS)
    assert cache.place == place
    assert [index for index in range(5) if index in cache] == [0, 1, 3, 4]
    for index in (0, 1, 3, 4):
        assert cache.logits(index).dtype == dtype
        assert torch.equal(cache.logits(index), drawn(index, dtype))
    assert torch.equal(cache.labels, LABELS)
    with pytest.raises(KeyError):
        cache.logits(2)


@pytest.mark.parametrize("memory", [None, 0])
def test_batches_of_a_pass_are_put_together(memory: object) -> None:
    cache = LogitCache(2, memory)
    seen: list[tuple[Tensor, Tensor]] = []
    take = cache.watch(1, beside=lambda logits, labels: seen.append((logits.clone(), labels)))
    buffer = torch.empty(4, 3)  # a forward may give every batch in one buffer
    for start in (0, 4):
        rows = drawn(9)[start : start + 4]
        buffer[: len(rows)] = rows
        take(buffer[: len(rows)], LABELS[start : start + 4])
        assert 1 not in cache
    cache.keep(1)
    assert torch.equal(cache.logits(1), drawn(9))
    assert torch.equal(cache.labels, LABELS)
    assert torch.equal(torch.cat([logits for logits, _ in seen]), drawn(9))


def test_a_pass_that_was_broken_off_leaves_nothing() -> None:
    cache = LogitCache(1)
    cache.watch(0)(drawn(1), LABELS)
    cache.watch(0)(drawn(2), LABELS)
    cache.keep(0)
    assert torch.equal(cache.logits(0), drawn(2))


@pytest.mark.parametrize(("memory", "runs"), [(None, [[0, 1], [3, 4, 5]]), (0, [[0], [1], [3], [4], [5]])])
def test_neighbours_are_given_together_without_a_copy(memory: object, runs: list[list[int]]) -> None:
    cache = LogitCache(6, memory)
    for index in range(6):
        cache.put(index, drawn(index), LABELS)
    found = list(cache.stacks([0, 1, 3, 4, 5]))
    assert [indices for indices, _ in found] == runs
    for indices, stack in found:
        assert torch.equal(stack, torch.stack([drawn(index) for index in indices]))
        if memory is None:
            assert stack.data_ptr() == cache.logits(indices[0]).data_ptr()
    assert next(cache.stacks([4, 2, 3]))[0] == [4]
    assert list(cache.stacks([])) == []


@pytest.mark.parametrize(
    ("logits", "labels", "error", "word"),
    [
        (drawn(1, classes=4), LABELS, IncompatibleError, "[7, 4]"),
        (drawn(1, samples=6), LABELS[:6], IncompatibleError, "[6, 3]"),
        (drawn(1, torch.bfloat16), LABELS, IncompatibleError, "bfloat16"),
        (drawn(1), LABELS.flip(0), SoupError, "labels are the same for every model"),
    ],
)
def test_what_cannot_be_averaged_is_refused(logits: Tensor, labels: Tensor, error: type[SoupError], word: str) -> None:
    cache = LogitCache(2)
    cache.put(0, drawn(0), LABELS)
    with pytest.raises(error) as caught:
        cache.put(1, logits, labels)
    assert word in str(caught.value)
    assert 1 not in cache


def test_the_file_has_no_name_and_goes_with_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    descriptors = len(os.listdir("/proc/self/fd"))
    cache = LogitCache(2, 0)
    cache.put(0, drawn(0), LABELS)
    kept = cache.logits(0)
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) > descriptors
    del cache
    gc.collect()
    assert torch.equal(kept, drawn(0))
    del kept
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("memory", [None, 0])
def test_a_run_directory_gives_them_back(tmp_path: Path, memory: object) -> None:
    with Journal.open(tmp_path / "run", {"kind": "test"}) as journal:
        cache = LogitCache(3, memory)
        for index in (2, 0):
            cache.put(index, drawn(index, torch.bfloat16), LABELS)
            cache.save(journal, index)
    with Journal.open(tmp_path / "run", {"kind": "test"}) as journal:
        again = LogitCache(3, memory)
        assert [again.load(journal, index) for index in range(3)] == [True, False, True]
        assert torch.equal(again.logits(2), drawn(2, torch.bfloat16))
        assert torch.equal(again.labels, LABELS)
