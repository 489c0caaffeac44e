"""The part of the page on a learned soup: weights by granule, beta, and how the loss went."""

from __future__ import annotations

from .charts import curve, heat_map
from .content import Content, Made
from .html import Markup, el, join, scrolled
from .scores import as_number

_MOST_GRANULES = 200


def granules_of(made: Made) -> tuple[list[str], list[list[float]]]:
    """Names and weights (one for each ingredient) of the granules; empty of other soups."""
    names: list[str] = []
    rows: list[list[float]] = []
    found = made.trace.get("granules")
    for granule in found if isinstance(found, list) else []:
        weights = granule.get("weights") if isinstance(granule, dict) else None
        if isinstance(weights, list) and len(weights) == len(made.ingredients):
            numbers = [as_number(value) for value in weights]
            names.append(str(granule.get("name", "")))
            rows.append([float("nan") if value is None else value for value in numbers])
    return names, rows


def losses_of(made: Made) -> list[float]:
    found = made.trace.get("losses")
    numbers = [as_number(value) for value in found] if isinstance(found, list) else []
    return [value for value in numbers if value is not None]


def learned_part(content: Content, made: Made) -> Markup | None:
    """Heading, heat map and loss; None of a soup that was not learned."""
    names, rows = granules_of(made)
    if not names:
        return None
    columns = [model.label if (model := content.model_of(name)) else name for name in made.ingredients]
    shown = names[:_MOST_GRANULES]
    beta = as_number(made.trace.get("beta"))
    intro = f"{len(names)} granule{'' if len(names) == 1 else 's'} of {len(columns)} ingredients"
    intro += "" if beta is None else f"; beta, the scale of the logits that was learned with them, is {beta:.4g}"
    intro += f"; the first {len(shown)} are shown." if len(shown) < len(names) else "."
    map_ = heat_map(f"Weights of {made.label} by granule", shown, columns, rows[: len(shown)])
    loss = curve(f"Loss of {made.label} by step", losses_of(made), "step", "loss on the held-out set")
    scores = "The weights were learned on the held-out set, so its score there is that of training data."
    return join(
        [
            el("h3", made.label),
            el("p", intro, " ", scores),
            el("figure", scrolled(map_, "Weights by granule"), el("figcaption", "Blue: positive, orange: negative.")),
            el("figure", scrolled(loss, "Loss")) if loss is not None else None,
        ]
    )
