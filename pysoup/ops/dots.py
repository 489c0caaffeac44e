"""Inner products of a gradient with many tensors: one native call, or plain torch where there are no kernels."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter, eq

import torch
from torch import Tensor

from .. import _native
from ..columns import MEMORY
from ..errors import BackendError, IncompatibleError
from .device import Accelerator, kernels_for
from .tensors import (
    DTYPES,
    addresses,
    as_flat,
    dtypes_of,
    fresh,
    on_host,
    plain_dtypes,
    refuse_mixed_devices,
    refuse_special,
)

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


def gram(sources: Sequence[Sequence[Tensor]], *, names: Sequence[str] = (), threads: int | None = None) -> Tensor:
    """``out[s, i, j] = sum(sources[i][s] * sources[j][s])``: f64 ``[S, K, K]``, on the CPU.

    The bits of :func:`dots` with each source as the gradient; each tensor is read once. S tensors a source, of any
    dtypes and of one shape in all sources; on other devices than the CPU they are copied from there first. Raises
    :class:`IncompatibleError` as :func:`dots`. Of checkpoint files :func:`pysoup.gram.gram` is the same.
    """
    if sources:
        _check_kinds(sources[0], sources[1:], names)
        _check_fit(sources[0], sources[1:], names)
    if not sources or not sources[0]:
        return torch.zeros(0, len(sources), len(sources), dtype=torch.float64)
    columns = [[tensor.contiguous() for tensor in on_host([t.resolve_neg() for t in column])] for column in sources]
    cells = len(columns) * len(columns[0])
    plan = _native.plan_streamed_dots(
        n=array("Q", map(Tensor.numel, columns[0])),
        gradient_at=array("Q"),
        gradient_dtype=b"",
        count=len(columns),
        src_at=array("Q", chain.from_iterable(map(addresses, columns))),
        src_fd=array("i", [MEMORY]) * cells,
        src_dtype=b"".join(map(_codes, columns)),
        pairs=True,
    )
    found = _native.run_streamed_dots(plan, threads=_native.threads_or_default(threads), buffer_bytes=0)
    return matrices_of(torch.frombuffer(found, dtype=torch.float64).view(-1, len(columns[0])), len(columns))


def matrices_of(pairs: Tensor, count: int) -> Tensor:
    """``[S, K, K]``, symmetric, of the products ``[K (K + 1) / 2, S]`` of all pairs of K sources, in order."""
    out = torch.empty(pairs.shape[1], count, count, dtype=pairs.dtype)
    upper = torch.triu_indices(count, count)
    out[:, upper[0], upper[1]] = pairs.t()
    out[:, upper[1], upper[0]] = pairs.t()
    return out


@dataclass(frozen=True)
class Places:
    """Where K sources of S tensors each are, looked up once for products with many gradients."""

    at: array[int]
    codes: bytes
    count: int
    tensors: Sequence[Sequence[Tensor]]
    """What has to be kept."""

    @classmethod
    def of(cls, sources: Sequence[Sequence[Tensor]]) -> Places:
        """Caller must have checked what :func:`dots` checks."""
        at = array("Q", chain.from_iterable(map(addresses, sources)))
        return cls(at, b"".join(map(_codes, sources)), len(sources), sources)


class PreparedDots:
    """The inner products of :func:`dots`, to be taken any number of times as the tensors change.

    Caller must have checked what :func:`dots` checks, and must keep the tensors alive; they are contiguous, or have the
    same strides without holes in every segment. On a device with kernels a run is two launches on torch's current
    stream; with ``out`` it allocates nothing, so that a CUDA graph can record it.
    """

    def __init__(
        self, gradient: Sequence[Tensor], sources: Sequence[Sequence[Tensor]] | Places, *, threads: int | None = None
    ) -> None:
        places = sources if isinstance(sources, Places) else Places.of(sources)
        self.shape = (places.count, len(gradient))
        self._device = gradient[0].device if gradient else torch.device("cpu")
        self._accelerator: Accelerator | None = kernels_for(self._device)
        if self._accelerator is None and self._device.type != "cpu":
            raise BackendError(
                "no kernels for this device", found=self._device, expected="dots(), in plain torch there"
            )
        self._plan = _native.plan_dots(
            n=array("Q", map(Tensor.numel, gradient)),
            gradient_at=array("Q", addresses(gradient)),
            gradient_dtype=_codes(gradient),
            count=places.count,
            src_at=places.at,
            src_dtype=places.codes,
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
