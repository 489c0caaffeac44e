"""Tensors that are not plain bytes in their file, made so in a temporary file: inflated, put in C order, put together.

What reads tensors then needs one way to do it: so many bytes at an offset of a descriptor. Memory stays bounded
whatever the size of a tensor; the disk holds the plain bytes.
"""

from __future__ import annotations

import math
import os
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from ..errors import CheckpointError, OutputError
from .contents import Deflated, Form, Piece, Pieces, Strided
from .pieces import assemble
from .reading import FileStamp, open_file, read_exactly
from .strict_json import clip
from .strided import copy_in_c_order

if TYPE_CHECKING:
    from .checkpoint import TensorEntry

_ALIGNMENT = 64
_PIECE = 256 << 10
"""Bytes of a deflate stream read at a time."""
_INFLATED = 1 << 20
"""Bytes inflated at a time: between two of these an interrupt is seen."""


class Unpacked:
    """The plain bytes of tensors that have a form, each made at the first call of :meth:`place`.

    Owns one temporary file in ``directory`` (default: the system's), which has no name from the start: nothing is left
    behind, however the process ends. It appears with the first tensor that needs it; :meth:`close` or the end of a
    ``with`` block gives it back. At most ``limit`` bytes are read, and as many written, at a time. Not for several
    threads at once.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, limit: int = 8 << 20) -> None:
        self._directory = None if directory is None else os.fspath(directory)
        self._limit = limit
        self._file: IO[bytes] | None = None
        self._places: dict[tuple[Path, TensorEntry], int] = {}
        self._end = 0

    def __enter__(self) -> Unpacked:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the space back; places handed out before are void."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._places.clear()
        self._end = 0

    def place(self, fd: int, entry: TensorEntry, path: Path) -> tuple[int, int]:
        """Offset and descriptor of the ``entry.nbytes`` plain bytes of a tensor of the open file ``fd`` at ``path``.

        A tensor without a form stays where it is. Raises CheckpointError where its bytes are damaged or end early,
        OutputError where the temporary file cannot be written.
        """
        if entry.form is None:
            return entry.offset, fd
        if self._file is None:
            self._file = self._create()
        if (path, entry) not in self._places:
            self._places[path, entry] = self._unpack(fd, entry, entry.form, path)
        return self._places[path, entry], self._file.fileno()

    def _unpack(self, fd: int, entry: TensorEntry, form: Form, path: Path) -> int:
        begin, end = self._end, self._end + _padded(entry.nbytes)
        if isinstance(form, Strided):
            self._reorder(fd, entry, path, entry.shape, form.strides, entry.offset, begin)
        elif isinstance(form, Pieces):
            self._assemble(entry, form, begin, end)
        elif form.strides is None:
            self._inflate(fd, entry, form, path, begin, entry.nbytes)
        else:
            # Inflated to where the next tensor goes: in order from there, then in the way no longer.
            self._inflate(fd, entry, form, path, end, _stored_bytes(entry, form.strides))
            self._reorder(self._fd(), entry, path, entry.shape, form.strides, end, begin)
            self._truncate(end)
        self._end = end
        return begin

    def _assemble(self, entry: TensorEntry, form: Pieces, begin: int, end: int) -> None:
        """Put the boxes of a tensor together at ``begin`` of the temporary file; behind ``end`` of it there is room."""
        opened: dict[Path, int] = {}
        try:
            for piece in form.boxes:
                if piece.path not in opened:
                    opened[piece.path] = _open_unchanged(piece)
            places = []
            for piece in form.boxes:
                place = opened[piece.path], piece.offset, piece.path
                if piece.strides is not None:
                    self._reorder(place[0], entry, piece.path, piece.sizes, piece.strides, piece.offset, end)
                    place = self._fd(), end, piece.path
                    end += math.prod(piece.sizes) * entry.dtype.itemsize
                places.append(place)

            def read(box: int, view: memoryview, position: int) -> None:
                fd, offset, path = places[box]
                read_exactly(fd, view, offset + position, path, clip(entry.name))

            def write(view: memoryview, position: int) -> None:
                self._write(view, begin + position)

            boxes = [(piece.corner, piece.sizes) for piece in form.boxes]
            assemble(entry.shape, boxes, entry.dtype.itemsize, self._limit, read, write)
        finally:
            for fd in opened.values():
                os.close(fd)
        self._truncate(begin + _padded(entry.nbytes))

    def _reorder(
        self,
        fd: int,
        entry: TensorEntry,
        path: Path,
        shape: Sequence[int],
        strides: Sequence[int],
        offset: int,
        begin: int,
    ) -> None:
        """Put the elements at ``offset`` of ``fd`` in C order, from ``begin`` of the temporary file on."""

        def read(view: memoryview, position: int) -> None:
            read_exactly(fd, view, offset + position, path, clip(entry.name))

        def write(view: memoryview, position: int) -> None:
            self._write(view, begin + position)

        copy_in_c_order(shape, strides, entry.dtype.itemsize, self._limit, read, write)

    def _inflate(self, fd: int, entry: TensorEntry, form: Deflated, path: Path, begin: int, nbytes: int) -> None:
        """Put the ``nbytes`` bytes of a deflated tensor at ``begin`` of the temporary file."""
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        # Halves, as zlib keeps copies of what goes in and what comes out.
        half = max(1, self._limit // 2)
        buffer = memoryview(bytearray(max(1, min(_PIECE, form.size, half))))
        whole = form.skip + nbytes
        taken = done = crc = 0
        pending: bytes | memoryview = b""
        while not inflater.eof:
            if not pending and taken < form.size:
                pending = buffer[: min(len(buffer), form.size - taken)]
                read_exactly(fd, pending, entry.offset + taken, path, clip(entry.name))
                taken += len(pending)
            try:
                # One byte more than there may be tells a stream that goes on.
                output = inflater.decompress(pending, min(_INFLATED, half, whole + 1 - done))
            except zlib.error:
                raise _damaged("compressed data are damaged", entry, path) from None
            pending = inflater.unconsumed_tail
            if not output and not pending and taken == form.size and not inflater.eof:
                raise _damaged("compressed data end early", entry, path, f"{done} bytes", f"{whole} bytes")
            if done + len(output) > whole:
                what = "compressed data go on after the tensor"
                raise _damaged(what, entry, path, f"more than {whole} bytes", f"{whole} bytes")
            crc = zlib.crc32(output, crc)
            plain = memoryview(output)[max(0, form.skip - done) :]
            self._write(plain, begin + max(0, done - form.skip))
            done += len(output)
        unused = len(inflater.unused_data) + form.size - taken
        if done < whole:
            raise _damaged("compressed data end early", entry, path, f"{done} bytes", f"{whole} bytes")
        if unused:
            raise _damaged(f"{unused} bytes after the end of the compressed data belong to nothing", entry, path)
        if form.crc is not None and form.crc != crc:
            raise _damaged("data are damaged: wrong checksum", entry, path, f"{crc:#010x}", f"{form.crc:#010x}")

    def _fd(self) -> int:
        assert self._file is not None
        return self._file.fileno()

    def _create(self) -> IO[bytes]:
        try:
            self._directory = self._directory or tempfile.gettempdir()
            return tempfile.TemporaryFile(dir=self._directory, buffering=0)
        except OSError as error:
            raise self._failure(error) from None

    def _write(self, view: memoryview, offset: int) -> None:
        done = 0
        try:
            while done < len(view):
                done += os.pwrite(self._fd(), view[done:], offset + done)
        except OSError as error:
            raise self._failure(error) from None

    def _truncate(self, size: int) -> None:
        try:
            os.ftruncate(self._fd(), size)
        except OSError as error:
            raise self._failure(error) from None

    def _failure(self, error: OSError) -> OutputError:
        # Above: that module knows checkpoints, which know this one.
        from .output.preflight import output_error

        line = output_error(error, Path(self._directory or "", "temporary"))
        return OutputError(f"temporary file for unpacked tensors: {line.what}", file=self._directory, found=line.found)


def unpacked_bytes(entries: Iterable[TensorEntry]) -> int:
    """The most bytes that unpacking all of ``entries`` takes on the disk."""
    kept = passing = 0
    for entry in entries:
        if entry.form is None:
            continue
        kept += _padded(entry.nbytes)
        if isinstance(entry.form, Deflated) and entry.form.strides is not None:
            passing = max(passing, _stored_bytes(entry, entry.form.strides))
        elif isinstance(entry.form, Pieces) and any(piece.strides is not None for piece in entry.form.boxes):
            passing = max(passing, entry.nbytes)
    return kept + passing


def _open_unchanged(piece: Piece) -> int:
    """A descriptor of the piece's file, if it is the one whose headers were checked."""
    fd = open_file(piece.path)
    if FileStamp.of(os.fstat(fd)) != piece.stamp:
        os.close(fd)
        raise CheckpointError("file changed since its header was checked", file=piece.path)
    return fd


def _stored_bytes(entry: TensorEntry, strides: Sequence[int]) -> int:
    """From the first to the last element of a tensor as it is stored."""
    if math.prod(entry.shape) == 0:
        return 0
    last = sum((n - 1) * stride for n, stride in zip(entry.shape, strides, strict=True))
    return (last + 1) * entry.dtype.itemsize


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _damaged(
    what: str, entry: TensorEntry, path: Path, found: object = None, expected: object = None
) -> CheckpointError:
    return CheckpointError(what, file=path, tensor=clip(entry.name), found=found, expected=expected)
