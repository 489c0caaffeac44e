"""One sweep in a directory at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputError


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory; OutputError if another process does. A killed process holds nothing."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise OutputError(f"cannot open the directory: {error.strerror}", file=directory) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError("another sweep is running in this directory", file=directory) from None
        except OSError:
            pass  # a filesystem without locks
        yield
    finally:
        os.close(fd)
