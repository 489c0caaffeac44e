"""The columns of a native plan: what is summed from where to where. Integers only, so torch is not needed here.

One row a segment. Sources are source-major: cell ``k * segments + s`` is source k of segment s. A place is an address
(``fd`` -1) in the memory of the CPU or the GPU that runs the plan, one in the host's memory (``fd`` -3), an offset in
an open file (``fd`` >= 0), or absent (``fd`` -2: that source takes no part in the segment).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import _native
from .dtypes import DType

MEMORY = -1
ABSENT = -2
HOST = -3
ACC_F32 = 0
ACC_F64 = 1
RAW = 255


def accumulator(inputs: Iterable[DType], output: DType) -> int:
    """f32 if every input and the output has 16 bits or fewer, f64 otherwise: one rule, per tensor."""
    return ACC_F32 if output.itemsize <= 2 and all(d.itemsize <= 2 for d in inputs) else ACC_F64


@dataclass
class SourceColumn:
    """One ingredient: a place, an element code and a factor for each segment."""

    at: array[int] = field(default_factory=lambda: array("Q"))
    fd: array[int] = field(default_factory=lambda: array("i"))
    dtype: bytearray = field(default_factory=bytearray)
    factor: array[float] = field(default_factory=lambda: array("d"))

    def add(self, at: int, fd: int, dtype: int, factor: float) -> None:
        self.at.append(at)
        self.fd.append(fd)
        self.dtype.append(dtype)
        self.factor.append(factor)

    def add_absent(self) -> None:
        self.add(0, ABSENT, 0, 0.0)

    def only(self, rows: Sequence[int]) -> SourceColumn:
        """Some of the segments, in the order of ``rows``."""
        result = SourceColumn()
        for row in rows:
            result.add(self.at[row], self.fd[row], self.dtype[row], self.factor[row])
        return result

    @classmethod
    def joined(cls, sources: Sequence[SourceColumn]) -> SourceColumn:
        """All cells of a plan, one source after the other."""
        cells = cls()
        for source in sources:
            cells.at.extend(source.at)
            cells.fd.extend(source.fd)
            cells.dtype.extend(source.dtype)
            cells.factor.extend(source.factor)
        return cells

    @classmethod
    def in_memory(cls, addresses: Sequence[int], dtypes: bytes, factor: float) -> SourceColumn:
        """A whole ingredient at once, all of it in memory."""
        n = len(addresses)
        return cls(array("Q", addresses), array("i", [MEMORY]) * n, bytearray(dtypes), array("d", [factor]) * n)


@dataclass
class Columns:
    """All segments of one call. ``n`` counts elements, ``divisor`` divides the sum once, before the one rounding."""

    n: array[int] = field(default_factory=lambda: array("Q"))
    dst_at: array[int] = field(default_factory=lambda: array("Q"))
    dst_fd: array[int] = field(default_factory=lambda: array("i"))
    dst_dtype: bytearray = field(default_factory=bytearray)
    accumulator: bytearray = field(default_factory=bytearray)
    divisor: array[float] = field(default_factory=lambda: array("d"))

    def add(self, n: int, at: int, fd: int, dtype: int, acc: int, divisor: float) -> None:
        self.n.append(n)
        self.dst_at.append(at)
        self.dst_fd.append(fd)
        self.dst_dtype.append(dtype)
        self.accumulator.append(acc)
        self.divisor.append(divisor)

    @classmethod
    def in_memory(
        cls, n: Sequence[int], addresses: Sequence[int], dtypes: bytes, accumulators: bytes, divisor: float
    ) -> Columns:
        """Destinations that are all in memory and share one divisor."""
        count = len(n)
        return cls(
            array("Q", n),
            array("Q", addresses),
            array("i", [MEMORY]) * count,
            bytearray(dtypes),
            bytearray(accumulators),
            array("d", [divisor]) * count,
        )

    def plan(self, sources: Sequence[SourceColumn]) -> Any:
        """The native plan. The caller keeps memory and files alive as long as it is run."""
        return self.plan_of(SourceColumn.joined(sources))

    def plan_of(self, cells: SourceColumn) -> Any:
        """:meth:`plan`, of sources that are :meth:`SourceColumn.joined` already."""
        native = _native.load()
        return native.Plan(
            n=self.n,
            dst_at=self.dst_at,
            dst_fd=self.dst_fd,
            dst_dtype=self.dst_dtype,
            accumulator=self.accumulator,
            divisor=self.divisor,
            src_at=cells.at,
            src_fd=cells.fd,
            src_dtype=cells.dtype,
            weights=cells.factor,
        )
