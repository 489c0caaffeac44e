"""The run directory: what a recipe has computed is written down at once, so that a killed run goes on from there.

``DIRECTORY/journal.jsonl`` has a first line with the format and the identity of the run, then one line for each thing
recorded; ``DIRECTORY/arrays`` has tensors that are too large for a line. Nothing else is written. Deleting the
directory is starting anew.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from .._version import __version__
from ..checkpoint import open_checkpoint, save_state_dict
from ..checkpoint.output.publish import remove, sync_directory
from ..errors import OutputError, SoupError
from .journal_file import FORMAT, FORMAT_KEY, JournalFile, owner

if TYPE_CHECKING:
    from torch import Tensor

JOURNAL, ARRAYS = "journal.jsonl", "arrays"
_SPECIAL = "$float"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Those of other runs too, and what a kill left of one that was being written.
_OURS = re.compile(r"(?:\..+\.pysoup-\d+-[0-9a-f]{8}\.(?:tmp|old)|.+\.([0-9a-f]{16})\.safetensors)", re.DOTALL)
_LONGEST = 60


class Identity(Protocol):
    """What makes two runs the same one, found out with the help of what an earlier run noted in ``hashed``."""

    def parts(self, hashed: dict[str, Any]) -> Mapping[str, Any]: ...


class Journal:
    """What one run has recorded, by key. Made by :meth:`open`; a context manager; one process at a time.

    ``resumed`` tells whether an earlier run had recorded something.
    """

    def __init__(self, directory: Path, file: JournalFile, values: dict[str, str], run: str) -> None:
        self.directory = directory
        self.resumed = bool(values)
        self._file = file
        self._values = values
        self._run = run

    @classmethod
    def open(cls, directory: str | os.PathLike[str], identity: Mapping[str, Any] | Identity) -> Journal:
        """Begin the run in ``directory`` (made if absent), or go on with it.

        ``identity`` is plain JSON: everything that the result depends on. :class:`SoupError`, one line: a run of
        another identity is recorded there (and what differs first), another process has it open (and which), or the
        journal is damaged (and where). :class:`OutputError` where the directory cannot be written.
        """
        folder = Path(directory)
        _make(folder)
        file = JournalFile(folder / JOURNAL)
        try:
            values, hashed = _collect(file)
            header = file.lines[0] if file.lines else None
            noted = dict(hashed)
            parts = encode(identity if isinstance(identity, Mapping) else identity.parts(hashed), "identity")
            if header is not None and not values and header["identity"] != parts:
                file.clear()  # nothing was computed: a mistake that was mended does not stand in the way
                header = None
                noted = {}
            if header is None:
                header = {FORMAT_KEY: FORMAT, "pysoup": __version__, "run": os.urandom(8).hex(), "identity": parts}
                file.append(header)
            else:
                _check_identity(folder, header["identity"], parts)
            file.append({"opened": owner(), **({} if hashed == noted else {"hashed": hashed})})
            # What other runs, or a kill, left there: the lock says that nobody else is at work.
            _remove_arrays(folder / ARRAYS, lambda _, run: run != header["run"])
        except BaseException:
            file.close()
            raise
        return cls(folder, file, values, header["run"])

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes have the directory."""
        self._file.close()

    def __contains__(self, key: object) -> bool:
        return key in self._values

    @property
    def keys(self) -> list[str]:
        """What has been recorded, in that order."""
        return list(self._values)

    def recall(self, key: str) -> Any | None:
        """What was recorded under ``key``, by this run or an earlier one: a new object; None if nothing was."""
        text = self._values.get(key)
        return None if text is None else decode(json.loads(text))

    def record(self, key: str, value: Any) -> None:
        """Write down ``value``: JSON, of which floats come back exactly, NaN and infinities too, and tuples as lists.

        It is on disk when this returns. The same value again is no error and not written; another one is
        (:class:`SoupError`): one of the two computations was not what the identity says. :class:`OutputError` where it
        cannot be written; the journal then stands as before.
        """
        plain = encode(value, key)
        text = _text(plain)
        known = self._values.get(key)
        if known is None:
            self._file.append({"key": key, "value": plain})
            self._values[key] = text
        elif known != text:
            raise SoupError(
                f"another value is recorded for {key!r}", file=self._file.path, found=_clip(text), expected=_clip(known)
            )

    def save_array(self, name: str, tensor: Tensor) -> None:
        """Keep ``tensor`` under ``name`` (letters, digits, ``. _ -``): whole or, after a kill, not there at all.

        One of that name is replaced. Raises :class:`OutputError`.
        """
        path = self._array(name)
        _make(path.parent)
        save_state_dict({"array": tensor}, path, overwrite=True)

    def load_array(self, name: str) -> Tensor | None:
        """The tensor kept under ``name``, bit for bit, on the CPU; None if there is none."""
        path = self._array(name)
        return open_checkpoint(path).tensor("array") if path.exists() else None

    def keep_arrays(self, *names: str) -> None:
        """Remove all other tensors: also what a kill kept an earlier run from removing."""
        kept = {self._array(name).name for name in names}
        _remove_arrays(self.directory / ARRAYS, lambda name, run: name not in kept)

    def _array(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise SoupError("not a name for an array", found=repr(name), expected="up to 100 letters, digits, . _ -")
        # With the run's own number: an array must not outlive a journal that is deleted without it.
        return self.directory / ARRAYS / f"{name}.{self._run}.safetensors"


def encode(value: Any, what: str) -> Any:
    """``value`` as strict JSON: a float that has no number there becomes an object. Raises :class:`SoupError`."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        number = float(value)
        return number if math.isfinite(number) else {_SPECIAL: repr(number)}
    if isinstance(value, (list, tuple)):
        return [encode(item, what) for item in value]
    if isinstance(value, Mapping):
        if all(isinstance(name, str) and name != _SPECIAL for name in value):
            return {name: encode(item, what) for name, item in value.items()}
        raise SoupError(f"what is recorded for {what!r} must have strings for keys", found=_clip(repr(list(value))))
    raise SoupError(f"what is recorded for {what!r} must be JSON", found=type(value).__name__)


def decode(plain: Any) -> Any:
    """The inverse of :func:`encode`, but for tuples."""
    if isinstance(plain, list):
        return [decode(item) for item in plain]
    if isinstance(plain, dict):
        if plain.keys() == {_SPECIAL}:
            return float(plain[_SPECIAL])
        return {name: decode(item) for name, item in plain.items()}
    return plain


def _collect(file: JournalFile) -> tuple[dict[str, str], dict[str, Any]]:
    """The recorded values as text, and the latest note of hashed files."""
    values: dict[str, str] = {}
    hashed: dict[str, Any] = {}
    for number, line in enumerate(file.lines, 1):
        hashed = line.get("hashed", hashed)
        if "key" in line:
            text = _text(line["value"])
            if values.setdefault(line["key"], text) != text:
                what = f"line {number} has another value for {line['key']!r} than a line before it"
                raise SoupError(what, file=file.path, found=_clip(text), expected=_clip(values[line["key"]]))
    return values, hashed


def _check_identity(directory: Path, recorded: dict[str, Any], now: dict[str, Any]) -> None:
    difference = first_difference(recorded, now)
    if difference:
        what = f"another run is recorded here: {difference}; give another directory, or delete this one"
        raise SoupError(what, file=directory)


def first_difference(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first part of the identity that is not the same, in words; empty if there is none."""
    for name in [*recorded, *(name for name in now if name not in recorded)]:
        old, new = recorded.get(name), now.get(name)
        if _text(old) == _text(new):
            continue
        if name == "checkpoints" and isinstance(old, list) and isinstance(new, list):
            other = _other_checkpoints(old, new)
            if other:
                return other
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            inner = first_difference(old, new)
            if not inner:  # None, and not there at all, are the same
                continue
            return f"{_KINDS.get(name, name)} {inner}"
        if name in _OTHER:
            return _OTHER[name]
        return f"{name} was {_clip(_shown(old))}, it is {_clip(_shown(new))} now"
    return ""


_KINDS = {"options": "option", "metric": "the metric's", "environment": "the version or kind of"}
_OTHER = {
    "heldout": "it had another held-out set, or the same in another order",
    "model": "its model had other names, shapes or dtypes",
}


def _other_checkpoints(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> str:
    """Empty if all are the same, perhaps under names as seen from another directory."""
    before = [c["name"] for c in old]
    there = {_place(c): c["name"] for c in old}
    after = [c["name"] if c["name"] in before else there.get(_place(c), c["name"]) for c in new]
    if sorted(before) == sorted(after) and before != after:
        return "it had the checkpoints in another order"
    for one, name, other in zip(old, after, new, strict=False):
        if one["name"] != name:
            break
        if one.get("entry") != other.get("entry"):
            return f"checkpoint {name} was entry {one.get('entry')!r}, it is {other.get('entry')!r} now"
        if one["content"] != other["content"]:
            return f"checkpoint {name} has other content now"
    if before == after:
        return ""
    missing = next((name for name in before if name not in after), None)
    if missing is not None:
        return f"checkpoint {missing} was one of its checkpoints"
    added = next((name for name in after if name not in before), None)
    if added is not None:
        return f"checkpoint {added} was none of its checkpoints"
    return f"it had {len(old)} checkpoints, there are {len(new)} now"


def _place(checkpoint: dict[str, Any]) -> str:
    """Where the file is; older journals have its name only, as typed where the run was begun."""
    return str(checkpoint.get("path") or os.path.realpath(checkpoint["name"]))


def _text(plain: Any) -> str:
    """Equal exactly for equal values: -0.0 is not 0.0, 1 is not 1.0, NaN is NaN."""
    return json.dumps(plain, sort_keys=True, allow_nan=False)


def _shown(plain: Any) -> str:
    return "absent" if plain is None else repr(decode(plain))


def _clip(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _make(directory: Path) -> None:
    """Make the directory and those above it, and have their names on disk."""
    made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for folder in made:
            sync_directory(folder.parent)
    except OSError as error:
        raise OutputError(f"cannot make the directory: {error.strerror}", file=directory) from error


def remove_run(directory: str | os.PathLike[str]) -> None:
    """Delete what a journal wrote in ``directory``, and this too unless something else is in it: never more, since a
    directory that was there before may be anybody's."""
    folder = Path(directory)
    _remove_arrays(folder / ARRAYS, lambda *_: True)
    remove(folder / JOURNAL)
    with suppress(OSError):  # it is not empty
        folder.rmdir()


def _remove_arrays(arrays: Path, unwanted: Callable[[str, str | None], bool]) -> None:
    """Of our own files there, those that are ``unwanted`` by name and number of the run (None: half written)."""
    try:
        names = os.listdir(arrays)
    except OSError:
        return
    for name in names:
        match = _OURS.fullmatch(name)
        if match and unwanted(name, match[1]):
            remove(arrays / name)
    with suppress(OSError):  # it is not empty
        arrays.rmdir()
