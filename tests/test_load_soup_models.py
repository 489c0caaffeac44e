"""load_soup_ and models out of the ordinary: tied tensors, state dicts that are copies, tensors that are unpacked."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import pysoup
from pysoup import Averager
from pysoup.errors import CheckpointError, IncompatibleError, OutputError, SoupError


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Embedding(5, 3)
        self.h = nn.Linear(3, 5, bias=False)
        self.h.weight = self.e.weight


class SharedNorm(nn.Module):
    """One BatchNorm under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.BatchNorm1d(3)
        self.b = self.a


def _before(model: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in (*model.parameters(), *model.buffers())]


def _is_unchanged(model: nn.Module, before: list[Tensor]) -> bool:
    return all(torch.equal(t, b) for t, b in zip((*model.parameters(), *model.buffers()), before, strict=True))


def _norms(count: int) -> list[SharedNorm]:
    models = [SharedNorm() for _ in range(count)]
    for k, model in enumerate(models):
        model.a.weight.data.fill_(k)
        model.a.num_batches_tracked.fill_(10 + k)
    return models


def test_load_soup_refuses_files_with_two_values_for_a_tied_tensor(tmp_path: Path) -> None:
    weight = torch.arange(15.0).reshape(5, 3)
    other = weight.clone()
    other[4, 2] += 1
    save_file({"e.weight": weight, "h.weight": other}, tmp_path / "a.safetensors")
    model = Tied()
    before = _before(model)
    with pytest.raises(IncompatibleError, match=r"a\.safetensors: tensor 'h\.weight': tied in the model, not here"):
        pysoup.load_soup_(model, [tmp_path / "a.safetensors"])
    assert _is_unchanged(model, before)


@pytest.mark.parametrize("other", [torch.zeros(4), torch.ones(2, 2), torch.ones(4).double()])
def test_add_refuses_a_file_with_two_values_for_a_tied_tensor(tmp_path: Path, other: Tensor) -> None:
    shared = torch.ones(4)
    averager = Averager({"x": shared, "y": shared})
    torch.save({"x": torch.ones(4), "y": other}, tmp_path / "a.pt")
    with pytest.raises(IncompatibleError, match=r"a\.pt: tensor 'y': tied in the model, not here.*those of 'x'"):
        averager.add(tmp_path / "a.pt")
    assert averager.count == 0


def test_tied_tensors_stored_twice_are_taken_where_their_bytes_are_equal(tmp_path: Path) -> None:
    # More than one piece of the comparison, NaN, and one of the two not in C order.
    weight = torch.arange(600_000.0).reshape(600, 1000)
    weight[7, 7] = float("nan")
    torch.save({"x": weight, "y": weight.t().contiguous().t()}, tmp_path / "a.pt")
    shared = torch.zeros(600, 1000)
    averager = Averager({"x": shared, "y": shared})
    averager.add(tmp_path / "a.pt")
    assert torch.equal(averager.result()["y"].nan_to_num(-1), weight.nan_to_num(-1))
    changed = weight.clone()
    changed[599, 999] = 0
    torch.save({"x": weight, "y": changed}, tmp_path / "b.pt")
    with pytest.raises(IncompatibleError, match="tied in the model, not here"):
        averager.add(tmp_path / "b.pt")


class Copying(nn.Linear):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: tensor.clone() for name, tensor in super().state_dict(*args, **kwargs).items()}


def _clone_weight(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
    state["weight"] = state["weight"].clone()


@pytest.mark.parametrize("kind", ["overridden", "hook", "array"])
def test_load_soup_refuses_a_model_whose_state_dict_is_a_copy(tmp_path: Path, kind: str) -> None:
    save_file({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, tmp_path / "a.safetensors")
    model = Copying(3, 2) if kind == "overridden" else nn.Linear(3, 2)
    if kind == "hook":
        model._register_state_dict_hook(_clone_weight)
    elif kind == "array":
        model._register_state_dict_hook(lambda m, state, *_: state.update(weight=np.zeros((2, 3), np.float32)))
    before = _before(model)
    with pytest.raises(SoupError, match=r"tensor 'weight': state_dict\(\) of the model gives copies"):
        pysoup.load_soup_(model, [tmp_path / "a.safetensors"])
    assert _is_unchanged(model, before)


def test_load_soup_writes_through_views_of_parts_of_a_parameter(tmp_path: Path) -> None:
    def split(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
        whole = state.pop("weight")
        state["top"], state["bottom"] = whole[:1], whole[1:]

    model = nn.Linear(3, 2, bias=False)
    model._register_state_dict_hook(split)
    save_file({"top": torch.full((1, 3), 4.0), "bottom": torch.full((1, 3), 5.0)}, tmp_path / "a.safetensors")
    pysoup.load_soup_(model, [tmp_path / "a.safetensors"])
    assert model.weight.tolist() == [[4.0] * 3, [5.0] * 3]


def test_load_soup_takes_a_batch_norm_that_is_shared(tmp_path: Path) -> None:
    paths = [tmp_path / f"{k}.pt" for k in range(2)]
    for path, model in zip(paths, _norms(2), strict=True):
        torch.save(model.state_dict(), path)
    # As safetensors.torch.save_model stores it: one of the two names.
    paths.append(tmp_path / "2.safetensors")
    save_file({f"b.{name}": t for name, t in _norms(3)[2].b.state_dict().items()}, paths[2])
    target = SharedNorm()
    pysoup.load_soup_(target, paths)
    assert target.a.weight.tolist() == [1.0] * 3
    assert target.b.num_batches_tracked.item() == 12
    assert target.b.num_batches_tracked is target.a.num_batches_tracked


def test_result_is_written_into_a_batch_norm_that_is_shared() -> None:
    target = SharedNorm()
    averager = Averager(target)
    for model in _norms(3):
        averager.add(model)
    averager.result(out=target)
    assert target.a.weight.tolist() == [1.0] * 3
    assert target.a.num_batches_tracked.item() == 12


@pytest.mark.parametrize("from_file", [False, True])
def test_integers_with_two_values_where_the_model_has_one_are_refused(tmp_path: Path, from_file: bool) -> None:
    state = {name: t.clone() for name, t in SharedNorm().state_dict().items()}
    state["b.num_batches_tracked"] += 1
    path = tmp_path / "a.pt"
    torch.save(state, path)
    target = SharedNorm()
    before = _before(target)
    with pytest.raises(IncompatibleError, match=r"tensor 'b\.num_batches_tracked': tied in the model, not here"):
        Averager(target).add(path if from_file else state)
    with pytest.raises(IncompatibleError, match=r"a\.pt: tensor 'b\.num_batches_tracked'"):
        pysoup.load_soup_(target, [path], integers="max")
    assert _is_unchanged(target, before)


def test_integers_tied_in_out_alone_are_refused() -> None:
    averager = Averager({"x": torch.ones(2), "i": torch.tensor([1]), "j": torch.tensor([1])})
    averager.add({"x": torch.ones(2), "i": torch.tensor([1]), "j": torch.tensor([1])})
    one = torch.tensor([0])
    with pytest.raises(IncompatibleError, match=r"out: tensor 'j': tied in out, not in the model"):
        averager.result(out={"x": torch.zeros(2), "i": one, "j": one})
    assert one.item() == 0


def test_load_soup_finds_out_first_that_there_is_no_room_to_unpack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    paths = [tmp_path / f"{k}.npz" for k in range(2)]
    for path in paths:
        np.savez_compressed(path, weight=np.ones((64, 16), np.float32), bias=np.ones(64, np.float32))
    model = nn.Linear(16, 64)
    before = _before(model)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    needed = 2 * (64 * 16 * 4 + 64 * 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda where: Usage(needed - 1 if Path(where) == scratch else 0))
    with pytest.raises(OutputError, match=rf"scratch: not enough disk space.*{needed - 1} bytes.*{needed} bytes"):
        pysoup.load_soup_(model, paths)
    assert _is_unchanged(model, before)
    pysoup.load_soup_(model, paths, [1, 0])
    assert model.weight.eq(1).all()


def test_load_soup_counts_the_buffers_of_channels_last_parameters(tmp_path: Path) -> None:
    model = nn.Conv2d(8, 16, 3)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    plain = pysoup.load_soup_(model, [tmp_path / "a.pt"], threads=1)
    model = model.to(memory_format=torch.channels_last)
    assert not model.weight.is_contiguous()
    report = pysoup.load_soup_(model, [tmp_path / "a.pt"], threads=1)
    assert report.memory_bytes == plain.memory_bytes + model.weight.nbytes


@pytest.mark.parametrize("method", ["add", "preview", "check"])
def test_a_note_on_names_points_at_the_line_that_called(tmp_path: Path, method: str) -> None:
    save_file({"module.x": torch.ones(4)}, tmp_path / "a.safetensors")
    averager = Averager({"x": torch.ones(4)})
    argument = {"a": tmp_path / "a.safetensors"} if method == "check" else tmp_path / "a.safetensors"
    with pytest.warns(UserWarning, match="DistributedDataParallel") as caught:
        getattr(averager, method)(argument)
    assert [warning.filename for warning in caught] == [__file__]


def test_a_damaged_file_is_named_where_tied_tensors_are_compared(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.arange(999.0), y=np.arange(999.0))
    data = bytearray(path.read_bytes())
    middle = data.index(b"y.npy") + 60
    data[middle : middle + 40] = b"\xff" * 40
    shared = torch.zeros(999, dtype=torch.float64)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a\.npz"):
        Averager({"x": shared, "y": shared}).add(path)
