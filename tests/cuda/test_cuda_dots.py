"""Inner products on a device: the bits of the CPU."""

from __future__ import annotations

import pytest
import torch
from devices import Device
from oracle import FORMATS, same_bits
from torch import Tensor

from pysoup.errors import IncompatibleError
from pysoup.ops import PreparedDots, dots

SIZES = (0, 1, 3, 33, 255, 256, 257, 1025, 16384, 40000)
DTYPES = [f.torch for f in FORMATS]


def numbers(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("gradient", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_products_have_the_bits_of_the_cpu(gradient: torch.dtype, source: torch.dtype, on_device: Device) -> None:
    g = [numbers(n, gradient, n) for n in SIZES]
    x = [[numbers(n, source, n + k) for n in SIZES] for k in range(5)]
    expected = dots(g, x)
    with on_device.on():
        found = dots(on_device.put(g), on_device.put(x))
    assert on_device.calls["launch_dots"] == 1
    assert found.device == on_device.torch
    assert same_bits(found.cpu(), expected)


@pytest.mark.parametrize("count", [0, 1, 4, 7, 72])
def test_any_number_of_mixed_sources_has_the_bits_of_the_cpu(count: int, on_device: Device) -> None:
    g = [numbers(n, DTYPES[n % 6], n) for n in (700, 0, 300, 31)]
    x = [[numbers(len(t), DTYPES[(k // 5 + s) % 6], k + s) for s, t in enumerate(g)] for k in range(count)]
    with on_device.on():
        found = dots(on_device.put(g), on_device.put(x))
    assert same_bits(found.cpu(), dots(g, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_views_of_one_flat_tensor_have_the_bits_of_the_cpu(dtype: torch.dtype, on_device: Device) -> None:
    """Segments side by side, whose addresses are aligned to their elements only."""
    flat_g, flat_x = numbers(40_000, dtype, 1), [numbers(40_000, dtype, k) for k in range(5)]
    sizes = [1, 20_001, 6, 19_992]
    expected = dots(flat_g.split(sizes), [x.split(sizes) for x in flat_x])
    with on_device.on():
        moved = on_device.put([flat_g, *flat_x])
        found = dots(moved[0].split(sizes), [x.split(sizes) for x in moved[1:]])
    assert same_bits(found.cpu(), expected)


def test_prepared_products_follow_the_tensors(on_device: Device) -> None:
    g, x = [numbers(1000, torch.float32, 1)], [[numbers(1000, torch.bfloat16, k)] for k in range(4)]
    with on_device.on():
        moved_g, moved_x = on_device.put(g), on_device.put(x)
        prepared = PreparedDots(moved_g, moved_x)
        prepared.settle()
        out = torch.empty(4, 1, dtype=torch.float64, device=on_device.torch)
        for _ in range(3):
            assert prepared.run(out) is out
            assert same_bits(out.cpu(), dots([t.cpu() for t in moved_g], x))
            moved_g[0].mul_(1.5)
    assert on_device.calls["launch_dots"] >= 3


@pytest.mark.cuda
def test_prepared_products_can_be_recorded_in_a_graph() -> None:
    g, x = [numbers(100_000, torch.float32, 1)], [[numbers(100_000, torch.bfloat16, k)] for k in range(6)]
    moved_g, moved_x = [t.cuda() for t in g], [[t.cuda() for t in column] for column in x]
    prepared = PreparedDots(moved_g, moved_x)
    prepared.settle()
    out = torch.zeros(6, 1, dtype=torch.float64, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        prepared.run(out)
    moved_g[0].mul_(2.0)
    graph.replay()
    assert same_bits(out.cpu(), dots([2.0 * g[0]], x))


@pytest.mark.cuda
def test_tensors_on_two_devices_are_refused() -> None:
    with pytest.raises(IncompatibleError, match="several devices: found cuda:0 and cpu"):
        dots([torch.ones(3, device="cuda:0")], [[torch.ones(3)]])
