"""The order that early rejection looks at held-out samples in, and data of which only whole batches can be moved."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from score_tables import Plain
from soup_models import images, mlp, plain_mean, pool
from torch import Tensor, nn

from pysoup.evaluate import HeldOut, margins, nll, top_k
from pysoup.soups import greedy_soup, hardest
from pysoup.soups.hardest import Hardness, arranged


def watched(heldout: HeldOut, answers: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> Hardness:
    """After passes of models that gave these (logits, labels), a list for each batch."""
    hardness = Hardness(heldout)
    for model in answers:
        watch = hardness.watch()
        for logits, labels in model:
            watch(logits, labels)
    return hardness


def numbered(samples: int, batch_size: int) -> HeldOut:
    return HeldOut((torch.arange(samples), torch.zeros(samples, dtype=torch.int64)), batch_size=batch_size)


def test_margins_are_the_label_less_the_best_other() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [1.0, 1.0, 0.0], [math.nan, 0, 0], [5.0, 1.0, 2.0]])
    found = margins(logits.bfloat16(), torch.tensor([0, 1, 1, 2, -100]))
    assert found[[0, 1, 2, 4]].tolist() == [1.0, -2.0, 0.0, math.inf]
    assert math.isnan(found[3])


def test_samples_are_ordered_by_the_sum_over_models_ties_as_they_were() -> None:
    heldout = numbered(6, 4)
    one = torch.tensor([[1.0, 0], [0, 3], [2, 0], [0, 3], [9, 0], [0, 1]])
    two = torch.tensor([[1.0, 0], [5, 0], [0, 2], [5, 0], [0, 1], [1, 0]])
    labels = torch.zeros(6, dtype=torch.int64)
    split = lambda t: list(zip(t.split(4), labels.split(4), strict=True))  # noqa: E731
    # Margins 2, 2, 0, 2, 8, 0.
    order = watched(heldout, [split(one), split(two)]).order()
    assert order.tolist() == [2, 5, 0, 1, 3, 4]
    reordered = arranged(heldout, order)
    assert [batch[0].tolist() for batch in reordered.batches()] == [[2, 5, 0, 1], [3, 4]]


def test_one_broken_model_does_not_hide_the_others() -> None:
    heldout = numbered(3, 3)
    labels = torch.zeros(3, dtype=torch.int64)
    good = [(torch.tensor([[2.0, 0], [0, 0], [1, 0]]), labels)]
    broken = [(torch.full((3, 2), math.nan), labels)]
    assert watched(heldout, [broken, good, broken]).order().tolist() == [1, 2, 0]


def test_labels_that_do_not_count_come_last() -> None:
    heldout = numbered(4, 3)
    logits, labels = torch.tensor([[1.0, 0], [9, 0], [0, 1], [2, 0]]), torch.tensor([0, -100, 0, -100])
    answers = [list(zip(logits.split(3), labels.split(3), strict=True))]
    assert watched(heldout, answers).order().tolist() == [2, 0, 1, 3]


def test_labels_and_logits_may_come_in_one_buffer() -> None:
    hardness = Hardness(numbered(4, 2))
    watch, logits, labels = hardness.watch(), torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    for rows, own in (([[4.0, 0, 0], [0, 3, 0]], [0, 1]), ([[0.0, 0, 2], [1, 0, 0]], [2, 0])):
        watch(logits.copy_(torch.tensor(rows)), labels.copy_(torch.tensor(own)))
    assert hardness.order().tolist() == [3, 2, 1, 0]


def test_margins_are_summed_where_logits_would_take_too_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    heldout = numbered(3, 2)
    labels = torch.zeros(3, dtype=torch.int64)
    split = lambda rows: list(zip(torch.tensor(rows).split(2), labels.split(2), strict=True))  # noqa: E731
    # Averaged logits say 0, 1, 2; averaged margins 1, 0, 2: the other answers of sample 0 differ.
    one = split([[0.0, 5, 0], [0, 3, 0], [9, 0, 0]])
    two = split([[0.0, 0, 1], [0, 3.2, 0], [9, 0, 0]])
    assert watched(heldout, [one, two]).order().tolist() == [1, 0, 2]
    three = split([[0.0, 0, 4], [0, 3.2, 0], [9, 0, 0]])
    assert watched(heldout, [one, three]).order().tolist() == [1, 0, 2]
    monkeypatch.setattr(hardest, "_MOST_BYTES", 3 * 3 * 4 - 1)
    assert watched(heldout, [one, three]).order().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("samples", "own", "expected"),
    [(40, 256, 16), (40, 8, 8), (5_000, 256, 79), (5_000, 64, 64), (100_000, 256, 256)],
)
def test_batches_are_a_64th_of_the_set_within_limits(samples: int, own: int, expected: int) -> None:
    reordered = arranged(numbered(samples, own), torch.arange(samples).flip(0))
    sizes = [len(batch[0]) for batch in reordered.batches()]
    assert set(sizes[:-1]) <= {expected}
    assert sum(sizes) == samples
    assert next(iter(reordered.batches()))[0][0] == samples - 1


class Tagger(nn.Module):
    """Logits for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))


def sentences() -> list[tuple[Tensor, Tensor]]:
    """Batches of three, each of its own length; a fifth of the labels is padding."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for number in range(24):
        ids = torch.randint(0, 20, (3, 4 + number % 5), generator=generator)
        # Easy batches and hard ones.
        noise = torch.rand(ids.shape, generator=generator) < 0.05 * (number % 8)
        labels = torch.where(noise, torch.randint(0, 5, ids.shape, generator=generator), ids % 5)
        labels[torch.rand(ids.shape, generator=generator) < 0.2] = -100
        batches.append((ids, labels))
    return batches


def per_token(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return model(batch[0]).flatten(0, 1), batch[1].flatten()


def taggers(count: int) -> list[dict[str, Tensor]]:
    """Around one that was fitted to the rule."""
    torch.manual_seed(3)
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(60):
        ids = torch.arange(20)[None]
        loss = nn.functional.cross_entropy(model(ids)[0], ids[0] % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return pool(model, count, spread=1.5, seed=3)


@pytest.mark.parametrize("metric", [top_k(1, ignore_index=-100), nll(ignore_index=-100)])
def test_token_labels_are_looked_at_in_whole_batches_the_worst_first(metric: object) -> None:
    states, batches = taggers(9), sentences()
    model = Tagger()

    def answers(state: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        model.load_state_dict(state)
        with torch.no_grad():
            return [per_token(model, batch) for batch in batches]

    def errors(state: dict[str, Tensor]) -> list[float]:
        counted = [(logits[labels >= 0].argmax(1), labels[labels >= 0]) for logits, labels in answers(state)]
        return [(guess != labels).double().mean().item() for guess, labels in counted]

    share = torch.tensor([errors(state) for state in states], dtype=torch.float64).float().sum(0)
    order = share.argsort(descending=True, stable=True).tolist()

    def score(members: list[int]) -> float:
        accumulator = metric.accumulator()
        found = answers(plain_mean([states[i] for i in members]))
        for number in order:
            accumulator.update(*found[number])
        return accumulator.value()

    alone = [score([i]) for i in range(9)]
    sign = 1.0 if metric.direction == "max" else -1.0
    tries = sorted(range(9), key=lambda i: -sign * alone[i])
    expected = Plain(score, sign).run(tries, alone)
    soup = greedy_soup(states, Tagger(), HeldOut(batches, per_token), metric)
    assert [step.index for step in soup.trace] == tries
    assert [step.index for step in soup.trace if step.accepted] == expected.kept
    assert soup.score == expected.best
    early = [step for step in soup.trace if step.bound is not None]
    assert early
    counted = sum(int((labels >= 0).sum()) for _, labels in batches)
    assert all(step.samples < step.of == counted for step in early)


class Retrieval(nn.Module):
    """The logits of a sample are of all that are in its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(6, 4, bias=False)
        self.key = nn.Linear(6, 4, bias=False)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        return self.query(queries) @ self.key(keys).T


def test_samples_that_are_the_classes_of_their_batch_stay_in_it() -> None:
    torch.manual_seed(0)
    model = Retrieval()
    model.key.weight.data.copy_(model.query.weight)
    states = pool(model, 9, spread=0.4)
    x = torch.randn(320, 6)
    batches = [(part, part + 0.1 * torch.randn(20, 6)) for part in x.split(20)]

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return model(*batch), torch.arange(len(batch[0]))

    soup = greedy_soup(states, model, HeldOut(batches, forward))
    plain = greedy_soup(states, model, HeldOut(batches, forward), early_rejection=False)
    assert (soup.ingredients, soup.score) == (plain.ingredients, plain.score)
    early = [step for step in soup.trace if step.bound is not None]
    assert early
    assert all(step.samples % 20 == 0 for step in early)


def test_metrics_without_a_bound_run_in_full_on_the_given_batches() -> None:
    torch.manual_seed(0)
    seen: list[int] = []

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        seen.append(len(batch[1]))
        return model(batch[0]), batch[1]

    soup = greedy_soup(pool(mlp(), 6, spread=1.0), mlp(), HeldOut(images(), forward, batch_size=50), "macro_f1")
    assert seen == [50, 50, 20] * 11
    assert soup.passes == {"used": 11.0, "saved": 0.0}
    assert all(step.bound is None for step in soup.trace)


def test_few_candidates_are_not_worth_an_ordering() -> None:
    torch.manual_seed(0)
    states, data = pool(mlp(), 3, spread=1.0), HeldOut(images(), batch_size=50)
    assert greedy_soup(states[:2], mlp(), data).passes == {"used": 3.0, "saved": 0.0}
    assert greedy_soup(states, mlp(), data, scores=[0.1, 0.2, 0.3]).passes == {"used": 2.0, "saved": 0.0}
    # The best one is scored once more, on the new batches.
    assert [greedy_soup(states[:k], mlp(), data).trace[0].samples for k in (1, 2, 3)] == [0, 0, 120]
