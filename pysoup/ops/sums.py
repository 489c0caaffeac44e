"""Weighted sums: columns of tensors as one native plan, or step by step in plain torch where there are no kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from ..columns import Columns, SourceColumn, accumulator
from ..errors import IncompatibleError
from .device import Accelerator, kernels_for
from .tensors import DTYPES, addresses, bump_versions, dtypes_of, refuse_mixed_devices

_warned_devices: set[str] = set()


def sum_columns(
    sources: Sequence[Sequence[Tensor]],
    factors: Sequence[float],
    outs: Sequence[Tensor],
    divisor: float,
    dtypes: list[torch.dtype] | None = None,
) -> Any:
    """The native plan of ``outs[s] = sum_k factors[k] * sources[k][s] / divisor``; all flat, on one device.

    Caller must have checked shapes and layouts; ``dtypes`` are those of every source, where they agree and are known.
    Returns the plan; keep the tensors alive while it is used.
    """
    out_dtypes = dtypes_of(outs)
    source_dtypes = [dtypes or dtypes_of(tensors) for tensors in sources]
    codes = {d: DTYPES[d].native for d in set(out_dtypes).union(*map(set, source_dtypes))}
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
    rule = {row: accumulator([DTYPES[d] for d in row[1:]], DTYPES[row[0]]) for row in set(rows)}
    return bytes(map(rule.__getitem__, rows))


class PreparedSum:
    """A native plan whose places are all memory of one device, to be run any number of times.

    On a device with kernels its table is carried there once; a run is then one launch on torch's current stream,
    without an allocation or a wait, that a CUDA graph can record. Keep the tensors and this object alive as long.
    """

    def __init__(self, plan: Any, accelerator: Accelerator | None, threads: int | None = None) -> None:
        self._plan = plan
        self._accelerator = accelerator
        self._threads = _native.threads_or_default(threads)
        if accelerator is not None:
            self._packed = _native.pack_sum(plan)
            self._table = accelerator.upload(self._packed.bytes, self._packed.write)

    def settle(self) -> None:
        """Waits for what was carried to the device: only then may a run be on another stream than this one."""
        if self._accelerator is not None:
            self._accelerator.wait()

    def run(self, flags: Tensor | None = None, progress: Callable[[int], object] | None = None) -> list[int]:
        """Writes the sums. Returns the rows that are not finite, of a run on the CPU.

        A device is not waited for: there ``flags`` (int32, zero, one a row of the plan) get a number other than 0.
        """
        if self._accelerator is None:
            return _native.run(self._plan, threads=self._threads, progress=progress)
        _native.launch_sum(
            self._packed,
            device=self._accelerator.index,
            stream=self._accelerator.stream(),
            table=self._table.data_ptr(),
            flags=0 if flags is None else flags.data_ptr(),
        )
        self._accelerator.keep(self._table)
        if progress is not None:
            progress(self._plan.bytes)
        return []

    def flags(self) -> Tensor | None:
        """New flags for :meth:`run`; None on the CPU."""
        return None if self._accelerator is None else self._accelerator.empty(self._packed.rows, torch.int32).zero_()


def run_plan(
    plan: Any, accelerator: Accelerator | None, *, threads: int, memory: int, staged: bool
) -> list[int] | Tensor:
    """Runs a native plan, once. Returns the rows that are not finite, or flags that tell: see :func:`rows_of`.

    On a device a plan without ``staged`` places (files, host memory) is one launch that nothing waits for. Else, and on
    the CPU, ``memory`` bytes of buffers are used, or the few that it needs. Failed reads raise ``NativeError``.
    """
    if accelerator is None:
        return _native.run(plan, threads=threads, buffer_bytes=max(memory // threads, plan.minimum_buffer))
    if not staged:
        prepared = PreparedSum(plan, accelerator, threads)
        flags = prepared.flags()
        prepared.run(flags)
        assert flags is not None
        return flags
    memory = max(memory, plan.staged_memory)
    accelerator.make_room(memory)
    return _native.run_staged(
        plan, device=accelerator.index, stream=accelerator.stream(), threads=threads, memory=memory
    )


def rows_of(found: list[int] | Tensor) -> list[int]:
    """The rows, ascending; waits for the device that wrote the flags."""
    return found if isinstance(found, list) else list(found.nonzero().flatten().tolist())


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
    arithmetic is the contract in ``csrc/kernels.h``. A CUDA device is not waited for. ``dtypes``: those of every source
    where :func:`plain_dtypes` has them. ``check_overlap`` refuses an
    output that shares memory with an input other than exactly its own, both called by the segments' ``names``. The
    outputs' autograd versions are bumped.
    """
    if not outs:
        return
    if dtypes is None:
        refuse_mixed_devices([*outs, *(tensor for tensors in sources for tensor in tensors)])
    accelerator = kernels_for(outs[0])
    if accelerator is None and not outs[0].is_cpu:
        _reference_sum(sources, factors, outs, divisor)
        bump_versions(outs)
        return
    plan = sum_columns(sources, factors, outs, divisor, dtypes)
    if check_overlap:
        refuse_overlap(plan, names)
    PreparedSum(plan, accelerator, threads).run(progress=progress)
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


def _reference_sum(
    sources: Sequence[Sequence[Tensor]], factors: Sequence[float], outs: Sequence[Tensor], divisor: float
) -> None:
    from ..reference import weighted_sum as reference_weighted_sum

    device = outs[0].device.type
    if device not in _warned_devices:
        _warned_devices.add(device)
        warnings.warn(f"pysoup has no kernels for device {device!r}: using plain torch there", stacklevel=4)
    for s, out in enumerate(outs):
        reference_weighted_sum([tensors[s] for tensors in sources], factors, divisor, out=out)
