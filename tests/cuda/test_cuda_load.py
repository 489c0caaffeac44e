"""load_soup_ into a model on a device, or on several: the bits of the CPU, in any memory; errors as there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mixed_models
import pytest
import torch
from devices import Device, Emulated
from safetensors.torch import save_file
from torch import Tensor, nn

from pysoup import CheckpointError, IncompatibleError, SoupError, _native, load_soup_, open_checkpoint, ops
from pysoup.ingredient import Ingredient, Layout
from pysoup.load import average_into

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Net(mixed_models.Net):
    """With one matrix that is larger than a small ring."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(301, 203))


def models(count: int, dtype: torch.dtype = torch.float32) -> list[Net]:
    made = []
    for seed in range(count):
        model = Net()
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        model.norm.num_batches_tracked.fill_(seed)
        made.append(model.to(dtype))
    return made


def saved(directory: Path, given: list[Net]) -> list[Path]:
    """In two formats, alternating; safetensors has one of the tied names."""
    paths = []
    for i, model in enumerate(given):
        state = model.state_dict()
        if i % 2:
            paths.append(directory / f"{i}.pt")
            torch.save(state, paths[-1])
        else:
            paths.append(directory / f"{i}.safetensors")
            save_file({n: t.contiguous() for n, t in state.items() if n != "head.weight"}, paths[-1])
    return paths


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for n, t in model.state_dict().items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = bits(one), bits(other)
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def on(device: Device, model: nn.Module) -> Any:
    return model.to(device.torch)


@pytest.mark.parametrize("memory", ["12KiB", "100KiB", "64MiB"])
@pytest.mark.parametrize("weights", [None, [3, -1, 2]])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bits_of_the_cpu_in_any_memory(
    tmp_path: Path, dtype: torch.dtype, weights: list[float] | None, memory: str, on_device: Device
) -> None:
    paths = saved(tmp_path, models(3, dtype))
    expected = Net().to(dtype)
    load_soup_(expected, paths, weights)
    target = on(on_device, Net().to(dtype))
    version, channels = target.large.weight._version, target.conv.weight.stride()
    with on_device.on():
        report = load_soup_(target, paths, weights, memory=memory, threads=3)
    assert same(target, expected)
    assert target.head.weight is target.embed.weight
    assert target.conv.weight.stride() == channels
    assert target.large.weight._version > version
    assert report.device == str(on_device.torch)
    assert report.memory_bytes <= {"12KiB": 12 << 10, "100KiB": 100 << 10}.get(memory, 64 << 20) + 135 * dtype.itemsize
    assert on_device.calls["run_staged"] == 1


@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_the_bits_of_the_cpu_for_any_number_of_inputs(tmp_path: Path, count: int, on_device: Device) -> None:
    paths = saved(tmp_path, models(count, torch.bfloat16))
    expected, target = Net().bfloat16(), on(on_device, Net().bfloat16())
    load_soup_(expected, paths)
    with on_device.on():
        load_soup_(target, paths, memory="300KiB")
    assert same(target, expected)


def test_files_of_other_types_are_rounded_once_to_the_models(tmp_path: Path, on_device: Device) -> None:
    given = models(4)
    given[1].double()
    given[2].half()
    paths = saved(tmp_path, given)
    expected, target = Net().bfloat16(), on(on_device, Net().bfloat16())
    load_soup_(expected, paths)
    with on_device.on():
        load_soup_(target, paths)
    assert same(target, expected)


def test_tensors_that_are_not_finite_are_named(tmp_path: Path, on_device: Device) -> None:
    given = models(2)
    with torch.no_grad():
        given[1].conv.bias[2] = float("inf")
        given[0].large.weight[200, 300] = float("nan")
    target = on(on_device, Net())
    with on_device.on():
        report = load_soup_(target, saved(tmp_path, given), memory="40KiB")
    assert report.nonfinite == ["conv.bias", "large.weight"]
    assert any("'conv.bias'" in note and "1.pt" in note for note in report.notes)


class Spread:
    """Makes kernels_for say that parts of a model are on devices of their own, whose memory the others do not have."""

    def __init__(self, model: Net) -> None:
        first, second = Emulated(), Emulated()
        self.where: dict[int, Emulated | None] = {}
        for name, tensor in model.state_dict().items():
            place = first if name.startswith("large") else None if name.startswith("norm") else second
            self.where[tensor.data_ptr()] = place

    def kernels_for(self, tensor: Tensor) -> Emulated | None:
        return self.where.get(tensor.data_ptr())


def test_each_part_of_a_model_is_summed_where_it_is(
    tmp_path: Path, emulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device("emulated", torch.device("cpu"), emulated)
    given = models(3)
    with torch.no_grad():
        given[1].norm.weight[1] = float("inf")
        given[1].conv.weight[1] = float("inf")
        given[2].large.bias[0] = float("nan")
    paths = saved(tmp_path, given)
    expected, target = Net(), Net()
    load_soup_(expected, paths)
    seen: list[tuple[int, int]] = []
    with device.on():
        monkeypatch.setattr(ops, "kernels_for", Spread(target).kernels_for)
        report = load_soup_(target, paths, memory="100KiB", progress=lambda *step: seen.append(step))
    assert same(target, expected)
    assert device.calls["run_staged"] == 2
    assert report.nonfinite == ["conv.weight", "norm.weight", "large.bias"]
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_ingredients_may_be_files_and_state_dicts_anywhere(tmp_path: Path, on_device: Device) -> None:
    given = models(4, torch.bfloat16)
    paths = saved(tmp_path, given)
    expected, target = Net().bfloat16(), on(on_device, Net().bfloat16())
    load_soup_(expected, paths)
    pool: list[tuple[str, Any]] = [
        ("a file", open_checkpoint(paths[0])),
        ("on the device", on_device.put(given[1].state_dict())),
        ("another file", open_checkpoint(paths[2])),
        ("on the CPU", given[3].state_dict()),
    ]
    with on_device.on():
        assert average_into(target, pool) == []
    assert same(target, expected)
    with on_device.on():  # the model's own tensors among the sources
        average_into(target, [("itself", target.state_dict()), *pool[:1]])
    average_into(expected, [("itself", expected.state_dict()), *pool[:1]])
    assert same(target, expected)


def test_a_file_that_ends_too_early_is_the_error_of_the_cpu(
    tmp_path: Path, on_device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = saved(tmp_path, models(2))
    size = paths[0].stat().st_size
    run = _native.run_staged

    def cut(*args: Any, **kwargs: Any) -> list[int]:
        os.truncate(paths[0], size // 2)
        return run(*args, **kwargs)

    monkeypatch.setattr(_native, "run_staged", cut)
    with on_device.on(), pytest.raises(CheckpointError) as caught:
        load_soup_(on(on_device, Net()), paths, memory="60KiB")
    assert caught.value.file == str(paths[0])
    assert caught.value.tensor in ("large.weight", "norm.bias", "norm.running_mean", "norm.running_var", "scale")
    assert "cannot be read (the model holds part of the average)" in str(caught.value)
    assert "too early at byte" in str(caught.value)


def test_a_file_that_changes_meanwhile_is_the_error_of_the_cpu(
    tmp_path: Path, on_device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = saved(tmp_path, models(2))
    run = _native.run_staged

    def touched(*args: Any, **kwargs: Any) -> list[int]:
        os.utime(paths[1], ns=(0, 0))
        return run(*args, **kwargs)

    monkeypatch.setattr(_native, "run_staged", touched)
    with on_device.on(), pytest.raises(CheckpointError, match=r"1\.pt.*the model holds part of the average"):
        load_soup_(on(on_device, Net()), paths)


def test_nothing_is_written_where_inputs_do_not_fit(tmp_path: Path, on_device: Device) -> None:
    given = models(2)
    given[1].scale = nn.Parameter(torch.zeros(2))
    paths = saved(tmp_path, given)
    target = on(on_device, models(1)[0])
    before = bits(target)
    with on_device.on():
        with pytest.raises(IncompatibleError, match="shape differs"):
            load_soup_(target, paths)
        with pytest.raises(SoupError, match="memory is too small for these inputs"):
            load_soup_(target, paths[:1], memory=400)
    assert on_device.calls["run_staged"] == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in bits(target).items())


def test_ctrl_c_stops_the_run(tmp_path: Path, on_device: Device) -> None:
    paths = saved(tmp_path, models(2))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with on_device.on(), pytest.raises(KeyboardInterrupt):
        load_soup_(on(on_device, Net()), paths, progress=interrupt)


def test_tensors_are_brought_to_their_part_of_a_model_only(emulated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device("emulated", torch.device("cpu"), emulated)
    given = [model.state_dict() for model in models(3)]
    expected, target = Net(), Net()
    sources = [(f"{k}", state) for k, state in enumerate(given)]
    average_into(expected, sources)
    taken: list[int] = []
    flat = Ingredient._flat

    def counted(self: Ingredient, tensor: Tensor) -> Tensor:
        taken.append(tensor.data_ptr())
        return flat(self, tensor)

    monkeypatch.setattr(Ingredient, "_flat", counted)
    with device.on():
        monkeypatch.setattr(ops, "kernels_for", Spread(target).kernels_for)
        average_into(target, sources)
    assert same(target, expected)
    assert len(taken) == len(set(taken)) == 3 * len(Layout.of(target).slots)
