"""An average bound once to live tensors, to be repeated without looking at them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from . import _native, ops
from .errors import IncompatibleError
from .integers import check_policy
from .state_dicts import (
    StateDict,
    average_state_dicts,
    check_table,
    column,
    is_inexact,
    labels_of,
    merge_integers,
    module_state,
)
from .weights import check_weights, mix


class BoundAverage:
    """``out = average(state_dicts)``, as :func:`pysoup.average_state_dicts`, for the same tensors again and again.

    All checks are made here, once; :meth:`run` only confirms that no tensor has moved to other memory. Inputs and
    output must be contiguous CPU tensors that are not tied; the state dicts and ``out`` are kept alive. Without ``out``
    new tensors are made once and overwritten by every run.
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
        self._threads = _native.threads_or_default(threads)
        names, self._labels = list(given[0]), labels_of(len(given))
        table = [column(sd, names, label, self._labels[0]) for sd, label in zip(given, self._labels, strict=True)]
        outs = column(self.out, names, "out", self._labels[0])
        dtypes = check_table(names, table, self._labels, outs, None)
        if dtypes is None:
            raise IncompatibleError("cannot be bound", expected="contiguous CPU tensors of equal dtypes")
        law = mix(check_weights(weights, len(given)), range(len(given)))
        floats = [i for i, tensor in enumerate(outs) if tensor.is_floating_point()]
        if any(is_inexact(outs[i]) for i in set(range(len(outs))) - set(floats)):
            raise IncompatibleError("cannot be bound", found="complex tensors", expected="real ones")
        sources = [[table[k][i] for i in floats] for k in law.members]
        self._outs = [outs[i] for i in floats]
        self._kept = [
            (n, [table[k][i] for k in law.members], outs[i]) for i, n in enumerate(names) if i not in set(floats)
        ]
        self._bound = [tensor for column_ in sources for tensor in column_] + self._outs
        self._addresses = ops.addresses(self._bound)
        self._plan = ops.sum_columns(sources, law.factors, self._outs, law.divisor)
        ops.refuse_overlap(self._plan)

    def run(self) -> Mapping[str, Any]:
        """Writes the average of what the inputs hold now into :attr:`out` and returns it.

        Raises :class:`IncompatibleError` if a tensor's memory was replaced since (``param.data = ...``).
        """
        if ops.addresses(self._bound) != self._addresses:
            raise IncompatibleError("a tensor has moved since the average was bound", expected="bind it again")
        _native.run(self._plan, threads=self._threads)
        for name, values, out in self._kept:
            merge_integers(name, values, self._labels, self._integers, out)
        ops.bump_versions(self._outs)
        return self.out
