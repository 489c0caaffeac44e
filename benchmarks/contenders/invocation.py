"""What every contender's script shares: inputs in, average, output out, as their users' own scripts do it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator

import torch
from safetensors.torch import load_file, save_file

StateDict = dict[str, torch.Tensor]


def load(path: str, *, mapped: bool) -> StateDict:
    """One checkpoint. safetensors maps its files always; torch reads a ``.pt`` whole unless told to map it."""
    if path.endswith(".safetensors"):
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def save(state_dict: StateDict, path: str) -> None:
    """One checkpoint, in the format that the suffix says."""
    if path.endswith(".safetensors"):
        save_file(state_dict, path)
    else:
        torch.save(state_dict, path)


def arguments() -> argparse.Namespace:
    """``output`` and ``inputs``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("inputs", nargs="+")
    return parser.parse_args()


def run(average: Callable[[Iterable[StateDict]], StateDict], *, mapped: bool = False) -> None:
    """Loads, averages, saves. ``mapped`` opens all files at once, by mapping; otherwise one is loaded after another."""
    options = arguments()
    models: Iterable[StateDict]
    models = [load(path, mapped=True) for path in options.inputs] if mapped else Inputs(options.inputs)
    save(average(models), options.output)


class Inputs:
    """Checkpoints loaded one at a time, as the loop comes to them."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[StateDict]:
        return (load(path, mapped=False) for path in self.paths)
