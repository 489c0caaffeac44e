"""Warm and cold files: pages put into the page cache or dropped from it, and the disk's own pace.

Only the page cache of this machine is meant. What a hypervisor or a drive keeps stays as it is, for every contender and
for the direct read they are held against.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
# The standard library's mmap gives its address only where the mapping is writable.
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_BLOCK = 4 << 20


def resident_bytes(path: Path) -> int:
    """How much of a file the page cache holds (mincore)."""
    size = path.stat().st_size
    if size == 0:
        return 0
    states = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with open(path, "rb") as file:
        address = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap", str(path))
    try:
        if _LIBC.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), states):
            raise OSError(ctypes.get_errno(), "mincore", str(path))
    finally:
        _LIBC.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
    return sum(state & 1 for state in bytes(states)) * mmap.PAGESIZE


def drop(paths: Sequence[Path]) -> None:
    """Writes the files' dirty pages and drops the clean ones; raises if any stay."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    left = sum(map(resident_bytes, paths))
    if left:
        raise RuntimeError(f"{left} bytes of {len(paths)} files stayed in the page cache")


def ensure_warm(paths: Sequence[Path]) -> None:
    """Reads what the page cache does not hold; on some machines the kernel drops idle pages by itself."""
    for _ in range(3):
        absent = [path for path in paths if resident_bytes(path) < path.stat().st_size]
        if not absent:
            return
        warm(absent)


def warm(paths: Sequence[Path]) -> None:
    """Reads the files once, so that the page cache holds them."""
    buffer = bytearray(_BLOCK)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def read_directly(paths: Sequence[Path], block: int = _BLOCK, streams: int = 1) -> float:
    """Seconds to read the files with O_DIRECT, past the page cache: one after another, or ``streams`` at a time."""
    queues = [paths[i::streams] for i in range(streams)]
    threads = [threading.Thread(target=_read_files, args=(queue, block)) for queue in queues]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def write_directly(path: Path, size: int, block: int = _BLOCK) -> float:
    """Seconds to write ``size`` bytes, rounded up to whole pages, to a new file with O_DIRECT."""
    with mmap.mmap(-1, block) as buffer:
        buffer.write(b"\x5a" * block)
        start = time.perf_counter()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT)
        try:
            offset, end = 0, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
            while offset < end:
                with memoryview(buffer)[: min(block, end - offset)] as part:
                    offset += os.pwrite(descriptor, part, offset)
        finally:
            os.close(descriptor)
        return time.perf_counter() - start


def _read_files(paths: Sequence[Path], block: int) -> None:
    with mmap.mmap(-1, block) as buffer:  # page-aligned, as O_DIRECT wants it
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
            try:
                offset, size = 0, os.fstat(descriptor).st_size
                while offset < size:
                    offset += os.preadv(descriptor, [buffer], offset)
            finally:
                os.close(descriptor)
