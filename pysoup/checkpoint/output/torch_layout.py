"""The zip format of torch.save as it is written, without torch: what `torch.load` reads and can map into memory.

Records, in torch's own order: ``data.pkl``, the format's version marks, ``pysoup.json`` (metadata: an object of
strings, which torch ignores), one ``data/N`` a tensor, and an id of the content.
"""

from __future__ import annotations

import json
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..contents import METADATA_RECORD
from .layout import Layout, Placement, TensorSpec, tensor_bytes
from .state_dict_pickle import TensorRecord, state_dict_pickle
from .writing import file_crc32, write_fully
from .zip_layout import ALIGNMENT, ZipLayout

_TOP = "archive"
"""The folder that all records are in; torch takes the output's name, or this where it has none."""
_ID_DIGITS = 40


class TorchPlacement(Placement):
    """One ``.pt`` file: its tensors in the order given, aliases last, each a name for the storage it shares.

    The data of every tensor begin at a multiple of 64 bytes. Checksums are taken from the finished data.
    """

    def __init__(
        self, output: Path, layout: Layout, metadata: Mapping[str, str], aliases: Mapping[str, str], is_directory: bool
    ) -> None:
        self._zip = ZipLayout()
        self._known: dict[int, bytes] = {}
        self._id_record = 0
        super().__init__(output, layout, metadata, aliases, is_directory)

    def pieces(self, shard: int) -> Iterator[tuple[int, bytes]]:
        for record in range(len(self._zip.names)):
            yield self._zip.local_header(record)
            content = self._known.get(record)
            if content is not None:
                descriptor = self._zip.descriptor(record, zlib.crc32(content))
                yield self._zip.offsets[record], content + descriptor

    def finish(self, shard: int, fd: int) -> None:
        crcs = array("I")
        for record, (offset, size) in enumerate(zip(self._zip.offsets, self._zip.sizes, strict=True)):
            known = self._known.get(record)
            if known is not None:
                crcs.append(zlib.crc32(known))
                continue
            if record == self._id_record:
                write_fully(fd, self._content_id(crcs), offset)
            crcs.append(file_crc32(fd, offset, size, self._output))
            if size:
                write_fully(fd, self._zip.descriptor(record, crcs[record]), offset + size)
        write_fully(fd, self._zip.directory(crcs), self._zip.directory_offset)

    def _place(self, shard: int, tensors: Sequence[TensorSpec]) -> None:
        numbers = {name: number for number, (name, _, _) in enumerate(tensors)}
        records = [TensorRecord(*spec, numbers[spec[0]]) for spec in tensors]
        records += [records[numbers[name]]._replace(name=alias) for alias, name in self._aliases.items()]
        self._add_known("data.pkl", state_dict_pickle(records))
        self._add_known(".format_version", b"1")
        self._add_known(".storage_alignment", str(ALIGNMENT).encode("ascii"))
        self._add_known("byteorder", b"little")
        if self._metadata:
            content = json.dumps(self._metadata, indent=2, ensure_ascii=False)
            self._add_known(METADATA_RECORD, content.encode("utf-8"))
        for number, spec in enumerate(tensors):
            self._add(shard, spec, self._zip.add(f"{_TOP}/data/{number}", tensor_bytes(spec[1], spec[2])))
        self._add_known("version", b"3\n")
        self._id_record = len(self._zip.names)
        self._zip.add(f"{_TOP}/.data/serialization_id", _ID_DIGITS)
        self.shard_bytes.append(self._zip.total_bytes)

    def _add_known(self, name: str, content: bytes) -> None:
        self._known[len(self._zip.names)] = content
        self._zip.add(f"{_TOP}/{name}", len(content))

    def _content_id(self, crcs: array[int]) -> bytes:
        """As torch's: digits that tell files of different content apart."""
        import hashlib

        digest = hashlib.blake2b(self._known[0] + crcs.tobytes(), digest_size=16).digest()
        return b"%0*d" % (_ID_DIGITS, int.from_bytes(digest, "little") % 10**_ID_DIGITS)
