"""Files of torch.save read without torch: every tensor's bytes are where torch put them, and faults have one line."""

from __future__ import annotations

import struct
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch_files import (
    Member,
    archive,
    archive_members,
    call,
    list_of,
    mapping,
    named,
    pickled,
    same_bits,
    saved,
    storage,
    tensor,
    text,
    values,
    views,
    zip_bytes,
)

from pysoup.checkpoint.contents import Strided
from pysoup.checkpoint.pickled.torch_file import read_torch
from pysoup.errors import CheckpointError


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_read_torch_finds_every_tensor_where_torch_put_it(tmp_path: Path, protocol: int) -> None:
    tensors = views()
    path = tmp_path / "model.pt"
    path.write_bytes(saved(tensors, pickle_protocol=protocol))
    contents = read_torch(path)
    found = values(contents)
    assert list(found) == list(tensors)
    assert all(same_bits(found[name], tensors[name]) for name in tensors)
    assert contents.format == "torch"
    assert (contents.entry, contents.dropped, contents.aliases) == ("", [], {})
    strided = {contents.names[position] for position in contents.forms}
    assert strided == {"transposed", "columns", "expanded", "permuted", "channels_last"}
    assert {key: list(found[key].shape) for key in ("scalar", "empty_rows")} == {"scalar": [], "empty_rows": [0, 3]}


def test_read_torch_takes_the_state_dict_of_a_module_with_its_metadata(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    assert isinstance(model.state_dict(), OrderedDict)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    found = values(read_torch(tmp_path / "a.pth"))
    assert list(found) == list(model.state_dict())
    assert all(same_bits(found[name], value) for name, value in model.state_dict().items())


def test_read_torch_ties_names_of_one_view_only(tmp_path: Path) -> None:
    a = torch.randn(4, 4)
    square = torch.arange(9.0).reshape(3, 3)
    tensors = {"a": a, "b": a, "param": torch.nn.Parameter(a), "rows": a[1:3], "rows_again": a[1:3], "flat": a.view(16)}
    tensors |= {"t": square.t(), "t_again": square.T, "square": square, "e1": a[4:], "e2": a[4:]}
    torch.save(tensors, tmp_path / "tied.pt")
    contents = read_torch(tmp_path / "tied.pt")
    assert contents.aliases == {"b": "a", "param": "a", "rows_again": "rows", "t_again": "t"}
    assert contents.names == ["a", "rows", "flat", "t", "square", "e1", "e2"]
    assert contents.forms == {3: Strided((1, 3), 36)}
    assert contents.begins[1] == contents.begins[0] + 16


def test_read_torch_keeps_tensors_of_a_subclass_or_with_attributes(tmp_path: Path) -> None:
    plain = torch.randn(3)
    plain.note = "kept by torch as state"
    parameter = torch.nn.Parameter(torch.randn(2))
    parameter.note = "too"
    torch.save({"plain": plain, "parameter": parameter, "buffer": torch.nn.Buffer(torch.ones(2))}, tmp_path / "s.pt")
    found = values(read_torch(tmp_path / "s.pt"))
    assert same_bits(found["plain"], plain.data)
    assert same_bits(found["parameter"], parameter.data)
    assert same_bits(found["buffer"], torch.ones(2))


def quantized() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to drop these types
        return torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)


UNREAD = {
    "tensor is quantized": quantized,
    "tensor is sparse": lambda: torch.eye(3).to_sparse(),
    "tensor is on the meta device": lambda: torch.empty(3, device="meta"),
    "tensor is a conjugated view": lambda: torch.tensor([1j, 2]).conj(),
    "tensor is a negated view": lambda: torch.tensor([1j, 2]).conj().imag,
    "tensor is of type torch.float8_e4m3fnuz": lambda: torch.zeros(2, dtype=torch.float8_e4m3fnuz),
    "tensor is not initialised": torch.nn.parameter.UninitializedParameter,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", UNREAD)
def test_read_torch_refuses_by_name_what_it_cannot_average(tmp_path: Path, what: str) -> None:
    value = UNREAD[what]()
    path = tmp_path / "a.pt"
    torch.save({"fine": torch.ones(1), "odd.one": value}, path)
    with pytest.raises(CheckpointError, match=what) as caught:
        read_torch(path)
    assert caught.value.tensor == "odd.one"
    # In the state of an optimizer it is nobody's business.
    torch.save({"model": {"fine": torch.ones(1)}, "optimizer": {"odd.one": value}}, path)
    assert read_torch(path).names == ["fine"]


def test_read_torch_takes_metadata_from_the_record_of_an_average(tmp_path: Path) -> None:
    members = archive_members(pickled(mapping({"w": tensor()})))
    path = tmp_path / "a.pt"
    path.write_bytes(zip_bytes([*members, Member("m/pysoup.json", b'{"pysoup.version": "1", "a": "b"}')]))
    assert read_torch(path).metadata == {"pysoup.version": "1", "a": "b"}
    path.write_bytes(zip_bytes([*members, Member("m/pysoup.json", b'{"a": 1}')]))
    with pytest.raises(CheckpointError, match="is not a string"):
        read_torch(path)


def test_read_torch_digest_tells_files_apart_by_what_describes_their_tensors(tmp_path: Path) -> None:
    for name, tensors in (("a", torch.ones(3)), ("b", torch.zeros(3)), ("c", torch.zeros(4))):
        (tmp_path / f"{name}.pt").write_bytes(saved({"w": tensors}))
    a, b, c = (read_torch(tmp_path / f"{name}.pt").digest for name in "abc")
    assert a == b != c


F32 = struct.pack("<4f", 1, 2, 3, 4)

BROKEN_VIEWS = {
    "beyond its storage": tensor((5,), (1,)),
    "offset beyond": tensor((4,), (1,), offset=1),
    "strides beyond": tensor((2, 2), (3, 1)),
    "far offset": tensor((1,), (1,), offset=2**62),
    "far stride": tensor((2,), (2**62,)),
    "negative offset": tensor((1,), (1,), offset=-1),
    "negative stride": tensor((2,), (-1,), offset=3),
    "negative size": tensor((-1,), (1,)),
    "sizes of another count": tensor((2, 2), (1,)),
    "large product": tensor((2**32, 2**32), (0, 0)),
    "large product beside a zero": tensor((0, 2**32, 2**32), (0, 0, 0)),
    "expanded beyond the file": tensor((2**40,), (0,)),
    "65 dimensions": tensor((1,) * 65, (1,) * 65),
    "no storage": tensor(store=b"K\x05"),
    "list for a shape": call("torch._utils", "_rebuild_tensor_v2", storage(), b"K\x00", b"]", b"]", b"\x89", b"N"),
    "too few values": call("torch._utils", "_rebuild_tensor_v2", storage()),
    "storage of another size": tensor(store=storage(numel=5)),
    "storage smaller": tensor((2,), store=storage(numel=3)),
    "negative storage": tensor((0,), store=storage(numel=-1)),
    "huge storage": tensor((0,), store=storage(numel=2**62)),
    "unknown storage": tensor(store=storage("1")),
    "storage elsewhere": tensor(store=storage("../data/0")),
    "storage in two sizes": list_of(tensor(), tensor((2,), store=storage(numel=2))),
    "parameter of none": call("torch._utils", "_rebuild_parameter", b"N", b"\x88", b"N"),
    "type that is none": call("torch._utils", "_rebuild_tensor_v3", storage(), *[b"K\x00"] * 6),
    "made by nothing": call("torch._tensor", "_rebuild_from_type_v2", named("os.path", "join"), b"N", b")", b"}"),
}


@pytest.mark.parametrize("view", BROKEN_VIEWS.values(), ids=BROKEN_VIEWS)
def test_read_torch_refuses_a_view_that_its_storage_has_not(tmp_path: Path, view: bytes) -> None:
    path = archive(tmp_path / "a.pt", pickled(mapping({"w": tensor(), "broken": view})))
    with pytest.raises(CheckpointError) as caught:
        read_torch(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_read_torch_takes_two_types_on_one_storage(tmp_path: Path) -> None:
    untyped = storage(numel=16, kind="UntypedStorage")
    hooks = call("collections", "OrderedDict")

    def view(dtype: str, count: int) -> bytes:
        sizes = (b"K" + bytes((count,)) + b"\x85", b"K\x01\x85")
        return call(
            "torch._utils", "_rebuild_tensor_v3", untyped, b"K\x00", *sizes, b"\x89", hooks, named("torch", dtype)
        )

    pickle = pickled(mapping({"floats": view("float32", 4), "bytes": view("uint8", 16)}))
    found = values(read_torch(archive(tmp_path / "a.pt", pickle)))
    assert found["floats"].tolist() == [1, 2, 3, 4]
    assert bytes(found["bytes"].tolist()) == F32
    # A storage declared with two types is another thing: torch never writes it, and would take the first for both.
    pickle = pickled(mapping({"floats": view("float32", 4), "words": tensor()}))
    with pytest.raises(CheckpointError, match="gives storage '0' two types"):
        read_torch(archive(tmp_path / "b.pt", pickle))


def test_read_torch_takes_an_expanded_view_no_larger_than_the_file(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", pickled(mapping({"w": tensor((50,), (0,))})))
    contents = read_torch(path)
    assert contents.forms == {0: Strided((0,), 4)}
    assert values(contents)["w"].tolist() == [1] * 50


GOOD = pickled(mapping({"w": tensor()}))

BROKEN_ARCHIVES = {
    "TorchScript": ([*archive_members(GOOD), Member("m/constants.pkl", b"")], "a TorchScript archive"),
    "TorchScript code": ([*archive_members(GOOD), Member("m/code/m.py", b"")], "a TorchScript archive"),
    "another archive": ([Member("readme.txt", b"")], "not one of torch.save.*readme.txt"),
    "empty archive": ([], "not one of torch.save"),
    "without a folder": ([Member("data.pkl", GOOD)], "not one of torch.save"),
    "two folders": ([*archive_members(GOOD), *archive_members(GOOD, top="n")], "has 2 data.pkl"),
    "big-endian": ([*archive_members(GOOD)[:1], Member("m/byteorder", b"big")], "big-endian.*found b'big'"),
    "other endian": ([*archive_members(GOOD)[:1], Member("m/byteorder", b"x" * 17)], "too large"),
    "later version": ([*archive_members(GOOD)[:3], Member("m/version", b"11\n")], "unknown version.*found b'11'"),
    "no version": ([*archive_members(GOOD)[:3], Member("m/version", b"x")], "unknown version"),
    "no storage": (archive_members(GOOD)[:1], "lacks the record of storage '0'"),
    "shorter storage": (archive_members(GOOD, {"0": F32[:15]}), "has another size: found 15 bytes, expected 16"),
    "longer storage": (archive_members(GOOD, {"0": F32 * 2}), "has another size: found 32 bytes, expected 16"),
    "compressed storage": ([*archive_members(GOOD, {}), Member("m/data/0", F32, method=8)], "compressed"),
    "compressed pickle": ([Member("m/data.pkl", GOOD, method=8), *archive_members(GOOD)[1:]], "compressed"),
    "bytes behind the pickle": (archive_members(GOOD + b"x"), "1 bytes after the end of the pickle"),
    "damaged pickle": ([Member("m/data.pkl", GOOD, both={"crc": 7}), *archive_members(GOOD)[1:]], "wrong checksum"),
    "empty pickle": (archive_members(b""), "data.pkl ends within the pickle"),
}


@pytest.mark.parametrize(("members", "what"), BROKEN_ARCHIVES.values(), ids=BROKEN_ARCHIVES)
def test_read_torch_refuses_an_archive_that_torch_did_not_write(
    tmp_path: Path, members: list[Member], what: str
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(zip_bytes(members))
    with pytest.raises(CheckpointError, match=what) as caught:
        read_torch(path)
    assert caught.value.file == str(path)
    assert "\n" not in str(caught.value)


def test_read_torch_takes_an_archive_without_byteorder_and_version(tmp_path: Path) -> None:
    members = archive_members(GOOD)
    path = tmp_path / "a.pt"
    path.write_bytes(zip_bytes([members[0], members[2]]))
    assert values(read_torch(path))["w"].tolist() == [1, 2, 3, 4]


def test_read_torch_takes_an_archive_without_checksums(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(zip_bytes([Member(m.name, m.data, both={"crc": 0}) for m in archive_members(GOOD)]))
    assert values(read_torch(path))["w"].tolist() == [1, 2, 3, 4]


def test_read_torch_caps_the_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pysoup.checkpoint.pickled.torch_file.MAX_PICKLE_BYTES", len(GOOD) - 1)
    with pytest.raises(CheckpointError, match=r"record 'm/data\.pkl' is too large"):
        read_torch(archive(tmp_path / "a.pt", GOOD))


@pytest.mark.parametrize("name", ["\udcff", "w\ud800"])
def test_read_torch_refuses_a_name_that_is_no_unicode(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "a.pt", pickled(b"}" + text(name) + tensor() + b"s"))
    with pytest.raises(CheckpointError, match="not valid Unicode"):
        read_torch(path)
