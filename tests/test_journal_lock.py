"""One process at a time on a run directory, for as long as it lives."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pysoup.errors import OutputError, SoupError
from pysoup.soups.journal import Journal

IDENTITY = {"heldout": "0af3"}

HOLDER = r"""
import os, sys
from pysoup.soups.journal import Journal
journal = Journal.open(sys.argv[1], {"heldout": "0af3"})
if "fork" in sys.argv:
    child = os.fork()
    if child == 0:
        try:
            journal.record("child", 1)
        except Exception as error:
            os.write(1, f"{error}\n".encode())  # whole lines: two processes write to one pipe
        sys.stdin.read()
        os._exit(0)
os.write(1, b"open\n")
sys.stdin.read()
"""


@contextmanager
def holder(directory: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has the run directory open, and waits."""
    command = [sys.executable, "-c", HOLDER, str(directory), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_second_process_is_refused_with_the_first_ones_number_until_that_is_killed(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        assert read_line(process) == "open"
        for _ in range(2):
            with pytest.raises(SoupError) as caught:
                Journal.open(tmp_path, IDENTITY)
            host = os.uname().nodename
            expected = f"{tmp_path}: another run is using this directory: found process {process.pid} on {host}"
            assert str(caught.value) == expected
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Journal.open(tmp_path, IDENTITY) as journal:
            journal.record("k", 1)


def test_refusal_comes_before_the_identity_is_looked_at(tmp_path: Path) -> None:
    class Costly:
        def parts(self, hashed: dict[str, object]) -> dict[str, object]:
            raise AssertionError("hashed every checkpoint for nothing")

    with Journal.open(tmp_path, IDENTITY), pytest.raises(SoupError, match="another run is using this directory"):
        Journal.open(tmp_path, Costly())


def test_process_that_has_ended_is_not_taken_for_the_holder(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        assert read_line(process) == "open"
    refused: list[str] = []

    class Costly:
        def parts(self, hashed: dict[str, object]) -> dict[str, object]:
            """As another process would, while this one still hashes."""
            with pytest.raises(SoupError) as caught:
                Journal.open(tmp_path, IDENTITY)
            refused.append(str(caught.value))
            return dict(IDENTITY)

    Journal.open(tmp_path, Costly()).close()
    assert refused == [f"{tmp_path}: another run is using this directory"]


def test_same_process_twice_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        with pytest.raises(SoupError, match="another run is using this directory: found this process"):
            Journal.open(tmp_path, IDENTITY)
        journal.record("k", 1)
    with Journal.open(tmp_path, IDENTITY) as journal:
        assert journal.recall("k") == 1


def test_refused_opening_lets_the_directory_go(tmp_path: Path) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        journal.record("single:0", 0.5)
    with pytest.raises(SoupError, match="another run is recorded here"):
        Journal.open(tmp_path, {"heldout": "other"})
    Journal.open(tmp_path, IDENTITY).close()


def test_closed_journal_records_no_more(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, IDENTITY)
    journal.close()
    journal.close()
    with pytest.raises(SoupError, match="the journal is closed"):
        journal.record("k", 1)


def test_forked_child_that_outlives_a_killed_parent_does_not_hold_the_directory(tmp_path: Path) -> None:
    with holder(tmp_path, "fork") as process:
        said = sorted([read_line(process), read_line(process)])
        assert said == ["open", "the journal is closed, or was opened by the process that this one was forked from"]
        with pytest.raises(SoupError, match=f"found process {process.pid} "):
            Journal.open(tmp_path, IDENTITY)
        process.send_signal(signal.SIGKILL)
        process.wait()
        # The child still waits for the end of its input, which this process holds open.
        with Journal.open(tmp_path, IDENTITY) as journal:
            assert journal.keys == []


def test_file_replaced_between_opening_and_locking_is_not_the_one_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock
    calls = []

    def replaced_meanwhile(fd: int, operation: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            (tmp_path / "journal.jsonl").unlink()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", replaced_meanwhile)
    with Journal.open(tmp_path, IDENTITY) as journal:
        journal.record("k", 1)
    assert len(calls) == 2
    with Journal.open(tmp_path, IDENTITY) as journal:
        assert journal.recall("k") == 1


def test_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(OutputError, match=r"the file system has no locks, .*; give a directory elsewhere"):
        Journal.open(tmp_path, IDENTITY)
