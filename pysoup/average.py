"""Averaging files into a file: one pass over the bytes, in bounded memory, nothing half-written."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import _native
from .buffers import check_budget, fit_buffers, staged_minimum
from .checkpoint import (
    Checkpoint,
    agreement,
    align_names,
    refuse_scaled_f8,
)
from .checkpoint.find import open_found
from .checkpoint.output.preflight import check_space
from .dtypes import parse_float
from .file_plan import FilePlan, Member
from .integers import check_policy
from .names import NameFilter, Patterns, Rest, check_rest
from .output import OutputRequest, output_types, output_writer
from .remarks import input_notes, key_notes, nonfinite_notes
from .selection import Selection
from .sizes import parse_size
from .weights import Laws, Weights

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
    device: str = "cpu"
    """Where the sums were made: ``"cpu"``, with the instruction set ``isa``, or ``"cuda:0"``."""
    dry_run: bool = False
    seconds: float = 0.0
    nonfinite: list[str] = field(default_factory=list)
    """Tensors whose average holds NaN or an infinity."""
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return asdict(self)


def average_checkpoints(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Checkpoint],
    output: str | os.PathLike[str],
    weights: Weights | None = None,
    *,
    dtype: object = None,
    memory: str | int = "64MiB",
    threads: int | None = None,
    integers: str = "auto",
    keys: str = "same",
    normalize: bool = True,
    include: Patterns = (),
    exclude: Patterns = (),
    rest: Rest = "drop",
    entry: str | None = None,
    shard_size: str | int | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    sync: bool | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], object] | None = None,
) -> AverageReport:
    """Average K checkpoints into ``output``; the same bits as :func:`pysoup.average_state_dicts` of their tensors.

    ``paths`` are weight files (safetensors, torch's ``.pt``/``.pth``/``.bin``/``.ckpt``, ``.npz``), index files,
    directories of one model, directories or patterns that stand for several checkpoints; formats may be mixed.
    ``entry`` names the state dict to take where a file holds several (``"ema"``). ``output`` ending in
    ``.safetensors``, ``.pt`` or ``.pth`` is one file, else a directory of safetensors with the shards of the first
    input (or of at most ``shard_size`` bytes), its config and tokenizer files and a model card.

    ``weights`` are K numbers, normalised to sum 1 unless ``normalize=False``; an ingredient of weight 0 is checked but
    not read. They may differ by tensor: a mapping of the names of all averaged tensors to K numbers each, of which the
    report and the output's metadata have the mean over all elements. ``dtype`` is the floating-point type of the
    output, required where the inputs' types differ. ``memory`` bounds the buffers (bytes, or text such as ``"64MiB"``),
    in all and over all threads; large files that are not in the page cache are read past it, by more than ``threads``
    threads. ``keys="intersection"`` keeps the tensors that all inputs have, ``"union"`` averages each over the inputs
    that have it, not all of them of weight 0.
    ``integers``: see :func:`pysoup.average_state_dicts`. ``progress`` gets (bytes done, bytes in all).

    ``include`` and ``exclude`` are patterns on the names (see :class:`pysoup.names.NameFilter`). In what they leave out
    the inputs may differ. The output is without it (``rest="drop"``), or has it as the first input does (``"first"``).

    ``device="cuda"`` (the first one) or ``"cuda:1"`` sums on that GPU: the same bits, by way of ``memory`` bytes of
    pinned memory and as many on the device. A disk or a page cache that feeds the CPU is not sped up by it.

    The output is written beside its place and renamed, so an old one is whole until the new one is. ``sync`` waits for
    the disk before the rename, which a power failure asks for and a killed process does not; by default that is done
    where an old output is replaced, since only there something could be lost.

    All headers are checked before any data is read, and ``dry_run`` stops there. Whatever fails, nothing is left behind
    and an old output stays whole. Raises :class:`CheckpointError`, :class:`IncompatibleError`, :class:`WeightsError`,
    :class:`OutputError`: one line each. NaN and infinities in an ingredient are no error: they are in the result, and
    the report names the tensors.
    """
    budget, count = parse_size(memory), _native.threads_or_default(threads)
    gpu = _native.check_device(device)
    check_policy(integers)
    wanted = None if dtype is None else parse_float(dtype)
    chosen = NameFilter.of(include, exclude)
    check_rest(rest, chosen)
    notes: list[str] = []
    checkpoints = open_found(paths, entry, notes)
    laws = Laws(weights, len(checkpoints), normalize=normalize)
    common = "intersection" if chosen and keys == "same" else keys  # they may differ in what is left out
    checkpoints, matched = align_names(checkpoints, common)  # type: ignore[arg-type]
    selection = Selection(chosen, rest, checkpoints)
    checkpoints = selection.checkpoints
    names, aliases = agreement(checkpoints, keys)  # type: ignore[arg-type]
    for checkpoint in checkpoints:
        refuse_scaled_f8(checkpoint)
    names, aliases = selection.with_rest(names, aliases)
    types = output_types(selection.output, names, wanted)
    overall = laws.overall(len(checkpoints), selection.averaged(names, types))
    settings = _settings(
        normalize=normalize,
        dtype=None if wanted is None else wanted.short,
        integers=integers,
        keys=keys,
        entry=entry,
        weights="by tensor" if laws.by_tensor else None,
        include="|".join(chosen.include) or None,
        exclude="|".join(chosen.exclude) or None,
        rest=rest if rest == "first" else None,
        **{"shard-size": None if shard_size is None else str(shard_size)},
    )
    request = OutputRequest(Path(output), wanted, shard_size, overwrite, settings)
    writer = output_writer(request, selection.output, names, types, aliases, overall)
    writer.check()

    members = [Member(checkpoints[k], k) for k in overall.members] + selection.members
    plan = FilePlan(members, names, types, integers, selection.law(laws.of))
    if plan.scratch_bytes:
        check_space(Path(output), writer.nbytes + plan.scratch_bytes)
    report = AverageReport(
        output=str(output),
        inputs=[str(c.path) for c in checkpoints],
        weights=all_shares(overall.members, overall.shares, len(checkpoints)),
        tensors=len(names),
        parameters=sum(math.prod(_entry_shape(selection.output, n)) for n in names),
        bytes_read=plan.bytes_read,
        bytes_written=writer.nbytes,
        memory_bytes=0,
        threads=count,
        isa=_native.active_isa(),
        device="cpu" if gpu is None else f"cuda:{gpu}",
        dry_run=dry_run,
        notes=[*notes, *matched, *input_notes(checkpoints), *key_notes(checkpoints, names, aliases, keys)],
    )
    report.notes += selection.notes
    if writer.carried:
        report.notes.append(f"copied from the first input: {', '.join(writer.carried)}")
    if "config.json" in writer.rewritten:
        report.notes.append("config.json of the first input says the new dtype")
    if writer.is_directory and not checkpoints[0].is_directory and not os.path.isdir(output):
        report.notes.append(f"{output} is a directory; a name ending in .safetensors or .pt is one file")
    if writer.left:
        report.notes.append(f"not copied from the first input: {', '.join(writer.left)}")
    report.threads, buffer_bytes = fit_buffers(budget, count, plan.minimum_buffer, len(members))
    report.memory_bytes = report.threads * buffer_bytes
    if gpu is not None:
        check_budget(budget, staged_minimum(plan.minimum_buffer, len(members)))
        report.threads, report.memory_bytes = count, budget
    if dry_run:
        return report
    started = time.perf_counter()
    if sync is None:
        sync = os.path.lexists(output)
    _allow_descriptors(len(writer.shards) + 2 * sum(len(member.checkpoint.files) for member in members))
    with open_members(members, scratch=Path(output).absolute().parent), writer:
        report.threads, report.memory_bytes = plan.run(
            writer,
            threads=report.threads,
            buffer_bytes=buffer_bytes,
            budget=budget,
            progress=progress,
            device=gpu,
        )
        for member in members:
            member.check_unchanged()
        report.nonfinite = plan.nonfinite
        report.notes += nonfinite_notes(members, plan.nonfinite)
        writer.commit(sync=sync)
    report.seconds = time.perf_counter() - started
    return report


@contextmanager
def open_members(members: Sequence[Member], scratch: Path | None = None) -> Iterator[None]:
    """Opens every file of every member for the duration of the block; see :meth:`Member.open`."""
    # Twice: the native run may open each once more.
    _allow_descriptors(2 * sum(len(member.checkpoint.files) for member in members))
    try:
        for member in members:
            member.open(scratch)
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


def _settings(*, normalize: bool, **options: str | None) -> dict[str, str]:
    """The options that are not at their defaults, by their names on the command line."""
    given = {name: value for name, value in options.items() if value not in (None, "auto", "same")}
    return {k: str(v) for k, v in given.items()} | ({} if normalize else {"no-normalize": ""})


def all_shares(members: Sequence[int], shares: Sequence[float], count: int) -> list[float]:
    """The share of every input; 0 for those that take no part."""
    every = [0.0] * count
    for k, share in zip(members, shares, strict=True):
        every[k] = share
    return every
