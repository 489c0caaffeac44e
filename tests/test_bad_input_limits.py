"""What the system refuses: rights, sizes, descriptors, reads, life. One line, or nothing but hidden names left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import bad_inputs
import numpy as np
import pytest
from bad_inputs import HEADER, MEAN, Place, assert_line, packed, read_safetensors, refusal, unchanged
from bad_inputs_npz import npz
from bad_inputs_safetensors import safetensors
from bad_inputs_shards import shards
from bad_inputs_torch import archive, legacy
from checkpoint_files import floats, raw_file

import pysoup
from pysoup.errors import CheckpointError
from pysoup.file_plan import Member

place = bad_inputs.place
SCRIPT = Path(__file__).with_name("bad_inputs_run.py")
OUTPUTS = ["soup.safetensors", "soup.pt", "soup"]
MAKERS = {
    "bad.safetensors": safetensors(),
    "bad.pt": archive(),
    "bad.bin": legacy(),
    "bad.npz": npz(deflated=True),
    "model": shards(),
    "index": shards(),
    "shard": shards(),
    "folder": shards(),
}


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory that every user can reach, with a good input of each kind, an output directory and a closed one."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        for folder in (*MAKERS, "out", "closed"):
            (path / folder).mkdir()
        for folder, make in MAKERS.items():
            make(path / folder, False)
        raw_file(path / "good.safetensors", HEADER, packed(bad_inputs.GOOD))
        values = [k / 7 for k in range(10_000)]
        floats(path / "big.safetensors", {"w": values})
        np.savez_compressed(path / "big.npz", w=np.array(values, "f4"))
        yield path


def run(case: str, root: Path) -> dict[str, list]:
    done = subprocess.run([sys.executable, SCRIPT, case, root], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_path_without_rights_is_one_line_and_readable_again_it_is_averaged(root: Path) -> None:
    found = run("another user", root)
    assert len(found) == 8 + 6
    for name, (refused, first, second) in found.items():
        assert refused, f"{name}: the system did not refuse it"
        output = name.startswith("no")
        assert first[0] == ("OutputError" if output else "CheckpointError"), (name, first)
        assert_line(first[1])
        assert "not writable" in first[1] or "permission denied" in first[1], first
        assert second == ["done"], name
    assert "shard" in found["shard"][1][1] or "00002" in found["shard"][1][1]
    for name in MAKERS:
        assert read_safetensors(root / "out" / f"{name}.safetensors") == MEAN
    assert sorted(os.listdir(root / "out")) == sorted(f"{name}.safetensors" for name in MAKERS)
    assert os.listdir(root / "closed") == []


def test_file_size_limit_is_one_line_and_nothing_is_left(root: Path) -> None:
    found = run("small files", root)
    assert found.pop("left") == []
    assert found.pop("fits") == ["done"]
    assert found.pop("left at last") == ["fits.safetensors"]
    assert len(found) == 7
    for name, end in found.items():
        assert end[0] == "OutputError", (name, end)
        assert_line(end[1])
        assert "file too large" in end[1]
        assert "/out" in end[1]


def test_limit_of_open_files_is_one_line_and_nothing_is_left(root: Path) -> None:
    found = run("few descriptors", root)
    ends = set()
    for output in OUTPUTS:
        done = False
        for more in range(13):
            *end, left = found[f"{output}, {more}"]
            ends.add(end[0])
            assert end[0] in ("done", "CheckpointError", "OutputError"), (output, more, end)
            assert all(not name.startswith(".") for name in left)
            if end[0] == "done":
                done = True
                continue
            assert not done, "fewer descriptors were enough"
            assert_line(end[1])
            assert "too many open files" in end[1]
        assert done
    assert ends == {"done", "CheckpointError", "OutputError"}


@pytest.mark.parametrize("output", OUTPUTS)
def test_killed_run_leaves_hidden_names_that_the_next_removes(root: Path, output: str) -> None:
    target = root / "out" / output
    command = [sys.executable, SCRIPT, "stopped", root, target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "in the middle\n"
            during = os.listdir(root / "out")
        finally:
            child.send_signal(signal.SIGKILL)
    left = os.listdir(root / "out")
    assert left == during
    assert len(left) == 1
    assert left[0].startswith(f".{output}.pysoup-{child.pid}-")
    assert left[0].endswith(".tmp")
    with pytest.raises(CheckpointError, match="no weights in directory: found an empty directory"):
        pysoup.average_checkpoints([root / "out"], root / "never.safetensors")
    pysoup.average_checkpoints([root / "big.safetensors", root / "big.npz"], target)
    assert os.listdir(root / "out") == [output]
    checkpoint = pysoup.open_checkpoint(target)
    expected = pysoup.open_checkpoint(root / "big.safetensors").tensor("w")
    assert checkpoint.tensor("w").equal(expected)


def stale(place: Place, kind: str) -> Path:
    """What a killed run for the output leaves; its process is gone."""
    path = place.output.with_name(f".{place.output.name}.pysoup-999999999-0123abcd.tmp")
    precious = place.root / "inputs" / "precious"
    precious.mkdir()
    raw_file(precious / "x.safetensors", HEADER, packed(MEAN))
    if kind == "file":
        raw_file(path, HEADER, bytes(24))
    elif kind == "directory":
        (path / "sub").mkdir(parents=True)
        raw_file(path / "model.safetensors", HEADER, bytes(24))
        (path / "sub" / "link").symlink_to(precious)
    elif kind == "link to a file":
        path.symlink_to(precious / "x.safetensors")
    elif kind == "link to a directory":
        path.symlink_to(precious)
    elif kind == "FIFO":
        os.mkfifo(path)
    return precious


@pytest.mark.parametrize("kind", ["file", "directory", "link to a file", "link to a directory", "FIFO"])
def test_stale_temporary_is_removed_and_never_used(kind: str, place: Place) -> None:
    precious = stale(place, kind)
    with pytest.raises(CheckpointError, match="no weights in directory"):
        pysoup.average_checkpoints([place.output.parent], place.root / "never.safetensors")
    with unchanged(precious):
        pysoup.average_checkpoints([place.good, npz(deflated=True)(place.bad, False)], place.output)
    assert os.listdir(place.output.parent) == [place.output.name]
    assert read_safetensors(place.output) == MEAN


@pytest.mark.parametrize(
    "name",
    [
        ".soup.safetensors.pysoup-notes.tmp",
        ".soup.safetensors.pysoup-999999999-0123abcd",
        ".soup.safetensors.pysoup-999999999-0123ABCD.tmp",
        "soup.safetensors.pysoup-999999999-0123abcd.tmp",
        ".soupXsafetensors.pysoup-999999999-0123abcd.tmp",
        ".other.safetensors.pysoup-999999999-0123abcd.tmp",
        f".soup.safetensors.pysoup-{os.getppid()}-0123abcd.tmp",
    ],
)
def test_name_that_only_looks_like_a_stale_temporary_is_kept(name: str, place: Place) -> None:
    (place.output.parent / name).write_bytes(b"precious")
    pysoup.average_checkpoints([place.good], place.output)
    assert (place.output.parent / name).read_bytes() == b"precious"


@pytest.mark.parametrize("make", [safetensors(), archive(), legacy(), npz(), npz(deflated=True), shards()])
def test_read_error_in_what_describes_the_tensors_names_the_file(
    make: bad_inputs.Make, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = make(place.bad, False)
    read = os.preadv

    def broken(fd: int, *rest: object) -> int:
        if "bad" in os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) or "model" in os.readlink(
            f"/proc/self/fd/{fd}"
        ):
            raise OSError(5, "Input/output error")
        return read(fd, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "preadv", broken)
    error = refusal(lambda: pysoup.average_checkpoints([place.good, bad], place.output), place.root)
    assert isinstance(error, CheckpointError)
    assert "cannot be read: input/output error" in str(error)
    assert str(bad) in str(error)


@pytest.mark.parametrize("make", [safetensors(), archive(), legacy(), npz(), npz(deflated=True)])
def test_read_error_in_the_data_names_file_and_tensor(
    make: bad_inputs.Make, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real one: where nothing is mapped, this process's memory cannot be read."""
    bad = make(place.bad, False)
    opened = Member.open

    def open_elsewhere(member: Member, scratch: Path | None = None) -> None:
        opened(member, scratch)
        if member.index == 1:
            memory = os.open("/proc/self/mem", os.O_RDONLY)
            os.dup2(memory, member.fds[0])
            os.close(memory)

    monkeypatch.setattr(Member, "open", open_elsewhere)
    error = refusal(lambda: pysoup.average_checkpoints([place.good, bad], place.output), place.root)
    assert isinstance(error, CheckpointError)
    assert "input/output error" in str(error).lower()
    assert (error.file, error.tensor) in ((str(bad), "a"), (str(bad), "w"))
