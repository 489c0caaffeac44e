"""The demo as a task: ``pysoup greedy --task pysoup.demo.task:digits runs/demo/ingredients/*.safetensors -o RUN/``."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import nn

from .data import GLYPH_CLASSES, SPLITS, Data, glyphs, mnist, split, synthetic_shifts, uci_digits
from .network import DigitNet


class Digits:
    """Ten digits: MNIST to fine-tune on, to select on and to test on (disjoint images); four shifts to test on.

    The data is read at first use. It is the same in every run: the split has a seed of its own.
    """

    def model(self) -> nn.Module:
        """An untrained network for the ten digits."""
        return DigitNet(classes=10)

    def pretraining(self) -> Data:
        """Printed glyphs and the images of :meth:`train`; labels index ``GLYPH_CLASSES``."""
        images, labels = self._mnist["train"]
        digits = torch.tensor([GLYPH_CLASSES.index(str(digit)) for digit in range(10)])
        printed, classes = glyphs()
        return torch.cat([printed, images]), torch.cat([classes, digits[labels]])

    def train(self) -> Data:
        """500 images of MNIST."""
        return self._mnist["train"]

    def heldout(self) -> Data:
        """2,000 images of MNIST: what selects."""
        return self._mnist["heldout"]

    def tests(self) -> dict[str, Data]:
        """``mnist`` (2,500 images) first, then the shifts: ``uci`` (1,797) and three corruptions of the test images."""
        test = self._mnist["test"]
        return {"mnist": test, "uci": uci_digits(), **synthetic_shifts(test)}

    @cached_property
    def _mnist(self) -> dict[str, Data]:
        return split(mnist(), SPLITS)


digits = Digits()
