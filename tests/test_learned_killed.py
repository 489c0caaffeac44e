"""A learned soup that is killed and started again ends with the bits of one that was not, and takes no step twice that
was saved."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import learned_run
import pytest
import torch
from torch import Tensor

from pysoup import SoupError, learned_soup
from pysoup.soups.learned import run as steps

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"granularity": "tensor", "seed": 5},
    "blocks": {"granularity": "layer", "parametrization": "hyperplane", "lr": 0.05, "blocks": 2, "batch": 20},
    "lowest": {"lr": 1.0, "keep": "lowest", "weight_decay": 0.1},
}
STARTS = 6


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    learned_run.write_pool(folder)
    return folder


def started(folder: Path, name: str, options: dict[str, Any]) -> int:
    """A process of its own, forked so that the imports are paid once."""
    pid = os.fork()
    if pid == 0:
        try:
            learned_run.make(folder, name, options)
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
        os._exit(1)
    return pid


def runs(log: Path) -> Iterator[list[str]]:
    for text in log.read_text().split("start\n")[1:]:
        yield text.splitlines()


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_killed_run_ends_with_the_same_bits(pool: Path, kind: str) -> None:
    options = OPTIONS[kind]
    assert os.waitpid(started(pool, f"{kind}-whole", options), 0)[1] == 0
    name = f"{kind}-killed"
    for number in range(STARTS):
        pid = started(pool, name, options)
        # Each gets a few steps further: at what moment of one it is hit, only the clock says.
        deadline, log = time.monotonic() + 30, pool / f"{name}.log"
        while not (log.exists() and len(list(runs(log))) > number and len(list(runs(log))[number]) >= 1 + 2 * number):
            assert time.monotonic() < deadline
            time.sleep(0.004)
        time.sleep(0.003 * number)
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert os.waitpid(started(pool, name, options), 0)[1] == 0
    assert (pool / f"{name}.json").read_bytes() == (pool / f"{kind}-whole.json").read_bytes()
    assert (pool / f"{name}.safetensors").read_bytes() == (pool / f"{kind}-whole.safetensors").read_bytes()
    logs = list(runs(pool / f"{name}.log"))
    assert len(logs) == STARTS + 1
    recorded = [line for lines in logs for line in lines if line.startswith("recorded ")]
    assert len(set(recorded)) == len(recorded)
    # What a kill interrupted is done again, and no more: one step, or the pass of a score.
    lost = [
        len(lines) - 1 - max((i for i, line in enumerate(lines) if line != "forward"), default=-1) for lines in logs
    ]
    assert max(lost) <= 1 + len(learned_run.data()[0]) // learned_run.BATCH
    forwards = [sum(line == "forward" for line in lines) for lines in logs]
    whole = next(runs(pool / f"{kind}-whole.log"))
    assert sum(forwards) <= sum(line == "forward" for line in whole) + sum(lost[:-1])


def test_a_finished_run_takes_no_step_and_no_score_again(pool: Path) -> None:
    for _ in range(2):
        assert os.waitpid(started(pool, "again", OPTIONS["plain"]), 0)[1] == 0
    first, second = runs(pool / "again.log")
    assert "forward" in first
    assert "forward" not in second
    assert json.loads((pool / "again.json").read_text())["score"] is not None


def interrupted(folder: Path, run: Path, after: int, **options: Any) -> None:
    """Ends with Ctrl-C after so many forward passes."""
    left = [after]

    def forward(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return model(batch[0]), batch[1]

    paths = [folder / f"model_{number}.safetensors" for number in range(learned_run.COUNT)]
    held = steps.HeldOut(learned_run.data(), forward, batch_size=learned_run.BATCH)
    learned_soup(paths, learned_run.model(), held, run=run, **options)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"lr": 0.2}, "option lr was 0.1, it is 0.2 now"),
        ({"granularity": "layer"}, "option granul"),
        ({"seed": 1}, "option seed was 0, it is 1 now"),
        ({"temperature": False}, "option temperature was True, it is False now"),
        ({"loss": torch.nn.functional.multi_margin_loss}, "option loss was 'cross entropy'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_another_run_is_refused(pool: Path, tmp_path: Path, options: dict[str, Any], difference: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(pool, tmp_path / "run", 9)
    with pytest.raises(SoupError) as caught:
        interrupted(pool, tmp_path / "run", 100, **options)
    assert f"another run is recorded here: {difference}" in str(caught.value)
    # Where the ingredients are kept changes nothing.
    interrupted(pool, tmp_path / "run", 100, place="memory", memory="1MiB")


def test_a_state_that_was_removed_is_an_error(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(pool, tmp_path / "run", 9)
    for file in (tmp_path / "run" / "arrays").iterdir():
        file.unlink()
    with pytest.raises(SoupError, match="weights that belong to the recorded steps are missing"):
        interrupted(pool, tmp_path / "run", 100)


def test_it_says_that_it_went_on(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(pool, tmp_path / "run", 9)
    paths = [pool / f"model_{number}.safetensors" for number in range(learned_run.COUNT)]

    def forward(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
        return model(batch[0]), batch[1]

    forward.__qualname__ = "interrupted.<locals>.forward"
    held = steps.HeldOut(learned_run.data(), forward, batch_size=learned_run.BATCH)
    soup = learned_soup(paths, learned_run.model(), held, run=tmp_path / "run")
    assert f"went on with the run in {tmp_path / 'run'}: 6 steps were on record there" in soup.notes
