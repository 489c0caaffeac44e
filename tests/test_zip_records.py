"""The directory of a zip archive: right about what zipfile, numpy and torch write, strict with all else."""

from __future__ import annotations

import io
import os
import random
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_files import Member, saved, zip_bytes

from pysoup.checkpoint import zip_records
from pysoup.checkpoint.zip_records import Record, read_records
from pysoup.errors import CheckpointError


def records_of(path: Path, data: bytes) -> dict[str, Record]:
    fd = os.memfd_create("archive")
    try:
        os.write(fd, data)
        return read_records(fd, path, len(data))
    finally:
        os.close(fd)


def error_of(path: Path, data: bytes) -> str:
    with pytest.raises(CheckpointError) as caught:
        records_of(path, data)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    return line


def check_against_zipfile(path: Path, data: bytes) -> None:
    """Names, sizes and the bytes themselves are those that the standard library finds."""
    records = records_of(path, data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        assert list(records) == [info.filename for info in infos]
        for info in infos:
            record = records[info.filename]
            raw = data[record.offset : record.offset + record.compressed_size]
            content = zlib.decompress(raw, -15) if record.deflated else raw
            assert content == archive.read(info)
            assert (record.size, record.compressed_size) == (info.file_size, info.compress_size)
            assert record.deflated == (info.compress_type == zipfile.ZIP_DEFLATED)
            assert (record.crc, record.name) == (info.CRC, info.filename)


class _Unseekable(io.RawIOBase):
    """A pipe: zipfile then writes the sizes behind the data."""

    def __init__(self) -> None:
        self.data = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += bytes(data)
        return len(data)


def python_archive(target: Any, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(target, "w", compression) as archive:
        archive.writestr("m/data.pkl", b"x" * 1000)
        archive.writestr("m/", b"")
        archive.writestr("m/empty", b"")
        archive.writestr("m/naïve/ключ", b"\x00" * 300)
        with archive.open("m/long", "w", force_zip64=True) as file:
            file.write(b"123")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_read_records_finds_what_zipfile_wrote(tmp_path: Path, compression: int) -> None:
    buffer, pipe = io.BytesIO(), _Unseekable()
    python_archive(buffer, compression)
    python_archive(pipe, compression)
    check_against_zipfile(tmp_path / "a.zip", buffer.getvalue())
    check_against_zipfile(tmp_path / "b.zip", pipe.data)


def test_read_records_finds_what_torch_and_numpy_wrote(tmp_path: Path) -> None:
    check_against_zipfile(tmp_path / "a.pt", saved({"w": torch.ones(3), "v": torch.empty(0)}))
    arrays = {"a": np.ones(3), "b": np.zeros((0, 2))}
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, **arrays)
        check_against_zipfile(tmp_path / "a.npz", buffer.getvalue())


TWO = [Member("m/data.pkl", b"first"), Member("m/data/0", b"second")]


def zip64_field(*values: int) -> bytes:
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)


def test_read_records_reads_zip64_in_all_its_places(tmp_path: Path) -> None:
    check_against_zipfile(tmp_path / "a.zip", zip_bytes(TWO, zip64=True))
    long = dict.fromkeys(("compressed", "size"), 0xFFFFFFFF)
    padding = struct.pack("<2H", 0x4246, 5) + b"ZZZZZ"
    fields = padding + zip64_field(5, 5)
    member = Member("m/data.pkl", b"first", both=long, extra=fields, central_extra=fields)
    assert records_of(tmp_path / "a.zip", zip_bytes([member, TWO[1]]))["m/data.pkl"][2:4] == (5, 5)
    member = Member("m/data.pkl", b"first", central={"header": 0xFFFFFFFF, "disk": 0xFFFF})
    member.central_extra = struct.pack("<2HQL", 1, 12, 0, 0)
    assert records_of(tmp_path / "a.zip", zip_bytes([member, TWO[1]]))["m/data.pkl"].offset == 40


def test_read_records_of_an_empty_archive_are_none(tmp_path: Path) -> None:
    assert records_of(tmp_path / "a.zip", zip_bytes([])) == {}


def changed(**fields: Any) -> list[Member]:
    return [Member("m/data.pkl", b"first", **fields), TWO[1]]


BROKEN = {
    "encrypted": (changed(flags=0x801), "is encrypted"),
    "masked": (changed(flags=0x2800), "is encrypted"),
    "bzip2": (changed(both={"method": 12}), "unsupported method: found bzip2"),
    "Zstandard": (changed(both={"method": 93}), "unsupported method: found Zstandard"),
    "method 77": (changed(both={"method": 77}), "found method 77"),
    "comes twice": ([TWO[0], TWO[0]], "comes twice"),
    "not UTF-8": ([Member(b"m/\xff", b"")], "not UTF-8"),
    "local signature": (changed(local={"signature": b"PK\x05\x06"}), "no local header"),
    "local name": (changed(local={"name": b"m/data.pkx"}), "another name in its local header"),
    "local name longer": (changed(local={"name": b"m/data.pkl/x"}), "another name in its local header"),
    "local size": (changed(local={"size": 4}), "another size"),
    "local compressed": (changed(local={"compressed": 4}), "another size"),
    "local checksum": (changed(local={"crc": 4}), "another size or checksum"),
    "local method": (changed(local={"method": 8}), "another method"),
    "local encryption": (changed(local={"flags": 0x801}), "another method or other flags"),
    "local zip64 missing": (changed(local={"size": 0xFFFFFFFF}), "lacks its zip64 field"),
    "stored in another size": (changed(both={"size": 6}), "a size that its data cannot have"),
    "beyond the directory": (changed(both={"size": 500, "compressed": 500}), "reaches beyond"),
    "header beyond": (changed(central={"header": 10**6}), "begins beyond"),
    "header within another": (changed(central={"header": 1}), "no local header"),
    "other disk": (changed(central={"disk": 1}), "one part of several"),
    "bomb": ([Member("m/data/0", b"x" * 100, method=8, both={"size": 2**31})], "a size that its data cannot have"),
    "zip64 missing": (changed(central={"size": 0xFFFFFFFF}), "lacks its zip64 field"),
    "zip64 short": (
        changed(central={"size": 0xFFFFFFFF, "compressed": 0xFFFFFFFF}, central_extra=zip64_field(5)),
        "lacks a size in its zip64 field",
    ),
    "zip64 bomb": (
        changed(
            both={"size": 0xFFFFFFFF, "compressed": 0xFFFFFFFF},
            extra=zip64_field(2**62, 2**62),
            central_extra=zip64_field(2**62, 2**62),
        ),
        "reaches beyond",
    ),
    "zip64 beyond 63 bits": (
        changed(both={"size": 0xFFFFFFFF, "compressed": 0xFFFFFFFF}, central_extra=zip64_field(2**64 - 1, 2**64 - 1)),
        "impossible size",
    ),
    "folder with content": ([Member("m/", b"abc")], "impossible size"),
}


@pytest.mark.parametrize(("members", "what"), BROKEN.values(), ids=BROKEN)
def test_read_records_refuses_a_broken_member(tmp_path: Path, members: list[Member], what: str) -> None:
    assert what in error_of(tmp_path / "a.zip", zip_bytes(members))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../up",
        "m/../../up",
        "m/..",
        "..",
        ".",
        "m/./x",
        "m//x",
        "c:/x",
        "C:x",
        "m\\x",
        "a\0b",
        "//x",
    ],
)
def test_read_records_refuses_a_name_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    assert "unsafe record name" in error_of(tmp_path / "a.zip", zip_bytes([Member(name, b"x")]))


@pytest.mark.parametrize("name", ["...", "m/..x", "m/x..", "m/.data/x", "mc:/x", "a b/c'd"])
def test_read_records_takes_any_other_name(tmp_path: Path, name: str) -> None:
    assert list(records_of(tmp_path / "a.zip", zip_bytes([Member(name, b"x")]))) == [name]


def test_read_records_refuses_records_that_overlap(tmp_path: Path) -> None:
    inner = zip_bytes([Member("m/b", b"inner")])[: 30 + 3 + 5]
    outer = Member("m/a", inner)
    # The second entry of the directory points into the data of the first.
    hidden = Member("m/b", b"inner", central={"header": 33})
    assert "overlaps record 'm/a'" in error_of(tmp_path / "a.zip", zip_bytes([outer, hidden]))


END = {
    "more entries": ({"end": {"count": 3, "here": 3}}, "lists fewer records than it says"),
    "fewer entries": ({"end": {"count": 1, "here": 1}}, "lists more records than it says"),
    "parts": ({"end": {"count": 2, "here": 1}}, "one part of several"),
    "directory moved": ({"end": {"start": 50}}, "not where it should be"),
    "directory longer": ({"end": {"length": 10**6}}, "not where it should be"),
    "directory of 4 GB": ({"end": {"length": 0xFFFFFFFE}}, "not where it should be"),
    "zip64 missing": ({"end": {"start": 0xFFFFFFFF}}, "lacks its zip64 end mark"),
    "comment longer": ({"end": {"comment": 5}}, "does not end at its end mark"),
    "trailing bytes": ({"tail": b"xyz"}, "does not end at its end mark"),
    "mark in the comment": ({"end": {"comment": 4}, "tail": b"PK\x05\x06"}, "no end mark"),
    "huge directory in zip64": ({"end": {"length": 2**62}, "zip64": True}, "not where it should be"),
    "huge count in zip64": ({"end": {"count": 2**62, "here": 2**62}, "zip64": True}, "too large"),
}


@pytest.mark.parametrize(("options", "what"), END.values(), ids=END)
def test_read_records_refuses_a_false_end_mark(tmp_path: Path, options: dict[str, Any], what: str) -> None:
    assert what in error_of(tmp_path / "a.zip", zip_bytes(TWO, **options))


def test_read_records_takes_a_comment(tmp_path: Path) -> None:
    assert list(records_of(tmp_path / "a.zip", zip_bytes(TWO, end={"comment": 5}, tail=b"hello"))) == [
        "m/data.pkl",
        "m/data/0",
    ]


@pytest.mark.parametrize("zip64", [False, True])
def test_read_records_refuses_a_truncated_archive(tmp_path: Path, zip64: bool) -> None:
    data = zip_bytes(TWO, zip64=zip64)
    for length in range(len(data)):
        error_of(tmp_path / "a.zip", data[:length])
        error_of(tmp_path / "a.zip", data[length + 1 :])


def test_read_records_refuses_a_false_zip64_end_mark(tmp_path: Path) -> None:
    data = bytearray(zip_bytes(TWO, zip64=True))
    locator = len(data) - 22 - 20
    for at, value, what in (
        (locator + 4, 1, "one part of several"),
        (locator + 8, data[locator + 8] ^ 1, "misplaced"),
        (locator - 56, 0, "zip64 end mark is damaged"),
        (locator - 56 + 4, 45, "zip64 end mark is damaged"),
        (len(data) - 12, 7, "two end marks that differ"),
    ):
        broken = data.copy()
        broken[at] = value
        assert what in error_of(tmp_path / "a.zip", bytes(broken))


def test_read_records_caps_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_records, "MAX_RECORDS", 1)
    assert "too large" in error_of(tmp_path / "a.zip", zip_bytes(TWO))
    monkeypatch.setattr(zip_records, "MAX_RECORDS", 2)
    monkeypatch.setattr(zip_records, "MAX_DIRECTORY_BYTES", 50)
    assert "too large" in error_of(tmp_path / "a.zip", zip_bytes(TWO))


def test_read_records_of_damaged_archives_fail_in_one_line_only(tmp_path: Path) -> None:
    random.seed(1)
    members = [*TWO, Member("m/deflated", b"x" * 50, method=8)]
    originals = [zip_bytes(members), zip_bytes(members, zip64=True)]
    path = tmp_path / "a.zip"
    good = 0
    for _ in range(3000):
        data = bytearray(random.choice(originals))
        for _ in range(random.randint(1, 3)):
            data[random.randrange(len(data))] = random.choice((0, 1, 0xFF, random.randrange(256)))
        try:
            for record in records_of(path, bytes(data)).values():
                assert 0 <= record.offset <= record.offset + record.compressed_size <= len(data)
            good += 1
        except CheckpointError as error:
            line = str(error)
            assert "\n" not in line
    # Dates, versions and the data themselves are not this module's business.
    assert 100 < good < 1500
