"""How an output directory is cut into files: their names, and which tensors go into which."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from ...errors import OutputError
from ..index import SUFFIX, SUFFIXES
from .layout import Layout, TensorSpec, tensor_bytes

SINGLE_FILE = f"model{SUFFIX}"
"""What readers of Hugging Face directories look for."""

_NUMBERED = re.compile(r"(.+)-[0-9]+-of-[0-9]+\.safetensors", re.DOTALL)
# The names that torch's and safetensors' files of one model have in transformers and in open_clip.
_TORCH_NAME = re.compile(r"^(open_clip_)?pytorch_model(?=[.-])")


def safetensors_shard_names(names: Sequence[str]) -> list[str]:
    """The names for shards that were ``names``, each different, ending in ``.safetensors`` and kept where they do.

    ``pytorch_model-00001-of-00002.bin`` becomes ``model-00001-of-00002.safetensors``, ``adapter_model.bin``
    ``adapter_model.safetensors``. A name that is taken already keeps its old suffix too.
    """
    taken = {name for name in names if name.endswith(SUFFIX)}
    result = []
    for name in names:
        if name.endswith(SUFFIX):
            result.append(name)
            continue
        suffix = next((s for s in SUFFIXES if name.endswith(s)), "")
        stem = _TORCH_NAME.sub(r"\1model", name.removesuffix(suffix) + ".", count=1).removesuffix(".")
        new, count = f"{stem}{SUFFIX}", 1
        while new in taken:
            new, count = f"{name}{SUFFIX}" if count == 1 else f"{name}-{count}{SUFFIX}", count + 1
        taken.add(new)
        result.append(new)
    return result


def reshard(layout: Layout, shard_size: int) -> list[tuple[str, list[TensorSpec]]]:
    """The tensors of ``layout`` in order, dealt to shards of at most ``shard_size`` bytes of data each.

    A larger tensor gets a shard of its own. The shards are named ``STEM-00001-of-0000N.safetensors`` after those of
    ``layout``, or ``STEM.safetensors`` where one suffices; STEM is ``model`` unless all of them have another one.
    Raises OutputError for a size below 1.
    """
    if shard_size < 1:
        raise OutputError("shard size is too small", found=shard_size, expected="at least 1 byte")
    shards: list[list[TensorSpec]] = [[]]
    room = shard_size
    for spec in (spec for _, tensors in layout for spec in tensors):
        nbytes = tensor_bytes(spec[1], spec[2])
        if nbytes > room and shards[-1]:
            shards.append([])
            room = shard_size
        shards[-1].append(spec)
        room -= nbytes
    stem, count = common_stem([name for name, _ in layout]), len(shards)
    if count == 1:
        return [(stem + SUFFIX, shards[0])]
    return [(f"{stem}-{i:05d}-of-{count:05d}{SUFFIX}", tensors) for i, tensors in enumerate(shards, 1)]


def common_stem(names: Sequence[str]) -> str:
    """What is left of the names of all shards without their numbers; ``model`` where that differs."""
    stems = {match[1] if (match := _NUMBERED.fullmatch(name)) else os.path.splitext(name)[0] for name in names}
    return stems.pop() if len(stems) == 1 else SINGLE_FILE.removesuffix(SUFFIX)


def needs_index(names: Sequence[str]) -> bool:
    """Whether a reader finds these shards by an index only: not where there is one without a number."""
    return len(names) > 1 or any(map(_NUMBERED.fullmatch, names))
