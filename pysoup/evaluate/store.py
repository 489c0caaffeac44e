"""Where the batches of a held-out set are kept: in RAM, on a device, in pinned memory or in a file, under a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .batch_file import BatchFile, Slot
from .batches import Columns, Path, leaves, moved, pinned, rebuilt, tensors_of


class Store:
    """Batches in a fixed order, all in one place."""

    def __init__(self, batches: list[Any], level: Level, counted: int) -> None:
        self._batches = batches
        self._level = level
        self.counted = counted
        """Bytes of memory that the budget was charged with."""

    def __len__(self) -> int:
        return len(self._batches)

    def reader(self) -> Callable[[int], Any]:
        """Gives batches by number. Of a file it is one mapping, to be dropped after a pass."""
        load = self._level.loader()
        return lambda number: load(self._batches[number])

    def picked(self, order: Sequence[int]) -> Store:
        """The same batches, not copied, in another order."""
        return Store([self._batches[number] for number in order], self._level, self.counted)

    @property
    def place(self) -> str:
        """``"memory"``, ``"pinned"``, ``"file"`` or the device's name."""
        if self._level.place:
            return self._level.place
        device = next((t.device for batch in self._batches for t in tensors_of(batch)), torch.device("cpu"))
        return "memory" if device.type == "cpu" else str(device)

    @property
    def nbytes(self) -> int:
        """Of all tensors, wherever they are."""
        parts = (leaf for batch in self._batches for _, leaf in leaves(batch))
        return sum(part.nbytes for part in parts if isinstance(part, (Tensor, Slot)))


def store(data: Iterable[Any], device: torch.device | None, budget: int | None) -> Store:
    """Read ``data`` to its end and keep its batches where the budget (bytes; ``None``: no limit) has room for all.

    On ``device`` (``None``: where the data puts them); a CUDA device gives at most half of what is free on it, and
    what is too much for it goes to pinned host memory. What the budget has no room for goes to a file. While reading,
    memory holds at most the budget and one batch. Whole tensors in memory are not copied, so they are charged only
    where a device has to have its own.
    """
    levels = _levels(data, device, math.inf if budget is None else budget)
    level = levels.pop(0)
    batches: list[Any] = []
    meter = _Meter()
    for batch in data:
        batches.append(level.keep(batch))
        meter.add(batches[-1])
        while meter.nbytes > level.limit:
            load = level.loader()
            level, meter = levels.pop(0), _Meter()
            for number, kept in enumerate(batches):
                batches[number] = level.keep(load(kept))
                meter.add(batches[number])
    return Store(batches, level, 0 if level.is_given else meter.nbytes)


class Level(Protocol):
    """One place for batches."""

    place: str
    limit: float
    is_given: bool

    def keep(self, batch: Any) -> Any: ...

    def loader(self) -> Callable[[Any], Any]: ...


class _Held:
    """As they are, or moved to a device."""

    place = ""

    def __init__(self, device: torch.device | None, limit: float, *, is_given: bool = False) -> None:
        self.device = device
        self.limit = limit
        self.is_given = is_given

    def keep(self, batch: Any) -> Any:
        batch = moved(batch, self.device)
        return batch if self.is_given else rebuilt(batch, _private)

    def loader(self) -> Callable[[Any], Any]:
        return lambda batch: batch


class _Pinned:
    place = "pinned"
    is_given = False

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def keep(self, batch: Any) -> Any:
        return pinned(batch)

    def loader(self) -> Callable[[Any], Any]:
        return lambda batch: batch


class _Filed:
    """Plain tensors in a file; everything else of a batch stays as it is."""

    place = "file"
    limit = math.inf
    is_given = False

    def __init__(self) -> None:
        self._file: BatchFile | None = None

    def keep(self, batch: Any) -> Any:
        file = self._file = self._file or BatchFile()

        def write(_: Path, leaf: Any) -> Any:
            return file.write(leaf) if isinstance(leaf, Tensor) and is_plain(leaf) and leaf.numel() else leaf

        return rebuilt(batch, write)

    def loader(self) -> Callable[[Any], Any]:
        assert self._file is not None  # made with the first batch
        tensor = self._file.opened()
        return lambda batch: rebuilt(batch, lambda _, leaf: tensor(leaf) if isinstance(leaf, Slot) else leaf)


def _private(_: Path, leaf: Any) -> Any:
    """Not in memory shared with a loader's workers: each tensor there takes an open file, and all of them /dev/shm."""
    if isinstance(leaf, Tensor) and is_plain(leaf) and leaf.device.type == "cpu" and leaf.untyped_storage().is_shared():
        return leaf.clone()
    return leaf


def is_plain(tensor: Tensor) -> bool:
    """Whether type, shape and bytes are all there is to it: no subclass, no layout of its own, no gradient."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and not (tensor.requires_grad or tensor.is_quantized or tensor.is_nested or tensor.is_meta)
    )


def _levels(data: Iterable[Any], device: torch.device | None, limit: float) -> list[Level]:
    """Where the batches may go, the best place first; the last takes any number."""
    if not isinstance(data, Columns):
        first = [_Held(device, limit if device is None else _room(device, limit))]
        return [*first, *_pinned_level(device, limit), _Filed()]
    as_given = _Held(None, math.inf, is_given=True)
    if device is None or all(tensor.device == _exact(device) for tensor in data.tensors):
        return [as_given]
    size = sum(tensor.nbytes for tensor in data.tensors)
    own: list[Level] = [_Held(device, _room(device, limit)), *_pinned_level(device, limit)]
    return [*(level for level in own if size <= level.limit), as_given]


def _pinned_level(device: torch.device | None, limit: float) -> list[Level]:
    return [_Pinned(limit)] if device is not None and device.type == "cuda" else []


def _room(device: torch.device, limit: float) -> float:
    """What the batches may take of ``device``: models need room beside them."""
    return min(limit, torch.cuda.mem_get_info(device)[0] // 2) if device.type == "cuda" else limit


def _exact(device: torch.device) -> torch.device:
    """With its number: ``cuda`` is ``cuda:0``, say."""
    return torch.empty(0, device=device).device


class _Meter:
    """The memory behind batches, each piece of it counted once: a view keeps all of what it is a view of."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._seen: set[tuple[torch.device, int]] = set()

    def add(self, batch: Any) -> None:
        for tensor in tensors_of(batch):
            if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
                self.nbytes += tensor.numel() * tensor.element_size()
                continue
            memory = tensor.untyped_storage()
            key = (tensor.device, memory.data_ptr())
            if key not in self._seen:
                self._seen.add(key)
                self.nbytes += memory.nbytes()
