"""Averaging in memory: the drop-in for the loop people write."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import ops
from .dtypes import DType, parse_float
from .errors import IncompatibleError, SoupError
from .integers import check_policy, choose
from .weights import check_weights, mix

StateDict = Mapping[str, Any]


def average_state_dicts(
    state_dicts: Iterable[StateDict],
    weights: Sequence[float] | None = None,
    *,
    out: StateDict | torch.nn.Module | None = None,
    dtype: object = None,
    integers: str = "auto",
    normalize: bool = True,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """The average of K state dicts, every element rounded once.

    ``state_dicts`` map equal names to tensors (or numpy arrays, or a mix) of equal shapes, on one device. ``weights``
    are K numbers, normalised to sum 1 unless ``normalize=False``; negative ones are allowed, and an ingredient of
    weight 0 is not read. ``dtype`` is the floating-point type of the result, required where the inputs' types differ;
    the sum is kept in f32 if all inputs and the result have 16 bits or fewer, in f64 otherwise. Complex ones keep
    their type.

    ``out`` (a state dict or a module) is written in place and may be one of the inputs. Otherwise the result is new: an
    ``OrderedDict`` (with its ``_metadata``) where the first input is one, tied where every input is tied.

    Tensors that are not floating-point are kept where all agree, ``num_batches_tracked`` becomes the largest, others
    raise unless ``integers`` is ``"first"`` or ``"max"``. ``progress`` gets the bytes moved so far.

    Raises :class:`IncompatibleError` (names, shapes, dtypes, devices, kinds of tensor, overlapping memory) and
    :class:`WeightsError`. Source: Wortsman et al. 2022, section 2.
    """
    given = [module_state(sd) for sd in state_dicts]
    if not given:
        raise SoupError("no state dicts to average")
    check_policy(integers)
    chosen = mix(check_weights(weights, len(given)), range(len(given)), normalize=normalize)
    names = list(given[0])
    labels = labels_of(len(given))
    table = [column(sd, names, label, labels[0]) for sd, label in zip(given, labels, strict=True)]
    targets = None if out is None else column(module_state(out), names, "out", labels[0])
    plain = check_table(names, table, labels, targets, dtype)

    sources = [table[k] for k in chosen.members]
    outputs = _outputs(sources[0], targets, None if dtype is None else parse_float(dtype))
    tied = {} if targets is not None else _ties(table)
    kept = [labels[k] for k in chosen.members]
    finish = _sum_floats(
        names, sources, outputs, chosen.factors, chosen.divisor, tied, plain, out is not None, threads, progress
    )
    for i in tied:
        outputs[i] = outputs[tied[i]]
    for i in _without_mean(table[0], plain):
        outputs[i] = merge_integers(names[i], [t[i] for t in sources], kept, integers, outputs[i])
    for target, computed in finish:
        target.copy_(computed)
    return _as_given(given[0], names, outputs) if out is None else _out_mapping(out)


def _without_mean(tensors: Sequence[Tensor], dtypes: list[torch.dtype] | None) -> list[int]:
    """Positions of the tensors that are kept rather than averaged."""
    if dtypes is not None and all(d.is_floating_point for d in set(dtypes)):
        return []
    return [i for i, tensor in enumerate(tensors) if not is_inexact(tensor)]


def module_state(source: StateDict | torch.nn.Module) -> StateDict:
    """The mapping itself, or the state dict of a module; its tensors share the module's memory."""
    if isinstance(source, torch.nn.Module):
        return source.state_dict()
    if not isinstance(source, Mapping):
        raise IncompatibleError(
            "not a state dict", found=type(source).__name__, expected="a mapping of names to tensors"
        )
    return source


def column(state_dict: StateDict, names: Sequence[str], label: str, first: str) -> list[Tensor]:
    """The tensors of one state dict in the order of ``names``; numpy arrays as tensors that share their memory."""
    try:
        tensors = list(map(state_dict.__getitem__, names))
    except KeyError:
        tensors = []
    if len(tensors) != len(state_dict) or len(tensors) != len(names):
        known = set(names)
        lacks, extra = [n for n in names if n not in state_dict], [n for n in state_dict if n not in known]
        parts = [
            f"{word} {some_names(which)}" for word, which in (("lacks", lacks), ("has in addition", extra)) if which
        ]
        raise IncompatibleError("names differ", file=label, found="; ".join(parts), expected=f"the names of {first}")
    if set(map(type, tensors)) <= {Tensor, torch.nn.Parameter}:
        return tensors
    return [t if isinstance(t, Tensor) else _from_array(t, n, label) for t, n in zip(tensors, names, strict=True)]


def labels_of(count: int) -> list[str]:
    """What the inputs are called in errors."""
    return [f"state_dicts[{k}]" for k in range(count)]


def some_names(names: Sequence[str], shown: int = 4) -> str:
    """The first few names, and how many more there are."""
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(repr(n) for n in names[:shown]) + rest


def _from_array(value: Any, name: str, label: str) -> Tensor:
    if type(value).__module__ != "numpy" or not hasattr(value, "__array_interface__"):
        ops.refuse_special(value, name, label)
    import numpy as np

    array = np.asarray(value)
    try:
        with warnings.catch_warnings():  # read-only arrays are only read
            warnings.simplefilter("ignore", UserWarning)
            if array.dtype.name == "bfloat16":
                return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
            return torch.from_numpy(array if min(array.strides, default=0) >= 0 else array.copy())
    except (TypeError, ValueError) as error:
        raise IncompatibleError(
            "array is not supported", file=label, tensor=name, found=str(error).split(".")[0]
        ) from None


def is_inexact(tensor: Tensor) -> bool:
    """Whether the tensor is averaged (floating-point or complex) rather than kept."""
    return tensor.is_floating_point() or tensor.is_complex()


def check_table(
    names: Sequence[str],
    table: Sequence[Sequence[Tensor]],
    labels: Sequence[str],
    targets: Sequence[Tensor] | None,
    dtype: object,
) -> list[torch.dtype] | None:
    """Everything that must agree. Returns :func:`pysoup.ops.plain_dtypes`: the dtypes of the common, plain case.

    Where it is not that case, each tensor is looked at, for the error to name.
    """
    columns = [*table, targets] if targets is not None else list(table)
    if targets is not None and dtype is not None:
        _check_out_dtype(names, targets, parse_float(dtype))
    if targets is not None and dtype is not None:
        _check_out_dtype(names, targets, parse_float(dtype))
    dtypes = ops.plain_dtypes(columns)
    if dtypes is not None:
        return dtypes
    where = [*labels, "out"]
    for k, tensors in enumerate(columns):
        for name, tensor, first in zip(names, tensors, columns[0], strict=True):
            ops.refuse_special(tensor, name, where[k])
            _check_pair(name, tensor, first, where[k], where[0])
            found, expected = ops.dtype_of(tensor), ops.dtype_of(first)
            free = dtype is not None or targets is not None
            if found != expected and not (free and found.kind == expected.kind == "float"):
                hint = "; pass dtype= to choose the result's" if found.kind == expected.kind == "float" else ""
                raise IncompatibleError(
                    "dtypes differ",
                    file=where[k],
                    tensor=name,
                    found=found,
                    expected=f"{expected} as in {where[0]}{hint}",
                )
    return None


def _check_pair(name: str, tensor: Tensor, first: Tensor, label: str, first_label: str) -> None:
    if tensor.shape != first.shape:
        raise IncompatibleError(
            "shape differs",
            file=label,
            tensor=name,
            found=list(tensor.shape),
            expected=f"{list(first.shape)} as in {first_label}",
        )
    if tensor.device != first.device:
        raise IncompatibleError(
            "device differs",
            file=label,
            tensor=name,
            found=tensor.device,
            expected=f"{first.device} as in {first_label}",
        )


def _check_out_dtype(names: Sequence[str], targets: Sequence[Tensor], dtype: DType) -> None:
    for name, target in zip(names, targets, strict=True):
        if target.is_floating_point() and ops.dtype_of(target) != dtype:
            raise IncompatibleError("out has another dtype", tensor=name, found=ops.dtype_of(target), expected=dtype)


def _outputs(first: Sequence[Tensor], targets: Sequence[Tensor] | None, dtype: DType | None) -> list[Any]:
    """The tensors to write: ``targets``, or fresh ones for what is averaged (None for the rest)."""
    if targets is not None:
        return list(targets)
    if dtype is None and all(map(Tensor.is_floating_point, first)):
        return ops.all_fresh_like(first)
    if dtype is None:
        return [ops.fresh_like(t) if is_inexact(t) else None for t in first]
    wanted = ops.torch_dtype(dtype)
    return [ops.fresh_like(t, t.dtype if t.is_complex() else wanted) if is_inexact(t) else None for t in first]


def _ties(table: Sequence[Sequence[Tensor]]) -> dict[int, int]:
    """index -> earlier index for tensors that are one and the same memory in every input: averaged once, kept tied."""
    first: dict[tuple[Any, ...], int] = {}
    tied: dict[int, int] = {}
    if any(t.layout != torch.strided for t in table[0]):
        return tied
    pointers = [ops.addresses(table[0])]
    if len(set(pointers[0])) == len(pointers[0]):
        return tied
    pointers += map(ops.addresses, table[1:])
    for i, tensor in enumerate(table[0]):
        if tensor.numel() == 0:
            continue
        key = tuple(
            (row[i], tensors[i].shape, tensors[i].stride()) for row, tensors in zip(pointers, table, strict=True)
        )
        if key in first:
            tied[i] = first[key]
        else:
            first[key] = i
    return tied


def _sum_floats(
    names: Sequence[str],
    sources: Sequence[Sequence[Tensor]],
    outputs: Sequence[Any],
    factors: Sequence[float],
    divisor: float,
    tied: Mapping[int, int],
    plain: list[torch.dtype] | None,
    in_place: bool,
    threads: int | None,
    progress: Callable[[int], object] | None,
) -> list[tuple[Tensor, Tensor]]:
    """One native call for all that is averaged. Returns (target, value) pairs that are still to be copied: targets
    whose memory order is not that of their sources."""
    if plain is not None and not any(d.is_complex for d in set(plain)):
        chosen = [i for i, d in enumerate(plain) if d.is_floating_point and i not in tied]
        every = len(chosen) == len(plain)
        ops.weighted_sum(
            sources if every else [[column[i] for i in chosen] for column in sources],
            factors,
            outputs if every else [outputs[i] for i in chosen],
            divisor,
            dtypes=plain if every else [plain[i] for i in chosen],
            names=[names[i] for i in chosen],
            check_overlap=in_place,
            threads=threads,
            progress=progress,
        )
        return []
    rows: list[list[Tensor]] = []
    flat_outputs: list[Tensor] = []
    summed: list[str] = []
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
            target = torch.empty_like(row[0], dtype=target.dtype, memory_format=torch.contiguous_format)
            row = [t.contiguous() for t in row]
            later.append((output, torch.view_as_complex(target) if output.is_complex() else target))
        rows.append(row)
        flat_outputs.append(target)
        summed.append(names[i])
    ops.weighted_sum(
        list(zip(*rows, strict=True)) if rows else [[] for _ in sources],
        factors,
        flat_outputs,
        divisor,
        names=summed,
        check_overlap=in_place,
        threads=threads,
        progress=progress,
    )
    return later


def merge_integers(
    name: str, tensors: Sequence[Tensor], labels: Sequence[str], policy: str, out: Tensor | None = None
) -> Tensor:
    """The value of a tensor that has no mean (see :mod:`pysoup.integers`), in ``out`` or in a new tensor."""
    differs = next((k for k, t in enumerate(tensors) if k and not torch.equal(t, tensors[0])), None)
    value = tensors[0]
    if choose(name, policy, labels, differs) == "max" and differs is not None:
        for tensor in tensors[1:]:
            value = torch.maximum(value, tensor)
    if out is None:
        return value.clone()
    if out is not value:
        out.copy_(value)
    return out


def _as_given(first: StateDict, names: Sequence[str], outputs: Sequence[Tensor]) -> dict[str, Any]:
    """The result in the container and kind of array of the first input."""
    values: list[Any] = list(outputs)
    for i, name in enumerate(names):
        original = first[name]
        if not isinstance(original, Tensor):
            values[i] = _to_array(values[i], original)
    if not isinstance(first, OrderedDict):
        return dict(zip(names, values, strict=True))
    result: OrderedDict[str, Any] = OrderedDict(zip(names, values, strict=True))
    if hasattr(first, "_metadata"):  # module versions, which load_state_dict reads
        result._metadata = first._metadata  # type: ignore[attr-defined]
    return result


def _to_array(tensor: Tensor, like: Any) -> Any:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(like.dtype)
    return tensor.numpy()


def _out_mapping(out: StateDict | torch.nn.Module) -> dict[str, Any]:
    return out if isinstance(out, dict) else dict(module_state(out))
