"""Inner products: exact to the promised bound, in the promised order, the same bits everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from oracle import BF16, E4M3, F32, F64, FORMATS, Format, bits_of, fma, random_bits, same_bits
from torch import Tensor

from pysoup import _native
from pysoup.errors import IncompatibleError
from pysoup.ops import PreparedDots, dots
from pysoup.reference_dots import dots as reference_dots

SIZES = (0, 1, 2, 3, 31, 32, 33, 127, 255, 256, 257, 511, 513, 1000, 1025, 4097)
TILE, SUMS = 16384, 256


def format_id(value: Format) -> str:
    return value.name


def numbers(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Ordinary numbers of any sign."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator, dtype=torch.float64).to(dtype)


def generic(gradient: Sequence[Tensor], sources: Sequence[Sequence[Tensor]]) -> Tensor:
    with _native.force_isa("generic"):
        return dots(gradient, sources, threads=1)


def tree(sums: list[float]) -> float:
    while len(sums) > 1:
        sums = [sums[i] + sums[i + 1] for i in range(0, len(sums), 2)]
    return sums[0]


def by_the_contract(gradient: Tensor, source: Tensor) -> float:
    """One segment in exact rational arithmetic, rounded once a step."""
    total = [0.0] * SUMS
    pairs = list(zip(gradient.double().tolist(), source.double().tolist(), strict=True))
    for t, begin in enumerate(range(0, len(pairs), TILE)):
        sums = [0.0] * SUMS
        for i, (g, x) in enumerate(pairs[begin : begin + TILE]):
            sums[i % SUMS] = fma(g, x, sums[i % SUMS], F64)
        total[t % SUMS] += tree(sums)
    result = tree(total) + 0.0
    return math.nan if math.isnan(result) else result


def at_byte(tensor: Tensor, offset: int) -> Tensor:
    """A copy of a flat tensor that starts ``offset`` bytes after an address divisible by 64."""
    size = tensor.element_size()
    store = np.zeros(tensor.numel() * size + 192, dtype=np.uint8)
    begin = -store.ctypes.data % 64 + offset
    store[begin : begin + tensor.numel() * size] = bits_of(tensor).view(np.uint8)
    return torch.frombuffer(memoryview(store)[begin:], dtype=tensor.dtype, count=tensor.numel())


@pytest.mark.parametrize("source", FORMATS, ids=format_id)
@pytest.mark.parametrize("gradient", FORMATS, ids=format_id)
def test_products_follow_the_contract_for_any_bits(gradient: Format, source: Format) -> None:
    # Of any bits a few at a time, as more come to NaN.
    g = [*random_bits(300, gradient.torch, 1).split(3), numbers(600, gradient.torch, 2)]
    x = [*random_bits(300, source.torch, 3).split(3), numbers(600, source.torch, 4)]
    expected = torch.tensor([[by_the_contract(*pair) for pair in zip(g, x, strict=True)]], dtype=torch.float64)
    for isa in _native.capabilities()["isas"]:
        with _native.force_isa(isa):
            assert same_bits(dots(g, [x]), expected), isa


@pytest.mark.parametrize("source", FORMATS, ids=format_id)
@pytest.mark.parametrize("gradient", FORMATS, ids=format_id)
def test_products_equal_the_reference_for_all_isas_and_threads(gradient: Format, source: Format) -> None:
    g = [numbers(n, gradient.torch, n) for n in (0, 1, 33, 257, 1025, TILE, 2 * TILE + 300)]
    x = [[numbers(len(one), source.torch, 10 * k + len(one)) for one in g] for k in range(2)]
    expected = reference_dots(g, x)
    assert expected.shape == (2, len(g))
    for isa in _native.capabilities()["isas"]:
        with _native.force_isa(isa):
            for threads in (1, 3):
                assert same_bits(dots(g, x, threads=threads), expected), (isa, threads)


def test_mixed_dtypes_at_any_address_equal_the_scalar_code(isa: str) -> None:
    kinds = [f.torch for f in FORMATS]
    for offset in (0, 1, 2, 3, 5, 8, 17):
        sizes = SIZES[1:]
        g = [at_byte(numbers(n, kinds[n % 6], n), offset) for n in sizes]
        x = [[at_byte(numbers(n, kinds[(n + k) % 6], n + k), 3 * offset) for n in sizes] for k in range(11)]
        expected = generic([t.clone() for t in g], [[t.clone() for t in column] for column in x])
        for threads in (1, 3):
            assert same_bits(dots(g, x, threads=threads), expected)


@pytest.mark.parametrize("dtype", [f.torch for f in FORMATS], ids=str)
def test_error_is_within_the_bound_of_the_exact_value(dtype: torch.dtype) -> None:
    for n in (1, 300, 20_000, 70_000):
        g, x = numbers(n, dtype, 1), numbers(n, dtype, 2)
        pairs = list(zip(g.double().tolist(), x.double().tolist(), strict=True))
        exact = sum((Fraction(a) * Fraction(b) for a, b in pairs), Fraction(0))
        size = math.fsum(abs(a * b) for a, b in pairs)
        error = abs(Fraction(dots([g], [[x]]).item()) - exact)
        assert error <= Fraction(80 + n // TILE // SUMS) / 2**53 * Fraction(size)


def test_cancellation_of_16_bit_inputs_costs_nothing(isa: str) -> None:
    """All products and partial sums are exact: so is a sum of 60 bits' range whose large parts cancel."""
    n = 40_000
    g = torch.ones(n, dtype=torch.bfloat16)
    x = torch.randint(-127, 128, (n,), generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    x[0], x[-1] = 2.0**40, -(2.0**40)
    assert dots([g], [[x]]).item() == x[1:-1].double().sum().item()


def test_more_tiles_than_sums_equal_the_reference() -> None:
    x = (torch.arange((SUMS + 2) * TILE + 5) % 1013).to(torch.bfloat16)
    g = x.flip(0) / 3
    assert same_bits(dots([g], [[x]]), reference_dots([g], [[x]]))


def test_nan_and_infinity_are_results_of_their_segment_alone(isa: str) -> None:
    g = [torch.ones(300), torch.ones(300), torch.ones(300), torch.ones(300)]
    x = [torch.ones(300) for _ in g]
    x[0][299], x[1][7], x[2][3], x[2][4] = math.nan, math.inf, math.inf, -math.inf
    found = dots(g, [x])
    assert bits_of(found).tolist()[::2] == [F64.nan] * 2
    assert found[0, 1::2].tolist() == [math.inf, 300.0]


def test_no_result_is_minus_zero(isa: str) -> None:
    g = [torch.tensor([-0.0]), torch.tensor([2.0**-1000], dtype=torch.float64), torch.empty(0)]
    x = [torch.tensor([1.0]), torch.tensor([-(2.0**-1000)], dtype=torch.float64), torch.empty(0)]
    assert [str(v) for v in dots(g, [x])[0].tolist()] == ["0.0"] * 3
    assert [str(v) for v in reference_dots(g, [x])[0].tolist()] == ["0.0"] * 3


def test_subnormals_count_even_where_torch_flushes_them(isa: str) -> None:
    tiny = torch.full((1000,), 2.0**-133, dtype=torch.bfloat16)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush")
    try:
        found = dots([torch.ones(1000)], [[tiny]])
    finally:
        torch.set_flush_denormal(False)
    assert found.item() == 1000 * 2.0**-133


def test_shapes_and_strides_do_not_matter() -> None:
    g, x = numbers(600, torch.float32, 1).view(20, 30), numbers(600, torch.bfloat16, 2).view(20, 30)
    expected = dots([g], [[x]])
    assert same_bits(dots([g], [[x.t().contiguous().t()]]), expected)
    assert same_bits(dots([g], [[torch.cat([x, x], 1)[:, :30]]]), expected)
    assert same_bits(dots([g.view(600)], [[x.reshape(600)]]), expected)
    assert same_bits(dots([g.t()], [[x.t()]]), expected), "one memory order: as they lie"
    negated = torch.view_as_complex(torch.stack([x.float(), x.float()], -1)).conj().imag
    assert negated.is_neg()
    assert same_bits(dots([g], [[negated]]), -expected)
    scalar = dots([torch.tensor(3.0)], [[torch.tensor(0.5)], [torch.tensor(2.0)]])
    assert scalar.tolist() == [[1.5], [6.0]]


def test_products_of_nothing_have_the_right_shape() -> None:
    assert dots([], []).shape == (0, 0)
    assert dots([], [[], []]).shape == (2, 0)
    assert dots([torch.ones(3)], []).shape == (0, 1)
    assert dots([torch.empty(0, 4)], [[torch.empty(0, 4)]]).tolist() == [[0.0]]
    for arguments in (([], []), ([], [[], []]), ([torch.ones(3)], []), ([torch.ones(0)], [[torch.ones(0)]])):
        assert same_bits(reference_dots(*arguments), dots(*arguments))


def test_gradient_of_mixing_weights_is_the_one_of_autograd() -> None:
    """The loss of a soup of K linear models as a function of its weights (the paper's learned soup)."""
    generator = torch.Generator().manual_seed(1)
    ingredients = [[torch.randn(5, 7, generator=generator), torch.randn(5, generator=generator)] for _ in range(4)]
    data, labels = torch.randn(30, 7, generator=generator), torch.randint(5, (30,), generator=generator)
    weights = torch.full((4, 2), 0.25, requires_grad=True)
    mixed = [sum(w * part[s] for w, part in zip(weights[:, s], ingredients, strict=True)) for s in range(2)]
    soup = [torch.as_tensor(t) for t in mixed]
    for parameter in soup:
        parameter.retain_grad()
    torch.nn.functional.cross_entropy(data @ soup[0].T + soup[1], labels).backward()
    gradients = [torch.as_tensor(p.grad) for p in soup]
    torch.testing.assert_close(dots(gradients, ingredients).float(), weights.grad, rtol=1e-5, atol=1e-7)


def test_parameters_are_taken_as_they_are() -> None:
    module = torch.nn.Linear(40, 30)
    parameters = list(module.parameters())
    found = dots([torch.ones_like(p) for p in parameters], [parameters])
    assert not found.requires_grad
    assert same_bits(found, dots([torch.ones_like(p) for p in parameters], [[p.detach() for p in parameters]]))


def test_prepared_products_follow_the_tensors(isa: str) -> None:
    g, x = (
        [numbers(n, torch.float32, n) for n in SIZES],
        [[numbers(n, torch.bfloat16, n + k) for n in SIZES] for k in (1, 2)],
    )
    prepared = PreparedDots(g, x)
    out = torch.full((2, len(SIZES)), 7.0, dtype=torch.float64)
    assert prepared.run(out) is out
    assert same_bits(out, dots(g, x))
    for tensor in g:
        tensor.mul_(-3)
    assert same_bits(prepared.run(), dots(g, x))
    assert not same_bits(prepared.run(), out)
    prepared.settle()


@pytest.mark.parametrize(
    ("gradient", "sources", "message"),
    [
        (
            [torch.ones(2)],
            [[torch.ones(2)], []],
            "source 1 has another number of tensors than the gradient: found 0, expected 1",
        ),
        ([torch.ones(2)], [[torch.ones(3)]], r"tensor 'w': shape of source 0: found \[3\], expected \[2\]"),
        (
            [torch.ones(2)],
            [[torch.ones(2).int()]],
            "tensor 'w': no inner product of this dtype: found torch.int32, expected floating point",
        ),
        ([torch.ones(2).cfloat()], [[torch.ones(2)]], "found torch.complex64, expected floating point"),
        ([torch.ones(2).bool()], [[torch.ones(2)]], "found torch.bool"),
        (
            [torch.ones(2).to_sparse()],
            [[torch.ones(2)]],
            r"tensor 'w': no inner product of this kind of tensor: found sparse",
        ),
        ([torch.ones(2, device="meta")], [[torch.ones(2)]], "found meta tensor"),
        ([[1.0, 2.0]], [[torch.ones(2)]], "found list, not a tensor"),
    ],
)
def test_what_does_not_fit_is_refused(gradient: list[Tensor], sources: list[list[Tensor]], message: str) -> None:
    with pytest.raises(IncompatibleError, match=message):
        dots(gradient, sources, names=["w"])


def test_f8_and_64_bit_inputs_meet_in_one_call() -> None:
    g = [numbers(50, torch.float64, 1)]
    x = [[numbers(50, f.torch, 2)] for f in (F64, F32, BF16, E4M3)]
    expected = [math.fsum((g[0] * t[0].double()).tolist()) for t in x]
    np.testing.assert_allclose(dots(g, x)[:, 0], expected, rtol=1e-14)
