"""The only importer of the native module: what it can do, which ISA it runs, and its errors as pysoup's own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ._version import __version__
from .errors import BackendError

_forced_isa: ContextVar[str | None] = ContextVar("forced_isa", default=None)


def load() -> ModuleType:
    """The native module. A missing or broken build is one clear :class:`BackendError` at the first call.

    So is a big-endian machine: files are little-endian, and their bytes are summed as they are.
    """
    if sys.byteorder != "little":
        raise BackendError("this machine is not supported", found="big-endian", expected="little-endian")
    try:
        return importlib.import_module("._C", __package__)
    except ImportError as error:
        raise BackendError(
            f"the native module is not built for this Python: {error}", expected="pip install ."
        ) from None


def active_isa() -> str:
    """The ISA that kernels run: the one forced by :func:`force_isa` or ``PYSOUP_ISA``, else the best one here.

    Raises :class:`BackendError` for an unknown or absent name: a typo must not become a fallback nobody asked for.
    """
    forced = _forced_isa.get()
    asked = forced or os.environ.get("PYSOUP_ISA") or "auto"
    native = load()
    try:
        return str(native.check_isa(asked))
    except native.NativeError as error:
        where = "" if forced else "PYSOUP_ISA: "
        raise BackendError(where + str(error.args[0])) from None


@contextmanager
def force_isa(name: str) -> Iterator[None]:
    """Runs the body with one ISA, whatever the environment says. For tests and comparisons."""
    token = _forced_isa.set(name)
    try:
        active_isa()
        yield
    finally:
        _forced_isa.reset(token)


def default_threads() -> int:
    """Threads to use: the processors this process may run on, or fewer where a cgroup quota allows fewer."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(count, _cgroup_quota() or count))


@cache
def _cgroup_quota() -> int | None:
    """Processors granted by the cgroup (v2, then v1), rounded up, or None where there is no quota. Asked once."""
    for path, period_path in (
        ("/sys/fs/cgroup/cpu.max", None),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    ):
        try:
            fields = Path(path).read_text().split()
            if period_path is not None:
                fields += Path(period_path).read_text().split()
            quota, period = int(fields[0]), int(fields[1])
        except (OSError, ValueError, IndexError):
            continue
        if quota > 0 and period > 0:
            return max(1, -(-quota // period))
    return None


def threads_or_default(threads: int | None) -> int:
    """``threads`` checked, or :func:`default_threads` for None."""
    if threads is None:
        return default_threads()
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 4096:
        raise BackendError("wrong number of threads", found=threads, expected="1 to 4096")
    return threads


def run(
    plan: Any,
    *,
    threads: int,
    buffer_bytes: int = 0,
    progress: Callable[[int], object] | None = None,
    direct: bool = False,
) -> list[int]:
    """Runs a native plan on the active ISA; ``progress`` gets the bytes moved so far, about 20 times a second.

    ``direct`` reads what the page cache does not hold past it, where the file system and ``buffer_bytes`` allow that.

    Returns the rows of the plan's columns, ascending, whose result is NaN or infinite somewhere: an input was, or the
    mean is beyond the output type's range. F8_E4M3 has no infinity, so a row of that type is there only for a NaN.
    Bytes that are copied (``RAW``) are not looked at.

    Raises the native module's ``NativeError`` for failed reads and writes (the caller knows which file it was) and
    :class:`BackendError` for everything else.
    """
    native = load()
    try:
        plan.run(active_isa(), threads, buffer_bytes, progress, direct)
        return list(plan.nonfinite)
    except native.NativeError as error:
        if error.args[1] in ("read", "short_read", "write"):
            raise
        raise BackendError(str(error.args[0])) from None


def score_logits(*, threads: int, **arguments: Any) -> None:
    """Scores rows of logits on the active ISA; :class:`BackendError` for what the native module refuses."""
    native = load()
    try:
        native.score_logits(isa=active_isa(), threads=threads, **arguments)
    except native.NativeError as error:
        raise BackendError(str(error.args[0])) from None


def capabilities() -> dict[str, Any]:
    """What the build and this machine offer; the source of ``pysoup doctor``."""
    native = load()
    return {
        "version": __version__,
        "compiler": native.compiler,
        "build_type": native.build_type,
        "isa": active_isa(),
        "isas": list(native.available_isas()),
        "cuda": False,
        "cuda_devices": 0,
        "threads": default_threads(),
        "byteorder": sys.byteorder,
    }


def measure_bandwidth(nbytes: int = 64 << 20, threads: int | None = None) -> dict[str, float]:
    """Memory bandwidth in bytes per second, best of five: ``read`` (eight streams), ``mix`` (eight read, one written).

    ``nbytes`` is the size of one of nine buffers; nothing but plain loads and stores is timed.
    """
    measured = load().measure_bandwidth(nbytes, threads_or_default(threads))
    return {"read": measured["read"], "mix": measured["mix"]}
