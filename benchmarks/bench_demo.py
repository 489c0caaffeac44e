"""The demo over several sweep seeds: what the soups gain, mean and spread. Prints Markdown, writes JSON.

Data, splits and the start are the same for all seeds; hyperparameters and training differ. Nothing is chosen on the
test sets, no seed is left out, and none of the default seeds served to choose the set-up.

python benchmarks/bench_demo.py                 the study: about ten minutes on two cores
python benchmarks/bench_demo.py --table-only    the tables again, from the saved JSON
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from measure import RESULTS, machine

SEEDS = (10, 11, 12, 13, 14)
METHODS = {
    "initialization": "Start (linear probe)",
    "best": "Best individual model",
    "second": "Second best model",
    "uniform": "Uniform soup",
    "greedy": "Greedy soup",
}
PAIRS = (("greedy", "best"), ("uniform", "best"), ("greedy", "initialization"))


def main() -> None:
    """Parse the arguments, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="sweep seeds")
    parser.add_argument("--ingredients", type=int, help="how many models per seed; the demo's own number otherwise")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads; the results depend on them")
    parser.add_argument("--out", type=Path, default=RESULTS / "demo.json")
    parser.add_argument("--keep", type=Path, help="keep the runs here, and go on from what is there")
    parser.add_argument("--table-only", action="store_true", help="print the tables of what --out holds; run nothing")
    options = parser.parse_args()
    if options.table_only:
        report = json.loads(options.out.read_text(encoding="utf-8"))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) if options.keep is None else options.keep
            report = measure(options.seeds, options.ingredients, options.threads, folder)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print("\n".join(markdown(report)))


def measure(seeds: Sequence[int], ingredients: int | None, threads: int, scratch: Path) -> dict[str, Any]:
    """One demo per seed; the first makes the start, the others use it."""
    import torch

    import pysoup
    import pysoup.demo

    models = pysoup.demo.INGREDIENTS if ingredients is None else ingredients
    report: dict[str, Any] = {
        "machine": machine(),
        "pysoup": pysoup.__version__,
        "torch": torch.__version__,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "ingredients": models,
        "runs": [],
    }
    start = scratch / f"seed{seeds[0]}" / "start.safetensors"
    for seed in seeds:
        output = scratch / f"seed{seed}"
        output.mkdir(parents=True, exist_ok=True)
        if start.exists() and not (output / start.name).exists():
            shutil.copyfile(start, output / start.name)
        result = pysoup.demo.run(output, seed=seed, ingredients=models, threads=threads, quiet=True)
        report["runs"].append({"seed": seed, **_run(result)})
    return report


def _run(result: Any) -> dict[str, Any]:
    best, second, uniform, greedy = (row.to_json() for row in result.table.rows)
    accuracies = [model.test for model in result.models]
    return {
        "initialization": result.initialization.to_json(),
        "best": best,
        "second": second,
        "uniform": uniform,
        "greedy": greedy,
        "heldout": result.heldout,
        "mean_model": {"test": statistics.fmean(accuracies), "worst": min(accuracies), "best": max(accuracies)},
        "greedy_ingredients": len(result.greedy.ingredients),
        "seconds": round(result.seconds, 1),
    }


def markdown(report: dict[str, Any]) -> list[str]:
    """The lines of two tables, from the report alone: mean and standard deviation over the seeds, then each seed."""
    return [*_head(report), "", *_means(report["runs"]), "", *_seeds(report["runs"])]


def _head(report: dict[str, Any]) -> Iterator[str]:
    info, runs = report["machine"], report["runs"]
    yield (
        f"{info['cpu']}, {info['cores']} cores, {info['memory_gib']} GiB, {info['date']}, commit {info['commit']}; "
        f"torch {report['torch']}, {report['isa']}, {report['threads']} thread{'s' if report['threads'] > 1 else ''}."
    )
    yield ""
    yield (
        f"{len(runs)} sweep seeds, {report['ingredients']} ingredients each; accuracy in %, mean ± standard deviation "
        "over the seeds; differences are taken seed by seed."
    )


def _means(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    columns = ["mnist test", "mean of shifts", *runs[0]["best"]["shifts"]]
    yield _line(["Method", *columns])
    yield _line(["---", *["---:"] * len(columns)])
    for method, name in METHODS.items():
        yield _line([name, *(_spread(values) for values in zip(*(_values(run[method]) for run in runs), strict=True))])
    for method, other in PAIRS:
        differences = [[a - b for a, b in zip(_values(run[method]), _values(run[other]), strict=True)] for run in runs]
        name = f"{method} - {'start' if other == 'initialization' else other}"
        yield _line([name, *(_spread(values, sign="+") for values in zip(*differences, strict=True))])


def _seeds(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    names = ["best", "second", "uniform", "greedy"]
    yield _line(["seed", *names, "greedy keeps", "models on the test set: worst, mean, best", "seconds"])
    yield _line(["---:", *["---:"] * len(names), "---:", "---:", "---:"])
    for run in runs:
        cells = [f"{100 * run[name]['test']:.2f} / {100 * run[name]['mean_shift']:.2f}" for name in names]
        models = ", ".join(f"{100 * run['mean_model'][key]:.2f}" for key in ("worst", "test", "best"))
        yield _line([str(run["seed"]), *cells, str(run["greedy_ingredients"]), models, f"{run['seconds']:.0f}"])
    yield ""
    yield "A cell of this table is: mnist test / mean of shifts. The first seed's time includes the pre-training."


def _values(row: dict[str, Any]) -> list[float]:
    return [row["test"], row["mean_shift"], *row["shifts"].values()]


def _spread(values: Sequence[float], sign: str = "") -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.fmean(values):{sign}.2f} ± {100 * spread:.2f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
