"""Judges one input: a checkpoint that is consistent, or one line of a CheckpointError; quickly, in bounded memory."""

from __future__ import annotations

import math
import os
import re
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

from pysoup.checkpoint import Checkpoint, TensorEntry, open_checkpoint
from pysoup.checkpoint.contents import Deflated, Strided
from pysoup.checkpoint.unpack import Unpacked
from pysoup.errors import CheckpointError

from .target import Finding, Target, require

MEMORY = 100 << 20
"""Bytes that the process may grow by, over all of its inputs."""
ADDRESS_SPACE = 1 << 30
"""Bytes more than at the start that it may ask for at once: beyond is a MemoryError, not a machine that swaps."""
SECONDS = 1.5
"""Of processor time, for one input."""
READ = 1 << 20
"""Tensors of at most so many bytes in all are read too."""
LONGEST_LINE = 2000

_QUIET = frozenset({"os.listdir", "os.scandir", "sys._getframe", "object.__getattr__", "builtins.id", "array.__new__"})

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Harness:
    """Runs inputs of one target, with its file in a directory of its own in memory where there is /dev/shm.

    One a process: the watch on what the readers do cannot be taken back, only paused.
    """

    def __init__(self, target: Target, directory: Path) -> None:
        self.target = target
        self.path = directory / target.file_name
        target.prepare(directory)
        self._directory = str(directory)
        self._watching = False
        self._alarms: list[str] = []
        sys.addaudithook(self._heard)
        signal.signal(signal.SIGVTALRM, _out_of_time)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        self._start = peak_memory()
        _limit_address_space()

    def run(self, data: bytes) -> str:
        """What became of it, without the numbers: inputs that end alike give the same text. Raises Finding."""
        content = self.target.content(data)
        os.ftruncate(self._fd, len(content))
        os.pwrite(self._fd, content, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 2 * SECONDS)
        started = time.process_time()
        self._alarms.clear()
        self._watching = True
        try:
            outcome, checkpoint, tensors = self._read()
        finally:
            self._watching = False
            elapsed = time.process_time() - started
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        require(not self._alarms, f"does what no reader may: {self._alarms}")
        require(elapsed < SECONDS, f"takes {elapsed:.1f} s")
        growth = peak_memory() - self._start
        require(growth < MEMORY, f"{growth >> 20} MiB more than at the start")
        if checkpoint is not None:
            check_consistent(checkpoint, self.path)
            self.target.accepted(self.path, checkpoint, tensors)
        else:
            self.target.refused(self.path, outcome)
        return re.sub(r"'[^']*'|\d+", "#", outcome)[:120]

    def _read(self) -> tuple[str, Checkpoint | None, dict[str, bytes] | None]:
        try:
            checkpoint = self._open()
        except CheckpointError as error:
            return self._line(error), None, None
        if sum(checkpoint.entry(name).nbytes for name in checkpoint) > READ:
            return "accepted, large", checkpoint, None
        try:
            return "accepted", checkpoint, self._tensors(checkpoint)
        except CheckpointError as error:
            return f"accepted, but {self._line(error)}", checkpoint, None

    def _open(self) -> Checkpoint:
        try:
            return open_checkpoint(self.path)
        except CheckpointError as error:
            if "must be chosen" not in str(error):
                raise
            self._line(error)
            return open_checkpoint(self.path, self.target.entry)

    def _tensors(self, checkpoint: Checkpoint) -> dict[str, bytes]:
        fds = [checkpoint.open_file(i) for i in range(len(checkpoint.files))]
        try:
            with Unpacked(self._directory) as unpacked:
                result = {}
                for entry in map(checkpoint.entry, checkpoint):
                    offset, fd = unpacked.place(fds[entry.file], entry, checkpoint.files[entry.file])
                    result[entry.name] = os.pread(fd, entry.nbytes, offset)
                    require(len(result[entry.name]) == entry.nbytes, f"{entry}: fewer bytes in the file")
                return result
        finally:
            for fd in fds:
                os.close(fd)

    def _line(self, error: CheckpointError) -> str:
        line = str(error)
        require(line.isprintable() and len(line) < LONGEST_LINE, f"not one short line: {line[:LONGEST_LINE]!r}")
        require(str(error.file).startswith(self._directory), f"does not name the file: {line}")
        require(line.startswith(str(error.file)), f"does not begin with the file: {line}")
        return line[len(str(error.file)) :]

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Every import, every execution of code and every file opened in this process is told here."""
        if not self._watching or event in _QUIET:
            return
        if event == "open" and self._may_open(*arguments):
            return
        if event == "os.truncate" and isinstance(arguments[0], int):
            return
        self._alarms.append(f"{event} {arguments!r}"[:200])

    def _may_open(self, path: object, mode: str | None, flags: int) -> bool:
        """Reading within the directory is allowed, and the directory itself for a temporary file without a name."""
        name = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        return name == self._directory or (name.startswith(self._directory) and flags & _WRITING == 0)


def check_consistent(checkpoint: Checkpoint, path: Path) -> None:
    """What the rest of pysoup relies on. Raises Finding."""
    sizes = [os.stat(file).st_size for file in checkpoint.files]
    entries = [checkpoint.entry(name) for name in checkpoint]
    for name, entry in zip(checkpoint, entries, strict=True):
        require(entry.name == name and type(name) is str and name.encode("utf-8") is not None, f"{entry}: name")
        require(all(type(n) is int and n >= 0 for n in entry.shape), f"{entry}: shape")
        require(entry.nbytes == math.prod(entry.shape) * entry.dtype.itemsize <= 2**63 - 1, f"{entry}: size")
        _check_range(entry, sizes[entry.file])
    for file in range(len(sizes)):
        if checkpoint.format == "safetensors":
            plain = [(e.offset, e.offset + e.nbytes) for e in entries if e.file == file]
            ends = [end for _, end in plain]
            require([begin for begin, _ in plain][1:] == ends[:-1], f"{plain}: not one after the other")
            require(not plain or ends[-1] == sizes[file], "bytes after the last tensor")
    for alias, stored in checkpoint.aliases.items():
        require(alias not in checkpoint and stored in checkpoint, f"alias {alias!r} of {stored!r}")
        alias.encode("utf-8")
    require(all(type(k) is str and type(v) is str for k, v in checkpoint.metadata.items()), "metadata that is no text")
    require(checkpoint.total_bytes == sum(e.nbytes for e in entries), "total bytes")
    require(all(type(text) is str and len(text) < 200 for text in checkpoint.dropped[:1000]), "what was left out")
    require(len(checkpoint.dropped) <= 1000, "much was left out")


def _check_range(entry: TensorEntry, size: int) -> None:
    form = entry.form
    if isinstance(form, Strided):
        require(len(form.strides) == len(entry.shape) and min(form.strides) >= 0, f"{entry}: strides")
        steps = sum((n - 1) * stride for n, stride in zip(entry.shape, form.strides, strict=True))
        require(0 not in entry.shape and form.span == (steps + 1) * entry.dtype.itemsize, f"{entry}: span")
        length = form.span
    elif isinstance(form, Deflated):
        require(form.skip >= 0 and form.size >= 0, f"{entry}: stream")
        length = form.size
    else:
        require(form is None, f"{entry}: form")
        length = entry.nbytes
    require(0 <= entry.offset <= entry.offset + length <= size, f"{entry}: beyond the file's {size} bytes")


def working_directory() -> tempfile.TemporaryDirectory[str]:
    """In memory, where files are rewritten a thousand times a second."""
    shared = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="pysoup-fuzz-", dir=shared if shared.is_dir() else None)


def peak_memory() -> int:
    """Bytes resident at most since the program began. (What getrusage tells may be the parent's from before.)"""
    status = Path("/proc/self/status").read_bytes()
    return int(status[status.index(b"VmHWM:") + 6 :].split(maxsplit=1)[0]) << 10


def _limit_address_space() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ADDRESS_SPACE, hard))


def _out_of_time(signal_number: int, frame: FrameType | None) -> None:
    raise Finding(f"takes more than {2 * SECONDS} s")
