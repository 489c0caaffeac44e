"""The same bits whatever the instruction set, the threads, the size, the alignment or where the result goes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from oracle import BF16, E4M3, E5M2, F16, F32, F64, FORMATS, Format, bits_of, expected_bits, random_bits, same_bits
from torch import Tensor

from pysoup import _native, average_state_dicts, reference

SIZES = [0, 1, 2, 3, 15, 16, 17, 31, 33, 63, 64, 65, 127, 1000, 1023, 1024, 1025, 4097]
WEIGHTS = {1: [2.0], 2: [0.3, 0.7], 3: [0.2, 1.9, 0.4]}
PAIRS = [
    (F32, F32),
    (BF16, BF16),
    (F16, F16),
    (F64, F64),
    (F32, BF16),
    (BF16, F32),
    (E4M3, E5M2),
    (E5M2, F16),
    (F64, F16),
]


def pair_id(value: object) -> str:
    return "-".join(f.name for f in value) if isinstance(value, tuple) else str(value)


def some_weights(count: int) -> list[float]:
    return [0.1 + (7 * k % 5) / 3 for k in range(count)]


def generic(states: list[dict[str, Tensor]], weights: list[float] | None, **options: object) -> dict[str, Tensor]:
    """The same call on the plain scalar code, one thread."""
    with _native.force_isa("generic"):
        return average_state_dicts(states, weights, threads=1, **options)


def at_byte(tensor: Tensor, offset: int) -> Tensor:
    """A copy of a flat tensor that starts ``offset`` bytes after an address divisible by 64."""
    size = tensor.element_size()
    store = np.zeros(tensor.numel() * size + 192, dtype=np.uint8)
    begin = -store.ctypes.data % 64 + offset
    store[begin : begin + tensor.numel() * size] = bits_of(tensor).view(np.uint8)
    return torch.frombuffer(memoryview(store)[begin:], dtype=tensor.dtype, count=tensor.numel())


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
def test_odd_sizes_in_one_call_equal_the_scalar_code(isa: str, pair: tuple[Format, Format]) -> None:
    source, out = pair
    states = [{str(n): random_bits(n, source.torch, 100 * k + n) for n in SIZES} for k in range(3)]
    for weights in (None, WEIGHTS[3]):
        expected = generic(states, weights, dtype=out.torch)
        for threads in (1, 2, 3, 8):
            result = average_state_dicts(states, weights, dtype=out.torch, threads=threads)
            assert [n for n in result if not same_bits(result[n], expected[n])] == []


@pytest.mark.parametrize("pair", [(F32, F32), (BF16, BF16), (F64, F32)], ids=pair_id)
@pytest.mark.parametrize("k", [1, 2, 3, 7, 16, 17, 33, 64])
def test_number_of_inputs_and_threads_do_not_change_bits(isa: str, k: int, pair: tuple[Format, Format]) -> None:
    source, out = pair
    states = [{"x": random_bits(2051, source.torch, i)} for i in range(k)]
    for weights in (None, some_weights(k)):
        expected = generic(states, weights, dtype=out.torch)["x"]
        head = [s["x"][:40] for s in states]
        np.testing.assert_array_equal(bits_of(expected)[:40], expected_bits(head, out.torch, weights))
        for threads in (1, 8):
            result = average_state_dicts(states, weights, dtype=out.torch, threads=threads)["x"]
            assert same_bits(result, expected)


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
def test_threads_do_not_change_bits_of_a_large_tensor(isa: str, pair: tuple[Format, Format]) -> None:
    source, out = pair
    states = [{"x": random_bits(300_001, source.torch, i)} for i in range(3)]
    expected = generic(states, WEIGHTS[3], dtype=out.torch)["x"]
    for threads in (1, 2, 3, 8):
        assert same_bits(average_state_dicts(states, WEIGHTS[3], dtype=out.torch, threads=threads)["x"], expected)


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
def test_misaligned_inputs_and_outputs_do_not_change_bits(isa: str, pair: tuple[Format, Format]) -> None:
    source, out = pair
    for n in (17, 65, 1025, 2200):
        sources = [random_bits(n, source.torch, i) for i in range(3)]
        expected = generic([{"x": s} for s in sources], WEIGHTS[3], dtype=out.torch)["x"]
        for elements in (1, 2, 3):
            moved = [
                torch.cat([torch.zeros(elements + i).to(s.dtype), s])[elements + i :] for i, s in enumerate(sources)
            ]
            target = torch.empty(n + 8, dtype=out.torch)[elements : elements + n]
            average_state_dicts([{"x": m} for m in moved], WEIGHTS[3], out={"x": target})
            assert same_bits(target, expected)
        for offset in (1, 3, 7):  # not even a multiple of the element size
            moved = [at_byte(s, offset + i) for i, s in enumerate(sources)]
            target = at_byte(torch.zeros(n + 1, dtype=out.torch), offset)[:n]
            average_state_dicts([{"x": m} for m in moved], WEIGHTS[3], out={"x": target})
            assert same_bits(target, expected)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("pair", [(F32, F32), (BF16, BF16), (F64, F64), (F32, E4M3)], ids=pair_id)
def test_large_outputs_equal_small_ones_wherever_they_start(
    isa: str, pair: tuple[Format, Format], threads: int
) -> None:
    """Outputs of 4 MiB and more in total are written past the caches, by another path."""
    source, out = pair
    part = [random_bits(5003, source.torch, i) for i in range(2)]
    times = (5 << 20) // (out.bits // 8) // 5003 + 1
    expected = bits_of(generic([{"x": p} for p in part], WEIGHTS[2], dtype=out.torch)["x"])
    large = [p.repeat(times) for p in part]
    fresh = average_state_dicts([{"x": p} for p in large], WEIGHTS[2], dtype=out.torch, threads=threads)["x"]
    assert (bits_of(fresh).reshape(times, -1) == expected).all()
    offsets = [1, 5, 16] if out.bits < 64 else [1]
    for offset in offsets:
        target = torch.empty(len(large[0]) + 16, dtype=out.torch)[offset : offset + len(large[0])]
        average_state_dicts([{"x": p} for p in large], WEIGHTS[2], out={"x": target}, threads=threads)
        assert (bits_of(target).reshape(times, -1) == expected).all(), offset
    store = np.full(large[0].numel() * out.bits // 8 + 64, 0xAA, dtype=np.uint8)
    target = torch.frombuffer(memoryview(store)[3:-61], dtype=out.torch)
    average_state_dicts([{"x": p} for p in large], WEIGHTS[2], out={"x": target}, threads=threads)
    assert (bits_of(target).reshape(times, -1) == expected).all()
    assert (store[:3] == 0xAA).all()
    assert (store[-61:] == 0xAA).all(), "nothing is written outside the output"


@pytest.mark.parametrize("n", [1, 17, 1025, 4097])
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_nothing_beyond_the_output_is_written(isa: str, fmt: Format, n: int) -> None:
    guard = torch.full((n + 64,), 7, dtype=torch.float32).to(fmt.torch)
    before = bits_of(guard).copy()
    average_state_dicts([{"x": random_bits(n, fmt.torch, 1)}], out={"x": guard[32 : 32 + n]})
    after = bits_of(guard)
    np.testing.assert_array_equal(after[:32], before[:32])
    np.testing.assert_array_equal(after[32 + n :], before[32 + n :])


@pytest.mark.parametrize("fmt", [F32, BF16, F64, E4M3], ids=lambda f: f.name)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_in_place_equals_fresh(isa: str, fmt: Format, place: int) -> None:
    states = [
        {"a": random_bits(n, fmt.torch, i), "b": random_bits(n + 3, fmt.torch, 9 + i)} for i, n in enumerate([4099] * 3)
    ]
    for weights in (None, WEIGHTS[3]):
        expected = average_state_dicts(states, weights)
        own = [{n: t.clone() for n, t in s.items()} for s in states]
        average_state_dicts(own, weights, out=own[place])
        assert all(same_bits(own[place][n], expected[n]) for n in expected)
        others = [k for k in range(3) if k != place]
        assert all(same_bits(own[k][n], states[k][n]) for k in others for n in expected), (
            "the other inputs are as they were"
        )


def test_one_tensor_in_pieces_equals_the_whole(isa: str) -> None:
    sources = [random_bits(20_000, torch.bfloat16, i) for i in range(3)]
    whole = average_state_dicts([{"x": s} for s in sources], WEIGHTS[3])["x"]
    cuts = [0, 1, 64, 1000, 1001, 5555, 12_345, 20_000]
    spans = list(itertools.pairwise(cuts))
    pieces = average_state_dicts([{str(a): s[a:b] for a, b in spans} for s in sources], WEIGHTS[3])
    assert same_bits(torch.cat([pieces[str(a)] for a, _ in spans]), whole)


@pytest.mark.parametrize("out", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("weights", [None, [0.3, 1.7, -0.9]], ids=["equal", "unequal"])
def test_plain_torch_specification_equals_native(out: Format, weights: list[float] | None) -> None:
    factors, divisor = ([1.0] * 3, 3.0) if weights is None else ([w / sum(weights) for w in weights], 1.0)
    for number, (a, b) in enumerate(itertools.product(FORMATS, FORMATS)):
        sources = [random_bits(400, f.torch, 3 * number + i) for i, f in enumerate((a, b, a))]
        native = torch.empty(400, dtype=out.torch)
        average_state_dicts([{"x": s} for s in sources], factors, out={"x": native}, normalize=False)
        if weights is None:
            native = average_state_dicts([{"x": s} for s in sources], dtype=out.torch)["x"]
        plain = reference.weighted_sum(sources, factors, divisor, out=torch.empty(400, dtype=out.torch))
        np.testing.assert_array_equal(bits_of(plain), bits_of(native), err_msg=f"{a.name} {b.name} -> {out.name}")
