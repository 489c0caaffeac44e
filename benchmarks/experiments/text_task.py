"""The text experiment as a task: MiniLM with a linear head tells a Debian package's section from its description.

``pysoup finetune benchmarks/experiments/sweep_text.toml -o RUN`` and
``pysoup greedy --task benchmarks/experiments/text_task.py:sections RUN -o SOUP`` work on it as on any other task.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from debian import packages
from minilm import minilm
from text_data import SECTIONS, Splits, shifts, split, summary
from torch import Tensor, nn

from pysoup import HeldOut

DATA = Path(__file__).resolve().parent.parent / "data" / "experiments"
PRECISION = "bfloat16"
_TOKENS, _TOKENS_LONGER = 24, 48
_DROPOUT = 0.1


class SectionClassifier(nn.Module):
    """An encoder, the mean of its outputs over the tokens, dropout and a linear ``head``: logits [N, classes]."""

    def __init__(self, encoder: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.encoder, self.dropout, self.head = encoder, nn.Dropout(_DROPOUT), nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if input_ids.device.type == "cpu":
            # Most lines have half the tokens that there is room for; elsewhere, looking would mean waiting.
            longest = int(attention_mask.sum(1).max())
            input_ids, attention_mask = input_ids[:, :longest], attention_mask[:, :longest]
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        logits: Tensor = self.head(self.dropout((states * weights).sum(1) / weights.sum(1)))
        return logits


class Sections:
    """The task: data and model are fetched at first use into ``benchmarks/data/experiments``."""

    head = "head"

    def model(self) -> nn.Module:
        """MiniLM with a new head. The word embeddings, half of the parameters, stay as they are pre-trained."""
        from transformers import BertModel
        from transformers.utils import logging

        logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # that the pooler is left out is meant
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        encoder = BertModel.from_pretrained(self._files, add_pooling_layer=False)
        encoder.embeddings.word_embeddings.weight.requires_grad_(False)
        return SectionClassifier(encoder, encoder.config.hidden_size, len(SECTIONS))

    def train(self) -> dict[str, Tensor]:
        """150 lines of each section."""
        return self._tensors("train")

    def heldout(self) -> HeldOut:
        """120 lines of each section: what selects."""
        return HeldOut(self._tensors("heldout"), autocast=PRECISION)

    def tests(self) -> dict[str, HeldOut]:
        """``packages``, up to 600 lines of each section, then the same lines changed in three ways.

        Short lines come first: the less a batch is padded, the sooner it is done.
        """
        parts = {"packages": self._tensors("test")}
        for name, rows in shifts(self._splits["test"]).items():
            parts[name] = self._encoded(rows, _TOKENS_LONGER if name == "longer" else _TOKENS)
        return {name: HeldOut(_short_first(data), autocast=PRECISION) for name, data in parts.items()}

    def summary(self) -> dict[str, Any]:
        """What the data is: counts and a digest."""
        return summary(self._splits)

    def _tensors(self, part: str) -> dict[str, Tensor]:
        return self._encoded([(line.text, line.label) for line in self._splits[part]], _TOKENS)

    def _encoded(self, rows: Sequence[tuple[str, int]], length: int) -> dict[str, Tensor]:
        texts = [text for text, _ in rows]
        found = self._tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        labels = torch.tensor([label for _, label in rows])
        return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"], "labels": labels}

    @cached_property
    def _files(self) -> Path:
        return minilm(DATA / "minilm")

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._files)

    @cached_property
    def _splits(self) -> Splits:
        folder = DATA / "debian"
        folder.mkdir(parents=True, exist_ok=True)
        return split(packages(folder))


def _short_first(data: dict[str, Tensor]) -> dict[str, Tensor]:
    order = data["attention_mask"].sum(1).argsort(stable=True)
    return {name: tensor[order] for name, tensor in data.items()}


sections = Sections()
