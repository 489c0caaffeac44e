"""State dicts as a table, a column for each input in one order of names: what is in it, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import ops
from .arrays import from_array, output_array, to_array
from .dtypes import DType, parse_float
from .errors import IncompatibleError
from .integers import choose, choose_unseen

StateDict = Mapping[str, Any]


def module_state(source: StateDict | torch.nn.Module) -> StateDict:
    """The mapping itself, or the state dict of a module; its tensors share the module's memory."""
    if isinstance(source, torch.nn.Module):
        return source.state_dict()
    if not isinstance(source, Mapping):
        raise IncompatibleError(
            "not a state dict", found=type(source).__name__, expected="a mapping of names to tensors"
        )
    return source


def column(state_dict: StateDict, names: Sequence[str], label: str, first: str) -> list[Tensor]:
    """The tensors of one state dict in the order of ``names``; numpy arrays as tensors that share their memory."""
    tensors = _values(state_dict, names, label, first)
    if set(map(type, tensors)) <= {Tensor, torch.nn.Parameter}:
        return tensors
    return [t if isinstance(t, Tensor) else from_array(t, n, label) for t, n in zip(tensors, names, strict=True)]


def _values(state_dict: StateDict, names: Sequence[str], label: str, first: str) -> list[Any]:
    try:
        values = list(map(state_dict.__getitem__, names))
    except KeyError:
        values = []
    if len(values) != len(state_dict) or len(values) != len(names):
        known = set(names)
        lacks, extra = [n for n in names if n not in state_dict], [n for n in state_dict if n not in known]
        parts = [
            f"{word} {some_names(which)}" for word, which in (("lacks", lacks), ("has in addition", extra)) if which
        ]
        raise IncompatibleError("names differ", file=label, found="; ".join(parts), expected=f"the names of {first}")
    return values


@dataclass(frozen=True)
class Outputs:
    """The tensors of ``out`` in the order of the names, to be written.

    ``memory`` is where the values end up: ``tensors`` themselves but for arrays with negative strides, which have a
    copy in ``tensors`` until :meth:`finish`.
    """

    tensors: list[Tensor]
    memory: list[Tensor]
    copies: list[tuple[Any, Tensor]]

    @classmethod
    def of(cls, out: StateDict | torch.nn.Module, names: Sequence[str], first: str) -> Outputs:
        """Raises :class:`IncompatibleError` for other names than those of ``first``, and for read-only arrays."""
        values = _values(module_state(out), names, "out", first)
        if set(map(type, values)) <= {Tensor, torch.nn.Parameter}:
            return cls(values, values, [])
        pairs = [
            (v, v) if isinstance(v, Tensor) else output_array(v, name) for v, name in zip(values, names, strict=True)
        ]
        copies = [(value, pair[0]) for value, pair in zip(values, pairs, strict=True) if pair[0] is not pair[1]]
        return cls([pair[0] for pair in pairs], [pair[1] for pair in pairs], copies)

    def finish(self) -> None:
        """Writes back what is still in a copy."""
        for array, tensor in self.copies:
            array[...] = to_array(tensor, array)


def as_mapping(out: StateDict | torch.nn.Module) -> dict[str, Any]:
    """``out`` as the dict that is returned: itself where it is one."""
    return out if isinstance(out, dict) else dict(module_state(out))


def labels_of(count: int) -> list[str]:
    """What the inputs are called in errors."""
    return [f"state_dicts[{k}]" for k in range(count)]


def some_names(names: Sequence[str], shown: int = 4) -> str:
    """The first few names, and how many more there are."""
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(repr(n) for n in names[:shown]) + rest


def is_inexact(tensor: Tensor) -> bool:
    """Whether the tensor is averaged (floating-point or complex) rather than kept."""
    return tensor.is_floating_point() or tensor.is_complex()


def check_table(
    names: Sequence[str],
    table: Sequence[Sequence[Tensor]],
    labels: Sequence[str],
    targets: Sequence[Tensor] | None,
    dtype: object,
) -> list[torch.dtype] | None:
    """Everything that must agree. Returns :func:`pysoup.ops.plain_dtypes`: the dtypes of the common, plain case.

    Where it is not that case, each tensor is looked at, for the error to name.
    """
    columns = [*table, targets] if targets is not None else list(table)
    if targets is not None and dtype is not None:
        _check_out_dtype(names, targets, parse_float(dtype))
    dtypes = ops.plain_dtypes(columns)
    if dtypes is not None:
        return dtypes
    where = [*labels, "out"]
    for k, tensors in enumerate(columns):
        for name, tensor, first in zip(names, tensors, columns[0], strict=True):
            ops.refuse_special(tensor, name, where[k])
            _check_pair(name, tensor, first, where[k], where[0])
            found, expected = ops.dtype_of(tensor), ops.dtype_of(first)
            free = dtype is not None or targets is not None
            if found != expected and not (free and found.kind == expected.kind == "float"):
                hint = "; pass dtype= to choose the result's" if found.kind == expected.kind == "float" else ""
                raise IncompatibleError(
                    "dtypes differ",
                    file=where[k],
                    tensor=name,
                    found=found,
                    expected=f"{expected} as in {where[0]}{hint}",
                )
    return None


def _check_pair(name: str, tensor: Tensor, first: Tensor, label: str, first_label: str) -> None:
    if tensor.shape != first.shape:
        raise IncompatibleError(
            "shape differs",
            file=label,
            tensor=name,
            found=list(tensor.shape),
            expected=f"{list(first.shape)} as in {first_label}",
        )
    if tensor.device != first.device:
        raise IncompatibleError(
            "device differs",
            file=label,
            tensor=name,
            found=tensor.device,
            expected=f"{first.device} as in {first_label}",
        )


def _check_out_dtype(names: Sequence[str], targets: Sequence[Tensor], dtype: DType) -> None:
    for name, target in zip(names, targets, strict=True):
        if target.is_floating_point() and ops.dtype_of(target) != dtype:
            raise IncompatibleError("out has another dtype", tensor=name, found=ops.dtype_of(target), expected=dtype)


def merge_integers(name: str, tensors: Sequence[Tensor], labels: Sequence[str], policy: str) -> Tensor:
    """The value of a tensor that has no mean (see :mod:`pysoup.integers`): the first of ``tensors``, or a new one."""
    return merge_rows([name], [tensors], labels, policy)[0]


def merge_rows(
    names: Sequence[str], rows: Sequence[Sequence[Tensor]], labels: Sequence[str], policy: str
) -> list[Tensor]:
    """:func:`merge_integers` for many tensors, with one look at their device."""
    return [
        _merged(row, choose(name, policy, labels, differs))
        for name, row, differs in zip(names, rows, ops.first_differences(rows), strict=True)
    ]


def merge_unseen(name: str, tensors: Sequence[Tensor], policy: str) -> Tensor:
    """The same where no value can be looked at: what ``"auto"`` has no answer for is taken to be equal in all."""
    return _merged(tensors, choose_unseen(name, policy))


def _merged(tensors: Sequence[Tensor], rule: str) -> Tensor:
    value = tensors[0]
    if rule == "max":
        for tensor in tensors[1:]:
            value = ops.largest(value, tensor)
    return value
