"""Tensors in, native calls out: the only module that hands tensor memory to the kernels.

Everything is checked here once: kind of tensor, device, shape, dtype, layout, overlap. Below this line there are only
addresses. Tensors on devices without kernels go to :mod:`pysoup.reference`, the same arithmetic in plain torch.
"""

from .device import Accelerator, kernels_for, kernels_for_all
from .dots import Places, PreparedDots, dots, gram, matrices_of
from .logits import LOGIT_DTYPES, score_rows
from .sums import (
    PreparedSum,
    refuse_overlap,
    rows_of,
    run_plan,
    sum_columns,
    weighted_sum,
)
from .tensors import (
    SUPPORTED,
    addresses,
    all_fresh_like,
    as_flat,
    as_reals,
    bump_versions,
    dtype_of,
    dtypes_of,
    first_differences,
    fresh,
    fresh_like,
    largest,
    on_host,
    plain_dtypes,
    refuse_mixed_devices,
    refuse_special,
    torch_dtype,
    write,
    write_from_host,
)

__all__ = [
    "LOGIT_DTYPES",
    "SUPPORTED",
    "Accelerator",
    "Places",
    "PreparedDots",
    "PreparedSum",
    "addresses",
    "all_fresh_like",
    "as_flat",
    "as_reals",
    "bump_versions",
    "dots",
    "dtype_of",
    "dtypes_of",
    "first_differences",
    "fresh",
    "fresh_like",
    "gram",
    "kernels_for",
    "kernels_for_all",
    "largest",
    "matrices_of",
    "on_host",
    "plain_dtypes",
    "refuse_mixed_devices",
    "refuse_overlap",
    "refuse_special",
    "rows_of",
    "run_plan",
    "score_rows",
    "sum_columns",
    "torch_dtype",
    "weighted_sum",
    "write",
    "write_from_host",
]
