"""The samples inside of batches: how many there are, and new batches made of them in another order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ..errors import SoupError
from ..fingerprint import fingerprint_data
from .batches import Path, leaves, rebuilt
from .store import Store, is_plain

_SCALARS = (bool, int, float, complex, str, bytes, type(None))


def sample_count(batch: Any) -> int | None:
    """Samples in a batch: the first dimension of its label, or the one that all of its tensors share."""
    label = None
    if isinstance(batch, Mapping):
        label = batch.get("labels")
    elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
        label = batch[-1]
    if isinstance(label, Tensor) and label.dim():
        return len(label)
    sizes = {len(leaf) for _, leaf in leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()}
    return sizes.pop() if len(sizes) == 1 else None


class Samples:
    """Of every batch of a store: how many samples it has, and why they cannot be regrouped, if they cannot."""

    def __init__(self, store: Store) -> None:
        read = store.reader()
        self.counts = [sample_count(read(number)) for number in range(len(store))]
        self._store = store
        self._obstacle: str | None = None
        self._is_examined = False

    @property
    def obstacle(self) -> str | None:
        """What is in the way of new batches; ``None``: nothing."""
        if not self._is_examined:
            self._obstacle = _obstacle(self._store, self.counts)
            self._is_examined = True
        return self._obstacle


class Rebatched:
    """New batches of ``batch_size`` samples (the last: the rest): those of ``store`` in the order ``order``.

    ``order`` is an int64 tensor of positions in the present order. Each pass gathers anew.
    """

    def __init__(self, store: Store, counts: list[int], order: Tensor, batch_size: int) -> None:
        starts = torch.tensor([0, *accumulate(counts)])
        # From the right, so that batches without samples are never the ones found.
        self._source = torch.searchsorted(starts, order, right=True) - 1
        self._row = order - starts[self._source]
        self._store = store
        self._batch_size = batch_size

    @torch.no_grad()
    def __iter__(self) -> Iterator[Any]:
        read = self._store.reader()
        template = read(0)
        # Views of what is kept: of a file no page is read before a row of it is asked for.
        columns = [dict(leaves(read(number))) for number in range(len(self._store))]
        for start in range(0, len(self._row), self._batch_size):
            part = slice(start, start + self._batch_size)
            places = list(zip(self._source[part].tolist(), self._row[part].tolist(), strict=True))

            def gather(path: Path, leaf: Any, places: list[tuple[int, int]] = places) -> Any:
                if not isinstance(leaf, Tensor) or not leaf.dim():
                    return leaf
                return torch.stack([columns[source][path][row] for source, row in places])

            yield rebuilt(template, gather)


def permutation(order: Any, count: int, what: str) -> Tensor:
    """``order`` as an int64 tensor on the CPU; :class:`SoupError` unless it has each of 0 to ``count`` - 1 once."""
    try:
        positions = torch.as_tensor(order).to("cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise SoupError(f"not an order of {what}", found=type(order).__name__, expected="integers") from error
    if positions.numel() and (positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool):
        raise SoupError(f"not an order of {what}", found=positions.dtype, expected="integers")
    positions = positions.to(torch.int64)
    if positions.dim() != 1 or not torch.equal(positions.sort().values, torch.arange(count)):
        raise SoupError(f"not an order of {what}: each of 0 to {count - 1} must be in it once", found=_brief(positions))
    return positions


def _brief(positions: Tensor) -> str:
    values = positions.flatten().tolist()
    return f"{len(values)} numbers, {', '.join(map(str, values[:8]))}{', ...' if len(values) > 8 else ''}"


def _obstacle(store: Store, counts: list[int | None]) -> str | None:
    read = store.reader()
    first: dict[Path, tuple[bool, str]] = {}
    listed: set[Path] | None = None
    for number, count in enumerate(counts):
        if count is None:
            return f"it cannot be told how many samples are in batch {number}"
        batch = read(number)
        facts = {path: _fact(leaf, count) for path, leaf in leaves(batch)}
        first = first or facts
        if facts.keys() != first.keys():
            return f"batch {number} holds other things than batch 0"
        for path, fact in facts.items():
            is_fit, text = fact
            if not is_fit:
                return f"{_name(path)} of batch {number} {text}"
            if fact != first[path]:
                return f"{_name(path)} of batch {number} is {text}, of batch 0 {first[path][1]}"
        lists = set(_lists_of(batch, count))
        listed = lists if listed is None else listed & lists
    if listed:
        return f"{_name(min(listed, key=repr))} may be a list with one entry a sample"
    return None


def _fact(leaf: Any, count: int) -> tuple[bool, str]:
    """Whether ``leaf`` is fit for new batches, and what must then be the same in every batch, or why it is not."""
    if isinstance(leaf, Tensor) and is_plain(leaf):
        if leaf.dim() == 0:
            return True, f"the value {leaf.item()!r} of {leaf.dtype}, {fingerprint_data(leaf)}"
        if len(leaf) != count:
            return False, f"has a first dimension of {len(leaf)} for {count} samples"
        return True, f"{leaf.dtype} {['N', *leaf.shape[1:]]} on {leaf.device}"
    if isinstance(leaf, _SCALARS):
        return True, f"the value {leaf!r}"
    return False, f"is a {type(leaf).__qualname__}, not a plain tensor"


def _lists_of(batch: Any, count: int, path: Path = ()) -> Iterator[Path]:
    """Lists inside of ``batch`` with one entry for each sample, by the look of them: names or images, say."""
    if isinstance(batch, Mapping):
        items = list(batch.items())
    elif isinstance(batch, (tuple, list)):
        items = list(enumerate(batch))
        if path and len(items) == count and any(all(isinstance(i, kind) for i in batch) for kind in (_SCALARS, Tensor)):
            yield path
    else:
        return
    for name, item in items:
        yield from _lists_of(item, count, (*path, name))


def _name(path: Path) -> str:
    return "".join(f"[{part!r}]" for part in path) or "the tensor"
