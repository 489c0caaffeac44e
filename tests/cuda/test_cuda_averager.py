"""The running average on a device: its sum and its results there, with the bits of the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from devices import Device
from safetensors.torch import save_file
from torch import Tensor, nn

from pysoup import Averager, average_state_dicts
from pysoup.ingredient import Layout
from pysoup.ops import device
from pysoup.targets import Targets


class Net(nn.Module):
    """Odd sizes, a tie, a buffer without a mean, several types."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.first = nn.Linear(13, 7, dtype=dtype)
        self.norm = nn.BatchNorm1d(7)
        self.last = nn.Linear(7, 13, bias=False, dtype=dtype)
        self.tied = self.first.bias


def pool(count: int = 3, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> list[dict[str, Tensor]]:
    result = []
    for _ in range(count):
        state = Net(dtype).state_dict()
        noise = {
            name: torch.randn_like(t.float()).to(t.dtype) * scale
            for name, t in state.items()
            if t.dtype.is_floating_point
        }
        noise["tied"] = noise["first.bias"]
        result.append({name: noise.get(name, t) for name, t in state.items()})
    return result


def moved(state: dict[str, Tensor], to: Device) -> dict[str, Tensor]:
    copies = {t.data_ptr(): to.put(t) for t in state.values()}
    return {name: copies[t.data_ptr()] for name, t in state.items()}


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name].cpu().view(-1).view(torch.uint8), other[name].cpu().view(-1).view(torch.uint8))
        for name in one
    )


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, -0.75, 3.0]])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_running_average_has_the_bits_of_the_cpu(dtype: torch.dtype, weights: list[float], on_device: Device) -> None:
    given = pool(dtype=dtype)
    cpu = Averager(Net(dtype))
    for state, weight in zip(given[:2], weights, strict=False):
        cpu.add(state, weight)
    expected = [cpu.preview(given[2], weight=weights[2]), cpu.result()]
    with on_device.on():
        model = Net(dtype).to(on_device.torch)
        averager = Averager(model)
        for state, weight in zip(given[:2], weights, strict=False):
            averager.add(moved(state, on_device), weight)
        averager.preview(moved(given[2], on_device), out=model, weight=weights[2])
        assert same(model.state_dict(), expected[0])
        assert averager.nonfinite == []
        fresh = averager.result()
        assert same(fresh, expected[1])
        assert fresh["first.weight"].device == on_device.torch
        averager.reset()
        averager.add(moved(given[0], on_device))
        again = averager.result()
    assert same(again, average_state_dicts(given[:1]))
    assert on_device.calls["run_staged"] == 0
    assert on_device.calls["launch_sum"] == 6


def test_preview_writes_the_parameters_themselves(on_device: Device) -> None:
    with on_device.on():
        model = Net().to(on_device.torch)
        averager = Averager(model)
        averager.add(moved(pool(1)[0], on_device))
        targets = Targets(Layout.of(model), averager._accumulators, model, None)
        assert targets.buffer_bytes == 0
        version = model.first.weight._version
        averager.result(out=model)
        assert model.first.weight._version > version


def test_nonfinite_tensors_are_named(on_device: Device) -> None:
    given = pool(2)
    given[1]["last.weight"][3, 4] = float("nan")
    with on_device.on():
        model = Net().to(on_device.torch)
        averager = Averager(model)
        averager.add(moved(given[0], on_device))
        averager.preview(moved(given[1], on_device), out=model)
        assert averager.nonfinite == ["last.weight"]
        averager.result(out=model)
        assert averager.nonfinite == []


def test_sums_of_f64_that_overflow_are_mended(on_device: Device) -> None:
    given = pool(3, torch.float64)
    for state in given:
        state["last.weight"][0] = 1.5e308
    cpu = Averager(Net(torch.float64))
    with on_device.on():
        averager = Averager(Net(torch.float64).to(on_device.torch))
        for state in given[:2]:
            averager.add(moved(state, on_device))
        found = averager.preview(moved(given[2], on_device))
        assert averager.nonfinite == []
    for state in given[:2]:
        cpu.add(state)
    assert same(found, cpu.preview(given[2]))


@pytest.mark.parametrize("room", ["much", "none"])
def test_files_are_added_where_the_sum_is(
    room: str, on_device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = pool(3)
    paths = []
    for k, state in enumerate(given):
        paths.append(tmp_path / f"{k}.safetensors")
        save_file({name: t for name, t in state.items() if name != "tied"}, paths[-1])
    expected = average_state_dicts(given)
    with on_device.on():
        model = Net().to(on_device.torch)
        if room == "none":
            accelerator = device.kernels_for(on_device.torch)
            monkeypatch.setattr(accelerator, "free_bytes", lambda: 0)
        averager = Averager(model)
        averager.add(paths[0])
        averager.add(paths[1])
        assert (averager._sum.accelerator is None) == (room == "none")
        averager.preview(paths[2], out=model)
        assert same(model.state_dict(), expected)
        averager.add(paths[2])
        averager.result(out=model)
        assert same(model.state_dict(), expected)


def test_models_in_host_memory_are_carried_to_the_sum(on_device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    given = pool(3)
    expected = average_state_dicts(given)
    hosted = {tensor.data_ptr() for state in given for tensor in state.values()}
    with on_device.on():
        accelerator = device.kernels_for(on_device.torch)
        assert accelerator is not None
        there = accelerator.holds
        monkeypatch.setattr(accelerator, "holds", lambda tensor: there(tensor) and tensor.data_ptr() not in hosted)
        model = Net().to(on_device.torch)
        averager = Averager(model)
        averager.add(given[0])
        averager.add(given[1])
        averager.preview(given[2], out=model)
        assert same(model.state_dict(), expected)
        assert on_device.calls == {"run_staged": 3}
        averager.add(moved(given[2], on_device))
        assert same(averager.result(), expected)
        assert on_device.calls == {"run_staged": 3, "launch_sum": 2}


@pytest.mark.cuda
def test_models_of_the_cpu_and_of_the_device_mix() -> None:
    given = pool(3)
    expected = average_state_dicts(given)
    model = Net().cuda()
    averager = Averager(model)
    averager.add({name: t.cuda() for name, t in given[0].items()})
    averager.add(given[1])
    averager.add(given[2])
    assert same(averager.result(out=model), expected)
    target = Net()
    averager.result(out=target)
    assert same(target.state_dict(), expected)
    cpu = Averager(Net())
    for state in given:
        cpu.add({name: t.cuda() for name, t in state.items()})
    assert same(cpu.result(out=model), expected)
