"""The paper's Table 3: methods against accuracy on the test set and the mean over distribution shifts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import SoupError

if TYPE_CHECKING:
    from rich.table import Table

_MEAN = "mean of shifts"


@dataclass(frozen=True)
class Result:
    """One method or model: accuracies in [0, 1] on the test set and on each shift, by name."""

    name: str
    test: float
    shifts: Mapping[str, float] = field(default_factory=dict)

    @property
    def mean_shift(self) -> float:
        """The unweighted mean over the shifts, as in the paper (section 3.1); nan if there are none."""
        return math.fsum(self.shifts.values()) / len(self.shifts) if self.shifts else math.nan

    def to_json(self) -> dict[str, Any]:
        """All numbers, unrounded; the mean is left out where there is none."""
        mean = {"mean_shift": self.mean_shift} if self.shifts else {}
        return {"name": self.name, "test": self.test, **mean, "shifts": dict(self.shifts)}


@dataclass(frozen=True)
class ResultsTable:
    """Rows of results in the given order, in percent with two decimals; the best of each column stands out."""

    rows: tuple[Result, ...]
    test: str

    @property
    def columns(self) -> list[str]:
        """``Method``, the test set, the mean of the shifts, each shift."""
        return ["Method", self.test, _MEAN, *self.rows[0].shifts] if self.rows[0].shifts else ["Method", self.test]

    def markdown(self) -> str:
        """A Markdown table that ends in a newline; the best of each column is bold."""
        lines = [_line(self.columns), _line(["---", *["---:"] * (len(self.columns) - 1)])]
        for name, cells in self._cells():
            lines.append(_line([name.replace("|", "\\|"), *(f"**{text}**" if best else text for text, best in cells)]))
        return "\n".join(lines) + "\n"

    def rich(self) -> Table:
        """The same for a terminal."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title="accuracy in %")
        for index, column in enumerate(self.columns):
            table.add_column(Text(column), justify="right" if index else "left")
        for name, cells in self._cells():
            table.add_row(Text(name), *(Text(text, style="bold" if best else "") for text, best in cells))
        return table

    def to_json(self) -> dict[str, Any]:
        """The rows with unrounded numbers."""
        return {"test": self.test, "rows": [row.to_json() for row in self.rows]}

    def _cells(self) -> list[tuple[str, list[tuple[str, bool]]]]:
        """Per row: its name, and for each column the text and whether it is the column's best (as printed)."""
        texts = [[f"{100 * value:.2f}" for value in self._values(row)] for row in self.rows]
        best = [max((float(text) for text in column), default=math.nan) for column in zip(*texts, strict=True)]
        return [
            (row.name, [(text, float(text) == top) for text, top in zip(line, best, strict=True)])
            for row, line in zip(self.rows, texts, strict=True)
        ]

    @staticmethod
    def _values(row: Result) -> list[float]:
        return [row.test, row.mean_shift, *row.shifts.values()] if row.shifts else [row.test]


def results_table(rows: Sequence[Result], *, test: str = "test") -> ResultsTable:
    """A table of ``rows``, which must all have the same shifts in the same order; ``test`` names the test set."""
    if not rows:
        raise SoupError("a table needs a row")
    for row in rows:
        if list(row.shifts) != list(rows[0].shifts):
            raise SoupError(f"row {row.name!r} has other shifts", found=list(row.shifts), expected=list(rows[0].shifts))
    return ResultsTable(tuple(rows), test)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
