"""load_soup_ writes the average of files into a live model: the bits of average_state_dicts, nothing else touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import pysoup
from pysoup.errors import CheckpointError, IncompatibleError, SoupError, WeightsError


class Net(nn.Module):
    """A tied pair, a buffer without a mean, a 0-dim parameter, a channels-last weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm1d(6)
        self.scale = nn.Parameter(torch.tensor(1.0))


def _models(count: int, dtype: torch.dtype = torch.float32) -> list[Net]:
    models = []
    for seed in range(count):
        torch.manual_seed(seed)
        model = Net()
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        model.norm.num_batches_tracked.fill_(seed)
        models.append(model.to(dtype))
    return models


def _saved(tmp_path: Path, models: list[Net]) -> list[Path]:
    paths = []
    for i, model in enumerate(models):
        path = tmp_path / f"{i}.pt"
        torch.save(model.state_dict(), path)
        paths.append(path)
    return paths


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("weights", [None, [3, 1, 2]])
def test_load_soup_gives_the_bits_of_average_state_dicts(
    tmp_path: Path, dtype: torch.dtype, weights: list[float] | None
) -> None:
    models = _models(3, dtype)
    expected = pysoup.average_state_dicts([m.state_dict() for m in models], weights)
    target = Net().to(dtype)
    version = target.conv.weight._version
    report = pysoup.load_soup_(target, _saved(tmp_path, models), weights, memory="256KiB")
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert target.head.weight is target.embed.weight
    assert target.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert target.conv.weight._version > version
    assert report.weights == ([1 / 3] * 3 if weights is None else [3 / 6, 1 / 6, 2 / 6])
    assert report.nonfinite == []


def test_load_soup_rounds_once_to_the_dtype_of_the_model(tmp_path: Path) -> None:
    models = _models(3)
    target = Net().bfloat16()
    pysoup.load_soup_(target, _saved(tmp_path, models))
    exact = sum(m.conv.weight.double() for m in models) / 3
    assert torch.equal(target.conv.weight, exact.bfloat16())


def test_load_soup_takes_formats_mixed_and_wrapped_names(tmp_path: Path) -> None:
    models = _models(2)
    for model in models:
        model.head.weight = nn.Parameter(model.head.weight.clone())  # safetensors cannot tie
    save_file({f"module.{k}": v.contiguous() for k, v in models[0].state_dict().items()}, tmp_path / "a.safetensors")
    torch.save({"epoch": 3, "state_dict": models[1].state_dict()}, tmp_path / "b.ckpt")
    target = Net()
    target.head.weight = nn.Parameter(target.head.weight.clone())
    report = pysoup.load_soup_(target, [tmp_path / "a.safetensors", tmp_path / "b.ckpt"])
    expected = pysoup.average_state_dicts([m.state_dict() for m in models])
    assert all(torch.equal(tensor, expected[name]) for name, tensor in target.state_dict().items())
    text = "\n".join(report.notes)
    assert "has 'module.' (DistributedDataParallel) in its tensor names: matched to those of the model" in text
    assert "taken from entry 'state_dict'" in text
    assert "epoch" in text


def test_load_soup_reads_no_ingredient_of_weight_zero(tmp_path: Path) -> None:
    models = _models(3)
    nn.init.constant_(models[1].conv.weight, float("nan"))
    target = Net()
    report = pysoup.load_soup_(target, _saved(tmp_path, models), [1, 0, 1])
    assert torch.isfinite(target.conv.weight).all()
    assert report.weights == [0.5, 0.0, 0.5]


def test_load_soup_names_the_tensors_that_are_not_finite(tmp_path: Path) -> None:
    models = _models(2)
    with torch.no_grad():
        models[1].conv.bias[2] = float("inf")
    report = pysoup.load_soup_(Net(), _saved(tmp_path, models))
    assert report.nonfinite == ["conv.bias"]
    assert any("'conv.bias'" in note and "1.pt" in note and "0.pt" not in note for note in report.notes)


@pytest.mark.parametrize("fault", ["names", "shape", "kind", "weights", "missing", "model", "integers"])
def test_load_soup_changes_nothing_where_inputs_do_not_fit(tmp_path: Path, fault: str) -> None:
    models = _models(2)
    weights: list[float] | None = None
    expected: type[SoupError] = IncompatibleError
    if fault == "names":
        models[1].extra = nn.Parameter(torch.zeros(1))
    elif fault == "shape":
        models[1].scale = nn.Parameter(torch.zeros(2))
    elif fault == "kind":
        models[1].norm.num_batches_tracked = torch.tensor(1.0)
    elif fault == "integers":
        for i, model in enumerate(models):
            model.register_buffer("ids", torch.tensor([i]))
    elif fault == "weights":
        weights, expected = [1, -1], WeightsError
    paths: list[Path] = _saved(tmp_path, models)
    target: nn.Module = Net()
    if fault == "integers":
        target.register_buffer("ids", torch.tensor([7]))
    if fault == "missing":
        paths, expected = [*paths, tmp_path / "none.pt"], CheckpointError
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    if fault == "model":
        with pytest.raises(SoupError, match="not a model"):
            pysoup.load_soup_(target.state_dict(), paths)  # type: ignore[arg-type]
        return
    with pytest.raises(expected) as caught:
        pysoup.load_soup_(target, paths, weights)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_load_soup_says_that_a_failed_read_left_part_of_the_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pysoup.file_plan import Member

    models = [model.to(memory_format=torch.contiguous_format) for model in _models(2)]
    paths = _saved(tmp_path, models)
    opened = Member.open

    def cut(self: Member, scratch: Path | None = None) -> None:
        opened(self, scratch)
        if self.checkpoint.path == paths[1]:
            os.truncate(paths[1], 2000)

    monkeypatch.setattr(Member, "open", cut)
    with pytest.raises(CheckpointError, match=r"1\.pt.*the model holds part of the average"):
        pysoup.load_soup_(Net(), paths)
