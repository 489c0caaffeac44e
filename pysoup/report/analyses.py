"""What ``pysoup analyze`` left: a JSON file, and figures with its name beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .content import Analysis
from .paths import setting

_KEY = "analysis"
_LARGEST_FIGURE = 4 << 20
FIGURES = {".svg": "image/svg+xml", ".png": "image/png"}
"""Of figures that a page can show, by the end of their names."""
_NOT_RESULTS = (_KEY, "pysoup", "options", "seed", "geometry", "alone")
_MOST_NUMBERS = 400


def analysis_in(file: Path, known: Mapping[str, Any], names: Sequence[str]) -> Analysis | None:
    """The analysis in ``file``, an object with the key ``analysis``; ``names`` are the files beside it."""
    if not isinstance(known.get(_KEY), str):
        return None
    figures = {}
    for name in names:
        if name.endswith(tuple(FIGURES)) and name.startswith(f"{file.stem}."):
            path = file.parent / name
            try:
                if path.stat().st_size <= _LARGEST_FIGURE:
                    figures[name] = path.read_bytes()
            except OSError:
                continue
    return Analysis(file.name, known, figures)


def numbers_of(analysis: Analysis) -> list[list[str]]:
    """Name and text of the single numbers and words of an analysis; those of lists are what its figures show."""
    known = dict(analysis.content)
    compared = known.pop("comparisons", None)
    found = [(key.replace("_", " "), value) for key, value in known.items() if key not in _NOT_RESULTS]
    found += _compared(known.get("models"), compared)
    return [[name, setting(value)] for what, item in found for name, value in _single(what, item)][:_MOST_NUMBERS]


def _compared(models: object, pairs: object) -> list[tuple[str, object]]:
    """Of ``compare``: by pair and set, what the first model is better by, and how likely that is chance."""
    found: list[tuple[str, object]] = []
    for pair in pairs if isinstance(pairs, list) else []:
        sets = pair.get("sets") if isinstance(pair, Mapping) else None
        if not (isinstance(models, list) and isinstance(sets, Mapping)):
            continue
        ends = [end for end in (pair.get("first"), pair.get("second")) if isinstance(end, int)]
        if len(ends) < 2 or not all(0 <= end < len(models) for end in ends):
            continue
        names = " against ".join(str(models[end]) for end in ends)
        for name, tests in sets.items():
            for key, what in (("accuracy_test", "accuracy"), ("nll_test", "nll")):
                test = tests.get(key) if isinstance(tests, Mapping) else None
                if isinstance(test, Mapping):
                    both = {"difference": test.get("difference"), "p value": test.get("p_value")}
                    found.append((f"{names}, {name}: {what}", both))
    return found


def _single(name: str, known: object) -> Iterator[tuple[str, object]]:
    if isinstance(known, (str, int, float)):
        yield name, known
    elif isinstance(known, Mapping):
        for key, value in known.items():
            yield from _single(f"{name}: {str(key).replace('_', ' ')}", value)
