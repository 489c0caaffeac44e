"""Fine-tuned models of one sweep, and what each says to every test sample."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pysoup import HeldOut, open_checkpoint, score_logits
from pysoup.checkpoint import save_state_dict
from pysoup.errors import SoupError
from pysoup.evaluate import as_heldout, run_evaluation
from pysoup.record import Record, read_record

Correct = dict[str, Tensor]
"""By test set: which samples are right, bool [N]."""
_KEY = "identity"


@dataclass(frozen=True)
class Ingredient:
    """One fine-tuned model: its weights in ``path``, and the record of its training."""

    path: Path
    record: Record


class Pool:
    """The ingredients of one sweep in ``folder``, and ``task``'s model and data.

    The logits of single models on the test sets are kept in ``folder/tests``: ensembles are made of them, and a run
    that goes on need not compute them again. The first test set is the one that models are compared on, the others are
    its shifts. Raises :class:`SoupError` if a run is missing.
    """

    def __init__(self, task: Any, folder: Path, count: int) -> None:
        self.folder = folder
        self.model: nn.Module = task.model()
        forward = getattr(task, "forward", None)
        self.heldout: HeldOut = as_heldout(task.heldout(), forward)
        self.tests = {name: as_heldout(data, forward) for name, data in task.tests().items()}
        self.ingredients = [self._ingredient(index, count) for index in range(count)]
        self.start = folder / "start" / "start.safetensors"

    @property
    def paths(self) -> list[Path]:
        return [ingredient.path for ingredient in self.ingredients]

    @property
    def labels(self) -> dict[str, Tensor]:
        """By test set, int64 [N]."""
        return {
            name: torch.cat([batch["labels"] if isinstance(batch, Mapping) else batch[-1] for batch in data.batches()])
            for name, data in self.tests.items()
        }

    def ranked(self) -> list[int]:
        """Numbers of the ingredients from the best held-out score down, ties in the given order."""
        scores = [ingredient.record.score for ingredient in self.ingredients]
        return sorted(range(len(scores)), key=lambda index: -scores[index])

    def load(self, weights: Path | Mapping[str, Tensor]) -> None:
        """The model gets these weights."""
        self.model.load_state_dict(open_checkpoint(weights).state_dict() if isinstance(weights, Path) else weights)

    def correct_now(self) -> Correct:
        """Of what the model holds."""
        return self.correct(self._logits_now())

    def correct(self, logits: Mapping[str, Tensor]) -> Correct:
        found: Correct = {}
        for name, labels in self.labels.items():
            scores = score_logits(logits[name], labels, k=(1,), per_sample=("correct",), nll=False)
            assert scores.correct is not None
            found[name] = scores.correct[0]
        return found

    def ensemble_logits(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The mean of these models' logits for every test set, f32 [N, C]."""
        members = [self.logits(index) for index in indices]
        return {name: torch.stack([member[name] for member in members]).mean(0) for name in self.tests}

    def logits(self, index: int) -> dict[str, Tensor]:
        """What one ingredient says to every test sample, f32 [N, C] by test set; from the file if it is there."""
        path, record = self.ingredients[index].path, self.ingredients[index].record
        file = self.folder / "tests" / path.name
        identity = self._identity(record)
        if file.exists():
            known = open_checkpoint(file)
            if known.metadata.get(_KEY) == identity:
                return dict(known.state_dict())
        self.load(path)
        logits = self._logits_now()
        file.parent.mkdir(exist_ok=True)
        save_state_dict(logits, file, metadata={_KEY: identity}, overwrite=True)
        return logits

    def _logits_now(self) -> dict[str, Tensor]:
        found = {}
        for name, data in self.tests.items():
            parts: list[Tensor] = []

            def keep(logits: Tensor, _: Tensor, parts: list[Tensor] = parts) -> None:
                parts.append(logits.float().cpu())

            run_evaluation(self.model, data, watch=keep)
            found[name] = torch.cat(parts)
        return found

    def _identity(self, record: Record) -> str:
        content = [record.weights, *(f"{name} {data.fingerprint}" for name, data in self.tests.items())]
        return hashlib.sha256("\n".join(content).encode()).hexdigest()

    def _ingredient(self, index: int, count: int) -> Ingredient:
        path = self.folder / f"model_{index:02d}.safetensors"
        record = read_record(path) if path.exists() else None
        if record is None:
            raise SoupError(f"ingredient {index} of {count} is not there yet: --stage train makes it", file=path)
        return Ingredient(path, record)
