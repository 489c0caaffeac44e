"""Fingerprints: SHA-256 over the content of files and of data, by which two runs know that they used the same.

Needs neither torch nor numpy; tensors and arrays are recognised where they are loaded already.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .checkpoint import Checkpoint
from .checkpoint.index import resolve
from .checkpoint.reading import open_file, reason
from .errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    import torch

_BLOCK = 1 << 20
"""Bytes read at a time: still in the cache when they are hashed."""


class StatKey(NamedTuple):
    """What tells, without reading it, that a file was not written to since. Sizes in bytes, times in nanoseconds.

    A plain tuple of integers, so ``StatKey(*json.loads(json.dumps(key))) == key``.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, file: str | os.PathLike[str] | int) -> StatKey:
        """The key of the file at a path or behind a descriptor. Raises :class:`CheckpointError` if there is none."""
        try:
            info = os.stat(file)
        except (OSError, ValueError) as error:
            raise CheckpointError(reason(error), file=None if isinstance(file, int) else file) from None
        return cls(info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_dev)


def fingerprint_file(checkpoint: str | os.PathLike[str] | Checkpoint) -> str:
    """SHA-256 (hex) over all bytes of a checkpoint: a path, or what :func:`pysoup.open_checkpoint` made of one.

    Of a single file it is what ``sha256sum FILE`` prints; of several shards, the SHA-256 of what ``sha256sum`` prints
    for them, called in their directory, in the order of the index. Shards are read in parallel, one thread each up to
    the number of CPUs. The entry chosen in a nested file is not part of it. Raises :class:`CheckpointError` where a
    file cannot be read or changes meanwhile.
    """
    files = checkpoint.files if isinstance(checkpoint, Checkpoint) else resolve(Path(checkpoint)).files
    if len(files) == 1:
        return _sha256(files[0])
    with ThreadPoolExecutor(min(len(files), os.cpu_count() or 1)) as pool:
        sums = list(pool.map(_sha256, files))
    lines = "".join(f"{digest}  {file.name}\n" for digest, file in zip(sums, files, strict=True))
    return hashlib.sha256(os.fsencode(lines)).hexdigest()


def fingerprint_data(data: Any) -> str | None:
    """SHA-256 (hex) over data in memory; ``None`` where there is something in it that :class:`ContentHash` cannot read.

    ``data`` is tensors, arrays, numbers, text and bytes, in any nesting of sequences and mappings.
    """
    content = ContentHash()
    return content.hexdigest() if content.add(data) is None else None


class ContentHash:
    """A SHA-256 over values, one after the other.

    What counts: type, shape and bytes of tensors and arrays (the same for both, wherever the tensor is and whatever
    its strides are), type and value of Python scalars, the order of sequences, the keys of mappings. What does not:
    whether a sequence is a tuple or a list, which class a mapping is of, and the order of its keys.
    """

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def add(self, value: Any) -> str | None:
        """Take in ``value``; returns what it cannot read in it (the name of a type), ``None`` if there is nothing."""
        if isinstance(value, Mapping):
            return self._add_mapping(value)
        if isinstance(value, (tuple, list)):
            self._mark(f"sequence {len(value)}")
            return next((unread for item in value if (unread := self.add(item)) is not None), None)
        if (plain := _scalar(value)) is not None:
            self._mark(f"{plain[0]} {len(plain[1])}")
            self._sha.update(plain[1])
            return None
        torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
        if torch is not None and isinstance(value, torch.Tensor):
            return self._add_tensor(value)
        if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
            return self._add_array(numpy.asarray(value))
        return _type_name(value)

    def hexdigest(self) -> str:
        return self._sha.hexdigest()

    def _mark(self, text: str) -> None:
        # Ended by a byte that no mark holds, so no sequence of marks and bytes reads in two ways.
        self._sha.update(text.encode() + b"\n")

    def _add_mapping(self, mapping: Mapping[Any, Any]) -> str | None:
        keys = {}
        for key in mapping:
            plain = _scalar(key)
            if plain is None:
                return f"{_type_name(key)} as a key"
            keys[plain] = key
        self._mark(f"mapping {len(keys)}")
        for plain in sorted(keys):
            key = keys[plain]
            unread = self.add(key) or self.add(mapping[key])
            if unread is not None:
                return unread
        return None

    def _add_tensor(self, tensor: torch.Tensor) -> str | None:
        import torch

        if tensor.layout != torch.strided:
            return f"{tensor.layout} tensor"
        if tensor.is_nested or tensor.is_quantized or tensor.is_meta:
            return f"{'nested' if tensor.is_nested else tensor.dtype if tensor.is_quantized else 'meta'} tensor"
        self._mark(f"array {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}")
        for rows in _blocks(tensor.detach()):
            plain = rows.to("cpu").resolve_conj().resolve_neg().contiguous()
            self._sha.update(plain.view(-1).view(torch.uint8).numpy().data)
        return None

    def _add_array(self, array: np.ndarray[Any, Any]) -> str | None:
        if array.dtype.hasobject or array.dtype.names:
            return f"array of {array.dtype}"
        # Little-endian, which every machine that torch runs on is; bfloat16 and the like have names, not codes.
        native = array.astype(array.dtype.newbyteorder("<"), copy=False)
        known = array.dtype.kind in "biufc" or array.dtype.isbuiltin == 2
        self._mark(f"array {array.dtype.name if known else native.dtype.str} {list(array.shape)}")
        self._sha.update(native.tobytes())
        return None


def _scalar(value: Any) -> tuple[str, bytes] | None:
    """Type and bytes of a Python scalar; ``None`` for anything else."""
    if value is None:
        return "none", b""
    if isinstance(value, bool):
        return "bool", b"\1" if value else b"\0"
    if isinstance(value, int):
        return "int", hex(int(value)).encode()
    if isinstance(value, float):
        return "float", struct.pack("<d", value)
    if isinstance(value, complex):
        return "complex", struct.pack("<dd", value.real, value.imag)
    if isinstance(value, str):
        return "str", value.encode("utf-8", "surrogatepass")
    if isinstance(value, (bytes, bytearray)):
        return "bytes", bytes(value)
    return None


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def _blocks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """``tensor`` in parts along its first dimension: what is not plain bytes in RAM is copied, one part at a time."""
    if tensor.dim() == 0 or tensor.is_contiguous():
        if tensor.numel():
            yield tensor
        return
    if tensor.numel():
        rows = max(1, 16 * _BLOCK // (tensor[0].numel() * tensor.element_size()))
        yield from (tensor[start : start + rows] for start in range(0, len(tensor), rows))


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_BLOCK))
    fd = open_file(file)
    try:
        before = StatKey.of(fd)
        while count := os.readv(fd, [buffer]):
            digest.update(buffer[:count])
        if StatKey.of(fd) != before:
            raise CheckpointError("file changed while it was read", file=file)
    except OSError as error:
        raise CheckpointError(reason(error), file=file) from None
    finally:
        os.close(fd)
    return digest.hexdigest()
