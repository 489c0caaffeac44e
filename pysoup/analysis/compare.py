"""Is one model better than another, or is it chance? McNemar's test and a permutation test on each set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from .._version import __version__
from ..errors import SoupError
from ..evaluate import McNemar, Permutation, mcnemar, permutation_test
from ..evaluate.permutation import RESAMPLES
from ..load import average_into
from ..logits import score_logits
from ..progress import StepProgress
from ..soups.candidates import Checkpoints, check_separate, is_file, naming, open_candidates
from ..soups.soup import finite
from ..task import Task
from .orders import MEAN_SHIFT
from .sets import Sets
from .views import chosen
from .worth import Logits


@dataclass(frozen=True)
class Samples:
    """What one model does with each sample of a set."""

    correct: Tensor
    """bool ``[N]``."""
    nll: Tensor
    """f64 ``[N]``, nats; NaN or infinite where the logits are."""


@dataclass(frozen=True)
class SetComparison:
    """Two models on one set, or on the unweighted mean of the shifts. Differences are of the first less the second."""

    samples: int
    accuracy: tuple[float, float]
    nll: tuple[float, float]
    mcnemar: McNemar | None
    """Of what is right; ``None`` of a mean of sets, which has the permutation test."""
    accuracy_test: Permutation
    """The same question by permutations: on a single set the p-value is McNemar's."""
    nll_test: Permutation | None
    """``None`` where a likelihood is not finite."""

    def to_json(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "accuracy": list(self.accuracy),
            "nll": [finite(value) for value in self.nll],
            "mcnemar": None if self.mcnemar is None else asdict(self.mcnemar),
            "accuracy_test": asdict(self.accuracy_test),
            "nll_test": None if self.nll_test is None else asdict(self.nll_test),
        }


@dataclass(frozen=True)
class Comparisons:
    """``found[(i, j)][set]`` compares the models at these positions; the p-values are of single comparisons.

    Of several comparisons some come out small by chance: ``len(found)`` times the smallest one on a set bounds what it
    is worth (Bonferroni).
    """

    names: list[str]
    found: dict[tuple[int, int], dict[str, SetComparison]]
    resamples: int
    seed: int
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "pysoup": __version__,
            "analysis": "compare",
            "models": self.names,
            "resamples": self.resamples,
            "seed": self.seed,
            "comparisons": [
                {"first": i, "second": j, "sets": {name: one.to_json() for name, one in sets.items()}}
                for (i, j), sets in self.found.items()
            ],
            "notes": self.notes,
        }


def compare_models(
    task: Sets | str | Task,
    checkpoints: Checkpoints,
    *,
    all_pairs: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
    entry: str | None = None,
    integers: str = "auto",
    progress: StepProgress | None = None,
) -> Comparisons:
    """Compare the first of ``checkpoints`` with each other one (or ``all_pairs``) on every set, a pass for each model.

    Accuracy by McNemar's exact test, likelihood by :func:`pysoup.evaluate.permutation_test` with ``resamples`` and
    ``seed``; of two shifts or more also their unweighted mean. Test sets are reported: whoever picks a model by them
    has selected on them. Raises :class:`SoupError`.
    """
    sets = chosen(task if isinstance(task, Sets) else Sets(task))
    candidates, notes = open_candidates(checkpoints, sets.model, entry)
    check_separate(candidates, sets.model)
    outputs: dict[str, dict[str, Samples]] = {}
    for done, candidate in enumerate(candidates, 1):
        with naming(f"loading {candidate.name}", "the model may hold part of it", file=is_file(candidate)):
            average_into(sets.model, [(candidate.name, candidate.source)], integers=integers)
        name = candidate.name if candidate.name not in outputs else f"{candidate.name} ({done})"
        outputs[name] = samples_of(sets.logits())
        if progress is not None:
            progress(done, len(candidates), candidate.name)
    return compare_samples(outputs, sets.shifts, all_pairs=all_pairs, resamples=resamples, seed=seed, notes=notes)


def samples_of(logits: Logits) -> dict[str, Samples]:
    """What any logits by set, also an ensemble's, do with each sample."""
    found = {}
    for name, (one, labels) in logits.items():
        scores = score_logits(one, labels, k=1, per_sample=("correct", "nll"))
        assert scores.correct is not None and scores.nll_per_sample is not None  # noqa: PT018
        found[name] = Samples(scores.correct[0].cpu(), scores.nll_per_sample[0].cpu())
    return found


def compare_samples(
    outputs: Mapping[str, Mapping[str, Samples]],
    shifts: Sequence[str] = (),
    *,
    all_pairs: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> Comparisons:
    """The same of models whose outputs are there: name -> set -> samples, in one order for all models."""
    names = list(outputs)
    if len(names) < 2:
        raise SoupError("a comparison needs two models or more", found=len(names))
    every = list(combinations(range(len(names)), 2))
    models = [outputs[name] for name in names]
    how = {"resamples": resamples, "seed": seed}
    found: dict[tuple[int, int], dict[str, SetComparison]] = {}
    for i, j in every if all_pairs else every[: len(names) - 1]:
        one, other = models[i], models[j]
        found[i, j] = {name: _on_set(one[name], other[name], how) for name in one}
        if len(shifts) > 1:
            found[i, j][MEAN_SHIFT] = _on_mean([(one[name], other[name]) for name in shifts], how)
    return Comparisons(names, found, resamples, seed, list(notes))


def _on_set(one: Samples, other: Samples, how: dict[str, int]) -> SetComparison:
    return SetComparison(
        samples=len(one.correct),
        accuracy=(_mean(one.correct), _mean(other.correct)),
        nll=(_mean(one.nll), _mean(other.nll)),
        mcnemar=mcnemar(one.correct, other.correct),
        accuracy_test=permutation_test(one.correct, other.correct, **how),
        nll_test=_nll_test(one.nll, other.nll, how),
    )


def _on_mean(pairs: Sequence[tuple[Samples, Samples]], how: dict[str, int]) -> SetComparison:
    """Each sample is weighted so that the mean over all is the mean of the sets' means."""
    total = sum(len(one.correct) for one, _ in pairs)
    weights = [total / (len(pairs) * len(one.correct)) for one, _ in pairs]

    def weighted(what: str, side: int) -> Tensor:
        values = [getattr(pair[side], what).double() * weight for pair, weight in zip(pairs, weights, strict=True)]
        return torch.cat(values)

    right, nll = ([weighted(what, side) for side in (0, 1)] for what in ("correct", "nll"))
    return SetComparison(
        samples=total,
        accuracy=(_mean(right[0]), _mean(right[1])),
        nll=(_mean(nll[0]), _mean(nll[1])),
        mcnemar=None,
        accuracy_test=permutation_test(*right, **how),
        nll_test=_nll_test(nll[0], nll[1], how),
    )


def _nll_test(one: Tensor, other: Tensor, how: dict[str, int]) -> Permutation | None:
    if not bool(torch.isfinite(one).all()) or not bool(torch.isfinite(other).all()):
        return None
    return permutation_test(one, other, **how)


def _mean(values: Tensor) -> float:
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        return math.nan
    return math.fsum(values.double().tolist()) / len(values)
