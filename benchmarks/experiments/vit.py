"""A small vision transformer for 28 x 28 grey images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_MEAN, _STD = 0.13, 0.31  # of MNIST's training images
_SIDE, _PATCH = 28, 4  # the stem halves the side twice


class SmallViT(nn.Module):
    """A convolutional stem to 7 x 7 patches, ``depth`` pre-norm blocks, mean over the patches, a linear ``head``.

    [N, 1, 28, 28] -> logits [N, classes]. The stem (Xiao et al. 2021) is what lets a transformer learn from few images.
    """

    def __init__(self, classes: int, *, width: int = 64, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width // 2, 3, stride=2, padding=1),
            nn.GroupNorm(4, width // 2),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
        )
        self.positions = nn.Parameter(torch.randn(1, (_SIDE // _PATCH) ** 2, width) * 0.02)
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem((images - _MEAN) / _STD).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits
