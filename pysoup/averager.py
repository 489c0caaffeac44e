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
from .columns import ACC_F32, ACC_F64, MEMORY, Columns, SourceColumn, accumulator
from .dtypes import F64, DType
from .errors import IncompatibleError, SoupError, WeightsError
from .ingredient import Ingredient, Layout, Slot
from .integers import check_policy
from .names import NameFilter, Patterns
from .running_sum import SMALL_SCALE, RunningSum, offsets_of
from .sizes import parse_size
from .tables import StateDict, merge_integers
from .targets import Targets

# The f32 sum is kept 2^-16 smaller: exact for all types of 16 bits and fewer, and a sum that would overflow f32 on the
# way to a finite mean is not lost. See the contract in csrc/kernels.h.
_F32_SCALE = 2.0**-16

Source = torch.nn.Module | StateDict | Checkpoint | str | os.PathLike[str]


class Averager:
    """The average of models that arrive one at a time.

    ``spec`` fixes names, shapes and the dtypes of the result: a module, a state dict, a :class:`Checkpoint` or the path
    of one. ``include`` and ``exclude`` are patterns on the names (see :class:`pysoup.names.NameFilter`): what they
    leave out is in no new result, stays as it is in ``out``, and models need not have it. ``integers`` is the policy
    for tensors without a mean (see :func:`pysoup.average_state_dicts`). Files are streamed through ``memory`` bytes of
    buffers. Beside the sum (4 bytes a parameter where everything has 16 bits or fewer, else 8; 16 for f64 models)
    nothing is held.

    Of a model on a CUDA device the sum is there, too, where it takes at most half of what is free. Else it is in host
    memory, up to ``sum_memory`` bytes, and beyond that in a temporary file without a name in ``TMPDIR``, whose space is
    reserved by the first :meth:`add`. Without ``sum_memory`` half of the memory that is free then is the limit, if
    there is room for the file. The bits do not depend on it; :attr:`sum_place` says where it is.
    """

    def __init__(
        self,
        spec: Source,
        *,
        include: Patterns = (),
        exclude: Patterns = (),
        integers: str = "auto",
        threads: int | None = None,
        memory: str | int = "8MiB",
        sum_memory: str | int | None = None,
    ) -> None:
        if isinstance(spec, (str, os.PathLike)):
            spec = open_checkpoint(spec)
        self._layout = Layout.of(spec, NameFilter.of(include, exclude))
        self._integers = check_policy(integers)
        self._threads = _native.threads_or_default(threads)
        self._memory = parse_size(memory)
        budget = None if sum_memory is None else parse_size(sum_memory)
        self._sum = RunningSum(self._layout.accelerator, budget, self._threads, self._memory)
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
        self._offsets: Sequence[int] = []
        self._first_dtypes: list[DType] = []
        self._flagged: list[int] | Tensor = []
        """The slots whose sum is not finite, as the last addition found."""

    @property
    def nonfinite(self) -> list[str]:
        """Tensors of the last result or preview that hold NaN or an infinity. Waits for the device that made it."""
        self._nonfinite = ops.rows_of(self._nonfinite)
        return [self._layout.slots[row].name for row in self._nonfinite]

    @property
    def sum_place(self) -> str:
        """Where the sum is: ``"memory"``, ``"file"`` or the device's name; ``""`` before the first model."""
        return self._sum.place

    @property
    def sum_host_bytes(self) -> int:
        """Bytes of host memory that the sum takes."""
        return self._sum.host_bytes

    def add(self, source: Source, weight: float = 1.0) -> None:
        """Adds one model. With weights other than 1 the result is the weighted sum over the sum of the weights.

        A model of weight 0 is only checked (names, shapes, kinds): its weights are not read and it does not count.
        Raises :class:`IncompatibleError` (names, shapes, kinds of tensor), :class:`CheckpointError` (files) and
        :class:`OutputError` where the disk has no room for a sum that has to be in a file. An error in the middle of a
        pass leaves the sum undefined: the averager is reset.
        """
        weight = _checked(weight)
        with Ingredient.of(source, self._layout) as ingredient:
            if weight == 0:
                return
            if self.count == 0:
                self._choose_accumulators(ingredient)
                self._sum.make(self._sizes, small=_has_f64(ingredient))
            ingredient.take_to(self._sum.accelerator or ingredient.accelerator)
            self._check_dtypes(ingredient)
            integers = self._merged_integers(ingredient)
            try:
                if not self._sum.has_small and _has_f64(ingredient):
                    self._sum.begin_small()
                self._add_floats(ingredient, weight)
            except BaseException:
                self.reset()
                raise
        self._integer_values = integers
        self.count += 1
        self.total += weight

    def check(self, sources: Mapping[str, Source], *, running: bool = True) -> None:
        """Raises what adding these models in any order would raise for names, shapes, types, integers.

        A pool is checked so before the first of it is evaluated; no weights are read. Errors name the keys. Without
        ``running`` they are mixed at once, not added one after another: their types may differ then.
        """
        first: Ingredient | None = None
        for label, source in sources.items():
            ingredient = Ingredient.of(source, self._layout, label)
            first = first or ingredient
            for slot, one, other in zip(self._layout.slots, first.dtypes, ingredient.dtypes, strict=True):
                if running:
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
        self._offsets, self._sizes = offsets_of(self._accumulators, [slot.elements for slot in slots])

    def _check_dtypes(self, ingredient: Ingredient) -> None:
        for slot, one, other in zip(self._layout.slots, self._first_dtypes, ingredient.dtypes, strict=True):
            _check_width(slot, one, other, ingredient.label)

    def _add_floats(self, ingredient: Ingredient, weight: float) -> None:
        run_on = ingredient.run_on
        sums = self._sum.column(self._accumulators, self._offsets, run_on)
        factors = [weight * _F32_SCALE if acc == ACC_F32 else weight for acc in self._accumulators]
        self._flagged = self._accumulate(ingredient, sums, factors)
        if self._sum.has_small:
            small = self._sum.small_column(self._accumulators, self._offsets, run_on)
            self._accumulate(ingredient, small, [weight * SMALL_SCALE] * len(factors), only=ACC_F64)

    def _accumulate(
        self, ingredient: Ingredient, sums: SourceColumn, factors: Sequence[float], only: int | None = None
    ) -> list[int] | Tensor:
        """``sums += factors * ingredient`` in one native call; ``only`` leaves out the other accumulator's tensors."""
        target = Columns()
        for slot, at, fd, dtype, acc in zip(
            self._layout.slots, sums.at, sums.fd, sums.dtype, self._accumulators, strict=True
        ):
            elements = slot.elements if only in (None, acc) else 0
            target.add(elements, at, fd, dtype, acc, 1.0)
        sources = [sums] if self.count else []
        plan = target.plan([*sources, ingredient.column(factors)])
        run_on = ingredient.run_on
        staged = self._sum.is_apart(run_on) or ingredient.is_staged
        return self._run(plan, run_on, ingredient, staged)

    def _run(
        self, plan: Any, run_on: ops.Accelerator | None, ingredient: Ingredient | None, staged: bool
    ) -> list[int] | Tensor:
        """As :func:`pysoup.ops.run_plan`; what cannot be read or written is named."""
        try:
            return ops.run_plan(plan, run_on, threads=self._threads, memory=self._memory, staged=staged)
        except _native.load().NativeError as error:
            found = self._sum.blame(error) or (None if ingredient is None else ingredient.blame(error))
            raise found or SoupError(str(error.args[0])) from None

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
        flats = [overflowed.get(i, flat) for i, flat in enumerate(targets.flats)]
        self._nonfinite = []
        for run_on, rows in targets.parts.items():
            found = self._average(flats, rows, run_on, ingredient, weight)
            if len(targets.parts) == 1:
                self._nonfinite = found
            else:
                self._nonfinite = sorted([*ops.rows_of(self._nonfinite), *(rows[i] for i in ops.rows_of(found))])
        for i, quotient in overflowed.items():
            if ingredient is not None:
                ingredient.take_to(targets.accelerators[i])
            mended = self._mended(i, quotient, ingredient, weight, divisor)
            ops.weighted_sum([[mended]], [1.0], [targets.flats[i].view(-1)], 1.0, threads=self._threads)
            others = [row for row in ops.rows_of(self._nonfinite) if row != i]
            whole = bool(torch.isfinite(targets.flats[i].double()).all())
            self._nonfinite = others if whole else sorted([*others, i])
        return targets.deliver(integers)

    def _average(
        self,
        flats: Sequence[Tensor],
        rows: Sequence[int],
        run_on: ops.Accelerator | None,
        ingredient: Ingredient | None,
        weight: float,
    ) -> list[int] | Tensor:
        """Writes the slots in ``rows``, all in memory of one device or (None) the CPU's, by one native call there."""
        divisor = self.total + weight
        columns, sources = Columns(), []
        for i in rows:
            at, code = ops.addresses([flats[i]])[0], ops.dtype_of(flats[i]).native
            columns.add(self._layout.slots[i].elements, at, MEMORY, code, self._accumulators[i], divisor)
        if self.count:
            sums = self._sum.column(self._accumulators, self._offsets, run_on, 1.0 / _F32_SCALE)
            sources.append(sums.only(rows))
        if ingredient is not None:
            ingredient.take_to(run_on)
            sources.append(ingredient.column([weight] * len(rows), rows))
        staged = bool(self.count) and self._sum.is_apart(run_on)
        staged = staged or (ingredient is not None and ingredient.is_staged_in(rows))
        return self._run(columns.plan(sources), run_on, ingredient, staged)

    def _run_on(self, out: Any) -> ops.Accelerator | None:
        """The device of the sum; before there is one, for new tensors, the model's. None: where ``out`` is."""
        if self.count:
            return self._sum.accelerator
        return self._layout.accelerator if out is None else None

    def _quotient(self, index: int, targets: Targets) -> Tensor:
        device = targets.flats[index].device
        return torch.empty(self._layout.slots[index].elements, dtype=torch.float64, device=device)

    def _overflowed(self) -> list[int]:
        """The slots whose sums of f64 inputs are not finite, in f64 itself. Waits for the device that found them."""
        if not self._sum.has_small or not self.count:
            return []
        self._flagged = ops.rows_of(self._flagged)
        return [row for row in self._flagged if self._accumulators[row] == ACC_F64]

    def _mended(
        self, index: int, quotient: Tensor, ingredient: Ingredient | None, weight: float, divisor: float
    ) -> Tensor:
        """A slot's f64 quotients; where the sum overflowed, they are taken from the second, smaller sum."""
        begin, count = self._offsets[index], self._layout.slots[index].elements
        small = self._sum.small_values(begin, count).to(quotient.device)
        if ingredient is not None:
            total = torch.empty_like(small)
            values = ingredient.slot_values(index)
            ops.weighted_sum([[small], [values]], [1.0, weight * SMALL_SCALE], [total], 1.0, threads=self._threads)
            small = total
        return torch.where(torch.isfinite(quotient), quotient, small / divisor / SMALL_SCALE)


def _has_f64(ingredient: Ingredient) -> bool:
    return any(dtype == F64 for dtype in ingredient.dtypes)


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
