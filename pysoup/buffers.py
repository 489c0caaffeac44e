"""How many threads with how large buffers read files, within a budget, from the page cache or past it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .errors import SoupError
from .sizes import format_size

# Per thread: what a core's second-level cache holds beside the sum. More makes warm reads slower, not faster.
_CACHED_BUFFER = 1 << 20
# With many inputs, leaving the cache costs less than ever shorter reads: 4 times faster with 1,000 inputs.
_BYTES_PER_INPUT = 32 << 10
# A thread with less than this to read at a time costs more than it brings, its own stack included.
_LEAST_BUFFER = 64 << 10
# Reading past the page cache: a disk is kept busy by this many threads, also where fewer processors do the sums, and by
# reads of 256 KiB; longer ones are no faster and take more memory.
_COLD_THREADS = 8
_COLD_THREADS_PER_THREAD = 4
_COLD_READ = 256 << 10
# Below this, reads that overlap are not worth their threads.
_LEAST_COLD_BYTES = 32 << 20
# Of the memory that could be had: the page cache keeps files of this size while something else is at work, too.
_CACHEABLE = 0.75
# A table of work on a GPU, for the smallest chunk: see csrc/io/staged_chunks.cpp.
_TABLE = 1 << 10
_TABLE_PER_INPUT = 32


def fit_buffers(budget: int, threads: int, minimum: int, inputs: int) -> tuple[int, int]:
    """Threads and buffer bytes a thread within ``budget`` bytes, at least ``minimum`` a thread.

    Raises :class:`SoupError` where not even one fits.
    """
    check_budget(budget, minimum)
    preferred = max(_CACHED_BUFFER, inputs * _BYTES_PER_INPUT)
    threads = max(1, min(threads, budget // max(minimum, _LEAST_BUFFER)))
    return threads, max(minimum, min(budget // threads, preferred))


def check_budget(budget: int, minimum: int) -> None:
    """Raises :class:`SoupError` where ``minimum`` bytes of buffers are needed and ``budget`` are allowed."""
    if minimum > budget:
        raise SoupError(
            "memory is too small for these inputs",
            found=format_size(budget),
            expected=f"at least {format_size(minimum)}",
        )


def staged_minimum(minimum_buffer: int, inputs: int) -> int:
    """What a run on a GPU needs where one on the CPU needs ``minimum_buffer``: its table of work travels with it."""
    return minimum_buffer + _TABLE + inputs * _TABLE_PER_INPUT


def cold_buffers(plan: Any, budget: int, threads: int, inputs: int, *, again: bool = False) -> tuple[int, int] | None:
    """Threads and buffer bytes a thread within ``budget`` for a run with ``direct=True``; None where it would not pay.

    It pays where the page cache holds less than half of the inputs, for files that are read once: they are not in the
    page cache afterwards. Those that are read ``again`` should be, if the memory that is free has room for them.
    ``PYSOUP_DIRECT=off`` forbids it, ``on`` has it whatever the page cache holds. Raises :class:`SoupError` for other
    values.
    """
    asked = os.environ.get("PYSOUP_DIRECT") or "auto"
    if asked not in ("auto", "on", "off"):
        raise SoupError("PYSOUP_DIRECT: not a way to read", found=asked, expected="auto, on or off")
    files = inputs + 1  # the output passes through a buffer as well
    wanted = max(threads, min(_COLD_THREADS, _COLD_THREADS_PER_THREAD * threads))
    threads = min(wanted, budget // (files * _COLD_READ))
    if asked == "off" or threads < 2:
        return None
    if asked == "auto" and (plan.bytes < _LEAST_COLD_BYTES or plan.absent_share() < 0.5):
        return None
    if asked == "auto" and again and plan.bytes < _CACHEABLE * available_memory():
        return None
    return threads, files * _COLD_READ


def available_memory() -> int:
    """Bytes that the page cache may fill: what the system has left, or the rest of the cgroup's limit; 0: unknown."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, ValueError, KeyError, IndexError):
        return 0
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        return max(0, min(available, limit - int(stat["anon"])))
    except (OSError, ValueError, KeyError):  # no limit ("max"), or not this kind of cgroup
        return available
