"""Recipes on a model on a device: what is chosen, every score and the soup are those of the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import Device
from safetensors.torch import save_file
from soup_models import conv_batchnorm, images, pool, same_bits
from torch import nn

from pysoup import HeldOut, greedier_soup, greedy_soup, pruned_soup, uniform_soup

RECIPES: dict[str, Callable[..., Any]] = {
    "uniform": uniform_soup,
    "greedy": greedy_soup,
    "greedy, nll": partial(greedy_soup, metric="nll"),
    "pruned": pruned_soup,
    "greedier": greedier_soup,
}


def model_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return conv_batchnorm()


@pytest.mark.parametrize("sources", ["states", "files"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_is_the_same_on_the_device(recipe: str, sources: str, on_device: Device, tmp_path: Path) -> None:
    states = pool(model_of(1), 4, spread=0.3)
    given: list[Any] = states
    if sources == "files":
        given = [tmp_path / f"{number}.safetensors" for number in range(len(states))]
        for path, state in zip(given, states, strict=True):
            save_file(state, path)
    inputs, labels = images()
    cpu = model_of(2)
    expected = RECIPES[recipe](given, cpu, HeldOut((inputs, labels), batch_size=50))
    with on_device.on():
        model = model_of(2).to(on_device.torch)
        heldout = HeldOut((inputs, labels), batch_size=50, device=on_device.torch)
        moved = on_device.put(states) if sources == "states" else given
        found = RECIPES[recipe](moved, model, heldout)
    assert on_device.calls["launch_sum"] + on_device.calls["run_staged"] > 0
    assert on_device.calls["launch_scores"] > 0
    # On a GPU the forward pass itself rounds differently: scores may differ there, the kernels' part does not.
    if on_device.name == "emulated":
        assert found.score == expected.score
        assert [part.candidate_score for part in found.trace] == [part.candidate_score for part in expected.trace]
        assert found.weights == expected.weights
    assert len(found.ingredients) == len(expected.ingredients) or on_device.name == "cuda"
    if found.weights == expected.weights and len(found.ingredients) == len(expected.ingredients):
        assert same_bits(model.state_dict(), cpu.state_dict())
