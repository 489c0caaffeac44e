"""Rows of a plan: which of them hold NaN or infinity after a run, and which of them overlap, against plain numpy."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysoup import _native
from pysoup.columns import MEMORY, RAW, Columns, SourceColumn, accumulator
from pysoup.dtypes import BF16, F8_E4M3, F8_E5M2, F16, F32, F64, DType

NUMPY: dict[DType, Any] = {
    F64: np.float64,
    F32: np.float32,
    F16: np.float16,
    BF16: ml_dtypes.bfloat16,
    F8_E4M3: ml_dtypes.float8_e4m3fn,
    F8_E5M2: ml_dtypes.float8_e5m2,
}
TYPES = list(NUMPY)
BAD = (np.nan, np.inf, -np.inf)


@dataclass
class Row:
    """One tensor: its type, the values of each source, where the result goes."""

    dtype: DType
    values: list[np.ndarray]
    out: np.ndarray
    factors: Sequence[float]
    divisor: float
    raw: bool = False


def row(dtype: DType, values: Sequence[np.ndarray], out: DType | None = None, raw: bool = False) -> Row:
    result = np.zeros(len(values[0]), NUMPY[out or dtype])
    return Row(dtype, list(values), result, [1.0] * len(values), float(len(values)), raw)


def plan_of(rows: Sequence[Row], fd: int = MEMORY, offsets: Sequence[int] = ()) -> Any:
    """The plan of rows in memory, which the caller keeps alive; results go there, or to ``offsets`` of a file."""
    columns, sources = Columns(), [SourceColumn() for _ in rows[0].values]
    names = {v: k for k, v in NUMPY.items()}
    for number, r in enumerate(rows):
        out = names[r.out.dtype.type]
        at = offsets[number] if offsets else r.out.ctypes.data
        if r.raw:
            columns.add(r.out.nbytes, at, fd, RAW, 0, 1.0)
        else:
            columns.add(len(r.out), at, fd, out.native, accumulator([r.dtype], out), r.divisor)
        for k, (source, values) in enumerate(zip(sources, r.values, strict=True)):
            if r.raw and k > 0:
                source.add_absent()
            else:
                source.add(values.ctypes.data, MEMORY, RAW if r.raw else r.dtype.native, r.factors[k])
    return columns.plan(sources)


def run(plan: Any, threads: int = 1, buffer_bytes: int = 0) -> list[int]:
    found = _native.run(plan, threads=threads, buffer_bytes=buffer_bytes)
    assert found == plan.nonfinite
    return found


def expected(rows: Sequence[Row]) -> list[int]:
    """What is there after the run, looked at by numpy."""
    finite = [r.raw or np.isfinite(r.out.astype(np.float64)).all() for r in rows]
    return [i for i, ok in enumerate(finite) if not ok]


def in_one_memory(rows: list[Row]) -> list[Row]:
    """The same rows with every source, and the results, side by side in memory: neighbours become one run."""
    for k in [*range(len(rows[0].values)), None]:
        arrays = [r.out if k is None else r.values[k] for r in rows]
        memory = np.zeros(sum(a.nbytes for a in arrays), np.uint8)
        at = 0
        for r, a in zip(rows, arrays, strict=True):
            view = memory[at : at + a.nbytes].view(a.dtype)
            view[:] = a
            at += a.nbytes
            if k is None:
                r.out = view
            else:
                r.values[k] = view
    return rows


@st.composite
def models(draw: st.DrawFn) -> list[Row]:
    """Rows of few types, so that some are neighbours of one type; in a few of them something is not finite."""
    count = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    types = draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=2))
    rows: list[Row] = []
    for _ in range(draw(st.integers(1, 12))):
        dtype = draw(st.sampled_from(types))
        n = draw(st.sampled_from([0, 0, 1, 2, 63, 64, 65, 300, 1025, 5000]))
        values = [rng.standard_normal(n).astype(NUMPY[dtype]) for _ in range(count)]
        for _ in range(draw(st.integers(0, 2)) if n else 0):
            place = draw(st.sampled_from([0, n - 1, n // 2, int(rng.integers(n))]))
            values[draw(st.integers(0, count - 1))][place] = draw(st.sampled_from(BAD))
        rows.append(row(dtype, values, raw=draw(st.integers(0, 6)) == 0))
    return in_one_memory(rows)


@given(models())
def test_rows_that_are_not_finite_are_found(rows: list[Row]) -> None:
    plan = plan_of(rows)
    found = run(plan)
    assert found == expected(rows)
    for isa, threads in itertools.product(_native.capabilities()["isas"], (1, 3)):
        with _native.force_isa(isa):
            assert run(plan, threads) == found


@given(models(), st.sampled_from([1, 3, 50]), st.integers(1, 4))
def test_rows_of_files_are_found_whatever_the_buffer(rows: list[Row], times: int, threads: int) -> None:
    offsets = np.cumsum([0, *(r.out.nbytes for r in rows)]).tolist()
    fd = os.memfd_create("results")
    try:
        plan = plan_of(rows, fd, offsets)
        found = run(plan, threads, plan.minimum_buffer * times)
        for r, at in zip(rows, offsets, strict=False):
            r.out = np.frombuffer(os.pread(fd, r.out.nbytes, at), r.out.dtype)
        assert found == expected(rows)
    finally:
        os.close(fd)


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("dtype", TYPES, ids=lambda d: d.short)
def test_large_rows_on_many_threads(isa: str, dtype: DType, threads: int) -> None:
    """Each thread has part of a row; outputs of this size are written past the caches."""
    rows = [row(dtype, [np.ones(n, NUMPY[dtype])] * 2) for n in (900_001, 10, 700_000, 3, 1_500_000)]
    for i, places in {0: [900_000], 2: [0, 350_000, 699_999], 3: [1]}.items():
        rows[i].values = [rows[i].values[0].copy(), rows[i].values[1]]
        rows[i].values[0][places] = np.nan
    in_one_memory(rows)
    plan = plan_of(rows)
    assert plan.segments == 1
    assert run(plan, threads) == [0, 2, 3] == expected(rows)


@pytest.mark.parametrize("out", TYPES, ids=lambda d: d.short)
@pytest.mark.parametrize("source", TYPES, ids=lambda d: d.short)
def test_a_mean_beyond_the_output_type_is_found(isa: str, source: DType, out: DType) -> None:
    """Around the largest finite value of the output, on both sides of where rounding makes it infinite."""
    top = float(ml_dtypes.finfo(NUMPY[out]).max)
    steps = np.array([0.5, 0.9, 1.0, 1 + 2**-30, 1 + 2**-12, 1 + 2**-9, 1 + 2**-5, 1.03, 1.07, 1.2, 2.0])
    with np.errstate(over="ignore"):
        values = np.concatenate([steps, -steps]).astype(np.longdouble) * top
        values = values.astype(NUMPY[source])
    rows = [row(source, [np.array([1.0, v, 1.0], NUMPY[source])], out) for v in values]
    assert run(plan_of(rows)) == expected(rows)
    beyond = [float(v) for v, r in zip(values, rows, strict=True) if np.isinf(r.out.astype(np.float64)).any()]
    if out == F8_E4M3:
        assert beyond == [], "the type saturates"
    elif float(ml_dtypes.finfo(NUMPY[source]).max) > 2 * top:
        assert max(beyond) > 1.9 * top


@pytest.mark.parametrize("dtype", TYPES, ids=lambda d: d.short)
def test_a_sum_that_overflows_on_the_way_to_a_finite_mean_is_not_reported(isa: str, dtype: DType) -> None:
    top = float(ml_dtypes.finfo(NUMPY[dtype]).max)
    rows = [row(dtype, [np.full(100, top, NUMPY[dtype])] * 3)]
    assert run(plan_of(rows)) == []
    assert (rows[0].out.astype(np.float64) == top).all()


def test_infinity_saturates_in_e4m3_and_only_nan_is_reported(isa: str) -> None:
    wide = [np.array([1, v, 2], np.float32) for v in (np.inf, -np.inf, np.nan, 448.0, 1e30)]
    rows = [row(F32, [v], F8_E4M3) for v in wide]
    assert run(plan_of(rows)) == [2]
    assert [float(r.out[1]) for r in rows[:2]] == [448.0, -448.0]


def test_rows_are_those_of_the_last_run() -> None:
    rows = in_one_memory([row(F32, [np.ones(10, np.float32)] * 2) for _ in range(4)])
    plan = plan_of(rows)
    assert plan.nonfinite == []
    for bad in ([2], [], [0, 3]):
        rows[0].values[0].base[:] = np.ones(40, np.float32).view(np.uint8)
        for i in bad:
            rows[i].values[1 - i % 2][4] = np.inf
        assert run(plan) == bad
        for i in bad:
            rows[i].values[1 - i % 2][4] = 1


def test_a_run_that_fails_or_is_stopped_reports_no_rows(tmp_path: Path) -> None:
    rows = [row(F32, [np.full(1_000_000, np.nan, np.float32)])]
    plan = plan_of(rows)
    assert run(plan) == [0]

    class Stop(Exception):
        pass

    def stop(done: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        _native.run(plan, threads=1, progress=stop)
    assert plan.nonfinite == []
    with open(tmp_path / "x", "wb") as file, open(tmp_path / "x", "rb") as unwritable:
        assert run(plan_of(rows, file.fileno(), [0]), 1, 4096) == [0]
        broken = plan_of(rows, unwritable.fileno(), [0])
        with pytest.raises(_native.load().NativeError):
            _native.run(broken, threads=2, buffer_bytes=4096)
        assert broken.nonfinite == []


@given(st.data())
def test_overlapping_rows_are_found_and_named(data: st.DataObject) -> None:
    """Against every pair of rows, looked at one by one."""
    memory = np.zeros(60, np.float32)
    count = data.draw(st.integers(1, 5))
    sizes = [data.draw(st.integers(0, 6)) for _ in range(count)]
    side_by_side = np.cumsum([0, *sizes]).tolist()

    def places() -> list[int]:
        if data.draw(st.booleans()):
            shift = data.draw(st.integers(0, 25))
            return [shift + at for at in side_by_side[:-1]]
        return [data.draw(st.integers(0, 50)) for _ in sizes]

    written, read = places(), [places() for _ in range(data.draw(st.integers(1, 3)))]
    start = memory.ctypes.data

    def addresses(at: list[int]) -> list[int]:
        return [start + 4 * a for a in at]

    code = bytes([F32.native]) * count
    columns = Columns.in_memory(sizes, addresses(written), code, bytes(count), 1.0)
    plan = columns.plan([SourceColumn.in_memory(addresses(at), code, 1.0) for at in read])

    def clash(a: int, at: int, b: int, other: int) -> bool:
        return bool(set(range(at, at + sizes[a])) & set(range(other, other + sizes[b])))

    pairs = {(a, b) for a in range(count) for b in range(count) if a != b and clash(a, written[a], b, written[b])}
    if not pairs:
        pairs = {
            (a, b)
            for column in read
            for a in range(count)
            for b in range(count)
            if clash(a, written[a], b, column[b]) and (a != b or written[a] != column[b])
        }
    found = plan.find_overlap()
    assert found in pairs if pairs else found == (-1, -1)
