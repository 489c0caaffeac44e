"""Analyses of the recorded experiments: every one of `pysoup analyze`, on the ingredients of each sweep.

    python benchmarks/experiments/analyze.py text|images [--seeds 0 1 2] [--only plane pairs] [--again] [--draw]

Needs the ingredients that run.py made. Numbers go to benchmarks/results/analysis_NAME_STEP.json, one entry a seed;
figures of the first seed to docs/figures/NAME_STEP.svg. What is there is left alone, unless --again; --draw only draws.
Scores are kept beside the ingredients as they are measured: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # behind this folder: both have a run.py

import function_steps  # noqa: E402
import measure  # noqa: E402
from run import EXPERIMENTS, SEEDS  # noqa: E402
from training import sweep_folder  # noqa: E402

import pysoup  # noqa: E402
from pysoup.errors import SoupError  # noqa: E402

FIGURES = HERE.parent.parent / "docs" / "figures"


@dataclass(frozen=True)
class Budget:
    """What a seed may cost: samples of each set, training samples, the grid of the plane, pairs."""

    samples: int
    train: int
    grid: tuple[int, int]
    pairs: int


BUDGETS = {
    "images": Budget(samples=1024, train=500, grid=(9, 9), pairs=60),
    "text": Budget(samples=256, train=256, grid=(7, 7), pairs=30),
}
GROUPS = {"images": ["mixup", "label_smoothing"], "text": ["label_smoothing"]}
"""What the targets of a training are softened by: pairs are grouped by how many of the two have it."""


@dataclass
class Sweep:
    """The ingredients of one seed, and where its results go."""

    experiment: str
    seed: int
    figure: Path | None
    """Where the step's figure is to go; None: it is not drawn."""

    @property
    def budget(self) -> Budget:
        return BUDGETS[self.experiment]

    @property
    def task(self) -> str:
        return f"{HERE / EXPERIMENTS[self.experiment]}"

    @property
    def folder(self) -> Path:
        return sweep_folder(self.experiment, self.seed)

    @property
    def start(self) -> Path:
        """What all were fine-tuned from."""
        return self.folder / "start" / "start.safetensors"

    @cached_property
    def paths(self) -> list[Path]:
        found = sorted(self.folder.glob("model_*.safetensors"))
        if not found:
            raise SoupError("no ingredients: run.py --stage train makes them", file=self.folder)
        return found

    @cached_property
    def ranked(self) -> list[Path]:
        """From the best recorded held-out score down, ties in order."""
        from pysoup.record import read_record

        scores = {}
        for path in self.paths:
            record = read_record(path)
            if record is None:
                raise SoupError("it has no record", file=path)
            scores[path] = record.score
        return sorted(self.paths, key=lambda path: -scores[path])

    @cached_property
    def sets(self) -> Any:
        """The task's model, and samples of its sets."""
        from pysoup.analysis import Sets

        return Sets(self.task, train=self.budget.train, samples=self.budget.samples)

    @property
    def scores(self) -> Path:
        """Where scores are kept."""
        file = self.folder / "analysis" / f"scores_{self.budget.samples}.json"
        file.parent.mkdir(exist_ok=True)
        return file

    def progress(self, done: int, total: int, what: str) -> None:
        """A line on stderr now and then."""
        if done == total or done % 20 == 0:
            print(f"{self.experiment}, seed {self.seed}: {done} of {total}", file=sys.stderr, flush=True)


def geometry(sweep: Sweep) -> dict[str, Any]:
    """Norms, distances and angles of all weight matrices."""
    from pysoup.analysis import weight_geometry
    from pysoup.analysis.figures_weights import geometry_figure

    found = weight_geometry([*sweep.paths], sweep.start, exclude_norms=True)
    if sweep.figure is not None:
        geometry_figure(found, sweep.figure)
    content = found.to_json()
    moved = content["from_base"]
    names = [path.stem for path in sweep.paths]
    return {"models": names, **{key: moved[key] for key in ("base_norm", "distances", "angles")}}


def plane(sweep: Sweep) -> dict[str, Any]:
    """The plane through the start and the two models with the best held-out scores."""
    from pysoup.analysis import error_plane
    from pysoup.analysis.figures_weights import plane_figure

    first, second = sweep.ranked[:2]
    found = error_plane(
        sweep.sets,
        sweep.start,
        first,
        second,
        grid=sweep.budget.grid,
        scores=sweep.scores,
        progress=sweep.progress,
    )
    if sweep.figure is not None:
        plane_figure(found, sweep.figure)
    return {
        "models": [Path(name).stem for name in found.names],
        "coordinates": found.basis.corners,
        "x": found.x,
        "y": found.y,
        "lowest": found.lowest(),
        "surfaces": found.surfaces,
    }


def angles(sweep: Sweep) -> dict[str, Any]:
    """Angles against gains, in groups of soft and hard targets."""
    from pysoup.analysis import angle_gains
    from pysoup.analysis.figures_weights import angles_figure

    found = angle_gains(
        sweep.sets,
        [*sweep.paths],
        sweep.start,
        pairs=sweep.budget.pairs,
        by=GROUPS[sweep.experiment],
        scores=sweep.scores,
        progress=sweep.progress,
    )
    if sweep.figure is not None:
        angles_figure(found, sweep.figure)
    content = found.to_json()
    return {key: content[key] for key in ("sets", "by", "correlations", "pairs")}


def pairs(sweep: Sweep) -> dict[str, Any]:
    """The soup of two against their ensemble."""
    from pysoup.analysis import pair_scores
    from pysoup.analysis.figures_weights import pairs_figure

    found = pair_scores(
        sweep.sets, [*sweep.paths], pairs=sweep.budget.pairs, scores=sweep.scores, progress=sweep.progress
    )
    if sweep.figure is not None:
        pairs_figure(found, sweep.figure)
    content = found.to_json()
    return {key: content[key] for key in ("test", "shifts", "agreement", "alone", "pairs")}


STEPS: dict[str, Callable[[Sweep], dict[str, Any]]] = {
    "geometry": geometry,
    "plane": plane,
    "pairs": pairs,
    "angles": angles,
    **function_steps.STEPS,
}
"""In this order: what one has scored, the next need not."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=tuple(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="sweep seeds")
    parser.add_argument("--only", choices=tuple(STEPS), nargs="+", default=list(STEPS), help="these steps")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    parser.add_argument("--draw", action="store_true", help="the figures again, from the scores that are kept")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    try:
        for seed in options.seeds:
            for step in options.only:
                _run(options.experiment, seed, step, again=options.again, draw=options.draw)
    except SoupError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _run(experiment: str, seed: int, step: str, *, again: bool, draw: bool) -> None:
    name = f"analysis_{experiment}_{step}"
    file = measure.RESULTS / f"{name}.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"runs": []}
    runs = {run["seed"]: run for run in known["runs"]}
    figure = FIGURES / f"{experiment}_{step}.svg" if seed == SEEDS[0] and step not in function_steps.UNDRAWN else None
    wanted = seed not in runs or again or (draw and figure is not None)
    if not wanted and (figure is None or figure.exists()):
        return
    FIGURES.mkdir(exist_ok=True)
    started = time.perf_counter()
    found = STEPS[step](_sweep(experiment, seed, figure))
    seconds = time.perf_counter() - started
    print(f"{experiment}, seed {seed}, {step}: {seconds:.0f} s", file=sys.stderr, flush=True)
    if seed in runs and not again:
        return  # it was only drawn
    runs[seed] = {"seed": seed, "seconds": round(seconds, 1), **found}
    budget = BUDGETS[experiment]
    report = {
        "machine": measure.machine(),
        "pysoup": pysoup.__version__,
        "samples": budget.samples,
        "runs": [runs[key] for key in sorted(runs)],
    }
    measure.save(name, _rounded(report))


_sweeps: dict[tuple[str, int], Sweep] = {}


def _sweep(experiment: str, seed: int, figure: Path | None) -> Sweep:
    """One for all steps of a seed: the task's data is read once."""
    sweep = _sweeps.setdefault((experiment, seed), Sweep(experiment, seed, None))
    sweep.figure = figure
    return sweep


def _rounded(value: Any) -> Any:
    """Six digits are enough for a record."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


if __name__ == "__main__":
    main()
