"""The pruned soup against the recipe in plain Python, on random tables of answers and on real models."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from score_tables import Table, tables
from soup_models import Interrupted, decisions, images, mlp, never, plain_mean, pool, same_bits

from pysoup import HeldOut, SoupError, pruned_soup
from pysoup.evaluate import evaluate

TABLES = 60
pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class PlainPruning:
    """The recipe with every average scored in full."""

    table: Table
    metric: str
    options: dict[str, object]
    known: bool
    trials: list[tuple[int, float, bool]] = field(default_factory=list)

    def run(self) -> PlainPruning:
        table, sign = self.table, -1.0 if self.metric == "nll" else 1.0
        alone = [table.score([i], self.metric, table.as_given()) for i in range(table.count)]
        self.alone = alone
        kept = [i for i in range(table.count) if not math.isnan(alone[i])]
        worst_first = sorted(kept, key=lambda i: (sign * alone[i], -i))
        self.kept, self.best = kept, math.nan
        if not kept:
            return self
        batches = table.as_given()
        if self.options["early_rejection"] and len(kept) > 1:
            batches = table.hardest_first(worst_first[-1:] if self.known else range(table.count))
        self.best = table.score(kept, self.metric, batches)
        passes = 0
        while passes != self.options["passes"]:
            passes += 1
            before = list(kept)
            for i in worst_first:
                if i not in kept or len(kept) == 1:
                    continue
                others = [j for j in kept if j != i]
                new = table.score(others, self.metric, batches)
                threshold = sign * self.best + self.options["min_delta"]
                better = sign * new > threshold if self.options["accept"] == ">" else sign * new >= threshold
                better = not math.isnan(new) and (better or math.isnan(self.best))
                self.trials.append((i, len(kept), better, new))
                if better:
                    kept, self.best = others, new
            if kept == before:
                break
        self.kept = kept
        return self


def drawn_options(rng: random.Random) -> dict[str, object]:
    return {
        "accept": rng.choice([">=", ">"]),
        "min_delta": rng.choice([0.0, 0.0, 0.02, 0.1]),
        "passes": rng.choice([None, None, 1, 2]),
        "early_rejection": rng.random() < 0.8,
    }


@pytest.mark.parametrize("metric", ["accuracy", "top2", "nll"])
def test_what_is_left_and_its_score_are_those_of_the_plain_recipe(metric: str) -> None:
    stopped = several_passes = dropped = 0
    for table, rng in tables(5000, TABLES):
        options, known = drawn_options(rng), rng.random() < 0.3
        plain = PlainPruning(table, metric, options, known).run()
        scores = plain.alone if known else None
        told = f"table {table.seed}: {options}, known={known}"
        model = table.model()
        run = lambda: pruned_soup(table.states(), model, table.heldout(), metric, scores=scores, **options)  # noqa: B023, E731
        if math.isnan(plain.best):
            with pytest.raises(SoupError, match="no soup"):
                run()
            continue
        soup = run()
        assert soup.ingredients == [f"checkpoints[{i}]" for i in plain.kept], told
        assert soup.weights == [1 / len(plain.kept)] * len(plain.kept)
        assert soup.score == plain.best, told
        expected = torch.zeros(1, table.count)
        expected[0, plain.kept] = 1 / len(plain.kept)
        assert torch.equal(model.weight.detach(), expected), told
        tried = [step for step in soup.trace if step.best_score_before is not None]
        decisions = [(s.index, s.ingredients_after + s.accepted, s.accepted) for s in tried]
        # The plain recipe asks again in a later pass, with the same answer.
        assert decisions == list(dict.fromkeys((i, size, better) for i, size, better, _ in plain.trials)), told
        scored = [step.candidate_score for step in tried if step.accepted]
        assert scored == [score for _, _, better, score in plain.trials if better], told
        for step in soup.trace:
            if step.bound is not None:
                stopped += 1
                assert step.candidate_score is None
                assert step.samples < step.of == table.samples, told
        dropped += len(scored)
        several_passes += len({d[0] for d in decisions}) < len(decisions)
    assert min(stopped, dropped) > TABLES / 4
    assert several_passes > 3


def test_the_soup_is_the_average_of_what_is_left_bit_for_bit(tmp_path: Path) -> None:
    model = mlp()
    states = pool(model, 6, spread=0.3)
    paths = []
    for number, state in enumerate(states):
        paths.append(tmp_path / f"{number}.safetensors")
        save_file(state, paths[-1])
    model.train()
    model[1].eval()
    held = HeldOut(images(), batch_size=32)
    soup = pruned_soup(paths, model, held)
    left = [states[int(Path(name).stem)] for name in soup.ingredients]
    assert 0 < len(left) < 6
    assert soup.ingredients == sorted(soup.ingredients)
    assert same_bits(soup.state_dict(), plain_mean(left))
    assert same_bits(dict(model.state_dict()), plain_mean(left))
    assert soup.score == evaluate(model, held)
    assert [m.training for m in model] == [True, False, True, True]
    assert model.training
    assert soup.recipe == "pruned"
    assert soup.to_json()["trace"][0]["ingredient"] == str(tmp_path / f"{soup.trace[0].index}.safetensors")


def test_a_folder_dictionaries_and_scores_by_name_are_taken(tmp_path: Path) -> None:
    model = mlp()
    states = dict(zip("abc", pool(model, 3, spread=0.3), strict=True))
    for name, state in states.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    held = HeldOut(images(), batch_size=32)
    from_files = pruned_soup(tmp_path, model, held)
    in_memory = pruned_soup(states, model, held)
    assert [Path(name).stem for name in from_files.ingredients] == in_memory.ingredients
    assert from_files.score == in_memory.score
    assert any(str(tmp_path) in note for note in from_files.notes)
    alone = {step.ingredient: step.single_score for step in in_memory.trace}
    again = pruned_soup(states, model, held, scores=alone, early_rejection=False)
    assert again.ingredients == in_memory.ingredients


def test_the_worst_goes_first_and_of_equals_the_one_given_last() -> None:
    model = mlp()
    states = pool(model, 4, spread=0.3)
    soup = pruned_soup(states, model, HeldOut(images()), scores=[0.5, 0.3, 0.5, 0.3], accept=">", min_delta=1.0)
    assert [step.index for step in soup.trace] == [3, 1, 2, 0]
    assert soup.ingredients == [f"checkpoints[{i}]" for i in range(4)]
    assert not any(step.accepted for step in soup.trace)


def test_the_last_one_stays_and_copies_are_noted() -> None:
    model = mlp()
    state = pool(model, 1, spread=0.3)[0]
    soup = pruned_soup({"one": state, "copy": state}, model, HeldOut(images()))
    assert soup.ingredients == ["one"]  # the same score without the other
    assert soup.trace[0].note == "same weights as one"
    alone = pruned_soup({"one": state}, model, HeldOut(images()))
    assert (alone.ingredients, alone.trace, alone.score) == (["one"], [], soup.score)


def test_models_that_score_nan_are_left_out_from_the_start() -> None:
    model = mlp()
    states = pool(model, 3, spread=0.3)
    states[1]["0.weight"][0, 0] = math.nan
    soup = pruned_soup(states, model, HeldOut(images()), "nll", accept=">", min_delta=9.0)
    assert soup.ingredients == ["checkpoints[0]", "checkpoints[2]"]
    assert soup.trace[0].note == "its own score is NaN: left out"
    assert soup.trace[0].ingredients_after == 2
    with pytest.raises(SoupError, match="every candidate scores NaN"):
        pruned_soup(states[1:2], model, HeldOut(images()), "nll")


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    states = pool(mlp(), 5, spread=0.3)
    torch.manual_seed(0)
    plain = pruned_soup(states, mlp(), HeldOut(images(), batch_size=32))
    forward = Interrupted()
    held = HeldOut(images(), forward, batch_size=32)
    soup, starts = forward.started_again(lambda: pruned_soup(states, mlp(), held, run=tmp_path / "run"), 9)
    assert starts > 2
    assert soup.ingredients == plain.ingredients
    assert soup.score == plain.score
    assert same_bits(soup.state_dict(), plain.state_dict())
    assert decisions(soup) == decisions(plain)
    assert soup.passes == plain.passes
    with pytest.raises(SoupError, match="another run is recorded"):
        pruned_soup(states, mlp(), held, run=tmp_path / "run", accept=">")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"accept": "="}, "accept"),
        ({"min_delta": -1}, "min_delta"),
        ({"passes": 0}, "passes"),
        ({"passes": 1.5}, "passes"),
        ({"scores": [1.0]}, "score"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_scored(options: dict[str, object], word: str) -> None:
    model = mlp()
    with pytest.raises(SoupError, match=word):
        pruned_soup(pool(model, 3, spread=0.3), model, HeldOut(images(), never), **options)


def test_an_error_names_what_was_scored() -> None:
    states = pool(mlp(), 3, spread=0.3)

    def forward(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        if torch.equal(model.state_dict()["0.weight"], plain_mean(states[1:])["0.weight"]):
            raise ValueError("odd weights")
        return model(batch[0]), batch[1]

    scores = {"a": 0.1, "b": 0.2, "c": 0.3}
    with pytest.raises(SoupError, match="scoring the soup without a failed: ValueError: odd weights") as caught:
        pruned_soup(
            dict(zip("abc", states, strict=True)),
            mlp(),
            HeldOut(images(), forward),
            scores=scores,
            early_rejection=False,
        )
    assert isinstance(caught.value.__cause__, ValueError)
