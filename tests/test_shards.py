"""How an output directory is cut into files, and what they are called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from pysoup import dtypes
from pysoup.checkpoint import CheckpointWriter, open_checkpoint
from pysoup.checkpoint.output.output_format import is_directory_output
from pysoup.checkpoint.output.shards import reshard, safetensors_shard_names
from pysoup.errors import OutputError


def _layout(*sizes: int, names: tuple[str, ...] = ("model.safetensors",)) -> list:
    """Tensors of these many bytes, all in the first shard; the other shards are empty."""
    tensors = [(f"t{i}", dtypes.BY_NAME["U8"], (size,)) for i, size in enumerate(sizes)]
    return [(name, tensors if i == 0 else []) for i, name in enumerate(names)]


def _sizes(layout: list) -> list[list[int]]:
    return [[shape[0] for _, _, shape in tensors] for _, tensors in layout]


@pytest.mark.parametrize(
    ("sizes", "shard_size", "expected"),
    [
        ([3, 3, 3], 6, [[3, 3], [3]]),
        ([3, 3, 3], 5, [[3], [3], [3]]),
        ([3, 3, 3], 9, [[3, 3, 3]]),
        ([9, 1, 1], 2, [[9], [1, 1]]),
        ([1, 9, 1], 2, [[1], [9], [1]]),
        ([2, 0, 0, 2, 0], 2, [[2, 0, 0], [2, 0]]),
        ([], 1, [[]]),
        ([0], 1, [[0]]),
    ],
)
def test_tensors_are_dealt_in_order_to_shards_of_at_most_the_size(
    sizes: list[int], shard_size: int, expected: list[list[int]]
) -> None:
    assert _sizes(reshard(_layout(*sizes), shard_size)) == expected


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 60))
def test_no_shard_is_too_large_or_could_have_taken_the_next_tensor(sizes: list[int], shard_size: int) -> None:
    found = _sizes(reshard(_layout(*sizes), shard_size))
    assert [size for shard in found for size in shard] == sizes
    for shard, later in zip(found, [*found[1:], None], strict=True):
        assert sum(shard) <= shard_size or len([size for size in shard if size]) == 1
        assert later is None or sum(shard) + later[0] > shard_size


def test_shards_are_named_as_transformers_names_them() -> None:
    names = ("pytorch-00001-of-00002.safetensors", "pytorch-00002-of-00002.safetensors")
    assert [name for name, _ in reshard(_layout(1, 1, 1), 1)] == [
        f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    assert [name for name, _ in reshard(_layout(1, names=names), 1)] == ["pytorch.safetensors"]
    assert [name for name, _ in reshard(_layout(1, names=("a.safetensors", "b.safetensors")), 1)] == [
        "model.safetensors"
    ]


@pytest.mark.parametrize("shard_size", [0, -1])
def test_size_below_one_is_refused(shard_size: int) -> None:
    with pytest.raises(OutputError, match="shard size is too small: found"):
        reshard(_layout(1), shard_size)


@pytest.mark.parametrize("shard_size", [4, 8, 100])
def test_resharded_directory_is_read_by_index_or_without_one(tmp_path: Path, shard_size: int) -> None:
    layout = reshard(_layout(4, 3, 2, 1), shard_size)
    with CheckpointWriter(tmp_path / "d", layout, is_directory=True) as writer:
        for i, size in enumerate((4, 3, 2, 1)):
            writer.write_bytes(f"t{i}", bytes([i]) * size)
        writer.commit()
    index = tmp_path / "d" / "model.safetensors.index.json"
    assert index.exists() == (len(layout) > 1)
    for shard, tensors in layout:
        with safe_open(tmp_path / "d" / shard, "np") as file:
            assert sorted(file.keys()) == sorted(name for name, _, _ in tensors)
    if index.exists():
        weight_map = json.loads(index.read_text())["weight_map"]
        assert weight_map == {name: shard for shard, tensors in layout for name, _, _ in tensors}
    checkpoint = open_checkpoint(tmp_path / "d")
    assert [checkpoint.tensor(f"t{i}").tolist() for i in range(4)] == [[0] * 4, [1] * 3, [2] * 2, [3]]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (["pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.fp16.bin"], ["model.fp16.safetensors"]),
        (["open_clip_pytorch_model.bin"], ["open_clip_model.safetensors"]),
        (["diffusion_pytorch_model.bin"], ["diffusion_pytorch_model.safetensors"]),
        (["adapter_model.bin"], ["adapter_model.safetensors"]),
        (["weights.pth.tar"], ["weights.safetensors"]),
        (["weights.npz"], ["weights.safetensors"]),
        (["no_suffix"], ["no_suffix.safetensors"]),
        (["model-00001-of-00001.safetensors"], ["model-00001-of-00001.safetensors"]),
        (["a.bin", "a.pt", "a.pt.safetensors"], ["a.safetensors", "a.pt-2.safetensors", "a.pt.safetensors"]),
        (["a.bin", "a.safetensors"], ["a.bin.safetensors", "a.safetensors"]),
        ([], []),
    ],
)
def test_shards_of_other_formats_get_the_names_that_readers_look_for(names: list[str], expected: list[str]) -> None:
    assert safetensors_shard_names(names) == expected


@given(st.lists(st.sampled_from(["a", "a.bin", "a.pt", "a.pt.safetensors", "a.safetensors", "a.npz", "b.bin"])))
def test_shard_names_stay_different(names: list[str]) -> None:
    names = list(dict.fromkeys(names))
    found = safetensors_shard_names(names)
    assert len(set(found)) == len(names)
    assert all(name.endswith(".safetensors") for name in found)


@pytest.mark.parametrize(
    ("output", "directory_input", "expected"),
    [
        ("soup", False, True),
        ("soup.v2", True, True),
        ("soup.v2", False, False),
        ("soup.safetensors", True, False),
        ("soup.pt", True, False),
        ("soup.pth", False, False),
        ("soup.bin", True, False),
        ("soup.pth.tar", True, False),
        ("soup.safetensors.index.json", True, False),
        ("there.v2", False, True),
    ],
)
def test_suffix_tells_whether_the_output_is_a_directory(
    tmp_path: Path, output: str, directory_input: bool, expected: bool
) -> None:
    (tmp_path / "there.v2").mkdir()
    assert is_directory_output(tmp_path / output, directory_input) is expected
