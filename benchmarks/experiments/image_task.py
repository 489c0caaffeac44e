"""The image experiment as a task: a small vision transformer on the demo's digits, with its splits and augmentation.

``pysoup finetune benchmarks/experiments/sweep_images.toml -o RUN`` and
``pysoup greedy --task benchmarks/experiments/image_task.py:digits RUN -o SOUP`` work on it as on any other task.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from vit import SmallViT

from pysoup import open_checkpoint
from pysoup.checkpoint import save_state_dict
from pysoup.demo.data import GLYPH_CLASSES
from pysoup.demo.images import pretraining_augment, rand_augment
from pysoup.demo.task import Digits
from pysoup.finetune import Hyperparameters, fine_tune
from pysoup.fingerprint import fingerprint_data

DATA = Path(__file__).resolve().parent.parent / "data" / "experiments"
PRETRAINING = Hyperparameters(learning_rate=3e-3, weight_decay=0.05, epochs=100, batch_size=64)
_SEED = 0
_KEY = "pretraining"


class ViTDigits(Digits):
    """The demo's data and a transformer pre-trained on its glyphs and training digits, once for all sweeps."""

    head = "head"

    def __init__(self, folder: Path = DATA / "images", pretraining: Hyperparameters = PRETRAINING) -> None:
        self._file, self._hp = folder / "pretrained.safetensors", pretraining

    def model(self) -> nn.Module:
        """The pre-trained network with a new head for the ten digits."""
        model = SmallViT(10)
        model.load_state_dict(self._body, strict=False)  # all but the head
        return model

    @staticmethod
    def augment(images: Tensor, hp: Hyperparameters, generator: torch.Generator) -> Tensor:
        """RandAugment for glyphs, as in the demo."""
        return rand_augment(images, hp, generator)

    def summary(self) -> dict[str, Any]:
        """What the data is: counts and a digest."""
        parts = {"pretraining": self.pretraining(), "train": self.train(), "heldout": self.heldout()}
        images = {name: len(labels) for name, (_, labels) in (parts | self.tests()).items()}
        return {"images": images, "sha256": fingerprint_data([*parts.values(), self.tests()])}

    @cached_property
    def _body(self) -> dict[str, Tensor]:
        data = self.pretraining()
        identity = f"{fingerprint_data(data)} {self._hp}"
        if self._file.exists():
            known = open_checkpoint(self._file)
            if known.metadata.get(_KEY) == identity:
                return dict(known.state_dict())
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            model = SmallViT(len(GLYPH_CLASSES))
            fine_tune(model, data, self._hp, augment=pretraining_augment)
        body = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
        save_state_dict(body, self._file, metadata={"format": "pt", _KEY: identity}, overwrite=True)
        return body


digits = ViTDigits()
