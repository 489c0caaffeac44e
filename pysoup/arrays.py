"""numpy arrays as tensors over the same memory, and tensors as arrays."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import ops
from .dtypes import DType
from .errors import IncompatibleError, SoupError

if TYPE_CHECKING:
    import numpy as np

# Types that numpy itself lacks: arrays of them come from the package ml_dtypes and go through integers of their size.
_FOREIGN = {"bfloat16": torch.uint16, "float8_e4m3fn": torch.uint8, "float8_e5m2": torch.uint8}


def from_array(value: Any, name: str, label: str) -> Tensor:
    """An array as a tensor to be read: over its memory, or a copy where a stride is negative.

    Raises :class:`IncompatibleError` that names ``name`` and the input ``label`` for what is no array of numbers.
    """
    array = _checked(value, name, label)
    return _shared(array if min(array.strides, default=0) >= 0 else array.copy(), name, label)


def output_array(value: Any, name: str) -> tuple[Tensor, Tensor]:
    """The tensor to write for an array, and one over the array's own memory.

    They are the same unless a stride is negative, which tensors do not have: then the first is a copy, which the caller
    writes back. Raises :class:`IncompatibleError` for read-only arrays and numpy's scalars.
    """
    array = _checked(value, name, "out")
    if not array.flags.writeable or array is not value:
        raise IncompatibleError("array is read-only", file="out", tensor=name, expected="one that can be written")
    if min(array.strides, default=0) >= 0:
        tensor = _shared(array, name, "out")
        return tensor, tensor
    forward = array[tuple(slice(None, None, -1 if stride < 0 else 1) for stride in array.strides)]
    return _shared(array.copy(), name, "out"), _shared(forward, name, "out")


def to_array(tensor: Tensor, like: Any) -> Any:
    """The tensor's memory as an array; ``like`` is an array of the input, whose type may be one that numpy lacks."""
    name = ops.dtype_of(tensor).torch_name
    if name in _FOREIGN:
        return tensor.view(_FOREIGN[name]).numpy().view(_foreign_type(name, like))
    return tensor.numpy()


def check_result_type(values: Iterable[Any], dtype: DType) -> None:
    """Raises :class:`SoupError` where floating-point arrays are to become arrays of a type that numpy lacks."""
    for value in values:
        if not isinstance(value, Tensor) and (value.dtype.kind == "f" or value.dtype.name in _FOREIGN):
            if dtype.torch_name in _FOREIGN:
                _foreign_type(dtype.torch_name, value)
            return


def _foreign_type(name: str, like: Any) -> Any:
    if like.dtype.name == name:
        return like.dtype
    try:
        return getattr(importlib.import_module("ml_dtypes"), name)
    except ImportError:
        expected = "another dtype, tensors instead of arrays, or the package ml_dtypes"
        raise SoupError("numpy has no such dtype", found=name, expected=expected) from None


def _checked(value: Any, name: str, label: str) -> np.ndarray[Any, Any]:
    if type(value).__module__ != "numpy" or not hasattr(value, "__array_interface__"):
        ops.refuse_special(value, name, label)
    import numpy as np

    return np.asarray(value) if not isinstance(value, np.ndarray) else value


def _shared(array: np.ndarray[Any, Any], name: str, label: str) -> Tensor:
    try:
        with warnings.catch_warnings():  # read-only arrays are only read
            warnings.simplefilter("ignore", UserWarning)
            bits = _FOREIGN.get(array.dtype.name)
            if bits is None:
                return torch.from_numpy(array)
            codes = torch.from_numpy(array.view(f"u{array.itemsize}"))
            return codes.view(getattr(torch, array.dtype.name))
    except (TypeError, ValueError) as error:
        raise IncompatibleError(
            "array is not supported", file=label, tensor=name, found=str(error).split(".")[0]
        ) from None
