"""A state dict in memory, written as one file. Needs torch; imports it when called."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...dtypes import BY_TORCH_NAME, DType
from ...errors import OutputError
from ..strict_json import clip
from .writer import CheckpointWriter

if TYPE_CHECKING:
    import torch

_REFUSED_CLASSES = ("DTensor", "FakeTensor")


def save_state_dict(
    state_dict: Mapping[str, torch.Tensor],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write ``state_dict`` to ``path``, one tensor at a time, published by one rename. Raises OutputError.

    ``path`` ends in ``.safetensors``, or in ``.pt`` or ``.pth`` for what ``torch.load`` reads. Tied tensors (same
    memory, type, shape and strides) are stored once. In a ``.pt`` file all their names share one storage; safetensors
    has no ties, so there the names after the first go into the metadata key ``pysoup.aliases``, and
    :meth:`Checkpoint.state_dict` ties them again. complex128 is for ``.pt`` files only.
    """
    output = Path(path)
    stored: list[tuple[str, DType, tuple[int, ...]]] = []
    aliases: dict[str, str] = {}
    owners: dict[object, str] = {}
    for name, tensor in state_dict.items():
        dtype = _check_tensor(output, name, tensor)
        owner = owners.setdefault(_memory(tensor), name) if tensor.numel() else name
        if owner == name:
            stored.append((name, dtype, tuple(tensor.shape)))
        else:
            aliases[name] = owner
    layout = [(output.name, stored)]
    with CheckpointWriter(output, layout, metadata=metadata, aliases=aliases, overwrite=overwrite) as writer:
        for name, _, _ in stored:
            _write(writer, name, state_dict[name])
        writer.commit()


def _check_tensor(output: Path, name: object, tensor: object) -> DType:
    import torch

    if not isinstance(name, str):
        raise OutputError("state dict key is not a string", file=output, found=repr(name))
    if not isinstance(tensor, torch.Tensor):
        raise OutputError("not a tensor", file=output, tensor=clip(name), found=type(tensor).__name__)
    refused = next((c.__name__ for c in type(tensor).__mro__ if c.__name__ in _REFUSED_CLASSES), None)
    if refused is None:
        flags = {"nested": tensor.is_nested, "quantized": tensor.is_quantized, "meta": tensor.is_meta}
        refused = next((kind for kind, holds in flags.items() if holds), None)
    if refused is None and tensor.layout is not torch.strided:
        refused = str(tensor.layout)
    if refused is not None:
        raise OutputError("tensor has no plain values to write", file=output, tensor=clip(name), found=refused)
    dtype = BY_TORCH_NAME.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None:
        raise OutputError("dtype cannot be stored", file=output, tensor=clip(name), found=tensor.dtype)
    return dtype


def _memory(tensor: torch.Tensor) -> object:
    """Equal for two tensors exactly if they are the same view of the same memory."""
    bits = (tensor.is_conj(), tensor.is_neg())
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), bits)


def _write(writer: CheckpointWriter, name: str, tensor: torch.Tensor) -> None:
    import ctypes

    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    nbytes = plain.numel() * plain.element_size()
    if nbytes:
        # Through the address: numpy, the usual way, has no bf16 and need not be installed.
        writer.write_bytes(name, memoryview((ctypes.c_ubyte * nbytes).from_address(plain.data_ptr())).cast("B"))
