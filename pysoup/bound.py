"""An average bound once to live tensors, to be repeated without looking at them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from . import _native, ops
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
        names, labels = list(given[0]), labels_of(len(given))
        table = [column(sd, names, label, labels[0]) for sd, label in zip(given, labels, strict=True)]
        outputs = Outputs.of(self.out, names, labels[0])
        outs = outputs.tensors
        dtypes = check_table(names, table, labels, outs, None)
        if dtypes is None or outputs.copies:
            raise IncompatibleError("cannot be bound", expected="contiguous CPU tensors of equal dtypes")
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
        self._plan = ops.sum_columns(sources, law.factors, self._outs, law.divisor)

    def run(self) -> Mapping[str, Any]:
        """Writes the average of what the inputs hold now into :attr:`out` and returns it.

        Raises :class:`IncompatibleError` if a tensor's memory was replaced since (``param.data = ...``),
        or where integers differ now; nothing is written then.
        """
        if ops.addresses(self._bound) != self._addresses:
            raise IncompatibleError("a tensor has moved since the average was bound", expected="bind it again")
        kept = [merge_integers(name, tensors, self._labels, self._integers) for name, tensors, _ in self._kept]
        _native.run(self._plan, threads=self._threads)
        for (_, _, out), value in zip(self._kept, kept, strict=True):
            if out is not value:
                ops.write(out, value)
        ops.bump_versions(self._outs)
        return self.out
