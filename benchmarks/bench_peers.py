"""File to file against the other tools: whole processes on the same checkpoints, page cache warm and cold.

    python benchmarks/bench_peers.py [--model large] [--ingredients 8] [--dtypes F32,BF16] [--rounds 5] [--data DIR]

A round runs every contender once, in shuffled order; one that has used up --patience seconds sits out further rounds,
so the slow ones have one or two runs, the fast ones and those that the goals name --rounds. Memory is the peak of
RssAnon, sampled. The cold part drops the inputs from this machine's page cache before each run, checks that (mincore),
and reads them with O_DIRECT beside it. Nobody waits for the disk to have written the output.

--full adds f16, two and four ingredients, and .pt files; with --parts cold, the cold runs of all contenders.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import page_cache
import torch
from checkpoints import NAMES, Family, checkpoints
from file_contest import CAT, CEILINGS, DIRECT, Contest, Outputs, ceilings, start_up
from measure import goal_row, goals_table, machine, save
from peer_tools import PEERS, available, peers_python
from shapes import vit_l14, vit_s16

MODELS = {"large": vit_l14, "small": vit_s16}
# The disk decides what a cold run takes: one peer shows it.
COLD = ("mergekit_cli",)
# What the goals name has all rounds.
ASKED = "mergekit-pytorch"
WARM_GOAL, COLD_GOAL = ("pysoup", ASKED), ("pysoup", DIRECT)
Goals = list[dict[str, Any]]


def one(folder: Path, code: str, count: int, family: Family, args: argparse.Namespace) -> dict[str, Contest]:
    """The contests of one dtype and number of ingredients: warm, cold or both."""
    python = args.python
    inputs = checkpoints(family, folder, count, NAMES[code], args.suffix)
    page_cache.ensure_warm(inputs)
    outputs = Outputs(folder, inputs)
    contests = {}
    for label in args.parts.split(","):
        cold = label == "cold"
        print(f"{code} x {count}, {label}", flush=True)
        contenders = {**ceilings(inputs, cold), "pysoup": outputs.pysoup()}
        for peer in available(python, args.suffix, args.only):
            if not cold or args.full or peer.script in COLD:
                contenders[peer.label] = outputs.peer(peer, python or sys.executable)
        contests[label] = Contest(inputs, cold)
        contests[label].play(contenders, args.rounds, args.patience, COLD_GOAL if cold else WARM_GOAL)
    outputs.remove_all()
    return contests


def goals(label: str, contests: Mapping[str, Contest], start: Mapping[str, Mapping[str, float]]) -> Goals:
    """Promises and measurements of one dtype."""
    rows: Goals = []
    if "warm" in contests:
        warm = contests["warm"]
        fixed = {name: values["seconds"] for name, values in start.items()}
        for name in (p.label for p in PEERS if p.needs == "mergekit" and p.label in warm.runs):
            asked, limit = (">= 10", 10.0) if name == ASKED else ("not asked", 0.0)
            what = f"{label}, warm: times faster than `{name}`"
            rows.append(goal_row(what, asked, limit, warm.ratio(name, "pysoup")))
            rows.append(goal_row(f"{what}, start-up of both left out", asked, limit, warm.ratio(name, "pysoup", fixed)))
        peaks = {n: warm.peak(n) for n in warm.runs if n not in CEILINGS and n != "pysoup"}
        if peaks:
            name = min(peaks, key=lambda n: peaks[n])
            share = peaks[name] / warm.peak("pysoup")
            what = f"{label}, warm: the thriftiest peer's peak memory ({name}) over pysoup's"
            rows.append(goal_row(what, ">= 5", 5, (share, share)))
    if "cold" in contests:
        cold = contests["cold"]
        what = f"{label}, cold: time over reading the inputs one after another"
        ratio = cold.ratio("pysoup", DIRECT)
        rows.append(goal_row(f"{what}, O_DIRECT", "<= 1.25", 1.25, ratio, at_most=True))
        rows.append(goal_row(f"{what}, `cat`", "not asked", 0, cold.ratio("pysoup", CAT), at_most=True))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="large")
    parser.add_argument("--ingredients", type=int, default=8)
    parser.add_argument("--dtypes", default="F32,BF16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patience", type=float, default=5.0, help="seconds before a contender sits out")
    parser.add_argument("--parts", default="warm", help="warm, cold or both, with a comma")
    parser.add_argument("--only", default="", help="parts of the names of contenders' scripts, with commas")
    parser.add_argument("--suffix", default=".safetensors", help="or .pt")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--name", default="peers", help="of the JSON file under results/")
    args = parser.parse_args()
    args.python, info = peers_python(), machine()
    family = Family(MODELS[args.model]())
    rows: Goals = []
    contests: dict[str, Any] = {}
    args.data.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.data) as scratch:
        folder = Path(scratch)
        peers = available(args.python, only=args.only)
        start = start_up(folder, peers, args.python or sys.executable, WARM_GOAL)
        for code in args.dtypes.split(","):
            found = one(folder, code, args.ingredients, family, args)
            contests[code] = {label: contest.to_json() for label, contest in found.items()}
            rows += goals(code.lower(), found, start)
        extras = full(folder, family, args) if args.full else {}
    payload = {
        "machine": info,
        "model": args.model,
        "parameters": family.elements,
        "ingredients": args.ingredients,
        "itemsizes": {code: torch.empty(0, dtype=NAMES[code]).element_size() for code in contests},
        "start_up": start,
        "goals": rows,
        "runs": contests,
        "full": extras,
    }
    save(args.name, payload)
    print(goals_table(rows))


def full(folder: Path, family: Family, args: argparse.Namespace) -> dict[str, Any]:
    """f16, fewer ingredients and .pt files, warm: one case after another, by its name."""
    found: dict[str, Any] = {}
    only_warm = argparse.Namespace(**{**vars(args), "parts": "warm"})
    for code, count in (("F16", args.ingredients), *((c, k) for c in ("F32", "BF16") for k in (2, 4))):
        found[f"{code} x {count}"] = one(folder, code, count, family, only_warm)["warm"].to_json()
    torch_files = argparse.Namespace(**{**vars(only_warm), "suffix": ".pt", "only": "careful_loop,mergekit_cli"})
    found[f"F32 x {args.ingredients}, .pt"] = one(folder, "F32", args.ingredients, family, torch_files)[
        "warm"
    ].to_json()
    return found


if __name__ == "__main__":
    main()
