"""numpy's ``.npz`` is read as numpy reads it, without numpy; whatever else comes is one line that names it."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import npz_files
import numpy as np
import pytest
from npz_files import EIGHT, GOOD, archive, npy

from pysoup import dtypes
from pysoup.checkpoint.checkpoint import TensorEntry
from pysoup.checkpoint.contents import Contents, Deflated, Strided
from pysoup.checkpoint.npz_file import read_npz
from pysoup.checkpoint.reading import read_exactly
from pysoup.checkpoint.unpack import Unpacked
from pysoup.errors import CheckpointError

DTYPES = ["f8", "f4", "f2", "c8", "c16", "?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (5,), (3, 4), (4, 1, 3), (2, 0, 3), (2, 3, 4, 5)]


def values(dtype: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    count = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
    raw = np.random.default_rng(count).integers(0, 2 if dtype == "?" else 256, count, dtype=np.uint8)
    return raw.view(dtype).reshape(shape)


def entries(contents: Contents) -> dict[str, TensorEntry]:
    found = {}
    for i, name in enumerate(contents.names):
        dtype, shape = dtypes.ALL[contents.dtypes[i]], contents.shapes[i]
        nbytes = int(np.prod(shape, dtype=int)) * dtype.itemsize
        found[name] = TensorEntry(name, dtype, shape, 0, contents.begins[i], nbytes, contents.forms.get(i))
    return found


def plain_bytes(path: Path, contents: Contents) -> dict[str, bytes]:
    found = {}
    with open(path, "rb") as file, Unpacked(path.parent) as unpacked:
        for name, entry in entries(contents).items():
            buffer = bytearray(entry.nbytes)
            offset, fd = unpacked.place(file.fileno(), entry, path)
            read_exactly(fd, memoryview(buffer), offset, path)
            found[name] = bytes(buffer)
    return found


def assert_same_as_numpy(path: Path) -> Contents:
    contents = read_npz(path)
    with np.load(path) as oracle:
        assert contents.names == list(oracle)
        assert contents.shapes == [oracle[name].shape for name in oracle]
        assert plain_bytes(path, contents) == {name: oracle[name].tobytes() for name in oracle}
    return contents


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_of_every_dtype_and_shape_is_what_numpy_reads(save: Any, tmp_path: Path) -> None:
    arrays = {f"{dtype}-{shape}": values(dtype, shape) for dtype in DTYPES for shape in SHAPES}
    save(tmp_path / "x.npz", **arrays)
    contents = assert_same_as_numpy(tmp_path / "x.npz")
    assert contents.format == "npz"
    assert [dtypes.ALL[code].torch_name for code in contents.dtypes] == [a.dtype.name for a in arrays.values()]
    forms = {Deflated} if save is np.savez_compressed else set()
    assert {type(form) for form in contents.forms.values()} == forms


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_in_fortran_order_is_put_in_c_order(save: Any, tmp_path: Path) -> None:
    arrays = {str(shape): np.asfortranarray(values("f4", shape)) for shape in SHAPES}
    save(tmp_path / "x.npz", **arrays)
    contents = assert_same_as_numpy(tmp_path / "x.npz")
    strided = [name for name, entry in entries(contents).items() if getattr(entry.form, "strides", None) is not None]
    assert strided == ["(3, 4)", "(4, 1, 3)", "(2, 3, 4, 5)"]
    if save is np.savez:
        assert entries(contents)["(3, 4)"].form == Strided((1, 3), 48)


def test_npz_stored_arrays_lie_in_the_file_as_they_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=values("f4", (3, 4)), b=values("i8", ()))
    raw = (tmp_path / "x.npz").read_bytes()
    for name, entry in entries(read_npz(tmp_path / "x.npz")).items():
        assert raw[entry.offset : entry.offset + entry.nbytes] == np.load(tmp_path / "x.npz")[name].tobytes()


def test_npz_bfloat16_of_jax_is_bf16(tmp_path: Path) -> None:
    array = np.array([1.5, -2.0, 3.25], ml_dtypes.bfloat16)
    np.savez(tmp_path / "x.npz", w=array)
    contents = read_npz(tmp_path / "x.npz")
    assert dtypes.ALL[contents.dtypes[0]] is dtypes.BF16
    assert plain_bytes(tmp_path / "x.npz", contents) == {"w": array.tobytes()}


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("deflated", [False, True])
def test_npz_versions_of_the_header_are_read(version: tuple[int, int], deflated: bool, tmp_path: Path) -> None:
    archive(tmp_path / "x.npz", {"a.npy": npy(version=version)}, deflated)
    contents = assert_same_as_numpy(tmp_path / "x.npz")
    assert (contents.names, contents.shapes) == (["a"], [(2,)])


@pytest.mark.parametrize(
    "header",
    [
        "{'descr':'<f4','fortran_order':False,'shape':(2,)}",
        "{'shape': (2,), 'fortran_order': True, 'descr': '<f4'}",
        '{"descr": "<f4", "fortran_order": False, "shape": (2,), }',
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 1L), }",
        "{'descr': '|i1', 'fortran_order': False, 'shape': (8,), }",
        "{'descr': '<c8', 'fortran_order': False, 'shape': (), }",
    ],
)
@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")
def test_npz_headers_of_other_writers_are_read(header: str, tmp_path: Path) -> None:
    archive(tmp_path / "x.npz", {"a.npy": npy(header)})
    assert_same_as_numpy(tmp_path / "x.npz")


def test_npz_large_header_inside_a_deflate_stream_is_read(tmp_path: Path) -> None:
    noise = "".join(random.choices(" \t", k=50_000))
    archive(tmp_path / "x.npz", {"a.npy": npy(GOOD + noise)}, deflated=True)
    assert plain_bytes(tmp_path / "x.npz", read_npz(tmp_path / "x.npz")) == {"a": EIGHT}


TRAINED = {"opt/0/mu/w": 1, "params/img/w": 2, "params/txt/b": 3, "chrono/steps": 4}


def test_npz_of_a_training_run_needs_an_entry(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **{name: np.float32(value) for name, value in TRAINED.items()})
    with pytest.raises(CheckpointError, match=r"x\.npz: holds 2 entries.*found 'params', 'opt'"):
        read_npz(tmp_path / "x.npz")
    chosen = read_npz(tmp_path / "x.npz", "params")
    assert chosen.names == ["params/img/w", "params/txt/b"]
    assert (chosen.entry, chosen.dropped) == ("params", ["opt", "chrono"])
    deeper = read_npz(tmp_path / "x.npz", "params/img/")
    assert (deeper.names, deeper.dropped) == (["params/img/w"], ["opt", "params/txt", "chrono"])
    whole = read_npz(tmp_path / "x.npz", "")
    assert (whole.names, whole.entry, whole.dropped) == (list(TRAINED), "", [])
    with pytest.raises(CheckpointError, match="no such entry: found 'opt', 'params', 'chrono', expected 'para'"):
        read_npz(tmp_path / "x.npz", "para")


def test_npz_of_the_older_optimizer_needs_an_entry(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **{"opt/target/w": np.zeros(2), "opt/state/step": np.int32(1), "extra": np.zeros(1)})
    with pytest.raises(CheckpointError, match="found 'opt/target', 'opt/state'"):
        read_npz(tmp_path / "x.npz")
    chosen = read_npz(tmp_path / "x.npz", "opt/target")
    assert (chosen.names, chosen.dropped) == (["opt/target/w"], ["opt/state", "extra"])


def test_npz_of_parameters_alone_is_taken_whole(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **{"params/w": np.zeros(2), "chrono/steps": np.int64(1)})
    assert read_npz(tmp_path / "x.npz").names == ["params/w", "chrono/steps"]


def test_npz_beside_the_entry_is_not_looked_at(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **{"params/w": np.zeros(2), "opt/x": np.array([None])})
    assert read_npz(tmp_path / "x.npz", "params").names == ["params/w"]


def test_npz_without_arrays_is_empty(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz")
    assert read_npz(tmp_path / "x.npz").names == []


def test_npz_digest_is_that_of_the_headers(tmp_path: Path) -> None:
    for name, a in (("a", np.zeros(3)), ("b", np.ones(3)), ("c", np.zeros(3, "f4"))):
        np.savez(tmp_path / f"{name}.npz", a=a)
    a, b, c = (read_npz(tmp_path / f"{name}.npz").digest for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.array([{"a": 1}, None]), r"Python objects \(a pickle\)"),
        (np.zeros(2, ">f4"), "big-endian"),
        (np.zeros(2, [("a", "<f4"), ("b", "<i4")]), "structured"),
        (np.zeros(2, [("a", "<f4", (2,))]), "structured"),
        (np.array(["a", "b"]), "string"),
        (np.array([b"a", b"b"]), "string"),
        (np.array(["2020-01-01"], "M8[D]"), "date"),
        (np.zeros(2, "V8"), "unknown dtype"),
        (np.zeros(2, np.longdouble), "machine's own"),
        (np.zeros(2, ml_dtypes.float8_e4m3fn), "8-bit float"),
        (np.zeros(2, ml_dtypes.float8_e5m2), "8-bit float"),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_type_that_cannot_be_averaged_is_refused(array: Any, what: str, save: Any, tmp_path: Path) -> None:
    save(tmp_path / "x.npz", good=np.zeros(2), bad=array)
    with pytest.raises(CheckpointError, match=f"x\\.npz: tensor 'bad': .*{what}"):
        read_npz(tmp_path / "x.npz")


def fields(descr: str = "'<f4'", order: str = "False", shape: str = "(2,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


HOSTILE_HEADERS = {
    "size too small": (fields(shape="(1,)"), "data do not fit F32"),
    "size too large": (fields(shape="(3,)"), "data do not fit F32"),
    "negative size": (fields(shape="(-2,)"), "invalid field|damaged"),
    "bool size": (fields(shape="(True,)"), "damaged"),
    "float size": (fields(shape="(2.0,)"), "damaged"),
    "a number as shape": (fields(shape="(2)"), "invalid shape"),
    "a list as shape": (fields(shape="[2]"), "damaged"),
    "empty size": (fields(shape="(2,,)"), "invalid shape"),
    "comma alone": (fields(shape="(,)"), "invalid shape"),
    "huge": (fields(shape=f"({2**61}, 4)"), "overflows 63 bits"),
    "huge beside zero": (fields(shape=f"(0, {2**61}, 4)"), "overflows 63 bits"),
    "many digits": (fields(shape=f"({'9' * 5000},)"), "invalid shape"),
    "many dimensions": (fields(shape=f"({'1,' * 65})"), "invalid shape"),
    "order is no bool": (fields(order="0"), "damaged"),
    "order is a string": (fields(order="'False'"), "invalid field 'fortran_order'"),
    "type is no string": (fields(descr="4"), "damaged"),
    "type is a flag": (fields(descr="True"), "invalid field 'descr'"),
    "unknown type": (fields(descr="'<f3'"), "machine's own"),
    "no type": (fields(descr="''"), "unknown dtype"),
    "escape": (fields(descr=r"'\x3cf4'"), "damaged"),
    "missing field": ("{'descr': '<f4', 'shape': (2,)}", "lacks 'fortran_order'"),
    "extra field": (fields()[:-1] + "'more': 'x'}", "invalid field 'more'"),
    "field twice": (fields()[:-1] + "'shape': (2,)}", "damaged"),
    "expression": (fields(descr="'<f'+'4'"), "damaged"),
    "call": ("__import__('os').system('true')", "damaged"),
    "deep": ("(" * 60_000, "damaged"),
    "deep minus": (fields(shape="(" + "-" * 60_000 + "2,)"), "damaged"),
    "not a dict": ("['descr']", "damaged"),
    "empty": ("", "damaged"),
    "bytes": (b"\xff\xfe\x00{", "damaged"),
}


@pytest.mark.parametrize(("header", "what"), HOSTILE_HEADERS.values(), ids=HOSTILE_HEADERS.keys())
@pytest.mark.parametrize("deflated", [False, True])
def test_npz_hostile_header_is_refused(header: str | bytes, what: str, deflated: bool, tmp_path: Path) -> None:
    archive(tmp_path / "x.npz", {"good.npy": npy(), "bad.npy": npy(header)}, deflated)
    with pytest.raises(CheckpointError, match=f"x\\.npz: tensor 'bad': .*({what})"):
        read_npz(tmp_path / "x.npz")


HOSTILE_MEMBERS = {
    "no magic": (b"PK" + npy()[2:], "no array in numpy's format"),
    "version": (npy(version=(4, 0)), "unknown version.*found 4.0"),
    "empty": (b"", "too short"),
    "magic alone": (b"\x93NUMPY\x01\x00", "too short"),
    "header beyond the member": (npy()[:8] + b"\xff\x7f" + npy()[10:], "too short for its header"),
    "header beyond all": (npy(version=(2, 0))[:8] + b"\xff\xff\xff\x7f" + npy()[12:], "header too large"),
    "trailing bytes": (npy() + b"\0", "data do not fit F32"),
    "missing bytes": (npy()[:-1], "data do not fit F32"),
}


@pytest.mark.parametrize(("member", "what"), HOSTILE_MEMBERS.values(), ids=HOSTILE_MEMBERS.keys())
@pytest.mark.parametrize("deflated", [False, True])
def test_npz_hostile_member_is_refused(member: bytes, what: str, deflated: bool, tmp_path: Path) -> None:
    archive(tmp_path / "x.npz", {"good.npy": npy(), "bad.npy": member}, deflated)
    with pytest.raises(CheckpointError, match=f"x\\.npz: tensor 'bad': .*{what}"):
        read_npz(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "name", ["../a.npy", "/a.npy", "a/../../b.npy", "C:\\a.npy", "params/w", "readme.txt", "a.npyx"]
)
def test_npz_name_that_is_unsafe_or_no_array_is_refused(name: str, tmp_path: Path) -> None:
    archive(tmp_path / "x.npz", {name: npy()})
    with pytest.raises(CheckpointError, match=r"unsafe record name|is no array"):
        read_npz(tmp_path / "x.npz")


def test_npz_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        warnings.simplefilter("ignore")
        file.writestr("a.npy", npy())
        file.writestr("a.npy", npy())
    with pytest.raises(CheckpointError, match=r"'a\.npy' comes twice"):
        read_npz(tmp_path / "x.npz")


def test_npz_bomb_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    claim = npy(fields(shape=f"({2**28},)"), b"")
    path = archive(tmp_path / "x.npz", {"a.npy": claim}, deflated=True)
    npz_files.patched(path, len(claim), len(claim) + 2**30)
    with pytest.raises(CheckpointError, match="size that its data cannot have"):
        read_npz(path)


def test_npz_stream_that_is_not_what_the_header_says_is_refused(tmp_path: Path) -> None:
    # The directory and the header agree on fewer bytes than are there.
    longer = npy(data=EIGHT * 1000)
    path = archive(tmp_path / "x.npz", {"a.npy": longer}, deflated=True)
    npz_files.patched(path, len(longer), len(npy()))
    with pytest.raises(CheckpointError, match=r"tensor 'a': compressed data go on after the tensor"):
        plain_bytes(path, read_npz(path))


def test_npz_wrong_checksum_of_compressed_data_is_found(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", {"a.npy": npy()}, deflated=True)
    npz_files.patched(path, zlib.crc32(npy()), 0x12345678)
    with pytest.raises(CheckpointError, match=r"tensor 'a': .*wrong checksum: found 0x\w{8}, expected 0x12345678"):
        plain_bytes(path, read_npz(path))


def small_file(save: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, a=np.arange(6, dtype="f4").reshape(2, 3), b=np.asfortranarray(values("i2", (3, 2))))
    return buffer.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_truncated_anywhere_is_refused(save: Any, tmp_path: Path) -> None:
    raw = small_file(save)
    (tmp_path / "x.npz").write_bytes(raw)
    for length in reversed(range(len(raw))):
        os.truncate(tmp_path / "x.npz", length)
        with pytest.raises(CheckpointError, match=r"x\.npz: "):
            read_npz(tmp_path / "x.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_mutated_is_refused_or_read(save: Any, tmp_path: Path) -> None:
    raw = small_file(save)
    path = tmp_path / "x.npz"
    refused = 0
    for _ in range(600):
        mutated = bytearray(raw)
        for _ in range(random.choice((1, 1, 2, 5))):
            mutated[random.randrange(len(raw))] = random.choice((0, 1, 0x7F, 0xFF, random.randrange(256)))
        path.write_bytes(mutated)
        try:
            found = plain_bytes(path, read_npz(path))
        except CheckpointError:
            refused += 1
        else:
            assert sorted(map(len, found.values())) == [12, 24]
    assert refused > 200


def test_npz_is_read_without_numpy(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=np.asfortranarray(values("f4", (3, 4))))
    code = (
        "import sys; from pathlib import Path; from pysoup.checkpoint.npz_file import read_npz; "
        "import pysoup.checkpoint.unpack; read_npz(Path(sys.argv[1])); print('numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.npz"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")
