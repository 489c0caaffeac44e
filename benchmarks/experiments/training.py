"""The ingredients of one experiment and seed: what ``pysoup finetune`` makes of the sweep file with that seed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pysoup._native import default_threads
from pysoup.errors import SoupError
from pysoup.finetune.messages import Done
from pysoup.finetune.plan import Plan, read_plan
from pysoup.finetune.processes import run_plan

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "data" / "experiments"


def sweep_folder(experiment: str, seed: int, data: Path = DATA) -> Path:
    """Where the ingredients of a sweep are."""
    return data / experiment / f"seed{seed}"


def seeded_plan(sweep: Path, seed: int, folder: Path) -> Plan:
    """The plan of the file ``sweep`` with another seed, written to ``folder/sweep.toml`` too."""
    text = sweep.read_text(encoding="utf-8")
    text, seeds = re.subn(r"^seed = \d+$", f"seed = {seed}", text, flags=re.M)
    text, tasks = re.subn(r'^task = "(?=\w+\.py:)', f'task = "{sweep.resolve().parent.as_posix()}/', text, flags=re.M)
    if (seeds, tasks) != (1, 1):
        raise SoupError("the sweep needs one line with its seed and one with its task", file=sweep)
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / "sweep.toml"
    own.write_text(text, encoding="utf-8")
    return read_plan(own)


def train(sweep: Path, seed: int, folder: Path, jobs: int | None = None) -> None:
    """Make what is missing, a line on stderr for each run that ends.

    ``jobs`` processes at once; by default one for each CPU, so that each has one thread, whatever the machine.
    Raises :class:`SoupError` if a run failed, now or before.
    """
    plan = seeded_plan(sweep, seed, folder)

    def watch(message: object) -> None:
        if isinstance(message, Done):
            line = f"model_{message.run:02d}: {message.score:.4f}, {message.seconds:.0f} s"
            print(f"{sweep.stem}, seed {seed}: {line}", file=sys.stderr, flush=True)

    outcome = run_plan(plan, folder, jobs=default_threads() if jobs is None else jobs, retry=True, watch=watch)
    if outcome.failed:
        run, reason = next(iter(outcome.failed.items()))
        raise SoupError(f"run {run} failed: {reason}", file=folder)
