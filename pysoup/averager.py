"""A running average: a prepared plan for training loops, greedy selection and anything that adds one model at a time.

The sum is kept in the accumulator's type and never rounded between steps, so after equal weights the result has the
same bits as :func:`pysoup.average_state_dicts` of the same models in the same order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _native, ops
from .bound import BoundAverage
from .checkpoint import Checkpoint, open_checkpoint
from .columns import ACC_F32, ACC_F64, HOST, MEMORY, Columns, SourceColumn, accumulator
from .dtypes import F32, F64, DType
from .errors import IncompatibleError, SoupError, WeightsError
from .ingredient import Ingredient, Layout, Slot
from .integers import check_policy
from .sizes import parse_size
from .tables import StateDict, merge_integers
from .targets import Targets

# The f32 sum is kept 2^-16 smaller: exact for all types of 16 bits and fewer, and a sum that would overflow f32 on the
# way to a finite mean is not lost. See the contract in csrc/kernels.h.
_F32_SCALE = 2.0**-16
# f64 inputs can overflow f64 itself; for them a second sum is kept that much smaller, and used only where it matters.
_F64_SCALE = 2.0**-64

Source = torch.nn.Module | StateDict | Checkpoint | str | os.PathLike[str]


class Averager:
    """The average of models that arrive one at a time.

    ``spec`` fixes names, shapes and the dtypes of the result: a module, a state dict, a :class:`Checkpoint` or the path
    of one. ``integers`` is the policy for tensors without a mean (see :func:`pysoup.average_state_dicts`). Files are
    streamed through ``memory`` bytes of buffers. Beside the sum (4 bytes a parameter where everything has 16 bits or
    fewer, else 8) nothing is held. Of a model on a CUDA device the sum is there, too, where it takes at most half of
    what is free, else in host memory; the bits do not depend on it.
    """

    def __init__(
        self, spec: Source, *, integers: str = "auto", threads: int | None = None, memory: str | int = "8MiB"
    ) -> None:
        if isinstance(spec, (str, os.PathLike)):
            spec = open_checkpoint(spec)
        self._layout = Layout.of(spec)
        self._integers = check_policy(integers)
        self._threads = _native.threads_or_default(threads)
        self._memory = parse_size(memory)
        self._sum_on: ops.Accelerator | None = None
        self._sum: dict[int, Tensor] = {}
        self._small_sum: Tensor | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets everything added; the memory is kept for the next sum."""
        self.count = 0
        """Ingredients in the sum; one of weight 0 is none."""
        self.total = 0.0
        """Sum of their weights."""
        self._nonfinite: list[int] | Tensor = []
        self._integer_values: dict[str, Tensor] = {}
        self._accumulators: list[int] = []
        self._offsets: list[int] = []
        self._first_dtypes: list[DType] = []

    @property
    def nonfinite(self) -> list[str]:
        """Tensors of the last result or preview that hold NaN or an infinity. Waits for the device that made it."""
        self._nonfinite = ops.rows_of(self._nonfinite)
        return [self._layout.slots[row].name for row in self._nonfinite]

    def add(self, source: Source, weight: float = 1.0) -> None:
        """Adds one model. With weights other than 1 the result is the weighted sum over the sum of the weights.

        A model of weight 0 is only checked (names, shapes, kinds): its weights are not read and it does not count.
        Raises :class:`IncompatibleError` (names, shapes, kinds of tensor) and :class:`CheckpointError` (files).
        An error in the middle of a pass leaves the sum undefined: the averager is reset.
        """
        weight = _checked(weight)
        with Ingredient.of(source, self._layout) as ingredient:
            if weight == 0:
                return
            if self.count == 0:
                self._choose_accumulators(ingredient)
                self._allocate(ingredient)
            ingredient.take_to(self._sum_on)
            self._check_dtypes(ingredient)
            integers = self._merged_integers(ingredient)
            try:
                self._watch_overflow(ingredient)
                self._add_floats(ingredient, weight)
            except BaseException:
                self.reset()
                raise
        self._integer_values = integers
        self.count += 1
        self.total += weight

    def check(self, sources: Mapping[str, Source]) -> None:
        """Raises what adding these models in any order would raise for names, shapes, types, integers.

        A pool is checked so before the first of it is evaluated; no weights are read. Errors name the keys.
        """
        first: Ingredient | None = None
        for label, source in sources.items():
            ingredient = Ingredient.of(source, self._layout, label)
            first = first or ingredient
            for slot, one, other in zip(self._layout.slots, first.dtypes, ingredient.dtypes, strict=True):
                _check_width(slot, one, other, ingredient.label)
            for name, value in ingredient.integers.items():
                merge_integers(name, [first.integers[name], value], [first.label, ingredient.label], self._integers)

    def result(self, out: torch.nn.Module | StateDict | None = None) -> dict[str, Any]:
        """The average so far, each element rounded once to the dtype of ``spec``, or of ``out`` where it is given.

        The result is new and on the device of the sum, or it is ``out``, which may be on any.
        ``out`` (a module or a state dict) is written in place, after all of it was checked: names, shapes, kinds,
        memory that its tensors share. The sum is unchanged: more can be added.
        """
        if self.count == 0:
            raise SoupError("nothing was added to the average")
        return self._finish(None, 0.0, self._integer_values, out)

    def preview(
        self, source: Source, out: torch.nn.Module | StateDict | None = None, weight: float = 1.0
    ) -> dict[str, Any]:
        """What :meth:`result` would be after ``add(source, weight)``: one fused pass, the sum left as it is."""
        weight = _checked(weight)
        with Ingredient.of(source, self._layout) as ingredient:
            if weight == 0:
                return self.result(out)
            if self.count == 0:
                self._choose_accumulators(ingredient)
            self._check_dtypes(ingredient)
            return self._finish(ingredient, weight, self._merged_integers(ingredient), out)

    def bind(
        self,
        state_dicts: Sequence[StateDict | torch.nn.Module],
        weights: Sequence[float] | None = None,
        *,
        out: StateDict | torch.nn.Module | None = None,
    ) -> BoundAverage:
        """Inputs and output fixed once, for an average that is repeated over the same live tensors."""
        return BoundAverage(state_dicts, weights, out=out, integers=self._integers, threads=self._threads)

    def _choose_accumulators(self, ingredient: Ingredient) -> None:
        """The first ingredient's dtypes decide each tensor's accumulator, as they would in one call over all."""
        slots = self._layout.slots
        self._first_dtypes = ingredient.dtypes
        self._accumulators = [accumulator([d], s.dtype) for s, d in zip(slots, ingredient.dtypes, strict=True)]
        sizes = {ACC_F32: 0, ACC_F64: 0}
        self._offsets = []
        for slot, acc in zip(slots, self._accumulators, strict=True):
            self._offsets.append(sizes[acc])
            sizes[acc] += slot.elements
        self._sizes = sizes

    def _allocate(self, ingredient: Ingredient) -> None:
        wide = any(d == F64 for d in ingredient.dtypes)
        sizes = {acc: sums.numel() for acc, sums in self._sum.items()}
        if sizes != self._sizes:
            self._sum, self._small_sum = {}, None
            self._sum_on = self._place_of_sum(wide)
            self._sum = {acc: self._new_sum(acc) for acc in self._sizes}
        self._small_sum = self._new_sum(ACC_F64).zero_() if wide else None

    def _new_sum(self, acc: int) -> Tensor:
        dtype = torch.float32 if acc == ACC_F32 else torch.float64
        return ops.fresh([self._sizes[acc]], dtype, None if self._sum_on is None else self._sum_on.device)

    def _place_of_sum(self, wide: bool) -> ops.Accelerator | None:
        """The model's device if the sum takes at most half of what is free on it: activations need room beside it."""
        needed = 4 * self._sizes[ACC_F32] + (16 if wide else 8) * self._sizes[ACC_F64]
        home = self._layout.accelerator
        return home if home is not None and needed <= home.free_bytes() // 2 else None

    def _watch_overflow(self, ingredient: Ingredient) -> None:
        """Starts the smaller sum with the first f64 model, from a sum of others, which is finite: scaling is exact."""
        if self._small_sum is None and any(d == F64 for d in ingredient.dtypes):
            self._small_sum = self._sum[ACC_F64] * _F64_SCALE

    def _check_dtypes(self, ingredient: Ingredient) -> None:
        for slot, one, other in zip(self._layout.slots, self._first_dtypes, ingredient.dtypes, strict=True):
            _check_width(slot, one, other, ingredient.label)

    def _sum_column(self, factor_f32: float, place: int = MEMORY) -> SourceColumn:
        """The running sum as a source or a destination; ``factor_f32`` undoes the scale of the f32 part."""
        starts = {acc: ops.addresses([buffer])[0] for acc, buffer in self._sum.items()}
        sums = SourceColumn()
        for acc, offset in zip(self._accumulators, self._offsets, strict=True):
            if acc == ACC_F32:
                sums.add(starts[acc] + 4 * offset, place, F32.native, factor_f32)
            else:
                sums.add(starts[acc] + 8 * offset, place, F64.native, 1.0)
        return sums

    def _add_floats(self, ingredient: Ingredient, weight: float) -> None:
        sums = self._sum_column(1.0)
        factors = [weight * _F32_SCALE if acc == ACC_F32 else weight for acc in self._accumulators]
        self._accumulate(ingredient, sums, factors)
        if self._small_sum is None:
            return
        start = ops.addresses([self._small_sum])[0]
        small = SourceColumn()
        for acc, offset in zip(self._accumulators, self._offsets, strict=True):
            # Tensors with an f32 sum cannot overflow and have no place here; `only` leaves them out.
            wide = acc == ACC_F64
            small.add(start + 8 * offset if wide else 0, MEMORY, (F64 if wide else F32).native, 1.0)
        self._accumulate(ingredient, small, [weight * _F64_SCALE] * len(factors), only=ACC_F64)

    def _accumulate(
        self, ingredient: Ingredient, sums: SourceColumn, factors: Sequence[float], only: int | None = None
    ) -> None:
        """``sums += factors * ingredient`` in one native call; ``only`` leaves out the other accumulator's tensors."""
        target = Columns()
        for slot, at, dtype, acc in zip(self._layout.slots, sums.at, sums.dtype, self._accumulators, strict=True):
            elements = slot.elements if only in (None, acc) else 0
            target.add(elements, at, MEMORY, dtype, acc, 1.0)
        sources = [sums] if self.count else []
        ingredient.run(target.plan([*sources, ingredient.column(factors)]), self._threads, self._memory)

    def _merged_integers(self, ingredient: Ingredient) -> dict[str, Tensor]:
        if not self.count:
            return {name: value.clone() for name, value in ingredient.integers.items()}
        labels = ["the ingredients so far", ingredient.label]
        return {
            name: merge_integers(name, [self._integer_values[name], value], labels, self._integers)
            for name, value in ingredient.integers.items()
        }

    def _finish(
        self, ingredient: Ingredient | None, weight: float, integers: Mapping[str, Tensor], out: Any
    ) -> dict[str, Any]:
        divisor = self.total + weight
        if divisor == 0:
            raise WeightsError("weights cannot be normalised", found="sum 0", expected="a finite sum other than 0")
        targets = Targets(self._layout, self._accumulators, out, ingredient, self._run_on(out))
        overflowed = {i: self._quotient(i, targets) for i in self._overflowed()}
        columns = Columns()
        for i, (slot, acc) in enumerate(zip(self._layout.slots, self._accumulators, strict=True)):
            flat = overflowed.get(i, targets.flats[i])
            columns.add(slot.elements, ops.addresses([flat])[0], MEMORY, ops.dtype_of(flat).native, acc, divisor)
        apart = targets.accelerator is not None and targets.accelerator is not self._sum_on
        sources = [self._sum_column(1.0 / _F32_SCALE, HOST if apart else MEMORY)] if self.count else []
        staged = apart and bool(self.count)
        if ingredient is None:
            self._nonfinite = ops.run_plan(
                columns.plan(sources), targets.accelerator, threads=self._threads, memory=self._memory, staged=staged
            )
        else:
            plan = columns.plan([*sources, ingredient.column([weight] * len(targets.flats))])
            self._nonfinite = ingredient.run(plan, self._threads, self._memory, staged=staged)
        for i, quotient in overflowed.items():
            mended = self._mended(i, quotient, ingredient, weight, divisor)
            ops.weighted_sum([[mended]], [1.0], [targets.flats[i].view(-1)], 1.0, threads=self._threads)
            others = [row for row in ops.rows_of(self._nonfinite) if row != i]
            whole = bool(torch.isfinite(targets.flats[i].double()).all())
            self._nonfinite = others if whole else sorted([*others, i])
        return targets.deliver(integers)

    def _run_on(self, out: Any) -> ops.Accelerator | None:
        """The device of the sum; before there is one, for new tensors, the model's. None: where ``out`` is."""
        if self.count:
            return self._sum_on
        return self._layout.accelerator if out is None else None

    def _quotient(self, index: int, targets: Targets) -> Tensor:
        device = None if targets.accelerator is None else targets.accelerator.device
        return torch.empty(self._layout.slots[index].elements, dtype=torch.float64, device=device)

    def _overflowed(self) -> list[int]:
        """The slots with sums of f64 inputs that are not finite, in f64 itself. Reads those sums once."""
        if self._small_sum is None or not self.count:
            return []
        wide = [i for i, acc in enumerate(self._accumulators) if acc == ACC_F64]
        return [i for i in wide if not bool(torch.isfinite(self._part(self._sum[ACC_F64], i)).all())]

    def _part(self, sums: Tensor, index: int) -> Tensor:
        begin = self._offsets[index]
        return sums[begin : begin + self._layout.slots[index].elements]

    def _mended(
        self, index: int, quotient: Tensor, ingredient: Ingredient | None, weight: float, divisor: float
    ) -> Tensor:
        """A slot's f64 quotients; where the sum overflowed, they are taken from the second, smaller sum."""
        assert self._small_sum is not None
        small = self._part(self._small_sum, index).to(quotient.device)
        if ingredient is not None:
            total = torch.empty_like(small)
            values = ingredient.slot_values(index)
            ops.weighted_sum([[small], [values]], [1.0, weight * _F64_SCALE], [total], 1.0, threads=self._threads)
            small = total
        return torch.where(torch.isfinite(quotient), quotient, small / divisor / _F64_SCALE)


def _check_width(slot: Slot, first: DType, dtype: DType, label: str) -> None:
    """The first ingredient decides in what a tensor is summed; later ones must need the same, in any order."""
    if accumulator([dtype], slot.dtype) != accumulator([first], slot.dtype):
        what = f"{'wider' if dtype.itemsize > first.itemsize else 'narrower'} than the first"
        expected = f"a type that is summed as the first's {first} is"
        raise IncompatibleError(what, file=label, tensor=slot.name, found=dtype, expected=expected)


def _checked(weight: float) -> float:
    try:
        value = float(weight)
    except (TypeError, ValueError):
        raise WeightsError("weight must be a number", found=repr(weight)) from None
    if not math.isfinite(value):
        raise WeightsError("weight is not finite", found=value)
    return value
