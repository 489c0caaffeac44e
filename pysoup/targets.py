"""Where the result of a running average goes: new tensors, or those of ``out``, all checked before one is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import ops
from .aliasing import refuse_overlap, ties, without
from .columns import ACC_F32, accumulator
from .errors import IncompatibleError
from .ingredient import Ingredient, Layout, Slot
from .tables import Outputs, StateDict, as_mapping, module_state


class Targets:
    """``flats[i]`` takes the reals of slot i, in C order: the target's memory, or a buffer beside it.

    Each is where its sum has to run, on the device in ``accelerators`` (None: the CPU), which is ``run_on``, or the one
    with kernels that has the tensor of ``out``. Without ``out`` the targets are new ones there. ``parts`` has the slots
    of each device. Raises :class:`IncompatibleError` where ``out`` does not fit the layout or the ``accumulators`` of
    the slots, where its tensors share memory that the model's do not, and where they overlap ``ingredient``, which is
    taken to the device if there is one for all.
    """

    def __init__(
        self,
        layout: Layout,
        accumulators: Sequence[int],
        out: torch.nn.Module | StateDict | None,
        ingredient: Ingredient | None,
        run_on: ops.Accelerator | None = None,
    ) -> None:
        self._layout = layout
        self._out = out
        self._outputs = None
        if out is not None:  # what is left out of the average stays as it is there
            self._outputs = Outputs.of(layout.filter.only(module_state(out)), layout.names, "the averager")
        tensors = _fresh(layout, run_on) if self._outputs is None else self._outputs.tensors
        self._tensors = dict(zip(layout.names, tensors, strict=True))
        averaged = [self._tensors[slot.name] for slot in layout.slots]
        self.accelerators = [run_on or ops.kernels_for(tensor) for tensor in averaged]
        self.parts: dict[ops.Accelerator | None, list[int]] = {}
        for index, accelerator in enumerate(self.accelerators):
            self.parts.setdefault(accelerator, []).append(index)
        if ingredient is not None and len(self.parts) == 1:
            ingredient.take_to(*self.parts)
        if self._outputs is not None:
            if not self._are_the_models():
                for slot, acc in zip(layout.slots, accumulators, strict=True):
                    self._check(slot, acc)
                self._check_kept()
            self._refuse_overlap(dict(zip(layout.names, self._outputs.memory, strict=True)), ingredient)
        self.flats = list(map(_flat, averaged, self.accelerators))

    def _are_the_models(self) -> bool:
        """Whether there is nothing to check, since all shapes and types are those of the model: the common case."""
        wanted = {name: (slot.shape, slot.torch_dtype) for slot in self._layout.slots for name in slot.names}
        wanted |= self._layout.kept
        tensors = list(self._tensors.values())
        dtypes = ops.plain_dtypes([tensors]) if tensors else []
        return dtypes is not None and all(
            tensor.shape == wanted[name][0] and dtype == wanted[name][1]
            for (name, tensor), dtype in zip(self._tensors.items(), dtypes, strict=True)
        )

    def _check(self, slot: Slot, acc: int) -> None:
        model, first = ops.dtype_of(torch.empty(0, dtype=slot.torch_dtype)), self._tensors[slot.name]
        for name in slot.names:
            target = self._tensors[name]
            ops.refuse_special(target, name, "out")
            _check_shape(name, target, slot.shape)
            dtype = ops.dtype_of(target)
            if dtype.kind != model.kind or (dtype.kind == "complex" and dtype != model):
                _refuse_dtype(name, dtype, f"{model} as in the model")
            if target.dtype != first.dtype:
                _refuse_dtype(name, dtype, f"{ops.dtype_of(first)} as {slot.name!r}, to which it is tied in the model")
            if acc == ACC_F32 and accumulator([slot.dtype], dtype) != ACC_F32:
                expected = f"{slot.dtype}: the sum is kept in f32"
                raise IncompatibleError("out has a wider dtype", tensor=name, found=dtype, expected=expected)

    def _check_kept(self) -> None:
        for name, (shape, dtype) in self._layout.kept.items():
            target = self._tensors[name]
            ops.refuse_special(target, name, "out")
            _check_shape(name, target, shape)
            if target.dtype != dtype:
                expected = f"{ops.dtype_of(torch.empty(0, dtype=dtype))} as in the model"
                _refuse_dtype(name, ops.dtype_of(target), expected)

    def _refuse_overlap(self, memory: Mapping[str, Tensor], ingredient: Ingredient | None) -> None:
        slots = self._layout.slots
        tied_to = {name: slot.name for slot in slots for name in slot.names}
        tied_to |= {name: group[0] for name, group in self._layout.kept_ties.items()}
        names = [slot.name for slot in slots] + [alias for slot in slots for alias in slot.aliases]
        names += self._layout.kept
        outs = [memory[name] for name in names]
        tied = ties(outs)
        for i, j in tied.items():
            if names[i] not in tied_to or tied_to[names[i]] != tied_to.get(names[j]):
                expected = f"memory other than that of {names[j]!r}"
                raise IncompatibleError("tied in out, not in the model", file="out", tensor=names[i], expected=expected)
        # The slots come first, so that they stay where the ingredient has them.
        # On several devices, as they are given: to make copies of all for one device would be for nothing.
        columns = [] if ingredient is None else [ingredient.tensors if len(self.parts) == 1 else ingredient.given]
        labels = [] if ingredient is None else [ingredient.label]
        refuse_overlap(without(tied, names), without(tied, outs), columns, labels)

    def tensor(self, name: str) -> Tensor:
        """The target of a name."""
        return self._tensors[name]

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the buffers among ``flats``: for targets that are not contiguous, or not where the sum runs."""
        own = ops.addresses([self._tensors[slot.name] for slot in self._layout.slots])
        pairs = zip(own, ops.addresses(self.flats), self.flats, strict=True)
        return sum(flat.nbytes for target, address, flat in pairs if target != address)

    def deliver(self, integers: Mapping[str, Tensor]) -> dict[str, Any]:
        """Copies what was not written where it belongs, tells autograd, and returns the result."""
        for slot, flat in zip(self._layout.slots, self.flats, strict=True):
            value = torch.view_as_complex(flat) if slot.torch_dtype.is_complex else flat
            for name in slot.names:
                target = self._tensors[name]
                if target.numel() and ops.addresses([target]) != ops.addresses([flat]):
                    ops.write(target, value)
        ops.write_from_host([self._tensors[name] for name in integers], list(integers.values()))
        ops.bump_versions(list(self._tensors.values()))
        if self._out is None or self._outputs is None:
            return self._tensors
        self._outputs.finish()
        return as_mapping(self._out)


def _fresh(layout: Layout, accelerator: ops.Accelerator | None) -> list[Tensor]:
    """New tensors for all names; tied names share one."""
    device = None if accelerator is None else accelerator.device
    fresh = {name: torch.empty(shape, dtype=dtype, device=device) for name, (shape, dtype) in layout.kept.items()}
    for slot in layout.slots:
        fresh.update(dict.fromkeys(slot.names, ops.fresh(slot.shape, slot.torch_dtype, device)))
    return [fresh[name] for name in layout.names]


def _flat(tensor: Tensor, accelerator: ops.Accelerator | None) -> Tensor:
    """The tensor's own memory where it can be written directly, else a contiguous buffer of its size."""
    tensor = tensor.detach()
    is_there = tensor.is_cpu if accelerator is None else accelerator.holds(tensor)
    plain = tensor.is_contiguous() and not tensor.is_neg() and not tensor.is_conj()
    if is_there and plain:
        return torch.view_as_real(tensor) if tensor.is_complex() else tensor
    shape = (*tensor.shape, 2) if tensor.is_complex() else tensor.shape
    return torch.empty(shape, dtype=tensor.real.dtype, device=None if accelerator is None else accelerator.device)


def _check_shape(name: str, target: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(target.shape) != shape:
        found, expected = list(target.shape), f"{list(shape)} as in the model"
        raise IncompatibleError("shape differs", file="out", tensor=name, found=found, expected=expected)


def _refuse_dtype(name: str, found: object, expected: str) -> None:
    raise IncompatibleError("dtype differs", file="out", tensor=name, found=found, expected=expected)
