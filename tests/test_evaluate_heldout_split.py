"""The paper's split: so many of each class, the same ones every time, and never taken for the split of other data."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

import pysoup
from pysoup.errors import OutputError, SoupError
from pysoup.evaluate import Split, heldout_split, load_split, save_split

LABELS = [0] * 40 + [1] * 30 + [2] * 27
X = torch.randn(97, 2)
Y = torch.tensor(LABELS)


class Pictures(Dataset[Any]):
    """As torchvision has them: the labels apart, and samples that are expensive to read."""

    targets = LABELS

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("was read")

    def __len__(self) -> int:
        return len(LABELS)


class Mapped(Subset[Any]):
    """Its samples are not those of what it is a subset of."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index)[0], 1 - super().__getitem__(index)[1]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([])


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.integers(1, 3),
    st.integers(-(2**40), 2**40),
)
def test_every_class_gives_as_many_and_nothing_is_lost(labels: list[int], per_class: int, seed: int) -> None:
    labels = [label for label in labels if labels.count(label) > per_class] or [0] * (per_class + 1)
    train, heldout = heldout_split(labels, per_class, seed)
    assert train == sorted(train)
    assert heldout == sorted(heldout)
    assert sorted(train + heldout) == list(range(len(labels)))
    assert Counter(labels[index] for index in heldout) == dict.fromkeys(labels, per_class)
    assert heldout_split(labels, per_class, seed).heldout == heldout


def test_the_default_is_the_26_a_class_of_the_paper() -> None:
    split = pysoup.heldout_split(LABELS)
    assert Counter(LABELS[index] for index in split.heldout) == {0: 26, 1: 26, 2: 26}
    assert (split.size, split.per_class, split.seed) == (97, 26, 0)


def test_the_split_is_the_same_on_every_machine() -> None:
    """Pinned: a run that is repeated elsewhere must hold out the same samples."""
    generator = random.Random(3)
    draws = [(generator.random(), index) for index in range(20)]
    assert sorted(index for parity in (0, 1) for _, index in sorted(draws[parity::2])[:2]) == PINNED
    assert heldout_split([0, 1] * 10, 2, seed=3).heldout == PINNED
    code = "from pysoup.evaluate import heldout_split; print(heldout_split([0, 1] * 10, 2, seed=3).heldout)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == PINNED


PINNED = [0, 5, 6, 15]


def test_seeds_give_different_splits_and_all_samples_are_drawn() -> None:
    drawn = Counter(index for seed in range(200) for index in heldout_split([0] * 10, 3, seed).heldout)
    assert sum(drawn.values()) == 600
    # 60 times each; the standard deviation is 6.5.
    assert all(30 <= drawn[index] <= 90 for index in range(10))


@pytest.mark.parametrize(
    "data",
    [
        LABELS,
        tuple(LABELS),
        np.array(LABELS),
        np.array(LABELS, dtype=np.uint8),
        Y,
        Y.int(),
        list(Y),
        (X, Y),
        {"x": X, "labels": Y},
        TensorDataset(X, Y),
        Pictures(),
        Subset(TensorDataset(X, Y), range(97)),
        [{"x": x, "label": int(y)} for x, y in zip(X, Y, strict=True)],
        [(x, int(y)) for x, y in zip(X, Y, strict=True)],
    ],
    ids=lambda data: type(data).__name__,
)
def test_every_kind_of_data_gives_the_split_of_its_labels(data: Any, tmp_path: Path) -> None:
    split = heldout_split(data, seed=5)
    assert split == heldout_split(LABELS, seed=5)
    save_split(split, tmp_path / "split.json")
    assert load_split(tmp_path / "split.json", data) == split


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    split = heldout_split(LABELS, np.int64(5), np.int64(3))
    assert split == heldout_split(LABELS, 5, 3)
    save_split(split, tmp_path / "split.json")
    assert load_split(tmp_path / "split.json", LABELS) == split


def test_classes_may_have_names() -> None:
    names = ["cat"] * 5 + ["dog"] * 5
    assert Counter(names[index] for index in heldout_split(names, 2).heldout) == {"cat": 2, "dog": 2}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([7] * 26, "class 7 has too few samples: found 26, expected at least 27"),
        ([0] * 30 + ["few"] * 3, "class 'few' has too few samples: found 3"),
        ([], "there are no samples"),
        ([0.5] * 30, "a label must be a class number or name: found float"),
        (torch.rand(30), "a label must be a class number or name: found float"),
        (torch.zeros(30, 2).long(), "labels must have one dimension: found 2"),
        ([{"x": 1}] * 30, r"a sample has no label: found keys \['x'\], expected 'labels' or 'label'"),
        ({"x": X, "y": Y}, r"a sample has no label: found keys \['x', 'y'\]"),
        ([{"x": 1, 2: 3}] * 30, r"a sample has no label: found keys \[2, 'x'\]"),
        (Endless(), "cannot be read sample by sample: found Endless"),
        ("labels.txt", "cannot be read sample by sample: found str"),
        (iter(LABELS), "cannot be read sample by sample: found list_iterator"),
    ],
)
def test_data_that_cannot_be_split_is_refused_by_name(data: Any, message: str) -> None:
    with pytest.raises(SoupError, match=message):
        heldout_split(data)


def test_at_least_one_of_each_class_is_put_aside() -> None:
    with pytest.raises(SoupError, match="per_class must be positive"):
        heldout_split(LABELS, 0)


def saved(path: Path, **changes: Any) -> Path:
    save_split(heldout_split(LABELS, 5, seed=2), path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))
    return path


def test_a_split_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    split = heldout_split(LABELS, 5, seed=2)
    save_split(split, tmp_path / "split.json")
    found = load_split(tmp_path / "split.json", LABELS, per_class=5, seed=2)
    assert isinstance(found, Split)
    assert found == split
    assert not list(tmp_path.glob(".*"))


def test_an_existing_file_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    path = saved(tmp_path / "split.json")
    other = heldout_split(LABELS, 6)
    with pytest.raises(OutputError, match="already exists"):
        save_split(other, path)
    assert load_split(path, LABELS).per_class == 5
    save_split(other, path, overwrite=True)
    assert load_split(path, LABELS) == other
    with pytest.raises(OutputError):
        save_split(other, tmp_path / "missing" / "split.json")


def test_a_split_of_other_data_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "split.json")
    with pytest.raises(SoupError, match=r"split\.json: .* another number of samples: found 97, expected 98"):
        load_split(path, [*LABELS, 0])
    with pytest.raises(SoupError, match="another seed: found 2, expected 3"):
        load_split(path, LABELS, seed=3)
    with pytest.raises(SoupError, match="another per_class: found 5, expected 26"):
        load_split(path, LABELS, per_class=26)
    with pytest.raises(SoupError, match="made for other labels, or for the same in another order"):
        load_split(path, LABELS[::-1])


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "other"},
        {"size": None},
        {"size": 10},
        {"seed": 1.5},
        {"heldout": [3, 2]},
        {"heldout": [2, 2]},
        {"heldout": [-1]},
        {"heldout": [97]},
        {"heldout": [True]},
        {"heldout": 3},
        {"heldout": ["1"]},
    ],
    ids=str,
)
def test_a_damaged_split_is_refused(changes: Any, tmp_path: Path) -> None:
    with pytest.raises(SoupError, match=r"split\.json: not a held-out split"):
        load_split(saved(tmp_path / "split.json", **changes), LABELS)


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"size": 3', "[" * 100_000], ids=repr)
def test_what_is_no_split_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    with pytest.raises(SoupError, match="cannot be read: found No such file"):
        load_split(path, LABELS)
    path.write_text(text)
    with pytest.raises(SoupError, match="not a held-out split"):
        load_split(path, LABELS)


@pytest.mark.parametrize("targets", [LABELS, Y, np.array(LABELS)])
def test_the_labels_of_a_subset_are_taken_where_they_are_known(targets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures cannot be read; the split is that of the same labels by themselves."""
    monkeypatch.setattr(Pictures, "targets", targets)
    chosen = [*range(90, -1, -3), 96, 95]
    part = Subset(Pictures(), chosen)
    expected = heldout_split([LABELS[index] for index in chosen], 3)
    assert heldout_split(part, 3) == expected
    inner = Subset(part, list(range(len(chosen) - 1, -1, -1)))
    assert heldout_split(inner, 3) == heldout_split([LABELS[index] for index in chosen[::-1]], 3)


def test_a_subset_that_has_no_known_labels_is_read() -> None:
    data = TensorDataset(X[:80], Y[:80] % 2)
    part, other = Subset(data, range(0, 80, 2)), Mapped(data, range(0, 80, 2))
    assert heldout_split(part, 3) == heldout_split((Y[:80:2] % 2).tolist(), 3)
    assert heldout_split(other, 3) == heldout_split((1 - Y[:80:2] % 2).tolist(), 3)


def test_labels_of_arrays_may_be_names() -> None:
    names = np.array(["cat", "dog", "bird"])[np.array(LABELS)]
    assert heldout_split((X.numpy(), names), 3) == heldout_split(names.tolist(), 3)
