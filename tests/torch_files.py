"""Pickles and zip archives made byte by byte, right or hostile, and what torch's own files should read as."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pysoup import dtypes
from pysoup.checkpoint.contents import Contents, Strided

STOP = b"."


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + STOP


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes((len(raw),)) + raw


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def list_of(*items: bytes) -> bytes:
    return b"](" + b"".join(items) + b"e"


def mapping(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def call(module: str, name: str, *args: bytes) -> bytes:
    return named(module, name) + tuple_of(*args) + b"R"


def sizes(*values: int) -> bytes:
    return tuple_of(*map(integer, values))


def storage(key: str = "0", numel: int = 4, kind: str = "FloatStorage", location: str = "cpu") -> bytes:
    return tuple_of(text("storage"), named("torch", kind), text(key), text(location), integer(numel)) + b"Q"


def tensor(
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
    offset: int = 0,
    store: bytes | None = None,
    metadata: bytes = b"",
) -> bytes:
    """``_rebuild_tensor_v2`` of a view of one storage, of four floats unless given."""
    hooks = call("collections", "OrderedDict")
    view = (store or storage(), integer(offset), sizes(*shape), sizes(*strides), b"\x89", hooks)
    return call("torch._utils", "_rebuild_tensor_v2", *view, *([metadata] if metadata else []))


@dataclass
class Member:
    """One record; what is given beside name and data replaces the truth, in both headers or in the local one."""

    name: str | bytes
    data: bytes = b""
    method: int = 0
    flags: int = 0x800
    both: dict[str, int] = field(default_factory=dict)
    local: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)
    extra: bytes = b""
    central_extra: bytes = b""


def zip_bytes(
    members: list[Member], *, end: dict[str, int] | None = None, zip64: bool = False, tail: bytes = b""
) -> bytes:
    """An archive of ``members``; ``end`` replaces fields of the end mark (here, count, length, start, comment)."""
    out = bytearray()
    directory = bytearray()
    for member in members:
        raw = member.name if isinstance(member.name, bytes) else member.name.encode()
        stored = member.data
        if member.method == 8:
            deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
            stored = deflater.compress(member.data) + deflater.flush()
        true: dict[str, Any] = {
            "signature": b"PK\x03\x04",
            "flags": member.flags,
            "method": member.method,
            "crc": zlib.crc32(member.data),
            "compressed": len(stored),
            "size": len(member.data),
            "name": raw,
            "header": len(out),
            "disk": 0,
        } | member.both
        here = true | member.local
        there = true | {"signature": b"PK\x01\x02"} | member.central
        numbers = ("crc", "compressed", "size")
        fixed = (here["signature"], 20, here["flags"], here["method"], 0, 0, *(here[n] for n in numbers))
        out += struct.pack("<4s5H3L2H", *fixed, len(here["name"]), len(member.extra)) + here["name"] + member.extra
        out += stored
        fixed = (there["signature"], 20, 20, there["flags"], there["method"], 0, 0, *(there[n] for n in numbers))
        lengths = (len(there["name"]), len(member.central_extra), 0, there["disk"], 0, 0, there["header"])
        directory += struct.pack("<4s6H3L5H2L", *fixed, *lengths) + there["name"] + member.central_extra
    fields = {"here": len(members), "count": len(members), "length": len(directory), "start": len(out), "comment": 0}
    fields |= end or {}
    out += directory
    if zip64:
        at = len(out)
        out += struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, *list(fields.values())[:4])
        out += struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
        fields |= {"here": 0xFFFF, "count": 0xFFFF, "length": 0xFFFFFFFF, "start": 0xFFFFFFFF}
    out += struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, *fields.values()) + tail
    return bytes(out)


def archive_members(pickle: bytes, storages: dict[str, bytes] | None = None, top: str = "m") -> list[Member]:
    """What torch.save writes, by default with one storage of four floats."""
    if storages is None:
        storages = {"0": struct.pack("<4f", 1, 2, 3, 4)}
    data = [Member(f"{top}/data/{key}", raw) for key, raw in storages.items()]
    return [
        Member(f"{top}/data.pkl", pickle),
        Member(f"{top}/byteorder", b"little"),
        *data,
        Member(f"{top}/version", b"3\n"),
    ]


def archive(path: Path, pickle: bytes, storages: dict[str, bytes] | None = None) -> Path:
    path.write_bytes(zip_bytes(archive_members(pickle, storages)))
    return path


def legacy_bytes(tree: bytes, storages: dict[str, tuple[int, bytes]], **changes: bytes) -> bytes:
    """The format before torch 1.6: ``storages`` are key -> (count of elements, bytes); ``changes`` replace a part."""
    parts = {
        "magic": pickled(integer(0x1950A86A20F9469CFC6C)),
        "version": pickled(integer(1001)),
        "machine": pickled(mapping({"protocol_version": integer(1001), "little_endian": b"\x88"})),
        "tree": pickled(tree),
        "keys": pickled(list_of(*map(text, storages))),
        "data": b"".join(struct.pack("<q", count) + raw for count, raw in storages.values()),
    }
    return b"".join((parts | changes).values())


def legacy_storage(key: str = "0", numel: int = 4, kind: str = "FloatStorage", view: bytes = b"N") -> bytes:
    kinds = (text("storage"), named("torch", kind), text(key), text("cpu"), integer(numel))
    return tuple_of(*kinds, view) + b"Q"


def saved(value: object, **options: Any) -> bytes:
    """The bytes that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def values(contents: Contents) -> dict[str, torch.Tensor]:
    """The tensors that ``contents`` describes, read from its file by torch from offsets, shapes and strides alone."""
    raw = bytearray(contents.path.read_bytes())
    result = {}
    for position, name in enumerate(contents.names):
        dtype = getattr(torch, dtypes.ALL[contents.dtypes[position]].torch_name)
        shape, begin, form = contents.shapes[position], contents.begins[position], contents.forms.get(position)
        count = torch.Size(shape).numel()
        if count == 0:
            result[name] = torch.empty(shape, dtype=dtype)
        elif isinstance(form, Strided):
            span = torch.frombuffer(raw, dtype=torch.uint8, count=form.span, offset=begin).clone().view(dtype)
            result[name] = span.as_strided(shape, form.strides)
        else:
            assert form is None
            size = count * dtype.itemsize
            flat = torch.frombuffer(raw, dtype=torch.uint8, count=size, offset=begin).clone().view(dtype)
            result[name] = flat.reshape(shape)
    for alias, name in contents.aliases.items():
        result[alias] = result[name]
    return result


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    plain = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return torch.equal(*plain)


def random_tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (*shape, dtype.itemsize), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def views() -> dict[str, torch.Tensor]:
    """Every way in which a tensor can lie in its storage."""
    types = [getattr(torch, dtype.torch_name) for dtype in dtypes.ALL]
    base = torch.randn(6, 8)
    tensors = {f"type.{dtype}": random_tensor(dtype, 3, 5) for dtype in types}
    return tensors | {
        "base": base,
        "sliced": base[2:4],
        "transposed": base.t(),
        "columns": base[:, 1:7:2],
        "expanded": torch.randn(3, 1).expand(3, 4),
        "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "ones": torch.randn(4, 1, 3).permute(1, 0, 2),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0),
        "empty_rows": torch.empty(0, 3),
        "empty_view": base[3:3],
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "frozen": torch.nn.Parameter(torch.randn(3), requires_grad=False),
        "gradient": torch.randn(2, requires_grad=True),
        "part_of_element": torch.arange(10, dtype=torch.uint8)[:8].view(torch.int32),
        "": torch.ones(1),
        "naïve.ключ": torch.ones(2),
    }
