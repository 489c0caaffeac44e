"""Mixtures in a model on a device: the bits of the CPU, wherever the ingredients are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mixed_models
import pytest
import torch
from devices import Device, Emulated
from oracle import same_bits
from safetensors.torch import save_file
from torch import Tensor, nn

from pysoup import ops
from pysoup.checkpoint import open_checkpoint
from pysoup.mixture import Mixture

WEIGHTS = [[0.25, -1.5, 0.0], [0.0, 0.0, 0.0], [1.0, 0.3, 1.0]]


class Net(mixed_models.Net):
    """With one matrix that is larger than a small ring."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(301, 203))


def saved(directory: Path, dtype: torch.dtype) -> list[tuple[str, Any]]:
    sources = []
    for k in range(3):
        generator = torch.Generator().manual_seed(k)
        state = {
            n: torch.randn(t.shape, generator=generator).to(dtype) if t.is_floating_point() else t
            for n, t in Net().state_dict().items()
            if n != "head.weight"
        }
        save_file({n: t.contiguous() for n, t in state.items()}, directory / f"{k}.safetensors")
        sources.append((str(k), open_checkpoint(directory / f"{k}.safetensors")))
    return sources


def numbers(model: nn.Module, sources: Any, device: torch.device, **options: Any) -> tuple[list[Tensor], Tensor, str]:
    with Mixture(model, sources) as probe:
        names = probe.names
    generator = torch.Generator().manual_seed(7)
    gradients: list[Tensor | None] = [
        torch.randn(model.state_dict()[n].shape, generator=generator).to(device) for n in names
    ]
    gradients[2] = None
    with Mixture(model, sources, [names[g::3] for g in range(3)], **options) as mixture:
        assert mixture.write(WEIGHTS) == []
        return [t.cpu().contiguous().clone() for t in mixture.mixed()], mixture.dots(gradients), mixture.place


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_bits_of_the_cpu_in_every_place(tmp_path: Path, dtype: torch.dtype, on_device: Device) -> None:
    sources = saved(tmp_path, dtype)
    expected = numbers(Net().to(dtype), sources, torch.device("cpu"), place="memory")
    for options in ({}, {"memory": "300KiB", "threads": 3}, {"place": "memory"}, {"place": "device"}):
        with on_device.on():
            on_device.calls.clear()
            found = numbers(Net().to(dtype).to(on_device.torch), sources, on_device.torch, **options)
        assert all(map(same_bits, found[0], expected[0])), options
        assert found[1].device.type == "cpu"
        assert same_bits(found[1], expected[1]), options
        if options.get("place") == "device":
            assert on_device.calls == {"launch_sum": 1, "launch_dots": 1}
        elif "place" not in options:
            assert on_device.calls == {"run_staged": 1}


def test_state_dicts_on_the_device_are_read_there(tmp_path: Path, on_device: Device) -> None:
    sources = saved(tmp_path, torch.float32)
    expected = numbers(Net(), sources, torch.device("cpu"))
    with on_device.on():
        there = [(name, on_device.put(source.state_dict())) for name, source in sources[:2]]
        mixed = [*there, sources[2]]
        found = numbers(Net().to(on_device.torch), mixed, on_device.torch)
    assert all(map(same_bits, found[0], expected[0]))
    assert same_bits(found[1], expected[1])
    assert on_device.calls == {"run_staged": 1, "launch_dots": 1}


def test_values_that_are_not_finite_are_reported(tmp_path: Path, on_device: Device) -> None:
    states = [nn.Linear(3, 2).state_dict() for _ in range(2)]
    states[1]["bias"][1] = torch.inf
    with on_device.on():
        model = nn.Linear(3, 2).to(on_device.torch)
        for place in ("memory", "device"):
            with Mixture(model, [(str(k), state) for k, state in enumerate(states)], place=place) as mixture:
                assert mixture.write([1.0, 0.5]) == ["bias"]
                assert mixture.write([1.0, 0.0]) == []


def test_auto_takes_what_the_device_has_room_for(
    tmp_path: Path, on_device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = saved(tmp_path, torch.float32)
    with on_device.on():
        model = Net().to(on_device.torch)
        accelerator = ops.kernels_for(next(model.parameters()))
        assert accelerator is not None
        with Mixture(model, sources, place="auto") as mixture:
            assert mixture.place == "device"
            room = mixture.nbytes
        monkeypatch.setattr(type(accelerator), "free_bytes", lambda self: 2 * room - 1)
        with Mixture(model, sources, place="auto") as mixture:
            assert mixture.place == "memory"
        monkeypatch.setattr("pysoup.mixture.available_memory", lambda: 2 * room - 1)
        with Mixture(model, sources, place="auto") as mixture:
            assert mixture.place == "files"


def test_each_part_of_a_model_on_several_devices_is_mixed_where_it_is(
    tmp_path: Path, emulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = saved(tmp_path, torch.float32)
    expected = numbers(Net(), sources, torch.device("cpu"))
    for place in ("files", "memory", "auto"):
        device = Device("emulated", torch.device("cpu"), emulated)
        model = Net()
        first, second = Emulated(), Emulated()
        with device.on():
            places = {t.data_ptr(): (first, second, None)[i % 3] for i, t in enumerate(model.state_dict().values())}
            monkeypatch.setattr(ops, "kernels_for", lambda t, places=places: places.get(t.data_ptr()))
            monkeypatch.setattr(ops, "kernels_for_all", lambda tensors: None)
            found = numbers(model, sources, torch.device("cpu"), place=place)
        monkeypatch.undo()
        # Emulated devices share the host's memory: what is kept there is theirs.
        assert device.calls == ({"run_staged": 2} if place == "files" else {"launch_sum": 2})
        assert all(map(same_bits, found[0], expected[0]))
        assert same_bits(found[1], expected[1])
