"""Files opened and read by position, and the stamp that tells whether one is still what it was."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError


class FileStamp(NamedTuple):
    """What tells that a file is still the one whose header was checked. Sizes in bytes, time in nanoseconds."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, info: os.stat_result) -> FileStamp:
        return cls(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)


def open_file(path: Path) -> int:
    """A descriptor of the regular file at ``path``, to be closed by the caller. Raises CheckpointError."""
    try:
        # A look first: opening a device or a FIFO can block or have effects.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CheckpointError("not a regular file", file=path)
        return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:
        raise CheckpointError(reason(error), file=path) from None


def reason(error: OSError | ValueError) -> str:
    """Why a file cannot be read, in the words of the system."""
    if isinstance(error, ValueError):
        return "not a valid file name"
    if error.errno == errno.ENOENT:
        return "no such file or directory"
    if error.errno == errno.EMFILE:
        return "too many open files for one process (see `ulimit -n`)"
    return f"cannot be read: {(error.strerror or str(error)).lower()}"


def read_exactly(fd: int, view: memoryview, offset: int, path: Path, tensor: str | None = None) -> None:
    """Fill ``view`` from ``offset`` of the file. Raises CheckpointError with byte counts if the file ends before."""
    done = 0
    while done < len(view):
        try:
            count = os.preadv(fd, [view[done:]], offset + done)
        except OSError as error:
            raise CheckpointError(reason(error), file=path, tensor=tensor) from None
        if count == 0:
            what = f"file ends early, at byte {offset + done}"
            raise CheckpointError(what, file=path, tensor=tensor, found=f"{done} bytes", expected=f"{len(view)} bytes")
        done += count
