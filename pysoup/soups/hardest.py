"""Which held-out samples decide soonest: the hardest, by the averaged logits of models that were scored anyway.

A soup errs about where the ensemble of its ingredients does, so a candidate's errors come early in this order, and with
them the proof that it cannot be accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import SoupError
from ..evaluate import HeldOut, SampleRows, margins

if TYPE_CHECKING:
    from .journal import Journal

_MOST_BYTES = 2 << 30
"""Of the sum of logits; where it would have more, margins are summed instead, one number a sample."""
_SMALLEST_BATCH, _MOST_BATCHES = 16, 64
_KINDS = ("logits", "margins", "errors")
_LABELS = "labels"


class Hardness:
    """What tells hard samples from easy ones, summed over models, batch by batch, where the models' outputs are.

    By the kind of data that is

    - ``logits``, one array ``[N, C]`` (f32, or f64 for f64 models); a NaN counts 0, so that one bad model does not hide
      the others;
    - ``margins`` ``[N]``, where that array would have more than 2 GiB, or some were recorded by the training;
    - ``errors``, the share of rows of each batch that are wrong, where the rows of the logits are not the samples (one
      for each token, say), or the samples cannot be put together anew.
    """

    def __init__(self, heldout: HeldOut) -> None:
        self._heldout = heldout
        self.models = 0
        """How many have been summed."""
        self._unread: Journal | None = None
        self._kind = ""
        self._rows: SampleRows | None = None
        self._sums: list[Tensor] = []
        self._labels: list[Tensor] = []

    def watch(self) -> Callable[[Tensor, Tensor], None]:
        """For one pass of one model over the held-out set: takes the logits and labels of each batch in turn."""
        self._read()
        first, self.models = self.models == 0, self.models + 1
        batch = 0

        def take(logits: Tensor, labels: Tensor) -> None:
            nonlocal batch
            self._check_kind(logits, batch)
            part = self._part(logits.detach(), labels.detach()).nan_to_num(0.0, torch.inf, -torch.inf)
            if first:
                self._sums.append(part)
                if self._kind == "logits":
                    self._labels.append(labels.detach().clone())  # a forward may give all of them in one buffer
            else:
                self._sums[batch] = self._sums[batch].to(part.device).add_(part)
            batch += 1

        return take

    def take_margins(self, recorded: Sequence[Tensor]) -> None:
        """Begin with the sum of these, one ``[N]`` for each model, in place of a pass for each."""
        if recorded:
            self.models, self._kind = len(recorded), "margins"
            total = torch.stack(list(recorded)).nan_to_num(0.0, torch.inf, -torch.inf).sum(0)
            self._sums = list(torch.split(total, self._heldout.samples))

    def order(self) -> Tensor:
        """Positions of samples, or of batches where samples cannot be moved, hardest first: int64 on the CPU.

        Ties keep the order they had. NaN comes first: nothing is known of those.
        """
        self._read()
        keys = self._sums
        if self._kind == "logits":
            keys = [margins(total, labels) for total, labels in zip(self._sums, self._labels, strict=True)]
        key = torch.cat(keys).cpu().double()
        if self._kind == "errors":
            key = -key
        return torch.sort(key.nan_to_num(-torch.inf, torch.inf, -torch.inf), stable=True).indices

    def save(self, journal: Journal) -> None:
        """Write the sum, if any, down beside the one before, which is needed until this one's score is recorded."""
        if not self.models:
            return
        if self.models == 1 and self._labels:
            journal.save_array(_LABELS, _whole(self._labels))
        journal.save_array(f"{self._kind}-{self.models}", _whole(self._sums))

    @property
    def arrays(self) -> list[str]:
        """The names that :meth:`save` gave to what is needed to go on from here."""
        return [_LABELS, *(f"{kind}-{self.models}" for kind in _KINDS)]

    def resume(self, journal: Journal, models: int) -> None:
        """Go on from the sum over so many models, which is read when it is needed."""
        self.models, self._unread = models, journal

    def _read(self) -> None:
        """Raises :class:`SoupError` where the sum to go on from is not there."""
        journal, self._unread = self._unread, None
        if journal is None:
            return
        for kind in _KINDS:
            saved, labels = journal.load_array(f"{kind}-{self.models}"), journal.load_array(_LABELS)
            if saved is None or (kind == "logits" and labels is None):
                continue
            self._kind = kind
            sizes = [1] * len(self._heldout) if kind == "errors" else self._heldout.samples
            self._sums = list(torch.split(saved, sizes))
            self._labels = list(torch.split(labels, sizes)) if kind == "logits" and labels is not None else []
            return
        what = "the sum of logits that belongs to the recorded scores is missing; delete the directory to start anew"
        raise SoupError(what, file=journal.directory)

    def _check_kind(self, logits: Tensor, batch: int) -> None:
        self._rows = self._rows or SampleRows(self._heldout)
        by_sample = self._rows(logits, batch)
        if not self._kind and by_sample:
            nbytes = sum(self._heldout.samples) * logits.shape[1] * (8 if logits.dtype == torch.float64 else 4)
            self._kind = "logits" if nbytes <= _MOST_BYTES else "margins"
        elif self._kind != "errors" and not by_sample:
            self._kind, self._labels = "errors", []
            self._sums = [torch.zeros(1, device=logits.device) for _ in self._sums]

    def _part(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What one model's batch adds: new memory."""
        if self._kind == "logits":
            return logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self._kind == "margins":
            return margins(logits, labels)
        if logits.dim() != 2 or labels.shape != logits.shape[:1]:  # a metric of its own kind of output: no order
            return torch.zeros(1, device=logits.device)
        margin = margins(logits, labels)
        counted = margin != torch.inf
        return ((~(margin > 0) & counted).sum() / counted.sum().clamp(min=1)).view(1)


def arranged(heldout: HeldOut, order: Tensor) -> HeldOut:
    """The held-out set in the order of :meth:`Hardness.order`.

    Samples come in batches of a 64th of the set, at least 16 of them and no more than in the set's own batches: small
    enough to stop soon, large enough to be quick.
    """
    if not heldout.rebatchable or len(order) != sum(heldout.samples):
        return heldout.with_batches(order)
    size = max(-(-len(order) // _MOST_BATCHES), _SMALLEST_BATCH)
    return heldout.reordered(order, min(size, max(heldout.samples)))


def _whole(parts: list[Tensor]) -> Tensor:
    """Put together on the CPU: a second sum may be more than a device has room for."""
    return torch.cat([part.cpu() for part in parts])
