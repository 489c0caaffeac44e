"""The kernels alone, for comparing one commit with another: pytest-benchmark saves a run and compares with saved ones.

make bench-kernels ARGS="--benchmark-save=before"
make bench-kernels ARGS="--benchmark-compare=*_before --benchmark-compare-fail=median:10%"      (after the change)

Each result is checked against numpy before it is timed. Sizes exceed the caches of most machines, except where many
small tensors are the point.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pysoup import _native
from pysoup.columns import Columns, SourceColumn, accumulator
from pysoup.dtypes import BF16, F16, F32, DType

COUNT = 8
LARGE = 16 << 20
SMALL = 1000
GAP = 16  # elements between tensors, which are not to be summed as one
NUMPY: dict[DType, Any] = {F32: np.float32, BF16: ml_dtypes.bfloat16, F16: np.float16}
THREADS = _native.default_threads()


def ingredients(dtype: DType, elements: int) -> list[np.ndarray]:
    """Small integers, so that every sum is exact, in any type and order."""
    rng = np.random.default_rng(0)
    part = rng.integers(-8, 8, 1 << 16).astype(np.float32).astype(NUMPY[dtype])
    return [np.resize(np.roll(part, k), elements) for k in range(COUNT)]


def mean(sources: list[np.ndarray]) -> np.ndarray:
    total = sum(s[: 1 << 17].astype(np.float32) for s in sources)
    return (total / COUNT).astype(sources[0].dtype)


def columns_of(
    sources: list[np.ndarray], out: np.ndarray, dtype: DType, tensors: int, elements: int
) -> tuple[Columns, list[SourceColumn]]:
    def addresses(array: np.ndarray) -> list[int]:
        step = (elements + GAP) * dtype.itemsize
        return [array.ctypes.data + i * step for i in range(tensors)]

    codes = bytes([dtype.native]) * tensors
    acc = bytes([accumulator([dtype], dtype)]) * tensors
    target = Columns.in_memory([elements] * tensors, addresses(out), codes, acc, float(COUNT))
    return target, [SourceColumn.in_memory(addresses(s), codes, 1.0) for s in sources]


@pytest.mark.parametrize("dtype", list(NUMPY), ids=lambda d: d.short)
def test_weighted_sum_of_one_large_tensor(benchmark: Any, dtype: DType) -> None:
    sources = ingredients(dtype, LARGE)
    out = np.zeros(LARGE, NUMPY[dtype])
    target, columns = columns_of(sources, out, dtype, 1, LARGE)
    plan = target.plan(columns)
    assert _native.run(plan, threads=THREADS) == []
    np.testing.assert_array_equal(out[: 1 << 17], mean(sources))
    benchmark.extra_info["bytes"] = plan.bytes
    benchmark.pedantic(_native.run, args=(plan,), kwargs={"threads": THREADS}, rounds=15, warmup_rounds=2)


def test_plan_and_sum_of_many_small_tensors(benchmark: Any) -> None:
    size = SMALL * (SMALL + GAP)
    sources = ingredients(F32, size)
    out = np.zeros(size, np.float32)
    target, columns = columns_of(sources, out, F32, SMALL, SMALL)

    def build_and_run() -> list[int]:
        return _native.run(target.plan(columns), threads=THREADS)

    assert build_and_run() == []
    last = slice((SMALL - 1) * (SMALL + GAP), None)
    np.testing.assert_array_equal(out[last][:SMALL], mean([s[last][:SMALL] for s in sources]))
    benchmark.pedantic(build_and_run, rounds=50, iterations=5, warmup_rounds=3)


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
def test_strided_copy_of_a_transpose(benchmark: Any, itemsize: int) -> None:
    rows, columns = 4096, 4096
    source = np.resize(np.arange(1 << 16, dtype=np.uint64).astype(f"u{itemsize}"), (rows, columns))
    out = np.zeros((columns, rows), source.dtype)
    arguments = (out, 0, [rows, 1], source, 0, [1, columns], [columns, rows], itemsize)
    copy = _native.load().strided_copy
    copy(*arguments)
    np.testing.assert_array_equal(out, source.T)
    benchmark.extra_info["bytes"] = 2 * out.nbytes
    benchmark.pedantic(copy, args=arguments, rounds=15, warmup_rounds=2)


@pytest.mark.parametrize("likelihood", [False, True], ids=["top1", "likelihood"])
@pytest.mark.parametrize("dtype", list(NUMPY), ids=lambda d: d.short)
def test_scores_of_logits(benchmark: Any, dtype: DType, likelihood: bool) -> None:
    rows, classes = 32_000, 1000
    rng = np.random.default_rng(0)
    part = rng.normal(size=(400, classes)).astype(np.float32).astype(NUMPY[dtype])
    logits = np.resize(part, (COUNT, rows // COUNT, classes))
    labels = rng.integers(0, classes, rows // COUNT)
    rank, nll = np.empty((COUNT, rows // COUNT), np.int64), np.empty((COUNT, rows // COUNT))
    top, nan_rows, total = np.empty((1, COUNT), np.int64), np.empty(COUNT, np.int64), np.empty(COUNT)
    arguments: dict[str, Any] = {
        "threads": THREADS,
        "logits": logits.ctypes.data,
        "dtype": dtype.native,
        "shape": logits.shape,
        "strides": [rows // COUNT * classes, classes],
        "base": 0,
        "base_dtype": 0,
        "base_stride": 0,
        "weight": 1.0,
        "scale": 1.0,
        "labels": labels.ctypes.data,
        "ignore": None,
        "k": [1],
        "outputs": [rank.ctypes.data, 0, 0, 0, nll.ctypes.data if likelihood else 0],
        "totals": [array.ctypes.data for array in (top, nan_rows, total)],
    }
    _native.score_logits(**arguments)
    np.testing.assert_array_equal(top[0], (logits.argmax(2) == labels).sum(1))
    benchmark.extra_info["bytes"] = logits.nbytes
    benchmark.pedantic(_native.score_logits, kwargs=arguments, rounds=15, warmup_rounds=2)


@pytest.mark.parametrize("how", ["pysoup", "torch_f32", "torch_f64"])
def test_inner_products_of_a_gradient(benchmark: Any, how: str) -> None:
    """8 bf16 sources of 30 million elements with one f32 gradient, and what torch would be told to do."""
    import torch

    from pysoup.ops import PreparedDots

    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(30_000_000, generator=generator)
    sources = [torch.randn(len(gradient), generator=generator).bfloat16() for _ in range(COUNT)]
    prepared = PreparedDots([gradient], [[x] for x in sources], threads=THREADS)
    doubles = torch.stack([(gradient[: 1 << 20].double() * x[: 1 << 20]).sum() for x in sources])
    first = PreparedDots([gradient[: 1 << 20]], [[x[: 1 << 20]] for x in sources])
    torch.testing.assert_close(first.run()[:, 0], doubles, rtol=0, atol=1e-9)
    dtype = torch.float32 if how == "torch_f32" else torch.float64

    def with_torch() -> list[torch.Tensor]:
        g = gradient.to(dtype)
        return [(g * x).sum() for x in sources]

    benchmark.extra_info["bytes"] = sum(t.nbytes for t in (gradient, *sources))
    benchmark.pedantic(prepared.run if how == "pysoup" else with_torch, rounds=7, warmup_rounds=1)
