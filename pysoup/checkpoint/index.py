"""From a path to the files behind it: a file, an index file, or a directory of one model (Hugging Face's layout, DCP).

Shard names in an index must be plain file names: an index can never point outside its own directory by name. Files
that are symbolic links are followed, because the Hugging Face cache consists of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError
from .reading import open_file, reason
from .strict_json import MAX_JSON_BYTES, JsonReader, clip, describe, file_blocks, is_text

SUFFIX = ".safetensors"
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".pt.tar")
SUFFIXES = (SUFFIX, *TORCH_SUFFIXES, ".npz")
"""Of weight files that can be read."""
INDEX_SUFFIX = ".safetensors.index.json"
INDEX_SUFFIXES = (INDEX_SUFFIX, ".bin.index.json")
FOREIGN_SUFFIXES = (".pkl", ".h5", ".gguf", ".msgpack", ".onnx")
"""Weights in formats that this layer does not read."""
DISTRIBUTED_METADATA, DISTRIBUTED_SUFFIX = ".metadata", ".distcp"
"""The files of a ``torch.distributed.checkpoint``: which tensor is where, and what each process saved."""
LONGEST_NAME = 255
"""Bytes in a file name, on every Linux filesystem of note."""

_COMMON = "common.pt"
"""What Megatron keeps beside the shards: settings."""
PREFERRED = (f"model{SUFFIX}", "pytorch_model.bin")
"""The weight files of a directory of one model, where transformers looks for them, in its order."""
_TRAINING = re.compile(
    r"((optimizer|scheduler|lr_scheduler|scaler|random_states|rng_state|training_args|training_state|sampler"
    r"|dl_state_dict)([_.-].*)?|.*_optim_states)\.(pt|pth|bin|ckpt|npz)"
)
"""What trainers leave beside the weights."""


class Source(NamedTuple):
    """The files of a checkpoint; ``weight_map`` (tensor name -> shard name) only where there is an index."""

    files: tuple[Path, ...]
    is_directory: bool
    index_file: Path | None = None
    weight_map: dict[str, str] | None = None


def natural_key(name: str) -> list[str | int]:
    """Sort key under which ``model-2`` comes before ``model-10``."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", name))]


def is_weights(name: str) -> bool:
    """Whether a file of that name can hold the weights of a model: by its suffix, and not a trainer's own state."""
    return name.endswith(SUFFIXES) and not _TRAINING.fullmatch(name)


def resolve(path: Path) -> Source:
    """The files that ``path`` stands for. Raises CheckpointError."""
    try:
        is_directory = path.is_dir()
        exists = is_directory or path.exists()
    except (OSError, ValueError) as error:
        raise CheckpointError(reason(error), file=path) from None
    if is_directory:
        return _resolve_directory(path)
    if not exists:
        broken = path.is_symlink()
        raise CheckpointError("broken symbolic link" if broken else "no such file or directory", file=path)
    if path.name == DISTRIBUTED_METADATA:
        return _resolve_distributed(path.parent)
    if path.suffix == ".json":
        return _resolve_index(path)
    if not path.name.endswith(SUFFIXES):
        hint = "convert it to safetensors first" if path.suffix in FOREIGN_SUFFIXES else "not a checkpoint"
        what = f"unsupported suffix, {hint}"
        expected = f"one of {', '.join(SUFFIXES)}, *{INDEX_SUFFIX} or a directory"
        raise CheckpointError(what, file=path, found=repr(path.suffix), expected=expected)
    return Source((path,), is_directory=False)


def _resolve_directory(path: Path) -> Source:
    try:
        names = sorted((n for n in os.listdir(path) if not n.startswith(".")), key=natural_key)
    except OSError as error:
        raise CheckpointError(reason(error), file=path) from None
    if any(n.endswith(DISTRIBUTED_SUFFIX) for n in names):
        weights = [n for n in names if (is_weights(n) and n != _COMMON) or n.endswith(INDEX_SUFFIXES)]
        if not weights:
            return _resolve_distributed(path)
        what = "holds a distributed checkpoint and other weights, name one of them"
        found, expected = ", ".join(clip(n, 60) for n in weights[:5]), f"{DISTRIBUTED_METADATA} or a weight file"
        raise CheckpointError(what, file=path, found=found, expected=expected)
    # As transformers looks for them: safetensors first, and an index before a file.
    for suffix, index_suffix, preferred in zip((SUFFIX, ".bin"), INDEX_SUFFIXES, PREFERRED, strict=True):
        indices = [n for n in names if n.endswith(index_suffix)]
        if index := _only(path, indices, preferred.removesuffix(suffix) + index_suffix, "index files"):
            return _resolve_index(path / index)
        files = [n for n in names if n.endswith(suffix) and is_weights(n)]
        if file := _only(path, files, preferred, f"{suffix.removeprefix('.')} files without an index"):
            return Source((path / file,), is_directory=True)
    if file := _only(path, [n for n in names if is_weights(n)], PREFERRED[0], "weight files"):
        return Source((path / file,), is_directory=True)
    foreign = [n for n in names if n.endswith(FOREIGN_SUFFIXES)]
    found = ", ".join(clip(n, 60) for n in (foreign or names)[:5]) or "an empty directory"
    hint = "; convert its weights to safetensors first" if foreign else ""
    raise CheckpointError(f"no weights in directory{hint}", file=path, found=found)


def _only(directory: Path, names: Sequence[str], preferred: str, kind: str) -> str | None:
    """The preferred name, or the only one there is, or None where there is none."""
    if preferred in names:
        return preferred
    if len(names) > 1:
        found = ", ".join(clip(n, 60) for n in names[:5]) + (", ..." if len(names) > 5 else "")
        raise CheckpointError(f"several {kind}, name one of them", file=directory, found=found, expected=preferred)
    return names[0] if names else None


def _resolve_distributed(directory: Path) -> Source:
    try:
        names = sorted(os.listdir(directory), key=natural_key)
    except OSError as error:
        raise CheckpointError(reason(error), file=directory) from None
    if DISTRIBUTED_METADATA not in names:
        what = f"distributed checkpoint without its {DISTRIBUTED_METADATA}: its saving did not end"
        raise CheckpointError(what, file=directory)
    files = tuple(directory / n for n in names if n.endswith(DISTRIBUTED_SUFFIX) and not n.startswith("."))
    if not files:
        raise CheckpointError(f"no {DISTRIBUTED_SUFFIX} files beside it", file=directory / DISTRIBUTED_METADATA)
    return Source(files, is_directory=True, index_file=directory / DISTRIBUTED_METADATA)


def _resolve_index(path: Path) -> Source:
    suffix = ".bin" if path.name.endswith(INDEX_SUFFIXES[1]) else SUFFIX
    weight_map = _read_weight_map(path, suffix)
    shards = sorted(set(weight_map.values()), key=natural_key)
    files = tuple(path.parent / shard for shard in shards)
    for file in files:
        if not file.exists():
            raise CheckpointError(f"shard {clip(file.name)!r} is missing", file=path, expected=str(file))
    return Source(files, is_directory=True, index_file=path, weight_map=weight_map)


def _read_weight_map(path: Path, suffix: str) -> dict[str, str]:
    """Tensor name -> shard name, each checked as it is read; what else the index says is passed over."""
    fd = open_file(path)
    try:
        size = os.fstat(fd).st_size
        if size > MAX_JSON_BYTES:
            raise CheckpointError("index too large", file=path, found=size, expected=f"at most {MAX_JSON_BYTES} bytes")
        reader = JsonReader(file_blocks(fd, 0, size, path), path, "index")
        weight_map: dict[str, str] = {}
        shards: dict[str, str] = {}
        found = None
        for key in reader.members():
            if key == "weight_map" and reader.peek() == "{":
                for name in reader.members():
                    shard = _shard_name(path, name, reader.value(), suffix)
                    weight_map[name] = shards.setdefault(shard, shard)
                found = "{}"
            else:
                value = reader.value()
                found = describe(value) if key == "weight_map" else found
        reader.end()
    finally:
        os.close(fd)
    if not weight_map:
        raise CheckpointError("not a weight index: no weight_map", file=path, found=found, expected="names -> files")
    return weight_map


def _shard_name(index: Path, name: str, shard: object, suffix: str) -> str:
    if not is_text(name) or not isinstance(shard, str) or not is_text(shard):
        raise CheckpointError("shard is not a name", file=index, tensor=clip(name), found=describe(shard))
    outside = shard != os.path.basename(shard) or "\\" in shard or "\0" in shard or shard in ("", ".", "..")
    if outside or not shard.endswith(suffix) or len(os.fsencode(shard)) > LONGEST_NAME:
        expected = f"a plain file name ending in {suffix}, of at most {LONGEST_NAME} bytes"
        raise CheckpointError(
            "invalid shard name", file=index, tensor=clip(name), found=describe(shard), expected=expected
        )
    return shard
