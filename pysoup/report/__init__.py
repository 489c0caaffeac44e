"""What a run found, for people: tables and figures like the paper's."""

from __future__ import annotations

from .figure import figure1
from .table import Result, ResultsTable, results_table

__all__ = ["Result", "ResultsTable", "figure1", "results_table"]
