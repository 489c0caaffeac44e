"""The steps of a learned soup, batch after batch, written down now and then: a killed run goes on from there."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SoupError
from ...evaluate import HeldOut, Metric, run_evaluation
from ...evaluate.scoring import device_of, evaluating, precision
from ...progress import StepProgress
from ..candidates import naming, nonfinite_note
from ..journal import Journal
from .blocks import Blocks
from .options import Learning, Loss
from .result import LearnedEpoch
from .weights import Coefficients

SAVE_SECONDS = 30.0
"""The state of a run is saved at the end of each epoch, and in between after so long."""


class LearnedRun:
    """Learns the coefficients; made with them as they are at the beginning.

    With a ``journal`` it begins where that ended; each state there is followed by the losses up to it. ``losses`` has
    one a step, ``epochs`` what became of each.
    """

    def __init__(
        self,
        model: nn.Module,
        heldout: HeldOut,
        metric: Metric,
        learning: Learning,
        loss: Loss,
        coefficients: Coefficients,
        blocks: Blocks,
        *,
        journal: Journal | None,
        progress: StepProgress | None,
    ) -> None:
        self.losses: list[float] = []
        self.epochs: list[LearnedEpoch] = []
        self.seconds = 0.0
        """Of the passes: reading, mixing, the model forward and backward, and the scores of epochs."""
        self._model = model
        self._heldout = heldout
        self._metric = metric
        self._learning = learning
        self._loss = loss
        self._coefficients = coefficients
        self._blocks = blocks
        self._journal = journal
        self._progress = progress
        self._device = device_of(model)
        self.per_epoch = steps_per_epoch(heldout, learning.batch)
        self._sizes: list[int] = []
        self._lowest: tuple[float, Tensor] | None = None
        self._saved = 0
        self._saved_at = time.monotonic()
        self.resumed = self._resume()
        """How many steps were on record."""

    def run(self) -> None:
        """All steps that are left; then the coefficients are those to keep."""
        started = time.perf_counter()
        with evaluating(self._model):
            for epoch in range(len(self.epochs), self._learning.epochs):
                self._epoch(epoch)
        if self._learning.keep == "lowest" and self._lowest is not None:
            self._coefficients.set_values(self._lowest[1])
        self.seconds += time.perf_counter() - started

    def _epoch(self, epoch: int) -> None:
        done = len(self.losses) - epoch * self.per_epoch
        for batch in islice(self._batches(epoch), done, None):
            self._step(batch)
            if len(self.losses) % self.per_epoch and time.monotonic() - self._saved_at >= SAVE_SECONDS:
                self._save()
        self._end(epoch)
        self._save()

    def _batches(self, epoch: int) -> Iterator[Any]:
        """Another order in each epoch, the same in every process: the draws of one generator."""
        generator = torch.Generator().manual_seed(self._learning.seed)
        batch = self._learning.batch
        count = len(self._heldout) if batch is None else sum(self._heldout.samples)
        for _ in range(epoch + 1):
            order = torch.randperm(count, generator=generator)
        if batch is None:
            return self._heldout.with_batches(order).batches(self._device)
        return self._heldout.gathered(order, batch, self._device)

    def _step(self, batch: Any) -> None:
        step = len(self.losses)
        what = f"learning, step {step + 1}"
        mixed, weights_of = self._blocks.of_step(step)
        with (
            naming(what, "the model holds the mix of that step", file=True),
            mixed.differentiable(),
            precision(self._heldout.autocast, self._device) as full_precision,
        ):
            logits, labels = mixed(weights_of(), self._heldout.forward, batch)
            with full_precision():
                loss = self._loss(_scaled(logits, self._coefficients.beta), labels)
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                raise SoupError("the loss must be one number that depends on the logits", found=type(loss).__name__)
            value = float(loss.detach())
            if math.isfinite(value):
                self._coefficients.step(loss.reshape([]))
        is_whole = bool(torch.isfinite(self._coefficients.values).all())
        if not (math.isfinite(value) and is_whole):
            raise _diverged(step, value, self._learning.lr, mixed.nonfinite)
        self.losses.append(value)
        self._sizes.append(len(labels) if labels.dim() else 1)
        if self._progress is not None:
            total = self.per_epoch * self._learning.epochs
            self._progress(len(self.losses), total, f"epoch {step // self.per_epoch + 1}, loss {value:.4g}")

    def _end(self, epoch: int) -> None:
        losses, sizes = self.losses[-self.per_epoch :], self._sizes[-self.per_epoch :]
        loss = sum(value * size for value, size in zip(losses, sizes, strict=True)) / max(1, sum(sizes))
        heldout_loss, score = self._scored() if self._learning.score_epochs else (None, None)
        beta = float(self._coefficients.beta.detach())
        self.epochs.append(LearnedEpoch(epoch + 1, len(losses), loss, beta, heldout_loss, score))
        lowest = math.inf if self._lowest is None else self._lowest[0]
        if heldout_loss is not None and heldout_loss < lowest:
            self._lowest = (heldout_loss, self._coefficients.values)

    def _scored(self) -> tuple[float, float | None]:
        """Loss and score of the present weights on all of the held-out data, in one pass."""
        with torch.no_grad():
            self._blocks.whole.write(self._coefficients.weights())
        total, samples = torch.zeros([], dtype=torch.float64), 0

        def watch(logits: Tensor, labels: Tensor) -> None:
            nonlocal samples
            size = len(labels) if labels.dim() else 1
            total.add_(self._loss(_scaled(logits, self._coefficients.beta.detach()), labels).detach().cpu() * size)
            samples += size

        with naming("scoring an epoch", "the model holds its soup"):
            score = run_evaluation(self._model, self._heldout, self._metric, watch=watch).score
        return float(total) / max(1, samples), score

    def _save(self) -> None:
        """The state first, then the record that says so: after a kill in between, the state before it counts."""
        self._saved_at = time.monotonic()
        journal, step = self._journal, len(self.losses)
        if journal is None:
            return
        state = self._coefficients.state
        lowest = state[0] if self._lowest is None else self._lowest[1]
        journal.save_array(f"state-{step}", torch.cat([state, lowest.reshape(1, -1)]))
        journal.record(
            f"step:{step}",
            {
                "losses": self.losses[self._saved :],
                "sizes": self._sizes[self._saved :],
                "epochs": [asdict(epoch) for epoch in self.epochs],
                "lowest": None if self._lowest is None else self._lowest[0],
            },
        )
        self._saved = step
        journal.keep_arrays(f"state-{step}")

    def _resume(self) -> int:
        journal = self._journal
        keys = [] if journal is None else [key for key in journal.keys if key.startswith("step:")]
        if journal is None or not keys:
            return 0
        known: dict[str, Any] = {}
        for key in keys:
            known = journal.recall(key) or {}
            self.losses += known["losses"]
            self._sizes += known["sizes"]
        self._saved = len(self.losses)
        state = journal.load_array(f"state-{self._saved}")
        if state is None:
            what = "weights that belong to the recorded steps are missing; delete the directory to start anew"
            raise SoupError(what, file=journal.directory)
        *rows, lowest = state
        self._coefficients.set_state(torch.stack(rows))
        self.epochs = [LearnedEpoch(**epoch) for epoch in known["epochs"]]
        if known["lowest"] is not None:
            self._lowest = (known["lowest"], lowest)
        return self._saved


def steps_per_epoch(heldout: HeldOut, batch: int | None) -> int:
    """How many batches an epoch has. Reads the data."""
    return len(heldout) if batch is None else -(-sum(heldout.samples) // batch)


def _scaled(logits: Tensor, beta: Tensor) -> Tensor:
    """``beta * logits``, in f32 at least."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide * beta.to(wide.device)


def _diverged(step: int, loss: float, lr: float, nonfinite: list[str]) -> SoupError:
    if step == 0:
        where = nonfinite_note(nonfinite) or "all of its tensors are finite"
        what = f"the loss of the uniform soup, which learning begins with, has no gradient to follow: {where}"
        return SoupError(what, found=f"loss {loss:.4g}", expected="a finite one")
    what = f"the loss or its gradient is not finite at step {step + 1}: lower the learning rate"
    return SoupError(what, found=f"loss {loss:.4g} with lr {lr:g}", left="the model holds the mix of that step")
