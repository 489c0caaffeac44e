"""Held-out data, metrics and the score of one model: what every recipe that selects is built on."""

from __future__ import annotations

from .batchnorm import recalibrate_batchnorm
from .forward import Forward, default_forward
from .heldout import HeldOut, as_heldout
from .margin import Margins, SampleRows, margins
from .mcnemar import McNemar, correct, mcnemar
from .metrics import Accumulator, Direction, Metric, MetricLike, as_metric, macro_f1, mcc, nll, top_k
from .scoring import Evaluation, evaluate, evaluating, run_evaluation
from .split import Split, heldout_split, load_split, save_split

__all__ = [
    "Accumulator",
    "Direction",
    "Evaluation",
    "Forward",
    "HeldOut",
    "Margins",
    "McNemar",
    "Metric",
    "MetricLike",
    "SampleRows",
    "Split",
    "as_heldout",
    "as_metric",
    "correct",
    "default_forward",
    "evaluate",
    "evaluating",
    "heldout_split",
    "load_split",
    "macro_f1",
    "margins",
    "mcc",
    "mcnemar",
    "nll",
    "recalibrate_batchnorm",
    "run_evaluation",
    "save_split",
    "top_k",
]
