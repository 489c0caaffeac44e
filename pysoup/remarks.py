"""What a user should know about an average and no error says: the notes of a report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from . import _native
from .checkpoint import Checkpoint, duplicate_inputs
from .checkpoint.reading import reason
from .columns import ACC_F64, Columns, SourceColumn
from .errors import CheckpointError
from .file_plan import Member, read_error, real_parts

_SHOWN = 8
_LONGEST_SHOWN = 200
_PROBED = 16
_PROBE_BUFFER = 1 << 20


def input_notes(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Copies among the inputs, nested entries that were taken, and what was left out of the files."""
    notes = [
        f"{checkpoints[j].path} looks like a copy of {checkpoints[i].path}" for i, j in duplicate_inputs(checkpoints)
    ]
    notes += [f"{c.path} is an average itself" for c in checkpoints if "pysoup.ingredients" in c.metadata]
    entries: dict[str, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        if checkpoint.entry_name:
            entries.setdefault(checkpoint.entry_name, []).append(checkpoint)
    for entry, holders in entries.items():
        notes.append(f"weights taken from entry {entry!r} of {_some([str(c.path) for c in holders])}")
    dropped: dict[tuple[str, ...], list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        if checkpoint.dropped:
            dropped.setdefault(tuple(checkpoint.dropped), []).append(checkpoint)
    for texts, holders in dropped.items():
        notes.append(f"left out of {_some([str(c.path) for c in holders])}: {_some(texts)}")
    return notes


def key_notes(
    checkpoints: Sequence[Checkpoint], names: Sequence[str], aliases: Mapping[str, str], keys: str
) -> list[str]:
    """With ``keys`` other than "same": which tensors were left out, or averaged over fewer inputs."""
    notes = []
    if keys == "intersection":
        chosen = set(names) | set(aliases)
        dropped = {n for c in checkpoints for n in (*c, *c.aliases)} - chosen
        notes += [f"left out, not in all inputs: {_brief(n)}" for n in sorted(dropped)]
    if keys == "union":
        for name in names:
            holders = sum(name in c or name in c.aliases for c in checkpoints)
            if holders < len(checkpoints):
                notes.append(f"averaged over {holders} of {len(checkpoints)} inputs: {_brief(name)}")
    return notes


def nonfinite_notes(members: Sequence[Member], names: Sequence[str]) -> list[str]:
    """Which tensors of the average hold NaN or infinities, and which ingredients brought them; files still open."""
    notes = []
    for name, holders in _sources_of_nonfinite(members, names[:_PROBED]).items():
        where = f"in {_some(holders)}" if holders else "its mean is out of range"
        notes.append(f"NaN or infinity in tensor {_quoted(name)}: {where}")
    if len(names) > _PROBED:
        notes.append(f"NaN or infinity in {len(names) - _PROBED} more tensors: {_some(map(_brief, names[_PROBED:]))}")
    return notes


def _sources_of_nonfinite(members: Sequence[Member], names: Sequence[str]) -> dict[str, list[str]]:
    """Tensor -> the members whose own values there are not all finite: each read once more, the sum thrown away."""
    columns, source = Columns(), SourceColumn()
    rows: list[tuple[str, str]] = []
    if not names:
        return {}
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
    except OSError as error:
        raise CheckpointError(reason(error), file=os.devnull) from None
    try:
        for name in names:
            for member in members:
                entry = member.find(name)
                if entry is None or not entry.nbytes:
                    continue
                real, elements = real_parts(entry.dtype, entry.nbytes // entry.dtype.itemsize)
                columns.add(elements, 0, sink, real.native, ACC_F64, 1.0)
                source.add(*member.place(entry), real.native, 1.0)
                rows.append((name, str(member.checkpoint.path)))
        plan = columns.plan([source])
        try:
            flagged = _native.run(plan, threads=1, buffer_bytes=max(_PROBE_BUFFER, plan.minimum_buffer))
        except _native.load().NativeError as error:
            raise read_error(error, members) or error from None
    finally:
        os.close(sink)
    found: dict[str, list[str]] = {name: [] for name in names}
    for name, path in (rows[row] for row in flagged or ()):
        found[name].append(path)
    return found


def _quoted(name: str) -> str:
    """The name of a tensor, escaped, and cut where that makes it long."""
    text = repr(name)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}... ({len(name)} characters)"


def _brief(name: str) -> str:
    """The same without quotes where there is nothing to escape or cut."""
    return name if name.isprintable() and len(name) <= _LONGEST_SHOWN else _quoted(name)


def _some(texts: Iterable[str]) -> str:
    every = list(texts)
    rest = len(every) - _SHOWN
    return ", ".join(every[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
