"""Which tensors are one and the same memory, and which share memory in a way that would make a result wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from operator import add, attrgetter
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from . import ops
from .errors import IncompatibleError


def ties(tensors: Sequence[Tensor]) -> dict[int, int]:
    """index -> earlier index for tensors that are exactly the same view of the same memory. Empty ones never are."""
    return shared_ties([tensors])


def in_storage_of(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> int | None:
    """The first of ``tensors`` that lies in a storage of ``others``, whether or not they have elements in common."""
    storages = {tensor.untyped_storage().data_ptr() for tensor in others} - {0}
    return next((i for i, tensor in enumerate(tensors) if tensor.untyped_storage().data_ptr() in storages), None)


def shared_ties(table: Sequence[Sequence[Tensor]]) -> dict[int, int]:
    """index -> earlier index for what is tied in every row of the table, so that one value serves for both."""
    first: dict[tuple[Any, ...], int] = {}
    tied: dict[int, int] = {}
    pointers = [ops.addresses(table[0])]
    if len(set(pointers[0])) == len(pointers[0]):
        return tied
    pointers += map(ops.addresses, table[1:])
    for i, tensor in enumerate(table[0]):
        if tensor.numel() == 0:
            continue
        key = tuple((row[i], *_view(tensors[i])) for row, tensors in zip(pointers, table, strict=True))
        if key in first:
            tied[i] = first[key]
        else:
            first[key] = i
    return tied


def output_ties(
    names: Sequence[str], outs: Sequence[Tensor], sources: Sequence[Sequence[Tensor]], labels: Sequence[str]
) -> dict[int, int]:
    """:func:`ties` of the outputs. Raises :class:`IncompatibleError` where an input has two values for one of them."""
    tied = ties(outs)
    for i, j in tied.items():
        for tensors, label in zip(sources, labels, strict=True):
            if not same_bits(tensors[i], tensors[j]):
                expected = f"those of {names[j]!r}, which is the same memory"
                raise IncompatibleError("tied in out, not here", file=label, tensor=names[i], expected=expected)
    return tied


def refuse_overlap(
    names: Sequence[str], outs: Sequence[Tensor], columns: Sequence[Sequence[Tensor]], labels: Sequence[str]
) -> None:
    """Raises :class:`IncompatibleError` where an output shares an element's memory with another tensor or itself.

    ``columns[k][i]`` is the tensor that ``labels[k]`` has for ``outs[i]`` (a column may be shorter): exactly the
    output's own elements in the same order are allowed there. Views that interleave without touching are, too.
    """
    own = _ranges(outs)
    uses = [_Use(*span, out, i, None) for i, (span, out) in enumerate(zip(own, outs, strict=True))]
    for use in uses:
        if not use.tensor.is_contiguous() and _touches_itself(use):
            raise IncompatibleError("out overlaps itself", tensor=names[use.place], expected="separate elements")
    for tensors, label in zip(columns, labels, strict=True):
        uses += [
            _Use(*span, tensor, i, label)
            for i, (span, tensor) in enumerate(zip(_ranges(tensors), tensors, strict=True))
            if span != own[i] or not _same_elements(tensor, outs[i])
        ]
    for device in {out.device for out in outs}:
        for cluster in _clusters([use for use in uses if use.begin < use.end and use.tensor.device == device]):
            _refuse_shared_elements(cluster, names)


class _Use(NamedTuple):
    """A tensor in memory from ``begin`` to ``end``: output number ``place`` (``label`` None), or an input's for it."""

    begin: int
    end: int
    tensor: Tensor
    place: int
    label: str | None


def _view(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.is_conj(), tensor.is_neg()


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same elements, NaN included."""
    if _view(one) == _view(other) and ops.addresses([one]) == ops.addresses([other]):
        return True
    if one.dtype != other.dtype:
        return False
    first, second = (ops.as_reals(t.detach()).contiguous().view(-1).view(torch.uint8) for t in (one, other))
    return torch.equal(first, second)


def _same_elements(one: Tensor, other: Tensor) -> bool:
    """For tensors of as many elements in the same range: whether each element is where the other's is."""
    if one.is_contiguous() and other.is_contiguous():
        return True
    return one.shape == other.shape and all(
        a == b for size, a, b in zip(one.shape, one.stride(), other.stride(), strict=True) if size > 1
    )


def _ranges(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    begins = ops.addresses(tensors)
    if all(map(Tensor.is_contiguous, tensors)):
        return list(zip(begins, map(add, begins, map(attrgetter("nbytes"), tensors)), strict=True))
    return [(begin, begin + _extent(t)) for begin, t in zip(begins, tensors, strict=True)]


def _extent(tensor: Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _clusters(uses: list[_Use]) -> Iterator[list[_Use]]:
    """Groups of at least two whose ranges hang together and of which one is written."""
    uses.sort(key=attrgetter("begin"))
    start, end = 0, 0
    for i, use in enumerate(uses):
        if use.begin < end:
            end = max(end, use.end)
            continue
        if i - start > 1 and any(member.label is None for member in uses[start:i]):
            yield uses[start:i]
        start, end = i, use.end
    if len(uses) - start > 1 and any(member.label is None for member in uses[start:]):
        yield uses[start:]


def _is_plainly_injective(tensor: Tensor) -> bool:
    """Whether the strides alone show that no two elements share memory; False is no proof of the contrary."""
    reach = 0
    for stride, size in sorted((t, s) for s, t in zip(tensor.shape, tensor.stride(), strict=True) if s > 1):
        if stride <= reach:
            return False
        reach += (size - 1) * stride
    return True


class _Board:
    """Memory drawn as one flag for each unit of bytes: exact for views of any strides."""

    def __init__(self, uses: Sequence[_Use]) -> None:
        self.begin = min(use.begin for use in uses)
        sizes = (n for use in uses for n in (use.tensor.element_size(), use.begin - self.begin))
        self.unit = math.gcd(*sizes)
        self.flags = torch.zeros((max(use.end for use in uses) - self.begin) // self.unit, dtype=torch.bool)

    def cells(self, use: _Use) -> Tensor:
        """The flags of one tensor's elements, as a view."""
        width = use.tensor.element_size() // self.unit
        strides = [stride * width for stride in use.tensor.stride()]
        return self.flags.as_strided((*use.tensor.shape, width), (*strides, 1), (use.begin - self.begin) // self.unit)


def _refuse_shared_elements(cluster: Sequence[_Use], names: Sequence[str]) -> None:
    board = _Board(cluster)
    outputs = [use for use in cluster if use.label is None]
    for output in outputs:
        cells = board.cells(output)
        if bool(cells.any()):
            _refuse(output, outputs, names)
        cells.fill_(True)
    for use in cluster:
        if use.label is not None and bool(board.cells(use).any()):
            _refuse(use, outputs, names)


def _touches_itself(use: _Use) -> bool:
    if _is_plainly_injective(use.tensor):
        return False
    if 0 in (t for s, t in zip(use.tensor.shape, use.tensor.stride(), strict=True) if s > 1):
        return True
    board = _Board([use])
    cells = board.cells(use)
    cells.fill_(True)
    return int(board.flags.sum()) < cells.numel()


def _refuse(use: _Use, outputs: Sequence[_Use], names: Sequence[str]) -> NoReturn:
    def shares(output: _Use) -> bool:
        board = _Board([output, use])
        board.cells(output).fill_(True)
        return output is not use and bool(board.cells(use).any())

    written = next(output for output in outputs if shares(output))
    raise IncompatibleError(
        "out overlaps the memory of another tensor",
        tensor=names[written.place],
        found=f"shared with {names[use.place]!r} of {use.label or 'out'}",
        expected="disjoint memory, or exactly the tensor of the same name",
    )


def without(tied: Mapping[int, int], tensors: Sequence[Any]) -> list[Any]:
    """What is left where each of several ties counts once."""
    return [tensor for i, tensor in enumerate(tensors) if i not in tied] if tied else list(tensors)
