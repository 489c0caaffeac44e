"""From the tensors of a torch state dict to the columns of a file: every view checked against its storage's bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, NoReturn

from ... import dtypes
from ...errors import CheckpointError
from ..contents import Contents, Strided
from ..strict_json import clip, describe
from .entries import StateDict
from .torch_tensors import LARGEST, TensorRef, UnreadTensor


class Place(NamedTuple):
    """The bytes of a storage in the file."""

    offset: int
    nbytes: int


def take_state_dict(contents: Contents, state_dict: StateDict, places: Mapping[str, Place]) -> None:
    """Fill ``contents`` with the tensors of ``state_dict``, in its order.

    Tensors that are one view of one storage are tied: the first name stands for the others. Views that merely overlap
    are tensors of their own.
    """
    contents.entry = state_dict.entry
    contents.dropped = state_dict.dropped
    # By their text: of tuples of numbers a file could make many whose hashes collide.
    shapes: dict[str, tuple[int, ...]] = {}
    owners: dict[str, str] = {}
    for name, tensor in state_dict.tensors.items():
        if isinstance(tensor, UnreadTensor):
            _fail(contents, name, f"tensor is {tensor.kind}: it cannot be averaged")
        begin, form = locate(contents, name, tensor, places)
        text = str(tensor.shape)
        shape = shapes.setdefault(text, tensor.shape)
        if 0 not in shape:
            view = f"{begin} {tensor.code} {text} {form.strides if form else ''}"
            owner = owners.setdefault(view, name)
            if owner != name:
                contents.aliases[name] = owner
                continue
        if form is not None:
            contents.forms[len(contents.names)] = form
        contents.names.append(name)
        contents.dtypes.append(tensor.code)
        contents.shapes.append(shape)
        contents.begins.append(begin)


def locate(contents: Contents, name: str, tensor: TensorRef, places: Mapping[str, Place]) -> tuple[int, Strided | None]:
    """Where the first element is, and how the others lie where they are not in C order behind it."""
    place = places.get(tensor.storage.key)
    if place is None:
        _fail(contents, name, f"file has no storage {clip(tensor.storage.key)!r}")
    dtype = dtypes.ALL[tensor.code]
    nbytes = _byte_size(contents, name, tensor, dtype)
    if nbytes == 0:
        return place.offset, None
    strides, is_contiguous = _strides(tensor)
    steps = sum((n - 1) * stride for n, stride in zip(tensor.shape, strides, strict=True))
    end = (tensor.offset + steps + 1) * dtype.itemsize
    if end > place.nbytes:
        what = f"view of {dtype} {describe(list(tensor.shape))} reaches beyond its storage"
        _fail(contents, name, what, f"byte {end}", f"at most {place.nbytes} bytes")
    begin = place.offset + tensor.offset * dtype.itemsize
    if is_contiguous:
        return begin, None
    if nbytes > contents.stamp.size:
        what = "view repeats its elements to more bytes than the whole file has"
        _fail(contents, name, what, f"{nbytes} bytes", f"at most {contents.stamp.size}")
    return begin, Strided(strides, (steps + 1) * dtype.itemsize)


def _byte_size(contents: Contents, name: str, tensor: TensorRef, dtype: dtypes.DType) -> int:
    """Bytes of the tensor; sizes around a zero must fit 63 bits too, as torch computes strides from them."""
    nbytes = dtype.itemsize
    for n in tensor.shape:
        nbytes *= n or 1
        if nbytes > LARGEST:
            _fail(contents, name, "shape overflows 63 bits", f"{dtype} {describe(list(tensor.shape))}")
    return 0 if 0 in tensor.shape else nbytes


def _strides(tensor: TensorRef) -> tuple[tuple[int, ...], bool]:
    """The strides, those of dimensions of size 1 (where they do not matter) as in C order; and is all in C order."""
    expected, is_contiguous = 1, True
    strides = []
    for n, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        strides.append(expected if n == 1 else stride)
        is_contiguous &= strides[-1] == expected
        expected *= n
    return tuple(reversed(strides)), is_contiguous


def _fail(contents: Contents, name: str, what: str, found: object = None, expected: object = None) -> NoReturn:
    raise CheckpointError(what, file=contents.path, tensor=clip(name), found=found, expected=expected)
