"""``sum_memory=`` of the recipes: a running sum in a file chooses and writes what one in memory does, and says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_task import write_checkpoints, write_task
from safetensors.torch import load_file
from soup_models import conv_batchnorm, images, pool, same_bits

from pysoup import HeldOut, OutputError, SoupError, greedier_soup, greedy_soup, pruned_soup, uniform_soup
from pysoup.cli import main
from pysoup.soups import random_orders

NOTE = "the running sum was kept in a temporary file"
RECIPES: dict[str, Callable[..., Any]] = {
    "uniform": uniform_soup,
    "uniform, weighted": partial(uniform_soup, weights=[3, -1, 2, 1]),
    "greedy": greedy_soup,
    "greedy, again": partial(greedy_soup, passes=3, replacement=True, max_ingredients=5),
    "pruned": pruned_soup,
    "greedier": greedier_soup,
}


def model_of(seed: int, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(seed)
    return conv_batchnorm().to(dtype)


def data(dtype: torch.dtype = torch.float32) -> HeldOut:
    inputs, labels = images()
    return HeldOut((inputs.to(dtype), labels), batch_size=40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("recipe", RECIPES)
def test_sum_in_a_file_makes_the_same_soup(recipe: str, dtype: torch.dtype) -> None:
    states = pool(model_of(1, dtype), 4, spread=0.3)
    made = []
    for budget in ("1GiB", 0):
        model = model_of(2, dtype)
        soup = RECIPES[recipe](states, model, data(dtype), sum_memory=budget)
        made.append((soup, dict(model.state_dict())))
    (one, written), (other, written_too) = made
    assert (one.averager.sum_place, other.averager.sum_place) == ("memory", "file")
    assert (other.ingredients, other.weights, other.score) == (one.ingredients, one.weights, one.score)
    steps = [[(s.index, s.candidate_score, s.bound, s.accepted) for s in soup.trace] for soup in (one, other)]
    assert steps[0] == steps[1]
    assert same_bits(written, written_too)
    assert same_bits(one.state_dict(), other.state_dict())
    assert [note for note in other.notes if note not in one.notes] == [NOTE]


def test_uniform_soup_without_data_takes_it_too() -> None:
    soup = uniform_soup(pool(model_of(1), 3, spread=0.3), model_of(2), sum_memory=0)
    assert soup.averager.sum_place == "file"
    assert NOTE in soup.notes


def test_random_orders_take_it_for_each() -> None:
    found = random_orders(pool(model_of(1), 3, spread=0.3), model_of(2), data(), orders=2, sum_memory=0)
    assert [soup.averager.sum_place for soup in found.soups] == ["file", "file"]


def test_recorded_run_goes_on_with_another_budget(tmp_path: Path) -> None:
    """It decides nothing, so it is no part of what a run is known by."""
    states = pool(model_of(1), 4, spread=0.3)
    one = greedy_soup(states, model_of(2), data(), run=tmp_path, sum_memory="1GiB")
    other = greedy_soup(states, model_of(2), data(), run=tmp_path, sum_memory=0)
    assert any("went on with the run" in note for note in other.notes)
    assert same_bits(one.state_dict(), other.state_dict())
    assert one.options == other.options


def test_soup_outlives_the_model_and_is_saved_from_the_file(tmp_path: Path) -> None:
    model = model_of(2)
    soup = greedy_soup(pool(model_of(1), 4, spread=0.3), model, data(), sum_memory=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.nn.init.zeros_(model[1].weight)
    soup.save(tmp_path / "soup.safetensors")
    assert same_bits(load_file(tmp_path / "soup.safetensors"), before)


def test_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pysoup.running_sum.free_bytes", lambda _: 100)
    with pytest.raises(OutputError, match="not enough disk space: found 100 bytes free, expected "):
        greedy_soup(pool(model_of(1), 2, spread=0.3), model_of(2), data(), sum_memory=0)


def test_what_is_no_size_is_refused_before_anything_is_scored() -> None:
    def forward(*_: Any) -> Any:
        raise AssertionError("scored")

    held = HeldOut(images(), forward)
    with pytest.raises(SoupError, match="not a size in bytes"):
        greedy_soup(pool(model_of(1), 2, spread=0.3), model_of(2), held, sum_memory="plenty")


@pytest.mark.parametrize("command", ["uniform", "greedy", "pruned", "greedier"])
def test_command_has_the_option(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, checkpoints = write_task(tmp_path), write_checkpoints(tmp_path)
    for name, options in (("memory", []), ("file", ["--sum-memory", "0"])):
        assert main([command, "--task", task, *checkpoints, "-o", str(tmp_path / name), *options]) == 0
        assert (f"note: {NOTE}" in capsys.readouterr().out) == (name == "file")
    one, other = (tmp_path / name / "soup.safetensors" for name in ("memory", "file"))
    assert one.read_bytes() == other.read_bytes()
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("memory", "file")]
    assert results[0] == results[1]
