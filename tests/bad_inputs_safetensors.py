"""Rows of bad safetensors files. Most of them the safetensors library refuses too; the rest break a stated rule."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from bad_inputs import (
    DATA,
    HEADER,
    Make,
    Oracle,
    Row,
    has_duplicates,
    safetensors_refuses,
)
from checkpoint_files import entry, raw_file

A, W = HEADER["a"], HEADER["w"]
TEXT = json.dumps(HEADER).encode()
LIMIT = 100_000_000
SPARSE = 1 << 28
DEEP = b'{"w":' + b"[" * 100_000


def safetensors(
    text: bytes | None = None, data: bytes = DATA, length: int | None = None, size: int | None = None, **tensors: object
) -> Make:
    """With the fault: another header (or other entries of it), other data, a false length, another size of file."""

    def make(directory: Path, broken: bool) -> Path:
        path = directory / "bad.safetensors"
        if not broken:
            return raw_file(path, HEADER, DATA)
        raw_file(path, json.dumps(HEADER | tensors) if text is None else text, data, length)
        if size is not None:
            os.truncate(path, size)
        return path

    return make


def declared(path: Path) -> int:
    """The length of the header as the file has it, signed."""
    with open(path, "rb") as file:
        return int(struct.unpack("<q", file.read(8))[0])


def header(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read()[8 : 8 + declared(path)]


def is_beyond_the_file(path: Path) -> bool:
    return declared(path) > os.path.getsize(path) - 8 and safetensors_refuses(path)


def is_beyond_the_limit(path: Path) -> bool:
    return declared(path) > LIMIT and os.path.getsize(path) - 8 >= declared(path) and safetensors_refuses(path)


def is_negative(path: Path) -> bool:
    return declared(path) < 0 and safetensors_refuses(path)


def fails(parse: Callable[[bytes], object]) -> Oracle:
    """Whether ``parse`` does not take the header, nor the library the file."""

    def is_bad(path: Path) -> bool:
        try:
            parse(header(path))
        except (ValueError, RecursionError):
            return safetensors_refuses(path)
        return False

    return is_bad


def constant(text: str) -> object:
    raise ValueError(text)


def an_object(text: bytes) -> object:
    value = json.loads(text, parse_constant=constant)
    if type(value) is not dict:
        raise ValueError("no object")
    return value


is_no_json = fails(an_object)
is_no_utf8 = fails(lambda text: text.decode("utf-8"))


def spans(path: Path) -> list[tuple[int, int]]:
    return sorted(tuple(e["data_offsets"]) for e in json.loads(header(path)).values())


def has_overlap(path: Path) -> bool:
    found = spans(path)
    return any(x[1] > y[0] for x, y in pairwise(found)) and safetensors_refuses(path)


def has_gap(path: Path) -> bool:
    found = [(0, 0), *spans(path)]
    return any(x[1] < y[0] for x, y in pairwise(found)) and safetensors_refuses(path)


def runs_backwards(path: Path) -> bool:
    return any(begin > end for begin, end in spans(path)) and safetensors_refuses(path)


def ends_past_the_file(path: Path) -> bool:
    last = max(end for _, end in spans(path))
    return last > os.path.getsize(path) - 8 - declared(path) and safetensors_refuses(path)


def ends_before_the_file(path: Path) -> bool:
    last = max(end for _, end in spans(path))
    return last < os.path.getsize(path) - 8 - declared(path) and safetensors_refuses(path)


def names_a_name_twice(path: Path) -> bool:
    return has_duplicates(header(path))


def renamed(old: str, new: str) -> bytes:
    return TEXT.replace(f'"{old}"'.encode(), new.encode())


TWICE = TEXT[:-1] + b', "w": ' + json.dumps(entry("F32", [2, 2], 8, 24)).encode() + b"}"
HIDDEN = b'{"__metadata__": {"k": "1", "k": "2"}, ' + TEXT[1:]
UTF8 = TEXT.replace(b'"w"', b'"w\xff"')

SAFETENSORS = [
    Row("truncated at every section", "in the length", safetensors(size=7), "too short", safetensors_refuses),
    Row("truncated at every section", "after the length", safetensors(size=8), "truncated", is_beyond_the_file),
    Row("truncated at every section", "in the header", safetensors(size=40), "truncated", is_beyond_the_file),
    Row(
        "truncated at every section",
        "after the header",
        safetensors(size=8 + len(TEXT)),
        "truncated",
        safetensors_refuses,
        "a",
    ),
    Row(
        "truncated at every section",
        "in the last tensor",
        safetensors(data=DATA[:-1]),
        "truncated: 1 bytes",
        safetensors_refuses,
        "w",
    ),
    Row(
        "header length beyond the file",
        "by a byte",
        safetensors(length=len(TEXT) + len(DATA) + 1),
        f"beyond the end of the file.*found length {len(TEXT) + len(DATA) + 1}",
        is_beyond_the_file,
    ),
    Row(
        "header length beyond the file",
        "up to the limit",
        safetensors(length=LIMIT),
        "beyond the end of the file",
        is_beyond_the_file,
    ),
    Row(
        "header length beyond the file",
        "by less than the header",
        safetensors(length=len(TEXT) + 1),
        "not valid JSON",
        is_no_json,
    ),
    Row(
        "header length beyond 100 MB",
        "in a file that is larger",
        safetensors(length=LIMIT + 1, size=SPARSE),
        "header too large: found 100000001, expected at most 100000000",
        is_beyond_the_limit,
    ),
    Row("header length negative", "-1", safetensors(length=2**64 - 1), "header too large", is_negative),
    Row("header length negative", "the smallest", safetensors(length=2**63), "header too large", is_negative),
    Row("header length negative", "minus the file's", safetensors(length=2**64 - 100), "too large", is_negative),
    Row("invalid JSON", "no closing bracket", safetensors(TEXT[:-1]), "header is not valid JSON", is_no_json),
    Row("invalid JSON", "a comma too many", safetensors(TEXT[:-1] + b",}"), "header is not valid JSON", is_no_json),
    Row("invalid JSON", "something after it", safetensors(TEXT + b"{}"), "header is not valid JSON", is_no_json),
    Row("invalid JSON", "an array", safetensors(b"[" + TEXT + b"]"), "must begin with '{'", is_no_json),
    Row("invalid JSON", "NaN as a size", safetensors(TEXT.replace(b"[2]", b"[NaN]")), "NaN is not a", is_no_json),
    Row("invalid JSON", "NUL", safetensors(TEXT.replace(b" ", b"\0", 1)), "header is not valid JSON", is_no_json),
    Row("invalid JSON", "nested 100,000 deep", safetensors(DEEP), "nested too deeply", is_no_json),
    Row("invalid UTF-8", "a stray byte", safetensors(UTF8), "header is not UTF-8: bad byte at", is_no_utf8),
    Row("invalid UTF-8", "half a character", safetensors(TEXT[:-1] + b"\xe2\x82"), "not UTF-8", is_no_utf8),
    Row("invalid UTF-8", "a surrogate", safetensors(UTF8.replace(b"\xff", b"\xed\xa0\x80")), "not UTF-8", is_no_utf8),
    Row(
        "offsets overlapping",
        "by half a tensor",
        safetensors(w=entry("F32", [2, 2], 4, 20), data=DATA[:20]),
        "overlaps tensor 'a': found begin 4, expected begin 8",
        has_overlap,
        "w",
    ),
    Row(
        "offsets overlapping",
        "two of one place",
        safetensors(w=entry("F32", [2], 0, 8), data=DATA[:8]),
        "overlaps tensor",
        has_overlap,
    ),
    Row(
        "offsets gapped",
        "between",
        safetensors(w=entry("F32", [2, 2], 12, 28), data=bytes(28)),
        "gap after tensor 'a'",
        has_gap,
        "w",
    ),
    Row(
        "offsets gapped",
        "in front",
        safetensors(a=entry("F32", [2], 20, 28), w=entry("F32", [2, 2], 4, 20), data=bytes(28)),
        "gap before the first tensor",
        has_gap,
        "w",
    ),
    Row(
        "offsets out of order",
        "end before begin",
        safetensors(w=entry("F32", [2, 2], 24, 8)),
        r"run backwards: found \[24, 8\]",
        runs_backwards,
        "w",
    ),
    Row(
        "offsets past the end",
        "by a row",
        safetensors(w=entry("F32", [3, 2], 8, 32)),
        "8 bytes of tensor data are missing",
        ends_past_the_file,
        "w",
    ),
    Row(
        "offsets past the end",
        "by a terabyte",
        safetensors(w=entry("F32", [2**38], 8, 8 + 2**40)),
        "missing",
        ends_past_the_file,
        "w",
    ),
    Row(
        "offsets past the end",
        "beyond 63 bits",
        safetensors(w=entry("F32", [2, 2], 2**64 - 17, 2**64 - 1)),
        "overflow|gap",
        safetensors_refuses,
        "w",
    ),
    Row("unknown dtype", "F33", safetensors(w=entry("F33", [2, 2], 8, 24)), "'F33'", safetensors_refuses, "w"),
    Row("unknown dtype", "lower case", safetensors(w=entry("f32", [2, 2], 8, 24)), "'f32'", safetensors_refuses, "w"),
    Row(
        "unknown dtype",
        "a number",
        safetensors(w=entry(32, [2, 2], 8, 24)),
        "dtype: found 32",
        safetensors_refuses,
        "w",
    ),
    Row(
        "shape x dtype overflow",
        "to 0 in 64 bits",
        safetensors(w=entry("F32", [2**62], 8, 8), data=DATA[:8]),
        "shape overflows 63 bits: found F32",
        safetensors_refuses,
        "w",
    ),
    Row(
        "shape x dtype overflow",
        "to the true size",
        safetensors(w=entry("F32", [2**62 + 4], 8, 24)),
        "shape overflows 63 bits",
        safetensors_refuses,
        "w",
    ),
    Row(
        "shape x dtype overflow",
        "in the shape alone",
        safetensors(w=entry("F32", [2**33, 2**33], 8, 24)),
        "shape overflows 63 bits",
        safetensors_refuses,
        "w",
    ),
    Row("trailing bytes", "one", safetensors(data=DATA + b"\0"), "1 bytes after the last tensor", ends_before_the_file),
    Row("trailing bytes", "another file", safetensors(data=DATA + TEXT), "after the last tensor", ends_before_the_file),
    Row("duplicate JSON names", "a tensor", safetensors(TWICE), "duplicate name 'w'", names_a_name_twice),
    Row(
        "duplicate JSON names",
        "a tensor, once escaped",
        safetensors(TWICE.replace(b'"w"', b'"\\u0077"', 1)),
        "duplicate name 'w'",
        names_a_name_twice,
    ),
    Row(
        "duplicate JSON names",
        "in an entry",
        safetensors(TEXT.replace(b'"dtype"', b'"dtype": "F32", "dtype"', 1)),
        "duplicate name 'dtype'",
        names_a_name_twice,
    ),
    Row("duplicate JSON names", "in the metadata", safetensors(HIDDEN), "duplicate name 'k'", names_a_name_twice),
]
