"""Linear probe, then fine-tuning (LP-FT, Kumar et al. 2022), the way the paper makes its ingredients (section 3.1).

AdamW, a linear warm-up and then cosine, linear or no decay of the rate, clipped gradients, cross-entropy with label
smoothing and mixup. As in the official code, weight decay goes to all parameters, biases and norms included. The
result depends on the start, the data, the hyperparameters and torch's build and thread count alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import SoupError
from ..evaluate import evaluating
from ..evaluate.batches import moved
from ..evaluate.forward import Forward, default_forward
from ..progress import StepProgress
from .batches import inputs_of, mix, samples_in, steps_per_epoch, training_batches, with_inputs
from .hyperparameters import Hyperparameters

Augment = Callable[[Any, Hyperparameters, torch.Generator], Any]
"""``augment(inputs, hyperparameters, generator)``: new inputs of the same kind and shapes, random through the generator
only. Inputs are what stands before the label in a batch: a tensor, a tuple of several, or a dictionary."""
AfterStep = Callable[[int, int], None]
"""Called with the number of steps done and of all steps after each step; may save or score the model."""

_PROBE = Hyperparameters(learning_rate=1e-2, weight_decay=1e-4, epochs=100)
_CHECK_EVERY = 50  # steps, where looking at a loss waits for the device


def fine_tune(
    model: nn.Module,
    data: Any,
    hyperparameters: Hyperparameters,
    *,
    augment: Augment | None = None,
    forward: Forward | None = None,
    autocast: torch.dtype | None = None,
    after_step: AfterStep | None = None,
    progress: StepProgress | None = None,
) -> None:
    """Train all parameters of ``model`` that require gradients, in place, on the device where they are.

    ``data`` is a tuple of tensors (inputs [N, ...], labels [N]; several inputs at will), a dictionary of tensors with
    ``"labels"``, a ``Dataset``, or a sized loader of batches. The first three are shuffled every epoch and cut in
    batches of ``batch_size``, the incomplete last one left out. A batch is whatever :class:`pysoup.HeldOut` takes;
    ``forward(model, batch) -> (logits, labels)`` applies the model to any other. ``autocast`` (bfloat16) is the type of
    the forward pass where torch deems it safe; weights, loss and optimizer stay as they are.

    The caller's random state is untouched. Raises :class:`SoupError` for data of another kind and for a loss that is
    not finite; the model's training flags are afterwards as before.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise SoupError("the model has no parameter to train")
    device = parameters[0].device
    hp = hyperparameters
    generator = torch.Generator().manual_seed(hp.seed)
    mixing = random.Random(hp.seed)
    each = steps_per_epoch(data, hp.batch_size)
    total = hp.epochs * each
    optimizer = torch.optim.AdamW(parameters, lr=hp.learning_rate, weight_decay=hp.weight_decay)
    losses = _Losses(device)
    with _seeded(hp.seed, device), evaluating(model):
        model.train()
        step = 0
        for epoch in range(hp.epochs):
            for batch in training_batches(data, hp.batch_size, generator):
                for group in optimizer.param_groups:
                    group["lr"] = hp.learning_rate * learning_rate_share(step, total, hp)
                if augment is not None:
                    batch = with_inputs(batch, augment(inputs_of(batch), hp, generator))
                share, partner = _partners(batch, hp, generator, mixing)
                batch = moved(batch, device)
                with _autocast(device, autocast):
                    loss = mixed_loss(model, batch, hp.label_smoothing, share, partner, forward)
                losses.add(loss)
                _update(optimizer, parameters, loss, hp.clip_norm)
                step += 1
                if after_step is not None:
                    after_step(step, total)
            if step != (epoch + 1) * each:
                found = f"{step - epoch * each} batches"
                raise SoupError("the training data has another length than it says", found=found, expected=each)
            losses.check()
            if progress is not None:
                progress(epoch + 1, hp.epochs, f"loss {loss.item():.3f}")


def linear_probe(
    model: nn.Module,
    data: Any,
    *,
    head: str = "head",
    hyperparameters: Hyperparameters = _PROBE,
    forward: Forward | None = None,
    progress: StepProgress | None = None,
) -> None:
    """Train the submodule ``head`` alone, in place, on the features the rest of the frozen model gives it.

    The features (the head's input, in evaluation mode) are computed once for all of ``data`` (as for
    :func:`fine_tune`; no augmentation) and kept in memory. Raises :class:`SoupError` if there is no such submodule or
    if it is not called once per batch with one tensor.
    """
    module = _submodule(model, head)
    hp = replace(hyperparameters, mixup=0.0)
    features, labels = _features(model, module, head, data, hp, forward)
    fine_tune(module, (features, labels), hp, progress=progress)


def learning_rate_share(step: int, total: int, hp: Hyperparameters) -> float:
    """The factor on the learning rate at ``step`` of ``total``: linear up to 1 over the warm-up, then half a cosine, a
    line or nothing, down to the final share."""
    rising = max(1, int(hp.warmup * total))
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, total - rising)
    if hp.schedule == "constant":
        return 1.0
    falling = 1.0 - done if hp.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return hp.final_share + (1.0 - hp.final_share) * falling


def mixed_loss(
    model: nn.Module,
    batch: Any,
    label_smoothing: float,
    share: float = 1.0,
    partner: Tensor | None = None,
    forward: Forward | None = None,
) -> Tensor:
    """Mean cross-entropy of ``share * inputs + (1 - share) * inputs[partner]`` against labels mixed the same way.

    Cross-entropy is linear in the target, so mixing the two losses is mixing the two (smoothed) targets
    (Zhang et al. 2018, equation 2). Returns a scalar; no mixing where ``partner`` is None.
    """
    forward = default_forward if forward is None else forward
    if partner is not None:
        batch = with_inputs(batch, mix(inputs_of(batch), partner, share))
    logits, labels = forward(model, batch)
    labels = labels.to(logits.device)
    if not labels.is_floating_point():
        labels = labels.long()  # a held-out set may have integers of any size
    elif labels.shape != logits.shape:  # else a probability for each class
        raise SoupError("training labels must be class numbers", found=labels.dtype, expected="an integer dtype")
    if torch.is_autocast_enabled(logits.device.type):
        logits = logits.float()
    own = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    if partner is None:
        return own
    other = functional.cross_entropy(logits, labels[partner.to(labels.device)], label_smoothing=label_smoothing)
    return share * own + (1.0 - share) * other


def _partners(
    batch: Any, hp: Hyperparameters, generator: torch.Generator, mixing: random.Random
) -> tuple[float, Tensor | None]:
    """How much of itself each sample keeps in mixup, and whose the rest is; None without mixup."""
    if hp.mixup == 0:
        return 1.0, None
    inputs_of(batch)  # says what is wrong with a batch of another kind
    share = mixing.betavariate(hp.mixup, hp.mixup)
    return share, torch.randperm(samples_in(batch), generator=generator)


def _update(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], loss: Tensor, clip_norm: float) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    if clip_norm > 0:
        nn.utils.clip_grad_norm_(parameters, clip_norm)
    optimizer.step()


class _Losses:
    """Finds the first loss that is not finite: at once on the CPU, every few steps where that means waiting."""

    def __init__(self, device: torch.device) -> None:
        self._often = device.type == "cpu"
        self._first = 0
        self._pending: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        self._pending.append(loss.detach())
        if self._often or len(self._pending) == _CHECK_EVERY:
            self.check()

    def check(self) -> None:
        values = torch.stack(self._pending).tolist() if self._pending else []
        for step, value in enumerate(values, self._first):
            if not math.isfinite(value):
                what = f"the loss is not finite at step {step}; a lower learning rate may help"
                raise SoupError(what, found=value)
        self._first += len(values)
        self._pending.clear()


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        children = ", ".join(child for child, _ in model.named_children()) or "none"
        raise SoupError(f"the model has no submodule {name!r}", expected=f"one of its own: {children}") from None


def _features(
    model: nn.Module, module: nn.Module, head: str, data: Any, hp: Hyperparameters, forward: Forward | None
) -> tuple[Tensor, Tensor]:
    device = next(module.parameters()).device
    forward = default_forward if forward is None else forward
    seen: list[Tensor] = []
    labels: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        if len(arguments) != 1 or not isinstance(arguments[0], Tensor):
            raise SoupError(f"head {head!r} must take one tensor")
        seen.append(arguments[0].detach())

    steps_per_epoch(data, hp.batch_size)  # says what is wrong with other data
    hook = module.register_forward_pre_hook(keep)
    try:
        # Seeded for loaders that shuffle: the probe sees the same order in every process.
        with _seeded(hp.seed, device), evaluating(model), torch.no_grad():
            for batch in training_batches(data, hp.batch_size, None):
                _, target = forward(model, moved(batch, device))
                labels.append(target.to(device))
    finally:
        hook.remove()
    if len(seen) != len(labels):
        raise SoupError(f"head {head!r} must be called once per batch", found=f"{len(seen)} calls in {len(labels)}")
    return torch.cat(seen), torch.cat(labels)


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout and shuffling loaders draw from the global state: set it for a while, then give it back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
