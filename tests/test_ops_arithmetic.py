"""The laws of averaging against exact rational arithmetic, on every instruction set."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from oracle import BF16, BY_TORCH, E4M3, E5M2, F16, F32, F64, FORMATS, Format, bits_of, expected_bits, from_bits
from oracle import random_bits as any_bits
from torch import Tensor

from pysoup import average_state_dicts

LAWS: dict[str, list[float] | None] = {
    "equal": None,
    "unequal": [0.3, 1.7, 0.9],
    "negative": [2.0, -0.7, 0.1],
    "dyadic": [0.5, 0.25, 0.25],
}
PAIRS = list(itertools.product(FORMATS, FORMATS))


@functools.cache
def pair_inputs(out: Format) -> list[dict[str, Tensor]]:
    """Three inputs, one tensor for each pair of source types (the third has the first's)."""
    count = 30
    states: list[dict[str, Tensor]] = [{}, {}, {}]
    for number, (a, b) in enumerate(PAIRS):
        for k, fmt in enumerate((a, b, a)):
            states[k][f"{a.name} {b.name}"] = any_bits(count, fmt.torch, 1000 * number + 10 * out.bits + k)
    return states


@functools.cache
def pair_answers(out: Format, law: str) -> dict[str, np.ndarray]:
    states = pair_inputs(out)
    return {name: expected_bits([s[name] for s in states], out.torch, LAWS[law]) for name in states[0]}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("out", FORMATS, ids=lambda f: f.name)
def test_every_pair_of_dtypes_follows_the_law_exactly(isa: str, out: Format, law: str) -> None:
    result = average_state_dicts(pair_inputs(out), LAWS[law], dtype=out.torch)
    answers = pair_answers(out, law)
    wrong = {
        name: [(hex(int(x)), hex(int(y))) for x, y in zip(bits_of(result[name]), answers[name], strict=True) if x != y]
        for name in answers
    }
    assert not {name: pairs for name, pairs in wrong.items() if pairs}


@pytest.mark.parametrize("weights", [None, [1.0, -0.25, 3.0, 0.5, 0.7]], ids=["equal", "unequal"])
def test_five_inputs_of_five_dtypes_follow_the_law_exactly(isa: str, weights: list[float] | None) -> None:
    orders = list(itertools.permutations(FORMATS, 5))[::97]
    for number, order in enumerate(orders):
        sources = [any_bits(33, fmt.torch, 50 * number + k) for k, fmt in enumerate(order)]
        out = FORMATS[number % 6].torch
        result = average_state_dicts([{"x": s} for s in sources], weights, dtype=out)["x"]
        np.testing.assert_array_equal(bits_of(result), expected_bits(sources, out, weights))


@pytest.mark.parametrize("fmt", [F16, BF16, E4M3, E5M2], ids=lambda f: f.name)
def test_every_pattern_alone_is_itself_and_nan_is_canonical(isa: str, fmt: Format) -> None:
    patterns = np.arange(2**fmt.bits, dtype=f"u{fmt.bits // 8}")
    x = from_bits(patterns, fmt.torch)
    result = bits_of(average_state_dicts([{"x": x}])["x"])
    nan = torch.isnan(x.double()).numpy()
    np.testing.assert_array_equal(result, np.where(nan, fmt.nan, patterns))
    assert nan.sum() == {16: {F16: 2046, BF16: 254}.get(fmt), 8: {E4M3: 2, E5M2: 6}.get(fmt)}[fmt.bits]


@pytest.mark.parametrize("fmt", [F16, BF16, E4M3, E5M2], ids=lambda f: f.name)
@pytest.mark.parametrize("wide", [F32, F64], ids=lambda f: f.name)
def test_every_pattern_widens_exactly(isa: str, fmt: Format, wide: Format) -> None:
    x = from_bits(np.arange(2**fmt.bits, dtype=f"u{fmt.bits // 8}"), fmt.torch)
    result = average_state_dicts([{"x": x}], dtype=wide.torch)["x"].numpy()
    exponent_bits = fmt.bits - 1 - fmt.mantissa
    codes = np.arange(2**fmt.bits)
    exponent, fraction = (codes >> fmt.mantissa) % 2**exponent_bits, codes % 2**fmt.mantissa
    subnormal = fraction * 2.0 ** (fmt.emin - fmt.mantissa)
    normal = (2**fmt.mantissa + fraction) * 2.0 ** (np.maximum(exponent, 1) - 1 + fmt.emin - fmt.mantissa)
    value = np.where(exponent == 0, subnormal, normal)
    last = exponent == 2**exponent_bits - 1
    if fmt is E4M3:
        value = np.where(codes % 128 == 127, np.nan, value)
    else:
        value = np.where(last, np.where(fraction == 0, np.inf, np.nan), value)
    value = np.where(codes >> (fmt.bits - 1) == 1, -value, value)
    np.testing.assert_array_equal(result, value.astype(result.dtype))
    np.testing.assert_array_equal(np.signbit(result)[~np.isnan(value)], np.signbit(value)[~np.isnan(value)])


@pytest.mark.parametrize("fmt", [F64, F32], ids=lambda f: f.name)
def test_random_patterns_alone_are_themselves_and_nan_is_canonical(isa: str, fmt: Format) -> None:
    x = any_bits(5000, fmt.torch, 3)
    expected = np.where(torch.isnan(x).numpy(), fmt.nan, bits_of(x))
    np.testing.assert_array_equal(bits_of(average_state_dicts([{"x": x}])["x"]), expected)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_equal_checkpoints_average_to_themselves(isa: str, fmt: Format) -> None:
    if fmt is F64:  # K * x may round in f64, so only values with room to spare
        x = torch.cat([torch.randn(200).double(), torch.tensor([-0.0, 0.0, 2.0**-1070, -(2.0**-1074), 1e300])])
    else:
        x = any_bits(300, fmt.torch, 4)
        x = torch.cat([x, from_bits([1 << (fmt.bits - 1), 0], fmt.torch)])
    expected = np.where(torch.isnan(x.double()).numpy(), fmt.nan, bits_of(x))
    for k in range(1, 65):
        result = average_state_dicts([{"x": x}] * k)["x"]
        np.testing.assert_array_equal(bits_of(result), expected, err_msg=f"K = {k}")


@pytest.mark.parametrize("out", [F16, BF16, E4M3, E5M2], ids=lambda f: f.name)
def test_f64_is_rounded_once_and_not_through_f32(isa: str, out: Format) -> None:
    """Values a hair beside the midpoint of two neighbours: rounding to f32 first would land on the midpoint."""
    patterns = np.arange(0, 2 ** (out.bits - 1), 1 if out.bits == 8 else 97)
    low = from_bits(patterns, out.torch).double()
    high = from_bits(patterns + 1, out.torch).double()
    finite = torch.isfinite(low) & torch.isfinite(high)
    low, high = low[finite], high[finite]
    middle = (low + high) / 2
    hair = middle * 2.0**-40
    x = torch.cat([middle, middle + hair, middle - hair])
    x = torch.cat([x, -x])
    up = torch.from_numpy(patterns[finite.numpy()] % 2 == 1)
    nearest = torch.cat([torch.where(up, high, low), high, low])
    expected = torch.cat([nearest, -nearest])
    result = average_state_dicts([{"x": x}], dtype=out.torch)["x"]
    assert torch.equal(result.double(), expected)
    if out.bits == 16:
        assert not torch.equal(x.float().to(out.torch).double(), expected), "the cases tell the two apart"


@pytest.mark.parametrize("k", [2, 3, 64])
@pytest.mark.parametrize("fmt", [F64, F32, BF16, F16, E5M2], ids=lambda f: f.name)
def test_finite_mean_of_the_largest_values_does_not_overflow_on_the_way(isa: str, fmt: Format, k: int) -> None:
    top = torch.tensor([fmt.top, -fmt.top, fmt.top], dtype=torch.float64).to(fmt.torch)
    result = average_state_dicts([{"x": top}] * k)["x"].double()
    if fmt is F64:  # K * x rounds
        assert torch.isfinite(result).all()
        torch.testing.assert_close(result, top.double(), rtol=2**-50, atol=0)
    else:
        assert torch.equal(result, top.double())


@pytest.mark.parametrize("fmt", [F64, F32, BF16], ids=lambda f: f.name)
def test_large_weights_that_cancel_do_not_overflow_on_the_way(isa: str, fmt: Format) -> None:
    x = torch.full((70,), fmt.top, dtype=torch.float64).to(fmt.torch)
    for weights in ([2.0, -1.0], [-1.0, 2.0], [0.5, 0.5]):
        assert torch.equal(average_state_dicts([{"x": x}, {"x": x}], weights)["x"], x)


def test_overflow_goes_where_each_type_says(isa: str) -> None:
    x = torch.tensor([1e6, -1e6, 500.0, -464.0, 464.1, 65519.0, 65520.0, 61439.0, 61440.0, 1e39], dtype=torch.float64)
    inf = float("inf")
    expected = {
        torch.float8_e4m3fn: [448, -448, 448, -448, 448, 448, 448, 448, 448, 448],
        torch.float8_e5m2: [inf, -inf, 512, -448, 448, inf, inf, 57344, inf, inf],
        torch.float16: [inf, -inf, 500, -464, 464, 65504, inf, 61440, 61440, inf],
        torch.float32: [1e6, -1e6, 500, -464, float(np.float32(464.1)), 65519, 65520, 61439, 61440, inf],
    }
    for dtype, values in expected.items():
        result = average_state_dicts([{"x": x}], dtype=dtype)["x"].double()
        assert result.tolist() == [float(v) for v in values], dtype


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_nan_results_have_one_bit_pattern(isa: str, fmt: Format) -> None:
    nan = float("nan")
    a = torch.tensor([nan, 1.0, -nan, float("inf"), 2.0] * 20).to(fmt.torch)
    b = torch.tensor([1.0, nan, nan, float("-inf"), 2.0] * 20).to(fmt.torch)
    if fmt is E4M3:
        a[3::5], b[3::5] = a[0], b[0]  # the type has no infinity
    found = bits_of(average_state_dicts([{"x": a}, {"x": b}])["x"])
    assert set(found[np.arange(100) % 5 != 4].tolist()) == {fmt.nan}
    signs = from_bits(found[np.arange(100) % 5 == 4], fmt.torch)
    assert (signs.double() == 2.0).all()


@pytest.fixture
def flush_denormal() -> object:
    assert torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


def tiny_inputs(fmt: Format) -> list[Tensor]:
    count = (1 << fmt.mantissa) - 1
    patterns = np.linspace(1, max(count, 2), 200).astype(np.uint64)
    sizes = f"u{fmt.bits // 8}"
    return [from_bits(np.roll(patterns, k).astype(sizes), fmt.torch) for k in range(3)]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("weights", [None, [0.2, 0.5, 0.3]], ids=["equal", "unequal"])
def test_subnormals_survive_flush_to_zero_of_the_caller(
    isa: str, weights: list[float] | None, threads: int, flush_denormal: object
) -> None:
    torch.set_flush_denormal(False)
    tiny = torch.tensor([1e-40])
    cases = [(fmt, out, tiny_inputs(fmt)) for fmt, out in PAIRS]
    answers = [expected_bits([s[:40] for s in sources], out.torch, weights) for fmt, out, sources in cases[::5]]
    large = [s.repeat(4000) for s in tiny_inputs(BF16)]  # enough for worker threads
    before = average_state_dicts([{"x": s} for s in large], weights, threads=threads)["x"]
    assert (bits_of(before) != 0).any()
    torch.set_flush_denormal(True)
    for (_, out, sources), answer in zip(cases[::5], answers, strict=True):
        result = average_state_dicts([{"x": s[:40]} for s in sources], weights, dtype=out.torch, threads=threads)["x"]
        np.testing.assert_array_equal(bits_of(result), answer)
    after = average_state_dicts([{"x": s} for s in large], weights, threads=threads)["x"]
    np.testing.assert_array_equal(bits_of(after), bits_of(before))
    # The caller's own setting is as it was: this sum of subnormals is flushed.
    assert (tiny + tiny).item() == 0.0
    torch.set_flush_denormal(False)
    average_state_dicts([{"x": tiny}])
    assert (tiny + tiny).item() != 0.0


def test_formats_cover_all_float_dtypes_of_the_library() -> None:
    from pysoup import ops

    assert {d for d in ops.SUPPORTED if d.is_floating_point} == set(BY_TORCH)
