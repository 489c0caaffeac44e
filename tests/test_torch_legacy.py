"""Files of torch.save from before the zip format, read without torch: places, faults, and nothing executed."""

from __future__ import annotations

import io
import random
import struct
import tarfile
from pathlib import Path

import pytest
import torch
from torch_files import (
    call,
    integer,
    legacy_bytes,
    legacy_storage,
    list_of,
    mapping,
    pickled,
    same_bits,
    saved,
    tensor,
    text,
    tuple_of,
    values,
    views,
)

from pysoup.checkpoint.pickled import torch_legacy
from pysoup.checkpoint.pickled.torch_legacy import read_torch_legacy
from pysoup.errors import CheckpointError

FLOATS = struct.pack("<4f", 1, 2, 3, 4)
TREE = mapping({"w": tensor(store=legacy_storage())})
STORAGES = {"0": (4, FLOATS)}


def error_of(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_torch_legacy(path)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    return line


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_read_torch_legacy_finds_every_tensor_where_torch_put_it(tmp_path: Path, protocol: int) -> None:
    tensors = views()
    # torch itself cannot read back a storage that ends within an element.
    del tensors["part_of_element"]
    tensors["tied"] = tensors["base"]
    path = tmp_path / "model.pth"
    path.write_bytes(saved(tensors, _use_new_zipfile_serialization=False, pickle_protocol=protocol))
    contents = read_torch_legacy(path)
    found = values(contents)
    assert found.keys() == tensors.keys()
    assert contents.names == [name for name in tensors if name != "tied"]
    assert all(same_bits(found[name], tensors[name]) for name in tensors)
    assert (contents.format, contents.aliases, contents.entry) == ("torch-legacy", {"tied": "base"}, "")


def test_read_torch_legacy_takes_the_named_entry(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    state = {"epoch": 3, "model": {"w": torch.ones(2)}, "ema": {"w": torch.zeros(2)}}
    path.write_bytes(saved(state, _use_new_zipfile_serialization=False))
    contents = read_torch_legacy(path, "ema")
    assert values(contents)["w"].tolist() == [0, 0]
    assert (contents.entry, contents.dropped) == ("ema", ["epoch (int)", "model (dict)"])
    with pytest.raises(CheckpointError, match=r"found model, ema$"):
        read_torch_legacy(path)


def test_read_torch_legacy_reads_pickles_longer_than_its_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {f"layers.{i}.weight": torch.full((2,), float(i)) for i in range(20)}
    path = tmp_path / "a.pth"
    data = saved(tensors, _use_new_zipfile_serialization=False)
    path.write_bytes(data)
    expected = read_torch_legacy(path)
    for window in (1, 2, 7, 100):
        monkeypatch.setattr(torch_legacy, "_FIRST_WINDOW", window)
        assert read_torch_legacy(path) == expected
    monkeypatch.setattr(torch_legacy, "MAX_PICKLE_BYTES", 500)
    assert "pickle at byte 137 is too large" in error_of(path, data)


def test_read_torch_legacy_reads_what_python_2_wrote(tmp_path: Path) -> None:
    def short(value: str) -> bytes:
        return b"U" + bytes((len(value),)) + value.encode()

    stored = tuple_of(short("storage"), b"ctorch\nFloatStorage\n", short("0"), short("cpu"), integer(4), b"N") + b"Q"
    pair = b"](" + short("w") + tensor(store=stored) + b"e"
    tree = call("collections", "OrderedDict", list_of(pair)) + b"q\x01"
    path = tmp_path / "a.pth"
    path.write_bytes(legacy_bytes(tree, STORAGES, keys=pickled(b"](" + short("0") + b"e")))
    assert values(read_torch_legacy(path))["w"].tolist() == [1, 2, 3, 4]


def test_read_torch_legacy_digest_tells_files_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(legacy_bytes(TREE, STORAGES))
    first = read_torch_legacy(path).digest
    assert first == read_torch_legacy(path).digest
    path.write_bytes(legacy_bytes(mapping({"v": tensor(store=legacy_storage())}), STORAGES))
    assert first != read_torch_legacy(path).digest


BROKEN = {
    "a pickle of a list": (pickled(b"]"), "not one of torch.save: save the state dict with torch.save: found list"),
    "another magic": (legacy_bytes(TREE, STORAGES, magic=pickled(integer(5))), "not one of torch.save"),
    "no pickle": (b"hello", "not a file of torch.save"),
    "empty": (b"", "not a file of torch.save"),
    "another version": (legacy_bytes(TREE, STORAGES, version=pickled(integer(1002))), "found 1002, expected 1001"),
    "version of text": (legacy_bytes(TREE, STORAGES, version=pickled(text("x"))), "unknown version.*found str"),
    "big-endian": (legacy_bytes(TREE, STORAGES, machine=pickled(mapping({"little_endian": b"\x89"}))), "big-endian"),
    "no machine": (legacy_bytes(TREE, STORAGES, machine=pickled(b"N")), "big-endian"),
    "view of a storage": (
        legacy_bytes(mapping({"w": tensor(store=legacy_storage(view=b"K\x01"))}), STORAGES),
        "views of storages, as torch before 0.4 wrote",
    ),
    "a model": (legacy_bytes(tuple_of(text("module"), b"N", b"N", b"N") + b"Q", {}), "holds a model"),
    "code": (
        legacy_bytes(call("os", "system", text("ls")), {}),
        "calls os.system, which is not data.*byte 74 of the file",
    ),
    "code in the keys": (legacy_bytes(TREE, STORAGES, keys=pickled(call("os", "system"))), "os.system"),
    "keys missing": (legacy_bytes(TREE, STORAGES, keys=pickled(b"]"), data=b""), "no data of storage '0'"),
    "keys unknown": (legacy_bytes(TREE, {**STORAGES, "1": (4, FLOATS)}), "not that of the pickle"),
    "keys twice": (legacy_bytes(TREE, STORAGES, keys=pickled(list_of(text("0"), text("0")))), "not that of the pickle"),
    "keys in a tuple": (legacy_bytes(TREE, STORAGES, keys=pickled(b")")), "not that of the pickle"),
    "keys of integers": (legacy_bytes(TREE, STORAGES, keys=pickled(b"]K\x00a")), "not that of the pickle"),
    "count wrong": (legacy_bytes(TREE, {"0": (5, FLOATS)}), "another size: found 20 bytes, expected 16"),
    "count negative": (legacy_bytes(TREE, {"0": (-4, FLOATS)}), "another size"),
    "count huge": (legacy_bytes(TREE, {"0": (2**62, FLOATS)}), "another size"),
    "data short": (legacy_bytes(TREE, {"0": (4, FLOATS[:15])}), "truncated in storage '0'"),
    "data long": (legacy_bytes(TREE, {"0": (4, FLOATS + b"x")}), "belong to none"),
    "view beyond": (legacy_bytes(mapping({"w": tensor((5,), store=legacy_storage())}), STORAGES), "beyond its storage"),
}


@pytest.mark.parametrize(("data", "what"), BROKEN.values(), ids=BROKEN)
def test_read_torch_legacy_refuses_a_broken_file(tmp_path: Path, data: bytes, what: str) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=what):
        read_torch_legacy(path)
    error_of(path, data)


def test_read_torch_legacy_refuses_the_tar_format_by_name(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    assert "tar archive, as torch before 0.1.10 wrote" in error_of(tmp_path / "a.pth", buffer.getvalue())


def test_read_torch_legacy_refuses_a_file_cut_anywhere(tmp_path: Path) -> None:
    data = legacy_bytes(TREE, STORAGES)
    path = tmp_path / "a.pth"
    for length in range(len(data)):
        error_of(path, data[:length])


def test_read_torch_legacy_of_damaged_files_fails_in_one_line_only(tmp_path: Path) -> None:
    random.seed(2)
    original = saved(
        {"model": {"a": torch.ones(2, 2), "b": torch.nn.Parameter(torch.ones(3))}, "n": 5},
        _use_new_zipfile_serialization=False,
    )
    path = tmp_path / "a.pth"
    good = 0
    for _ in range(800):
        data = bytearray(original)
        for _ in range(random.randint(1, 3)):
            data[random.randrange(len(data) - 28)] = random.choice((0, 1, 0x28, 0x71, 0xFF, random.randrange(256)))
        path.write_bytes(data)
        try:
            contents = read_torch_legacy(path)
            good += 1
            assert values(contents)
        except CheckpointError as error:
            line = str(error)
            assert "\n" not in line
    assert good < 500
