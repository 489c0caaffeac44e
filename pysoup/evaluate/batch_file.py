"""Tensors in a temporary file without a name, mapped into memory: what a held-out set beyond its budget is kept in."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from ..errors import OutputError, SoupError

_ALIGNMENT = 64
# In Python's mmap from 3.13 on; this is Linux's number on x86 and ARM.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


@dataclass(frozen=True)
class Slot:
    """A tensor in the file; stands in its batch for it."""

    offset: int
    dtype: torch.dtype
    shape: torch.Size

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


class BatchFile:
    """Grows by :meth:`write`; :meth:`opened` gives the tensors back as views of one mapping.

    The file is in ``tempfile.gettempdir()`` (``TMPDIR``) and has no name, so it goes with the process, however that
    ends. A mapping is private: what is written into its tensors never reaches the file.
    """

    def __init__(self) -> None:
        self._directory: str | None = None
        try:
            self._directory = tempfile.gettempdir()
            with tempfile.TemporaryFile(prefix="pysoup-", buffering=0) as file:
                self._fd = os.dup(file.fileno())
        except OSError as error:
            raise self._failed(error) from None
        weakref.finalize(self, os.close, self._fd)
        self._size = 0

    def __reduce__(self) -> NoReturn:
        # A copy would have the number of a descriptor that is another file's in another process, or after a while.
        raise SoupError("held-out batches in a temporary file cannot be copied or sent to another process")

    def write(self, tensor: Tensor) -> Slot:
        """Append a plain tensor of at least one element. Raises :class:`OutputError` where there is no room."""
        data = tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous()
        bytes_left = memoryview(data.view(-1).view(torch.uint8).numpy().data)
        slot = Slot(self._size, data.dtype, data.shape)
        offset = self._size
        try:
            while bytes_left:
                count = os.pwrite(self._fd, bytes_left, offset)
                offset, bytes_left = offset + count, bytes_left[count:]
        except OSError as error:
            raise self._failed(error) from None
        self._size = -(-offset // _ALIGNMENT) * _ALIGNMENT
        return slot

    def opened(self) -> Callable[[Slot], Tensor]:
        """A new mapping of the file as it is now, as a function from slots to tensors; it lasts as long as they do."""
        os.ftruncate(self._fd, max(self._size, 1))  # an empty file cannot be mapped
        # Private pages count as if all were written to; without this flag a file larger than the RAM is refused.
        flags, access = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        try:
            mapping = mmap.mmap(self._fd, 0, flags=flags, prot=access)
        except OSError as error:
            raise self._failed(error) from None

        def tensor(slot: Slot) -> Tensor:
            flat = torch.frombuffer(mapping, dtype=slot.dtype, count=slot.shape.numel(), offset=slot.offset)
            return flat.view(slot.shape)

        return tensor

    def _failed(self, error: OSError) -> OutputError:
        what = "the held-out batches beyond the memory budget cannot be kept in a temporary file (TMPDIR says where)"
        if self._directory is None or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            why = error.strerror or str(error)
            return OutputError(f"{what}: {why[:1].lower()}{why[1:]}", file=self._directory)
        free = shutil.disk_usage(self._directory).free
        return OutputError(f"{what}: disk is full", file=self._directory, found=f"{free} bytes free")
