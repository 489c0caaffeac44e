"""The held-out set: batches decoded once, seen by every candidate in the same order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ..errors import SoupError
from ..fingerprint import ContentHash
from ..sizes import parse_size
from .batches import iterate, moved, tensors_of
from .forward import Forward, default_forward, name_of
from .rebatch import Rebatched, Samples, permutation
from .store import Store, store


class HeldOut:
    """Labelled data that models are scored on, in one fixed order.

    ``data`` is a ``DataLoader``; a ``Dataset`` (read in batches of ``batch_size`` with the default collation), also of
    Hugging Face ``with_format("torch")``; a tuple or a dictionary of tensors or numpy arrays with the same first
    dimension (cut in batches of ``batch_size``, no copy); any iterable of batches; a list of samples ``(input,
    label)``; or another ``HeldOut``, whose ``forward`` and ``autocast`` hold where none are given. A batch is a tuple
    (the last element is the label, the others are the model's arguments) or a dictionary (``"labels"`` is the label,
    the others are keyword arguments); any other kind needs ``forward``.

    The data is read once, at first use, and kept, so a shuffling loader and a generator show every model the same
    batches in the same order. ``device`` keeps the batches there; by default they stay where the data puts them, and
    each is moved to the model's device when it is used.

    ``memory`` is a budget in bytes (``"2GiB"``, or an integer; ``None``: no limit) for the tensors of batches. A set
    that it has no room for goes whole to a temporary file in ``TMPDIR``, mapped into memory; the file has no name and
    goes with the process. Of a CUDA device at most half of the free memory is taken; then pinned host memory, within
    the budget, then the file. Whole tensors in memory are not copied and not charged. ``autocast`` (``"bfloat16"`` or
    ``"float16"``) is the precision that models are applied in.

    Raises :class:`SoupError` for data of another kind; while reading, :class:`OutputError` if the file cannot be
    written, and whatever the data raises.
    """

    def __init__(
        self,
        data: Any,
        forward: Forward | None = None,
        *,
        device: torch.device | str | None = None,
        batch_size: int = 256,
        memory: int | str | None = None,
        autocast: torch.dtype | str | None = None,
    ) -> None:
        if batch_size < 1:
            raise SoupError("batch_size must be positive", found=batch_size)
        if isinstance(data, HeldOut):
            forward = data.forward if forward is None else forward
            autocast = data.autocast if autocast is None else autocast
        self.forward: Forward = default_forward if forward is None else forward
        self.autocast: torch.dtype | None = _autocast_dtype(autocast)
        self._device = None if device is None else torch.device(device)
        self._memory = None if memory is None else parse_size(memory)
        # Of a forward of their own, only the user knows what a batch is.
        samples = self.forward is default_forward
        self._data: Iterable[Any] | None = iterate(data, batch_size, samples=samples)
        self._store: Store | None = None
        self._samples: Samples | None = None
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        """The number of batches; reads the data."""
        return len(self._read())

    def __iter__(self) -> Iterator[Any]:
        return self.batches()

    def batches(self, device: torch.device | None = None) -> Iterator[Any]:
        """The batches on ``device`` (default: where they are), in the fixed order.

        Containers are copied, tensors are not (unless moved): what a ``forward`` pops from a dictionary is there again
        for the next model. A tensor changed in place would not be, so that is an error.
        """
        kept = self._read()
        read = kept.reader()
        for number in range(len(kept)):
            batch = read(number)
            before = _versions(batch)
            yield moved(batch, device)
            if before != _versions(batch):
                raise SoupError(
                    f"the model or forward changed held-out batch {number} in place, so the next model would see other "
                    "data; let it work on a copy"
                )

    @property
    def place(self) -> str:
        """Where the batches are kept: ``"memory"``, ``"pinned"``, ``"file"`` or the name of a device."""
        return self._read().place

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, wherever they are."""
        return self._read().nbytes

    @property
    def samples(self) -> list[int]:
        """The number of samples in each batch: the first dimension of its label.

        Where no label is found (with a ``forward`` of your own), it is the first dimension that all tensors of the
        batch share; :class:`SoupError` if they share none.
        """
        counts = self._counted().counts
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            raise SoupError(f"it cannot be told how many samples are in held-out batch {counts.index(None)}")
        return known

    @property
    def rebatchable(self) -> bool:
        """Whether :meth:`reordered` can take the samples out one by one and put them together anew.

        All tensors of a batch have its samples as their first dimension, and the same dtype and trailing shape in every
        batch. Other values (numbers, text, 0-dim tensors) are the same in every batch.
        """
        return self._counted().obstacle is None

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what a score depends on besides the model, the same in every process.

        It covers the content, order and bounds of the batches, ``autocast``, the qualified name of ``forward`` (not its
        code) and what a ``functools.partial`` binds to it; not the place where batches are kept. Computed at first use,
        in one pass. Raises :class:`SoupError` where a batch holds other things than tensors, arrays, numbers and text.
        """
        if self._fingerprint is None:
            content = ContentHash()
            content.add(["pysoup held-out set 1", name_of(self.forward), str(self.autocast), len(self)])
            read = self._read().reader()
            for number in range(len(self)):
                unread = content.add(read(number))
                if unread is not None:
                    raise SoupError(
                        f"held-out batch {number} has no fingerprint, by which a later run would know the data",
                        found=unread,
                        expected="tensors, arrays, numbers and text in tuples, lists and dictionaries",
                    )
            self._fingerprint = content.hexdigest()
        return self._fingerprint

    def reordered(self, order: Any, batch_size: int | None = None) -> HeldOut:
        """The same samples in new batches: in ``order``, ``batch_size`` in each but the last.

        ``order`` has each position in the present order once. ``batch_size`` is by default that of the largest batch.
        The new batches are built once, at first use, on the same device, in what the present ones leave of the memory
        budget. Raises :class:`SoupError` if ``order`` is not a permutation, or the set is not :attr:`rebatchable`.
        """
        data, size = self._rebatched(order, batch_size)
        kept = self._read()
        left = None if self._memory is None else max(0, self._memory - kept.counted)
        return HeldOut(data, self.forward, device=self._device, batch_size=size, memory=left, autocast=self.autocast)

    def gathered(self, order: Any, batch_size: int | None = None, device: torch.device | None = None) -> Iterator[Any]:
        """The batches of :meth:`reordered` on ``device``, each put together when it is asked for, and none kept."""
        data, _ = self._rebatched(order, batch_size)
        return (moved(batch, device) for batch in data)

    def _rebatched(self, order: Any, batch_size: int | None) -> tuple[Rebatched, int]:
        samples = self._counted()
        if samples.obstacle is not None:
            raise SoupError(
                f"held-out samples cannot be put into new batches: {samples.obstacle}; with_batches reorders whole ones"
            )
        counts = self.samples
        size = max(1, *counts) if batch_size is None else batch_size
        positions = permutation(order, sum(counts), "the held-out samples")
        return Rebatched(self._read(), counts, positions, max(1, size)), size

    def with_batches(self, order: Any) -> HeldOut:
        """The same batches, not copied, in ``order``: each number once. :class:`SoupError` if it is none."""
        kept = self._read()
        positions = permutation(order, len(kept), "the held-out batches")
        other = HeldOut((), self.forward, device=self._device, memory=self._memory, autocast=self.autocast)
        other._data, other._store = None, kept.picked(positions.tolist())
        return other

    def _counted(self) -> Samples:
        if self._samples is None:
            self._samples = Samples(self._read())
        return self._samples

    def _read(self) -> Store:
        if self._store is None:
            data = self._data
            if data is None:
                raise SoupError("reading the held-out data failed before and cannot start again; make a new HeldOut")
            if isinstance(data, Iterator):
                self._data = None  # if this fails, what is left of it is not the data
            self._store = store(data, self._device, self._memory)
            self._data = None
        if not len(self._store):
            raise SoupError("the held-out set is empty")
        return self._store


def as_heldout(data: Any, forward: Forward | None = None) -> HeldOut:
    """``data`` itself if it is a :class:`HeldOut`, else a new one over it."""
    return data if isinstance(data, HeldOut) else HeldOut(data, forward)


def _autocast_dtype(autocast: torch.dtype | str | None) -> torch.dtype | None:
    dtype = _AUTOCAST.get(autocast) if isinstance(autocast, str) else autocast
    if autocast is not None and dtype not in _AUTOCAST.values():
        expected = "'bfloat16', 'float16' or None"
        raise SoupError("not a precision for autocast", found=repr(autocast), expected=expected)
    return dtype


_AUTOCAST = {"bfloat16": torch.bfloat16, "bf16": torch.bfloat16, "float16": torch.float16, "f16": torch.float16}


def _versions(batch: Any) -> list[int]:
    # An inference tensor has no version; the user made it under inference_mode and changes it at their own risk.
    return [tensor._version for tensor in tensors_of(batch) if not tensor.is_inference()]
