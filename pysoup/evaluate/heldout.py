"""The held-out set: batches decoded once, seen by every candidate in the same order."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..errors import SoupError

Forward = Callable[[nn.Module, Any], tuple[Tensor, Tensor]]
"""``forward(model, batch) -> (logits, labels)``: how a model is applied to one batch."""


class HeldOut:
    """Labelled data that models are scored on, in one fixed order.

    ``data`` is a ``DataLoader``; a ``Dataset`` (read in batches of ``batch_size`` with the default collation); a tuple
    or a dictionary of tensors with the same first dimension (cut in batches of ``batch_size``, no copy); or any
    iterable of batches. A batch is a tuple (the last element is the label, the others are the model's arguments) or a
    dictionary (``"labels"`` is the label, the others are keyword arguments); any other kind needs ``forward``.

    The data is read once, at first use, and kept in memory, so a shuffling loader and a generator show every model
    the same batches in the same order. ``device`` keeps the batches there; by default they stay where the data puts
    them, and each is moved to the model's device when it is used.
    """

    def __init__(
        self,
        data: Any,
        forward: Forward | None = None,
        *,
        device: torch.device | str | None = None,
        batch_size: int = 256,
    ) -> None:
        if batch_size < 1:
            raise SoupError("batch_size must be positive", found=batch_size)
        if forward is None and isinstance(data, HeldOut):
            forward = data.forward
        self.forward: Forward = default_forward if forward is None else forward
        self._device = None if device is None else torch.device(device)
        self._data: Iterable[Any] | None = iterate(data, batch_size)
        self._batches: list[Any] | None = None

    def __len__(self) -> int:
        """The number of batches; reads the data."""
        return len(self._read())

    def batches(self, device: torch.device | None = None) -> Iterator[Any]:
        """The batches on ``device`` (default: where they are), in the fixed order.

        Containers are copied, tensors are not (unless moved): what a ``forward`` pops from a dictionary is there again
        for the next model. A tensor changed in place would not be, so that is an error.
        """
        for number, batch in enumerate(self._read()):
            before = [t._version for t in _tensors(batch)]
            yield moved(batch, device)
            if before != [t._version for t in _tensors(batch)]:
                raise SoupError(
                    f"the model or forward changed held-out batch {number} in place, so the next model would see other "
                    "data; let it work on a copy"
                )

    def _read(self) -> list[Any]:
        if self._batches is None:
            data = self._data
            if data is None:
                raise SoupError("reading the held-out data failed before and cannot start again; make a new HeldOut")
            if isinstance(data, Iterator):
                self._data = None  # if this fails, what is left of it is not the data
            self._batches = [moved(batch, self._device) for batch in data]
            self._data = None
        if not self._batches:
            raise SoupError("the held-out set is empty")
        return self._batches


def as_heldout(data: Any, forward: Forward | None = None) -> HeldOut:
    """``data`` itself if it is a :class:`HeldOut`, else a new one over it."""
    return data if isinstance(data, HeldOut) else HeldOut(data, forward)


def default_forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Apply ``model`` to a batch with its label: a tuple or list (label last) or a dictionary (key ``"labels"``).

    Returns logits and labels as the model and the batch hold them. The model may return the logits, an object with
    ``.logits``, a dictionary with ``"logits"`` or a tuple that starts with them.
    """
    if isinstance(batch, Mapping):
        if "labels" not in batch:
            raise SoupError("a dictionary batch needs its labels", found=f"keys {sorted(batch)}", expected="'labels'")
        labels = batch["labels"]
    elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
        labels = batch[-1]
    else:
        raise SoupError(
            "cannot tell inputs from labels in a batch; give forward(model, batch) -> (logits, labels)",
            found=type(batch).__name__,
            expected="a tuple (inputs, labels) or a dictionary with 'labels'",
        )
    return _logits(apply(model, batch)), labels


def apply(model: nn.Module, batch: Any) -> Any:
    """The model's output on the inputs of a batch; its label, if there is one, is left out."""
    if isinstance(batch, Mapping):
        return model(**{name: value for name, value in batch.items() if name != "labels"})
    if isinstance(batch, (tuple, list)):
        return model(*(batch[:-1] if len(batch) > 1 else batch))
    return model(batch)


def iterate(data: Any, batch_size: int) -> Iterable[Any]:
    """The batches of any kind of data :class:`HeldOut` takes; nothing is read yet."""
    if isinstance(data, HeldOut):
        return data.batches()
    if isinstance(data, Dataset) and not isinstance(data, DataLoader):
        return DataLoader(data, batch_size=batch_size)
    columns = _columns(data)
    if columns:
        return _sliced(data, columns, batch_size)
    if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, Iterable):
        raise SoupError(
            "not held-out data",
            found=type(data).__name__,
            expected="a DataLoader, a Dataset, a tuple of tensors or an iterable of batches",
        )
    return data


def moved(batch: Any, device: torch.device | None) -> Any:
    """``batch`` with its tensors on ``device`` (``None``: where they are), in new containers of the same kind."""
    if isinstance(batch, Tensor):
        return batch if device is None else batch.to(device, non_blocking=True)
    if isinstance(batch, MutableMapping):
        fresh = copy.copy(batch)
        for name, value in batch.items():
            fresh[name] = moved(value, device)
        return fresh
    if isinstance(batch, Mapping):
        return {name: moved(value, device) for name, value in batch.items()}
    if callable(getattr(batch, "to", None)):
        return batch if device is None else batch.to(device)
    if isinstance(batch, tuple):
        items = [moved(item, device) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else tuple(items)
    if isinstance(batch, list):
        return [moved(item, device) for item in batch]
    return batch


def _columns(data: Any) -> list[Tensor]:
    """The tensors of a tuple or dictionary that holds nothing else: a whole data set, not a batch of a sequence."""
    values = list(data.values()) if isinstance(data, Mapping) else data if type(data) is tuple else []
    if not values or not all(isinstance(value, Tensor) for value in values):
        return []
    if any(value.dim() == 0 for value in values) or len({len(value) for value in values}) > 1:
        shapes = ", ".join(str(list(value.shape)) for value in values)
        raise SoupError("held-out tensors need the same first dimension", found=shapes)
    return list(values)


def _sliced(data: Any, columns: list[Tensor], batch_size: int) -> Iterator[Any]:
    for start in range(0, len(columns[0]), batch_size):
        rows = [column[start : start + batch_size] for column in columns]
        yield dict(zip(data, rows, strict=True)) if isinstance(data, Mapping) else tuple(rows)


def _logits(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    found = getattr(output, "logits", None)
    if found is None and isinstance(output, Mapping):
        found = output.get("logits")
    if found is None and isinstance(output, (tuple, list)) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise SoupError(
            "no logits in the model's output; give forward(model, batch) -> (logits, labels)",
            found=type(output).__name__,
        )
    return found


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        # An inference tensor has no version; the user made it under inference_mode and changes it at their own risk.
        if not batch.is_inference():
            yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from _tensors(value)
