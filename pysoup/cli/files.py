"""``pysoup average`` and ``pysoup inspect``: checkpoint files, no model, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import IncompatibleError
from ..sizes import format_size, parse_size
from .choose import Best, choose
from .text import as_json as to_json
from .text import as_notes, plural, printable, some, table

if TYPE_CHECKING:
    from ..average import AverageReport
    from ..checkpoint import Checkpoint
    from ..names import Rest


def average(
    checkpoints: list[str],
    output: str,
    *,
    weights: list[float] | None,
    normalize: bool,
    dtype: str | None,
    memory: str,
    threads: int | None,
    device: str,
    keys: str,
    include: Sequence[str],
    exclude: Sequence[str],
    rest: Rest,
    entry: str | None,
    best: Best | None,
    shard_size: str | None,
    integers: str,
    overwrite: bool,
    sync: bool | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Average ``checkpoints`` into ``output`` with a bar on stderr, and print the report."""
    from ..average import average_checkpoints
    from ..progress import byte_bar

    limit, largest = parse_size(memory), None if shard_size is None else parse_size(shard_size)
    paths, notes = choose(checkpoints, best)
    with byte_bar("averaging") as progress:
        report = average_checkpoints(
            paths,
            output,
            weights,
            normalize=normalize,
            dtype=dtype,
            memory=limit,
            threads=threads,
            device=device,
            keys=keys,
            integers=integers,
            include=include,
            exclude=exclude,
            rest=rest,
            entry=entry,
            shard_size=largest,
            overwrite=overwrite,
            sync=sync,
            dry_run=dry_run,
            progress=progress,
        )
    report.notes[:0] = notes
    print(to_json(report.to_json()) if as_json else summary(report))


def summary(report: AverageReport) -> str:
    """What an average did, in a few lines."""
    size = f"{plural(report.tensors, 'tensor')}, {plural(report.parameters, 'parameter')}"
    where = report.isa if report.device == "cpu" else report.device
    means = f"{where}, {plural(report.threads, 'thread')}, {format_size(report.memory_bytes)} of buffers"
    sources, target = plural(len(report.inputs), "checkpoint"), printable(report.output)
    read, written = format_size(report.bytes_read), format_size(report.bytes_written)
    if report.dry_run:
        lines = [f"would average {sources} into {target}: {size}", f"would read {read}, write {written}; {means}"]
    else:
        speed = (report.bytes_read + report.bytes_written) / max(report.seconds, 1e-9)
        lines = [
            f"averaged {sources} into {target}: {size}",
            f"read {read}, wrote {written} in {report.seconds:.2f} s ({format_size(int(speed))}/s); {means}",
        ]
    return "\n".join([*lines, *as_notes(report.notes)])


def inspect(checkpoints: list[str], *, entry: str | None, as_json: bool) -> None:
    """Print what each checkpoint holds and, of several, whether they can be averaged."""
    from ..checkpoint import align_names
    from ..checkpoint.find import open_found

    notes: list[str] = []
    opened = open_found(checkpoints, entry, notes)
    aligned, renamed = align_names(opened) if len(opened) > 1 else (opened, [])
    notes += renamed
    together = _together(aligned) if len(opened) > 1 else None
    if as_json:
        print(to_json({"checkpoints": [_facts(c) for c in opened], "together": together, "notes": notes}))
        return
    print("\n\n".join(_listing(c) for c in opened))
    if together is not None:
        print()
        print(_verdict(together))
    print("".join(f"{line}\n" for line in as_notes(notes)), end="")


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "path": str(checkpoint.path),
        "kind": checkpoint.kind,
        "format": checkpoint.format,
        "entry": checkpoint.entry_name or None,
        "dropped": checkpoint.dropped,
        "files": [str(f) for f in checkpoint.files],
        "bytes": checkpoint.total_bytes,
        "parameters": checkpoint.numel,
        "dtypes": _per_dtype(checkpoint),
        "metadata": checkpoint.metadata,
        "aliases": checkpoint.aliases,
        "tensors": [
            {"name": e.name, "dtype": e.dtype.name, "shape": list(e.shape), "bytes": e.nbytes, "file": e.file}
            for e in map(checkpoint.entry, checkpoint)
        ],
    }


def _per_dtype(checkpoint: Checkpoint) -> dict[str, dict[str, int]]:
    """Per element type, by size: the count of tensors and elements and their bytes."""
    totals: dict[str, dict[str, int]] = {}
    for entry in map(checkpoint.entry, checkpoint):
        total = totals.setdefault(entry.dtype.name, {"tensors": 0, "elements": 0, "bytes": 0})
        total["tensors"] += 1
        total["elements"] += entry.nbytes // entry.dtype.itemsize
        total["bytes"] += entry.nbytes
    return dict(sorted(totals.items(), key=lambda item: -item[1]["bytes"]))


def _listing(checkpoint: Checkpoint) -> str:
    sharded = len(checkpoint.files) > 1
    rows = []
    for entry in map(checkpoint.entry, checkpoint):
        shape = "x".join(map(str, entry.shape)) or "scalar"
        row = [entry.name, entry.dtype.name, shape, format_size(entry.nbytes)]
        rows.append([*row, checkpoint.files[entry.file].name] if sharded else row)
    header = ["tensor", "dtype", "shape", "size", *(["file"] if sharded else [])]
    lines = [printable(str(checkpoint.path)), table(header, rows, right=("shape", "size")), _format(checkpoint)]
    if checkpoint.dropped:
        lines.append(f"left out: {some(checkpoint.dropped)}")
    lines += [f"tied: {printable(alias)} = {printable(name)}" for alias, name in checkpoint.aliases.items()]
    lines += [f"metadata: {printable(key)} = {printable(value)}" for key, value in checkpoint.metadata.items()]
    for dtype, total in _per_dtype(checkpoint).items():
        elements = plural(total["elements"], "element")
        lines.append(f"{dtype}: {plural(total['tensors'], 'tensor')}, {elements}, {format_size(total['bytes'])}")
    files = f" in {len(checkpoint.files)} files" if sharded else ""
    lines.append(f"total: {plural(len(checkpoint), 'tensor')}, {format_size(checkpoint.total_bytes)}{files}")
    return "\n".join(lines)


def _format(checkpoint: Checkpoint) -> str:
    entry = f", entry {printable(checkpoint.entry_name)}" if checkpoint.entry_name else ""
    return f"format: {checkpoint.format}{entry}"


def _together(checkpoints: Sequence[Checkpoint]) -> dict[str, Any]:
    """Whether the checkpoints can be averaged as they are, why not, and which are copies of one another."""
    from ..checkpoint import dtype_differences, duplicate_inputs, require_same

    differences: list[str] = []
    # Against the first, one by one: the error of one pair must not hide those of the others.
    for other in checkpoints[1:]:
        pair = [checkpoints[0], other]
        try:
            differing = dtype_differences(pair, require_same(pair, "same"))
        except IncompatibleError as error:
            differences.append(str(error))
            continue
        if differing:
            name, dtypes = differing[0]
            what = f"dtype differs in {plural(len(differing), 'tensor')} (average needs --dtype), the first"
            line = IncompatibleError(what, file=other.path, tensor=name, found=dtypes[1], expected=dtypes[0])
            differences.append(str(line))
    paths = [str(c.path) for c in checkpoints]
    return {
        "can_average": not differences,
        "differences": differences,
        "duplicates": [[paths[i], paths[j]] for i, j in duplicate_inputs(checkpoints)],
    }


def _verdict(together: dict[str, Any]) -> str:
    lines = [f"differs: {printable(line)}" for line in together["differences"]]
    lines += [f"duplicate: {printable(b)} looks like a copy of {printable(a)}" for a, b in together["duplicates"]]
    lines.append(f"can be averaged: {'yes' if together['can_average'] else 'no'}")
    return "\n".join(lines)
