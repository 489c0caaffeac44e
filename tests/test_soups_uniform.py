"""The uniform soup, and what a soup saves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from soup_models import TiedLanguageModel, conv_batchnorm, mlp, plain_mean, pool, same_bits
from torch import nn

from pysoup import average_state_dicts
from pysoup.checkpoint import open_checkpoint
from pysoup.errors import IncompatibleError, OutputError, SoupError, WeightsError
from pysoup.soups import greedy_soup, uniform_soup

X = torch.randn(60, 6, generator=torch.Generator().manual_seed(5))
Y = torch.arange(60) % 7


@pytest.mark.parametrize("make", [mlp, conv_batchnorm, TiedLanguageModel])
def test_uniform_is_the_average_of_all_in_the_model(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make().train()
    states = pool(model, 4, spread=0.5)
    save_file({k: v.clone() for k, v in states[2].items()}, tmp_path / "2.safetensors")
    soup = uniform_soup([*states[:2], tmp_path / "2.safetensors", states[3]], model)
    assert same_bits(dict(model.state_dict()), plain_mean(states))
    assert same_bits(soup.state_dict(), plain_mean(states))
    assert soup.weights == [0.25] * 4
    assert soup.ingredients[2] == str(tmp_path / "2.safetensors")
    assert (soup.score, soup.metric, soup.direction, soup.trace) == (None, None, None, [])
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("make", [mlp, conv_batchnorm, TiedLanguageModel])
def test_the_soup_has_the_names_of_the_model_in_its_order(make: Callable[[], nn.Module]) -> None:
    model = make()
    soup = uniform_soup(pool(model, 2, spread=0.5), model)
    assert list(soup.state_dict()) == list(model.state_dict())


def test_uniform_scores_the_average_on_held_out_data() -> None:
    torch.manual_seed(0)
    model = mlp().train()
    soup = uniform_soup(pool(model, 3, spread=0.5), model, (X, Y))
    with torch.no_grad():
        expected = (model.eval()(X).argmax(1) == Y).sum().item() / 60
    assert (soup.score, soup.metric, soup.direction) == (expected, "accuracy", "max")


def test_weights_are_normalised_and_may_be_negative() -> None:
    model = nn.Linear(3, 2)
    states = pool(model, 3, spread=1.0)
    soup = uniform_soup(states, model, weights=[3, -1, 2])
    assert soup.weights == [0.75, -0.25, 0.5]
    expected = 0.75 * states[0]["weight"] - 0.25 * states[1]["weight"] + 0.5 * states[2]["weight"]
    assert torch.allclose(model.weight, expected, atol=1e-6)


def test_weights_give_the_bits_of_the_plain_average() -> None:
    model = nn.Linear(30, 20)
    states = pool(model, 4, spread=1.0)
    for weights in (None, [2, 2, 2, 2], [3, -1, 2, 0], [0.1, 0.2, 0.3, 0.7]):
        soup = uniform_soup(states, model, weights=weights)
        assert same_bits(dict(model.state_dict()), average_state_dicts(states, weights))
        assert sum(soup.weights) == pytest.approx(1.0)
    assert uniform_soup(states, model, weights=[3, -1, 2, 0]).weights == [0.75, -0.25, 0.5, 0.0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "wrong number of weights: found 1, expected 2"),
        ([1.0, -1.0], "found sum 0"),
        ([1.0, math.nan], "weight 2 is not finite"),
    ],
)
def test_wrong_weights_are_refused(weights: list[float], message: str) -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(WeightsError, match=message):
        uniform_soup(pool(model, 2, spread=1.0), model, weights=weights)


def test_no_checkpoints_is_an_error() -> None:
    with pytest.raises(SoupError, match="no checkpoints given"):
        uniform_soup([], nn.Linear(3, 2))


def test_a_saved_soup_loads_with_the_safetensors_library_and_says_what_it_is(tmp_path: Path) -> None:
    model = mlp()
    states = pool(model, 2, spread=1.0)
    path = tmp_path / "soup.safetensors"
    soup = uniform_soup(states, model, (X, Y))
    soup.save(path)
    assert same_bits(load_file(path), plain_mean(states))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert metadata["pysoup.recipe"] == "uniform"
    assert json.loads(metadata["pysoup.ingredients"]) == ["checkpoints[0]", "checkpoints[1]"]
    assert json.loads(metadata["pysoup.weights"]) == [0.5, 0.5]
    before = path.read_bytes()
    with pytest.raises(OutputError):
        soup.save(path)
    with pytest.raises(OutputError, match=r"expected .safetensors, .pt or .pth"):
        soup.save(tmp_path / "soup.ckpt")
    soup.save(path, overwrite=True)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["soup.safetensors"]


def test_tied_tensors_are_saved_once_and_tied_again(tmp_path: Path) -> None:
    model = TiedLanguageModel()
    uniform_soup(pool(model, 2, spread=1.0), model).save(tmp_path / "soup.safetensors")
    assert model.head.weight is model.embed.weight
    saved = open_checkpoint(tmp_path / "soup.safetensors")
    assert saved.aliases == {"head.weight": "embed.weight"}
    assert same_bits(saved.state_dict(), dict(model.state_dict()))


def test_a_trace_is_saved_whole_and_not_overwritten_unasked(tmp_path: Path) -> None:
    model = mlp()
    soup = uniform_soup(pool(model, 2, spread=1.0), model, (X, Y), "nll")
    path = tmp_path / "trace.json"
    soup.save_trace(path)
    assert json.loads(path.read_text()) == soup.to_json()
    assert soup.to_json()["metric"] == "nll"
    with pytest.raises(OutputError, match="the output exists"):
        soup.save_trace(path)
    soup.save_trace(path, overwrite=True)
    with pytest.raises(OutputError, match="cannot write: No such file"):
        soup.save_trace(tmp_path / "absent" / "trace.json")
    assert [entry.name for entry in tmp_path.iterdir()] == ["trace.json"]


def test_a_weighted_soup_has_the_bits_of_the_weighted_average() -> None:
    torch.manual_seed(0)
    model = mlp().double()
    states = pool(model, 5, spread=1.0)
    for seed in range(20):  # for some weights the normalised ones sum to 1 less a rounding
        weights = torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
        uniform_soup(states, model, weights=weights)
        assert same_bits(dict(model.state_dict()), average_state_dicts(states, weights))


def test_integers_of_a_checkpoint_of_weight_zero_need_not_agree() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("ids", torch.zeros(2, dtype=torch.int64))
    states = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for _ in range(2)]
    states[0]["ids"] += 5
    uniform_soup(states, model, weights=[0, 1])
    assert model.ids.tolist() == [0, 0]
    with pytest.raises(IncompatibleError, match=r"checkpoints\[1\]: tensor 'ids'"):
        uniform_soup(states, model)


@pytest.mark.parametrize(("policy", "expected"), [("first", [3, 1]), ("max", [3, 5])])
def test_integers_that_differ_follow_the_policy_asked_for(policy: str, expected: list[int]) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("steps", torch.zeros(2, dtype=torch.int64))
    states = pool(model, 2, spread=0.5)
    states[0]["steps"], states[1]["steps"] = torch.tensor([3, 1]), torch.tensor([2, 5])
    with pytest.raises(IncompatibleError, match="'steps'"):
        uniform_soup(states, model)
    assert uniform_soup(states, model, integers=policy).state_dict()["steps"].tolist() == expected
    data = (torch.randn(8, 2, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 2)
    soup = greedy_soup(states, model, data, integers=policy, scores=[0.0, 0.0], accept=">=")
    kept = [states[i] for i in range(2) if f"checkpoints[{i}]" in soup.ingredients]
    assert soup.state_dict()["steps"].tolist() == (expected if len(kept) == 2 else kept[0]["steps"].tolist())
