"""A recipe that is killed and started again ends as if it had not been, and computes no finished score twice.

``PYSOUP_KILLS=50`` kills more often than the few times that are enough for every day.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import journal_run
import pytest

from pysoup import SoupError

KILLS = int(os.environ.get("PYSOUP_KILLS", "6"))
SCRIPT = Path(journal_run.__file__)


def started(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(*arguments: object) -> str:
    process = started(*arguments)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, and an undisturbed run called ``plain``."""
    folder = tmp_path_factory.mktemp("pool")
    journal_run.write_pool(folder)
    finished("run", folder, "plain")
    return folder


@dataclass
class Scored:
    """One score in a log: the forward passes that it took, and the key it was recorded under ("": it was not)."""

    passes: list[str]
    key: str = ""


def starts(log: Path) -> Iterator[list[Scored]]:
    """What each start of a run did, in order; the last entry is what it was killed in."""
    for start in log.read_text().split("start\n")[1:]:
        scored = [Scored([])]
        for line in start.splitlines():
            what, _, rest = line.partition(" ")
            if what == "forward":
                scored[-1].passes.append(rest)
            else:
                scored[-1].key = rest
                scored.append(Scored([]))
        yield scored


def check_log(log: Path, plain: dict[str, list[str]]) -> None:
    """Each key was recorded once, by exactly the passes that it takes; what is done again was not recorded before."""
    keys = list(plain)
    recorded: list[str] = []
    for scored in starts(log):
        *whole, last = scored
        if whole and len(recorded) < len(keys) and whole[0].key != keys[len(recorded)]:
            # Killed between the journal and the log.
            recorded.append(keys[len(recorded)])
        for score in whole:
            assert score.passes == plain[score.key], score.key
            recorded.append(score.key)
        if last.passes:
            following = [plain[key] for key in keys[len(recorded) : len(recorded) + 2]]
            assert any(last.passes == passes[: len(last.passes)] for passes in following), keys[len(recorded)]
    # The last one may have been killed there, too; the next start then had nothing left to do.
    assert recorded in (keys, keys[:-1])


def test_undisturbed_run_keeps_and_refuses_and_stops_early(pool: Path) -> None:
    """Else the other tests would say little."""
    told = json.loads((pool / "plain.json").read_text())
    steps = told["trace"][1:]
    assert 1 < len(told["ingredients"]) < journal_run.CHECKPOINTS - 1
    assert any(step["accepted"] for step in steps)
    assert sum(0 < step["samples"] < step["of"] for step in steps) >= 3


def test_killed_runs_end_as_an_undisturbed_one_and_score_nothing_twice(pool: Path) -> None:
    name = finished("kill", pool, "killed", KILLS, 0).strip()
    finished("run", pool, name)
    assert (pool / f"{name}.log").exists()
    logs = check_killed(pool, "plain", "killed")
    # A run that finished takes one start, every kill another one.
    assert sum(len(list(starts(log))) for log in logs) > KILLS * 3 // 4


def check_killed(pool: Path, plain: str, killed: str) -> list[Path]:
    """All the logs of the runs that were ``killed``, and what is beside them, against the ``plain`` run."""
    passes = {score.key: score.passes for score in next(starts(pool / f"{plain}.log"))[:-1]}
    logs = sorted(pool.glob(f"{killed}*.log"))
    for log in logs:
        check_log(log, passes)
        # The names of the files, the scores that decided, what was refused when, and the weights to the last bit.
        for suffix in (".json", ".safetensors"):
            expected = pool / f"{plain}{suffix}"
            assert not expected.exists() or log.with_suffix(suffix).read_bytes() == expected.read_bytes()
        kept = [path.name.partition(".")[0] for path in (pool / plain).rglob("arrays/*")]
        assert sorted(path.name.partition(".")[0] for path in log.with_suffix("").rglob("arrays/*")) == sorted(kept)
    return logs


def test_killed_runs_of_the_other_recipes_end_so_too(pool: Path) -> None:
    kills = max(KILLS // 3, 1)
    finished("others", pool, kills, 0)
    for name in journal_run.OTHERS:
        logs = check_killed(pool, f"{name}-plain", f"{name}-killed")
        assert sum(len(list(starts(log))) for log in logs) > kills * 3 // 4
        assert json.loads((pool / f"{name}-plain.json").read_text())["ingredients"]


def test_finished_run_scores_nothing_when_started_again(pool: Path) -> None:
    finished("run", pool, "again")
    first = (pool / "again.json").read_bytes()
    finished("run", pool, "again")
    assert (pool / "again.json").read_bytes() == first
    assert [len(scored.passes) for scored in list(starts(pool / "again.log"))[1]] == [0]


def test_another_process_on_the_directory_is_refused(pool: Path) -> None:
    process = started("run", pool, "busy")
    try:
        log = pool / "busy.log"
        while not (log.exists() and b"recorded single:1" in log.read_bytes()):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        with journal_run.logged(pool / "other.log") as other, pytest.raises(SoupError) as caught:
            journal_run.soup_of(pool, pool / "busy", other)
        assert process.poll() is None
        found = f"found process {process.pid} on {os.uname().nodename}"
        assert str(caught.value) == f"{pool / 'busy'}: another run is using this directory: {found}"
        assert "forward" not in (pool / "other.log").read_text()
        process.communicate()
        assert process.returncode == 0
        assert (pool / "busy.json").read_bytes() == (pool / "plain.json").read_bytes()
    finally:
        process.kill()
        process.communicate()


def test_another_held_out_set_is_refused(pool: Path) -> None:
    with (
        journal_run.logged(pool / "other.log") as log,
        pytest.raises(SoupError, match=r"plain: another run is recorded here: it had another held-out set"),
    ):
        journal_run.soup_of(pool, pool / "plain", log, seed=2)


def test_other_content_under_the_name_of_a_checkpoint_is_refused(pool: Path) -> None:
    path = pool / "model_3.safetensors"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with (
            journal_run.logged(pool / "other.log") as log,
            pytest.raises(SoupError, match=r"plain: another run is recorded here: checkpoint .*model_3.* has other"),
        ):
            journal_run.soup_of(pool, pool / "plain", log)
    finally:
        path.write_bytes(whole)
