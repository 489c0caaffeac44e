"""What differs between ingredients, and the laws it is drawn from (paper, Appendix J.2.1, "random search")."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import SoupError

SCHEDULES = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class Hyperparameters:
    """One point of a search: everything that may differ between two trainings from one start.

    ``epochs`` is a count and ``batch_size`` counts samples; data that comes in batches of its own keeps these.
    ``label_smoothing`` is the mass spread over all classes; ``mixup`` is the alpha of Beta(alpha, alpha), 0 for none.
    ``augment_ops`` and ``augment_magnitude`` are RandAugment's N and M; both 0 mean the minimal augmentation. The
    learning rate rises linearly over the share ``warmup`` of the steps, then follows ``schedule`` (``"cosine"``,
    ``"linear"`` or ``"constant"``) down to ``final_share`` of itself: 0 as for the paper's CLIP models, 1 for a
    constant rate. ``clip_norm`` limits the norm of the gradient; 0 does not. ``seed`` decides the order of the data and
    every other random choice of the training.
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
    batch_size: int = 64
    schedule: str = "cosine"
    warmup: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay", "mixup", "clip_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise SoupError(f"{name} must be finite and not negative", found=value)
        if not 0 <= self.label_smoothing <= 1:
            raise SoupError("label_smoothing is a probability", found=self.label_smoothing, expected="0 to 1")
        for name in ("final_share", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise SoupError(f"{name} is a share", found=getattr(self, name), expected="0 to 1")
        for name, least in (("epochs", 1), ("batch_size", 1), ("augment_ops", 0), ("augment_magnitude", 0)):
            if getattr(self, name) < least:
                raise SoupError(f"{name} starts at {least}", found=getattr(self, name))
        if self.schedule not in SCHEDULES:
            raise SoupError("unknown schedule", found=repr(self.schedule), expected=f"one of {', '.join(SCHEDULES)}")

    def to_json(self) -> dict[str, Any]:
        """The fields, ready for JSON; :meth:`from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Hyperparameters:
        """The point that :meth:`to_json` wrote. What is absent has its default, so records outlive new fields. Raises
        :class:`SoupError` for an unknown field or an impossible value."""
        unknown = sorted(content.keys() - {field.name for field in fields(cls)})
        if unknown or "learning_rate" not in content:
            raise SoupError("no hyperparameters", found=f"keys {', '.join(map(str, unknown or content))}")
        try:
            return cls(**content)
        except TypeError as error:
            raise SoupError(f"no hyperparameters: {error}") from error


@dataclass(frozen=True)
class Ranges:
    """The laws of a random search; the defaults are the paper's for CLIP ViT-B/32 (see :data:`PAPER`).

    A pair is the closed range of a uniform draw. Learning rate and weight decay are 10**u with u from the pair;
    epochs, ops and magnitude are integers. ``no_smoothing``, ``no_mixup``, ``no_decay`` and
    ``minimal_augmentation`` are the probabilities that the regulariser is off; ``label_smoothing``, ``mixup`` and the
    weight decay are drawn otherwise.
    ``batch_size`` is a list to choose from.
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
    batch_size: tuple[int, ...] = (64,)
    no_decay: float = 0.0

    def __post_init__(self) -> None:
        if not self.batch_size or min(self.batch_size) < 1:
            raise SoupError("batch_size is a list of sizes to choose from", found=self.batch_size)
        for name, value in asdict(self).items():
            if name == "batch_size":
                continue
            if isinstance(value, tuple):
                if value[0] > value[1]:
                    raise SoupError(f"range {name} is empty", found=value, expected="(low, high)")
                # Rates and decays above 1 are of no use; numbers like these are rates themselves.
                if name.startswith("log10_") and value[0] >= 0 and value[1] > 0:
                    raise SoupError(f"{name} is a range of exponents of 10", found=value, expected=_exponents(*value))
            elif not 0.0 <= value <= 1.0:
                raise SoupError(f"{name} is a probability", found=value, expected="0 to 1")


def _exponents(low: float, high: float) -> str:
    """What was meant by a range that is none of exponents, if that can be guessed."""
    if not 0 < low <= high < 1:
        return "such as (-5, -3), for 1e-05 to 0.001"
    return f"({math.log10(low):.4g}, {math.log10(high):.4g}), if {low:g} to {high:g} is meant"


PAPER = Ranges()
"""The random search behind the paper's 72 CLIP ViT-B/32 models (Appendix J.2.1): learning rate 10**-U(4, 6), weight
decay 10**-U(0.2, 4), 4 to 16 epochs, label smoothing 0 or U(0, 0.25), mixup 0 or U(0, 0.9), minimal augmentation one
time in three or else RandAugment with M in 0..20 and N in 0..2."""

PAPER_TEXT = Ranges(
    log10_learning_rate=(-6.0, -3.0),
    no_decay=1.0,
    epochs=(2, 5),
    no_smoothing=1.0,
    no_mixup=1.0,
    minimal_augmentation=1.0,
    batch_size=(8, 16, 32, 64),
)
"""The random search behind the paper's 32 BERT and T5 models for each text task: learning rate log-uniform from 1e-6 to
1e-3, batches of 8, 16, 32 or 64, 2 to 5 epochs, no weight decay. The paper's linear decay and clipping at 1.0 are
``schedule="linear"`` and the default."""


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
    # What comes later is drawn later, so that a search with a seed stays what it was.
    batch_size, decay = rng.choice(ranges.batch_size), rng.random() >= ranges.no_decay
    return Hyperparameters(
        learning_rate=learning_rate,
        weight_decay=weight_decay if decay else 0.0,
        epochs=epochs,
        label_smoothing=label_smoothing if smooth else 0.0,
        mixup=mixup if mix else 0.0,
        augment_ops=ops if augment else 0,
        augment_magnitude=magnitude if augment else 0,
        final_share=final_share,
        seed=seed,
        batch_size=batch_size,
    )
