"""Makes ``.npz`` files member by member, good and hostile, with zipfile and struct alone."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"
"""The header of two floats, as numpy writes it; EIGHT are their bytes."""
EIGHT = struct.pack("<2f", 1.0, 2.0)


def npy(header: str | bytes = GOOD, data: bytes = EIGHT, version: tuple[int, int] = (1, 0)) -> bytes:
    """One ``.npy`` file with this header, whatever it says, padded as numpy does."""
    text = header.encode("utf-8") if isinstance(header, str) else header
    width = 2 if version == (1, 0) else 4
    text += b" " * (-(8 + width + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY" + bytes(version) + len(text).to_bytes(width, "little") + text + data


def archive(path: Path, members: dict[str, bytes], deflated: bool = False) -> Path:
    """A zip archive with these members, by their full names."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data, file.compression)
    return path


def patched(path: Path, was: int, now: int) -> Path:
    """The archive with every 32-bit field of its headers that says ``was`` saying ``now``."""
    raw = bytearray(path.read_bytes())
    for signature, fields in ((b"PK\x03\x04", (14, 18, 22)), (b"PK\x01\x02", (16, 20, 24))):
        at = raw.find(signature)
        while at >= 0:
            for field in fields:
                if struct.unpack_from("<L", raw, at + field) == (was,):
                    struct.pack_into("<L", raw, at + field, now)
            at = raw.find(signature, at + 4)
    path.write_bytes(raw)
    return path
