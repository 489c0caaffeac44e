"""The pickle of a state dict as torch.save writes it: an OrderedDict of tensors that point to storages by number.

Protocol 2, and of its opcodes only those that every allow-list unpickler knows (``torch.load(weights_only=True)``
since 2.4). Nothing is pickled here: the opcodes are written one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ... import dtypes
from ...dtypes import DType

# What is written with a storage class of its own; later types come as bytes and their dtype.
_STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "complex64": "ComplexFloatStorage",
    "complex128": "ComplexDoubleStorage",
    "bool": "BoolStorage",
    "int8": "CharStorage",
    "int16": "ShortStorage",
    "int32": "IntStorage",
    "int64": "LongStorage",
    "uint8": "ByteStorage",
}
STORAGE_CLASSES: dict[DType, str] = {dtypes.BY_TORCH_NAME[name]: storage for name, storage in _STORAGES.items()}

_BATCH = 1000
"""Items a SETITEMS: pickle's own number, which bounds the reader's stack."""


class TensorRecord(NamedTuple):
    """One item of the state dict: contiguous, from the start of storage number ``storage``."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    storage: int


def state_dict_pickle(tensors: Iterable[TensorRecord]) -> bytes:
    """The content of ``data.pkl``. Names that share a storage number share its memory when loaded."""
    pickle = _Pickle()
    pickle.constant(b"ccollections\nOrderedDict\n")
    pickle.parts.append(b")R")
    count = 0
    for record in tensors:
        if count % _BATCH == 0:
            pickle.parts.append(b"u(" if count else b"(")
        count += 1
        pickle.tensor(record)
    pickle.parts.append(b"u." if count else b".")
    return b"".join(pickle.parts)


class _Pickle:
    def __init__(self) -> None:
        self.parts = [b"\x80\x02"]
        self._memo: dict[bytes, int] = {}

    def constant(self, code: bytes) -> None:
        """Push what ``code`` pushes; from the second time on out of the memo. They are few, so BINPUT suffices."""
        known = self._memo.get(code)
        if known is not None:
            self.parts.append(b"h" + bytes((known,)))
            return
        self._memo[code] = len(self._memo)
        self.parts.append(code + b"q" + bytes((self._memo[code],)))

    def tensor(self, record: TensorRecord) -> None:
        """Push a name and a call of torch's function that rebuilds the tensor."""
        storage_class = STORAGE_CLASSES.get(record.dtype)
        elements = math.prod(record.shape)
        self.parts.append(_text(record.name))
        version = 3 if storage_class is None else 2
        self.constant(b"ctorch._utils\n_rebuild_tensor_v%d\n" % version)
        self.parts.append(b"((")
        self.constant(_text("storage"))
        if storage_class is None:
            self.constant(b"ctorch.storage\nUntypedStorage\n")
            elements *= record.dtype.itemsize
        else:
            self.constant(b"ctorch\n%s\n" % storage_class.encode("ascii"))
        self.parts.append(_text(str(record.storage)))
        self.constant(_text("cpu"))
        # The persistent id ends here; then storage_offset, size, stride, requires_grad, backward_hooks.
        self.parts += (_integer(elements), b"tQ", _integer(0), _integers(record.shape))
        self.parts += (_integers(contiguous_strides(record.shape)), b"\x89")
        self.constant(b"ccollections\nOrderedDict\n")
        self.parts.append(b")R")
        if storage_class is None:
            self.constant(b"ctorch\n%s\n" % record.dtype.torch_name.encode("ascii"))
        self.parts.append(b"tR")


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """In elements, as torch gives them to a new tensor: a dimension of size 0 counts as 1."""
    strides, step = [1] * len(shape), 1
    for i in range(len(shape) - 1, -1, -1):
        strides[i] = step
        step *= max(shape[i], 1)
    return tuple(strides)


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return b"X" + len(raw).to_bytes(4, "little") + raw


def _integer(value: int) -> bytes:
    """The shortest opcode for an integer >= 0."""
    if value < 1 << 8:
        return b"K" + bytes((value,))
    if value < 1 << 16:
        return b"M" + value.to_bytes(2, "little")
    if value < 1 << 31:
        return b"J" + value.to_bytes(4, "little")
    length = value.bit_length() // 8 + 1
    return b"\x8a" + bytes((length,)) + value.to_bytes(length, "little")


def _integers(values: Sequence[int]) -> bytes:
    parts = b"".join(map(_integer, values))
    if not values:
        return b")"
    return parts + (b"\x85", b"\x86", b"\x87")[len(values) - 1] if len(values) <= 3 else b"(" + parts + b"t"
