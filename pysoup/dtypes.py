"""The element types pysoup knows: their names in safetensors, torch and numpy, and their code in the native core."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import SoupError


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    ``name`` is the safetensors name (``"BF16"``), ``itemsize`` is in bytes, ``kind`` is ``"float"``, ``"int"``,
    ``"bool"`` or ``"complex"``. ``native`` is the code of the type in the kernels, or -1 where no kernel does
    arithmetic on it (integers are copied, complex numbers are averaged as pairs of reals).
    """

    name: str
    torch_name: str
    itemsize: int
    kind: str
    native: int = -1

    @property
    def short(self) -> str:
        """The name people type: ``bf16``, ``f32``, ``i64``."""
        return self.name.lower()

    def __str__(self) -> str:
        return self.name


F64 = DType("F64", "float64", 8, "float", 0)
F32 = DType("F32", "float32", 4, "float", 1)
F16 = DType("F16", "float16", 2, "float", 2)
BF16 = DType("BF16", "bfloat16", 2, "float", 3)
F8_E4M3 = DType("F8_E4M3", "float8_e4m3fn", 1, "float", 4)
F8_E5M2 = DType("F8_E5M2", "float8_e5m2", 1, "float", 5)
C64 = DType("C64", "complex64", 8, "complex")
C128 = DType("C128", "complex128", 16, "complex")
BOOL = DType("BOOL", "bool", 1, "bool")
_INTEGERS = tuple(
    DType(f"{letter}{bits}", f"{word}{bits}", bits // 8, "int")
    for letter, word in (("I", "int"), ("U", "uint"))
    for bits in (8, 16, 32, 64)
)

ALL: tuple[DType, ...] = (F64, F32, F16, BF16, F8_E4M3, F8_E5M2, C64, C128, BOOL, *_INTEGERS)
BY_NAME: dict[str, DType] = {d.name: d for d in ALL}
"""safetensors name -> type. C128 is not a safetensors type; it exists in memory and in ``.pt`` files only."""
BY_TORCH_NAME: dict[str, DType] = {d.torch_name: d for d in ALL}

_ALIASES = {"half": F16, "float": F32, "double": F64, "f8_e4m3fn": F8_E4M3, "fp32": F32, "fp16": F16, "fp64": F64}
_FLOATS = {n: d for d in ALL if d.kind == "float" for n in (d.short, d.torch_name)} | _ALIASES


def parse_float(dtype: object) -> DType:
    """The float type meant by ``"bf16"``, ``"bfloat16"``, ``torch.bfloat16``, ``numpy.float32`` or a :class:`DType`.

    Raises :class:`SoupError` for anything else; integers are never an output type of an average.
    """
    if isinstance(dtype, DType):
        if dtype.kind == "float":
            return dtype
        text = dtype.name
    else:
        text = getattr(dtype, "__name__", None) or str(dtype)
        text = text.removeprefix("torch.")
        known = _FLOATS.get(text.lower())
        if known is not None:
            return known
    names = "f64, f32, f16, bf16, f8_e4m3, f8_e5m2"
    raise SoupError("not a float dtype", found=text, expected=f"one of {names}")
