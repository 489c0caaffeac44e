"""How exact the averages are, in ulp over all elements, and how far the peers' results are from ours.

    python benchmarks/bench_error.py [--ingredients 7 8]

Every contender averages ViT-S/16 models in memory, by the same functions that the file contests run. Runs in the
peers' environment where there is one (`make peers`), else without mergekit and sd-mecha.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from checkpoints import CODES, NAMES, Family, StateDict
from measure import goal_row, goals_table, machine, save
from peer_tools import in_peers_environment, loops
from shapes import vit_s16
from ulp import UlpError, distance, ulp_errors

import pysoup

Average = Callable[[Sequence[StateDict]], StateDict]
MERGEKIT = "mergekit, merge_state_dicts"
DTYPES = ("F32", "BF16", "F16", "F64")
UNEQUAL = [0.5, 1.25, 2.0, 0.125, 3.0, 1.0, 0.75]


def flat(state_dict: StateDict) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in state_dict.values()])


def errors(contenders: dict[str, Average], models: Sequence[StateDict]) -> dict[str, UlpError]:
    """Each contender's error; a result in another dtype (timm's) is rounded to the inputs' first."""
    results = {}
    for name, average in contenders.items():
        result = average(models)
        assert list(result) == list(models[0]), name
        results[name] = flat(result).to(next(iter(models[0].values())).dtype)
    return ulp_errors(results, [flat(model) for model in models])


def identical(average: Average, dtype: torch.dtype) -> bool:
    """Whether the average of K equal checkpoints is that checkpoint, bit for bit, for many K."""
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    model = {"x": values}
    return all(torch.equal(average([model] * k)["x"].to(dtype), values) for k in (2, 3, 5, 6, 7, 8, 10, 31, 64))


def mergekit_rows(family: Family, mergekit: Callable[..., StateDict]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """How far mergekit's linear method is from pysoup, over all elements: the assertion and the details.

    mergekit sums f32 inputs in f32, so there its own error of several ulp is most of the distance; told to merge in f64
    (``dtype=float64``, ``out_dtype=float32``) it must agree.
    """
    rows, details = [], {}
    for code in ("F32", "BF16", "F16"):
        dtype = NAMES[code]
        models = [family.model(k, dtype) for k in range(7)]
        inputs = [flat(model) for model in models]
        for label, weights in (("equal", None), ("unequal", UNEQUAL)):
            ours = flat(pysoup.average_state_dicts(models, weights))
            options = {"default": {}, "in f64": {"dtype": torch.float64, "out_dtype": dtype}}
            for setting, how in options.items():
                theirs = flat(mergekit(models, weights, **how))
                found = distance(ours, theirs, inputs)
                details[f"{code.lower()}, {label} weights, mergekit {setting}"] = asdict(found)
            what = f"{code.lower()}, {label} weights: ulp apart from mergekit's linear in f64, at most"
            rows.append(goal_row(what, "<= 1", 1, (found.at_inputs, found.at_inputs), at_most=True))
    return rows, details


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ingredients", type=int, nargs="+", default=[7, 8])
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES))
    args = parser.parse_args()
    in_peers_environment()
    contenders: dict[str, Average] = {"pysoup": pysoup.average_state_dicts, **loops()}
    info = machine()
    family = Family(vit_s16())
    rows, details = [], {}
    if MERGEKIT in contenders:
        rows, details = mergekit_rows(family, contenders[MERGEKIT])
    table: dict[str, Any] = {}
    for code in args.dtypes:
        dtype = NAMES[code]
        for count in args.ingredients:
            models = [family.model(k, dtype) for k in range(count)]
            found = errors(contenders, models)
            ours, best = found["pysoup"], min(v.mean for k, v in found.items())
            rows.append(
                goal_row(
                    f"{CODES[dtype].lower()}, {count} models: mean error over the smallest mean error of all",
                    "<= 1",
                    1.0,
                    (ours.mean / best, ours.mean / best),
                    at_most=True,
                )
            )
            table[f"{code.lower()}-{count}"] = {name: asdict(error) for name, error in found.items()}
            print(
                code,
                count,
                {k: f"{v.largest:.4g} {v.mean:.4f} {v.misrounded:.1%} {v.zeros_missed}" for k, v in found.items()},
                flush=True,
            )
    exact = {name: {c: identical(average, NAMES[c]) for c in args.dtypes} for name, average in contenders.items()}
    save(
        "error",
        {
            "machine": info,
            "elements": family.elements,
            "goals": rows,
            "mergekit": details,
            "ulp": table,
            "identical": exact,
        },
    )
    print(goals_table(rows))
    print(exact)


if __name__ == "__main__":
    main()
