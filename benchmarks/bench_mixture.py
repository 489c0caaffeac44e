"""What a step of a learned soup does to its ingredients: mix all of them, then their products with a gradient.

    python benchmarks/bench_mixture.py [--count 24] [--parameters 151] [--dtype bf16] [--repeats 5] [--no-plain]

Makes K checkpoints with CLIP ViT-B/32's shapes, or with narrower ones for fewer million parameters (7.3 GB by default,
in --data, removed afterwards unless --keep). Everything is read from the page cache, which has to have room for them. A
pass is timed in turn with `cat` of the same files, with as many threads that do nothing but read them, and with a plain
loop over the safetensors library. Correctness is asserted first.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from checkpoints import Family, Shapes, checkpoints
from measure import Contest, goal_row, goals_table, machine, save
from shapes import clip_vit_b32
from torch import Tensor, nn

from pysoup import _native, open_checkpoint
from pysoup.gram import gram
from pysoup.mixture import Mixture

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
_BLOCK = 1 << 20


def shapes_of(millions: int) -> Shapes:
    """CLIP's shapes with so much narrower matrices that they have about that many million parameters."""
    shapes = clip_vit_b32()
    whole = sum(torch.Size(shape).numel() for shape in shapes.values())
    share = min(1.0, millions * 1e6 / whole)
    return {n: (max(1, round(s[0] * share)), *s[1:]) if len(s) > 1 else s for n, s in shapes.items()}


class Shaped(nn.Module):
    """A model that only has parameters, under the names of a real one."""

    def __init__(self, shapes: Shapes, dtype: torch.dtype) -> None:
        super().__init__()
        for name, shape in shapes.items():
            *path, leaf = name.split(".")
            parent: nn.Module = self
            for part in path:
                if part not in dict(parent.named_children()):
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.register_parameter(leaf, nn.Parameter(torch.zeros(shape, dtype=dtype)))


def anonymous() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


@contextmanager
def peak_anonymous(found: list[int]) -> Iterator[None]:
    """Appends the largest anonymous memory of this process meanwhile, beyond what it was before, in bytes."""
    base, peak, done = anonymous(), 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, anonymous())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield
    finally:
        done.set()
        sampler.join()
        found.append(max(0, peak - base))


def reader(paths: Sequence[Path], threads: int) -> Callable[[], None]:
    """Reads all files into one small buffer a thread, each file by one thread: the ceiling of whoever copies."""

    def some(first: int) -> None:
        buffer = bytearray(_BLOCK)
        for path in paths[first::threads]:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def run() -> None:
        workers = [threading.Thread(target=some, args=(first,)) for first in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return run


def plain_mix(model: nn.Module, paths: Sequence[Path], weights: Sequence[float]) -> None:
    """What one would write: file by file, in the type of the files."""
    from safetensors import safe_open

    with torch.no_grad():
        for k, (path, weight) in enumerate(zip(paths, weights, strict=True)):
            with safe_open(path, framework="pt") as file:
                for name, parameter in model.named_parameters():
                    value = file.get_tensor(name)
                    torch.mul(value, weight, out=parameter) if k == 0 else parameter.add_(value, alpha=weight)


def plain_dots(gradients: dict[str, Tensor], paths: Sequence[Path]) -> Tensor:
    """In f32: torch's products of 16-bit vectors are many times slower on a CPU. ``gradients`` are flat."""
    from safetensors import safe_open

    out = torch.zeros(len(paths), dtype=torch.float64)
    for k, path in enumerate(paths):
        with safe_open(path, framework="pt") as file:
            for name, gradient in gradients.items():
                out[k] += torch.dot(gradient, file.get_tensor(name).float().flatten()).double()
    return out


def check(mixture: Mixture, paths: Sequence[Path], weights: Tensor, gradients: Sequence[Tensor]) -> None:
    """Some tensors, and the products of all, against plain f64."""
    from safetensors import safe_open

    assert mixture.write(weights) == []
    found, mixed = mixture.dots(gradients), dict(zip(mixture.names, mixture.mixed(), strict=True))
    shown = ("token_embedding.weight", "logit_scale", "visual.transformer.resblocks.3.mlp.c_fc.weight")
    totals = {name: torch.zeros(mixed[name].shape, dtype=torch.float64) for name in shown}
    for k, path in enumerate(paths):
        with safe_open(path, framework="pt") as file:
            for name in shown:
                totals[name] += weights[0, k] * file.get_tensor(name).double()
            if k in (0, len(paths) - 1):
                rows = zip(mixture.names, gradients, strict=True)
                expected = sum((g.double() * file.get_tensor(name).double()).sum().item() for name, g in rows)
                assert abs(found[0, k].item() - expected) <= 1e-9 * max(1.0, abs(expected)), (k, expected)
    for name in shown:
        tolerance = 2.0**-7 if mixed[name].dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(mixed[name].double(), totals[name], rtol=tolerance, atol=tolerance * 1e-3)


def measure(paths: list[Path], shapes: Shapes, args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    model = Shaped(shapes, DTYPES[args.dtype])
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in model.state_dict().values()]
    weights = torch.rand(1, len(paths), generator=generator, dtype=torch.float64) / len(paths)
    threads = args.threads or _native.default_threads()
    peaks: list[int] = []
    with peak_anonymous(peaks):  # before all else, or what was freed already would hide some of it
        sources = [(path.name, open_checkpoint(path)) for path in paths]
        with Mixture(model, sources, memory=args.memory, threads=threads) as mixture:
            mixture.write(weights)
            mixture.dots(gradients)
    with Mixture(model, sources, memory=args.memory, threads=threads) as mixture:
        check(mixture, paths, weights, gradients)

        def step() -> None:
            mixture.write(weights)
            mixture.dots(gradients)

        def cat() -> None:
            subprocess.run(["cat", *map(str, paths)], check=True, stdout=subprocess.DEVNULL)

        read = reader(paths, threads)
        contenders: dict[str, Callable[[], object]] = {
            "write": lambda: mixture.write(weights),
            "dots": lambda: mixture.dots(gradients),
            "write + dots": step,
            "read twice": lambda: (read(), read()),
            "cat twice": lambda: (cat(), cat()),
            "all pairs": lambda: gram(sources, memory=args.memory, threads=threads),
        }
        if not args.no_plain:
            named = {n: g.float().flatten() for n, g in zip(mixture.names, gradients, strict=True)}
            contenders["plain loop"] = lambda: (
                plain_mix(model, paths, weights[0].tolist()),
                plain_dots(named, paths),
            )
        contest = Contest(contenders, args.repeats)
    rows = [
        goal_row(
            "mixing and products over `cat` of all ingredients twice",
            "<= 1.3",
            1.3,
            contest.ratio("write + dots", "cat twice"),
            at_most=True,
        ),
        goal_row(
            f"the same over reading them twice with {threads} threads",
            "not asked",
            1.3,
            contest.ratio("write + dots", "read twice"),
            at_most=True,
        ),
        goal_row(
            f"peak anonymous MiB beyond model and gradient, memory {args.memory}",
            "<= 2048",
            2048.0,
            (peaks[0] / 2**20, peaks[0] / 2**20),
            at_most=True,
        ),
    ]
    if not args.no_plain:
        ratio = contest.ratio("plain loop", "write + dots")
        rows.append(goal_row("a plain loop over mixing and products", "not asked", 1.0, ratio))
    return rows, contest.to_json()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--parameters", type=int, default=151, help="millions")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--memory", default="64MiB")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-plain", action="store_true", help="without the plain loop")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints for the next run")
    parser.add_argument("--no-save", action="store_true", help="print only")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    shapes = shapes_of(args.parameters)
    if args.make:
        checkpoints(Family(shapes), args.make, args.count, DTYPES[args.dtype])
        return
    info = machine()
    args.data.mkdir(parents=True, exist_ok=True)
    folder = args.data / f"mixture-{args.parameters}" if args.keep else Path(tempfile.mkdtemp(dir=args.data))
    folder.mkdir(exist_ok=True)
    try:
        # In a process of its own: what it leaves in the allocator is not part of what is measured here.
        again = [sys.executable, __file__, "--make", str(folder), "--count", str(args.count)]
        subprocess.run([*again, "--parameters", str(args.parameters), "--dtype", args.dtype], check=True)
        paths = sorted(folder.glob("*.safetensors"))[: args.count]
        begun = time.monotonic()
        rows, seconds = measure(paths, shapes, args)
        nbytes = sum(os.path.getsize(path) for path in paths)
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    result = {"machine": info, "ingredients": args.count, "parameters": parameters, "dtype": args.dtype}
    if not args.no_save:
        save("mixture", {**result, "bytes": nbytes, "memory": args.memory, "goals": rows, "seconds": seconds})
    print(goals_table(rows))
    for name, group in seconds.items():
        print(f"{name}: {group['median']:.3f} s, {nbytes / group['median'] / 1e9:.1f} GB/s by one pass")
    print(f"{nbytes / 1e9:.2f} GB in {args.count} files; measured in {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
