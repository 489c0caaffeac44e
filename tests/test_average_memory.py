"""The memory promise: anonymous memory above the interpreter's own stays within ``memory`` + 32 MiB, without torch."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MIB = 1 << 20

# Samples its own anonymous memory every millisecond from a thread: VmHWM would count the page cache of mapped files.
CODE = """
import sys, threading, time
import pysoup.average
from pysoup.average import average_checkpoints

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

peak, running = 0, True
def sample():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.001)

sampler = threading.Thread(target=sample)
sampler.start()
time.sleep(0.05)
base, peak = anonymous(), 0
report = average_checkpoints(sys.argv[3:], sys.argv[2], memory=sys.argv[1], threads=2, sync=False)
running = False
sampler.join()
assert not {"torch", "numpy"} & set(sys.modules), "averaging files needs no torch"
print(peak - base, report.memory_bytes, report.bytes_read)
"""


def sparse(path: Path, tensors: dict[str, int]) -> Path:
    """A valid file of bf16 tensors of so many bytes; zeros that take no disk."""
    header, end = {}, 0
    for name, nbytes in tensors.items():
        header[name] = {"dtype": "BF16", "shape": [nbytes // 2], "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + end)
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("count", "tensors"),
    [(2, {"one": 300 * MIB}), (64, {"a": 4 * MIB, "b": 3 * MIB}), (3, {f"layer.{i}": 4096 for i in range(3000)})],
    ids=["one large tensor", "many inputs", "many tensors"],
)
def test_anonymous_memory_stays_within_the_promise(tmp_path: Path, count: int, tensors: dict[str, int]) -> None:
    paths = [str(sparse(tmp_path / f"{k}.safetensors", tensors)) for k in range(count)]
    command = [sys.executable, "-c", CODE, "8MiB", str(tmp_path / "soup.safetensors"), *paths]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    grown, planned, read = map(int, done.stdout.split())
    assert planned <= 8 * MIB
    assert read == count * sum(tensors.values())
    assert grown <= (8 + 32) * MIB
