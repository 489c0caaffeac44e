"""Directories of torch.distributed.checkpoint: read without torch's reader, box by box, to the bits that were saved."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from distributed_files import full, network
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import pysoup
from pysoup.checkpoint.find import find_checkpoints
from pysoup.checkpoint.pieces import assemble
from pysoup.checkpoint.unpack import Unpacked, unpacked_bytes
from pysoup.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tensors-1``, ``tensors-2``, ``fsdp-1``, ``fsdp-2``: each saved by four processes."""
    root = tmp_path_factory.mktemp("distributed")
    script = Path(__file__).parent / "distributed_files.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script), str(root)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root


def save(directory: Path, values: dict[str, object]) -> Path:
    dcp.save(values, checkpoint_id=str(directory), no_dist=True)
    return directory


def by_torch(directory: Path, out: Path) -> dict[str, torch.Tensor]:
    dcp_to_torch_save(directory, out)
    return torch.load(out, weights_only=False)["model"]


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", ["tensors-1", "fsdp-2"])
def test_sharded_tensors_are_what_torch_reads(saved: Path, tmp_path: Path, name: str) -> None:
    checkpoint = pysoup.open_checkpoint(saved / name)
    assert (checkpoint.format, checkpoint.kind, checkpoint.entry_name) == ("dcp", "sharded", "model")
    assert_equal(checkpoint.state_dict(), by_torch(saved / name, tmp_path / "full.pt"))
    for tensor in checkpoint:
        assert torch.equal(checkpoint.tensor(tensor), checkpoint.state_dict()[tensor])


def test_sharded_tensors_are_what_was_saved(saved: Path) -> None:
    checkpoint = pysoup.open_checkpoint(saved / "tensors-2")
    assert_equal(checkpoint.state_dict(), full(2))
    assert checkpoint.dropped == ["epoch (pickled)"]
    assert pysoup.open_checkpoint(saved / "fsdp-1").dropped == ["optim (dict)"]


def test_average_is_that_of_whole_files(saved: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        torch.save(full(seed), tmp_path / f"{seed}.pt")
    expected, found = tmp_path / "expected.pt", tmp_path / "found.pt"
    pysoup.average_checkpoints([tmp_path / "1.pt", tmp_path / "2.pt"], expected, [0.25, 0.75])
    pysoup.average_checkpoints([saved / "tensors-1", saved / "tensors-2"], found, [0.25, 0.75], memory="1MiB")
    assert_equal(torch.load(found), torch.load(expected))
    mixed = tmp_path / "mixed.pt"
    pysoup.average_checkpoints([saved / "tensors-1", tmp_path / "2.pt"], mixed, [0.25, 0.75])
    assert_equal(torch.load(mixed), torch.load(expected))


def test_directory_of_an_average_is_one_of_safetensors(saved: Path, tmp_path: Path) -> None:
    pysoup.average_checkpoints([saved / "tensors-1"], tmp_path / "soup")
    assert sorted(p.name for p in (tmp_path / "soup").iterdir()) == ["README.md", "model.safetensors"]
    assert_equal(pysoup.open_checkpoint(tmp_path / "soup").state_dict(), full(1))


def test_average_goes_straight_into_a_model(saved: Path) -> None:
    model, one, two = network(3), network(1).state_dict(), network(2).state_dict()
    pysoup.load_soup_(model, [saved / "fsdp-1", saved / "fsdp-2"])
    for name, tensor in model.state_dict().items():
        mean = (one[name].double() + two[name].double()) / 2
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-7)


def test_a_folder_of_distributed_checkpoints_stands_for_them(saved: Path, tmp_path: Path) -> None:
    for name in ("step-2", "step-10"):
        os.symlink(saved / f"fsdp-{1 if name == 'step-2' else 2}", tmp_path / name)
    os.symlink(saved / "fsdp-1", tmp_path / "optimizer_0")
    notes: list[str] = []
    found = find_checkpoints(tmp_path, notes)
    assert found == [tmp_path / "step-2", tmp_path / "step-10"]
    assert "optimizer_0 (an optimizer's state)" in notes[0]


def test_command_lists_a_distributed_checkpoint(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(saved / "tensors-1" / ".metadata")]) == 0
    out = capsys.readouterr().out
    assert "format: dcp, entry model" in out
    assert "7x5x4" in out


def test_saved_without_processes_or_nesting(tmp_path: Path) -> None:
    strided = torch.arange(12.0).reshape(3, 4).T
    values = {"w": torch.randn(3, 2), "t": strided, "empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5)}
    checkpoint = pysoup.open_checkpoint(save(tmp_path / "plain", dict(values)))
    assert checkpoint.entry_name == ""
    assert_equal(checkpoint.state_dict(), values)


def test_of_several_state_dicts_one_is_chosen(tmp_path: Path) -> None:
    one, two = {"a.w": torch.ones(2)}, {"a.w": torch.zeros(2)}
    directory = save(tmp_path / "both", {"model": one, "ema": two})
    with pytest.raises(pysoup.CheckpointError, match="holds 2 state dicts, one of which must be chosen"):
        pysoup.open_checkpoint(directory)
    assert_equal(pysoup.open_checkpoint(directory, "ema").state_dict(), two)


def test_flat_names_leave_an_optimizer_out(tmp_path: Path) -> None:
    """As Megatron saves: no nesting, its settings in a file beside the shards."""
    values = {"decoder.w": torch.ones(3, 2), "optimizer.state.exp_avg.decoder.w": torch.zeros(3, 2)}
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False)
    dcp.save(dict(values), checkpoint_id=str(tmp_path / "flat"), planner=planner, no_dist=True)
    torch.save({"args": 1}, tmp_path / "flat" / "common.pt")
    checkpoint = pysoup.open_checkpoint(tmp_path / "flat")
    assert_equal(checkpoint.state_dict(), {"decoder.w": values["decoder.w"]})
    assert checkpoint.dropped == ["optimizer (dict)"]


def test_shards_of_safetensors_are_not_taken_for_models(tmp_path: Path) -> None:
    for rank in (1, 2):
        path = tmp_path / f"shard-{rank:05d}-model-00001-of-00001.safetensors"
        pysoup.checkpoint.save_state_dict({"w": torch.ones(2)}, path)
    with pytest.raises(pysoup.CheckpointError, match="a shard is no model of its own"):
        find_checkpoints(tmp_path)


@pytest.mark.parametrize("limit", [1, 40, 1 << 20])
def test_boxes_are_put_together_within_the_limit(saved: Path, limit: int) -> None:
    checkpoint, expected = pysoup.open_checkpoint(saved / "tensors-1"), full(1)
    with Unpacked(limit=limit) as unpacked:
        for name in checkpoint:
            entry = checkpoint.entry(name)
            fd = checkpoint.open_file(entry.file)
            try:
                offset, plain = unpacked.place(fd, entry, checkpoint.files[entry.file])
                data = os.pread(plain, entry.nbytes, offset)
            finally:
                os.close(fd)
            assert data == bytes(expected[name].reshape(-1).view(torch.uint8).tolist()), name
        size = os.fstat(unpacked._fd()).st_size
    assert size <= unpacked_bytes(map(checkpoint.entry, checkpoint))


def grid(cuts: Sequence[Sequence[int]]) -> list[tuple[list[int], list[int]]]:
    """Corner and sizes of the boxes that cut each dimension at ``cuts`` (first 0, last its size)."""
    boxes: list[tuple[list[int], list[int]]] = [([], [])]
    for edges in cuts:
        boxes = [([*c, a], [*s, b - a]) for c, s in boxes for a, b in pairwise(edges)]
    return boxes


@pytest.mark.parametrize("limit", [2, 10, 48, 4096])
@pytest.mark.parametrize(
    "boxes",
    [
        grid([[0, 1, 5], [0, 4], [0, 6]]),
        grid([[0, 5], [0, 2, 4], [0, 6]]),
        grid([[0, 2, 3, 5], [0, 3, 4], [0, 1, 5, 6]]),
        [([0, 0, 0], [2, 4, 6]), ([2, 0, 0], [3, 1, 6]), ([2, 1, 0], [3, 3, 6])],
    ],
)
def test_any_cut_of_a_tensor_gives_the_tensor(boxes: list[tuple[list[int], list[int]]], limit: int) -> None:
    whole = torch.arange(120, dtype=torch.int16).reshape(5, 4, 6)
    stored = []
    for corner, sizes in boxes:
        part = whole[tuple(slice(c, c + n) for c, n in zip(corner, sizes, strict=True))]
        stored.append(part.contiguous().numpy().tobytes())
    result, largest = bytearray(240), 0

    def read(box: int, view: memoryview, position: int) -> None:
        nonlocal largest
        largest = max(largest, len(view))
        assert position + len(view) <= len(stored[box])
        view[:] = stored[box][position : position + len(view)]

    def write(view: memoryview, position: int) -> None:
        result[position : position + len(view)] = view

    assemble([5, 4, 6], boxes, 2, limit, read, write)
    assert bytes(result) == whole.numpy().tobytes()
    assert largest <= limit


def test_reading_needs_no_torch(saved: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pysoup\n"
        f"pysoup.average_checkpoints([{str(saved / 'tensors-1')!r}], {str(tmp_path / 'a.safetensors')!r})\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
