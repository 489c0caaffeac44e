"""The safetensors format as it is written: a header in front of the data, and an index beside several shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ...dtypes import C128
from ...errors import OutputError
from ..checkpoint import ALIASES_KEY
from ..index import INDEX_SUFFIX, SUFFIX
from ..safetensors_file import LENGTH_BYTES, METADATA_KEY
from ..strict_json import MAX_JSON_BYTES, clip, describe
from .layout import Layout, Placement, TensorSpec, tensor_bytes
from .shards import common_stem, needs_index

_ALIGNMENT = 64


class SafetensorsPlacement(Placement):
    """One safetensors file or a directory of them.

    The JSON names the tensors in the order given, and their data follows in that order, unless a tensor would then
    begin at an address that is no multiple of its item size: then wider types go first, as the library's own writer
    orders them. ``metadata`` and the aliases go into every shard.
    """

    def __init__(
        self, output: Path, layout: Layout, metadata: Mapping[str, str], aliases: Mapping[str, str], is_directory: bool
    ) -> None:
        self._headers: list[bytes] = []
        for shard, _ in layout if is_directory else ():
            if not shard.endswith(SUFFIX):
                expected = f"a plain file name ending in {SUFFIX}"
                raise OutputError("invalid shard name", file=output, found=describe(shard), expected=expected)
        for name in aliases:
            _check_name(output, name)
        super().__init__(output, layout, metadata, aliases, is_directory)

    def pieces(self, shard: int) -> Iterator[tuple[int, bytes]]:
        yield 0, self._headers[shard]

    def finish(self, shard: int, fd: int) -> None:
        """Nothing: no part of a header depends on the data."""

    def index_file(self) -> tuple[str, bytes] | None:
        """The index, or None where a reader finds the only shard without one."""
        if not needs_index(self.shards):
            return None
        weight_map = {name: self.shards[self._shard_of[i]] for name, i in self._position.items()}
        totals = {"total_size": self.tensor_bytes, "total_parameters": self.parameters}
        content = json.dumps({"metadata": totals, "weight_map": weight_map}, indent=2, ensure_ascii=False)
        return common_stem(self.shards) + INDEX_SUFFIX, (content + "\n").encode("utf-8")

    def _place(self, shard: int, tensors: Sequence[TensorSpec]) -> None:
        begins, data_bytes = _begins(tensors)
        metadata = {"format": "pt", **self._metadata}
        if self._aliases:
            metadata[ALIASES_KEY] = json.dumps(self._aliases, separators=(",", ":"), ensure_ascii=False)
        document: dict[str, object] = {METADATA_KEY: metadata}
        for (name, dtype, shape), begin in zip(tensors, begins, strict=True):
            _check_name(self._output, name)
            if dtype is C128:
                what = "safetensors has no type for complex128; convert it to complex64 first, or write a .pt file"
                raise OutputError(what, file=self._output, tensor=clip(name), found=dtype.torch_name)
            end = begin + tensor_bytes(dtype, shape)
            document[name] = {"dtype": dtype.name, "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        # Spaces up to a multiple of 64: every tensor is then as aligned in the file as its offset is.
        text += b" " * (-(LENGTH_BYTES + len(text)) % _ALIGNMENT)
        if len(text) > MAX_JSON_BYTES:
            raise OutputError("header too large", file=self._output, found=len(text), expected=f"<= {MAX_JSON_BYTES}")
        header = len(text).to_bytes(LENGTH_BYTES, "little") + text
        for spec, begin in zip(tensors, begins, strict=True):
            self._add(shard, spec, len(header) + begin)
        self._headers.append(header)
        self.shard_bytes.append(len(header) + data_bytes)


def _check_name(output: Path, name: str) -> None:
    if name == METADATA_KEY:
        raise OutputError("name is reserved by the safetensors format", file=output, tensor=name)


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
        cursor += tensor_bytes(tensors[i][1], tensors[i][2])
    return begins, cursor
