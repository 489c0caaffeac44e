"""The paper's held-out split: a few training samples of each class, put aside once and for all."""

from __future__ import annotations

import json
import operator
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from ..checkpoint import output_error
from ..checkpoint.output.publish import publish_file, remove, remove_stale, temporary_path
from ..errors import SoupError
from ..fingerprint import fingerprint_data
from .batches import whole_columns

_FORMAT = "pysoup held-out split 1"


@dataclass(frozen=True)
class Split:
    """Indices into a data set, ascending: ``train, heldout = split``.

    ``size`` is the number of samples of the data set, ``labels`` the fingerprint of their labels.
    """

    train: list[int]
    heldout: list[int]
    size: int
    per_class: int
    seed: int
    labels: str

    def __iter__(self) -> Iterator[list[int]]:
        return iter((self.train, self.heldout))


def heldout_split(data: Any, per_class: int = 26, seed: int = 0) -> Split:
    """Put ``per_class`` samples of each class aside (paper, section 3.1: 26 of each of ImageNet's classes, 2%).

    ``data`` is labels (a list, array or 1-D tensor of class numbers or names), whole tensors as :class:`HeldOut` takes
    them, or a data set. The labels of a data set are its ``targets`` if it has such, of a ``Subset`` those of the data
    set that it is of; else every sample is read, and its label is the last element of a tuple or the entry ``"labels"``
    or ``"label"`` of a dictionary.

    The same labels and seed give the same split on every machine and with every version of Python. Raises
    :class:`SoupError` where a class has no more than ``per_class`` samples: none would be left to train on.
    """
    if per_class < 1:
        raise SoupError("per_class must be positive", found=per_class)
    per_class, seed = (
        operator.index(per_class),
        operator.index(seed),
    )  # plain ones of numpy's, for the generator and JSON
    labels = _labels(data)
    draws = random.Random(seed)
    members: dict[Any, list[tuple[float, int]]] = {}
    for index, label in enumerate(labels):
        # random() is the part of the generator that Python promises to keep.
        members.setdefault(label, []).append((draws.random(), index))
    for label, drawn in members.items():
        if len(drawn) <= per_class:
            expected = f"at least {per_class + 1}, {per_class} to put aside and one to train on"
            raise SoupError(f"class {label!r} has too few samples", found=len(drawn), expected=expected)
    heldout = sorted(index for drawn in members.values() for _, index in sorted(drawn)[:per_class])
    return _split(heldout, len(labels), per_class, seed, _labels_fingerprint(labels))


def save_split(split: Split, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write ``split`` as JSON. Raises :class:`OutputError`, also if the file exists and ``overwrite`` is not set."""
    target = Path(path)
    content = {"format": _FORMAT, "size": split.size, "per_class": split.per_class, "seed": split.seed}
    temporary = temporary_path(target)
    try:
        remove_stale(target)
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({**content, "labels": split.labels, "heldout": split.heldout}, file)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        publish_file(temporary, target, overwrite)
    except (OSError, ValueError) as error:
        raise output_error(error, target) from None
    finally:
        remove(temporary)


def load_split(
    path: str | os.PathLike[str], data: Any, *, per_class: int | None = None, seed: int | None = None
) -> Split:
    """The split in ``path``, for the same ``data`` that :func:`heldout_split` was given.

    Raises :class:`SoupError` if the file is none, or was made for another number of samples, other labels, or another
    ``per_class`` or ``seed`` than those given here.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        split = _parsed(content)
    except (OSError, UnicodeDecodeError) as error:
        raise SoupError("the split cannot be read", file=path, found=getattr(error, "strerror", None)) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SoupError("not a held-out split", file=path, expected="a file of save_split") from None
    labels = _labels(data)
    for what, found, expected in (
        ("number of samples", split.size, len(labels)),
        ("per_class", split.per_class, per_class),
        ("seed", split.seed, seed),
    ):
        if expected is not None and found != expected:
            raise SoupError(f"the split was made with another {what}", file=path, found=found, expected=expected)
    if split.labels != _labels_fingerprint(labels):
        raise SoupError("the split was made for other labels, or for the same in another order", file=path)
    return split


def _split(heldout: list[int], size: int, per_class: int, seed: int, labels: str) -> Split:
    aside = set(heldout)
    train = [index for index in range(size) if index not in aside]
    return Split(train, heldout, size, per_class, seed, labels)


def _parsed(content: Any) -> Split:
    numbers = [content["size"], content["per_class"], content["seed"], *content["heldout"]]
    heldout = content["heldout"]
    if content["format"] != _FORMAT or not all(type(number) is int for number in numbers):
        raise ValueError
    if heldout != sorted(set(heldout)) or (heldout and not 0 <= heldout[0] <= heldout[-1] < content["size"]):
        raise ValueError
    return _split(heldout, content["size"], content["per_class"], content["seed"], str(content["labels"]))


def _labels(data: Any) -> list[Any]:
    """One hashable label for each sample."""
    found = _column(data)
    found = data if found is None else found
    if getattr(found, "ndim", 1) != 1:
        raise SoupError("labels must have one dimension", found=f"{found.ndim} dimensions")
    if hasattr(found, "tolist"):
        found = found.tolist()
    is_sequence = hasattr(found, "__len__") and hasattr(found, "__getitem__")
    if not is_sequence or isinstance(found, (str, bytes, Mapping)):
        expected = "labels or a data set"
        raise SoupError("it cannot be read sample by sample", found=type(data).__name__, expected=expected)
    labels = [_label(found[index]) for index in range(len(found))]
    if not labels:
        raise SoupError("there are no samples to split")
    return labels


def _column(data: Any) -> Any:
    """All labels of ``data`` at once, so that no sample need be read; ``None`` where only its samples have them."""
    if whole_columns(data):
        return _label_of(data)
    if isinstance(data, Subset) and type(data).__getitem__ is Subset.__getitem__:
        base = _column(data.dataset)
        base = base.tolist() if hasattr(base, "tolist") else base
        return None if base is None else [base[index] for index in data.indices]
    return getattr(data, "targets", None)


def _label(sample: Any) -> Any:
    """The label in a sample, or the label that it is."""
    label = _label_of(sample) if isinstance(sample, (Mapping, tuple, list)) and len(sample) else sample
    label = label.item() if hasattr(label, "item") else label
    if not isinstance(label, (int, str)):
        raise SoupError("a label must be a class number or name", found=type(label).__name__)
    return label


def _label_of(sample: Any) -> Any:
    if not isinstance(sample, Mapping):
        return sample[-1]
    for key in ("labels", "label"):
        if key in sample:
            return sample[key]
    raise SoupError("a sample has no label", found=f"keys {sorted(sample, key=str)}", expected="'labels' or 'label'")


def _labels_fingerprint(labels: list[Any]) -> str:
    digest = fingerprint_data(labels)
    assert digest is not None  # numbers and text have one
    return digest
