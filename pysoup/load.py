"""The average of checkpoint files, streamed straight into a live model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from . import _native, ops
from .average import AverageReport, all_shares, open_members
from .buffers import check_budget, cold_buffers, fit_buffers
from .checkpoint import Checkpoint, select_names
from .checkpoint.find import open_found
from .columns import MEMORY, Columns, accumulator
from .errors import BackendError, CheckpointError, SoupError
from .file_plan import Member, check_scratch, read_error, run_staged
from .ingredient import Ingredient, Layout
from .integers import check_policy
from .names import NameFilter, Patterns
from .remarks import input_notes, nonfinite_notes
from .sizes import parse_size
from .tables import column, merge_integers
from .targets import Targets
from .weights import Mix, check_weights, mix


def load_soup_(
    model: torch.nn.Module,
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Checkpoint],
    weights: Sequence[float] | None = None,
    *,
    normalize: bool = True,
    include: Patterns = (),
    exclude: Patterns = (),
    integers: str = "auto",
    entry: str | None = None,
    memory: str | int = "64MiB",
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> AverageReport:
    """Write the average of K checkpoint files into the parameters and buffers of ``model``, in place.

    Like :func:`pysoup.average_checkpoints` (``paths``, ``weights``, ``entry``, ``integers``, ``memory`` and the bits
    are as there), without a file in between and without a second copy of the model: every ingredient is read once, in
    step, through ``memory`` bytes of buffers. The model's dtypes are the result's; the files' types may be others. Its
    names, shapes and ties must be the files' (wrappers such as ``module.`` may differ: see the report's notes). What
    the patterns ``include`` and ``exclude`` leave out (see :class:`pysoup.names.NameFilter`) stays as it is in the
    model; the files need not have it, nor agree on it.
    Autograd is told that the tensors changed. A parameter that is not contiguous (channels-last) takes a buffer of its
    size beside ``memory``; the report's ``memory_bytes`` counts it. Tensors that a file holds strided or compressed are
    unpacked into the system's temporary directory.

    Parameters on a GPU are summed there, after what is queued in torch's current stream, while ``memory`` bytes of
    pinned memory (and as many on the GPU) pass the files on; of a model on several GPUs each gets its part, one after
    the other. On devices without kernels a parameter takes a buffer on the CPU.

    All headers are checked before anything is written. Should a file fail to be read after that, the error says that
    the model holds part of the average. Raises as :func:`pysoup.average_checkpoints` does.
    """
    if not isinstance(model, torch.nn.Module):
        raise SoupError("not a model", found=type(model).__name__, expected="a torch.nn.Module")
    budget, count = parse_size(memory), _native.threads_or_default(threads)
    check_policy(integers)
    names = NameFilter.of(include, exclude)
    layout = Layout.of(model, names)
    refuse_copies(model)
    notes: list[str] = []
    opened = open_found(paths, entry, notes)
    values = check_weights(weights, len(opened))
    checkpoints, matched = select_names(names, list(model.state_dict()), opened, "the model")
    law = mix(values, range(len(checkpoints)), normalize=normalize)
    every = [Ingredient.of(checkpoint, layout) for checkpoint in checkpoints]
    loading = _Loading(model, layout, [every[k] for k in law.members], law, integers)
    notes += [*matched, *input_notes(checkpoints)]
    started = time.perf_counter()
    threads_used, buffer_bytes = loading.run(budget, count, progress)
    return AverageReport(
        output=f"the {type(model).__name__} in memory",
        inputs=[str(c.path) for c in checkpoints],
        weights=all_shares(law.members, law.shares, len(checkpoints)),
        tensors=len(layout.slots) + len(layout.kept),
        parameters=sum(torch.Size(slot.shape).numel() for slot in layout.slots),
        bytes_read=loading.bytes_read,
        bytes_written=sum(flat.numel() * flat.element_size() for flat in loading.targets.flats),
        memory_bytes=buffer_bytes + loading.targets.buffer_bytes,
        threads=threads_used,
        isa=_native.active_isa(),
        device=", ".join(loading.devices),
        seconds=time.perf_counter() - started,
        nonfinite=loading.nonfinite,
        notes=[*notes, *loading.notes],
    )


def average_into(
    model: torch.nn.Module,
    sources: Sequence[tuple[str, Checkpoint | Mapping[str, Any]]],
    weights: Sequence[float] | None = None,
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    integers: str = "auto",
    memory: str | int = "64MiB",
    threads: int | None = None,
) -> list[str]:
    """Write the average of checkpoints and state dicts, each with its name in errors, into ``model``.

    As :func:`load_soup_`, with the same bits, for pools that were opened and checked before. Returns the names of
    tensors with NaN or infinities.
    """
    layout = Layout.of(model, NameFilter.of(include, exclude))
    law = mix(check_weights(weights, len(sources)), range(len(sources)))
    chosen = [sources[k] for k in law.members]
    ingredients = [Ingredient.of(source, layout, label) for label, source in chosen]
    loading = _Loading(model, layout, ingredients, law, check_policy(integers))
    loading.run(parse_size(memory), _native.threads_or_default(threads), None)
    return loading.nonfinite


class _Loading:
    """One average into the memory of a model: checked when made, written by :meth:`run`."""

    def __init__(
        self, model: torch.nn.Module, layout: Layout, ingredients: Sequence[Ingredient], law: Mix, integers: str
    ) -> None:
        labels = [i.label for i in ingredients]
        self.slots = layout.slots
        self.ingredients = ingredients
        self.law = law
        self.integers = {
            name: merge_integers(name, [i.integers[name] for i in ingredients], labels, integers)
            for name in layout.kept
        }
        self.accumulators = [
            accumulator([i.dtypes[s] for i in ingredients], slot.dtype) for s, slot in enumerate(layout.slots)
        ]
        self.targets = Targets(layout, self.accumulators, model, None)
        devices = ["cpu" if a is None else str(a.device) for a in self.targets.accelerators]
        self.devices = list(dict.fromkeys(devices)) or ["cpu"]
        self.bytes_read = sum(
            slot.elements * i.dtypes[s].itemsize for i in ingredients for s, slot in enumerate(layout.slots)
        )
        self.nonfinite: list[str] = []
        self.notes: list[str] = []

    def run(self, budget: int, threads: int, progress: Callable[[int, int], object] | None) -> tuple[int, int]:
        """Reads, averages and writes; returns the most threads and bytes of buffers that were used at a time."""
        members = [i.member for i in self.ingredients if i.is_file]
        check_scratch(sum(i.scratch_bytes for i in self.ingredients))
        with open_members(members):
            parts = self._parts()
            for part in parts:
                check_budget(budget, part.least_memory)
            threads, buffer_bytes = self._run_parts(parts, budget, threads, progress, members)
            self.targets.deliver(self.integers)
            if len(members) == len(self.ingredients):
                self.notes = nonfinite_notes(members, self.nonfinite)
        return threads, buffer_bytes

    def _run_parts(
        self,
        parts: Sequence[Part],
        budget: int,
        threads: int,
        progress: Callable[[int, int], object] | None,
        members: Sequence[Member],
    ) -> tuple[int, int]:
        total, before = sum(part.plan.bytes for part in parts), 0
        used, found = [(1, 0)], []
        try:
            for part in parts:
                report = None if progress is None else lambda done, so_far=before: progress(so_far + done, total)
                needed, rows = part.run(budget, threads, len(self.ingredients), report)
                used.append(needed)
                found += [part.slots[row] for row in rows or ()]
                before += part.plan.bytes
            for member in members:
                member.check_unchanged()
        except _native.load().NativeError as error:
            raise partly(read_error(error, members) or SoupError(str(error.args[0]))) from None
        except CheckpointError as error:
            raise partly(error) from None
        except BackendError as error:
            raise error.but(left="the model may hold part of the average") from None
        self.nonfinite = [self.slots[slot].name for slot in sorted(found)]
        return max(count for count, _ in used), max(nbytes for _, nbytes in used)

    def _parts(self) -> list[Part]:
        """One for each device that has averaged tensors of the model, and one for the CPU, in the model's order."""
        return [self._part(accelerator, slots) for accelerator, slots in self.targets.parts.items()]

    def _part(self, accelerator: ops.Accelerator | None, slots: list[int]) -> Part:
        columns = Columns()
        for slot in slots:
            flat = self.targets.flats[slot]
            at, code = ops.addresses([flat])[0], ops.dtype_of(flat).native
            columns.add(self.slots[slot].elements, at, MEMORY, code, self.accumulators[slot], self.law.divisor)
        sources = []
        for ingredient, factor in zip(self.ingredients, self.law.factors, strict=True):
            ingredient.take_to(accelerator)
            sources.append(ingredient.column([factor] * len(slots), slots))
        return Part(accelerator, slots, columns.plan(sources), [i.tensors_of(slots) for i in self.ingredients])


@dataclass(frozen=True)
class Part:
    """The averaged tensors of a model that are on one device; None is the CPU."""

    accelerator: ops.Accelerator | None
    slots: list[int]
    """Those of the rows of ``plan``."""
    plan: Any
    kept: list[list[torch.Tensor]]
    """What the plan has addresses of."""

    @property
    def least_memory(self) -> int:
        return int(self.plan.minimum_buffer if self.accelerator is None else self.plan.staged_memory)

    def run(
        self, budget: int, threads: int, inputs: int, progress: Callable[[int], object] | None, *, again: bool = False
    ) -> tuple[tuple[int, int], list[int]]:
        """The threads and the bytes of buffers that were used, and the rows that are not finite.

        ``again``: whether the files will be read again, so that the page cache should have them.
        """
        if self.accelerator is not None:
            self.accelerator.make_room(budget)
            device, stream = self.accelerator.index, self.accelerator.stream()
            return run_staged(
                self.plan, budget, threads, inputs, device=device, stream=stream, progress=progress, again=again
            )
        cold = cold_buffers(self.plan, budget, threads, inputs, again=again)
        threads, buffer_bytes = cold or fit_buffers(budget, threads, self.plan.minimum_buffer, inputs)
        rows = _native.run(
            self.plan, threads=threads, buffer_bytes=buffer_bytes, progress=progress, direct=cold is not None
        )
        return (threads, threads * buffer_bytes), rows


def refuse_copies(model: torch.nn.Module) -> None:
    """Raises where a state dict made by hooks holds tensors other than the model's: writing them changes nothing."""
    live = [t for t in (*model.parameters(), *model.buffers()) if not is_lazy(t) and t.layout == torch.strided]
    sizes = dict(zip(ops.addresses(live), (t.nbytes for t in live), strict=True))
    state = model.state_dict()
    tensors = column(state, list(state), "the model", "itself")
    for name, tensor, at in zip(state, tensors, ops.addresses(tensors), strict=True):
        # A view of a part of a parameter begins somewhere within it.
        if tensor.numel() and at not in sizes and not any(0 <= at - begin < size for begin, size in sizes.items()):
            raise SoupError("state_dict() of the model gives copies, which cannot be written through", tensor=name)


def partly(error: SoupError) -> SoupError:
    return error.but(left="the model holds part of the average")
