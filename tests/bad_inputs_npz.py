"""Rows of bad ``.npz`` archives, stored and deflated. numpy or zipfile refuse most of them too."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from bad_inputs import DATA, Make, Oracle, Row, leads_outside, numpy_refuses, zipfile_refuses
from npz_files import npy
from torch_files import Member, zip_bytes


def header(shape: str = "(2, 2)", descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


A = npy(header("(2,)"), DATA[:8])
W = npy(header(), DATA[8:])


def npz(
    w: bytes = W,
    more: tuple[Member, ...] = (),
    deflated: bool = False,
    cut: int = 0,
    tail: bytes = b"",
    stream: bytes | None = None,
    **claims: int,
) -> Make:
    """With the fault: another array ``w``, more members, other sizes than the true ones, another deflate stream."""

    def make(directory: Path, broken: bool) -> Path:
        path = directory / "bad.npz"
        method = 8 if deflated else 0
        first = Member("a.npy", A, method)
        if not broken:
            path.write_bytes(zip_bytes([first, Member("w.npy", W, method)]))
            return path
        second = Member("w.npy", w, method, both=dict(claims))
        if stream is not None:
            truth = {"size": len(w), "compressed": len(stream), "crc": zlib.crc32(w)}
            second = Member("w.npy", stream, 0, both={"method": 8} | truth | claims)
        raw = zip_bytes([first, second, *more])
        path.write_bytes(raw[: len(raw) - cut] + tail)
        return path

    return make


def deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflater.compress(data) + deflater.flush()


def two(line: str, what: str, w: bytes, says: str, oracle: Oracle = numpy_refuses) -> list[Row]:
    """The same array, stored and deflated."""
    kinds = {"npz": npz(w), "npz, deflated": npz(w, deflated=True)}
    return [Row(line, f"{kind}, {what}", make, says, oracle, "w") for kind, make in kinds.items()]


def member(path: Path, name: str = "w.npy") -> bytes:
    with zipfile.ZipFile(path) as file:
        return file.read(name)


def data_do_not_fit(path: Path) -> bool:
    """Whether there are more bytes behind the header than two by two floats have."""
    raw = member(path)
    return len(raw) - 10 - int.from_bytes(raw[8:10], "little") != 16


def is_no_array(path: Path) -> bool:
    """Whether a member is none, as numpy says too by giving bytes for it."""
    with np.load(path) as arrays:
        return any(isinstance(arrays[name], bytes) for name in arrays.files)


def has_objects(path: Path) -> bool:
    return b"'|O'" in member(path) and numpy_refuses(path)


def runs_code(path: Path) -> bool:
    """Whether numpy, when allowed to, runs the code in the array of objects, which makes a canary beside the file."""
    canary = path.with_name("canary")
    with np.load(path, allow_pickle=True) as arrays:
        arrays["w"]
    found = canary.exists()
    canary.unlink(missing_ok=True)
    return found and numpy_refuses(path)


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.system, (f"touch '{self.path}'",)


def code(directory: Path, broken: bool) -> Path:
    stream = io.BytesIO()
    pickle.dump(_Touch(directory / "canary"), stream)
    return npz(npy(header("()", "'|O'"), stream.getvalue()))(directory, broken)


def declares(path: Path) -> tuple[int, int]:
    """Size and compressed size of ``w`` by the directory."""
    with zipfile.ZipFile(path) as file:
        info = file.getinfo("w.npy")
    return info.file_size, info.compress_size


def inflates_to(path: Path) -> int:
    with open(path, "rb") as file, zipfile.ZipFile(path) as archive:
        info = archive.getinfo("w.npy")
        file.seek(info.header_offset + 30 + len("w.npy"))
        return len(zlib.decompressobj(-15).decompress(file.read(info.compress_size)))


def inflates_to_another_size(path: Path) -> bool:
    return inflates_to(path) != declares(path)[0]


def has_a_name_outside(path: Path) -> bool:
    with zipfile.ZipFile(path) as file:
        return any(leads_outside(info.orig_filename) for info in file.infolist())


def has_a_name_twice(path: Path) -> bool:
    with zipfile.ZipFile(path) as file:
        return len(set(file.namelist())) < len(file.namelist())


def goes_on_after_the_end(path: Path) -> bool:
    raw = path.read_bytes()
    return len(raw) != raw.rindex(b"PK\x05\x06") + 22


MUCH = 2**31
BOMB = npy(header("(536870912,)"), b"")
LONG = npy(header(), DATA[8:] + bytes(4 << 20))
LONGER_HEADER = W[:8] + struct.pack("<H", 60_000) + W[10:]
HUGE_HEADER = npy(header(), DATA[8:], (2, 0))
HUGE_HEADER = HUGE_HEADER[:8] + struct.pack("<L", 100_000_001) + HUGE_HEADER[12:]
NEGATIVE_HEADER = HUGE_HEADER[:8] + b"\xff" * 4 + HUGE_HEADER[12:]

NPZ = [
    Row("truncated at every section", "npz, end mark", npz(cut=1), "no end mark", zipfile_refuses),
    Row("truncated at every section", "npz, directory", npz(cut=40), "no end mark", zipfile_refuses),
    *two("truncated at every section", "header of an array", W[:9], "too short for its header"),
    *two("truncated at every section", "data of an array", W[:-1], "data do not fit F32"),
    *two("header length beyond the file", "header of an array", LONGER_HEADER, "too short for its header"),
    *two("header length beyond 100 MB", "header of an array", HUGE_HEADER, "header too large"),
    *two("header length negative", "header of an array", NEGATIVE_HEADER, "header too large"),
    *two("header length negative", "size of an array", npy(header("(-2, -2)"), DATA[8:]), "header"),
    *two("invalid JSON", "header is no dict", npy("['<f4', (2, 2)]", DATA[8:]), "header is damaged"),
    *two("invalid JSON", "header is code", npy("__import__('os').abort()", DATA[8:]), "header is damaged"),
    *two(
        "invalid UTF-8",
        "header of an array",
        npy(b"\xff\xfe" + header().encode(), DATA[8:], (3, 0)),
        "header is damaged",
    ),
    *two(
        "offsets past the end",
        "shape",
        npy(header("(3, 2)"), DATA[8:]),
        "data do not fit F32.*found 16 bytes, expected 24",
    ),
    *two("unknown dtype", "three bytes", npy(header(descr="'<f3'"), DATA[8:]), "'<f3'"),
    *two("unknown dtype", "none of numpy's", npy(header(descr="'<q4'"), DATA[8:]), "unknown dtype: found '<q4'"),
    *two("shape x dtype overflow", "to 0 in 64 bits", npy(header("(4611686018427387904,)"), b""), "overflows 63 bits"),
    *two("shape x dtype overflow", "beyond 64 bits", npy(header("(99999999999999999999,)"), b""), "overflows 63 bits"),
    *two(
        ".npz with objects",
        "array of one",
        npy(header("()", "'|O'"), pickle.dumps(None)),
        "Python objects",
        has_objects,
    ),
    *two(".npz with objects", "of the right size", npy(header(descr="'|O'"), DATA[8:]), "Python objects", has_objects),
    Row("pickle with code in it", "npz", code, "Python objects", runs_code, "w"),
    *two(
        "trailing bytes", "in an array", W + b"\0", "data do not fit F32.*found 17 bytes, expected 16", data_do_not_fit
    ),
    Row("trailing bytes", "npz", npz(tail=b"\0"), "does not end at its end mark", goes_on_after_the_end),
    Row("trailing bytes", "npz, member that is no array", npz(more=(Member("x.txt", b"x"),)), "'x.txt'", is_no_array),
    Row(
        "trailing bytes",
        "npz, after the deflate stream",
        npz(deflated=True, stream=deflate(W) + b"\0"),
        "1 bytes after the end of the compressed data",
        lambda path: declares(path)[1] != len(deflate(W)),
        "w",
    ),
    Row(
        "duplicate JSON names", "npz, member", npz(more=(Member("w.npy", W),)), "'w.npy' comes twice", has_a_name_twice
    ),
    Row(
        "zip bomb sizes",
        "npz, stored array of two gigabytes",
        npz(BOMB, compressed=MUCH, size=MUCH),
        "'w.npy'",
        lambda path: declares(path)[1] > os.path.getsize(path),
    ),
    Row(
        "zip bomb sizes",
        "npz, size that no stream can give",
        npz(BOMB, deflated=True, size=MUCH + len(BOMB)),
        "'w.npy' declares a size that its data cannot have",
        inflates_to_another_size,
    ),
    Row(
        "zip bomb sizes",
        "npz, stream that inflates to more",
        npz(deflated=True, stream=deflate(LONG), size=len(W), crc=zlib.crc32(W)),
        "compressed data go on after the tensor",
        inflates_to_another_size,
        "w",
    ),
    Row(
        "zip bomb sizes",
        "npz, stream that inflates to less",
        npz(deflated=True, stream=deflate(W[:-4]), size=len(W)),
        "compressed data end early",
        inflates_to_another_size,
        "w",
    ),
    Row(
        "zip bomb sizes",
        "npz, stream that never ends",
        npz(deflated=True, stream=deflate(W)[:-3]),
        "compressed data end early",
        zipfile_refuses,
        "w",
    ),
    Row(
        "zip bomb sizes",
        "npz, stream of noise",
        npz(deflated=True, stream=deflate(W)[:60] + b"\xff" * 40),
        "damaged|header",
        zipfile_refuses,
        "w",
    ),
    Row(
        "zip bomb sizes",
        "npz, other values than its checksum's",
        npz(W[:-1] + b"\0", deflated=True, crc=zlib.crc32(W)),
        "wrong checksum",
        zipfile_refuses,
        "w",
    ),
    *(
        Row(
            "archive members that point outside",
            f"npz, {name!r}",
            npz(more=(Member(name, W),)),
            "unsafe record name",
            has_a_name_outside,
        )
        for name in ("../canary.npy", "/canary.npy", "x/../../canary.npy", "C:\\canary.npy", "..\\canary.npy")
    ),
]
