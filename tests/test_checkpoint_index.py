"""Index files and directories: which files a path stands for, and what an index must not say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoint_files import floats, sharded

from pysoup.checkpoint import natural_key, open_checkpoint
from pysoup.errors import CheckpointError

TWO = {"model-2.safetensors": {"a": [1.0], "b": [2.0, 3.0]}, "model-10.safetensors": {"c": [4.0]}}


def _failure(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_index_and_its_directory_open_alike_in_natural_order(tmp_path: Path) -> None:
    index = sharded(tmp_path / "m", TWO)
    for path in (index, index.parent, str(index.parent)):
        checkpoint = open_checkpoint(path)
        assert [file.name for file in checkpoint.files] == ["model-2.safetensors", "model-10.safetensors"]
        assert list(checkpoint) == ["a", "b", "c"]
        assert (checkpoint.kind, checkpoint.is_directory) == ("sharded", True)
        assert (checkpoint.entry("c").file, checkpoint.tensor("c").tolist()) == (1, [4.0])
        assert {n: t.tolist() for n, t in checkpoint.state_dict().items()} == {"a": [1.0], "b": [2.0, 3.0], "c": [4.0]}
        assert (checkpoint.numel, checkpoint.total_bytes) == (4, 16)


def test_natural_key_sorts_numbers_by_value() -> None:
    names = ["m-10.pt", "m-9.pt", "m.pt", "10", "9b", "m-09.pt"]
    assert sorted(names, key=natural_key) == ["9b", "10", "m-9.pt", "m-09.pt", "m-10.pt", "m.pt"]


@pytest.mark.parametrize(
    "shard",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "9" * 5000 + ".safetensors",
        "sub/x.safetensors",
        "..",
        "",
        ".",
        "a\\b.safetensors",
        "x.bin",
        "\0",
        7,
    ],
)
def test_shard_name_that_leaves_the_directory_is_refused(tmp_path: Path, shard: object) -> None:
    index = sharded(tmp_path / "m", TWO, {"a": shard})
    text = _failure(index)
    assert str(index) in text
    assert "tensor 'a'" in text
    assert "shard" in text


@pytest.mark.parametrize(
    ("weight_map", "expected"),
    [
        ({"a": "model-3.safetensors"}, "shard 'model-3.safetensors' is missing"),
        ({"a": "model-2.safetensors"}, "tensor 'b': in shard 'model-2.safetensors', but not in the index"),
        (
            {
                "a": "model-2.safetensors",
                "b": "model-2.safetensors",
                "c": "model-10.safetensors",
                "d": "model-10.safetensors",
            },
            "tensor 'd': listed in the index, but not in shard 'model-10.safetensors'",
        ),
        ({"a": "model-10.safetensors", "b": "model-2.safetensors", "c": "model-10.safetensors"}, "in another shard"),
        ([], "no weight_map"),
        ({}, "no weight_map"),
    ],
)
def test_index_that_does_not_fit_its_shards_is_refused(tmp_path: Path, weight_map: object, expected: str) -> None:
    assert expected in _failure(sharded(tmp_path / "m", TWO, weight_map))


def test_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    shards = {"m-1.safetensors": {"a": [1.0], "b": [1.0]}, "m-2.safetensors": {"a": [2.0]}}
    text = _failure(sharded(tmp_path / "m", shards))
    assert "tensor 'a'" in text
    assert "also in shard 'm-1.safetensors'" in text


def test_malformed_index_is_refused(tmp_path: Path) -> None:
    index = sharded(tmp_path / "m", TWO)
    shard = '"model-2.safetensors"'
    index.write_text(f'{{"weight_map":{{"a":{shard},"a":{shard}}}}}')
    assert "duplicate name 'a'" in _failure(index)
    index.write_text("[]")
    assert "index is not a JSON object" in _failure(index)
    index.write_text(json.dumps({"architectures": ["X"]}))
    assert "not a weight index" in _failure(index)


def test_directory_prefers_index_then_model_then_the_only_file(tmp_path: Path) -> None:
    floats(tmp_path / "other.safetensors", {"only": [1.0]})
    floats(tmp_path / ".hidden.safetensors", {"hidden": [1.0]})
    assert list(open_checkpoint(tmp_path)) == ["only"]
    floats(tmp_path / "second.safetensors", {"x": [1.0]})
    assert "several safetensors files" in _failure(tmp_path)
    floats(tmp_path / "model.safetensors", {"model": [1.0]})
    assert list(open_checkpoint(tmp_path)) == ["model"]
    assert open_checkpoint(tmp_path).is_directory
    sharded(tmp_path, TWO)
    assert list(open_checkpoint(tmp_path)) == ["a", "b", "c"]


def test_directory_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    assert "no weights in directory: found an empty directory" in _failure(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "found config.json" in _failure(tmp_path)
    (tmp_path / "optimizer.pt").write_bytes(b"")
    assert "no weights in directory: found config.json, optimizer.pt" in _failure(tmp_path)
    (tmp_path / "tf_model.h5").write_bytes(b"")
    assert "convert its weights to safetensors first: found tf_model.h5" in _failure(tmp_path)


@pytest.mark.parametrize("name", ["m.h5", "m.gguf", "m.pkl", "m", "m.txt"])
def test_other_suffix_is_refused_with_a_hint(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    text = _failure(tmp_path / name)
    assert "unsupported suffix" in text
    assert ("convert it to safetensors first" in text) is (Path(name).suffix in (".h5", ".gguf", ".pkl"))


def test_linked_shards_as_in_the_hub_cache_are_followed(tmp_path: Path) -> None:
    index = sharded(tmp_path / "snapshot", TWO)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for i, shard in enumerate(TWO):
        (index.parent / shard).rename(blobs / str(i))
        (index.parent / shard).symlink_to(f"../blobs/{i}")
    assert list(open_checkpoint(index.parent)) == ["a", "b", "c"]
