"""Ingredients: hyperparameters by the paper's laws, linear probe then fine-tuning, and sweeps that can be resumed.

Names are loaded at first use: the process that leads a sweep trains nothing and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .averages import WeightAverage as WeightAverage
    from .hyperparameters import PAPER as PAPER
    from .hyperparameters import PAPER_TEXT as PAPER_TEXT
    from .hyperparameters import Hyperparameters as Hyperparameters
    from .hyperparameters import Ranges as Ranges
    from .hyperparameters import sample_hyperparameters as sample_hyperparameters
    from .sweep import Ingredient as Ingredient
    from .sweep import Sweep as Sweep
    from .train import Augment as Augment
    from .train import fine_tune as fine_tune
    from .train import linear_probe as linear_probe

_HOME = {
    "PAPER": "hyperparameters",
    "PAPER_TEXT": "hyperparameters",
    "Augment": "train",
    "Hyperparameters": "hyperparameters",
    "Ingredient": "sweep",
    "Ranges": "hyperparameters",
    "Sweep": "sweep",
    "WeightAverage": "averages",
    "fine_tune": "train",
    "linear_probe": "train",
    "sample_hyperparameters": "hyperparameters",
}

__all__ = [*_HOME]  # noqa: PLE0604 (the keys are strings)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
