"""The model and the data of a task, for analyses: what the model is worth, as it stands, on each of the sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SoupError
from ..evaluate import HeldOut, as_heldout, as_metric, run_evaluation
from ..soups.candidates import naming
from ..task import HELDOUT_SEED, Task, load_task, seed_draws

HELDOUT, TRAIN = "heldout", "train"
_BATCH = 256
Scores = dict[str, dict[str, float]]
"""By set: ``accuracy`` (a share in [0, 1]) and ``nll`` (nats per sample)."""


class Sets:
    """The held-out set and the test sets of ``task``, an object or its name ``FILE.py:NAME``, each read once.

    ``train`` adds so many training samples (0: all) under the name ``train``, not augmented, in the precision of the
    held-out set. ``samples`` takes at most so many of each other set. Both are drawn with ``seed``, beyond 256 in whole
    batches of 256. The first test set is the one that models are compared on, the others are its shifts. Raises
    :class:`SoupError` where the task gives something else, and where a test set is called ``heldout`` or ``train``.
    """

    def __init__(
        self, task: str | Task, *, train: int | None = None, samples: int | None = None, seed: int = 0
    ) -> None:
        self.name = task if isinstance(task, str) else type(task).__name__
        self.task: Any = load_task(task) if isinstance(task, str) else task
        with naming(f"model() of {self.name}", "nothing was computed"):
            model: Any = self.task.model()
        if not isinstance(model, nn.Module):
            found = type(model).__name__
            raise SoupError(f"model() of {self.name} made no model", found=found, expected="a torch.nn.Module")
        self.model: nn.Module = model
        seed_draws(HELDOUT_SEED)
        self._samples, self._seed = samples, seed
        self.heldout = self._part(self._set("heldout()", self.task.heldout))
        self.tests: dict[str, HeldOut] = self._tests()
        self.all: dict[str, HeldOut] = {HELDOUT: self.heldout, **self.tests}
        """By name: the held-out set, the test sets and, where it was asked for, the training set."""
        if train is not None:
            self.all[TRAIN] = self._train(train)

    @property
    def test(self) -> str | None:
        """The name of the first test set; None where there is none."""
        return next(iter(self.tests), None)

    @property
    def shifts(self) -> list[str]:
        """The names of the other test sets."""
        return list(self.tests)[1:]

    @property
    def fingerprints(self) -> dict[str, str]:
        """By set, what a later run knows it by: see :attr:`pysoup.HeldOut.fingerprint`."""
        return {name: data.fingerprint for name, data in self.all.items()}

    def score(self, model: nn.Module | None = None, names: Iterable[str] | None = None) -> Scores:
        """What ``model`` (default: :attr:`model`), as it stands, scores on the sets of these ``names`` (default: all).

        One pass over each set, in evaluation mode. NaN where the logits are not finite.
        """
        found: Scores = {}
        for name in self.all if names is None else names:
            accuracy = as_metric("accuracy").accumulator()
            with naming(f"scoring {name}", "the model is as it was"):
                seen = run_evaluation(
                    self.model if model is None else model, self.all[name], "nll", watch=accuracy.update
                )
            assert seen.score is not None  # nothing could stop it
            found[name] = {"accuracy": accuracy.value(), "nll": seen.score}
        return found

    def logits(
        self, model: nn.Module | None = None, names: Iterable[str] | None = None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The same passes, for logits ``[N, C]`` in f32 (f64 where the model gives these) and labels ``[N]``, on the
        CPU."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for name in self.all if names is None else names:
            logits: list[Tensor] = []
            labels: list[Tensor] = []

            def keep(
                batch: Tensor, given: Tensor, logits: list[Tensor] = logits, labels: list[Tensor] = labels
            ) -> None:
                dtype = torch.promote_types(batch.dtype, torch.float32)
                # Copies: a forward may give every batch in one buffer.
                logits.append(batch.detach().to("cpu", dtype, copy=True))
                labels.append(given.detach().to("cpu", copy=True))

            with naming(f"applying the model to {name}", "the model is as it was"):
                run_evaluation(self.model if model is None else model, self.all[name], "nll", watch=keep)
            found[name] = torch.cat(logits), torch.cat(labels)
        return found

    def _tests(self) -> dict[str, HeldOut]:
        with naming(f"tests() of {self.name}", "nothing was computed"):
            sets: Any = getattr(self.task, "tests", dict)()
            if not isinstance(sets, Mapping):
                raise SoupError("not test sets", found=type(sets).__name__, expected="a dictionary: name -> data")
        for name in sets:
            if name in (HELDOUT, TRAIN):
                raise SoupError(f"tests() of {self.name} has a set with a name of ours", found=repr(name))
        return {
            str(name): self._part(self._set(f"test set {name}", partial(_given, data))) for name, data in sets.items()
        }

    def _train(self, count: int) -> HeldOut:
        if not callable(getattr(self.task, "train", None)):
            raise SoupError(f"task {self.name} lacks train()", expected="a method that gives the training data")
        precision = self.heldout.autocast

        def read() -> HeldOut:
            return HeldOut(self.task.train(), getattr(self.task, "forward", None), autocast=precision)

        data = self._set("train()", read)
        return _drawn(data, count, self._seed)

    def _part(self, data: HeldOut) -> HeldOut:
        return data if self._samples is None else _drawn(data, self._samples, self._seed)

    def _set(self, what: str, make: Callable[[], Any]) -> HeldOut:
        with naming(f"{what} of {self.name}", "nothing was computed"):
            data = as_heldout(make(), getattr(self.task, "forward", None))
            len(data)  # read now: what is wrong with it is an error before anything is computed
        return data


def _drawn(data: HeldOut, count: int, seed: int) -> HeldOut:
    """So many samples of ``data``; all of them for 0 and where there are no more."""
    total = sum(data.samples)
    if not 0 < count < total:
        return data
    size = min(count, _BATCH)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    drawn = islice(data.reordered(order, size).batches(), math.ceil(count / size))
    return HeldOut(list(drawn), data.forward, autocast=data.autocast)


def _given(data: Any) -> Any:
    return data


def mean_accuracy(scores: Mapping[str, Mapping[str, float]], names: Iterable[str]) -> float:
    """The unweighted mean of the accuracy on these sets."""
    found = [scores[name]["accuracy"] for name in names]
    return sum(found) / len(found)
