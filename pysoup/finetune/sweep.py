"""From one shared start to N ingredients on disk; a run started again goes on where the last one stopped."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import save_state_dict
from ..checkpoint.output.publish import publish_file, remove, remove_stale, temporary_path
from ..errors import OutputError, SoupError
from ..evaluate import HeldOut, MetricLike, as_heldout, as_metric, evaluate
from ..progress import StepProgress
from .hyperparameters import Hyperparameters
from .train import Augment, fine_tune

_HASHED_BYTES = 1 << 24


@dataclass(frozen=True)
class Ingredient:
    """One fine-tuned model: its weights in ``path``, its held-out ``score``, ``seconds`` of training.

    ``resumed`` is True where an earlier run made it.
    """

    path: Path
    hyperparameters: Hyperparameters
    score: float
    seconds: float
    resumed: bool = False


class Sweep:
    """Fine-tune one start with each of several hyperparameters (paper, section 2: theta_i = FineTune(theta_0, h_i)).

    The start is what ``model`` holds. ``DIRECTORY/model_00.safetensors`` and so on are the ingredients, each with a
    ``.json`` beside it (hyperparameters, score, and the identity of start, data and settings), and ``sweep.json`` is
    the list of all. An ingredient whose identity is the same is not made again. One with another identity is an
    :class:`OutputError` unless ``overwrite``.

    ``data``, ``augment`` and ``batch_size`` are those of :func:`fine_tune`. Tensors in memory are part of the identity;
    the content of a loader is not, nor is the code of ``augment``: use a new directory when they change.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        model: nn.Module,
        data: Any,
        hyperparameters: Sequence[Hyperparameters],
        heldout: HeldOut | Any,
        *,
        metric: MetricLike = "accuracy",
        augment: Augment | None = None,
        batch_size: int = 64,
        overwrite: bool = False,
    ) -> None:
        if not hyperparameters:
            raise SoupError("a sweep needs at least one point")
        self.directory = Path(directory)
        self.model = model
        self.data = data
        self.hyperparameters = list(hyperparameters)
        self.heldout = as_heldout(heldout)
        self.metric = as_metric(metric)
        self.augment = augment
        self.batch_size = batch_size
        self.overwrite = overwrite

    def run(self, progress: StepProgress | None = None) -> list[Ingredient]:
        """Make what is missing; returns all ingredients in the given order. The model holds the start afterwards.

        ``progress(done, all, name and score)`` is called after each ingredient.
        """
        _make_directory(self.directory)
        start = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        shared = self._identity(start)
        self._refuse_others(shared)
        made: list[Ingredient] = []
        try:
            for index, hp in enumerate(self.hyperparameters):
                made.append(self._ingredient(index, hp, shared, start))
                if progress is not None:
                    last = made[-1]
                    what = f"{last.path.name} {self.metric.name} {last.score:.4f}"
                    progress(len(made), len(self.hyperparameters), what)
        finally:
            self.model.load_state_dict(start)
        _write_json(self.directory / "sweep.json", self._summary(made, shared))
        return made

    def _ingredient(
        self, index: int, hp: Hyperparameters, shared: Mapping[str, Any], start: Mapping[str, Tensor]
    ) -> Ingredient:
        path, sidecar = self._paths(index)
        known = _read_json(sidecar)
        if known is not None and path.exists() and _same(known, hp, shared):
            return Ingredient(path, hp, float(known["score"]), float(known["seconds"]), resumed=True)
        # First of all: weights and scores of different runs must never stand side by side.
        sidecar.unlink(missing_ok=True)
        self.model.load_state_dict(start)
        began = time.perf_counter()
        try:
            fine_tune(self.model, self.data, hp, augment=self.augment, batch_size=self.batch_size)
        except SoupError as error:
            raise SoupError(f"fine-tuning failed: {error}", file=path) from error
        seconds = time.perf_counter() - began
        score = evaluate(self.model, self.heldout, self.metric)
        metadata = {"format": "pt", "pysoup.hyperparameters": json.dumps(hp.to_json())}
        save_state_dict(self.model.state_dict(), path, metadata=metadata, overwrite=True)
        record = {"hyperparameters": hp.to_json(), "score": score, "seconds": round(seconds, 3), **shared}
        _write_json(sidecar, record)
        return Ingredient(path, hp, score, seconds)

    def _refuse_others(self, shared: Mapping[str, Any]) -> None:
        """Before anything is trained: is there an ingredient of another sweep under one of our names?"""
        if self.overwrite:
            return
        for index, hp in enumerate(self.hyperparameters):
            path, sidecar = self._paths(index)
            known = _read_json(sidecar)
            if known is not None and not _same(known, hp, shared):
                raise OutputError("made by another sweep; another directory or overwrite=True", file=path)

    def _paths(self, index: int) -> tuple[Path, Path]:
        digits = max(2, len(str(len(self.hyperparameters) - 1)))
        path = self.directory / f"model_{index:0{digits}d}.safetensors"
        return path, path.with_suffix(".json")

    def _identity(self, start: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            "metric": self.metric.name,
            "start": digest(start),
            "train": digest(self.data),
            "heldout": digest(list(self.heldout.batches())),
            "augment": None if self.augment is None else _name(self.augment),
            "batch_size": self.batch_size,
        }

    def _summary(self, made: Sequence[Ingredient], shared: Mapping[str, Any]) -> dict[str, Any]:
        models = [
            {"path": i.path.name, "score": i.score, "seconds": round(i.seconds, 3), **i.hyperparameters.to_json()}
            for i in made
        ]
        return {**shared, "direction": self.metric.direction, "models": models}


def digest(data: Any) -> str | None:
    """A SHA-256 over the tensors in nested tuples, lists and dictionaries; None where there is anything else."""
    sha = hashlib.sha256()
    return sha.hexdigest() if _update_digest(sha.update, data) else None


def _update_digest(update: Callable[[bytes], None], data: Any) -> bool:
    if isinstance(data, Tensor):
        update(f"{data.dtype} {list(data.shape)};".encode())
        if data.numel():
            flat = data.detach().cpu().contiguous().view(-1).view(torch.uint8)
            for first in range(0, len(flat), _HASHED_BYTES):
                update(flat[first : first + _HASHED_BYTES].numpy().tobytes())
        return True
    if isinstance(data, Mapping):
        update(f"{list(data)};".encode())
        data = list(data.values())
    if isinstance(data, (tuple, list)):
        update(f"{len(data)};".encode())
        return all(_update_digest(update, part) for part in data)
    return False


def _same(known: Mapping[str, Any], hp: Hyperparameters, shared: Mapping[str, Any]) -> bool:
    expected = {"hyperparameters": hp.to_json(), **shared}
    return {key: known.get(key) for key in expected} == expected and "score" in known and "seconds" in known


def _name(function: Augment) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the directory: {error.strerror}", file=directory) from error


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in ``path``; None where there is none, which a half-made ingredient looks like too."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    temporary = temporary_path(path)
    try:
        remove_stale(path)
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        publish_file(temporary, path, overwrite=True)
    except OSError as error:
        raise OutputError(f"cannot write: {error.strerror}", file=path) from error
    finally:
        remove(temporary)
