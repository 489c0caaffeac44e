"""Scores recorded beside checkpoints by their training, where they are of these weights and this held-out set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checkpoint import Checkpoint
from ..errors import SoupError
from ..evaluate import HeldOut, Metric
from ..fingerprint import fingerprint_file
from ..record import Record, read_margins, read_record
from .candidates import Candidate


def recorded_scores(
    candidates: Sequence[Candidate], heldout: HeldOut, metric: Metric, contents: Sequence[str] = ()
) -> tuple[list[float | None], list[str]]:
    """The recorded score of each candidate, ``None`` where there is none to be trusted, and what should be known.

    A record counts if it is of the same metric, and the fingerprints of the held-out set and of the checkpoint's bytes
    are those of now. ``contents`` are the latter, if they are known.
    """
    found = [_record(candidate, metric) for candidate in candidates]
    data = _fingerprint(heldout) if any(found) else None
    scores = [
        None if known is None else _trusted(*known, data, content)
        for known, content in zip(found, contents or [""] * len(found), strict=True)
    ]
    count = sum(score is not None for score in scores)
    if not count:
        return scores, []
    which = "every checkpoint" if count == len(scores) else f"{count} of {len(scores)} checkpoints"
    return scores, [f"the score of {which} alone is the one recorded beside it: same weights, same held-out data"]


def recorded_margins(candidates: Sequence[Candidate], scores: Sequence[float | None], heldout: HeldOut) -> list[Tensor]:
    """What is recorded beside the checkpoints whose ``scores`` are: how clearly each is right about each sample."""
    if not heldout.rebatchable:
        return []
    samples = sum(heldout.samples)
    files = [c.source for c, score in zip(candidates, scores, strict=True) if score is not None]
    found = [read_margins(file.path, samples) for file in files if isinstance(file, Checkpoint)]
    return [torch.from_numpy(margins) for margins in found if margins is not None]


def _record(candidate: Candidate, metric: Metric) -> tuple[Checkpoint, Record] | None:
    """The candidate's file and what is recorded beside it, if that is of this metric."""
    source = candidate.source
    # A nested file's weights are one of several; of a function, the name says too little. With patterns, the model that
    # is scored is another one: it has tensors of its own.
    if not isinstance(source, Checkpoint) or source.entry_name or metric.make is None or candidate.names:
        return None
    record = read_record(source.path)
    if record is None or (record.metric, record.direction) != (metric.name, metric.direction):
        return None
    return source, record


def _trusted(file: Checkpoint, record: Record, data: str | None, content: str) -> float | None:
    """The recorded score, if the fingerprints are those of now. The one of the file last: all of it is read."""
    if data is None or record.heldout != data:
        return None
    return record.score if record.weights == (content or fingerprint_file(file)) else None


def _fingerprint(heldout: HeldOut) -> str | None:
    try:
        return heldout.fingerprint
    except SoupError:  # of data that has none
        return None
