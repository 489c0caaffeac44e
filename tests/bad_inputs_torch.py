"""Rows of bad torch files, as zip archives and in the older format: pickles and records made by hand."""

from __future__ import annotations

import dataclasses
import os
import struct
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from bad_inputs import DATA, Make, Oracle, Row, has_duplicates, leads_outside, torch_refuses
from torch_files import (
    Member,
    archive_members,
    call,
    integer,
    legacy_bytes,
    legacy_storage,
    mapping,
    named,
    pickled,
    storage,
    tensor,
    tuple_of,
    zip_bytes,
)

STORAGES = {"0": DATA[:8], "1": DATA[8:]}
LIMIT = 100_000_000
Members = list[Member]


@dataclasses.dataclass
class Parts:
    """Of either format: ``first`` comes before the tensors in the state dict, ``w`` is the pickled tensor."""

    first: dict[str, bytes] = dataclasses.field(default_factory=dict)
    w: Callable[[bytes], bytes] = lambda store: tensor((2, 2), (2, 1), store=store)
    storages: dict[str, bytes] = dataclasses.field(default_factory=lambda: dict(STORAGES))
    key: str = "1"
    count: int = 4
    kind: str = "FloatStorage"

    def tree(self, legacy: bool) -> bytes:
        store = legacy_storage if legacy else storage
        a = tensor((2,), (1,), store=store("0", 2))
        return mapping(self.first | {"a": a, "w": self.w(store(self.key, self.count, self.kind))})


def archive(
    members: Callable[[Members], Members] = lambda members: members,
    end: dict[str, int] | None = None,
    cut: int = 0,
    tail: bytes = b"",
    body: bytes | None = None,
    **parts: object,
) -> Make:
    """A zip archive: with the fault other parts, records, end mark, ``cut`` bytes less or a ``tail``."""

    def make(directory: Path, broken: bool) -> Path:
        path = directory / "bad.pt"
        good = Parts()
        if not broken:
            path.write_bytes(zip_bytes(archive_members(pickled(good.tree(False)), STORAGES)))
            return path
        chosen = Parts(**parts)  # type: ignore[arg-type]
        stream = pickled(chosen.tree(False)) if body is None else body
        raw = zip_bytes(members(archive_members(stream, chosen.storages)), end=end)
        path.write_bytes(raw[: len(raw) - cut] + tail)
        return path

    return make


def legacy(
    changes: dict[str, bytes] | None = None, cut: int = 0, tail: bytes = b"", body: bytes | None = None, **parts: object
) -> Make:
    """The same in the older format; ``changes`` replace the pickles and the data of :func:`legacy_bytes`."""

    def make(directory: Path, broken: bool) -> Path:
        path = directory / "bad.bin"
        chosen = Parts(**parts) if broken else Parts()  # type: ignore[arg-type]
        counts = {key: (len(raw) // 4, raw) for key, raw in chosen.storages.items()}
        tree = chosen.tree(True)
        raw = legacy_bytes(tree, counts, **(changes or {}) if broken else {})
        if broken and body is not None:
            raw = raw.replace(pickled(tree), body)
        path.write_bytes(raw[: len(raw) - cut] + tail if broken else raw)
        return path

    return make


def view(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> Callable[[bytes], bytes]:
    return lambda store: tensor(shape, strides, offset, store)


def of_unknown_type(store: bytes) -> bytes:
    sizes = (tuple_of(integer(2), integer(2)), tuple_of(integer(2), integer(1)))
    rest = (b"\x89", call("collections", "OrderedDict"), named("torch", "float33"))
    return call("torch._utils", "_rebuild_tensor_v3", store, integer(0), *sizes, *rest)


def both(
    line: str, what: str, says: str, oracle: Oracle = torch_refuses, tensor: str | None = None, **fault: object
) -> list[Row]:
    """The same fault in both formats."""
    makers = {"zip": archive(**fault), "legacy": legacy(**fault)}  # type: ignore[arg-type]
    return [Row(line, f"torch {name}, {what}", make, says, oracle, tensor) for name, make in makers.items()]


def end_mark(path: Path) -> tuple[int, int, int, int]:
    """Where the end mark is, and the directory's length and start and the comment's length that it declares."""
    raw = path.read_bytes()
    at = raw.rindex(b"PK\x05\x06")
    length, start, comment = struct.unpack_from("<2LH", raw, at + 12)
    return at, length, start, comment


def directory_is_elsewhere(path: Path) -> bool:
    at, length, start, _ = end_mark(path)
    return start + length != at


def goes_on_after_the_end(path: Path) -> bool:
    at, _, _, comment = end_mark(path)
    return at + 22 + comment != os.path.getsize(path)


def has_a_name_outside(path: Path) -> bool:
    with zipfile.ZipFile(path) as file:
        return any(leads_outside(info.orig_filename) for info in file.infolist())


def has_a_name_that_is_no_utf8(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path):
            return False
    except UnicodeDecodeError:
        return True


def has_a_name_twice(path: Path) -> bool:
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
    return len(set(names)) < len(names)


def declares_more_than_the_file(path: Path) -> bool:
    with zipfile.ZipFile(path) as file:
        return any(info.compress_size > os.path.getsize(path) for info in file.infolist())


def inflates_beyond(times: int) -> Oracle:
    def is_bad(path: Path) -> bool:
        with zipfile.ZipFile(path) as file:
            return any(info.file_size > times * max(info.compress_size, 1) for info in file.infolist())

    return is_bad


def records_overlap(path: Path) -> bool:
    with zipfile.ZipFile(path) as file:
        infos = sorted(file.infolist(), key=lambda info: info.header_offset)
    spans = [(i.header_offset, i.header_offset + 30 + len(i.filename) + i.compress_size) for i in infos]
    return any(one[1] > other[0] for one, other in pairwise(spans))


def with_member(name: str, data: bytes = b"x", **fault: object) -> Callable[[Members], Members]:
    return lambda members: [*members, Member(name, data, **fault)]  # type: ignore[arg-type]


def changed(index: int, **changes: object) -> Callable[[Members], Members]:
    """One member (0: the pickle, 3: the storage of ``w``) with other fields."""

    def change(members: Members) -> Members:
        members[index] = dataclasses.replace(members[index], **changes)  # type: ignore[arg-type]
        return members

    return change


def terabyte(members: Members) -> Members:
    """The storage of ``w`` is said to have that size, in the fields of zip64."""
    field = struct.pack("<2H2Q", 1, 16, 2**40, 2**40)
    sizes = {"compressed": 2**32 - 1, "size": 2**32 - 1}
    return changed(3, both=sizes, extra=field, central_extra=field)(members)


def nested(members: Members) -> Members:
    """The storage of ``w`` lies in the data of another record."""
    before, inside = members[:3], members[3]
    begin = sum(30 + len(m.name) + len(m.data) for m in before)
    local = zip_bytes([inside])[: 30 + len(inside.name) + len(inside.data)]
    at = {"header": begin + 30 + len("m/x")}
    return [*before, Member("m/x", local), dataclasses.replace(inside, central=at), *members[4:]]


def sparse_pickle(directory: Path, broken: bool) -> Path:
    """A record of a hundred megabytes that takes no disk."""
    path = archive()(directory, False)
    if broken:
        member = Member("m/data.pkl", both={"compressed": LIMIT + 1, "size": LIMIT + 1})
        head = 30 + len("m/data.pkl")
        raw = zip_bytes([member], end={"start": head + LIMIT + 1})
        with open(path, "wb") as file:
            file.write(raw[:head])
            file.seek(head + LIMIT + 1)
            file.write(raw[head:])
    return path


def outside(path: str) -> Row:
    return Row(
        "archive members that point outside", f"torch zip, {path!r}", archive(with_member(path)), "unsafe record name",
        has_a_name_outside,
    )  # fmt: skip


def has_wrong_metadata(path: Path) -> bool:
    with zipfile.ZipFile(path) as file:
        if "m/pysoup.json" not in file.namelist():
            return False
        raw = file.read("m/pysoup.json")
    try:
        return has_duplicates(raw)
    except ValueError:
        return True


def storage_bytes(path: Path) -> int:
    with zipfile.ZipFile(path) as file:
        return file.getinfo("m/data/1").file_size


def view_of_more_than(path: Path) -> bool:
    """Whether torch makes a tensor of it with more elements than the file has bytes."""
    with torch.inference_mode():
        state = torch.load(path, weights_only=True)
    return any(t.numel() > os.path.getsize(path) for t in state.values())


NEGATIVE = struct.pack("<q", -1)
COUNTED = struct.pack("<q", 2) + DATA[:8] + struct.pack("<q", 4) + DATA[8:]
UTF8 = b"X\x02\0\0\0\xff\xfe"

TORCH = [
    Row("truncated at every section", "torch zip, end mark", archive(cut=1), "no end mark", torch_refuses),
    Row("truncated at every section", "torch zip, directory", archive(cut=30), "no end mark", torch_refuses),
    Row(
        "truncated at every section", "torch legacy, storage", legacy(cut=1), "truncated in storage '1'", torch_refuses,
    ),
    Row("truncated at every section", "torch legacy, count", legacy(cut=17), "ends early|truncated", torch_refuses),
    Row(
        "truncated at every section", "torch zip, pickle", archive(body=pickled(Parts().tree(False))[:-9]), "truncated",
        torch_refuses,
    ),
    Row("truncated at every section", "torch legacy, pickle", legacy(cut=99), "truncated", torch_refuses),
    Row(
        "header length beyond the file", "torch zip, directory's length", archive(end={"length": 10_000}),
        "zip directory is not where it should be", directory_is_elsewhere,
    ),
    Row(
        "header length beyond the file", "torch zip, directory's start", archive(end={"start": 2**31}),
        "zip directory is not where it should be", directory_is_elsewhere,
    ),
    Row(
        "header length beyond the file", "torch zip, record",
        archive(changed(3, both={"compressed": 2**31, "size": 2**31})), "'m/data/1'.*reaches beyond",
        declares_more_than_the_file,
    ),
    *both("header length beyond the file", "string", "ends|truncated", body=pickled(b"}X\xff\xff\0\0aw")),
    Row(
        "header length beyond 100 MB", "torch zip, pickle", sparse_pickle, "'m/data.pkl' is too large: found 100000001",
        lambda path: os.path.getsize(path) > LIMIT and torch_refuses(path),
    ),
    *both(
        "header length beyond 100 MB", "string", "declares 1000000000 bytes",
        body=pickled(b"}X" + struct.pack("<L", 10**9) + b"w"),
    ),
    *both(
        "header length negative", "string", "declares 18446744073709551615 bytes",
        body=b"\x80\x04}\x8d" + b"\xff" * 8 + b"w.",
    ),
    *both("header length negative", "storage", "size is none", count=-4),
    *both("header length negative", "offset of a tensor", "offset is none", w=view((2, 2), (2, 1), -1)),
    *both("header length negative", "size of a tensor", "shape and strides are none", w=view((2, -2), (2, 1))),
    Row(
        "header length negative", "torch legacy, count of a storage",
        legacy({"data": COUNTED[:16] + NEGATIVE + DATA[8:]}), "storage '1' has another size: found -4 bytes",
        torch_refuses,
    ),
    *both("invalid UTF-8", "name of a tensor", "not UTF-8", body=pickled(b"}(" + UTF8 + b"Nu")),
    Row(
        "invalid UTF-8", "torch zip, name of a record",
        archive(lambda members: [*members, Member(b"m/\xff\xfe", b"x")]), "record name is not UTF-8",
        has_a_name_that_is_no_utf8,
    ),
    Row(
        "invalid JSON", "torch zip, metadata", archive(with_member("m/pysoup.json", b"{,}")),
        "pysoup.json is not valid JSON", has_wrong_metadata,
    ),
    Row(
        "duplicate JSON names", "torch zip, metadata", archive(with_member("m/pysoup.json", b'{"k": "1", "k": "2"}')),
        "duplicate name 'k'", has_wrong_metadata,
    ),
    Row(
        "duplicate JSON names", "torch zip, record", archive(with_member("m/data/1", DATA[8:])),
        "'m/data/1' comes twice",
        has_a_name_twice,
    ),
    Row("offsets overlapping", "torch zip, records", archive(nested), "overlaps record 'm/x'", records_overlap),
    *both(
        "offsets past the end", "by an element", "reaches beyond its storage: found byte 20, expected at most 16",
        tensor="w", w=view((2, 2), (2, 1), 1),
    ),
    *both("offsets past the end", "by a stride", "reaches beyond its storage", tensor="w", w=view((2, 2), (2, 2))),
    *both(
        "offsets past the end", "far away", "reaches beyond its storage", tensor="w",
        w=view((2, 2), (2, 1), 2**61),
    ),
    Row(
        "offsets past the end", "torch zip, storage without a record",
        archive(lambda members: members[:3] + members[4:]),
        "lacks the record of storage '1'", torch_refuses,
    ),
    Row(
        "offsets past the end", "torch zip, storage shorter than the pickle says", archive(changed(3, data=DATA[8:20])),
        "storage '1' has another size: found 12 bytes, expected 16 bytes", torch_refuses,
    ),
    *both("unknown dtype", "storage", "torch.WideStorage", kind="WideStorage"),
    *both("unknown dtype", "tensor", "of type torch.float33", tensor="w", w=of_unknown_type),
    *both("shape x dtype overflow", "to 0 in 64 bits", "overflows 63 bits", tensor="w", w=view((2**62,), (1,))),
    *both(
        "shape x dtype overflow", "in the shape alone", "overflows 63 bits", tensor="w",
        w=view((2**33, 2**33), (1, 1)),
    ),
    *both("shape x dtype overflow", "beyond 63 bits", "shape and strides are none", w=view((2**63,), (1,))),
    Row(
        "zip bomb sizes", "torch zip, record of a terabyte", archive(terabyte), "'m/data/1'",
        declares_more_than_the_file,
    ),
    Row(
        "zip bomb sizes", "torch zip, deflated storage", archive(changed(3, method=8, data=bytes(1 << 20))),
        "'m/data/1' is compressed", inflates_beyond(500),
    ),
    Row(
        "zip bomb sizes", "torch zip, deflated pickle that declares four gigabytes",
        archive(changed(0, method=8, both={"size": 2**32 - 2})),
        "'m/data.pkl' declares a size that its data cannot have",
        inflates_beyond(1032),
    ),
    Row(
        "zip bomb sizes", "torch zip, record that is smaller than it says",
        archive(changed(3, both={"size": 2**31})), "'m/data/1' declares a size that its data cannot have",
        lambda path: inflates_beyond(1)(path) and torch_refuses(path),
    ),
    Row(
        "zip bomb sizes", "torch zip, elements repeated by a stride of 0",
        archive(w=view((2**20, 2**10), (0, 0))), "more bytes than the whole file has",
        view_of_more_than, "w",
    ),
    Row("trailing bytes", "torch zip", archive(tail=b"\0"), "does not end at its end mark", goes_on_after_the_end),
    Row(
        "trailing bytes", "torch zip, another archive's worth", archive(tail=b"x" * 70_000), "no end mark",
        torch_refuses,
    ),
    Row(
        "trailing bytes", "torch zip, in a storage", archive(changed(3, data=DATA[8:] + DATA[:4])),
        "storage '1' has another size: found 20 bytes, expected 16 bytes", lambda path: storage_bytes(path) != 16,
    ),
    Row(
        "trailing bytes", "torch legacy", legacy(tail=b"\0"), "bytes after the last storage belong to none",
        lambda path: path.read_bytes()[-16:] != DATA[8:],
    ),
    *map(outside, ("../canary", "/canary", "m/../../canary", "C:\\canary", "m\\..\\..\\canary", "c:canary")),
    *both("archive members that point outside", "storage", "'../../../canary'|list of storages", key="../../../canary"),
]  # fmt: skip
