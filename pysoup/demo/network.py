"""The model of the demo: a small convolutional network without batch statistics, so that averages need no repair."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_MEAN, _STD = 0.13, 0.31  # of MNIST's training images


class DigitNet(nn.Module):
    """Three convolutions with group norm, a hidden layer and a linear ``head``: [N, 1, 28, 28] -> [N, classes]."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.GroupNorm(4, 16)
        self.conv2, self.norm2 = nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GroupNorm(4, 32)
        self.conv3, self.norm3 = nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(4, 64)
        self.hidden = nn.Linear(64 * 4 * 4, 128)
        self.head = nn.Linear(128, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = (images - _MEAN) / _STD
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        x = torch.relu(self.norm3(self.conv3(x)))
        x = functional.max_pool2d(x, 2, ceil_mode=True).flatten(1)
        logits: Tensor = self.head(torch.relu(self.hidden(x)))
        return logits
