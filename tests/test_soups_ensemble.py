"""Ensembles against averages made in numpy, in the arithmetic that is promised: f32 sums in order, then one factor."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from score_tables import Table, tables
from soup_models import HuggingFaceStyle, Interrupted, encoded, images, mlp, never, pool, same_bits
from torch import Tensor, nn

from pysoup import Ensemble, HeldOut, Metric, OutputError, SoupError, greedy_ensemble, logit_ensemble
from pysoup.evaluate import top_k

TABLES = 80
pytestmark = pytest.mark.usefixtures("one_thread")


def mean_of(logits: Sequence[np.ndarray]) -> np.ndarray:
    """``scale * (sum + last)`` in f32, the sum in order."""
    total = logits[0].copy()
    for one in logits[1:]:
        total = total + one
    mean = total * np.float32(1.0 / len(logits))
    assert mean.dtype == np.float32
    return mean


def score_of(mean: np.ndarray, labels: np.ndarray, metric: str) -> float:
    own = mean[np.arange(len(labels)), labels]
    if metric == "nll":
        wide = mean.astype(np.float64)
        top = wide.max(1)
        return float((top + np.log(np.exp(wide - top[:, None]).sum(1)) - own).mean())
    if metric == "macro_f1":
        predicted = np.where(np.isnan(mean).any(1), -1, np.nan_to_num(mean, nan=-np.inf).argmax(1))
        each = []
        for c in range(mean.shape[1]):
            right = ((predicted == c) & (labels == c)).sum()
            both = (predicted == c).sum() + (labels == c).sum()
            each += [2 * right / both] if both else []
        return math.fsum(each) / len(each)
    k = 1 if metric == "accuracy" else int(metric.removeprefix("top"))
    # The rank rule: fewer than k classes are larger, or equal with a lower number; a NaN is wrong.
    lower = np.arange(mean.shape[1]) < labels[:, None]
    ahead = (mean > own[:, None]) | ((mean == own[:, None]) & lower)
    return int(((ahead.sum(1) < k) & ~np.isnan(mean).any(1)).sum()) / len(labels)


@dataclass
class PlainEnsemble:
    """Both selections by hand."""

    table: Table
    metric: str
    options: dict[str, object]

    def score(self, members: Sequence[int]) -> float:
        return score_of(mean_of([self.table.of([i]).numpy() for i in members]), self.table.labels.numpy(), self.metric)

    def accepts(self, new: float) -> bool:
        sign = -1.0 if self.metric == "nll" else 1.0
        threshold = sign * self.best + self.options["min_delta"]
        return sign * new > threshold if self.options["accept"] == ">" else sign * new >= threshold

    def run(self) -> PlainEnsemble:
        sign = -1.0 if self.metric == "nll" else 1.0
        count, again = self.table.count, self.options["replacement"]
        alone = [self.score([i]) for i in range(count)]
        usable = sorted((i for i in range(count) if not math.isnan(alone[i])), key=lambda i: (-sign * alone[i], i))
        limit = self.options["max_ingredients"] or count
        self.kept = usable[:1]
        if not usable:
            return self
        self.best = alone[usable[0]]
        tries = usable[1:]
        while True:
            before = len(self.kept)
            if self.options["select"] == "sorted":
                for i in tries:
                    if len(self.kept) < limit and self.accepts(self.score([*self.kept, i])):
                        self.best = self.score([*self.kept, i])
                        self.kept.append(i)
                tries = usable
            elif len(self.kept) < limit:
                left = [i for i in sorted(usable) if again or i not in self.kept]
                scores = {i: self.score([*self.kept, i]) for i in left}
                best = max(left, key=lambda i: (sign * scores[i], -i), default=None)
                if best is not None and self.accepts(scores[best]):
                    self.best = scores[best]
                    self.kept.append(best)
            if len(self.kept) in (before, limit) or (self.options["select"] == "sorted" and not again):
                return self


def drawn_options(rng: random.Random) -> dict[str, object]:
    replacement = rng.random() < 0.4
    return {
        "select": rng.choice(["sorted", "best"]),
        "replacement": replacement,
        "accept": rng.choice([">=", ">"]),
        "min_delta": rng.choice([0.0, 0.0, 0.02, 0.1]),
        "max_ingredients": rng.choice([2, 4, 9] if replacement else [None, None, 1, 3]),
    }


@pytest.mark.parametrize("metric", ["accuracy", "top2", "nll", "macro_f1"])
def test_the_greedy_ensemble_is_that_of_the_plain_recipe(metric: str) -> None:
    several = twice = 0
    for table, rng in tables(20000, TABLES):
        options, memory = drawn_options(rng), rng.choice([None, 0])
        plain = PlainEnsemble(table, metric, options).run()
        told = f"table {table.seed}: {options}"
        model = table.model()
        run = lambda: greedy_ensemble(table.states(), model, table.heldout(), metric, memory=memory, **options)  # noqa: B023, E731
        if not plain.kept:
            with pytest.raises(SoupError, match="every candidate scores NaN"):
                run()
            continue
        found = run()
        order = list(dict.fromkeys(plain.kept))
        assert found.ingredients == [f"checkpoints[{i}]" for i in order], told
        assert found.weights == [plain.kept.count(i) / len(plain.kept) for i in order], told
        assert [order[place] for place in found.added] == plain.kept, told
        # Likelihoods of the oracle are f64 throughout, counts are exact.
        assert found.score == (pytest.approx(plain.best, rel=1e-6) if metric == "nll" else plain.best), told
        assert [step.index for step in found.trace if step.accepted] == plain.kept, told
        averaged = found.logits(model, table.heldout(), memory=memory)
        expected = mean_of([table.of([i]).numpy() for i in plain.kept])
        assert np.array_equal(averaged.numpy(), expected, equal_nan=True), told
        assert found.evaluate(model, table.heldout()) == found.score, told
        several += len(order) > 1
        twice += len(order) < len(plain.kept)
    assert several > TABLES / 8
    assert twice > 3


def test_equal_logits_go_to_the_lowest_class_also_where_scaling_makes_them_equal() -> None:
    """Two f32 sums that differ in the last bit, and are the same number times f32(1/3)."""
    third = np.float32(1 / 3)
    low, high = next(
        (a, b)
        for a in np.arange(1.5, 2, 2**-23, dtype=np.float32)[:64]
        for b in [np.nextafter(a, np.float32(2))]
        if a * third == b * third
    )
    parts = np.array([[[low, high]], [[0, 0]], [[0, 0]]], np.float32)

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Parameter(torch.zeros(1, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.out.expand(len(x), 2)

    states = [{"out": torch.from_numpy(part)} for part in parts]
    held = HeldOut((torch.zeros(1, 1), torch.tensor([0])))
    assert greedy_ensemble(states[:2], Fixed(), held).ingredients == ["checkpoints[1]"]
    three = greedy_ensemble(states, Fixed(), held)
    assert three.ingredients == ["checkpoints[1]", "checkpoints[2]", "checkpoints[0]"]
    assert three.score == 1.0  # class 0 is the label
    assert three.logits(Fixed(), held).tolist() == [[low * third, low * third]]
    assert logit_ensemble(states, Fixed(), held).score == 1.0
    assert logit_ensemble(states[:2], Fixed(), held).score == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_other_dtypes_are_summed_in_f32_or_f64(dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    states = pool(model, 4, spread=0.2)
    x, labels = images()
    held = HeldOut((x.to(dtype), labels), batch_size=50)
    found = greedy_ensemble(states, model, held, replacement=True, max_ingredients=5, memory=1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    total = None
    with torch.no_grad():
        for place in found.added:
            model.load_state_dict(states[int(found.ingredients[place][12:-1])])
            model.eval()
            logits = torch.cat([model(part) for part in x.to(dtype).split(50)]).to(wide)
            total = logits if total is None else total + logits
    expected = total * torch.tensor(1 / len(found.added), dtype=wide)
    averaged = found.logits(model, held)
    assert averaged.dtype == wide
    assert torch.equal(averaged, expected)
    assert found.score == (expected.argmax(1) == labels).sum().item() / len(labels)


def test_the_whole_ensemble_averages_every_model() -> None:
    model = mlp()
    states = pool(model, 5, spread=0.3)
    x, labels = images()
    each = []
    with torch.no_grad():
        for state in states:
            model.load_state_dict(state)
            each.append(model.eval()(x).numpy())
    model.train()
    model[1].eval()
    expected = mean_of(each)
    found = logit_ensemble(states, model, HeldOut((x, labels)), "nll")
    assert [m.training for m in model] == [True, False, True, True]
    assert found.weights == [0.2] * 5
    assert found.score == pytest.approx(score_of(expected, labels.numpy(), "nll"), rel=1e-6)
    assert np.array_equal(found.logits(model, (x, labels)).numpy(), expected)
    assert same_bits(dict(model.state_dict()), states[-1])
    assert found.evaluate(model, (x, labels), "accuracy") == score_of(expected, labels.numpy(), "accuracy")
    unscored = logit_ensemble(states, model)
    assert unscored.score is None
    assert torch.equal(unscored.logits(model, (x, labels)), found.logits(model, (x, labels)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_probabilities_are_the_softmax_of_the_averaged_logits(dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    x, labels = images()
    held = HeldOut((x.to(dtype), labels))
    found = greedy_ensemble(pool(model, 4, spread=0.3), model, held, accept=">=", min_delta=0.0)
    logits = found.logits(model, held).double().numpy()
    odds = np.exp(logits - logits.max(1, keepdims=True))
    shares = found.probabilities(model, held)
    assert shares.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(shares.numpy(), odds / odds.sum(1, keepdims=True), rtol=2e-6)
    told = -shares.double()[torch.arange(120), labels].log().mean().item()
    assert found.evaluate(model, held, "nll") == pytest.approx(told, rel=1e-5)


def test_each_model_takes_one_pass_and_no_more() -> None:
    states = pool(mlp(), 4, spread=0.3)
    passes = [0]

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        passes[0] += 1
        return model(batch[0]), batch[1]

    held = HeldOut(images(), forward)
    found = greedy_ensemble(states, mlp(), held, select="best", replacement=True, max_ingredients=9)
    assert passes[0] == 4
    assert found.passes["used"] == 4
    found.logits(mlp(), held)
    assert passes[0] == 4 + len(found.ingredients)
    logit_ensemble(states, mlp(), held)
    assert passes[0] == 8 + len(found.ingredients)


def test_a_function_of_logits_and_ignored_labels_are_metrics_here_too() -> None:
    states = pool(mlp(), 4, spread=0.3)
    x, labels = images()
    labels = labels.where(torch.arange(120) % 5 > 0, -100)
    own = Metric(partial(nn.functional.cross_entropy, ignore_index=-100), direction="min", name="own")
    found = greedy_ensemble(states, mlp(), (x, labels), own)
    averaged = found.logits(mlp(), (x, labels))
    assert found.score == float(nn.functional.cross_entropy(averaged, labels, ignore_index=-100))
    assert found.score < min(step.single_score for step in found.trace)
    assert found.metric == "own"
    counted = greedy_ensemble(states, mlp(), (x, labels), top_k(2, ignore_index=-100))
    keep = labels >= 0
    averaged = counted.logits(mlp(), (x, labels))[keep].numpy()
    assert counted.score == score_of(averaged, labels[keep].numpy(), "top2")


def test_paths_folders_and_hugging_face_models_are_taken(tmp_path: Path) -> None:
    model = HuggingFaceStyle()
    for number, state in enumerate(pool(model, 3, spread=0.3)):
        save_file(state, tmp_path / f"{number}.safetensors")
    found = greedy_ensemble(tmp_path, model, HeldOut(encoded(), batch_size=50))
    again = greedy_ensemble([tmp_path / f"{i}.safetensors" for i in range(3)], model, HeldOut(encoded()))
    assert found.ingredients == again.ingredients
    assert found.score == again.score
    assert any(str(tmp_path) in note for note in found.notes)
    found.save_trace(tmp_path / "trace.json")
    with pytest.raises(OutputError):
        found.save_trace(tmp_path / "trace.json")
    told = json.loads((tmp_path / "trace.json").read_text())
    assert told == found.to_json()
    assert told["recipe"] == "greedy ensemble"
    assert len(told["trace"]) == 3


def test_copies_and_nan_are_noted() -> None:
    states = pool(mlp(), 2, spread=0.3)
    poisoned = {name: tensor.clone() for name, tensor in states[1].items()}
    poisoned["0.weight"][0, 0] = math.nan
    found = greedy_ensemble({"a": states[0], "nan": poisoned, "copy": states[0]}, mlp(), images(), "nll")
    notes = {step.ingredient: step.note for step in found.trace}
    assert notes["nan"] == "its own score is NaN: refused; NaN or infinity in tensor '0.weight'"
    assert notes["copy"] == "same weights as a"
    with pytest.raises(SoupError, match="every candidate scores NaN"):
        greedy_ensemble([poisoned], mlp(), images(), "nll")


def test_a_run_goes_on_where_it_was_stopped_and_serves_other_options(tmp_path: Path) -> None:
    states = pool(mlp(), 4, spread=0.3)
    forward = Interrupted(5)

    def make(**options: object) -> Ensemble:
        held = HeldOut(images(), forward, batch_size=60)
        return greedy_ensemble(states, mlp(), held, run=tmp_path / "run", **options)

    with pytest.raises(KeyboardInterrupt):
        make()
    forward.left = 4  # two of four models are there
    found = make()
    plain = greedy_ensemble(states, mlp(), HeldOut(images(), batch_size=60))
    assert (found.ingredients, found.score, found.passes) == (plain.ingredients, plain.score, plain.passes)
    assert forward.left == 0
    other = make(metric="nll", select="best", replacement=True, max_ingredients=5)
    assert (
        other.score
        == greedy_ensemble(
            states, mlp(), HeldOut(images(), batch_size=60), "nll", select="best", replacement=True, max_ingredients=5
        ).score
    )
    with pytest.raises(SoupError, match="another run is recorded"):
        greedy_ensemble(states[:3], mlp(), HeldOut(images(), forward, batch_size=60), run=tmp_path / "run")


@pytest.mark.parametrize("metric", ["accuracy", "nll", "macro_f1"])
def test_a_whole_ensemble_goes_on_where_it_was_stopped_and_shares_its_logits(metric: str, tmp_path: Path) -> None:
    states = pool(mlp(), 4, spread=0.3)
    forward = Interrupted(5)
    held = HeldOut(images(), forward, batch_size=60)
    plain = logit_ensemble(states, mlp(), HeldOut(images(), batch_size=60), metric)
    with pytest.raises(KeyboardInterrupt):
        logit_ensemble(states, mlp(), held, metric, run=tmp_path / "run")
    forward.left = 4  # two of four models are there
    found = logit_ensemble(states, mlp(), held, metric, run=tmp_path / "run")
    assert forward.left == 0
    assert (found.score, found.ingredients, found.passes) == (plain.score, plain.ingredients, plain.passes)
    assert found.notes == [f"went on with the run in {tmp_path / 'run'}: 2 scores were on record there"]
    again = logit_ensemble(states, mlp(), held, "top3", run=tmp_path / "run")
    assert again.score == plain.evaluate(mlp(), HeldOut(images()), "top3")
    some = greedy_ensemble(states, mlp(), held, metric, run=tmp_path / "run")
    assert some.score == greedy_ensemble(states, mlp(), HeldOut(images(), batch_size=60), metric).score
    with pytest.raises(SoupError, match="another run is recorded"):
        logit_ensemble(states[:3], mlp(), held, metric, run=tmp_path / "run")


def test_an_ensemble_that_is_not_scored_has_nothing_to_record(tmp_path: Path) -> None:
    with pytest.raises(SoupError, match="run keeps what was found out about the held-out data: found no heldout"):
        logit_ensemble(pool(mlp(), 2, spread=0.3), mlp(), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"accept": "="}, "accept"),
        ({"select": "worst"}, "selection"),
        ({"min_delta": -1}, "min_delta"),
        ({"max_ingredients": 0}, "max_ingredients"),
        ({"replacement": True}, "replacement needs max_ingredients"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_scored(options: dict[str, object], word: str) -> None:
    model = mlp()
    with pytest.raises(SoupError, match=word):
        greedy_ensemble(pool(model, 3, spread=0.3), model, HeldOut(images(), never), **options)


@pytest.mark.parametrize("recipe", [greedy_ensemble, logit_ensemble])
def test_an_error_names_the_checkpoint(recipe: object) -> None:
    states = pool(mlp(), 3, spread=0.3)

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if torch.equal(model.state_dict()["0.weight"], states[1]["0.weight"]):
            raise ValueError("odd weights")
        return model(batch[0]), batch[1]

    with pytest.raises(SoupError, match="b failed: ValueError: odd weights") as caught:
        recipe(dict(zip("abc", states, strict=True)), mlp(), HeldOut(images(), forward))
    assert isinstance(caught.value.__cause__, ValueError)
    other = pool(nn.Linear(6, 7), 1, spread=0.1)
    with pytest.raises(SoupError, match=r"\bd\b"):
        recipe({"a": states[0], "d": other[0]}, mlp(), HeldOut(images()))


def test_labels_that_fit_no_class_are_found_with_the_first_model() -> None:
    passes = [0]

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        passes[0] += 1
        return model(batch[0]), batch[1] + 3

    states = dict(zip("abcd", pool(mlp(), 4, spread=0.3), strict=True))
    with pytest.raises(SoupError, match=r"scoring a: the label of sample 4 is not a class .*found 7, expected 0 to 6"):
        greedy_ensemble(states, mlp(), HeldOut(images(), forward))
    assert passes[0] == 1
    with pytest.raises(SoupError, match="scoring a: the label of sample 4 is not a class"):
        logit_ensemble(states, mlp(), HeldOut(images(), forward))
    assert passes[0] == 2
    every = logit_ensemble(states, mlp())
    with pytest.raises(SoupError, match="scoring the ensemble: the label of held-out sample 4 is not a class"):
        every.evaluate(mlp(), HeldOut(images(), forward))
    assert passes[0] == 3


def test_models_of_different_shapes_of_logits_are_refused() -> None:
    states = pool(mlp(), 2, spread=0.3)

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        logits = model(batch[0])
        second = torch.equal(model.state_dict()["0.weight"], states[1]["0.weight"])
        return (logits[:, :5] if second else logits), batch[1] % 5

    for recipe in (greedy_ensemble, logit_ensemble):
        with pytest.raises(SoupError, match="same shape and dtype"):
            recipe(states, mlp(), HeldOut(images(), forward))
