"""The arithmetic of the kernels in plain torch: their specification, an oracle for tests, and the path for devices
without kernels. Same bits as the native code for every input (f8 outputs are rounded by hand, see ``_round_f8``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

_TOTALS = 256
_SMALL = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def weighted_sum(sources: Sequence[Tensor], factors: Sequence[float], divisor: float, *, out: Tensor) -> Tensor:
    """``out = round(sum_k factors[k] * sources[k] / divisor)``, the contract of ``csrc/kernels.h`` step by step.

    f32 accumulator where every source and ``out`` have 16 bits or fewer, else f64. Where the sum is not finite it is
    redone with factors scaled by 2^-16 (f32) or 2^-64 (f64), and scaled back after the division.
    """
    narrow = out.dtype in _SMALL and all(x.dtype in _SMALL for x in sources)
    acc_dtype = torch.float32 if narrow else torch.float64
    down = 2.0**-16 if narrow else 2.0**-64
    factors = torch.tensor(factors, dtype=torch.float64).to(acc_dtype).tolist()
    result = _accumulate(sources, factors, acc_dtype) / divisor
    redo = ~torch.isfinite(result)
    if bool(redo.any()):
        scaled = _accumulate(sources, [f * down for f in factors], acc_dtype) / divisor / down
        result = torch.where(redo, scaled, result)
    return out.copy_(_narrow(result, out.dtype))


def _accumulate(sources: Sequence[Tensor], factors: Sequence[float], dtype: torch.dtype) -> Tensor:
    total = sources[0].to(dtype) * factors[0]
    for x, factor in zip(sources[1:], factors[1:], strict=True):
        total = total + x.to(dtype) if factor == 1.0 else fma(factor, x.to(dtype), total)
    return total


def fma(factor: float | Tensor, x: Tensor, acc: Tensor) -> Tensor:
    """``factor * x + acc`` rounded once, without a fused instruction; f64 ones as :func:`_error_free_fma` says."""
    if acc.dtype == torch.float32:
        # The product of 24 and 11 significant bits is exact in f64; rounding the sum to odd there and to nearest in f32
        # equals rounding once (Boldo and Melquiond 2008).
        product = x.double() * factor
        return _odd_sum(product, acc.double()).float()
    exact = _error_free_fma(factor, x, acc)
    # Near the top of the range the splitting overflows: there, everything 2^-64 smaller and back.
    scaled = _error_free_fma(factor, x * 2.0**-64, acc * 2.0**-64) * 2.0**64
    result = torch.where(torch.isfinite(exact), exact, scaled)
    return torch.where(torch.isfinite(result), result, x * factor + acc)  # infinities and NaN as they come


def _error_free_fma(factor: float | Tensor, x: Tensor, acc: Tensor) -> Tensor:
    """Boldo and Melquiond's fma; exact for f64 magnitudes from 2^-969 to 2^996."""
    high, low = _two_product(x, factor)
    tail_high, tail_low = _two_sum(acc, low)
    head, head_low = _two_sum(high, tail_high)
    return head + _odd_sum(tail_low, head_low)


def _two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``a + b`` as rounded sum and exact error (Knuth)."""
    total = a + b
    shadow = total - a
    return total, (a - (total - shadow)) + (b - shadow)


def _split(a: Tensor) -> tuple[Tensor, Tensor]:
    """Two halves of 26 bits each (Veltkamp)."""
    scaled = a * 134217729.0
    high = scaled - (scaled - a)
    return high, a - high


def _two_product(x: Tensor, factor: float | Tensor) -> tuple[Tensor, Tensor]:
    """``x * factor`` as rounded product and exact error (Dekker), barring overflow and underflow."""
    product = x * factor
    x_high, x_low = _split(x)
    f_high, f_low = _split(factor if isinstance(factor, Tensor) else torch.full_like(x, factor))
    error = ((x_high * f_high - product) + x_high * f_low + x_low * f_high) + x_low * f_low
    return product, error


def _odd_sum(a: Tensor, b: Tensor) -> Tensor:
    """``a + b`` in f64 rounded to odd: an inexact result gets the neighbour whose last bit is 1."""
    total, error = _two_sum(a, b)
    bits = total.view(torch.int64)
    inexact = (error != 0) & torch.isfinite(total) & ((bits & 1) == 0)
    # One step towards the error: away from zero where the signs agree.
    away = (error > 0) == (total > 0)
    stepped = torch.where(away, bits + 1, bits - 1)
    return torch.where(inexact, stepped, bits).view(torch.float64)


def _narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """One rounding to nearest even from the accumulator's type; NaN becomes the canonical one."""
    x = torch.where(torch.isnan(x), torch.full_like(x, float("nan")), x)
    if dtype in (torch.float64, torch.float32) or (dtype == torch.float16 and x.dtype == torch.float32):
        return x.to(dtype)
    if dtype == torch.float16:
        return _round_magnitude(x, 10, -14).to(torch.float32).to(dtype)
    if dtype == torch.bfloat16:
        codes = _round_magnitude(x.double(), 7, -126).to(torch.float32).to(dtype).view(torch.int16)
        return torch.where(torch.isnan(x), torch.full_like(codes, 0x7FC0), codes).view(dtype)
    rounded = _round_magnitude(x.double(), *((3, -6) if dtype == torch.float8_e4m3fn else (2, -14)))
    return _round_f8(rounded, dtype)


def _round_f8(rounded: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded values as f8: e4m3 saturates at 448, e5m2 becomes infinite above 57344 (torch versions differ)."""
    if dtype == torch.float8_e4m3fn:
        rounded = rounded.clamp(-448.0, 448.0)
    else:
        infinite = torch.copysign(torch.full_like(rounded, torch.inf), rounded)
        rounded = torch.where(rounded.abs() > 57344.0, infinite, rounded)
    codes = rounded.to(torch.float32).to(dtype).view(torch.uint8)
    return torch.where(torch.isnan(rounded), torch.full_like(codes, 0x7F), codes).view(dtype)


def _round_magnitude(x: Tensor, mantissa: int, min_exponent: int) -> Tensor:
    """f64 values rounded to ``mantissa`` fraction bits, with the subnormals of a type of that smallest exponent."""
    _, exponent = torch.frexp(x)
    quantum = torch.clamp(exponent.long() - 1, min=min_exponent) - mantissa
    rounded = torch.round(x * _power_of_two(-quantum)) * _power_of_two(quantum)
    return torch.where(torch.isfinite(x), torch.copysign(rounded, x), x)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in f64, exact, for exponents of normal numbers (``torch.ldexp`` goes through f32)."""
    return ((exponent + 1023) << 52).view(torch.float64)


def ensemble_logits(base: Tensor, candidate: Tensor, weight: float, scale: float) -> Tensor:
    """``scale * fma(weight, candidate, base)`` in f32, or f64 where an input is f64; the factors are rounded to it."""
    wide = torch.float64 if torch.float64 in (base.dtype, candidate.dtype) else torch.float32
    factors: list[float] = torch.tensor([weight, scale], dtype=torch.float64).to(wide).tolist()
    values: Tensor = fma(factors[0], candidate.to(wide), base.to(wide)) * factors[1]
    return values


def score_rows(
    base: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    *,
    weight: float,
    scale: float,
    ignore_label: int | None,
    k: Sequence[int],
    wanted: Collection[str],
) -> dict[str, Tensor]:
    """:func:`pysoup.ops.score_rows` in plain torch, on any device and without waiting for it.

    Labels out of range count as the nearest class: indexing with them would abort a CUDA context.
    """
    counted = torch.ones_like(labels, dtype=torch.bool) if ignore_label is None else labels != ignore_label
    labels = labels.clamp(0, logits.shape[2] - 1)
    likelihood = not {"confidence", "nll"}.isdisjoint(wanted)
    parts = []
    for m, begin, end in _parts(logits):
        values = logits[m, begin:end].detach()
        if base is not None:
            values = ensemble_logits(base[begin:end].detach(), values, weight, scale)
        parts.append(_row_scores(values, labels[begin:end], likelihood))
    result = {name: torch.cat([part[name] for part in parts]).view(logits.shape[:2]) for name in parts[0]}
    for name, values in result.items():
        result[name] = values.where(counted, {"rank": -2, "prediction": -1}.get(name, torch.nan))
    rank = result["rank"] = result["rank"].clamp(max=max((1, *k)))
    totals = {
        "top": torch.stack([((rank >= 0) & (rank < limit)).sum(1) for limit in k])
        if k
        else rank.new_empty(0, len(rank)),
        "nan_rows": (rank == -1).sum(1),
    }
    if "nll" in wanted:
        totals["total"] = _total(result["nll"].where(counted, 0.0))
    return {name: values for name, values in result.items() if name == "rank" or name in wanted} | totals


def _total(rows: Tensor) -> Tensor:
    """The sums of rows ``[M, N]`` in the order of the kernels: 256 side by side, joined as a tree."""
    count = -(-rows.shape[1] // _TOTALS)
    padded = torch.nn.functional.pad(rows, (0, count * _TOTALS - rows.shape[1])).view(len(rows), count, _TOTALS)
    sums = rows.new_zeros(len(rows), _TOTALS)
    for part in padded.unbind(1):
        sums = sums + part
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return sums[:, 0]


def _parts(logits: Tensor) -> Iterator[tuple[int, int, int]]:
    """Candidate, first row and end of what is taken at once: intermediate results are several times as large."""
    candidates, rows, classes = logits.shape
    step = max(1, (4 << 20) // classes)
    for m in range(candidates):
        for begin in range(0, max(rows, 1), step):
            yield m, begin, min(begin + step, rows)


def _row_scores(logits: Tensor, labels: Tensor, likelihood: bool) -> dict[str, Tensor]:
    """The contract of ``csrc/kernels.h`` step by step, for rows ``[N, C]``.

    The likelihood is relative to the second largest logit: where the largest is far above it, a sum relative to the
    largest would lose the rest.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    classes = torch.arange(logits.shape[1], device=logits.device)
    own = labels[:, None]
    target = logits.gather(1, own)
    ahead = (logits > target) | ((logits == target) & (classes < own))
    nan = logits.isnan().any(1)
    found = {"rank": torch.where(nan, -1, ahead.sum(1)), "prediction": torch.where(nan, -1, logits.argmax(1))}
    # Some devices have no f64.
    wide = logits if logits.device.type == "mps" else logits.double()
    target = wide.gather(1, own).squeeze(1)
    best = wide.max(1).values
    others = wide.masked_fill(classes == found["prediction"][:, None], -torch.inf)
    second = others.max(1).values
    margin = target - torch.where(found["rank"] == 0, second, best) + 0.0  # -0.0 becomes 0.0
    found["margin"] = margin.masked_fill(nan, torch.nan)
    if likelihood:
        relative = torch.exp(others - second.masked_fill(torch.isneginf(second), 0.0)[:, None]).sum(1)
        # How much the others weigh, the largest weighing 1.
        rest = (torch.exp(second - best) * relative).masked_fill(nan | torch.isinf(best), torch.nan)
        found["confidence"] = 1.0 / (1.0 + rest)
        found["nll"] = (best - target) + torch.log1p(rest)
    return found
