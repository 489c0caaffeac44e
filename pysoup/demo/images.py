"""Geometry, thickness and corruption of small grey images: [N, 1, H, W], f32, 0 (paper) to 1 (ink)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ..finetune import Hyperparameters

_OPERATIONS = 6
_JITTER = 1.0  # pixels: the minimal augmentation, as the paper's is a slight random crop


def affine(
    images: Tensor,
    *,
    rotation: Tensor | float = 0.0,
    shear: Tensor | float = 0.0,
    scale: Tensor | float = 1.0,
    right: Tensor | float = 0.0,
    down: Tensor | float = 0.0,
) -> Tensor:
    """Turn (radians), shear, scale and move (pixels) each image about its centre, bilinearly; outside is paper.

    Each argument is one number or one per image ([N]).
    """
    values = (rotation, shear, scale, right, down)
    angle, lean, size, dx, dy = (torch.as_tensor(value, dtype=images.dtype).expand(len(images)) for value in values)
    half_height, half_width = images.shape[2] / 2, images.shape[3] / 2
    cos, sin = angle.cos() / size, angle.sin() / size
    # grid_sample goes from output to input, in halves of the image.
    first = torch.stack([cos, lean * cos - sin, -dx / half_width], 1)
    second = torch.stack([sin, cos + lean * sin, -dy / half_height], 1)
    grid = functional.affine_grid(torch.stack([first, second], 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def centred(images: Tensor) -> Tensor:
    """Move the centre of mass of the ink to the centre of the image, as MNIST was made."""
    height, width = images.shape[2:]
    mass = images.sum((1, 2, 3)).clamp_min(1e-6)
    x = (images.sum((1, 2)) * (torch.arange(width) - (width - 1) / 2)).sum(1) / mass
    y = (images.sum((1, 3)) * (torch.arange(height) - (height - 1) / 2)).sum(1) / mass
    return affine(images, right=-x, down=-y)


def rand_augment(images: Tensor, hp: Hyperparameters, generator: torch.Generator) -> Tensor:
    """RandAugment (Cubuk et al. 2020) for glyphs: N of six operations per image, of a strength that grows with M.

    The operations are rotation (15 degrees at M = 10), shear (0.3), scale (16%), two moves (2 pixels) and gamma
    (factor 2). None of them blurs or adds noise, so those shifts stay unseen. A move of up to one pixel comes always.
    """
    n = len(images)
    strength = torch.rand(n, _OPERATIONS, generator=generator) * 2 - 1
    chosen = torch.rand(n, _OPERATIONS, generator=generator).topk(min(hp.augment_ops, _OPERATIONS), dim=1).indices
    strength = strength * torch.zeros(n, _OPERATIONS).scatter_(1, chosen, hp.augment_magnitude / 10)
    jitter = (torch.rand(n, 2, generator=generator) * 2 - 1) * _JITTER
    turn, lean, size, right, down, gamma = strength.unbind(1)
    moved = affine(
        images,
        rotation=turn * math.radians(15),
        shear=lean * 0.3,
        scale=(size * 0.15).exp(),
        right=jitter[:, 0] + right * 2,
        down=jitter[:, 1] + down * 2,
    )
    return moved.clamp_min(1e-6) ** (gamma * 0.7).exp().view(-1, 1, 1, 1)


def pretraining_augment(images: Tensor, hp: Hyperparameters, generator: torch.Generator) -> Tensor:
    """Strong random geometry, and strokes that are thickened (one in four) or thinned (one in four)."""

    def draw(width: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * width

    moved = affine(
        images, rotation=draw(0.35), shear=draw(0.35), scale=draw(0.25).exp(), right=draw(2.1), down=draw(2.1)
    )
    kind = torch.rand(len(images), generator=generator).view(-1, 1, 1, 1)
    thick = functional.max_pool2d(moved, 3, 1, 1)
    thin = (-functional.max_pool2d(-moved, 3, 1, 1)).maximum(moved * 0.3)
    return torch.where(kind < 0.25, thick, torch.where(kind > 0.75, thin, moved))


def rotated(images: Tensor, generator: torch.Generator) -> Tensor:
    """The shift "rotation": 20 to 40 degrees, either way."""
    draw = torch.rand(len(images), generator=generator) * 2 - 1
    return affine(images, rotation=draw.sign() * (20 + draw.abs() * 20) * (math.pi / 180))


def noisy(images: Tensor, generator: torch.Generator) -> Tensor:
    """The shift "noise": Gaussian, standard deviation 0.4, clipped to [0, 1]."""
    return (images + 0.4 * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def blurred(images: Tensor, sigma: float = 2.0) -> Tensor:
    """The shift "blur": Gaussian, ``sigma`` pixels, cut off at three of them."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    across = functional.conv2d(images, kernel.view(1, 1, 1, -1), padding=(0, reach))
    return functional.conv2d(across, kernel.view(1, 1, -1, 1), padding=(reach, 0))
