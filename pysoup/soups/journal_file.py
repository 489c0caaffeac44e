"""An append-only file of JSON lines that survives a kill at any byte, and that one process at a time may open.

Each line ends in the CRC-32 of what is before it, and is on disk before :meth:`JournalFile.append` returns. A line
without its newline was being written when the process died, and was never reported as written: it is cut off. Any
other line that does not fit its checksum is an error.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import weakref
import zlib
from pathlib import Path
from typing import Any

from ..checkpoint.output.publish import sync_directory
from ..errors import OutputError, SoupError

FORMAT_KEY = "pysoup_journal"
"""First key of the first line; its value is the number of the format."""
FORMAT = 1
_BEGINNING = f'{{"{FORMAT_KEY}": '.encode()
_LINE = re.compile(rb'(.*), "crc": "([0-9a-f]{8})"\}', re.DOTALL)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class JournalFile:
    """The open journal at ``path``, made if it is absent, and locked until it is closed or the process ends.

    ``lines`` are the objects that were there; the first of them, if any, is of this format. Raises
    :class:`SoupError` where the file is damaged, of another format or in use, :class:`OutputError` where it cannot be
    opened or written. The lock is the kernel's own (flock): it ends with the process, however that ends. A forked
    child has no part in it: its copy of the descriptor is closed at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        self._fd = _open_locked(path)
        self._size = 0
        _OPEN.add(self)
        try:
            data = _read(self._fd)
            self.lines, self._size = _parse(data, path)
            if len(data) > self._size:
                self._cut()
            elif not data:
                sync_directory(path.parent)
        except OSError as error:
            self.close()
            raise _cannot("open", path, error) from error
        except BaseException:
            self.close()
            raise

    def append(self, content: dict[str, Any]) -> None:
        """Add one line (a non-empty object of plain JSON); it is on disk when this returns.

        If that fails, the file is as it was before, or has a part of a line at its end, which the next one cuts off.
        """
        if self._fd < 0:
            raise SoupError("the journal is closed, or was opened by the process that this one was forked from")
        line = _line(content)
        try:
            if not os.fstat(self._fd).st_nlink:
                raise OutputError("the journal was removed while the run went on", file=self.path)
            done = 0
            while done < len(line):
                done += os.pwrite(self._fd, line[done:], self._size + done)
            os.fsync(self._fd)
            self._size += len(line)  # here: after a Ctrl-C, too, the size is that of whole lines
        except OSError as error:
            self._cut_quietly()
            raise _cannot("write", self.path, error) from error
        except BaseException:
            self._cut_quietly()
            raise

    def clear(self) -> None:
        """Start anew, with the lock kept."""
        self.lines, self._size = [], 0
        try:
            self._cut()
        except OSError as error:
            raise _cannot("write", self.path, error) from error

    def close(self) -> None:
        """Release the lock; a second call does nothing."""
        fd, self._fd = self._fd, -1
        _OPEN.discard(self)
        if fd >= 0:
            os.close(fd)

    def _cut(self) -> None:
        os.ftruncate(self._fd, self._size)
        os.fsync(self._fd)

    def _cut_quietly(self) -> None:
        try:
            self._cut()
        except OSError:
            # What is left of the line has no newline, or no line after it.
            self.close()


def _open_locked(path: Path) -> int:
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise _cannot("open", path, error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            now = os.stat(path)
        except BlockingIOError:
            holder = _holder(_read(fd))
            os.close(fd)
            raise SoupError("another run is using this directory", file=path.parent, found=holder) from None
        except FileNotFoundError:
            os.close(fd)
            continue
        except OSError as error:
            os.close(fd)
            if error.errno in _NO_LOCKS:
                what = "the file system has no locks, which keep two processes apart; give a directory elsewhere"
                raise OutputError(what, file=path.parent) from error
            raise _cannot("open", path, error) from error
        # Removed, and perhaps made anew, before it was locked: the lock is on a file that no one else finds.
        if os.path.samestat(now, os.fstat(fd)):
            return fd
        os.close(fd)


def _read(fd: int) -> bytes:
    parts, offset = [], 0
    while part := os.pread(fd, 1 << 24, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def _parse(data: bytes, path: Path) -> tuple[list[dict[str, Any]], int]:
    """All whole lines, and how many bytes they take."""
    if not _BEGINNING.startswith(data[: len(_BEGINNING)]):
        raise SoupError("not a journal; give another directory, or move this file away", file=path)
    size = data.rfind(b"\n") + 1
    lines = []
    for number, text in enumerate(data[:size].split(b"\n")[:-1], 1):
        if number == 1:
            _check_format(text, path)
        line = _object(text)
        if line is None:
            what = f"line {number} is damaged: it does not fit its checksum; give another directory, or delete this one"
            raise SoupError(what, file=path)
        lines.append(line)
    return lines, size


def _check_format(text: bytes, path: Path) -> None:
    try:
        header = json.loads(text)
        found, version = header[FORMAT_KEY], header.get("pysoup", "unknown")
    except (ValueError, TypeError, KeyError, RecursionError):
        return  # damaged: the checksum says so
    if found != FORMAT:
        what = f"a journal of another format, by pysoup {version}; go on with that one, or give another directory"
        raise SoupError(what, file=path, found=f"format {found}", expected=f"format {FORMAT}")


def _line(content: dict[str, Any]) -> bytes:
    body = json.dumps(content, allow_nan=False).encode()
    return body[:-1] + b', "crc": "%08x"}\n' % zlib.crc32(body)


def _object(text: bytes) -> dict[str, Any] | None:
    """The object of a line without its newline; None if it is damaged."""
    match = _LINE.fullmatch(text)
    if match is None or zlib.crc32(match[1] + b"}") != int(match[2], 16):
        return None
    content = json.loads(match[1] + b"}")
    assert isinstance(content, dict)
    return content


def owner() -> dict[str, Any]:
    """What tells others who has the journal open; it goes into a line under the key ``opened``."""
    return {"pid": os.getpid(), "host": os.uname().nodename}


def _holder(data: bytes) -> str | None:
    """Who has the journal open: who opened it last, or None where the present one has not got round to saying so."""
    for text in reversed(data.split(b"\n")[:-1]):
        who = (_object(text) or {}).get("opened")
        if who == owner():
            return "this process"
        if who:
            return None if _has_ended(who) else f"process {who['pid']} on {who['host']}"
    return None


def _has_ended(who: dict[str, Any]) -> bool:
    try:
        if who["host"] == owner()["host"]:
            os.kill(who["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _cannot(do: str, path: Path, error: OSError) -> OutputError:
    why = {errno.ENOSPC: "disk is full", errno.EDQUOT: "disk quota exceeded"}.get(error.errno or 0, error.strerror)
    return OutputError(f"cannot {do} the journal: {why}", file=path)


_OPEN: weakref.WeakSet[JournalFile] = weakref.WeakSet()


def _close_inherited() -> None:
    # A worker that outlives a killed parent would hold the lock, and the next run would be refused.
    for journal in list(_OPEN):
        journal.close()


os.register_at_fork(after_in_child=_close_inherited)
