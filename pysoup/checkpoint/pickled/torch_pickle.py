"""The names that a torch checkpoint may use: an allow-list, and the words in which everything else is refused.

Beside the tensors it has classes that training loops keep with their weights; these become inert. Nothing is imported:
a name is a key of the tables here and no more.
"""

from __future__ import annotations

import re
import sys

from ... import dtypes
from ..strict_json import clip, is_text
from .pickle_values import Global, Inert, Refusal
from .torch_tensors import CONSTRUCTORS, LARGEST, StorageRef, StorageType, TorchType, inert, unread

_LONGEST_KEY = 255

_CODES = {dtype.torch_name: code for code, dtype in enumerate(dtypes.ALL)}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "BoolStorage": "bool",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "UntypedStorage": "uint8",
    "_UntypedStorage": "uint8",
}
_QUANTIZED = {"QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4, "QUInt4x2Storage": 1, "QUInt2x4Storage": 1}
_DTYPE = re.compile(r"b?float\d\w*|u?int\d+|complex\d+|bool|qu?int\d\w*|bits\d\w*", re.ASCII)

_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "torch.tensor": "torch._tensor"}
"""Names of Python 2, which protocol 2 writes to this day, and of older torch."""

_CLASS = re.compile(r"_*[A-Z]\w*(\._*[A-Z]\w*)*", re.ASCII)
_CLASSES_OF = tuple(
    f"{package}."
    for package in (
        *("accelerate", "addict", "argparse", "decimal", "deepspeed", "detectron2", "easydict", "fairseq", "fractions"),
        *("fvcore", "lightning", "lightning_fabric", "lightning_utilities", "ml_collections", "mmcv", "mmengine"),
        *("numpy.dtypes", "numpy.random", "omegaconf", "pathlib", "pytorch_lightning", "timm", "torch.amp"),
        *("torch.cuda.amp", "torch.distributed", "torch.optim", "torchmetrics", "transformers", "typing", "uuid"),
        "yacs",
    )
)
"""Packages whose classes are inert (not their functions: an object's state is data, a call is not)."""

_INERT = {
    **{f"datetime.{name}": name for name in ("date", "datetime", "time", "timedelta", "timezone")},
    **{
        f"builtins.{name}": name
        for name in ("bool", "bytearray", "complex", "float", "int", "list", "long", "object", "range", "slice", "str")
    },
    **dict.fromkeys(("builtins.tuple", "builtins.type", "builtins.unicode", "builtins.xrange"), "type"),
    **dict.fromkeys(("builtins.Ellipsis", "builtins.NotImplemented"), "constant"),
    **{
        f"numpy{core}.{name}": kind
        for core in (".core", "._core")
        for name, kind in (
            ("multiarray.scalar", "numpy scalar"),
            ("multiarray._reconstruct", "ndarray"),
            ("numeric._frombuffer", "ndarray"),
        )
    },
    "collections.deque": "deque",
    "numpy.dtype": "dtype",
    "numpy.ndarray": "ndarray",
    "numpy.random._pickle.__bit_generator_ctor": "numpy generator",
    "numpy.random._pickle.__generator_ctor": "numpy generator",
    "numpy.random._pickle.__randomstate_ctor": "numpy generator",
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence": "numpy generator",
    "torch.Generator": "generator",
    "torch._C.Generator": "generator",
    "torch.device": "device",
    "torch.serialization._get_layout": "layout",
    "torch.storage.TypedStorage": "storage",
    "torch.storage._TypedStorage": "storage",
    **{
        f"torch.{name}": kind
        for kind, names in (
            ("qscheme", "per_tensor_affine per_tensor_symmetric per_channel_affine per_channel_symmetric"),
            ("qscheme", "per_channel_affine_float_qparams"),
            ("layout", "strided sparse_coo sparse_csr sparse_csc sparse_bsr sparse_bsc jagged"),
            ("memory_format", "contiguous_format preserve_format channels_last channels_last_3d"),
        )
        for name in names.split()
    },
}
_NUMPY_TYPE = re.compile(r"(float|u?int|complex|bool|str|bytes|void|object|datetime|timedelta)(\d+|_)?", re.ASCII)
_METHOD = Inert("method")
_DISTRIBUTED = ("DTensor", "ShardedTensor")
_MODELS = ("torch.nn.", "torchvision.models.", "timm.models.", "transformers.models.", "models.")


class TorchEnvironment:
    """The environment of one file; ``storages`` are those that its pickle mentions, by key, in their order."""

    def __init__(self, *, legacy: bool = False) -> None:
        self.storages: dict[str, StorageRef] = {}
        self._legacy = legacy

    def find(self, module: str, name: str) -> object:
        """What stands for a name. Raises Refusal where it is not known to be data."""
        module = _RENAMED.get(module, module)
        full = f"{module}.{name}"
        if full == "builtins.getattr":
            return Global(full, _attribute)
        if full in CONSTRUCTORS:
            return Global(full, CONSTRUCTORS[full])
        if module == "torch" or module.startswith("torch."):
            if name in _STORAGES:
                code = _CODES[_STORAGES[name]]
                return StorageType(name, code, dtypes.ALL[code].itemsize)
            if name in _QUANTIZED:
                return StorageType(name, -1, _QUANTIZED[name])
            if module == "torch" and _DTYPE.fullmatch(name):
                return TorchType(name, _CODES.get(name, -1))
            if module.startswith("torch.distributed.") and name in _DISTRIBUTED:
                return Global(full, unread("distributed: save a full state dict"))
        kind = _inert_kind(module, name)
        if kind is None:
            raise Refusal(_refusal(module, name))
        return Global(full, inert(kind))

    def persistent(self, saved_id: object) -> StorageRef:
        """The storage that a persistent id of torch names."""
        count = 6 if self._legacy else 5
        if type(saved_id) is not tuple or not saved_id or saved_id[0] not in ("storage", "module"):
            raise Refusal("the pickle has a persistent id that torch does not write")
        if saved_id[0] == "module":
            raise Refusal("the pickle holds a model: load it where its code is trusted and save `model.state_dict()`")
        if len(saved_id) != count:
            raise Refusal(f"the pickle has a storage of {len(saved_id)} values, not {count}")
        kind, key, numel = saved_id[1], saved_id[2], saved_id[4]
        if type(kind) is not StorageType or type(key) is not str or len(key) > _LONGEST_KEY or not is_text(key):
            raise Refusal("the pickle has a storage whose type or key is none")
        if type(numel) is not int or not 0 <= numel * kind.itemsize <= LARGEST:
            raise Refusal("the pickle has a storage whose size is none")
        if self._legacy and saved_id[5] is not None:
            raise Refusal("the pickle has views of storages, as torch before 0.4 wrote: save it again with a later one")
        storage = StorageRef(key, kind.code, kind.itemsize, numel * kind.itemsize)
        known = self.storages.setdefault(key, storage)
        if known.nbytes != storage.nbytes:
            sizes = f"{known.nbytes} and {storage.nbytes} bytes"
            raise Refusal(f"the pickle gives storage {clip(key)!r} two sizes, {sizes}")
        if known != storage:
            # torch.save refuses to write this, and torch.load takes the first type for all.
            raise Refusal(f"the pickle gives storage {clip(key)!r} two types")
        return known


def _inert_kind(module: str, name: str) -> str | None:
    """What to call an inert object of this class, or None if the name is not allowed."""
    kind = _INERT.get(f"{module}.{name}")
    if kind is not None:
        return kind
    if module == "numpy" and _NUMPY_TYPE.fullmatch(name):
        return "numpy scalar"
    if f"{module}.".startswith(_CLASSES_OF) and _CLASS.fullmatch(name):
        return clip(name.rpartition(".")[2], 60)
    return None


def _attribute(args: tuple[object, ...]) -> object:
    """``getattr(class, name)``: how protocol 2 writes the methods that MMEngine keeps in its logs."""
    if len(args) == 2 and type(args[0]) is Global and args[0].name.startswith(_CLASSES_OF) and type(args[1]) is str:
        return _METHOD
    raise Refusal(_refusal("builtins", "getattr"))


def _refusal(module: str, name: str) -> str:
    full = clip(f"{module}.{name}", 120)
    if module == "__main__" or f"{module}.".startswith(_MODELS):
        return f"the pickle holds an object of {full}: load it where its code is trusted, save `model.state_dict()`"
    root = module.partition(".")[0]
    if root in sys.stdlib_module_names or root in ("nt", "posix"):
        return f"the pickle calls {full}, which is not data: refused"
    return f"the pickle needs {full}, which is not known to be data: convert the file where its code is trusted"
