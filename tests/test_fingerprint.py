"""Fingerprints of files and data: plain SHA-256 over what is documented, checked with hashlib and sha256sum."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import OrderedDict, UserDict
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
import torch

from pysoup import fingerprint as module
from pysoup.checkpoint import open_checkpoint, save_state_dict
from pysoup.errors import CheckpointError
from pysoup.fingerprint import ContentHash, StatKey, fingerprint_data, fingerprint_file


class Pair(NamedTuple):
    x: Any
    y: Any


def sharded(directory: Path) -> Path:
    """Three shards whose order in the index is not that of their names."""
    directory.mkdir()
    weight_map = {}
    for name, shard in (("a", "z.safetensors"), ("b", "m.safetensors"), ("c", "b.safetensors")):
        save_state_dict({name: torch.randn(300)}, directory / shard)
        weight_map[name] = shard
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


@pytest.mark.parametrize("size", [0, 1, 64, 1000])
def test_a_file_has_the_sha256_of_all_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(module, "_BLOCK", 64)
    path = tmp_path / "w.bin"
    path.write_bytes(os.urandom(size))
    assert fingerprint_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert fingerprint_file(str(path)) == fingerprint_file(path)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum")
def test_fingerprints_are_what_sha256sum_prints(tmp_path: Path) -> None:
    directory = sharded(tmp_path / "model")
    shards = [file.name for file in open_checkpoint(directory).files]
    assert len(shards) == 3
    printed = subprocess.run(["sha256sum", *shards], cwd=directory, capture_output=True, check=True).stdout
    assert fingerprint_file(directory) == hashlib.sha256(printed).hexdigest()
    one = subprocess.run(["sha256sum", shards[0]], cwd=directory, capture_output=True, check=True, text=True).stdout
    assert fingerprint_file(directory / shards[0]) == one.split()[0]


def test_every_way_to_name_a_sharded_checkpoint_gives_one_fingerprint(tmp_path: Path) -> None:
    directory = sharded(tmp_path / "model")
    known = {
        fingerprint_file(what)
        for what in (directory, directory / "model.safetensors.index.json", open_checkpoint(directory))
    }
    assert len(known) == 1
    shard = directory / "b.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert fingerprint_file(directory) not in known


def test_a_file_that_is_missing_or_no_checkpoint_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        fingerprint_file(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        StatKey.of(tmp_path / "w.safetensors")


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(bytes(100))
    readv = os.readv

    def growing(fd: int, buffers: list[memoryview]) -> int:
        with open(path, "ab") as file:
            file.write(b"x")
        monkeypatch.setattr(os, "readv", readv)
        return readv(fd, buffers)

    monkeypatch.setattr(os, "readv", growing)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        fingerprint_file(path)


def test_a_stat_key_changes_with_the_file_and_survives_json(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(b"one")
    os.utime(path, ns=(1, 1))
    key = StatKey.of(path)
    assert key == StatKey.of(path)
    assert StatKey(*json.loads(json.dumps(key))) == key
    assert (key.size, key.mtime_ns, key.inode) == (3, 1, path.stat().st_ino)
    other = tmp_path / "other.bin"
    other.write_bytes(b"two")
    os.utime(other, ns=(1, 1))
    os.replace(other, path)  # same name, size and modification time
    assert StatKey.of(path) != key


def test_data_is_hashed_in_the_documented_form() -> None:
    """Pinned: another form would make every recorded fingerprint worthless."""
    x = torch.tensor([1.5, -2.0])
    data = {"x": x, "labels": [True, 3, None, "é", b"\0", 0.5]}
    stream = b"mapping 2\n"
    stream += b"str 6\nlabels" + b"sequence 6\n" + b"bool 1\n\1" + b"int 3\n0x3" + b"none 0\n"
    stream += b"str 2\n\xc3\xa9" + b"bytes 1\n\0" + b"float 8\n" + np.float64(0.5).tobytes()
    stream += b"str 1\nx" + b"array float32 [2]\n" + np.array([1.5, -2.0], "<f4").tobytes()
    assert fingerprint_data(data) == hashlib.sha256(stream).hexdigest()


def test_the_same_content_in_other_clothes_has_the_same_fingerprint() -> None:
    x = torch.randn(5, 4, 3)
    y = torch.arange(5)
    expected = fingerprint_data((x, y))
    strided = torch.randn(3, 4, 5).permute(2, 1, 0).copy_(x)
    assert not strided.is_contiguous()
    for same in ([x, y], Pair(x, y), (strided, y), (x.numpy(), y.numpy()), (x.clone().requires_grad_(), y)):
        assert fingerprint_data(same) == expected
    assert fingerprint_data((np.asfortranarray(x.numpy()), y)) == expected
    assert fingerprint_data((x.numpy().astype(">f4"), y)) == expected
    names = fingerprint_data({"x": x, "labels": y})
    for mapping in (OrderedDict(labels=y, x=x), UserDict(x=x, labels=y)):
        assert fingerprint_data(mapping) == names


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float16", "complex64", "bool", "uint8", "int64"])
def test_tensor_and_array_of_every_dtype_agree(name: str) -> None:
    numbers = np.arange(6).reshape(2, 3) % 2
    dtype = getattr(ml_dtypes, name, None) or np.dtype(name)
    array = numbers.astype(dtype)
    assert fingerprint_data(torch.from_numpy(numbers).to(getattr(torch, name))) == fingerprint_data(array)


def test_different_content_has_different_fingerprints() -> None:
    x = torch.arange(6.0)
    changed = x.clone()
    changed[3] += 1e-6
    different = [
        x, changed, x.double(), x.view(2, 3), x.view(3, 2), x.int(), [x], [[x]], [x, x], {"x": x}, {"y": x}, {0: x},
        x[:0], torch.empty(0, 3), torch.empty(3, 0), [], {}, [[]], [[], []], None, 0, 0.0, -0.0, False, "", b"", "0",
        [0, 1], [1, 0], ["ab", "c"], ["a", "bc"], [b"ab"], [1, [2]], [[1], 2], {"a": 1, "b": 2}, {"a": 2, "b": 1},
        torch.tensor(1), torch.tensor([1]), 1, True, 1.0, 1 + 0j, 2**70, np.array(["ab"]), torch.tensor([-0.0]),
        torch.tensor([0.0]), torch.tensor([float("nan")]),
    ]  # fmt: skip
    found = [fingerprint_data(value) for value in different]
    assert None not in found
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("data", "unread"),
    [
        ([1, object()], "object"),
        ({"x": {1, 2}}, "set"),
        (iter([]), "list_iterator"),
        ((torch.zeros(1), Path("x")), "pathlib.PosixPath"),
        (np.array([object()]), "array of object"),
        (torch.eye(2).to_sparse(), "torch.sparse_coo tensor"),
        (torch.empty(2, device="meta"), "meta tensor"),
        ({(1, 2): 0}, "tuple as a key"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_has_no_fingerprint_and_is_named(data: Any, unread: str) -> None:
    assert fingerprint_data(data) is None
    assert ContentHash().add(data) == unread


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_strided_tensors_are_hashed_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    x = torch.randn(50, 40)
    expected = hashlib.sha256(b"array float32 [40, 50]\n" + x.T.contiguous().numpy().tobytes()).hexdigest()
    assert fingerprint_data(x.T) == expected


def test_fingerprints_are_the_same_in_every_process_and_need_no_torch() -> None:
    code = (
        "import sys; from pysoup.fingerprint import fingerprint_data\n"
        "print(fingerprint_data({'b': [1.5, 'text'], 'a': {3: None, 'x': b'y'}}), 'torch' in sys.modules)"
    )
    here = fingerprint_data({"a": {3: None, "x": b"y"}, "b": [1.5, "text"]})
    for seed in ("1", "2"):
        run = [sys.executable, "-c", code]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        printed = subprocess.run(run, capture_output=True, text=True, check=True, env=environment).stdout
        assert printed.split() == [here, "False"]


@pytest.mark.cuda
def test_a_tensor_on_a_device_has_the_fingerprint_of_its_copy() -> None:
    x = torch.randn(7, 5)
    assert fingerprint_data(x.cuda()) == fingerprint_data(x)
    assert fingerprint_data(x.cuda().T) == fingerprint_data(x.T)
