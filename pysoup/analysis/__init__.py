"""Analyses of the paper (sections 3.2, 4 and 5): why a soup of these models works, or does not.

Names are loaded at first use: what works on files alone needs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME: dict[str, str] = {
    "Angles": "angles",
    "Approximation": "approximation",
    "CalibrationCurve": "calibration",
    "Comparisons": "compare",
    "CountCurve": "count",
    "Geometry": "geometry",
    "Grids": "grids",
    "Pairs": "pairs",
    "Plane": "plane",
    "Sets": "sets",
    "angle_gains": "angles",
    "calibration_curve": "calibration",
    "compare_models": "compare",
    "compare_samples": "compare",
    "count_curve": "count",
    "error_plane": "plane",
    "grid_ends": "grids",
    "pair_scores": "pairs",
    "samples_of": "compare",
    "soup_approximation": "approximation",
    "weight_geometry": "geometry",
}

__all__ = [*_HOME]  # noqa: PLE0604 (the keys are strings)


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'pysoup.analysis' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
