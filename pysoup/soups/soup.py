"""What a recipe returns: the averaged weights, and how they came about."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .._version import __version__
from ..checkpoint import save_state_dict
from .files import write_json

if TYPE_CHECKING:
    from torch import Tensor

    from ..evaluate import Direction


@dataclass(frozen=True)
class GreedyStep:
    """One candidate of a greedy recipe: what it scored, and whether it was kept.

    ``step`` counts from 0; ``index`` is the position in the list of checkpoints. ``single_score`` is the candidate's
    own score (``None`` if it was not needed), ``candidate_score`` that of the soup with it (``None`` if it was refused
    unseen or early), ``best_score_before`` that of the soup without it (``None`` while there is none). ``samples`` of
    ``of`` held-out samples were seen; where that was enough to refuse it, ``bound`` is the best score that was still
    possible. A pruned soup's step is ``accepted`` if its candidate was dropped; then ``candidate_score`` is that of the
    soup without it, ``best_score_before`` that with it. ``seconds`` is the time of the step, ``mix_seconds`` and
    ``score_seconds``, without the scoring of single models. ``round`` is that of a greedier soup, from 1; the first
    ingredient, those that were never tried and steps of other recipes have none.
    """

    step: int
    index: int
    ingredient: str
    single_score: float | None
    candidate_score: float | None
    best_score_before: float | None
    accepted: bool
    ingredients_after: int
    seconds: float
    samples: int = 0
    of: int = 0
    bound: float | None = None
    mix_seconds: float = 0.0
    score_seconds: float = 0.0
    note: str = ""
    round: int | None = None

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON; a score that JSON has no number for is the text ``float()`` reads back."""
        return {name: finite(value) for name, value in asdict(self).items()}


class Result(Protocol):
    """What has the weights of a soup: an :class:`Averager`, or a copy of them."""

    def result(self) -> dict[str, Any]:
        """New tensors."""


@dataclass
class Soup:
    """Averaged weights, the ingredients in the order of their addition, and their weights (they sum to one).

    ``score`` is on the held-out data (``None`` if there was none), under ``metric`` with its ``direction``; ``trace``
    has every step of a greedy recipe. ``notes`` has what no error says: what folders and patterns stand for, nested
    entries taken, what was left out of files, copies, names matched to the model's, NaN and infinities in the soup.
    ``passes`` counts passes over the held-out set, parts as parts: ``used``, and ``saved`` against the same recipe with
    every average scored in full. ``timing`` has the seconds of ``mix`` (reading and averaging), ``score``, and ``read``
    (asking for the next checkpoint's bytes, which passes while one is scored).

    The weights are kept as the running sum, apart from the model, so they stay what they are when the model goes on.
    """

    recipe: str
    ingredients: list[str]
    weights: list[float]
    score: float | None
    metric: str | None
    direction: Direction | None
    trace: list[GreedyStep]
    averager: Result = field(repr=False)
    kept: dict[str, Tensor | None] = field(default_factory=dict, repr=False)
    """Where patterns left tensors out of the average: the names in order, with the model's own tensors for these."""
    options: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    passes: dict[str, float] = field(default_factory=dict)
    timing: dict[str, float] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Tensor]:
        """The soup as new tensors, with the model's names, shapes and dtypes; rounded once.

        What was left out of the average is as it was in the model.
        """
        averaged = self.averager.result()
        if not self.kept:
            return dict(averaged)
        return {name: averaged[name] if own is None else own for name, own in self.kept.items()}

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the weights to a ``.safetensors``, ``.pt`` or ``.pth`` file, recipe, ingredients and weights with them.

        Written beside the target and renamed. An existing file is an :class:`OutputError` unless ``overwrite``.
        """
        save_state_dict(self.state_dict(), path, metadata=self._provenance(), overwrite=overwrite)

    def save_trace(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write :meth:`to_json` to a file, the same way."""
        write_json(path, self.to_json(), overwrite=overwrite)

    def to_json(self) -> dict[str, Any]:
        """Everything but the tensors, ready for JSON."""
        return {
            "pysoup": __version__,
            "recipe": self.recipe,
            "options": self.options,
            "metric": self.metric,
            "direction": self.direction,
            "score": finite(self.score),
            "ingredients": self.ingredients,
            "weights": self.weights,
            "notes": self.notes,
            "passes": self.passes,
            "timing": self.timing,
            "trace": [step.to_json() for step in self.trace],
        }

    def _provenance(self) -> dict[str, str]:
        """Text only, as safetensors metadata must be; ``format`` is what Hugging Face loaders ask for."""
        return {
            "format": "pt",
            "pysoup.version": __version__,
            "pysoup.recipe": self.recipe,
            "pysoup.ingredients": json.dumps(self.ingredients),
            "pysoup.weights": json.dumps(self.weights),
            **{f"pysoup.{key}": json.dumps(self.options[key]) for key in ("include", "exclude") if key in self.options},
        }


def finite(value: Any) -> Any:
    """``value``, or the text ``nan``, ``inf`` or ``-inf`` for floats that are not JSON."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
