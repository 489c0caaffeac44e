"""Small and awkward cases, bit for bit against the CPU's kernels, before anything is timed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import pysoup
from pysoup import ops

from .place import Run, poison

SIZES = (0, 1, 2, 3, 31, 32, 33, 127, 1000, 4097, 70_001)
FLOATS = tuple(
    getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
    if hasattr(torch, name)
)
SPECIAL = (0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1e-45, -1e-40, 3e38, -3e38, 65504.0, 6e-8, 448.0)

WEIGHTS: tuple[tuple[int, list[float] | None], ...] = (
    (1, None),
    (2, [0.25, 0.75]),
    (5, None),
    (9, [1.0, -2.0, 0.5, 3.0, 0.0, 1.0, 1.0, 2.0, 4.0]),
)


def small_cases(run: Run) -> None:
    """Sums, scores and dots of odd sizes and every type, unaligned, with NaN, infinities and subnormals."""
    with _poisoned_memory():
        _sums(run)
        _scores(run)
        _dots(run)


@contextlib.contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Every new tensor is full of NaN or of the largest integer: what is not written is noticed."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _sizes(run: Run) -> tuple[int, ...]:
    return SIZES[:-2] if run.dry else SIZES


def _values(size: int, dtype: torch.dtype, seed: int, offset: int = 0) -> Tensor:
    """Random values of all magnitudes, specials among them, ``offset`` elements behind an aligned address."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size + offset, generator=generator, dtype=torch.float64)
    values *= torch.exp2(torch.randint(-20, 6, values.shape, generator=generator).double())
    for i, special in enumerate(SPECIAL):
        if size > 40:
            values[offset + (37 * (i + 1) + seed) % size] = special
    return values.to(dtype)[offset:]


def _to(run: Run, tensor: Tensor, offset: int = 0) -> Tensor:
    """The same values on the device, ``offset`` elements behind an aligned address."""
    memory = torch.empty(tensor.numel() + offset, dtype=tensor.dtype, device=run.device)
    view = memory[offset:].view(tensor.shape)
    view.copy_(tensor)
    return view


def _sums(run: Run) -> None:
    """Segments of all sizes and alignments in one call; types alone and mixed, equal weights and others, in place."""
    for count, weights in WEIGHTS[: 2 if run.dry else None]:
        models: list[dict[str, Tensor]] = [
            {f"{d} {n} {a}": _values(n, d, 7 * k + n) for d in FLOATS for n in _sizes(run) for a in range(3)}
            for k in range(count)
        ]
        there = [{name: _to(run, t, int(name[-1]) + k % 2) for name, t in m.items()} for k, m in enumerate(models)]
        for dtype in (None, "f32", "bf16"):
            with run.on_cpu():
                expected = pysoup.average_state_dicts(models, weights, dtype=dtype)
            found = pysoup.average_state_dicts(there, weights, dtype=dtype)
            _compare(run, f"sum of {count} into {dtype or 'their types'}", found, expected)
        # Mixed types: model k has the types of another row.
        turned = [_turned(m, k) for k, m in enumerate(models)]
        here = [_turned(m, k) for k, m in enumerate(there)]
        with run.on_cpu():
            expected = pysoup.average_state_dicts(turned, weights, dtype="f16")
        _compare(run, f"mixed sum of {count}", pysoup.average_state_dicts(here, weights, dtype="f16"), expected)
        # In place, and into memory that holds NaN.
        out = {name: torch.empty_like(t) for name, t in there[0].items()}
        poison([t for t in out.values() if t.itemsize > 1])
        with run.on_cpu():
            expected = pysoup.average_state_dicts(models, weights)
        _compare(run, f"sum of {count} into out", pysoup.average_state_dicts(there, weights, out=out), expected)
        found = pysoup.average_state_dicts(there, weights, out=there[0])
        _compare(run, f"sum of {count} in place", found, expected)
    run.passed("sums: all types, sizes and alignments")


def _turned(model: dict[str, Tensor], by: int) -> dict[str, Tensor]:
    """The same names with the tensors of another type under each."""
    names = list(model)
    step = len(names) // len(FLOATS) * (by % len(FLOATS))
    return dict(zip(names, [model[name] for name in names[step:] + names[:step]], strict=True))


def _scores(run: Run) -> None:
    per_sample = ("prediction", "correct", "margin", "confidence", "nll")
    shapes = ((1, 5, 2), (3, 7, 33), (2, 9, 1000), (2, 3, 4097), (1, 2, 20_001))
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for number, (candidates, samples, classes) in enumerate(shapes[: 3 if run.dry else None]):
            size = candidates * samples * classes
            logits = _values(size, torch.float32, number).clamp(-80, 80).to(dtype).view(candidates, samples, classes)
            base = logits[0].flip(1).contiguous().float()
            labels = torch.arange(samples) * 7919 % classes
            labels[samples // 2] = -100
            asked: dict[str, Any] = {"k": (1, min(5, classes)), "per_sample": per_sample, "ignore_index": -100}
            there, offset = _to(run, logits, number % 2), labels.to(run.device)
            with run.on_cpu():
                one = pysoup.score_logits(logits, labels, **asked)
                two = pysoup.score_ensemble(base, logits, labels, 0.3, scale=0.7, **asked)
            name = f"scores {dtype} {candidates} x {samples} x {classes}"
            _same_scores(run, name, pysoup.score_logits(there, offset, **asked), one)
            found = pysoup.score_ensemble(_to(run, base), there, offset, 0.3, scale=0.7, **asked)
            _same_scores(run, f"ensemble {name}", found, two)
    run.passed("scores: all types, odd numbers of classes")


def _same_scores(run: Run, name: str, found: pysoup.LogitScores, expected: pysoup.LogitScores) -> None:
    for k, counts in expected.top.items():
        run.check(f"{name}, top-{k}", found.top[k], counts)
    for what in ("nll", "nan_rows", "prediction", "correct", "margin", "confidence", "nll_per_sample"):
        run.check(f"{name}, {what}", getattr(found, what), getattr(expected, what))


def _dots(run: Run) -> None:
    for dtype in FLOATS:
        gradient = [_finite(n, torch.float32, n) for n in _sizes(run)]
        sources = [[_finite(n, dtype, n + k + 1) for n in _sizes(run)] for k in range(5)]
        with run.on_cpu():
            expected = ops.dots(gradient, sources)
        found = ops.dots(
            [_to(run, g, 1) for g in gradient], [[_to(run, t, k % 3) for t in row] for k, row in enumerate(sources)]
        )
        run.check(f"dots with {dtype}", found, expected)
    run.passed("dots: all types and sizes")


def _finite(size: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.nan_to_num(_values(size, torch.float64, seed), 0.5, 2.0, -2.0).clamp(-400, 400).to(dtype)


def _compare(run: Run, what: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, tensor in expected.items():
        run.check(f"{what}: {name}", found[name], tensor)
