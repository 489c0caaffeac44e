"""How a learned soup is learned: the options, checked, and the settings of the papers by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...errors import SoupError
from ...evaluate.forward import name_with_bound
from ..given import whole_number
from .granules import Granularity

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(logits, labels)``: a scalar, the mean over the samples of a batch."""

PARAMETRIZATIONS = ("softmax", "hyperplane")
KEEP = ("last", "lowest")

PRESETS: dict[str, dict[str, Any]] = {
    # Wortsman et al. 2022, appendix I.
    "paper": {"granularity": "model", "parametrization": "softmax", "lr": 0.1, "epochs": 3},
    # learned_bylayer.py of the authors' code.
    "official-bylayer": {
        "granularity": "tensor",
        "parametrization": "softmax",
        "lr": 0.05,
        "epochs": 5,
        "batch": 256,
    },
    # Li et al. 2024 (arXiv 2407.03641), MEHL-Soup+.
    "mehl": {"granularity": "tensor", "parametrization": "hyperplane", "lr": 0.01, "epochs": 5, "blocks": 18},
}


@dataclass(frozen=True)
class Learning:
    """All that decides what is learned, beside checkpoints, model and data."""

    granularity: Granularity
    parametrization: str
    lr: float
    epochs: int
    temperature: bool = True
    weight_decay: float = 0.0
    batch: int | None = None
    blocks: int | None = None
    seed: int = 0
    keep: str = "last"
    score_epochs: bool = False

    @classmethod
    def of(cls, preset: str, **given: Any) -> Learning:
        """The settings ``preset``, with what is ``given`` (not None) in place of its own; raises :class:`SoupError`."""
        if preset not in PRESETS:
            raise SoupError("unknown preset", found=repr(preset), expected=", ".join(PRESETS))
        known = {field.name for field in fields(cls)}
        assert known >= given.keys()
        made = cls(**{**PRESETS[preset], **{name: value for name, value in given.items() if value is not None}})
        _one_of("parametrization", made.parametrization, PARAMETRIZATIONS)
        _one_of("keep", made.keep, KEEP)
        return cls(
            granularity=made.granularity,
            parametrization=made.parametrization,
            lr=_number("lr", made.lr, above=True),
            epochs=whole_number("epochs", made.epochs, least=1),
            temperature=bool(made.temperature),
            weight_decay=_number("weight_decay", made.weight_decay),
            batch=None if made.batch is None else whole_number("batch", made.batch, least=1),
            blocks=None if made.blocks is None else whole_number("blocks", made.blocks, least=1),
            seed=whole_number("seed", made.seed),
            keep=made.keep,
            score_epochs=bool(made.score_epochs) or made.keep == "lowest",
        )

    def to_json(self, loss: Loss | None) -> dict[str, Any]:
        """For traces and the identity of a run; of a loss of the user's own the name has to stand for it."""
        granularity = self.granularity
        if not isinstance(granularity, str):
            granularity = dict(granularity) if isinstance(granularity, Mapping) else list(granularity)
        return {
            **asdict(self),
            "granularity": granularity,
            "optimizer": "AdamW",
            "loss": "cross entropy" if loss is None else name_with_bound(loss, _name),
        }


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch, in nats, of classes or probabilities."""
    labels = labels.to(logits.device)
    return F.cross_entropy(logits, labels if labels.is_floating_point() else labels.long())


def _name(loss: Any) -> str:
    return str(getattr(loss, "__qualname__", type(loss).__qualname__))


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SoupError(f"unknown {name}", found=repr(value), expected=" or ".join(map(repr, known)))


def _number(name: str, value: Any, *, above: bool = False) -> float:
    number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    if not 0 <= number < math.inf or (above and number == 0):
        expected = f"{'above 0' if above else '0 or more'}, and finite"
        raise SoupError(f"{name} must be a number", found=repr(value), expected=expected)
    return number
