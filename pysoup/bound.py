"""An average bound once to live tensors, to be repeated without looking at them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import ops
from .aliasing import refuse_overlap
from .errors import IncompatibleError
from .integers import check_policy
from .state_dicts import average_state_dicts
from .tables import (
    Outputs,
    StateDict,
    check_table,
    column,
    is_inexact,
    labels_of,
    merge_rows,
    merge_unseen,
    module_state,
)
from .weights import check_weights, mix


class BoundAverage:
    """``out = average(state_dicts)``, as :func:`pysoup.average_state_dicts`, for the same tensors again and again.

    All checks are made here, once; :meth:`run` only confirms that no tensor has moved to other memory. Inputs and
    output must be contiguous tensors on the CPU or one CUDA device, and not tied; the state dicts and ``out`` are kept
    alive. Without ``out`` new tensors are made once and overwritten by every run.

    On a CUDA device a run is one launch on the current stream, and nothing waits for it; a CUDA graph can record it.
    Only tensors without a mean, if there are any, are compared first, which waits for the device. In a graph they are
    not: what should be equal in all inputs is copied from the first.
    """

    def __init__(
        self,
        state_dicts: Sequence[StateDict | torch.nn.Module],
        weights: Sequence[float] | None = None,
        *,
        out: StateDict | torch.nn.Module | None = None,
        integers: str = "auto",
        threads: int | None = None,
    ) -> None:
        given = [module_state(sd) for sd in state_dicts]
        self.out: Mapping[str, Any] = (
            average_state_dicts(given, weights, integers=integers) if out is None else module_state(out)
        )
        self._integers = check_policy(integers)
        names, labels = list(given[0]), labels_of(len(given))
        table = [column(sd, names, label, labels[0]) for sd, label in zip(given, labels, strict=True)]
        outputs = Outputs.of(self.out, names, labels[0])
        outs = outputs.tensors
        dtypes = check_table(names, table, labels, outs, None)
        if dtypes is None or outputs.copies:
            raise IncompatibleError("cannot be bound", expected="contiguous tensors of equal dtypes on one device")
        law = mix(check_weights(weights, len(given)), range(len(given)))
        members = [table[k] for k in law.members]
        self._labels = [labels[k] for k in law.members]
        refuse_overlap(names, outs, members, self._labels)
        floats = [i for i, tensor in enumerate(outs) if tensor.is_floating_point()]
        if any(is_inexact(outs[i]) for i in set(range(len(outs))) - set(floats)):
            raise IncompatibleError("cannot be bound", found="complex tensors", expected="real ones")
        sources = [[tensors[i] for i in floats] for tensors in members]
        self._outs = [outs[i] for i in floats]
        self._kept = [
            (n, [tensors[i] for tensors in members], outs[i]) for i, n in enumerate(names) if i not in set(floats)
        ]
        self._bound = [tensor for column_ in sources for tensor in column_] + self._outs
        self._addresses = ops.addresses(self._bound)
        self._accelerator = ops.kernels_for_all(outs)
        plan = ops.sum_columns(sources, law.factors, self._outs, law.divisor)
        self._sum = ops.PreparedSum(plan, self._accelerator, threads)
        self._sum.settle()

    def run(self) -> Mapping[str, Any]:
        """Writes the average of what the inputs hold now into :attr:`out` and returns it.

        Raises :class:`IncompatibleError` if a tensor's memory was replaced since (``param.data = ...``),
        or where integers differ now; nothing is written then.
        """
        if ops.addresses(self._bound) != self._addresses:
            raise IncompatibleError("a tensor has moved since the average was bound", expected="bind it again")
        kept = self._merged()
        self._sum.run()
        for (_, _, out), value in zip(self._kept, kept, strict=True):
            if out is not value:
                ops.write(out, value)
        ops.bump_versions(self._outs)
        return self.out

    def _merged(self) -> list[Tensor]:
        """What becomes of the tensors without a mean."""
        if self._accelerator is not None and self._accelerator.is_capturing():
            return [merge_unseen(name, tensors, self._integers) for name, tensors, _ in self._kept]
        names, rows = [name for name, _, _ in self._kept], [tensors for _, tensors, _ in self._kept]
        return merge_rows(names, rows, self._labels, self._integers)
