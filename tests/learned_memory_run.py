"""A learned soup of many files in a process of its own: ``learned_memory_run.py FOLDER PLACE BLOCKS`` prints, as JSON,
its ``steps``, how often it was ``seen`` and the most anonymous memory ``beyond`` what was there before, in bytes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pysoup import HeldOut, learned_soup
from pysoup.checkpoint import save_state_dict

COUNT, WIDTH = 24, 1024
MODEL_BYTES = 4 * WIDTH * (WIDTH + 1)


def write_checkpoints(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for number in range(COUNT):
        weight = torch.randn(WIDTH, WIDTH, generator=generator)
        save_state_dict({"weight": weight, "bias": torch.zeros(WIDTH)}, folder / f"{number}.safetensors")


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def warm_up() -> None:
    """Has torch load what it loads at first use: the optimiser, autograd's threads."""
    tiny = nn.Linear(2, 2)
    states = [{name: tensor + step for name, tensor in tiny.state_dict().items()} for step in range(2)]
    learned_soup(states, tiny, [(torch.randn(4, 2), torch.arange(4) % 2)], epochs=1)


def main(folder: str, place: str, blocks: str) -> None:
    model = nn.Linear(WIDTH, WIDTH)
    peaks: list[int] = []

    def forward(live: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        logits = live(batch[0])
        if logits.requires_grad:
            logits.register_hook(lambda gradient: peaks.append(anonymous()))
        peaks.append(anonymous())
        return logits, batch[1]

    torch.manual_seed(0)
    warm_up()
    batch = torch.randn(8, WIDTH), torch.arange(8)
    before = anonymous()
    soup = learned_soup(
        sorted(Path(folder).glob("*.safetensors")),
        model,
        HeldOut([batch] * 2, forward),
        epochs=1,
        memory="16MiB",
        place=place,
        blocks=int(blocks) or None,
    )
    peaks.append(anonymous())
    print(json.dumps({"steps": len(soup.losses), "seen": len(peaks), "beyond": max(peaks) - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
