"""Accumulators of class counts: the macro-averaged F1 score and Matthews' correlation coefficient."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from ..logits import LogitScores
from .classification import Classification


class ClassCounts(Classification):
    """Per class, the samples of it predicted right, predicted as it, and labelled with it.

    They suffice for both scores, and grow with the classes, not with their square. ``int64`` ``[3, C + 1]`` on the
    device. The prediction is the largest logit, of equal ones the lowest class. A row with a NaN predicts no class:
    the last place is for those.
    """

    per_sample = ("prediction",)

    def adds(self, scores: LogitScores, labels: Tensor) -> Tensor:
        assert scores.prediction is not None
        prediction = scores.prediction[0]
        one = torch.ones_like(labels)
        if self.ignore_index is not None:
            one = (labels != self.ignore_index).to(torch.int64)
            labels = labels * one  # any class: it adds 0 there
        right = one * (prediction == labels)
        none = prediction < 0
        rows = torch.zeros(3, self.classes + 1, dtype=torch.int64, device=labels.device)
        # scatter_add_ of integers is exact in any order; bincount would wait for the device.
        rows[0].scatter_add_(0, labels, right)
        rows[1].scatter_add_(0, prediction.masked_fill(none, self.classes), one)
        rows[2].scatter_add_(0, labels, one)
        return rows

    def value(self) -> float:
        right, predicted, actual = self.finished().cpu()
        return self.from_counts(right, predicted, actual)

    @abstractmethod
    def from_counts(self, right: Tensor, predicted: Tensor, actual: Tensor) -> float:
        """The score; each argument is ``int64`` ``[C + 1]`` on the CPU, the last place is for "no class"."""


class MacroF1(ClassCounts):
    """The mean over classes of F1 = 2 TP / (2 TP + FP + FN), over those classes that occur as a label or prediction.

    scikit-learn's ``f1_score(average="macro", zero_division=0)``.
    """

    def from_counts(self, right: Tensor, predicted: Tensor, actual: Tensor) -> float:
        both = (predicted + actual)[:-1]
        occurs = both > 0
        each = (2 * right[:-1][occurs]).double() / both[occurs].double()
        return math.fsum(each.tolist()) / max(len(each), 1)


class Matthews(ClassCounts):
    """The correlation of labels and predictions, for any number of classes (Gorodkin 2004), in [-1, 1].

    scikit-learn's ``matthews_corrcoef``: 0 where all labels or all predictions are one class. "No class" is one more
    prediction that is never right. Sums of integers are exact, up to 3e9 samples.
    """

    def from_counts(self, right: Tensor, predicted: Tensor, actual: Tensor) -> float:
        samples = int(actual.sum())
        covariance = samples * int(right.sum()) - int((actual * predicted).sum())
        of_predictions = samples**2 - int((predicted * predicted).sum())
        of_labels = samples**2 - int((actual * actual).sum())
        if not of_predictions or not of_labels:
            return 0.0
        return covariance / math.sqrt(of_predictions * of_labels)
