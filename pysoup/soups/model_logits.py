"""The logits of checkpoints over any data, one pass each, and their average."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

from ..averager import Averager
from ..evaluate import HeldOut, Metric, run_evaluation
from ..load import average_into
from ..progress import StepProgress
from .candidates import Candidate, check_pool, is_file, names_of, naming
from .logit_cache import Form, LogitCache, check_alike, factor, mean_dtype


class ModelLogits:
    """Checkpoints, each written into a model when its logits are asked for."""

    def __init__(self, candidates: Sequence[Candidate], integers: str) -> None:
        self.candidates = list(candidates)
        self.integers = integers
        self.timing = {"read": 0.0, "mix": 0.0, "score": 0.0}
        """Seconds so far: of writing models, with the reading, and of applying them."""

    def check(self, model: nn.Module) -> None:
        """Raise :class:`IncompatibleError` where one does not fit the model or the others; headers only are read."""
        check_pool(Averager(model, **names_of(self.candidates), integers=self.integers), self.candidates, running=False)

    def of(self, model: nn.Module, heldout: HeldOut, index: int) -> tuple[Tensor, Tensor]:
        """One model's logits ``[N, ...]`` and labels ``[N]``, on the CPU; ``model`` holds it then."""
        candidate, cache = self.candidates[index], LogitCache(1)
        started = time.perf_counter()
        with naming(f"loading {candidate.name}", "the model may hold part of it", file=is_file(candidate)):
            source = (candidate.name, candidate.source)
            average_into(model, [source], **names_of([candidate]), integers=self.integers)
        self.timing["mix"] += time.perf_counter() - started
        with naming(f"applying {candidate.name}", "the model holds it"):
            self.timing["score"] += run_evaluation(model, heldout, UNSCORED, watch=cache.watch(0)).seconds
            cache.keep(0)
        assert cache.labels is not None
        return cache.logits(0), cache.labels

    def mean(
        self,
        model: nn.Module,
        heldout: HeldOut,
        added: Sequence[int],
        *,
        memory: int | str | None = None,
        progress: StepProgress | None = None,
        check: Callable[[Tensor, Tensor], object] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The average of the logits of these models, each as often as it is there, and the labels.

        Summed in this order, then multiplied with one by their number, each rounded to f32 (f64 for f64 logits). The
        logits of those that are there several times are cached in ``memory`` bytes, or in a file. ``check(logits,
        labels)`` sees those of the first model alone, and raises where they do not fit.
        """
        total: Tensor | None = None
        first: tuple[Form, Tensor] | None = None
        for logits, labels in self._in_turn(model, heldout, added, memory, progress):
            if total is None or first is None:
                if check is not None:
                    check(logits, labels)
                total, first = logits.to(mean_dtype(logits), copy=True), ((logits.shape, logits.dtype), labels)
            else:
                check_alike(logits, labels, *first)
                total.add_(logits)
        assert total is not None and first is not None  # noqa: PT018 (there is an ingredient)
        return total.mul_(factor(len(added), total.dtype)), first[1]

    def _in_turn(
        self,
        model: nn.Module,
        heldout: HeldOut,
        added: Sequence[int],
        memory: int | str | None,
        progress: StepProgress | None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        several = [index for index in dict.fromkeys(added) if added.count(index) > 1]
        cache = LogitCache(len(several), memory)
        done, passes = 0, len(set(added))
        for index in added:
            place = several.index(index) if index in several else -1
            if place in cache:
                assert cache.labels is not None
                yield cache.logits(place), cache.labels
                continue
            logits, labels = self.of(model, heldout, index)
            done += 1
            if progress is not None:
                progress(done, passes, self.candidates[index].name)
            if place >= 0:
                cache.put(place, logits, labels)
            yield logits, labels


class _Counted:
    """Counts samples and scores nothing."""

    def __init__(self) -> None:
        self.samples = 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        self.samples += len(labels)

    def value(self) -> float:
        return 0.0

    def bound(self, samples: int) -> float | None:
        return None


def _unscored(logits: Tensor, labels: Tensor) -> float:
    return 0.0


UNSCORED = Metric(_unscored, "max", "none", make=_Counted)
"""For a pass that is to give logits alone."""
