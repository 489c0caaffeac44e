"""A tensor that is stored in boxes, put together in bounded memory.

It is made block by block: a range along one dimension, all of those behind it, one index of each before it. What a box
has of a block is then contiguous in the box, so there is one read for each of the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple, TypeAlias

from .. import _native
from .strided import Transfer, c_strides

Extent: TypeAlias = tuple[Sequence[int], Sequence[int]]
"""Corner and sizes of a box."""


def assemble(
    shape: Sequence[int],
    boxes: Sequence[Extent],
    itemsize: int,
    limit: int,
    read: Callable[[int, memoryview, int], None],
    write: Transfer,
) -> None:
    """Write a tensor of at least one dimension in C order; ``boxes`` must fill it.

    ``read`` takes the number of a box and a position in bytes from its begin, where it is in C order; ``write`` one
    from the begin of the tensor. At most ``limit`` bytes (one element at least) are read, and as many written, at a
    time.
    """
    if 0 in shape:
        return
    rows = (math.prod(shape[d + 1 :]) * itemsize for d in range(len(shape)))
    d, row = next(((d, row) for d, row in enumerate(rows) if row <= limit), (len(shape) - 1, itemsize))
    behind, strides = list(shape[d + 1 :]), c_strides(shape[d:])
    count = min(max(1, limit // row), shape[d])
    block = memoryview(bytearray(count * row))
    part = memoryview(bytearray(count * row)) if any(list(sizes[d + 1 :]) != behind for _, sizes in boxes) else block
    position = 0
    for *lead, begin in product(*map(range, shape[:d]), range(0, shape[d], count)):
        end = min(begin + count, shape[d])
        for box, extent in enumerate(boxes):
            cut = _cut(extent, lead, begin, end)
            if cut is None:
                continue
            nbytes = math.prod(cut.sizes) * itemsize
            if cut.sizes[1:] == behind:
                read(box, block[(cut.corner[0] - begin) * row :][:nbytes], cut.at * itemsize)
                continue
            read(box, part[:nbytes], cut.at * itemsize)
            target = (_dot(cut.corner, strides) - begin * strides[0]) * itemsize
            steps = c_strides(cut.sizes)
            _native.load().strided_copy(block, target, strides, part, 0, steps, cut.sizes, itemsize)
        write(block[: (end - begin) * row], position)
        position += (end - begin) * row


class _Cut(NamedTuple):
    """What a box has of a block: from its element ``at`` on; corner and sizes in the dimensions of the block."""

    at: int
    corner: list[int]
    sizes: list[int]


def _cut(box: Extent, lead: Sequence[int], begin: int, end: int) -> _Cut | None:
    """``lead`` are the indices of the first dimensions, ``begin`` to ``end`` the range in the next one."""
    (corner, sizes), d = box, len(lead)
    inside = [index - start for index, start in zip(lead, corner, strict=False)]
    low, high = max(begin, corner[d]), min(end, corner[d] + sizes[d])
    if low >= high or not all(0 <= index < n for index, n in zip(inside, sizes, strict=False)):
        return None
    at = _dot([*inside, low - corner[d]], c_strides(sizes)[: d + 1])
    return _Cut(at, [low, *corner[d + 1 :]], [high - low, *sizes[d + 1 :]])


def _dot(index: Sequence[int], strides: Sequence[int]) -> int:
    return sum(i * stride for i, stride in zip(index, strides, strict=True))
