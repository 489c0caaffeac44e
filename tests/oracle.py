"""The laws of averaging in exact rational arithmetic: what every kernel must equal, bit for bit, one element at a time.

A value of any type is held as a Python float, which is exact for all of them; rounding is done here, on fractions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Format:
    """An IEEE-like type: ``mantissa`` explicit bits, smallest normal 2**``emin``, largest finite value ``top``."""

    name: str
    bits: int
    mantissa: int
    emin: int
    top: float
    nan: int
    torch: torch.dtype
    saturates: bool = False

    @property
    def carrier(self) -> torch.dtype:
        return {8: torch.uint8, 16: torch.int16, 32: torch.int32, 64: torch.int64}[self.bits]


F64 = Format("f64", 64, 52, -1022, float.fromhex("0x1.fffffffffffffp1023"), 0x7FF8000000000000, torch.float64)
F32 = Format("f32", 32, 23, -126, float.fromhex("0x1.fffffep127"), 0x7FC00000, torch.float32)
F16 = Format("f16", 16, 10, -14, 65504.0, 0x7E00, torch.float16)
BF16 = Format("bf16", 16, 7, -126, float.fromhex("0x1.fep127"), 0x7FC0, torch.bfloat16)
E4M3 = Format("f8_e4m3", 8, 3, -6, 448.0, 0x7F, torch.float8_e4m3fn, saturates=True)
E5M2 = Format("f8_e5m2", 8, 2, -14, 57344.0, 0x7F, torch.float8_e5m2)
FORMATS = (F64, F32, F16, BF16, E4M3, E5M2)
BY_TORCH = {f.torch: f for f in FORMATS}


def round_exact(x: Fraction, to: Format) -> float:
    """``x`` rounded once to nearest even; beyond the range infinite, or the largest value where the type saturates."""
    if x == 0:
        return 0.0
    sign, magnitude = (-1.0, -x) if x < 0 else (1.0, x)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    unit = max(exponent, to.emin) - to.mantissa
    scaled = magnitude / Fraction(2) ** unit
    whole, rest = divmod(scaled.numerator, scaled.denominator)
    twice = 2 * rest
    whole += twice > scaled.denominator or (twice == scaled.denominator and whole % 2)
    if whole * Fraction(2) ** unit > Fraction(to.top):
        return sign * (to.top if to.saturates else math.inf)
    return sign * math.ldexp(whole, unit)


def narrow(x: float, to: Format) -> float:
    """A float as that type, -0.0 and NaN kept."""
    if math.isnan(x) or x == 0:
        return x
    if math.isinf(x):
        return math.copysign(to.top, x) if to.saturates else x
    rounded = round_exact(Fraction(x), to)
    return math.copysign(rounded, x)


def fma(w: float, x: float, acc: float, to: Format) -> float:
    """``w * x + acc``, rounded once."""
    if not (math.isfinite(w) and math.isfinite(x) and math.isfinite(acc)):
        product = math.copysign(0.0, math.copysign(1, w) * math.copysign(1, x)) if 0 in (w, x) else w * x
        if 0 in (w, x) and not (math.isfinite(w) and math.isfinite(x)):
            return math.nan
        return acc if math.isfinite(w) and math.isfinite(x) else product + acc
    exact = Fraction(w) * Fraction(x) + Fraction(acc)
    if exact == 0:
        negative = math.copysign(1, w) * math.copysign(1, x) < 0
        product_is_zero = 0 in (w, x)
        both = negative and math.copysign(1, acc) < 0 and acc == 0 and product_is_zero
        return -0.0 if both else 0.0
    return math.copysign(round_exact(exact, to), -1 if exact < 0 else 1)


def multiply(w: float, x: float, to: Format) -> float:
    negative = math.copysign(1, w) * math.copysign(1, x) < 0
    if not (math.isfinite(w) and math.isfinite(x)):
        return w * x
    return math.copysign(abs(round_exact(Fraction(w) * Fraction(x), to)), -1 if negative else 1)


def divide(a: float, divisor: float, to: Format) -> float:
    if not math.isfinite(a) or a == 0:
        return a
    return math.copysign(round_exact(Fraction(a) / Fraction(divisor), to), a)


def one_element(values: Sequence[float], factors: Sequence[float], divisor: float, acc: Format, out: Format) -> float:
    """The law: a product, one fma for each further value, one division, one rounding; redone smaller on overflow."""

    def total(scale: float) -> float:
        weights = [multiply(narrow(f, acc), scale, acc) for f in factors]
        result = multiply(weights[0], values[0], acc)
        for w, x in zip(weights[1:], values[1:], strict=True):
            result = fma(w, x, result, acc)
        return divide(result, divisor, acc)

    result = total(1.0)
    if not math.isfinite(result):
        down = 2.0**-16 if acc is F32 else 2.0**-64
        result = multiply(total(down), 1 / down, acc)
    return narrow(result, out)


def law_of(weights: Sequence[float] | None, count: int) -> tuple[list[float], float]:
    """Factors and divisor: equal weights sum and divide by K, others are normalised in f64 first."""
    if weights is None or len(set(weights)) == 1:
        return [1.0] * count, float(count)
    total = float(sum(map(Fraction, weights)))
    return [w / total for w in weights], 1.0


def accumulator(sources: Sequence[Format], out: Format) -> Format:
    return F32 if all(f.bits <= 16 for f in (*sources, out)) else F64


def expected_bits(sources: Sequence[Tensor], out: torch.dtype, weights: Sequence[float] | None = None) -> np.ndarray:
    """The bit patterns of the average of flat tensors as numpy unsigned integers."""
    formats = [BY_TORCH[t.dtype] for t in sources]
    to = BY_TORCH[out]
    acc = accumulator(formats, to)
    factors, divisor = law_of(weights, len(sources))
    columns = [t.double().flatten().tolist() for t in sources]
    results = [one_element(row, factors, divisor, acc, to) for row in zip(*columns, strict=True)]
    return np.array([encode(r, to) for r in results], dtype=f"u{to.bits // 8}")


def encode(x: float, fmt: Format) -> int:
    """The bits of a value that is already one of the type's."""
    if math.isnan(x):
        return fmt.nan
    sign = (1 << (fmt.bits - 1)) if math.copysign(1, x) < 0 else 0
    x = abs(x)
    bias = 1 - fmt.emin
    if math.isinf(x):
        exponent_ones = (1 << (fmt.bits - 1 - fmt.mantissa)) - 1
        return sign | exponent_ones << fmt.mantissa
    if x < math.ldexp(1, fmt.emin):
        return sign | int(Fraction(x) / Fraction(2) ** (fmt.emin - fmt.mantissa))
    exponent = math.frexp(x)[1] - 1
    fraction = int((Fraction(x) / Fraction(2) ** exponent - 1) * 2**fmt.mantissa)
    return sign | (exponent + bias) << fmt.mantissa | fraction


def bits_of(tensor: Tensor) -> np.ndarray:
    """The bit patterns of a tensor, flat in logical order, as numpy unsigned integers."""
    size = tensor.element_size()
    carrier = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    return tensor.detach().contiguous().view(carrier).numpy().reshape(-1).view(f"u{size}")


def from_bits(bits: np.ndarray | Sequence[int], dtype: torch.dtype) -> Tensor:
    """The tensor with those bit patterns."""
    fmt = BY_TORCH[dtype]
    raw = np.asarray(bits, dtype=f"u{fmt.bits // 8}")
    return torch.from_numpy(raw.view(f"i{fmt.bits // 8}" if fmt.bits > 8 else "u1").copy()).view(dtype)


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and np.array_equal(bits_of(one), bits_of(other))


@functools.cache
def edges(fmt: Format) -> tuple[int, ...]:
    """The patterns where conversions go wrong: zeros, subnormals, neighbours of 1, the largest, infinite, NaN."""
    one = encode(1.0, fmt)
    smallest_normal = encode(math.ldexp(1, fmt.emin), fmt)
    top = encode(fmt.top, fmt)
    positive = [0, 1, 2, 3, smallest_normal - 1, smallest_normal, smallest_normal + 1, one - 1, one, one + 1]
    positive += [top - 1, top, top + 1, fmt.nan]
    sign = 1 << (fmt.bits - 1)
    return tuple(positive) + tuple(p | sign for p in positive)


def random_bits(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Any bit patterns: a third are edges, a third any bits at all, a third ordinary, so sums are finite."""
    fmt = BY_TORCH[dtype]
    rng = np.random.default_rng(seed)
    any_bits = rng.integers(0, 2**fmt.bits - 1, count, dtype=np.uint64, endpoint=True)
    ordinary = bits_of(torch.from_numpy(rng.standard_normal(count)).to(dtype)).astype(np.uint64)
    edge = rng.choice(np.array(edges(fmt), dtype=np.uint64), count)
    kind = rng.integers(0, 3, count)
    chosen = np.where(kind == 0, edge, np.where(kind == 1, any_bits, ordinary))
    return from_bits(chosen.astype(f"u{fmt.bits // 8}"), dtype)
