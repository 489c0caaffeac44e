"""What is written as ``.pt`` is what torch.save would write: torch, zipfile and unzip are the oracles."""

from __future__ import annotations

import errno
import io
import json
import os
import pickletools
import shutil
import struct
import subprocess
import sys
import textwrap
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from oracle import same_bits
from torch import Tensor
from torch.utils.serialization import config

from pysoup import dtypes
from pysoup.checkpoint import CheckpointWriter, open_checkpoint, save_state_dict
from pysoup.checkpoint.output import torch_layout
from pysoup.checkpoint.output.zip_layout import ZipLayout
from pysoup.errors import OutputError

State = dict[str, Tensor]
TOP = "archive"


def _layout(state: State) -> list:
    return [("x", [(n, dtypes.BY_TORCH_NAME[str(t.dtype)[6:]], tuple(t.shape)) for n, t in state.items()])]


def _raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _bits(*shape: int) -> Tensor:
    return torch.randint(-(2**15), 2**15, shape).to(torch.int16).view(torch.bfloat16)


def _write(path: Path, state: State, **options: object) -> Path:
    with CheckpointWriter(path, _layout(state), **options) as writer:  # type: ignore[arg-type]
        for name, tensor in state.items():
            writer.write_bytes(name, _raw(tensor))
        writer.commit(sync=False)
    assert path.stat().st_size == writer.nbytes
    return path


def _state() -> State:
    """Every type, every kind of shape, names that other formats lack."""
    state = {}
    for i, dtype in enumerate(dtypes.ALL):
        values = torch.arange(6 * dtype.itemsize, dtype=torch.uint8) % (2 if dtype.kind == "bool" else 251)
        state[f"layer.{i}.{dtype.name}"] = values.view(getattr(torch, dtype.torch_name)).reshape(3, 2)
    shapes = {"": (), "__metadata__": (0,), "a/b": (4, 0, 3), "é\n\0": (2, 1, 3, 1, 2), "x" * 70_000: (3, 500_000)}
    return state | {name: _bits(*shape) for name, shape in shapes.items()}


def _equal(found: State, expected: State) -> bool:
    return list(found) == list(expected) and all(
        found[n].dtype == t.dtype and found[n].shape == t.shape and _raw(found[n]) == _raw(t)
        for n, t in expected.items()
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State]:
    state = _state()
    return _write(tmp_path_factory.mktemp("pt") / "m.pt", state, metadata={"é": "ü", "format": "pt"}), state


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_loads_every_type_shape_and_name(written: tuple[Path, State], mmap: bool) -> None:
    path, state = written
    found = torch.load(path, weights_only=True, mmap=mmap)
    assert type(found) is OrderedDict
    assert _equal(found, state)
    assert all(t.is_contiguous() and t.stride() == torch.empty(t.shape).stride() for t in found.values())
    assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []


def test_torch_computes_the_offsets_that_the_file_has(
    written: tuple[Path, State], monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch then compares them with those in the local headers, and raises where they differ.
    monkeypatch.setenv("TORCH_SERIALIZATION_DEBUG", "1")
    with config.patch("load.calculate_storage_offsets", True):
        assert _equal(torch.load(written[0], mmap=True), written[1])


def test_checksums_are_true_and_data_aligned(written: tuple[Path, State]) -> None:
    path, state = written
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        infos = archive.infolist()
        assert {i.compress_type for i in infos} == {zipfile.ZIP_STORED}
        for number, tensor in enumerate(state.values()):
            info = archive.getinfo(f"{TOP}/data/{number}")
            lengths = struct.unpack_from("<HH", raw, info.header_offset + 26)
            begin = info.header_offset + 30 + sum(lengths)
            assert begin % 64 == 0
            end = begin + info.file_size
            assert raw[begin:end] == _raw(tensor)
            # The checksum is also right behind the data.
            sizes = (info.file_size, info.file_size)
            assert not sizes[0] or raw[end : end + 16] == struct.pack("<4s3L", b"PK\x07\x08", info.CRC, *sizes)
    if shutil.which("unzip"):
        assert subprocess.run(["unzip", "-tqq", path], capture_output=True).returncode == 0


def test_metadata_is_a_record_that_torch_ignores(written: tuple[Path, State], tmp_path: Path) -> None:
    with zipfile.ZipFile(written[0]) as archive:
        assert json.loads(archive.read(f"{TOP}/pysoup.json")) == {"é": "ü", "format": "pt"}
    plain = _write(tmp_path / "m.pt", {"w": torch.ones(1)}, metadata={"pysoup.aliases": "of another file"})
    with zipfile.ZipFile(plain) as archive:
        assert f"{TOP}/pysoup.json" not in archive.namelist()


def test_own_reader_finds_the_same_tensors_ties_and_metadata(written: tuple[Path, State], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(written[0])
    assert _equal(checkpoint.state_dict(), written[1])
    assert checkpoint.metadata == {"é": "ü", "format": "pt"}
    tied = open_checkpoint(_write(tmp_path / "m.pt", {"a": torch.ones(2), "b": torch.ones(2)}, aliases={"c": "a"}))
    assert tied.aliases == {"c": "a"}
    assert list(tied) == ["a", "b"]


def test_tied_names_share_their_memory_when_loaded(tmp_path: Path) -> None:
    state = {"embed": torch.randn(3, 4), "w": torch.randn(2).to(torch.float8_e5m2)}
    path = _write(tmp_path / "m.pth", state, aliases={"head": "embed", "v": "w", "third": "embed"})
    for mmap in (False, True):
        found = torch.load(path, mmap=mmap)
        assert list(found) == ["embed", "w", "head", "v", "third"]
        assert found["head"].data_ptr() == found["third"].data_ptr() == found["embed"].data_ptr()
        found["embed"][0, 0] = 7
        assert found["head"][0, 0] == 7
        assert same_bits(found["v"], state["w"])
    with zipfile.ZipFile(path) as archive:
        assert sum(name.startswith(f"{TOP}/data/") for name in archive.namelist()) == 2


def _as_torch_lays_out(raw: bytes) -> tuple[ZipLayout, list[zipfile.ZipInfo]]:
    infos = zipfile.ZipFile(io.BytesIO(raw)).infolist()
    layout = ZipLayout()
    for info in infos:
        layout.add(info.filename, info.file_size)
    return layout, infos


def test_archive_of_the_same_records_is_torchs_byte_for_byte() -> None:
    buffer = io.BytesIO()
    torch.save(OrderedDict((f"{n}", _bits(n)) for n in (*range(70), 1000)), buffer)
    theirs = buffer.getvalue()
    layout, infos = _as_torch_lays_out(theirs)
    ours = bytearray(layout.total_bytes)
    for record, info in enumerate(infos):
        begin, end = layout.offsets[record], layout.offsets[record] + info.file_size
        content = theirs[begin:end] + (layout.descriptor(record, info.CRC) if info.file_size else b"")
        for at, piece in (layout.local_header(record), (begin, content)):
            ours[at : at + len(piece)] = piece
    ours[layout.directory_offset :] = layout.directory([info.CRC for info in infos])
    assert ours == theirs


def test_records_beyond_4_gib_are_where_torch_puts_them(tmp_path: Path) -> None:
    state = {"a": torch.ones(3), "b": torch.empty((4 << 30) + 5, dtype=torch.uint8), "c": torch.ones(5)}
    with torch.serialization.skip_data():
        torch.save(state, tmp_path / "theirs.pt")
    with zipfile.ZipFile(tmp_path / "theirs.pt") as archive:
        infos = archive.infolist()
    layout = ZipLayout()
    for info in infos:
        layout.add(info.filename, info.file_size)
    with open(tmp_path / "theirs.pt", "rb") as file:
        file.seek(layout.directory_offset)
        assert file.read() == layout.directory([info.CRC for info in infos])
        for record, info in enumerate(infos):
            at, header = layout.local_header(record)
            assert at == info.header_offset
            file.seek(at)
            # torch leaves one of the two sizes of the record itself at 0.
            assert info.file_size > 4 << 30 or file.read(len(header)) == header


def test_file_beyond_4_gib_is_read_where_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    # Sparse, and its zeros not read: else this test would take seconds and gigabytes.
    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    true = torch_layout.file_crc32
    monkeypatch.setattr(torch_layout, "file_crc32", lambda *a: 0 if a[2] > 1 << 30 else true(*a))
    big, u8 = (4 << 30) + 5, dtypes.BY_TORCH_NAME["uint8"]
    layout = [("x", [("a", u8, (3,)), ("b", u8, (big,)), ("c", u8, (2, 2)), ("d", dtypes.BF16, (2 << 30,))])]
    path = tmp_path / "m.pt"
    with CheckpointWriter(path, layout, aliases={"e": "d"}) as writer:
        writer.write_bytes("a", b"abc")
        writer.write_bytes("b", b"end", big - 3)
        writer.write_bytes("c", b"1234")
        writer.write_bytes("d", b"\x80\x3f", (4 << 30) - 2)
        writer.commit(sync=False)
    assert path.stat().st_blocks * 512 < 1 << 20
    with zipfile.ZipFile(path) as archive:
        assert [archive.getinfo(f"{TOP}/data/{i}").file_size for i in range(4)] == [3, big, 4, 4 << 30]
        assert archive.read(f"{TOP}/data/2") == b"1234"
        assert archive.infolist()[-1].header_offset > 8 << 30
    monkeypatch.setenv("TORCH_SERIALIZATION_DEBUG", "1")
    for computed in (False, True):
        with config.patch("load.calculate_storage_offsets", computed):
            found = torch.load(path, mmap=True, weights_only=True)
        assert bytes(found["a"].tolist()) == b"abc"
        assert bytes(found["b"][-3:].tolist()) == b"end"
        assert found["c"].tolist() == [[49, 50], [51, 52]]
        assert found["d"][-1] == found["e"][-1] == 1
        assert found["d"].dtype == torch.bfloat16


def test_more_records_than_16_bits_count(tmp_path: Path) -> None:
    layout = ZipLayout()
    for number in range(70_000):
        layout.add(f"{TOP}/data/{number}", number % 3)
    with open(tmp_path / "m.pt", "wb") as file:
        file.seek(layout.directory_offset)
        file.write(layout.directory([0] * 70_000))
        assert file.tell() == layout.total_bytes
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        infos = archive.infolist()
    assert len(infos) == 70_000
    assert (infos[-1].filename, infos[-1].file_size) == (f"{TOP}/data/69999", 0)
    assert infos[-1].header_offset == layout.local_header(69_999)[0]
    assert (tmp_path / "m.pt").read_bytes()[-14:-10] == b"\xff\xff\xff\xff"


def test_more_tensors_than_one_batch_of_a_pickle(tmp_path: Path) -> None:
    for count in (0, 1000, 2001):
        state = {f"{i}": torch.full((1,), float(i)) for i in range(count)}
        assert _equal(torch.load(_write(tmp_path / f"{count}.pt", state), weights_only=True), state)


def test_pickle_has_plain_opcodes_only(written: tuple[Path, State]) -> None:
    with zipfile.ZipFile(written[0]) as archive:
        raw = archive.read(f"{TOP}/data.pkl")
    found = list(pickletools.genops(raw))
    known = """
        PROTO GLOBAL BINPUT BINGET EMPTY_TUPLE REDUCE MARK BINUNICODE BININT BININT1 BININT2 TUPLE TUPLE1 TUPLE2 TUPLE3
        BINPERSID NEWFALSE SETITEMS STOP
    """
    assert {op.name for op, _, _ in found} <= {*known.split()}
    pickletools.dis(raw, out=io.StringIO())
    assert {str(arg).split()[0] for op, arg, _ in found if op.name == "GLOBAL"} == {
        "collections",
        "torch",
        "torch._utils",
        "torch.storage",
    }


def test_sizes_beside_a_zero_are_read_back(tmp_path: Path) -> None:
    state = {"empty": torch.empty(0, 2**33, 2**20), "other": torch.empty(2**40, 0)}
    found = torch.load(_write(tmp_path / "m.pt", state), weights_only=True)
    assert [(t.shape, t.stride()) for t in found.values()] == [(t.shape, t.stride()) for t in state.values()]


def test_same_content_is_the_same_bytes_and_other_content_has_another_id(tmp_path: Path) -> None:
    state = {"a": torch.ones(3), "b": torch.zeros(2)}
    raw = [_write(tmp_path / f"{i}.pt", state).read_bytes() for i in range(2)]
    assert raw[0] == raw[1]
    _write(tmp_path / "other.pt", {**state, "b": torch.ones(2)})
    ids = [torch._C.PyTorchFileReader(str(tmp_path / name)).serialization_id() for name in ("0.pt", "1.pt", "other.pt")]
    assert ids[0] == ids[1] != ids[2]
    assert all(len(text) == 40 and text.isdigit() for text in ids)


class TestStateDict:
    def test_what_safetensors_lacks_is_kept(self, tmp_path: Path) -> None:
        base = torch.randn(4, 6, dtype=torch.complex128)
        state = {
            "c128": base,
            "view": torch.randn(5, 4).t()[::2],
            "conj": base.conj(),
            "scalar": torch.tensor(3),
            "__metadata__": torch.ones(1),
        }
        save_state_dict({**state, "tied": base}, tmp_path / "m.pt", metadata={"k": "v"})
        found = torch.load(tmp_path / "m.pt", weights_only=True)
        assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in state.items())
        assert found["tied"].data_ptr() == found["c128"].data_ptr()

    def test_error_for_safetensors_names_the_way_out(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match=r"tensor 'c': .*complex128.* or write a \.pt file"):
            save_state_dict({"c": torch.ones(1, dtype=torch.complex128)}, tmp_path / "m.safetensors")

    @pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pkl", ""])
    def test_other_suffixes_are_refused_with_a_hint(self, tmp_path: Path, suffix: str) -> None:
        with pytest.raises(OutputError, match=r"unsupported suffix: .*expected \.safetensors, \.pt or \.pth"):
            save_state_dict({"w": torch.ones(1)}, tmp_path / f"m{suffix}")
        assert os.listdir(tmp_path) == []

    def test_name_that_is_no_unicode_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="not valid Unicode"):
            save_state_dict({"\ud800": torch.ones(1)}, tmp_path / "m.pt")


class TestFailures:
    """While the checksums are taken: nothing half-written, and an old output is whole."""

    @staticmethod
    def fails(directory: Path, error: type[BaseException]) -> str:
        target = directory / "m.pt"
        target.write_bytes(b"precious")
        with pytest.raises(error) as caught:
            _write(target, {"a": torch.ones(3), "b": torch.ones(4)}, overwrite=True)
        assert target.read_bytes() == b"precious"
        assert os.listdir(directory) == ["m.pt"]
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_interrupt(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object) -> int:
            raise KeyboardInterrupt

        monkeypatch.setattr(torch_layout, "file_crc32", interrupted)
        self.fails(tmp_path, KeyboardInterrupt)

    @pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EIO, "cannot be written: ")])
    def test_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
        true = os.pwrite

        def failing(fd: int, data: bytes, offset: int) -> int:
            if bytes(data[:4]) == b"PK\x01\x02":
                raise OSError(number, os.strerror(number))
            return true(fd, data, offset)

        monkeypatch.setattr(os, "pwrite", failing)
        assert words in self.fails(tmp_path, OutputError)

    def test_file_that_is_cut_meanwhile(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        true = torch_layout.file_crc32

        def cut(fd: int, offset: int, size: int, path: Path) -> int:
            os.ftruncate(fd, offset + 5)
            return true(fd, offset, size, path)

        monkeypatch.setattr(torch_layout, "file_crc32", cut)
        assert "shortened while it was written" in self.fails(tmp_path, OutputError)


def test_writing_needs_no_torch(tmp_path: Path) -> None:
    code = """
    import sys
    from pysoup import dtypes
    from pysoup.checkpoint import CheckpointWriter
    with CheckpointWriter(sys.argv[1], [("x", [("w", dtypes.F32, (2,))])]) as writer:
        writer.write_bytes("w", bytes(8))
        writer.commit()
    assert not {"torch", "numpy", "pickle"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), tmp_path / "m.pt"], check=True)
    assert torch.load(tmp_path / "m.pt")["w"].tolist() == [0, 0]
