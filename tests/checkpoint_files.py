"""Makes safetensors files byte by byte, good and hostile, without pysoup's writer and without the library's."""

from __future__ import annotations

import json
import struct
from pathlib import Path

ONE = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
"""The entry of a tensor that is one byte long and comes first."""


def entry(dtype: str = "U8", shape: object = (1,), begin: object = 0, end: object = 1) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def raw_file(path: Path, header: bytes | str | dict[str, object], data: bytes = b"", length: int | None = None) -> Path:
    """A file of this header (a dict becomes JSON), its length or a false one, and these data."""
    if isinstance(header, dict):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode("utf-8", "surrogatepass")
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def floats(path: Path, tensors: dict[str, list[float]], metadata: dict[str, str] | None = None) -> Path:
    """A file of 1-D F32 tensors."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, values in tensors.items():
        raw = struct.pack(f"<{len(values)}f", *values)
        header[name] = entry("F32", [len(values)], len(data), len(data) + len(raw))
        data += raw
    return raw_file(path, header, data)


def sharded(directory: Path, shards: dict[str, dict[str, list[float]]], weight_map: object = None) -> Path:
    """A directory of F32 shards with ``model.safetensors.index.json``; returns the index."""
    directory.mkdir(exist_ok=True)
    for shard, tensors in shards.items():
        floats(directory / shard, tensors)
    if weight_map is None:
        weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return index
