"""The header of one safetensors file, validated in full before any tensor byte is read, in bounded memory.

Layout of a file: u64 little-endian length N, N bytes of JSON, then the tensor data, which the offsets of all tensors
must tile without gap, overlap or rest. Stricter than the safetensors library (0.8), which lets these pass: duplicate
names, extra keys, tensors as JSON arrays, a null ``__metadata__``, white space before ``{``, sizes beyond 63 bits
hidden behind a zero, types that pysoup cannot average (F4, F6, F8_E8M0, the FNUZ types), entries of half a million
characters, and metadata of more than eight million or 65,536 keys.
"""

from __future__ import annotations

import os
from array import array
from pathlib import Path
from typing import NoReturn

from .. import dtypes
from ..errors import CheckpointError
from .contents import Contents
from .reading import FileStamp, open_file, read_exactly
from .strict_json import MAX_JSON_BYTES, JsonReader, clip, describe, file_blocks, is_text

LENGTH_BYTES = 8
METADATA_KEY = "__metadata__"
_KEYS = {"dtype", "shape", "data_offsets"}
_LARGEST = 2**63 - 1
"""Sizes are kept in signed 64 bits by torch and by the operating system."""

_CODES = {d.name: code for code, d in enumerate(dtypes.ALL) if d is not dtypes.C128}
_REFUSED = {
    **dict.fromkeys(("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"), "a block-scaled type, which cannot be averaged as stored"),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), "an 8-bit type of other hardware; convert it first"),
}
_SIGNATURES = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes; convert it to safetensors first"),
    (b"\x80\x02", "a pickle, as torch.save wrote; convert it to safetensors first"),
    (b"version ", "a Git LFS pointer, not the data; run `git lfs pull`"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"<!DOCTYP", "a web page"),
    (b"<!doctyp", "a web page"),
)


def read_safetensors(path: Path) -> Contents:
    """Read and check the header of ``path``. Every fault raises a one-line CheckpointError."""
    fd = open_file(path)
    try:
        header = Contents(path, "safetensors", FileStamp.of(os.fstat(fd)), digest=0)
        length = _header_length(fd, path, header.stamp.size)
        reader = JsonReader(file_blocks(fd, LENGTH_BYTES, length, path), path, "header")
        sizes = _take_members(header, reader)
        header.digest = reader.digest
    finally:
        os.close(fd)
    data_start = LENGTH_BYTES + length
    _order_by_data(header, sizes)
    _check_tiling(header, sizes, data_size=header.stamp.size - data_start)
    header.begins = array("Q", (data_start + begin for begin in header.begins))
    return header


def _header_length(fd: int, path: Path, size: int) -> int:
    if size == 0:
        raise CheckpointError("file is empty", file=path)
    if size < LENGTH_BYTES:
        what = "too short for a safetensors file"
        raise CheckpointError(what, file=path, found=f"{size} bytes", expected=f"at least {LENGTH_BYTES}")
    first = bytearray(LENGTH_BYTES)
    read_exactly(fd, memoryview(first), 0, path)
    length = int.from_bytes(first, "little")
    # The length is compared with the file before anything of that size is read.
    if length > size - LENGTH_BYTES or length > MAX_JSON_BYTES:
        for signature, meaning in _SIGNATURES:
            if first.startswith(signature):
                raise CheckpointError(f"not a safetensors file, but {meaning}", file=path)
        if length > MAX_JSON_BYTES:
            raise CheckpointError(
                "header too large", file=path, found=length, expected=f"at most {MAX_JSON_BYTES} bytes"
            )
        what = "header reaches beyond the end of the file (truncated, or not safetensors)"
        raise CheckpointError(what, file=path, found=f"length {length}", expected=f"at most {size - LENGTH_BYTES}")
    text = bytearray(min(length, 8))
    read_exactly(fd, memoryview(text), LENGTH_BYTES, path)
    if not text.startswith(b"{"):
        what = "header is not valid JSON: it must begin with '{'"
        raise CheckpointError(what, file=path, found=describe(bytes(text)))
    return length


def _take_members(header: Contents, reader: JsonReader) -> array[int]:
    """Fill the columns in the order of the header, ``begins`` relative to the data section; returns sizes in bytes."""
    sizes: array[int] = array("Q")
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    for name in reader.members():
        if name == METADATA_KEY:
            header.metadata = reader.strings(METADATA_KEY)
            continue
        value = reader.value()
        if not is_text(name):
            _fail(header, name, "name is not valid Unicode")
        code, shape, begin, end = _entry(header, name, value)
        header.names.append(name)
        header.dtypes.append(code)
        header.shapes.append(shapes.setdefault(shape, shape))
        header.begins.append(begin)
        sizes.append(end - begin)
    reader.end()
    return sizes


def _order_by_data(header: Contents, sizes: array[int]) -> None:
    """Sort all columns by (begin, end). Headers are in this order as a rule, and then nothing is copied."""
    begins = header.begins
    count = len(begins)
    if all(begins[i - 1] + (sizes[i - 1] > 0) <= begins[i] for i in range(1, count)):
        return
    order = sorted(range(count), key=sizes.__getitem__)
    order.sort(key=begins.__getitem__)
    header.names = [header.names[i] for i in order]
    header.shapes = [header.shapes[i] for i in order]
    header.dtypes = array("B", (header.dtypes[i] for i in order))
    header.begins = array("Q", (begins[i] for i in order))
    sizes[:] = array("Q", (sizes[i] for i in order))


def _entry(header: Contents, name: str, value: object) -> tuple[int, tuple[int, ...], int, int]:
    """Code of the type, shape, begin, end (relative to the data section), each consistent with the others."""
    if type(value) is not dict:
        _fail(header, name, "entry is not an object", describe(value), "an object")
    if value.keys() != _KEYS:
        missing, extra = sorted(_KEYS - value.keys()), sorted(value.keys() - _KEYS)
        what = f"entry lacks {missing[0]!r}" if missing else "entry has an unknown key"
        _fail(header, name, what, describe(extra) if extra else None, None if missing else describe(sorted(_KEYS)))
    code = _dtype_code(header, name, value["dtype"])
    shape = value["shape"]
    if type(shape) is not list or not all(type(n) is int and n >= 0 for n in shape):
        _fail(header, name, "invalid shape", describe(shape), "a list of integers >= 0")
    offsets = value["data_offsets"]
    if type(offsets) is not list or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        _fail(header, name, "invalid data_offsets", describe(offsets), "two integers >= 0")
    begin, end = offsets
    if begin > end:
        _fail(header, name, "data_offsets run backwards", describe(offsets))
    nbytes = _byte_size(header, name, shape, dtypes.ALL[code])
    if end - begin != nbytes:
        text = f"{dtypes.ALL[code]} {describe(shape)}"
        _fail(header, name, f"data_offsets do not fit {text}", f"{end - begin} bytes", f"{nbytes} bytes")
    if end > _LARGEST:
        _fail(header, name, "data_offsets overflow", end)
    return code, tuple(shape), begin, end


def _dtype_code(header: Contents, name: str, dtype: object) -> int:
    code = _CODES.get(dtype) if type(dtype) is str else None
    if code is not None:
        return code
    known = ", ".join(_CODES)
    if type(dtype) is str and dtype in _REFUSED:
        _fail(header, name, f"dtype {dtype} is {_REFUSED[dtype]}", dtype, f"one of {known}")
    _fail(header, name, "unknown dtype", describe(dtype), f"one of {known}")


def _byte_size(header: Contents, name: str, shape: list[int], dtype: dtypes.DType) -> int:
    """Bytes of the tensor; sizes around a zero must fit 63 bits too, as torch computes strides from them."""
    nbytes = dtype.itemsize
    for n in shape:
        nbytes *= n or 1
        if nbytes > _LARGEST:
            _fail(header, name, "shape overflows 63 bits", f"{dtype} {describe(shape)}")
    return 0 if 0 in shape else nbytes


def _check_tiling(header: Contents, sizes: array[int], data_size: int) -> None:
    cursor, previous, past = 0, "", None
    for begin, size, name in zip(header.begins, sizes, header.names, strict=True):
        if begin != cursor:
            before = f"after tensor {clip(previous)!r}" if previous else "before the first tensor"
            kind = f"overlaps tensor {clip(previous)!r}" if begin < cursor else f"data has a gap {before}"
            _fail(header, name, kind, f"begin {begin}", f"begin {cursor}")
        cursor, previous = begin + size, name
        if cursor > data_size and past is None:
            past = name
    if past is not None:
        what = f"file is truncated: {cursor - data_size} bytes of tensor data are missing"
        _fail(header, past, what, f"{data_size} bytes", f"{cursor} bytes")
    if cursor < data_size:
        what = f"{data_size - cursor} bytes after the last tensor belong to none"
        raise CheckpointError(what, file=header.path, found=f"{data_size} bytes of data", expected=f"{cursor} bytes")


def _fail(header: Contents, name: str, what: str, found: object = None, expected: object = None) -> NoReturn:
    raise CheckpointError(what, file=header.path, tensor=clip(name), found=found, expected=expected)
