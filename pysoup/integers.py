"""What becomes of tensors that have no mean: counters, indices, masks.

Equal in all inputs: kept. ``num_batches_tracked`` of BatchNorm: the largest. Anything else is an error that names the
tensor, unless the caller asked for ``"first"`` or ``"max"``.
"""

from __future__ import annotations

from collections.abc import Sequence

from .errors import IncompatibleError, SoupError

POLICIES = ("auto", "first", "max")


def check_policy(integers: str) -> str:
    """``integers`` if it is one of :data:`POLICIES`, else a :class:`SoupError`."""
    if integers not in POLICIES:
        raise SoupError("unknown value of integers", found=integers, expected=f"one of {', '.join(POLICIES)}")
    return integers


def choose(name: str, policy: str, labels: Sequence[str], differs: int | None) -> str:
    """``"first"`` or ``"max"`` for one tensor; ``differs`` is the input whose values differ from input 0, or None.

    Raises :class:`IncompatibleError` where ``"auto"`` has no answer.
    """
    if differs is None:
        return "first"
    if policy != "auto":
        return policy
    if _is_counter(name):
        return "max"
    raise IncompatibleError(
        f"values are not floating-point and differ from those in {labels[0]}",
        file=labels[differs],
        tensor=name,
        expected="equal values, or integers='first' or 'max'",
    )


def choose_unseen(name: str, policy: str) -> str:
    """:func:`choose` where the values cannot be compared: right where they are equal, and where there is an answer."""
    if policy != "auto":
        return policy
    return "max" if _is_counter(name) else "first"


def _is_counter(name: str) -> bool:
    return name.split(".")[-1] == "num_batches_tracked"
