"""The uniform soup as the paper's code does it: a new dictionary for every model, in the input's dtype.

Our rendering of what mlfoundations/model-soups does (main.py, --uniform-soup).
"""

from __future__ import annotations

from collections.abc import Sequence

from invocation import StateDict, run


def average(models: Sequence[StateDict]) -> StateDict:
    count = len(models)
    soup: StateDict = {}
    for index, model in enumerate(models):
        if index == 0:
            soup = {name: tensor * (1.0 / count) for name, tensor in model.items()}
        else:
            soup = {name: tensor * (1.0 / count) + soup[name] for name, tensor in model.items()}
    return soup


if __name__ == "__main__":
    run(average)
