"""torch.optim.swa_utils.AveragedModel over modules, with its list-wise update (faster than its default on the CPU).

Each checkpoint is loaded into the module, as someone does who has a model and its checkpoints; the average is kept in
the parameters' dtype.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from invocation import StateDict, run
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn


def module_of(state_dict: StateDict) -> torch.nn.Module:
    """A module whose state dict has these names and shapes: containers for the dots, one parameter a tensor."""
    root = torch.nn.Module()
    for name, tensor in state_dict.items():
        *parents, leaf = name.split(".")
        owner = root
        for parent in parents:
            child = owner._modules.get(parent)
            if child is None:
                child = torch.nn.Module()
                owner.add_module(parent, child)
            owner = child
        owner.register_parameter(leaf, torch.nn.Parameter(torch.empty_like(tensor), requires_grad=False))
    return root


def average(models: Iterable[StateDict]) -> StateDict:
    module = averaged = None
    for state_dict in models:
        if module is None:
            module = module_of(state_dict)
            averaged = AveragedModel(module, multi_avg_fn=get_swa_multi_avg_fn())
        module.load_state_dict(state_dict)
        averaged.update_parameters(module)
    return dict(averaged.module.state_dict())


if __name__ == "__main__":
    run(average)
