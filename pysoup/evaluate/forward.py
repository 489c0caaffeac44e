"""How a model is applied to a batch: the default rules, and the one signature for everything else."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import SoupError
from ..fingerprint import fingerprint_data

Forward = Callable[[nn.Module, Any], tuple[Tensor, Tensor]]
"""``forward(model, batch) -> (logits, labels)``: how a model is applied to one batch."""


def default_forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Apply ``model`` to a batch with its label: a tuple or list (label last) or a dictionary (key ``"labels"``).

    Returns logits and labels as the model and the batch hold them. The model may return the logits, an object with
    ``.logits``, a dictionary with ``"logits"`` or a tuple that starts with them.
    """
    if isinstance(batch, Mapping):
        if "labels" not in batch:
            raise SoupError(
                "a dictionary batch needs its labels", found=f"keys {sorted(batch, key=str)}", expected="'labels'"
            )
        labels = batch["labels"]
    elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
        labels = batch[-1]
    else:
        raise SoupError(
            "cannot tell inputs from labels in a batch; give forward(model, batch) -> (logits, labels)",
            found=type(batch).__name__,
            expected="a tuple (inputs, labels) or a dictionary with 'labels'",
        )
    return _logits(apply(model, batch)), labels


def apply(model: nn.Module, batch: Any) -> Any:
    """The model's output on the inputs of a batch; its label, if there is one, is left out."""
    if isinstance(batch, Mapping):
        return model(**{name: value for name, value in batch.items() if name != "labels"})
    if isinstance(batch, (tuple, list)):
        return model(*(batch[:-1] if len(batch) > 1 else batch))
    return model(batch)


def name_of(forward: Forward) -> str:
    """By which a fingerprint knows ``forward``: its qualified name, or that of its class, and what is bound to it."""
    return name_with_bound(forward, lambda f: "default" if f is default_forward else _qualified(f))


def name_with_bound(function: Any, name: Callable[[Any], str]) -> str:
    """The ``name`` of a function, followed by the arguments that a ``functools.partial`` binds to it.

    The same in every process: numbers and text as they are written, other data by its fingerprint; of anything else,
    the name of its class has to do.
    """
    if not isinstance(function, functools.partial):
        return name(function)
    bound = [_argument(value) for value in function.args]
    bound += [f"{key}={_argument(value)}" for key, value in sorted(function.keywords.items())]
    inner = name_with_bound(function.func, name)
    return f"{inner}({', '.join(bound)})" if bound else inner


def _argument(value: Any) -> str:
    if isinstance(value, (str, int, float, type(None))):
        return repr(value)
    return fingerprint_data(value) or type(value).__qualname__


def _qualified(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _logits(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    found = getattr(output, "logits", None)
    if found is None and isinstance(output, Mapping):
        found = output.get("logits")
    if found is None and isinstance(output, (tuple, list)) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise SoupError(
            "no logits in the model's output; give forward(model, batch) -> (logits, labels)",
            found=type(output).__name__,
        )
    return found
