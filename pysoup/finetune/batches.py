"""Training data of every kind that :class:`pysoup.HeldOut` takes, as shuffled batches, and what is in a batch.

A batch is a tuple (the last element is the label, the others are inputs), a dictionary (``"labels"`` is the label, the
others are inputs) or, with a ``forward`` of one's own, anything.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import SoupError
from ..evaluate.batches import as_tensors, is_array

_LABELS = "labels"


def steps_per_epoch(data: Any, batch_size: int) -> int:
    """How many batches :func:`training_batches` makes of ``data``. Raises :class:`SoupError` for no training data."""
    columns = _columns(data)
    if columns:
        return max(1, len(columns[0]) // batch_size)
    if _is_map_style(data):
        return max(1, len(data) // batch_size)
    if not isinstance(data, Iterable) or isinstance(data, (str, bytes, Mapping)) or _length(data) == 0:
        expected = "a tuple or dictionary of tensors with labels, a Dataset, or a loader of batches that has a length"
        raise SoupError("not training data", found=type(data).__name__, expected=expected)
    return _length(data)


def training_batches(data: Any, batch_size: int, generator: torch.Generator | None) -> Iterator[Any]:
    """The batches of one epoch.

    Tensors and data sets are shuffled by ``generator`` and lose the incomplete last batch, as batch statistics of a few
    samples are noise; with None they come whole and in the given order. Loaders decide both by themselves.
    """
    columns = _columns(data)
    if columns:
        yield from _cut(data, columns, batch_size, generator)
    elif _is_map_style(data):
        shuffle = generator is not None
        yield from DataLoader(
            data, batch_size, shuffle=shuffle, drop_last=shuffle and len(data) > batch_size, generator=generator
        )
    else:
        yield from data


def inputs_of(batch: Any) -> Any:
    """What stands before the label: one tensor, a tuple of several, or a dictionary."""
    if isinstance(batch, Mapping) and _LABELS in batch:
        return {name: value for name, value in batch.items() if name != _LABELS}
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return batch[0] if len(batch) == 2 else tuple(batch[:-1])
    raise SoupError(
        "cannot tell inputs from labels in a training batch, as augmentation and mixup must",
        found=type(batch).__name__,
        expected="a tuple (inputs, labels) or a dictionary with 'labels'",
    )


def with_inputs(batch: Any, inputs: Any) -> Any:
    """``batch`` with other inputs, as :func:`inputs_of` gives them."""
    if isinstance(batch, Mapping):
        fresh: Any = copy.copy(batch) if isinstance(batch, MutableMapping) else dict(batch)
        for name in inputs:
            fresh[name] = inputs[name]
        return fresh
    return (inputs, batch[-1]) if len(batch) == 2 else (*inputs, batch[-1])


def mix(inputs: Any, partner: Tensor, share: float) -> Any:
    """``share * inputs + (1 - share) * inputs[partner]`` of every tensor in ``inputs``.

    Raises :class:`SoupError` for what is not floating point: there is nothing between two token ids.
    """
    if isinstance(inputs, Mapping):
        return {name: _mixed(name, value, partner, share) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(_mixed(f"input {number}", value, partner, share) for number, value in enumerate(inputs))
    return _mixed("the input", inputs, partner, share)


def samples_in(batch: Any) -> int:
    """How many samples a batch has, by its label."""
    labels = batch[_LABELS] if isinstance(batch, Mapping) else batch[-1]
    if not isinstance(labels, Tensor) or labels.dim() == 0:
        raise SoupError(
            "a training batch needs a label for each of its samples",
            found="one label" if isinstance(labels, Tensor) else type(labels).__name__,
            expected="a tensor [N]; put a DataLoader around single samples",
        )
    return len(labels)


def _mixed(name: str, value: Any, partner: Tensor, share: float) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise SoupError("mixup needs floating-point inputs; mixup = 0 turns it off", found=f"{name}: {found}")
    return torch.lerp(value[partner.to(value.device)], value, share)


def _columns(data: Any) -> list[Tensor]:
    """The tensors of a tuple or dictionary that holds nothing else: a whole data set, not a batch of a sequence.
    Arrays count as tensors."""
    values: Sequence[Any] = list(data.values()) if isinstance(data, Mapping) else data if type(data) is tuple else []
    if not values or not all(isinstance(value, Tensor) or is_array(value) for value in values):
        return []
    names = data if isinstance(data, Mapping) else range(len(values))
    values = as_tensors(values, names, "the training data")
    if isinstance(data, Mapping) and _LABELS not in data:
        raise SoupError("training tensors need their labels", found=f"keys {sorted(data)}", expected="'labels'")
    if any(value.dim() == 0 for value in values) or len({len(value) for value in values}) > 1 or not len(values[0]):
        shapes = ", ".join(str(list(value.shape)) for value in values)
        raise SoupError("one label per input: training tensors have the same, positive first dimension", found=shapes)
    return list(values)


def _cut(data: Any, columns: list[Tensor], batch_size: int, generator: torch.Generator | None) -> Iterator[Any]:
    def rows(index: Any) -> Any:
        cut = [column[index.to(column.device) if isinstance(index, Tensor) else index] for column in columns]
        return dict(zip(data, cut, strict=True)) if isinstance(data, Mapping) else tuple(cut)

    samples = len(columns[0])
    if generator is None:
        for first in range(0, samples, batch_size):
            yield rows(slice(first, first + batch_size))
        return
    order = torch.randperm(samples, generator=generator).to(columns[-1].device)
    for step in range(max(1, samples // batch_size)):
        yield rows(order[step * batch_size : (step + 1) * batch_size])


def _is_map_style(data: Any) -> bool:
    if not isinstance(data, Dataset) or isinstance(data, DataLoader):
        return False
    if not isinstance(data, Sized) or len(data) == 0:
        expected = "one with a length, or a loader of batches that has one"
        raise SoupError("not training data", found=type(data).__name__, expected=expected)
    return True


def _length(data: Any) -> int:
    try:
        return len(data)
    except TypeError:
        return 0
