"""The logits of single models over one held-out set, kept so that ensembles of any of them need no forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import IncompatibleError, SoupError
from ..evaluate.batch_file import BatchFile, Slot
from ..sizes import parse_size

if TYPE_CHECKING:
    from .journal import Journal

_LABELS = "model-labels"
Form = tuple[torch.Size, torch.dtype]


class LogitCache:
    """Logits ``[N, ...]`` of up to ``count`` models by number, on the CPU, in the dtype that the models gave them.

    ``memory`` is a budget in bytes (``"2GiB"``, or an integer; ``None``: no limit). Where the logits of all ``count``
    models do not fit, all go to a temporary file in ``TMPDIR``, mapped into memory; it has no name and goes with the
    process. One model's logits are held beside that while they come in.
    """

    def __init__(self, count: int, memory: int | str | None = None) -> None:
        self.count = count
        self.labels: Tensor | None = None
        """``[N]``, the same for every model; ``None`` before the first one."""
        self._budget = math.inf if memory is None else parse_size(memory)
        self._form: Form | None = None
        self._whole: Tensor | None = None
        self._file: BatchFile | None = None
        self._slots: dict[int, Slot] = {}
        self._kept: set[int] = set()
        self._coming: dict[int, tuple[list[Tensor], list[Tensor]]] = {}

    def __contains__(self, index: object) -> bool:
        return index in self._kept

    @property
    def place(self) -> str:
        """``"memory"`` or ``"file"``; empty before the first model."""
        return "memory" if self._whole is not None else "file" if self._file is not None else ""

    def watch(
        self, index: int, beside: Callable[[Tensor, Tensor], None] | None = None
    ) -> Callable[[Tensor, Tensor], None]:
        """For one pass of one model: takes the logits and labels of each batch in turn; :meth:`keep` ends it.

        Also handed to ``beside``, if there is one.
        """
        logits, labels = self._coming[index] = [], []

        def take(batch: Tensor, batch_labels: Tensor) -> None:
            logits.append(batch.detach().clone())  # a forward may give all of them in one buffer
            labels.append(batch_labels.detach().clone())
            if beside is not None:
                beside(batch, batch_labels)

        return take

    def keep(self, index: int) -> None:
        """The pass that :meth:`watch` has seen was a whole one."""
        logits, labels = self._coming.pop(index)
        # Put together on the CPU: a device may have no room for them twice.
        self.put(index, torch.cat([batch.cpu() for batch in logits]), torch.cat([batch.cpu() for batch in labels]))

    def put(self, index: int, logits: Tensor, labels: Tensor) -> None:
        """Keep ``logits`` ``[N, ...]`` for ``labels`` ``[N]``, both on the CPU.

        Raises :class:`IncompatibleError` where shape or dtype are not those of the other models, and
        :class:`SoupError` where the labels are not.
        """
        if self.labels is None or self._form is None:
            self.labels, self._form = labels, (logits.shape, logits.dtype)
        else:
            check_alike(logits, labels, self._form, self.labels)
        self._hold(index, logits)
        self._kept.add(index)

    def logits(self, index: int) -> Tensor:
        """Those of one model: a view, not to be written to. Of a file, a mapping that lasts as long as the tensor."""
        if index not in self._kept:
            raise KeyError(index)
        if self._whole is not None:
            return self._whole[index]
        assert self._file is not None and self._form is not None  # noqa: PT018 (kept somewhere)
        slot = self._slots.get(index)
        return torch.empty(self._form[0], dtype=self._form[1]) if slot is None else self._file.opened()(slot)

    def stacks(self, indices: Iterable[int]) -> Iterator[tuple[list[int], Tensor]]:
        """The same of several models as ``[M, N, ...]``, as many at a time as lie side by side; nothing is copied."""
        run: list[int] = []
        for index in [*indices, -1]:
            if run and (index != run[-1] + 1 or self._whole is None):
                yield run, self.logits(run[0])[None] if self._whole is None else self._whole[run[0] : run[-1] + 1]
                run = []
            run.append(index)

    def save(self, journal: Journal, index: int) -> None:
        """Write one model's logits down in a run's directory."""
        assert self.labels is not None
        if journal.load_array(_LABELS) is None:
            journal.save_array(_LABELS, self.labels)
        journal.save_array(f"model-{index}", self.logits(index))

    @property
    def arrays(self) -> list[str]:
        """The names that :meth:`save` gives to what it writes down."""
        return [_LABELS, *(f"model-{index}" for index in range(self.count))]

    def load(self, journal: Journal, index: int) -> bool:
        """Take them from there; False if they are not."""
        logits, labels = journal.load_array(f"model-{index}"), journal.load_array(_LABELS)
        if logits is None or labels is None:
            return False
        self.put(index, logits, labels)
        return True

    def _hold(self, index: int, logits: Tensor) -> None:
        if self._whole is None and self._file is None:
            if self.count * logits.nbytes <= self._budget:
                self._whole = torch.empty(self.count, *logits.shape, dtype=logits.dtype)
            else:
                self._file = BatchFile()
        if self._whole is not None:
            self._whole[index] = logits
        elif self._file is not None and logits.numel():
            self._slots[index] = self._file.write(logits)


class LatestLogits(LogitCache):
    """The same of the model that was put there last, alone."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._latest: Tensor | None = None

    def logits(self, index: int) -> Tensor:
        if index not in self._kept or self._latest is None:
            raise KeyError(index)
        return self._latest

    def _hold(self, index: int, logits: Tensor) -> None:
        self._kept.clear()
        self._latest = logits


def check_alike(logits: Tensor, labels: Tensor, form: Form, first_labels: Tensor) -> None:
    """Raise where one model's logits or labels are not such as the first one's."""
    if (logits.shape, logits.dtype) != form:
        found, expected = (f"{dtype} {list(shape)}" for shape, dtype in ((logits.shape, logits.dtype), form))
        what = "logits can be averaged only where every model gives the same shape and dtype"
        raise IncompatibleError(what, found=found, expected=expected)
    if labels.shape != first_labels.shape or not torch.equal(labels, first_labels):
        raise SoupError("logits can be averaged only where the labels are the same for every model")


def mean_dtype(logits: Tensor) -> torch.dtype:
    """In which logits are summed: f32, or f64 where they are."""
    return torch.promote_types(logits.dtype, torch.float32)


def factor(count: int, dtype: torch.dtype) -> Tensor:
    """One by ``count``, rounded to ``dtype``: what a sum of so many logits is multiplied with."""
    return torch.tensor(1.0 / count, dtype=dtype)
