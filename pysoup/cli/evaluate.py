"""``pysoup evaluate``: scores of single models, soups and ensembles, on every set of a task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress import step_bar
from ..report.scores import mean_of, percent, set_names, value_text
from .choose import Best, choose
from .models import require_torch
from .text import as_json as to_json
from .text import as_notes, plural, printable, table

if TYPE_CHECKING:
    from ..report.evaluations import Evaluations


def evaluate(
    checkpoints: list[str],
    task: str,
    output: str,
    *,
    entry: str | None,
    best: Best | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Score ``checkpoints`` on all sets of ``task`` under a bar, and print the table, or all as one object."""
    require_torch()
    from ..report.evaluations import EVALUATIONS, evaluate_checkpoints

    paths, notes = (checkpoints, []) if best is None else choose(checkpoints, best)
    with step_bar("evaluating") as progress:
        found = evaluate_checkpoints(paths, task, output, entry=entry, progress=progress, **options)
    if as_json:
        print(to_json({key: value for key, value in found.content.items() if key != "files"} | {"models": found.given}))
        return
    print(_table(found))
    known = len(found.given) - found.scored
    print(f"{plural(len(found.given), 'model')}: {found.scored} scored, {known} known")
    print(f"wrote {printable(str(Path(output) / EVALUATIONS))}")
    print("".join(f"{line}\n" for line in as_notes(list(dict.fromkeys([*notes, *found.notes])))), end="")


def _table(found: Evaluations) -> str:
    """A row for each model that was asked for; likelihood and calibration are of the test set, if there is one."""
    metric = found.content["metric"]["name"]
    names, shifts = set_names(found.content)
    shown = names[1] if len(names) > 1 else names[0]
    mean = ["mean of shifts"] if shifts else []
    header = ["model", *names[:2], *mean, *names[2:], "nll", "ece"]
    rows = []
    for model in found.given:
        scores = model["scores"]
        numbers = [value_text(scores[name]["score"], metric) for name in names]
        middle = [value_text(mean_of(scores, shifts), metric)] if shifts else []
        likely = ["-" if scores[shown][key] is None else f"{scores[shown][key]:.4f}" for key in ("nll", "ece")]
        rows.append([model["name"], *numbers[:2], *middle, *numbers[2:], *likely])
    unit = " in %" if percent(metric) else ""
    title = f"{printable(metric)}{unit}; nll and ece on {printable(shown)}"
    return f"{title}\n{table(_printable(header), rows, right=_printable(header)[1:])}"


def _printable(header: list[str]) -> list[str]:
    return [printable(cell) for cell in header]
