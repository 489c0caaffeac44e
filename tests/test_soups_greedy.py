"""The greedy soup against Recipe 1 of the paper written out in plain Python and torch."""

from __future__ import annotations

import copy
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
    encoded,
    images,
    mlp,
    plain_mean,
    pool,
    same_bits,
    tokens,
)
from torch import Tensor, nn

from pysoup.checkpoint import open_checkpoint
from pysoup.errors import SoupError
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
    best = score(kept)
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


CASES = [
    (mlp, images, "accuracy"),
    (mlp, images, "nll"),
    (conv_batchnorm, images, "accuracy"),
    (conv_batchnorm, images, "nll"),
    (TiedLanguageModel, tokens, "nll"),
    (HuggingFaceStyle, encoded, "top5"),
]


def plain_logits(model: nn.Module, state: StateDict, data: object, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of one batch, with the labels."""
    model = copy.deepcopy(model).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        if isinstance(data, dict):
            return model(data["input_ids"][rows], data["attention_mask"][rows]).logits, data["labels"][rows]
        return model(data[0][rows]), data[1][rows]


def plain_score(logits: Tensor, labels: Tensor, metric: str) -> float:
    if metric == "nll":
        return nn.functional.cross_entropy(logits.double(), labels).item()
    top = logits.topk(5 if metric == "top5" else 1).indices
    return (top == labels[:, None]).any(1).sum().item() / len(labels)


def hardest_first(logits: list[Tensor], labels: Tensor) -> list[Tensor]:
    """Batches of 16 in the order of the margin of the averaged logits."""
    others = sum(logits).masked_fill(nn.functional.one_hot(labels, 7).bool(), -math.inf).amax(1)
    return list((sum(logits)[torch.arange(120), labels] - others).argsort(stable=True).split(16))


@pytest.mark.parametrize("early_rejection", [False, True])
@pytest.mark.parametrize("accept", [">=", ">"])
@pytest.mark.parametrize(("make", "data", "metric"), CASES)
def test_greedy_equals_the_recipe_on_models(
    make: Callable[[], nn.Module],
    data: Callable[[], object],
    metric: str,
    accept: str,
    early_rejection: bool,
    tmp_path: Path,
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

    whole = [plain_logits(model, state, data(), torch.arange(120)) for state in states]
    singles = [plain_score(*answer, metric) for answer in whole]
    batches = [torch.arange(120)]
    if early_rejection:
        batches = hardest_first([logits for logits, _ in whole], whole[0][1])

    def mean_score(members: list[int]) -> float:
        mean = plain_mean([states[i] for i in members])
        answers = [plain_logits(model, mean, data(), rows) for rows in batches]
        return plain_score(torch.cat([a for a, _ in answers]), torch.cat([b for _, b in answers]), metric)

    direction = "min" if metric == "nll" else "max"
    kept, best, trace = plain_greedy(singles, mean_score, accept, direction)

    soup = greedy_soup(sources, model, HeldOut(data()), metric, accept=accept, early_rejection=early_rejection)

    names = {i: f"checkpoints[{i}]" for i in range(6)} | {i: str(tmp_path / f"{i}.safetensors") for i in (1, 4)}
    assert soup.ingredients == [names[i] for i in kept]
    assert soup.weights == [1 / len(kept)] * len(kept)
    near = pytest.approx if metric == "nll" else lambda exact, rel: exact  # likelihoods are within 1e-6
    assert soup.score == near(best, rel=1e-6)
    assert [(s.index, s.accepted) for s in soup.trace] == [(i, accepted) for i, _, accepted in trace]
    for step, (_, score, _) in zip(soup.trace, trace, strict=True):
        assert step.candidate_score == near(score, rel=1e-6) if step.bound is None else early_rejection
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
