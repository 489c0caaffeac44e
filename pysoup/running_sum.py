"""The sums of a running average, in the accumulators' types: on a device, in host memory or in a file, where they fit.

Where they are changes no bit: the same native loop reads and writes them at each of these places. In a file it does so
by position: a chunk of the sum is read whole before the same bytes are written, and no other chunk has any of them, so
that a sum is its own source and destination. A page that is mapped for reading is the page cache's own, and shows what
was written; nothing of the file is read past the page cache.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from . import _native, ops
from .buffers import available_memory
from .checkpoint.output.preflight import free_bytes, output_error
from .checkpoint.output.writing import reserve
from .columns import ACC_F32, ACC_F64, HOST, MEMORY, Columns, SourceColumn
from .dtypes import F32, F64
from .errors import OutputError, SoupError

SMALL = 2
"""The second f64 sum, which is kept smaller by :data:`SMALL_SCALE`; the other sums go by their accumulator's code."""
# f64 inputs can overflow f64 itself; for them the second sum is used, and only where it matters.
SMALL_SCALE = 2.0**-64

_DTYPES = {ACC_F32: torch.float32, ACC_F64: torch.float64, SMALL: torch.float64}
_WHAT = "the running sum beyond its memory budget cannot be kept in a temporary file (TMPDIR says where)"


class RunningSum:
    """A flat array for each accumulator, and one more for f64 models.

    All are on ``home`` if that has kernels and they take at most half of what is free there, since activations need
    room beside them; else in host memory up to ``budget`` bytes; else in a file without a name in ``TMPDIR``, whose
    space is reserved first. ``budget`` None is half of the memory that is free when the sum is begun, or all that is
    asked for where there is no room for the file either. ``buffer_bytes`` pass through memory where there is a file.
    """

    def __init__(self, home: ops.Accelerator | None, budget: int | None, threads: int, buffer_bytes: int) -> None:
        self.accelerator: ops.Accelerator | None = None
        """The device that they are on, if they are."""
        self._home = home
        self._budget = budget
        self._threads = threads
        self._buffer_bytes = buffer_bytes
        self._elements: dict[int, int] = {}
        self._arrays: dict[int, Tensor | SumFile] = {}

    @property
    def place(self) -> str:
        """``"memory"``, ``"file"`` or the device's name; nothing before there is a sum."""
        if not self._arrays:
            return ""
        if any(isinstance(values, SumFile) for values in self._arrays.values()):
            return "file"
        return "memory" if self.accelerator is None else str(self.accelerator.device)

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory that they take."""
        tensors = [values for values in self._arrays.values() if isinstance(values, Tensor)]
        return 0 if self.accelerator is not None else sum(values.nbytes for values in tensors)

    def make(self, elements: Mapping[int, int], *, small: bool) -> None:
        """Arrays of so many elements for each accumulator, not initialised; ``small``: with the second f64 sum.

        Those of the last sum are taken again where they are as many. Raises :class:`OutputError` for a full disk.
        """
        wanted = {acc: count for acc, count in elements.items() if count}
        if wanted != self._elements or not self._arrays:
            self._arrays, self._elements = {}, {}  # first of all: there may not be room for both
            self.accelerator = None
            parts = wanted | ({SMALL: wanted[ACC_F64]} if small and ACC_F64 in wanted else {})
            self._arrays = self._placed(parts)
            self._elements = wanted
        elif small:
            self._add_small()
        else:
            self._arrays.pop(SMALL, None)

    def begin_small(self) -> None:
        """The second f64 sum, from the first one as it is, which has no f64 model in it: scaling it down is exact."""
        if ACC_F64 not in self._elements:
            return
        self._add_small()
        count = self._elements[ACC_F64]
        target, source = Columns(), SourceColumn()
        at, fd = self._spot(SMALL, self.accelerator)
        target.add(count, at, fd, F64.native, ACC_F64, 1.0)
        source.add(*self._spot(ACC_F64, self.accelerator), F64.native, SMALL_SCALE)
        self._run(target.plan([source]))

    def column(
        self,
        accumulators: Sequence[int],
        offsets: Sequence[int],
        run_on: ops.Accelerator | None,
        f32_factor: float = 1.0,
    ) -> SourceColumn:
        """The places of the slots, which begin at ``offsets`` of the array of their accumulator, for a run there.

        ``f32_factor`` undoes the scale of the f32 sums.
        """
        spots = {acc: self._spot(acc, run_on) for acc in self._elements}
        spots = {ACC_F32: (0, MEMORY), ACC_F64: (0, MEMORY)} | spots  # of slots without elements
        sums = SourceColumn()
        for acc, offset in zip(accumulators, offsets, strict=True):
            at, fd = spots[acc]
            if acc == ACC_F32:
                sums.add(at + 4 * offset, fd, F32.native, f32_factor)
            else:
                sums.add(at + 8 * offset, fd, F64.native, 1.0)
        return sums

    def small_column(
        self, accumulators: Sequence[int], offsets: Sequence[int], run_on: ops.Accelerator | None
    ) -> SourceColumn:
        """The same in the second f64 sum. Slots with an f32 sum cannot overflow and have no place in it."""
        at, fd = self._spot(SMALL, run_on)
        small = SourceColumn()
        for acc, offset in zip(accumulators, offsets, strict=True):
            if acc == ACC_F64:
                small.add(at + 8 * offset, fd, F64.native, 1.0)
            else:
                small.add(0, MEMORY, F32.native, 1.0)
        return small

    def is_apart(self, run_on: ops.Accelerator | None) -> bool:
        """Whether a run on this device has to carry the sums there."""
        return run_on is not None and run_on is not self.accelerator

    @property
    def has_small(self) -> bool:
        """Whether there is the second f64 sum."""
        return SMALL in self._arrays

    def small_values(self, begin: int, count: int) -> Tensor:
        """A part of the second f64 sum, where that is or, of a file, in memory."""
        values = self._arrays[SMALL]
        if isinstance(values, Tensor):
            return values[begin : begin + count]
        part = ops.fresh([count], torch.float64)
        target, source = Columns(), SourceColumn()
        target.add(count, ops.addresses([part])[0], MEMORY, F64.native, ACC_F64, 1.0)
        source.add(8 * begin, values.fd, F64.native, 1.0)
        self._run(target.plan([source]))
        return part

    def blame(self, error: Any) -> OutputError | None:
        """The native module's failed read or write of a file of sums; None if it was another file."""
        text, _, fd, _, code = error.args
        files = [values for values in self._arrays.values() if isinstance(values, SumFile)]
        return next((file.failed(OSError(code, text)) for file in files if file.fd == fd), None)

    def _add_small(self) -> None:
        if SMALL in self._arrays or ACC_F64 not in self._elements:
            return
        count = self._elements[ACC_F64]
        if self.accelerator is not None:
            self._arrays[SMALL] = ops.fresh([count], torch.float64, self.accelerator.device)
        else:
            self._arrays |= self._on_host({SMALL: count}, self.place == "memory", self.host_bytes)

    def _placed(self, parts: Mapping[int, int]) -> dict[int, Tensor | SumFile]:
        """New arrays where there is room for all of them."""
        if self._home is not None and _nbytes(parts) <= self._home.free_bytes() // 2:
            self.accelerator = self._home
            return {acc: ops.fresh([count], _DTYPES[acc], self._home.device) for acc, count in parts.items()}
        return self._on_host(parts, True, 0)

    def _on_host(self, parts: Mapping[int, int], memory_is_allowed: bool, taken: int) -> dict[int, Tensor | SumFile]:
        limit = self._budget
        if limit is None:
            free = available_memory()  # 0: unknown
            limit = (free + taken) // 2 if free else None
        fits = memory_is_allowed and (limit is None or taken + _nbytes(parts) <= limit)
        if not fits:
            try:
                return {acc: SumFile(8 * count if acc != ACC_F32 else 4 * count) for acc, count in parts.items()}
            except OutputError:
                if self._budget is not None:
                    raise
        return {acc: ops.fresh([count], _DTYPES[acc]) for acc, count in parts.items()}

    def _spot(self, acc: int, run_on: ops.Accelerator | None) -> tuple[int, int]:
        """Where an array begins, and of what that is an address, for a run on a device or (None) on the CPU."""
        values = self._arrays[acc]
        if isinstance(values, SumFile):
            return 0, values.fd
        return ops.addresses([values])[0], HOST if self.is_apart(run_on) else MEMORY

    def _run(self, plan: Any) -> None:
        try:
            ops.run_plan(plan, self.accelerator, threads=self._threads, memory=self._buffer_bytes, staged=False)
        except _native.load().NativeError as error:
            raise self.blame(error) or SoupError(str(error.args[0])) from None


class SumFile:
    """So many bytes of a file without a name in ``TMPDIR``: it goes with this object, or with the process."""

    def __init__(self, nbytes: int) -> None:
        self._directory: str | None = None
        self._nbytes = nbytes
        try:
            self._directory = tempfile.gettempdir()
            if free_bytes(Path(self._directory)) < nbytes:
                raise self._full()
            with tempfile.TemporaryFile(prefix="pysoup-", buffering=0) as file:
                reserve(file.fileno(), nbytes)
                self.fd = os.dup(file.fileno())
        except OSError as error:
            raise self.failed(error) from None
        weakref.finalize(self, os.close, self.fd)

    def __reduce__(self) -> NoReturn:
        # A copy would have the number of a descriptor that is another file's in another process, or after a while.
        raise SoupError("a running sum in a temporary file cannot be copied or sent to another process")

    def failed(self, error: OSError) -> OutputError:
        """The one line for an operating system error with the file."""
        line = output_error(error, Path(self._directory or "", "temporary"))
        expected = None if line.found is None else f"{self._nbytes} bytes"
        return OutputError(f"{_WHAT}: {line.what}", file=self._directory, found=line.found, expected=expected)

    def _full(self) -> OutputError:
        directory = Path(self._directory or "")
        found = f"{free_bytes(directory)} bytes free"
        return OutputError(
            f"{_WHAT}: not enough disk space", file=directory, found=found, expected=f"{self._nbytes} bytes"
        )


def offsets_of(accumulators: Sequence[int], elements: Sequence[int]) -> tuple[array[int], dict[int, int]]:
    """Where each slot begins in the array of its accumulator, and how many elements each array has."""
    sizes = {ACC_F32: 0, ACC_F64: 0}
    offsets = array("Q")
    for acc, count in zip(accumulators, elements, strict=True):
        offsets.append(sizes[acc])
        sizes[acc] += count
    return offsets, sizes


def _nbytes(parts: Mapping[int, int]) -> int:
    return sum((4 if acc == ACC_F32 else 8) * count for acc, count in parts.items())
