"""The files of ``torch.save`` before torch 1.6 (and since, on request), which are no archives, read without torch.

Five pickles in a row: a magic number, the protocol's version, what machine wrote, the object with its tensors as views
of storages, the list of the storages' keys. Then, in that order, each storage: int64 count of elements, the elements.
"""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import CheckpointError
from ..contents import Contents
from ..reading import FileStamp, open_file, read_exactly
from ..strict_json import clip
from .entries import choose
from .pickle_machine import interpret
from .pickle_state import MAX_PICKLE_BYTES
from .pickle_values import Truncated
from .torch_pickle import TorchEnvironment
from .torch_tensors import StorageRef, kind_of
from .torch_views import Place, take_state_dict

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_FIRST_WINDOW = 2**16
_COUNT_BYTES = 8
_TAR = (257, b"ustar")


def read_torch_legacy(path: Path, entry: str | None = None) -> Contents:
    """Read the state dict of ``path`` (``entry`` names it in a nested file) and check it against the file.

    Every fault raises a one-line CheckpointError.
    """
    fd = open_file(path)
    try:
        stamp = FileStamp.of(os.fstat(fd))
        pickles = _Pickles(fd, path, stamp.size)
        _check_head(pickles)
        start = pickles.at
        environment = TorchEnvironment(legacy=True)
        tree = pickles.next(environment)
        keys = pickles.next(TorchEnvironment(legacy=True))
        places = _places(pickles, keys, environment.storages)
        digest = hash((pickles.digest, start))
    finally:
        os.close(fd)
    contents = Contents(path, "torch-legacy", stamp, digest)
    take_state_dict(contents, choose(tree, path, entry), places)
    return contents


class _Pickles:
    """Reads pickles one after the other, none of which says how long it is."""

    def __init__(self, fd: int, path: Path, size: int) -> None:
        self.fd = fd
        self.path = path
        self.size = size
        self.at = 0
        self.digest = 0

    def next(self, environment: TorchEnvironment) -> object:
        """The next object; ``at`` is behind it then."""
        left = min(self.size - self.at, MAX_PICKLE_BYTES)
        window = min(_FIRST_WINDOW, left)
        while True:
            raw = bytearray(window)
            read_exactly(self.fd, memoryview(raw), self.at, self.path)
            data = bytes(raw)
            del raw
            try:
                value, end = interpret(data, environment, self.path, "the file", self.at)
            except Truncated:
                # Again from its beginning with four times as much: a third more work in all.
                if window == left:
                    break
                window = min(4 * window, left)
            else:
                self.digest = hash((self.digest, data[:end]))
                self.at += end
                return value
        if left == self.size - self.at:
            raise CheckpointError("file ends within a pickle: truncated", file=self.path, found=f"{self.size} bytes")
        what = f"the pickle at byte {self.at} is too large"
        raise CheckpointError(what, file=self.path, expected=f"at most {MAX_PICKLE_BYTES} bytes")


def _check_head(pickles: _Pickles) -> None:
    path = pickles.path
    where, tar = _TAR
    head = bytearray(min(pickles.size, where + len(tar)))
    read_exactly(pickles.fd, memoryview(head), 0, path)
    if head[where:] == tar:
        what = "a tar archive, as torch before 0.1.10 wrote: load it with torch and save it again"
        raise CheckpointError(what, file=path)
    if not head.startswith(b"\x80"):
        raise CheckpointError("not a file of torch.save", file=path, found=repr(bytes(head[:8])))
    magic = pickles.next(TorchEnvironment(legacy=True))
    if magic != _MAGIC_NUMBER:
        what = "a pickle, but not one of torch.save: save the state dict with torch.save"
        raise CheckpointError(what, file=path, found=kind_of(magic))
    version = pickles.next(TorchEnvironment(legacy=True))
    if version != _PROTOCOL_VERSION:
        found = version if isinstance(version, int) else kind_of(version)
        what = "unknown version of torch's format"
        raise CheckpointError(what, file=path, found=found, expected=_PROTOCOL_VERSION)
    machine = pickles.next(TorchEnvironment(legacy=True))
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        what = "written on a big-endian machine, or damaged"
        raise CheckpointError(what, file=path, expected="'little_endian': True")


def _places(pickles: _Pickles, keys: object, storages: dict[str, StorageRef]) -> dict[str, Place]:
    """Where each storage lies: the counts stand before the data, and must be those of the pickle."""
    path, at = pickles.path, pickles.at
    places: dict[str, Place] = {}
    for key in keys if isinstance(keys, list) else [None]:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None or storage.key in places:
            raise CheckpointError("list of storages is not that of the pickle", file=path, found=kind_of(keys))
        raw = bytearray(_COUNT_BYTES)
        read_exactly(pickles.fd, memoryview(raw), at, path)
        count = int.from_bytes(raw, "little", signed=True)
        nbytes = count * storage.itemsize
        if nbytes != storage.nbytes:
            what = f"storage {clip(storage.key)!r} has another size"
            raise CheckpointError(what, file=path, found=f"{nbytes} bytes", expected=f"{storage.nbytes} bytes")
        places[storage.key] = Place(at + _COUNT_BYTES, nbytes)
        at += _COUNT_BYTES + nbytes
        if at > pickles.size:
            what = f"file is truncated in storage {clip(storage.key)!r}"
            raise CheckpointError(what, file=path, found=f"{pickles.size} bytes", expected=f"at least {at} bytes")
    if len(places) < len(storages):
        missing = next(key for key in storages if key not in places)
        raise CheckpointError(f"file has no data of storage {clip(missing)!r}", file=path)
    if at != pickles.size:
        what = "bytes after the last storage belong to none"
        raise CheckpointError(what, file=path, found=f"{pickles.size} bytes", expected=f"{at} bytes")
    return places
