"""Files written by position: their size reserved, bytes put in place, and read back for a checksum."""

from __future__ import annotations

import errno
import os
import zlib
from pathlib import Path

from ...errors import OutputError

NOT_OFFERED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""What a filesystem answers to a call it does not have."""

_PIECE = 1 << 20


def reserve(fd: int, nbytes: int) -> None:
    """Give the file its full size, so that a full disk shows now and not at the end. OSError is the caller's."""
    if nbytes and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, nbytes)
            return
        except OSError as error:
            if error.errno not in NOT_OFFERED:
                raise
    os.ftruncate(fd, nbytes)


def write_fully(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``. OSError is the caller's."""
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def file_crc32(fd: int, offset: int, size: int, path: Path) -> int:
    """CRC-32 of a part of an open file, read back in pieces of 1 MiB. Raises OutputError where the file ends early."""
    buffer = bytearray(min(size, _PIECE))
    crc, done = 0, 0
    while done < size:
        view = memoryview(buffer)[: min(size - done, _PIECE)]
        count = os.preadv(fd, [view], offset + done)
        if count == 0:
            raise OutputError("file was shortened while it was written", file=path, found=f"{offset + done} bytes")
        crc = zlib.crc32(view[:count], crc)
        done += count
    return crc
