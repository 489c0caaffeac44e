"""The only importer of the native module: what it can do, which ISA it runs, and its errors as pysoup's own."""

from __future__ import annotations

import importlib
import os
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ._version import __version__
from .errors import BackendError

_forced_isa: ContextVar[str | None] = ContextVar("forced_isa", default=None)
_timeline: ContextVar[list[dict[str, Any]] | None] = ContextVar("timeline", default=None)


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


def run_staged(
    plan: Any,
    *,
    device: int,
    stream: int = 0,
    threads: int,
    memory: int,
    progress: Callable[[int], object] | None = None,
    direct: bool = False,
) -> list[int]:
    """As :func:`run`, on a GPU: files and host memory are read into pinned memory and carried there, or back.

    In the plan ``MEMORY`` is that of the device, ``HOST`` the host's. ``memory`` bounds the pinned memory, of which the
    device gets as much; what was used is in ``plan.staged_buffers`` and ``plan.staged_threads``. Work that is queued in
    ``stream`` already comes first; when this returns or raises, all is done. :func:`timeline` collects times.
    """
    native = load()
    chunks = _timeline.get()
    try:
        plan.run_staged(device, stream, threads, memory, progress, direct, chunks is not None)
    except native.NativeError as error:
        if error.args[1] in ("read", "short_read", "write"):
            raise
        raise BackendError(str(error.args[0])) from None
    if chunks is not None:
        chunks += plan.timeline
    return list(plan.nonfinite)


@contextmanager
def timeline() -> Iterator[list[dict[str, Any]]]:
    """When each chunk that the body carries to a GPU was read, copied and summed, and its result brought back.

    One dictionary a chunk: ``bytes`` sent, the host's ``thread``, and [begin, end] in seconds from the start of its
    run of ``read`` and ``write`` (by the host's clock), ``copy``, ``kernel`` and ``back`` (by the device's).
    """
    chunks: list[dict[str, Any]] = []
    token = _timeline.set(chunks)
    try:
        yield chunks
    finally:
        _timeline.reset(token)


def check_device(name: str) -> int | None:
    """The number of the CUDA device ``"cuda"`` (the first) or ``"cuda:N"``; None for ``"cpu"``.

    Raises :class:`BackendError` for other names and for devices that are not there or that the build has no code for.
    """
    kind, colon, number = str(name).partition(":")
    if name == "cpu":
        return None
    if kind != "cuda" or (colon and not (number.isascii() and number.isdecimal() and len(number) < 5)):
        raise BackendError("not a device", found=name, expected="cpu, cuda or cuda:NUMBER")
    index = int(number or 0)
    if not has_kernels(index):
        devices, reason = _cuda_devices()
        absent = reason or f"{len(devices)} CUDA devices"
        found = "a device that this build has no code for" if index < len(devices) else absent
        found = (index < len(devices) and devices[index]["error"]) or found
        expected = "a CUDA device that pysoup doctor lists as usable"
        raise BackendError(f"{name} cannot be used", found=found, expected=expected)
    return index


def score_logits(*, threads: int, **arguments: Any) -> None:
    """Scores rows of logits on the active ISA; :class:`BackendError` for what the native module refuses."""
    native = load()
    try:
        native.score_logits(isa=active_isa(), threads=threads, **arguments)
    except native.NativeError as error:
        raise BackendError(str(error.args[0])) from None


def pack_sum(plan: Any) -> Any:
    """The table of a plan whose places are all memory: ``bytes``, ``rows``, ``write(address)`` to have it there."""
    native = load()
    try:
        return native.SumTable(plan)
    except native.NativeError as error:
        raise BackendError(str(error.args[0])) from None


def launch_sum(packed: Any, *, device: int, stream: int, table: int, flags: int) -> None:
    """Puts a packed sum on a device's stream; ``table`` is where its bytes are there, ``flags`` an address or 0."""
    native = load()
    try:
        packed.run(device, stream, table, flags)
    except native.NativeError as error:
        raise BackendError(str(error.args[0])) from None


def score_scratch(shape: Sequence[int]) -> int:
    """Bytes of device memory that :func:`launch_scores` needs for logits of this shape."""
    return int(load().device_logit_scratch(shape=tuple(shape)))


def launch_scores(**arguments: Any) -> None:
    """Puts the scoring of rows of logits on a device's stream; all that is written is there, too."""
    native = load()
    try:
        native.device_score_logits(**arguments)
    except native.NativeError as error:
        raise BackendError(str(error.args[0])) from None


def has_kernels(device: int) -> bool:
    """Whether there is this CUDA device, and the kernels were built for it."""
    devices = _cuda_devices()[0]
    return device < len(devices) and bool(devices[device]["usable"])


def load_kernels(device: int) -> None:
    """Brings all kernels to a CUDA device, so that none first comes there while a CUDA graph is captured."""
    native = load()
    try:
        native.device_load_kernels(device)
    except native.NativeError as error:
        raise BackendError(str(error.args[0])) from None


@cache
def _cuda_devices() -> tuple[list[dict[str, Any]], str]:
    """The devices present, and one line that says why there are none. Asked once: the question starts the driver."""
    native = load()
    build = native.device_build()
    devices = [_properties(native, index) for index in range(native.device_count())]
    for device in devices:
        is_emulated = build["kind"] == "emulated"
        has_code = is_emulated or _runs_on(build["architectures"], device["major"], device["minor"])
        device["usable"] = has_code and not device["error"]
    return devices, str(native.device_why_none())


def _properties(native: ModuleType, index: int) -> dict[str, Any]:
    """Of a device, with what is wrong with it as ``error``: another one may do."""
    try:
        return {**native.device_properties(index), "error": ""}
    except native.NativeError as error:
        return {"name": "", "major": 0, "minor": 0, "error": str(error.args[0])}


def _runs_on(architectures: str, major: int, minor: int) -> bool:
    """Whether code for "80-real 90" runs on a device: machine code on its major's own, PTX on all newer ones.

    The names are CMake's: a plain number is both, one with a letter only what it names, a word what was there to build.
    """
    for name in architectures.split():
        number, _, kind = name.partition("-")
        if not number.rstrip("af").isdecimal():  # "native", "all-major"
            return True
        built = divmod(int(number.rstrip("af")), 10)
        has_ptx = kind != "real" and number.isdecimal()
        if built <= (major, minor) and (has_ptx or built[0] == major):
            return True
    return False


def plan_dots(**columns: Any) -> Any:
    """The native plan of inner products: ``bytes``, ``scratch`` (numbers), ``table_bytes``, ``write_table``."""
    native = load()
    try:
        return native.Dots(**columns)
    except native.NativeError as error:
        raise BackendError(str(error.args[0])) from None


def run_dots(plan: Any, *, threads: int, out: int) -> None:
    """Carries out a plan of inner products on the active ISA; ``out`` is the address of the results."""
    native = load()
    try:
        plan.run(active_isa(), threads, out)
    except native.NativeError as error:
        raise BackendError(str(error.args[0])) from None


def plan_streamed_dots(**columns: Any) -> Any:
    """The plan of inner products with sources in memory or files, or, with ``pairs``, of all pairs of the sources.

    It has ``bytes``, ``width`` (products a segment), ``minimum_buffer`` and ``memory_for_sums`` (bytes).
    """
    native = load()
    try:
        return native.StreamedDots(**columns)
    except native.NativeError as error:
        raise BackendError(str(error.args[0])) from None


def run_streamed_dots(
    plan: Any,
    *,
    threads: int,
    buffer_bytes: int,
    progress: Callable[[int], object] | None = None,
    direct: bool = False,
) -> array[float]:
    """The products, f64, ``[width, S]``; options are those of :func:`run`, failed reads ``NativeError`` as there."""
    native = load()
    out = array("d", bytes(8 * plan.width * plan.segments))
    try:
        plan.run(active_isa(), threads, buffer_bytes, out, progress, direct)
    except native.NativeError as error:
        if error.args[1] in ("read", "short_read"):
            raise
        raise BackendError(str(error.args[0])) from None
    return out


def launch_dots(plan: Any, *, device: int, stream: int, table: int, scratch: int, out: int) -> None:
    """Puts a plan of inner products on a device's stream; ``table`` and ``scratch`` are addresses there."""
    native = load()
    try:
        plan.run_on_device(device, stream, table, scratch, out)
    except native.NativeError as error:
        raise BackendError(str(error.args[0])) from None


def capabilities() -> dict[str, Any]:
    """What the build and this machine offer; the source of ``pysoup doctor``."""
    native = load()
    build = native.device_build()
    devices, reason = _cuda_devices()
    return {
        "version": __version__,
        "compiler": native.compiler,
        "build_type": native.build_type,
        "isa": active_isa(),
        "isas": list(native.available_isas()),
        "cuda": build["kind"] == "cuda",
        "cuda_runtime": f"{build['runtime'] // 1000}.{build['runtime'] % 1000 // 10}" if build["runtime"] else "",
        "cuda_architectures": build["architectures"].split(),
        "cuda_devices": len(devices),
        "cuda_names": [_device_name(device) for device in devices],
        "cuda_reason": reason,
        "threads": default_threads(),
        "byteorder": sys.byteorder,
    }


def _device_name(device: Mapping[str, Any]) -> str:
    if device["error"]:
        return str(device["error"])
    missing = "" if device["usable"] else ", not built for it"
    return f"{device['name']} (sm_{device['major']}{device['minor']}{missing})"


def measure_bandwidth(nbytes: int = 64 << 20, threads: int | None = None) -> dict[str, float]:
    """Memory bandwidth in bytes per second, best of five: ``read`` (eight streams), ``mix`` (eight read, one written).

    ``nbytes`` is the size of one of nine buffers; nothing but plain loads and stores is timed.
    """
    measured = load().measure_bandwidth(nbytes, threads_or_default(threads))
    return {"read": measured["read"], "mix": measured["mix"]}
