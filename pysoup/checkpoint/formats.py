"""Which format a weight file has, told by its first bytes; each is read by a module of its own."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CheckpointError
from .contents import Contents
from .index import SUFFIX
from .reading import open_file, read_exactly
from .safetensors_file import read_safetensors

_ZIP = b"PK\x03\x04"
_FIRST_BYTES = 512


def read_contents(path: Path, entry: str | None = None) -> Contents:
    """What the file at ``path`` holds; ``entry`` picks a nested state dict in formats that have them.

    A file named ``.safetensors`` must be one. Raises CheckpointError.
    """
    if path.suffix == SUFFIX:
        return read_safetensors(path)
    first = _first_bytes(path)
    if path.suffix == ".npz":
        from .npz_file import read_npz

        return read_npz(path, entry)
    if first.startswith(_ZIP):
        from .pickled.torch_file import read_torch

        return read_torch(path, entry)
    if first.startswith(b"\x80") or _is_tar(first):
        from .pickled.torch_legacy import read_torch_legacy

        return read_torch_legacy(path, entry)
    if not first:
        raise CheckpointError("file is empty", file=path)
    # Some hubs' `.bin` files are safetensors; whatever else it is, this reader knows it by name or says what it found.
    return read_safetensors(path)


def _is_tar(first: bytes) -> bool:
    return first[257:262] == b"ustar"


def _first_bytes(path: Path) -> bytes:
    fd = open_file(path)
    try:
        buffer = bytearray(min(_FIRST_BYTES, os.fstat(fd).st_size))
        read_exactly(fd, memoryview(buffer), 0, path)
        return bytes(buffer)
    finally:
        os.close(fd)
