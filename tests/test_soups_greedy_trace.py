"""What a greedy soup tells of itself: the trace, the progress, passes and seconds; and that it stays what it is."""

from __future__ import annotations

import json

import pytest
import torch
from soup_models import StateDict, images, mlp, plain_mean, pool, same_bits
from torch import nn

from pysoup.evaluate import HeldOut
from pysoup.soups import Soup, greedy_soup


def fixture_run(metric: str = "nll", **options: object) -> tuple[nn.Module, list[StateDict], Soup]:
    torch.manual_seed(2)
    model = mlp()
    states = pool(model, 5, spread=0.3, seed=3)
    return model, states, greedy_soup(states, model, HeldOut(images()), metric, **options)


def test_the_model_trains_on_afterwards() -> None:
    model, _, soup = fixture_run()
    before = soup.state_dict()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = images()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert not same_bits(dict(model.state_dict()), before)


def without_time(soup: Soup) -> list[dict[str, object]]:
    return [{k: v for k, v in step.to_json().items() if "seconds" not in k} for step in soup.trace]


def test_given_scores_give_the_soup_of_computed_ones() -> None:
    _, _, computed = fixture_run(early_rejection=False)
    singles = {step.index: step.single_score for step in computed.trace}
    listed = [singles[i] for i in range(5)]
    named = {f"checkpoints[{i}]": score for i, score in singles.items()}
    for scores in (listed, named):
        _, _, soup = fixture_run(scores=scores, early_rejection=False)
        assert without_time(soup) == without_time(computed)
        assert same_bits(soup.state_dict(), computed.state_dict())
        _, _, early = fixture_run(scores=scores)
        assert early.ingredients == computed.ingredients
        assert early.score == pytest.approx(computed.score, rel=1e-6)


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
    tried = [3, *[3, 0, 4, 1, 2]]  # once more, to see which samples are hard
    assert calls == [(n + 1, 6, f"checkpoints[{i}]") for n, i in enumerate(tried)]
    expected = [i for i, step in zip([3, 0, 4, 1, 2], soup.trace, strict=True) if step.accepted]
    assert same_bits(soup.state_dict(), plain_mean([states[i] for i in expected]))
    _, _, in_order = fixture_run(order="given")
    assert [step.index for step in in_order.trace] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("options", "total"), [({}, 10), ({"early_rejection": False}, 9), ({"metric": "mcc"}, 9)])
def test_progress_counts_every_evaluation(options: dict[str, object], total: int) -> None:
    calls: list[tuple[int, int, str]] = []
    fixture_run(progress=lambda *call: calls.append(call), **options)
    # 5 single models and 4 soups: that of one is known, but not on the batches with hard samples first.
    assert [done for done, _, _ in calls] == list(range(1, total + 1))
    assert {of for _, of, _ in calls} == {total}


def test_the_soup_outlives_changes_of_the_model() -> None:
    model, _, soup = fixture_run()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert same_bits(soup.state_dict(), before)
    soup.state_dict()["0.weight"].zero_()
    assert same_bits(soup.state_dict(), before)
