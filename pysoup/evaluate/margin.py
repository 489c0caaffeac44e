"""How clearly a model is right about each held-out sample."""

from __future__ import annotations

import torch
from torch import Tensor

from .heldout import HeldOut


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit less the best other one, ``[N]``; infinite for labels that are no class, which do not count."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels = labels.to(wide.device, torch.int64)
    own = labels.clamp(0, wide.shape[1] - 1)[:, None]
    best_other = wide.scatter(1, own, -torch.inf).amax(1)
    margin = wide.gather(1, own).squeeze(1) - best_other
    return margin.where((labels >= 0) & (labels < wide.shape[1]), torch.inf)


class SampleRows:
    """Tells whether the rows of a model's logits are the samples of a held-out set, which can be moved one by one.

    They are not where there is a row for each token, say; nor are they taken for it where all batches have as many
    samples as there are classes: these may be the batch's own samples (retrieval), and fewer in a smaller batch.
    """

    def __init__(self, heldout: HeldOut) -> None:
        self._samples = heldout.samples if heldout.rebatchable else []
        self._size = self._samples[0] if len(set(self._samples)) == 1 else 0

    def __call__(self, logits: Tensor, batch: int) -> bool:
        by_sample = bool(self._samples) and logits.dim() == 2 and len(logits) == self._samples[batch]
        return by_sample and logits.shape[1] != self._size


class Margins:
    """The :func:`margins` of one model over a held-out set, collected in one pass: a ``watch`` of run_evaluation."""

    def __init__(self, heldout: HeldOut) -> None:
        self._heldout = heldout
        self._rows: SampleRows | None = None
        self._parts: list[Tensor] | None = []

    def watch(self, logits: Tensor, labels: Tensor) -> None:
        """Takes the output for the next batch; waits for no device."""
        self._rows = self._rows or SampleRows(self._heldout)
        if self._parts is None:
            return
        # Labels of another shape, as a probability for each class, are for metrics of their own.
        if not self._rows(logits, len(self._parts)) or labels.shape != logits.shape[:1]:
            self._parts = None
            return
        self._parts.append(margins(logits.detach(), labels.detach()))

    def values(self) -> Tensor | None:
        """f32 ``[N]`` on the CPU, in the order of the set; None where rows of the logits are not its samples."""
        return torch.cat(self._parts).float().cpu() if self._parts else None
