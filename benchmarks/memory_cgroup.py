"""A memory limit for a process and all that it starts: page cache counts, as in a container.

Works with cgroups of version 1 and 2, where this user may make one (root, mostly).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

_ROOT = Path("/sys/fs/cgroup")


class MemoryCgroup:
    """A control group of ``limit`` bytes while the context is open; :meth:`command` starts a process in it.

    Swap is not allowed beside it where the kernel counts swap. Raises :class:`OSError` where none can be made.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        is_v2 = (_ROOT / "cgroup.controllers").exists()
        self._folder = (_ROOT if is_v2 else _ROOT / "memory") / f"pysoup-benchmark-{os.getpid()}"
        self._limit_file, self._peak_file, self._swap_file = (
            ("memory.max", "memory.peak", "memory.swap.max")
            if is_v2
            else ("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.memsw.limit_in_bytes")
        )
        self._no_swap = 0 if is_v2 else limit  # version 1 counts memory and swap together

    def __enter__(self) -> MemoryCgroup:
        self._folder.mkdir()
        (self._folder / self._limit_file).write_text(str(self.limit))
        if (self._folder / self._swap_file).exists():
            (self._folder / self._swap_file).write_text(str(self._no_swap))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        deadline = time.monotonic() + 10
        while self._is_used() and time.monotonic() < deadline:
            time.sleep(0.02)  # a killed process leaves it a little later than its parent hears of it
        self._folder.rmdir()

    def command(self, command: Sequence[str]) -> list[str]:
        """The same command, in the group from its first instruction on."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._folder / "cgroup.procs"), *command]

    def peak(self) -> int:
        """The most bytes that the group held at a time, page cache and all; the limit, as a rule."""
        return int((self._folder / self._peak_file).read_text())

    def _is_used(self) -> bool:
        return bool((self._folder / "cgroup.procs").read_text())
