"""Target: index files of sharded checkpoints, beside two valid shards."""

from __future__ import annotations

import json
import random
from pathlib import Path

from pysoup.checkpoint import Checkpoint

from .headers import file_of
from .mutations import MutateBytes, mutate_tokens
from .target import Target, require

FIRST, SECOND = "m-1.safetensors", "m-2.safetensors"
MAP = {"a": FIRST, "b": FIRST, "c": SECOND}

WORDS = (
    *rb"""
    "weight_map" "metadata" "total_size" "a" "b" "c" "d" "" "\u0061" "\ud800" null true 1 -0 [] {} [[]] {"a":1}
    "m-1.safetensors" "m-2.safetensors" "m-3.safetensors" "../m-1.safetensors" "sub/m-1.safetensors" "./m-1.safetensors"
    "/etc/passwd" ".." "m-1.safetensors\u0000" "model.safetensors.index.json" "a\\b.safetensors" , : { } [ ] "
    """.split(),
    *(b" ", b"\xef\xbb\xbf", b"\xff", b"[" * 3000, b"[" + b"[]," * 2000 + b"1]", b'"' + b"9" * 4000 + b'.safetensors"'),
)


class Indexes(Target):
    name = "indexes"
    file_name = "model.safetensors.index.json"
    share = 8

    def seeds(self) -> list[bytes]:
        documents: list[object] = [
            {"metadata": {"total_size": 6}, "weight_map": MAP},
            {"weight_map": MAP, "metadata": {"a": [1, {"b": None}], "c": 1e3}},
            {"weight_map": {}},
            {"weight_map": {**MAP, "d": "../x.safetensors"}},
            {"weight_map": {**MAP, "c": FIRST}},
            {"architectures": ["X"]},
            [],
        ]
        return [json.dumps(d, indent=i % 2 or None).encode() for i, d in enumerate(documents)] + [b"", b"{"]

    def prepare(self, directory: Path) -> None:
        one = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
        two = {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}
        (directory / FIRST).write_bytes(file_of(json.dumps({"a": one, "b": two}).encode(), b"ab"))
        (directory / SECOND).write_bytes(file_of(json.dumps({"c": one}).encode(), b"c"))

    def mutate(self, data: bytes, rng: random.Random, other: MutateBytes) -> bytes:
        return other(data, self.longest) if rng.random() < 0.25 else mutate_tokens(rng, data, WORDS)[: self.longest]

    def accepted(self, path: Path, checkpoint: Checkpoint, tensors: dict[str, bytes] | None) -> None:
        require(all(file.parent == path.parent for file in checkpoint.files), "a shard outside the directory")
        shards = {name: checkpoint.files[checkpoint.entry(name).file].name for name in checkpoint}
        theirs = json.loads(path.read_bytes(), object_pairs_hook=_once)["weight_map"]
        require(shards == theirs, f"json reads the map {theirs}")
        expected = {name: name.encode() for name, shard in MAP.items() if shard in shards.values()}
        require(tensors == expected, f"tensors {tensors}")


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    require(len(dict(pairs)) == len(pairs), "a name twice")
    return dict(pairs)
