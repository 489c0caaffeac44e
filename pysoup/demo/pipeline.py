"""The whole demo: start, sweep, soups, scores, table and figure, all in one directory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._version import __version__
from ..checkpoint import open_checkpoint
from ..errors import OutputError
from ..evaluate import HeldOut, evaluate
from ..finetune import Hyperparameters, Ingredient, Ranges, Sweep, sample_hyperparameters
from ..progress import StepProgress, step_bar
from ..report import Result, ResultsTable, figure1, results_table
from ..soups import Soup, greedy_soup, uniform_soup
from ..soups.files import write_json
from .images import rand_augment
from .start import PRETRAINING, make_start
from .task import Digits, digits

RANGES = Ranges(
    batch_size=(32,),
    log10_learning_rate=(-2.8, -2.4),
    epochs=(10, 20),
    augment_ops=(1, 3),
    augment_magnitude=(5, 20),
    minimal_augmentation=0.0,
    final_share=(1.0, 1.0),
)
"""The paper's laws, narrowed on the held-out data to where soups gain: learning rate within 2.5x (its level is this
small network's), constant after the warm-up, and always some augmentation. See docs/demo.md."""
# A line for every so many epochs of pre-training, where there is no terminal to draw a bar on.
_LINE_EVERY = {"pre-training": 20}


@dataclass(frozen=True)
class DemoResult:
    """What the demo found. Accuracies are in [0, 1]; ``seconds`` is wall time.

    The rows of ``table`` are the best and the second best model by held-out accuracy, the uniform and the greedy soup;
    ``models`` are all ingredients in the order of the search; ``heldout`` is the held-out accuracy by name.
    """

    output: Path
    table: ResultsTable
    models: list[Result]
    initialization: Result
    heldout: dict[str, float]
    greedy: Soup
    uniform: Soup
    seconds: float


def run_demo(
    output: str | os.PathLike[str],
    *,
    seed: int,
    ingredients: int,
    threads: int = 1,
    quiet: bool = False,
    task: Digits = digits,
    ranges: Ranges = RANGES,
    pretraining_hp: Hyperparameters = PRETRAINING,
) -> DemoResult:
    """See :func:`pysoup.demo.run`; ``task``, ``ranges`` and ``pretraining_hp`` make smaller demos."""
    directory = _directory(output)
    with _threads(threads):
        began = time.perf_counter()
        with _stage("pre-training", quiet) as progress:
            start = make_start(
                directory / "start.safetensors",
                task.pretraining(),
                task.train(),
                pretraining_hp=pretraining_hp,
                progress=progress,
            )
        model = task.model()
        model.load_state_dict(start)
        heldout = HeldOut(task.heldout())
        hyperparameters = sample_hyperparameters(ingredients, seed, ranges)
        sweep = Sweep(
            directory / "ingredients",
            model,
            task.train(),
            hyperparameters,
            heldout,
            augment=rand_augment,
            overwrite=True,
        )
        with _stage("fine-tuning", quiet) as progress:
            made = sweep.run(progress)
        uniform, greedy = _soups(made, model, heldout, quiet)
        result = _compare(directory, task, model, start, made, uniform, greedy, began, quiet)
    _write(result, made, seed)
    if not quiet:
        _show(result)
    return result


def _soups(made: Sequence[Ingredient], model: nn.Module, heldout: HeldOut, quiet: bool) -> tuple[Soup, Soup]:
    paths = [str(ingredient.path) for ingredient in made]
    with _stage("uniform soup", quiet) as progress:
        uniform = uniform_soup(paths, model, heldout, progress=progress)
    with _stage("greedy soup", quiet) as progress:
        scores = [ingredient.score for ingredient in made]
        greedy = greedy_soup(paths, model, heldout, scores=scores, progress=progress)
    return uniform, greedy


def _compare(
    directory: Path,
    task: Digits,
    model: nn.Module,
    start: Mapping[str, Tensor],
    made: Sequence[Ingredient],
    uniform: Soup,
    greedy: Soup,
    began: float,
    quiet: bool,
) -> DemoResult:
    """Score everything on the test sets: only here, when nothing is left to choose."""
    tests = {name: HeldOut(data) for name, data in task.tests().items()}
    candidates: dict[str, Any] = {"initialization": start}
    candidates |= {ingredient.path.stem: ingredient.path for ingredient in made}
    candidates |= {"Uniform soup": uniform.state_dict(), "Greedy soup": greedy.state_dict()}
    results: dict[str, Result] = {}
    with _stage("testing", quiet) as progress:
        for name, source in candidates.items():
            model.load_state_dict(open_checkpoint(source).state_dict() if isinstance(source, Path) else source)
            results[name] = _tested(name, model, tests)
            if progress is not None:
                progress(len(results), len(candidates), name)
    ranking = sorted(made, key=lambda ingredient: -ingredient.score)
    heldout = {ingredient.path.stem: ingredient.score for ingredient in made}
    for soup, name in ((uniform, "Uniform soup"), (greedy, "Greedy soup")):
        assert soup.score is not None  # both were given held-out data
        heldout[name] = soup.score
    named = zip(("Best individual model", "Second best model"), ranking, strict=False)
    rows = [_renamed(results[ingredient.path.stem], name) for name, ingredient in named]
    rows += [results["Uniform soup"], results["Greedy soup"]]
    return DemoResult(
        output=directory,
        table=results_table(rows, test=next(iter(tests))),
        models=[results[ingredient.path.stem] for ingredient in made],
        initialization=results["initialization"],
        heldout=heldout,
        greedy=greedy,
        uniform=uniform,
        seconds=time.perf_counter() - began,
    )


def _tested(name: str, model: nn.Module, tests: Mapping[str, HeldOut]) -> Result:
    scores = {key: evaluate(model, data) for key, data in tests.items()}
    first = next(iter(scores))
    return Result(name, scores.pop(first), scores)


def _renamed(result: Result, name: str) -> Result:
    return Result(name, result.test, result.shifts)


def _write(result: DemoResult, made: Sequence[Ingredient], seed: int) -> None:
    directory, table = result.output, result.table
    result.greedy.save(directory / "soup.safetensors", overwrite=True)
    result.greedy.save_trace(directory / "trace.json", overwrite=True)
    result.uniform.save(directory / "uniform.safetensors", overwrite=True)
    (directory / "table.md").write_text(table.markdown(), encoding="utf-8")
    uniform, greedy = table.rows[-2:]
    figure1(
        directory / "figure1.png",
        models=result.models,
        greedy=greedy,
        uniform=uniform,
        initialization=result.initialization,
        test=table.test,
    )
    content = {
        "pysoup": __version__,
        "seed": seed,
        **table.to_json(),
        "initialization": result.initialization.to_json(),
        "models": [model.to_json() for model in result.models],
        "heldout": result.heldout,
        "greedy_ingredients": result.greedy.ingredients,
        "training_seconds": sum(ingredient.seconds for ingredient in made),
        "seconds": result.seconds,
        "threads": torch.get_num_threads(),
    }
    write_json(directory / "results.json", content, overwrite=True)


def _show(result: DemoResult) -> None:
    from rich.console import Console

    if sys.stdout.isatty():
        Console().print(result.table.rich())
    else:
        print(result.table.markdown(), end="")
    kept, all_models = len(result.greedy.ingredients), len(result.models)
    print(f"greedy soup: {kept} of {all_models} models; {result.seconds:.0f} s; everything is in {result.output}")


@contextmanager
def _stage(label: str, quiet: bool) -> Iterator[StepProgress | None]:
    """A bar on a terminal, lines elsewhere (both on stderr), nothing if ``quiet``; at the end the time it took."""
    if quiet:
        yield None
        return
    began = time.perf_counter()

    def line(done: int, total: int, what: str) -> None:
        if done % _LINE_EVERY.get(label, 1) == 0 or done == total:
            print(f"{label}: {done}/{total} {what}", file=sys.stderr, flush=True)

    with step_bar(label) as bar:
        yield line if bar is None else bar
    print(f"{label}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)


def _directory(output: str | os.PathLike[str]) -> Path:
    directory = Path(output)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the directory: {error.strerror}", file=directory) from error
    return directory
