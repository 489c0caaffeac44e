"""A plain torch vision model as a task: the digits that scikit-learn ships, 8 x 8 pixels.

    pysoup finetune examples/image_classification.toml -o runs/digits --jobs 2
    pysoup greedy --task examples/image_classification.py:Digits runs/digits -o soups/digits

Soups need ingredients that share a pre-trained start. For want of a model of this size to download, one is pre-trained
here on half of the digits, once, and kept in ``runs/pretrained_digits.safetensors``. The task is other digits, lying on
their side.
"""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pysoup
from pysoup.checkpoint import save_state_dict
from pysoup.finetune import Hyperparameters, fine_tune

PRETRAINED = Path("runs", "pretrained_digits.safetensors")

_MOVES = ((1, 1), (-1, 1), (1, 2), (-1, 2))  # up, down, left, right: by how much along which dimension


class SmallNet(nn.Module):
    """Two convolutions and a linear ``head``: [N, 1, 8, 8] -> [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.Linear(32 * 4 * 4, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


class Digits:
    """Fine-tune on 300 digits, select on 300 others, test on the remaining ones, all turned by a quarter."""

    head = "head"  # what the linear probe trains

    def model(self) -> nn.Module:
        """The pre-trained model. Its weights must be the same every time: they are saved at first use."""
        model = SmallNet()
        if PRETRAINED.exists():
            model.load_state_dict(pysoup.open_checkpoint(PRETRAINED).state_dict())
            return model
        fine_tune(
            model, self._part(0, 900, turned=False), Hyperparameters(learning_rate=1e-3, epochs=30, batch_size=50)
        )
        PRETRAINED.parent.mkdir(parents=True, exist_ok=True)
        save_state_dict(model.state_dict(), PRETRAINED)
        return model

    def train(self) -> tuple[Tensor, Tensor]:
        return self._part(900, 1200)

    def heldout(self) -> tuple[Tensor, Tensor]:
        """What selects."""
        return self._part(1200, 1500)

    def tests(self) -> dict[str, tuple[Tensor, Tensor]]:
        """What is only reported: the last 297 digits, and the same with noise."""
        images, labels = self._part(1500, 1797)
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
        return {"test": (images, labels), "noise": (images + 0.3 * noise, labels)}

    def augment(self, images: Tensor, hp: Hyperparameters, generator: torch.Generator) -> Tensor:
        """Move half of the images by one pixel, and fade all by ``hp.augment_magnitude`` / 20 at most."""
        moves = torch.randint(0, 8, (len(images),), generator=generator).tolist()
        moved = [image.roll(*_MOVES[move]) if move < 4 else image for image, move in zip(images, moves, strict=True)]
        fade = 1 - torch.rand(len(images), 1, 1, 1, generator=generator) * hp.augment_magnitude / 20
        return torch.stack(moved) * fade

    @staticmethod
    def _part(first: int, last: int, *, turned: bool = True) -> tuple[Tensor, Tensor]:
        bunch = load_digits()
        images = torch.tensor(bunch.images[first:last] / 16, dtype=torch.float32)[:, None]
        return images.rot90(1, (2, 3)) if turned else images, torch.tensor(bunch.target[first:last])
