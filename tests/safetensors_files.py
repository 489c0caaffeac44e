"""safetensors files written by hand, right or broken on purpose, for tests that must not trust the code under test."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

Tensors = dict[str, tuple[str, list[int], bytes]]
"""name -> (dtype, shape, bytes)"""


def f32(*values: float) -> tuple[str, list[int], bytes]:
    return "F32", [len(values)], struct.pack(f"<{len(values)}f", *values)


def header_of(tensors: Tensors) -> dict[str, Any]:
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    return header


def save(path: Path, tensors: Tensors, header: dict[str, Any] | bytes | None = None, length: int | None = None) -> str:
    """Write ``tensors``; ``header`` and ``length`` replace the true ones where given. Returns the path as text."""
    text = header if isinstance(header, bytes) else json.dumps(header or header_of(tensors)).encode()
    size = struct.pack("<Q", len(text) if length is None else length)
    path.write_bytes(size + text + b"".join(data for _, _, data in tensors.values()))
    return str(path)


def load(path: Path) -> Tensors:
    """What a valid file holds, in the order of the data."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    return {n: (e["dtype"], e["shape"], raw[8 + size :][slice(*e["data_offsets"])]) for n, e in entries}
