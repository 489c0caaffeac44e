"""smoke.py PYSOUP: an installation without torch answers and averages files to the right bytes. Standard library only.

Reads and writes safetensors by hand: the package under test has no part in the expected result.
"""

from __future__ import annotations

import importlib.util
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path


def save(path: Path, values: list[float]) -> None:
    """One f32 and one bf16 tensor, both with ``values`` (which bf16 holds exactly)."""
    wide = struct.pack(f"<{len(values)}f", *values)
    narrow = b"".join(wide[i + 2 : i + 4] for i in range(0, len(wide), 4))
    header = json.dumps(
        {
            "wide": {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, len(wide)]},
            "narrow": {"dtype": "BF16", "shape": [len(values)], "data_offsets": [len(wide), len(wide) + len(narrow)]},
        }
    ).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + wide + narrow)


def load(path: Path) -> dict[str, bytes]:
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    return {n: data[8 + size + e["data_offsets"][0] : 8 + size + e["data_offsets"][1]] for n, e in header.items()}


def main(pysoup: str) -> None:
    for absent in ("torch", "numpy"):
        assert importlib.util.find_spec(absent) is None, f"{absent} is installed: this proves nothing"

    def run(*args: str) -> str:
        done = subprocess.run([pysoup, *args], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"pysoup {' '.join(args)}: exit {done.returncode}: {done.stderr}"
        return done.stdout

    print(run("--version"), end="")
    print(run("doctor"), end="")
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        rows = [[1.0, -2.0, 0.5] * 999, [2.0, 4.0, 0.5] * 999, [6.0, 4.0, -4.0] * 999]
        paths = [here / f"{i}.safetensors" for i in range(3)]
        for path, values in zip(paths, rows, strict=True):
            save(path, values)
        save(here / "expected.safetensors", [3.0, 2.0, -1.0] * 999)
        out = here / "out.safetensors"
        print(run("average", *map(str, paths), "-o", str(out)), end="")
        assert load(out) == load(here / "expected.safetensors"), "wrong average"


main(sys.argv[1])
