"""A full disk, real (a tmpfs of 1 MiB) and simulated: an old output stays whole, and nothing is left behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pysoup import dtypes
from pysoup.checkpoint import CheckpointWriter
from pysoup.errors import OutputError

FILES = ["m.safetensors", "m.pt"]
TARGETS = [*FILES, "d"]
LAYOUT = [("x", [("w", dtypes.BOOL, (4 << 20,))])]
MOUNT = 'mount -t tmpfs -o size=1m pysoup "$1" && shift && exec "$@"'


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each case of full_disk_run.py ended with, on a disk that only that process sees."""
    directory = tmp_path_factory.mktemp("full")
    disk, source = directory / "disk", directory / "source"
    disk.mkdir()
    source.mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("no unshare command")
    options = ("-rm", "-m")
    spaces = (["unshare", option, "sh", "-c", MOUNT, "sh", str(disk)] for option in options)
    space = next((s for s in spaces if subprocess.run([*s, "true"], capture_output=True).returncode == 0), None)
    if space is None:
        pytest.skip("no right to mount a tmpfs in a namespace of its own")
    script = Path(__file__).with_name("full_disk_run.py")
    done = subprocess.run([*space, sys.executable, script, disk, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", [*TARGETS, "carried files"])
def test_missing_space_is_told_before_writing(told: dict[str, str], case: str) -> None:
    assert ": not enough disk space: found " in told[f"told before: {case}"]


@pytest.mark.parametrize(
    "case",
    [
        *(f"reserving: {name}" for name in TARGETS),
        *(f"header: {name}" for name in TARGETS),
        *(f"data: {name}" for name in TARGETS),
        "carried files",
        "given files",
        "checksums: m.pt",
    ],
)
def test_disk_that_is_full_at_any_step_is_one_line(told: dict[str, str], case: str) -> None:
    assert ": disk is full: found " in told[case]
    assert "\n" not in told[case]


@pytest.mark.parametrize("name", FILES)
def test_free_space_is_compared_with_the_size_of_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    usage = shutil.disk_usage(tmp_path)
    writer = CheckpointWriter(tmp_path / name, LAYOUT)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=writer.nbytes - 1))
    found = f"{writer.nbytes - 1} bytes free, expected {writer.nbytes} bytes"
    with pytest.raises(OutputError, match=f"not enough disk space: found {found}"):
        writer.check()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=writer.nbytes))
    writer.check()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "disk quota exceeded")])
def test_disk_that_fills_keeps_the_old_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int, words: str
) -> None:
    def full(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / name).write_bytes(b"precious")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match=words) as caught, CheckpointWriter(tmp_path / name, LAYOUT, overwrite=True):
        pass
    assert "\n" not in str(caught.value)
    assert (tmp_path / name).read_bytes() == b"precious"
    assert os.listdir(tmp_path) == [name]
