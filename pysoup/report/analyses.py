"""What ``pysoup analyze`` left: a JSON file, and figures with its name beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .content import Analysis

_KEY = "analysis"
_LARGEST_FIGURE = 4 << 20


def analysis_in(file: Path, known: Mapping[str, Any], names: Sequence[str]) -> Analysis | None:
    """The analysis in ``file``, an object with the key ``analysis``; ``names`` are the files beside it."""
    if not isinstance(known.get(_KEY), str):
        return None
    figures = {}
    for name in names:
        if name.endswith(".svg") and name.startswith(f"{file.stem}."):
            path = file.parent / name
            try:
                if path.stat().st_size <= _LARGEST_FIGURE:
                    figures[name] = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
    return Analysis(file.name, known, figures)
