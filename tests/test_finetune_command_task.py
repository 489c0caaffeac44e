"""What ``pysoup finetune`` asks of a task, and what it says of one that does not fit."""

from __future__ import annotations

import contextlib
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch
from finetune_kitchen import SWEEP, TASK, furnish, pysoup, sweep_of
from safetensors.torch import load_file

from pysoup.finetune.messages import Broken, Job, Ready
from pysoup.finetune.plan import read_plan
from pysoup.finetune.worker import work


@pytest.fixture
def kitchen(tmp_path: Path) -> Path:
    return furnish(tmp_path)


def worked(kitchen: Path, name: str) -> list[object]:
    """What a worker says of this sweep, in this process: it prepares the start and is sent a run that there is not."""
    threads = torch.get_num_threads()
    ours, theirs = Pipe()
    with ours, theirs:
        ours.send(Job(read_plan(kitchen / name), kitchen / "x", "cpu", 1, overwrite=False, make_start=True))
        ours.send(99)
        try:
            work(theirs)
        finally:
            torch.set_num_threads(threads)
        theirs.close()
        said: list[object] = []
        with contextlib.suppress(EOFError, ConnectionResetError):
            while True:
                said.append(ours.recv())
    return said


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("tasks.py:Task", "tasks.py:NoTraining"), "has no train(), the training data"),
        (("tasks.py:Task", "tasks.py:NoHead"), "the linear probe needs the name of the head"),
        (("[start]", "[start]\nmodule = 'body'"), "the model has no submodule 'body'"),
        (("[start]\nepochs = 3", "[start]\nhead = 'zero_shot'"), "the task has no zero_shot(model)"),
        (("[start]", "metric = 'f9'\n[start]"), "other.toml: 'metric' in the file: unknown metric"),
        (("tasks.py:Task", "tasks.py:NoFile"), "tasks.py:NoFile failed: FileNotFoundError: train.tsv (tasks.py:"),
        (("tasks.py:Task", "tasks.py:NoLabels"), "tasks.py:NoLabels: training tensors need their labels"),
        (("tasks.py:Task", "tasks.py:FloatLabels"), "tasks.py:FloatLabels: training labels must be class numbers"),
    ],
)
def test_task_that_does_not_fit_the_sweep_is_refused(kitchen: Path, change: tuple[str, str], line: str) -> None:
    said = worked(kitchen, sweep_of(kitchen, change))
    assert isinstance(said[-1], Broken)
    assert line in said[-1].line


def test_labels_may_be_integers_of_any_size(kitchen: Path) -> None:
    assert any(isinstance(m, Ready) for m in worked(kitchen, sweep_of(kitchen, ("py:Task", "py:ShortLabels"))))


def test_zero_shot_head_is_the_tasks_own(kitchen: Path) -> None:
    (kitchen / "tasks.py").write_text(
        TASK + "\nclass Told(Task):\n    def zero_shot(self, model):\n        torch.nn.init.ones_(model[2].weight)\n"
    )
    (kitchen / "sweep.toml").write_text(
        SWEEP.replace("[start]\nepochs = 3", "[start]\nhead = 'zero_shot'").replace("py:Task", "py:Told")
    )
    assert any(isinstance(message, Ready) for message in worked(kitchen, "sweep.toml"))
    start = load_file(kitchen / "x" / "start" / "start.safetensors")
    assert start["2.weight"].eq(1).all()
    assert not start["0.weight"].eq(1).all()


def test_task_that_differs_between_processes_is_refused(kitchen: Path) -> None:
    name = sweep_of(kitchen, ("tasks.py:Task", "tasks.py:Shuffled"))
    (kitchen / name).write_text((kitchen / name).read_text().replace("[start]\nepochs = 3", "[start]\nhead = 'none'"))
    run = pysoup(kitchen, "finetune", name, "-o", "x", "--jobs", "2", slow=0.2)
    assert run.returncode == 1
    assert "the task is not the same in every process (train differs); seed what it draws" in run.stderr


def test_sweep_that_cannot_start_says_why_in_one_line(kitchen: Path) -> None:
    run = pysoup(kitchen, "finetune", sweep_of(kitchen, ("tasks.py:Task", "absent.py:Task")), "-o", "x")
    assert run.returncode == 1
    assert run.stderr == f"pysoup: error: {kitchen / 'absent.py'}: no such task file\n"
