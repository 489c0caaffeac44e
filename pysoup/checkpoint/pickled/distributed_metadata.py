"""The ``.metadata`` of ``torch.distributed.checkpoint``: a pickle of dataclasses, read without torch, nothing executed.

It tells of every tensor its type, its shape and the boxes it was saved in, and of every box the file and the bytes in
it. The keys of nested dictionaries were joined by dots; ``planner_data`` has them as they were.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeGuard

from ...errors import CheckpointError
from ..reading import open_file, read_exactly
from ..strict_json import clip, is_text
from .entries import of_training
from .pickle_machine import unpickle
from .pickle_values import Global, Made, OtherKey, Refusal
from .torch_pickle import TorchEnvironment
from .torch_tensors import LARGEST, MOST_DIMENSIONS, StorageRef, TorchType

MAX_METADATA_BYTES = 2**28
"""A thousand tensors in eight pieces each, with an optimizer's state, take about 3 MB."""

_PACKAGE = "torch.distributed.checkpoint"
_MADE = {
    **{
        f"{_PACKAGE}.metadata.{name}": name
        for name in ("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata")
    },
    f"{_PACKAGE}.metadata.MetadataIndex": "MetadataIndex",
    f"{_PACKAGE}.metadata.TensorProperties": "TensorProperties",
    f"{_PACKAGE}.filesystem._StorageInfo": "_StorageInfo",
    # Before torch 2.3.
    "torch.distributed._shard.sharded_tensor.metadata.TensorProperties": "TensorProperties",
}
_MOST_KEYS = 64
_SPARE_BOXES = 1024
"""One list of boxes can stand for many tensors: so many more than are stored, and it is refused."""


class Box(NamedTuple):
    """A part of a tensor, from the element ``corner`` on."""

    corner: tuple[int, ...]
    sizes: tuple[int, ...]


class Sharded(NamedTuple):
    """A tensor of the type ``dtypes.ALL[code]`` (-1: one that is not known, ``dtype``) in boxes."""

    dtype: str
    code: int
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]


class Span(NamedTuple):
    """``length`` bytes at ``offset`` of the file of that name; ``transforms`` is how they were changed, if at all."""

    corner: tuple[int, ...]
    file: str
    offset: int
    length: int
    transforms: str


class DistributedMetadata(NamedTuple):
    """``tensors`` by joined name, ``others`` the names of what else there is, ``keys`` of both, ``spans`` of boxes."""

    tensors: dict[str, Sharded]
    others: list[str]
    keys: dict[str, tuple[str, ...]]
    spans: dict[str, dict[int, Span]]
    digest: int

    def span(self, name: str, corner: tuple[int, ...]) -> Span | None:
        span = self.spans.get(name, {}).get(_key(corner))
        return span if span is not None and span.corner == corner else None


def read_metadata(path: Path) -> DistributedMetadata:
    """What the file says, each part of the form it must have. Every fault raises a one-line CheckpointError."""
    data = _read(path)
    root = _state(unpickle(data, _Environment(), path, path.name), "Metadata")
    if root is None:
        raise CheckpointError("not the metadata of a torch.distributed.checkpoint", file=path)
    listed, stored, planned = (root.get(key) for key in ("state_dict_metadata", "storage_data", "planner_data"))
    if type(listed) is not dict:
        raise CheckpointError("lists no tensors", file=path, expected="state_dict_metadata, names -> tensors")
    spans = _spans(path, stored)
    boxes = sum(map(len, spans.values())) + _SPARE_BOXES
    tensors: dict[str, Sharded] = {}
    others = []
    for name, value in listed.items():
        if type(name) is not str or not is_text(name):
            raise CheckpointError("has a name that is none", file=path)
        if isinstance(value, Made) and value.kind == "TensorStorageMetadata":
            tensors[name] = _sharded(path, name, value, boxes)
            boxes -= len(tensors[name].boxes)
        else:
            others.append(name)
    keys = {name: _keys(path, name, planned) for name in listed if type(name) is str}
    return DistributedMetadata(tensors, others, keys, spans, hash(data))


class _Environment(TorchEnvironment):
    """As of a torch file, with the classes of the metadata, and without storages."""

    def find(self, module: str, name: str) -> object:
        kind = _MADE.get(f"{module}.{name}")
        if name == "MCoreMetadata" and module.startswith("megatron.core."):
            kind = "Metadata"
        if kind is None:
            return super().find(module, name)
        return Global(f"{module}.{name}", lambda _: Made(kind))

    def persistent(self, saved_id: object) -> StorageRef:
        raise Refusal("the pickle holds a tensor, which metadata do not")


def _read(path: Path) -> bytes:
    fd = open_file(path)
    try:
        size = os.fstat(fd).st_size
        if size > MAX_METADATA_BYTES:
            expected = f"at most {MAX_METADATA_BYTES} bytes"
            raise CheckpointError("metadata too large", file=path, found=f"{size} bytes", expected=expected)
        buffer = bytearray(size)
        read_exactly(fd, memoryview(buffer), 0, path)
        return bytes(buffer)
    finally:
        os.close(fd)


def _state(value: object, kind: str) -> dict[object, object] | None:
    """What was put into an object of that class; None where ``value`` is none."""
    if isinstance(value, Made) and value.kind == kind and type(value.state) is dict:
        return value.state
    return None


def _sharded(path: Path, name: str, value: Made, most: int) -> Sharded:
    state = _state(value, "TensorStorageMetadata") or {}
    shape, chunks, properties = state.get("size"), state.get("chunks"), state.get("properties")
    described = properties.state if isinstance(properties, Made) else None
    dtype = described[0] if type(described) is tuple and described else None
    if not _are_sizes(shape) or type(dtype) is not TorchType or type(chunks) is not list:
        _fail(path, name, "lacks its type, its shape or its pieces")
    if len(chunks) > most:
        _fail(path, name, "has more pieces than are stored")
    boxes = []
    for chunk in chunks:
        box = _state(chunk, "ChunkStorageMetadata") or {}
        corner, sizes = box.get("offsets"), box.get("sizes")
        if not _are_sizes(corner) or not _are_sizes(sizes) or not len(corner) == len(sizes) == len(shape):
            _fail(path, name, "has a piece whose place or size is none")
        boxes.append(Box(corner, sizes))
    return Sharded(dtype.name, dtype.code, shape, tuple(boxes))


def _keys(path: Path, name: str, planned: object) -> tuple[str, ...]:
    """The keys of the nested dictionaries, and positions in lists as text.

    Where nothing tells them, as in Megatron's files, the name is one key; an optimizer's still is apart.
    """
    keys = planned.get(name) if type(planned) is dict else None
    if keys is None:
        head, _, rest = name.partition(".")
        return (head, rest) if rest and of_training(head) else (name,)
    if type(keys) is not tuple or not 0 < len(keys) <= _MOST_KEYS:
        _fail(path, name, "has a path that is none")
    for key in keys:
        if type(key) not in (str, int):
            _fail(path, name, "has a path that is none")
    return keys if all(type(key) is str for key in keys) else tuple(map(str, keys))


def _spans(path: Path, stored: object) -> dict[str, dict[int, Span]]:
    """By name and corner."""
    if type(stored) is not dict:
        raise CheckpointError("does not say in which files the tensors are", file=path, expected="storage_data")
    spans: dict[str, dict[int, Span]] = {}
    for key, value in stored.items():
        index = _state(key.key, "MetadataIndex") if isinstance(key, OtherKey) else None
        info = _state(value, "_StorageInfo")
        if index is None or info is None:
            raise CheckpointError("stored by another writer than torch's for file systems", file=path)
        name, corner = index.get("fqn"), index.get("offset")
        if type(name) is not str:
            raise CheckpointError("has a name that is none", file=path)
        if corner is None:
            continue  # Pickled: no tensor.
        file, offset, length = (info.get(part) for part in ("relative_path", "offset", "length"))
        if not _are_sizes(corner) or type(file) is not str or not _is_size(offset) or not _is_size(length):
            _fail(path, name, "has a piece whose file or place in it is none")
        spans.setdefault(name, {})[_key(corner)] = Span(corner, file, offset, length, _transforms(info))
    return spans


def _transforms(info: dict[object, object]) -> str:
    names = info.get("transform_descriptors")
    if not names:
        return ""
    return ", ".join(clip(str(name), 40) for name in names[:4]) if type(names) is list else "unknown"


def _key(corner: tuple[int, ...]) -> int:
    # Of its text: of tuples of numbers a file could make many whose hashes collide.
    return hash(str(corner))


def _are_sizes(value: object) -> TypeGuard[tuple[int, ...]]:
    if type(value) is not tuple or len(value) > MOST_DIMENSIONS:
        return False
    return all(map(_is_size, value))


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= LARGEST


def _fail(path: Path, name: str, what: str) -> NoReturn:
    raise CheckpointError(what, file=path, tensor=clip(name))
