"""What ``pysoup evaluate`` scores: checkpoints, and the directories that recipes left, soups and ensembles alike."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from torch import nn

from ..averager import Averager
from ..checkpoint import Checkpoint
from ..errors import SoupError
from ..record import read_json, read_record
from ..soups.candidates import Candidate, Checkpoints, check_pool, naming, open_candidates
from ..soups.command import TRACE, WEIGHTS
from ..soups.identity import contents_of

EvaluatedLike = Checkpoints
_MOST_ADDITIONS = 1000
Kind = Literal["checkpoint", "soup", "ensemble"]


class Evaluated:
    """One model to score: a checkpoint, a soup's weights, or the ingredients whose logits are averaged.

    ``members`` has, of an ensemble, the position of each addition among ``candidates``.
    """

    def __init__(
        self,
        name: str,
        candidates: Sequence[Candidate],
        integers: str,
        trace: Mapping[str, Any] | None = None,
        members: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.candidates = list(candidates)
        self.integers = integers
        self.members = list(members)
        self.kind: Kind = "ensemble" if members else "checkpoint" if trace is None else "soup"
        self._trace = trace

    @property
    def files(self) -> list[Path]:
        """The weight files of what is in files."""
        return [file for c in self.candidates if isinstance(c.source, Checkpoint) for file in c.source.files]

    def load_into(self, model: nn.Module, load: Callable[..., Any]) -> None:
        candidate = self.candidates[0]
        load(model, [(candidate.name, candidate.source)], integers=self.integers)

    def facts(self, hashed: dict[str, Any]) -> dict[str, Any]:
        """Name, path, content and how it was made, for JSON; reads the bytes unless ``hashed`` knows them."""
        contents = contents_of(self.candidates, hashed)
        if self.members:
            listed = "\n".join(contents[member]["content"] for member in self.members)
            content, entry = hashlib.sha256(f"ensemble\n{listed}".encode()).hexdigest(), ""
            path: str | None = self.name
        else:
            content, entry = contents[0]["content"], contents[0]["entry"]
            path = contents[0].get("path")
        facts: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "path": None if path is None else os.path.abspath(path),
            "entry": entry,
            "content": content,
        }
        if self._trace is not None:
            return {**facts, **{key: self._trace.get(key) for key in ("recipe", "ingredients", "weights")}}
        source = self.candidates[0].source
        record = read_record(source.path) if isinstance(source, Checkpoint) else None
        if record is None or record.weights != content:
            return facts
        made = {"hyperparameters": dict(record.hyperparameters), "seed": record.seed}
        return {**facts, **made, "training_seconds": record.seconds}


def open_evaluated(
    checkpoints: EvaluatedLike, model: nn.Module, entry: str | None, integers: str, notes: list[str]
) -> list[Evaluated]:
    """Everything opened and checked against ``model`` by its headers: soups and checkpoints in order, ensembles last.

    Raises :class:`SoupError`, also where an ensemble's ingredient is not where its trace says.
    """
    plain, ensembles = _parted(checkpoints)
    evaluated: list[Evaluated] = []
    if plain or not ensembles:
        candidates, found = open_candidates(plain, model, entry)
        notes += found
        evaluated += [Evaluated(c.name, [c], integers, _trace_of(c)) for c in candidates]
    evaluated += [_ensemble(directory, model, entry, integers) for directory in ensembles]
    for item in evaluated:
        for candidate in item.candidates:
            check_pool(Averager(model, integers=integers), [candidate])
    return evaluated


def _parted(checkpoints: EvaluatedLike) -> tuple[Any, list[Path]]:
    """What :func:`open_candidates` takes, and the directories of ensembles, which have no weights."""
    if isinstance(checkpoints, (str, os.PathLike)):
        checkpoints = [checkpoints]
    if isinstance(checkpoints, Mapping) or not isinstance(checkpoints, Sequence):
        return checkpoints, []
    plain: list[Any] = []
    ensembles: list[Path] = []
    for item in checkpoints:
        if not isinstance(item, (str, os.PathLike)) or not os.path.isdir(item):
            plain.append(item)
            continue
        directory = Path(item)
        if _is_ensemble(directory):
            ensembles.append(directory)
            continue
        inside = sorted(child for child in directory.iterdir() if child.is_dir())
        found = [child for child in inside if _is_ensemble(child)]
        ensembles += found
        if len(found) < len(inside) or not found:
            plain.append(item)
    return plain, ensembles


def _is_ensemble(directory: Path) -> bool:
    trace = read_json(directory / TRACE)
    return trace is not None and "recipe" in trace and not (directory / WEIGHTS).exists()


def _trace_of(candidate: Candidate) -> dict[str, Any] | None:
    """How a soup came about, where the candidate is the weights that a recipe wrote."""
    source = candidate.source
    if not isinstance(source, Checkpoint) or source.files[0].name != WEIGHTS:
        return None
    trace = read_json(source.files[0].parent / TRACE)
    return trace if trace is not None and "recipe" in trace else None


def _ensemble(directory: Path, model: nn.Module, entry: str | None, integers: str) -> Evaluated:
    trace = read_json(directory / TRACE) or {}
    names, weights = trace.get("ingredients"), trace.get("weights")
    known = isinstance(names, list) and isinstance(weights, list) and len(weights) == len(names) > 0
    if not (known and all(isinstance(weight, (int, float)) and 0 < weight <= 1 for weight in weights or [])):
        raise SoupError("a trace without ingredients and their weights", file=directory / TRACE)
    names, weights = [str(name) for name in names or []], [float(weight) for weight in weights or []]
    with naming(f"opening the ingredients of {directory}", "nothing was scored", file=True):
        candidates, _ = open_candidates(names, model, entry)
    return Evaluated(str(directory), candidates, integers, trace, _additions(trace, names, weights))


def _additions(trace: Mapping[str, Any], names: Sequence[str], weights: Sequence[float]) -> list[int]:
    """The position of each addition among the ingredients: in the order of the trace, which decides about roundings."""
    steps = trace.get("trace")
    found = [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []
    kept = [step.get("ingredient") for step in found if step.get("accepted")]
    if kept and set(kept) == set(names) and len(set(names)) == len(names):
        return [names.index(name) for name in kept]
    shares = [Fraction(weight).limit_denominator(_MOST_ADDITIONS) for weight in weights]
    total = math.lcm(*(share.denominator for share in shares))
    return [index for index, share in enumerate(shares) for _ in range(int(share * total))]
