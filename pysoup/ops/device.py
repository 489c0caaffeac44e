"""Devices that the kernels run on: which tensors are theirs, their stream, what is free, what is carried there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import _native


class Accelerator:
    """A CUDA device with kernels. All work is put on torch's current stream there, and not waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.index = int(device.index)

    def holds(self, tensor: Tensor) -> bool:
        """Whether the tensor's memory is this device's."""
        return tensor.device == self.device

    def stream(self) -> int:
        """The handle of torch's current stream."""
        return int(torch.cuda.current_stream(self.device).cuda_stream)

    def empty(self, elements: int, dtype: torch.dtype) -> Tensor:
        """Memory that is not initialised."""
        return torch.empty(elements, dtype=dtype, device=self.device)

    def upload(self, nbytes: int, write: Callable[[int], object]) -> Tensor:
        """The bytes that ``write(address)`` puts into host memory, as a tensor on the device.

        The copy is from pinned memory, which torch keeps until it is done.
        """
        staged = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        write(staged.data_ptr())
        return staged.to(self.device, non_blocking=True)

    def wait(self) -> None:
        """Until the work on the current stream is done."""
        torch.cuda.current_stream(self.device).synchronize()

    def is_capturing(self) -> bool:
        """Whether work is being recorded in a CUDA graph, so that no value can be looked at."""
        with torch.cuda.device(self.device):
            return bool(torch.cuda.is_current_stream_capturing())

    def keep(self, tensor: Tensor) -> None:
        """The tensor's memory is not given to others before the work on the current stream is done."""
        tensor.record_stream(torch.cuda.current_stream(self.device))

    def free_bytes(self) -> int:
        """What can be allocated: what the driver has left, and what torch holds and does not use."""
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(torch.cuda.mem_get_info(self.device)[0]) + int(unused)

    def make_room(self, nbytes: int) -> None:
        """Where the driver has less than that left for others than torch, torch gives back what it does not use."""
        if torch.cuda.mem_get_info(self.device)[0] < nbytes:
            torch.cuda.empty_cache()


_found: dict[torch.device, Accelerator | None] = {}


def kernels_for(where: Tensor | torch.device) -> Accelerator | None:
    """The device of a tensor, if the kernels run there; None for the CPU and for devices that plain torch has to do."""
    device = where.device if isinstance(where, Tensor) else where
    if device in _found:
        return _found[device]
    if device.type != "cuda":
        return None
    if str(device) == "cuda":  # the current one; tensors have its number
        return kernels_for(torch.device("cuda", torch.cuda.current_device()))
    is_rocm = getattr(torch.version, "hip", None) is not None  # its streams are not CUDA's
    usable = not is_rocm and _native.has_kernels(device.index)
    if usable:
        _native.load_kernels(device.index)
    return _found.setdefault(device, Accelerator(device) if usable else None)


def kernels_for_all(tensors: Sequence[Tensor]) -> Accelerator | None:
    """The one device with kernels that has all of them, if there is such a device and a tensor."""
    found = kernels_for(tensors[0]) if tensors else None
    return found if found is not None and all(map(found.holds, tensors)) else None
