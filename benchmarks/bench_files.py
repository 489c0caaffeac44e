"""Averages of files, whole processes: `pysoup average` against `cat` of the inputs and `cp` of one of them.

    python benchmarks/bench_files.py [--ingredients 8] [--repeats 5] [--dtypes f32,bf16] [--data DIR] [--keep]

Makes K checkpoints with CLIP ViT-B/32's shapes (605 MB each in f32), checks the output against an independent sum, and
times whole commands in turn on a warm page cache: process start, header checks, reading, writing and renaming included.
The default does not wait for the disk (neither does `cp`) unless it replaces a file; that case is timed against `sync`.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import Contest, goal_row, goals_table, machine, save
from shapes import clip_vit_b32

DTYPES = {"f32": "float32", "bf16": "bfloat16"}


def make_checkpoints(folder: Path, count: int, dtype: str) -> list[Path]:
    """Seeded checkpoints in ``folder``, made once."""
    paths = [folder / f"{dtype}-{i}.safetensors" for i in range(count)]
    missing = [(i, p) for i, p in enumerate(paths) if not p.exists()]
    if missing:
        import torch
        from safetensors.torch import save_file

        for i, path in missing:
            torch.manual_seed(i)
            tensors = {n: torch.randn(s).to(getattr(torch, DTYPES[dtype])) for n, s in clip_vit_b32().items()}
            save_file(tensors, path)
    return paths


def check(paths: list[Path], output: Path) -> None:
    """Some tensors of the result, read by the safetensors library, against plain sums: f32 for 16 bits, f64 for f32."""
    import torch
    from safetensors import safe_open

    files = [safe_open(p, framework="pt") for p in paths]
    with safe_open(output, framework="pt") as result:
        for name in ("token_embedding.weight", "logit_scale", "visual.transformer.resblocks.3.mlp.c_fc.weight"):
            tensors = [f.get_tensor(name) for f in files]
            total = tensors[0].to(torch.float32 if tensors[0].element_size() <= 2 else torch.float64)
            for tensor in tensors[1:]:  # in order, as promised: a sum over a stacked axis may go pairwise
                total += tensor
            expected = (total / len(tensors)).to(tensors[0].dtype)
            assert torch.equal(result.get_tensor(name), expected), name


def shell(command: str) -> Callable[[], object]:
    return lambda: subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL)


def command(paths: list[Path], output: Path, *options: str) -> list[str]:
    return [str(Path(sys.executable).parent / "pysoup"), "average", *map(str, paths), "-o", str(output), *options]


# As an installed package runs: with its byte code cached.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def run(command: list[str]) -> Callable[[], object]:
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT)


def removing(path: Path) -> Callable[[], object]:
    return lambda: path.unlink(missing_ok=True)


def peak_anonymous(command: list[str]) -> int:
    """Largest RssAnon of a command in bytes, sampled every 2 ms."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    peak = 0

    def sample() -> None:
        nonlocal peak
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            peak = max(peak, *(int(x.split()[1]) * 1024 for x in status.splitlines() if x.startswith("RssAnon")), 0)
            time.sleep(0.002)

    sampler = threading.Thread(target=sample)
    sampler.start()
    process.wait()
    sampler.join()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return peak


def one(
    folder: Path, dtype: str, limit: float, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    paths = make_checkpoints(folder, args.ingredients, dtype)
    output, copy = folder / f"{dtype}-soup.safetensors", folder / f"{dtype}-copy.safetensors"
    inputs = " ".join(map(str, paths))
    output.unlink(missing_ok=True)
    run(command(paths, output))()
    check(paths, output)
    replaced = folder / f"{dtype}-replaced.safetensors"
    contest = Contest(
        {
            "cat": shell(f"cat {inputs} > /dev/null"),
            "cat + cp": shell(f"cat {inputs} > /dev/null; cp {paths[0]} {copy}"),
            "pysoup": run(command(paths, output)),
            "cat + cp + sync": shell(f"cat {inputs} > /dev/null; cp {paths[0]} {copy}; sync {copy}"),
            "pysoup, replacing": run(command(paths, replaced, "--force", "--sync")),
        },
        args.repeats,
        before={"cat + cp": removing(copy), "cat + cp + sync": removing(copy), "pysoup": removing(output)},
    )
    rows = [
        goal_row(
            f"{dtype}: time over `cat` + `cp`", f"<= {limit}", limit, contest.ratio("pysoup", "cat + cp"), at_most=True
        ),
        goal_row(f"{dtype}: time over `cat` alone", "aim: < 1", 1.0, contest.ratio("pysoup", "cat"), at_most=True),
        goal_row(
            f"{dtype}: replacing a file, over `cat` + `cp` + `sync`",
            f"<= {limit}",
            limit,
            contest.ratio("pysoup, replacing", "cat + cp + sync"),
            at_most=True,
        ),
    ]
    base = peak_anonymous([sys.executable, "-c", "import pysoup.average, pysoup._native as n; n.load()"])
    for memory in ("1MiB", "64MiB"):
        peak = peak_anonymous(command(paths, output, "--force", "--no-sync", "--memory", memory))
        used = (peak - base) / 2**20
        bound = int(memory.removesuffix("MiB")) + 32
        what = f"{dtype}: peak anonymous MiB over the interpreter's, --memory {memory}"
        rows.append(goal_row(what, f"<= {bound}", bound, (used, used), at_most=True))
    for path in (output, copy, replaced):
        path.unlink()
    return rows, contest.to_json()


def start_up(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Commands that do nothing, and two small files: what every call pays."""
    pysoup = str(Path(sys.executable).parent / "pysoup")
    tiny = []
    for i in range(2):
        header = b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
        path = folder / f"tiny-{i}.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        tiny.append(path)
    small = command(tiny, folder / "tiny-soup.safetensors", "--force", "--no-sync")
    contest = Contest({"--version": run([pysoup, "--version"]), "average, 2 tiny files": run(small)}, 21)
    rows = []
    for name, limit in (("--version", 0.2), ("average, 2 tiny files", 0.3)):
        pair = (contest.median(name), contest.best(name))
        rows.append(goal_row(f"start-up: `pysoup {name}`, seconds", f"<= {limit}", limit, pair, at_most=True))
    return rows, contest.to_json()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ingredients", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtypes", default="f32,bf16")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints for the next run")
    args = parser.parse_args()
    info = machine()
    args.data.mkdir(parents=True, exist_ok=True)
    folder = args.data if args.keep else Path(tempfile.mkdtemp(dir=args.data))
    rows: list[dict[str, Any]] = []
    seconds: dict[str, Any] = {}
    try:
        rows, seconds["start-up"] = start_up(folder)
        for dtype in args.dtypes.split(","):
            added, seconds[dtype] = one(folder, dtype, {"f32": 1.3, "bf16": 1.6}[dtype], args)
            rows += added
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    save("files", {"machine": info, "ingredients": args.ingredients, "goals": rows, "seconds": seconds})
    print(goals_table(rows))
    for dtype, group in seconds.items():
        print(dtype, {k: f"{v['median']:.3f} s" for k, v in group.items()})


if __name__ == "__main__":
    main()
