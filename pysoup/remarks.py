"""What a user should know about an average and no error says: the notes of a report."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from . import _native
from .checkpoint import Checkpoint, duplicate_inputs
from .checkpoint.reading import reason
from .checkpoint.strict_json import clip
from .columns import ACC_F64, Columns, SourceColumn
from .errors import CheckpointError
from .file_plan import Member, read_error, real_parts

_SHOWN = 8
_LONGEST_NAME = 80
_ONE_FOR_ALL = ("config.json", "tokenizer.json", "adapter_config.json", "preprocessor_config.json")
_OF_ONE_SAVE = {"_name_or_path", "transformers_version", "torch_dtype", "dtype"}
_LARGEST_COMPARED = 32 << 20
_LORA = re.compile(r"(^|\.)lora_(A|B|down|up)(\.|$)")
_SHARD = re.compile(r"-\d{4,}-of-\d{4,}\.")
_LONGEST_SHOWN = 200
_PROBED = 16
_PROBE_BUFFER = 1 << 20


def input_notes(checkpoints: Sequence[Checkpoint], in_memory: int = 0) -> list[str]:
    """Copies among the inputs, nested entries that were taken, what was left out of the files, what is odd about them.

    ``in_memory`` counts inputs that are no files: with them one file is not the only input.
    """
    notes = ["one checkpoint only: the result is a copy of it"] if len(checkpoints) == 1 and not in_memory else []
    for i, j in duplicate_inputs(checkpoints):
        one, other = str(checkpoints[i].path), str(checkpoints[j].path)
        notes.append(f"{one} is given twice" if one == other else f"{other} looks like a copy of {one}")
    if checkpoints and any(_LORA.search(name) for name in checkpoints[0]):
        notes.append(
            "these are LoRA adapters: the mean of A and of B is not that of their products (see `pysoup adapters`)"
        )
    shards = [str(c.path) for c in checkpoints if not c.is_directory and _SHARD.search(c.path.name)]
    if shards:
        notes.append(f"one shard of a model only, not all of it: {_some(shards)}")
    notes += _differing_files(checkpoints)
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
    if keys == "intersection":
        chosen = set(names) | set(aliases)
        dropped = {n for c in checkpoints for n in (*c, *c.aliases)} - chosen
        return [f"left out, not in all inputs: {_names(sorted(dropped))}"] if dropped else []
    partial: dict[int, list[str]] = {}
    for name in names if keys == "union" else ():
        holders = sum(name in c or name in c.aliases for c in checkpoints)
        if holders < len(checkpoints):
            partial.setdefault(holders, []).append(name)
    return [f"averaged over {n} of {len(checkpoints)} inputs: {_names(some)}" for n, some in sorted(partial.items())]


def nonfinite_notes(members: Sequence[Member], names: Sequence[str]) -> list[str]:
    """Which tensors of the average hold NaN or infinities, and which ingredients brought them; files still open."""
    notes = []
    for name, holders in _sources_of_nonfinite(members, names[:_PROBED]).items():
        where = f"in {_some(holders)}" if holders else "its mean is out of range"
        notes.append(f"NaN or infinity in tensor {_quoted(name)}: {where}")
    if len(names) > _PROBED:
        notes.append(f"NaN or infinity in {len(names) - _PROBED} more tensors: {_some(map(_brief, names[_PROBED:]))}")
    return notes


def _differing_files(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Directories of models that are meant to be read differently: another tokenizer, another configuration."""
    notes = []
    folders = [c.files[0].parent for c in checkpoints if c.is_directory]
    for name in _ONE_FOR_ALL:
        contents = [_small(folder / name) for folder in folders]
        for folder, content in zip(folders[1:], contents[1:], strict=True):
            if content and contents[0] and content != contents[0]:
                keys = _differing_keys(contents[0], content)
                if keys != []:
                    what = "" if keys is None else f" in {_some(keys)}"
                    notes.append(f"{name} of {folder} differs from the first input's{what}")
    return notes


def _small(path: Path) -> bytes | None:
    try:
        return path.read_bytes() if path.is_file() and path.stat().st_size <= _LARGEST_COMPARED else None
    except OSError:
        return None


def _differing_keys(one: bytes, other: bytes) -> list[str] | None:
    """The top-level keys of two JSON objects whose values differ; None where they are no such thing."""
    import json

    try:
        first, second = json.loads(one), json.loads(other)
    except (ValueError, RecursionError):
        return None
    if type(first) is not dict or type(second) is not dict:
        return None
    keys = (first.keys() | second.keys()) - _OF_ONE_SAVE
    return sorted(key for key in keys if first.get(key) != second.get(key))


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


def _names(names: Iterable[str]) -> str:
    return _some(clip(name, _LONGEST_NAME) for name in names)


def _some(texts: Iterable[str]) -> str:
    every = list(texts)
    rest = len(every) - _SHOWN
    return ", ".join(every[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
