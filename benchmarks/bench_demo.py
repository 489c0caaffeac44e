"""The demo over several sweep seeds: what the soups gain, mean and spread. Prints Markdown, writes JSON.

Data, splits and the start are the same for all seeds; hyperparameters and training differ. Nothing is chosen on the
test sets, and no seed is left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import pysoup
import pysoup.demo

METHODS = {"best": 0, "second": 1, "uniform": 2, "greedy": 3}
MEASURES = {"test": "test", "mean_shift": "mean of shifts"}


def main() -> None:
    """Parse the arguments, run, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="sweep seeds")
    parser.add_argument("--ingredients", type=int, default=pysoup.demo.INGREDIENTS)
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "demo.json")
    parser.add_argument("--keep", type=Path, help="keep the runs here, and go on from what is there")
    options = parser.parse_args()
    if options.keep is not None:
        report = measure(options.seeds, options.ingredients, options.threads, options.keep)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            report = measure(options.seeds, options.ingredients, options.threads, Path(scratch))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print("\n".join(markdown(report)))


def measure(seeds: Sequence[int], ingredients: int, threads: int, scratch: Path) -> dict[str, Any]:
    """One demo per seed; the first makes the start, the others use it."""
    runs = []
    start = scratch / f"seed{seeds[0]}" / "start.safetensors"
    for seed in seeds:
        output = scratch / f"seed{seed}"
        output.mkdir(parents=True, exist_ok=True)
        if start.exists() and not (output / start.name).exists():
            shutil.copyfile(start, output / start.name)
        result = pysoup.demo.run(output, seed=seed, ingredients=ingredients, threads=threads, quiet=True)
        rows = [row.to_json() for row in result.table.rows]
        accuracies = [model.test for model in result.models]
        runs.append(
            {
                "seed": seed,
                **{method: rows[index] for method, index in METHODS.items()},
                "heldout": result.heldout,
                "mean_model": {"test": statistics.fmean(accuracies), "worst": min(accuracies)},
                "initialization": result.initialization.to_json(),
                "greedy_ingredients": len(result.greedy.ingredients),
                "seconds": round(result.seconds, 1),
            }
        )
    return {
        "pysoup": pysoup.__version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {threads} threads",
        "ingredients": ingredients,
        "runs": runs,
    }


def markdown(report: dict[str, Any]) -> Iterator[str]:
    """Mean and standard deviation over the seeds, the differences seed by seed, then each seed."""
    runs = report["runs"]
    size = f"{len(runs)} sweep seeds, {report['ingredients']} ingredients each"
    yield f"{size}; accuracy in %, mean ± standard deviation over the seeds."
    yield ""
    yield "| Method | mnist test | mean of shifts |"
    yield "| --- | ---: | ---: |"
    for method in METHODS:
        cells = (_spread([run[method][measure] for run in runs]) for measure in MEASURES)
        yield f"| {method} | {' | '.join(cells)} |"
    for method, other in (("greedy", "best"), ("uniform", "best")):
        cells = (_spread([run[method][m] - run[other][m] for run in runs], sign="+") for m in MEASURES)
        yield f"| {method} - {other}, paired | {' | '.join(cells)} |"
    yield ""
    yield "| seed | best | second | uniform | greedy | greedy keeps | mean of models | worst model | seconds |"
    yield "| ---: | --- | --- | --- | --- | ---: | ---: | ---: | ---: |"
    for run in runs:
        cells = [f"{100 * run[m]['test']:.2f} / {100 * run[m]['mean_shift']:.2f}" for m in METHODS]
        models = [f"{100 * run['mean_model'][key]:.2f}" for key in ("test", "worst")]
        tail = [str(run["greedy_ingredients"]), *models, f"{run['seconds']:.0f}"]
        yield f"| {run['seed']} | {' | '.join([*cells, *tail])} |"
    yield ""
    yield "Each cell of the second table: test / mean of shifts."


def _spread(values: Sequence[float], sign: str = "") -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.fmean(values):{sign}.2f} ± {100 * spread:.2f}"


if __name__ == "__main__":
    main()
