"""The report as one page: nothing is loaded from elsewhere, and it reads as well without a script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources

from .._version import __version__
from .analyses import FIGURES, numbers_of
from .charts import cost_figure, cost_legend, ingredients_map, known_bins, reliability
from .commands import command_of, evaluate_command
from .content import Content, Made
from .drawings import figure1, path_figure
from .html import Child, Markup, el, join, scrolled, table
from .interpolated import interpolated_part
from .learned import learned_part
from .rows import Bold, TextTable, calibration_table, cost_table, method_table, model_table, step_table
from .scores import HELDOUT, percent

_MOST_DIAGRAMS = 12
_FOLDED = 16
"""Lines of numbers beyond which they are folded away."""


def page(content: Content) -> str:
    """The whole document, as text for a UTF-8 file."""
    parts: list[tuple[str, str, Sequence[Child]]] = [
        ("table", "Methods", _methods(content)),
        ("figure", "Every model as a point", _figure(content)),
        ("paths", "How the soups came about", _paths(content)),
        ("weights", "Who is in which soup", _weights(content)),
        ("learned", "Learned weights", [learned_part(content, made) for made in content.made]),
        ("interpolated", "Between two models", [interpolated_part(content, made) for made in content.made]),
        ("calibration", "Calibration", _calibration(content)),
        ("cost", "Cost", _cost(content)),
        ("models", "Ingredients", _models(content)),
        ("analyses", "Analyses", _analyses(content)),
        ("again", "To make it again", _provenance(content)),
        ("missing", "What is not here", _missing(content)),
    ]
    shown = [(key, title, body) for key, title, found in parts if (body := join(found))]
    links = el("nav", el("ul", [el("li", el("a", t, href=f"#{key}")) for key, t, _ in shown]), aria_label="Sections")
    sections = [
        el("section", el("h2", title, id=f"{key}-title"), body, id=key, aria_labelledby=f"{key}-title")
        for key, title, body in shown
    ]
    style, script = _file("page.css"), _file("page.js")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{allowed}'"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="generator", content=f"pysoup {__version__}"),
        el("title", f"Soups of {content.title}"),
        el("style", Markup(style)),
    )
    body = el(
        "body",
        el("header", el("h1", f"Soups of {content.title}"), _summary(content), links),
        el("main", sections),
        el("footer", el("p", f"Made by pysoup {__version__}.", class_="soft")),
        el("script", Markup(script)),
    )
    return f"<!DOCTYPE html>\n{el('html', head, body, lang='en')}\n"


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _summary(content: Content) -> Markup:
    made = len(content.made)
    text = f"{len(content.models)} models, {made} soup{'' if made == 1 else 's'} and ensembles of them. "
    text += f"Scores are {content.metric}, {'higher' if content.direction == 'max' else 'lower'} is better. "
    text += "All selection was by the held-out set; the test sets are only reported."
    best, soups = content.rows[:1], [row for row in content.rows if row.label.startswith("Greedy soup")]
    gains = ""
    if best and soups and content.test is not None and best[0].label.startswith("Best"):
        one, other = best[0].tests.get(content.test), soups[0].tests.get(content.test)
        if one is not None and other is not None:
            factor, unit = (100, " points") if percent(content.metric) else (1, "")
            gains = f" The greedy soup of {soups[0].ingredients} differs from the best model by "
            gains += f"{factor * (other - one):+.2f}{unit} on {content.test}"
            shift, mean = soups[0].mean, best[0].mean
            gains += (
                f" and {factor * (shift - mean):+.2f} on the shifts." if shift is not None and mean is not None else "."
            )
    return el("p", text + gains)


def _table(found: TextTable, label: str) -> Markup:
    """The text of a table as HTML."""
    details = found.details or [""] * len(found.lines)
    lines: list[list[Child]] = []
    for line, detail in zip(found.lines, details, strict=True):
        cells: list[Child] = [el("strong", str(cell)) if isinstance(cell, Bold) else cell for cell in line]
        if detail:
            cells[0] = join([cells[0], el("span", detail, class_="detail")])
        lines.append(cells)
    return join(
        [
            el("p", found.caption, class_="soft"),
            table(label, found.header, lines, numeric=found.right),
        ]
    )


def _methods(content: Content) -> list[Child]:
    return [_table(method_table(content), "Methods")] if content.rows else []


def _paths(content: Content) -> list[Child]:
    return [_path(content, made) for made in content.made if made.steps]


def _path(content: Content, made: Made) -> Markup:
    """Heading, figure and table; the table is folded away, since the figure says most of it."""
    drawing = path_figure(content, made)
    caption = (
        "The line is the soup so far. Circles were kept, diamonds refused, triangles refused early: the soup with "
    )
    caption += "them can at best reach that score."
    count = len(made.ingredients)
    kept = sum(1 for step in made.steps if step.get("accepted"))
    verdicts = f"{kept} dropped, {count} left" if made.recipe == "pruned" else f"{count} kept"
    return join(
        [
            el("h3", made.label),
            el("p", f"{len(made.steps)} steps, {verdicts}. ", el("span", made.name, class_="soft")),
            None if drawing is None else el("figure", scrolled(drawing, "Path"), el("figcaption", caption)),
            el("details", el("summary", "Step by step"), _table(step_table(content, made), f"Steps of {made.label}")),
        ]
    )


def _figure(content: Content) -> list[Child]:
    drawing = figure1(content)
    if drawing is None:
        return []
    axis = f"{content.test} against the mean of the shifts" if content.shifts else f"held-out against {content.test}"
    caption = (
        f"Every model, soup and ensemble: {axis}. Point at a mark, or reach it with Tab and the arrow keys, for its "
    )
    caption += "scores and hyperparameters."
    return [el("figure", scrolled(drawing, "Figure 1"), el("figcaption", caption))]


def _weights(content: Content) -> list[Child]:
    drawing = ingredients_map(content)
    if drawing is None:
        return []
    caption = (
        "Weight of each model in each soup or ensemble; the best models by held-out score on top. Empty: not in it."
    )
    return [el("figure", scrolled(drawing, "Weights"), el("figcaption", caption))]


def _calibration(content: Content) -> list[Child]:
    found = calibration_table(content)
    if found is None:
        return []
    shown = content.test or HELDOUT
    diagrams: list[Child] = []
    for row in content.rows:
        bins = known_bins(row.scores.get(shown, {}).get("bins"))
        if bins and len(diagrams) < _MOST_DIAGRAMS:
            diagrams.append(el("figure", reliability(row.label, bins), el("figcaption", row.label)))
    note = (
        f"Reliability on {shown}: below the diagonal a model is surer than it is right. Larger dots hold more samples."
    )
    pictures = [el("p", note), el("div", diagrams, class_="smalls")] if diagrams else []
    return [_table(found, "Calibration"), *pictures]


def _cost(content: Content) -> list[Child]:
    found, drawing = cost_table(content), cost_figure(content.made)
    figure = None if drawing is None else el("figure", scrolled(drawing, "Time"), cost_legend())
    return [] if found is None else [_table(found, "Cost"), figure]


def _models(content: Content) -> list[Child]:
    found = model_table(content)
    return [] if found is None else [_table(found, "Ingredients")]


def _analyses(content: Content) -> list[Child]:
    parts: list[Child] = []
    for analysis in content.analyses:
        parts.append(el("h3", f"{analysis.content.get('analysis')}: {analysis.name}"))
        for name, drawn in analysis.figures.items():
            # An image: whatever is in the file, it cannot run or load anything.
            kind, data = FIGURES[name[-4:]], base64.b64encode(drawn).decode()
            parts.append(el("figure", el("img", src=f"data:{kind};base64,{data}", alt=name)))
        if plain := numbers_of(analysis):
            found = table(f"Numbers of {analysis.name}", ["what", "value"], plain)
            is_long = len(plain) > _FOLDED
            parts.append(el("details", el("summary", f"{len(plain)} numbers"), found) if is_long else found)
    return parts


def _provenance(content: Content) -> list[Child]:
    commands = [el("pre", el("code", command_of(made))) for made in content.made]
    if any(model.scores.get(name) for model in content.models for name in content.tests):
        commands.append(el("pre", el("code", evaluate_command(content))))
    versions = ", ".join(f"{name} {version}" for name, version in content.versions.items())
    hashes = [[model.label, model.name, el("code", model.content)] for model in content.models if model.content]
    notes = [_notes(made) for made in content.made]
    listed = table("Files", ["Model", "path", "SHA-256"], hashes) if hashes else None
    return [
        el("p", f"Made with {versions}.") if versions else None,
        el("details", el("summary", "Commands"), commands) if commands else None,
        el("details", el("summary", "Files"), listed) if listed else None,
        el("details", el("summary", "Notes of the recipes"), notes) if any(notes) else None,
    ]


def _notes(made: Made) -> Child:
    notes = made.trace.get("notes")
    texts = [str(note) for note in notes] if isinstance(notes, list) else []
    return [el("h3", made.label), el("ul", [el("li", text) for text in texts])] if texts else None


def _missing(content: Content) -> list[Child]:
    return [el("ul", [el("li", line) for line in content.missing])] if content.missing else []
