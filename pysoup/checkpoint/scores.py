"""The best checkpoints by a score that is on record: a JSON or JSONL file beside them, as training scripts leave it.

A record belongs to the checkpoint that it names: by its path, seen from the file of scores or absolute, by the end of
its path or by its file name, each with or without the suffix.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError, SoupError
from .find import stem
from .index import natural_key
from .reading import open_file, read_exactly, reason
from .strict_json import clip, describe, parse_strict

MOST_BYTES = 4 << 20
"""Of a file of scores: ten thousand checkpoints with a few dozen metrics each."""
PLAIN = "score"
"""The metric's name where a file has nothing but one number for each checkpoint."""

_LINES = (".jsonl", ".ndjson")
_SUFFIXES = (".json", *_LINES)
_NAMES = ("path", "file", "filename", "checkpoint", "ingredient", "model", "model_name", "name")
_LISTED = 5
_ABSENT = object()


class _Record(NamedTuple):
    """What a file says of one checkpoint; ``where`` is its place in the file, for errors."""

    where: str
    names: list[str]
    values: object


class _Scores(NamedTuple):
    """A file of scores; ``matched`` has the records of each checkpoint, which may be none.

    ``smaller`` where the file itself says that of its :data:`PLAIN` scores the smaller one is better, and ``metric``
    what they are, as the summary of a sweep does.
    """

    file: Path
    matched: list[list[_Record]]
    smaller: bool = False
    metric: str = ""

    def values(self, position: int, metric: str) -> list[tuple[str, object]]:
        """Place and value of every record of a checkpoint that has the metric."""
        found = ((record.where, _metric(record.values, metric)) for record in self.matched[position])
        return [(where, value) for where, value in found if value is not _ABSENT]


def select_top(
    paths: Sequence[str | os.PathLike[str]],
    top: int,
    by: str,
    scores: str | os.PathLike[str] | None = None,
    *,
    lowest: bool = False,
    notes: list[str] | None = None,
) -> list[tuple[Path, float]]:
    """The ``top`` checkpoints with the highest (``lowest``: smallest) score ``by``, best first, with their scores.

    Of the plain ``"score"`` the smallest are taken, too, where the file has ``"direction": "min"`` beside its records.
    Checkpoints with equal scores stay in the given order. If there are fewer than ``top``, all are taken. ``scores``
    names the file: JSON, as an object of checkpoint names with objects of metrics or plain numbers (which are called
    ``"score"``) or as a list of records, or such a list inside an object; or JSONL, a record a line. A record is an
    object that names its checkpoint under ``path``, ``file``, ``filename``, ``checkpoint``, ``ingredient``, ``model``,
    ``model_name`` or ``name``. Metrics in nested objects have dotted names. Without ``scores`` the one such file in
    the directory that holds the checkpoints is taken.

    ``notes`` gets a line on the choice and one for each checkpoint chosen. Raises CheckpointError: a checkpoint
    without a score, or with two different ones; a name that fits several checkpoints; a score that is no finite
    number; a metric that is not there; no file of scores, or several.
    """
    if top < 1:
        raise SoupError("the number of checkpoints to choose must be positive", found=top)
    items = [Path(path) for path in paths]
    if not items:
        raise CheckpointError("no checkpoints to choose from")
    # A path given twice is one checkpoint with one score.
    distinct = list(dict.fromkeys(map(_absolute, items)))
    table = _Names(distinct)
    found = _read(Path(scores), table) if scores is not None else _beside(items, table, by)
    shown = {_absolute(item): item for item in items}
    by_path = {path: _score(found, position, by, shown[path]) for position, path in enumerate(distinct)}
    lowest = lowest or (by == PLAIN and found.smaller)
    ranked = sorted(((item, by_path[_absolute(item)]) for item in items), key=lambda pair: pair[1], reverse=not lowest)
    chosen = ranked[:top]
    if notes is not None:
        fewer = f" ({top} asked for)" if top > len(items) else ""
        order = "lowest" if lowest else "highest"
        notes.append(f"{len(chosen)} of {len(items)} checkpoints{fewer} by {by} in {found.file}, {order} first")
        notes += [f"{by} {score:.6g}: {path}" for path, score in chosen]
    return chosen


class _Names:
    """Finds the checkpoint that a name in a file of scores means."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.count = len(paths)
        self._full: list[dict[Path, list[int]]] = [{}, {}]
        self._last: list[dict[str, list[tuple[int, tuple[str, ...]]]]] = [{}, {}]
        for position, path in enumerate(paths):
            for kind, form in enumerate((path, path.parent / stem(path.name))):
                self._full[kind].setdefault(form, []).append(position)
                self._last[kind].setdefault(form.name, []).append((position, form.parts))

    def find(self, name: str, directory: Path) -> list[int]:
        """Positions of the checkpoints that fit best; several where the name does not tell them apart."""
        path = _absolute(directory / name)
        for full in self._full:
            if path in full:
                return full[path]
        parts = Path(os.path.normpath(name)).parts
        for last in self._last:
            ends = last.get(parts[-1] if parts else "", [])
            if fitting := [position for position, whole in ends if whole[-len(parts) :] == parts]:
                return fitting
        return []


def _beside(items: Sequence[Path], table: _Names, by: str) -> _Scores:
    """The one file that scores the checkpoints; of several, the one that has the metric for all of them."""
    directory = _shared_directory(items)
    try:
        names = sorted(os.listdir(directory), key=lambda name: (natural_key(name), name))
    except OSError as error:
        raise CheckpointError(reason(error), file=directory) from None
    scoring, unreadable = [], []
    for name in names:
        if name.startswith(".") or not name.endswith(_SUFFIXES):
            continue
        try:
            scores = _read(directory / name, table)
        except CheckpointError as error:
            unreadable.append(str(error))
            continue
        if any(scores.matched):
            scoring.append(scores)
    if len(scoring) > 1:
        complete = [s for s in scoring if all(s.values(position, by) for position in range(table.count))]
        scoring = complete or scoring
    if len(scoring) == 1:
        return scoring[0]
    if scoring:
        raise CheckpointError(
            "several files score the checkpoints, name one",
            file=directory,
            found=_listed([s.file.name for s in scoring]),
        )
    expected = f"a JSON or JSONL file with {by} of each"
    raise CheckpointError(
        "no file here scores the checkpoints",
        file=directory,
        found=unreadable[0] if unreadable else None,
        expected=expected,
    )


def _shared_directory(items: Sequence[Path]) -> Path:
    """The directory that all checkpoints are in, at whatever depth; relative if they all are."""
    shared = os.path.commonpath([_absolute(item).parent for item in items])
    return Path(shared) if any(item.is_absolute() for item in items) else Path(os.path.relpath(shared))


def _read(file: Path, table: _Names) -> _Scores:
    """The records of ``file`` that belong to the checkpoints. Raises CheckpointError."""
    scores = _Scores(file, [[] for _ in range(table.count)])
    for record in _records(file):
        fitting = ((name, table.find(name, file.parent)) for name in record.names)
        name, positions = next(((name, found) for name, found in fitting if found), ("", []))
        if len(positions) > 1:
            raise CheckpointError(f"{record.where}: {clip(name)!r} fits {len(positions)} of the checkpoints", file=file)
        if positions:
            scores.matched[positions[0]].append(record)
        elif record.names == ["direction"] and record.values == "min":
            scores = scores._replace(smaller=True)
        elif record.names == ["metric"] and isinstance(record.values, str):
            scores = scores._replace(metric=record.values)
    return scores


def _records(file: Path) -> Iterator[_Record]:
    raw = _content(file)
    if file.name.endswith(_LINES):
        for number, line in enumerate(raw.split(b"\n"), 1):
            if line.strip():
                yield _named(parse_strict(line, file, f"line {number}"), f"line {number}", file)
        return
    if not raw.lstrip().startswith(b"["):
        for key, value in parse_strict(raw, file, "file of scores").items():
            yield _Record(repr(clip(key)), [key], value)
            if isinstance(value, list):
                # A list of records among other facts, such as the summary of a sweep.
                for item in value:
                    if type(item) is dict and (names := _names_in(item)):
                        yield _Record(f"record of {clip(names[0])!r}", names, item)
        return
    wrapped = parse_strict(b'{"":' + raw + b"}", file, "file of scores")
    records = wrapped.get("")
    if len(wrapped) != 1 or not isinstance(records, list):
        raise CheckpointError("file of scores is not valid JSON: extra data after the list", file=file)
    for number, item in enumerate(records, 1):
        yield _named(item, f"record {number}", file)


def _named(item: object, where: str, file: Path) -> _Record:
    names = _names_in(item) if type(item) is dict else []
    if not names:
        expected = f"an object with one of {', '.join(_NAMES)}"
        raise CheckpointError(f"{where} names no checkpoint", file=file, found=describe(item), expected=expected)
    return _Record(where, names, item)


def _names_in(item: dict[str, object]) -> list[str]:
    values = (item.get(key) for key in _NAMES)
    return [value for value in values if isinstance(value, str) and value]


def _content(file: Path) -> bytes:
    fd = open_file(file)
    try:
        size = os.fstat(fd).st_size
        if size > MOST_BYTES:
            raise CheckpointError("too large for a file of scores", file=file, found=size, expected=f"<= {MOST_BYTES}")
        raw = bytearray(size)
        read_exactly(fd, memoryview(raw), 0, file)
    finally:
        os.close(fd)
    return bytes(raw)


def _score(scores: _Scores, position: int, by: str, path: Path) -> float:
    """The one finite score of a checkpoint."""
    records = scores.matched[position]
    if not records:
        raise CheckpointError(f"no score in {scores.file}", file=path)
    values = scores.values(position, by)
    if not values:
        metrics = sorted({name for record in records for name in _metrics(record.values)})
        near = _near(by, metrics, scores.metric)
        raise CheckpointError(
            f"no metric {by!r} for {path} ({records[0].where})",
            file=scores.file,
            found=_listed([*near, *(name for name in metrics if name not in near)]) or "none",
            expected=f"{PLAIN}, which is {by} here" if near == [PLAIN] and scores.metric == by else None,
        )
    numbers = [_number(scores.file, where, value, f"{by} of {path}") for where, value in values]
    for (where, _), number in zip(values, numbers, strict=True):
        if number != numbers[0]:
            what = f"two scores {by} for {path}: {values[0][0]} and {where}"
            raise CheckpointError(what, file=scores.file, found=f"{numbers[0]} and {number}")
    return numbers[0]


def _number(file: Path, where: str, value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise CheckpointError(f"{where}: {what} is no finite number", file=file, found=describe(value))
    return float(value)


def _metric(values: object, name: str) -> object:
    """The value under a dotted name, ``_ABSENT`` if there is none; a name with dots in it comes first."""
    if type(values) is not dict:
        return values if name == PLAIN else _ABSENT
    if name in values:
        return values[name]
    head = name
    while "." in head:
        head = head.rpartition(".")[0]
        if type(values.get(head)) is dict:
            found = _metric(values[head], name[len(head) + 1 :])
            if found is not _ABSENT:
                return found
    return _ABSENT


def _metrics(values: object) -> Iterator[str]:
    """Names of the numbers in a record, and of those one level down."""
    if type(values) is not dict:
        yield PLAIN
        return
    for key, value in values.items():
        if type(value) is dict:
            yield from (f"{key}.{inner}" for inner, number in value.items() if type(number) in (int, float))
        elif type(value) in (int, float):
            yield key


def _near(name: str, metrics: Sequence[str], plain: str) -> list[str]:
    """The metrics that may have been meant; ``plain`` is what those that are called :data:`PLAIN` are."""
    from difflib import get_close_matches

    return [PLAIN] if name == plain and PLAIN in metrics else get_close_matches(name, metrics)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(clip(name, 60) for name in names[:_LISTED]) + more
