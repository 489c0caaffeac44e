"""The learned soup: mixing weights by gradient descent on the held-out data (paper, section 2 and appendix I)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ...errors import SoupError
from ...evaluate import HeldOut, Metric, MetricLike, as_heldout, as_metric, run_evaluation
from ...ingredient import Layout
from ...names import EVERY_NAME, NameFilter, Patterns
from ...progress import StepProgress
from ..candidates import (
    Candidate,
    Checkpoints,
    check_separate,
    names_of,
    naming,
    nonfinite_note,
    open_candidates,
    read_heldout,
)
from ..identity import identity_of
from ..journal import Journal
from ..snapshot import Snapshot
from .blocks import Blocks
from .granules import Granularity, granules_of
from .options import Learning, Loss, cross_entropy
from .result import LearnedSoup, shares
from .run import LearnedRun, steps_per_epoch
from .weights import Coefficients

_SCORE = "score"


def learned_soup(
    checkpoints: Checkpoints,
    model: nn.Module,
    heldout: HeldOut | Any,
    metric: MetricLike = "accuracy",
    *,
    preset: str = "paper",
    granularity: Granularity | None = None,
    parametrization: str | None = None,
    temperature: bool | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    blocks: int | None = None,
    seed: int = 0,
    loss: Loss | None = None,
    keep: str = "last",
    score_epochs: bool = False,
    run: str | os.PathLike[str] | None = None,
    entry: str | None = None,
    include: Patterns = (),
    exclude: Patterns = (),
    integers: str = "auto",
    memory: str | int = "64MiB",
    threads: int | None = None,
    place: str = "files",
    progress: StepProgress | None = None,
) -> LearnedSoup:
    """Learn the weights that ``checkpoints`` are mixed with, on ``heldout``, in ``model``.

    The weights w and a scale beta of the logits minimise the mean of ``loss(beta * f(x, sum_k w_k theta_k), y)`` over
    the held-out data by AdamW with a constant learning rate, from the uniform soup on (appendix I). ``preset`` has the
    settings, any of which may be given in its place: ``"paper"`` (a weight for each model, softmax, lr 0.1, 3 epochs),
    ``"official-bylayer"`` (the authors' code: a weight for each tensor of each model, lr 0.05, 5 epochs in batches of
    256), ``"mehl"`` (Li et al. 2024, MEHL-Soup+: for each tensor, on the hyperplane, lr 0.01, 5 epochs, 18 models at a
    time).

    ``granularity``: what has weights of its own, see :func:`granules_of`: ``"model"``, ``"layer"``, ``"tensor"``, or
    patterns. ``parametrization``: ``"softmax"`` for positive weights with the sum 1, ``"hyperplane"`` for any with the
    sum 1. ``temperature=False`` leaves beta at 1. Each epoch sees the samples in another order, by ``seed``: in new
    batches of ``batch``, or in those of ``heldout`` (the default). ``loss(logits, labels)`` gives the mean of a batch;
    by default cross-entropy. ``keep="lowest"`` takes the weights after the epoch with the lowest loss on all held-out
    data, not the last ones; ``score_epochs`` scores every epoch, a pass each.

    ``blocks``: only so many ingredients' weights are moved at a time, and only these are read in a step, beside the sum
    of the others, which takes the model's size in f32 (twice that on the hyperplane). Each block has its share of an
    epoch's steps.

    Ingredients are streamed twice a step, forward and backward, through ``memory`` bytes of buffers; ``place`` can keep
    them in host ``"memory"`` or on the model's ``"device"`` (``"auto"``: what has room): the same numbers. The model is
    applied in evaluation mode; beside it there are its gradients, and at the end a copy of the soup.

    The score is on the data that the weights were learned on: judge the soup on other data. ``run`` is a directory from
    which a killed run goes on, to the same bits. ``entry``, ``include``, ``exclude`` and ``integers`` are as for
    :func:`pysoup.greedy_soup`.

    Raises :class:`SoupError`: checkpoints that do not fit, a loss that is not finite, what the model raises.
    """
    learning = Learning.of(
        preset,
        granularity=granularity,
        parametrization=parametrization,
        temperature=temperature,
        lr=lr,
        weight_decay=weight_decay,
        epochs=epochs,
        batch=batch,
        blocks=blocks,
        seed=seed,
        keep=keep,
        score_epochs=score_epochs,
    )
    resolved, held = as_metric(metric), as_heldout(heldout)
    if loss is not None and not callable(loss):
        raise SoupError("not a loss", found=type(loss).__name__, expected="a function of logits and labels")
    candidates, notes = open_candidates(checkpoints, model, entry, NameFilter.of(include, exclude))
    check_separate(candidates, model)
    if len(candidates) < 2:
        raise SoupError("a learned soup needs two checkpoints or more", found=len(candidates))
    with ExitStack() as stack:
        made = _Recipe(model, candidates, learning, stack, integers, memory, threads, place)
        read_heldout(held)
        journal = None
        if run is not None:
            options = {"recipe": "learned", "integers": integers, "granules": made.granules, **made.options(loss)}
            identity = identity_of(candidates, held, resolved, options, model=model)
            journal = stack.enter_context(Journal.open(run, identity))
        soup = made.learned(held, resolved, loss, journal, progress)
    if journal is not None and journal.resumed:
        notes.append(f"went on with the run in {os.fspath(run or '')}: {made.resumed} steps were on record there")
    soup.notes[:0] = notes
    return soup


class _Recipe:
    """The recipe on candidates that were checked; files are held open by ``stack``."""

    def __init__(
        self,
        model: nn.Module,
        candidates: Sequence[Candidate],
        learning: Learning,
        stack: ExitStack,
        integers: str,
        memory: str | int,
        threads: int | None,
        place: str,
    ) -> None:
        self.model = model
        self.candidates = candidates
        self.learning = learning
        self.resumed = 0
        tensors = averaged(model, candidates[0].names)
        self.sizes = {name: tensor.numel() for name, tensor in tensors.items()}
        self.granules = granules_of(learning.granularity, list(tensors))
        self.coefficients = Coefficients(
            len(self.granules),
            len(candidates),
            learning.parametrization,
            temperature=learning.temperature,
            lr=learning.lr,
            weight_decay=learning.weight_decay,
        )
        self.blocks = Blocks(
            model,
            candidates,
            list(self.granules.values()),
            self.coefficients,
            size=learning.blocks,
            hyperplane=learning.parametrization == "hyperplane",
            integers=integers,
            memory=memory,
            threads=threads,
            place=place,
            **candidates[0].names.options(),
        )
        stack.callback(self.blocks.close)

    def options(self, loss: Loss | None) -> dict[str, Any]:
        """All that decides what is learned, as plain JSON."""
        return {**self.learning.to_json(loss), **names_of(self.candidates)}

    def learned(
        self,
        heldout: HeldOut,
        metric: Metric,
        loss: Loss | None,
        journal: Journal | None,
        progress: StepProgress | None,
    ) -> LearnedSoup:
        """All steps, the soup in the model, and its score."""
        learning = self.learning
        self.blocks.begin(steps_per_epoch(heldout, learning.batch))
        run = LearnedRun(
            self.model,
            heldout,
            metric,
            learning,
            loss or cross_entropy,
            self.coefficients,
            self.blocks,
            journal=journal,
            progress=progress,
        )
        self.resumed = run.resumed
        run.run()
        weights = self.coefficients.weights().detach()
        nonfinite = self.blocks.whole.write(weights)
        score, seconds = self._score(heldout, metric, journal)
        self.blocks.close()
        timing, beta = self.blocks.timing, float(self.coefficients.beta.detach())
        mixing = timing["mix"] + timing["dots"]
        passes = len(run.epochs) * (2 if learning.score_epochs else 1) + 1
        return LearnedSoup(
            recipe="learned",
            ingredients=[candidate.name for candidate in self.candidates],
            weights=shares(self.granules, weights, self.sizes),
            score=score,
            metric=metric.name,
            direction=metric.direction,
            trace=[],
            averager=Snapshot(self.model),
            options=self.options(loss),
            notes=[note for note in (_LEARNED_ON, _beta_note(beta), nonfinite_note(nonfinite)) if note],
            passes={"used": float(passes), "saved": 0.0},
            timing={"mix": mixing, "score": max(0.0, run.seconds - mixing) + seconds, "read": 0.0},
            granules=self.granules,
            granule_weights=weights,
            beta=beta,
            losses=run.losses,
            epochs=run.epochs,
        )

    def _score(self, heldout: HeldOut, metric: Metric, journal: Journal | None) -> tuple[float, float]:
        known = None if journal is None else journal.recall(_SCORE)
        if known is not None:
            return float(known), 0.0
        with naming("scoring the learned soup", "the model holds it"):
            evaluation = run_evaluation(self.model, heldout, metric)
        assert evaluation.score is not None
        if journal is not None:
            journal.record(_SCORE, evaluation.score)
        return evaluation.score, evaluation.seconds


def _beta_note(beta: float) -> str:
    """The soup is used without beta, which changes no prediction as long as it is positive."""
    if beta > 0:
        return ""
    return f"beta ended at {beta:.4g}: the soup without it ranks classes the other way round; lower lr, or more epochs"


_LEARNED_ON = "the weights were learned on the held-out data, so its score is that of training data: judge by test data"


def averaged(model: nn.Module, names: NameFilter = EVERY_NAME) -> dict[str, torch.Tensor]:
    """The tensors that have mixing weights, by name, as :class:`Mixture` counts them: tied ones once."""
    state = model.state_dict()
    return {slot.name: state[slot.name] for slot in Layout.of(model, names).slots}
