"""A transformers model as a task: one sentence in, one of several classes out.

    pysoup finetune examples/text_classification.toml -o runs/text
    pysoup greedy --task examples/text_classification.py:Texts runs/text -o soups/text

Beside this file it expects

- ``model/``: a pre-trained encoder with its tokenizer, as ``save_pretrained`` writes both::

      for kind in (AutoModel, AutoTokenizer):
          kind.from_pretrained("bert-base-uncased").save_pretrained("examples/model")

- ``data/train.tsv``, ``data/heldout.tsv`` and any ``data/test*.tsv``: a class, a tab and a text on each line.

The example itself downloads nothing. It needs ``transformers``.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

HERE = Path(__file__).parent
MODEL, DATA = HERE / "model", HERE / "data"
LENGTH = 64  # tokens; longer texts are cut


class Texts:
    """The classes are those of the training file, in alphabetical order."""

    head = "classifier"  # what the linear probe trains; "score" or "classification_head" in some architectures
    metric = "accuracy"

    def model(self) -> nn.Module:
        """The encoder with a new head for our classes: drawn at random, but seeded by pysoup."""
        return AutoModelForSequenceClassification.from_pretrained(
            MODEL, num_labels=len(self.classes), local_files_only=True
        )

    def train(self) -> dict[str, Tensor]:
        return self._read(DATA / "train.tsv")

    def heldout(self) -> dict[str, Tensor]:
        """What selects."""
        return self._read(DATA / "heldout.tsv")

    def tests(self) -> dict[str, dict[str, Tensor]]:
        """What is only reported."""
        return {path.stem: self._read(path) for path in sorted(DATA.glob("test*.tsv"))}

    @cached_property
    def classes(self) -> list[str]:
        return sorted({name for name, _ in _lines(DATA / "train.tsv")})

    def _read(self, path: Path) -> dict[str, Tensor]:
        """What the model takes by name, and ``labels``: such a dictionary is a data set, and so are its batches."""
        lines = _lines(path)
        tokenizer = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
        texts = tokenizer(
            [text for _, text in lines], truncation=True, max_length=LENGTH, padding="longest", return_tensors="pt"
        )
        return {**texts, "labels": torch.tensor([self.classes.index(name) for name, _ in lines])}


def _lines(path: Path) -> list[tuple[str, str]]:
    pairs = (line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines())
    return [(name, text) for name, text in pairs]
