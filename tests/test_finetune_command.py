"""``pysoup finetune`` as a user runs it, and the soup made from the result."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from finetune_kitchen import SWEEP, TASK, finished_sweep, furnish, pysoup, sweep_of, weights
from safetensors.torch import load_file

from pysoup.cli import main
from pysoup.finetune.processes import _threads
from pysoup.record import read_failure, read_record


@pytest.fixture
def kitchen(tmp_path: Path) -> Path:
    return furnish(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_sweep(tmp_path_factory.mktemp("finished"))


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
