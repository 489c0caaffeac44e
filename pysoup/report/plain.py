"""The same content as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from typing import Any

from .._version import __version__
from ..checkpoint.output.model_card import quoted
from .commands import command_of, evaluate_command
from .content import Content, content_json
from .html import clean
from .methods import columns, values
from .rows import Bold, TextTable, calibration_table, cost_table, method_table, model_table, step_table
from .scores import HELDOUT


def as_json(content: Content) -> str:
    """Everything, unrounded."""
    return json.dumps(_finite(content_json(content)), indent=2, allow_nan=False) + "\n"


def as_markdown(content: Content) -> str:
    """Tables and lists; names from files are shown as they are, never taken for markup."""
    parts = [f"# Soups of {md(content.title)}\n"]
    tables = [("Methods", method_table(content) if content.rows else None)]
    tables += [(f"{made.label}, step by step", step_table(content, made)) for made in content.made if made.steps]
    tables += [("Calibration", calibration_table(content)), ("Cost", cost_table(content))]
    for title, table in [*tables, ("Ingredients", model_table(content))]:
        if table is not None:
            parts += [f"## {md(title)}\n", f"{md(table.caption)}\n", md_table(table)]
    commands = [command_of(made) for made in content.made]
    if any(model.scores.get(name) for model in content.models for name in content.tests):
        commands.append(evaluate_command(content))
    if commands:
        parts += ["## To make it again\n", "\n\n".join(f"    {command}" for command in commands) + "\n"]
    if content.missing:
        parts += ["## What is not here\n", "\n".join(f"- {md(line)}" for line in content.missing) + "\n"]
    return "\n".join([*parts, f"Made by pysoup {__version__}.\n"])


def as_csv(content: Content) -> str:
    """A line for each method and each single model; scores unrounded, empty where there is none."""
    keys = list(dict.fromkeys(key for model in content.models for key in model.hyperparameters))
    scores = columns(content)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_cell, ["kind", "name", "what", *scores, "nll", "ece", "ingredients", "cost", "sha256", *keys]))
    shown = content.test or HELDOUT
    for row in content.rows:
        likely = [row.scores.get(shown, {}).get(key) for key in ("nll", "ece")]
        line = ["method", row.label, row.detail, *values(content, row), *likely, row.ingredients, row.cost, ""]
        writer.writerow(map(_cell, [*line, *[""] * len(keys)]))
    for model in content.models:
        found = [model.score(HELDOUT), *(model.score(name) for name in content.tests[:1])]
        found += [content.mean_shift(model), *map(model.score, content.shifts)] if content.shifts else []
        likely = [model.scores.get(shown, {}).get(key) for key in ("nll", "ece")]
        settings = [model.hyperparameters.get(key, "") for key in keys]
        line = ["model", model.label, model.name, *found, *likely, 1, 1, model.content, *settings]
        writer.writerow(map(_cell, line))
    return text.getvalue()


def md_table(table: TextTable) -> str:
    """A Markdown table that ends in a newline."""
    rule = ["--:" if index in table.right else "---" for index in range(len(table.header))]
    lines = [[md(cell) for cell in table.header], rule]
    lines += [[f"**{md(cell)}**" if isinstance(cell, Bold) else md(cell) for cell in line] for line in table.lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def md(text: str) -> str:
    """``text`` as it is where nothing in it means anything to Markdown; else as code on one line."""
    shown = clean(text)
    safe = all(c.isalnum() or c in " .,:;%()+-/\u2264\u2265\u00d7=" for c in shown)
    safe = safe and "://" not in shown and "www." not in shown  # which some readers make links of
    if safe and (shown == "-" or not shown.startswith(("+", "-", "="))):
        return shown
    return quoted(text).replace("|", "\\|")


def _finite(value: Any) -> Any:
    """``value`` with the text of each number that JSON has none for."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: object) -> object:
    """Text that a spreadsheet would take for a formula is marked as text."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
