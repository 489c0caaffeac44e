"""Learned soups in a model on a device: the same numbers wherever the ingredients are kept, those of the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from devices import Device
from safetensors.torch import save_file
from torch import Tensor, nn

from pysoup import learned_soup
from pysoup.soups import LearnedSoup

COUNT = 4


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 7))


def checkpoints(folder: Path) -> list[str]:
    paths = []
    for number in range(COUNT):
        generator = torch.Generator().manual_seed(number)
        state: dict[str, Tensor] = {}
        for name, value in net().state_dict().items():
            noise = torch.randn(value.shape, generator=generator) * 0.1 * (number + 1)
            state[name] = value + noise.abs() if value.is_floating_point() else value
        paths.append(str(folder / f"{number}.safetensors"))
        save_file(state, paths[-1])
    return paths


def learned(paths: list[str], device: torch.device, **options: Any) -> LearnedSoup:
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = net().eval()(x).argmax(1)
    model = net().to(device)
    return learned_soup(paths, model, (x, y), granularity="tensor", epochs=3, batch=24, **options)


@pytest.mark.parametrize("blocks", [None, 2])
def test_weights_do_not_depend_on_where_ingredients_are(on_device: Device, tmp_path: Path, blocks: int | None) -> None:
    paths = checkpoints(tmp_path)
    on_cpu = learned(paths, torch.device("cpu"), blocks=blocks)
    with on_device.on():
        soups = [
            learned(paths, on_device.torch, place=place, blocks=blocks)
            for place in ("files", "memory", "device", "auto")
        ]
    for soup in soups:
        assert torch.equal(soup.granule_weights, soups[0].granule_weights)
        assert soup.losses == soups[0].losses
        assert all(torch.equal(soup.state_dict()[n], t) for n, t in soups[0].state_dict().items())
    assert (soups[0].granule_weights - 1 / COUNT).abs().max() > 0.01
    torch.testing.assert_close(soups[0].granule_weights, on_cpu.granule_weights, rtol=1e-2, atol=1e-3)
