"""The zip archives of ``torch.save``, read without torch: names, types and places; nothing in them is ever executed.

An archive has one folder: ``data.pkl`` is the object with its tensors as views of storages, ``data/KEY`` the bytes of
one storage as they are in memory, never compressed. ``byteorder`` and ``version`` tell how to read them, and
``pysoup.json`` holds the metadata of an average.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from ...errors import CheckpointError
from ..contents import METADATA_RECORD, Contents, Strided
from ..reading import FileStamp, open_file, read_exactly
from ..strict_json import clip, parse_strings
from ..zip_records import Record, read_records
from .entries import choose
from .pickle_machine import unpickle
from .pickle_state import MAX_PICKLE_BYTES
from .torch_pickle import TorchEnvironment
from .torch_tensors import StorageRef, TensorRef, kind_of
from .torch_views import Place, locate, take_state_dict

PICKLE = "data.pkl"
"""Records in the archive's folder."""

_LATEST_VERSION = 10
_MAX_METADATA_BYTES = 2**24
_MAX_TENSOR_PICKLE = 2**16
"""Of a single tensor."""


def read_torch(path: Path, entry: str | None = None) -> Contents:
    """Read the state dict of ``path`` (``entry`` names it in a nested file) and check it against the archive.

    Every fault raises a one-line CheckpointError.
    """
    fd = open_file(path)
    try:
        stamp = FileStamp.of(os.fstat(fd))
        records = read_records(fd, path, stamp.size)
        top = _folder(path, records)
        _check_version(fd, path, records, top)
        pickled = _read(fd, path, records[f"{top}/{PICKLE}"], MAX_PICKLE_BYTES)
        metadata = _metadata(fd, path, records.get(f"{top}/{METADATA_RECORD}"))
    finally:
        os.close(fd)
    environment = TorchEnvironment()
    state_dict = choose(unpickle(pickled, environment, path), path, entry)
    places = {
        key: _place(path, records.get(f"{top}/data/{key}"), storage) for key, storage in environment.storages.items()
    }
    contents = Contents(path, "torch", stamp, hash((pickled, tuple(place.offset for place in places.values()))))
    contents.metadata = metadata
    take_state_dict(contents, state_dict, places)
    return contents


def read_tensor(
    fd: int, contents: Contents, name: str, origin: int, size: int
) -> tuple[TensorRef, int, Strided | None]:
    """The one tensor of the archive of ``size`` bytes at ``origin`` of the open file of ``contents``.

    Where its first element is in the file, and how the others lie where they are not in C order behind it.
    """
    path, environment = contents.path, TorchEnvironment()
    records = read_records(fd, path, size, origin)
    top = _folder(path, records)
    _check_version(fd, path, records, top)
    tensor = unpickle(_read(fd, path, records[f"{top}/{PICKLE}"], _MAX_TENSOR_PICKLE), environment, path)
    if not isinstance(tensor, TensorRef):
        raise CheckpointError("not a plain tensor", file=path, tensor=clip(name), found=kind_of(tensor))
    storage = tensor.storage
    place = _place(path, records.get(f"{top}/data/{storage.key}"), storage)
    return tensor, *locate(contents, name, tensor, {storage.key: place})


def _folder(path: Path, records: dict[str, Record]) -> str:
    """The archive's one folder."""
    # TorchScript's data.pkl is an object of code that lies in the archive too.
    if any(name.partition("/")[2].startswith(("constants.pkl", "code/")) for name in records):
        what = "a TorchScript archive, which is a program; save `model.state_dict()` of the loaded model"
        raise CheckpointError(what, file=path)
    suffix = f"/{PICKLE}"
    tops = [name.removesuffix(suffix) for name in records if name.count("/") == 1 and name.endswith(suffix)]
    if len(tops) != 1:
        found = ", ".join(clip(name, 60) for name in list(records)[:5]) or "no records"
        what = "zip archive is not one of torch.save" if not tops else f"zip archive has {len(tops)} {PICKLE}"
        raise CheckpointError(what, file=path, found=found, expected=f"one FOLDER/{PICKLE}")
    return tops[0]


def _check_version(fd: int, path: Path, records: dict[str, Record], top: str) -> None:
    order = records.get(f"{top}/byteorder")
    if order is not None and (text := _read(fd, path, order, 16)) != b"little":
        what = "written on a big-endian machine; load and save it there or convert it with torch first"
        raise CheckpointError(what, file=path, found=repr(text), expected=repr(b"little"))
    version = records.get(f"{top}/version")
    if version is None:
        return
    text = _read(fd, path, version, 16).strip()
    if not text.isdigit() or not 1 <= int(text) <= _LATEST_VERSION:
        expected = f"1 to {_LATEST_VERSION}"
        raise CheckpointError("unknown version of torch's format", file=path, found=repr(text), expected=expected)


def _read(fd: int, path: Path, record: Record, most: int) -> bytes:
    _check_stored(path, record)
    if record.size > most:
        what = f"record {clip(record.name)!r} is too large"
        raise CheckpointError(what, file=path, found=f"{record.size} bytes", expected=f"at most {most} bytes")
    buffer = bytearray(record.size)
    read_exactly(fd, memoryview(buffer), record.offset, path)
    # torch can be told to leave the checksums out.
    if record.crc and zlib.crc32(buffer) != record.crc:
        what = f"record {clip(record.name)!r} is damaged: wrong checksum"
        raise CheckpointError(what, file=path, found=f"{zlib.crc32(buffer):#010x}", expected=f"{record.crc:#010x}")
    return bytes(buffer)


def _check_stored(path: Path, record: Record) -> None:
    if record.deflated:
        what = f"record {clip(record.name)!r} is compressed, as torch never writes: load and save it with torch"
        raise CheckpointError(what, file=path)


def _metadata(fd: int, path: Path, record: Record | None) -> dict[str, str]:
    if record is None:
        return {}
    return parse_strings(_read(fd, path, record, _MAX_METADATA_BYTES), path, METADATA_RECORD)


def _place(path: Path, record: Record | None, storage: StorageRef) -> Place:
    """Where a storage lies. Its record may end in part of an element: a view of bytes as a wider type leaves one."""
    key = clip(storage.key)
    if record is None:
        raise CheckpointError(f"file lacks the record of storage {key!r}", file=path)
    _check_stored(path, record)
    if not storage.nbytes <= record.size < storage.nbytes + storage.itemsize:
        found, expected = f"{record.size} bytes", f"{storage.nbytes} bytes"
        raise CheckpointError(f"storage {key!r} has another size", file=path, found=found, expected=expected)
    return Place(record.offset, storage.nbytes)
