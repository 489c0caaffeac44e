"""The candidates of a recipe: opened, checked, named in errors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..aliasing import ties
from ..arrays import from_array
from ..average import open_members
from ..averager import Averager
from ..checkpoint import Checkpoint, duplicate_inputs, open_checkpoint, select_names
from ..checkpoint.find import find_checkpoints
from ..checkpoint.strict_json import clip
from ..errors import CheckpointError, IncompatibleError, SoupError
from ..evaluate import HeldOut
from ..file_plan import Member
from ..names import EVERY_NAME, NameFilter, NameOptions
from ..origin import described
from ..remarks import input_notes, nonfinite_notes

Source = Checkpoint | Mapping[str, Tensor]
CheckpointLike = str | os.PathLike[str] | Checkpoint | Mapping[str, Tensor]
Checkpoints = str | os.PathLike[str] | Sequence[CheckpointLike] | Mapping[str, CheckpointLike]
"""Paths, :class:`Checkpoint` objects or state dictionaries, mixed at will; a mapping gives them names. One path alone
is a folder or a pattern."""


@dataclass(frozen=True)
class Candidate:
    """One checkpoint: its name in errors and traces, and where its tensors come from."""

    name: str
    source: Source
    hashed: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What is known of its content, for several runs that share it: see :mod:`.identity`."""
    names: NameFilter = EVERY_NAME
    """Which tensors take part, the same for all of a pool; ``source`` is without the others."""


class Pool(list[Candidate]):
    """Candidates that several recipes share, opened once, and ``notes`` on them; made by :func:`open_pool`."""

    def __init__(self, candidates: Sequence[Candidate], notes: Sequence[str]) -> None:
        super().__init__(candidates)
        self.notes = list(notes)


def open_pool(
    checkpoints: Checkpoints, model: nn.Module, entry: str | None = None, names: NameFilter = EVERY_NAME
) -> Any:
    """``checkpoints`` opened, for recipes in place of them; ``entry`` and ``names`` are taken then."""
    return Pool(*open_candidates(checkpoints, model, entry, names))


def open_candidates(
    checkpoints: Checkpoints, model: nn.Module, entry: str | None = None, names: NameFilter = EVERY_NAME
) -> tuple[list[Candidate], list[str]]:
    """Open every checkpoint (headers only), in the given order, and say what should be known about them.

    Folders and patterns stand for what is in them; ``entry`` is taken of files that nest several models. Files whose
    tensor names differ from the model's by wrappers alone take these. Candidates are called by the paths as given, the
    keys of a mapping, or ``checkpoints[i]`` for a state dictionary. What ``names`` does not take is left out of them.
    """
    if not isinstance(model, nn.Module):
        raise SoupError("not a model", found=type(model).__name__, expected="a torch.nn.Module")
    if isinstance(checkpoints, Pool):
        return list(checkpoints), list(checkpoints.notes)
    notes: list[str] = []
    if isinstance(checkpoints, (bytes, Checkpoint)):
        raise SoupError("checkpoints must be a list", found=f"one {type(checkpoints).__name__}")
    if isinstance(checkpoints, Mapping):
        if any(isinstance(value, Tensor) for value in checkpoints.values()):
            raise SoupError("checkpoints must be a list", found="one state dictionary")
        candidates = [Candidate(str(name), _open(str(name), item, entry)) for name, item in checkpoints.items()]
    else:
        candidates = []
        for index, item in enumerate(find_checkpoints(checkpoints, notes)):
            name = _name(item, f"checkpoints[{index}]")
            candidates.append(Candidate(name, _open(name, item, entry)))
    if not candidates:
        raise SoupError("no checkpoints given")
    files = _files(candidates)
    if entry and not any(file.entry_name for file in files):
        raise CheckpointError("no input has entries to choose from", found=repr(entry), expected="no entry")
    in_memory = {id(c.source): c.source for c in candidates if not isinstance(c.source, Checkpoint)}
    also = [name for source in in_memory.values() for name in source]
    chosen, matched = select_names(names, list(model.state_dict()), files, "the model", also)
    notes += [*matched, *input_notes(files, in_memory=len(candidates) - len(files))]
    renamed = iter(chosen)
    # One dictionary that is given twice stays one, and is known as a duplicate.
    parts = {key: names.only(source) for key, source in in_memory.items()}
    sources = [next(renamed) if is_file(c) else parts[id(c.source)] for c in candidates]
    return [Candidate(c.name, source, names=names) for c, source in zip(candidates, sources, strict=True)], notes


def nonfinite_note(tensors: Sequence[str]) -> str:
    """What to say of weights whose ``tensors`` are not all finite; nothing where there are none."""
    if not tensors:
        return ""
    more = f" (and {len(tensors) - 1} more)" if len(tensors) > 1 else ""
    return f"NaN or infinity in tensor {clip(repr(tensors[0]))}{more}"


def soup_notes(averager: Averager, ingredients: Sequence[Candidate]) -> list[str]:
    """The same of the soup that was just written, with the ingredients' files where all of them are files; and whether
    its sum is in a file."""
    tensors = averager.nonfinite
    members = [Member(file) for file in _files(ingredients)]
    notes = ["the running sum was kept in a temporary file"] if averager.sum_place == "file" else []
    if not tensors:
        return notes
    # A tensor in memory, or under the other of two tied names, would be taken for a mean that is out of range.
    if len(members) < len(ingredients) or any(m.find(name) is None for m in members for name in tensors):
        return [*notes, nonfinite_note(tensors)]
    with open_members(members):
        return [*notes, *nonfinite_notes(members, tensors)]


def duplicates(candidates: Sequence[Candidate]) -> dict[int, int]:
    """Position of a candidate with the same bytes as an earlier one -> position of that one."""
    found: dict[int, int] = {}
    files = [(index, c.source) for index, c in enumerate(candidates) if isinstance(c.source, Checkpoint)]
    for one, other in duplicate_inputs([source for _, source in files]):
        first, later = sorted((files[one][0], files[other][0]))
        found[later] = min(first, found.get(later, first))
    seen: dict[int, int] = {}
    for index, candidate in enumerate(candidates):
        first = seen.setdefault(id(candidate.source), index)
        if first != index:
            found[index] = first
    return found


def check_pool(averager: Averager, candidates: Sequence[Candidate], *, running: bool = True) -> None:
    """All candidates against the model, by their headers: the last one's fault must not show after hours of scoring.

    ``running``: they are added to a running sum, see :meth:`Averager.check`.
    """
    averager.check({candidate.name: candidate.source for candidate in candidates}, running=running)


@contextmanager
def naming(doing: str, left: str, *, file: bool = False) -> Iterator[None]:
    """Errors say what was being done and what the model is ``left`` with; the original is their cause.

    They keep the name of a ``file``; of a candidate in memory they would only have a placeholder.
    """
    try:
        yield
    except SoupError as error:
        # What does not fit is found before anything is written.
        state = None if isinstance(error, IncompatibleError) else left
        raise error.but(what=f"{doing}: {error.what}", file=error.file if file else None, left=state) from error
    except Exception as error:
        raise SoupError(f"{doing} failed: {described(error)}", left=left) from error


def read_heldout(heldout: HeldOut) -> None:
    """Read the data now: what is wrong with it is an error before anything is scored."""
    with naming("reading the held-out data", "nothing was scored"):
        len(heldout)


def check_separate(candidates: Sequence[Candidate], model: nn.Module) -> None:
    """Refuse state dictionaries that share memory with the model: writing a candidate would change them."""
    live = {t.untyped_storage().data_ptr() for t in model.state_dict().values() if isinstance(t, Tensor) and t.numel()}
    for candidate in candidates:
        if isinstance(candidate.source, Checkpoint):
            continue
        for name, value in candidate.source.items():
            tensor = value if isinstance(value, Tensor) else from_array(value, name, candidate.name)
            if tensor.numel() and tensor.untyped_storage().data_ptr() in live:
                raise SoupError(
                    "the checkpoint shares memory with the model, which is overwritten with every candidate; give a "
                    "copy",
                    file=candidate.name,
                    tensor=name,
                )


def names_of(candidates: Sequence[Candidate]) -> NameOptions:
    """The patterns of a pool, as arguments for what averages it; empty without patterns."""
    return candidates[0].names.options()


def own_tensors(model: nn.Module, candidates: Sequence[Candidate]) -> dict[str, Tensor | None]:
    """The model's names in order, with copies of the tensors that the patterns of ``candidates`` leave out of averages,
    tied as they are there, and None for the others; empty without patterns."""
    names = candidates[0].names
    if not names:
        return {}
    state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    rest = {name: tensor.detach() for name, tensor in state.items() if not names.takes(name)}
    tied = ties(list(rest.values()))
    copies: list[Tensor] = []
    for place, tensor in enumerate(rest.values()):
        copies.append(copies[tied[place]] if place in tied else tensor.clone())
    return {**dict.fromkeys(state), **dict(zip(rest, copies, strict=True))}


def is_file(candidate: Candidate) -> bool:
    """Whether its tensors are read from files, not from memory."""
    return isinstance(candidate.source, Checkpoint)


def _files(candidates: Sequence[Candidate]) -> list[Checkpoint]:
    return [c.source for c in candidates if isinstance(c.source, Checkpoint)]


def _name(item: CheckpointLike, default: str) -> str:
    if isinstance(item, Checkpoint):
        return os.fspath(item.path)
    return os.fspath(item) if isinstance(item, (str, os.PathLike)) else default


def _open(name: str, item: Any, entry: str | None) -> Source:
    if isinstance(item, (str, os.PathLike)):
        return open_checkpoint(item, entry)
    if isinstance(item, (Checkpoint, Mapping)):
        return item
    hint = "; pass its state_dict()" if isinstance(item, nn.Module) else ""
    raise SoupError(
        f"{name} is not a checkpoint{hint}",
        found=type(item).__name__,
        expected="a path, a Checkpoint or a state dictionary",
    )
