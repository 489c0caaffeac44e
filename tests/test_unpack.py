"""Deflated and strided tensors become the plain bytes that torch and zlib say they are, in bounded memory and calls."""

from __future__ import annotations

import errno
import math
import os
import random
import signal
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pysoup import dtypes
from pysoup.checkpoint.checkpoint import TensorEntry
from pysoup.checkpoint.contents import Deflated, Form, Strided
from pysoup.checkpoint.unpack import Unpacked, unpacked_bytes
from pysoup.errors import CheckpointError, OutputError

BASE = 7
"""Where tensors begin in the files here: nothing may rely on alignment."""
TYPES = [dtypes.BOOL, dtypes.BF16, dtypes.F32, dtypes.F64, dtypes.C128]


def noise(count: int) -> bytes:
    return random.Random(count).randbytes(count)


def strided_entry(dtype: dtypes.DType, shape: Sequence[int], strides: Sequence[int], name: str = "w") -> TensorEntry:
    span = 0 if 0 in shape else (1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))) * dtype.itemsize
    nbytes = math.prod(shape) * dtype.itemsize
    return TensorEntry(name, dtype, tuple(shape), 0, BASE, nbytes, Strided(tuple(strides), span))


def as_torch(data: bytes, entry: TensorEntry, strides: Sequence[int]) -> bytes:
    """What torch makes of the elements in ``data``: the oracle."""
    if not entry.nbytes:
        return b""
    # As integers, or pairs of them: the values of bits do not matter.
    width = min(entry.dtype.itemsize, 8)
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[width]
    flat = torch.frombuffer(bytearray(data[: len(data) // width * width]), dtype=kind)
    pair = entry.dtype.itemsize // width
    shape, steps = (*entry.shape, pair), (*(s * pair for s in strides), 1)
    return torch.as_strided(flat, shape, steps).contiguous().numpy().tobytes()


def deflated(data: bytes, level: int = 6) -> bytes:
    compressor = zlib.compressobj(level, zlib.DEFLATED, -15)
    return compressor.compress(data) + compressor.flush()


def f32_entry(count: int, form: Form | None, name: str = "w") -> TensorEntry:
    return TensorEntry(name, dtypes.F32, (count,), 0, BASE, 4 * count, form)


class File:
    """A file with ``data`` after BASE other bytes, open for reading."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        path.write_bytes(b"\xff" * BASE + data)
        self.fd = os.open(path, os.O_RDONLY)

    def unpack(self, entry: TensorEntry, limit: int = 8 << 20) -> bytes:
        with Unpacked(self.path.parent, limit) as unpacked:
            return self.plain(unpacked, entry)

    def plain(self, unpacked: Unpacked, entry: TensorEntry) -> bytes:
        offset, fd = unpacked.place(self.fd, entry, self.path)
        return os.pread(fd, entry.nbytes, offset)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Callable[[bytes], File]]:
    opened: list[File] = []

    def make(data: bytes) -> File:
        opened.append(File(tmp_path / f"{len(opened)}.bin", data))
        return opened[-1]

    yield make
    for one in opened:
        os.close(one.fd)


@pytest.fixture(scope="module")
def noise_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[File, bytes]]:
    data = noise(1 << 18)
    one = File(tmp_path_factory.mktemp("noise") / "noise.bin", data)
    yield one, data
    os.close(one.fd)


layouts = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 40)), max_size=4)


@given(st.sampled_from(TYPES), layouts, st.sampled_from([1, 40, 300, 4000, 1 << 20]))
@settings(max_examples=250)
def test_strided_tensor_is_what_torch_makes_of_it(
    noise_file: tuple[File, bytes], dtype: dtypes.DType, layout: list[tuple[int, int]], limit: int
) -> None:
    one, data = noise_file
    shape, strides = [n for n, _ in layout], [s for _, s in layout]
    entry = strided_entry(dtype, shape, strides)
    assert one.unpack(entry, limit) == as_torch(data, entry, strides)


@given(
    st.permutations([3, 5, 8, 130]),
    st.permutations(range(4)),
    st.sampled_from([64, 1000, 9000, 100_000]),
    st.integers(0, 2),
)
@settings(max_examples=60)
def test_permuted_and_sliced_tensor_is_what_torch_makes_of_it(
    noise_file: tuple[File, bytes], sizes: list[int], order: list[int], limit: int, drop: int
) -> None:
    one, data = noise_file
    dense = torch.empty(sizes, device="meta").permute(order)[..., drop:]
    entry = strided_entry(dtypes.F32, dense.shape, dense.stride())
    assert one.unpack(entry, limit) == as_torch(data, entry, dense.stride())


@pytest.mark.parametrize("gap", [100, 5_000, 30_000])
def test_distant_elements_are_gathered(gap: int, file: Callable[[bytes], File]) -> None:
    data = noise(4 * (6 * gap + 9))
    shape, strides = (7, 2, 3), (gap, 3, 1)
    entry = strided_entry(dtypes.F32, shape, strides)
    for limit in (8, 100, 50_000, 1 << 20):
        assert file(data).unpack(entry, limit) == as_torch(data, entry, strides)


class Calls:
    """Counts reads and writes of the module under test, and the most bytes of one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = self.most = 0
        preadv, pwrite = os.preadv, os.pwrite

        def counted_preadv(fd: int, views: Any, offset: int) -> int:
            self.add(sum(map(len, views)))
            return preadv(fd, views, offset)

        def counted_pwrite(fd: int, view: Any, offset: int) -> int:
            self.add(len(view))
            return pwrite(fd, view, offset)

        monkeypatch.setattr(os, "preadv", counted_preadv)
        monkeypatch.setattr(os, "pwrite", counted_pwrite)

    def add(self, size: int) -> None:
        self.count += 1
        self.most = max(self.most, size)


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((1536, 2048), (1, 1536)),  # transposed
        ((50_000, 64), (1, 50_000)),  # transposed, rows short
        ((64, 50_000), (1, 64)),  # transposed, rows long
        ((2_000_000,), (2,)),  # every second one
        ((1000, 3000), (6000, 2)),  # a slice of both
        ((300, 10_000), (0, 1)),  # expanded
        ((100, 200, 150), (1, 15_000, 100)),  # permuted
    ],
)
def test_strided_tensor_larger_than_the_limit_moves_in_large_pieces(
    shape: tuple[int, ...], strides: tuple[int, ...], file: Callable[[bytes], File], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 1 << 18
    entry = strided_entry(dtypes.F32, shape, strides)
    assert isinstance(entry.form, Strided)
    data = noise(entry.form.span)
    one = file(data)
    calls = Calls(monkeypatch)
    assert one.unpack(entry, limit) == as_torch(data, entry, strides)
    assert calls.most <= limit
    # Square pieces of a tile of `limit` bytes: half a kilobyte and more each way; single elements would be a million.
    assert calls.count <= 2 * max(entry.nbytes, entry.form.span) // 500


@pytest.mark.parametrize("kind", ["strided", "deflated", "both"])
def test_unpacking_stays_within_bounded_memory(kind: str, file: Callable[[bytes], File]) -> None:
    limit, rows, columns = 1 << 16, 1024, 2048
    data = noise(4 * rows * columns)
    strides = None if kind == "deflated" else (1, rows)
    stream = deflated(data, 0)
    form: Form = Deflated(len(stream), 0, strides)
    if strides and kind == "strided":
        form = Strided(strides, len(data))
    one = file(data if kind == "strided" else stream)
    entry = TensorEntry("w", dtypes.F32, (rows, columns), 0, BASE, len(data), form)
    with Unpacked(one.path.parent, limit) as unpacked:
        tracemalloc.start()
        unpacked.place(one.fd, entry, one.path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * limit + (128 << 10)
        found = one.plain(unpacked, entry)
    assert found == (data if strides is None else as_torch(data, entry, strides))


@pytest.mark.parametrize("skip", [0, 128])
@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("limit", [1, 100, 8 << 20])
@pytest.mark.parametrize("data", [b"", noise(4000), bytes(40_000), b"ab" * 2000], ids=["empty", "noise", "0", "ab"])
def test_deflated_tensor_is_inflated(
    data: bytes, limit: int, level: int, skip: int, file: Callable[[bytes], File]
) -> None:
    if limit == 1:
        data = data[:400]
    whole = noise(skip) + data
    stream = deflated(whole, level)
    form = Deflated(len(stream), skip, crc=zlib.crc32(whole))
    # What follows in the file is none of the stream's business.
    assert file(stream + b"more").unpack(f32_entry(len(data) // 4, form), limit) == data


def test_deflated_tensor_of_many_pieces_is_inflated(file: Callable[[bytes], File]) -> None:
    data = noise(1_500_000) + bytes(5_000_000)
    stream = deflated(data)
    assert file(stream).unpack(f32_entry(len(data) // 4, Deflated(len(stream), 0))) == data


DATA = noise(400)
STREAM = deflated(DATA)
DAMAGED = {
    "ends early": (STREAM[:-9], len(STREAM) - 9, "end early|damaged"),
    "no data": (b"", 0, "end early"),
    "too few bytes": (deflated(DATA[:-4]), None, "end early: found 396 bytes, expected 400 bytes"),
    "one byte more": (deflated(DATA + b"x"), None, "go on after the tensor: found more than 400 bytes"),
    "a bomb": (deflated(bytes(10**7)), None, "go on after the tensor"),
    "bytes after it": (STREAM + b"abc", None, "3 bytes after the end"),
    "not deflate": (b"\xff" * 50, None, "damaged"),
    "beyond the file": (STREAM, len(STREAM) + 5, "file ends early|5 bytes after"),
}


@pytest.mark.parametrize(("stream", "size", "what"), DAMAGED.values(), ids=DAMAGED.keys())
@pytest.mark.parametrize("limit", [64, 8 << 20])
def test_damaged_stream_is_refused_by_name(
    stream: bytes, size: int | None, what: str, limit: int, file: Callable[[bytes], File]
) -> None:
    entry = f32_entry(100, Deflated(len(stream) if size is None else size, 0))
    with pytest.raises(CheckpointError, match=rf"0\.bin: tensor 'w': .*({what})"):
        file(stream).unpack(entry, limit)


def test_stream_cut_anywhere_is_refused(file: Callable[[bytes], File]) -> None:
    for level, data in ((0, DATA[:40]), (9, b"abcd" * 100)):
        stream = deflated(data, level)
        one = file(stream)
        for size in range(len(stream)):
            with pytest.raises(CheckpointError, match="end early"):
                one.unpack(f32_entry(len(data) // 4, Deflated(size, 0)))


def test_wrong_checksum_is_found(file: Callable[[bytes], File]) -> None:
    one = file(STREAM)
    assert one.unpack(f32_entry(100, Deflated(len(STREAM), 0, crc=zlib.crc32(DATA)))) == DATA
    with pytest.raises(CheckpointError, match="tensor 'w': data are damaged: wrong checksum"):
        one.unpack(f32_entry(100, Deflated(len(STREAM), 0, crc=1)))


def test_strided_tensor_beyond_the_end_is_refused_by_name(file: Callable[[bytes], File]) -> None:
    one = file(noise(400))
    for limit in (16, 8 << 20):
        with pytest.raises(CheckpointError, match=r"0\.bin: tensor 'w': file ends early, at byte 407"):
            one.unpack(strided_entry(dtypes.F32, (10, 11), (1, 10)), limit)


@pytest.mark.parametrize("limit", [64, 8 << 20])
def test_deflated_and_strided_tensors_share_one_file(limit: int, file: Callable[[bytes], File]) -> None:
    shape, strides = (12, 30), (1, 12)
    datas = [noise(4 * 360 + k)[k:] for k in range(5)]
    with_gap = [*datas[:4], noise(4 * (11 + 29 * 20 + 1))]
    stored = [strides, strides, strides, strides, (1, 20)]
    streams = [deflated(noise(9) + data) for data in with_gap]
    files = [file(stream) for stream in streams]
    entries = [
        TensorEntry(f"t{k}", dtypes.F32, shape, 0, BASE, 1440, Deflated(len(stream), 9, stored[k]))
        for k, stream in enumerate(streams)
    ]
    with Unpacked(files[0].path.parent, limit) as unpacked:
        placed = [unpacked.place(f.fd, e, f.path) for f, e in zip(files, entries, strict=True)]
        assert placed == [unpacked.place(f.fd, e, f.path) for f, e in zip(files, entries, strict=True)]
        assert all(offset % 64 == 0 for offset, _ in placed)
        assert len({fd for _, fd in placed}) == 1
        for one, entry, data in zip(files, entries, with_gap, strict=True):
            form = entry.form
            assert isinstance(form, Deflated)
            assert form.strides is not None
            assert one.plain(unpacked, entry) == as_torch(data, entry, form.strides)
        assert os.fstat(placed[0][1]).st_size <= unpacked_bytes(entries)


def test_unpacked_bytes_is_what_the_disk_must_give(file: Callable[[bytes], File]) -> None:
    plain = f32_entry(1000, None)
    strided = strided_entry(dtypes.F32, (3, 5), (1, 3))
    both = TensorEntry("b", dtypes.F32, (3, 5), 0, BASE, 60, Deflated(9, 0, (1, 4)))
    assert unpacked_bytes([]) == unpacked_bytes([plain]) == 0
    assert unpacked_bytes([plain, strided]) == 64
    assert unpacked_bytes([both, strided, both]) == 3 * 64 + (2 + 4 * 4 + 1) * 4


def test_plain_tensor_stays_where_it_is(file: Callable[[bytes], File], tmp_path: Path) -> None:
    one = file(DATA)
    with Unpacked(tmp_path / "missing") as unpacked:
        assert unpacked.place(one.fd, f32_entry(100, None), one.path) == (BASE, one.fd)


def test_temporary_file_has_no_name_and_goes_with_close(file: Callable[[bytes], File], tmp_path: Path) -> None:
    one = file(STREAM)
    entry = f32_entry(100, Deflated(len(STREAM), 0))
    place = tmp_path / "scratch"
    place.mkdir()
    unpacked = Unpacked(place)
    _, fd = unpacked.place(one.fd, entry, one.path)
    assert list(place.iterdir()) == []
    assert os.fstat(fd).st_nlink == 0
    unpacked.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    unpacked.close()


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (errno.ENOSPC, r"disk is full: found \d+ bytes free"),
        (errno.EDQUOT, "disk quota exceeded"),
        (errno.EIO, "cannot be written: input/output error"),
    ],
)
def test_disk_that_takes_no_more_is_one_line(
    code: int, what: str, file: Callable[[bytes], File], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, view: Any, offset: int) -> int:
        raise OSError(code, os.strerror(code))

    one = file(STREAM)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match=f"{one.path.parent}: temporary file for unpacked tensors: {what}"):
        one.unpack(f32_entry(100, Deflated(len(STREAM), 0)))


def test_directory_that_is_missing_is_one_line(file: Callable[[bytes], File], tmp_path: Path) -> None:
    one = file(STREAM)
    with (
        Unpacked(tmp_path / "missing") as unpacked,
        pytest.raises(OutputError, match="missing: temporary file for unpacked tensors: cannot be written: no such"),
    ):
        unpacked.place(one.fd, f32_entry(100, Deflated(len(STREAM), 0)), one.path)


def zeros_stream(mebibytes: int) -> bytes:
    """A deflate stream of zeros made without compressing them all."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    one = compressor.compress(bytes(1 << 20)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return one * mebibytes + deflated(b"")


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["deflated", "strided"])
def test_interrupt_takes_effect_at_once_and_the_tensor_can_be_had_again(
    kind: str, file: Callable[[bytes], File], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 64 GiB, so that only the interrupt can end it; nothing of it is written.
    mebibytes = 1 << 16
    if kind == "deflated":
        stream = zeros_stream(mebibytes)
        one = file(stream)
        entry = f32_entry(mebibytes << 18, Deflated(len(stream), 0))
    else:
        one = file(bytes(1 << 20))
        entry = strided_entry(dtypes.F32, (512, mebibytes << 9), (512, 0))
    with Unpacked(one.path.parent) as unpacked, monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda fd, view, offset: len(view))
        previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
        begin = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            with pytest.raises(KeyboardInterrupt):
                unpacked.place(one.fd, entry, one.path)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        assert time.monotonic() - begin < 1.1
        patch.undo()
        small = strided_entry(dtypes.F32, (2, 3), (1, 2))
        assert len(one.plain(unpacked, small)) == 24
