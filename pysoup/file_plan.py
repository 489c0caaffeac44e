"""From checkpoints to a native plan: which byte ranges are summed into which, and what to do with the rest.

Offsets are kept in flat arrays, about 25 bytes for each tensor and input; no data is read here but that of integer
tensors, which have to be compared.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _native
from .buffers import check_budget, cold_buffers, fit_buffers
from .checkpoint import Checkpoint, CheckpointWriter, TensorEntry, output_error, read_exactly
from .checkpoint.output.preflight import free_bytes
from .columns import RAW, Columns, SourceColumn, accumulator
from .dtypes import BY_NAME, DType
from .errors import CheckpointError, OutputError, SoupError, WeightsError
from .integers import choose
from .weights import Mix

if TYPE_CHECKING:
    from .checkpoint.unpack import Unpacked

_COMPARE_BYTES = 1 << 20
# Sums of inner products that do not count as buffers; only for hundreds of inputs, all pairs of them, there are more.
_FREE_SUMS = 16 << 20
_GRANULE = 64  # elements: the smallest chunk of the native loop, see csrc/io/plan.h


class Member:
    """One checkpoint that takes part, its files open while a plan runs; ``index`` is its place among the inputs."""

    def __init__(self, checkpoint: Checkpoint, index: int = 0) -> None:
        self.checkpoint = checkpoint
        self.index = index
        self.fds: list[int] = []
        self._scratch: Path | None = None
        self._unpacked: Unpacked | None = None

    def open(self, scratch: Path | None = None) -> None:
        """Opens all files; raises :class:`CheckpointError` where one changed since its header was read.

        ``scratch`` is the directory for tensors that are not plain bytes in their files.
        """
        self._scratch = scratch
        for file in range(len(self.checkpoint.files)):
            fd = self.checkpoint.open_file(file)
            self.fds.append(fd)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())
        if self._unpacked is not None:
            self._unpacked.close()
            self._unpacked = None

    def place(self, entry: TensorEntry) -> tuple[int, int]:
        """Offset and descriptor of the tensor's plain bytes: in its file, or unpacked at the first call."""
        if entry.form is None:
            return entry.offset, self.fds[entry.file]
        if self._unpacked is None:
            from .checkpoint.unpack import Unpacked

            self._unpacked = Unpacked(self._scratch)
        return self._unpacked.place(self.fds[entry.file], entry, self.checkpoint.files[entry.file])

    def check_unchanged(self) -> None:
        """Raises :class:`CheckpointError` where a file was written to meanwhile: what was read may be half old."""
        for file, fd in enumerate(self.fds):
            self.checkpoint.check_unchanged(file, fd)

    def find(self, name: str) -> TensorEntry | None:
        """The entry of a name, stored or an alias, or None."""
        if name in self.checkpoint or name in self.checkpoint.aliases:
            return self.checkpoint.entry(name)
        return None

    def read(self, entry: TensorEntry, start: int, size: int) -> bytearray:
        """Bytes of a tensor, all of them or an error."""
        data = bytearray(size)
        offset, fd = self.place(entry)
        read_exactly(fd, memoryview(data), offset + start, self.checkpoint.files[entry.file], entry.name)
        return data

    def blame(self, fd: int, offset: int) -> tuple[str, str | None] | None:
        """The file of a descriptor and the tensor at an offset, for errors; None if it is not one of ours."""
        if fd not in self.fds:
            return None
        file = self.fds.index(fd)
        for name in self.checkpoint:
            entry = self.checkpoint.entry(name)
            if entry.file == file and entry.offset <= offset < entry.offset + entry.nbytes:
                return str(self.checkpoint.files[file]), name
        return str(self.checkpoint.files[file]), None


def real_parts(dtype: DType, elements: int) -> tuple[DType, int]:
    """A complex type as twice as many reals; others as they are."""
    if dtype.kind == "complex":
        return BY_NAME["F64" if dtype.itemsize == 16 else "F32"], 2 * elements
    return dtype, elements


class FilePlan:
    """The average of ``members`` over ``names``, with output type ``types[i]`` for ``names[i]``.

    ``law`` gives the mix of a tensor, by name, over the members (by their index) that have it. Raises
    :class:`WeightsError`, naming the tensor, where there is none.
    """

    def __init__(
        self,
        members: Sequence[Member],
        names: Sequence[str],
        types: Sequence[DType],
        integers: str,
        law: Callable[[str, Sequence[int]], Mix],
    ) -> None:
        self.members = members
        self.names = names
        self.types = types
        self.integers = integers
        self.bytes_read = 0
        self.nonfinite: list[str] = []
        """After a run: the tensors whose average holds NaN or an infinity, in order."""
        self._laws: dict[str, Mix] = {}
        for name, dtype in zip(names, types, strict=True):
            entries = [m.find(name) for m in members]
            self.bytes_read += sum(entry.nbytes for entry in entries if entry is not None)
            present = self._present(entries)
            if dtype.kind in ("float", "complex") or not present:
                try:
                    self._laws[name] = law(name, present)
                except WeightsError as error:
                    what = error.what if present else "all inputs that have it have weight 0"
                    raise WeightsError(what, tensor=name, found=error.found, expected=error.expected) from None

    def _present(self, entries: Sequence[TensorEntry | None]) -> tuple[int, ...]:
        return tuple(m.index for m, e in zip(self.members, entries, strict=True) if e is not None)

    @property
    def minimum_buffer(self) -> int:
        """The smallest buffer of a thread, in bytes, known before any file is open."""
        largest = 0
        for name, dtype in zip(self.names, self.types, strict=True):
            sizes = [e.dtype.itemsize for m in self.members if (e := m.find(name)) is not None]
            largest = max(largest, _GRANULE * (sum(sizes) + dtype.itemsize) + 64 * (len(sizes) + 1))
        return largest

    @property
    def scratch_bytes(self) -> int:
        """Bytes on the disk, while the plan runs, for tensors that are not plain bytes in their files."""
        entries = (m.find(name) for m in self.members for name in self.names if m.checkpoint.has_forms)
        odd = [entry for entry in entries if entry is not None and entry.form is not None]
        if not odd:
            return 0
        from .checkpoint.unpack import unpacked_bytes

        return unpacked_bytes(odd)

    def run(
        self,
        writer: CheckpointWriter,
        *,
        threads: int,
        buffer_bytes: int,
        budget: int,
        progress: Callable[[int, int], object] | None,
        device: int | None = None,
    ) -> tuple[int, int]:
        """Reads, averages and writes everything; the members' files and the writer are open.

        Returns the threads and the bytes of all buffers that were used: those given, or others within ``budget`` bytes
        for files that have to come from the disk, and on a CUDA ``device``.
        """
        rows: list[str] = []
        plan = self._native_plan(writer, rows)
        total = plan.bytes
        report = None if progress is None else lambda done: progress(done, total)
        try:
            if device is not None:
                used, flagged = run_staged(plan, budget, threads, len(self.members), device=device, progress=report)
            else:
                cold = cold_buffers(plan, budget, threads, len(self.members))
                threads, buffer_bytes = cold or (threads, buffer_bytes)
                flagged = _native.run(
                    plan, threads=threads, buffer_bytes=buffer_bytes, progress=report, direct=cold is not None
                )
                used = threads, threads * buffer_bytes
            self.nonfinite = [rows[row] for row in flagged or ()]
        except _native.load().NativeError as error:
            raise self._translate(error, writer) from None
        return used

    def _native_plan(self, writer: CheckpointWriter, rows: list[str]) -> Any:
        """The plan; ``rows`` gets the tensor of each of its segments."""
        columns, sources = Columns(), [SourceColumn() for _ in self.members]
        for name, dtype in zip(self.names, self.types, strict=True):
            entries = [m.find(name) for m in self.members]
            shard, offset = writer.offset(name)
            fd = writer.fd(shard)
            first = next((e for e in entries if e is not None), None)
            if first is None or first.nbytes == 0:
                continue
            if dtype.kind not in ("float", "complex"):
                if self._integer(name, entries, writer, columns, sources, (offset, fd)):
                    rows.append(name)
                continue
            rows.append(name)
            mixed = self._laws[name]
            types = [real_parts(e.dtype, 0)[0] for e in entries if e is not None]
            real, elements = real_parts(dtype, first.nbytes // first.dtype.itemsize)
            columns.add(elements, offset, fd, real.native, accumulator(types, real), mixed.divisor)
            factors = dict(zip(mixed.members, mixed.factors, strict=True))
            for member, source, entry in zip(self.members, sources, entries, strict=True):
                if entry is None or member.index not in factors:
                    source.add_absent()
                    continue
                code = real_parts(entry.dtype, 0)[0].native
                source.add(*member.place(entry), code, factors[member.index])
        return columns.plan(sources)

    def _integer(
        self,
        name: str,
        entries: Sequence[TensorEntry | None],
        writer: CheckpointWriter,
        columns: Columns,
        sources: Sequence[SourceColumn],
        target: tuple[int, int],
    ) -> bool:
        """A tensor without a mean: copied by the plan, or written here where it is the largest of several values.

        Returns whether the plan got a segment for it.
        """
        holders = [(m, e) for m, e in zip(self.members, entries, strict=True) if e is not None]
        labels = [str(m.checkpoint.path) for m, _ in holders]
        differs = next((k for k in range(1, len(holders)) if not _equal(holders[0], holders[k])), None)
        if choose(name, self.integers, labels, differs) == "max" and differs is not None:
            _write_largest(name, holders, writer)
            return False
        columns.add(holders[0][1].nbytes, *target, RAW, 0, 1.0)
        for member, source, entry in zip(self.members, sources, entries, strict=True):
            if member is holders[0][0] and entry is not None:
                source.add(*member.place(entry), RAW, 1.0)
            else:
                source.add_absent()
        return True

    def _translate(self, error: Any, writer: CheckpointWriter) -> SoupError:
        text, _, _, _, code = error.args
        return read_error(error, self.members) or output_error(OSError(code, text), writer.output, writer.nbytes)


def run_staged(
    plan: Any,
    budget: int,
    threads: int,
    inputs: int,
    *,
    device: int,
    stream: int = 0,
    progress: Callable[[int], object] | None = None,
    again: bool = False,
) -> tuple[tuple[int, int], list[int]]:
    """A plan on a CUDA device, within ``budget`` bytes of pinned memory: see :func:`pysoup._native.run_staged`.

    Returns the threads and the bytes of buffers that were used, and the rows that are not finite.
    """
    check_budget(budget, plan.staged_memory)
    cold = cold_buffers(plan, budget, threads, inputs, again=again)
    threads = threads if cold is None else cold[0]
    flagged = _native.run_staged(
        plan,
        device=device,
        stream=stream,
        threads=threads,
        memory=budget,
        progress=progress,
        direct=cold is not None,
    )
    return (plan.staged_threads, plan.staged_buffers), flagged


def check_scratch(nbytes: int) -> None:
    """Raises where the system's temporary directory has no room for ``nbytes`` bytes of unpacked tensors."""
    if not nbytes:
        return
    import tempfile  # slow to load, and seldom needed

    try:
        directory = Path(tempfile.gettempdir())
    except OSError as error:
        raise OutputError("no temporary directory for unpacked tensors", found=error.strerror) from None
    free = free_bytes(directory)
    if free < nbytes:
        what = "not enough disk space for unpacked tensors"
        raise OutputError(what, file=directory, found=f"{free} bytes free", expected=f"{nbytes} bytes")


def run_streamed_dots(
    plan: Any,
    budget: int,
    threads: int,
    inputs: int,
    *,
    progress: Callable[[int], object] | None = None,
    again: bool = False,
) -> array[float]:
    """Inner products of sources in files within ``budget`` bytes: see :func:`pysoup._native.run_streamed_dots`.

    ``again``: whether the files are read again soon, as in :func:`pysoup.buffers.cold_buffers`.
    """
    budget = max(0, budget - max(0, plan.memory_for_sums - _FREE_SUMS))
    check_budget(budget, plan.minimum_buffer)
    cold = cold_buffers(plan, budget, threads, inputs, again=again)
    threads, buffer_bytes = cold or fit_buffers(budget, threads, plan.minimum_buffer, inputs)
    return _native.run_streamed_dots(
        plan, threads=threads, buffer_bytes=buffer_bytes, progress=progress, direct=cold is not None
    )


def read_error(error: Any, members: Sequence[Member]) -> CheckpointError | None:
    """The native module's failed read with file and tensor named; None if it was not one of these members."""
    text, _, fd, offset, _ = error.args
    for member in members:
        blamed = member.blame(fd, offset)
        if blamed is not None:
            return CheckpointError("cannot be read", file=blamed[0], tensor=blamed[1], found=f"{text} at byte {offset}")
    return None


def _chunks(nbytes: int) -> list[tuple[int, int]]:
    return [(start, min(_COMPARE_BYTES, nbytes - start)) for start in range(0, nbytes, _COMPARE_BYTES)]


def _equal(one: tuple[Member, TensorEntry], other: tuple[Member, TensorEntry]) -> bool:
    (a, first), (b, second) = one, other
    return all(a.read(first, *chunk) == b.read(second, *chunk) for chunk in _chunks(first.nbytes))


# Array codes by kind and size. Array types have at least these sizes on every platform pysoup is built for.
_ARRAY_CODES = {
    ("I", 1): "b",
    ("I", 2): "h",
    ("I", 4): "i",
    ("I", 8): "q",
    ("U", 1): "B",
    ("U", 2): "H",
    ("U", 4): "I",
    ("U", 8): "Q",
}


def _write_largest(name: str, holders: Sequence[tuple[Member, TensorEntry]], writer: CheckpointWriter) -> None:
    """Piece by piece and one input after the other, so that two pieces are in memory, however many inputs."""
    dtype = holders[0][1].dtype
    code = _ARRAY_CODES["U" if dtype.kind == "bool" else dtype.name[0], dtype.itemsize]
    for start, size in _chunks(holders[0][1].nbytes):
        largest: array[int] | None = None
        for member, entry in holders:
            values = array(code, bytes(member.read(entry, start, size)))
            largest = values if largest is None else array(code, map(max, largest, values))
        assert largest is not None
        writer.write_bytes(name, largest.tobytes(), start)
