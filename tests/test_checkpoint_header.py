"""Every malformed header is a one-line CheckpointError that names the file and the tensor; none is anything else."""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path

import pytest
from checkpoint_files import ONE, entry, raw_file
from safetensors import SafetensorError, safe_open

from pysoup.checkpoint import open_checkpoint
from pysoup.errors import CheckpointError

HUGE = 2**63

STRICTER = ("duplicate name", "unknown key", "must begin with '{'", "entry is not an object", "__metadata__ is not")
"""The faults that the safetensors library lets pass and a mutation can hit."""

# What it is: header, data, text in the message, whether it names tensor 'w'.
HOSTILE = {
    "utf8": (b'{"\xff":1}', b"", "not UTF-8", False),
    "json": ("{]", b"", "not valid JSON", False),
    "empty header": ("", b"", "must begin with '{'", False),
    "array": ("[]", b"", "must begin with '{'", False),
    "leading space": (" {}", b"", "must begin with '{'", False),
    "trailing nul": ("{}\0", b"", "not valid JSON", False),
    "byte order mark": ("\ufeff{}", b"", "must begin with '{'", False),
    "deep nesting": ('{"w":' + "[" * 200_000, b"", "nested too deeply", False),
    "control character": ('{"w\x01":1}', b"", "not valid JSON", False),
    "long integer": ('{"w":{"dtype":"U8","shape":[' + "1" * 5000 + '],"data_offsets":[0,1]}}', b"a", "shape", True),
    "NaN": ('{"w":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', b"a", "NaN is not a JSON value", False),
    "Infinity": ('{"w":-Infinity}', b"a", "Infinity is not a JSON value", False),
    "duplicate tensor": (f'{{"w":{json.dumps(ONE)},"w":{json.dumps(ONE)}}}', b"a", "duplicate name 'w'", False),
    "duplicate key": ('{"w":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"a", "'dtype'", False),
    "duplicate metadata": ('{"__metadata__":{"k":"1","k":"2"}}', b"", "duplicate name 'k'", False),
    "surrogate name": ('{"\\ud800":' + json.dumps(ONE) + "}", b"a", "Unicode", False),
    "metadata null": ({"__metadata__": None}, b"", "__metadata__ is not an object", False),
    "metadata number": ({"__metadata__": {"k": 1}}, b"", "value of 'k' is not a string", False),
    "metadata too long": ({"__metadata__": {"k": "x" * 9_000_000}}, b"", "name or value that is too long", False),
    "metadata too large": ({"__metadata__": dict.fromkeys("abc", "x" * 4_000_000)}, b"", "is too large", False),
    "metadata keys": ({"__metadata__": dict.fromkeys(map(str, range(70_000)), "")}, b"", "is too large", False),
    "entry too long": ('{"w":[' + "[]," * 400_000 + "1]}", b"", "value that is too long (character 5, in 'w')", False),
    "entry array": ({"w": ["U8", [1], [0, 1]]}, b"a", "entry is not an object", True),
    "missing key": ({"w": {"dtype": "U8", "shape": [1]}}, b"a", "lacks 'data_offsets'", True),
    "extra key": ({"w": {**ONE, "x": 1}}, b"a", "unknown key", True),
    "dtype unknown": ({"w": entry("FLOAT")}, b"a", "unknown dtype: found 'FLOAT', expected one of F64", True),
    "dtype list": ({"w": {**ONE, "dtype": ["U8"]}}, b"a", "unknown dtype", True),
    "dtype C128": ({"w": entry("C128", [1], 0, 16)}, b"a" * 16, "unknown dtype", True),
    "dtype F4": ({"w": entry("F4", [2])}, b"a", "block-scaled", True),
    "dtype E8M0": ({"w": entry("F8_E8M0")}, b"a", "block-scaled", True),
    "dtype FNUZ": ({"w": entry("F8_E4M3FNUZ")}, b"a", "other hardware", True),
    "shape object": ({"w": entry(shape={})}, b"a", "invalid shape", True),
    "shape negative": ({"w": entry(shape=[-1])}, b"a", "invalid shape: found [-1]", True),
    "shape bool": ({"w": entry(shape=[True])}, b"a", "invalid shape: found [True]", True),
    "shape float": ({"w": entry(shape=[1.0])}, b"a", "invalid shape: found [1.0]", True),
    "shape minus zero": ('{"w":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}', b"", "invalid shape", True),
    "shape overflow": ({"w": entry(shape=[2**32, 2**32])}, b"a", "overflows", True),
    "item overflow": ({"w": entry("F64", [2**61], 0, 0)}, b"", "overflows", True),
    "hidden overflow": ({"w": entry(shape=[0, HUGE, HUGE], end=0)}, b"", "overflows", True),
    "offsets three": ({"w": {**ONE, "data_offsets": [0, 1, 1]}}, b"a", "invalid data_offsets", True),
    "offsets bool": ({"w": entry(end=True)}, b"a", "invalid data_offsets", True),
    "offsets negative": ({"w": entry(begin=-1, end=0)}, b"a", "invalid data_offsets", True),
    "offsets backwards": ({"w": entry(begin=1, end=0)}, b"a", "run backwards", True),
    "offsets size": ({"w": entry("F32", [2], 0, 4)}, b"abcd", "do not fit F32 [2]: found 4 bytes, expected 8", True),
    "offsets beyond 63 bits": ({"w": entry(begin=HUGE, end=HUGE + 1)}, b"a", "overflow", True),
    "overlap": ({"v": entry(shape=[2], end=2), "w": entry(begin=1, end=2)}, b"ab", "overlaps tensor 'v'", True),
    "gap": ({"v": ONE, "w": entry(begin=2, end=3)}, b"abc", "gap after tensor 'v'", True),
    "gap in front": ({"w": entry(begin=1, end=2)}, b"ab", "gap before the first", True),
    "empty inside": ({"v": entry(shape=[2], end=2), "w": entry(shape=[0], begin=1, end=1)}, b"ab", "overlaps", True),
    "truncated": ({"v": ONE, "w": entry("F32", [2], 1, 9)}, b"abc", "truncated: 6 bytes of tensor data are", True),
    "trailing": ({"w": ONE}, b"abc", "2 bytes after the last tensor", False),
    "trailing only": ({}, b"a", "1 bytes after the last tensor", False),
}


def _failure(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1000
    assert str(path) in text
    return caught.value


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_header_names_file_tensor_and_fault(tmp_path: Path, case: str) -> None:
    header, data, expected, names_tensor = HOSTILE[case]
    error = _failure(raw_file(tmp_path / "bad.safetensors", header, data))
    assert expected in str(error)
    assert (error.tensor == "w") is names_tensor


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "file is empty"),
        (b"abc", "too short for a safetensors file: found 3 bytes"),
        (struct.pack("<Q", 3) + b"{}", "reaches beyond the end"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "header too large: found 18446744073709551615"),
        (b"PK\x03\x04" + bytes(100), "zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
    ],
)
def test_file_that_is_no_safetensors_is_told_apart(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    assert expected in str(_failure(path))


def test_header_over_the_limit_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = raw_file(tmp_path / "sparse.safetensors", "{", length=100_000_001)
    os.truncate(path, 1 << 30)
    wanted: list[int] = []
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: wanted.append(len(views[0])) or read(fd, views, at))
    assert "header too large" in str(_failure(path))
    assert wanted == [8]


def test_paths_that_are_no_readable_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such file" in str(_failure(tmp_path / "absent.safetensors"))
    os.mkfifo(tmp_path / "fifo.safetensors")
    assert "not a regular file" in str(_failure(tmp_path / "fifo.safetensors"))
    (tmp_path / "link.safetensors").symlink_to("nowhere")
    assert "broken symbolic link" in str(_failure(tmp_path / "link.safetensors"))
    path = raw_file(tmp_path / "secret.safetensors", "{}")

    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    # The tests may run as root, whom no mode keeps out.
    monkeypatch.setattr(os, "open", denied)
    assert "cannot be read: permission denied" in str(_failure(path))


def test_hostile_names_stay_on_one_short_line(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "new\nline.safetensors", {"w\n" * 10_000: entry("X")}, b"a")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_lawful_oddities_are_accepted(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"dtype": "a", "shape": "b", "data_offsets": "c"},
        "last": entry("F32", [0, 3], 2, 2),
        "": entry(begin=1, end=2),
        "scalar": entry(shape=[]),
    }
    checkpoint = open_checkpoint(raw_file(tmp_path / "odd.safetensors", json.dumps(header) + "   ", b"ab"))
    assert list(checkpoint) == ["scalar", "", "last"]
    assert checkpoint.metadata == header["__metadata__"]
    assert [checkpoint.entry(n).nbytes for n in checkpoint] == [1, 1, 0]
    assert len(open_checkpoint(raw_file(tmp_path / "none.safetensors", "{}"))) == 0


def test_state_per_tensor_stays_compact(tmp_path: Path) -> None:
    import tracemalloc

    count = 20_000
    header = {f"model.layers.{i}.weight": entry("F32", [0, 768], 0, 0) for i in range(count)}
    path = raw_file(tmp_path / "many.safetensors", header)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    checkpoint = open_checkpoint(path)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    names = sum(map(len, checkpoint)) + 49 * count
    assert (used - names) / count < 130


def _library_accepts(path: Path) -> dict[str, tuple[str, list[int]]] | None:
    try:
        with safe_open(path, "np") as file:
            return {n: (file.get_slice(n).get_dtype(), file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
    except SafetensorError:
        return None


def _mutated(rng: random.Random, content: bytes) -> bytes:
    """One to three edits of the bytes: flips, deletions, insertions, copies of JSON pieces."""
    result = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(result) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(result):
            result[at] = rng.randrange(256)
        elif kind == 1:
            del result[at : at + rng.randint(1, 4)]
        elif kind == 2:
            result[at:at] = rng.choice((b"0", b"1", b"9", b"-", b"[", b"}", b'"', b",", b"1e3", b"null", b" ", b"\\"))
        elif kind == 3 and at < len(result):
            result[at] = ord(rng.choice("0123456789"))
        else:
            start = rng.randrange(len(result) or 1)
            result[at:at] = result[start : start + rng.randint(1, 60)]
    return bytes(result)


def test_random_mutations_are_refused_or_read_as_the_library_reads_them(tmp_path: Path) -> None:
    rng = random.Random(20240117)
    header = {
        "__metadata__": {"format": "pt"},
        "a.weight": entry("F32", [2, 3], 0, 24),
        "a.bias": entry("BF16", [3], 24, 30),
        "empty": entry("F16", [0], 30, 30),
        "count": entry("I64", [], 30, 38),
    }
    good = json.dumps(header, separators=(",", ":")).encode()
    path = tmp_path / "mutant.safetensors"
    accepted = 0
    for _ in range(2000):
        mutant = _mutated(rng, good)
        # A new file: rewriting one in place makes ext4 flush it, 3 ms each.
        path.unlink(missing_ok=True)
        raw_file(path, mutant, bytes(38), length=len(mutant) if rng.random() < 0.95 else rng.randrange(1 << 10))
        theirs = _library_accepts(path)
        ours = _ours(path)
        if isinstance(ours, str):
            assert "\n" not in ours
            assert theirs is None or any(text in ours for text in STRICTER), (ours, mutant)
        else:
            assert ours == theirs, mutant
            accepted += 1
    assert accepted > 60


def _ours(path: Path) -> dict[str, tuple[str, list[int]]] | str:
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError as error:
        return str(error)
    entries = map(checkpoint.entry, checkpoint)
    return {e.name: (e.dtype.name, list(e.shape)) for e in entries}
