"""Held-out data, metrics and the score of one model: what every recipe that selects is built on."""

from __future__ import annotations

from .batchnorm import recalibrate_batchnorm
from .heldout import Forward, HeldOut, as_heldout, default_forward
from .metrics import Direction, Metric, MetricLike, as_metric
from .scoring import evaluate, evaluating

__all__ = [
    "Direction",
    "Forward",
    "HeldOut",
    "Metric",
    "MetricLike",
    "as_heldout",
    "as_metric",
    "default_forward",
    "evaluate",
    "evaluating",
    "recalibrate_batchnorm",
]
