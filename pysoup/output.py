"""What the output of an average looks like: types, order and shards, provenance, model card."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ._version import __version__
from .checkpoint import Checkpoint, CheckpointWriter, dtype_differences
from .checkpoint.output.carry import files_for_dtype
from .checkpoint.output.model_card import FILE_NAME, CardFacts, model_card
from .checkpoint.output.output_format import is_directory_output
from .checkpoint.output.shards import SINGLE_FILE, reshard, safetensors_shard_names
from .dtypes import DType
from .errors import IncompatibleError, OutputError
from .sizes import parse_size
from .weights import Mix

_Layout = list[tuple[str, list[tuple[str, DType, tuple[int, ...]]]]]


@dataclass(frozen=True)
class OutputRequest:
    """What the user asked of the output; the rest follows from the first input."""

    path: Path
    dtype: DType | None
    shard_size: str | int | None
    overwrite: bool
    settings: Mapping[str, str]
    """Options other than the defaults, by their command-line names, for the model card."""


def output_types(checkpoints: Sequence[Checkpoint], names: Sequence[str], wanted: DType | None) -> list[DType]:
    """The type of each tensor in the output; inputs of different floating-point types need ``wanted``."""
    for name, found in dtype_differences(checkpoints, names):
        first = next(k for k, d in enumerate(found) if d is not None)
        other = next(k for k, d in enumerate(found) if d not in (None, found[first]))
        floats = all(d is None or d.kind == "float" for d in found)
        if wanted is None or not floats:
            expected = f"{found[first]} as in {checkpoints[first].path}" + (
                "; or give a dtype (--dtype)" if floats else ""
            )
            raise IncompatibleError(
                "dtypes differ", file=checkpoints[other].path, tensor=name, found=found[other], expected=expected
            )
    types = (_holder(checkpoints, name).entry(name).dtype for name in names)
    return [wanted if wanted is not None and t.kind == "float" else t for t in types]


def output_writer(
    request: OutputRequest,
    checkpoints: Sequence[Checkpoint],
    names: Sequence[str],
    types: Sequence[DType],
    aliases: Mapping[str, str],
    law: Mix,
) -> CheckpointWriter:
    """The writer: in the order and with the shards of the first input, provenance in the metadata.

    A directory also gets the first input's config and tokenizer files, and a model card.
    """
    first = checkpoints[0]
    is_directory = is_directory_output(request.path, first.is_directory)
    # A distributed checkpoint has a file for each process that saved it, which means nothing to its readers.
    sharded = is_directory and first.is_directory and first.format != "dcp"
    layout = _layout(checkpoints, names, types, sharded=sharded)
    if request.shard_size is not None:
        if not is_directory:
            what = "shards need a directory to be written to"
            raise OutputError(what, file=request.path, expected="an output without a file's suffix")
        layout = reshard(layout, parse_size(request.shard_size))
    metadata = {k: v for k, v in first.metadata.items() if not k.startswith("pysoup.")}
    metadata["pysoup.version"] = __version__
    metadata["pysoup.ingredients"] = json.dumps([str(checkpoints[k].path) for k in law.members])
    metadata["pysoup.weights"] = json.dumps(list(law.shares))
    files: dict[str, bytes] = {}
    if is_directory:
        files[FILE_NAME] = _card(request, checkpoints, law).encode("utf-8")
        if request.dtype is not None and first.is_directory:
            files |= files_for_dtype(first.files[0].parent, request.dtype)
    return CheckpointWriter(
        request.path,
        layout,
        metadata=metadata,
        aliases=aliases,
        is_directory=is_directory,
        overwrite=request.overwrite,
        inputs=checkpoints,
        carry=first.files[0].parent if first.is_directory else None,
        files=files,
    )


def _layout(
    checkpoints: Sequence[Checkpoint], names: Sequence[str], types: Sequence[DType], *, sharded: bool
) -> _Layout:
    first = checkpoints[0]
    shards = safetensors_shard_names([f.name for f in first.files]) if sharded else [SINGLE_FILE]
    layout: _Layout = [(shard, []) for shard in shards]
    for name, dtype in zip(names, types, strict=True):
        holder = _holder(checkpoints, name)
        # Names that only later inputs have (union) go into the last shard.
        shard = 0 if not sharded else first.entry(name).file if holder is first else len(shards) - 1
        layout[shard][1].append((name, dtype, holder.entry(name).shape))
    return [(shard, tensors) for shard, tensors in layout if tensors or len(layout) == 1]


def _holder(checkpoints: Sequence[Checkpoint], name: str) -> Checkpoint:
    """The first checkpoint that has a tensor of that name."""
    return next(c for c in checkpoints if name in c or name in c.aliases)


def _card(request: OutputRequest, checkpoints: Sequence[Checkpoint], law: Mix) -> str:
    ingredients = [str(checkpoints[k].path) for k in law.members]
    options = [part for option, value in request.settings.items() for part in (f"--{option}", value) if part]
    equal = law.divisor == len(law.members) and all(factor == 1 for factor in law.factors)
    inputs, shares = list(ingredients), list(law.shares)
    if "rest" in request.settings and 0 not in law.members:  # it gives what is left out of the average
        inputs, shares, equal = [str(checkpoints[0].path), *inputs], [0.0, *shares], False
    weights = [] if equal else [f"--weights={','.join(map(repr, shares))}"]
    command = ["pysoup", "average", *inputs, *weights, *options]
    return model_card(
        CardFacts(
            title=os.path.basename(os.path.abspath(request.path)),
            ingredients=ingredients,
            weights=law.shares,
            version=__version__,
            settings={option: value or "yes" for option, value in request.settings.items()},
            # Weights by tensor have no place on a command line.
            command=[] if "weights" in request.settings else [*command, "-o", str(request.path)],
        )
    )
