"""mergekit's `merge_state_dicts`, its fastest way from Python: files mapped, method `linear`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from invocation import StateDict, arguments, load, save
from mergekit.merge_methods.api import merge_state_dicts


def average(models: Sequence[StateDict], weights: Sequence[float] | None = None, **options: Any) -> StateDict:
    shares = [1.0] * len(models) if weights is None else list(weights)
    return merge_state_dicts(models, "linear", parameters={"weight": shares}, **options)


if __name__ == "__main__":
    options = arguments()
    save(average([load(path, mapped=True) for path in options.inputs]), options.output)
