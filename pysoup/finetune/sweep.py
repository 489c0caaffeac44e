"""From one shared start to N ingredients on disk; a run started again goes on where the last one stopped."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import OutputError, SoupError
from ..evaluate import Forward, HeldOut, MetricLike, as_heldout, as_metric, default_forward
from ..fingerprint import fingerprint_data
from ..progress import StepProgress
from ..record import Record, read_failure, read_record, write_failure
from .failures import failure_details, one_line, trace_of
from .hyperparameters import Hyperparameters
from .layout import Outputs, Snapshot, ingredient_path, snapshots, write_summaries
from .lock import locked
from .resume import State, made_by_another, state_of
from .train import Augment
from .trainer import Trainer, heldout_fingerprint, make_directory


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
    ``.json`` beside it (:class:`pysoup.record.Record`), and ``sweep.json`` is the list of all. ``ema`` (decays) and
    ``checkpoints`` (shares of the training, or ``"epochs"``) ask for further weights of each run, in folders of their
    own: see :mod:`.layout`.

    An ingredient is made again only if it is missing or of another ``identity``: hyperparameters, start, training data,
    ``augment``, ``forward`` and ``autocast``. One with another identity is an :class:`OutputError` unless
    ``overwrite``. Where only the held-out data or the metric changed, the weights stay and the scores are taken anew.

    ``data`` and ``augment`` are those of :func:`fine_tune`; ``forward`` defaults to that of ``heldout``; ``autocast``
    is None or ``"bfloat16"``. Tensors in memory are part of the identity; of a loader or a data set only its kind and
    its length are, and of functions only their names: use a new directory when they change.

    A run that fails is recorded in its own JSON, the others go on, and it is not tried again unless ``retry``.
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
        forward: Forward | None = None,
        autocast: str | None = None,
        ema: Sequence[float] = (),
        checkpoints: Sequence[float] | Literal["epochs"] = (),
        overwrite: bool = False,
        retry: bool = False,
    ) -> None:
        if not hyperparameters:
            raise SoupError("a sweep needs at least one point")
        self.directory = Path(directory)
        self.model = model
        self.data = data
        self.hyperparameters = list(hyperparameters)
        self.heldout = as_heldout(heldout, forward)
        self.metric = as_metric(metric)
        self.augment = augment
        self.forward = self.heldout.forward if forward is None else forward
        self.autocast = as_autocast(autocast)
        self.outputs = Outputs(tuple(ema), checkpoints if isinstance(checkpoints, str) else tuple(checkpoints))
        self.overwrite = overwrite
        self.retry = retry

    def run(self, progress: StepProgress | None = None) -> list[Ingredient]:
        """Make what is missing; returns all ingredients in the given order. The model holds the start afterwards.

        ``progress(done, all, name and score)`` is called after each run. Raises :class:`SoupError` at the end if runs
        failed, now or before.
        """
        make_directory(self.directory)
        with locked(self.directory):
            trainer = self.trainer()
            refuse_others(self, trainer.identity)
            try:
                made, errors = self._all(trainer, progress)
            finally:
                self.model.load_state_dict(trainer.start)
        paths = [ingredient_path(self.directory, index) for index in range(len(self.hyperparameters))]
        failed = [(path, failure["failed"]) for path in paths if (failure := read_failure(path)) is not None]
        if failed:
            more = f" (and {len(failed) - 1} more of {len(paths)} runs)" if len(failed) > 1 else ""
            what = f"fine-tuning failed: {failed[0][1]}{more}"
            raise SoupError(what, file=failed[0][0]) from (errors[0] if errors else None)
        return made

    def trainer(self) -> Trainer:
        """What makes single ingredients, from what the model holds now."""
        start = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        return Trainer(
            model=self.model,
            start=start,
            data=self.data,
            heldout=self.heldout,
            metric=self.metric,
            augment=self.augment,
            forward=self.forward,
            autocast=self.autocast,
            identity=self._identity(start),
        )

    def snapshots(self, index: int) -> list[Snapshot]:
        """All that run ``index`` saves."""
        return snapshots(self.directory, index, self.hyperparameters[index], self.outputs)

    def ingredient(self, index: int, trainer: Trainer, progress: StepProgress | None = None) -> Ingredient:
        """Make or find one; what goes wrong passes through."""
        hp, wanted = self.hyperparameters[index], self.snapshots(index)
        known = state_of(wanted, hp, trainer.identity)
        if known is State.DONE:
            records = [self._scored(trainer, snapshot) for snapshot in wanted]
            return Ingredient(wanted[-1].path, hp, records[-1].score, records[-1].seconds, resumed=True)
        record = trainer.train(index, hp, wanted, progress)
        return Ingredient(wanted[-1].path, hp, record.score, record.seconds)

    def summarise(self, identity: Mapping[str, Any]) -> None:
        """Write the lists of what is there."""
        shared = {"metric": self.metric.name, "direction": self.metric.direction, "identity": dict(identity)}
        write_summaries(self.directory, dict(enumerate(self.hyperparameters)), self.outputs, shared)

    def _all(self, trainer: Trainer, progress: StepProgress | None) -> tuple[list[Ingredient], list[Exception]]:
        made: list[Ingredient] = []
        errors: list[Exception] = []
        for index, hp in enumerate(self.hyperparameters):
            path = ingredient_path(self.directory, index)
            what = f"{path.name} failed"
            if self.retry or state_of(self.snapshots(index), hp, trainer.identity) is not State.FAILED:
                try:
                    made.append(self.ingredient(index, trainer))
                    what = f"{path.name} {self.metric.name} {made[-1].score:.4f}"
                except OutputError:
                    raise
                except Exception as error:
                    errors.append(error)
                    line, trace = one_line(error), trace_of(error)
                    write_failure(path, line, failure_details(index, hp, trainer.identity, trace))
            self.summarise(trainer.identity)
            if progress is not None:
                progress(index + 1, len(self.hyperparameters), what)
        return made, errors

    def _scored(self, trainer: Trainer, snapshot: Snapshot) -> Record:
        record = read_record(snapshot.path)
        assert record is not None  # state_of has read it
        if (record.metric, record.heldout) == (self.metric.name, heldout_fingerprint(self.heldout)):
            return record
        return trainer.score(snapshot, record)

    def _identity(self, start: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            "start": fingerprint_data(start),
            "train": data_identity(self.data),
            "augment": _name(self.augment),
            "forward": None if self.forward is default_forward else _name(self.forward),
            "autocast": None if self.autocast is None else str(self.autocast).removeprefix("torch."),
        }


def refuse_others(sweep: Sweep, identity: Mapping[str, Any]) -> None:
    """Before anything is trained: OutputError if there is an ingredient of another sweep under one of the names."""
    if sweep.overwrite:
        return
    for index, hp in enumerate(sweep.hyperparameters):
        wanted = sweep.snapshots(index)
        if state_of(wanted, hp, identity) is State.OTHER:
            raise made_by_another(wanted, hp, identity, "overwrite=True")


def as_autocast(name: str | None) -> torch.dtype | None:
    """The type of the forward pass; :class:`SoupError` for another than bfloat16, which alone needs no loss scaling."""
    if name is None:
        return None
    if name not in ("bfloat16", "bf16"):
        raise SoupError("autocast for training is bfloat16 or none", found=repr(name))
    return torch.bfloat16


def data_identity(data: Any) -> str:
    """A fingerprint of tensors in memory; of anything else its kind and length."""
    found = fingerprint_data(data)
    tensors = getattr(data, "tensors", None)
    if found is None and isinstance(tensors, tuple):
        found = fingerprint_data(tensors)  # a TensorDataset
    if found is not None:
        return found
    try:
        return f"{type(data).__qualname__} of {len(data)}"
    except TypeError:
        return type(data).__qualname__


def _name(function: Any) -> str | None:
    """By which a function is known: where it is defined, without the module, which is another for a file run as one."""
    if function is None:
        return None
    return str(getattr(function, "__qualname__", type(function).__qualname__))
