"""The native plans of a mixture: places that stay, weights that change; and the granules that share weights."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from . import ops
from .buffers import check_budget
from .columns import ABSENT, MEMORY, Columns, SourceColumn
from .errors import IncompatibleError
from .ingredient import Ingredient
from .load import Part


class MixedPart:
    """The S averaged tensors of a model that are on one device (None: the CPU), and where K ingredients have them.

    ``cells`` are the ingredients' columns, joined; ``kept`` are, for each ingredient, the tensors in memory among them.
    """

    def __init__(
        self,
        accelerator: ops.Accelerator | None,
        slots: list[int],
        columns: Columns,
        cells: SourceColumn,
        kept: list[list[Tensor]],
    ) -> None:
        self.slots = slots
        self._accelerator = accelerator
        self._kept = kept
        self._columns = columns
        self._cells = cells
        self._n, self._fd = columns.n, cells.fd
        self._staged = any(place != MEMORY for place in cells.fd)

    def check_budget(self, budget: int) -> None:
        """Raises :class:`SoupError` where ``budget`` bytes of buffers are too few for all ingredients."""
        if self._accelerator is None or self._staged:
            part = Part(self._accelerator, self.slots, self._columns.plan_of(self._cells), self._kept)
            check_budget(budget, part.least_memory)

    def run(self, weights: Tensor, budget: int, threads: int) -> list[int]:
        """Writes the mix with weights f64 ``[S, K]``; rows of zeros are left as they are.

        Returns the rows that are not finite. A plan of memory that is all on the device is one launch there.
        """
        self._weigh(weights)
        plan = self._columns.plan_of(self._cells)
        if self._accelerator is not None and not self._staged:
            return ops.rows_of(ops.run_plan(plan, self._accelerator, threads=threads, memory=0, staged=False))
        part = Part(self._accelerator, self.slots, plan, self._kept)
        return part.run(budget, threads, len(self._kept), None, again=True)[1] or []

    def _weigh(self, weights: Tensor) -> None:
        """Puts the weights into the columns: what has weight 0 is absent, a row of zeros has no elements."""
        _table(self._cells.factor, weights).copy_(weights.t())
        self._columns.n, self._cells.fd = self._n, self._fd
        zero = weights == 0
        if not bool(zero.any()):
            return
        self._columns.n, self._cells.fd = array("Q", self._n), array("i", self._fd)
        empty = zero.all(1)
        torch.frombuffer(self._columns.n, dtype=torch.int64).masked_fill_(empty, 0)
        places = _table(self._cells.fd, weights).masked_fill_(zero.t(), ABSENT)
        places[0].masked_fill_(empty, MEMORY)  # a row has one source or more


def _table(cells: array[int] | array[float], weights: Tensor) -> Tensor:
    """The cells of a column as ``[K, S]``, in the same memory."""
    dtype = torch.float64 if cells.typecode == "d" else torch.int32
    return torch.frombuffer(cells, dtype=dtype).view(weights.shape[1], weights.shape[0])


def host_column(ingredient: Ingredient, slots: list[int]) -> tuple[SourceColumn, list[Tensor]]:
    """Where an ingredient has some slots in files or in host memory, and the tensors to be kept meanwhile."""
    if ingredient.is_file:
        return ingredient.column([1.0] * len(slots), slots), []
    tensors = ops.on_host(ingredient.tensors_of(slots))
    codes = bytes(ingredient.dtypes[s].native for s in slots)
    return SourceColumn.in_memory(ops.addresses(tensors), codes, 1.0), tensors


def granule_of(granules: Sequence[Sequence[str]] | None, names: Sequence[str]) -> list[int]:
    """The granule of each name. Raises :class:`IncompatibleError` where they are not a partition of the names."""
    if granules is None:
        return [0] * len(names)
    found: dict[str, int] = {}
    for g, members in enumerate(granules):
        if isinstance(members, str):
            raise IncompatibleError("a granule is a list of names", found=repr(members))
        for name in members:
            if name in found:
                raise IncompatibleError("in two granules", tensor=name, found=f"{found[name] + 1} and {g + 1}")
            found[name] = g
    known = set(names)
    for name in found:
        if name not in known:
            raise IncompatibleError("in a granule, not an averaged tensor of the model", tensor=name)
    for name in names:
        if name not in found:
            raise IncompatibleError("in no granule", tensor=name)
    return [found[name] for name in names]
