"""The files that make a directory of weights a model: which of them go along into an output, and copying them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ...dtypes import BY_TORCH_NAME, DType
from ...errors import CheckpointError
from ..index import FOREIGN_SUFFIXES, SUFFIXES, natural_key
from ..reading import open_file, read_exactly, reason

_SUFFIXES = (".json", ".txt", ".model", ".spm", ".codes", ".vocab", ".jinja", ".tiktoken", ".py")
_PREFIXES = ("config", "tokenizer", "vocab", "merges", "license", "licence", "copying", "notice", "use_policy")
_OF_ONE_TRAINING = re.compile(
    r"(trainer_state|training_args|log_history|wandb.*|(.+_)?(results?|metrics|logs?)(_.+)?)\.(json|txt)"
    r"|mergekit_config\.ya?ml|zero_to_fp32\.py"
)
"""Records of how one ingredient was made and scored: false for a soup. So is its README."""
_FOLDERS = ("additional_chat_templates",)
"""Of transformers; those of sentence-transformers are named in ``modules.json``."""
_MODULES = "modules.json"
_CONFIG = "config.json"
_DTYPE_KEYS = ("torch_dtype", "dtype")
_LARGEST_JSON = 1 << 24
_DEEPEST = 8


class Carried(NamedTuple):
    """``names`` (relative, with ``/``) are copied and take ``nbytes``; ``left`` is not, though it may be missed."""

    names: tuple[str, ...]
    left: tuple[str, ...]
    nbytes: int


def find_carried(directory: Path) -> Carried:
    """What of ``directory`` belongs to the model and holds no weights, in natural order. Raises CheckpointError.

    Subfolders are taken where the model refers to them, without symbolic links that lead out of the directory. What
    else is a subfolder, or holds weights inside of one, is left.
    """
    wanted = {*_FOLDERS, *_module_folders(directory)}
    names, left = [], []
    try:
        with os.scandir(directory) as entries:
            for entry in sorted(entries, key=lambda e: natural_key(e.name)):
                if _hidden(entry.name):
                    continue
                if entry.is_file():
                    names += [entry.name] if _belongs(entry.name) else []
                elif entry.name in wanted and entry.is_dir(follow_symlinks=False):
                    inside = list(_walk(directory, entry.name))
                    names += [name for name in inside if _belongs(os.path.basename(name))]
                    left += [name for name in inside if _holds_weights(name)]
                elif entry.is_dir():
                    left.append(entry.name + "/")
        nbytes = sum(os.stat(directory / name).st_size for name in names)
    except OSError as error:
        raise CheckpointError(reason(error), file=directory) from None
    return Carried(tuple(names), tuple(left), nbytes)


def copy_carried(directory: Path, names: Sequence[str], target: Path) -> None:
    """Copy the contents of the named files into ``target``; their modes follow the umask. OSError is the caller's."""
    import shutil

    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(open_file(directory / name), "rb") as source, open(target / name, "xb") as copy:
            shutil.copyfileobj(source, copy)


def files_for_dtype(directory: Path, dtype: DType) -> dict[str, bytes]:
    """What of the carried files has to change where all floating-point weights become ``dtype``: name -> content.

    That is ``torch_dtype`` (or ``dtype``) in ``config.json``, where it is there and says otherwise.
    """
    raw = _small_file(directory / _CONFIG)
    content = None if raw is None else config_for_dtype(raw, dtype)
    return {} if content is None else {_CONFIG: content}


def config_for_dtype(raw: bytes, dtype: DType) -> bytes | None:
    """A ``config.json`` that says ``dtype`` for the model and its parts, the rest in its order; None if unchanged."""
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if type(config) is not dict:
        return None
    parts = [v for k, v in config.items() if k.endswith("_config") and k != "quantization_config" and type(v) is dict]
    changed = False
    for part in (config, *parts):
        for key in _DTYPE_KEYS:
            old = part.get(key)
            if isinstance(old, str) and old.removeprefix("torch.") in BY_TORCH_NAME and old != dtype.torch_name:
                part[key], changed = dtype.torch_name, True
    # As transformers writes it.
    return (json.dumps(config, indent=2) + "\n").encode("utf-8") if changed else None


def _belongs(name: str) -> bool:
    lower = name.lower()
    if lower.startswith("readme") or _holds_weights(lower) or _OF_ONE_TRAINING.fullmatch(lower):
        return False
    return lower.endswith(_SUFFIXES) or lower.startswith(_PREFIXES)


def _holds_weights(name: str) -> bool:
    return name.endswith((*SUFFIXES, *FOREIGN_SUFFIXES, ".index.json"))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def _module_folders(directory: Path) -> list[str]:
    """Where sentence-transformers says that it keeps the parts of a model."""
    raw = _small_file(directory / _MODULES)
    try:
        modules = json.loads(raw) if raw is not None else []
    except (ValueError, RecursionError):
        return []
    paths = [m.get("path") for m in modules if type(m) is dict] if type(modules) is list else []
    return [path for path in paths if type(path) is str]


def _walk(directory: Path, folder: str) -> Iterator[str]:
    """The visible regular files below ``folder``, relative to ``directory``; nothing that lies elsewhere."""
    with os.scandir(directory / folder) as entries:
        for entry in sorted(entries, key=lambda e: natural_key(e.name)):
            name = f"{folder}/{entry.name}"
            if _hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False) and name.count("/") < _DEEPEST:
                yield from _walk(directory, name)
            elif entry.is_file() and (not entry.is_symlink() or _stays_inside(directory, name)):
                yield name


def _stays_inside(directory: Path, name: str) -> bool:
    """Whether a link ends in the model's directory, or in the Hugging Face cache's blobs that it consists of."""
    root = os.path.realpath(directory)
    roots = [root]
    if os.path.basename(os.path.dirname(root)) == "snapshots":
        roots.append(os.path.join(os.path.dirname(os.path.dirname(root)), "blobs"))
    place = os.path.realpath(directory / name)
    return any(os.path.commonpath((place, r)) == r for r in roots)


def _small_file(path: Path) -> bytes | None:
    """The content of a file that may be absent; None too where it is no regular file or absurdly large."""
    if not path.is_file():
        return None
    fd = open_file(path)
    try:
        size = os.fstat(fd).st_size
        if size > _LARGEST_JSON:
            return None
        raw = bytearray(size)
        read_exactly(fd, memoryview(raw), 0, path)
        return bytes(raw)
    finally:
        os.close(fd)
