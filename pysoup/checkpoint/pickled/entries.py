"""Which of the mappings in a torch file is the state dict, and what else the file holds.

A state dict is a mapping that holds tensors directly. A training checkpoint keeps one or more beside its optimizer and
counters: one is taken, several are an error that lists them, and ``entry`` picks one by its dotted path. Where a
mapping and others below it all hold tensors, 0-dim ones and the states of random generators left out, it is the state
dict itself if it holds more of them than those together, and none if it holds less than half as many: so an odd dict of
buffers in a state dict does no harm, nor does a tensor such as ``best_accuracy`` beside one. In between it is unclear.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from ...errors import CheckpointError
from ..strict_json import clip, is_text
from .pickle_values import OtherKey
from .torch_tensors import TensorRef, UnreadTensor, kind_of

_DEPTH = 3
_SHOWN = 8
_MOST_DROPPED = 100
_LONGEST_SHOWN = 80
_LONGEST_KEY = 64
_MOST_PARTS = 64
_ROOT = "'' (the file itself)"

# What training loops keep beside the weights; an average of it is never meant. `entry` reaches there all the same.
_TRAINING = re.compile(
    r"(.*_)?(optims?|optimi[sz]ers?|opt|sched|schedulers?|scalers?|amp|rng)(_.*)?"
    r"|loops|callbacks?|hyper_?parameters|hparams|random_state|samplers?|dataloaders?",
    re.ASCII,
)


class StateDict(NamedTuple):
    """The chosen mapping: its dotted path (``""`` for the root), its tensors, and names and kinds of all the rest."""

    entry: str
    tensors: dict[str, TensorRef | UnreadTensor]
    dropped: list[str]


def choose(tree: object, path: Path, entry: str | None) -> StateDict:
    """The state dict in the unpickled ``tree``: the one that ``entry`` names (``""``: the root), or the only one."""
    if type(tree) is not dict:
        if isinstance(tree, (TensorRef, UnreadTensor)):
            found = "one tensor"
        else:
            count = f" of {len(tree)} items" if isinstance(tree, (list, tuple)) else ""
            found = f"{kind_of(tree)}{count}"
        expected = "a mapping of names to tensors; save `model.state_dict()`"
        raise CheckpointError("not a state dict", file=path, found=found, expected=expected)
    keys = _obvious(tree, path) if entry is None else _named(tree, path, entry)
    return _state_dict(tree, path, keys)


def _obvious(tree: dict[object, object], path: Path) -> tuple[str, ...]:
    candidates = _Mappings(tree, training=False).candidates()
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        what = f"holds {len(candidates)} state dicts, one of which must be chosen: entry= (--entry)"
        raise CheckpointError(what, file=path, found=_listed(candidates))
    others = _Mappings(tree, training=True).candidates()
    if others:
        what = "holds tensors only in the state of a training; name an entry if it is meant: entry= (--entry)"
        raise CheckpointError(what, file=path, found=_listed(others))
    found = ", ".join(islice(_described((), tree), _SHOWN)) or "an empty mapping"
    raise CheckpointError("holds no state dict: no mapping of names to tensors", file=path, found=found)


class _Mappings:
    """The mappings in a tree, each once, level by level down to a depth of three; columns, as a file may have many."""

    def __init__(self, tree: dict[object, object], *, training: bool) -> None:
        self._keys = [""]
        self._mappings = [tree]
        self._parents = array("q", (-1,))
        self._weights = array("q")
        self._tensors = array("q")
        depths = array("B", (0,))
        # Two names for one mapping are one state dict, tied by the file. A mapping may even hold itself.
        seen = {id(tree)}
        for position, mapping in enumerate(self._mappings):
            weights = tensors = 0
            for key, value in mapping.items():
                if type(key) is not str:
                    continue
                if isinstance(value, dict):
                    skipped = id(value) in seen or depths[position] == _DEPTH or not value
                    if not skipped and (training or not of_training(key)):
                        seen.add(id(value))
                        self._keys.append(key)
                        self._mappings.append(value)
                        self._parents.append(position)
                        depths.append(depths[position] + 1)
                elif isinstance(value, (TensorRef, UnreadTensor)):
                    tensors += 1
                    is_scalar = isinstance(value, TensorRef) and not value.shape
                    weights += not is_scalar and not of_training(key)
            self._weights.append(weights)
            self._tensors.append(tensors)

    def candidates(self) -> list[tuple[str, ...]]:
        """Paths of those that are state dicts, the shallow ones first."""
        count = len(self._mappings)
        below = array("q", bytes(8 * count))
        chosen = bytearray(count)
        alone = bytearray(count)
        found = bytearray(count)
        # From the leaves up: children come after their parents.
        for position in range(count - 1, -1, -1):
            weights = self._weights[position]
            if weights > below[position] or (self._tensors[position] and not found[position]):
                chosen[position] = alone[position] = 1
                below[position] = weights
            elif weights and 2 * weights >= below[position]:
                chosen[position] = 1
            parent = self._parents[position]
            if parent >= 0:
                below[parent] += below[position]
                found[parent] |= found[position] | chosen[position]
        # From the root down: what is within a state dict is a part of it.
        within = bytearray(count)
        paths = []
        for position, parent in enumerate(self._parents):
            within[position] = parent >= 0 and (within[parent] or alone[parent])
            if chosen[position] and not within[position]:
                paths.append(self._path(position))
        return paths

    def _path(self, position: int) -> tuple[str, ...]:
        keys: list[str] = []
        while position > 0:
            keys.append(self._keys[position])
            position = self._parents[position]
        return tuple(reversed(keys))


def of_training(key: str) -> bool:
    """Whether what has this key is the state of a training, not of a model."""
    return len(key) <= _LONGEST_KEY and _TRAINING.fullmatch(key.lower()) is not None


def _named(tree: dict[object, object], path: Path, entry: str) -> tuple[str, ...]:
    """The keys that ``entry`` stands for: keys may have dots themselves, so longer ones are tried first."""
    failed: set[tuple[int, int]] = set()

    def find(value: object, first: int) -> tuple[str, ...] | None:
        if first == len(parts):
            return ()
        if not isinstance(value, dict) or (id(value), first) in failed:
            return None
        for end in range(len(parts), first, -1):
            key = ".".join(parts[first:end])
            if key in value and (below := find(value[key], end)) is not None:
                return (key, *below)
        failed.add((id(value), first))
        return None

    parts = entry.split(".") if entry else []
    keys = find(tree, 0) if len(parts) <= _MOST_PARTS else None
    if keys is not None:
        return keys
    # Files of one state dict may stand beside nested ones: there is nothing to choose in them.
    obvious = _Mappings(tree, training=False).candidates()
    if len(obvious) == 1 and entry:
        return obvious[0]
    candidates = _Mappings(tree, training=True).candidates()
    expected = _listed(candidates) if candidates else "one of its keys"
    raise CheckpointError("has no such entry", file=path, found=repr(clip(entry)), expected=expected)


def _state_dict(tree: dict[object, object], path: Path, keys: tuple[str, ...]) -> StateDict:
    entry = ".".join(keys)
    beside: list[Iterator[str]] = []
    value: object = tree
    for depth, key in enumerate(keys):
        if isinstance(value, dict):
            beside.append(_described(keys[:depth], value, without=key))
            value = value[key]
    if not isinstance(value, dict):
        expected = "a mapping of names to tensors"
        raise CheckpointError(
            f"entry {clip(entry)!r} is no state dict", file=path, found=kind_of(value), expected=expected
        )
    tensors: dict[str, TensorRef | UnreadTensor] = {}
    for key, item in value.items():
        if type(key) is not str:
            text = key.text if isinstance(key, OtherKey) else "another key"
            where = f"entry {clip(entry)!r}" if entry else "state dict"
            raise CheckpointError(f"{where} has a key that is no string", file=path, found=clip(text))
        if isinstance(item, (TensorRef, UnreadTensor)):
            if not is_text(key):
                raise CheckpointError("name is not valid Unicode", file=path, tensor=clip(key))
            tensors[key] = item
    if not tensors:
        found = ", ".join(islice(_described((), value), _SHOWN)) or "an empty mapping"
        raise CheckpointError(f"entry {clip(entry)!r} holds no tensors", file=path, found=found)
    rest = chain(*beside, _described(keys, value, without=None, tensors=False))
    dropped = list(islice(rest, _MOST_DROPPED))
    if more := sum(1 for _ in rest):
        dropped.append(f"and {more} more")
    return StateDict(entry, tensors, dropped)


def _described(
    keys: tuple[str, ...], mapping: dict[object, object], without: str | None = None, *, tensors: bool = True
) -> Iterator[str]:
    """``optimizer (dict)`` for each item of the mapping at ``keys`` but one, or but the tensors."""
    for key, value in mapping.items():
        if (without is not None and key == without) or (not tensors and isinstance(value, (TensorRef, UnreadTensor))):
            continue
        text = key if isinstance(key, str) else key.text if isinstance(key, OtherKey) else "another key"
        yield f"{clip('.'.join((*keys, text)), _LONGEST_SHOWN)} ({kind_of(value)})"


def _listed(candidates: list[tuple[str, ...]]) -> str:
    shown = ", ".join(clip(".".join(keys), _LONGEST_SHOWN) or _ROOT for keys in candidates[:_SHOWN])
    more = len(candidates) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
