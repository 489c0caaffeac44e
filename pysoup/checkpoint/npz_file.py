"""numpy's ``.npz``: a zip archive with one ``.npy`` file an array, read without numpy.

Two kinds are met: written by ``np.savez`` (stored: arrays are streamed from the file) and by ``np.savez_compressed``
(deflated: arrays are unpacked first). Names are those of the members without ``.npy``, such as
``params/img/Transformer/encoderblock_0/LayerNorm_0/scale`` in the checkpoints of big_vision.

numpy has no bfloat16: what jax and ml_dtypes save as such are opaque items of two bytes ("V2"). They are read as BF16,
as big_vision does itself. The 8-bit floats of ml_dtypes look alike in a file, and are refused.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, NoReturn

from .. import dtypes
from ..errors import CheckpointError
from .contents import Contents, Deflated, Strided
from .reading import FileStamp, open_file, read_exactly
from .strict_json import clip, describe
from .zip_records import Record, read_records

_SUFFIX = ".npy"
_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4, (3, 0): 4}
"""Of the header's length, by version of the format."""
_MOST_HEADER = 64 << 10
"""An array of one type has 64 to 1,500 bytes; numpy itself reads no more than 10,000."""
_MOST_DEFLATED_HEADER = 128 << 10
_MOST_DIMENSIONS = 64
_LARGEST = 2**63 - 1

# Where both are in one file it is a training run's: whose average is wanted cannot be guessed.
_TRAINING = (("params", "opt"), ("opt/target", "opt/state"))

_TYPES = {
    "f8": dtypes.F64,
    "f4": dtypes.F32,
    "f2": dtypes.F16,
    "V2": dtypes.BF16,
    "c8": dtypes.C64,
    "c16": dtypes.C128,
    "b1": dtypes.BOOL,
    **{f"{d.name[0].lower()}{d.itemsize}": d for d in dtypes.ALL if d.kind == "int"},
}
_CODES = {f"<{name}": dtypes.ALL.index(dtype) for name, dtype in _TYPES.items()}
# Where there is no order of bytes to tell.
_CODES |= {f"|{name}": _CODES[f"<{name}"] for name in ("V2", "b1", "i1", "u1")}

_REFUSED = (
    (re.compile(r"[<|>=]?O.*"), "Python objects (a pickle), which are never loaded"),
    (re.compile(r"[<|]?(V1|f1)|float8\w*"), "an 8-bit float whose type the file does not tell; convert it first"),
    (re.compile(r">.*"), "big-endian; convert it first"),
    (re.compile(r"[<|=]?[SUa][0-9]*"), "a string type"),
    (re.compile(r"[<=]?[Mm]8.*"), "a date type"),
    (re.compile(r"<(f|c)[0-9]+"), "a float of this machine's own; convert it first"),
)

_FIELD = re.compile(
    r"""[ \t\n]*(?P<q>['"])(?P<key>[a-z_]+)(?P=q)[ \t\n]*:[ \t\n]*"""
    r"""(?:(?P<p>['"])(?P<text>[^'"\\]*)(?P=p)|(?P<flag>True|False)|\((?P<sizes>[0-9L, ]*)\))[ \t\n]*(?:,|$)"""
)
_STRUCTURED = re.compile(r"""(['"])descr\1\s*:\s*[\[(]""")
_SIZE = re.compile(r" *([0-9]{1,20})L? *")


class _Header(NamedTuple):
    """What one ``.npy`` header says; ``length`` is that of all before the data."""

    code: int
    fortran: bool
    shape: tuple[int, ...]
    length: int


def read_npz(path: Path, entry: str | None = None) -> Contents:
    """Read and check the directory and all headers of ``path``. Every fault raises a one-line CheckpointError.

    ``entry`` (such as ``"params"``) takes only the arrays whose names begin with it and a slash; names stay whole.
    Without it all are taken, but not from a training checkpoint of big_vision, where an optimizer's state stands beside
    the parameters: there it must be given (``""`` for all).
    """
    fd = open_file(path)
    try:
        contents = Contents(path, "npz", FileStamp.of(os.fstat(fd)), 0)
        arrays = _arrays(path, read_records(fd, path, contents.stamp.size))
        contents.entry = _entry(path, arrays, entry)
        for name, record in arrays.items():
            if _below(name, contents.entry):
                _take(contents, fd, name, record)
    finally:
        os.close(fd)
    contents.dropped = _beside(arrays, contents.entry) if contents.entry else []
    columns = (tuple(contents.names), bytes(contents.dtypes), tuple(contents.shapes), contents.begins.tobytes())
    contents.digest = hash((columns, tuple(contents.forms.items())))
    return contents


def _arrays(path: Path, records: dict[str, Record]) -> dict[str, Record]:
    for member in records:
        if not member.endswith(_SUFFIX):
            what = "member of the archive is no array"
            raise CheckpointError(what, file=path, found=repr(clip(member)), expected=f"names that end in {_SUFFIX!r}")
    return {member.removesuffix(_SUFFIX): record for member, record in records.items()}


def _below(name: str, entry: str) -> bool:
    return not entry or name.startswith(f"{entry}/")


def _entry(path: Path, names: Iterable[str], entry: str | None) -> str:
    """The entry to take, checked; "" for all."""
    groups = [g for g in _TRAINING if all(any(_below(name, candidate) for name in names) for candidate in g)]
    if entry is None:
        if groups:
            what = f"holds {len(groups[0])} entries, one of which must be chosen: entry= (--entry)"
            raise CheckpointError(what, file=path, found=", ".join(map(repr, groups[0])))
        return ""
    entry = entry.rstrip("/")
    if not any(_below(name, entry) for name in names):
        if not groups:
            return ""  # a plain file beside nested ones: there is nothing to choose in it
        found = ", ".join(repr(clip(part, 60)) for part in _beside(names, "")[:5])
        raise CheckpointError("has no such entry", file=path, found=found or None, expected=repr(clip(entry)))
    return entry


def _beside(names: Iterable[str], entry: str) -> list[str]:
    """The other entries, each by as much of its name as tells it from ``entry``."""
    wanted = entry.split("/")
    parts: dict[str, None] = {}
    for name in names:
        split = name.split("/")
        same = next((i for i, part in enumerate(split) if wanted[i : i + 1] != [part]), len(split) - 1)
        if same < len(wanted):
            parts["/".join(split[: same + 1])] = None
    return list(parts)


def _take(contents: Contents, fd: int, name: str, record: Record) -> None:
    header = _header(contents.path, fd, name, record)
    dtype = dtypes.ALL[header.code]
    nbytes = _byte_size(contents.path, name, header.shape, dtype)
    if record.size - header.length != nbytes:
        what = f"data do not fit {dtype} {describe(list(header.shape))}"
        _fail(contents.path, name, what, f"{record.size - header.length} bytes", f"{nbytes} bytes")
    strides = _fortran_strides(header.shape) if header.fortran else None
    if record.deflated:
        form = Deflated(record.compressed_size, header.length, strides, record.crc)
        contents.forms[len(contents.names)] = form
    elif strides is not None:
        contents.forms[len(contents.names)] = Strided(strides, nbytes)
    contents.names.append(name)
    contents.dtypes.append(header.code)
    contents.shapes.append(header.shape)
    contents.begins.append(record.offset if record.deflated else record.offset + header.length)


def _header(path: Path, fd: int, name: str, record: Record) -> _Header:
    first = _first_bytes(path, fd, name, record, 12)
    if not first.startswith(_MAGIC):
        _fail(path, name, "is no array in numpy's format", describe(first[:6]), describe(_MAGIC))
    width = _LENGTH_BYTES.get((first[6], first[7]))
    if width is None:
        _fail(path, name, "unknown version of numpy's format", f"{first[6]}.{first[7]}", "1.0, 2.0 or 3.0")
    start = len(_MAGIC) + 2 + width
    length = start + int.from_bytes(first[start - width : start], "little")
    if length > _MOST_HEADER:
        _fail(path, name, "header too large for an array of one type", f"{length} bytes", f"at most {_MOST_HEADER}")
    # Latin-1 takes any byte, and what is not ASCII is part of no header that is accepted.
    text = _first_bytes(path, fd, name, record, length)[start:].decode("latin-1")
    fields = _fields(path, name, text)
    return _Header(
        _dtype_code(path, name, fields["descr"]), fields["fortran_order"] == "True", _shape(path, name, fields), length
    )


def _first_bytes(path: Path, fd: int, name: str, record: Record, count: int) -> bytes:
    """The first ``count`` bytes of the member, inflated where need be."""
    if record.size < count:
        _fail(path, name, "too short for its header", f"{record.size} bytes", f"at least {count}")
    if not record.deflated:
        buffer = bytearray(count)
        read_exactly(fd, memoryview(buffer), record.offset, path, clip(name))
        return bytes(buffer)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    output = b""
    # A bound on the input too: blocks may be empty.
    most = min(record.compressed_size, _MOST_DEFLATED_HEADER)
    for start in range(0, most, 4096):
        piece = bytearray(min(4096, most - start))
        read_exactly(fd, memoryview(piece), record.offset + start, path, clip(name))
        try:
            output += inflater.decompress(piece, count - len(output))
        except zlib.error:
            _fail(path, name, "compressed data are damaged")
        if len(output) == count or inflater.eof:
            break
    if len(output) < count:
        _fail(path, name, "compressed data end within the header", f"{len(output)} bytes", f"at least {count}")
    return output


def _fields(path: Path, name: str, text: str) -> dict[str, str]:
    """The three fields of a header: a Python dict literal, of which no more is understood than numpy writes.

    Not ``ast.literal_eval``: it warns on stderr about some texts, and its documentation does not rule out a crash.
    """
    literal = text.strip(" \t\n")
    if _STRUCTURED.search(literal):
        _fail(path, name, "is structured (a record of several types)", describe(literal), "one type")
    if not literal.startswith("{") or not literal.endswith("}"):
        _fail(path, name, "header is damaged", describe(literal), "a dict")
    fields: dict[str, str] = {}
    body = literal[1:-1].rstrip(" \t\n")
    at = 0
    while at < len(body):
        match = _FIELD.match(body, at)
        if match is None or match["key"] in fields:
            _fail(path, name, "header is damaged", describe(body[at:]), "fields in numpy's form, each once")
        kind = {"descr": "text", "fortran_order": "flag", "shape": "sizes"}.get(match["key"])
        if kind is None or match[kind] is None:
            _fail(path, name, f"header has an invalid field {match['key']!r}", describe(match[0].strip()))
        fields[match["key"]] = match[kind]
        at = match.end()
    for key in ("descr", "fortran_order", "shape"):
        if key not in fields:
            _fail(path, name, f"header lacks {key!r}", describe(literal))
    return fields


def _dtype_code(path: Path, name: str, descr: str) -> int:
    code = _CODES.get(descr)
    if code is not None:
        return code
    for pattern, meaning in _REFUSED:
        if pattern.fullmatch(descr):
            _fail(path, name, f"dtype is {meaning}", describe(descr))
    _fail(path, name, "unknown dtype", describe(descr), f"one of {', '.join(_CODES)}")


def _shape(path: Path, name: str, fields: dict[str, str]) -> tuple[int, ...]:
    text = fields["shape"]
    items = text.split(",") if text.strip() else []
    # A tuple of one has a comma: without it, it is a number in brackets.
    single = len(items) == 1
    if len(items) > 1 and not items[-1].strip():
        items.pop()
    matches = [_SIZE.fullmatch(item) for item in items[: _MOST_DIMENSIONS + 1]]
    if single or len(matches) > _MOST_DIMENSIONS or None in matches:
        _fail(path, name, "invalid shape", f"({clip(text, 80)})", f"a tuple of at most {_MOST_DIMENSIONS} sizes")
    return tuple(int(match[1]) for match in matches if match is not None)


def _byte_size(path: Path, name: str, shape: tuple[int, ...], dtype: dtypes.DType) -> int:
    """Bytes of the array; sizes around a zero must fit 63 bits too."""
    nbytes = dtype.itemsize
    for n in shape:
        nbytes *= n or 1
        if nbytes > _LARGEST:
            _fail(path, name, "shape overflows 63 bits", f"{dtype} {describe(list(shape))}")
    return 0 if 0 in shape else nbytes


def _fortran_strides(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides in elements of an array whose first dimension is the fastest; None where C order is the same."""
    if 0 in shape or sum(n > 1 for n in shape) < 2:
        return None
    return tuple(math.prod(shape[:d]) for d in range(len(shape)))


def _fail(path: Path, name: str, what: str, found: object = None, expected: object = None) -> NoReturn:
    raise CheckpointError(what, file=path, tensor=clip(name), found=found, expected=expected)
