"""What a learned soup is: the soup, the weights of its granules, and how the loss went."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..soup import Soup, finite


@dataclass(frozen=True)
class LearnedEpoch:
    """One pass over the held-out data: the mean loss of its samples, each under the weights of its step, and beta after
    it. Where epochs are scored, ``heldout_loss`` (with beta) and ``score`` are those of the weights after it."""

    epoch: int
    steps: int
    loss: float
    beta: float
    heldout_loss: float | None = None
    score: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: finite(value) for name, value in asdict(self).items()}


@dataclass
class LearnedSoup(Soup):
    """A soup whose weights were learned on the held-out data.

    ``granules`` has the tensors of each granule by its name, ``granule_weights`` (f64 ``[G, K]``, rows with the sum 1)
    their weights, which are also ``weights_of(granule)``. ``weights`` has for each ingredient the mean over all
    parameters. ``beta`` is the scale of the logits that was learned with them; the soup's own logits are without it.
    ``losses`` has the loss of each step, ``epochs`` their means.
    """

    granules: dict[str, list[str]] = field(default_factory=dict, repr=False)
    granule_weights: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.float64), repr=False)
    beta: float = 1.0
    losses: list[float] = field(default_factory=list, repr=False)
    epochs: list[LearnedEpoch] = field(default_factory=list)

    def weights_of(self, granule: str) -> dict[str, float]:
        """The weight of each ingredient in ``granule``."""
        row = self.granule_weights[list(self.granules).index(granule)]
        return dict(zip(self.ingredients, row.tolist(), strict=True))

    def to_json(self) -> dict[str, Any]:
        """As of every soup, and what was learned."""
        rows = self.granule_weights.tolist()
        return {
            **super().to_json(),
            "beta": self.beta,
            "granules": [
                {"name": name, "tensors": tensors, "weights": row}
                for (name, tensors), row in zip(self.granules.items(), rows, strict=True)
            ],
            "epochs": [epoch.to_json() for epoch in self.epochs],
            "losses": self.losses,
        }

    def _provenance(self) -> dict[str, str]:
        rows = dict(zip(self.granules, self.granule_weights.tolist(), strict=True))
        return {**super()._provenance(), "pysoup.beta": repr(self.beta), "pysoup.granules": json.dumps(rows)}


def shares(granules: Mapping[str, list[str]], weights: Tensor, sizes: Mapping[str, int]) -> list[float]:
    """The mean weight of each ingredient over all parameters: ``sizes`` are those of the tensors."""
    counts = [sum(sizes[name] for name in tensors) for tensors in granules.values()]
    total = sum(counts) or 1
    by_size = torch.tensor(counts, dtype=torch.float64) / total
    return [float(value) for value in by_size @ weights]
