"""A learned soup that is slow enough to be killed: see test_learned_killed.py.

``learned_run.py FOLDER NAME OPTIONS`` makes it with the run directory FOLDER/NAME; NAME.json and NAME.safetensors are
written at its end, and NAME.log gets a line for each step and each save. The state is saved after every step.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from soup_models import mlp, pool
from torch import Tensor, nn

from pysoup import HeldOut, learned_soup
from pysoup.checkpoint import save_state_dict
from pysoup.soups.journal import Journal
from pysoup.soups.learned import run as learned_run

COUNT, SAMPLES, BATCH = 4, 96, 16
STEP_SECONDS = 0.01
TIMES = ("timing",)


def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return mlp()


def write_pool(folder: Path) -> None:
    for number, state in enumerate(pool(model(), COUNT, spread=0.3, seed=3)):
        save_state_dict(state, folder / f"model_{number}.safetensors")


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, model().eval()(x).argmax(1)


def make(folder: Path, name: str, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    learned_run.SAVE_SECONDS = 0.0
    log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    record, save_array = Journal.record, Journal.save_array

    def recorded(self: Journal, key: str, value: Any) -> None:
        record(self, key, value)
        os.write(log, f"recorded {key}\n".encode())

    def saved(self: Journal, key: str, tensor: Tensor) -> None:
        save_array(self, key, tensor)
        os.write(log, f"saved {key}\n".encode())

    Journal.record, Journal.save_array = recorded, saved  # type: ignore[method-assign]

    def forward(live: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        os.write(log, b"forward\n")
        time.sleep(STEP_SECONDS)
        return live(batch[0]), batch[1]

    os.write(log, b"start\n")
    paths = [folder / f"model_{number}.safetensors" for number in range(COUNT)]
    held = HeldOut(data(), forward, batch_size=BATCH)
    soup = learned_soup(paths, model(), held, run=folder / name, epochs=3, **options)
    told = {key: value for key, value in soup.to_json().items() if key not in TIMES}
    told["notes"] = [note for note in told["notes"] if not note.startswith("went on with the run in ")]
    soup.save(folder / f"{name}.safetensors", overwrite=True)
    (folder / f"{name}.json").write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
