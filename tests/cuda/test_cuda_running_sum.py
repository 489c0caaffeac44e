"""The running sum of a model on a device: there, in host memory or in a file, with the bits of the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from devices import Device, Emulated
from safetensors.torch import save_file
from test_cuda_averager import Net, moved, pool, same

from pysoup import Averager, greedy_soup, ops, pruned_soup
from pysoup.ingredient import Layout
from pysoup.ops import device
from pysoup.targets import Targets

PLACES = {"device": None, "memory": "1GiB", "file": 0}


def averager_of(place: str, model: Any, on: Device, patch: pytest.MonkeyPatch) -> Averager:
    if place != "device":
        patch.setattr(device.kernels_for(on.torch), "free_bytes", lambda: 0)
    return Averager(model, sum_memory=PLACES[place], threads=2, memory="100KiB")


def saved(state: dict[str, torch.Tensor], path: Path) -> Path:
    save_file({name: t for name, t in state.items() if name != "tied"}, path)
    return path


def results(given: list[dict[str, torch.Tensor]], weights: list[float], dtype: torch.dtype) -> list[Any]:
    """What the average is after each of the models, on the CPU."""
    cpu, found = Averager(Net(dtype)), []
    for state, weight in zip(given, weights, strict=True):
        cpu.add(state, weight)
        found.append(cpu.result())
    return found


@pytest.mark.parametrize("sources", ["device", "files", "mixed"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_place_of_the_sum_changes_no_bit(
    dtype: torch.dtype, place: str, sources: str, on_device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, weights = pool(4, dtype), [0.5, -0.75, 3.0, 2.0] if sources == "mixed" else [1.0] * 4
    expected = results(given, weights, dtype)
    with on_device.on():
        model = Net(dtype).to(on_device.torch)
        averager = averager_of(place, model, on_device, monkeypatch)
        for k, (state, weight) in enumerate(zip(given, weights, strict=True)):
            is_file = sources == "files" or (sources == "mixed" and k % 2)
            source = saved(state, tmp_path / f"{k}.safetensors") if is_file else moved(state, on_device)
            averager.preview(source, out=model, weight=weight)
            assert same(model.state_dict(), expected[k])
            averager.add(source, weight)
            averager.result(out=model)
            assert same(model.state_dict(), expected[k])
        assert averager.sum_place == (str(on_device.torch) if place == "device" else place)
    assert averager.nonfinite == []
    if place != "device":
        # Each addition and each result carries the sum to the device, but for files that are added on the CPU.
        on_cpu = {"device": 0, "files": 4, "mixed": 2}[sources]
        small = (4 - on_cpu) if dtype == torch.float64 else 0
        assert on_device.calls["run_staged"] == 3 + 4 + 4 - on_cpu + small + (sources == "files")
        assert on_device.calls["launch_sum"] == (sources != "files")


@pytest.mark.parametrize("place", ["memory", "file"])
def test_models_on_the_device_are_added_there_to_a_sum_beside_it(
    place: str, on_device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum passes by in small pieces: no copy of a model is made in host memory."""
    with on_device.on():
        averager = averager_of(place, Net(torch.float32).to(on_device.torch), on_device, monkeypatch)
        for state in pool(2, torch.float32):
            averager.add(moved(state, on_device))
    assert on_device.calls == {"run_staged": 2}


def test_overflow_of_f64_is_mended_from_a_file(on_device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    given = pool(3, torch.float64)
    for state in given:
        state["last.weight"][0] = 1.5e308
    expected = results(given, [1.0] * 3, torch.float64)
    with on_device.on():
        averager = averager_of("file", Net(torch.float64).to(on_device.torch), on_device, monkeypatch)
        for state in given[:2]:
            averager.add(moved(state, on_device))
        model = Net(torch.float64).to(on_device.torch)
        averager.preview(moved(given[2], on_device), out=model)
        assert averager.nonfinite == []
        assert same(model.state_dict(), expected[2])
        assert same(averager.result(), expected[1])


@pytest.mark.parametrize("recipe", [greedy_soup, pruned_soup])
def test_recipe_with_its_sum_in_a_file_is_the_same(
    recipe: Any, on_device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    paths = [saved(state, tmp_path / f"{k}.safetensors") for k, state in enumerate(pool(4, torch.float32))]
    data = (torch.randn(60, 13), torch.randint(0, 13, (60,)))
    found = []
    for budget in (None, 0):
        with on_device.on():
            model = Classifier().to(on_device.torch)
            if budget == 0:
                monkeypatch.setattr(device.kernels_for(on_device.torch), "free_bytes", lambda: 0)
            soup = recipe(paths, model, tuple(on_device.put(t) for t in data), sum_memory=budget)
            found.append((soup.ingredients, soup.score, moved(model.state_dict(), on_device)))
            assert soup.averager.sum_place == ("file" if budget == 0 else str(on_device.torch))
    assert found[0][:2] == found[1][:2]
    assert same(found[0][2], found[1][2])


class Classifier(Net):
    def __init__(self) -> None:
        super().__init__(torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)) + self.tied)


@pytest.mark.parametrize("sources", ["states", "files"])
@pytest.mark.parametrize("place", ["memory", "file"])
def test_model_on_several_devices_is_written_part_by_part(
    place: str, sources: str, emulated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part where it is: no copy of the model on the host."""
    on = Device("emulated", torch.device("cpu"), emulated)
    given = pool(3, torch.float32)
    given[1]["last.weight"][2] = float("nan")
    given[1]["first.bias"][1] = float("inf")
    expected = results(given, [1.0] * 3, torch.float32)
    paths = [saved(state, tmp_path / f"{k}.safetensors") for k, state in enumerate(given)]
    first, second = Emulated(), Emulated()
    with on.on():
        model = Net(torch.float32)
        where = {model.first.weight.data_ptr(): first, model.last.weight.data_ptr(): second}
        where[model.first.bias.data_ptr()] = second
        monkeypatch.setattr(ops, "kernels_for", lambda tensor: where.get(tensor.data_ptr()))
        monkeypatch.setattr(ops, "kernels_for_all", lambda tensors: None)
        averager = Averager(model, sum_memory=PLACES[place], threads=2)
        for k in range(3):
            source = paths[k] if sources == "files" else given[k]
            targets = Targets(Layout.of(model), [1] * 5, model, None)
            assert targets.buffer_bytes == 0
            assert list(targets.parts) == [second, first, None]
            averager.preview(source, out=model)
            assert same(model.state_dict(), expected[k])
            assert averager.nonfinite == ([] if k == 0 else ["tied", "last.weight"])
            averager.add(source)
        averager.result(out=model)
        assert averager.nonfinite == ["tied", "last.weight"]
    assert same(model.state_dict(), expected[2])
    # Two parts on devices: three previews, one result. Without a sum, what is there needs no way there.
    assert on.calls["run_staged"] == (8 if sources == "files" else 6)
    assert on.calls["launch_sum"] == (0 if sources == "files" else 2)
