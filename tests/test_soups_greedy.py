"""The greedy soup against Recipe 1 of the paper written out in plain Python and torch."""

from __future__ import annotations

import copy
import json
import math
import operator
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from soup_models import (
    HuggingFaceStyle,
    StateDict,
    TiedLanguageModel,
    conv_batchnorm,
    mlp,
    plain_mean,
    pool,
    same_bits,
)
from torch import Tensor, nn

from pysoup.checkpoint import open_checkpoint
from pysoup.errors import IncompatibleError, SoupError
from pysoup.evaluate import HeldOut, Metric
from pysoup.soups import greedy_soup

ACCEPT = {">=": operator.ge, ">": operator.gt}


def plain_greedy(
    singles: list[float], score: Callable[[list[int]], float], accept: str, direction: str
) -> tuple[list[int], float, list[tuple[int, float | None, bool]]]:
    """Recipe 1: ingredients, their score, and (candidate, score of the soup with it, accepted) in order."""
    sign = 1.0 if direction == "max" else -1.0
    order = sorted((i for i, s in enumerate(singles) if not math.isnan(s)), key=lambda i: -sign * singles[i])
    kept = order[:1]
    best = singles[kept[0]]
    trace: list[tuple[int, float | None, bool]] = [(kept[0], best, True)]
    for i in order[1:]:
        new = score([*kept, i])
        accepted = not math.isnan(new) and ACCEPT[accept](sign * new, sign * best)
        trace.append((i, new, accepted))
        if accepted:
            kept.append(i)
            best = new
    trace += [(i, None, False) for i, s in enumerate(singles) if math.isnan(s)]
    return kept, best, trace


def same(one: float | None, other: float | None) -> bool:
    return one == other or (one is not None and other is not None and math.isnan(one) and math.isnan(other))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_greedy_equals_the_recipe_on_any_table_of_scores(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 5))
    value = st.sampled_from([0.0, 0.25, 0.5, 0.75, math.nan, math.inf])
    table = [data.draw(value) for _ in range(2**count)]
    accept = data.draw(st.sampled_from([">=", ">"]))
    direction = data.draw(st.sampled_from(["max", "min"]))
    singles = [table[1 << i] for i in range(count)]

    # Candidate i has its weight at place i alone, so a soup's weights say who is in it.
    def look_up(logits: Tensor, labels: Tensor) -> float:
        members = [i for i in range(count) if logits[0, i] != 0]
        assert torch.equal(logits[0, members], torch.full((len(members),), 1.0 / len(members)))
        return table[sum(1 << i for i in members)]

    model = nn.Linear(count, 1, bias=False)
    held = HeldOut([None], lambda model, batch: (model.weight, torch.zeros(1)))
    states = [{"weight": row[None].clone()} for row in torch.eye(count)]
    given_scores = data.draw(st.sampled_from([None, singles]))
    run = lambda: greedy_soup(states, model, held, Metric(look_up, direction), scores=given_scores, accept=accept)  # noqa: E731
    if all(map(math.isnan, singles)):
        with pytest.raises(SoupError, match="every candidate scores NaN"):
            run()
        return
    soup = run()
    kept, best, trace = plain_greedy(singles, lambda s: table[sum(1 << i for i in s)], accept, direction)
    assert soup.ingredients == [f"checkpoints[{i}]" for i in kept]
    assert soup.score == best
    assert [(step.index, step.accepted) for step in soup.trace] == [(i, accepted) for i, _, accepted in trace]
    assert all(same(step.candidate_score, new) for step, (_, new, _) in zip(soup.trace, trace, strict=True))
    assert all(same(step.single_score, singles[step.index]) for step in soup.trace)
    assert torch.equal(model.weight.detach(), plain_mean([states[i] for i in kept])["weight"])


def images() -> tuple[Tensor, Tensor]:
    return torch.randn(120, 6, generator=torch.Generator().manual_seed(5)), torch.arange(120) % 7


def tokens() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    return torch.randint(0, 7, (120, 4), generator=generator), torch.randint(0, 7, (120,), generator=generator)


def encoded() -> dict[str, Tensor]:
    ids, labels = tokens()
    mask = torch.ones_like(ids)
    mask[::3, 2:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


CASES = [
    (mlp, images, "accuracy"),
    (mlp, images, "nll"),
    (conv_batchnorm, images, "accuracy"),
    (conv_batchnorm, images, "nll"),
    (TiedLanguageModel, tokens, "nll"),
    (HuggingFaceStyle, encoded, "top5"),
]


def plain_score(model: nn.Module, state: StateDict, data: object, metric: str) -> float:
    model = copy.deepcopy(model).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        if isinstance(data, dict):
            labels, logits = data["labels"], model(data["input_ids"], data["attention_mask"]).logits
        else:
            labels, logits = data[1], model(data[0])
    if metric == "nll":
        return nn.functional.cross_entropy(logits, labels, reduction="none").double().sum().item() / len(labels)
    top = logits.topk(5 if metric == "top5" else 1).indices
    return (top == labels[:, None]).any(1).sum().item() / len(labels)


@pytest.mark.parametrize("accept", [">=", ">"])
@pytest.mark.parametrize(("make", "data", "metric"), CASES)
def test_greedy_equals_the_recipe_on_models(
    make: Callable[[], nn.Module], data: Callable[[], object], metric: str, accept: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model = make()
    model.train()
    next(module for module in model.modules() if not list(module.children())).eval()
    flags = [module.training for module in model.modules()]
    places = [tensor.data_ptr() for tensor in model.state_dict().values()]
    states = pool(model, 6, spread=1.0, seed=4)  # some kept, some refused, not the same for both rules
    # Half in memory, half in files.
    sources: list[object] = list(states)
    for i in (1, 4):
        save_file({k: v.clone() for k, v in states[i].items()}, tmp_path / f"{i}.safetensors")
    sources[1] = tmp_path / "1.safetensors"
    sources[4] = open_checkpoint(tmp_path / "4.safetensors")

    def mean_score(members: list[int]) -> float:
        return plain_score(model, plain_mean([states[i] for i in members]), data(), metric)

    singles = [mean_score([i]) for i in range(6)]
    direction = "min" if metric == "nll" else "max"
    kept, best, trace = plain_greedy(singles, mean_score, accept, direction)

    soup = greedy_soup(sources, model, HeldOut(data()), metric, accept=accept)

    names = {i: f"checkpoints[{i}]" for i in range(6)} | {i: str(tmp_path / f"{i}.safetensors") for i in (1, 4)}
    assert soup.ingredients == [names[i] for i in kept]
    assert soup.weights == [1 / len(kept)] * len(kept)
    assert soup.score == pytest.approx(best, rel=1e-12)
    assert [(s.index, s.accepted) for s in soup.trace] == [(i, accepted) for i, _, accepted in trace]
    expected = plain_mean([states[i] for i in kept])
    assert same_bits(dict(model.state_dict()), expected)
    assert same_bits(soup.state_dict(), expected)
    assert [module.training for module in model.modules()] == flags
    # The model's own memory was used throughout, and tied entries are still tied.
    assert [tensor.data_ptr() for tensor in model.state_dict().values()] == places


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_running_sum_is_never_rounded_between_steps(dtype: torch.dtype) -> None:
    model = nn.Linear(40, 30).to(dtype)
    states = pool(model, 9, spread=1.0)
    soup = greedy_soup(
        states, model, (torch.zeros(1, 40, dtype=dtype), torch.zeros(1).long()), Metric(lambda x, y: 1.0, "max")
    )
    assert len(soup.ingredients) == 9
    assert same_bits(dict(model.state_dict()), plain_mean(states))


def test_the_model_trains_on_afterwards() -> None:
    model, _, soup = fixture_run()
    before = soup.state_dict()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = images()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert not same_bits(dict(model.state_dict()), before)


def fixture_run(**options: object) -> tuple[nn.Module, list[StateDict], object]:
    torch.manual_seed(2)
    model = mlp()
    states = pool(model, 5, spread=0.3, seed=3)
    return model, states, greedy_soup(states, model, HeldOut(images()), "nll", **options)


def without_time(soup: object) -> list[dict[str, object]]:
    return [{k: v for k, v in step.to_json().items() if k != "seconds"} for step in soup.trace]


def test_given_scores_give_the_soup_of_computed_ones() -> None:
    _, _, computed = fixture_run()
    singles = {step.index: step.single_score for step in computed.trace}
    listed = [singles[i] for i in range(5)]
    named = {f"checkpoints[{i}]": score for i, score in singles.items()}
    for scores in (listed, named):
        _, _, soup = fixture_run(scores=scores)
        assert without_time(soup) == without_time(computed)
        assert same_bits(soup.state_dict(), computed.state_dict())


def test_the_trace_tells_every_step() -> None:
    _, _, soup = fixture_run()
    best, count = None, 0
    for number, step in enumerate(soup.trace):
        count += step.accepted
        assert (step.step, step.best_score_before, step.ingredients_after) == (number, best, count)
        assert step.seconds >= 0
        best = step.candidate_score if step.accepted else best
    assert best == soup.score
    assert sorted(step.index for step in soup.trace) == list(range(5))
    singles = [step.single_score for step in soup.trace]
    assert singles == sorted(singles)
    assert (soup.metric, soup.direction, soup.recipe) == ("nll", "min", "greedy")
    assert json.loads(json.dumps(soup.to_json(), allow_nan=False))["trace"][0]["accepted"] is True


def test_the_same_run_gives_the_same_soup() -> None:
    (_, _, one), (_, _, two) = fixture_run(), fixture_run()
    assert without_time(one) == without_time(two)
    assert same_bits(one.state_dict(), two.state_dict())


def test_a_given_order_is_followed_and_needs_no_single_scores() -> None:
    calls: list[tuple[int, int, str]] = []
    _, states, soup = fixture_run(order=[3, 0, 4, 1, 2], progress=lambda *call: calls.append(call))
    assert [step.index for step in soup.trace] == [3, 0, 4, 1, 2]
    assert [step.single_score is None for step in soup.trace] == [False, True, True, True, True]
    assert calls == [(n + 1, 5, f"checkpoints[{i}]") for n, i in enumerate([3, 0, 4, 1, 2])]
    expected = [i for i, step in zip([3, 0, 4, 1, 2], soup.trace, strict=True) if step.accepted]
    assert same_bits(soup.state_dict(), plain_mean([states[i] for i in expected]))
    _, _, in_order = fixture_run(order="given")
    assert [step.index for step in in_order.trace] == [0, 1, 2, 3, 4]


def test_progress_counts_every_evaluation() -> None:
    calls: list[tuple[int, int, str]] = []
    fixture_run(progress=lambda *call: calls.append(call))
    assert [done for done, _, _ in calls] == list(range(1, 10))  # 5 single models, 4 soups: that of one is known
    assert {total for _, total, _ in calls} == {9}


def test_the_soup_outlives_changes_of_the_model() -> None:
    model, _, soup = fixture_run()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert same_bits(soup.state_dict(), before)
    soup.state_dict()["0.weight"].zero_()
    assert same_bits(soup.state_dict(), before)


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
    expected = r"scoring checkpoints[1] failed: ZeroDivisionError: division by zero\nin two lines (the model holds it)"
    assert str(caught.value) == expected
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
    with pytest.raises(SoupError, match="the held-out set is empty"):
        greedy_soup(pool(model, 2, spread=0.1), model, [])


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
        ([{}], {"order": "random"}, "unknown order: found 'random'"),
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
