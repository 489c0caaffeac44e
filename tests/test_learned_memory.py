"""Ingredients of a learned soup are never held in memory; and precisions and batches that are not the usual ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import learned_memory_run
import pytest
import torch
from learned_memory_run import COUNT, MODEL_BYTES, write_checkpoints
from soup_models import images, mlp, pool, same_bits
from torch import Tensor, nn

from pysoup import HeldOut, SoupError, learned_soup

MIB = 1 << 20


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    write_checkpoints(folder)
    return folder


@pytest.mark.parametrize(("place", "blocks"), [("files", 0), ("files", 4), ("memory", 0)])
def test_memory_does_not_grow_with_the_ingredients(checkpoints: Path, place: str, blocks: int) -> None:
    command = [sys.executable, learned_memory_run.__file__, str(checkpoints), place, str(blocks)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["seen"] >= 2 * found["steps"] + 1
    # Gradients, the copy of the soup, the sum of the rest of the blocks; the buffers; and what threads take.
    few = 4 * MODEL_BYTES + 16 * MIB + 24 * MIB
    assert few < COUNT * MODEL_BYTES
    if place == "memory":
        assert found["beyond"] > 0.9 * COUNT * MODEL_BYTES
    else:
        assert found["beyond"] < few


def test_autocast_is_the_precision_of_the_steps() -> None:
    torch.manual_seed(0)
    model, (x, y) = mlp(), images()
    states = pool(model, 3, spread=0.3)
    full = learned_soup(states, model, HeldOut((x, y)), epochs=2)
    seen: list[torch.dtype] = []

    def forward(live: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        logits = live(batch[0])
        seen.append(logits.dtype)
        return logits, batch[1]

    low = learned_soup(states, model, HeldOut((x, y), forward, autocast="bfloat16"), epochs=2)
    assert set(seen) == {torch.bfloat16}
    assert low.losses != full.losses
    torch.testing.assert_close(low.granule_weights, full.granule_weights, rtol=0.05, atol=0.01)


def test_batches_that_cannot_be_cut_anew_are_taken_whole() -> None:
    torch.manual_seed(0)
    model, (x, y) = mlp(), images()
    states = pool(model, 3, spread=0.3)

    def forward(live: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        return live(batch["x"][0]), batch["y"]

    batches = [{"x": [x[part]], "y": y[part], "id": [str(part)]} for part in (slice(0, 50), slice(50, 120))]
    soup = learned_soup(states, model, HeldOut(batches, forward), epochs=2)
    assert len(soup.losses) == 4
    with pytest.raises(SoupError, match="held-out samples cannot be put into new batches"):
        learned_soup(states, model, HeldOut(batches, forward), epochs=2, batch=30)


def test_an_interrupted_step_leaves_the_models_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = mlp(), images()
    model[0].weight.requires_grad_(False)

    def forward(live: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learned_soup(pool(model, 2, spread=0.1), model, HeldOut(data, forward))
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]


def test_channels_last_parameters_get_the_gradient_of_any_others() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(16, 7))
    states = pool(plain, 3, spread=0.3)
    data = torch.randn(40, 3, 3, 3), torch.arange(40) % 7
    one = learned_soup(states, plain, data, granularity="tensor", epochs=2)
    other = learned_soup(states, plain.to(memory_format=torch.channels_last), data, granularity="tensor", epochs=2)
    torch.testing.assert_close(one.granule_weights, other.granule_weights, rtol=1e-4, atol=1e-6)
    assert not same_bits(one.state_dict(), dict(states[0]))
