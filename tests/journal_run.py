"""Recipes that are slow enough to be killed: see test_journal_kills.py.

``journal_run.py pool FOLDER`` writes checkpoints; ``run FOLDER NAME`` makes their greedy soup with the run directory
FOLDER/NAME and its results beside it; ``kill FOLDER NAME KILLS SEED`` forks one such run after the other, so that the
imports are paid once, and kills each at a random moment. Where a run finishes before its kill, the next one has a new
directory, NAME-1, NAME-2 and so on; the last of these names is printed.

``others FOLDER KILLS SEED`` does all of it for each of the other recipes: RECIPE-plain undisturbed, then RECIPE-killed
to its end.

FOLDER/NAME.log gets one line for each start, forward pass and recorded key, at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from soup_models import mlp, pool
from torch import Tensor, nn

from pysoup import HeldOut, Soup, greedier_soup, greedy_ensemble, greedy_soup, pruned_soup
from pysoup.checkpoint import save_state_dict
from pysoup.soups import Ensemble
from pysoup.soups.journal import Journal

CHECKPOINTS, SAMPLES, BATCH = 10, 320, 20
FORWARD_SECONDS = 0.002
LAST_MOMENT = 0.5
OTHERS: dict[str, Callable[..., Soup | Ensemble]] = {
    "pruned": pruned_soup,
    "greedier": partial(greedier_soup, prefilter=3, max_ingredients=4),
    "ensemble": greedy_ensemble,
}
SECONDS = ("seconds", "mix_seconds", "score_seconds", "timing")


def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return mlp()


def write_pool(folder: Path) -> None:
    for number, state in enumerate(pool(model(), CHECKPOINTS, spread=0.15, seed=3)):
        save_state_dict(state, folder / f"model_{number}.safetensors")


def data(seed: int = 1) -> tuple[Tensor, Tensor]:
    """Labels are the start's own answers, some of them wrong: its neighbours err, each elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, 6, generator=generator)
    with torch.no_grad():
        labels = model().eval()(x).argmax(1)
    wrong = torch.rand(SAMPLES, generator=generator) < 0.1
    return x, labels.where(~wrong, torch.randint(0, 7, (SAMPLES,), generator=generator))


@contextmanager
def logged(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.write(fd, b"start\n")
    original = Journal.record

    def record(self: Journal, key: str, value: Any) -> None:
        original(self, key, value)
        os.write(fd, f"recorded {key}\n".encode())

    Journal.record = record  # type: ignore[method-assign]
    try:
        yield fd
    finally:
        Journal.record = original  # type: ignore[method-assign]
        os.close(fd)


def soup_of(
    folder: Path, run: Path, log: int, seed: int = 1, recipe: Callable[..., Soup | Ensemble] = greedy_soup
) -> Soup | Ensemble:
    def forward(live: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        weights = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in live.parameters())).hexdigest()
        inputs = hashlib.sha256(batch[0].numpy().tobytes()).hexdigest()
        os.write(log, f"forward {weights[:16]} {inputs[:16]}\n".encode())
        time.sleep(FORWARD_SECONDS)
        return live(batch[0]), batch[1]

    paths = [folder / f"model_{number}.safetensors" for number in range(CHECKPOINTS)]
    return recipe(paths, model(), HeldOut(data(seed), forward, batch_size=BATCH), run=run)


def make(folder: Path, name: str) -> None:
    """The soup, written as NAME.json (without what takes another time on each run) and NAME.safetensors.

    Of which recipe, the beginning of the name says.
    """
    recipe = OTHERS.get(name.partition("-")[0], greedy_soup)
    torch.set_num_threads(1)
    with logged(folder / f"{name}.log") as log:
        soup = soup_of(folder, folder / name, log, recipe=recipe)
    told = {key: value for key, value in soup.to_json().items() if key not in SECONDS}
    told["notes"] = [note for note in told["notes"] if not note.startswith("went on with the run in ")]
    told["trace"] = [{k: v for k, v in step.items() if k not in SECONDS} for step in told["trace"]]
    if isinstance(soup, Soup):
        soup.save(folder / f"{name}.safetensors", overwrite=True)
    (folder / f"{name}.json").write_text(json.dumps(told, indent=1))


def forked(folder: Path, name: str) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            make(folder, name)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    return pid


def others(folder: Path, kills: int, seed: int) -> None:
    for name in OTHERS:
        assert os.waitpid(forked(folder, f"{name}-plain"), 0)[1] == 0, name
        last = kill(folder, f"{name}-killed", kills, seed)
        assert os.waitpid(forked(folder, last), 0)[1] == 0, name


def kill(folder: Path, name: str, kills: int, seed: int) -> str:
    generator = random.Random(seed)
    done, number, current = 0, 0, name
    while done < kills:
        pid = forked(folder, current)
        time.sleep(generator.random() * LAST_MOMENT)
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if status == signal.SIGKILL:
            done += 1
            continue
        assert status == 0, f"the run after {done} kills failed by itself"
        number += 1
        current = f"{name}-{number}"
    return current


if __name__ == "__main__":
    doing, where = sys.argv[1], Path(sys.argv[2])
    if doing == "pool":
        write_pool(where)
    elif doing == "run":
        make(where, sys.argv[3])
    elif doing == "others":
        others(where, int(sys.argv[3]), int(sys.argv[4]))
    else:
        print(kill(where, sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
