"""Model Stock in a live model (Jang et al. 2024, arXiv 2403.19522)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..averager import Averager
from ..evaluate import HeldOut, MetricLike, as_heldout, as_metric, run_evaluation
from ..mixture import Mixture
from ..names import NameFilter, Patterns
from ..progress import StepProgress
from ..stock import check_count, stock_ratios, stock_row
from .candidates import (
    CheckpointLike,
    Checkpoints,
    check_pool,
    check_separate,
    names_of,
    naming,
    nonfinite_note,
    open_candidates,
    read_heldout,
)
from .snapshot import Snapshot
from .soup import Soup


@dataclass
class StockSoup(Soup):
    """A soup of Model Stock: ``ratios`` has t for each tensor, ``cosines`` the mean cosine that it follows from.

    The first ingredient is the start; ``weights`` are means over all elements.
    """

    ratios: dict[str, float] = field(default_factory=dict, repr=False)
    cosines: dict[str, float] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "ratios": self.ratios, "cosines": self.cosines}


def model_stock(
    start: CheckpointLike,
    checkpoints: Checkpoints,
    model: nn.Module,
    heldout: HeldOut | Any | None = None,
    metric: MetricLike = "accuracy",
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    entry: str | None = None,
    integers: str = "auto",
    memory: str | int = "64MiB",
    threads: int | None = None,
    progress: StepProgress | None = None,
) -> StockSoup:
    """Write ``(1 - t) start + t mean(checkpoints)`` into ``model``, with a t of its own for each tensor, and score it.

    ``start`` is what all were fine-tuned from. ``t = N cos / (1 + (N - 1) cos)``, where cos is the mean cosine between
    the offsets of pairs from the start: see :func:`pysoup.stock.stock_ratio`. Two models suffice. No data is needed;
    ``heldout`` is scored where it is given. Files are read twice, each time through ``memory`` bytes of buffers. The
    other arguments and errors are as in :func:`uniform_soup`.
    """
    resolved, names = as_metric(metric), NameFilter.of(include, exclude)
    candidates, notes = open_candidates(_with_start(start, checkpoints), model, entry, names)
    check_count(len(candidates) - 1)
    check_separate(candidates, model)
    check_pool(Averager(model, **names_of(candidates), integers=integers), candidates, running=False)
    data = None if heldout is None else as_heldout(heldout)
    if data is not None:
        read_heldout(data)
    started = time.perf_counter()
    sources = [(candidate.name, candidate.source) for candidate in candidates]
    with naming("loading Model Stock", "the model may hold part of it", file=True):
        with Mixture(model, sources, **names_of(candidates), integers=integers, memory=memory, threads=threads) as one:
            chosen = one.names
            cosines, ratios = stock_ratios(dict(zip(chosen, one.gram().tolist(), strict=True)))
        rows = [stock_row(ratios[name], len(candidates) - 1) for name in chosen]
        with Mixture(
            model,
            sources,
            [[name] for name in chosen],
            **names_of(candidates),
            integers=integers,
            memory=memory,
            threads=threads,
        ) as mixture:
            nonfinite = mixture.write(rows)
            sizes = [tensor.numel() for tensor in mixture.mixed()]
    timing = {"read": 0.0, "mix": time.perf_counter() - started, "score": 0.0}
    score = None
    if data is not None:
        with naming("scoring the soup", "the model holds it"):
            result = run_evaluation(model, data, resolved)
        score, timing["score"] = result.score, result.seconds
        if progress is not None:
            progress(1, 1, "the soup")
    by_size = torch.tensor(sizes, dtype=torch.float64) / max(1, sum(sizes))
    return StockSoup(
        recipe="stock",
        ingredients=[candidate.name for candidate in candidates],
        weights=(by_size @ torch.tensor(rows, dtype=torch.float64)).tolist(),
        score=score,
        metric=None if score is None else resolved.name,
        direction=None if score is None else resolved.direction,
        trace=[],
        averager=Snapshot(model),
        options={**names_of(candidates)},
        notes=[*notes, *([nonfinite_note(nonfinite)] if nonfinite else [])],
        passes={"used": float(score is not None), "saved": 0.0},
        timing=timing,
        ratios=ratios,
        cosines=cosines,
    )


def _with_start(start: CheckpointLike, checkpoints: Checkpoints) -> Checkpoints:
    """One pool, the start first."""
    if isinstance(checkpoints, Mapping):
        return {"start": start, **checkpoints}
    if isinstance(checkpoints, Sequence) and not isinstance(checkpoints, (str, bytes)):
        return [start, *checkpoints]
    return [start, checkpoints]
