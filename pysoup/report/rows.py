"""The tables of a report as text, for every format: header, lines, and which cells stand out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .content import Content, Made, Row
from .methods import MEAN, columns, cost_text, ingredients_text, values
from .paths import setting, step_row
from .scores import HELDOUT, as_number, percent, value_text


class Bold(str):
    """A cell that stands out."""

    __slots__ = ()


@dataclass(frozen=True)
class TextTable:
    """Cells as printed. Columns named in ``right`` are numbers; ``details`` has a second line for each first cell."""

    caption: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    right: Sequence[int]
    details: Sequence[str] = field(default=())


def method_table(content: Content) -> TextTable:
    """The paper's Table 3, and what each method costs."""
    names = columns(content)
    best = [content.best([values(content, row)[i] for row in content.rows]) for i in range(len(names))]
    lines = []
    for row in content.rows:
        cells = []
        for i, (name, value) in enumerate(zip(names, values(content, row), strict=True)):
            text = value_text(value, content.metric)
            # As printed: equal digits are equally good.
            is_best = value is not None and text == value_text(best[i], content.metric)
            spread = row.spread.get(name)
            text += f" ({value_text(spread, content.metric)})" if spread is not None else ""
            cells.append(Bold(text) if is_best else text)
        lines.append([row.label, *cells, ingredients_text(row), cost_text(row)])
    unit = " in %" if percent(content.metric) else ""
    caption = f"{content.metric}{unit}; the best of each column is bold. Soups cost one forward pass for an answer, "
    caption += "ensembles one for each ingredient."
    if any(row.spread for row in content.rows):
        caption += " Parentheses: standard deviation over orders."
    if any(made.recipe == "learned" for made in content.made):
        caption += " Learned soups were trained on the held-out set: judge them by the test sets."
    details = [row.detail for row in content.rows]
    header = ["Method", *names, "ingredients", "cost of use"]
    return TextTable(caption, header, lines, range(1, len(header)), details)


def step_table(content: Content, made: Made) -> TextTable:
    """Every candidate of a recipe that selects, in turn."""
    header = ["step", "candidate", "alone", "soup with it", "soup before", "seen", "verdict", "ingredients", "note"]
    lines = [step_row(content, made, number, step) for number, step in enumerate(made.steps, 1)]
    return TextTable("Every candidate in turn", header, lines, (0, 2, 3, 4, 5, 7))


def calibration_table(content: Content) -> TextTable | None:
    """By method: calibration error and likelihood on every set; None where nothing is known."""
    rows = [row for row in content.rows if any(entry.get("ece") is not None for entry in row.scores.values())]
    if not rows:
        return None
    header = ["Method", *(f"{name} {key}" for name in content.sets for key in ("ECE", "NLL"))]
    found = [_likely(row, content.sets) for row in rows]
    least = [min((v for v in column if v is not None), default=None) for column in zip(*found, strict=True)]
    lines = [
        [row.label, *(_low(value, low) for value, low in zip(cells, least, strict=True))]
        for row, cells in zip(rows, found, strict=True)
    ]
    caption = "Expected calibration error (bins of equal mass) and negative log-likelihood in nats; lower is better."
    return TextTable(caption, header, lines, range(1, len(header)))


def cost_table(content: Content) -> TextTable | None:
    """By recipe: passes used and saved, seconds of mixing, scoring and reading ahead; None where nothing is known."""
    lines = []
    for made in content.made:
        passes, timing = made.numbers("passes"), made.numbers("timing")
        if passes or timing:
            cells = [f"{passes[key]:.4g}" if key in passes else "-" for key in ("used", "saved")]
            cells += [f"{timing[key]:.2f}" if key in timing else "-" for key in ("mix", "score", "read")]
            lines.append([made.label, *cells])
    header = ["Method", "passes", "passes saved", "mixing (s)", "scoring (s)", "reading ahead (s)"]
    caption = "Passes over the held-out set, parts as parts; saved are those that the plain recipe takes besides."
    return TextTable(caption, header, lines, range(1, 6)) if lines else None


def model_table(content: Content) -> TextTable | None:
    """Single models, best first, and the hyperparameters in which they differ; None where there are no models."""
    models = content.ranked() + [model for model in content.models if model.score(HELDOUT) is None]
    if not models:
        return None
    keys = list(dict.fromkeys(key for model in models for key in model.hyperparameters))
    varied = [key for key in keys if len({str(model.hyperparameters.get(key)) for model in models}) > 1]
    lines = []
    for model in models:
        found = [model.score(HELDOUT), *(model.score(name) for name in content.tests[:1])]
        found += [content.mean_shift(model)] if content.shifts else []
        cells = [value_text(value, content.metric) for value in found]
        lines.append([model.label, *cells, *(setting(model.hyperparameters.get(key)) for key in varied)])
    header = ["Model", HELDOUT, *content.tests[:1], *([MEAN] if content.shifts else [])]
    header += [key.replace("_", " ") for key in varied]
    caption = "Single models, best first by held-out score"
    caption += ", and the hyperparameters in which they differ." if varied else "."
    fixed = [
        f"{key.replace('_', ' ')} {setting(models[0].hyperparameters.get(key))}" for key in keys if key not in varied
    ]
    caption += f" The same for all: {'; '.join(fixed)}." if fixed else ""
    return TextTable(caption, header, lines, range(1, len(header)))


def _likely(row: Row, sets: Sequence[str]) -> list[float | None]:
    return [as_number(row.scores.get(name, {}).get(key)) for name in sets for key in ("ece", "nll")]


def _low(value: float | None, least: float | None) -> str:
    if value is None:
        return "-"
    text = f"{value:.4f}"
    return Bold(text) if least is not None and text == f"{least:.4f}" else text
