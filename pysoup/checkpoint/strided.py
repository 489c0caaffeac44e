"""A strided tensor read from a file and written out in C order, tile by tile, in bounded memory.

A tile is read in pieces that are contiguous in the source, put in order in memory, and written in pieces that are
contiguous in the result. Tiles grow along both orders in turn, so that neither side is left with single elements: a
transposed matrix is moved in squares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple, TypeAlias

from .. import _native

Transfer: TypeAlias = Callable[[memoryview, int], None]
"""Moves exactly the bytes of the view from, or to, a position in bytes."""

# What a system call costs, in bytes that could be read meanwhile.
_CALL = 16 << 10
# Gaps in bytes up to which it may be better to read on than to begin anew.
_GAPS = (0, 64, 1 << 10, _CALL)


def copy_in_c_order(
    shape: Sequence[int], strides: Sequence[int], itemsize: int, limit: int, read: Transfer, write: Transfer
) -> None:
    """Move all elements, with at most ``limit`` bytes (one element at least) read and as many to write at a time.

    ``strides`` are in elements, >= 0, and may be 0 or overlap. ``read`` takes positions in bytes from the first element
    of the tensor, ``write`` from the begin of the result. Tiles that lie beside each other in the source come one after
    the other.
    """
    shape, strides = _coalesced(shape, strides)
    if 0 in shape:
        return
    whole, gap = _tiling(shape, strides, itemsize, max(1, limit // itemsize))
    source = memoryview(bytearray(_packing(whole, strides, gap).elements * itemsize))
    result = memoryview(bytearray(math.prod(whole) * itemsize))
    outwards = sorted(range(len(shape)), key=lambda d: strides[d], reverse=True)
    for corner in product(*(range(0, shape[d], whole[d]) for d in outwards)):
        begin = [0] * len(shape)
        for d, start in zip(outwards, corner, strict=True):
            begin[d] = start
        tile = [min(w, n - b) for w, n, b in zip(whole, shape, begin, strict=True)]
        packing = _packing(tile, strides, gap)
        _read_tile(packing, tile, strides, itemsize, source, read, _dot(begin, strides))
        _native.load().strided_copy(result, 0, c_strides(tile), source, 0, packing.strides, tile, itemsize)
        _write_tile(tile, shape, itemsize, result, write, _dot(begin, c_strides(shape)))


class _Packing(NamedTuple):
    """How a tile lies in memory once read: pieces of ``piece`` elements each, one an index of the dimensions ``outer``.

    Within a piece elements are as far apart as in the source. ``outer`` begins with the smallest stride; ``strides``
    are those of all dimensions in memory.
    """

    piece: int
    outer: list[int]
    strides: list[int]
    elements: int


def _packing(tile: Sequence[int], strides: Sequence[int], gap: int) -> _Packing:
    piece = 1
    outer: list[int] = []
    packed = list(strides)
    for d in sorted(range(len(tile)), key=lambda d: strides[d]):
        if tile[d] == 1:
            continue
        if not outer and strides[d] - piece <= gap:
            piece += (tile[d] - 1) * strides[d]
        else:
            outer.append(d)
    elements = piece
    for d in outer:
        packed[d] = elements
        elements *= tile[d]
    return _Packing(piece, outer, packed, elements)


def _tiling(shape: Sequence[int], strides: Sequence[int], itemsize: int, most: int) -> tuple[list[int], int]:
    """The shape of the tiles and the gap, in elements, to read over within them: the cheapest of a few an element."""

    def cost(tiling: tuple[list[int], int]) -> float:
        tile, gap = tiling
        packing, elements = _packing(tile, strides, gap), math.prod(tile)
        calls = packing.elements / packing.piece + elements / math.prod(tile[_first_of_run(tile, shape) :])
        return (calls * _CALL + packing.elements * itemsize) / elements

    gaps = (gap // itemsize for gap in _GAPS)
    return min(((_largest_tile(shape, strides, gap, most), gap) for gap in gaps), key=cost)


def _largest_tile(shape: Sequence[int], strides: Sequence[int], gap: int, most: int) -> list[int]:
    """A tile that has at most ``most`` elements, also as it is read: doubled along both orders in turn."""
    tile = [1] * len(shape)
    by_result = list(reversed(range(len(shape))))
    by_source = sorted((d for d in by_result if strides[d]), key=lambda d: strides[d])
    growing = {d for d in by_result if shape[d] > 1}
    while growing:
        for order in (by_result, by_source):
            d = next((d for d in order if d in growing), None)
            if d is None:
                continue
            before, tile[d] = tile[d], min(2 * tile[d], shape[d])
            fits = math.prod(tile) <= most and _packing(tile, strides, gap).elements <= most
            if not fits:
                tile[d] = before
            if not fits or tile[d] == shape[d]:
                growing.remove(d)
    return tile


def _first_of_run(tile: Sequence[int], shape: Sequence[int]) -> int:
    """The first of the last dimensions that are contiguous in the result: behind it the tile is whole."""
    first = len(tile)
    while first > 0 and (first == len(tile) or tile[first] == shape[first]):
        first -= 1
    return first


def _read_tile(
    packing: _Packing,
    tile: Sequence[int],
    strides: Sequence[int],
    itemsize: int,
    source: memoryview,
    read: Transfer,
    begin: int,
) -> None:
    size = packing.piece * itemsize
    outwards = packing.outer[::-1]
    places = _positions([tile[d] for d in outwards], [strides[d] * itemsize for d in outwards], begin * itemsize)
    for k, place in enumerate(places):
        read(source[k * size : (k + 1) * size], place)


def _write_tile(
    tile: Sequence[int], shape: Sequence[int], itemsize: int, result: memoryview, write: Transfer, begin: int
) -> None:
    inner = _first_of_run(tile, shape)
    size = math.prod(tile[inner:]) * itemsize
    strides = [stride * itemsize for stride in c_strides(shape)]
    for k, place in enumerate(_positions(tile[:inner], strides[:inner], begin * itemsize)):
        write(result[k * size : (k + 1) * size], place)


def _positions(counts: Sequence[int], strides: Sequence[int], begin: int) -> Iterator[int]:
    """``begin`` plus the offset of each index, the last dimension fastest; strides > 0."""
    ranges = [range(0, n * stride, stride) for n, stride in zip(counts, strides, strict=True)]
    return (begin + sum(parts) for parts in product(*ranges))


def _coalesced(shape: Sequence[int], strides: Sequence[int]) -> tuple[list[int], list[int]]:
    """The same elements in the same order with fewer dimensions."""
    sizes: list[int] = []
    steps: list[int] = []
    for n, stride in zip(shape, strides, strict=True):
        if n == 1:
            continue
        if sizes and steps[-1] == n * stride:
            sizes[-1] *= n
            steps[-1] = stride
        else:
            sizes.append(n)
            steps.append(stride)
    return sizes, steps


def c_strides(shape: Sequence[int]) -> list[int]:
    strides: list[int] = []
    step = 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return strides[::-1]


def _dot(index: Sequence[int], strides: Sequence[int]) -> int:
    return sum(i * stride for i, stride in zip(index, strides, strict=True))
