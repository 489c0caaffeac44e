"""Whatever is wrong with a file, an option or the disk: exit 1, one line that names it, and nothing written."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors_files import f32, header_of, save

from pysoup.cli import main

GOOD = {"w": f32(1, 2, 3, 4), "b": f32(0, 0)}
OUTPUT = "soup.safetensors"


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def good(tmp_path: Path) -> str:
    return save(tmp_path / "good.safetensors", GOOD)


def refused(args: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command, which must fail as promised; returns the line it printed."""
    before = contents(folder)
    assert main(args) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pysoup: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert contents(folder) == before
    return err


def entry(dtype: object = "F32", shape: object = (4,), offsets: object = (0, 16)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


B = entry(shape=[2], offsets=[16, 24])
TEXT = json.dumps(header_of(GOOD)).encode()


def raw(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def headed(header: dict[str, object] | bytes, length: int | None = None) -> Callable[[Path], object]:
    return lambda path: save(path, GOOD, header, length)


def whole(path: Path) -> bytes:
    save(path, GOOD)
    return path.read_bytes()


# what -> (makes the file, words that the line must hold besides the file's name)
BROKEN: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "missing": (lambda path: None, []),
    "a folder without checkpoints": (lambda path: path.mkdir(), []),
    "empty": (raw(b""), []),
    "shorter than its length field": (raw(b"\1\2\3"), []),
    "truncated in the header": (lambda path: path.write_bytes(whole(path)[:40]), []),
    "truncated in the data": (lambda path: path.write_bytes(whole(path)[:-1]), []),
    "header length beyond the file": (headed(TEXT, length=10_000), []),
    "header length of 2**63": (headed(TEXT, length=2**63), []),
    "header length too short": (headed(TEXT, length=len(TEXT) - 2), []),
    "bad JSON": (headed(b'{"w": '), []),
    "JSON that is no object": (headed(b"[1, 2]"), []),
    "deeply nested JSON": (headed(b"[" * 100_000), []),
    "bad UTF-8": (headed(b'{"\xff": 1}'), []),
    "unknown dtype": (headed({"w": entry("F31"), "b": B}), ["'w'", "F31"]),
    "dtype that is no text": (headed({"w": entry(7), "b": B}), ["'w'"]),
    "wrong shape": (headed({"w": entry(shape=[5]), "b": B}), ["'w'"]),
    "negative shape": (headed({"w": entry(shape=[-4]), "b": B}), ["'w'"]),
    "fractional shape": (headed({"w": entry(shape=[4.0]), "b": B}), ["'w'"]),
    "true as a size": (headed({"w": entry(shape=[4, True]), "b": B}), ["'w'"]),
    "overflowing shape": (headed({"w": entry(shape=[2**40, 2**40]), "b": B}), ["'w'"]),
    "reversed offsets": (headed({"w": entry(offsets=[16, 0]), "b": B}), ["'w'"]),
    "overlap": (headed({"w": entry(), "b": entry(shape=[2], offsets=[8, 16])}), ["'b'"]),
    "gap": (headed({"w": entry(shape=[3], offsets=[0, 12]), "b": B}), ["'b'"]),
    "offsets beyond the file": (headed({"w": entry(), "b": entry(shape=[4], offsets=[16, 32])}), []),
    "trailing bytes": (lambda path: path.write_bytes(whole(path) + b"\0"), []),
    "duplicate names": (headed(TEXT[:-1] + b", " + TEXT[1:]), []),
    "NaN as a number": (headed({"w": entry(shape=[float("nan")]), "b": B}), []),
    "an index with a missing shard": (
        lambda path: (path.mkdir(), index(path, {"w": "model-1.safetensors"})),
        ["model-1.safetensors"],
    ),
    "an index with a shard elsewhere": (
        lambda path: (path.mkdir(), index(path, {"w": "../good.safetensors"})),
        ["good.safetensors"],
    ),
}


def index(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("command", ["average", "inspect"])
def test_broken_file_is_refused_by_name(
    what: str, command: str, good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, words = BROKEN[what]
    broken = tmp_path / "broken.safetensors"
    make(broken)
    output = ["-o", str(tmp_path / OUTPUT)] if command == "average" else []
    line = refused([command, good, str(broken), *output], tmp_path, capsys)
    for word in ["broken.safetensors", *words]:
        assert word in line


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"w": f32(1, 2, 3, 4)}, ["'b'"]),
        ({**GOOD, "extra": f32(1)}, ["'extra'"]),
        ({"w": f32(1, 2, 3), "b": f32(0, 0)}, ["'w'", "3", "4"]),
        ({"w": ("F16", [4], bytes(8)), "b": f32(0, 0)}, ["'w'", "F16", "F32", "dtype"]),
    ],
    ids=["a name less", "a name more", "another shape", "another dtype"],
)
def test_files_that_differ_are_refused_by_tensor(
    tensors: dict[str, tuple[str, list[int], bytes]],
    words: list[str],
    good: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = save(tmp_path / "other.safetensors", tensors)
    line = refused(["average", good, other, "-o", str(tmp_path / OUTPUT)], tmp_path, capsys)
    for word in ["other.safetensors", *words]:
        assert word in line


@pytest.mark.parametrize("data", [bytes(8), bytes(7) + b"\1"], ids=["first zero", "high byte"])
def test_integers_that_differ_are_refused_by_tensor(
    data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = [
        save(tmp_path / "a.safetensors", {"steps": ("I64", [1], struct.pack("<q", 3))}),
        save(tmp_path / "b.safetensors", {"steps": ("I64", [1], data)}),
    ]
    assert "'steps'" in refused(["average", *inputs, "-o", str(tmp_path / OUTPUT)], tmp_path, capsys)


@pytest.mark.parametrize(
    "options",
    [
        ["--weights", "1"],
        ["--weights", "1,2,3"],
        ["--weights", "nan,1"],
        ["--weights", "inf,1"],
        ["--weights", "0,0"],
        ["--weights=1,-1"],
        ["--memory", "lots"],
        ["--memory", ""],
        ["--memory", "12XB"],
        ["--memory=-1MiB"],
        ["--memory", "1"],
        ["--memory", "99999999999999TiB"],
        ["--threads", "0"],
        ["--threads=-2"],
        ["--dtype", "bf17"],
        ["--dtype", "i8"],
    ],
    ids=" ".join,
)
def test_option_without_a_sense_is_refused(
    options: list[str], good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save(tmp_path / "other.safetensors", GOOD)
    refused(["average", good, other, "-o", str(tmp_path / OUTPUT), *options], tmp_path, capsys)


def test_output_that_exists_is_refused_until_forced(
    good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / OUTPUT
    output.write_text("precious")
    assert OUTPUT in refused(["average", good, "-o", str(output)], tmp_path, capsys)
    assert main(["average", good, "-o", str(output), "--force"]) == 0
    assert output.read_bytes() != b"precious"


@pytest.mark.parametrize("alias", ["same path", "symbolic link", "hard link"])
def test_output_that_is_an_input_is_refused_even_if_forced(
    alias: str, good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / OUTPUT
    if alias == "same path":
        output = Path(good)
    elif alias == "symbolic link":
        output.symlink_to(good)
    else:
        output.hardlink_to(good)
    refused(["average", good, good, "-o", str(output), "--force"], tmp_path, capsys)


@pytest.mark.parametrize("where", ["no/such/folder/soup.safetensors", "good.safetensors/soup.safetensors", "soup.xyz"])
def test_output_that_cannot_be_is_refused_by_name(
    where: str, good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(["average", good, "-o", str(tmp_path / where)], tmp_path, capsys)
    assert Path(where).name in line


def test_output_without_permission_is_refused_by_name(tmp_path: Path) -> None:
    # Root may write anywhere but to the kernel's own file systems.
    locked = Path("/proc/sys")
    if os.geteuid() != 0:
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
    good = save(tmp_path / "good.safetensors", GOOD)
    command = [sys.executable, "-m", "pysoup", "average", good, "-o", str(locked / OUTPUT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert OUTPUT in done.stderr


def test_file_system_that_refuses_to_grow_a_file_leaves_nothing(tmp_path: Path) -> None:
    big = save(tmp_path / "big.safetensors", {"w": ("F32", [1 << 20], bytes(4 << 20))})
    before = sorted(tmp_path.iterdir())

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    command = [sys.executable, "-m", "pysoup", "average", big, big, "-o", str(tmp_path / OUTPUT)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert OUTPUT in done.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_is_said_before_anything_is_written(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    big = save(tmp_path / "big.safetensors", {"w": ("F32", [1 << 20], bytes(4 << 20))})
    line = refused(["average", big, big, "-o", str(small_disk / OUTPUT)], tmp_path, capsys)
    assert OUTPUT in line


def test_error_line_stays_one_line_whatever_the_file_is_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "two\nlines\x1b[31m.safetensors", GOOD, length=10_000)
    line = refused(["inspect", path], tmp_path, capsys)
    assert "\x1b" not in line


def test_error_through_the_real_command_is_one_line_and_exit_1(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.safetensors")
    done = subprocess.run([sys.executable, "-m", "pysoup", "inspect", missing], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"pysoup: error: {missing}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["uniform", "greedy"])
def test_missing_task_is_one_line(command: str, good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(tmp_path)
    assert main([command, good, "--task", str(tmp_path / "no.py:Task"), "-o", str(tmp_path / "run")]) == 1
    err = capsys.readouterr().err
    assert "no.py" in err
    assert err.count("\n") == 1
    assert {k: v for k, v in contents(tmp_path).items() if v is not None} == before
