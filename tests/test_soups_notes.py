"""What recipes say about their checkpoints and about NaN in a soup; folders, patterns and nested entries."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from soup_models import StateDict, TiedLanguageModel, mlp, plain_mean, pool, same_bits
from torch import Tensor, nn

from pysoup.averager import Averager
from pysoup.errors import CheckpointError
from pysoup.soups import Soup, greedy_soup, uniform_soup


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(40, 6, generator=generator), torch.randint(7, (40,), generator=generator)


def files(folder: Path, states: list[StateDict]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.safetensors" for number in range(len(states))]
    for state, path in zip(states, paths, strict=True):
        save_file(state, path)
    return paths


def poison(state: StateDict, *names: str, value: float = math.nan) -> None:
    for name in names:
        state[name].view(-1)[1] = value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_averager_names_tensors_that_are_not_finite(value: float) -> None:
    model = mlp()
    clean, bad = pool(model, 2, spread=0.1)
    poison(bad, "3.bias", "0.weight", value=value)
    averager = Averager(model)
    assert averager.nonfinite == []
    averager.add(clean)
    averager.result()
    assert averager.nonfinite == []
    averager.preview(bad)
    assert averager.nonfinite == ["0.weight", "3.bias"]
    averager.result(out=model)
    assert averager.nonfinite == []
    averager.add(bad)
    averager.result()
    assert averager.nonfinite == ["0.weight", "3.bias"]
    averager.reset()
    assert averager.nonfinite == []


def test_averager_names_tensors_of_files(tmp_path: Path) -> None:
    states = pool(mlp(), 2, spread=0.1)
    poison(states[1], "3.weight")
    averager = Averager(mlp())
    first, second = files(tmp_path, states)
    averager.preview(first)
    assert averager.nonfinite == []
    averager.preview(second)
    assert averager.nonfinite == ["3.weight"]


def test_a_mended_f64_overflow_is_finite_and_named_only_where_it_is_not() -> None:
    huge = {"w": torch.full((4,), 1e308, dtype=torch.float64), "v": torch.ones(2, dtype=torch.float64)}
    averager = Averager(huge)
    averager.add(huge)
    averager.add(huge)
    torch.testing.assert_close(averager.result()["w"], huge["w"])
    assert averager.nonfinite == []
    averager.result(out={name: torch.empty_like(t, dtype=torch.float32) for name, t in huge.items()})
    assert averager.nonfinite == ["w"]


def test_uniform_names_the_tensor_and_its_file(tmp_path: Path) -> None:
    states = pool(mlp(), 3, spread=0.1)
    poison(states[1], "0.bias")
    paths = files(tmp_path, states)
    assert uniform_soup(paths, mlp()).notes == [f"NaN or infinity in tensor '0.bias': in {paths[1]}"]
    assert uniform_soup(paths, mlp(), weights=[1, 0, 1]).notes == []
    poison(states[1], "3.bias")
    mixed = uniform_soup([paths[0], states[1]], mlp())
    assert mixed.notes == ["NaN or infinity in tensor '0.bias' (and 1 more)"]
    assert mixed.to_json()["notes"] == mixed.notes


def test_uniform_does_not_blame_the_mean_where_a_file_has_the_other_tied_name(tmp_path: Path) -> None:
    state = dict(TiedLanguageModel().state_dict())
    state["embed.weight"][0] = math.nan
    del state["embed.weight"]
    save_file(state, tmp_path / "tied.safetensors")
    soup = uniform_soup([tmp_path / "tied.safetensors"], TiedLanguageModel())
    assert soup.notes[-1] == "NaN or infinity in tensor 'embed.weight'"


def test_greedy_steps_say_which_candidate_held_nan(tmp_path: Path) -> None:
    states = pool(mlp(), 3, spread=0.1)
    poison(states[1], "0.bias", "3.bias")
    soup = greedy_soup(files(tmp_path, states), mlp(), data(), order="given", accept=">")
    text = "NaN or infinity in tensor '0.bias' (and 1 more)"
    assert [text in step.note for step in soup.trace] == [False, True, False]
    assert not soup.trace[1].accepted
    assert soup.notes == []


def test_greedy_says_so_of_a_soup_refused_for_its_score() -> None:
    states = pool(mlp(), 2, spread=0.1)
    poison(states[1], "3.bias")
    soup = greedy_soup(states, mlp(), data(), "nll", order="given")
    assert soup.trace[1].note == "the soup with it scores NaN: refused; NaN or infinity in tensor '3.bias'"


def test_greedy_says_so_of_a_first_candidate_that_was_scored_alone() -> None:
    (state,) = pool(mlp(), 1, spread=0.1)
    poison(state, "3.bias")
    soup = greedy_soup([state], mlp(), data())
    assert soup.trace[0].note == "NaN or infinity in tensor '3.bias'"


def test_greedy_says_so_of_a_kept_one_that_was_never_scored() -> None:
    states = pool(mlp(), 1, spread=0.1)
    poison(states[0], "3.bias")
    soup = greedy_soup(states, mlp(), data(), scores=[0.5])
    assert soup.notes == ["NaN or infinity in tensor '3.bias'"]


@pytest.mark.parametrize("recipe", [greedy_soup, uniform_soup])
def test_wrapped_names_entries_and_what_was_left_out_are_notes_not_warnings(recipe: object, tmp_path: Path) -> None:
    model = mlp()
    paths = [tmp_path / f"{number}.pt" for number in range(2)]
    states = pool(model, 2, spread=0.1)
    for state, path in zip(states, paths, strict=True):
        wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({"model": wrapped, "optimizer": {"state": {0: torch.ones(3)}}, "epoch": 3}, path)
    soup = run(recipe, paths, model)
    matched = "has 'module.' (DistributedDataParallel) in its tensor names: matched to those of the model"
    assert soup.notes[:2] == [f"{path} {matched}" for path in paths]
    assert soup.notes[2] == f"weights taken from entry 'model' of {paths[0]}, {paths[1]}"
    assert soup.notes[3].startswith(f"left out of {paths[0]}, {paths[1]}: ")
    assert len(soup.notes) == 4
    chosen = [states[paths.index(Path(name))] for name in soup.ingredients]
    assert same_bits(soup.state_dict(), plain_mean(chosen))


@pytest.mark.parametrize("recipe", [greedy_soup, uniform_soup])
@pytest.mark.parametrize("given", ["runs", "runs/*.safetensors"])
def test_one_path_stands_for_the_checkpoints_in_it(
    recipe: object, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = files(Path("runs"), pool(mlp(), 3, spread=0.1))
    soup = run(recipe, given, mlp())
    assert set(soup.ingredients) <= {str(path) for path in paths}
    assert soup.notes == [f"{given}: 3 checkpoints"]
    assert run(recipe, Path(given), mlp()).ingredients == soup.ingredients


@pytest.mark.parametrize("recipe", [greedy_soup, uniform_soup])
def test_entry_chooses_and_must_be_somewhere(recipe: object, tmp_path: Path) -> None:
    weights, ema = pool(mlp(), 2, spread=0.1)
    torch.save({"model": weights, "ema": ema}, tmp_path / "a.pt")
    soup = run(recipe, tmp_path / "a.pt", mlp(), entry="ema")
    assert same_bits(soup.state_dict(), ema)
    assert same_bits(run(recipe, {"first": tmp_path / "a.pt"}, mlp(), entry="ema").state_dict(), ema)
    plain = files(tmp_path / "plain", [weights])
    with pytest.raises(CheckpointError, match="no input has entries to choose from: found 'ema'"):
        run(recipe, plain, mlp(), entry="ema")


def run(recipe: object, checkpoints: object, model: nn.Module, **options: object) -> Soup:
    assert callable(recipe)
    soup = recipe(checkpoints, model, data(), **options)
    assert isinstance(soup, Soup)
    return soup
