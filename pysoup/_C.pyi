"""Typed signatures of the native module (csrc/bindings.cpp). Columns are one-dimensional contiguous buffers."""

from collections.abc import Callable, Sequence
from typing import Any

from typing_extensions import Buffer

compiler: str
build_type: str

class NativeError(Exception):
    """args: (message, kind, fd, offset, errno)."""

class Plan:
    def __init__(
        self,
        n: Buffer,
        dst_at: Buffer,
        dst_fd: Buffer,
        dst_dtype: Buffer,
        accumulator: Buffer,
        divisor: Buffer,
        src_at: Buffer,
        src_fd: Buffer,
        src_dtype: Buffer,
        weights: Buffer,
    ) -> None: ...
    @property
    def bytes(self) -> int: ...
    @property
    def minimum_buffer(self) -> int: ...
    @property
    def segments(self) -> int: ...
    @property
    def nonfinite(self) -> list[int]: ...
    def find_overlap(self) -> tuple[int, int]: ...
    def run(
        self,
        isa: str,
        threads: int,
        buffer_bytes: int = 0,
        progress: Callable[[int], object] | None = None,
        direct: bool = False,
    ) -> None: ...
    def absent_share(self) -> float: ...
    def run_staged(
        self,
        device: int,
        stream: int,
        threads: int,
        memory: int,
        progress: Callable[[int], object] | None = None,
        direct: bool = False,
        timeline: bool = False,
    ) -> None: ...
    @property
    def staged_memory(self) -> int: ...
    @property
    def staged_threads(self) -> int: ...
    @property
    def staged_buffers(self) -> int: ...
    @property
    def timeline(self) -> list[dict[str, Any]]: ...

class SumTable:
    """A plan of memory alone, packed for a device."""

    def __init__(self, plan: Plan) -> None: ...
    @property
    def bytes(self) -> int: ...
    @property
    def rows(self) -> int: ...
    def write(self, address: int) -> None: ...
    def run(self, device: int, stream: int, table: int, nonfinite: int = 0) -> None: ...

def device_build() -> dict[str, Any]: ...
def device_count() -> int: ...
def device_why_none() -> str: ...
def device_properties(device: int) -> dict[str, Any]: ...
def device_copy(device: int, stream: int, dst: int, src: int, nbytes: int) -> None: ...
def device_synchronize(device: int, stream: int) -> None: ...

class Dots:
    def __init__(
        self,
        n: Buffer,
        gradient_at: Buffer,
        gradient_dtype: Buffer,
        count: int,
        src_at: Buffer,
        src_dtype: Buffer,
    ) -> None: ...
    @property
    def bytes(self) -> int: ...
    @property
    def scratch(self) -> int: ...
    @property
    def table_bytes(self) -> int: ...
    def run(self, isa: str, threads: int, out: int) -> None: ...
    def write_table(self, address: int) -> None: ...
    def run_on_device(self, device: int, stream: int, table: int, scratch: int, out: int) -> None: ...

def strided_copy(
    dst: Buffer,
    dst_offset_bytes: int,
    dst_strides: Sequence[int],
    src: Buffer,
    src_offset_bytes: int,
    src_strides: Sequence[int],
    shape: Sequence[int],
    itemsize: int,
) -> None: ...
def score_logits(
    isa: str,
    threads: int,
    logits: int,
    dtype: int,
    shape: Sequence[int],
    strides: Sequence[int],
    base: int,
    base_dtype: int,
    base_stride: int,
    weight: float,
    scale: float,
    labels: int,
    ignore: int | None,
    k: Sequence[int],
    outputs: Sequence[int],
    totals: Sequence[int],
) -> None: ...
def device_logit_scratch(shape: Sequence[int]) -> int: ...
def device_score_logits(
    device: int,
    stream: int,
    logits: int,
    dtype: int,
    shape: Sequence[int],
    strides: Sequence[int],
    base: int,
    base_dtype: int,
    base_stride: int,
    weight: float,
    scale: float,
    labels: int,
    ignore: int | None,
    k: Sequence[int],
    outputs: Sequence[int],
    totals: Sequence[int],
    bad_row: int,
    scratch: int,
) -> None: ...
def available_isas() -> list[str]: ...
def check_isa(isa: str) -> str: ...
def probe_streams(sources: Sequence[int], dst: int, nbytes: int, threads: int) -> float: ...
def measure_bandwidth(nbytes: int, threads: int) -> dict[str, float]: ...
def advise_huge_pages(address: int, nbytes: int) -> None: ...
