"""A cross-dataset soup (Wortsman et al. 2022, appendix E): one backbone, a head of its own for each data set.

    python examples/cross_dataset.py runs/cross

A model of ten classes is pre-trained on upright digits of scikit-learn. From there it is fine-tuned on three data sets
of slanted digits, of three, four and three classes: each has the rows of the pre-trained head that are its classes,
frozen, as the paper has those that CLIP's text tower gives. So the checkpoints differ in the shape of the head. The
soup is of the backbones alone, under the pre-trained head of all ten classes: a task that no model was trained on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pysoup
from pysoup.checkpoint import save_state_dict

DATA_SETS = {"a": (0, 1, 2), "b": (3, 4, 5, 6), "c": (7, 8, 9)}


class Net(nn.Module):
    """[N, 64] -> [N, classes]."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.head = nn.Linear(64, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.backbone(pixels))


def digits(*, slanted: bool) -> tuple[Tensor, Tensor]:
    """Pixels [N, 64] and labels: the first half of the digits, upright, or the other half, slanted."""
    bunch = load_digits()
    images, labels = torch.tensor(bunch.images / 16, dtype=torch.float32), torch.tensor(bunch.target)
    half = len(labels) // 2
    if not slanted:
        return images[:half].flatten(1), labels[:half]
    rows = [images[half:, row].roll(row // 2 - 2, 1) for row in range(8)]  # the lower, the further to the right
    return torch.stack(rows, 1).flatten(1), labels[half:]


def train(model: Net, data: tuple[Tensor, Tensor], *, steps: int, rate: float) -> None:
    """Full-batch AdamW over what requires gradients."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()


def main(folder: Path) -> dict[str, float]:
    """Pre-train, fine-tune, average; the accuracies on slanted digits of all ten classes."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    start = Net()
    train(start, digits(slanted=False), steps=150, rate=3e-3)
    save_state_dict(start.state_dict(), folder / "start.safetensors", overwrite=True)

    pixels, labels = digits(slanted=True)
    seen, target = slice(None, len(labels) // 2), slice(len(labels) // 2, None)
    for name, classes in DATA_SETS.items():
        model = Net(len(classes))
        model.backbone.load_state_dict(start.backbone.state_dict())
        rows = list(classes)
        model.head.load_state_dict({"weight": start.head.weight[rows], "bias": start.head.bias[rows]})
        model.head.requires_grad_(False)
        mine = torch.isin(labels[seen], torch.tensor(rows))
        train(model, (pixels[seen][mine], labels[seen][mine] - rows[0]), steps=60, rate=1e-3)
        save_state_dict(model.state_dict(), folder / f"{name}.safetensors", overwrite=True)

    # The model keeps its own head, and the backbones are averaged into it.
    paths = {name: folder / f"{name}.safetensors" for name in ("start", *DATA_SETS)}
    found = {}
    for names in ("start", "a", "b", "c", "a b", "a b c", "start a b c"):
        chosen = [paths[name] for name in names.split()]
        soup = pysoup.uniform_soup(chosen, start, (pixels[target], labels[target]), exclude=r"^head\.")
        soup.save(folder / f"soup-{names.replace(' ', '-')}.safetensors", overwrite=True)
        found[names] = soup.score or 0.0
    return found


if __name__ == "__main__":
    for name, accuracy in main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/cross")).items():
        print(f"{name:11}  {accuracy:.3f}")
