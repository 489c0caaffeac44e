"""What the greedy soup notes and refuses: copies, NaN, errors of a model, checkpoints and arguments that do not fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from soup_models import images, mlp, plain_mean, pool, same_bits
from torch import Tensor, nn

from pysoup.errors import IncompatibleError, SoupError
from pysoup.evaluate import HeldOut
from pysoup.soups import greedier_soup, greedy_ensemble, greedy_soup, logit_ensemble, pruned_soup, uniform_soup


def test_duplicates_are_taken_and_noted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = mlp()
    state = pool(model, 1, spread=0.1)[0]
    save_file(state, tmp_path / "a.safetensors")
    save_file(state, tmp_path / "b.safetensors")
    paths = [tmp_path / "a.safetensors", str(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"]
    soup = greedy_soup(paths, model, images())
    assert [step.note for step in soup.trace] == ["", *[f"same weights as {tmp_path / 'a.safetensors'}"] * 2]
    assert len(soup.ingredients) == 3
    assert same_bits(dict(model.state_dict()), plain_mean([state] * 3))
    assert greedy_soup([state, state], model, images()).trace[1].note == "same weights as checkpoints[0]"


def test_a_nan_model_is_refused_unseen_and_noted() -> None:
    torch.manual_seed(0)
    model = mlp()
    states = pool(model, 3, spread=0.1)
    states[0]["0.weight"][0, 0] = math.nan
    soup = greedy_soup(states, model, images(), "nll")
    last = soup.trace[-1]
    assert (last.index, last.accepted, last.candidate_score) == (0, False, None)
    assert last.note == "its own score is NaN: refused"
    assert last.to_json()["single_score"] == "nan"
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_a_mapping_names_the_checkpoints() -> None:
    model = mlp()
    one, two = pool(model, 2, spread=0.0)
    assert greedy_soup({"seed 1": one, "seed 2": two}, model, images()).ingredients == ["seed 1", "seed 2"]


def test_an_error_names_the_checkpoint_and_what_the_model_holds() -> None:
    torch.manual_seed(0)
    model = mlp()
    model[1].eval()
    states = pool(model, 3, spread=0.1)
    calls = []

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        calls.append(batch)
        if len(calls) == 2:
            raise ZeroDivisionError("division by zero\nin two lines")
        return model(batch[0]), batch[1]

    with pytest.raises(SoupError) as caught:
        greedy_soup(states, model, HeldOut(images(), forward))
    what, left = str(caught.value).split(" (test_soups_greedy_refusals.py:")
    assert what == r"scoring checkpoints[1] failed: ZeroDivisionError: division by zero\nin two lines"
    line, _ = left.split(")", 1)
    assert 'raise ZeroDivisionError("division' in Path(__file__).read_text().splitlines()[int(line) - 1]
    assert left.endswith(") (the model holds it)")
    assert caught.value.left == "the model holds it"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert same_bits(dict(model.state_dict()), states[1])
    assert [module.training for module in model] == [True, False, True, True]


def test_an_interrupt_passes_through() -> None:
    def forward(model: nn.Module, batch: object) -> tuple[Tensor, Tensor]:
        raise KeyboardInterrupt

    model = mlp().train()
    with pytest.raises(KeyboardInterrupt):
        greedy_soup(pool(model, 2, spread=0.1), model, HeldOut(images(), forward))
    assert all(module.training for module in model.modules())


def test_a_label_out_of_range_is_reported_with_the_checkpoint() -> None:
    model = mlp()
    x, y = images()
    with pytest.raises(SoupError, match=r"scoring checkpoints\[0\]: the label of held-out sample 6 is .* found 6"):
        greedy_soup(pool(nn.Linear(6, 3), 2, spread=0.1), nn.Linear(6, 3), (x, y.where(y > 5, 0)))
    with pytest.raises(SoupError, match=r"reading the held-out data: the held-out set is empty \(nothing was scored\)"):
        greedy_soup(pool(model, 2, spread=0.1), model, [])


def test_data_that_cannot_be_read_is_an_error_before_anything_is_scored() -> None:
    def broken() -> Iterator[tuple[Tensor, Tensor]]:
        yield images()
        raise OSError("the disk is gone")

    model = mlp()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SoupError, match="reading the held-out data failed: OSError: the disk is gone") as caught:
        greedy_soup(pool(model, 2, spread=0.1), model, broken())
    assert isinstance(caught.value.__cause__, OSError)
    assert same_bits(dict(model.state_dict()), before)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    model = mlp()
    states = pool(model, 2, spread=0.1)
    states[1]["extra"] = torch.zeros(1)
    with pytest.raises(IncompatibleError, match=r"^checkpoints\[1\]: .*") as caught:
        greedy_soup(states, model, images())
    assert "extra" in str(caught.value)
    save_file(states[1], tmp_path / "other.safetensors")
    with pytest.raises(IncompatibleError, match=r"^\S*other\.safetensors: .*"):
        greedy_soup([states[0], tmp_path / "other.safetensors"], model, images())
    with pytest.raises(SoupError, match="absent"):
        greedy_soup([states[0], tmp_path / "absent.safetensors"], model, images())


def test_a_state_dict_that_is_the_model_is_refused() -> None:
    model = mlp()
    with pytest.raises(SoupError, match=r"checkpoints\[1\]: tensor '0.weight': .* shares memory with the model"):
        greedy_soup([*pool(model, 1, spread=0.1), model.state_dict()], model, images())
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    with pytest.raises(SoupError, match="shares memory with the model"):
        greedy_soup([*pool(model, 1, spread=0.1), arrays], model, images())


@pytest.mark.parametrize(
    ("checkpoints", "options", "message"),
    [
        ([], {}, "no checkpoints given"),
        (b"a.safetensors", {}, "checkpoints must be a list: found one bytes"),
        (mlp().state_dict(), {}, "checkpoints must be a list: found one state dictionary"),
        ([mlp()], {}, r"checkpoints\[0\] is not a checkpoint; pass its state_dict\(\)"),
        ([3], {}, r"checkpoints\[0\] is not a checkpoint: found int"),
        ([{}, {}], {"scores": [1.0]}, "one score per checkpoint: found 1, expected 2"),
        ([{}, {}], {"scores": {"checkpoints[0]": 1.0}}, r"found no score for checkpoints\[1\]"),
        ([{}], {"scores": {"checkpoints[0]": 1.0, "b": 2.0}}, "found a score for b, which is no checkpoint"),
        ([{}, {}], {"order": [0, 0]}, r"every position from 0 to 1 once: found \[0, 0\]"),
        ([{}], {"order": "best"}, "unknown order: found 'best'"),
        ([{}], {"order": "random", "seed": 0.5}, "seed must be a whole number: found 0.5, expected an integer"),
        ([{}], {"passes": 0}, "passes is too small: found 0, expected an integer, at least 1"),
        ([{}], {"replacement": True}, "replacement needs further passes: found passes=1"),
        ([{}], {"max_ingredients": 0}, "max_ingredients is too small: found 0"),
        ([{}], {"max_ingredients": "3"}, "max_ingredients must be a whole number: found '3'"),
        ([{}], {"min_delta": -0.1}, "min_delta must be a number: found -0.1, expected 0 or more, and finite"),
        ([{}], {"min_delta": math.nan}, "min_delta must be a number: found nan"),
        ([{}], {"accept": "=="}, "unknown accept rule: found '=='"),
        ([{}], {"metric": "f1"}, "unknown metric: found 'f1'"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    checkpoints: object, options: dict[str, object], message: str
) -> None:
    model = mlp()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SoupError, match=message):
        greedy_soup(checkpoints, model, images(), **options)
    assert same_bits(dict(model.state_dict()), before)


@pytest.mark.parametrize(
    "recipe", [greedy_soup, pruned_soup, greedier_soup, uniform_soup, greedy_ensemble, logit_ensemble]
)
@pytest.mark.parametrize(("model", "found"), [(None, "NoneType"), (nn.Linear, "type"), (mlp().state_dict(), "Ordered")])
def test_what_is_no_model_is_refused(recipe: Callable[..., object], model: object, found: str) -> None:
    with pytest.raises(SoupError, match=f"not a model: found {found}.*, expected a torch.nn.Module"):
        recipe(pool(mlp(), 2, spread=0.1), model, images())
