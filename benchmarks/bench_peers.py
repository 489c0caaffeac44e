"""File to file against the other tools: whole processes on the same checkpoints, page cache warm and cold.

    python benchmarks/bench_peers.py [--model large] [--ingredients 8] [--dtypes F32,BF16] [--rounds 5] [--data DIR]

A round runs every contender once, in shuffled order; one that has used up --patience seconds sits out further rounds,
so the slow ones have one to three runs and the fast ones --rounds. Memory is the peak of RssAnon, sampled. The cold
part drops the inputs from this machine's page cache before each run, checks that (mincore), and reads them with
O_DIRECT beside it. Nobody waits for the disk to have written the output.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import page_cache
import torch
from checkpoints import NAMES, Family, checkpoints
from measure import goal_row, goals_table, machine, save
from peer_tools import PEERS, Peer, command, imports_only, peers_python
from process import Run, run
from safetensors import safe_open
from shapes import vit_l14, vit_s16

MODELS = {"large": vit_l14, "small": vit_s16}
PYSOUP = [str(Path(sys.executable).parent / "pysoup"), "average"]
DIRECT, DIRECT_2, CAT, CAT_2 = "direct read", "direct read, 2 streams", "cat", "cat, 2 at a time"
CEILINGS = (DIRECT, DIRECT_2, CAT, CAT_2)


@dataclass
class Contest:
    """Runs of named contenders over the same files."""

    inputs: list[Path]
    cold: bool
    runs: dict[str, list[Run]] = field(default_factory=dict)

    def play(self, contenders: dict[str, Callable[[], Run]], rounds: int, patience: float) -> None:
        shuffle = random.Random(0)
        for _ in range(rounds):
            order = [n for n in contenders if sum(r.seconds for r in self.runs.get(n, ())) < patience]
            shuffle.shuffle(order)
            for name in order:
                if self.cold:
                    page_cache.drop(self.inputs)
                else:
                    page_cache.ensure_warm(self.inputs)
                result = contenders[name]()
                self.runs.setdefault(name, []).append(result)
                print(f"  {name:26} {result.seconds:7.2f} s  {result.peak_anonymous / 2**20:6.0f} MiB", flush=True)

    def median(self, name: str) -> float:
        return statistics.median(r.seconds for r in self.runs[name])

    def ratio(self, slow: str, fast: str) -> tuple[float, float]:
        """How many times longer ``slow`` takes: the median of the rounds both ran in, and by bests."""
        rounds = [a.seconds / b.seconds for a, b in zip(self.runs[slow], self.runs[fast], strict=False)]
        bests = [min(r.seconds for r in self.runs[name]) for name in (slow, fast)]
        return statistics.median(rounds), bests[0] / bests[1]

    def to_json(self) -> dict[str, Any]:
        return {
            name: {
                "median": self.median(name),
                "best": min(r.seconds for r in runs),
                "cpu": statistics.median(r.cpu_seconds for r in runs),
                "peak_anonymous": max(r.peak_anonymous for r in runs),
                "all": [r.seconds for r in runs],
            }
            for name, runs in self.runs.items()
        }


class Outputs:
    """Where contenders write, one after another: checked once each against pysoup's, removed at once.

    A file that is removed before the system writes it out costs the next contender nothing.
    """

    def __init__(self, folder: Path, inputs: list[Path]) -> None:
        self.folder = folder
        self.inputs = inputs
        self.expected = folder / f"expected{inputs[0].suffix}"
        self._checked: set[str] = set()

    def after(self, name: str, command: list[str], output: Path, written: Path) -> Callable[[], Run]:
        def call() -> Run:
            self.remove(output)
            result = run(command)
            if name not in self._checked:
                check_close(written, self.expected)
                self._checked.add(name)
            self.remove(output)
            return result

        return call

    @staticmethod
    def remove(output: Path) -> None:
        shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
        output.with_name(output.name + ".yaml").unlink(missing_ok=True)


def tensor_of(path: Path, name: str) -> torch.Tensor:
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return file.get_tensor(name)
    return torch.load(path, mmap=True, weights_only=True)[name]


def check_close(path: Path, expected: Path) -> None:
    """Some tensors of a contender's output against pysoup's: the same average, up to a lossy sum's error."""
    for name in ("pos_embed", "blocks.3.mlp.fc1.weight", "norm.bias", "head.weight"):
        ours = tensor_of(expected, name)
        torch.testing.assert_close(tensor_of(path, name).to(ours.dtype), ours, rtol=2e-2, atol=2e-3)


def check_exact(inputs: list[Path], output: Path) -> None:
    """The same tensors of pysoup's output against plain sums in order: in f32 for 16 bits, else in f64."""
    for name in ("pos_embed", "blocks.3.mlp.fc1.weight", "norm.bias", "head.weight"):
        tensors = [tensor_of(path, name) for path in inputs]
        total = tensors[0].to(torch.float32 if tensors[0].element_size() <= 2 else torch.float64)
        for tensor in tensors[1:]:
            total += tensor
        assert torch.equal(tensor_of(output, name), (total / len(tensors)).to(tensors[0].dtype)), name


def ceilings(inputs: list[Path], cold: bool) -> dict[str, Callable[[], Run]]:
    """What reading alone takes: `cat` to /dev/null, and cold the disk without the page cache."""
    halves = [" ".join(map(str, inputs[i::2])) for i in range(2)]
    found = {
        CAT: lambda: run(["sh", "-c", f"cat {' '.join(map(str, inputs))} > /dev/null"]),
        CAT_2: lambda: run(["sh", "-c", f"cat {halves[0]} > /dev/null & cat {halves[1]} > /dev/null; wait"]),
    }
    if cold:
        found[DIRECT] = lambda: Run(page_cache.read_directly(inputs), 0.0, 0)
        found[DIRECT_2] = lambda: Run(page_cache.read_directly(inputs, streams=2), 0.0, 0)
    return found


def one(folder: Path, code: str, family: Family, python: str | None, args: argparse.Namespace) -> dict[str, Contest]:
    inputs = checkpoints(family, folder, args.ingredients, NAMES[code], args.suffix)
    outputs = Outputs(folder, inputs)
    page_cache.ensure_warm(inputs)
    run([*PYSOUP, *map(str, inputs), "-o", str(outputs.expected)])
    check_exact(inputs, outputs.expected)
    contests = {}
    for label, cold in (("warm", False), ("cold", True)):
        if label not in args.parts.split(","):
            continue
        print(f"{code} {label}", flush=True)
        contenders = ceilings(inputs, cold)
        soup = folder / f"pysoup{args.suffix}"
        contenders["pysoup"] = outputs.after("pysoup", [*PYSOUP, *map(str, inputs), "-o", str(soup)], soup, soup)
        for peer in available(python, args.suffix, args.only):
            if cold and peer.script not in COLD:
                continue
            output = folder / (peer.script if peer.folder else f"{peer.script}{args.suffix}")
            written = output / "model.safetensors" if peer.folder else output
            called = command(peer, python or sys.executable, output, inputs)
            contenders[peer.label] = outputs.after(peer.label, called, output, written)
        contests[label] = Contest(inputs, cold)
        contests[label].play(contenders, args.rounds, args.patience)
    for path in (*inputs, outputs.expected):
        path.unlink()
    return contests


# The disk decides what a cold run takes: two mergekits, the careful loop and the official one show it.
COLD = ("careful_loop", "mergekit_api", "mergekit_cli", "official_loop")


def available(python: str | None, suffix: str, only: str = "") -> list[Peer]:
    found = [p for p in PEERS if python is not None or p.needs is None]
    found = [p for p in found if any(part in p.script for part in only.split(","))]
    return [p for p in found if p.reads_pt or suffix == ".safetensors"]


def start_up(python: str | None, only: str) -> dict[str, dict[str, float]]:
    """Seconds and anonymous memory of each contender's imports alone."""
    found = {}
    commands = {p.label: imports_only(p, python or sys.executable) for p in available(python, ".safetensors", only)}
    commands["pysoup"] = [sys.executable, "-c", "import pysoup.average, pysoup._native as n; n.load()"]
    for name, called in commands.items():
        runs = [run(called) for _ in range(3)][1:]
        found[name] = {"seconds": min(r.seconds for r in runs), "anonymous": max(r.peak_anonymous for r in runs)}
    return found


def goals(code: str, contests: dict[str, Contest]) -> list[dict[str, Any]]:
    rows = []
    label = code.lower()
    if "warm" in contests:
        warm = contests["warm"]
        rows += [
            goal_row(f"{label}, warm: times faster than {p.label}", ">= 10", 10, warm.ratio(p.label, "pysoup"))
            for p in PEERS
            if p.needs == "mergekit" and p.label in warm.runs
        ]
        least = {n: max(r.peak_anonymous for r in runs) for n, runs in warm.runs.items() if n not in CEILINGS}
        ours = least.pop("pysoup")
        name = min(least, key=lambda n: least[n])
        share = least[name] / ours
        what = f"{label}: peak anonymous memory, the thriftiest peer's ({name}) over pysoup's"
        rows.append(goal_row(what, ">= 5", 5, (share, share)))
    if "cold" in contests:
        ratio = contests["cold"].ratio("pysoup", DIRECT)
        what = f"{label}, cold: time over a direct sequential read"
        rows.append(goal_row(what, "<= 1.25", 1.25, ratio, at_most=True))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="large")
    parser.add_argument("--ingredients", type=int, default=8)
    parser.add_argument("--dtypes", default="F32,BF16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patience", type=float, default=12.0, help="seconds before a contender sits out")
    parser.add_argument("--parts", default="warm,cold")
    parser.add_argument("--only", default="", help="parts of the names of contenders' scripts, with commas")
    parser.add_argument("--suffix", default=".safetensors", help="or .pt")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--name", default="peers", help="of the JSON file under results/")
    args = parser.parse_args()
    python, info = peers_python(), machine()
    family = Family(MODELS[args.model]())
    args.data.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=args.data))
    rows: list[dict[str, Any]] = []
    contests: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    started = start_up(python, args.only)
    try:
        for code in args.dtypes.split(","):
            found = one(folder, code, family, python, args)
            contests[code] = {label: contest.to_json() for label, contest in found.items()}
            sizes[code] = args.ingredients * family.elements * torch.empty(0, dtype=NAMES[code]).element_size()
            rows += goals(code, found)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    payload = {
        "machine": info,
        "model": args.model,
        "parameters": family.elements,
        "ingredients": args.ingredients,
        "input_bytes": sizes,
        "start_up": started,
        "goals": rows,
        "runs": contests,
    }
    save(args.name, payload)
    print(goals_table(rows))


if __name__ == "__main__":
    main()
