"""``pysoup finetune`` as a user runs it: processes, failures, kills, interrupts, and the soup made from the result."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pysoup.cli import main
from pysoup.finetune.messages import Broken, Job, Ready
from pysoup.finetune.plan import read_plan
from pysoup.finetune.processes import _threads
from pysoup.finetune.worker import work
from pysoup.record import read_failure, read_record

TASK = """
import os, time
from pathlib import Path
import torch
from torch import nn

class Task:
    head = "2"

    def model(self):
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))

    def data(self, seed):
        x = torch.randn(64, 5, generator=torch.Generator().manual_seed(seed))
        return x, x[:, :3].argmax(1)

    def train(self):
        return self.data(0)

    def heldout(self):
        return self.data(1)

    def tests(self):
        return {"test": self.data(2)}

    def augment(self, inputs, hp, generator):
        if hp.augment_ops == 1:  # slow, and says that it has begun
            Path(f"begun_{hp.seed}").write_text(str(os.getpid()))
            time.sleep(float(os.environ.get("SLOW", "0")))
        if hp.augment_ops == 2:
            raise ValueError("no such picture")
        if hp.augment_ops == 3:
            return inputs * float("inf")
        return inputs

class NoTraining(Task):
    train = None

class NoHead(Task):
    head = None

class NoFile(Task):
    def train(self):
        raise FileNotFoundError("train.tsv")

class NoLabels(Task):
    def train(self):
        return {"input": torch.zeros(4, 5), "label": torch.zeros(4)}

class FloatLabels(Task):
    def train(self):
        x, y = super().train()
        return x, y.float()

class ShortLabels(Task):
    def train(self):
        x, y = super().train()
        return x, y.to(torch.int8)

class Shuffled(Task):
    def train(self):
        x, y = super().train()
        order = torch.randperm(64, generator=torch.Generator().manual_seed(os.getpid()))
        return x[order], y[order]
"""
SWEEP = """
task = "tasks.py:Task"
[start]
epochs = 3
[training]
epochs = 2
batch_size = 16
augment_ops = 1
[grid]
learning_rate = [0.1, 0.01, 0.001]
seed = [1]
"""


@pytest.fixture
def kitchen(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASK)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pysoup", *arguments]


def pysoup(kitchen: Path, *arguments: str, slow: float = 0.0) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SLOW": str(slow)}
    return subprocess.run(command(*arguments), cwd=kitchen, env=environment, capture_output=True, text=True)


def begin(kitchen: Path, *arguments: str, slow: float) -> subprocess.Popen[str]:
    environment = os.environ | {"SLOW": str(slow)}
    return subprocess.Popen(command(*arguments), cwd=kitchen, env=environment, stderr=subprocess.PIPE, text=True)


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # A zombie whose parent is this container's init counts as gone, too.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def sweep_of(kitchen: Path, change: tuple[str, str], name: str = "other.toml") -> str:
    (kitchen / name).write_text(SWEEP.replace(*change))
    return name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that two processes made, in ``x``."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tasks.py").write_text(TASK)
    (folder / "sweep.toml").write_text(SWEEP)
    run = pysoup(folder, "finetune", "sweep.toml", "-o", "runs/x", "--jobs", "2")
    assert run.returncode == 0, run.stderr
    (folder / "said").write_text(run.stdout)
    return folder


def test_sweep_then_soup_as_a_new_user_does_it(finished: Path) -> None:
    folder = finished / "runs" / "x"
    assert list(weights(folder)) == [f"model_{k:02d}.safetensors" for k in range(3)]
    records = [read_record(folder / name) for name in weights(folder)]
    scores = [record.score for record in records if record is not None]
    assert len(scores) == 3
    lines = (finished / "said").read_text().splitlines()
    assert lines[0].split() == ["model", "accuracy", "learning_rate"]
    assert [line.split()[:2] for line in lines[1:4]] == [[f"model_{k:02d}", f"{scores[k]:.5g}"] for k in range(3)]
    assert lines[4] == "3 models in runs/x: 3 made, 0 found"
    assert json.loads((folder / "sweep.json").read_text())["models"][1]["score"] == scores[1]
    soup = pysoup(finished, "greedy", "--task", "tasks.py:Task", "runs/x", "-o", "soups/greedy")
    assert soup.returncode == 0, soup.stderr
    trace = json.loads((finished / "soups" / "greedy" / "trace.json").read_text())
    assert {Path(name).parent.name for name in trace["ingredients"]} == {"x"}
    best = pysoup(finished, "average", "runs/x", "-o", "best.safetensors", "--top", "2", "--by", "score")
    assert best.returncode == 0, best.stderr


def test_start_is_probed_and_shared_but_no_ingredient(finished: Path, kitchen: Path) -> None:
    start = finished / "runs" / "x" / "start" / "start.safetensors"
    record = read_record(start)
    assert record is not None
    assert record.details["identity"]["head"] == "probe"
    (kitchen / "none.toml").write_text(SWEEP.replace("[start]\nepochs = 3", "[start]\nhead = 'none'"))
    assert pysoup(kitchen, "finetune", "none.toml", "-o", "y", "--limit", "1").returncode == 0
    assert list(weights(kitchen / "y")) == ["model_00.safetensors"]
    # The probe moved the head alone, from where the seeded model had it.
    probed, bare = load_file(start), load_file(kitchen / "y" / "start" / "start.safetensors")
    assert {name for name in probed if not probed[name].equal(bare[name])} == {"2.weight", "2.bias"}


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
    process = begin(kitchen, "finetune", "sweep.toml", "-o", "x", "--jobs", "2", slow=0.5)
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


def test_failed_runs_are_recorded_and_the_sweep_goes_on(kitchen: Path) -> None:
    name = sweep_of(kitchen, ("augment_ops = 1\n[grid]", "[grid]\naugment_ops = [0, 2, 3]"))
    sweep = (kitchen / name).read_text().replace("learning_rate = [0.1, 0.01, 0.001]", "learning_rate = [0.1]")
    (kitchen / name).write_text(sweep)
    run = pysoup(kitchen, "finetune", name, "-o", "x", "--jobs", "2")
    assert run.returncode == 1
    folder = kitchen / "x"
    assert list(weights(folder)) == ["model_00.safetensors"]
    failures = [read_failure(folder / f"model_{k:02d}.safetensors") for k in (1, 2)]
    assert failures[0] is not None
    assert failures[1] is not None
    line = TASK[: TASK.index("raise ValueError")].count("\n") + 1
    assert failures[0]["failed"] == f"ValueError: no such picture (tasks.py:{line})"
    assert "in augment" in failures[0]["traceback"]
    assert failures[1]["failed"].startswith("the loss is not finite at step 0")
    assert run.stdout.splitlines()[-1] == "2 runs failed; --retry makes them again"
    assert "ValueError: no such picture" in run.stdout
    stamp = (folder / "model_01.json").stat().st_mtime_ns
    again = pysoup(kitchen, "finetune", name, "-o", "x")
    assert again.returncode == 1
    assert (folder / "model_01.json").stat().st_mtime_ns == stamp
    (kitchen / "tasks.py").write_text(TASK.replace('raise ValueError("no such picture")', "return inputs"))
    retried = pysoup(kitchen, "finetune", name, "-o", "x", "--retry")
    assert retried.returncode == 1
    assert list(weights(folder)) == ["model_00.safetensors", "model_01.safetensors"]
    assert "2 models in x: 1 made, 1 found" in retried.stdout


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


def test_other_sweep_in_the_directory_is_refused_unless_forced(finished: Path) -> None:
    before = weights(finished / "runs" / "x")
    refused = pysoup(finished, "finetune", sweep_of(finished, ("epochs = 2", "epochs = 1")), "-o", "runs/x")
    assert refused.returncode == 1
    assert "model_00.safetensors: made by another sweep (epochs differs)" in refused.stderr
    probe = sweep_of(finished, ("epochs = 3", "epochs = 4"))
    refused = pysoup(finished, "finetune", probe, "-o", "runs/x")
    assert "start.safetensors: the start was made from another probe; another directory or --force" in refused.stderr
    assert weights(finished / "runs" / "x") == before
    shutil.copytree(finished / "runs" / "x", finished / "runs" / "z")
    forced = pysoup(finished, "finetune", probe, "-o", "runs/z", "--force", "--limit", "1")
    assert forced.returncode == 0, forced.stderr
    assert weights(finished / "runs" / "z")["model_00.safetensors"] != before["model_00.safetensors"]


def test_sweep_that_cannot_start_says_why_in_one_line(kitchen: Path) -> None:
    run = pysoup(kitchen, "finetune", sweep_of(kitchen, ("tasks.py:Task", "absent.py:Task")), "-o", "x")
    assert run.returncode == 1
    assert run.stderr == f"pysoup: error: {kitchen / 'absent.py'}: no such task file\n"


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


def test_limit_leaves_finished_runs_listed(finished: Path) -> None:
    shutil.copytree(finished / "runs" / "x", finished / "runs" / "limited")
    run = pysoup(finished, "finetune", "sweep.toml", "-o", "runs/limited", "--limit", "1")
    assert run.stdout.splitlines()[-1] == "1 model in runs/limited: 0 made, 1 found"
    before, after = (json.loads((finished / "runs" / name / "sweep.json").read_text()) for name in ("x", "limited"))
    assert after == before


@pytest.mark.parametrize(("allowed", "threads"), [(None, 4), ("1", 1), ("3", 3), ("64", 4), ("0", 4), ("many", 4)])
def test_workers_take_no_more_threads_than_the_user_allows(
    monkeypatch: pytest.MonkeyPatch, allowed: str | None, threads: int
) -> None:
    monkeypatch.setattr("pysoup._native.default_threads", lambda: 8)
    if allowed is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", allowed)
    assert _threads(2) == threads


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


def test_wrong_devices_are_refused(kitchen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for devices in ("tpu9", "cuda:99", ","):
        assert main(["finetune", str(kitchen / "sweep.toml"), "-o", str(kitchen / "x"), "--devices", devices]) == 1
        assert "device" in capsys.readouterr().err
    assert not (kitchen / "x").exists()


def test_leading_a_sweep_needs_no_torch() -> None:
    code = "import sys, pysoup.cli.finetune, pysoup.finetune.processes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_torch_the_command_says_what_to_install(
    kitchen: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pysoup.cli.finetune.find_spec", lambda name: None)
    assert main(["finetune", str(kitchen / "sweep.toml"), "-o", str(kitchen / "x")]) == 1
    assert "fine-tuning needs torch: pip install 'model-soups[torch]'" in capsys.readouterr().err


def test_wrong_usage_exits_2_and_help_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["sweep.toml"], ["-o", "x"], ["sweep.toml", "-o", "x", "--jobs", "0"]):
        assert main(["finetune", *arguments]) == 2
    assert main(["finetune", "--help"]) == 0
    assert "pysoup finetune" in capsys.readouterr().out
