"""Torch tensors as the kernels see them: which kinds have plain memory, where it is, and new ones to write to."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter, eq

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .. import _native
from ..dtypes import BY_TORCH_NAME, DType
from ..errors import IncompatibleError
from .device import kernels_for

DTYPES: dict[torch.dtype, DType] = {
    getattr(torch, name): dtype for name, dtype in BY_TORCH_NAME.items() if hasattr(torch, name)
}
SUPPORTED = frozenset(DTYPES)
"""The torch dtypes that a checkpoint may hold."""
_PLAIN = {Tensor, torch.nn.Parameter, torch.nn.Buffer} if hasattr(torch.nn, "Buffer") else {Tensor, torch.nn.Parameter}
# Fresh outputs of this size are put on huge pages before their first touch: page faults can cost as much as the sum.
_HUGE_PAGE_ELEMENTS = 32 << 10


def dtype_of(tensor: Tensor) -> DType:
    """The element type, or :class:`IncompatibleError` for types no checkpoint average is defined on (quantized ...)."""
    try:
        return DTYPES[tensor.dtype]
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
    """The dtypes all columns share, if all tensors are ordinary, contiguous and of equal shapes on one device that has
    kernels, else None.

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
                and _all_on(first[0].device if first else None, column)
                and all(map(Tensor.is_contiguous, column))
                and not any(column[i].is_neg() for i in singles)
            )
            if not alike:
                return None
    except (RuntimeError, NotImplementedError):  # nested and sparse tensors do not answer all of this
        return None
    return dtypes


def _all_on(device: torch.device | None, tensors: Sequence[Tensor]) -> bool:
    """Whether this one device has them all, and kernels for them."""
    if device is None or device.type == "cpu":
        return all(map(attrgetter("is_cpu"), tensors))
    return kernels_for(device) is not None and all(map(device.__eq__, map(attrgetter("device"), tensors)))


def refuse_mixed_devices(tensors: Sequence[Tensor]) -> None:
    """Raises :class:`IncompatibleError`, naming both, where tensors of one call are on two devices."""
    devices = dict.fromkeys(map(attrgetter("device"), tensors))
    if len(devices) > 1:
        first, other = list(devices)[:2]
        raise IncompatibleError("tensors on several devices", found=f"{first} and {other}", expected="one device")


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


def fresh(shape: Sequence[int], dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """An uninitialised contiguous tensor, by default on the CPU, there on huge pages where it is large."""
    new = torch.empty(tuple(shape), dtype=dtype, device=device or "cpu")
    return new if new.numel() < _HUGE_PAGE_ELEMENTS else _on_huge_pages(new)


def _on_huge_pages(tensor: Tensor) -> Tensor:
    if tensor.is_cpu and tensor.layout == torch.strided:
        _native.load().advise_huge_pages(tensor.data_ptr(), tensor.numel() * tensor.element_size())
    return tensor


def write(target: Tensor, value: Tensor) -> None:
    """``target.copy_(value)``, for leaves that require gradients and inference tensors too."""
    with torch.inference_mode(target.is_inference()), torch.no_grad():
        target.copy_(value)


def on_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in host memory, detached: one copy, and one wait, for all that are on a device."""
    result = [tensor.detach() for tensor in tensors]
    for members in _by_device(result).values():
        packed = _packed([result[i] for i in members]).cpu()
        for i, value in zip(members, _unpacked(packed, [result[i] for i in members]), strict=True):
            result[i] = value
    return result


def write_from_host(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """:func:`write` for many values of the targets' types and shapes; one copy for all that goes to a device.

    A CUDA device is not waited for.
    """
    values = list(values)
    for device, members in _by_device(targets).items():
        hosted = [i for i in members if values[i].is_cpu]
        if not hosted:
            continue
        packed = _packed([values[i] for i in hosted])
        packed = packed.pin_memory() if device.type == "cuda" else packed
        there = _unpacked(packed.to(device, non_blocking=True), [values[i] for i in hosted])
        for i, value in zip(hosted, there, strict=True):
            values[i] = value
    for target, value in zip(targets, values, strict=True):
        write(target, value)


def _by_device(tensors: Sequence[Tensor]) -> dict[torch.device, list[int]]:
    """Which of the tensors are on a device other than the CPU; the largest items first, so that packed they are
    aligned."""
    found: dict[torch.device, list[int]] = {}
    for i in sorted(range(len(tensors)), key=lambda i: -tensors[i].element_size()):
        if not tensors[i].is_cpu:
            found.setdefault(tensors[i].device, []).append(i)
    return found


def _packed(tensors: Sequence[Tensor]) -> Tensor:
    """The bytes of real tensors, one after the other."""
    return torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors])


def _unpacked(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that were packed, in types and shapes like these."""
    parts = torch.split(packed, [tensor.nbytes for tensor in like])
    return [part.view(tensor.dtype).view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


# torch has no order for the wider unsigned types: with the highest bit flipped they sort as signed ones do.
_SIGNED = {
    getattr(torch, f"uint{bits}"): getattr(torch, f"int{bits}")
    for bits in (16, 32, 64)
    if hasattr(torch, f"uint{bits}")
}


def first_differences(rows: Sequence[Sequence[Tensor]]) -> list[int | None]:
    """For each row of tensors alike in shape and type: the first with other values than the row's first, if any.

    For tensors without a mean. All rows have the same length; a device is waited for once.
    """
    if not rows or len(rows[0]) < 2:
        return [None] * len(rows)
    if rows[0][0].is_cpu:
        return [next((k for k, t in enumerate(row) if k and not torch.equal(t, row[0])), None) for row in rows]
    home = rows[0][0].device  # each row is on one device, not always the same
    flags = torch.stack([torch.stack([_differs(tensor, row[0]) for tensor in row[1:]]).to(home) for row in rows])
    return [next((k for k, differs in enumerate(found, 1) if differs), None) for found in flags.tolist()]


def _differs(one: Tensor, other: Tensor) -> Tensor:
    signed = _SIGNED.get(one.dtype, one.dtype)
    return (one.view(signed) != other.view(signed)).any()


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
