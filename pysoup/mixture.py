"""K ingredients, mixed with weights of their own for each part of a model, again and again: learned soups, planes."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from . import _native, ops
from .aliasing import in_storage_of
from .average import open_members
from .buffers import available_memory
from .checkpoint import Checkpoint
from .columns import MEMORY, Columns, SourceColumn, accumulator
from .errors import BackendError, CheckpointError, IncompatibleError, SoupError, WeightsError
from .file_plan import check_scratch, read_error, run_streamed_dots
from .ingredient import Ingredient, Layout
from .integers import check_policy
from .load import partly, refuse_copies
from .mixture_plan import MixedPart, granule_of, host_column
from .names import NameFilter, Patterns
from .sizes import parse_size
from .tables import merge_integers
from .targets import Targets

PLACES = ("files", "memory", "device", "auto")
# Of what is free: a model needs room for its own work beside the ingredients.
_SHARE_OF_FREE = 0.5


class Mixture:
    """K ingredients, mixed into a live model with weights for each granule; and their products with a gradient.

    ``model`` is written in place: ``sources`` are K pairs of a name for errors and a :class:`Checkpoint` or state dict
    that fits it as in :func:`pysoup.load_soup_`. ``granules`` are G lists of names, which together are
    :attr:`names`, each once (None: one granule with all of them): tensors of one granule have the same weights. Integer
    tensors are merged by the policy ``integers`` at the first :meth:`write`. What the patterns ``include`` and
    ``exclude`` leave out (see :class:`pysoup.names.NameFilter`) stays as it is in the model.

    ``place`` is where ingredients are kept: read from their ``"files"`` each time through ``memory`` bytes of buffers,
    or loaded once into host ``"memory"``, or onto the model's ``"device"`` (for a model on the CPU the same);
    ``"auto"`` takes the fastest that half of the free memory has room for. State dicts stay where they are, but for
    ``"device"``. The numbers are the same bits in every case, for any number of ``threads``.

    The model's tensors must stay where they are while it is in use: :meth:`write` raises where they were replaced.
    State dicts must not change, nor share memory with the model. A context manager, which holds the files open.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        sources: Sequence[tuple[str, Checkpoint | Mapping[str, Any]]],
        granules: Sequence[Sequence[str]] | None = None,
        *,
        include: Patterns = (),
        exclude: Patterns = (),
        integers: str = "auto",
        memory: str | int = "64MiB",
        threads: int | None = None,
        place: str = "files",
    ) -> None:
        if place not in PLACES:
            raise SoupError("not a place for ingredients", found=place, expected=" or ".join(PLACES))
        if not sources:
            raise SoupError("nothing to mix", found="no ingredients", expected="at least one")
        self._budget, self._threads = parse_size(memory), _native.threads_or_default(threads)
        check_policy(integers)
        self._model = model
        self._layout = Layout.of(model, NameFilter.of(include, exclude))
        refuse_copies(model)
        self._slots = self._layout.slots
        self.names = [slot.name for slot in self._slots]
        """The averaged tensors (floating and complex ones), tied ones once."""
        self.count = len(sources)
        """K."""
        self._granule_of = granule_of(granules, self.names)
        self.granules = 1 if granules is None else len(granules)
        """G."""
        self._ingredients = [Ingredient.of(source, self._layout, label) for label, source in sources]
        labels = [i.label for i in self._ingredients]
        self._integers = {
            name: merge_integers(name, [i.integers[name] for i in self._ingredients], labels, integers)
            for name in self._layout.kept
        }
        accumulators = [
            accumulator([i.dtypes[s] for i in self._ingredients], slot.dtype) for s, slot in enumerate(self._slots)
        ]
        self._targets = Targets(self._layout, accumulators, model, None)
        self._at = self._addresses()
        self._check_separate()
        self.nbytes = sum(
            slot.elements * i.dtypes[s].itemsize for i in self._ingredients for s, slot in enumerate(self._slots)
        )
        """Bytes that a pass reads, of all ingredients."""
        self.place = self._settle(place)
        """Where the ingredients are kept."""
        self._is_closed = False
        self._cells: tuple[list[int], SourceColumn, list[list[Tensor]]] | None = None
        self._places: tuple[list[int], ops.Places] | None = None
        with ExitStack() as stack:
            self._members = [i.member for i in self._ingredients if i.is_file]
            check_scratch(sum(i.scratch_bytes for i in self._ingredients))
            stack.enter_context(open_members(self._members))
            self._parts = self._prepare(accumulators)
            for part in self._parts:
                part.check_budget(self._budget)
            self._there = self._on_device()
            self._files = stack.pop_all()

    def _settle(self, place: str) -> str:
        """The place that was asked for, or the best one that fits; ingredients are taken there."""
        home = self._layout.accelerator
        if place == "auto":
            if home is not None and self.nbytes <= _SHARE_OF_FREE * home.free_bytes():
                place = "device"
            else:
                place = "memory" if self.nbytes <= _SHARE_OF_FREE * available_memory() else "files"
        if place == "device" and home is None:
            if any(a is not None for a in self._targets.accelerators):
                raise BackendError("ingredients cannot be kept on several devices", expected="place memory or files")
            place = "memory"
        if place != "files":
            for ingredient in self._ingredients:
                if place == "device" or ingredient.is_file:
                    ingredient.load(home.device if place == "device" and home is not None else None)
        return place

    def close(self) -> None:
        """Closes the files and lets go of what was loaded. The model keeps what it has."""
        self._files.close()
        self._is_closed = True
        self._parts, self._ingredients, self._there, self._cells, self._places = [], [], [], None, None

    def __enter__(self) -> Mixture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self, accumulators: Sequence[int]) -> list[MixedPart]:
        groups: dict[ops.Accelerator | None, list[int]] = {}
        for slot, accelerator in enumerate(self._targets.accelerators):
            groups.setdefault(accelerator, []).append(slot)
        parts = []
        for accelerator, slots in groups.items():
            columns = Columns()
            for slot in slots:
                flat = self._targets.flats[slot]
                at, code = ops.addresses([flat])[0], ops.dtype_of(flat).native
                columns.add(self._slots[slot].elements, at, MEMORY, code, accumulators[slot], 1.0)
            sources = []
            for ingredient in self._ingredients:
                ingredient.take_to(accelerator)
                sources.append(ingredient.column([1.0] * len(slots), slots))
            kept = [i.tensors_of(slots) for i in self._ingredients]
            parts.append(MixedPart(accelerator, slots, columns, SourceColumn.joined(sources), kept))
        return parts

    def _on_device(self) -> list[int]:
        """The ingredients that are all on the device with the kernels and the model."""
        if self._layout.accelerator is None:
            return []
        return [k for k, ingredient in enumerate(self._ingredients) if not ingredient.is_staged]

    def write(self, weights: Tensor | Sequence[Any]) -> list[str]:
        """Tensor s of granule g becomes ``round(sum_k weights[g, k] * x_k[s])`` in the model, in one fused pass.

        ``weights`` are f64 ``[G, K]``, or ``[K]`` where G is 1; they are taken as they are: not normalised, negative
        ones too, and what has weight 0 is not read. Products are summed in the order of the ingredients as
        ``csrc/kernels.h`` says, with weights rounded to f32 where the accumulator is f32: for equal weights the result
        is that of :func:`pysoup.load_soup_` up to the rounding of 1/K. Autograd is told that the tensors changed.

        Returns the names of tensors with NaN or infinities. Raises :class:`WeightsError`, :class:`CheckpointError` for
        files that cannot be read or have changed: the model may then hold part of the mix.
        """
        self._check_open()
        table = self._table(weights)
        if self._addresses() != self._at:
            raise SoupError("the model's tensors were replaced", expected="those that it had when the mixture was made")
        rows = table[self._granule_of]
        found: list[int] = []
        try:
            for part in self._parts:
                found += [part.slots[row] for row in part.run(rows[part.slots], self._budget, self._threads)]
            self._check_unchanged()
        except _native.load().NativeError as error:
            raise partly(read_error(error, self._members) or SoupError(str(error.args[0]))) from None
        except CheckpointError as error:
            raise partly(error) from None
        except BackendError as error:
            raise error.but(left="the model may hold part of the mix") from None
        for slot in (rows == 0).all(1).nonzero().flatten().tolist():
            flat = self._targets.flats[slot]
            ops.write(flat, flat.new_zeros(()))
        self._targets.deliver(self._integers)
        self._integers = {}
        return [self.names[slot] for slot in sorted(found)]

    def mixed(self) -> list[Tensor]:
        """The model's own tensors, detached, in the order of :attr:`names`."""
        return [self._targets.tensor(name).detach() for name in self.names]

    def dots(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """``out[g, k] = sum over tensors s of granule g of <gradients[s], x_k[s]>``: f64 ``[G, K]`` on the CPU.

        ``gradients`` are in the order of :attr:`names`, of the tensors' shapes and any floating-point types; None is a
        gradient of 0. This is the gradient of a loss with respect to the weights of :meth:`write` (the paper's learned
        soup, appendix I). Of complex tensors the products are those of real and imaginary parts.

        One pass over the ingredients. The order of summation is fixed (``csrc/kernels.h``, then tensors in order). For
        ingredients that are not on the model's device, the gradients are copied to the host.
        """
        self._check_open()
        given = self._checked(gradients)
        slots = list(given)
        out = torch.zeros(self.granules, self.count, dtype=torch.float64)
        if not slots:
            return out
        products = self._products(slots, list(given.values()))
        for column, slot in zip(products.unbind(1), slots, strict=True):
            out[self._granule_of[slot]] += column
        return out

    def gram(self) -> Tensor:
        """``out[s, i, j] = <x_i[s], x_j[s]>`` of each tensor, in the order of :attr:`names`: f64 ``[S, K, K]``, CPU.

        One pass over the ingredients, with the bits of :func:`pysoup.gram.gram` wherever they are; those on a device
        are copied to the host. Raises as :meth:`dots` does.
        """
        self._check_open()
        slots = list(range(len(self._slots)))
        pairs = self.count * (self.count + 1) // 2
        if not slots:
            return torch.empty(0, self.count, self.count, dtype=torch.float64)
        found = self._run_dots(self._ingredients, slots, None)
        if self._there:
            self._cells = None  # nothing of what is on the device stays on the host
        return ops.matrices_of(found.view(pairs, len(slots)), self.count)

    def _products(self, slots: list[int], gradients: list[Tensor]) -> Tensor:
        """f64 ``[K, slots]`` on the CPU. Of ingredients that are all on the device they are taken there."""
        result = torch.empty(self.count, len(slots), dtype=torch.float64)
        if self._there:
            if self._places is None or self._places[0] != slots:
                sources = [self._ingredients[k].tensors_of(slots) for k in self._there]
                self._places = slots, ops.Places.of(sources)
            home = self._layout.accelerator
            there = gradients if home is None else [gradient.to(home.device) for gradient in gradients]
            found = ops.PreparedDots(there, self._places[1], threads=self._threads).run()
            result[self._there] = found.cpu()
        here = [k for k in range(self.count) if k not in self._there]
        if here:
            result[here] = self._streamed([self._ingredients[k] for k in here], slots, ops.on_host(gradients))
        return result

    def _streamed(self, ingredients: Sequence[Ingredient], slots: list[int], gradients: list[Tensor]) -> Tensor:
        """The same of ingredients in files and host memory."""
        return self._run_dots(ingredients, slots, gradients).view(len(ingredients), len(slots))

    def _run_dots(self, ingredients: Sequence[Ingredient], slots: list[int], gradients: list[Tensor] | None) -> Tensor:
        """Products with the gradients, or (None) of all pairs; the places are kept for the next time."""
        if self._cells is None or self._cells[0] != slots or len(self._cells[2]) != len(ingredients):
            columns, kept = [], []
            for ingredient in ingredients:
                column, tensors = host_column(ingredient, slots)
                columns.append(column)
                kept.append(tensors)
            self._cells = slots, SourceColumn.joined(columns), kept
        cells = self._cells[1]
        plan = _native.plan_streamed_dots(
            n=array("Q", (self._slots[s].elements for s in slots)),
            gradient_at=array("Q", ops.addresses(gradients or [])),
            gradient_dtype=bytes(ops.dtype_of(g).native for g in gradients or []),
            count=len(ingredients),
            src_at=cells.at,
            src_fd=cells.fd,
            src_dtype=cells.dtype,
            pairs=gradients is None,
        )
        try:
            found = run_streamed_dots(plan, self._budget, self._threads, len(ingredients), again=True)
            self._check_unchanged()
        except _native.load().NativeError as error:
            raise read_error(error, self._members) or SoupError(str(error.args[0])) from None
        return torch.frombuffer(found, dtype=torch.float64)

    def _checked(self, gradients: Sequence[Tensor | None]) -> dict[int, Tensor]:
        """Each slot's gradient in C order, as reals; those that are None left out."""
        if len(gradients) != len(self.names):
            raise IncompatibleError("wrong number of gradients", found=len(gradients), expected=len(self.names))
        given: dict[int, Tensor] = {}
        for slot, (one, gradient) in enumerate(zip(self._slots, gradients, strict=True)):
            if gradient is None or not one.elements:
                continue
            ops.refuse_special(gradient, one.name, "gradients", what="no inner product of this kind of tensor")
            if tuple(gradient.shape) != one.shape:
                raise IncompatibleError(
                    "shape of the gradient", tensor=one.name, found=list(gradient.shape), expected=list(one.shape)
                )
            kind = "complex" if one.torch_dtype.is_complex else "float"
            if ops.dtype_of(gradient).kind != kind:
                raise IncompatibleError("no inner product of this dtype", tensor=one.name, found=gradient.dtype)
            given[slot] = ops.as_reals(gradient.detach()).contiguous()
        return given

    def _table(self, weights: Tensor | Sequence[Any]) -> Tensor:
        """The weights, f64 ``[G, K]`` on the CPU. Raises :class:`WeightsError`."""
        expected = f"{self.granules} x {self.count}"
        try:
            given = weights if isinstance(weights, Tensor) else torch.as_tensor(weights, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise WeightsError("weights must be numbers", expected=f"{expected} of them") from None
        table = given.detach().cpu()
        table = table[None] if table.dim() == 1 and self.granules == 1 else table
        if table.shape != (self.granules, self.count) or table.is_complex():
            found = " x ".join(map(str, table.shape)) + (" complex ones" if table.is_complex() else "")
            raise WeightsError("wrong number of weights", found=found, expected=expected)
        table = table.double()
        wrong = (~table.isfinite()).nonzero()
        if len(wrong):
            g, k = wrong[0].tolist()
            raise WeightsError(f"weight {k + 1} of granule {g + 1} is not finite", found=table[g, k].item())
        return table

    def _addresses(self) -> list[int]:
        return ops.addresses([*self._model.parameters(), *self._model.buffers()])

    def _check_open(self) -> None:
        if self._is_closed:
            raise SoupError("the mixture is closed")

    def _check_separate(self) -> None:
        """Refuses ingredients that a write would change."""
        live = [self._targets.tensor(name) for name in self._layout.names]
        for ingredient in self._ingredients:
            shared = in_storage_of(ingredient.given, live)
            if shared is not None:
                what = "shares memory with the model, which is written in place; give a copy"
                raise IncompatibleError(what, file=ingredient.label, tensor=self.names[shared])

    def _check_unchanged(self) -> None:
        for member in self._members:
            member.check_unchanged()
