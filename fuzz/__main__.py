"""Fuzzes all readers of checkpoints: `python -m fuzz --runs 1000000`. Exits 1 if anything was found.

The runs are split over the targets, and each target over `--jobs` processes. Equal seeds give equal inputs.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from .harness import MEMORY, working_directory
from .targets import TARGETS

ROOT = Path(__file__).resolve().parent.parent
CRASHES = Path("fuzz/crashes")
_POLL = 0.05
_LINES_SHOWN = 25


@dataclass
class Task:
    """One process: so many runs of a target."""

    target: str
    runs: int
    seed: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    done: int = 0
    grown: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), help=", ".join(TARGETS))
    parser.add_argument("--runs", type=int, default=1_000_000, help="in all")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="without atheris, even where it is installed")
    options = parser.parse_args()
    if unknown := set(options.targets) - TARGETS.keys():
        parser.error(f"no target {unknown.pop()!r}; there are {', '.join(TARGETS)}")
    started = time.monotonic()
    guided = not options.plain and _has_atheris()
    with working_directory() as directory:
        seeds = Path(directory, "seeds")
        subprocess.run([sys.executable, "-m", "fuzz.seeds", str(seeds)], cwd=ROOT, check=True)
        tasks = list(_tasks(options, Path(directory)))
        failed = [task for task in _finished(tasks, options.jobs, seeds, guided) if not _succeeded(task)]
    runs, grown = sum(task.done for task in tasks), max(task.grown for task in tasks)
    how = "guided by coverage" if guided else "without atheris, so not guided by coverage"
    print(
        f"{runs:,} runs in {time.monotonic() - started:.0f} s on {options.jobs} processes, {how}; at most "
        f"{grown / 2**20:.0f} MiB more than at the start (limit {MEMORY >> 20}); {len(failed)} findings"
    )
    return 1 if failed else 0


def _has_atheris() -> bool:
    # In a process of its own: the machine must be able to load it, too.
    return subprocess.run([sys.executable, "-c", "import atheris"], capture_output=True, check=False).returncode == 0


def _tasks(options: argparse.Namespace, directory: Path) -> Iterator[Task]:
    parts = [(name, part) for name in options.targets for part in range(options.jobs)]
    shares = [TARGETS[name].share for name, _ in parts]
    ends = [options.runs * end // sum(shares) for end in accumulate(shares, initial=0)]
    for (name, part), (begin, end) in zip(parts, pairwise(ends), strict=True):
        yield Task(name, end - begin, options.seed * options.jobs + part, directory / f"{name}-{part}.log")


def _finished(tasks: list[Task], jobs: int, seeds: Path, guided: bool) -> Iterator[Task]:
    """Each task when it has ended; ``jobs`` run at a time, and none is left behind."""
    waiting, running = list(tasks), list[Task]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(waiting.pop(0), seeds, guided))
            time.sleep(_POLL)
            for task in [t for t in running if t.process is not None and t.process.poll() is not None]:
                running.remove(task)
                yield task
    finally:
        for task in running:
            if task.process is not None:
                task.process.kill()
                task.process.wait()


def _start(task: Task, seeds: Path, guided: bool) -> Task:
    found = task.log.with_suffix(".found")
    found.mkdir()
    command = [sys.executable, "-m", "fuzz.worker", task.target, str(seeds / task.target), "--found", str(found)]
    command += ["--runs", str(task.runs), "--seed", str(task.seed), "--crashes", str(CRASHES)]
    # Hashes of strings decide orders, and orders what is covered.
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    with task.log.open("wb") as log:
        task.started = time.monotonic()
        task.process = subprocess.Popen(
            [*command, *(() if guided else ("--plain",))], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    return task


def _succeeded(task: Task) -> bool:
    text = task.log.read_text(errors="replace")
    seconds = time.monotonic() - task.started
    task.done = _number(r"(?:stat::number_of_executed_units|done): *(\d+)", text)
    task.grown = max(0, _number(r"peak: *(\d+)", text) or (_number(r"stat::peak_rss_mb: *(\d+)", text) << 20))
    task.grown = max(0, task.grown - _number(r"start: (\d+) bytes", text))
    assert task.process is not None
    passed = task.process.returncode == 0 and task.done >= task.runs
    coverage = re.findall(r"cov: (\d+)", text)
    print(
        f"{task.target}: {task.done:,} of {task.runs:,} runs in {seconds:.0f} s, {task.grown / 2**20:.0f} MiB more"
        + (f", {coverage[-1]} edges covered" if coverage else "")
        + ("" if passed else f"; FOUND, exit status {task.process.returncode}"),
        flush=True,
    )
    if not passed:
        _explain(task, text)
    return passed


def _explain(task: Task, text: str) -> None:
    begin = max(text.rfind("=== Uncaught Python exception"), text.rfind("Traceback (most recent call last)"))
    lines = text[begin:].splitlines()[:_LINES_SHOWN] if begin >= 0 else text.splitlines()[-_LINES_SHOWN:]
    print(*(f"    {line[:300]}" for line in lines if not line.startswith(("0x", "Base64"))), sep="\n")
    saved = re.findall(r"(?:Test unit written to|input:) (\S+)", text)
    if saved:
        print(f"  replay it: {sys.executable} -m fuzz.worker {task.target} {saved[-1]} --replay")
        print(f"  once mended, keep it: cp {saved[-1]} fuzz/regressions/{task.target}/")


def _number(pattern: str, text: str) -> int:
    match = re.findall(pattern, text)
    return int(match[-1]) if match else 0


if __name__ == "__main__":
    sys.exit(main())
