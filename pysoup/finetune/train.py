"""Linear probe, then fine-tuning (LP-FT, Kumar et al. 2022), the way the paper makes its ingredients (section 3.1).

AdamW, cosine decay or a constant rate after a linear warm-up, gradients clipped to norm 1.0, cross-entropy with label
smoothing and mixup. The result depends on the start, the data, the hyperparameters and torch's build and thread
count alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import SoupError
from ..evaluate import evaluating
from ..progress import StepProgress
from .hyperparameters import Hyperparameters

Augment = Callable[[Tensor, Hyperparameters, torch.Generator], Tensor]
"""``augment(inputs, hyperparameters, generator)``: a new batch of the same shape; random through the generator only."""

_CLIP_NORM = 1.0
_PROBE = Hyperparameters(learning_rate=1e-2, weight_decay=1e-4, epochs=100)


def fine_tune(
    model: nn.Module,
    data: Any,
    hyperparameters: Hyperparameters,
    *,
    augment: Augment | None = None,
    batch_size: int = 64,
    warmup: float = 0.1,
    progress: StepProgress | None = None,
) -> None:
    """Train all parameters of ``model`` that require gradients, in place, on the device where they are.

    ``data`` is a pair of tensors (inputs [N, ...], labels [N], integer) that is shuffled every epoch and cut in
    batches of ``batch_size`` (the incomplete last one is left out, as batch statistics of a few samples are noise),
    or a sized loader of such pairs. ``warmup`` is the share of the steps with a rising learning rate.

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
    per_epoch = _steps(data, batch_size)
    total = hp.epochs * per_epoch
    optimizer = torch.optim.AdamW(parameters, lr=hp.learning_rate, weight_decay=hp.weight_decay)
    with _seeded(hp.seed, device), evaluating(model):
        model.train()
        step = 0
        for epoch in range(hp.epochs):
            for inputs, labels in _batches(data, batch_size, generator):
                inputs = inputs if augment is None else augment(inputs, hp, generator)
                for group in optimizer.param_groups:
                    group["lr"] = hp.learning_rate * learning_rate_share(step, total, warmup, hp.final_share)
                share = mixing.betavariate(hp.mixup, hp.mixup) if hp.mixup > 0 else 1.0
                partner = torch.randperm(len(inputs), generator=generator) if hp.mixup > 0 else None
                loss = mixed_loss(model, inputs.to(device), labels.to(device), hp.label_smoothing, share, partner)
                _update(optimizer, parameters, loss, step)
                step += 1
            if progress is not None:
                progress(epoch + 1, hp.epochs, f"loss {loss.item():.3f}")


def linear_probe(
    model: nn.Module,
    data: Any,
    *,
    head: str = "head",
    hyperparameters: Hyperparameters = _PROBE,
    batch_size: int = 64,
    progress: StepProgress | None = None,
) -> None:
    """Train the submodule ``head`` alone, in place, on the features the rest of the frozen model gives it.

    The features (the head's input, in evaluation mode) are computed once for all of ``data`` (as for
    :func:`fine_tune`; no augmentation) and kept in memory. Raises :class:`SoupError` if there is no such submodule or
    if it is not called once per batch with one tensor.
    """
    module = _submodule(model, head)
    features, labels = _features(model, module, head, data, batch_size)
    fine_tune(module, (features, labels), replace(hyperparameters, mixup=0.0), batch_size=batch_size, progress=progress)


def learning_rate_share(step: int, total: int, warmup: float, final: float = 0.0) -> float:
    """The factor on the learning rate at ``step`` of ``total``: linear up to 1 over the warm-up, then half a cosine to
    ``final``."""
    rising = max(1, int(warmup * total))
    if step < rising:
        return (step + 1) / rising
    cosine = 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, total - rising)))
    return final + (1.0 - final) * cosine


def mixed_loss(
    model: nn.Module, inputs: Tensor, labels: Tensor, label_smoothing: float, share: float, partner: Tensor | None
) -> Tensor:
    """Mean cross-entropy of ``share * inputs + (1 - share) * inputs[partner]`` against labels mixed the same way.

    Cross-entropy is linear in the target, so mixing the two losses is mixing the two (smoothed) targets
    (Zhang et al. 2018, equation 2). Returns a scalar; no mixing where ``partner`` is None.
    """
    if partner is None:
        return functional.cross_entropy(model(inputs), labels, label_smoothing=label_smoothing)
    partner = partner.to(inputs.device)
    logits = model(torch.lerp(inputs[partner], inputs, share))
    own = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    other = functional.cross_entropy(logits, labels[partner], label_smoothing=label_smoothing)
    return share * own + (1.0 - share) * other


def _update(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], loss: Tensor, step: int) -> None:
    if not math.isfinite(loss.item()):
        raise SoupError(f"the loss is not finite at step {step}; a lower learning rate may help", found=loss.item())
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(parameters, _CLIP_NORM)
    optimizer.step()


def _pair_of_tensors(data: Any) -> tuple[Tensor, Tensor] | None:
    if not isinstance(data, tuple) or len(data) != 2 or not all(isinstance(part, Tensor) for part in data):
        return None
    inputs, labels = data
    if len(inputs) != len(labels) or len(inputs) == 0:
        raise SoupError("one label per input", found=f"{len(inputs)} inputs, {len(labels)} labels")
    return inputs, labels


def _steps(data: Any, batch_size: int) -> int:
    pair = _pair_of_tensors(data)
    if pair is not None:
        return max(1, len(pair[0]) // batch_size)
    sized = isinstance(data, Sized) and isinstance(data, Iterable) and not isinstance(data, (str, bytes))
    if not sized or len(data) == 0:
        expected = "a pair of tensors (inputs, labels) or a loader of such pairs that has a length"
        raise SoupError("not training data", found=type(data).__name__, expected=expected)
    return len(data)


def _batches(data: Any, batch_size: int, generator: torch.Generator | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled by ``generator`` without the incomplete last batch; with None, everything in the given order."""
    pair = _pair_of_tensors(data)
    if pair is None:
        for batch in data:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise SoupError("a training batch is a pair", found=type(batch).__name__, expected="(inputs, labels)")
            yield batch[0], batch[1]
        return
    inputs, labels = pair
    if generator is None:
        for first in range(0, len(labels), batch_size):
            yield inputs[first : first + batch_size], labels[first : first + batch_size]
        return
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    for step in range(_steps(data, batch_size)):
        index = order[step * batch_size : (step + 1) * batch_size]
        yield inputs[index], labels[index]


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        children = ", ".join(child for child, _ in model.named_children()) or "none"
        raise SoupError(f"the model has no submodule {name!r}", expected=f"one of its own: {children}") from None


def _features(model: nn.Module, module: nn.Module, head: str, data: Any, batch_size: int) -> tuple[Tensor, Tensor]:
    device = next(module.parameters()).device
    seen: list[Tensor] = []
    labels: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        if len(arguments) != 1 or not isinstance(arguments[0], Tensor):
            raise SoupError(f"head {head!r} must take one tensor")
        seen.append(arguments[0].detach())

    hook = module.register_forward_pre_hook(keep)
    try:
        with evaluating(model), torch.no_grad():
            for inputs, target in _batches(data, batch_size, None):
                model(inputs.to(device))
                labels.append(target.to(device))
    finally:
        hook.remove()
    if len(seen) != len(labels):
        raise SoupError(f"head {head!r} must be called once per batch", found=f"{len(seen)} calls in {len(labels)}")
    return torch.cat(seen), torch.cat(labels)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout and shuffling loaders draw from the global state: set it for a while, then give it back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
