"""Typed signatures of the native module (csrc/bindings.cpp). Columns are one-dimensional contiguous buffers."""

from collections.abc import Callable, Sequence

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
def available_isas() -> list[str]: ...
def check_isa(isa: str) -> str: ...
def probe_streams(sources: Sequence[int], dst: int, nbytes: int, threads: int) -> float: ...
def measure_bandwidth(nbytes: int, threads: int) -> dict[str, float]: ...
def advise_huge_pages(address: int, nbytes: int) -> None: ...
