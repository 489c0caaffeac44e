"""Where the tensors of an output go: what every format of output tells the writer. All in bytes."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from ...dtypes import DType
from ...errors import OutputError
from ..checkpoint import ALIASES_KEY
from ..strict_json import clip, describe, is_text

TensorSpec: TypeAlias = tuple[str, DType, tuple[int, ...]]
Layout: TypeAlias = Sequence[tuple[str, Sequence[TensorSpec]]]
"""Shard file name and its tensors, in order; a single file has one shard, whose name plays no part."""


class Placement(ABC):
    """The place of every tensor of a layout, and the bytes around them, all known before a byte is written.

    A format says in :meth:`_place` where the tensors of a shard go, in :meth:`pieces` what stands between them, and
    in :meth:`finish` what depends on their data. ``shard_bytes`` are the sizes of the finished files.
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
        self.shard_bytes: list[int] = []
        self.parameters = 0
        self._check_shards(is_directory)
        self._check_texts(layout, metadata, aliases)
        self._metadata = {key: value for key, value in metadata.items() if key != ALIASES_KEY}
        self._aliases = dict(aliases)
        for shard, (_, tensors) in enumerate(layout):
            self._place(shard, tensors)
        self.tensor_bytes = sum(self._sizes)
        self.total_bytes = sum(self.shard_bytes)

    def where(self, name: str) -> tuple[int, int, int]:
        """Shard number, absolute offset and size of a tensor."""
        position = self._position.get(name)
        if position is None:
            raise OutputError("no such tensor in the layout", file=self._output, tensor=clip(name))
        return self._shard_of[position], self._begins[position], self._sizes[position]

    @abstractmethod
    def pieces(self, shard: int) -> Iterator[tuple[int, bytes]]:
        """Offset and content of all that does not depend on the data of the tensors."""

    @abstractmethod
    def finish(self, shard: int, fd: int) -> None:
        """Write what depends on the data of the tensors, which are all there."""

    def index_file(self) -> tuple[str, bytes] | None:
        """Name and content of the file that tells which shard holds what, where readers need one."""
        return None

    @abstractmethod
    def _place(self, shard: int, tensors: Sequence[TensorSpec]) -> None:
        """Call :meth:`_add` for each tensor and append to ``shard_bytes``. Raises OutputError."""

    def _add(self, shard: int, spec: TensorSpec, begin: int) -> None:
        name, dtype, shape = spec
        if self._position.setdefault(name, len(self._position)) != len(self._sizes):
            raise OutputError("duplicate tensor name", file=self._output, tensor=clip(name))
        self._shard_of.append(shard)
        self._begins.append(begin)
        self._sizes.append(tensor_bytes(dtype, shape))
        self.parameters += math.prod(shape)

    def _check_shards(self, is_directory: bool) -> None:
        if not self.shards or (len(self.shards) > 1 and not is_directory):
            raise OutputError("a file holds exactly one shard", file=self._output, found=len(self.shards), expected=1)
        if is_directory:
            for name in self.shards:
                check_plain_name(self._output, name, "shard")
        if len(set(self.shards)) != len(self.shards):
            raise OutputError("duplicate shard name", file=self._output, found=describe(sorted(self.shards)))

    def _check_texts(self, layout: Layout, metadata: Mapping[str, str], aliases: Mapping[str, str]) -> None:
        for key, value in metadata.items():
            if not is_text(key) or not is_text(value):
                raise OutputError(f"metadata {describe(key)} is not text", file=self._output, found=describe(value))
        stored = {name for _, tensors in layout for name, _, _ in tensors}
        for name in (*stored, *aliases):
            if not is_text(name):
                raise OutputError("name is not valid Unicode", file=self._output, tensor=clip(name))
        for alias, name in aliases.items():
            if alias in stored or name not in stored:
                what = "alias does not fit the tensors"
                raise OutputError(what, file=self._output, tensor=clip(alias), found=f"alias of {clip(name)!r}")


def tensor_bytes(dtype: DType, shape: Sequence[int]) -> int:
    """Size of a tensor's data in bytes."""
    return math.prod(shape) * dtype.itemsize


def check_plain_name(output: Path, name: str, kind: str) -> None:
    """Raise OutputError unless ``name`` is that of a visible file right inside a directory."""
    plain = is_text(name) and name == os.path.basename(name) and name and "\0" not in name
    if not plain or name.startswith("."):
        raise OutputError(f"invalid {kind} name", file=output, found=describe(name), expected="a plain file name")
