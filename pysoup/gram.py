"""Inner products of all pairs of checkpoints, streamed from their files: distances, angles and planes follow from them.

Neither torch nor numpy is imported.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import _native
from .average import open_members
from .checkpoint import Checkpoint, agreement, align_names, refuse_scaled_f8
from .columns import SourceColumn
from .errors import SoupError
from .file_plan import Member, check_scratch, read_error, real_parts, run_streamed_dots
from .sizes import parse_size

Matrix = list[list[float]]


@dataclass(frozen=True)
class Gram:
    """``matrix[i][j] = <x_i, x_j>`` over the tensors ``names``: f64, symmetric, of K checkpoints."""

    names: list[str]
    """The tensors that take part, tied ones once, in the order of the first checkpoint."""
    matrix: Matrix
    tensors: dict[str, Matrix] = field(default_factory=dict)
    """The same for each tensor by itself, where that was asked for."""
    bytes_read: int = 0


def gram(
    sources: Sequence[tuple[str, Checkpoint]],
    *,
    exclude: Callable[[str], bool] | None = None,
    per_tensor: bool = False,
    memory: str | int = "64MiB",
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Gram:
    """The Gram matrix of K checkpoints, each with its name, over all their floating and complex tensors.

    One pass over the files, within ``memory`` bytes of buffers. Products and sums are f64 in a fixed order
    (``csrc/kernels.h``, then tensor by tensor): the same bits for any ``memory``, number of ``threads`` and ISA. The
    squared distance of i and j is ``m[i][i] - 2 m[i][j] + m[j][j]``; that, as angles, loses digits where the
    checkpoints are close to one another: the relative error of each product is below 1e-13 or so. Of complex tensors
    the products are those of real and imaginary parts.

    ``exclude(name)`` is true for the tensors to be left out, in which the checkpoints may differ. In what is left their
    names and shapes must agree, wrappers such as ``module.`` apart; types may differ. ``progress`` gets (bytes done,
    bytes in all). Raises :class:`CheckpointError` for files that cannot be read or change meanwhile,
    :class:`IncompatibleError`, and :class:`SoupError` where ``memory`` has no room for a tile of all checkpoints.
    """
    budget, count = parse_size(memory), _native.threads_or_default(threads)
    checkpoints, _ = align_names([checkpoint for _, checkpoint in sources])
    if exclude is not None:
        checkpoints = [c.only(lambda name: not exclude(name)) for c in checkpoints]
    names = [n for n in agreement(checkpoints)[0] if checkpoints[0].entry(n).dtype.kind in ("float", "complex")]
    for checkpoint in checkpoints:
        refuse_scaled_f8(checkpoint)
    members = [Member(checkpoint, index) for index, checkpoint in enumerate(checkpoints)]
    check_scratch(sum(_scratch_bytes(checkpoint, names) for checkpoint in checkpoints))
    with open_members(members):
        plan = _plan(members, names)
        total = plan.bytes
        report = None if progress is None else lambda done: progress(done, total)
        try:
            found = run_streamed_dots(plan, budget, count, len(members), progress=report)
        except _native.load().NativeError as error:
            raise read_error(error, members) or SoupError(str(error.args[0])) from None
        for member in members:
            member.check_unchanged()
    size = len(members)
    tensors = {name: _matrix(list(found[s :: len(names)]), size) for s, name in enumerate(names)} if per_tensor else {}
    totals = _totals(found, len(names)) if names else [0.0] * (size * (size + 1) // 2)
    return Gram(names, _matrix(totals, size), tensors, total)


def _plan(members: Sequence[Member], names: Sequence[str]) -> Any:
    sizes, columns = array("Q"), []
    for member in members:
        column = SourceColumn()
        for name in names:
            entry = member.checkpoint.entry(name)
            column.add(*member.place(entry), real_parts(entry.dtype, 0)[0].native, 1.0)
        columns.append(column)
    for name in names:
        entry = members[0].checkpoint.entry(name)
        sizes.append(real_parts(entry.dtype, entry.nbytes // entry.dtype.itemsize)[1])
    cells = SourceColumn.joined(columns)
    return _native.plan_streamed_dots(
        n=sizes,
        gradient_at=array("Q"),
        gradient_dtype=b"",
        count=len(members),
        src_at=cells.at,
        src_fd=cells.fd,
        src_dtype=cells.dtype,
        pairs=True,
    )


def _scratch_bytes(checkpoint: Checkpoint, names: Sequence[str]) -> int:
    if not checkpoint.has_forms:
        return 0
    from .checkpoint.unpack import unpacked_bytes

    return unpacked_bytes([entry for entry in map(checkpoint.entry, names) if entry.form is not None])


def _totals(found: array[float], tensors: int) -> list[float]:
    """Each pair's products of all tensors, added in order; not by `sum`, which newer Pythons round otherwise."""
    totals = []
    for first in range(0, len(found), tensors):
        total = 0.0
        for value in found[first : first + tensors]:
            total += value
        totals.append(total)
    return totals


def _matrix(pairs: Sequence[float], size: int) -> Matrix:
    """The upper triangle, row by row, as the whole."""
    matrix = [[0.0] * size for _ in range(size)]
    places = ((i, j) for i in range(size) for j in range(i, size))
    for (i, j), value in zip(places, pairs, strict=True):
        matrix[i][j] = matrix[j][i] = value
    return matrix
