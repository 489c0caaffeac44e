"""Directories of ``torch.distributed.checkpoint`` (DCP): sharded tensors, found box by box, without torch or the model.

A ``.distcp`` file is a row of small archives as torch.save writes them, one a box of a tensor; ``.metadata`` says where
each is. All of them are looked into before any tensor is read: a box must have the type and the shape that the
metadata say, must lie in the directory's own files, share no byte with another, and the boxes of a tensor must fill it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple, NoReturn

from .. import dtypes
from ..errors import CheckpointError
from .contents import Contents, Piece, Pieces, Strided
from .pickled.distributed_metadata import Box, DistributedMetadata, Sharded, Span, read_metadata
from .pickled.entries import choose
from .pickled.pickle_values import Inert
from .pickled.torch_file import read_tensor
from .pickled.torch_tensors import LARGEST, StorageRef, TensorRef, UnreadTensor
from .reading import FileStamp, open_file
from .strict_json import clip, describe

FORMAT = "dcp"
_SPARE_CELLS = 2**12
"""Of the grid that the edges of a tensor's boxes make, beyond four a box: a mesh of processes has one a box."""
_NODES, _SPARE_NODES = 4, 2**10
"""Dictionaries for each name, and beyond that."""
_PICKLED = Inert("pickled")


class _Wanted(NamedTuple):
    """A box that is to be found, and the number of its tensor."""

    span: Span
    tensor: int
    box: Box


def read_distributed(metadata_file: Path, files: Sequence[Path], entry: str | None = None) -> list[Contents]:
    """What the state dict of the checkpoint holds, for each of the directory's ``.distcp`` files in turn.

    A tensor counts as in the file of its first box. ``entry`` names the state dict where there are several. Every
    fault raises a one-line CheckpointError.
    """
    metadata = read_metadata(metadata_file)
    state_dict = choose(_tree(metadata_file, metadata), metadata_file, entry)
    names: list[str] = []
    tensors: list[Sharded] = []
    wanted: dict[str, list[_Wanted]] = {file.name: [] for file in files}
    for name, leaf in state_dict.tensors.items():
        if isinstance(leaf, UnreadTensor):
            _fail(metadata_file, name, f"tensor is {leaf.kind}: it cannot be averaged")
        full = leaf.storage.key
        sharded = metadata.tensors[full]
        for box in _checked_boxes(metadata_file, name, sharded):
            span = metadata.span(full, box.corner)
            if span is None:
                _fail(metadata_file, name, "nothing says where a piece of it is", f"piece at {list(box.corner)}")
            if span.file not in wanted:
                expected = "a .distcp file of this directory"
                _fail(
                    metadata_file, name, "a piece of it is in a file that is not there", describe(span.file), expected
                )
            wanted[span.file].append(_Wanted(span, len(names), box))
        names.append(name)
        tensors.append(sharded)
    contents = [_empty(file) for file in files]
    contents[0].digest = metadata.digest
    contents[0].entry, contents[0].dropped = state_dict.entry, state_dict.dropped
    found: list[list[tuple[Piece, int, Strided | None]]] = [[] for _ in names]
    for number, file in enumerate(contents):
        for item, piece, form in _look_into(file, wanted[file.path.name], names, tensors):
            found[item.tensor].append((piece, number, form))
    for name, sharded, places in zip(names, tensors, found, strict=True):
        _add(contents, name, sharded, places)
    return contents


def _tree(path: Path, metadata: DistributedMetadata) -> dict[object, object]:
    """The nested dictionaries as they were saved, with stand-ins for the tensors."""
    tree: dict[object, object] = {}
    others = dict.fromkeys(metadata.others)
    nodes = _NODES * len(metadata.keys) + _SPARE_NODES
    for name, keys in metadata.keys.items():
        at = tree
        for key in keys[:-1]:
            below = at.get(key)
            if below is None:
                below = at[key] = {}
                nodes -= 1
            if type(below) is not dict:
                _fail(path, name, "is within what is no dictionary")
            if nodes < 0:
                _fail(path, name, "is nested in more dictionaries than so few names need")
            at = below
        leaf = _PICKLED if name in others else _stand_in(path, name, metadata.tensors[name])
        if at.setdefault(keys[-1], leaf) is not leaf:
            _fail(path, name, "has the path of another tensor")
    return tree


def _stand_in(path: Path, name: str, sharded: Sharded) -> TensorRef | UnreadTensor:
    if sharded.code < 0:
        return UnreadTensor(f"of type torch.{sharded.dtype}")
    nbytes = itemsize = dtypes.ALL[sharded.code].itemsize
    for n in sharded.shape:
        nbytes *= n or 1
        if nbytes > LARGEST:
            _fail(path, name, "shape overflows 63 bits", f"{dtypes.ALL[sharded.code]} {describe(list(sharded.shape))}")
    storage = StorageRef(name, sharded.code, itemsize, nbytes)
    return TensorRef(storage, sharded.code, 0, sharded.shape, sharded.shape)


def _checked_boxes(path: Path, name: str, sharded: Sharded) -> list[Box]:
    """The boxes that have elements, in the order of their corners: they fill the tensor and do not overlap."""
    if 0 in sharded.shape:
        return []
    boxes = sorted(box for box in sharded.boxes if 0 not in box.sizes)
    for box in boxes:
        ends = map(sum, zip(box.corner, box.sizes, strict=True))
        if any(end > n for end, n in zip(ends, sharded.shape, strict=True)):
            found, expected = f"{list(box.sizes)} at {list(box.corner)}", f"within {list(sharded.shape)}"
            _fail(path, name, "a piece of it reaches beyond it", found, expected)
    # The edges of all boxes cut the tensor into cells, each of which must be in exactly one box.
    cuts = [sorted({0, n, *_edges(boxes, d)}) for d, n in enumerate(sharded.shape)]
    total = math.prod(len(c) - 1 for c in cuts)
    if total > (most := 4 * len(boxes) + _SPARE_CELLS):
        _fail(path, name, "its pieces cut it into too many cells", total, f"at most {most}")
    places = [{edge: i for i, edge in enumerate(c)} for c in cuts]
    seen = bytearray(total)
    for box in boxes:
        for cell in product(*(range(p[b], p[b + n]) for p, b, n in zip(places, box.corner, box.sizes, strict=True))):
            number = 0
            for i, c in zip(cell, cuts, strict=True):
                number = number * (len(c) - 1) + i
            if seen[number]:
                _fail(path, name, "two pieces of it overlap", f"one at {list(box.corner)}")
            seen[number] = 1
    if not all(seen):
        filled = sum(math.prod(box.sizes) for box in boxes)
        _fail(path, name, "pieces of it are missing", f"{filled} elements", math.prod(sharded.shape))
    return boxes


def _edges(boxes: Sequence[Box], d: int) -> set[int]:
    return {edge for box in boxes for edge in (box.corner[d], box.corner[d] + box.sizes[d])}


def _empty(file: Path) -> Contents:
    fd = open_file(file)
    try:
        return Contents(file, FORMAT, FileStamp.of(os.fstat(fd)), digest=0)
    finally:
        os.close(fd)


def _look_into(
    file: Contents, wanted: list[_Wanted], names: Sequence[str], tensors: Sequence[Sharded]
) -> list[tuple[_Wanted, Piece, Strided | None]]:
    """Where the elements of the boxes of one file are."""
    if not wanted:
        return []
    path, size = file.path, file.stamp.size
    wanted.sort(key=lambda item: item.span.offset)
    for item in wanted:
        offset, length, transforms = item.span.offset, item.span.length, item.span.transforms
        if transforms:
            what = f"a piece of it is transformed ({transforms}): load and save it with torch"
            _fail(path, names[item.tensor], what)
        if offset + length > size:
            what = "a piece of it reaches beyond the end of the file (truncated)"
            _fail(path, names[item.tensor], what, f"byte {offset + length}", f"at most {size} bytes")
    for before, after in pairwise(wanted):
        if before.span.offset + before.span.length > after.span.offset:
            what = f"its bytes overlap those of tensor {clip(names[before.tensor])!r}"
            _fail(path, names[after.tensor], what, f"byte {after.span.offset}")
    fd = open_file(path)
    try:
        return [(item, *_piece(fd, file, item, names[item.tensor], tensors[item.tensor])) for item in wanted]
    finally:
        os.close(fd)


def _piece(fd: int, file: Contents, item: _Wanted, name: str, sharded: Sharded) -> tuple[Piece, Strided | None]:
    span, box = item.span, item.box
    try:
        tensor, begin, form = read_tensor(fd, file, name, span.offset, span.length)
    except CheckpointError as error:
        if error.tensor is not None:
            raise
        raise error.but(tensor=clip(name), what=f"the piece at byte {span.offset}: {error.what}") from None
    if tensor.code != sharded.code or tensor.shape != box.sizes:
        expected = f"{dtypes.ALL[sharded.code]} {describe(list(box.sizes))}"
        found = f"{dtypes.ALL[tensor.code]} {describe(list(tensor.shape))}"
        _fail(file.path, name, "a piece of it is not what the metadata say", found, expected)
    strides = None if form is None else form.strides
    return Piece(file.path, file.stamp, begin, box.corner, box.sizes, strides), form


def _add(
    contents: Sequence[Contents], name: str, sharded: Sharded, places: list[tuple[Piece, int, Strided | None]]
) -> None:
    """Append a tensor to the columns of the file that its first box is in."""
    places.sort(key=lambda place: place[0].corner)
    if not places:
        _append(contents[0], name, sharded, 0)
        return
    first, number, form = places[0]
    file = contents[number]
    if len(places) > 1:
        file.forms[len(file.names)] = Pieces(tuple(piece for piece, _, _ in places))
    elif form is not None:
        file.forms[len(file.names)] = form
    _append(file, name, sharded, first.offset)


def _append(file: Contents, name: str, sharded: Sharded, begin: int) -> None:
    file.names.append(name)
    file.dtypes.append(sharded.code)
    file.shapes.append(sharded.shape)
    file.begins.append(begin)


def _fail(path: Path, name: str, what: str, found: object = None, expected: object = None) -> NoReturn:
    raise CheckpointError(what, file=path, tensor=clip(name), found=found, expected=expected)
