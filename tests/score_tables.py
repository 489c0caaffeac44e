"""Pools without real models: what every mixture of checkpoints answers on every held-out sample is drawn at random.

A checkpoint is a unit vector, so that the weights of a soup say who is in it and how often; and the greedy recipe, in
plain Python, over such a table.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from pysoup.evaluate import HeldOut, as_metric


@dataclass
class Table:
    """Logits ``[samples, classes]`` of every mixture, hard samples being hard for all; drawn when first asked for."""

    seed: int
    count: int
    samples: int
    classes: int
    batch_size: int
    nan: float = 0.0
    drawn: dict[tuple[float, ...], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.labels = torch.from_numpy(rng.integers(0, self.classes, self.samples))
        self.ease = rng.normal(0.8, 1.5, self.samples)

    def logits(self, shares: Sequence[float]) -> Tensor:
        """What the mixture with these shares answers: multiples of a half, so that there are ties."""
        key = tuple(round(share, 5) for share in shares)
        if key not in self.drawn:
            rng = np.random.default_rng([self.seed, *(int(share * 1e5) for share in key)])
            logits = rng.integers(-2, 3, (self.samples, self.classes)) / 2
            margin = self.ease + rng.normal(rng.normal(0.0, 0.3), 0.6, self.samples)
            own = self.labels.numpy()
            rows = np.arange(self.samples)
            logits[rows, own] = -9
            logits[rows, own] = logits.max(1) + np.round(2 * margin) / 2
            if rng.random() < self.nan:
                logits[rng.integers(self.samples), 0] = math.nan
            self.drawn[key] = torch.from_numpy(logits).float()
        return self.drawn[key]

    def of(self, members: Sequence[int]) -> Tensor:
        """The same by the ingredients, each as often as it counts."""
        return self.logits([members.count(i) / len(members) for i in range(self.count)])

    def model(self) -> nn.Module:
        return nn.Linear(self.count, 1, bias=False)

    def states(self) -> list[dict[str, Tensor]]:
        return [{"weight": row[None].clone()} for row in torch.eye(self.count)]

    def heldout(self) -> HeldOut:
        """Batches of (sample numbers, labels)."""
        return HeldOut((torch.arange(self.samples), self.labels), self.forward, batch_size=self.batch_size)

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.logits(model.weight.detach().view(-1).tolist())[batch[0]], batch[1]

    def score(self, members: Sequence[int], metric: str, batches: Sequence[Tensor]) -> float:
        """Counted by hand; the likelihood summed in the order of the batches."""
        if metric == "nll":
            logits = self.of(members)
            accumulator = as_metric("nll").accumulator()
            for rows in batches:
                accumulator.update(logits[rows], self.labels[rows])
            return accumulator.value()
        return sum(self.right(members, metric)) / self.samples

    def right(self, members: Sequence[int], metric: str) -> list[bool]:
        """For each sample, whether its label is among the k largest logits, of equal ones the first."""
        k = 1 if metric == "accuracy" else int(metric.removeprefix("top"))
        found = []
        for row, label in zip(self.of(members).tolist(), self.labels.tolist(), strict=True):
            ranked = sorted(range(self.classes), key=lambda c: (-row[c], c))
            found.append(not any(map(math.isnan, row)) and label in ranked[:k])
        return found

    def hardest_first(self, members: Sequence[int]) -> list[Tensor]:
        """The batches that early rejection is to use, from the summed logits of these models alone."""
        if {len(rows) for rows in self.as_given()} == {self.classes}:
            return self.worst_first(members)
        total = np.zeros((self.samples, self.classes), np.float32)
        for member in members:
            total += np.nan_to_num(self.of([member]).numpy(), nan=0.0)
        margin = []
        for row, label in zip(total, self.labels.tolist(), strict=True):
            margin.append(row[label] - max(np.delete(row, label)))
        order = sorted(range(self.samples), key=lambda i: margin[i])
        size = min(max(math.ceil(self.samples / 64), 16), self.batch_size)
        return [torch.tensor(order[start : start + size]) for start in range(0, self.samples, size)]

    def worst_first(self, members: Sequence[int]) -> list[Tensor]:
        """Whole batches, as where classes could be the samples of a batch, by their share of errors."""
        share = np.zeros(len(self.as_given()), np.float32)
        for member in members:
            for number, rows in enumerate(self.as_given()):
                wrong = 0
                for row, label in zip(self.of([member])[rows].tolist(), self.labels[rows].tolist(), strict=True):
                    wrong += any(map(math.isnan, row)) or row[label] <= max(row[:label] + row[label + 1 :])
                share[number] += np.float32(wrong) / np.float32(len(rows))
        order = sorted(range(len(share)), key=lambda i: -share[i])
        return [self.as_given()[i] for i in order]

    def as_given(self) -> list[Tensor]:
        return list(torch.arange(self.samples).split(self.batch_size))


@dataclass
class Plain:
    """The recipe with every average scored in full."""

    score: Callable[[list[int]], float]
    sign: float
    strict: bool = False
    min_delta: float = 0.0
    passes: int = 1
    replacement: bool = False
    limit: int | None = None

    def run(self, order: Sequence[int], alone: Sequence[float] | None) -> Plain:
        """``alone``: the scores of single models, NaN ones being left out; ``None``: not known."""
        self.kept: list[int] = []
        self.best: float | None = None
        # Who, for how many ingredients before, the score of the soup with it, and the verdict.
        self.trials: list[tuple[int, int, float, bool]] = []
        tries = [i for i in order if alone is None or not math.isnan(alone[i])]
        for number in range(self.passes):
            before = len(self.kept)
            for i in tries:
                if self.limit is not None and len(self.kept) >= self.limit:
                    return self
                if number and i in self.kept and not self.replacement:
                    continue
                self._try(i)
            if len(self.kept) == before:
                break
        return self

    def _try(self, i: int) -> None:
        new = self.score([*self.kept, i])
        accepted = not math.isnan(new)
        if accepted and self.best is not None:
            threshold = self.sign * self.best + self.min_delta
            accepted = self.sign * new > threshold if self.strict else self.sign * new >= threshold
        self.trials.append((i, len(self.kept), new, accepted))
        if accepted:
            self.kept.append(i)
            self.best = new


def tables(first: int, count: int) -> Iterator[tuple[Table, random.Random]]:
    """``count`` small tables of many kinds, each with the source of what else is drawn for it."""
    for seed in range(first, first + count):
        rng = random.Random(seed)
        yield (
            Table(
                seed,
                count=rng.randint(1, 8),
                samples=rng.randint(1, 30),
                classes=rng.randint(3, 6),
                batch_size=rng.choice([2, 3, 5, 8, 40]),
                nan=rng.choice([0.0, 0.0, 0.3]),
            ),
            rng,
        )
