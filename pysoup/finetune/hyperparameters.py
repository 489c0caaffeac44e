"""What differs between ingredients, and the laws it is drawn from (paper, Appendix J.2.1, "random search")."""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import SoupError


@dataclass(frozen=True)
class Hyperparameters:
    """One point of a search.

    ``epochs`` is a count; ``label_smoothing`` is the mass spread over all classes; ``mixup`` is the alpha of
    Beta(alpha, alpha), 0 for none. ``augment_ops`` and ``augment_magnitude`` are RandAugment's N and M; both 0 mean
    the minimal augmentation. ``final_share`` is where the cosine decay ends, as a share of the learning rate: 0 as for
    the paper's CLIP models, 1 for a constant rate. ``seed`` decides the order of the data and every other random choice
    of the training.
    """

    learning_rate: float
    weight_decay: float = 0.0
    epochs: int = 10
    label_smoothing: float = 0.0
    mixup: float = 0.0
    augment_ops: int = 0
    augment_magnitude: int = 0
    final_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay", "mixup"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise SoupError(f"{name} must be finite and not negative", found=value)
        if not 0 <= self.label_smoothing <= 1:
            raise SoupError("label_smoothing is a probability", found=self.label_smoothing, expected="0 to 1")
        if not 0 <= self.final_share <= 1:
            raise SoupError("final_share is a share", found=self.final_share, expected="0 to 1")
        if self.epochs < 1 or self.augment_ops < 0 or self.augment_magnitude < 0:
            raise SoupError("epochs start at 1, augmentation at 0", found=self)

    def to_json(self) -> dict[str, Any]:
        """The fields, ready for JSON; ``Hyperparameters(**fields)`` reads them back."""
        return asdict(self)


@dataclass(frozen=True)
class Ranges:
    """The laws of a random search; the defaults are the paper's for CLIP ViT-B/32 (see :data:`PAPER`).

    A pair is the closed range of a uniform draw. Learning rate and weight decay are 10**u with u from the pair;
    epochs, ops and magnitude are integers. ``no_smoothing``, ``no_mixup`` and ``minimal_augmentation`` are the
    probabilities that the regulariser is off; ``label_smoothing`` and ``mixup`` are drawn from it otherwise.
    """

    log10_learning_rate: tuple[float, float] = (-6.0, -4.0)
    log10_weight_decay: tuple[float, float] = (-4.0, -0.2)
    epochs: tuple[int, int] = (4, 16)
    label_smoothing: tuple[float, float] = (0.0, 0.25)
    no_smoothing: float = 0.5
    mixup: tuple[float, float] = (0.0, 0.9)
    no_mixup: float = 0.5
    augment_ops: tuple[int, int] = (0, 2)
    augment_magnitude: tuple[int, int] = (0, 20)
    minimal_augmentation: float = 1 / 3
    final_share: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, tuple):
                if value[0] > value[1]:
                    raise SoupError(f"range {name} is empty", found=value, expected="(low, high)")
            elif not 0.0 <= value <= 1.0:
                raise SoupError(f"{name} is a probability", found=value, expected="0 to 1")


PAPER = Ranges()
"""The random search behind the paper's 72 CLIP ViT-B/32 models (Appendix J.2.1): learning rate 10**-U(4, 6), weight
decay 10**-U(0.2, 4), 4 to 16 epochs, label smoothing 0 or U(0, 0.25), mixup 0 or U(0, 0.9), minimal augmentation one
time in three or else RandAugment with M in 0..20 and N in 0..2."""


def sample_hyperparameters(n: int, seed: int = 0, ranges: Ranges = PAPER) -> list[Hyperparameters]:
    """Draw ``n`` points. Point i depends on ``seed``, i and ``ranges`` alone, so a longer search starts with a
    shorter one. Each point carries a training seed of its own."""
    if n < 1:
        raise SoupError("a search needs at least one point", found=n)
    return [_sample(random.Random(f"{seed}/{index}"), ranges) for index in range(n)]


def _sample(rng: random.Random, ranges: Ranges) -> Hyperparameters:
    # Every number is drawn, also where it is not used: a changed probability leaves the other draws as they were.
    learning_rate = 10 ** rng.uniform(*ranges.log10_learning_rate)
    weight_decay = 10 ** rng.uniform(*ranges.log10_weight_decay)
    epochs = rng.randint(*ranges.epochs)
    smooth, label_smoothing = rng.random() >= ranges.no_smoothing, rng.uniform(*ranges.label_smoothing)
    mix, mixup = rng.random() >= ranges.no_mixup, rng.uniform(*ranges.mixup)
    augment = rng.random() >= ranges.minimal_augmentation
    ops, magnitude = rng.randint(*ranges.augment_ops), rng.randint(*ranges.augment_magnitude)
    seed, final_share = rng.getrandbits(31), rng.uniform(*ranges.final_share)
    return Hyperparameters(
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        epochs=epochs,
        label_smoothing=label_smoothing if smooth else 0.0,
        mixup=mixup if mix else 0.0,
        augment_ops=ops if augment else 0,
        augment_magnitude=magnitude if augment else 0,
        final_share=final_share,
        seed=seed,
    )
