"""A zip archive of stored records as torch.save lays it out, known to the byte before any data is there.

After PKWARE's APPNOTE 6.3.10 and miniz's writer inside torch: each record is a local header whose extra field "FB" pads
the data to a multiple of 64 bytes, the data, and a data descriptor (none after an empty record) with their checksum.
torch can then compute the offsets of all records instead of reading the local headers
(``torch.utils.serialization.config.load.calculate_storage_offsets``), so nothing here may differ from what it expects.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence

ALIGNMENT = 64

_U16, _U32 = 0xFFFF, 0xFFFFFFFF
_VERSIONS = (0x031E, 45)
"""Made by, and needed for, the long end mark: as miniz says, which leaves both at 0 elsewhere."""
_UTF8, _SIZES_FOLLOW = 0x0800, 0x0008
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")


class ZipLayout:
    """Records added in order; ``offsets`` are where their data begin, ``sizes`` how long they are. All in bytes."""

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.offsets: array[int] = array("Q")
        self.sizes: array[int] = array("Q")
        self._headers: array[int] = array("Q")
        self._end = 0

    def add(self, name: str, size: int) -> int:
        """Append a record of ``size`` bytes; where its data begin."""
        raw = name.encode("utf-8")
        start = self._end + _LOCAL.size + len(raw) + len(_zip64(size, self._end)) + 4
        begin = start + -start % ALIGNMENT
        self.names.append(raw)
        self.sizes.append(size)
        self.offsets.append(begin)
        self._headers.append(self._end)
        self._end = begin + size + (len(self.descriptor(len(self.names) - 1, 0)) if size else 0)
        return begin

    def local_header(self, record: int) -> tuple[int, bytes]:
        """Offset and content of what stands before the data of a record."""
        name, size, at = self.names[record], self.sizes[record], self._headers[record]
        zip64 = _zip64(size, at)
        padding = self.offsets[record] - at - _LOCAL.size - len(name) - len(zip64) - 4
        extra = zip64 + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        # Checksum and sizes are 0 here: they follow the data.
        header = _LOCAL.pack(b"PK\x03\x04", 0, _flags(size), 0, 0, 0, 0, 0, 0, len(name), len(extra))
        return at, header + name + extra

    def descriptor(self, record: int, crc: int) -> bytes:
        """What stands right behind the data of a record that is not empty."""
        size = self.sizes[record]
        sizes = "2Q" if _zip64(size, self._headers[record]) else "2L"
        return struct.pack(f"<4sL{sizes}", b"PK\x07\x08", crc, size, size)

    @property
    def directory_offset(self) -> int:
        """Where the central directory begins."""
        return self._end

    @property
    def total_bytes(self) -> int:
        """Size of the finished archive."""
        entries = sum(
            _CENTRAL.size + len(name) + len(_zip64(size, at))
            for name, size, at in zip(self.names, self.sizes, self._headers, strict=True)
        )
        return self._end + entries + len(self._end_marks(entries))

    def directory(self, crcs: Sequence[int]) -> bytes:
        """The central directory and the end marks, for records with these checksums."""
        entries = []
        for name, size, at, crc in zip(self.names, self.sizes, self._headers, crcs, strict=True):
            extra = _zip64(size, at)
            short_size, short_at = min(size, _U32), min(at, _U32)
            fixed = (b"PK\x01\x02", 0, 0, _flags(size), 0, 0, 0)
            lengths = (len(name), len(extra), 0, 0, 0, 0)
            entries.append(_CENTRAL.pack(*fixed, crc, short_size, short_size, *lengths, short_at) + name + extra)
        content = b"".join(entries)
        return content + self._end_marks(len(content))

    def _end_marks(self, length: int) -> bytes:
        """What ends the archive after a directory of ``length`` bytes: the long form, as always in torch's archives."""
        count, start = len(self.names), self._end
        long_form = _END64.pack(b"PK\x06\x06", _END64.size - 12, *_VERSIONS, 0, 0, count, count, length, start)
        locator = _LOCATOR.pack(b"PK\x06\x07", 0, start + length, 1)
        short = min(count, _U16)
        end = _END.pack(b"PK\x05\x06", 0, 0, short, short, min(length, _U32), min(start, _U32), 0)
        return long_form + locator + end


def _flags(size: int) -> int:
    return _UTF8 | (_SIZES_FOLLOW if size else 0)


def _zip64(size: int, header: int) -> bytes:
    """The extra field for what does not fit 32 bits: the two sizes, the offset of the local header, or all three."""
    values = [size, size] if size >= _U32 else []
    values += [header] if header >= _U32 else []
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""
