"""From two to 64 small models (ViT-S/16) in memory: time and memory of one average, against a probe of the bandwidth.

    python benchmarks/bench_sweep_memory.py [--ingredients 2 4 8 16 32 64] [--dtypes F32 BF16 F16]

One process, two threads, in the peers' environment where there is one. Every contender makes a new state dict, except
where its name says otherwise. Memory is the peak of the resident set during a call over the least that was resident
between calls; nothing is read from files. A contender that has used up --patience seconds sits out further rounds.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from bench_memory import flat_sum
from checkpoints import NAMES, Family, StateDict
from measure import machine, save
from peer_tools import in_peers_environment, loops
from shapes import vit_s16

import pysoup
from pysoup import _native

PROBE = "probe: K reads, one write"
COMPILED = "torch.compile of the sum, flat, old output"
FOREACH = "_foreach_add_ into f32, and back"
F16_COUNTS = (8,)
BOUND = "pysoup, prepared plan, old output"


def foreach_loop(models: Sequence[StateDict]) -> StateDict:
    """Whole lists of tensors, summed in f32."""
    total = [tensor.to(torch.float32, copy=True) for tensor in models[0].values()]
    for model in models[1:]:
        torch._foreach_add_(total, list(model.values()))
    torch._foreach_div_(total, len(models))
    return {name: t.to(models[0][name].dtype) for name, t in zip(models[0], total, strict=True)}


def contenders(flats: list[torch.Tensor], models: list[StateDict], threads: int) -> dict[str, Callable[[], object]]:
    """Calls by name, each checked against pysoup's result."""
    expected = pysoup.average_state_dicts(models)
    found: dict[str, Callable[[], object]] = {"pysoup": lambda: pysoup.average_state_dicts(models)}
    for label, average in {**loops(), FOREACH: foreach_loop}.items():
        result = average(models)
        for name, tensor in expected.items():
            torch.testing.assert_close(result[name].to(tensor.dtype), tensor, rtol=2e-2, atol=2e-3)
        found[label] = lambda average=average: average(models)
    old = {name: torch.zeros_like(t) for name, t in models[0].items()}
    found[BOUND] = pysoup.Averager(models[0], threads=threads).bind(models, out=old).run
    out = torch.zeros_like(flats[0])
    sources, size = [f.data_ptr() for f in flats], out.nbytes // 64 * 64
    native = _native.load()
    found[PROBE] = lambda: native.probe_streams(sources, out.data_ptr(), size, threads)
    torch._dynamo.reset()
    compiled = torch.compile(flat_sum, dynamic=False)
    compiled(out, *flats)
    part = out[:1000]
    torch.testing.assert_close(part, (sum(f[:1000].double() for f in flats) / len(flats)).to(out.dtype))
    found[COMPILED] = lambda: compiled(out, *flats)
    return found


def play(calls: dict[str, Callable[[], object]], rounds: int, patience: float) -> dict[str, Any]:
    """Seconds and peak memory of each, in shuffled turns; its first call, in which it was checked, is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    peaks = dict.fromkeys(calls, 0)
    shuffle, floor = random.Random(0), reset_peak()
    for _ in range(rounds):
        order = [name for name in calls if sum(seconds[name]) < patience]
        shuffle.shuffle(order)
        for name in order:
            floor = min(floor, reset_peak())
            start = time.perf_counter()
            result = calls[name]()
            seconds[name].append(time.perf_counter() - start)
            peaks[name] = max(peaks[name], status("VmHWM") - floor)
            del result
    return {
        name: {"median": statistics.median(s), "best": min(s), "peak_anonymous": peaks[name], "all": s}
        for name, s in seconds.items()
    }


def reset_peak() -> int:
    """Gives freed memory back to the system, forgets the peak of the resident set; returns what is resident."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(field: str) -> int:
    """Bytes, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ingredients", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64])
    parser.add_argument("--dtypes", nargs="+", default=["F32", "BF16", "F16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patience", type=float, default=0.3)
    parser.add_argument("--full", action="store_true", help="f16 with every number of models, not eight alone")
    args = parser.parse_args()
    in_peers_environment()
    info, threads = machine(), _native.default_threads()
    torch.set_num_threads(threads)
    family = Family(vit_s16())
    runs: dict[str, Any] = {}
    for code in args.dtypes:
        runs[code] = {}
        counts = args.ingredients if args.full or code != "F16" else F16_COUNTS
        pairs = [family.spaced(k, NAMES[code]) for k in range(max(counts))]
        for count in counts:
            flats, models = [pair[0] for pair in pairs[:count]], [pair[1] for pair in pairs[:count]]
            runs[code][count] = play(contenders(flats, models, threads), args.rounds, args.patience)
            print(code, count, {n: f"{v['best'] * 1e3:.0f} ms" for n, v in runs[code][count].items()}, flush=True)
        pairs.clear()
    save("sweep_memory", {"machine": info, "parameters": family.elements, "threads": threads, "runs": runs})


if __name__ == "__main__":
    main()
