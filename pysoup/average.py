"""Averaging files into a file: one pass over the bytes, in bounded memory, nothing half-written."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import _native
from ._version import __version__
from .checkpoint import (
    Checkpoint,
    CheckpointWriter,
    agreement,
    dtype_differences,
    duplicate_inputs,
    open_checkpoint,
    refuse_scaled_f8,
)
from .dtypes import DType, parse_float
from .errors import IncompatibleError, SoupError
from .file_plan import FilePlan, Member
from .integers import check_policy
from .sizes import parse_size
from .weights import Mix, check_weights, mix

# Per thread: what a core's second-level cache holds beside the sum. More makes warm reads slower, not faster.
_CACHED_BUFFER = 1 << 20
# With many inputs, leaving the cache costs less than ever shorter reads: 4 times faster with 1,000 inputs.
_BYTES_PER_INPUT = 32 << 10
# What the rest of the process and the output's shards may have open.
_OTHER_DESCRIPTORS = 1024


@dataclass
class AverageReport:
    """What an average did, or with ``dry_run`` would do. Sizes in bytes, time in seconds."""

    output: str
    inputs: list[str]
    weights: list[float]
    tensors: int
    parameters: int
    bytes_read: int
    bytes_written: int
    memory_bytes: int
    threads: int
    isa: str
    dry_run: bool = False
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return asdict(self)


def average_checkpoints(
    paths: Sequence[str | os.PathLike[str] | Checkpoint],
    output: str | os.PathLike[str],
    weights: Sequence[float] | None = None,
    *,
    dtype: object = None,
    memory: str | int = "64MiB",
    threads: int | None = None,
    integers: str = "auto",
    keys: str = "same",
    normalize: bool = True,
    overwrite: bool = False,
    dry_run: bool = False,
    sync: bool | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> AverageReport:
    """Average K checkpoints into ``output``; the same bits as :func:`pysoup.average_state_dicts` of their tensors.

    ``paths`` are safetensors files, index files or Hugging Face directories. ``output`` ending in ``.safetensors`` is
    one file, else a directory with the shards of the first input and its config and tokenizer files. ``weights`` are K
    numbers, normalised to sum 1 unless ``normalize=False``; an ingredient of weight 0 is checked but not read.
    ``dtype`` is the floating-point type of the output, required where the inputs' types differ. ``memory`` bounds the
    buffers (bytes, or text such as ``"64MiB"``), in all and over all threads. ``keys="intersection"`` keeps the tensors
    that all inputs have, ``"union"`` averages each over the inputs that have it, not all of them of weight 0.
    ``integers``: see :func:`pysoup.average_state_dicts`. ``progress`` gets (bytes done, bytes in all).

    The output is written beside its place and renamed, so an old one is whole until the new one is. ``sync`` waits for
    the disk before the rename, which a power failure asks for and a killed process does not; by default that is done
    where an old output is replaced, since only there something could be lost.

    All headers are checked before any data is read, and ``dry_run`` stops there. Whatever fails, nothing is left behind
    and an old output stays whole. Raises :class:`CheckpointError`, :class:`IncompatibleError`, :class:`WeightsError`,
    :class:`OutputError`: one line each.
    """
    if isinstance(paths, (str, os.PathLike, Checkpoint)) or not paths:
        raise SoupError("no checkpoints to average", expected="a list of paths")
    budget, count = parse_size(memory), _native.threads_or_default(threads)
    check_policy(integers)
    values = check_weights(weights, len(paths))
    wanted = None if dtype is None else parse_float(dtype)
    checkpoints = [p if isinstance(p, Checkpoint) else open_checkpoint(p) for p in paths]
    names, aliases = agreement(checkpoints, keys)  # type: ignore[arg-type]
    for checkpoint in checkpoints:
        refuse_scaled_f8(checkpoint)
    types = _output_types(checkpoints, names, wanted)
    overall = mix(values, range(len(checkpoints)), normalize=normalize)
    writer = _writer(Path(output), checkpoints, names, types, aliases, overwrite, overall)
    writer.check()

    members = [Member(checkpoints[k], k) for k in overall.members]
    plan = FilePlan(members, names, types, integers, lambda present: mix(values, present, normalize=normalize))
    report = AverageReport(
        output=str(output),
        inputs=[str(c.path) for c in checkpoints],
        weights=_all_shares(overall.members, overall.shares, len(checkpoints)),
        tensors=len(names),
        parameters=sum(math.prod(_entry_shape(checkpoints, n)) for n in names),
        bytes_read=plan.bytes_read,
        bytes_written=writer.nbytes,
        memory_bytes=0,
        threads=count,
        isa=_native.active_isa(),
        dry_run=dry_run,
        notes=_notes(checkpoints, names, aliases, keys, writer),
    )
    report.threads, buffer_bytes = plan.fit(budget, count, max(_CACHED_BUFFER, len(members) * _BYTES_PER_INPUT))
    report.memory_bytes = report.threads * buffer_bytes
    if dry_run:
        return report
    started = time.perf_counter()
    if sync is None:
        sync = os.path.lexists(output)
    with open_members(members), writer:
        plan.run(
            writer,
            threads=report.threads,
            buffer_bytes=buffer_bytes,
            progress=progress,
        )
        for member in members:
            member.check_unchanged()
        writer.commit(sync=sync)
    report.seconds = time.perf_counter() - started
    return report


@contextmanager
def open_members(members: Sequence[Member]) -> Iterator[None]:
    """Opens every file of every member for the duration of the block."""
    _allow_descriptors(sum(len(member.checkpoint.files) for member in members))
    try:
        for member in members:
            member.open()
        yield
    finally:
        for member in members:
            member.close()


def _allow_descriptors(files: int) -> None:
    """Raises the soft limit of open files (often 1,024) where ``files`` more could exceed it, as far as allowed."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = files + _OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _entry_shape(checkpoints: Sequence[Checkpoint], name: str) -> tuple[int, ...]:
    return next(c.entry(name).shape for c in checkpoints if has(c, name))


def has(checkpoint: Checkpoint, name: str) -> bool:
    """Whether the checkpoint has a tensor of that name, stored or as an alias."""
    return name in checkpoint or name in checkpoint.aliases


def _output_types(checkpoints: Sequence[Checkpoint], names: Sequence[str], wanted: DType | None) -> list[DType]:
    """The type of each tensor in the output; inputs of different floating-point types need ``wanted``."""
    for name, found in dtype_differences(checkpoints, names):
        first = next(k for k, d in enumerate(found) if d is not None)
        other = next(k for k, d in enumerate(found) if d not in (None, found[first]))
        floats = all(d is None or d.kind == "float" for d in found)
        if wanted is None or not floats:
            expected = f"{found[first]} as in {checkpoints[first].path}" + ("; or give a dtype" if floats else "")
            raise IncompatibleError(
                "dtypes differ", file=checkpoints[other].path, tensor=name, found=found[other], expected=expected
            )
    types = (next(c.entry(name).dtype for c in checkpoints if has(c, name)) for name in names)
    return [wanted if wanted is not None and t.kind == "float" else t for t in types]


def _writer(
    output: Path,
    checkpoints: Sequence[Checkpoint],
    names: Sequence[str],
    types: Sequence[DType],
    aliases: Mapping[str, str],
    overwrite: bool,
    law: Mix,
) -> CheckpointWriter:
    """The output: in the order and with the shards of the first input, provenance in the metadata."""
    first = checkpoints[0]
    is_directory = output.suffix != ".safetensors" and (
        first.is_directory or output.suffix == "" or os.path.isdir(output)
    )
    one_file = not is_directory or not first.is_directory
    shards = ["model.safetensors"] if one_file else [f.name for f in first.files]
    layout: list[tuple[str, list[tuple[str, DType, tuple[int, ...]]]]] = [(shard, []) for shard in shards]
    for name, dtype in zip(names, types, strict=True):
        # Names that only later inputs have (union) go into the last shard.
        shard = 0 if one_file else first.entry(name).file if has(first, name) else len(shards) - 1
        layout[shard][1].append((name, dtype, _entry_shape(checkpoints, name)))
    metadata = {k: v for k, v in first.metadata.items() if not k.startswith("pysoup.")}
    metadata["pysoup.version"] = __version__
    metadata["pysoup.ingredients"] = json.dumps([str(checkpoints[k].path) for k in law.members])
    metadata["pysoup.weights"] = json.dumps(list(law.shares))
    return CheckpointWriter(
        output,
        [(shard, tensors) for shard, tensors in layout if tensors or len(layout) == 1],
        metadata=metadata,
        aliases=aliases,
        is_directory=is_directory,
        overwrite=overwrite,
        inputs=checkpoints,
        carry=first.files[0].parent if first.is_directory else None,
    )


def _all_shares(members: Sequence[int], shares: Sequence[float], count: int) -> list[float]:
    every = [0.0] * count
    for k, share in zip(members, shares, strict=True):
        every[k] = share
    return every


def _notes(
    checkpoints: Sequence[Checkpoint],
    names: Sequence[str],
    aliases: Mapping[str, str],
    keys: str,
    writer: CheckpointWriter,
) -> list[str]:
    """What the user should know and no error says."""
    notes = [
        f"{checkpoints[j].path} looks like a copy of {checkpoints[i].path}" for i, j in duplicate_inputs(checkpoints)
    ]
    if keys == "intersection":
        chosen = set(names) | set(aliases)
        dropped = {n for c in checkpoints for n in (*c, *c.aliases)} - chosen
        notes += [f"left out, not in all inputs: {n}" for n in sorted(dropped)]
    if keys == "union":
        for name in names:
            holders = sum(has(c, name) for c in checkpoints)
            if holders < len(checkpoints):
                notes.append(f"averaged over {holders} of {len(checkpoints)} inputs: {name}")
    if writer.carried:
        notes.append(f"copied from the first input: {', '.join(writer.carried)}")
    return notes
