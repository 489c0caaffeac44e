"""Errors in units of the last place of the output's dtype, against a mean taken in a wider type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

_CHUNK = 1 << 20
# Explicit significand bits and the smallest normal exponent.
_FORMATS = {torch.float64: (52, -1022), torch.float32: (23, -126), torch.bfloat16: (7, -126), torch.float16: (10, -14)}
# What the reference itself may be off by, far below what is looked for: a correctly rounded result is within 0.5.
_HALF = 0.5 + 1e-3


@dataclass
class UlpError:
    """Over all elements whose mean is not 0: the largest and the mean error in ulp, the share not correctly rounded.

    ``zeros_missed`` counts the elements whose mean is exactly 0 and whose result is not: no ulp measures those.
    """

    largest: float = 0.0
    mean: float = 0.0
    misrounded: float = 0.0
    zeros_missed: int = 0
    elements: int = 0


def ulp_errors(results: Mapping[str, torch.Tensor], inputs: Sequence[torch.Tensor]) -> dict[str, UlpError]:
    """Each of ``results`` (flat, any dtype) in ulp of the inputs' dtype against the inputs' mean."""
    dtype, elements = inputs[0].dtype, inputs[0].numel()
    found = {name: UlpError(elements=elements) for name in results}
    for begin in range(0, elements, _CHUNK):
        part = slice(begin, begin + _CHUNK)
        exact = _mean([x[part] for x in inputs])
        zero, spacing = exact == 0, _spacing(exact, dtype)
        for name, result in results.items():
            got = result[part].to(torch.float64).numpy()
            error = np.where(zero, 0, np.abs(got - exact) / spacing)
            seen = found[name]
            seen.largest = max(seen.largest, float(error.max()))
            seen.mean += float(error.sum()) / elements
            seen.misrounded += int((error > _HALF).sum()) / elements
            seen.zeros_missed += int((zero & (got != 0)).sum())
    return found


# Steps from one number to another, counted up to each of these; the last count is of what lies beyond.
STEPS = (0, 1, 2, 8, 64, 1024)


@dataclass
class Distance:
    """Two weighted averages of the same inputs beside each other, over all elements.

    ``different`` counts those with different bits; ``steps`` how many steps from one representable number to the next
    lie between, in the classes of ``STEPS`` (0, 1, 2, 3 to 8, ..., more). Where the inputs nearly cancel, steps are
    tiny beside the inputs and an f32 sum's rounding is many of them: ``largest_ulp`` is the largest difference in ulp
    at the largest of the result and the weighted inputs.
    """

    different: int
    steps: list[int]
    largest_ulp: float
    elements: int


def distance(a: torch.Tensor, b: torch.Tensor, inputs: Sequence[torch.Tensor], shares: Sequence[float]) -> Distance:
    """``a`` and ``b`` are averages of ``inputs`` with weights ``shares``; all are flat and of one dtype."""
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[a.element_size()]
    found = Distance(0, [0] * (len(STEPS) + 1), 0.0, a.numel())
    for begin in range(0, a.numel(), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        found.different += int((a[part].view(bits) != b[part].view(bits)).sum())
        steps = (_ordered(a[part].view(bits)) - _ordered(b[part].view(bits))).abs_().numpy()
        for i, count in enumerate(np.bincount(np.searchsorted(STEPS, steps), minlength=len(STEPS) + 1)):
            found.steps[i] += int(count)
        scaled = [np.abs(w * x[part].to(torch.float64).numpy()) for w, x in zip(shares, inputs, strict=True)]
        ours, theirs = (x[part].to(torch.float64).numpy() for x in (a, b))
        largest = np.max([*scaled, np.abs(ours)], axis=0)
        found.largest_ulp = max(found.largest_ulp, float((np.abs(ours - theirs) / _spacing(largest, a.dtype)).max()))
    return found


def _mean(parts: Sequence[torch.Tensor]) -> np.ndarray:
    """In f64, where sums of a few narrower numbers are exact but for extreme spreads; of f64 in longdouble."""
    total = np.zeros(parts[0].numel(), dtype=np.longdouble if parts[0].dtype == torch.float64 else np.float64)
    for part in parts:
        total += part.to(torch.float64).numpy()
    return total / len(parts)


def _spacing(exact: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The distance of neighbouring numbers of ``dtype`` around ``exact``."""
    bits, smallest = _FORMATS[dtype]
    _, exponent = np.frexp(exact.astype(np.float64))
    exponent = np.where(exact == 0, smallest, np.maximum(exponent - 1, smallest))
    return np.ldexp(1.0, exponent - bits)


def _ordered(bits: torch.Tensor) -> torch.Tensor:
    """Bit patterns as integers in the order of the numbers; -0.0 and 0.0 are one."""
    wide = bits.to(torch.int64)
    return torch.where(wide < 0, torch.iinfo(bits.dtype).min - wide, wide)
