"""The bytes in front of the tensors: headers and index files as the writer lays them out, checked before use."""

from __future__ import annotations

import json
import math
import os
import re
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from ..dtypes import C128, DType
from ..errors import OutputError
from .checkpoint import ALIASES_KEY
from .index import INDEX_SUFFIX, SUFFIX
from .safetensors_file import LENGTH_BYTES, METADATA_KEY
from .strict_json import MAX_JSON_BYTES, clip, describe, is_text

TensorSpec: TypeAlias = tuple[str, DType, tuple[int, ...]]
Layout: TypeAlias = Sequence[tuple[str, Sequence[TensorSpec]]]
"""Shard file name and its tensors, in order; a single file has one shard, whose name plays no part."""

_ALIGNMENT = 64
_NUMBERED = re.compile(r"(.+)-\d+-of-\d+\.safetensors")


class Placement:
    """Where every tensor of a layout goes: header bytes per shard, absolute offsets, sizes. All in bytes.

    The JSON names the tensors in the order given, and their data follows in that order, unless a tensor would then
    begin at an address that is no multiple of its item size: then wider types go first, as the library's own writer
    orders them.
    """

    def __init__(
        self, output: Path, layout: Layout, metadata: Mapping[str, str], aliases: Mapping[str, str], is_directory: bool
    ) -> None:
        self._output = output
        self.shards = tuple(name for name, _ in layout)
        self._position: dict[str, int] = {}
        self._shard_of: array[int] = array("I")
        self._begins: array[int] = array("Q")
        self._sizes: array[int] = array("Q")
        self.headers: list[bytes] = []
        self.shard_bytes: list[int] = []
        self.parameters = 0
        self._check_shards(is_directory)
        text = self._metadata(layout, metadata, aliases)
        for shard, (_, tensors) in enumerate(layout):
            self._place(shard, tensors, text)
        self.tensor_bytes = sum(self._sizes)
        self.total_bytes = sum(self.shard_bytes)

    def where(self, name: str) -> tuple[int, int, int]:
        """Shard number, absolute offset and size of a tensor."""
        position = self._position.get(name)
        if position is None:
            raise OutputError("no such tensor in the layout", file=self._output, tensor=clip(name))
        return self._shard_of[position], self._begins[position], self._sizes[position]

    def index_file(self) -> tuple[str, bytes] | None:
        """Name and content of the index, or None where a reader finds the only shard without one."""
        match = [_NUMBERED.fullmatch(shard) for shard in self.shards]
        if len(self.shards) == 1 and match[0] is None:
            return None
        stems = {m.group(1) for m in match if m is not None}
        stem = stems.pop() if len(stems) == 1 and None not in match else "model"
        weight_map = {name: self.shards[self._shard_of[i]] for name, i in self._position.items()}
        totals = {"total_size": self.tensor_bytes, "total_parameters": self.parameters}
        content = json.dumps({"metadata": totals, "weight_map": weight_map}, indent=2, ensure_ascii=False)
        return stem + INDEX_SUFFIX, (content + "\n").encode("utf-8")

    def _check_shards(self, is_directory: bool) -> None:
        if not self.shards or (len(self.shards) > 1 and not is_directory):
            raise OutputError("a file holds exactly one shard", file=self._output, found=len(self.shards), expected=1)
        for name in self.shards:
            plain = is_text(name) and name == os.path.basename(name) and not name.startswith(".") and "\0" not in name
            if is_directory and not (plain and name.endswith(SUFFIX)):
                expected = f"a plain file name ending in {SUFFIX}"
                raise OutputError("invalid shard name", file=self._output, found=describe(name), expected=expected)
        if len(set(self.shards)) != len(self.shards):
            raise OutputError("duplicate shard name", file=self._output, found=describe(sorted(self.shards)))

    def _metadata(self, layout: Layout, metadata: Mapping[str, str], aliases: Mapping[str, str]) -> dict[str, str]:
        for key, value in metadata.items():
            if not is_text(key) or not is_text(value):
                raise OutputError(f"metadata {describe(key)} is not text", file=self._output, found=describe(value))
        stored = {name for _, tensors in layout for name, _, _ in tensors}
        for alias, name in aliases.items():
            if alias in stored or name not in stored or not is_text(alias) or alias == METADATA_KEY:
                what = "alias does not fit the tensors"
                raise OutputError(what, file=self._output, tensor=clip(alias), found=f"alias of {clip(name)!r}")
        text = {"format": "pt", **metadata}
        text.pop(ALIASES_KEY, None)
        if aliases:
            text[ALIASES_KEY] = json.dumps(dict(aliases), separators=(",", ":"), ensure_ascii=False)
        return text

    def _place(self, shard: int, tensors: Sequence[TensorSpec], metadata: dict[str, str]) -> None:
        begins, data_bytes = _begins(tensors)
        document: dict[str, object] = {METADATA_KEY: metadata}
        for (name, dtype, shape), begin in zip(tensors, begins, strict=True):
            self._check_tensor(name, dtype)
            end = begin + _nbytes(dtype, shape)
            document[name] = {"dtype": dtype.name, "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        # Spaces up to a multiple of 64: every tensor is then as aligned in the file as its offset is.
        text += b" " * (-(LENGTH_BYTES + len(text)) % _ALIGNMENT)
        if len(text) > MAX_JSON_BYTES:
            raise OutputError("header too large", file=self._output, found=len(text), expected=f"<= {MAX_JSON_BYTES}")
        header = len(text).to_bytes(LENGTH_BYTES, "little") + text
        for (name, dtype, shape), begin in zip(tensors, begins, strict=True):
            if self._position.setdefault(name, len(self._position)) != len(self._sizes):
                raise OutputError("duplicate tensor name", file=self._output, tensor=clip(name))
            self._shard_of.append(shard)
            self._begins.append(len(header) + begin)
            self._sizes.append(_nbytes(dtype, shape))
            self.parameters += math.prod(shape)
        self.headers.append(header)
        self.shard_bytes.append(len(header) + data_bytes)

    def _check_tensor(self, name: str, dtype: DType) -> None:
        if not is_text(name):
            raise OutputError("name is not valid Unicode", file=self._output, tensor=clip(name))
        if name == METADATA_KEY:
            raise OutputError("name is reserved by the safetensors format", file=self._output, tensor=name)
        if dtype is C128:
            what = "safetensors has no type for complex128; convert it to complex64 first"
            raise OutputError(what, file=self._output, tensor=clip(name), found=dtype.torch_name)


def _nbytes(dtype: DType, shape: Sequence[int]) -> int:
    return math.prod(shape) * dtype.itemsize


def _begins(tensors: Sequence[TensorSpec]) -> tuple[list[int], int]:
    """Begin of each tensor relative to the data section, and the size of that section."""
    order: Sequence[int] = range(len(tensors))
    begins, end = _laid_out(tensors, order)
    if any(begin % dtype.itemsize for begin, (_, dtype, _) in zip(begins, tensors, strict=True)):
        order = sorted(order, key=lambda i: -tensors[i][1].itemsize)
        begins, end = _laid_out(tensors, order)
    return begins, end


def _laid_out(tensors: Sequence[TensorSpec], order: Sequence[int]) -> tuple[list[int], int]:
    begins, cursor = [0] * len(tensors), 0
    for i in order:
        begins[i] = cursor
        cursor += _nbytes(tensors[i][1], tensors[i][2])
    return begins, cursor
