"""Which checkpoints are meant: what users type (paths, patterns, folders of checkpoints) as a list, in natural order.

:mod:`.index` says what one model is; this module only tells one model from several.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

from ..errors import CheckpointError
from .checkpoint import Checkpoint, open_checkpoint
from .index import DISTRIBUTED_SUFFIX, INDEX_SUFFIXES, PREFERRED, SUFFIXES, is_weights, natural_key, resolve
from .reading import reason
from .strict_json import clip

_PATTERN = re.compile(r"[*?[]")
_LISTED = 5
SUMMARY, START = "sweep.json", "start"
"""What a sweep has beside its checkpoints: the list of them, and the folder of the start of all."""
_HEAD = 64
_OPTIMIZER = re.compile(r"optimizer(_[0-9]+)?")
"""The directory of an optimizer's state beside that of the weights, where both are distributed checkpoints."""
# Best first, where one directory has a model in several formats.
_FORMATS = (INDEX_SUFFIXES[0], SUFFIXES[0], INDEX_SUFFIXES[1], *SUFFIXES[1:])
# Zero-padded, as transformers numbers shards: `fold-1-of-5.pt` is a model.
_NUMBERED = re.compile(r"(.*?)([0-9]{4,})-of-([0-9]{4,})(.*)", re.DOTALL)
# Tensor-parallel pieces have the same names and often the same shapes: averaged, they would pass for a model.
_PIECE = re.compile(r"(^consolidated\.|[dmpt]p_rank_)[0-9]+")
_DISTRIBUTED_PIECE = re.compile(r"shard-[0-9]+-(model-[0-9]+-of-[0-9]+\.safetensors)")
"""As torch.distributed.checkpoint names safetensors before it consolidates them."""


class _Found(NamedTuple):
    """``left_out``: what is not taken although its name would do, with the reason."""

    paths: list[Path]
    left_out: list[str]


@overload
def find_checkpoints(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], notes: list[str] | None = None
) -> list[Path]: ...


@overload
def find_checkpoints(
    paths: str | os.PathLike[str] | Checkpoint | Iterable[str | os.PathLike[str] | Checkpoint],
    notes: list[str] | None = None,
) -> list[Path | Checkpoint]: ...


@overload
def find_checkpoints(paths: Iterable[Any], notes: list[str] | None = None) -> list[Any]: ...


def find_checkpoints(paths: Any, notes: list[str] | None = None) -> list[Any]:
    """The checkpoints that ``paths`` stand for, one path a model, in the given order.

    A path that exists is itself, unless it is a folder of checkpoints: a directory of several weight files without an
    index, or without weights of its own and with directories of one model each. A folder, and a pattern (``*``, ``?``,
    ``[...]``, ``**``) that is no existing path, stand for the checkpoints in it, sorted naturally; hidden files,
    trainers' own states and what has no checkpoint's suffix are left out, and of one model in several formats the
    first of safetensors, torch's and numpy's is taken. Such a checkpoint is added once only, however it was named
    before; a path that is given twice stays twice. What is no path (an open :class:`Checkpoint`) passes untouched.

    ``notes`` gets a line for each folder and pattern: how many it stands for, and what was left out. Raises
    CheckpointError: nothing given, nothing matched, or shards taken for models.
    """
    if not isinstance(paths, (str, os.PathLike, Checkpoint, Iterable)):
        raise CheckpointError("no checkpoints given", found=type(paths).__name__, expected="a list of paths")
    result: list[Any] = []
    known: dict[str, Path] = {}
    for item in [paths] if isinstance(paths, (str, os.PathLike, Checkpoint)) else paths:
        if not isinstance(item, (str, os.PathLike)):
            result.append(item)
            if isinstance(item, Checkpoint):
                known.setdefault(_file_of(item.path), item.path)
            continue
        given = os.fsdecode(item)
        found = _expand(given)
        if found is None:
            result.append(Path(given))
            known.setdefault(_file_of(Path(given)), Path(given))
            continue
        added = 0
        for path in found.paths:
            file = _file_of(path)
            if file in known:
                same = "given already" if known[file] == path else f"the same file as {known[file].name}"
                found.left_out.append(f"{path.name} ({same})")
            else:
                known[file] = path
                result.append(path)
                added += 1
        if notes is not None:
            notes.append(_summary(given, added, found.left_out))
    if not result:
        raise CheckpointError("no checkpoints given")
    _refuse_shards([path for path in result if isinstance(path, Path)], alone=False)
    return result


def open_found(
    paths: str | os.PathLike[str] | Checkpoint | Iterable[str | os.PathLike[str] | Checkpoint],
    entry: str | None = None,
    notes: list[str] | None = None,
) -> list[Checkpoint]:
    """The checkpoints that ``paths`` stand for, opened, with the nested ``entry`` where there is a choice.

    Raises CheckpointError, also where no file has that entry.
    """
    found = find_checkpoints(paths, notes)
    checkpoints = [path if isinstance(path, Checkpoint) else open_checkpoint(path, entry) for path in found]
    if entry and not any(c.entry_name == entry.rstrip("/") for c in checkpoints):
        names = sorted({c.entry_name for c in checkpoints} - {""})
        raise CheckpointError("no input has that entry", found=repr(entry), expected=", ".join(names) or "no entry")
    return checkpoints


def stem(name: str) -> str:
    """A weight or index file's name without its suffix; other names (directories) as they are."""
    suffix = next((s for s in _FORMATS if name.endswith(s)), "")
    return name.removesuffix(suffix)


def _expand(given: str) -> _Found | None:
    """The checkpoints in a folder or of a pattern; None for what is a path of one checkpoint, or of nothing."""
    if not given:
        raise CheckpointError("an empty path is no checkpoint")
    if os.path.isdir(given):
        found = _inside(Path(given))
        if not found.paths:
            # Says what the directory holds instead.
            resolve(Path(given))
        return None if found.paths in ([], [Path(given)]) else found
    if os.path.lexists(given) or not _PATTERN.search(given):
        return None
    return _matching(given)


def _matching(pattern: str) -> _Found:
    import glob

    try:
        matches = [Path(name) for name in set(glob.glob(pattern, recursive=True))]
    except (ValueError, re.error):
        matches = []
    if not matches:
        raise CheckpointError("no file matches the pattern", file=pattern)
    directories, files = _Found([], []), []
    for path in (p for p in matches if not p.name.startswith(".")):
        if os.path.isdir(path):
            # Of `**`, the directories further down are matches themselves.
            inside = _own(path) if "**" in pattern else _inside(path)
            directories.paths.extend(inside.paths)
            directories.left_out.extend(inside.left_out)
        elif path.name.endswith(INDEX_SUFFIXES) or is_weights(path.name):
            files.append(path)
    models = set(directories.paths)
    files = [path for path in files if path.parent not in models]
    _refuse_shards(files, alone=True)
    chosen, left_out = _one_format_each(files)
    paths = sorted({*models, *chosen}, key=_order)
    if not paths:
        names = ", ".join(clip(p.name, 60) for p in sorted(matches, key=_order)[:_LISTED])
        raise CheckpointError("nothing that matches the pattern is a checkpoint", file=pattern, found=names)
    return _Found(paths, sorted({*directories.left_out, *left_out}))


def _inside(directory: Path) -> _Found:
    """The models of a directory: itself, its weight files, or else the directories in it that are one model."""
    found = _own(directory)
    if found.paths:
        return found
    names, folders = _listing(directory)
    if _is_sweep(directory, names, folders):
        what = f"no run of this fine-tuning sweep has finished yet; its start is {START}/{START}{SUFFIXES[0]}"
        raise CheckpointError(what, file=directory)
    if "model_index.json" in names:
        what = "a pipeline of several models, not one; give one of its directories"
        raise CheckpointError(what, file=directory, found=", ".join(clip(n, 60) for n in folders[:_LISTED]))
    models, left_out = [], []
    for folder in folders:
        inside = _own(directory / folder)
        if inside.paths and inside.paths != [directory / folder]:
            what = f"its directory {clip(folder, 60)!r} is not one model; give that directory, or a pattern"
            raise CheckpointError(what, file=directory, found=f"{len(inside.paths)} checkpoints in it")
        if inside.paths and _OPTIMIZER.fullmatch(folder):
            left_out.append(f"{folder} (an optimizer's state)")
        else:
            models += inside.paths
    return _Found(models, left_out)


def _is_sweep(directory: Path, names: Sequence[str], folders: Sequence[str]) -> bool:
    """Whether ``pysoup finetune`` works here and no run has ended: there is the start alone, or what runs began."""
    if SUMMARY in names:
        try:
            with open(directory / SUMMARY, "rb") as file:
                return b'"pysoup"' in file.read(_HEAD)
        except OSError as error:
            raise CheckpointError(reason(error), file=directory / SUMMARY) from None
    return list(folders) == [START] and os.path.exists(directory / START / f"{START}{SUFFIXES[0]}")


def _own(directory: Path) -> _Found:
    """The same without a look further down; empty where there are no weights."""
    names, _ = _listing(directory)
    if any(n.endswith(DISTRIBUTED_SUFFIX) for n in names):
        return _Found([directory], [])
    if any(n.endswith(INDEX_SUFFIXES) for n in names) or not set(names).isdisjoint(PREFERRED):
        return _Found([directory], [])
    files = [directory / n for n in names if is_weights(n)]
    _refuse_shards(files, alone=True)
    found = _one_format_each(files)
    return _Found([directory], []) if len(found.paths) == 1 else found


def _listing(directory: Path) -> tuple[list[str], list[str]]:
    """Names of the files and of the directories in ``directory``, hidden ones left out, in natural order."""
    try:
        with os.scandir(directory) as entries:
            kinds = {entry.name: os.path.isdir(entry) for entry in entries if not entry.name.startswith(".")}
    except OSError as error:
        raise CheckpointError(reason(error), file=directory) from None
    names = sorted(kinds, key=lambda name: (natural_key(name), name))
    return [n for n in names if not kinds[n]], [n for n in names if kinds[n]]


def _one_format_each(files: Sequence[Path]) -> _Found:
    """One file for each model: files of a directory that differ in their suffix alone are the same one."""
    formats: dict[tuple[Path, str], list[Path]] = {}
    for path in sorted(files, key=_order):
        # As Hugging Face calls them: model.safetensors, pytorch_model.bin.
        name = stem(path.name).replace("pytorch_model", "model")
        formats.setdefault((path.parent, name), []).append(path)
    chosen, left_out = [], []
    for same in formats.values():
        best, *others = sorted(same, key=lambda path: _FORMATS.index(path.name.removeprefix(stem(path.name))))
        chosen.append(best)
        left_out += [f"{other.name} (the same model as {best.name})" for other in others]
    return _Found(chosen, left_out)


def _refuse_shards(files: Sequence[Path], *, alone: bool) -> None:
    """Raise CheckpointError for several shards of one model, and with ``alone`` for a single one of several."""
    sets: dict[tuple[Path, object], Path] = {}
    for path in files:
        key = _shard_of(path.name)
        if key is None:
            continue
        first = sets.setdefault((path.parent, key), path)
        if first != path or (alone and isinstance(key, tuple)):
            what = "a shard is no model of its own; give its index, or the directory that holds it and its index"
            raise CheckpointError(what, file=path)


def _shard_of(name: str) -> object:
    """What the shards of one model have in common in their names, or None: a tuple where the count is part of it."""
    if match := _DISTRIBUTED_PIECE.fullmatch(name):
        return f"shard-*-{match[1]}"
    if match := _NUMBERED.fullmatch(name):
        return (match[1], match[3], match[4]) if int(match[3]) > 1 else None
    piece = _PIECE.sub(r"\1*", name)
    return piece if piece != name else None


def _file_of(path: Path) -> str:
    """What tells that two paths are one file or directory: symbolic links are followed."""
    try:
        return os.path.realpath(path)
    except ValueError:
        return str(path)


def _order(path: Path) -> tuple[list[list[str | int]], str]:
    return [natural_key(part) for part in path.parts], str(path)


def _summary(given: str, count: int, left_out: Sequence[str]) -> str:
    text = f"{given}: {count:,} checkpoint{'' if count == 1 else 's'}"
    if left_out:
        more = f" and {len(left_out) - _LISTED:,} more" if len(left_out) > _LISTED else ""
        text += f", without {', '.join(left_out[:_LISTED])}{more}"
    return text
