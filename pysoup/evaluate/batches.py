"""Batches of any kind: cut from data, looked into, moved to a device."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..arrays import from_array
from ..errors import SoupError

Path = tuple[Any, ...]
"""Where something is in a batch: keys and positions from the outside in."""


class Columns:
    """A whole data set in memory: tensors with the same first dimension, cut into batches without a copy."""

    def __init__(self, data: tuple[Tensor, ...] | Mapping[Any, Tensor], tensors: list[Tensor], batch_size: int) -> None:
        self.tensors = tensors
        self._data = data
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self.tensors[0]), self._batch_size):
            rows = [tensor[start : start + self._batch_size] for tensor in self.tensors]
            yield dict(zip(self._data, rows, strict=True)) if isinstance(self._data, Mapping) else tuple(rows)


def iterate(data: Any, batch_size: int, *, samples: bool = False) -> Iterable[Any]:
    """The batches of a ``DataLoader``, a ``Dataset``, :class:`Columns` or an iterable of batches; nothing is read.

    With ``samples`` a list of single samples is cut into batches like a ``Dataset``.
    """
    if isinstance(data, Dataset) and not isinstance(data, DataLoader):
        return DataLoader(data, batch_size=batch_size)
    columns = whole_columns(data)
    if columns:
        names = data if isinstance(data, Mapping) else range(len(columns))
        tensors = as_tensors(columns, names, "the held-out data")
        return Columns(data, tensors, batch_size)
    if hasattr(data, "with_format") and hasattr(data, "column_names"):
        return _of_hugging_face(data, batch_size)
    if samples and isinstance(data, (list, tuple)) and data and _is_sample(data[0]):
        _check_sample(data[0])
        return DataLoader(cast("Dataset[Any]", data), batch_size=batch_size)
    if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, Iterable):
        raise SoupError(
            "not held-out data",
            found=type(data).__name__,
            expected="a DataLoader, a Dataset, a tuple or dictionary of tensors or arrays, or an iterable of batches",
        )
    return data


def whole_columns(data: Any) -> list[Any]:
    """The tensors and arrays of a tuple or dictionary that holds nothing else: a whole data set, not a batch of a
    sequence."""
    values = list(data.values()) if isinstance(data, Mapping) else data if type(data) is tuple else []
    if not values or not all(isinstance(value, Tensor) or is_array(value) for value in values):
        return []
    if any(value.ndim == 0 for value in values) or len({len(value) for value in values}) > 1:
        shapes = ", ".join(str(list(value.shape)) for value in values)
        raise SoupError("held-out tensors need the same first dimension", found=shapes)
    return list(values)


def is_array(value: object) -> bool:
    """Whether it is a numpy array: numpy, where it is not loaded, has made none."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def as_tensors(columns: Iterable[Any], names: Iterable[Any], where: str) -> list[Tensor]:
    """Columns of whole data as tensors, over the memory of arrays; ``where`` is what errors call the data."""
    pairs = zip(columns, names, strict=True)
    return [column if isinstance(column, Tensor) else from_array(column, str(name), where) for column, name in pairs]


def _of_hugging_face(data: Any, batch_size: int) -> Iterable[Any]:
    """A ``datasets.Dataset``: its samples, once they are tensors."""
    form = getattr(data, "format", None)
    if isinstance(form, Mapping) and form.get("type") == "torch" and hasattr(data, "__getitem__"):
        return DataLoader(data, batch_size=batch_size)
    raise SoupError(
        "a Hugging Face data set gives lists, not tensors",
        found=type(data).__name__,
        expected="data.with_format('torch'), its columns named as the model's arguments and 'labels'; or a DataLoader",
    )


def _is_sample(item: Any) -> bool:
    """Whether it has one label, as no batch has."""
    if isinstance(item, Mapping):
        label = item.get("labels")
    else:
        label = item[-1] if isinstance(item, (tuple, list)) and len(item) >= 2 else None
    return isinstance(label, int) or getattr(label, "ndim", None) == 0


def _check_sample(sample: Any) -> None:
    """Lists in samples are for the user to put together: the default takes them for several inputs."""
    parts = sample.items() if isinstance(sample, Mapping) else enumerate(sample)
    for name, part in parts:
        if isinstance(part, (list, tuple, Mapping)):
            raise SoupError(
                "samples cannot be put into batches",
                found=f"a {type(part).__name__} as part {name!r} of a sample",
                expected="tensors, arrays and numbers; or a DataLoader with a collate_fn",
            )


def rebuilt(batch: Any, change: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """``batch`` with ``change(path, leaf)`` for each leaf, in new containers of the same kind.

    Leaves are tensors and whatever is not a mapping, tuple or list; a custom batch with a method ``to`` is one, too.
    """
    if isinstance(batch, MutableMapping):
        fresh = copy.copy(batch)
        for name, value in batch.items():
            fresh[name] = rebuilt(value, change, (*path, name))
        return fresh
    if isinstance(batch, Mapping):
        return {name: rebuilt(value, change, (*path, name)) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)) and not callable(getattr(batch, "to", None)):
        items = [rebuilt(item, change, (*path, place)) for place, item in enumerate(batch)]
        if isinstance(batch, list):
            return items
        return type(batch)(*items) if hasattr(batch, "_fields") else tuple(items)
    return change(path, batch)


def leaves(batch: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The leaves of ``batch`` as :func:`rebuilt` meets them, with their paths; no container is copied."""
    if isinstance(batch, Mapping):
        for name, value in batch.items():
            yield from leaves(value, (*path, name))
    elif isinstance(batch, (tuple, list)) and not callable(getattr(batch, "to", None)):
        for place, item in enumerate(batch):
            yield from leaves(item, (*path, place))
    else:
        yield path, batch


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """The tensors in the containers of a batch; not those inside of a custom batch."""
    return (leaf for _, leaf in leaves(batch) if isinstance(leaf, Tensor))


def moved(batch: Any, device: torch.device | None) -> Any:
    """``batch`` with its tensors on ``device`` (``None``: where they are), in new containers of the same kind.

    The host waits for no copy to a device: what is not in pinned memory goes through it.
    """

    def move(_: Path, leaf: Any) -> Any:
        if device is None:
            return leaf
        if isinstance(leaf, Tensor):
            return _moved(leaf, device)
        return leaf.to(device) if callable(getattr(leaf, "to", None)) else leaf

    return rebuilt(batch, move)


def pinned(batch: Any) -> Any:
    """``batch`` with its tensors in page-locked host memory, from where copies to a CUDA device need no waiting."""

    def pin(_: Path, leaf: Any) -> Any:
        return leaf.to("cpu").pin_memory() if isinstance(leaf, Tensor) else leaf

    return rebuilt(batch, pin)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return tensor.to(device)  # must be there when the next line reads it
    if device.type == "cuda" and tensor.device.type == "cpu" and tensor.layout == torch.strided:
        # torch keeps the pinned memory until the copy from it is done.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
