"""Tensors in, native calls out: the only module that hands tensor memory to the kernels.

Everything is checked here once: kind of tensor, device, shape, dtype, layout, overlap. Below this line there are only
addresses. Tensors on devices without kernels go to :mod:`pysoup.reference`, the same arithmetic in plain torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from . import _native
from .columns import Columns, SourceColumn, accumulator
from .dtypes import BY_TORCH_NAME, DType
from .errors import IncompatibleError

_DTYPES: dict[torch.dtype, DType] = {
    getattr(torch, name): dtype for name, dtype in BY_TORCH_NAME.items() if hasattr(torch, name)
}
SUPPORTED = frozenset(_DTYPES)
"""The torch dtypes that a checkpoint may hold."""
_PLAIN = {Tensor, torch.nn.Parameter, torch.nn.Buffer} if hasattr(torch.nn, "Buffer") else {Tensor, torch.nn.Parameter}
# A fresh output of this size is backed by huge pages before its first touch: page faults cost more than the sum.
_HUGE_PAGE_BYTES = 4 << 20
_warned_devices: set[str] = set()


def dtype_of(tensor: Tensor) -> DType:
    """The element type, or :class:`IncompatibleError` for types no checkpoint average is defined on (quantized ...)."""
    try:
        return _DTYPES[tensor.dtype]
    except KeyError:
        raise IncompatibleError("dtype is not supported", found=str(tensor.dtype)) from None


def torch_dtype(dtype: DType) -> torch.dtype:
    """The torch dtype of an element type; old torch versions lack some of the unsigned ones."""
    try:
        return getattr(torch, dtype.torch_name)  # type: ignore[no-any-return]
    except AttributeError:
        raise IncompatibleError(f"torch {torch.__version__} has no dtype for {dtype}") from None


def refuse_special(tensor: object, name: str, where: str | None = None) -> None:
    """Raises :class:`IncompatibleError`, naming the kind, for tensors whose memory is not plainly their values."""
    kind = _special_kind(tensor)
    if kind is not None:
        raise IncompatibleError("cannot average this kind of tensor", file=where, tensor=name, found=kind)


def _special_kind(tensor: object) -> str | None:
    if not isinstance(tensor, Tensor):
        return f"{type(tensor).__name__}, not a tensor"
    if type(tensor) not in _PLAIN and type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return type(tensor).__name__  # DTensor, FakeTensor and other wrappers: their own memory is not their values
    if tensor.is_nested:
        return "nested tensor"
    if tensor.layout != torch.strided:
        return f"sparse tensor ({tensor.layout})"
    if tensor.is_quantized:
        return "quantized tensor"
    if tensor.device.type == "meta":
        return "meta tensor"
    return None


def describe(tensors: Sequence[Tensor]) -> tuple[list[torch.dtype], list[torch.Size]]:
    """Dtypes and shapes of many tensors, with the attribute look-ups in C."""
    return list(map(attrgetter("dtype"), tensors)), list(map(attrgetter("shape"), tensors))


def plain_cpu(tensors: Sequence[Tensor]) -> bool:
    """Whether all are ordinary contiguous CPU tensors, the common case that needs no further look.

    Sparse and meta tensors, which have no address, raise or answer False here; quantized dtypes are refused by name.
    """
    if not set(map(type, tensors)) <= _PLAIN:
        return False
    try:
        return all(map(attrgetter("is_cpu"), tensors)) and all(map(Tensor.is_contiguous, tensors))
    except (RuntimeError, NotImplementedError):  # nested and sparse tensors do not answer is_contiguous
        return False


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    """Where the elements are. Caller must keep the tensors alive while the addresses are used."""
    return list(map(Tensor.data_ptr, tensors))


def as_flat(tensors: Sequence[Tensor], out: Tensor | None = None) -> list[Tensor]:
    """The tensors with equal memory order: as they are where their strides agree and leave no holes, else contiguous.

    ``out``, where given, must have that order too.
    """
    strides = tensors[0].stride()
    group = [*tensors, out] if out is not None else list(tensors)
    if all(t.is_contiguous() for t in group):
        return list(tensors)
    dense = torch.empty_like(tensors[0], device="meta").stride() == strides
    if dense and all(t.stride() == strides for t in group):
        return list(tensors)
    return [t.contiguous() for t in tensors]


def as_reals(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of reals, with pending conjugation and negation carried out; others unchanged."""
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    return tensor.resolve_neg() if tensor.is_neg() else tensor


def fresh_like(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor of that shape and memory order, on huge pages where it is large."""
    return _on_huge_pages(torch.empty_like(tensor, dtype=dtype, requires_grad=False))


def fresh(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised contiguous CPU tensor, on huge pages where it is large."""
    return _on_huge_pages(torch.empty(tuple(shape), dtype=dtype))


def _on_huge_pages(fresh: Tensor) -> Tensor:
    nbytes = fresh.numel() * fresh.element_size()
    if nbytes >= _HUGE_PAGE_BYTES and fresh.is_cpu:
        _native.load().advise_huge_pages(fresh.data_ptr(), nbytes)
    return fresh


def sum_columns(
    sources: Sequence[Sequence[Tensor]], factors: Sequence[float], outs: Sequence[Tensor], divisor: float
) -> Any:
    """The native plan of ``outs[s] = sum_k factors[k] * sources[k][s] / divisor``; all flat, on the CPU.

    Caller must have checked shapes and layouts. Returns the plan; keep the tensors alive while it is used.
    """
    out_dtypes, _ = describe(outs)
    source_dtypes = [describe(tensors)[0] for tensors in sources]
    rule: dict[tuple[torch.dtype, ...], int] = {}
    accumulators = bytearray()
    for row in zip(out_dtypes, *source_dtypes, strict=True):
        acc = rule.get(row)
        if acc is None:
            acc = rule[row] = accumulator([_DTYPES[d] for d in row[1:]], _DTYPES[row[0]])
        accumulators.append(acc)
    codes = {d: _DTYPES[d].native for d in {*out_dtypes, *(d for column in source_dtypes for d in column)}}
    columns = Columns.in_memory(
        list(map(Tensor.numel, outs)),
        addresses(outs),
        bytes(map(codes.__getitem__, out_dtypes)),
        bytes(accumulators),
        divisor,
    )
    return columns.plan(
        [
            SourceColumn.in_memory(addresses(tensors), bytes(map(codes.__getitem__, dtypes)), factor)
            for tensors, dtypes, factor in zip(sources, source_dtypes, factors, strict=True)
        ]
    )


def weighted_sum(
    sources: Sequence[Sequence[Tensor]],
    factors: Sequence[float],
    outs: Sequence[Tensor],
    divisor: float,
    *,
    names: Sequence[str] = (),
    check_overlap: bool = False,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> None:
    """``outs[s] = round(sum_k factors[k] * sources[k][s] / divisor)`` for all segments s in one native call.

    Sources and outputs are floating-point tensors of equal shapes per segment, on one device; dtypes may be mixed. The
    arithmetic is the contract in ``csrc/kernels.h``. ``check_overlap`` refuses an output that shares memory with an
    input other than exactly its own. Autograd's version counters of the outputs are bumped.
    """
    if not outs:
        return
    if not outs[0].is_cpu:
        _reference_sum(sources, factors, outs, divisor)
        bump_versions(outs)
        return
    plan = sum_columns(sources, factors, outs, divisor)
    if check_overlap:
        refuse_overlap(plan, names)
    _native.run(plan, threads=_native.threads_or_default(threads), progress=progress)
    bump_versions(outs)


def refuse_overlap(plan: Any, names: Sequence[str] = ()) -> None:
    """Raises :class:`IncompatibleError` where a destination overlaps another tensor of the plan other than exactly."""
    written, read = plan.find_overlap()
    if written < 0:
        return
    # Segments that touch are merged, so an index names a tensor only where nothing was merged.
    named = len(names) == plan.segments
    raise IncompatibleError(
        "out overlaps the memory of another tensor",
        tensor=names[written] if named else None,
        found=f"shared with {names[read]!r}" if named else "shared memory",
        expected="disjoint memory, or exactly the tensor of the same name",
    )


def bump_versions(tensors: Sequence[Tensor]) -> None:
    """Tells autograd that the tensors were written in place, so that a stale backward fails instead of lying."""
    for tensor in tensors:
        if not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)


def _reference_sum(
    sources: Sequence[Sequence[Tensor]], factors: Sequence[float], outs: Sequence[Tensor], divisor: float
) -> None:
    from .reference import weighted_sum as reference_weighted_sum

    device = outs[0].device.type
    if device not in _warned_devices:
        _warned_devices.add(device)
        warnings.warn(f"pysoup has no kernels for device {device!r}: using plain torch there", stacklevel=4)
    for s, out in enumerate(outs):
        reference_weighted_sum([tensors[s] for tensors in sources], factors, divisor, out=out)


__all__ = [
    "SUPPORTED",
    "addresses",
    "as_flat",
    "as_reals",
    "bump_versions",
    "describe",
    "dtype_of",
    "fresh",
    "fresh_like",
    "plain_cpu",
    "refuse_overlap",
    "refuse_special",
    "sum_columns",
    "torch_dtype",
    "weighted_sum",
]
