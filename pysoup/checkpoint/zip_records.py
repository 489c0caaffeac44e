"""The records of a zip archive, as torch.save and numpy write them: where the bytes of each lie in the file.

Stricter than any unzip program, so that no two readers can disagree about an archive: the directory must fill the
space between the last record and its end mark, its count must be true, each local header must say what the directory
says, and records neither overlap nor share a name. Nothing is decompressed and no member is ever written anywhere.
After PKWARE's APPNOTE 6.3.10, sections 4.3 to 4.5.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeAlias

from ..errors import CheckpointError
from .reading import read_exactly
from .strict_json import clip

SIGNATURE = b"PK\x03\x04"
"""What an archive begins with, if it has any record."""

MAX_DIRECTORY_BYTES = 2**24
MAX_RECORDS = 2**17
"""Ten times as many as any model has tensors; they take 40 MB."""

_LARGEST = 2**63 - 1
_LONGEST_DEFLATE = 1032
"""A deflate stream gives at most 1,032 bytes for each of its own."""

_STORED, _DEFLATED = 0, 8
_METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "XZ", 99: "AES encryption"}
_ENCRYPTED, _SIZES_FOLLOW, _UTF8, _MASKED = 0x0001, 0x0008, 0x0800, 0x2000
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LONGEST_COMMENT = 0xFFFF
_UNSAFE = re.compile(r"\A\Z|\A/|\A.:|(?:\A|/)\.{0,2}/|(?:\A|/)\.{1,2}\Z|[\\\0]", re.DOTALL)
"""Absolute, with a drive, with an empty part or one that leads elsewhere, or read differently elsewhere."""
_U16, _U32 = 0xFFFF, 0xFFFFFFFF

_Read: TypeAlias = Callable[[memoryview, int], None]
"""Fills the view from a position in the archive."""


class Record(NamedTuple):
    """One member: ``compressed_size`` bytes at ``offset`` (absolute) of the file, which stand for ``size`` bytes.

    ``crc`` is the CRC-32 that these should have.
    """

    name: str
    offset: int
    size: int
    compressed_size: int
    deflated: bool
    crc: int


class _Central(NamedTuple):
    """What the directory says of one member."""

    name: str
    raw_name: bytes
    flags: int
    method: int
    crc: int
    compressed_size: int
    size: int
    header: int


def read_records(fd: int, path: Path, size: int, origin: int = 0) -> dict[str, Record]:
    """The members of the archive of ``size`` bytes, by name, in the order of the directory; directories left out.

    The archive begins at byte ``origin`` of the file.

    Raises CheckpointError for whatever is damaged, ambiguous, encrypted, compressed by another method than deflate, or
    named like a path outside a folder.
    """

    def read(view: memoryview, position: int) -> None:
        read_exactly(fd, view, origin + position, path)

    count, length, start = _find_directory(read, path, size)
    raw = bytearray(length)
    read(memoryview(raw), start)
    records: dict[str, Record] = {}
    spans: list[tuple[int, int, str]] = []
    for member in _directory(bytes(raw), count, path):
        name = member.name
        offset = _data_offset(read, path, member, start)
        end = offset + member.compressed_size
        if end > start:
            _fail(path, name, "reaches beyond the records' part of the file", f"byte {end}", f"up to {start}")
        spans.append((member.header, end, name))
        if name.endswith("/"):
            continue
        if name in records:
            _fail(path, name, "comes twice")
        deflated = member.method == _DEFLATED
        records[name] = Record(name, origin + offset, member.size, member.compressed_size, deflated, member.crc)
    spans.sort()
    if first := spans[0][0] if spans else start:
        raise CheckpointError("zip archive begins with other data", file=path, found=f"{first} bytes", expected="none")
    for (_, end, name), (begin, _, later) in pairwise(spans):
        if begin < end:
            _fail(path, later, f"overlaps record {clip(name)!r}")
    return records


def _find_directory(read: _Read, path: Path, size: int) -> tuple[int, int, int]:
    """Count of entries, length in bytes and offset of the central directory."""
    if size < _END.size:
        raise CheckpointError("too short for a zip archive", file=path, found=f"{size} bytes")
    tail = bytearray(min(size, _END.size + _LONGEST_COMMENT))
    read(memoryview(tail), size - len(tail))
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise CheckpointError("zip archive has no end mark: it is truncated, or followed by other data", file=path)
    _, disk, first_disk, here, count, length, start, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        found = f"{len(tail) - at - _END.size} bytes"
        raise CheckpointError("zip archive does not end at its end mark", file=path, found=found, expected=comment)
    end = size - len(tail) + at
    short_form = (disk, first_disk, here, count, length, start)
    (disk, first_disk, here, count, length, start), end = _find_zip64(read, path, end, short_form)
    if disk or first_disk or here != count:
        raise CheckpointError("zip archive is one part of several", file=path)
    if start + length != end:
        expected = f"bytes up to {end}"
        found = f"bytes {start} to {start + length}"
        raise CheckpointError("zip directory is not where it should be", file=path, found=found, expected=expected)
    if length > MAX_DIRECTORY_BYTES or count > MAX_RECORDS:
        found, expected = f"{count} records in {length} bytes", f"at most {MAX_RECORDS} in {MAX_DIRECTORY_BYTES}"
        raise CheckpointError("zip directory is too large", file=path, found=found, expected=expected)
    return count, length, start


def _find_zip64(read: _Read, path: Path, end: int, fields: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """The fields of the end mark in their long form where there is one, and where the end marks begin."""
    limits = (_U16, _U16, _U16, _U16, _U32, _U32)
    long_form = any(value == limit for value, limit in zip(fields, limits, strict=True))
    locator = bytearray(min(end, _LOCATOR.size))
    read(memoryview(locator), end - len(locator))
    if len(locator) < _LOCATOR.size or not locator.startswith(b"PK\x06\x07"):
        if long_form:
            raise CheckpointError("zip archive lacks its zip64 end mark", file=path)
        return fields, end
    _, disk, at, disks = _LOCATOR.unpack(locator)
    if disk or disks > 1:
        raise CheckpointError("zip archive is one part of several", file=path)
    if at != end - _LOCATOR.size - _END64.size:
        expected = f"byte {end - _LOCATOR.size - _END64.size}"
        raise CheckpointError("zip64 end mark is misplaced", file=path, found=f"byte {at}", expected=expected)
    raw = bytearray(_END64.size)
    read(memoryview(raw), at)
    signature, rest, _, _, *values = _END64.unpack(raw)
    if signature != b"PK\x06\x06" or rest != _END64.size - 12:
        raise CheckpointError("zip64 end mark is damaged", file=path)
    # Each short field repeats the long one unless it is at its limit.
    for short, long, limit in zip(fields, values, limits, strict=True):
        if short not in (long, limit):
            raise CheckpointError("zip archive has two end marks that differ", file=path, found=short, expected=long)
    return tuple(values), at


def _directory(raw: bytes, count: int, path: Path) -> Iterator[_Central]:
    at = 0
    for index in range(count):
        if len(raw) - at < _CENTRAL.size or not raw.startswith(b"PK\x01\x02", at):
            what = "zip directory is damaged, or lists fewer records than it says"
            raise CheckpointError(what, file=path, found=f"no entry {index + 1}", expected=f"{count} entries")
        fields = _CENTRAL.unpack_from(raw, at)
        flags, method, crc, compressed, size = fields[3], fields[4], fields[7], fields[8], fields[9]
        name_length, extra_length, comment_length, disk, header = *fields[10:14], fields[16]
        name_end = at + _CENTRAL.size + name_length
        raw_name = raw[at + _CENTRAL.size : name_end]
        extra = raw[name_end : name_end + extra_length]
        at = name_end + extra_length + comment_length
        if at > len(raw):
            raise CheckpointError("zip directory is damaged: an entry reaches beyond its end", file=path)
        name = _name(raw_name, flags, path)
        if _U32 in (compressed, size, header) or disk == _U16:
            values = _zip64_values(path, name, extra, (size, compressed, header), disk)
            size, compressed, header, disk = values
        if disk:
            raise CheckpointError("zip archive is one part of several", file=path)
        member = _Central(name, raw_name, flags, method, crc, compressed, size, header)
        _check_member(path, member)
        yield member
    if at != len(raw):
        what = "zip directory lists more records than it says"
        raise CheckpointError(what, file=path, found=f"{len(raw) - at} bytes more", expected=f"{count} entries")


def _name(raw: bytes, flags: int, path: Path) -> str:
    """A name that means the same folder and file everywhere."""
    try:
        name = raw.decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeDecodeError:
        raise CheckpointError("record name is not UTF-8", file=path, found=repr(raw[:80])) from None
    if _UNSAFE.search(name):
        raise CheckpointError("unsafe record name in zip archive", file=path, found=repr(clip(name)))
    return name


def _check_member(path: Path, member: _Central) -> None:
    if member.flags & (_ENCRYPTED | _MASKED):
        _fail(path, member.name, "is encrypted")
    if member.method not in (_STORED, _DEFLATED):
        found = _METHODS.get(member.method, f"method {member.method}")
        _fail(path, member.name, "is compressed by an unsupported method", found, "stored or deflated")
    most = member.compressed_size * (1 if member.method == _STORED else _LONGEST_DEFLATE)
    if member.size > most or (member.method == _STORED and member.size != most):
        found, expected = f"{member.size} bytes", f"{'at most ' * (member.method != _STORED)}{most} bytes"
        _fail(path, member.name, "declares a size that its data cannot have", found, expected)
    if member.size > _LARGEST or (member.name.endswith("/") and member.size):
        _fail(path, member.name, "declares an impossible size", f"{member.size} bytes")


def _zip64_values(path: Path, name: str, extra: bytes, values: tuple[int, ...], disk: int | None) -> tuple[int, ...]:
    """``values`` with those at their 32-bit limit replaced by the zip64 extra field's; then the disk, if given."""
    field = _zip64_field(path, name, extra)
    taken, at = [], 0
    for value in values:
        if value == _U32:
            if len(field) - at < 8:
                _fail(path, name, "lacks a size in its zip64 field")
            value = int.from_bytes(field[at : at + 8], "little")
            at += 8
        taken.append(value)
    if disk == _U16:
        if len(field) - at < 4:
            _fail(path, name, "lacks a number in its zip64 field")
        disk = int.from_bytes(field[at : at + 4], "little")
    return (*taken, disk) if disk is not None else tuple(taken)


def _zip64_field(path: Path, name: str, extra: bytes) -> bytes:
    at = 0
    while len(extra) - at >= 4:
        kind, length = struct.unpack_from("<2H", extra, at)
        at += 4
        if kind == 1 and length <= len(extra) - at:
            return extra[at : at + length]
        at += length
    _fail(path, name, "lacks its zip64 field")


def _data_offset(read: _Read, path: Path, member: _Central, start: int) -> int:
    """Where the data begin: only the local header knows, as its extra field has a length of its own."""
    fixed = _LOCAL.size + len(member.raw_name)
    if member.header > start - fixed:
        _fail(path, member.name, "begins beyond the records' part of the file", f"byte {member.header}")
    raw = bytearray(fixed)
    read(memoryview(raw), member.header)
    signature, _, flags, method, _, _, crc, compressed, size, name_length, extra_length = _LOCAL.unpack_from(raw)
    if signature != SIGNATURE:
        _fail(path, member.name, "has no local header where the directory says", repr(bytes(signature)))
    if name_length != len(member.raw_name) or raw[_LOCAL.size :] != member.raw_name:
        found = repr(clip(bytes(raw[_LOCAL.size :]).decode("utf-8", "replace")))
        _fail(path, member.name, "has another name in its local header", found)
    if method != member.method or (flags ^ member.flags) & (_ENCRYPTED | _MASKED | _UTF8 | _SIZES_FOLLOW):
        _fail(path, member.name, "has another method or other flags in its local header")
    if _U32 in (compressed, size) and member.header + fixed + extra_length <= start:
        extra = bytearray(extra_length)
        read(memoryview(extra), member.header + fixed)
        size, compressed = _zip64_values(path, member.name, bytes(extra), (size, compressed), None)
    true = (member.crc, member.compressed_size, member.size)
    # Writers that stream put the sizes behind the data, and zeros here.
    if (crc, compressed, size) != true and not (flags & _SIZES_FOLLOW and (crc, compressed, size) == (0, 0, 0)):
        found, expected = f"{compressed} and {size} bytes", f"{member.compressed_size} and {member.size} bytes"
        _fail(path, member.name, "has another size or checksum in its local header", found, expected)
    return member.header + fixed + int(extra_length)


def _fail(path: Path, name: str, what: str, found: object = None, expected: object = None) -> NoReturn:
    raise CheckpointError(f"record {clip(name)!r} {what}", file=path, found=found, expected=expected)
