"""Rows of bad torch files, as zip archives and in the older format: pickles and records made by hand."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from bad_inputs import BAD, DATA, Make, Oracle, Row, has_duplicates, leads_outside, size_at_most, torch_refuses
from torch_files import (
    Member,
    archive_members,
    call,
    integer,
    legacy_bytes,
    legacy_storage,
    list_of,
    mapping,
    named,
    pickled,
    storage,
    tensor,
    text,
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


def both(line: str, what: str, says: str, oracle: Oracle = torch_refuses, tensor: str | None = None, **fault: object) -> list[Row]:
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
    return any(one[1] > other[0] for one, other in zip(spans, spans[1:], strict=False))


def pickles(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as file:
        return file.read("m/data.pkl")


class _Running(pickle.Unpickler):
    def persistent_load(self, pid: object) -> object:
        return None


def runs_code(path: Path) -> bool:
    """Whether Python's own unpickler runs the code in the file, which makes a canary beside it."""
    canary = path.with_name("canary")
    stream = io.BytesIO(pickles(path))
    try:
        for _ in range(5):
            _Running(stream).load()
    except Exception:  # noqa: BLE001
        pass
    found = os.path.lexists(canary)
    canary.unlink(missing_ok=True)
    return found and torch_refuses(path)


def code(body: Callable[[str], bytes], protocol: int = 2, whole: bool = False) -> list[tuple[str, Make]]:
    """A pickle whose first value makes the canary when loaded, in both formats; ``whole``: there is nothing else."""

    def make(kind: str) -> Make:
        def made(directory: Path, broken: bool) -> Path:
            evil = body(f"{directory / 'canary'}") if broken else b""
            good = Parts(first={"evil": evil} if broken and not whole else {}).tree(kind == "legacy")
            stream = b"\x80" + bytes((protocol,)) + (evil if broken and whole else good) + b"."
            return (archive if kind == "zip" else legacy)(body=stream)(directory, broken)

        return made

    return [(kind, make(kind)) for kind in ("zip", "legacy")]


TOUCH = "__import__('pathlib').Path('{}').touch()"


def os_system(path: str) -> bytes:
    return call("posix", "system", text(f"touch '{path}'"))


def stack_global(module: str, name: str, *args: bytes) -> bytes:
    return text(module) + text(name) + b"\x93" + tuple_of(*args) + b"R"


CODE: dict[str, tuple[Callable[[str], bytes], int, str]] = {
    "os.system": (os_system, 2, "calls posix.system, which is not data: refused"),
    "builtins.exec": (lambda p: call("builtins", "exec", text(TOUCH.format(p))), 2, "builtins.exec"),
    "builtins.eval of Python 2": (lambda p: call("__builtin__", "eval", text(TOUCH.format(p))), 2, "builtins.eval"),
    "os.symlink": (lambda p: call("os", "symlink", text("x"), text(p)), 2, "os.symlink"),
    "by STACK_GLOBAL": (lambda p: stack_global("os", "system", text(f"touch '{p}'")), 4, "os.system"),
    "by the attribute of an allowed module": (
        lambda p: stack_global("pathlib", "os.system", text(f"touch '{p}'")), 4, "pathlib.os.system",
    ),
    "by the attribute of torch": (
        lambda p: stack_global("torch.serialization", "os.system", text(f"touch '{p}'")), 4, "serialization.os.system",
    ),
    "by INST": (lambda p: b"(" + text(f"touch '{p}'") + b"iposix\nsystem\n", 2, "INST"),
    "by OBJ": (lambda p: b"(" + named("posix", "system") + text(f"touch '{p}'") + b"o", 2, "posix.system|OBJ"),
    "by partial": (
        lambda p: call("functools", "partial", named("posix", "system"), text(f"touch '{p}'")) + b")R", 2, "functools.partial",
    ),
}  # fmt: skip


def with_member(name: str, data: bytes = b"x", **fault: object) -> Callable[[Members], Members]:
    return lambda members: [*members, Member(name, data, **fault)]  # type: ignore[arg-type]


def changed(index: int, **changes: object) -> Callable[[Members], Members]:
    """One member (0: the pickle, 3: the storage of ``w``) with other fields."""

    def change(members: Members) -> Members:
        members[index] = dataclasses.replace(members[index], **changes)  # type: ignore[arg-type]
        return members

    return change


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


def uses_a_large_memo(path: Path) -> bool:
    """Whether a pickle writes to a place in its memo beyond a million: CPython allocates all before it."""
    stream = io.BytesIO(pickles(path))
    opcodes = (item for _ in range(stream.getvalue().count(b"\x80\x02")) for item in pickletools.genops(stream))
    return any(op.name == "LONG_BINPUT" and arg > 10**6 for op, arg, _ in opcodes)


def has_wrong_metadata(path: Path) -> bool:
    with zipfile.ZipFile(path) as file:
        if "m/pysoup.json" not in file.namelist():
            return False
        raw = file.read("m/pysoup.json")
    try:
        return has_duplicates(raw)
    except ValueError:
        return True


def view_of_more_than(path: Path) -> bool:
    """Whether torch makes a tensor of it with more elements than the file has bytes."""
    import torch

    with torch.inference_mode():
        state = torch.load(path, weights_only=True)
    return any(t.numel() > os.path.getsize(path) for t in state.values())


EMPTY = [Row("empty file", f"torch{suffix}", archive(), "file is empty", size_at_most(0)) for suffix in ()]
NEGATIVE = struct.pack("<q", -1)
COUNTED = struct.pack("<q", 2) + DATA[:8] + struct.pack("<q", 4) + DATA[8:]
UTF8 = b"X\x02\0\0\0\xff\xfe"

TORCH = [
    Row("truncated at every section", "torch zip, end mark", archive(cut=1), "no end mark", torch_refuses),
    Row("truncated at every section", "torch zip, directory", archive(cut=30), "no end mark", torch_refuses),
    Row("truncated at every section", "torch legacy, storage", legacy(cut=1), "truncated in storage '1'", torch_refuses),
    Row("truncated at every section", "torch legacy, count", legacy(cut=17), "ends early|truncated", torch_refuses),
    Row("truncated at every section", "torch zip, pickle", archive(body=pickled(Parts().tree(False))[:-9]), "truncated", torch_refuses),
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
    *both("header length beyond 100 MB", "string", "declares 1000000000 bytes", body=pickled(b"}X" + struct.pack("<L", 10**9) + b"w")),
    *both("header length negative", "string", "declares 18446744073709551615 bytes", body=b"\x80\x04}\x8d" + b"\xff" * 8 + b"w."),
    *both("header length negative", "storage", "size is none", count=-4),
    *both("header length negative", "offset of a tensor", "offset is none", w=lambda s: tensor((2, 2), (2, 1), -1, store=s)),
    *both("header length negative", "size of a tensor", "shape and strides are none", w=lambda s: tensor((2, -2), (2, 1), store=s)),
    Row(
        "header length negative", "torch legacy, count of a storage",
        legacy({"data": COUNTED[:16] + NEGATIVE + DATA[8:]}), "storage '1' has another size: found -4 bytes", torch_refuses,
    ),
    *both("invalid UTF-8", "name of a tensor", "not UTF-8", body=pickled(b"}(" + UTF8 + b"Nu")),
    Row(
        "invalid UTF-8", "torch zip, name of a record",
        archive(lambda members: [*members, Member(b"m/\xff\xfe", b"x")]), "record name is not UTF-8",
        lambda path: any(b"\xff\xfe" in raw for raw in path.read_bytes().split(b"PK")),
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
        "duplicate JSON names", "torch zip, record", archive(with_member("m/data/1", DATA[8:])), "'m/data/1' comes twice",
        has_a_name_twice,
    ),
    Row("offsets overlapping", "torch zip, records", archive(nested), "overlaps record 'm/x'", records_overlap),
    *both(
        "offsets past the end", "by an element", "reaches beyond its storage: found byte 20, expected at most 16",
        tensor="w", w=lambda s: tensor((2, 2), (2, 1), 1, store=s),
    ),
    *both("offsets past the end", "by a stride", "reaches beyond its storage", tensor="w", w=lambda s: tensor((2, 2), (2, 2), store=s)),
    *both(
        "offsets past the end", "far away", "reaches beyond its storage", tensor="w",
        w=lambda s: tensor((2, 2), (2, 1), 2**61, store=s),
    ),
    Row(
        "offsets past the end", "torch zip, storage without a record", archive(lambda members: members[:3] + members[4:]),
        "lacks the record of storage '1'", torch_refuses,
    ),
    Row(
        "offsets past the end", "torch zip, storage shorter than the pickle says", archive(changed(3, data=DATA[8:20])),
        "storage '1' has another size: found 12 bytes, expected 16 bytes", torch_refuses,
    ),
    *both("unknown dtype", "storage", "torch.WideStorage", kind="WideStorage"),
    *both(
        "unknown dtype", "tensor", "torch.float33|of type", w=lambda s: call(
            "torch._utils", "_rebuild_tensor_v3", s, integer(0), tuple_of(integer(2), integer(2)),
            tuple_of(integer(2), integer(1)), b"\x89", call("collections", "OrderedDict"), named("torch", "float33"),
        ), tensor="w",
    ),
    *both("shape x dtype overflow", "to 0 in 64 bits", "overflows 63 bits", tensor="w", w=lambda s: tensor((2**62,), (1,), store=s)),
    *both(
        "shape x dtype overflow", "in the shape alone", "overflows 63 bits", tensor="w",
        w=lambda s: tensor((2**33, 2**33), (1, 1), store=s),
    ),
    *both("shape x dtype overflow", "beyond 63 bits", "shape and strides are none", w=lambda s: tensor((2**63,), (1,), store=s)),
    *(
        Row("pickle with code in it", f"torch {kind}, {name}", make, says, runs_code)
        for name, (body, protocol, says) in CODE.items()
        for kind, make in code(body, protocol)
    ),
    *(
        Row("pickle with code in it", f"torch {kind}, and nothing else", make, "posix.system", runs_code)
        for kind, make in code(os_system, whole=True)
    ),
    *both(
        "zip bomb sizes", "memo of four thousand million entries", "memo 4294967280", uses_a_large_memo,
        first={"evil": b"}r\xf0\xff\xff\xff"},
    ),
    Row(
        "zip bomb sizes", "torch zip, record of a terabyte",
        archive(changed(3, both={"compressed": 2**32 - 2, "size": 2**32 - 2})), "'m/data/1'", declares_more_than_the_file,
    ),
    Row(
        "zip bomb sizes", "torch zip, deflated storage", archive(changed(3, method=8, data=bytes(1 << 20))),
        "'m/data/1' is compressed", inflates_beyond(500),
    ),
    Row(
        "zip bomb sizes", "torch zip, deflated pickle that declares four gigabytes",
        archive(changed(0, method=8, both={"size": 2**32 - 2})), "'m/data.pkl' declares a size that its data cannot have",
        inflates_beyond(1032),
    ),
    Row(
        "zip bomb sizes", "torch zip, record that is smaller than it says",
        archive(changed(3, both={"size": 2**31})), "'m/data/1' declares a size that its data cannot have",
        lambda path: inflates_beyond(1)(path) and torch_refuses(path),
    ),
    Row(
        "zip bomb sizes", "torch zip, elements repeated by a stride of 0",
        archive(w=lambda s: tensor((2**20, 2**10), (0, 0), store=s)), "more bytes than the whole file has",
        view_of_more_than, "w",
    ),
    Row("trailing bytes", "torch zip", archive(tail=b"\0"), "does not end at its end mark", goes_on_after_the_end),
    Row("trailing bytes", "torch zip, another archive's worth", archive(tail=b"x" * 70_000), "no end mark", torch_refuses),
    Row(
        "trailing bytes", "torch zip, in a storage", archive(changed(3, data=DATA[8:] + DATA[:4])),
        "storage '1' has another size: found 20 bytes, expected 16 bytes", lambda path: storage_bytes(path) != 16,
    ),
    Row(
        "trailing bytes", "torch legacy", legacy(tail=b"\0"), "bytes after the last storage belong to none",
        lambda path: path.read_bytes()[-16:] != DATA[8:],
    ),
    *(outside(name) for name in ("../canary", "/canary", "m/../../canary", "C:\\canary", "m\\..\\..\\canary", "c:canary")),
    *both("archive members that point outside", "storage", "'../../../canary'|list of storages", key="../../../canary"),
]  # fmt: skip


def storage_bytes(path: Path) -> int:
    with zipfile.ZipFile(path) as file:
        return file.getinfo("m/data/1").file_size
