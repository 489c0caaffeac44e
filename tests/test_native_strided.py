"""strided_copy against numpy's as_strided: every layout copies exactly, and none that leaves its memory is begun."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from pysoup import _native

ITEMS = (1, 2, 4, 8, 16)
HUGE = 2**64 - 1


def copy(*args: Any) -> None:
    _native.load().strided_copy(*args)


def span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last, both counted."""
    return 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if 0 not in shape else 0


def apart(shape: Sequence[int], order: Sequence[int], gaps: Sequence[int]) -> list[int]:
    """Strides for dimensions laid out in ``order`` (innermost first), each a gap further than it has to be."""
    strides, reached = [0] * len(shape), 1
    for d, gap in zip(order, gaps, strict=True):
        strides[d] = reached + gap
        reached += max(shape[d] - 1, 0) * strides[d]
    return strides


def check(
    shape: Sequence[int], itemsize: int, dst: tuple[int, list[int]], src: tuple[int, list[int]], tail: int = 0
) -> None:
    """Copies between two filled memories; (bytes to the first element, strides) of each side."""
    rng = np.random.default_rng(len(shape) + itemsize)
    read = rng.integers(0, 256, src[0] + span(shape, src[1]) * itemsize + tail, dtype=np.uint8)
    written = np.full(dst[0] + span(shape, dst[1]) * itemsize + tail, 0xAA, dtype=np.uint8)
    expected = written.copy()

    def view(memory: np.ndarray, side: tuple[int, list[int]]) -> np.ndarray:
        steps = [s * itemsize for s in side[1]]
        return as_strided(memory[side[0] :], [*shape, itemsize], [*steps, 1])

    if 0 not in shape:
        view(expected, dst)[...] = view(read, src)
    kept = read.copy()
    copy(written, dst[0], dst[1], read, src[0], src[1], shape, itemsize)
    np.testing.assert_array_equal(written, expected)
    np.testing.assert_array_equal(read, kept)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[int], int, tuple[int, list[int]], tuple[int, list[int]], int]:
    shape = draw(st.lists(st.sampled_from([0, 1, 1, 2, 3, 5, 7, 13, 33, 40]), max_size=5))
    while math.prod(shape) > 20_000:
        shape.pop()
    gaps = st.lists(st.sampled_from([0, 0, 0, 1, 5]), min_size=len(shape), max_size=len(shape))
    dst = apart(shape, draw(st.permutations(range(len(shape)))), draw(gaps))
    src = apart(shape, draw(st.permutations(range(len(shape)))), draw(gaps))
    # A source may overlap itself: expanded dimensions, sliding windows.
    source = [draw(st.sampled_from([s, s, s, 0, 1])) for s in src]
    offsets = st.integers(0, 17)
    return shape, draw(st.sampled_from(ITEMS)), (draw(offsets), dst), (draw(offsets), source), draw(offsets)


@given(layouts())
@example(([], 8, (3, []), (5, []), 0))
@example(([3, 0, 2], 4, (0, [9, 9, 9]), (0, [HUGE, 5, 1]), 0))
def test_any_layout_copies_as_numpy_does(layout: tuple[Any, ...]) -> None:
    check(*layout)


@pytest.mark.parametrize("itemsize", ITEMS)
@pytest.mark.parametrize("shape", [(300, 270), (32, 64), (257, 31), (11, 700), (700, 11), (12, 12), (33, 256)])
def test_transposes_of_all_sizes_are_exact(shape: tuple[int, int], itemsize: int) -> None:
    rows, columns = shape
    check(shape, itemsize, (1, [columns, 1]), (7, [1, rows]))
    check(shape, itemsize, (1, [1, rows]), (7, [columns, 1]))
    check(shape, itemsize, (0, [columns + 3, 1]), (0, [2, 2 * rows + 1]), 16)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[1::3])
def test_permuted_dimensions_are_exact(order: tuple[int, ...]) -> None:
    shape = [14, 3, 20, 17]
    check(shape, 4, (0, apart(shape, [3, 2, 1, 0], [0] * 4)), (0, apart(shape, order, [0] * 4)))


def test_many_dimensions_of_one_element_cost_nothing() -> None:
    written, read = np.zeros((2, 3, 4), dtype=np.uint16), np.arange(24, dtype=np.uint16)
    copy(written, 0, [HUGE] * 61 + [12, 4, 1], read, 0, [HUGE] * 61 + [1, 2, 6], [1] * 61 + [2, 3, 4], 2)
    np.testing.assert_array_equal(written, read.reshape(4, 3, 2).T)


def test_the_two_sides_may_lie_in_one_buffer_apart() -> None:
    memory = np.arange(24, dtype=np.uint8)
    copy(memory, 12, [1, 4], memory, 0, [3, 1], [4, 3], 1)
    np.testing.assert_array_equal(memory[12:].reshape(3, 4), np.arange(12).reshape(4, 3).T)


def refused(match: str, *args: Any) -> None:
    native = _native.load()
    dst = args[0]
    before = bytes(dst)
    with pytest.raises(native.NativeError, match=match) as caught:
        copy(*args)
    assert caught.value.args[1] == "invalid"
    assert "\n" not in caught.value.args[0]
    assert bytes(dst) == before


DST, SRC = bytearray(100), bytes(range(100))
OUTSIDE = "leaves its memory|overflow"


@pytest.mark.parametrize(
    ("offset", "strides", "shape", "itemsize"),
    [
        (0, [1], [101], 1),
        (1, [1], [100], 1),
        (100, [], [], 1),
        (99, [], [], 2),
        (0, [10, 1], [10, 11], 1),
        (0, [50], [3], 1),
        (0, [9], [4], 4),
        (0, [HUGE], [2], 1),
        (0, [1], [HUGE], 1),
        (0, [1], [2**63], 2),
        (0, [2**60], [2**60], 16),
        (HUGE, [1], [1], 1),
        (HUGE - 1, [1], [3], 1),
        (16, [2**60 - 1], [2], 16),
        (0, [2**63, 2**63], [2, 2], 1),
        (0, [2**32, 1], [2**32 + 1, 1], 1),
        (0, [2**62, 2**62, 2**62, 2**62], [2, 2, 2, 2], 1),
    ],
)
def test_a_side_that_leaves_its_memory_is_refused(
    offset: int, strides: list[int], shape: list[int], itemsize: int
) -> None:
    plenty = bytearray(10_000)
    packed = apart(shape, range(len(shape)), [0] * len(shape))
    if max(packed, default=1) < 2**20 and math.prod(shape) < 600:
        refused("src leaves its memory|overflow", plenty, 0, packed, SRC, offset, strides, shape, itemsize)
        refused("dst leaves its memory|overflow", DST, offset, strides, bytes(10_000), 0, packed, shape, itemsize)
    zeros = [0] * len(shape)
    refused(OUTSIDE, DST, offset, strides, SRC, 0, zeros, shape, itemsize)
    refused(OUTSIDE, DST, 0, strides, SRC, offset, strides, shape, itemsize)


@pytest.mark.parametrize(
    ("strides", "shape"),
    [([0], [2]), ([1, 1], [2, 2]), ([5, 4, 1], [2, 2, 4]), ([0, 1], [2**62, 50]), ([3, 2], [2, 3])],
)
def test_elements_that_share_a_place_in_the_destination_are_refused(strides: list[int], shape: list[int]) -> None:
    refused("elements of dst overlap", DST, 0, strides, SRC, 0, [0] * len(shape), shape, 1)


def test_memory_that_both_sides_touch_is_refused() -> None:
    memory = bytearray(40)
    for dst, src in ((0, 0), (0, 19), (19, 0), (5, 7)):
        refused("dst and src share memory", memory, dst, [1], memory, src, [1], [20], 1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({7: 3}, "item size"),
        ({7: 0}, "item size"),
        ({7: 32}, "item size"),
        ({7: -1}, "itemsize: expected integers"),
        ({6: [2, -3]}, "shape: expected integers"),
        ({6: [2, 2**64]}, "shape: expected integers"),
        ({6: [2, 1.5]}, "shape: expected integers"),
        ({6: [2]}, "dimensions"),
        ({2: [3, 1, 1]}, "dimensions"),
        ({5: [3]}, "dimensions"),
        ({2: [1] * 65, 5: [1] * 65, 6: [1] * 65}, "dimensions"),
        ({2: [-3, 1]}, "dst: expected integers"),
        ({5: [None, 1]}, "src: expected integers"),
        ({1: -1}, "dst: expected integers"),
        ({4: 10**5000}, "src: expected integers"),
        ({3: memoryview(SRC)[::2]}, "src: expected a contiguous buffer"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[int, Any], match: str) -> None:
    args = [DST, 0, [3, 1], SRC, 0, [3, 1], [2, 3], 1]
    for index, value in change.items():
        args[index] = value
    refused(match, *args)


def test_a_destination_that_is_read_only_is_refused() -> None:
    refused("dst: expected a writable buffer", bytes(10), 0, [1], SRC, 0, [1], [5], 1)


def test_random_hostile_arguments_are_refused_or_copied_never_worse() -> None:
    """Sizes, strides and offsets around every limit: with memory checks on, a stray access would be a crash."""
    rng = random.Random(0)
    native = _native.load()
    edges = [0, 1, 2, 3, 7, 10, 99, 100, 101, 2**31, 2**32, 2**60, 2**63, HUGE - 1, HUGE]
    copied, kinds = 0, set()
    for _ in range(20_000):
        rank = rng.randrange(4)
        small = rng.random() < 0.7

        def pick(small: bool = small) -> int:
            return rng.randrange(12) if small else rng.choice(edges)

        dst, src, shape = ([pick() for _ in range(rank)] for _ in range(3))
        item = rng.choice([1, 2, 4, 8, 16])
        try:
            copy(bytearray(100), pick(), dst, SRC, pick(), src, shape, item)
            copied += 1
        except native.NativeError as error:
            kinds.add(error.args[1])
    assert kinds == {"invalid"}
    assert 1000 < copied < 19_000
