"""What stands for the tensors and storages of a torch pickle: places and types, no data.

``CONSTRUCTORS`` has what torch's rebuilding functions, and the containers around them, become: each takes the
arguments of the call in the stream. Only forms are checked here; whether a tensor lies within its file, and whether it
is wanted at all, is seen later. A tensor that cannot be averaged does not matter in an optimizer's state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeGuard

from ..strict_json import clip
from .pickle_values import BYTES, SET, Global, Inert, OtherKey, Refusal

LARGEST = 2**63 - 1
MOST_DIMENSIONS = 64
"""torch's own limit."""

_VIEWS = {"conj": "a conjugated view (save `tensor.resolve_conj()`)", "neg": "a negated view (`tensor.resolve_neg()`)"}


class StorageType(NamedTuple):
    """``torch.FloatStorage`` and the like; ``code`` is the type's place in ``dtypes.ALL``, or -1."""

    name: str
    code: int
    itemsize: int


class TorchType(NamedTuple):
    """``torch.float32`` and the like; ``code`` as in StorageType."""

    name: str
    code: int


class StorageRef(NamedTuple):
    """A storage of ``nbytes`` bytes, stored under ``key``; ``code`` as in StorageType."""

    key: str
    code: int
    itemsize: int
    nbytes: int


class TensorRef(NamedTuple):
    """A view of a storage; ``offset`` and ``strides`` count elements of the type ``dtypes.ALL[code]``."""

    storage: StorageRef
    code: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class UnreadTensor(NamedTuple):
    """A tensor of which no average can be made; ``kind`` says what it is."""

    kind: str


def kind_of(value: object) -> str:
    """What a value from the pickle is, in a word for people."""
    if isinstance(value, Inert):
        return value.kind
    if isinstance(value, (TensorRef, UnreadTensor)):
        return "tensor"
    if isinstance(value, StorageRef):
        return "storage"
    if isinstance(value, (TorchType, StorageType, Global)):
        return "type"
    return "None" if value is None else type(value).__name__


def _first(args: tuple[object, ...], count: int) -> tuple[object, ...]:
    if len(args) < count:
        raise Refusal(f"the pickle rebuilds a tensor from {len(args)} values, not {count}")
    return args[:count]


def _rebuild_tensor(args: tuple[object, ...]) -> TensorRef | UnreadTensor:
    """``(storage, offset, size, stride)``."""
    storage, offset, shape, strides = _first(args, 4)
    if type(storage) is not StorageRef:
        raise Refusal("the pickle has a tensor without a storage")
    if storage.code < 0:
        return UnreadTensor("quantized")
    return _view(storage, storage.code, offset, shape, strides)


def _rebuild_tensor_v2(args: tuple[object, ...]) -> TensorRef | UnreadTensor:
    """``(storage, offset, size, stride, requires_grad, backward_hooks, metadata=None)``."""
    if len(args) > 6 and (view := _metadata(args[6])):
        return UnreadTensor(view)
    return _rebuild_tensor(args)


def _rebuild_tensor_v3(args: tuple[object, ...]) -> TensorRef | UnreadTensor:
    """``(storage, offset, size, stride, requires_grad, backward_hooks, dtype, metadata=None)``."""
    storage, offset, shape, strides, _, _, dtype = _first(args, 7)
    if type(storage) is not StorageRef or type(dtype) is not TorchType:
        raise Refusal("the pickle has a tensor without a storage or without a type")
    if len(args) > 7 and (view := _metadata(args[7])):
        return UnreadTensor(view)
    if dtype.code < 0:
        return UnreadTensor(f"of type torch.{dtype.name}")
    return _view(storage, dtype.code, offset, shape, strides)


def _view(storage: StorageRef, code: int, offset: object, shape: object, strides: object) -> TensorRef:
    if not _are_sizes(shape) or not _are_sizes(strides) or len(shape) != len(strides):
        raise Refusal("the pickle has a tensor whose shape and strides are none")
    if type(offset) is not int or not 0 <= offset <= LARGEST:
        raise Refusal("the pickle has a tensor whose offset is none")
    return TensorRef(storage, code, offset, shape, strides)


def _are_sizes(value: object) -> TypeGuard[tuple[int, ...]]:
    # Dimensions first: one long tuple may be used many times.
    if type(value) is not tuple or len(value) > MOST_DIMENSIONS:
        return False
    return all(type(n) is int and 0 <= n <= LARGEST for n in value)


def _metadata(value: object) -> str:
    """What keeps the stored bytes from being the tensor's values; "" where nothing does."""
    if value is None:
        return ""
    if type(value) is not dict or len(value) > len(_VIEWS):
        return "a view of an unknown kind"
    for key, setting in value.items():
        if setting is not False:
            return _VIEWS.get(key, "a view of an unknown kind") if type(key) is str else "a view of an unknown kind"
    return ""


def _parameter(args: tuple[object, ...]) -> TensorRef | UnreadTensor:
    """``(data, requires_grad, backward_hooks, state)``."""
    (data,) = _first(args, 1)
    if not isinstance(data, (TensorRef, UnreadTensor)):
        raise Refusal("the pickle has a parameter without a tensor")
    return data


def _from_type(args: tuple[object, ...]) -> TensorRef | UnreadTensor:
    """``(function, type, arguments, state)``: a tensor with attributes, or of a subclass."""
    function, subclass, arguments = _first(args, 3)
    if type(function) is not Global or type(subclass) is not Global or type(arguments) is not tuple:
        raise Refusal("the pickle has a tensor that nothing rebuilds")
    rebuild = _REBUILD.get(function.name)
    if rebuild is None or subclass.name not in _PLAIN_CLASSES:
        return UnreadTensor(f"of the class {clip(subclass.name, 80)}")
    return rebuild(arguments)


def _from_cpu_tensor(args: tuple[object, ...]) -> TensorRef | UnreadTensor:
    """``(data, dtype, device, requires_grad)``: what a TPU saves."""
    data, dtype = _first(args, 2)
    if isinstance(data, TensorRef) and isinstance(dtype, TorchType) and data.code == dtype.code:
        return data
    return UnreadTensor("stored in another type than its own")


def unread(kind: str) -> Callable[[tuple[object, ...]], object]:
    """A constructor of tensors that cannot be averaged."""
    tensor = UnreadTensor(kind)
    return lambda _: tensor


def inert(kind: str) -> Callable[[tuple[object, ...]], object]:
    """A constructor of something that is no weight."""
    value = Inert(kind)
    return lambda _: value


def _size(args: tuple[object, ...]) -> object:
    sizes = args[0] if args else ()
    return tuple(sizes) if type(sizes) is list else sizes


def _mapping(args: tuple[object, ...]) -> object:
    """``OrderedDict()``, ``Counter(dict)``, ``defaultdict(factory)``; Python 2 gave a list of pairs."""
    items = args[0] if len(args) == 1 else None
    if isinstance(items, dict):
        return items
    result: dict[object, object] = {}
    if type(items) is not list and type(items) is not tuple:
        return result
    for item in items:
        if type(item) not in (list, tuple) or len(item) != 2:
            raise Refusal("the pickle makes a mapping of what are no pairs")
        result[item[0] if type(item[0]) is str else OtherKey(item[0])] = item[1]
    return result


def _reconstructor(args: tuple[object, ...]) -> object:
    """``copyreg._reconstructor(class, base, state)``, for the objects of protocols 0 and 1."""
    function = args[0] if args else None
    if type(function) is not Global:
        raise Refusal("the pickle makes an object without a class")
    return Inert(function.name.rpartition(".")[2])


_REBUILD: dict[str, Callable[[tuple[object, ...]], TensorRef | UnreadTensor]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
_PLAIN_CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")

CONSTRUCTORS: dict[str, Callable[[tuple[object, ...]], object]] = {
    **_REBUILD,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _from_cpu_tensor,
    "torch._utils._rebuild_qtensor": unread("quantized"),
    "torch._utils._rebuild_sparse_tensor": unread("sparse"),
    "torch._utils._rebuild_sparse_csr_tensor": unread("sparse"),
    "torch._utils._rebuild_nested_tensor": unread("nested"),
    "torch._utils._rebuild_meta_tensor_no_storage": unread("on the meta device, without data"),
    "torch._utils._rebuild_wrapper_subclass": unread("a wrapper of other tensors"),
    "torch._utils._rebuild_device_tensor_from_numpy": unread("stored as a numpy array"),
    "torch._utils._rebuild_xla_tensor": unread("stored as a numpy array"),
    "torch._tensor._rebuild_from_type": _from_type,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Tensor": unread("made by its class"),
    "torch.nn.parameter.Parameter": _parameter,
    "torch.nn.parameter.Buffer": _parameter,
    "torch.nn.parameter.UninitializedParameter": unread("not initialised (of a lazy module)"),
    "torch.nn.parameter.UninitializedBuffer": unread("not initialised (of a lazy module)"),
    "torch.Size": _size,
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": _mapping,
    "builtins.dict": _mapping,
    "builtins.set": lambda _: SET,
    "builtins.frozenset": lambda _: SET,
    "builtins.bytes": lambda _: BYTES,
    "_codecs.encode": lambda _: BYTES,
    "copyreg._reconstructor": _reconstructor,
}
"""By module and name."""
