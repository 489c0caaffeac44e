"""sd-mecha's `n_average`: merged in f32, stored in the inputs' dtype, not scanned for NaN or Inf."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import sd_mecha
import torch
from invocation import StateDict, arguments
from safetensors import safe_open

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


logging.disable(logging.WARNING)  # "The recipe graph could not be serialized"


def merge(models: Sequence[StateDict | str], output: str | None, dtype: torch.dtype) -> StateDict | None:
    nodes = [sd_mecha.model(model) for model in models]
    return sd_mecha.merge(
        sd_mecha.n_average(*nodes),
        merge_dtype=torch.float64 if dtype == torch.float64 else torch.float32,
        output_dtype=dtype,
        check_finite_output=False,
        omit_non_finite_inputs=False,
        output=output,
        tqdm=Silent,
    )


def average(models: Sequence[StateDict]) -> StateDict:
    merged = merge(models, None, next(iter(models[0].values())).dtype)
    assert merged is not None
    return {name: merged[name] for name in models[0]}


class Silent:
    """A progress bar that draws nothing."""

    def __init__(self, *_args: object, **_options: object) -> None: ...
    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None: ...
    def __getattr__(self, _name: str) -> object:
        return lambda *_args, **_options: None


if __name__ == "__main__":
    options = arguments()

    with safe_open(options.inputs[0], "pt") as opened:
        stored = DTYPES[opened.get_slice(next(iter(opened.keys()))).get_dtype()]
    merge(options.inputs, options.output, stored)
