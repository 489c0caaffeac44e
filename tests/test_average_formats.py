"""Whatever format the inputs have, alone or mixed, the average is the one of their tensors; torch reads the result."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import pysoup
from pysoup.errors import CheckpointError, IncompatibleError

State = dict[str, torch.Tensor]


def _state(seed: int) -> State:
    """Odd sizes, three types, 0-dim and empty tensors, a counter."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(5, 3, 3, 3, generator=generator),
        "norm.scale": torch.randn(37, generator=generator).double(),
        "head": torch.randn(9, 17, generator=generator).half(),
        "temperature": torch.randn((), generator=generator),
        "nothing": torch.empty(0, 4),
        "norm.num_batches_tracked": torch.tensor(seed),
    }


def _odd(state: State) -> State:
    """The same values in other places: transposed memory, a slice of something larger, a flipped order of storage."""
    odd = dict(state)
    odd["conv.weight"] = state["conv.weight"].to(memory_format=torch.channels_last)
    odd["norm.scale"] = torch.stack([state["norm.scale"], torch.zeros(37).double()], dim=1)[:, 0]
    odd["head"] = state["head"].t().contiguous().t()
    assert not any(odd[name].is_contiguous() for name in ("norm.scale", "head"))
    return odd


def _save(state: State, path: Path) -> Path:
    match path.suffix:
        case ".safetensors":
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
        case ".npz":
            save = np.savez_compressed if "compressed" in path.name else np.savez
            save(path, **{name: tensor.numpy() for name, tensor in state.items()})
        case ".ckpt":
            torch.save({"epoch": 1, "state_dict": _odd(state), "optimizer": {"state": {}}}, path)
        case ".bin":
            torch.save(_odd(state), path, _use_new_zipfile_serialization=False)
        case _:
            torch.save(_odd(state), path)
    return path


def _equal(result: State, expected: State) -> None:
    assert list(result) == list(expected)
    for name, tensor in expected.items():
        assert result[name].dtype == tensor.dtype, name
        assert torch.equal(result[name], tensor), name


FORMATS = [".safetensors", ".pt", ".bin", ".ckpt", ".npz", ".compressed.npz"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_average_of_a_format_is_that_of_its_tensors(tmp_path: Path, suffix: str) -> None:
    states = [_state(seed) for seed in range(3)]
    paths = [_save(state, tmp_path / f"{i}{suffix}") for i, state in enumerate(states)]
    expected = pysoup.average_state_dicts(states)
    pysoup.average_checkpoints(paths, tmp_path / "soup.pt")
    result = torch.load(tmp_path / "soup.pt", weights_only=True)
    assert set(result) == set(expected)
    assert all(torch.equal(result[name], tensor) for name, tensor in expected.items())


def test_average_of_formats_mixed_keeps_the_order_of_the_first(tmp_path: Path) -> None:
    states = [_state(seed) for seed in range(len(FORMATS))]
    paths = [_save(state, tmp_path / f"{i}{FORMATS[i]}") for i, state in enumerate(states)]
    paths = paths[1:] + paths[:1]
    states = states[1:] + states[:1]
    report = pysoup.average_checkpoints(paths, tmp_path / "soup.pt", weights=[1, 2, 3, 4, 5, 6], memory="64KiB")
    result = torch.load(tmp_path / "soup.pt", weights_only=True, mmap=True)
    _equal(result, pysoup.average_state_dicts(states, [1, 2, 3, 4, 5, 6]))
    pysoup.average_checkpoints(paths, tmp_path / "soup.safetensors", weights=[1, 2, 3, 4, 5, 6])
    loaded = load_file(tmp_path / "soup.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in result.items())
    assert any("entry 'state_dict'" in note for note in report.notes)
    assert any("epoch" in note and "optimizer" in note for note in report.notes)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_tied_tensors_of_torch_files_stay_tied(tmp_path: Path) -> None:
    states: list[State] = []
    for seed in range(2):
        state = _state(seed)
        state["tied"] = state["head"]
        torch.save(state, tmp_path / f"{seed}.pt")
        states.append(state)
    pysoup.average_checkpoints([tmp_path / "0.pt", tmp_path / "1.pt"], tmp_path / "soup.pt")
    soup = torch.load(tmp_path / "soup.pt", weights_only=True)
    assert soup["tied"].data_ptr() == soup["head"].data_ptr()
    assert torch.equal(soup["tied"], pysoup.average_state_dicts(states)["head"])
    states[1]["tied"] = states[1]["head"].clone()
    torch.save(states[1], tmp_path / "1.pt")
    pysoup.average_checkpoints([tmp_path / "0.pt", tmp_path / "1.pt"], tmp_path / "untied.pt")
    untied = torch.load(tmp_path / "untied.pt", weights_only=True)
    assert untied["tied"].data_ptr() != untied["head"].data_ptr()
    assert torch.equal(untied["tied"], soup["tied"])


def test_ema_is_taken_only_when_asked(tmp_path: Path) -> None:
    for seed in range(2):
        torch.save(
            {"state_dict": _state(seed), "state_dict_ema": _state(seed + 10), "arch": "x"}, tmp_path / f"{seed}.pth"
        )
    paths = [tmp_path / "0.pth", tmp_path / "1.pth"]
    with pytest.raises(CheckpointError, match=r"0\.pth.*state_dict.*state_dict_ema"):
        pysoup.average_checkpoints(paths, tmp_path / "soup.pt")
    pysoup.average_checkpoints(paths, tmp_path / "soup.pt", entry="state_dict_ema")
    expected = pysoup.average_state_dicts([_state(10), _state(11)])
    _equal(torch.load(tmp_path / "soup.pt", weights_only=True), expected)
    with pytest.raises(CheckpointError, match="no_such"):
        pysoup.average_checkpoints(paths, tmp_path / "other.pt", entry="no_such")
    assert not (tmp_path / "other.pt").exists()


def test_entry_is_for_the_files_that_have_a_choice(tmp_path: Path) -> None:
    torch.save({"state_dict": _state(0), "state_dict_ema": _state(1)}, tmp_path / "nested.pth")
    paths = [tmp_path / "nested.pth", _save(_state(2), tmp_path / "plain.pt"), _save(_state(3), tmp_path / "one.ckpt")]
    paths.append(_save(_state(4), tmp_path / "flat.npz"))
    report = pysoup.average_checkpoints(paths, tmp_path / "soup.pt", entry="state_dict_ema")
    expected = pysoup.average_state_dicts([_state(seed) for seed in (1, 2, 3, 4)])
    _equal(torch.load(tmp_path / "soup.pt", weights_only=True), expected)
    assert f"weights taken from entry 'state_dict' of {tmp_path / 'one.ckpt'}" in report.notes
    with pytest.raises(CheckpointError, match="no input has that entry: found 'other', expected state_dict"):
        pysoup.average_checkpoints(paths[1:], tmp_path / "new.pt", entry="other")


def test_entry_that_no_format_can_have_is_an_error(tmp_path: Path) -> None:
    path = _save(_state(0), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="no input has that entry"):
        pysoup.average_checkpoints([path], tmp_path / "soup.pt", entry="ema")


@pytest.mark.parametrize("first", ["plain", "wrapped"])
def test_wrapped_names_are_matched_to_the_first_and_reported(tmp_path: Path, first: str) -> None:
    states: dict[str, State] = {"plain": _state(0), "wrapped": {f"module.{k}": v for k, v in _state(1).items()}}
    paths = {name: tmp_path / f"{name}.pt" for name in states}
    for name, state in states.items():
        torch.save(state, paths[name])
    order = [first, *(name for name in states if name != first)]
    report = pysoup.average_checkpoints([paths[name] for name in order], tmp_path / "soup.pt")
    soup = torch.load(tmp_path / "soup.pt", weights_only=True)
    assert list(soup) == list(states[first])
    assert torch.equal(next(iter(soup.values())), pysoup.average_state_dicts([_state(0), _state(1)])["conv.weight"])
    assert any("'module.' (DistributedDataParallel)" in note for note in report.notes)


def test_union_of_wrapped_and_plain_names_is_one_model(tmp_path: Path) -> None:
    torch.save({"module.a": torch.zeros(2), "module.b": torch.zeros(2)}, tmp_path / "0.pt")
    torch.save({"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2)}, tmp_path / "1.pt")
    report = pysoup.average_checkpoints([tmp_path / "0.pt", tmp_path / "1.pt"], tmp_path / "soup.pt", keys="union")
    soup = torch.load(tmp_path / "soup.pt", weights_only=True)
    assert {name: tensor.tolist() for name, tensor in soup.items()} == {
        "module.a": [0.5, 0.5],
        "module.b": [0.5, 0.5],
        "module.c": [1.0, 1.0],
    }
    assert "averaged over 1 of 2 inputs: module.c" in report.notes


def test_card_tells_a_command_that_makes_the_same_model(tmp_path: Path) -> None:
    paths = [_save(_state(seed), tmp_path / f"{seed}.pt") for seed in range(2)]
    commands = {}
    for name, options in {
        "mean": {},
        "sum": {"weights": [1, 1], "normalize": False},
        "mixed": {"weights": [3, 1], "dtype": "bf16", "shard_size": "1KB"},
    }.items():
        pysoup.average_checkpoints(paths, tmp_path / name, **options)  # type: ignore[arg-type]
        card = (tmp_path / name / "README.md").read_text()
        commands[name] = next(line for line in card.splitlines() if line.startswith("pysoup average"))
    assert "--weights" not in commands["mean"]
    assert "--weights=1.0,1.0 --no-normalize" in commands["sum"]
    assert "--weights=0.75,0.25 --dtype bf16 --shard-size 1KB" in commands["mixed"]


def test_directories_that_are_read_differently_are_noted(tmp_path: Path) -> None:
    for seed in range(3):
        folder = tmp_path / f"m{seed}"
        folder.mkdir()
        _save(_state(seed), folder / "model.safetensors")
        config = {"rope_theta": 1 if seed < 2 else 2, "_name_or_path": str(seed)}
        (folder / "config.json").write_text(json.dumps(config))
    report = pysoup.average_checkpoints([tmp_path / f"m{seed}" for seed in range(3)], tmp_path / "soup")
    differing = [note for note in report.notes if "differs" in note]
    assert differing == [f"config.json of {tmp_path / 'm2'} differs from the first input's in rope_theta"]


def test_sharded_torch_files_give_a_directory_of_as_many_safetensors(tmp_path: Path) -> None:
    states = [_state(seed) for seed in range(2)]
    for seed, state in enumerate(states):
        folder = tmp_path / f"model-{seed}"
        folder.mkdir()
        shards = {
            "pytorch_model-00001-of-00002.bin": list(state)[:3],
            "pytorch_model-00002-of-00002.bin": list(state)[3:],
        }
        for file, names in shards.items():
            torch.save({name: state[name] for name in names}, folder / file)
        weight_map = {name: file for file, names in shards.items() for name in names}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        (folder / "config.json").write_text('{"model_type": "x"}')
        torch.save({}, folder / "optimizer.pt")
    pysoup.average_checkpoints(
        [tmp_path / "model-0", tmp_path / "model-1" / "pytorch_model.bin.index.json"], tmp_path / "soup"
    )
    expected = pysoup.average_state_dicts(states)
    files = sorted(path.name for path in (tmp_path / "soup").iterdir())
    assert files == [
        "README.md",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    loaded: State = {}
    for file in files[2:4]:
        loaded |= load_file(tmp_path / "soup" / file)
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    index = json.loads((tmp_path / "soup" / files[4]).read_text())
    assert index["weight_map"] == {name: files[2 if name in list(expected)[:3] else 3] for name in expected}


def test_folder_of_checkpoints_and_pattern_stand_for_them_in_natural_order(tmp_path: Path) -> None:
    states = [_state(seed) for seed in range(11)]
    runs = tmp_path / "runs"
    runs.mkdir()
    for i, state in enumerate(states):
        _save(state, runs / f"epoch_{i}.pt")
    expected = pysoup.average_state_dicts(states)
    for i, given in enumerate((runs, str(runs / "epoch_*.pt"), [runs / "epoch_0.pt", str(runs / "epoch_*.pt")])):
        report = pysoup.average_checkpoints(given, tmp_path / f"soup{i}.pt")
        _equal(torch.load(tmp_path / f"soup{i}.pt", weights_only=True), expected)
        assert [Path(path).name for path in report.inputs] == [f"epoch_{i}.pt" for i in range(11)]


def test_scratch_space_is_counted_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    path = _save(_state(0), tmp_path / "a.compressed.npz")
    needed = sum(tensor.nbytes for tensor in _state(0).values())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda where: usage._replace(free=needed + 1000))
    with pytest.raises(pysoup.SoupError, match="not enough disk space"):
        pysoup.average_checkpoints([path], tmp_path / "soup.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.compressed.npz"]


def test_provenance_is_in_every_format_of_output(tmp_path: Path) -> None:
    paths = [_save(_state(seed), tmp_path / f"{seed}.pt") for seed in range(2)]
    for output in ("soup.pt", "soup.safetensors", "soup"):
        pysoup.average_checkpoints(paths, tmp_path / output, weights=[3, 1])
        metadata: dict[str, Any] = pysoup.open_checkpoint(tmp_path / output).metadata
        assert json.loads(metadata["pysoup.ingredients"]) == [str(path) for path in paths]
        assert json.loads(metadata["pysoup.weights"]) == [0.75, 0.25]
        assert metadata["pysoup.version"] == pysoup.__version__
    assert zipfile.ZipFile(tmp_path / "soup.pt").testzip() is None


def test_dtypes_that_only_torch_files_have_need_a_torch_file(tmp_path: Path) -> None:
    state = {"z": torch.randn(4, dtype=torch.complex128)}
    torch.save(state, tmp_path / "a.pt")
    pysoup.average_checkpoints([tmp_path / "a.pt"], tmp_path / "soup.pt")
    assert torch.equal(torch.load(tmp_path / "soup.pt", weights_only=True)["z"], state["z"])
    with pytest.raises(pysoup.OutputError, match="complex128"):
        pysoup.average_checkpoints([tmp_path / "a.pt"], tmp_path / "soup.safetensors")


def test_averager_and_open_checkpoint_take_every_format(tmp_path: Path) -> None:
    states = [_state(seed) for seed in range(len(FORMATS))]
    averager = pysoup.Averager(_state(0))
    for i, (state, suffix) in enumerate(zip(states, FORMATS, strict=True)):
        path = _save(state, tmp_path / f"{i}{suffix}")
        opened = pysoup.open_checkpoint(path)
        assert all(torch.equal(opened.tensor(name), tensor) for name, tensor in state.items())
        averager.add(path)
    expected = pysoup.average_state_dicts(states)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in averager.result().items())


def test_one_shape_or_name_off_is_named_across_formats(tmp_path: Path) -> None:
    good, bad = _state(0), _state(1)
    bad["head"] = bad["head"][:8]
    paths = [_save(good, tmp_path / "good.npz"), _save(bad, tmp_path / "bad.ckpt")]
    with pytest.raises(IncompatibleError, match=r"bad\.ckpt: tensor 'head': shape differs: found \[8, 17\]"):
        pysoup.average_checkpoints(paths, tmp_path / "soup.pt")
