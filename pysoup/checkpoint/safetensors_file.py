"""The header of one safetensors file, validated in full before any tensor byte is read.

Layout of a file: u64 little-endian length N, N bytes of JSON, then the tensor data, which the offsets of all tensors
must tile without gap, overlap or rest. Stricter than the safetensors library (0.8), which lets these pass: duplicate
names, extra keys, tensors as JSON arrays, a null ``__metadata__``, white space before ``{``, sizes beyond 63 bits
hidden behind a zero, and types that pysoup cannot average (F4, F6, F8_E8M0, the FNUZ types).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from .. import dtypes
from ..errors import CheckpointError
from .contents import Contents
from .reading import FileStamp, open_file, read_exactly
from .strict_json import MAX_JSON_BYTES, clip, describe, is_text, parse_strict

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
        stamp = FileStamp.of(os.fstat(fd))
        raw = _header_bytes(fd, path, stamp.size)
    finally:
        os.close(fd)
    header = Contents(path, "safetensors", stamp, hash(bytes(raw)))
    document = parse_strict(raw, path, "header")
    _take_metadata(header, document)
    _take_tensors(header, document, data_start=LENGTH_BYTES + len(raw))
    return header


def _header_bytes(fd: int, path: Path, size: int) -> bytearray:
    if size == 0:
        raise CheckpointError("file is empty", file=path)
    if size < LENGTH_BYTES:
        what = "too short for a safetensors file"
        raise CheckpointError(what, file=path, found=f"{size} bytes", expected=f"at least {LENGTH_BYTES}")
    first = bytearray(LENGTH_BYTES)
    read_exactly(fd, memoryview(first), 0, path)
    length = int.from_bytes(first, "little")
    # The length is compared with the file before anything of that size is allocated.
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
    raw = bytearray(length)
    read_exactly(fd, memoryview(raw), LENGTH_BYTES, path)
    if not raw.startswith(b"{"):
        what = "header is not valid JSON: it must begin with '{'"
        raise CheckpointError(what, file=path, found=describe(bytes(raw[:8])))
    return raw


def _take_metadata(header: Contents, document: dict[str, object]) -> None:
    metadata = document.pop(METADATA_KEY, {})
    if type(metadata) is not dict:
        what = f"{METADATA_KEY} is not an object"
        raise CheckpointError(what, file=header.path, found=describe(metadata), expected="an object of strings")
    for key, value in metadata.items():
        if not is_text(key) or not is_text(value):
            what = f"{METADATA_KEY}: value of {clip(key)!r} is not a string"
            raise CheckpointError(what, file=header.path, found=describe(value), expected="a string")
    header.metadata = metadata


def _take_tensors(header: Contents, document: dict[str, object], data_start: int) -> None:
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    rows: list[tuple[int, int, str, int, tuple[int, ...]]] = []
    for name, value in document.items():
        if not is_text(name):
            _fail(header, name, "name is not valid Unicode")
        code, shape, begin, end = _entry(header, name, value)
        rows.append((begin, end, name, code, shapes.setdefault(shape, shape)))
    rows.sort(key=lambda row: row[:2])
    _check_tiling(header, rows, data_size=header.stamp.size - data_start)
    for begin, _, name, code, shape in rows:
        header.names.append(name)
        header.dtypes.append(code)
        header.shapes.append(shape)
        header.begins.append(data_start + begin)


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


def _check_tiling(header: Contents, rows: list[tuple[int, int, str, int, tuple[int, ...]]], data_size: int) -> None:
    cursor, previous, past = 0, "", None
    for begin, end, name, _, _ in rows:
        if begin != cursor:
            before = f"after tensor {clip(previous)!r}" if previous else "before the first tensor"
            kind = f"overlaps tensor {clip(previous)!r}" if begin < cursor else f"data has a gap {before}"
            _fail(header, name, kind, f"begin {begin}", f"begin {cursor}")
        if end > data_size and past is None:
            past = name
        cursor, previous = end, name
    if past is not None:
        what = f"file is truncated: {cursor - data_size} bytes of tensor data are missing"
        _fail(header, past, what, f"{data_size} bytes", f"{cursor} bytes")
    if cursor < data_size:
        what = f"{data_size - cursor} bytes after the last tensor belong to none"
        raise CheckpointError(what, file=header.path, found=f"{data_size} bytes of data", expected=f"{cursor} bytes")


def _fail(header: Contents, name: str, what: str, found: object = None, expected: object = None) -> NoReturn:
    raise CheckpointError(what, file=header.path, tensor=clip(name), found=found, expected=expected)
