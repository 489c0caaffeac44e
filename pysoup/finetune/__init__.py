"""Ingredients: hyperparameters by the paper's laws, linear probe then fine-tuning, and sweeps that can be resumed."""

from __future__ import annotations

from .hyperparameters import PAPER, Hyperparameters, Ranges, sample_hyperparameters
from .sweep import Ingredient, Sweep, digest
from .train import Augment, fine_tune, linear_probe

__all__ = [
    "PAPER",
    "Augment",
    "Hyperparameters",
    "Ingredient",
    "Ranges",
    "Sweep",
    "digest",
    "fine_tune",
    "linear_probe",
    "sample_hyperparameters",
]
