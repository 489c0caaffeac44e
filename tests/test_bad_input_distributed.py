"""Bad directories of torch.distributed.checkpoint: one line that names file and tensor, and nothing written.

Each is a good checkpoint with one fault, put in with torch's own classes; without it the average is made.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from bad_inputs import BAD, MEAN, SHAPES, Place, assert_line, place, refusal
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

import pysoup
from pysoup.errors import CheckpointError

__all__ = ["place"]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

FILE = "__0_0.distcp"
Change = Callable[[Any], object]


def saved(place: Place, change: Change = lambda metadata: None) -> Path:
    """A checkpoint of ``a`` and ``w``, ``w`` in two halves; ``change`` gets its metadata before they are written."""
    directory = place.bad / "model"
    w = torch.tensor(BAD["w"]).reshape(SHAPES["w"])
    halves = {"a": torch.tensor(BAD["a"]), "w": w[:1].clone(), "rest": w[1:].clone()}
    dcp.save(halves, checkpoint_id=str(directory), no_dist=True)
    metadata = pickle.loads((directory / ".metadata").read_bytes())
    chunks = [ChunkStorageMetadata(torch.Size([row, 0]), torch.Size([1, 2])) for row in (0, 1)]
    tensor = metadata.state_dict_metadata["w"]
    metadata.state_dict_metadata["w"] = dataclasses.replace(tensor, size=torch.Size([2, 2]), chunks=chunks)
    metadata.storage_data[INDEX_W1] = metadata.storage_data.pop(MetadataIndex("rest", [0, 0]))
    del metadata.state_dict_metadata["rest"], metadata.planner_data["rest"]
    change(metadata)
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))
    return directory


INDEX_A, INDEX_W0, INDEX_W1 = MetadataIndex("a", [0]), MetadataIndex("w", [0, 0]), MetadataIndex("w", [1, 0])


def span(index: MetadataIndex, **fields: object) -> Change:
    def change(metadata: Any) -> None:
        metadata.storage_data[index] = dataclasses.replace(metadata.storage_data[index], **fields)

    return change


def shape_of_w(*sizes: int) -> Change:
    def change(metadata: Any) -> None:
        metadata.state_dict_metadata["w"].size = torch.Size(sizes)

    return change


def boxes_of_w(*boxes: tuple[list[int], list[int]]) -> Change:
    def change(metadata: Any) -> None:
        chunks = [ChunkStorageMetadata(torch.Size(corner), torch.Size(sizes)) for corner, sizes in boxes]
        metadata.state_dict_metadata["w"].chunks = chunks

    return change


def dtype_of_w(dtype: torch.dtype) -> Change:
    def change(metadata: Any) -> None:
        metadata.state_dict_metadata["w"].properties.dtype = dtype

    return change


def path_of(name: str, *keys: object) -> Change:
    def change(metadata: Any) -> None:
        metadata.planner_data[name] = keys

    return change


def swap(metadata: Any) -> None:
    stored = metadata.storage_data
    stored[INDEX_A], stored[INDEX_W0] = stored[INDEX_W0], stored[INDEX_A]


MANY = [ChunkStorageMetadata(torch.Size([0, 0]), torch.Size([1, 2]))]


def labyrinth(metadata: Any) -> None:
    """Halves of halves along thirteen dimensions: fourteen boxes, 8,192 cells."""
    sizes = [2] * 13
    boxes = [([1] * d + [0] * (13 - d), [1] * min(d + 1, 13) + [2] * (12 - d)) for d in range(14)]
    shape_of_w(*sizes)(metadata)
    boxes_of_w(*boxes)(metadata)


def deep(metadata: Any) -> None:
    keys = [str(i) for i in range(63)]
    for i in range(60):
        metadata.state_dict_metadata[f"x{i}"] = metadata.state_dict_metadata["a"]
        metadata.planner_data[f"x{i}"] = (str(i), *keys)


class Command:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def code(metadata: Any) -> None:
    metadata.planner_data["x"] = Command()


FAULTS: list[tuple[str, Change, str | None, str]] = [
    ("offset past the end", span(INDEX_W1, offset=10**6), "w", "reaches beyond the end of the file"),
    ("length past the end", span(INDEX_A, length=10**9), "a", "reaches beyond the end of the file"),
    ("offset of 2**63", span(INDEX_A, offset=2**63), "a", "whose file or place in it is none"),
    ("negative offset", span(INDEX_A, offset=-1), "a", "whose file or place in it is none"),
    ("bytes shared", span(INDEX_W1, offset=0), "w", "overlap those of tensor"),
    ("archive cut short", span(INDEX_A, length=700), "a", "the piece at byte 0: zip archive has no end mark"),
    ("file outside", span(INDEX_W0, relative_path="../other.distcp"), "w", "in a file that is not there"),
    ("absolute file", span(INDEX_W0, relative_path="/etc/passwd"), "w", "in a file that is not there"),
    ("file of another kind", span(INDEX_W0, relative_path=".metadata"), "w", "in a file that is not there"),
    ("missing shard", span(INDEX_W0, relative_path="__1_0.distcp"), "w", "in a file that is not there"),
    ("transformed", span(INDEX_W0, transform_descriptors=["stream.zstd/1"]), "w", r"transformed \(stream.zstd/1\)"),
    ("missing place", lambda m: m.storage_data.pop(INDEX_W1), "w", "nothing says where a piece of it is"),
    ("missing piece", boxes_of_w(([0, 0], [1, 2])), "w", "pieces of it are missing: found 2 elements, expected 4"),
    ("no piece", boxes_of_w(), "w", "pieces of it are missing: found 0 elements, expected 4"),
    ("overlapping pieces", boxes_of_w(([0, 0], [2, 2]), ([1, 0], [1, 2])), "w", "two pieces of it overlap"),
    ("same piece twice", boxes_of_w(([0, 0], [1, 2]), ([0, 0], [1, 2])), "w", "two pieces of it overlap"),
    ("piece beyond the tensor", boxes_of_w(([0, 0], [1, 2]), ([1, 0], [1, 3])), "w", "reaches beyond it"),
    ("piece of fewer dimensions", boxes_of_w(([0], [2])), "w", "a piece whose place or size is none"),
    ("wrong sizes", boxes_of_w(([0, 0], [1, 1]), ([0, 1], [1, 1]), ([1, 0], [1, 2])), "w", "nothing says where"),
    ("tensors swapped", swap, "w", r"not what the metadata say: found F32 \[2\], expected F32 \[1, 2\]"),
    ("another dtype", dtype_of_w(torch.float16), "w", r"found F32 \[1, 2\], expected F16 \[1, 2\]"),
    ("unknown dtype", dtype_of_w(torch.quint8), "w", "of type torch.quint8: it cannot be averaged"),
    ("huge shape", shape_of_w(2**40, 2**40), "w", "shape overflows 63 bits"),
    ("shape too large", shape_of_w(2**20, 2), "w", "pieces of it are missing"),
    ("path of another", path_of("w", "a"), "w", "has the path of another tensor"),
    ("path within a tensor", path_of("w", "a", "w"), "w", "is within what is no dictionary"),
    ("path of no text", path_of("w", 1.5), "w", "has a path that is none"),
    ("code", code, None, "system, which is not data"),
    ("other storage", lambda m: m.storage_data.update({INDEX_A: {"x": 1}}), None, "another writer than torch's"),
    ("no storage", lambda m: setattr(m, "storage_data", None), None, "does not say in which files"),
    ("pieces that nothing stores", lambda m: m.state_dict_metadata["w"].chunks.extend(2000 * MANY), "w", "more pieces"),
    ("boxes of a labyrinth", labyrinth, "w", "its pieces cut it into too many cells"),
    ("dictionaries without end", deep, "x20", "nested in more dictionaries than so few names need"),
    ("no tensors", lambda m: setattr(m, "state_dict_metadata", {}), None, "holds no state dict"),
]


@pytest.mark.parametrize(("change", "tensor", "says"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_bad_distributed_checkpoint_is_one_line(place: Place, change: Change, tensor: str | None, says: str) -> None:
    bad = saved(place, change)
    error = refusal(lambda: pysoup.average_checkpoints([place.good, bad], place.output), place.root)
    assert isinstance(error, CheckpointError)
    assert re.search(says, str(error)), error
    assert error.tensor == tensor
    assert str(error).startswith(str(bad))


def test_without_a_fault_it_is_averaged(place: Place) -> None:
    pysoup.average_checkpoints([place.good, saved(place)], place.output)
    found = pysoup.open_checkpoint(place.output).state_dict()
    assert {name: tensor.reshape(-1).tolist() for name, tensor in found.items()} == MEAN


def test_directory_that_is_not_whole_is_refused(place: Place) -> None:
    bad = saved(place)
    whole = (bad / FILE).read_bytes()

    def says(text: str) -> None:
        error = refusal(lambda: pysoup.average_checkpoints([place.good, bad], place.output), place.root)
        assert text in str(error)

    (bad / FILE).write_bytes(whole[:-1])
    says("reaches beyond the end of the file (truncated)")
    (bad / FILE).unlink()
    (bad / "__1_0.distcp").symlink_to(bad / "nowhere")
    says("in a file that is not there")
    (bad / "__1_0.distcp").unlink()
    says("no weights in directory")
    (bad / FILE).write_bytes(whole)
    metadata = (bad / ".metadata").read_bytes()
    for cut in range(0, len(metadata), 41):
        (bad / ".metadata").write_bytes(metadata[:cut])
        says(".metadata")
    (bad / ".metadata").unlink()
    says("without its .metadata")


def test_directory_of_two_formats_is_refused(place: Place) -> None:
    bad = saved(place)
    (bad / "model.safetensors").write_bytes(place.good.read_bytes())
    with pytest.raises(CheckpointError, match="holds a distributed checkpoint and other weights, name one of them"):
        pysoup.open_checkpoint(bad)
    assert len(pysoup.open_checkpoint(bad / ".metadata")) == 2


def test_changed_bytes_are_refused_or_read_as_torch_reads_them(place: Place) -> None:
    """Any one byte of the metadata: an error of one line, or the same tensors."""
    bad = saved(place)
    metadata = (bad / ".metadata").read_bytes()
    good = pysoup.open_checkpoint(bad).state_dict()
    for at in range(0, len(metadata), 3):
        (bad / ".metadata").write_bytes(metadata[:at] + bytes([metadata[at] ^ 1]) + metadata[at + 1 :])
        try:
            found = pysoup.open_checkpoint(bad).state_dict()
        except CheckpointError as error:
            assert_line(str(error))
            continue
        values = [tensor.tolist() for tensor in found.values()]
        assert all(value in [tensor.tolist() for tensor in good.values()] for value in values), at


def test_file_written_to_meanwhile_is_refused(place: Place) -> None:
    directory = saved(place)
    checkpoint = pysoup.open_checkpoint(directory)
    with open(directory / FILE, "ab") as file:
        file.write(b"x")
    with pytest.raises(CheckpointError, match="file changed since its header was checked"):
        checkpoint.tensor("w")
