"""Held-out data, metrics and the score of one model: what every recipe that selects is built on."""

from __future__ import annotations

from .batchnorm import recalibrate_batchnorm
from .calibration import Bin, Calibration, calibration, ece, reliability, temperature
from .forward import Forward, default_forward
from .heldout import HeldOut, as_heldout
from .margin import Margins, SampleRows, margins
from .mcnemar import McNemar, correct, mcnemar
from .metrics import Accumulator, Direction, Metric, MetricLike, as_metric, macro_f1, mcc, nll, top_k
from .permutation import Permutation, permutation_test
from .scoring import Evaluation, evaluate, evaluating, run_evaluation
from .split import Split, heldout_split, load_split, save_split

__all__ = [
    "Accumulator",
    "Bin",
    "Calibration",
    "Direction",
    "Evaluation",
    "Forward",
    "HeldOut",
    "Margins",
    "McNemar",
    "Metric",
    "MetricLike",
    "Permutation",
    "SampleRows",
    "Split",
    "as_heldout",
    "as_metric",
    "calibration",
    "correct",
    "default_forward",
    "ece",
    "evaluate",
    "evaluating",
    "heldout_split",
    "load_split",
    "macro_f1",
    "margins",
    "mcc",
    "mcnemar",
    "nll",
    "permutation_test",
    "recalibrate_batchnorm",
    "reliability",
    "run_evaluation",
    "save_split",
    "temperature",
    "top_k",
]
