"""Target: safetensors files, compared with the safetensors library."""

from __future__ import annotations

import json
import random
import re
import struct
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pysoup.checkpoint import Checkpoint

from .mutations import MutateBytes, mutate_tokens, number
from .target import Finding, Target, require

TYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8, "BOOL": 1, "I64": 8, "U32": 4}
WORDS = (
    *rb"""
    "dtype" "shape" "data_offsets" "__metadata__" "format" "pysoup.aliases" "F32" "BF16" "F4" "F6_E2M3" "F8_E8M0"
    "F8_E4M3FNUZ" "C128" "FLOAT" "" "a" "\ud800" "\ud83d\ude00" "\u0000" null true NaN -Infinity 1e3 1.0 -0 -1 00
    18446744073709551616 [] {} [0] [0,1] [[]] {"a":1} , : [ ] { } " \
    """.split(),
    *(b'"\xff"', b'"\xc3\xa9"', b"\xef\xbb\xbf", b" ", b"\t\n\r", b"\0"),
    *(b"1" * 5000, b"[" * 3000, b'{"":' * 2000, b'"' + b"n" * 3000 + b'"'),
)

STRICTER = (
    *("duplicate name", "unknown key", "must begin with '{'", "entry is not an object", "__metadata__ is not"),
    *("overflow", "block-scaled", "other hardware", "too long", "too large", "nested too deeply", "pysoup.aliases"),
)
"""Faults that the library lets pass, on purpose of ours."""

_OFFSETS = re.compile(rb'"data_offsets": ?\[([0-9]{1,20}), ?([0-9]{1,20})')


def file_of(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", (len(header) if length is None else length) % 2**64) + header + data


def random_header(rng: random.Random) -> tuple[dict[str, object], int]:
    """A valid header and the size of its data."""
    header: dict[str, object] = {}
    end = 0
    if rng.random() < 0.3:
        header["__metadata__"] = {rng.choice(("format", "a", "é", "")): "pt" for _ in range(2)}
    for i in range(rng.randrange(5)):
        dtype = rng.choice(list(TYPES))
        shape = [rng.choice((0, 1, 1, 2, 3, 5)) for _ in range(rng.randrange(4))]
        begin = end
        size = TYPES[dtype]
        for n in shape:
            size *= n
        end += size
        header[f"w{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    items = list(header.items())
    rng.shuffle(items)
    return dict(items), end


class Headers(Target):
    name = "headers"
    file_name = "model.safetensors"
    share = 30

    def seeds(self) -> list[bytes]:
        rng = random.Random(1)
        seeds = []
        for i in range(24):
            header, size = random_header(rng)
            text = json.dumps(header, indent=2 if i % 4 == 0 else None, ensure_ascii=i % 2 == 0).encode()
            seeds.append(file_of(text + b" " * (-len(text) % 8), bytes(size)))
        ties = json.dumps({"__metadata__": {"pysoup.aliases": '{"tied":"w"}'}, "w": _one()}).encode()
        two = json.dumps({"v": _one(), "w": _one(1)}).encode()
        seeds += [file_of(ties, b"a"), file_of(two, b"ab"), file_of(b"{}"), file_of(b"{}", b"a")]
        seeds += [b"", b"abc", file_of(two, b"ab", 2**63), file_of(b"[]"), b"PK\x03\x04" + bytes(40), b"\x80\x02}."]
        seeds.append(file_of(b'{"w":' + b"[" * 3000))
        return seeds

    def mutate(self, data: bytes, rng: random.Random, other: MutateBytes) -> bytes:
        kind = rng.random()
        if kind < 0.05:
            return other(data, self.longest)
        if kind < 0.1:
            header, size = random_header(rng)
            return file_of(json.dumps(header).encode(), bytes(size))
        length = int.from_bytes(data[:8], "little")
        text, rest = data[8 : 8 + length], data[8 + length :]
        if kind < 0.3:
            text = other(text, self.longest - 1024)
        else:
            text = mutate_tokens(rng, text, WORDS) if kind < 0.85 else _moved(rng, text)
        kind = rng.random()
        if kind < 0.6:
            rest = bytes(_declared_size(text))
        elif kind < 0.65:
            rest = rest[: rng.randrange(len(rest) + 1)] + bytes(rng.randrange(3))
        return file_of(text, rest, number(rng, len(text)) if rng.random() < 0.03 else None)

    def accepted(self, path: Path, checkpoint: Checkpoint, tensors: dict[str, bytes] | None) -> None:
        try:
            with safe_open(path, "np") as file:
                views = {n: file.get_slice(n) for n in file.keys()}  # noqa: SIM118
                theirs = {n: (view.get_dtype(), tuple(view.get_shape())) for n, view in views.items()}
                metadata = file.metadata() or {}
        except SafetensorError as error:
            raise Finding(f"the safetensors library refuses it: {error}") from error
        entries = map(checkpoint.entry, checkpoint)
        require({e.name: (e.dtype.name, e.shape) for e in entries} == theirs, f"the library reads {theirs}")
        require(checkpoint.metadata == metadata, f"the library reads metadata {metadata}")

    def refused(self, path: Path, reason: str) -> None:
        if any(text in reason for text in STRICTER):
            return
        try:
            with safe_open(path, "np"):
                pass
        except (SafetensorError, OSError):
            return
        # The library takes the last of several members of one name, and never looks at the others.
        if not _has_twins(path.read_bytes()):
            raise Finding(f"refused, though the safetensors library takes it: {reason}")


def _moved(rng: random.Random, text: bytes) -> bytes:
    """The same tensors, the data of one of them elsewhere."""
    found = list(_OFFSETS.finditer(text))
    if not found:
        return text
    match = rng.choice(found)
    begin, end = int(match[1]), int(match[2])
    to = rng.choice((begin + rng.choice((-1, 1, 4)), number(rng, begin), int(rng.choice(found)[1])))
    return b"%b%d, %d%b" % (text[: match.start(1)], to, to + end - begin, text[match.end(2) :])


def _has_twins(raw: bytes) -> bool:
    found = []

    def look(pairs: list[tuple[str, object]]) -> None:
        found.append(len({key for key, _ in pairs}) < len(pairs))

    json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")], object_pairs_hook=look)
    return any(found)


def _one(begin: int = 0) -> dict[str, object]:
    return {"dtype": "U8", "shape": [1], "data_offsets": [begin, begin + 1]}


def _declared_size(text: bytes) -> int:
    """Where the last tensor ends, as far as can be told from broken JSON."""
    ends = [part.partition(b"]")[0].rpartition(b",")[2].strip() for part in text.split(b"data_offsets")[1:]]
    sizes = [int(end) for end in ends if end.isdigit() and len(end) < 5]
    return max(sizes, default=0)
