"""Do checkpoints fit together: names, shapes, types, ties; and are some of them the same bytes twice.

Names here are logical names: what is stored, and the aliases of tied tensors. So a file that stores ``lm_head.weight``
once as an alias of ``embed.weight`` agrees with one that stores both.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal, NamedTuple

from ..dtypes import DType
from ..errors import CheckpointError, IncompatibleError
from ..prefixes import Unwrapped, described, matched
from .checkpoint import Checkpoint, TensorEntry
from .contents import Pieces, Strided
from .reading import open_file, read_exactly
from .strict_json import clip

Keys = Literal["same", "intersection", "union"]

_SHOWN = 5
_PROBE_BYTES = 64
_PROBES = 1024
_FIRST_PROBES = 8


class DTypeDifference(NamedTuple):
    """One tensor whose type differs; ``dtypes`` has one item a checkpoint, None where it lacks the tensor."""

    name: str
    dtypes: tuple[DType | None, ...]


def require_same(checkpoints: Sequence[Checkpoint], keys: Keys = "same") -> list[str]:
    """The names to average, in the order of the first checkpoint (``"union"``: then those of later ones).

    Names tied in every checkpoint that has them come once; :func:`agreement` gives the others. Raises
    IncompatibleError where names differ (``keys="same"``), where no name is left, or where a shape differs.
    """
    return agreement(checkpoints, keys)[0]


def align_names(checkpoints: Sequence[Checkpoint], keys: Keys = "same") -> tuple[list[Checkpoint], list[str]]:
    """Checkpoints whose names differ from the first's by wrappers alone take its names; and a note for each of them.

    See :mod:`pysoup.prefixes`; with ``keys`` other than "same" they need not have all the same names. Where all have
    the same wrappers, the names stay, and one note says so.
    """
    if not checkpoints:
        return [], []
    reference = [*checkpoints[0], *checkpoints[0].aliases]
    aligned, notes = align_names_to(reference, checkpoints[1:], "the first input", keys)
    if wrappers := Unwrapped(reference).wrappers:
        notes.append(f"tensor names keep {described(wrappers)} as in the first input")
    return [checkpoints[0], *aligned], notes


def align_names_to(
    reference: Sequence[str], checkpoints: Sequence[Checkpoint], whose: str, keys: Keys = "same"
) -> tuple[list[Checkpoint], list[str]]:
    """Checkpoints whose names differ from ``reference`` by wrappers alone take these; and a note for each of them."""
    aligned, notes = [], []
    for checkpoint in checkpoints:
        match = matched([*checkpoint, *checkpoint.aliases], reference, all_of_them=keys == "same")
        aligned.append(checkpoint if match is None else checkpoint.renamed(match[0]))
        if match is not None:
            notes.append(f"{checkpoint.path} {match[1]} in its tensor names: matched to those of {whose}")
    return aligned, notes


def dtype_differences(checkpoints: Sequence[Checkpoint], names: Iterable[str]) -> list[DTypeDifference]:
    """The tensors among ``names`` that do not have one type in all the checkpoints that hold them."""
    differences = []
    for name in names:
        found = tuple(c.entry(name).dtype if _has(c, name) else None for c in checkpoints)
        if len(set(found) - {None}) > 1:
            differences.append(DTypeDifference(name, found))
    return differences


def refuse_scaled_f8(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError if 8-bit float weights come with scale tensors: their mean is not the mean of the bytes.

    Known layouts: ``W_scale`` and ``W_scale_inv`` (DeepSeek, compressed-tensors), ``scale_W`` beside W (ComfyUI).
    """
    for name in checkpoint:
        if not checkpoint.entry(name).dtype.name.startswith("F8_"):
            continue
        parent, dot, leaf = name.rpartition(".")
        for scale in (f"{name}_scale", f"{name}_scale_inv", f"{parent}{dot}scale_{leaf}"):
            if scale in checkpoint:
                what = f"8-bit weights with a scale ({clip(scale)!r}) cannot be averaged; dequantise them first"
                file = checkpoint.files[checkpoint.entry(name).file]
                raise CheckpointError(what, file=file, tensor=clip(name))


def duplicate_inputs(checkpoints: Sequence[Checkpoint]) -> list[tuple[int, int]]:
    """Pairs ``(i, j)``, i < j, where j seems to be a copy of i (the first such i): to be reported, not proven.

    Same files by inode, or same sizes and headers and equal bytes at up to 1,024 places, one in the middle of each
    tensor. Files that differ are told apart by the first few probes.
    """
    pairs = []
    alike: dict[object, list[int]] = {}
    for j, later in enumerate(checkpoints):
        # Models of one kind differ in their first probes: only what agrees there is compared in pairs.
        group = alike.setdefault(_fingerprint(later), [])
        first = next((i for i in group if _seem_equal(checkpoints[i], later)), None)
        if first is None:
            group.append(j)
        else:
            pairs.append((first, j))
    return pairs


def agreement(checkpoints: Sequence[Checkpoint], keys: Keys = "same") -> tuple[list[str], dict[str, str]]:
    """:func:`require_same`, and alias -> name for the names tied in every checkpoint: these stay tied in a soup."""
    if not checkpoints:
        raise IncompatibleError("no checkpoints given")
    if keys not in ("same", "intersection", "union"):
        raise IncompatibleError("invalid keys", found=repr(keys), expected="'same', 'intersection' or 'union'")
    logical = [dict.fromkeys([*c, *c.aliases]) for c in checkpoints]
    first = logical[0]
    if keys == "same":
        _check_names(checkpoints, logical)
    elif keys == "intersection":
        first = {name: None for name in first if all(name in other for other in logical[1:])}
        if not first:
            raise IncompatibleError("no tensor name is in all checkpoints", file=checkpoints[0].path)
    else:
        first = {name: None for names in logical for name in names}
    _check_shapes(checkpoints, first)
    return _split_tied(checkpoints, first)


def _has(checkpoint: Checkpoint, name: str) -> bool:
    return name in checkpoint or name in checkpoint.aliases


def _split_tied(checkpoints: Sequence[Checkpoint], names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Names that every checkpoint resolves to one stored tensor are one tensor: the first name stands for them."""
    if not any(c.aliases for c in checkpoints):
        return list(names), {}
    kept: list[str] = []
    aliases: dict[str, str] = {}
    owners: dict[tuple[str | None, ...], str] = {}
    for name in names:
        stored = tuple(c.aliases.get(name, name if name in c else None) for c in checkpoints)
        owner = owners.setdefault(stored, name)
        if owner == name:
            kept.append(name)
        else:
            aliases[name] = owner
    return kept, aliases


def _check_names(checkpoints: Sequence[Checkpoint], logical: Sequence[dict[str, None]]) -> None:
    reference = logical[0]
    differing = [j for j, names in enumerate(logical) if names.keys() != reference.keys()]
    if not differing:
        return
    parts = [_difference(checkpoints, logical, j) for j in differing[:3]]
    if len(differing) > 3:
        parts.append(f"{len(differing) - 3} more files differ")
    what = f"tensor names differ from {checkpoints[0].path}: {'; '.join(parts)}"
    raise IncompatibleError(what, file=checkpoints[differing[0]].path)


def _difference(checkpoints: Sequence[Checkpoint], logical: Sequence[dict[str, None]], j: int) -> str:
    reference, names = logical[0], logical[j]
    hint = _prefix_hint(reference, names)
    if hint:
        return f"{checkpoints[j].path} {hint}"
    parts = []
    if missing := [name for name in reference if name not in names]:
        parts.append(f"lacks {_listed(missing)}")
    if extra := [name for name in names if name not in reference]:
        parts.append(f"has also {_listed(extra)}")
    hint = ' (keys="intersection", --keys, averages what all have)' if len(missing) < len(reference) else ""
    return f"{checkpoints[j].path} {' and '.join(parts)}{hint}"


def _prefix_hint(reference: dict[str, None], names: dict[str, None]) -> str | None:
    """What to say where wrappers are the whole difference."""
    match = matched(list(names), list(reference))
    return None if match is None else f"{match[1]} in its names"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(clip(name, 80)) for name in names[:_SHOWN])
    rest = len(names) - _SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown


def _check_shapes(checkpoints: Sequence[Checkpoint], names: Iterable[str]) -> None:
    bad: list[tuple[str, int, int]] = []
    for name in names:
        holders = [i for i, c in enumerate(checkpoints) if _has(c, name)]
        shape = checkpoints[holders[0]].entry(name).shape
        for j in holders[1:]:
            if checkpoints[j].entry(name).shape != shape:
                bad.append((name, holders[0], j))
                break
    if bad:
        name, i, j = bad[0]
        rest = f" (and those of {len(bad) - 1} more tensors)" if len(bad) > 1 else ""
        expected = f"{list(checkpoints[i].entry(name).shape)} as in {checkpoints[i].path}"
        found = list(checkpoints[j].entry(name).shape)
        what = f"shape differs{rest}"
        raise IncompatibleError(what, file=checkpoints[j].path, tensor=clip(name), found=found, expected=expected)


def _fingerprint(checkpoint: Checkpoint) -> object:
    """Headers, sizes and the first few probes: equal for copies."""
    sizes = tuple(stamp.size for stamp in checkpoint.stamps)
    return checkpoint.digests, sizes, tuple(islice(_probes(checkpoint), _FIRST_PROBES))


def _seem_equal(a: Checkpoint, b: Checkpoint) -> bool:
    """Whether two checkpoints of one fingerprint are the same files, or have all probes in common."""
    same_files = all(x[:2] == y[:2] for x, y in zip(a.stamps, b.stamps, strict=True))
    return same_files or all(x == y for x, y in zip(_probes(a), _probes(b), strict=True))


def _probes(checkpoint: Checkpoint) -> Iterator[bytes]:
    """A few bytes from the middle of up to 1,024 tensors, the last ones (often the head) first: they differ most."""
    names = list(checkpoint)
    step = max(1, len(names) // _PROBES)
    opened: dict[int, int] = {}
    try:
        for name in names[::-step]:
            entry = checkpoint.entry(name)
            if entry.file not in opened:
                opened[entry.file] = open_file(checkpoint.files[entry.file])
            extent = _extent(entry)
            buffer = bytearray(min(_PROBE_BYTES, extent))
            offset = entry.offset + (extent - len(buffer)) // 2
            read_exactly(opened[entry.file], memoryview(buffer), offset, checkpoint.files[entry.file], name)
            yield bytes(buffer)
    finally:
        for fd in opened.values():
            os.close(fd)


def _extent(entry: TensorEntry) -> int:
    """Bytes of the file from the entry's offset on that belong to it."""
    if isinstance(entry.form, Strided):
        return entry.form.span
    if isinstance(entry.form, Pieces):
        return math.prod(entry.form.boxes[0].sizes) * entry.dtype.itemsize
    return entry.nbytes if entry.form is None else entry.form.size
