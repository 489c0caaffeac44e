"""What a report could have besides, and the command that makes it."""

from __future__ import annotations

from .content import Content
from .scores import HELDOUT


def missing(content: Content, *, evaluated: bool) -> list[str]:
    """A line for each part that is left out."""
    lines = []
    task = content.task or next((made.task for made in content.made if made.task), None) or "FILE.py:NAME"
    recipes = {made.recipe for made in content.made}
    if not evaluated:
        what = "scores of single models on the test sets, likelihoods and calibration"
        lines.append(f"{what}: pysoup evaluate --task {task} CHECKPOINT... RUN... -o RUN/")
    elif any(not row.scores.get(HELDOUT, {}).get("bins") for row in content.rows if not row.spread):
        lines.append(f"calibration of some rows: pysoup evaluate --task {task} RUN... -o RUN/ scores them, too")
    if not any(model.hyperparameters for model in content.models):
        lines.append("hyperparameters of the ingredients: pysoup finetune records them beside the weights")
    for recipe, command in (
        ("uniform", "uniform"),
        ("greedy", "greedy"),
        ("learned", "learned"),
        ("ensemble", "ensemble --all"),
        ("greedy ensemble", "ensemble"),
    ):
        if not any(name == recipe or name.startswith(f"{recipe} (") for name in recipes):
            name = recipe if recipe.endswith("ensemble") else f"{recipe} soup"
            lines.append(f"the {name}: pysoup {command} --task {task} CHECKPOINT... -o RUN/")
    if not any(made.random_order for made in content.made):
        lines.append(f"random orders: pysoup greedy --order random --seed 0 --task {task} CHECKPOINT... -o RUN/")
    for analysis in content.analyses:
        if not analysis.figures and analysis.content.get("analysis") != "compare":
            name = analysis.name.removesuffix(".json")
            lines.append(
                f"the figure of {analysis.name}: pysoup analyze, with --figure {name}.svg or {name}.png beside it"
            )
    if not content.analyses:
        lines.append("geometry, planes and pairs: pysoup analyze, with -o RUN/NAME.json and --figure RUN/NAME.svg")
    return lines
