"""How exact the averages are, in ulp over all elements, and how far mergekit's results are from ours.

    python benchmarks/bench_error.py [--ingredients 8] [--dtypes F32 BF16 F16 F64]

Every contender averages ViT-Ti/16 models (5.7 M parameters) in memory, by the functions that the file contests run;
`mergekit-pytorch`, which has none, averages files. Runs in the peers' environment where there is one (`make peers`),
else without mergekit and sd-mecha. Ends with status 1 if pysoup's averages are not mergekit's (see `mergekit_rows`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from checkpoints import CODES, NAMES, Family, StateDict
from measure import goal_row, goals_table, machine, save
from peer_tools import PEERS, command, in_peers_environment, loops
from safetensors.torch import load_file, save_file
from shapes import vit_ti16
from ulp import Distance, UlpError, distance, ulp_errors

import pysoup

Average = Callable[[Sequence[StateDict]], StateDict]
API, CLI = "mergekit, merge_state_dicts", "mergekit-pytorch"
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


def by_command(
    models: Sequence[StateDict], weights: Sequence[float] | None = None, dtype: torch.dtype | None = None
) -> StateDict:
    """What `mergekit-pytorch` makes of these models, in their order of names."""
    peer = next(p for p in PEERS if p.label == CLI)
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch) / f"{index}.safetensors" for index in range(len(models))]
        for model, path in zip(models, paths, strict=True):
            save_file(model, path)
        called = command(peer, sys.executable, Path(scratch) / "merged", paths)
        if weights is not None:
            called += ["--weights", ",".join(map(str, weights))]
        if dtype is not None:
            stored = next(iter(models[0].values())).dtype
            called += ["--dtype", str(dtype).removeprefix("torch."), "--out-dtype", str(stored).removeprefix("torch.")]
        subprocess.run(called, check=True, capture_output=True)
        merged = load_file(Path(scratch) / "merged" / "model.safetensors")
        return {name: merged[name].clone() for name in models[0]}


def mergekit_rows(family: Family, merge: Callable[..., StateDict]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """How far mergekit's linear method is from pysoup over all elements: what must hold, and the counts.

    16-bit types, against mergekit's defaults: the same bits with equal weights, within 1 ulp with unequal ones (it
    divides by the sum of the weights at the end, pysoup before). f32, against mergekit told to sum in f64: within
    1 ulp. Its default sums f32 in f32; how far that takes it away is in the counts. An ulp is taken at the largest of
    the result and the weighted inputs: where those cancel, any sum's rounding is many ulp of the result.
    """
    rows, details = [], {}
    for code in ("F32", "BF16", "F16"):
        dtype = NAMES[code]
        models = [family.model(k, dtype) for k in range(7)]
        inputs = [flat(model) for model in models]
        for label, weights in (("equal", None), ("unequal", UNEQUAL)):
            ours = flat(pysoup.average_state_dicts(models, weights))
            shares = [w / sum(UNEQUAL) for w in UNEQUAL] if weights else [1 / 7] * 7

            def apart(theirs: StateDict) -> Distance:
                return distance(ours, flat(theirs), inputs, shares)  # noqa: B023 (called within this turn)

            found = {"default": apart(merge(models, weights))}
            if dtype == torch.float32:
                in_f64 = {"dtype": torch.float64, "out_dtype": dtype}
                found["in f64"] = apart(merge(models, weights, **in_f64))
                found[f"`{CLI}`, in f64"] = apart(by_command(models, weights, torch.float64))
            else:
                found[f"`{CLI}`"] = apart(by_command(models, weights))
            for how, seen in found.items():
                details[f"{code.lower()}, {label} weights, {how}"] = asdict(seen)
                if dtype == torch.float32 and how == "default":
                    continue
                what, asked = f"{code.lower()}, {label} weights: from mergekit's ({how}), ulp at most", "<= 1"
                if dtype != torch.float32 and not weights:
                    what, asked = f"{code.lower()}, {label} weights: elements with other bits than mergekit's", "0"
                    rows.append(goal_row(f"{what} ({how})", asked, 0, (seen.different, seen.different), at_most=True))
                else:
                    rows.append(goal_row(what, asked, 1, (seen.largest_ulp, seen.largest_ulp), at_most=True))
    return rows, details


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ingredients", type=int, default=8)
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES))
    args = parser.parse_args()
    in_peers_environment()
    contenders: dict[str, Average] = {"pysoup": pysoup.average_state_dicts, **loops()}
    info = machine()
    family = Family(vit_ti16())
    agreement, details = [], {}
    if API in contenders:
        agreement, details = mergekit_rows(family, contenders[API])
    exact = {name: {c: identical(average, NAMES[c]) for c in args.dtypes} for name, average in contenders.items()}
    if API in contenders:
        contenders[CLI] = by_command
    rows = []
    table: dict[str, Any] = {}
    for code in args.dtypes:
        found = errors(contenders, [family.model(k, NAMES[code]) for k in range(args.ingredients)])
        least = min(v.mean for v in found.values())
        what = f"{CODES[NAMES[code]].lower()}: mean error over the smallest of all contenders'"
        rows.append(goal_row(what, "<= 1", 1.0, (found["pysoup"].mean / least,) * 2, at_most=True))
        table[code] = {name: asdict(error) for name, error in found.items()}
    payload = {
        "machine": info,
        "elements": family.elements,
        "ingredients": args.ingredients,
        "goals": [*rows, *agreement],
        "mergekit": details,
        "ulp": table,
        "identical": exact,
    }
    save("error", payload)
    print(goals_table([*rows, *agreement]))
    failed = [row["what"] for row in agreement if not row["met"]]
    if failed:
        raise SystemExit(f"pysoup's averages are not mergekit's: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
