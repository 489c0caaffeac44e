"""The commands that make a run again, put together from what its traces say."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from .content import Content, Made
from .html import clean

_RULES = ("accept", "min_delta")
_LEARNING = ("granularity", "parametrization", "temperature", "lr", "weight_decay", "epochs", "batch", "blocks", "seed")
_TAKES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "uniform": (["uniform"], ()),
    "greedy": (
        ["greedy"],
        (*_RULES, "order", "seed", "max_ingredients", "passes", "replacement", "early_rejection"),
    ),
    "pruned": (["pruned"], (*_RULES, "passes", "early_rejection")),
    "greedier": (["greedier"], (*_RULES, "max_ingredients", "prefilter", "early_rejection")),
    "learned": (["learned"], (*_LEARNING, "keep", "score_epochs")),
    "ensemble": (["ensemble", "--all"], ()),
    "greedy ensemble": (["ensemble"], (*_RULES, "select", "replacement", "max_ingredients")),
}
"""By recipe: the words of its command, and those of its recorded options that the command has."""
_NAMES = ("include", "exclude")
_METRICS = re.compile(r"accuracy|top[0-9]+|nll|macro_f1|mcc")
"""Those that ``--metric`` takes; a task's own has no name there."""
_DEFAULTS = {
    "order": "score",
    "accept": ">=",
    "min_delta": 0.0,
    "select": "sorted",
    "keep": "last",
    "early_rejection": True,
    "temperature": True,
}


def command_of(made: Made) -> str:
    """Of one recipe; of a soup that chose, all candidates are named, in the order in which they were given.

    What has no command that could be put together from its trace is the weighted average that it is.
    """
    if made.recipe not in _TAKES:
        equal = len({*made.weights}) <= 1
        weights = [] if equal else [f"--weights={','.join(map(repr, made.weights))}", "--no-normalize"]
        return _line(["pysoup", "average", *made.ingredients, *weights, "-o", "soup.safetensors"])
    words, names = _TAKES[made.recipe]
    options = [
        word
        for name in (*names, *_NAMES)
        if name in made.options and made.options[name] != _DEFAULTS.get(name)
        for word in _option(name, made.options[name])
    ]
    task = made.task or "FILE.py:NAME"
    metric = str(made.trace.get("metric"))
    # The task's own may be another one. Accuracy is where there is none.
    if metric != "accuracy" and _METRICS.fullmatch(metric):
        options = ["--metric", metric, *options]
    return _line(["pysoup", *words, "--task", task, *options, *made.candidates, "-o", made.directory])


def evaluate_command(content: Content) -> str:
    """Of all scores on test sets."""
    names = [model.name for model in content.models] + [made.directory for made in content.made]
    return _line(["pysoup", "evaluate", "--task", content.task or "FILE.py:NAME", *names, "-o", "RUN/"])


def _option(name: str, value: object) -> list[str]:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}"] if value else [f"--no-{option}"] if _DEFAULTS.get(name) is True else []
    if isinstance(value, list):
        # An order by positions is Python's alone; patterns are given one by one.
        return [] if name == "order" else [word for item in value for word in (f"--{option}", str(item))]
    return [] if value is None or isinstance(value, dict) else [f"--{option}", str(value)]


def _line(words: Sequence[str]) -> str:
    return " ".join(shlex.quote(clean(word)) for word in words)
