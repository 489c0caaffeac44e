"""One run of a sweep: from the start to weights, scores and records on disk."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._version import __version__
from ..checkpoint import save_state_dict
from ..checkpoint.output.publish import remove_stale
from ..errors import OutputError, SoupError
from ..evaluate import Forward, HeldOut, Margins, Metric, run_evaluation
from ..fingerprint import fingerprint_file
from ..progress import StepProgress
from ..record import Record, margins_path, record_path, write_margins, write_record
from .averages import WeightAverage
from .hyperparameters import Hyperparameters
from .layout import Snapshot
from .train import Augment, fine_tune


@dataclass
class Trainer:
    """Makes one ingredient after the other in ``model``, each from ``start``.

    ``identity`` is what tells this sweep's runs from others'; it goes into every record.
    """

    model: nn.Module
    start: Mapping[str, Tensor]
    data: Any
    heldout: HeldOut
    metric: Metric
    augment: Augment | None
    forward: Forward | None
    autocast: torch.dtype | None
    identity: Mapping[str, Any]

    def train(
        self, index: int, hp: Hyperparameters, wanted: Sequence[Snapshot], progress: StepProgress | None = None
    ) -> Record:
        """Fine-tune, and save all that is ``wanted`` (see :func:`.layout.snapshots`); returns the last one's record.

        Whatever goes wrong, nothing of the run is left. ``progress`` gets the steps done.
        """
        # First of all: weights and scores of different runs must never stand side by side.
        discard(wanted)
        for folder in {snapshot.path.parent for snapshot in wanted}:
            make_directory(folder)
        try:
            return self._train(index, hp, wanted, progress)
        except BaseException:
            discard(wanted)
            raise

    def score(self, snapshot: Snapshot, known: Record) -> Record:
        """Score saved weights anew, where the held-out set or the metric is another than on record."""
        from ..checkpoint import open_checkpoint

        self.model.load_state_dict(open_checkpoint(snapshot.path).state_dict())
        score, margins = self._score()
        record = Record(
            score=score,
            metric=self.metric.name,
            direction=self.metric.direction,
            heldout=heldout_fingerprint(self.heldout),
            weights=known.weights,
            hyperparameters=known.hyperparameters,
            seed=known.seed,
            seconds=known.seconds,
            details=known.details,
        )
        _write(snapshot.path, record, margins)
        return record

    def _train(
        self, index: int, hp: Hyperparameters, wanted: Sequence[Snapshot], progress: StepProgress | None
    ) -> Record:
        self.model.load_state_dict(self.start)
        len(self.heldout)  # read now: reading may draw random numbers, or fail
        averages = {s.ema: WeightAverage(self.model, s.ema) for s in wanted if s.ema is not None}
        records: list[Record] = []
        saving = 0.0
        began = time.perf_counter()

        def after_step(step: int, total: int) -> None:
            nonlocal saving
            for average in averages.values():
                average.update()
            if progress is not None:
                progress(step, total, "")
            paused = time.perf_counter()
            for snapshot in wanted:
                if snapshot.step(total) == step:
                    seconds = paused - began - saving
                    details = {"run": index, "step": step, "steps": total, "epoch": round(step / total * hp.epochs, 4)}
                    average_now = None if snapshot.ema is None else averages[snapshot.ema].state_dict()
                    records.append(self._save(snapshot, hp, details, seconds, average_now))
            saving += time.perf_counter() - paused

        fine_tune(
            self.model,
            self.data,
            hp,
            augment=self.augment,
            forward=self.forward,
            autocast=self.autocast,
            after_step=after_step,
        )
        return records[-1]

    def _save(
        self,
        snapshot: Snapshot,
        hp: Hyperparameters,
        details: Mapping[str, Any],
        seconds: float,
        average: Mapping[str, Tensor] | None,
    ) -> Record:
        training = None
        if average is not None:
            training = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
            self.model.load_state_dict(average)
        try:
            score, margins = self._score()
            metadata = {"format": "pt", "pysoup.hyperparameters": json.dumps(hp.to_json())}
            save_state_dict(self.model.state_dict(), snapshot.path, metadata=metadata, overwrite=True)
        finally:
            if training is not None:
                self.model.load_state_dict(training)
        record = Record(
            score=score,
            metric=self.metric.name,
            direction=self.metric.direction,
            heldout=heldout_fingerprint(self.heldout),
            weights=fingerprint_file(snapshot.path),
            hyperparameters=hp.to_json(),
            seed=hp.seed,
            seconds=round(seconds, 3),
            details={**details, "ema": snapshot.ema, "identity": dict(self.identity), **self._place(snapshot)},
        )
        _write(snapshot.path, record, margins)
        return record

    def _score(self) -> tuple[float, Tensor | None]:
        device = next(self.model.parameters()).device
        # A data set that shuffles must not shift the random numbers of the training.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            margins = Margins(self.heldout)
            score = run_evaluation(self.model, self.heldout, self.metric, watch=margins.watch).score
        if score is None or not math.isfinite(score):
            raise SoupError(f"the held-out {self.metric.name} is not finite", found=score)
        return score, margins.values()

    def _place(self, snapshot: Snapshot) -> dict[str, Any]:
        device = next(self.model.parameters()).device
        return {
            "bytes": snapshot.path.stat().st_size,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "pysoup": __version__,
        }


def discard(wanted: Sequence[Snapshot]) -> None:
    """Remove all files of a run, records first."""
    for snapshot in wanted:
        record_path(snapshot.path).unlink(missing_ok=True)
    for snapshot in wanted:
        snapshot.path.unlink(missing_ok=True)
        margins_path(snapshot.path).unlink(missing_ok=True)
        for path in (snapshot.path, record_path(snapshot.path), margins_path(snapshot.path)):
            remove_stale(path)


def _write(path: Path, record: Record, margins: Tensor | None) -> None:
    """The record last: it vouches for what is beside it."""
    if margins is None:
        margins_path(path).unlink(missing_ok=True)
    else:
        write_margins(path, margins.numpy())
    write_record(path, record)


def heldout_fingerprint(heldout: HeldOut) -> str | None:
    """None where the data cannot have one: then nobody can know later whether a score was taken on the same."""
    try:
        return heldout.fingerprint
    except SoupError:
        return None


def make_directory(directory: Path) -> None:
    """Raises OutputError where it cannot be made."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the directory: {error.strerror}", file=directory) from error
