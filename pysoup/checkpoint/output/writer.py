"""Writes a weight file or a directory of shards: all at once beside the target, published by one rename.

    with CheckpointWriter(Path("soup.safetensors"), layout, metadata={...}, inputs=checkpoints) as writer:
        writer.write_bytes(name, data)      # or os.pwrite(writer.fd(shard), ...) at writer.offset(name)
        writer.commit()

Whatever ends the block without a commit leaves an old output as it was and removes everything temporary.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from ...dtypes import DType
from ...errors import OutputError
from ..checkpoint import Checkpoint
from ..strict_json import clip
from . import publish
from .carry import Carried, copy_carried, find_carried
from .layout import check_plain_name
from .output_format import place
from .preflight import check_not_an_input, check_space, check_target, output_error
from .writing import reserve, write_fully

_NOTHING = Carried((), (), 0)


class CheckpointWriter:
    """One output, from the checks to the rename. Every failure is an OutputError of one line.

    ``output`` ends in ``.safetensors``, ``.pt`` or ``.pth``, or is a directory of safetensors files. ``layout`` is a
    list of (shard file name, list of (tensor name, type, shape)); a file output has one shard, which takes the
    output's name. ``metadata`` goes into every shard; ``aliases`` (alias -> stored name) are written as ties.
    ``inputs`` are never overwritten. Into a directory output also go ``files`` (name -> content), and the config,
    tokenizer and licence files of the directory ``carry`` (``carried``), except those of the same name
    (``rewritten``); ``left`` lists what else is there and may be missed. ``nbytes`` is the size of all weight files.
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        layout: Sequence[tuple[str, Sequence[tuple[str, DType, tuple[int, ...]]]]],
        *,
        metadata: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
        is_directory: bool = False,
        overwrite: bool = False,
        inputs: Sequence[Checkpoint] = (),
        carry: str | os.PathLike[str] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        self.output = Path(output)
        self.is_directory = is_directory
        self._target = _target(self.output, is_directory)
        self._overwrite = overwrite
        self._inputs = inputs
        if not is_directory and len(layout) == 1:
            layout = [(self._target.name, layout[0][1])]
        self._placement = place(self.output, layout, metadata or {}, aliases or {}, is_directory)
        self._files = self._small_files(files or {}) if is_directory else {}
        self._carry = Path(carry) if carry is not None and is_directory else None
        found = find_carried(self._carry) if self._carry else _NOTHING
        self.carried = tuple(name for name in found.names if name not in self._files)
        self.rewritten = tuple(name for name in found.names if name in self._files)
        self.left = found.left
        self._small_bytes = found.nbytes + sum(map(len, self._files.values()))
        self.nbytes = self._placement.total_bytes
        self._temporary: Path | None = None
        self._lock: int | None = None
        self._fds: dict[str, int] = {}

    @property
    def shards(self) -> tuple[str, ...]:
        """File names of the shards, in order."""
        return self._placement.shards

    def check(self) -> None:
        """All that can be known to go wrong, without writing anything. Raises OutputError."""
        names = {*self.shards, *self._files, *self.carried}
        check_target(self._target, is_directory=self.is_directory, overwrite=self._overwrite, files=names)
        check_not_an_input(self._target, self._inputs, is_directory=self.is_directory)
        check_space(self._target, self.nbytes + self._small_bytes)

    def __enter__(self) -> CheckpointWriter:
        publish.remove_stale(self._target)
        self.check()
        try:
            self._create()
        except (OSError, ValueError) as error:
            self._discard()
            raise output_error(error, self.output, self.nbytes) from None
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()

    def fd(self, shard: str) -> int:
        """Descriptor of a shard, open for positional reads and writes until the block ends."""
        try:
            return self._fds[shard]
        except KeyError:
            raise OutputError("shard is not open for writing", file=self.output, found=repr(clip(shard))) from None

    def offset(self, name: str) -> tuple[str, int]:
        """Shard and absolute offset in bytes where the data of tensor ``name`` begin."""
        shard, begin, _ = self._placement.where(name)
        return self.shards[shard], begin

    def write_bytes(self, name: str, buffer: bytes | bytearray | memoryview, start: int = 0) -> None:
        """Write bytes of tensor ``name`` from its byte ``start`` on. Raises OutputError, also beyond its end."""
        shard, begin, size = self._placement.where(name)
        view = memoryview(buffer).cast("B") if len(buffer) else memoryview(b"")
        if start < 0 or start + len(view) > size:
            found, expected = f"bytes {start} to {start + len(view)}", f"within {size} bytes"
            raise OutputError(
                "write outside the tensor", file=self.output, tensor=clip(name), found=found, expected=expected
            )
        try:
            write_fully(self.fd(self.shards[shard]), view, begin + start)
        except OSError as error:
            raise output_error(error, self.output, self.nbytes) from None

    def commit(self, *, sync: bool = True) -> None:
        """Publish the output under its name, atomically; with ``sync`` only after it is safely on the disk."""
        if self._temporary is None:
            raise OutputError("nothing to commit: not opened, or committed already", file=self.output)
        try:
            for number, shard in enumerate(self.shards):
                self._placement.finish(number, self._fds[shard])
            if sync:
                self._sync()
            rename = publish.publish_directory if self.is_directory else publish.publish_file
            old = rename(self._temporary, self._target, self._overwrite)
            self._temporary = None
            # Removing a directory takes descriptors, which may be scarce.
            self._close()
            if old is not None:
                publish.remove(old)
            if sync:
                publish.sync_directory(self._target.parent)
        except OSError as error:
            raise output_error(error, self.output, self.nbytes) from None

    def _create(self) -> None:
        # Known before it exists: an interrupt between the two must not leave it behind.
        self._temporary = temporary = publish.temporary_path(self._target)
        if self.is_directory:
            os.mkdir(temporary)
            self._lock = publish.lock(temporary)
        for number, shard in enumerate(self.shards):
            path = temporary / shard if self.is_directory else temporary
            self._fds[shard] = fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            if not self.is_directory:
                self._lock = publish.lock(temporary)
            reserve(fd, self._placement.shard_bytes[number])
            for offset, content in self._placement.pieces(number):
                write_fully(fd, content, offset)
        for name, content in self._files.items():
            (temporary / name).write_bytes(content)
        if self._carry:
            copy_carried(self._carry, self.carried, temporary)

    def _small_files(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """``files`` and the index, which no file may replace."""
        index = self._placement.index_file()
        taken = {*self.shards, *(() if index is None else (index[0],))}
        for name in files:
            check_plain_name(self.output, name, "file")
            if name in taken:
                raise OutputError("duplicate file name", file=self.output, found=repr(clip(name)))
        return {**files, **({} if index is None else {index[0]: index[1]})}

    def _sync(self) -> None:
        for fd in self._fds.values():
            os.fsync(fd)
        if not self.is_directory or self._temporary is None:
            return
        for folder, _, names in os.walk(self._temporary):
            for name in names:
                if name not in self._fds:
                    with open(os.path.join(folder, name), "rb") as file:
                        os.fsync(file.fileno())
            publish.sync_directory(Path(folder))

    def _discard(self) -> None:
        """Close everything; remove what was not committed."""
        self._close()
        if self._temporary is not None:
            publish.remove(self._temporary)
            self._temporary = None

    def _close(self) -> None:
        for fd in (*self._fds.values(), *(() if self._lock is None else (self._lock,))):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._fds.clear()
        self._lock = None


def _target(output: Path, is_directory: bool) -> Path:
    """What is renamed onto: a linked directory itself, but a linked file's link, so that shared blobs stay whole."""
    if is_directory and os.path.isdir(output):
        return Path(os.path.realpath(output))
    return Path(os.path.abspath(output))
