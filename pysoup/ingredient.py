"""One model as a source of a running average: tensors in memory, or byte ranges of its files."""

from __future__ import annotations

import sys
import warnings
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from . import ops
from .aliasing import same_bits
from .checkpoint import Checkpoint, TensorEntry, align_names_to, open_checkpoint, refuse_scaled_f8
from .checkpoint.agree import Keys
from .columns import HOST, MEMORY, SourceColumn
from .dtypes import DType
from .errors import IncompatibleError, SoupError
from .file_plan import Member, read_error, real_parts
from .names import EVERY_NAME, NameFilter
from .tables import StateDict, column, is_inexact, some_names

_COMPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class Slot:
    """One averaged tensor: ``elements`` counts reals of type ``dtype`` (a complex number is two of them).

    ``aliases`` are further names tied to it; an ingredient may use any of the names.
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    elements: int
    dtype: DType
    torch_dtype: torch.dtype

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)


@dataclass(frozen=True)
class Layout:
    """What every ingredient must have: the averaged slots, and the tensors without a mean by name."""

    slots: tuple[Slot, ...]
    kept: dict[str, tuple[tuple[int, ...], torch.dtype]]
    names: tuple[str, ...]
    """All names, aliases too, in the order of the model."""
    kept_ties: dict[str, tuple[str, ...]]
    """For tensors without a mean that share one memory: each of the names -> all of them."""
    accelerator: ops.Accelerator | None = None
    """The device with kernels that has all averaged tensors of a model in memory, if there is one."""
    filter: NameFilter = EVERY_NAME
    """What the patterns leave out is in none of these: a model keeps its own, ingredients need not have it."""

    def kept_names(self, name: str) -> tuple[str, ...]:
        """The names under which an ingredient may have a tensor without a mean: its own, then those tied to it."""
        return (name, *(other for other in self.kept_ties.get(name, ()) if other != name))

    @classmethod
    def of(cls, spec: Any, names: NameFilter = EVERY_NAME) -> Layout:
        """The layout of a module, a state dict or a checkpoint; names that share one memory become one slot.

        What ``names`` does not take is no part of it; of tied names it has to take all or none. Raises
        :class:`IncompatibleError` where it takes nothing.
        """
        accelerator = None
        if isinstance(spec, Checkpoint):
            rows = [(n, spec.entry(n).shape, ops.torch_dtype(spec.entry(n).dtype), n) for n in spec]
            rows += [(a, spec.entry(n).shape, ops.torch_dtype(spec.entry(n).dtype), n) for a, n in spec.aliases.items()]
        else:
            state = spec.state_dict() if isinstance(spec, torch.nn.Module) else spec
            if not isinstance(state, Mapping):
                expected = "a module, a state dict, a Checkpoint or a path"
                raise SoupError("not a model", found=type(spec).__name__, expected=expected)
            tensors = column(state, list(state), "the averager's model", "itself")
            for name, tensor in zip(state, tensors, strict=True):
                ops.refuse_special(tensor, name)
            rows = [(n, tuple(t.shape), t.dtype, _identity(n, t)) for n, t in zip(state, tensors, strict=True)]
            accelerator = ops.kernels_for_all([t for t in tensors if is_inexact(t)])
        groups: dict[Any, list[str]] = {}
        for name, _, _, identity in rows:
            groups.setdefault(identity, []).append(name)
        names.check_ties(groups.values())
        every, rows = rows, [row for row in rows if names.takes(row[0])]
        if every and not rows:
            raise IncompatibleError("include and exclude leave no tensor to average", found=names.text)
        slots, kept, kept_ties = [], {}, {}
        for name, shape, dtype, identity in rows:
            if not (dtype.is_floating_point or dtype.is_complex):
                kept[name] = (tuple(shape), dtype)
                if len(groups[identity]) > 1:
                    kept_ties[name] = tuple(groups[identity])
            elif groups[identity][0] == name:
                real, elements = real_parts(ops.dtype_of(torch.empty(0, dtype=dtype)), torch.Size(shape).numel())
                slots.append(Slot(name, tuple(groups[identity][1:]), tuple(shape), elements, real, dtype))
        return cls(tuple(slots), kept, tuple(row[0] for row in rows), kept_ties, accelerator, names)


def _identity(name: str, tensor: Tensor) -> Any:
    if tensor.numel() == 0:
        return name
    return (*ops.addresses([tensor]), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


class Ingredient:
    """A source matched against a layout; a context manager, since its files are open while it is used."""

    def __init__(self, label: str, layout: Layout) -> None:
        self.label = label
        self.layout = layout
        self.dtypes: list[DType] = []
        self.integers: dict[str, Tensor] = {}
        self._given: list[Tensor] = []
        self._flats: dict[int, Tensor] = {}
        self._accelerator: ops.Accelerator | None = None
        self._entries: list[TensorEntry] = []
        self._member: Member | None = None

    @classmethod
    def of(cls, source: Any, layout: Layout, label: str = "the ingredient") -> Ingredient:
        """A module, a state dict, a :class:`Checkpoint` or a path. Raises where it does not fit the layout.

        ``label`` is what errors call a source that has no path.
        """
        if isinstance(source, torch.nn.Module):
            source = source.state_dict()
        if isinstance(source, Mapping):
            return cls._from_memory(source, layout, label)
        checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
        return cls._from_file(checkpoint, layout)

    @classmethod
    def _from_memory(cls, state: StateDict, layout: Layout, label: str) -> Ingredient:
        self = cls(label, layout)
        state = layout.filter.only(state)
        chosen = self._match(state)
        tensors = dict(zip(state, column(state, list(state), self.label, "itself"), strict=True))
        for slot, name in zip(layout.slots, chosen, strict=True):
            tensor = tensors[name]
            self._check(slot.name, tensor, slot.shape, slot.torch_dtype)
            for alias in slot.names:
                if alias in tensors and alias != name and not same_bits(tensors[alias], tensor):
                    raise self._untied(alias, name)
            self._given.append(tensor)
            self.dtypes.append(real_parts(ops.dtype_of(tensor), 0)[0])
        kept = [tensors[next(n for n in layout.kept_names(name) if n in tensors)] for name in layout.kept]
        for (name, (shape, dtype)), tensor in zip(layout.kept.items(), kept, strict=True):
            self._check(name, tensor, shape, dtype)
        for name, tensor in zip(layout.kept, ops.on_host(kept), strict=True):
            self._keep(name, tensor)
        return self

    @classmethod
    def _from_file(cls, checkpoint: Checkpoint, layout: Layout) -> Ingredient:
        self = cls(str(checkpoint.path), layout)
        refuse_scaled_f8(checkpoint)
        # With patterns, the names that both have decide: the model's others may be other ones here.
        keys: Keys = "intersection" if layout.filter else "same"
        (checkpoint,), notes = align_names_to(layout.names, [checkpoint], "the model", keys)
        for note in notes:
            warnings.warn(note, stacklevel=_callers_level())
        if layout.filter:
            checkpoint = checkpoint.only(layout.filter.takes)
        self._member = Member(checkpoint)
        names = dict.fromkeys([*checkpoint, *checkpoint.aliases])
        ties: list[tuple[str, TensorEntry, TensorEntry]] = []
        for slot, name in zip(layout.slots, self._match(names), strict=True):
            entry = checkpoint.entry(name)
            others = [(alias, checkpoint.entry(alias)) for alias in slot.aliases if alias in names]
            ties += [(alias, other, entry) for alias, other in others if other.name != entry.name]
            self._check_like(slot.name, entry.shape, entry.dtype, slot.shape, slot.torch_dtype)
            self._entries.append(entry)
            self.dtypes.append(real_parts(entry.dtype, 0)[0])
        for name, (shape, dtype) in layout.kept.items():
            entry = checkpoint.entry(next(n for n in layout.kept_names(name) if n in names))
            self._check_like(name, entry.shape, entry.dtype, shape, dtype)
            self._keep(name, checkpoint.tensor(entry.name))
        if ties:
            self._refuse_untied(ties)
        return self

    def _keep(self, name: str, value: Tensor) -> None:
        """Takes a tensor without a mean; so what is tied in the model stays equal whatever the policy makes of it."""
        for other in self.layout.kept_names(name):
            if other in self.integers and not torch.equal(self.integers[other], value):
                raise self._untied(name, other)
        self.integers[name] = value

    def _refuse_untied(self, ties: Sequence[tuple[str, TensorEntry, TensorEntry]]) -> None:
        """Raises where a file stores tensors (name, its entry, the one that is used) apart that are not the same."""
        with self:
            for alias, other, used in ties:
                if (other.dtype, other.shape) != (used.dtype, used.shape):
                    raise self._untied(alias, used.name)
                for start in range(0, used.nbytes, _COMPARE_BYTES):
                    size = min(_COMPARE_BYTES, used.nbytes - start)
                    if self.member.read(other, start, size) != self.member.read(used, start, size):
                        raise self._untied(alias, used.name)

    def _untied(self, name: str, other: str) -> IncompatibleError:
        found = f"values other than those of {other!r}"
        return IncompatibleError("tied in the model, not here", file=self.label, tensor=name, found=found)

    def _match(self, names: Mapping[str, object]) -> list[str]:
        """For each slot the name under which it is here; all names must be accounted for."""
        chosen = [next((n for n in slot.names if n in names), None) for slot in self.layout.slots]
        lacks = [s.name for s, n in zip(self.layout.slots, chosen, strict=True) if n is None]
        lacks += [n for n in self.layout.kept if not any(other in names for other in self.layout.kept_names(n))]
        known = {n for slot in self.layout.slots for n in slot.names} | set(self.layout.kept)
        extra = [n for n in names if n not in known]
        if lacks or extra:
            parts = [
                f"{word} {some_names(which)}" for word, which in (("lacks", lacks), ("has in addition", extra)) if which
            ]
            raise IncompatibleError(
                "names differ", file=self.label, found="; ".join(parts), expected="the model's names"
            )
        return [n for n in chosen if n is not None]

    def _check(self, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        ops.refuse_special(tensor, name, self.label)
        self._check_like(name, tuple(tensor.shape), ops.dtype_of(tensor), shape, dtype)

    def _check_like(
        self, name: str, shape: tuple[int, ...], dtype: DType, wanted: tuple[int, ...], model: torch.dtype
    ) -> None:
        if shape != wanted:
            raise IncompatibleError(
                "shape differs",
                file=self.label,
                tensor=name,
                found=list(shape),
                expected=f"{list(wanted)} as in the model",
            )
        model_dtype = ops.dtype_of(torch.empty(0, dtype=model))
        if dtype.kind != model_dtype.kind or (dtype.kind != "float" and dtype != model_dtype):
            raise IncompatibleError(
                "dtype differs", file=self.label, tensor=name, found=dtype, expected=f"{model_dtype} as in the model"
            )

    def __enter__(self) -> Ingredient:
        if self._member is not None:
            self._member.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._member is not None:
            self._member.close()

    def take_to(self, accelerator: ops.Accelerator | None) -> None:
        """It is to be read by a sum that runs there (None: on the CPU). Done as far as needed at the first use.

        The device's own tensors are read where they are, those of the CPU are carried there by the sum itself.
        """
        if accelerator is not self._accelerator:
            self._accelerator, self._flats = accelerator, {}

    def load(self, device: torch.device | None = None) -> None:
        """Reads the slots of files into memory, on a device or the CPU's; from here on they are read from there.

        Tensors that are in memory already are taken to the device as well.
        """
        if self._member is not None:
            read = self._member.checkpoint.tensor
            self._given = [ops.as_reals(read(entry.name)).to(device or "cpu") for entry in self._entries]
            self._member, self._entries = None, []
        elif device is not None:
            self._given = [tensor.detach().to(device) for tensor in self._given]
        self._flats = {}

    def _flat(self, tensor: Tensor) -> Tensor:
        """The slot's values in C order, on the device of the sum or on the CPU."""
        flat = ops.as_reals(tensor).detach()
        if self._accelerator is None:
            flat = flat.cpu()
        elif not flat.is_cpu:
            flat = flat.to(self._accelerator.device)
        return flat.contiguous()

    def column(self, factors: Sequence[float], rows: Sequence[int] | None = None) -> SourceColumn:
        """The places of all slots, or of those in ``rows``, for one native call; a factor for each of them."""
        rows = range(len(self.dtypes)) if rows is None else rows
        codes = bytearray(self.dtypes[row].native for row in rows)
        if self._member is None:
            flats = self.tensors_of(rows)
            places = [HOST if self._is_apart(flat) else MEMORY for flat in flats]
            return SourceColumn(array("Q", ops.addresses(flats)), array("i", places), codes, array("d", factors))
        result = SourceColumn()
        for row, code, factor in zip(rows, codes, factors, strict=True):
            result.add(*self._member.place(self._entries[row]), code, factor)
        return result

    @property
    def run_on(self) -> ops.Accelerator | None:
        """The device that it was taken to."""
        return self._accelerator

    @property
    def accelerator(self) -> ops.Accelerator | None:
        """The device with kernels that has all its slots in its memory, if there is one."""
        return ops.kernels_for_all(self._given) if self._member is None else None

    def blame(self, error: Any) -> SoupError:
        """What to raise for a native call that could not read it: file and tensor are named."""
        members = [] if self._member is None else [self._member]
        return read_error(error, members) or SoupError(str(error.args[0]), file=self.label)

    @property
    def member(self) -> Member:
        """The files of an ingredient that has some."""
        assert self._member is not None
        return self._member

    @property
    def is_file(self) -> bool:
        """Whether it is read from files, not from memory."""
        return self._member is not None

    @property
    def is_staged(self) -> bool:
        """Whether a sum on a device has to carry some of it there."""
        return self.is_staged_in(range(len(self.dtypes)))

    def is_staged_in(self, rows: Sequence[int]) -> bool:
        """The same of a sum of these slots."""
        return self.is_file or any(map(self._is_apart, self.tensors_of(rows)))

    @property
    def given(self) -> list[Tensor]:
        """The slots' tensors of a model in memory, as they are."""
        return self._given

    def _is_apart(self, flat: Tensor) -> bool:
        return self._accelerator is not None and not self._accelerator.holds(flat)

    @property
    def tensors(self) -> list[Tensor]:
        """Where the slots' values are read from, if that is memory; else nothing."""
        return self.tensors_of(range(len(self._given)))

    def tensors_of(self, rows: Sequence[int]) -> list[Tensor]:
        """The same of some slots; a model on several devices reads on each of them what it has there."""
        if self._member is not None:
            return []
        for row in rows:
            if row not in self._flats:
                self._flats[row] = self._flat(self._given[row])
        return [self._flats[row] for row in rows]

    @property
    def scratch_bytes(self) -> int:
        """Bytes on the disk, while the slots are read, for tensors that are not plain bytes in their files."""
        if self._member is None or not self._member.checkpoint.has_forms:
            return 0
        from .checkpoint.unpack import unpacked_bytes

        return unpacked_bytes(self._entries)

    def slot_values(self, index: int) -> Tensor:
        """The values of one slot, flat, in f64, where the sum runs; read whole, for the rare repair of overflows."""
        if self._member is None:
            values = self.tensors[index]
        else:
            values = ops.as_reals(self._member.checkpoint.tensor(self._entries[index].name))
        device = None if self._accelerator is None else self._accelerator.device
        return values.to(device or "cpu").reshape(-1).double()


def _callers_level() -> int:
    """The ``stacklevel`` with which a warning of the calling function shows the line that called this package."""
    package, level = __name__.partition(".")[0], 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    return level
