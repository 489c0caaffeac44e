"""Averaging in memory: the drop-in for the loop people write."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import ops
from .aliasing import output_ties, refuse_overlap, shared_ties, ties, without
from .arrays import check_result_type, to_array
from .dtypes import DType, parse_float
from .errors import SoupError
from .integers import check_policy
from .names import NameFilter, Patterns, Rest, check_rest
from .tables import (
    Outputs,
    StateDict,
    as_mapping,
    check_table,
    column,
    is_inexact,
    labels_of,
    merge_rows,
    module_state,
)
from .weights import Mix, check_weights, mix


def average_state_dicts(
    state_dicts: Iterable[StateDict],
    weights: Sequence[float] | None = None,
    *,
    out: StateDict | torch.nn.Module | None = None,
    dtype: object = None,
    integers: str = "auto",
    normalize: bool = True,
    include: Patterns = (),
    exclude: Patterns = (),
    rest: Rest = "drop",
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """The average of K state dicts, every element rounded once.

    ``state_dicts`` map equal names to tensors (or numpy arrays, or a mix) of equal shapes, on one device. ``weights``
    are K numbers, normalised to sum 1 unless ``normalize=False``; negative ones are allowed, and an ingredient of
    weight 0 is not read. ``dtype`` is the floating-point type of the result, required where the inputs' types differ;
    the sum is kept in f32 if all inputs and the result have 16 bits or fewer, in f64 otherwise. Complex ones keep
    their type.

    ``out`` (a state dict or a module) is written in place and may be one of the inputs; what is tied in it must be
    equal in each input. Otherwise the result is new: an ``OrderedDict`` (with its ``_metadata``) where the first input
    is one, arrays where the first input has arrays, tied where every input is tied.

    Tensors that are not floating-point are kept where all agree, ``num_batches_tracked`` becomes the largest, others
    raise unless ``integers`` is ``"first"`` or ``"max"``. ``progress`` gets the bytes moved so far.

    ``include`` and ``exclude`` are patterns on the names (see :class:`pysoup.names.NameFilter`). In what they leave out
    the state dicts may differ. ``out`` keeps its own; a new result is without it (``rest="drop"``), or has a copy of
    the first's (``"first"``).

    Raises :class:`IncompatibleError` (names, shapes, dtypes, devices, kinds of tensor, integer values, overlapping
    memory) and :class:`WeightsError`, always before anything is written. Source: Wortsman et al. 2022, section 2.
    """
    given, whole = [module_state(sd) for sd in state_dicts], out
    if not given:
        raise SoupError("no state dicts to average")
    check_policy(integers)
    filter, first = NameFilter.of(include, exclude), given[0]
    if check_rest(rest, filter) == "first" and out is not None:
        raise SoupError("rest='first' is for a new result: out keeps its own tensors")
    if filter:
        given, out = _select(filter, given, out)
    law = mix(check_weights(weights, len(given)), range(len(given)), normalize=normalize)
    names = list(given[0])
    labels = labels_of(len(given))
    table = [column(sd, names, label, labels[0]) for sd, label in zip(given, labels, strict=True)]
    targets = None if out is None else Outputs.of(out, names, labels[0])
    plain = check_table(names, table, labels, None if targets is None else targets.tensors, dtype)

    sources, members = [table[k] for k in law.members], [labels[k] for k in law.members]
    kept = _without_mean(table[0], plain)
    quick = plain is not None and not any(d.is_complex for d in set(plain))
    if targets is not None:
        tied = output_ties(names, targets.memory, sources, members)
        if not quick or kept or targets.copies:  # else the sum's own plan is checked, which is faster
            refuse_overlap(
                without(tied, names), without(tied, targets.memory), [without(tied, c) for c in sources], members
            )
        outputs: list[Any] = list(targets.tensors)
    else:
        wanted = None if dtype is None else parse_float(dtype)
        if wanted is not None:
            check_result_type(given[0].values(), wanted)
        tied = shared_ties(table)
        outputs = _fresh_outputs(sources[0], wanted)
    chosen = [i for i in kept if i not in tied]
    merged = merge_rows([names[i] for i in chosen], [[t[i] for t in sources] for i in chosen], members, integers)
    values = dict(zip(chosen, merged, strict=True))

    if plain is not None and quick:
        _sum_plain(names, sources, outputs, law, tied, plain, targets is not None, threads, progress)
    else:
        with torch.no_grad():
            _sum_any(sources, outputs, law, tied, threads, progress)
    for i, value in values.items():
        if targets is None:
            outputs[i] = value.clone()
        elif outputs[i] is not value:
            ops.write(outputs[i], value)
    if whole is not None and targets is not None:
        targets.finish()
        return as_mapping(whole)
    for i in tied:
        outputs[i] = outputs[tied[i]]
    if rest == "first":
        names, outputs = _with_rest(first, names, outputs, dtype)
    return _as_given(first, names, outputs)


def _select(
    names: NameFilter, given: Sequence[StateDict], out: StateDict | torch.nn.Module | None
) -> tuple[list[StateDict], StateDict | None]:
    """The parts of the inputs and of ``out`` that are averaged; every pattern has to match one of their names."""
    target = None if out is None else module_state(out)
    names.check(name for state in (*given, *([] if target is None else [target])) for name in state)
    if target is None:
        return [names.only(state) for state in given], None
    keys = list(target)
    groups: dict[int, list[str]] = {}
    for i, first in ties(column(target, keys, "out", "itself")).items():
        groups.setdefault(first, [keys[first]]).append(keys[i])
    names.check_ties(groups.values())
    return [names.only(state) for state in given], names.only(target)


def _with_rest(
    first: StateDict, names: Sequence[str], averaged: Sequence[Tensor], dtype: object
) -> tuple[list[str], list[Any]]:
    """All names of the first input, in its order, with what is left out of the average copied from there."""
    values: dict[str, Any] = dict(zip(names, averaged, strict=True))
    left = {name: tensor for name, tensor in first.items() if name not in values}
    values |= average_state_dicts([left], dtype=dtype) if left else {}
    return list(first), [values[name] for name in first]


def _without_mean(tensors: Sequence[Tensor], dtypes: list[torch.dtype] | None) -> list[int]:
    """Positions of the tensors that are kept rather than averaged."""
    if dtypes is not None and all(d.is_floating_point for d in set(dtypes)):
        return []
    return [i for i, tensor in enumerate(tensors) if not is_inexact(tensor)]


def _fresh_outputs(first: Sequence[Tensor], dtype: DType | None) -> list[Any]:
    """New tensors for what is averaged, None for the rest."""
    if dtype is None and all(map(Tensor.is_floating_point, first)):
        return ops.all_fresh_like(first)
    if dtype is None:
        return [ops.fresh_like(t) if is_inexact(t) else None for t in first]
    wanted = ops.torch_dtype(dtype)
    return [ops.fresh_like(t, t.dtype if t.is_complex() else wanted) if is_inexact(t) else None for t in first]


def _sum_plain(
    names: Sequence[str],
    sources: Sequence[Sequence[Tensor]],
    outputs: Sequence[Any],
    law: Mix,
    tied: Mapping[int, int],
    dtypes: list[torch.dtype],
    in_place: bool,
    threads: int | None,
    progress: Callable[[int], object] | None,
) -> None:
    """One native call for all floats of contiguous tensors, with as little Python for each of them as can be."""
    chosen = [i for i, d in enumerate(dtypes) if d.is_floating_point and i not in tied]
    every = len(chosen) == len(dtypes)
    ops.weighted_sum(
        sources if every else [[column[i] for i in chosen] for column in sources],
        law.factors,
        outputs if every else [outputs[i] for i in chosen],
        law.divisor,
        dtypes=dtypes if every else [dtypes[i] for i in chosen],
        names=[names[i] for i in chosen],
        check_overlap=in_place,
        threads=threads,
        progress=progress,
    )


def _sum_any(
    sources: Sequence[Sequence[Tensor]],
    outputs: Sequence[Any],
    law: Mix,
    tied: Mapping[int, int],
    threads: int | None,
    progress: Callable[[int], object] | None,
) -> None:
    """One native call for tensors of any strides and of complex numbers; no output overlaps another's source.

    An output whose memory order is not that of its sources gets its value afterwards from a buffer of its size.
    """
    rows: list[list[Tensor]] = []
    flat_outputs: list[Tensor] = []
    later: list[tuple[Tensor, Tensor]] = []
    for i, output in enumerate(outputs):
        if i in tied or not is_inexact(sources[0][i]):
            continue
        reals = [ops.as_reals(tensors[i]) for tensors in sources]
        target = output
        if output.is_complex() and not output.is_conj():
            target = torch.view_as_real(output)
        row = ops.as_flat(reals, target)
        if row[0].stride() != target.stride() or output.is_conj() or output.is_neg():
            dtype = row[0].dtype if output.is_complex() else output.dtype
            target = torch.empty_like(row[0], dtype=dtype, memory_format=torch.contiguous_format)
            row = [t.contiguous() for t in row]
            later.append((output, torch.view_as_complex(target) if output.is_complex() else target))
        rows.append(row)
        flat_outputs.append(target)
    ops.weighted_sum(
        list(zip(*rows, strict=True)) if rows else [[] for _ in sources],
        law.factors,
        flat_outputs,
        law.divisor,
        threads=threads,
        progress=progress,
    )
    for target, computed in later:
        ops.write(target, computed)


def _as_given(first: StateDict, names: Sequence[str], outputs: Sequence[Tensor]) -> dict[str, Any]:
    """The result in the container and kind of array of the first input."""
    values: list[Any] = list(outputs)
    for i, name in enumerate(names):
        original = first[name]
        if not isinstance(original, Tensor) and isinstance(values[i], Tensor):
            values[i] = to_array(values[i], original)
    if not isinstance(first, OrderedDict):
        return dict(zip(names, values, strict=True))
    result: OrderedDict[str, Any] = OrderedDict(zip(names, values, strict=True))
    if hasattr(first, "_metadata"):  # module versions, which load_state_dict reads
        result._metadata = first._metadata  # type: ignore[attr-defined]
    return result
