"""Builds the CUDA kernels, checks them bit for bit against the CPU's and times everything, in one call under 8 minutes.

    python benchmarks/bench_cuda.py                    on a machine with a GPU, nvcc, CMake, ninja, pybind11 and torch
    python benchmarks/bench_cuda.py --parts check,dots some of it
    python benchmarks/bench_cuda.py --sanitize         the tests of the kernels under compute-sanitizer instead
    python benchmarks/bench_cuda.py --dry-run          without a GPU: emulated kernels, tiny sizes; times mean nothing

Needs no network. Shares are of the bandwidth of a copy from device memory to device memory, timed in turn with the
rest; all inputs are larger than the caches. Writes benchmarks/results/cuda_NAME.json, NAME being the GPU's; prints a
table of what was asked and measured last.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu import goals, sanitizer
from measure import RESULTS, machine

if TYPE_CHECKING:
    from gpu.place import Run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
INSTALLED = ROOT / "build" / "bench_cuda"
PARTS = ("check", "big", "vit", "candidate", "logits", "vocabulary", "ensemble", "dots", "files")
# Less time than this and a part is not begun.
SECONDS_A_PART = 15


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=8.0, help="parts that come later are left out")
    parser.add_argument("--no-build", action="store_true", help="with the pysoup that Python finds")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    parser.add_argument("--sanitize", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--output", type=Path, help="the JSON file")
    args = parser.parse_args()
    args.parts = args.parts.split(",")
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"unknown part {part!r}, expected some of {','.join(PARTS)}")
    return args


def need_gpu() -> Any:
    """torch, where it sees a GPU; else ends with what is missing."""
    try:
        import torch
    except ImportError:
        raise SystemExit("bench_cuda: torch is not installed for this Python") from None
    if torch.version.cuda is None:
        raise SystemExit("bench_cuda: this torch was built without CUDA (--dry-run tries the benchmark out)")
    if not torch.cuda.is_available():
        raise SystemExit("bench_cuda: no GPU that torch can use is here (--dry-run tries the benchmark out)")
    return torch


def build_and_go_on(torch: Any, args: argparse.Namespace, begun: float) -> None:
    """Installs this tree for the GPU at hand under build/bench_cuda, and starts over with what was installed."""
    major, minor = torch.cuda.get_device_capability()
    options = f"-DPYSOUP_CUDA=ON -DPYSOUP_CUDA_ARCH={major}{minor}"
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--upgrade", "-q"]
    command += ["--target", str(INSTALLED), str(ROOT)]
    env = os.environ | {"CMAKE_ARGS": f"{options} {os.environ.get('CMAKE_ARGS', '')}".strip()}
    print(f"bench_cuda: building: CMAKE_ARGS='{env['CMAKE_ARGS']}' {' '.join(command[1:])}", flush=True)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{(done.stdout + done.stderr)[-8000:]}\nbench_cuda: the build failed")
    spent = time.monotonic() - begun
    print(f"bench_cuda: built in {spent:.0f} s", flush=True)
    paths = [str(INSTALLED), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    again = [*sys.argv[1:], "--no-build", "--minutes", f"{args.minutes - spent / 60:.2f}"]
    os.execve(sys.executable, [sys.executable, str(HERE / "bench_cuda.py"), *again], env)


def prepare(args: argparse.Namespace, begun: float) -> Run:
    """The device, real or emulated, and its clocks."""
    deadline = begun + 60 * args.minutes
    import torch
    from gpu.clock import Clock, Copy
    from gpu.place import Run

    if args.dry_run:
        from gpu.dry import emulated

        clock = Clock(torch.device("cpu"), 2, dry=True)
        return Run(clock.device, clock, Copy(clock), deadline, on_cpu=emulated(), compiling=False)

    from pysoup import _native

    found = _native.capabilities()
    if not found["cuda_devices"]:
        why = found["cuda_reason"] if found["cuda"] else "built without CUDA: leave --no-build out"
        raise SystemExit(f"bench_cuda: {_native.load().__file__} has no kernels for a GPU here: {why}")
    clock = Clock(torch.device("cuda", torch.cuda.current_device()), args.repeats)
    return Run(clock.device, clock, Copy(clock), deadline, compiling=not args.no_compile)


def run_parts(run: Run, args: argparse.Namespace) -> dict[str, str]:
    """Runs the parts in order; returns those that failed, with the reason. One that fails does not end the others."""
    from gpu import check, dots, files, logits, sums

    calls: dict[str, Callable[[], None]] = {
        "check": lambda: check.small_cases(run),
        "big": lambda: sums.big(run),
        "vit": lambda: sums.vit(run),
        "candidate": lambda: sums.candidate(run),
        "logits": lambda: logits.plain(run),
        "vocabulary": lambda: logits.vocabulary(run),
        "ensemble": lambda: logits.ensemble(run),
        "dots": lambda: dots.dots(run),
        "files": lambda: files.files(run, run.clock.repeats),
    }
    failed: dict[str, str] = {}
    for part in (p for p in PARTS if p in args.parts):
        if run.seconds_left() < SECONDS_A_PART:
            print(f"bench_cuda: {part}: left out: no time is left", flush=True)
            continue
        started = time.monotonic()
        try:
            calls[part]()
        except Exception as error:
            traceback.print_exc()
            failed[part] = f"{type(error).__name__}: {error}"
        run.empty_cache()
        print(
            f"bench_cuda: {part}: {'FAILED' if part in failed else 'done'}, {time.monotonic() - started:.0f} s",
            flush=True,
        )
    return failed


def describe(run: Run) -> dict[str, Any]:
    """The machine, and the GPU in it."""
    import torch

    info = machine() | {"torch": torch.__version__}
    if run.dry:
        return info | {"gpu": "emulated"}
    properties = torch.cuda.get_device_properties(run.device)
    return info | {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "gpu_memory_gib": round(properties.total_memory / 2**30),
        "l2_mib": getattr(properties, "L2_cache_size", 0) >> 20,
        "torch_cuda": torch.version.cuda,
    }


def report(run: Run, args: argparse.Namespace, failed: dict[str, str], begun: float) -> None:
    info = describe(run)
    name = re.sub(r"\W+", "_", info["gpu"]).strip("_").lower()
    result = {
        "machine": info,
        "repeats": run.clock.repeats,
        "copy_bytes_per_second": run.copy_bandwidth,
        "measured": run.measured,
        "failed": failed,
        "checked": run.checked,
        "timeline": run.timeline,
        "times": run.times,
    }
    output = args.output or (ROOT / "build" / "bench_cuda_dry.json" if run.dry else RESULTS / f"cuda_{name}.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{info['gpu']}, torch {info['torch']}, {info['date']}, commit {info['commit']}; {output}")
    print(f"{len(run.checked)} kinds of result had the CPU's bits; {time.monotonic() - begun:.0f} s")
    for part, reason in failed.items():
        print(f"FAILED: {part}: {reason}")
    print()
    print("sizes and times of a dry run mean nothing" if run.dry else goals.last_table(run.measured))


def main() -> int:
    begun = time.monotonic()
    args = parse()
    if not args.dry_run:
        torch = need_gpu()
        if not args.no_build:
            build_and_go_on(torch, args, begun)
    if args.sanitize:
        return sanitizer.run(ROOT, begun + 60 * args.minutes)
    run = prepare(args, begun)
    failed = run_parts(run, args)
    report(run, args, failed, begun)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
