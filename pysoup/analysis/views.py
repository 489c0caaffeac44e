"""The same sets, seen in another way: some of them, or in full precision."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from ..errors import SoupError
from ..evaluate import HeldOut
from .sets import HELDOUT, Sets


def chosen(sets: Sets, tests: Sequence[str] | None = None) -> Sets:
    """The held-out set and these test sets, in this order; all for ``None``. :class:`SoupError` for other names.

    Without the training set, where there is one.
    """
    tests = list(sets.tests) if tests is None else tests
    for name in tests:
        if name not in sets.tests:
            known = ", ".join(sets.tests) or "none"
            raise SoupError(f"the task {sets.name} has no such test set", found=repr(name), expected=known)
    found = copy.copy(sets)
    found.tests = {name: sets.tests[name] for name in tests}
    found.all = {HELDOUT: sets.heldout, **found.tests}
    return found


def full_precision(sets: Sets) -> Sets:
    """Without autocast: models are applied in the dtype of their weights. No data is copied."""
    found = copy.copy(sets)
    found.heldout = _plain(sets.heldout)
    found.tests = {name: _plain(data) for name, data in sets.tests.items()}
    found.all = {name: _plain(data) for name, data in sets.all.items()}
    return found


def _plain(data: HeldOut) -> HeldOut:
    if data.autocast is None:
        return data
    same = data.with_batches(range(len(data)))
    same.autocast = None
    return same
