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


@dataclass
class Distance:
    """Two results beside each other, over all elements, in ulp of their dtype.

    ``largest`` and ``beyond_one`` (how many elements differ by more than 1) count steps from one result to the other.
    Where the inputs nearly cancel, such steps are tiny beside the inputs, and an f32 sum's own rounding is many of
    them; ``at_inputs`` is the largest difference in ulp at the magnitude of the largest input.
    """

    largest: int
    beyond_one: int
    at_inputs: float
    elements: int


def distance(a: torch.Tensor, b: torch.Tensor, inputs: Sequence[torch.Tensor]) -> Distance:
    """``a`` and ``b`` are averages of ``inputs``; all are flat and of one dtype."""
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[a.element_size()]
    found = Distance(0, 0, 0.0, a.numel())
    for begin in range(0, a.numel(), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        steps = (_ordered(a[part].view(bits)) - _ordered(b[part].view(bits))).abs_()
        found.largest = max(found.largest, int(steps.max()))
        found.beyond_one += int((steps > 1).sum())
        largest = np.max([x[part].to(torch.float64).abs().numpy() for x in inputs], axis=0)
        gap = (a[part].to(torch.float64) - b[part].to(torch.float64)).abs().numpy()
        found.at_inputs = max(found.at_inputs, float((gap / _spacing(largest, a.dtype)).max()))
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
