"""The engine of the recipes: averages of any candidates in the live model, and what it tells of its work."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from soup_models import StateDict, TiedLanguageModel, conv_batchnorm, images, mlp, pool, same_bits, tokens
from torch import Tensor, nn

from pysoup import average_state_dicts
from pysoup.errors import CheckpointError, SoupError
from pysoup.evaluate import HeldOut, as_metric, evaluate, top_k
from pysoup.soups.candidates import open_candidates
from pysoup.soups.scorer import Scorer


def pool_of(
    make: Callable[[], nn.Module], folder: Path, count: int = 5
) -> tuple[nn.Module, list[StateDict], list[object]]:
    """A model, state dictionaries, and the same as sources: in memory and, every second one, in files."""
    torch.manual_seed(0)
    model = make()
    states = pool(model, count, spread=0.5)
    sources: list[object] = list(states)
    for number in range(1, count, 2):
        save_file({k: v.clone() for k, v in states[number].items()}, folder / f"{number}.safetensors")
        sources[number] = folder / f"{number}.safetensors"
    return model, states, sources


def scorer_of(model: nn.Module, sources: list[object], metric: str = "accuracy", **options: object) -> Scorer:
    data = tokens() if isinstance(model, TiedLanguageModel) else images()
    candidates, _ = open_candidates(sources, model)
    return Scorer(model, candidates, HeldOut(data, batch_size=20), as_metric(metric), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("make", [mlp, conv_batchnorm, TiedLanguageModel])
def test_a_subset_is_the_average_of_these_in_their_order(
    make: Callable[[], nn.Module], dtype: torch.dtype, tmp_path: Path
) -> None:
    model, states, sources = pool_of(lambda: make().to(dtype), tmp_path)
    scorer = scorer_of(model, sources)
    if dtype != torch.float32 and make is not TiedLanguageModel:
        scorer.heldout = HeldOut((images()[0].to(dtype), images()[1]), batch_size=20)
    places = [tensor.data_ptr() for tensor in model.state_dict().values()]
    for number, members in enumerate(([0, 1, 2, 3, 4], [3, 1], [4], [2, 2, 1])):
        trial = scorer.subset(members, f"subset:{number}")
        assert same_bits(dict(model.state_dict()), average_state_dicts([states[i] for i in members]))
        assert trial.score == evaluate(model, scorer.heldout)
        assert (trial.accepted, trial.bound, trial.samples, trial.of) == (True, None, 120, 120)
    assert [tensor.data_ptr() for tensor in model.state_dict().values()] == places


def test_a_subset_leaves_the_running_sum_as_it_was(tmp_path: Path) -> None:
    model, states, sources = pool_of(mlp, tmp_path)
    scorer = scorer_of(model, sources)
    scorer.add(3)
    scorer.add(0)
    scorer.subset([1, 2], "a")
    trial = scorer.with_candidate(4, "b")
    assert same_bits(dict(model.state_dict()), average_state_dicts([states[i] for i in (3, 0, 4)]))
    scorer.subset([3, 0], "c")
    scorer.finish()
    assert same_bits(dict(model.state_dict()), average_state_dicts([states[3], states[0]]))
    assert scorer.added == [3, 0]
    assert trial.score is not None


def test_a_subset_that_cannot_be_accepted_is_not_scored_to_its_end(tmp_path: Path) -> None:
    model, states, sources = pool_of(mlp, tmp_path)
    scorer = scorer_of(model, sources)
    singles = scorer.singles()
    scorer.prepare(0)
    first = scorer.subset([0, 1], "first")
    refused = scorer.subset([2, 3], "second", best=1.0)
    assert (refused.score, refused.accepted) == (None, False)
    assert refused.bound is not None
    assert refused.bound < 1.0
    assert 0 < refused.samples < refused.of == 120
    assert singles == [evaluate_state(state) for state in states]
    assert first.score is not None
    used = 5 + 1 + refused.samples / 120
    assert scorer.passes_used == pytest.approx(used)
    assert scorer.passes_saved == pytest.approx(7 - used)


def test_samples_that_count_with_some_models_only_are_an_error() -> None:
    """What is still possible is not known then."""
    model = mlp()
    states = pool(model, 3, spread=0.5)
    dropped: list[int] = []

    def forward(live: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        labels = batch[1].clone()
        labels[dropped] = -100
        return live(batch[0]), labels

    candidates, _ = open_candidates(states, model)
    scorer = Scorer(model, candidates, HeldOut(images(), forward, batch_size=20), top_k(1, ignore_index=-100))
    scorer.singles()
    scorer.prepare(0)
    scorer.with_candidate(0, "first")
    dropped.append(0)
    with pytest.raises(SoupError, match=r"another number .* counts .* early_rejection=False") as caught:
        scorer.with_candidate(1, "second", best=0.0)
    assert (caught.value.found, caught.value.expected) == (120 - 8, 120)


def evaluate_state(state: StateDict) -> float:
    model = mlp()
    model.load_state_dict(state)
    return evaluate(model, images())


def test_a_better_score_by_less_than_asked_is_not_accepted(tmp_path: Path) -> None:
    model, _, sources = pool_of(mlp, tmp_path)
    scorer = scorer_of(model, sources)
    score = scorer.with_candidate(0, "0").score
    assert score is not None
    rules = [
        (score, False, 0.0, True),
        (score, True, 0.0, False),
        (score - 0.1, True, 0.05, True),
        (score - 0.1, False, 0.15, False),
        (score + 0.1, False, 0.0, False),
    ]
    for number, (best, strict, min_delta, accepted) in enumerate(rules, 1):
        trial = scorer.with_candidate(0, str(number), best=best, strict=strict, min_delta=min_delta)
        assert (trial.accepted, trial.score) == (accepted, score)


def test_errors_name_the_candidate_and_the_file(tmp_path: Path) -> None:
    model, _, sources = pool_of(mlp, tmp_path)
    scorer = scorer_of(model, sources)
    size = (tmp_path / "3.safetensors").stat().st_size
    with open(tmp_path / "3.safetensors", "r+b") as file:
        file.truncate(size - 40)
    with pytest.raises(
        CheckpointError, match=r"3\.safetensors: loading .*3\.safetensors: file changed .*may hold part"
    ):
        scorer.with_candidate(3, "a")
    with pytest.raises(CheckpointError, match=r"3\.safetensors: loading the average of 2: file changed"):
        scorer.subset([2, 3], "b")
    with pytest.raises(CheckpointError, match=r"3\.safetensors: loading all but one: file changed"):
        scorer.subset([2, 3], "c", name="all but one")


def test_tensors_that_are_not_finite_are_named(tmp_path: Path) -> None:
    model, states, sources = pool_of(mlp, tmp_path)
    states[0]["0.bias"][1] = math.nan
    scorer = scorer_of(model, sources)
    assert scorer.subset([1, 0], "a").nonfinite == ("0.bias",)
    assert scorer.subset([1, 2], "b").nonfinite == ()
    assert scorer.with_candidate(0, "c").nonfinite == ("0.bias",)
    scorer.add(1)
    scorer.subset([1, 0], "d")
    scorer.add(0)
    scorer.averager._nonfinite = []
    scorer.finish()  # though the model holds this average already
    assert scorer.averager.nonfinite == ["0.bias"]


def test_another_average_under_the_same_name_is_not_taken_from_the_record(tmp_path: Path) -> None:
    model, _, sources = pool_of(mlp, tmp_path)
    with (scorer := scorer_of(model, sources)).recording(tmp_path / "run", "test"):
        one = scorer.subset([0, 1], "a")
    with (scorer := scorer_of(model, sources)).recording(tmp_path / "run", "test"):
        assert scorer.subset([0, 1], "a") == one
        with pytest.raises(SoupError, match="another average is recorded for 'a'"):
            scorer.subset([0, 2], "a")
    with (
        pytest.raises(SoupError, match="option recipe was 'test', it is 'other' now"),
        scorer_of(model, sources).recording(tmp_path / "run", "other"),
    ):
        pass


def test_time_is_told_apart(tmp_path: Path) -> None:
    model, _, sources = pool_of(mlp, tmp_path)
    scorer = scorer_of(model, sources)
    trials = [scorer.with_candidate(index, str(index), following=3) for index in range(3)]
    assert scorer.timing["mix"] == pytest.approx(sum(t.mix_seconds for t in trials))
    assert scorer.timing["score"] == pytest.approx(sum(t.score_seconds for t in trials))
    assert scorer.timing["read"] == pytest.approx(sum(t.read_seconds for t in trials))
    assert all(seconds > 0 for seconds in scorer.timing.values())
    before = scorer.timing["mix"]
    scorer.add(0)
    assert scorer.timing["mix"] > before
