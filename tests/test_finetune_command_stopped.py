"""``pysoup finetune`` killed, interrupted, or started twice at a time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from finetune_kitchen import begin, finished_sweep, furnish, gone, pysoup, until, weights

from pysoup.record import read_failure, read_record


@pytest.fixture
def kitchen(tmp_path: Path) -> Path:
    return furnish(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_sweep(tmp_path_factory.mktemp("finished"))


def test_killed_sweep_goes_on_and_ends_with_the_bits_of_an_undisturbed_one(finished: Path, kitchen: Path) -> None:
    folder = kitchen / "cut"
    process = begin(kitchen, "finetune", "sweep.toml", "-o", "cut", slow=0.15)
    until((folder / "model_00.json").exists, process)
    (kitchen / "begun_1").unlink(missing_ok=True)
    until((kitchen / "begun_1").exists, process)
    worker = int((kitchen / "begun_1").read_text() or 0) or None
    process.kill()
    process.communicate()
    until_gone = time.monotonic() + 20
    while worker is not None and not gone(worker):
        assert time.monotonic() < until_gone, "a worker outlived the sweep"
        time.sleep(0.02)
    first = (folder / "model_00.safetensors").stat()
    again = pysoup(kitchen, "finetune", "sweep.toml", "-o", "cut")
    assert again.returncode == 0, again.stderr
    assert (folder / "model_00.safetensors").stat().st_mtime_ns == first.st_mtime_ns
    assert weights(folder) == weights(finished / "runs" / "x")
    start = Path("start", "start.safetensors")
    assert (folder / start).read_bytes() == (finished / "runs" / "x" / start).read_bytes()
    assert not list(folder.rglob(".*"))
    assert "found" in again.stdout.splitlines()[1]


def test_interrupt_stops_within_a_second_and_keeps_what_is_finished(kitchen: Path) -> None:
    folder = kitchen / "x"
    process = begin(kitchen, "finetune", "sweep.toml", "-o", "x", "--jobs", "2", slow=0.25)
    until(lambda: bool(list(folder.glob("model_*.json"))), process)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "pysoup: interrupted"
    assert "Traceback" not in said
    assert time.monotonic() - began < 10  # generous: the promise is a second on a machine that is not crowded
    for path in folder.glob("*.safetensors"):
        assert read_record(path) is not None
    assert not list(folder.rglob(".*"))


def test_process_that_is_killed_is_a_failed_run(kitchen: Path) -> None:
    process = begin(kitchen, "finetune", "sweep.toml", "-o", "x", slow=0.1)
    until(lambda: (kitchen / "begun_1").exists() and bool((kitchen / "begun_1").read_text()), process)
    os.kill(int((kitchen / "begun_1").read_text()), signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode == 1
    failure = read_failure(kitchen / "x" / "model_00.safetensors")
    assert failure is not None
    assert failure["failed"] == "the process was ended by SIGKILL (out of memory?)"
    assert list(weights(kitchen / "x")) == ["model_01.safetensors", "model_02.safetensors"]
    assert not list((kitchen / "x").rglob(".*"))


def test_second_sweep_in_the_directory_is_refused(kitchen: Path) -> None:
    process = begin(kitchen, "finetune", "sweep.toml", "-o", "x", slow=0.5)
    until((kitchen / "begun_1").exists, process)
    second = pysoup(kitchen, "finetune", "sweep.toml", "-o", "x")
    assert second.returncode == 1
    assert second.stderr == "pysoup: error: x: another sweep is running in this directory\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)


def test_sweep_killed_in_its_first_run_has_no_checkpoint_for_a_recipe(kitchen: Path) -> None:
    """Its start is one of its directories, and is taken by those who name it only."""
    process = begin(kitchen, "finetune", "sweep.toml", "-o", "x", slow=0.5)
    until((kitchen / "begun_1").exists, process)
    process.kill()
    process.communicate()
    assert (kitchen / "x" / "start" / "start.safetensors").exists()
    recipe = pysoup(kitchen, "greedy", "--task", "tasks.py:Task", "x", "-o", "soup")
    assert recipe.returncode == 1
    line = "no run of this fine-tuning sweep has finished yet; its start is start/start.safetensors"
    assert recipe.stderr == f"pysoup: error: x: {line}\n"
    assert not (kitchen / "soup").exists()
