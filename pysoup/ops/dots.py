"""Inner products of a gradient with many tensors: one native call, or plain torch where there are no kernels."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from operator import attrgetter, eq

import torch
from torch import Tensor

from .. import _native
from ..errors import IncompatibleError
from .device import Accelerator, kernels_for
from .tensors import DTYPES, addresses, as_flat, dtypes_of, fresh, plain_dtypes, refuse_mixed_devices, refuse_special

# As in ops/logits.py: how many threads there might be need not be found out for less than this.
_INLINE_BYTES = 1 << 20


def dots(
    gradient: Sequence[Tensor],
    sources: Sequence[Sequence[Tensor]],
    *,
    names: Sequence[str] = (),
    threads: int | None = None,
) -> Tensor:
    """``out[k, s] = sum(gradient[s] * sources[k][s])``: f64 ``[K, S]``, on the tensors' device.

    ``gradient`` are S floating-point tensors, one a segment, of any shapes; each of the K ``sources`` has S of the same
    shapes. Dtypes may be mixed, f8 included. Each tensor is read once, the gradient's once for some sources. The order
    of summation is fixed (``csrc/kernels.h``): the same bits on every device, ISA and number of threads. A CUDA device
    is not waited for. This is the gradient of a loss with respect to the mixing weights of a soup whose segments have
    weights of their own (the paper's learned soup, appendix I).

    Raises :class:`IncompatibleError` for other kinds of tensors and for what does not fit; ``names`` are the segments'.
    """
    if not _is_plain(gradient, sources):
        _check_kinds(gradient, sources, names)
        _check_fit(gradient, sources, names)
        gradient, sources = _flat(gradient, sources)
    if not gradient or gradient[0].is_cpu or kernels_for(gradient[0]) is not None:
        return PreparedDots(gradient, sources, threads=threads).run()
    from ..reference_dots import dots as reference_dots

    return reference_dots(gradient, sources)


class PreparedDots:
    """The inner products of :func:`dots`, to be taken any number of times as the tensors change.

    Caller must have checked what :func:`dots` checks, and must keep the tensors alive; they are contiguous, or have the
    same strides without holes in every segment. On a device with kernels a run is two launches on torch's current
    stream; with ``out`` it allocates nothing, so that a CUDA graph can record it.
    """

    def __init__(
        self, gradient: Sequence[Tensor], sources: Sequence[Sequence[Tensor]], *, threads: int | None = None
    ) -> None:
        self.shape = (len(sources), len(gradient))
        self._device = gradient[0].device if gradient else torch.device("cpu")
        self._accelerator: Accelerator | None = kernels_for(self._device)
        self._plan = _native.plan_dots(
            n=array("Q", map(Tensor.numel, gradient)),
            gradient_at=array("Q", addresses(gradient)),
            gradient_dtype=_codes(gradient),
            count=len(sources),
            src_at=array("Q", chain.from_iterable(map(addresses, sources))),
            src_dtype=b"".join(map(_codes, sources)),
        )
        if threads is None and self._plan.bytes < _INLINE_BYTES:
            threads = 1
        self._threads = _native.threads_or_default(threads)
        if self._accelerator is not None:
            self._table = self._accelerator.upload(self._plan.table_bytes, self._plan.write_table)
            self._scratch = self._accelerator.empty(self._plan.scratch, torch.float64)

    def settle(self) -> None:
        """Waits for what was carried to the device: only then may a run be on another stream than this one."""
        if self._accelerator is not None:
            self._accelerator.wait()

    def run(self, out: Tensor | None = None) -> Tensor:
        """The products, f64 ``[K, S]``: ``out``, contiguous and of that shape, or new. A device is not waited for.

        The next run uses the scratch memory again: it has to be on the same stream, or after this one's end.
        """
        if out is None:
            out = fresh(self.shape, torch.float64, self._device)
        if self._accelerator is None:
            _native.run_dots(self._plan, threads=self._threads, out=out.data_ptr())
            return out
        _native.launch_dots(
            self._plan,
            device=self._accelerator.index,
            stream=self._accelerator.stream(),
            table=self._table.data_ptr(),
            scratch=self._scratch.data_ptr(),
            out=out.data_ptr(),
        )
        self._accelerator.keep(self._table)
        self._accelerator.keep(self._scratch)
        return out


def _codes(tensors: Sequence[Tensor]) -> bytes:
    dtypes = dtypes_of(tensors)
    codes = {dtype: DTYPES[dtype].native for dtype in set(dtypes)}
    return bytes(map(codes.__getitem__, dtypes))


def _is_plain(gradient: Sequence[Tensor], sources: Sequence[Sequence[Tensor]]) -> bool:
    """Whether nothing is to be refused or copied: the common case, decided by a few passes in C."""
    codes = [plain_dtypes(columns) for columns in ([gradient], sources) if columns]
    if len(codes) < 2 or None in codes or len(gradient) != len(sources[0]):
        return False
    shape = attrgetter("shape")
    return (
        all(map(eq, map(shape, gradient), map(shape, sources[0])))
        and (not gradient or gradient[0].device == sources[0][0].device)
        and all(DTYPES[dtype].native >= 0 for dtypes in codes if dtypes for dtype in set(dtypes))
    )


def _name(names: Sequence[str], s: int) -> str:
    return names[s] if names else f"segment {s}"


def _check_kinds(gradient: Sequence[Tensor], sources: Sequence[Sequence[Tensor]], names: Sequence[str]) -> None:
    for column in (gradient, *sources):
        for s, tensor in enumerate(column):
            refuse_special(tensor, _name(names, s), what="no inner product of this kind of tensor")


def _check_fit(gradient: Sequence[Tensor], sources: Sequence[Sequence[Tensor]], names: Sequence[str]) -> None:
    """Refuses other numbers of tensors, shapes, dtypes and several devices."""
    for k, column in enumerate(sources):
        if len(column) != len(gradient):
            raise IncompatibleError(
                f"source {k} has another number of tensors than the gradient", found=len(column), expected=len(gradient)
            )
        for s, (g, x) in enumerate(zip(gradient, column, strict=True)):
            if g.shape != x.shape:
                raise IncompatibleError(
                    f"shape of source {k}", tensor=_name(names, s), found=list(x.shape), expected=list(g.shape)
                )
    for column in (gradient, *sources):
        for dtype in set(dtypes_of(column)):
            if dtype not in DTYPES or DTYPES[dtype].native < 0:
                s = dtypes_of(column).index(dtype)
                raise IncompatibleError(
                    "no inner product of this dtype", tensor=_name(names, s), found=dtype, expected="floating point"
                )
    refuse_mixed_devices([*gradient, *chain.from_iterable(sources)])


def _flat(
    gradient: Sequence[Tensor], sources: Sequence[Sequence[Tensor]]
) -> tuple[Sequence[Tensor], Sequence[Sequence[Tensor]]]:
    """The same numbers, in each segment in one memory order."""
    columns = (gradient, *sources)
    tensors = list(chain.from_iterable(columns))
    if all(map(Tensor.is_contiguous, tensors)) and not any(map(Tensor.is_neg, tensors)):
        return gradient, sources
    rows = [as_flat([column[s].detach().resolve_neg() for column in columns]) for s in range(len(gradient))]
    return [row[0] for row in rows], [[row[k] for row in rows] for k in range(1, len(columns))]
