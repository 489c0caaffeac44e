"""ViT-G/14 checkpoints averaged in little memory: whole processes in a memory cgroup, against the disk's own pace.

    python benchmarks/vit_g.py [--ingredients 6] [--limit 512MiB] [--rounds 3] [--data DIR]

Makes K checkpoints with ViT-G/14's parameter shapes (1.84 B parameters, 3.7 GB each in bf16), then runs every contender
where all of its memory, page cache included, is limited as in a container of that size. Cold: the page cache holds
nothing of the inputs, and the time is held against reading them and writing as many bytes as the output has, past the
page cache. Warm: the inputs that fit are in the page cache, outside the limit. Contenders that the kernel kills are
listed as killed. Needs root for the cgroup, and K + 2 times 3.7 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import page_cache
import torch
from measure import goal_row, goals_table, machine, save
from memory_cgroup import MemoryCgroup
from peer_tools import PEERS, PYSOUP_COMMAND, Peer, command, peers_python
from process import ProcessFailed, Run, run
from safetensors import safe_open
from shapes import vit_g14

from pysoup.sizes import parse_size

GOAL = 1.05
STREAMS = (1, 2, 4, 8)
CEILING, PYSOUP, SMALL = "direct read and write", "pysoup", "pysoup, --memory 16MiB"
# Those that are made for models larger than memory, or that people start from.
CONTENDERS = ("official_loop", "mergekit_cli")
LOOKED_AT = ("pos_embed", "blocks.1.mlp.fc1.weight", "norm.bias", "head.weight")
_BLOCK = 1 << 24


def make_checkpoints(folder: Path, count: int, depth: int) -> list[Path]:
    """``count`` bf16 files in ``folder``, written tensor by tensor; made once."""
    shapes = vit_g14(depth)
    noise = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    header, begin = {}, 0
    for name, shape in shapes.items():
        end = begin + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    paths = [folder / f"vit-g-{index:02d}.safetensors" for index in range(count)]
    for index, path in enumerate(paths):
        if path.exists() and path.stat().st_size == 8 + len(text) + begin:
            continue
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for number, shape in enumerate(shapes.values()):
                left, shift = torch.Size(shape).numel(), (number * 104_729 + index * 1_000_003) % _BLOCK
                while left:
                    # A start that all share, and a little of something else: the noise again, from another place.
                    size = min(left, _BLOCK - shift)
                    values = noise[:size] + 0.05 * noise[shift : shift + size]
                    values.bfloat16().view(torch.uint8).numpy().tofile(file)
                    left, shift = left - size, 0 if shift else 7919
    return paths


def check(paths: Sequence[Path], output: Path) -> None:
    """Some tensors of the result against plain sums in f32, divided once: the same bits."""
    files = [safe_open(path, "pt") for path in paths]
    with safe_open(output, "pt") as result:
        for name in LOOKED_AT:
            total = files[0].get_tensor(name).float()
            for file in files[1:]:
                total += file.get_tensor(name)
            assert torch.equal(result.get_tensor(name), (total / len(files)).bfloat16()), name


@dataclass
class Entry:
    """One contender: how it is called, what it writes, and how its runs went."""

    name: str
    called: list[str]
    output: Path
    runs: list[Run] = field(default_factory=list)
    killed: bool = False

    def to_json(self) -> dict[str, Any]:
        seconds = [r.seconds for r in self.runs]
        if not seconds:
            return {"killed": self.killed}
        peak = max(r.peak_anonymous for r in self.runs)
        return {"median": statistics.median(seconds), "best": min(seconds), "all": seconds, "peak_anonymous": peak}


class Race:
    """All contenders in turn over the same files, each in a memory cgroup of its own."""

    def __init__(self, inputs: Sequence[Path], folder: Path, limit: int, peers: Sequence[Peer], python: str) -> None:
        self.inputs, self.limit = list(inputs), limit
        pysoup = [*PYSOUP_COMMAND, *map(str, inputs), "--force", "--no-sync", "-o"]
        soup = folder / "soup.safetensors"
        self.entries = [
            Entry(PYSOUP, [*pysoup, str(soup)], soup),
            Entry(SMALL, [*pysoup, str(soup), "--memory", "16MiB"], soup),
        ]
        for peer in peers:
            output = folder / (peer.script if peer.folder else f"{peer.script}.safetensors")
            self.entries.append(Entry(peer.label, command(peer, python, output, inputs), output))
        self.ceilings: dict[str, list[float]] = {}
        self._copy = folder / "copy.bin"

    def play(self, rounds: int, cold: bool) -> None:
        """``rounds`` of all; one that was killed is not tried again."""
        for _ in range(rounds):
            if cold:
                for streams in STREAMS:
                    self._ready(cold)
                    seconds = page_cache.read_directly(self.inputs, streams=streams)
                    seconds += page_cache.write_directly(self._copy, self.inputs[0].stat().st_size)
                    self.ceilings.setdefault(f"{CEILING}, {streams} streams", []).append(seconds)
                    self._copy.unlink()
            for entry in self.entries:
                if not entry.killed:
                    self._ready(cold)
                    self._run(entry)
        for name, seconds in self.ceilings.items():
            print(f"  {name:28} {statistics.median(seconds):7.2f} s", flush=True)

    def _ready(self, cold: bool) -> None:
        page_cache.drop(self.inputs) if cold else page_cache.ensure_warm(self.inputs)

    def _run(self, entry: Entry) -> None:
        with MemoryCgroup(self.limit) as group:
            try:
                entry.runs.append(run(group.command(entry.called)))
                print(f"  {entry.name:28} {entry.runs[-1].seconds:7.2f} s", flush=True)
                if entry.name in (PYSOUP, SMALL) and len(entry.runs) == 1:
                    check(self.inputs, entry.output)
            except ProcessFailed as error:
                entry.killed = True
                print(f"  {entry.name:28} {str(error)[-200:]}", flush=True)
        remove(entry.output)

    def ratio(self, name: str) -> tuple[float, float]:
        """Over the fastest ceiling (by its median): the median of the rounds, and by bests."""
        ceiling = min(self.ceilings.values(), key=statistics.median)
        runs = [r.seconds for r in next(e for e in self.entries if e.name == name).runs]
        return statistics.median(a / b for a, b in zip(runs, ceiling, strict=True)), min(runs) / min(ceiling)

    def to_json(self) -> dict[str, Any]:
        return {**{e.name: e.to_json() for e in self.entries}, **{n: {"all": s} for n, s in self.ceilings.items()}}


def remove(output: Path) -> None:
    import shutil

    shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ingredients", type=int, default=6)
    parser.add_argument("--warm-ingredients", type=int, default=4, help="as many as the page cache can hold")
    parser.add_argument("--limit", type=parse_size, default="512MiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--depth", type=int, default=48, help="layers; fewer for a try")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints for the next run")
    args = parser.parse_args()
    info, python = machine(), peers_python()
    peers = [p for p in PEERS if p.script in CONTENDERS and (python or p.needs is None)]
    args.data.mkdir(parents=True, exist_ok=True)
    folder = args.data / "vit-g" if args.keep else Path(tempfile.mkdtemp(dir=args.data))
    folder.mkdir(exist_ok=True)
    races: dict[str, Race] = {}
    try:
        inputs = make_checkpoints(folder, args.ingredients, args.depth)
        for label, used in (("cold", inputs), ("warm", inputs[: args.warm_ingredients])):
            print(f"{len(used)} checkpoints, {label}", flush=True)
            races[label] = Race(used, folder, args.limit, peers, python or sys.executable)
            races[label].play(args.rounds, label == "cold")
    finally:
        if not args.keep:
            remove(folder)
    what = f"{args.ingredients} x ViT-G/14 bf16, cold, in {args.limit >> 20} MiB: time over {CEILING}"
    rows = [goal_row(what, f"<= {GOAL}", GOAL, races["cold"].ratio(PYSOUP), at_most=True)]
    results = {label: race.to_json() for label, race in races.items()}
    save("vit_g", {"machine": info, "limit": args.limit, "depth": args.depth, "goals": rows, "seconds": results})
    print(goals_table(rows))


if __name__ == "__main__":
    main()
