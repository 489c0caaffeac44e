"""Reading ahead: while one checkpoint is scored, the kernel is asked for the bytes of the next."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping

from torch import Tensor

from ..checkpoint import Checkpoint

_SLICE = 128 << 10
"""What one request asks for: a kernel may take no more than its read-ahead window of a larger one. It is also what a
stop waits for."""


class ReadAhead:
    """At most one thread, and none after :meth:`stop`; a checkpoint in memory, or a system without advice, needs none.

    ``seconds`` is the time that threads spent asking. It passes beside the scoring, not in addition to it.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, source: Checkpoint | Mapping[str, Tensor] | None) -> None:
        """Ask for the tensors of ``source``, in place of what was asked for before."""
        self.stop()
        if not isinstance(source, Checkpoint) or not hasattr(os, "posix_fadvise"):
            return
        self._stopping.clear()
        self._thread = threading.Thread(target=self._ask, args=(source,), name="pysoup-read-ahead", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, if there is one: within one request."""
        if self._thread is not None:
            self._stopping.set()
            self._thread.join()
            self._thread = None

    def _ask(self, checkpoint: Checkpoint) -> None:
        started = time.perf_counter()
        try:
            for path, start, end in _ranges(checkpoint):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    for offset in range(start, end, _SLICE):
                        if self._stopping.is_set():
                            return
                        os.posix_fadvise(fd, offset, min(_SLICE, end - offset), os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(fd)
        except OSError:
            pass  # whatever is wrong with the file is said when it is read
        finally:
            self.seconds += time.perf_counter() - started


def _ranges(checkpoint: Checkpoint) -> list[tuple[str, int, int]]:
    """File, first and last byte of its tensors, in one range each: an optimizer's state before or after is left out."""
    spans: dict[int, tuple[int, int]] = {}
    for name in checkpoint:
        entry = checkpoint.entry(name)
        start, end = spans.get(entry.file, (entry.offset, entry.offset))
        spans[entry.file] = min(start, entry.offset), max(end, entry.offset + entry.nbytes)
    return [(os.fspath(checkpoint.files[file]), start, end) for file, (start, end) in sorted(spans.items())]
