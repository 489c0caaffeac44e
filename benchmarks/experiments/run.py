"""The recorded experiments: fine-tune, make the soups, write results and tables.

    python benchmarks/experiments/run.py text|images [--seeds 0 1 2] [--stage train|soups|mixed|table]

Without --stage, all in turn; `mixed` makes only the soups of unequal weights anew, which `soups` makes, too. What is
done is not done again: a run that was stopped goes on when started again. Ingredients are kept in
benchmarks/data/experiments, results in benchmarks/results/experiments_NAME.json, and the tables go between the markers
of benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import measure  # noqa: E402
import table  # noqa: E402
from training import sweep_folder, train  # noqa: E402

import pysoup  # noqa: E402
from pysoup.errors import SoupError  # noqa: E402

EXPERIMENTS = {"text": "text_task.py:sections", "images": "image_task.py:digits"}
"""Name of the experiment, and its task in this folder."""
STAGES = ("train", "soups", "table")
AGAIN = "mixed"
SEEDS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=tuple(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="sweep seeds")
    parser.add_argument("--stage", choices=(*STAGES, AGAIN), action="append", help="only this one; may be given again")
    parser.add_argument("--jobs", type=int, help="processes that fine-tune; as many as CPUs, so with a thread each")
    options = parser.parse_args()
    stages = options.stage or STAGES
    try:
        if "train" in stages:
            for seed in options.seeds:
                train(_sweep(options.experiment), seed, sweep_folder(options.experiment, seed), options.jobs)
        if "soups" in stages:
            make_soups(options.experiment, options.seeds)
        if AGAIN in stages:
            mix_again(options.experiment, options.seeds)
        if "table" in stages:
            write_table(options.experiment)
    except SoupError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def make_soups(name: str, seeds: Sequence[int]) -> None:
    """Compare all methods on the ingredients of each seed; saved after each, beside the results of other seeds."""
    import torch
    from soups import compare

    for seed in seeds:
        pool, task = _pool(name, seed)
        found = {"seed": seed, **compare(pool)}
        known = _results(name)
        runs = {run["seed"]: run for run in (known["runs"] if known else [])} | {seed: found}
        report = {
            "machine": measure.machine(),
            "pysoup": pysoup.__version__,
            "torch": torch.__version__,
            "isa": torch.backends.cpu.get_cpu_capability(),
            "data": task.summary(),
            "test": next(iter(pool.tests)),
            "runs": [runs[key] for key in sorted(runs)],
        }
        measure.save(f"experiments_{name}", report)
        best, greedy = (found["methods"][key]["test"] for key in ("best", "greedy"))
        print(f"{name}, seed {seed}: best {best:.4f}, greedy {greedy:.4f}", file=sys.stderr, flush=True)


def mix_again(name: str, seeds: Sequence[int]) -> None:
    """The soups of unequal weights alone, put beside the other methods in the results of each seed."""
    from soups import mixed

    for seed in seeds:
        known = _results(name)
        run = next((run for run in known["runs"] if run["seed"] == seed), None) if known else None
        if known is None or run is None:
            raise SoupError(f"no results of seed {seed} yet: --stage soups makes them", file=_file(name))
        pool, _ = _pool(name, seed)
        run["methods"] |= mixed(pool)
        measure.save(f"experiments_{name}", known)
        print(f"{name}, seed {seed}: learned {run['methods']['learned']['test']:.4f}", file=sys.stderr, flush=True)


def _pool(name: str, seed: int) -> tuple[Any, Any]:
    """The ingredients of a seed, and the task."""
    import torch
    from pool import Pool
    from training import seeded_plan

    from pysoup.task import load_task

    torch.set_num_threads(1)
    task: Any = load_task(f"{HERE}/{EXPERIMENTS[name]}")
    folder = sweep_folder(name, seed)
    return Pool(task, folder, len(seeded_plan(_sweep(name), seed, folder).points)), task


def write_table(name: str) -> None:
    """The block of one experiment in benchmarks/README.md."""
    known = _results(name)
    if known is None:
        raise SoupError("no results yet: --stage soups makes them", file=_file(name))
    table.insert(HERE.parent / "README.md", f"experiments_{name}", table.block(known))


def _results(name: str) -> dict[str, Any] | None:
    file = _file(name)
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _file(name: str) -> Path:
    return Path(measure.RESULTS) / f"experiments_{name}.json"


def _sweep(name: str) -> Path:
    return HERE / f"sweep_{name}.toml"


if __name__ == "__main__":
    main()
