"""An opened checkpoint: names, shapes, types and byte ranges of all its files, and its tensors on request.

Nothing stays open. Callers that stream take :meth:`Checkpoint.open_file` and read ``entry.nbytes`` at ``entry.offset``;
:meth:`Checkpoint.check_unchanged` tells afterwards whether these numbers still hold.
"""

from __future__ import annotations

import copy
import math
import os
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from .. import dtypes
from ..dtypes import DType
from ..errors import CheckpointError
from .contents import Contents, Form
from .formats import read_contents
from .index import DISTRIBUTED_METADATA, Source, resolve
from .reading import FileStamp, open_file, read_exactly
from .strict_json import clip, describe, parse_strings

if TYPE_CHECKING:
    import torch

ALIASES_KEY = "pysoup.aliases"
"""Metadata key of the names that share a stored tensor: a JSON object, alias -> stored name."""


class TensorEntry(NamedTuple):
    """Where one tensor lies: ``nbytes`` bytes at ``offset`` (absolute, in bytes) of ``Checkpoint.files[file]``.

    With a ``form`` these bytes are not simply there: ``offset`` is where its first element or its deflate stream is,
    and :class:`Unpacked` makes plain bytes of it.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: int
    offset: int
    nbytes: int
    form: Form | None = None


def open_checkpoint(path: str | os.PathLike[str], entry: str | None = None) -> Checkpoint:
    """Open a weight file (safetensors, torch's, numpy's), an index file, or a directory that holds either.

    Also a directory of ``torch.distributed.checkpoint``.

    ``entry`` names the state dict to take from a nested file, such as ``"ema"`` or ``"model.state_dict"``. Reads what
    describes the tensors only, and checks it in full; nothing in a file is ever executed. Raises CheckpointError: one
    line with the file, the tensor, what was found and what was expected.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise CheckpointError("not a checkpoint", found=type(path).__name__, expected="a path")
    source = resolve(Path(path))
    if source.index_file is not None and source.index_file.name == DISTRIBUTED_METADATA:
        from .distributed import read_distributed

        return Checkpoint(Path(path), source, read_distributed(source.index_file, source.files, entry))
    return Checkpoint(Path(path), source, [read_contents(file, entry) for file in source.files])


class Checkpoint:
    """The names, types and places of the tensors of one model; made by :func:`open_checkpoint`.

    Iteration, ``len`` and ``in`` speak of stored tensors, shard by shard in the order of the file. :meth:`entry` and
    :meth:`tensor` also take the names in ``aliases``. ``format`` is ``"safetensors"``, ``"torch"``,
    ``"torch-legacy"``, ``"npz"`` or ``"dcp"``; ``entry_name`` is the nested entry that was taken (``""``: none), and
    ``dropped`` lists what else a file holds. State per tensor is about 100 bytes besides the name.
    """

    def __init__(self, path: Path, source: Source, contents: list[Contents]) -> None:
        self.path = path
        self.files = source.files
        self.is_directory = source.is_directory
        self.kind: Literal["file", "sharded"] = "sharded" if source.is_directory else "file"
        self.index_file = source.index_file
        self.format = contents[0].format
        self.entry_name = contents[0].entry
        self.dropped = [text for file in contents for text in file.dropped]
        self.metadata = contents[0].metadata
        self.stamps = tuple(file.stamp for file in contents)
        self.digests = tuple(file.digest for file in contents)
        self.aliases: dict[str, str] = {}
        self._index: dict[str, int] = {}
        self._dtypes: array[int] = array("B")
        self._shapes: list[tuple[int, ...]] = []
        self._begins: array[int] = array("Q")
        self._forms: dict[int, Form] = {}
        self._first_of_file: list[int] = []
        for file in contents:
            self._append(file)
        self._take_aliases(contents)
        if source.weight_map is not None:
            _check_index(self, source.index_file or path, source.weight_map)
        self.numel = sum(map(math.prod, self._shapes))
        self.total_bytes = sum(
            math.prod(shape) * dtypes.ALL[code].itemsize for shape, code in zip(self._shapes, self._dtypes, strict=True)
        )

    def renamed(self, names: Mapping[str, str]) -> Checkpoint:
        """The same checkpoint with other names for some of its tensors; the caller keeps them distinct."""
        other = copy.copy(self)
        other._index = {names.get(name, name): position for name, position in self._index.items()}
        other.aliases = {names.get(a, a): names.get(name, name) for a, name in self.aliases.items()}
        return other

    def only(self, takes: Callable[[str], bool]) -> Checkpoint:
        """The same checkpoint without the tensors, and the aliases, whose name ``takes`` refuses.

        Of tied names the first one that is left stands for the tensor.
        """
        other = copy.copy(self)
        other._index, other.aliases = {}, {}
        owners: dict[int, str] = {}
        for name in filter(takes, (*self._index, *self.aliases)):
            position = self._index[self.aliases.get(name, name)]
            if owners.setdefault(position, name) == name:
                other._index[name] = position
            else:
                other.aliases[name] = owners[position]
        other._index = dict(sorted(other._index.items(), key=lambda item: item[1]))
        other._total()
        return other

    def _total(self) -> None:
        entries = list(map(self.entry, self._index))
        self.numel = sum(math.prod(entry.shape) for entry in entries)
        self.total_bytes = sum(entry.nbytes for entry in entries)

    def _append(self, contents: Contents) -> None:
        before = len(self._index)
        self._first_of_file.append(before)
        for position, name in enumerate(contents.names):
            other = self._index.setdefault(name, before + position)
            if other != before + position:
                what = f"the same tensor is also in shard {self.files[self._file_of(other)].name!r}"
                raise CheckpointError(what, file=contents.path, tensor=clip(name))
        self._dtypes.extend(contents.dtypes)
        self._shapes.extend(contents.shapes)
        self._begins.extend(contents.begins)
        self._forms.update((before + position, form) for position, form in contents.forms.items())

    def _file_of(self, position: int) -> int:
        return bisect_right(self._first_of_file, position) - 1

    def _take_aliases(self, contents: list[Contents]) -> None:
        """Names tied by a file itself, and those that pysoup's own metadata tells."""
        for file in contents:
            for alias, stored in file.aliases.items():
                if alias in self or self.aliases.setdefault(alias, stored) != stored:
                    raise CheckpointError(
                        "the same tensor is also in another shard", file=file.path, tensor=clip(alias)
                    )
            text = file.metadata.get(ALIASES_KEY)
            if text is None:
                continue
            for alias, stored in parse_strings(text.encode("utf-8"), file.path, f"metadata {ALIASES_KEY}").items():
                if alias in self or stored not in self or self.aliases.setdefault(alias, stored) != stored:
                    what = f"metadata {ALIASES_KEY} does not fit the tensors"
                    found, expected = f"{clip(alias)!r} -> {describe(stored)}", "a new name -> a stored tensor"
                    raise CheckpointError(what, file=file.path, found=found, expected=expected)

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, tensors={len(self)}, bytes={self.total_bytes})"

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    @property
    def has_forms(self) -> bool:
        """Whether some tensors are not plain bytes in their files."""
        return bool(self._forms)

    def entry(self, name: str) -> TensorEntry:
        """Type, shape and byte range of tensor ``name`` (an alias gives that of its stored tensor)."""
        stored = self.aliases.get(name, name)
        position = self._index.get(stored)
        if position is None:
            raise CheckpointError("no such tensor", file=self.path, tensor=clip(name))
        dtype, shape = dtypes.ALL[self._dtypes[position]], self._shapes[position]
        nbytes = math.prod(shape) * dtype.itemsize
        form = self._forms.get(position) if self._forms else None
        return TensorEntry(stored, dtype, shape, self._file_of(position), self._begins[position], nbytes, form)

    def tensor(self, name: str) -> torch.Tensor:
        """Tensor ``name``, read into memory of its own. Raises CheckpointError, also if the file ends early."""
        entry = self.entry(name)
        fd = self.open_file(entry.file)
        try:
            return self._read(fd, entry)
        finally:
            os.close(fd)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All tensors in the order of the data, then the aliases, which are the same objects as what they alias."""
        result: dict[str, torch.Tensor] = {}
        of_file: dict[int, list[str]] = {file: [] for file in range(len(self.files))}
        for name, position in self._index.items():
            of_file[self._file_of(position)].append(name)
        for file, names in of_file.items():
            fd = self.open_file(file)
            try:
                for name in names:
                    result[name] = self._read(fd, self.entry(name))
            finally:
                os.close(fd)
        for alias, stored in self.aliases.items():
            result[alias] = result[stored]
        return result

    def _read(self, fd: int, entry: TensorEntry) -> torch.Tensor:
        import torch

        dtype = getattr(torch, entry.dtype.torch_name)
        if not entry.nbytes:
            return torch.empty(entry.shape, dtype=dtype)
        buffer = bytearray(entry.nbytes)
        file = self.files[entry.file]
        if entry.form is None:
            read_exactly(fd, memoryview(buffer), entry.offset, file, entry.name)
        else:
            from .unpack import Unpacked

            with Unpacked() as unpacked:
                offset, plain = unpacked.place(fd, entry, file)
                read_exactly(plain, memoryview(buffer), offset, file, entry.name)
        return torch.frombuffer(buffer, dtype=dtype).reshape(entry.shape)

    def open_file(self, file: int) -> int:
        """A descriptor of one file for positional reads; the caller closes it. CheckpointError if it changed."""
        fd = open_file(self.files[file])
        try:
            self.check_unchanged(file, fd)
        except CheckpointError:
            os.close(fd)
            raise
        return fd

    def check_unchanged(self, file: int, fd: int) -> None:
        """Raise CheckpointError if the open file is another one, or was written to, since its header was read."""
        now, then = FileStamp.of(os.fstat(fd)), self.stamps[file]
        if now != then:
            found, expected = (f"{now.size} bytes", f"{then.size} bytes") if now.size != then.size else (None, None)
            what = "file changed since its header was checked"
            raise CheckpointError(what, file=self.files[file], found=found, expected=expected)


def _check_index(checkpoint: Checkpoint, index: Path, weight_map: dict[str, str]) -> None:
    """Index and shards must name the same tensors in the same places."""
    for name, shard in weight_map.items():
        if name not in checkpoint and name not in checkpoint.aliases:
            raise CheckpointError(f"listed in the index, but not in shard {shard!r}", file=index, tensor=clip(name))
        found = checkpoint.files[checkpoint.entry(name).file].name
        if found != shard:
            raise CheckpointError(
                "in another shard than the index says", file=index, tensor=clip(name), found=found, expected=shard
            )
    for name in checkpoint:
        if name not in weight_map:
            shard = checkpoint.files[checkpoint.entry(name).file].name
            raise CheckpointError(f"in shard {shard!r}, but not in the index", file=index, tensor=clip(name))
