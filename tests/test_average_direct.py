"""Files that are not in the page cache are read past it, by more threads, within the memory limit; unless forbidden."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

import pysoup
from pysoup import average_checkpoints

THREADS = 2


def _evict(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def _report(folder: Path, output: str, elements: int = 24_000_000, **options: object) -> pysoup.AverageReport:
    """The average of two cold files of one f32 tensor, which are holes: nothing is read from a disk."""
    text = json.dumps({"a": {"dtype": "F32", "shape": [elements], "data_offsets": [0, 4 * elements]}}).encode()
    paths = [folder / f"{k}-{elements}.safetensors" for k in range(2)]
    for path in paths:
        path.write_bytes(struct.pack("<Q", len(text)) + text)
        os.truncate(path, 8 + len(text) + 4 * elements)
        _evict(path)
    return average_checkpoints(paths, folder / output, threads=THREADS, sync=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("memory", [4 << 20, 64 << 20])
def test_more_threads_read_and_stay_within_the_memory_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    monkeypatch.setenv("PYSOUP_DIRECT", "on")
    report = _report(tmp_path, "soup.safetensors", memory=memory)
    assert THREADS < report.threads <= 4 * THREADS
    assert report.memory_bytes <= memory


def test_little_memory_and_small_files_are_read_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYSOUP_DIRECT", raising=False)
    assert _report(tmp_path, "small.safetensors", elements=10_000).threads == THREADS
    monkeypatch.setenv("PYSOUP_DIRECT", "on")
    report = _report(tmp_path, "little.safetensors", memory="1MiB")
    assert report.threads == THREADS
    assert report.memory_bytes <= 1 << 20


def test_reading_past_the_page_cache_can_be_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSOUP_DIRECT", "off")
    assert _report(tmp_path, "soup.safetensors").threads == THREADS


def test_wrong_word_in_the_environment_is_an_error_that_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYSOUP_DIRECT", "sometimes")
    with pytest.raises(pysoup.SoupError, match=r"^PYSOUP_DIRECT: .*sometimes") as caught:
        _report(tmp_path, "soup.safetensors")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("soup*"))
