"""The journal of a run: what was recorded is there again, exactly, whatever byte the writing ended at."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import shutil
import struct
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pysoup.errors import OutputError, SoupError
from pysoup.soups.journal import Journal
from pysoup.soups.journal_file import JournalFile

IDENTITY = {"options": {"accept": ">="}, "heldout": "0af3"}
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool]


def write(directory: Path, values: dict[str, Any]) -> Path:
    """A journal with these values; returns its file."""
    with Journal.open(directory, IDENTITY) as journal:
        for key, value in values.items():
            journal.record(key, value)
    return directory / "journal.jsonl"


def recorded(directory: Path) -> dict[str, Any]:
    with Journal.open(directory, IDENTITY) as journal:
        return {key: journal.recall(key) for key in journal.keys}


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def test_values_come_back_in_order_from_another_opening(tmp_path: Path) -> None:
    values = {"single:1": 0.75, "a": [1, 2.5, None, True, "nan"], "empty": {}, "deep": {"x": [{"y": []}]}, "é\n": "ü\r"}
    write(tmp_path / "run", values)
    again = recorded(tmp_path / "run")
    assert again == values
    assert list(again) == list(values)
    assert type(again["a"][3]) is bool


def test_value_comes_back_the_same_before_and_after_a_new_opening(tmp_path: Path) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        journal.record("k", {"pair": (1, 2)})
        assert journal.recall("k") == {"pair": [1, 2]}
        journal.recall("k")["pair"].append(3)
        assert journal.recall("k") == {"pair": [1, 2]}
    assert recorded(tmp_path) == {"k": {"pair": [1, 2]}}


@settings(max_examples=20)
@given(values=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=50))
def test_floats_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    directory = tmp_path_factory.mktemp("floats")
    write(directory, {"x": values})
    for back, value in zip(recorded(directory)["x"], values, strict=True):
        assert math.isnan(back) if math.isnan(value) else bits(back) == bits(value)
    shutil.rmtree(directory)


@pytest.mark.parametrize("value", [math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2])
def test_special_floats_come_back_bit_for_bit(tmp_path: Path, value: float) -> None:
    write(tmp_path, {"x": [value]})
    assert bits(recorded(tmp_path)["x"][0]) == bits(value)


def test_file_is_json_lines_without_numbers_that_json_lacks(tmp_path: Path) -> None:
    file = write(tmp_path, {"x": [math.nan, math.inf]})

    def refuse(name: str) -> None:
        raise AssertionError(name)

    lines = [json.loads(line, parse_constant=refuse) for line in file.read_text("ascii").splitlines()]
    assert lines[0]["pysoup_journal"] == 1
    assert lines[0]["identity"] == IDENTITY
    assert lines[-1]["key"] == "x"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.tensor(1.0), "must be JSON: found Tensor"),
        ({1: 2}, r"must have strings for keys: found \[1\]"),
        ([{"$float": "nan"}], "must have strings for keys"),
        ({"a": {b"x"}}, "must be JSON: found set"),
    ],
)
def test_value_that_is_not_json_is_refused_and_nothing_written(tmp_path: Path, value: Any, words: str) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal, pytest.raises(SoupError, match=f"recorded for 'k' {words}"):
        journal.record("k", value)
    assert recorded(tmp_path) == {}


def test_recall_of_what_was_not_recorded_is_none(tmp_path: Path) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        assert not journal.resumed
        assert journal.recall("k") is None
        assert "k" not in journal
        journal.record("k", None)
        assert journal.recall("k") is None
        assert "k" in journal
    with Journal.open(tmp_path, IDENTITY) as journal:
        assert journal.resumed
        assert "k" in journal


def test_same_value_again_writes_nothing(tmp_path: Path) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        journal.record("k", [math.nan, 0.5])
        size = (tmp_path / "journal.jsonl").stat().st_size
        journal.record("k", [math.nan, 0.5])
        assert (tmp_path / "journal.jsonl").stat().st_size == size


@pytest.mark.parametrize(("first", "second"), [(0.5, 0.25), (1, 1.0), (0.0, -0.0), (1, True), (0.5, math.nan)])
def test_another_value_under_the_same_key_is_an_error(tmp_path: Path, first: Any, second: Any) -> None:
    write(tmp_path, {"k": first})
    with (
        Journal.open(tmp_path, IDENTITY) as journal,
        pytest.raises(SoupError, match=r"another value is recorded for 'k': found .*, expected "),
    ):
        journal.record("k", second)
    assert recorded(tmp_path) == {"k": first}


def test_last_line_torn_at_any_byte_is_cut_off_and_can_be_written_again(tmp_path: Path) -> None:
    file = write(tmp_path, {"first": 0.1, "second": [0.2, "text"]})
    whole = file.read_bytes()
    for end in range(whole.index(b'{"key": "second"'), len(whole)):
        file.write_bytes(whole[:end])
        with Journal.open(tmp_path, IDENTITY) as journal:
            assert journal.keys == ["first"], end
            journal.record("second", 0.3)
        assert recorded(tmp_path) == {"first": 0.1, "second": 0.3}


def test_first_line_torn_at_any_byte_is_a_fresh_start(tmp_path: Path) -> None:
    file = write(tmp_path, {})
    first = file.read_bytes().split(b"\n")[0]
    for end in (*range(0, len(first), 3), len(first)):
        file.write_bytes(first[:end])
        write(tmp_path, {"k": 1})
        assert recorded(tmp_path) == {"k": 1}


def test_any_byte_changed_in_a_whole_line_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    file = write(tmp_path, {"first": 0.125, "second": 0.25})
    whole = file.read_bytes()
    start = whole.index(b'{"key": "first"')
    line = whole[:start].count(b"\n") + 1
    for place in range(start, whole.index(b"\n", start)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(SoupError, match=f"journal.jsonl: line {line} is damaged: it does not fit its checksum"):
            Journal.open(tmp_path, IDENTITY)
        assert file.read_bytes() == damaged


@pytest.mark.parametrize("place", [0, 1, 2])
def test_line_that_is_missing_its_content_is_damaged(tmp_path: Path, place: int) -> None:
    file = write(tmp_path, {"first": 0.125})
    lines = file.read_bytes().splitlines(keepends=True)
    lines[place] = lines[place][:20] + b"\n"
    file.write_bytes(b"".join(lines))
    with pytest.raises(SoupError, match=f"line {place + 1} is damaged"):
        Journal.open(tmp_path, IDENTITY)


def test_two_values_of_one_key_in_the_file_are_an_error(tmp_path: Path) -> None:
    first = write(tmp_path / "a", {"k": 0.5}).read_bytes().splitlines(keepends=True)
    second = write(tmp_path / "b", {"k": 0.25}).read_bytes().splitlines(keepends=True)
    (tmp_path / "a" / "journal.jsonl").write_bytes(b"".join([*first, second[-1]]))
    with pytest.raises(SoupError, match=r"line 4 has another value for 'k' .*: found 0.25, expected 0.5"):
        Journal.open(tmp_path / "a", IDENTITY)


def test_other_format_is_refused_with_what_to_do_and_left_alone(tmp_path: Path) -> None:
    other = b'{"pysoup_journal": 2, "pysoup": "9.1", "somewhere": "else"}\nbinary'
    (tmp_path / "journal.jsonl").write_bytes(other)
    with pytest.raises(SoupError, match=r"by pysoup 9.1; go on with that one, or .*found format 2, expected format 1"):
        Journal.open(tmp_path, IDENTITY)
    assert (tmp_path / "journal.jsonl").read_bytes() == other


@pytest.mark.parametrize("content", [b"my notes", b"{}", b'{"pysoup_journey": 1}\n', b"\n"])
def test_file_that_is_no_journal_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal.jsonl").write_bytes(content)
    with pytest.raises(SoupError, match=r"journal.jsonl: not a journal; give another directory"):
        Journal.open(tmp_path, IDENTITY)
    assert (tmp_path / "journal.jsonl").read_bytes() == content


def test_deleted_directory_is_a_fresh_start(tmp_path: Path) -> None:
    write(tmp_path / "run", {"k": 1})
    shutil.rmtree(tmp_path / "run")
    assert recorded(tmp_path / "run") == {}


def test_directory_deleted_during_the_run_is_an_error_not_a_loss(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "run", IDENTITY) as journal:
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(OutputError, match="the journal was removed while the run went on"):
            journal.record("k", 1)
        assert "k" not in journal


def test_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"file: cannot make the directory: File exists"):
        Journal.open(tmp_path / "file", IDENTITY)
    (tmp_path / "run" / "journal.jsonl").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"journal.jsonl: cannot open the journal: Is a directory"):
        Journal.open(tmp_path / "run", IDENTITY)


def test_line_that_hits_a_limit_half_way_is_taken_back(tmp_path: Path) -> None:
    """The kernel itself writes a part of the line: the largest size of a file is set to just beyond the present one."""
    with Journal.open(tmp_path, IDENTITY) as journal:
        journal.record("first", 0.1)
        file = tmp_path / "journal.jsonl"
        before = file.read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 9, hard))
        try:
            with pytest.raises(OutputError, match="cannot write the journal: File too large") as caught:
                journal.record("second", 0.2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(caught.value)
        assert file.read_bytes() == before
        journal.record("second", 0.2)
    assert recorded(tmp_path) == {"first": 0.1, "second": 0.2}


def test_full_disk_leaves_a_journal_that_the_next_run_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part of a line that was written cannot even be cut off."""
    pwrite = os.pwrite

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def part(fd: int, data: bytes, offset: int) -> int:
        if len(data) < 10:
            full()
        return pwrite(fd, data[:-9], offset)

    with Journal.open(tmp_path, IDENTITY) as journal, monkeypatch.context() as disk:
        journal.record("first", 0.1)
        disk.setattr(os, "pwrite", part)
        disk.setattr(os, "ftruncate", full)
        with pytest.raises(OutputError, match="cannot write the journal: disk is full"):
            journal.record("second", 0.2)
        with pytest.raises(SoupError, match="the journal is closed"):
            journal.record("third", 0.3)
    assert b'"second"' in (tmp_path / "journal.jsonl").read_bytes()
    assert recorded(tmp_path) == {"first": 0.1}


def test_line_is_not_recorded_until_the_disk_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Journal.open(tmp_path, IDENTITY) as journal:
        with monkeypatch.context() as disk:
            disk.setattr(os, "fsync", broken)
            with pytest.raises(OutputError, match="cannot write the journal: Input/output error"):
                journal.record("k", 1)
        assert "k" not in journal


def interrupted(journal: Journal, at: int) -> bool:
    """Whether Ctrl-C came before the line of this number of :meth:`JournalFile.append`, else it was done before."""
    lines = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        if frame.f_code is not JournalFile.append.__code__:
            return None
        lines += event in ("line", "return")
        if lines == at:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        journal.record("long", "x" * 500)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_ctrl_c_at_any_line_leaves_a_journal_that_can_be_written_on(tmp_path: Path) -> None:
    for at in range(1, 100):
        with Journal.open(tmp_path / str(at), IDENTITY) as journal:
            hit = interrupted(journal, at)
            journal.record("short", 1)
        found = recorded(tmp_path / str(at))
        assert found.pop("short") == 1
        assert found in ({}, {"long": "x" * 500})
        if not hit:
            break
    assert 5 < at < 99


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 4)], ids=str)
def test_arrays_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (*shape, dtype.itemsize), dtype=torch.uint8)
    array = raw.view(dtype).reshape(shape)
    with Journal.open(tmp_path, IDENTITY) as journal:
        assert journal.load_array("logits-3") is None
        journal.save_array("logits-3", array)
    with Journal.open(tmp_path, IDENTITY) as journal:
        back = journal.load_array("logits-3")
    assert back is not None
    assert (back.dtype, back.shape) == (dtype, array.shape)
    assert back.reshape(-1).view(torch.uint8).tolist() == array.reshape(-1).view(torch.uint8).tolist()


def test_array_is_replaced(tmp_path: Path) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        journal.save_array("a", torch.zeros(2))
        journal.save_array("a", torch.ones(3))
        assert torch.equal(journal.load_array("a"), torch.ones(3))


def test_all_arrays_but_those_to_keep_are_removed(tmp_path: Path) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        for name in ("a", "a.b", "c", "d"):
            journal.save_array(name, torch.zeros(2))
        journal.keep_arrays("a", "d", "unknown")
        assert [name for name in ("a", "a.b", "c", "d") if journal.load_array(name) is not None] == ["a", "d"]
        journal.keep_arrays()
    assert os.listdir(tmp_path) == ["journal.jsonl"]


def test_arrays_of_a_journal_that_was_deleted_are_removed(tmp_path: Path) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        journal.save_array("a", torch.zeros(2))
    (tmp_path / "journal.jsonl").unlink()
    with Journal.open(tmp_path, {"options": {}}) as journal:
        assert journal.load_array("a") is None
    assert os.listdir(tmp_path) == ["journal.jsonl"]


def test_what_a_kill_left_beside_arrays_is_removed_and_nothing_else(tmp_path: Path) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        journal.save_array("a", torch.zeros(2))
    kept = os.listdir(tmp_path / "arrays")
    (tmp_path / "arrays" / f".{kept[0]}.pysoup-{os.getpid()}-0123abcd.tmp").write_bytes(b"half")
    (tmp_path / "arrays" / "mine.txt").write_bytes(b"")
    Journal.open(tmp_path, IDENTITY).close()
    assert sorted(os.listdir(tmp_path / "arrays")) == sorted([*kept, "mine.txt"])


@pytest.mark.parametrize("name", ["", ".", "../a", "a/b", ".hidden", "a b", "x" * 101])
def test_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal, pytest.raises(SoupError, match="not a name for an array"):
        journal.save_array(name, torch.zeros(1))


def test_a_journal_without_results_does_not_stand_in_the_way_of_another_run(tmp_path: Path) -> None:
    write(tmp_path / "run", {})
    with Journal.open(tmp_path / "run", {"heldout": "another"}) as journal:
        journal.record("single:0", 0.5)
    with pytest.raises(SoupError, match="another run is recorded here"):
        Journal.open(tmp_path / "run", IDENTITY)
    with Journal.open(tmp_path / "run", {"heldout": "another"}) as journal:
        assert journal.recall("single:0") == 0.5
