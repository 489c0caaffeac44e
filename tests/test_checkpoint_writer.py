"""An output is whole or absent: whatever fails, an old output stays as it was and nothing temporary remains."""

from __future__ import annotations

import errno
import os
import stat
import struct
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
from checkpoint_files import floats, sharded

from pysoup import dtypes
from pysoup.checkpoint import CheckpointWriter, open_checkpoint
from pysoup.checkpoint.output import publish
from pysoup.errors import OutputError

LAYOUT = [("ignored", [("w", dtypes.F32, (2,))])]
FILES = ["m.safetensors", "m.pt", "m.pth"]
"""One of each suffix: the promises do not depend on the format."""
SHARDS = [
    ("model-00001-of-00002.safetensors", [("a", dtypes.BOOL, (1,))]),
    ("model-00002-of-00002.safetensors", [("b", dtypes.BOOL, (1,))]),
]
OLD = {"w": [1.0, 2.0]}


def _refused(writer: CheckpointWriter) -> str:
    with pytest.raises(OutputError) as caught:
        writer.check()
    text = str(caught.value)
    assert "\n" not in text
    with pytest.raises(OutputError, match=r".") as again, writer:
        pass
    assert str(again.value) == text
    return text


def _directory(path: Path, **options: object) -> CheckpointWriter:
    return CheckpointWriter(path, SHARDS, is_directory=True, **options)  # type: ignore[arg-type]


def _hidden(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if name.startswith(".")]


def _old_output(target: Path) -> bytes:
    target.write_bytes(b"precious")
    return b"precious"


def _w(target: Path) -> list[float]:
    """The tensor of a file of either format."""
    if target.suffix == ".safetensors":
        return open_checkpoint(target).tensor("w").tolist()
    with zipfile.ZipFile(target) as archive:
        return list(struct.unpack("<2f", archive.read("archive/data/0")))


@pytest.mark.parametrize("name", FILES)
def test_output_appears_at_commit_and_not_before(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    with CheckpointWriter(target, LAYOUT) as writer:
        writer.write_bytes("w", b"\0\0\x80?")
        writer.write_bytes("w", b"\0\0\0@", start=4)
        assert not target.exists()
        writer.commit(sync=False)
        assert _w(target) == [1.0, 2.0]
    assert os.listdir(tmp_path) == [name]
    assert writer.nbytes == target.stat().st_size


@pytest.mark.parametrize("name", FILES)
def test_block_that_ends_without_commit_keeps_the_old_output(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    before = _old_output(target)
    with CheckpointWriter(target, LAYOUT, overwrite=True):
        pass
    with pytest.raises(KeyboardInterrupt), CheckpointWriter(target, LAYOUT, overwrite=True):
        raise KeyboardInterrupt
    old = sharded(tmp_path / "d", {"m.safetensors": OLD}).parent
    with pytest.raises(OutputError), _directory(old, overwrite=True) as writer:
        writer.write_bytes("a", b"too long")
    assert target.read_bytes() == before
    assert sorted(os.listdir(old)) == ["m.safetensors", "model.safetensors.index.json"]
    assert _hidden(tmp_path) == []


def test_existing_output_is_replaced_only_when_asked(tmp_path: Path) -> None:
    target = floats(tmp_path / "m.safetensors", {"old": [1.0]})
    assert "already exists" in _refused(CheckpointWriter(target, LAYOUT))
    with CheckpointWriter(target, LAYOUT, overwrite=True) as writer:
        writer.commit()
    assert list(open_checkpoint(target)) == ["w"]


@pytest.mark.parametrize("name", FILES)
def test_output_that_appears_meanwhile_is_not_overwritten(tmp_path: Path, name: str) -> None:
    target, directory = tmp_path / name, tmp_path / "d"
    with CheckpointWriter(target, LAYOUT) as writer, _directory(directory) as other:
        before = _old_output(target)
        sharded(directory, {"m.safetensors": OLD})
        for each in (writer, other):
            with pytest.raises(OutputError, match="already exists"):
                each.commit()
    assert target.read_bytes() == before
    assert list(open_checkpoint(directory)) == ["w"]
    assert _hidden(tmp_path) == []


@pytest.mark.parametrize("exchange", [True, False])
def test_existing_directory_is_exchanged_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:

        def missing(*_: object) -> None:
            raise OSError(errno.EINVAL, "no such flag")

        monkeypatch.setattr(publish, "_renameat2", missing)
    old = sharded(tmp_path / "d", {"m.safetensors": OLD}).parent
    with _directory(old, overwrite=True) as writer:
        writer.commit()
    assert sorted(os.listdir(old)) == [*writer.shards, "model.safetensors.index.json"]
    assert _hidden(tmp_path) == []


def test_only_checkpoint_directories_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "d"
    target.mkdir()
    _directory(target).check()
    (target / "thesis.tex").touch()
    assert "holds no safetensors files: found thesis.tex" in _refused(_directory(target, overwrite=True))
    floats(target / "m.safetensors", OLD)
    assert "already exists" in _refused(_directory(target))
    _directory(target, overwrite=True).check()
    (target / ".git").mkdir()
    assert "holds directories: found .git" in _refused(_directory(target, overwrite=True))
    (target / ".git").rmdir()
    monkeypatch.chdir(target)
    assert "current directory" in _refused(_directory(Path("."), overwrite=True))


def test_unusable_targets_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    def file(name: str) -> str:
        return _refused(CheckpointWriter(tmp_path / name, LAYOUT, overwrite=True))

    (tmp_path / "plain").write_text("")
    (tmp_path / "dir.safetensors").mkdir()
    (tmp_path / "dir.pt").mkdir()
    os.mkfifo(tmp_path / "fifo.safetensors")
    assert "does not exist" in file("absent/m.safetensors")
    assert "not a directory" in file("plain/m.safetensors")
    assert "output is a directory" in file("dir.safetensors")
    assert "not a regular file" in file("fifo.safetensors")
    for suffix in (".bin", ".ckpt", ".npz", ".tar", ".PT", ""):
        assert f"unsupported suffix: found {suffix!r}, expected .safetensors, .pt or .pth" in file(f"m{suffix}")
    assert "output is a directory: expected a .pt file" in file("dir.pt")
    assert "too long" in file("m" * 260 + ".safetensors")
    for name in ("m.safetensors", "m.pt", "m.bin", "m.safetensors.index.json"):
        assert "expected a directory name" in _refused(_directory(tmp_path / name))
    assert "not a directory" in _refused(_directory(tmp_path / "plain"))
    assert sorted(os.listdir(tmp_path)) == ["dir.pt", "dir.safetensors", "fifo.safetensors", "plain"]


def test_unwritable_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests may run as root, whom no mode keeps out.
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "not writable" in _refused(CheckpointWriter(tmp_path / "m.safetensors", LAYOUT))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_output_that_is_an_input_is_refused(tmp_path: Path, suffix: str) -> None:
    # What holds safetensors is read as such, whatever its name.
    source = floats(tmp_path / f"m{suffix}", OLD)
    (tmp_path / f"hard{suffix}").hardlink_to(source)
    (tmp_path / f"soft{suffix}").symlink_to(source)
    inputs = [open_checkpoint(source)]
    for name in ("m", "hard", "soft"):
        path = tmp_path / f"{name}{suffix}"
        assert "output is an input" in _refused(CheckpointWriter(path, LAYOUT, overwrite=True, inputs=inputs))
    floats(tmp_path / "other.safetensors", OLD)
    assert "holds an input" in _refused(_directory(tmp_path, overwrite=True, inputs=inputs))
    directory = sharded(tmp_path / "d", {"m.safetensors": OLD}).parent
    (tmp_path / "link").symlink_to(directory)
    inputs = [open_checkpoint(directory)]
    (tmp_path / f"shard{suffix}").symlink_to(directory / "m.safetensors")
    shard = CheckpointWriter(tmp_path / f"shard{suffix}", LAYOUT, overwrite=True, inputs=inputs)
    assert "output is an input" in _refused(shard)
    for path in (directory, tmp_path / "link"):
        assert "holds an input" in _refused(_directory(path, overwrite=True, inputs=inputs))
    assert "inside an input directory" in _refused(_directory(directory / "out", inputs=inputs))


def test_shared_blob_behind_a_link_is_left_alone(tmp_path: Path) -> None:
    blob = floats(tmp_path / "blob", {"old": [1.0]})
    link = tmp_path / "m.safetensors"
    link.symlink_to(blob)
    before = blob.read_bytes()
    with CheckpointWriter(link, LAYOUT, overwrite=True) as writer:
        writer.commit()
    assert blob.read_bytes() == before
    assert not link.is_symlink()


@pytest.mark.parametrize(
    ("layout", "options", "expected"),
    [
        ([], {}, "exactly one shard"),
        (SHARDS, {}, "exactly one shard: found 2"),
        ([("x", [("w", dtypes.BOOL, (1,)), ("w", dtypes.BOOL, (1,))])], {}, "tensor 'w': duplicate tensor name"),
        ([("x", [("w", dtypes.C128, (1,))])], {}, "no type for complex128"),
        ([("x", [("__metadata__", dtypes.BOOL, (1,))])], {}, "reserved"),
        ([("x", [("\udcff", dtypes.BOOL, (1,))])], {}, "not valid Unicode"),
        (LAYOUT, {"metadata": {"k": 1}}, "metadata 'k' is not text"),
        (LAYOUT, {"aliases": {"x": "absent"}}, "tensor 'x': alias does not fit"),
        (LAYOUT, {"aliases": {"w": "w"}}, "alias does not fit"),
        ([("../x.safetensors", [])], {"is_directory": True}, "invalid shard name"),
        ([("x.bin", [])], {"is_directory": True}, "invalid shard name"),
        ([("x.safetensors", [])] * 2, {"is_directory": True}, "duplicate shard name"),
        (SHARDS, {"is_directory": True, "files": {"../x": b""}}, "invalid file name"),
        (SHARDS, {"is_directory": True, "files": {".x": b""}}, "invalid file name"),
        (SHARDS, {"is_directory": True, "files": {"model.safetensors.index.json": b""}}, "duplicate file name"),
    ],
)
def test_layout_that_cannot_be_written_is_refused(
    tmp_path: Path, layout: object, options: object, expected: str
) -> None:
    with pytest.raises(OutputError) as caught:
        CheckpointWriter(tmp_path / "m.safetensors", layout, **options)  # type: ignore[arg-type]
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_writes_outside_a_tensor_are_refused(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / "m.safetensors", LAYOUT)
    with writer:
        for start, data in ((0, b"123456789"), (5, b"1234"), (-1, b"1")):
            with pytest.raises(OutputError, match="outside the tensor"):
                writer.write_bytes("w", data, start)
        with pytest.raises(OutputError, match="no such tensor"):
            writer.offset("x")
    with pytest.raises(OutputError, match="nothing to commit"):
        writer.commit()


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "config.json").write_text("{}")
    old = os.umask(0o027)
    try:
        with CheckpointWriter(tmp_path / "m.safetensors", LAYOUT) as writer:
            writer.commit()
        with _directory(tmp_path / "d", carry=tmp_path / "in") as writer:
            writer.commit()
    finally:
        os.umask(old)
    files = [tmp_path / "m.safetensors", *(tmp_path / "d").iterdir()]
    assert {stat.S_IMODE(f.stat().st_mode) for f in files} == {0o640}
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o750


def test_filesystem_without_reservation_gets_the_full_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    with CheckpointWriter(tmp_path / "m.safetensors", LAYOUT) as writer:
        writer.commit()
    assert (tmp_path / "m.safetensors").stat().st_size == writer.nbytes


CHILD = """
import sys, time
from pysoup import dtypes
from pysoup.checkpoint import CheckpointWriter
shards = [(sys.argv[2], [("w", dtypes.BOOL, (1 << 16,))])]
with CheckpointWriter(sys.argv[1], shards, is_directory=sys.argv[1].endswith("d")) as writer:
    writer.write_bytes("w", bytes(100))
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "d"])
def test_killed_run_leaves_no_output_and_the_next_cleans_up(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(target), "model.safetensors"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"writing\n"
            (temporary,) = os.listdir(tmp_path)
            assert temporary.startswith(f".{name}.pysoup-{child.pid}-")
            # A live run is left alone.
            assert publish.remove_stale(target) == []
        finally:
            child.kill()
    assert os.listdir(tmp_path) == [temporary]
    # So are the temporary files of other targets.
    other = tmp_path / temporary.replace(name, f"x{name}")
    other.touch()
    layout = [("model.safetensors", [("w", dtypes.BOOL, (1,))])]
    with CheckpointWriter(target, layout, is_directory=name == "d") as writer:
        assert temporary not in os.listdir(tmp_path)
        writer.commit()
    assert sorted(os.listdir(tmp_path)) == sorted([name, other.name])


def test_owner_on_another_machine_is_known_by_its_lock(tmp_path: Path) -> None:
    # 2**31 - 1 is beyond any process id of this machine.
    temporary = tmp_path / ".m.safetensors.pysoup-2147483647-00000000.tmp"
    temporary.touch()
    lock = publish.lock(temporary)
    assert publish.remove_stale(tmp_path / "m.safetensors") == []
    os.close(lock)
    assert publish.remove_stale(tmp_path / "m.safetensors") == [temporary]
    assert os.listdir(tmp_path) == []


def test_leftover_that_names_this_process_is_known_by_its_lock(tmp_path: Path) -> None:
    """In a container every run may have the same process id, often 1."""
    temporary = tmp_path / f".m.safetensors.pysoup-{os.getpid()}-00000000.tmp"
    temporary.touch()
    assert publish.remove_stale(tmp_path / "m.safetensors") == [temporary]
    with CheckpointWriter(tmp_path / "m.safetensors", LAYOUT):
        assert publish.remove_stale(tmp_path / "m.safetensors") == []


def test_kill_between_the_two_renames_loses_no_directory(tmp_path: Path) -> None:
    sharded(tmp_path / ".d.pysoup-2147483647-00000000.old", {"m.safetensors": OLD})
    with _directory(tmp_path / "d", overwrite=True):
        assert list(open_checkpoint(tmp_path / "d")) == ["w"]
    assert os.listdir(tmp_path) == ["d"]


def test_longest_file_names_have_temporary_names_too(tmp_path: Path) -> None:
    target = tmp_path / ("é" * 121 + ".safetensors")
    with CheckpointWriter(target, LAYOUT) as writer:
        writer.commit()
    assert os.listdir(tmp_path) == [target.name]
