"""The files that make a directory of weights a model: which of them go along into the output, and copying them."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CheckpointError
from .index import natural_key
from .reading import open_file, reason

_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")
_PREFIXES = ("tokenizer", "vocab", "merges", "license", "notice")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".npz", ".gguf", ".msgpack", ".onnx")
_OF_ONE_TRAINING = (
    "trainer_state.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
    "test_results.json",
)
"""Records of how one ingredient was trained and scored: false for a soup. So is its README."""


def carried_files(directory: Path) -> list[str]:
    """Names of the regular files in ``directory`` that belong to the model but hold no weights, in natural order."""
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries if entry.is_file() and _belongs(entry.name)]
    except OSError as error:
        raise CheckpointError(reason(error), file=directory) from None
    return sorted(names, key=natural_key)


def copy_carried(directory: Path, names: list[str], target: Path) -> None:
    """Copy the contents of the named files into ``target``; their modes follow the umask. OSError is the caller's."""
    import shutil

    for name in names:
        with os.fdopen(open_file(directory / name), "rb") as source, open(target / name, "xb") as copy:
            shutil.copyfileobj(source, copy)


def _belongs(name: str) -> bool:
    lower = name.lower()
    if lower.startswith((".", "readme")) or lower.endswith((*_WEIGHTS, ".index.json")) or lower in _OF_ONE_TRAINING:
        return False
    return lower.endswith(_SUFFIXES) or lower.startswith(_PREFIXES)
