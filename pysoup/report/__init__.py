"""What a run found, for people: scores of everything, tables and figures like the paper's, one page.

Names are loaded at first use: a report needs no torch, scoring does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluations import Evaluations as Evaluations
    from .evaluations import evaluate_checkpoints as evaluate_checkpoints
    from .evaluations import read_evaluations as read_evaluations
    from .figure import figure1 as figure1
    from .share import Shared as Shared
    from .share import share_soup as share_soup
    from .table import Result as Result
    from .table import ResultsTable as ResultsTable
    from .table import results_table as results_table
    from .write import write_report as write_report

_HOME = {
    "Evaluations": "evaluations",
    "Result": "table",
    "ResultsTable": "table",
    "Shared": "share",
    "evaluate_checkpoints": "evaluations",
    "figure1": "figure",
    "read_evaluations": "evaluations",
    "results_table": "table",
    "share_soup": "share",
    "write_report": "write",
}

__all__ = [*_HOME]  # noqa: PLE0604 (the keys are strings)


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'pysoup.report' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
