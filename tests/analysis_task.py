"""A small task for tests of analyses: a network, models around one start with records, and plain torch's scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pysoup.record import Record, write_record

StateDict = dict[str, Tensor]
TASK = """
from analysis_task import Rule

task = Rule()
"""


class Rule:
    """Labels of a random network on noise: held-out data, a test set and two shifts of it, training data.

    ``forwards`` counts forward passes; after ``most`` of them it is interrupted.
    """

    forwards = 0
    most: int | None = None

    def model(self) -> nn.Module:
        return network()

    def heldout(self) -> Any:
        return data(1, 60)

    def tests(self) -> dict[str, Any]:
        return {"test": data(2, 90), "wide": data(3, 80, 2.0), "narrow": data(4, 70, 0.5)}

    def train(self) -> Any:
        return data(5, 50)

    @classmethod
    def forward(cls, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        if cls.forwards == cls.most:
            raise KeyboardInterrupt
        cls.forwards += 1
        return model(batch[0]), batch[1]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 5))


def data(seed: int, count: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    x = spread * torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return x, with_weights(rule()).eval()(x).argmax(1)


def rule() -> StateDict:
    return noise(network().state_dict(), 0, 1.0)


def noise(like: StateDict, seed: int, spread: float) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    return {name: spread * torch.randn(tensor.shape, generator=generator) for name, tensor in like.items()}


def with_weights(state: StateDict) -> nn.Module:
    model = network()
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model


@dataclass
class Kitchen:
    """The files of a start and of models fine-tuned from it."""

    task: str
    start: str
    paths: list[str]

    def state(self, path: str) -> StateDict:
        """In f64."""
        return {name: tensor.double() for name, tensor in load_file(path).items()}


def kitchen(folder: Path, count: int = 5, spread: float = 0.5) -> Kitchen:
    """``count`` models around a start that is near the rule, with records: the learning rate of every other differs."""
    away = noise(rule(), 10, 0.7)
    start = {name: tensor + away[name] for name, tensor in rule().items()}
    save_file(start, folder / "start.safetensors")
    paths = []
    for index in range(count):
        step = noise(start, 20 + index, spread)
        path = folder / f"m{index}.safetensors"
        save_file({name: tensor - 0.5 * away[name] + step[name] for name, tensor in start.items()}, path)
        hyperparameters = {"learning_rate": 1e-3 * (1 + index % 2), "seed": index, "mixup": 0.0}
        record = Record(0.5, "accuracy", "max", None, "0", hyperparameters, index, 1.0)
        write_record(path, record)
        paths.append(str(path))
    (folder / "task.py").write_text(TASK)
    return Kitchen(f"{folder / 'task.py'}:task", str(folder / "start.safetensors"), paths)


def plain_scores(state: StateDict) -> dict[str, tuple[float, float]]:
    """Accuracy and mean cross-entropy on every set but the training data, in plain torch."""
    task = Rule()
    found = {}
    for name, (x, y) in {"heldout": task.heldout(), **task.tests()}.items():
        with torch.no_grad():
            logits = with_weights(state).eval()(x)
        nll = nn.functional.cross_entropy(logits, y).item()
        found[name] = ((logits.argmax(1) == y).double().mean().item(), nll)
    return found


def mixed(states: list[StateDict], weights: list[float]) -> StateDict:
    """Their weighted sum, in the dtype they are in."""
    return {name: sum(w * s[name] for w, s in zip(weights, states, strict=True)) for name in states[0]}  # type: ignore[misc]
