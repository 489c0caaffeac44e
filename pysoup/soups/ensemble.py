"""Ensembles: models whose logits are averaged, and the ensemble of all checkpoints (paper, Table 2)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from .._version import __version__
from ..errors import SoupError
from ..evaluate import Direction, HeldOut, Metric, MetricLike, as_heldout, as_metric
from ..names import NameFilter, Patterns
from ..progress import StepProgress
from .candidates import Checkpoints, Pool, check_separate, names_of, naming, open_pool
from .collected import collect_logits
from .files import write_json
from .logit_cache import LatestLogits
from .logit_sum import LogitSum
from .model_logits import UNSCORED, ModelLogits
from .opening import open_recipe
from .soup import GreedyStep, finite


@dataclass
class Ensemble:
    """Models whose logits are averaged, in the order of their first addition, and their weights (they sum to one).

    ``score`` is on the held-out data (``None`` if there was none), under ``metric`` with its ``direction``; ``trace``
    has every step of a greedy recipe; ``notes``, ``passes`` and ``timing`` are as in :class:`Soup`. ``added`` has the
    position among ``ingredients`` of each addition. The models are the checkpoints: it lasts as long as these do.
    """

    recipe: str
    ingredients: list[str]
    weights: list[float]
    score: float | None
    metric: str
    direction: Direction
    trace: list[GreedyStep]
    added: list[int] = field(repr=False)
    models: ModelLogits = field(repr=False)
    scored_by: Metric = field(repr=False)
    options: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    passes: dict[str, float] = field(default_factory=dict)
    timing: dict[str, float] = field(default_factory=dict)

    def logits(
        self,
        model: nn.Module,
        heldout: HeldOut | Any,
        *,
        memory: int | str | None = None,
        progress: StepProgress | None = None,
    ) -> Tensor:
        """The averaged logits ``[N, C]`` on any data, on the CPU, in f32 (f64 where the models give that).

        Each ingredient is written into ``model`` and takes one pass. The sum is in the order of addition and multiplied
        with one by their number, so on the data that selected the ensemble these are the logits that were scored, bit
        for bit. Beside the sum, memory holds one model's logits; those of an ingredient that was added several times
        are kept in ``memory`` bytes (``None``: no limit) or in a temporary file.
        """
        return self.models.mean(model, as_heldout(heldout), self.added, memory=memory, progress=progress)[0]

    def probabilities(
        self,
        model: nn.Module,
        heldout: HeldOut | Any,
        *,
        memory: int | str | None = None,
        progress: StepProgress | None = None,
    ) -> Tensor:
        """The probabilities ``[N, C]`` of the classes: the softmax of :meth:`logits`, in the same dtype."""
        return self.logits(model, heldout, memory=memory, progress=progress).softmax(-1)

    def evaluate(
        self,
        model: nn.Module,
        heldout: HeldOut | Any,
        metric: MetricLike | None = None,
        *,
        memory: int | str | None = None,
        progress: StepProgress | None = None,
    ) -> float:
        """The score of :meth:`logits` on any data, by the ensemble's own metric or another one."""
        return self.scored(model, heldout, metric, memory=memory, progress=progress)[1]

    def scored(
        self,
        model: nn.Module,
        heldout: HeldOut | Any,
        metric: MetricLike | None = None,
        *,
        memory: int | str | None = None,
        progress: StepProgress | None = None,
    ) -> tuple[Tensor, float]:
        """:meth:`logits` and :meth:`evaluate`, by the same passes."""
        score = partial(_score, self.scored_by if metric is None else as_metric(metric))
        # What does not fit the metric must not show after the last model's pass: the first one's logits tell, too.
        logits, labels = self.models.mean(
            model, as_heldout(heldout), self.added, memory=memory, progress=progress, check=score
        )
        return logits, score(logits, labels)

    def save_trace(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write :meth:`to_json` beside ``path`` and rename; an existing file is an :class:`OutputError` unless
        ``overwrite``."""
        write_json(path, self.to_json(), overwrite=overwrite)

    def to_json(self) -> dict[str, Any]:
        """Everything but the models, ready for JSON."""
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


def logit_ensemble(
    checkpoints: Checkpoints,
    model: nn.Module,
    heldout: HeldOut | Any | None = None,
    metric: MetricLike = "accuracy",
    *,
    run: str | os.PathLike[str] | None = None,
    include: Patterns = (),
    exclude: Patterns = (),
    entry: str | None = None,
    integers: str = "auto",
    progress: StepProgress | None = None,
) -> Ensemble:
    """The ensemble of all ``checkpoints``: the average of their logits, scored on ``heldout``, if given.

    Each takes one pass in ``model``, which afterwards holds the last one, its training flags as before. Memory holds
    the sum of logits and those of one model. ``run`` is a directory that keeps each model's logits on ``heldout``, so
    that a run that was killed goes on from there; :func:`greedy_ensemble` of the same checkpoints and data finds them
    there too. ``entry`` and ``integers`` are as in :func:`uniform_soup`.

    Raises :class:`SoupError` (among others :class:`IncompatibleError`) naming the checkpoint; an error of the model,
    the data or the metric is its cause.
    """
    resolved = as_metric(metric)
    if heldout is None and run is not None:
        raise SoupError("run keeps what was found out about the held-out data", found="no heldout", expected="one")
    pool = open_pool(checkpoints, model, entry, NameFilter.of(include, exclude))
    check_separate(pool, model)
    ensemble = _of_all(pool, resolved, integers)
    if heldout is None:
        ensemble.models.check(model)
        return ensemble
    opened = open_recipe(
        pool, model, heldout, UNSCORED, early_rejection=False, entry=None, integers=integers, progress=progress
    )
    scorer, cache = opened.scorer, LatestLogits(len(pool))
    total = LogitSum(cache, resolved)
    collect_logits(scorer, cache, resolved, run, total.add)
    assert cache.labels is not None
    ensemble.score = _score(resolved, total.mean_(), cache.labels)
    ensemble.notes = scorer.notes
    ensemble.passes = {"used": scorer.passes_used, "saved": 0.0}
    ensemble.timing = scorer.timing
    return ensemble


def _score(metric: Metric, logits: Tensor, labels: Tensor) -> float:
    with naming("scoring the ensemble", "the model holds one of its ingredients"):
        accumulator = metric.accumulator()
        accumulator.update(logits, labels)
        return accumulator.value()


def _of_all(candidates: Pool, metric: Metric, integers: str) -> Ensemble:
    """Not scored."""
    count = len(candidates)
    return Ensemble(
        recipe="ensemble",
        ingredients=[candidate.name for candidate in candidates],
        weights=[1 / count] * count,
        score=None,
        metric=metric.name,
        direction=metric.direction,
        trace=[],
        added=list(range(count)),
        models=ModelLogits(candidates, integers),
        scored_by=metric,
        options=dict(names_of(candidates)),
        notes=candidates.notes,
    )
