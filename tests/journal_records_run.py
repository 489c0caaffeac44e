"""Children that write to a journal until they are killed: see test_journal_killed.py.

``python journal_records_run.py DIRECTORY KILLS SEED`` forks one child after the other, so that the imports are paid
once, and kills each at a random moment. A child opens the journal, checks that it goes on where the one before was,
and appends the number of each record to a file of acknowledgements once :meth:`Journal.record` has returned. Prints a
JSON object: how many records there are, how many kills tore a line, how many left a temporary file.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from pysoup.soups.journal import Journal

IDENTITY = {"options": {"accept": ">="}}
LAST_MOMENT = 0.04


def value(number: int) -> Any:
    """Of 10 to 20,000 bytes: long lines are written in several pages."""
    return {"score": number / 7, "text": "x" * (number * number * 7919 % 20_000)}


def array(number: int) -> torch.Tensor:
    return torch.arange(20_000.0) * number


def child(directory: Path, acknowledged: int) -> None:
    with Journal.open(directory / "run", IDENTITY) as journal:
        for number in range(len(journal.keys), 1_000_000):
            if number:
                kept = journal.load_array(f"sum-{number - 1}")
                assert kept is not None, number
                assert torch.equal(kept, array(number - 1)), number
                journal.keep_arrays(f"sum-{number - 1}")
            journal.save_array(f"sum-{number}", array(number))
            journal.record(str(number), value(number))
            os.write(acknowledged, f"{number}\n".encode())


def check(directory: Path, acknowledged: Path) -> int:
    """Nothing that was acknowledged is lost, the order is kept, every value is what was recorded; returns how many."""
    said = [int(line) for line in acknowledged.read_text().splitlines()]
    with Journal.open(directory / "run", IDENTITY) as journal:
        keys = [int(key) for key in journal.keys]
        assert keys == list(range(len(keys)))
        # A kill between the record and its acknowledgement: recorded, and not said.
        assert said == sorted(set(said))
        assert set(said) <= set(keys), (said[-1], keys[-1])
        for number in keys:
            assert journal.recall(str(number)) == value(number), number
        if keys:
            assert torch.equal(journal.load_array(f"sum-{keys[-1]}"), array(keys[-1]))
        arrays = directory / "run" / "arrays"
        # The last one, the one before that was to be removed or the next that was not recorded.
        assert len(os.listdir(arrays) if arrays.exists() else []) <= 2
    assert set(os.listdir(directory / "run")) <= {"journal.jsonl", "arrays"}
    return len(keys)


def main(directory: Path, kills: int, seed: int) -> dict[str, int]:
    generator = random.Random(seed)
    acknowledged = directory / "acknowledged"
    said = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    file = directory / "run" / "journal.jsonl"
    told = {"records": 0, "torn": 0, "temporaries": 0}
    for number in range(kills):
        pid = os.fork()
        if pid == 0:
            try:
                child(directory, said)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        if number % 2:  # else it may be at its first steps still
            before = acknowledged.stat().st_size
            while acknowledged.stat().st_size == before:
                assert os.waitpid(pid, os.WNOHANG)[0] == 0, f"the child before kill {number} failed by itself"
                time.sleep(0.001)
        time.sleep(generator.random() * LAST_MOMENT)
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL, f"the child before kill {number} failed by itself"
        if file.exists():
            told["torn"] += not file.read_bytes().endswith(b"\n")
        if (directory / "run" / "arrays").exists():
            told["temporaries"] += any(name.endswith(".tmp") for name in os.listdir(directory / "run" / "arrays"))
        told["records"] = check(directory, acknowledged)
    return told


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
