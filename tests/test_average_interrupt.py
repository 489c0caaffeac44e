"""Ctrl-C in the middle: it stops within a second and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.alone

IN_MEMORY = """
import torch
from pysoup import average_state_dicts
x = torch.zeros(1 << 22)
states = [{"x": x, "y": x}] * 4000  # a minute of work
print("started", flush=True)
average_state_dicts(states, threads=THREADS, progress=lambda done: None)
print("finished", flush=True)
"""

FROM_FILES = """
import sys
from pysoup.average import average_checkpoints
print("started", flush=True)
paths = sys.argv[1:-1] * 40
average_checkpoints(paths, sys.argv[-1], threads=THREADS)
print("finished", flush=True)
"""


def sparse_file(path: Path, nbytes: int) -> Path:
    """A valid file of one F32 tensor of zeros that takes no disk."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [nbytes // 4], "data_offsets": [0, nbytes]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + nbytes)
    return path


def interrupted(code: str, threads: int, *arguments: str) -> tuple[float, str, str]:
    """Seconds from the signal to the end, stdout and stderr."""
    command = [sys.executable, "-c", code.replace("THREADS", str(threads)), *arguments]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "started\n"
        time.sleep(0.5)
        sent = time.perf_counter()
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
        return time.perf_counter() - sent, out, err
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("threads", [1, 2])
def test_interrupt_stops_an_average_in_memory(threads: int) -> None:
    seconds, out, err = interrupted(IN_MEMORY, threads)
    assert "KeyboardInterrupt" in err
    assert out == ""
    assert seconds < 2.0  # a second, and the end of an interpreter with torch in it


@pytest.mark.parametrize("threads", [1, 2])
def test_interrupt_stops_an_average_of_files_and_leaves_nothing(tmp_path: Path, threads: int) -> None:
    paths = [sparse_file(tmp_path / f"{k}.safetensors", 150 << 20) for k in range(3)]
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "soup.safetensors"
    seconds, out, err = interrupted(FROM_FILES, threads, *map(str, paths), str(target))
    assert "KeyboardInterrupt" in err
    assert out == ""
    assert seconds < 1.5
    assert list((tmp_path / "out").iterdir()) == []
