"""What was scored once is not scored again: scores of weights on sets of data, in a file, known by their content."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..record import read_json
from ..soups.files import write_json
from ..soups.soup import finite
from .sets import Scores

_FORMAT = 1


class ScoreFile:
    """Scores by key, each written down as soon as it is there: the file is whole at any moment.

    ``data`` is the fingerprint of each set; a file may serve several analyses of one task, also with sets that are not
    in it yet. ``None`` for ``path`` keeps them in memory. Raises :class:`OutputError` where the file is of something
    else or of other data.
    """

    def __init__(self, path: str | os.PathLike[str] | None, data: Mapping[str, str]) -> None:
        self.path = None if path is None else Path(path)
        self._data = dict(data)
        self._scores: dict[str, dict[str, list[Any]]] = {}
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def get(self, key: str, names: Iterable[str]) -> Scores | None:
        """The scores on the sets of these names; None unless all are there."""
        known = self._scores.get(key, {})
        names = list(names)
        if any(name not in known for name in names):
            return None
        return {
            name: {"accuracy": float(known[name][0]), "nll": float(known[name][1])} for name in names
        }  # "nan" is a number, too

    def put(self, key: str, scores: Scores) -> None:
        """Write them down."""
        entry = self._scores.setdefault(key, {})
        entry.update({name: [finite(one["accuracy"]), finite(one["nll"])] for name, one in scores.items()})
        if self.path is not None:
            write_json(
                self.path, {"scores_format": _FORMAT, "data": self._data, "scores": self._scores}, overwrite=True
            )

    def _read(self, path: Path) -> None:
        known = read_json(path)
        if known is None or known.get("scores_format") != _FORMAT:
            raise OutputError("not a file of scores: another name", file=path)
        for name, fingerprint in self._data.items():
            if known["data"].get(name, fingerprint) != fingerprint:
                raise OutputError(
                    f"it has scores on other data under the name {name!r}: another file, or delete it", file=path
                )
        self._data = {**known["data"], **self._data}
        self._scores = known["scores"]
