"""Zip archives taken apart and put together again, faithfully or not."""

from __future__ import annotations

import random
import struct
import zlib
from typing import NamedTuple

from .mutations import number

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_NAMES = (
    *(b"../x.npy", b"/x", b"a\\b", b"C:x", b"a//b", b"", b"\0", b"a/", b"archive/data.pkl", b"archive/data/0", b"\xff"),
)
_STARTS = (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07")
_METHODS = (0, 0, 8, 9, 12, 14, 93, 99)


class Member(NamedTuple):
    name: bytes
    data: bytes
    deflated: bool = False


def split(raw: bytes) -> list[Member]:
    """The members that the directory names, as far as they can be read."""
    members: list[Member] = []
    end = raw.rfind(b"PK\x05\x06")
    if end < 0 or len(raw) - end < _END.size:
        return members
    at = _END.unpack_from(raw, end)[6]
    while raw.startswith(b"PK\x01\x02", at) and len(raw) - at >= _CENTRAL.size and len(members) < 40:
        fields = _CENTRAL.unpack_from(raw, at)
        name_end = at + _CENTRAL.size + fields[10]
        name, size, header = raw[at + _CENTRAL.size : name_end], fields[8], fields[16]
        at = name_end + fields[11] + fields[12]
        if len(raw) - header < _LOCAL.size:
            continue
        local = _LOCAL.unpack_from(raw, header)
        start = header + _LOCAL.size + local[9] + local[10]
        data = raw[start : start + size]
        if fields[4] == 8:
            try:
                data = zlib.decompressobj(-15).decompress(data, 1 << 16)
            except zlib.error:
                continue
        members.append(Member(name, data, fields[4] == 8))
    return members


def build(members: list[Member], rng: random.Random | None = None) -> bytes:
    """The archive of ``members``; with ``rng``, sometimes one that lies."""
    body, directory = bytearray(), bytearray()
    odd = rng is not None and rng.random() < 0.3
    for name, data, deflated in members:
        raw = _deflate(data) if deflated else data
        crc, sizes, offset, flags = zlib.crc32(data), [len(raw), len(data)], len(body), 0
        method, extra, local_extra, local_name = 8 * deflated, b"", b"", name
        if rng is not None and odd and rng.random() < 0.5:
            kind = rng.randrange(9)
            if kind == 0:
                crc ^= 1
            elif kind == 1:
                sizes[rng.randrange(2)] = number(rng, len(raw)) % 2**32
            elif kind == 2:
                flags = rng.choice((1, 8, 0x800, 0x2000, 0xFFFF))
            elif kind == 3:
                method = rng.choice(_METHODS)
            elif kind == 4:
                local_name = rng.choice(_NAMES)
            elif kind == 5:
                offset = rng.randrange(len(body) + 1)
            elif kind == 6:
                extra = struct.pack("<2H3Q", 1, 24, len(data), len(raw), offset)
                sizes = [2**32 - 1] * 2
                local_extra = extra[:20]
            elif kind == 7:
                local_extra = b"FB" + struct.pack("<H", 9) + b"Z" * 9
            else:
                raw += bytes(rng.randrange(1, 4))
        entry = (method, 0, 33, crc, *sizes)
        body += _LOCAL.pack(b"PK\x03\x04", 20, flags, *entry, len(local_name), len(local_extra))
        body += local_name + local_extra + raw
        directory += _CENTRAL.pack(b"PK\x01\x02", 20, 20, flags, *entry, len(name), len(extra), 0, 0, 0, 0, offset)
        directory += name + extra
    count = len(members)
    return bytes(body + directory + _END.pack(b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), 0))


def mutate_members(members: list[Member], rng: random.Random) -> list[Member]:
    """Other members: one dropped, doubled, renamed, moved, or deflated."""
    result = list(members)
    at = rng.randrange(len(result))
    kind = rng.randrange(5)
    if kind == 0:
        del result[at]
    elif kind == 1:
        result.insert(rng.randrange(len(result) + 1), result[at])
    elif kind == 2:
        names = (*_NAMES, result[at].name + b"x", rng.choice(result).name)
        result[at] = result[at]._replace(name=rng.choice(names))
    elif kind == 3:
        result.append(result.pop(at))
    else:
        result[at] = result[at]._replace(deflated=not result[at].deflated)
    return result


def mutate_fields(raw: bytes, rng: random.Random) -> bytes:
    """One field of a header, of the directory or of an end mark changed."""
    starts = [at for mark in _STARTS for at in _all(raw, mark)]
    if not starts:
        return raw
    at = rng.choice(starts) + rng.randrange(2, 46, 2)
    width = rng.choice((2, 2, 4, 4, 8))
    near = rng.choice((int.from_bytes(raw[at : at + width], "little"), len(raw), rng.choice(starts)))
    value = (number(rng, near) % (1 << 8 * width)).to_bytes(width, "little")
    return raw[:at] + value + raw[at + width :]


def _all(raw: bytes, mark: bytes) -> list[int]:
    found, at = [], raw.find(mark)
    while at >= 0:
        found.append(at)
        at = raw.find(mark, at + 1)
    return found


def _deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(6, zlib.DEFLATED, -15)
    return deflater.compress(data) + deflater.flush()
