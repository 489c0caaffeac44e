"""Tensors in, native calls out: the only module that hands tensor memory to the kernels.

Everything is checked here once: kind of tensor, device, shape, dtype, layout, overlap. Below this line there are only
addresses. Tensors on devices without kernels go to :mod:`pysoup.reference`, the same arithmetic in plain torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from operator import attrgetter, eq
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

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
# Fresh outputs of this size are put on huge pages before their first touch: page faults can cost as much as the sum.
_HUGE_PAGE_ELEMENTS = 32 << 10
# Native code does less than this on the calling thread alone: how many there might be need not be found out.
_INLINE_BYTES = 1 << 20
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


def refuse_special(
    tensor: object, name: str, where: str | None = None, *, what: str = "cannot average this kind of tensor"
) -> None:
    """Raises :class:`IncompatibleError`, naming the kind, for tensors whose memory is not plainly their values."""
    kind = _special_kind(tensor)
    if kind is not None:
        raise IncompatibleError(what, file=where, tensor=name, found=kind)


def _special_kind(tensor: object) -> str | None:
    if not isinstance(tensor, Tensor):
        return f"{type(tensor).__name__}, not a tensor"
    if is_lazy(tensor):
        return "uninitialized parameter of a lazy module"
    if tensor.is_nested:
        return "nested tensor"
    if type(tensor) not in _PLAIN and type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return type(tensor).__name__  # DTensor, FakeTensor and other wrappers: their own memory is not their values
    if tensor.layout != torch.strided:
        return f"sparse tensor ({tensor.layout})"
    if tensor.is_quantized:
        return "quantized tensor"
    if tensor.device.type == "meta":
        return "meta tensor"
    return None


def dtypes_of(tensors: Sequence[Tensor]) -> list[torch.dtype]:
    """The dtypes of many tensors, looked up in C."""
    return list(map(attrgetter("dtype"), tensors))


def plain_dtypes(columns: Sequence[Sequence[Tensor]]) -> list[torch.dtype] | None:
    """The dtypes all columns share, if all tensors are ordinary contiguous CPU tensors of equal shapes, else None.

    The common case, decided by a few passes in C; where the answer is None each tensor has to be looked at. Sizes are
    compared one by one and not kept: thousands of live ones would set off the garbage collector.
    """
    first = columns[0]
    if not set(map(type, first)) <= _PLAIN:
        return None
    dtypes, shape = dtypes_of(first), attrgetter("shape")
    if not set(dtypes) <= SUPPORTED:
        return None
    try:
        shapes = list(map(shape, first))
        # Real views of conjugated tensors have a pending negation. They skip elements, so they pass as contiguous only
        # where they have just one.
        singles = [i for i, size in enumerate(shapes) if size.numel() == 1]
        for column in columns:
            alike = (
                len(column) == len(first)
                and set(map(type, column)) <= _PLAIN
                and (column is first or (dtypes_of(column) == dtypes and all(map(eq, shapes, map(shape, column)))))
                and all(map(attrgetter("is_cpu"), column))
                and all(map(Tensor.is_contiguous, column))
                and not any(column[i].is_neg() for i in singles)
            )
            if not alike:
                return None
    except (RuntimeError, NotImplementedError):  # nested and sparse tensors do not answer all of this
        return None
    return dtypes


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
    tensor = tensor.resolve_neg() if tensor.is_neg() else tensor
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def all_fresh_like(tensors: Sequence[Tensor]) -> list[Tensor]:
    """:func:`fresh_like` for many tensors."""
    new = list(map(torch.empty_like, tensors))
    for i, elements in enumerate(map(Tensor.numel, new)):
        if elements >= _HUGE_PAGE_ELEMENTS:
            _on_huge_pages(new[i])
    return new


def fresh_like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor of that shape and memory order, on huge pages where it is large."""
    new = torch.empty_like(tensor, dtype=dtype)
    return new if new.numel() < _HUGE_PAGE_ELEMENTS else _on_huge_pages(new)


def fresh(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised contiguous CPU tensor, on huge pages where it is large."""
    new = torch.empty(tuple(shape), dtype=dtype)
    return new if new.numel() < _HUGE_PAGE_ELEMENTS else _on_huge_pages(new)


def _on_huge_pages(tensor: Tensor) -> Tensor:
    if tensor.is_cpu and tensor.layout == torch.strided:
        _native.load().advise_huge_pages(tensor.data_ptr(), tensor.numel() * tensor.element_size())
    return tensor


def sum_columns(
    sources: Sequence[Sequence[Tensor]],
    factors: Sequence[float],
    outs: Sequence[Tensor],
    divisor: float,
    dtypes: list[torch.dtype] | None = None,
) -> Any:
    """The native plan of ``outs[s] = sum_k factors[k] * sources[k][s] / divisor``; all flat, on the CPU.

    Caller must have checked shapes and layouts; ``dtypes`` are those of every source, where they agree and are known.
    Returns the plan; keep the tensors alive while it is used.
    """
    out_dtypes = dtypes_of(outs)
    source_dtypes = [dtypes or dtypes_of(tensors) for tensors in sources]
    codes = {d: _DTYPES[d].native for d in set(out_dtypes).union(*map(set, source_dtypes))}
    columns = Columns.in_memory(
        list(map(Tensor.numel, outs)),
        addresses(outs),
        bytes(map(codes.__getitem__, out_dtypes)),
        _accumulators(out_dtypes, source_dtypes),
        divisor,
    )
    shared = None if dtypes is None else bytes(map(codes.__getitem__, dtypes))
    return columns.plan(
        [
            SourceColumn.in_memory(addresses(tensors), shared or bytes(map(codes.__getitem__, found)), factor)
            for tensors, found, factor in zip(sources, source_dtypes, factors, strict=True)
        ]
    )


def _accumulators(out_dtypes: list[torch.dtype], source_dtypes: list[list[torch.dtype]]) -> bytes:
    """The accumulator of each segment; decided once for each combination of types that occurs."""
    if all(column is source_dtypes[0] or column == source_dtypes[0] for column in source_dtypes):
        source_dtypes = source_dtypes[:1]
    rows = list(zip(out_dtypes, *source_dtypes, strict=True))
    rule = {row: accumulator([_DTYPES[d] for d in row[1:]], _DTYPES[row[0]]) for row in set(rows)}
    return bytes(map(rule.__getitem__, rows))


def weighted_sum(
    sources: Sequence[Sequence[Tensor]],
    factors: Sequence[float],
    outs: Sequence[Tensor],
    divisor: float,
    *,
    dtypes: list[torch.dtype] | None = None,
    names: Sequence[str] = (),
    check_overlap: bool = False,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> None:
    """``outs[s] = round(sum_k factors[k] * sources[k][s] / divisor)`` for all segments s in one native call.

    Sources and outputs are floating-point tensors of equal shapes per segment, on one device; dtypes may be mixed. The
    arithmetic is the contract in ``csrc/kernels.h``. ``dtypes``: see :func:`sum_columns`. ``check_overlap`` refuses an
    output that shares memory with an input other than exactly its own, both called by the segments' ``names``. The
    outputs' autograd versions are bumped.
    """
    if not outs:
        return
    if not outs[0].is_cpu:
        _reference_sum(sources, factors, outs, divisor)
        bump_versions(outs)
        return
    plan = sum_columns(sources, factors, outs, divisor, dtypes)
    if check_overlap:
        refuse_overlap(plan, names)
    _native.run(plan, threads=_native.threads_or_default(threads), progress=progress)
    bump_versions(outs)


def refuse_overlap(plan: Any, names: Sequence[str]) -> None:
    """Raises :class:`IncompatibleError` where a destination overlaps another tensor of the plan other than exactly.

    ``names`` are those of the rows of the plan's columns.
    """
    written, read = plan.find_overlap()
    if written < 0:
        return
    raise IncompatibleError(
        "out overlaps the memory of another tensor",
        tensor=names[written],
        found=f"shared with {names[read]!r}",
        expected="disjoint memory, or exactly the tensor of the same name",
    )


LOGIT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""The dtypes that :func:`score_rows` takes."""


def score_rows(
    base: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    *,
    weight: float,
    scale: float,
    ignore_label: int | None,
    k: Sequence[int],
    wanted: Collection[str],
    threads: int | None,
) -> dict[str, Tensor]:
    """The scores of logits ``[M, N, C]``, or of ``scale * (base + weight * logits)``; all on one device.

    Caller must have checked dtypes, shapes and labels (int64 ``[N]``). ``wanted``: some of ``"prediction"``,
    ``"margin"``, ``"confidence"`` and ``"nll"``. Returns these, ``"rank"`` (all ``[M, N]``), ``"top"`` ``[len(k), M]``,
    ``"nan_rows"`` and ``"total"``, the sum of ``"nll"`` where that is wanted (``[M]``); ``csrc/kernels.h`` says what
    they mean. Devices without kernels take the same steps in plain torch, and are not waited for.
    """
    if not logits.is_cpu:
        from .reference import score_rows as reference_rows

        return reference_rows(
            base, logits, labels, weight=weight, scale=scale, ignore_label=ignore_label, k=k, wanted=wanted
        )
    candidates, rows, _ = logits.shape
    logits, labels = _in_rows(logits), labels.contiguous()
    base = base if base is None else _in_rows(base)
    per_row = {"rank": torch.int64, "prediction": torch.int64}
    per_row |= dict.fromkeys(("margin", "confidence", "nll"), torch.float64)
    result = {n: torch.empty(candidates, rows, dtype=d) for n, d in per_row.items() if n == "rank" or n in wanted}
    totals = {
        "top": torch.empty(len(k), candidates, dtype=torch.int64),
        "nan_rows": torch.empty(candidates, dtype=torch.int64),
        "total": torch.zeros(candidates, dtype=torch.float64),
    }
    if threads is None and logits.numel() * logits.element_size() < _INLINE_BYTES:
        threads = 1
    _native.score_logits(
        threads=_native.threads_or_default(threads),
        logits=logits.data_ptr(),
        dtype=_DTYPES[logits.dtype].native,
        shape=logits.shape,
        strides=logits.stride()[:2],
        base=0 if base is None else base.data_ptr(),
        base_dtype=0 if base is None else _DTYPES[base.dtype].native,
        base_stride=0 if base is None else base.stride(0),
        weight=weight,
        scale=scale,
        labels=labels.data_ptr(),
        ignore=ignore_label,
        k=k,
        outputs=[result[name].data_ptr() if name in result else 0 for name in per_row],
        totals=addresses(list(totals.values())),
    )
    return result | totals


def _in_rows(logits: Tensor) -> Tensor:
    """The tensor itself where the classes of a row follow one another in memory, else a copy for which it holds."""
    logits = logits.detach().resolve_neg()
    return logits if logits.stride(-1) == 1 or logits.shape[-1] == 1 else logits.contiguous()


def write(target: Tensor, value: Tensor) -> None:
    """``target.copy_(value)``, for leaves that require gradients and inference tensors too."""
    with torch.inference_mode(target.is_inference()), torch.no_grad():
        target.copy_(value)


# torch has no order for the wider unsigned types: with the highest bit flipped they sort as signed ones do.
_SIGNED = {
    getattr(torch, f"uint{bits}"): getattr(torch, f"int{bits}")
    for bits in (16, 32, 64)
    if hasattr(torch, f"uint{bits}")
}


def largest(one: Tensor, other: Tensor) -> Tensor:
    """The elementwise maximum of integers or flags, all types of a checkpoint included."""
    signed = _SIGNED.get(one.dtype)
    if signed is None:
        return torch.maximum(one, other)
    flip = torch.iinfo(signed).min
    return (torch.maximum(one.view(signed) ^ flip, other.view(signed) ^ flip) ^ flip).view(one.dtype)


def bump_versions(tensors: Sequence[Tensor]) -> None:
    """Tells autograd that the tensors were written in place, so that a stale backward fails instead of lying."""
    tracked = [t for t in tensors if not t.is_inference()]
    try:
        torch.autograd.graph.increment_version(tracked)
    except TypeError:  # older torch takes one tensor
        for tensor in tracked:
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
    "LOGIT_DTYPES",
    "SUPPORTED",
    "addresses",
    "all_fresh_like",
    "as_flat",
    "as_reals",
    "bump_versions",
    "dtype_of",
    "dtypes_of",
    "fresh",
    "fresh_like",
    "largest",
    "plain_dtypes",
    "refuse_overlap",
    "refuse_special",
    "score_rows",
    "sum_columns",
    "torch_dtype",
    "weighted_sum",
    "write",
]
