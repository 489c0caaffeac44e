"""``pysoup finetune``: a sweep file in, fine-tuned models out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BackendError
from .text import plural, printable, table

if TYPE_CHECKING:
    from ..finetune.hyperparameters import Hyperparameters
    from ..finetune.messages import Done, Failed, Queued, Step
    from ..finetune.processes import Outcome

# What a GPU's driver shows, also under ROCm and WSL: without any of it, asking torch would only take a second.
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_START = "linear probe"
_VARIED = ("learning_rate", "weight_decay", "epochs", "batch_size", "label_smoothing", "mixup", "seed")


def finetune(
    sweep: str,
    output: str,
    *,
    jobs: int | None,
    devices: str | None,
    limit: int | None,
    retry: bool,
    overwrite: bool,
) -> bool:
    """Run the sweep, print what came out of it, and return whether all runs are finished."""
    _require_torch()
    from ..finetune.plan import read_plan
    from ..finetune.processes import run_plan

    plan = read_plan(sweep)
    points = plan.points[:limit]
    with _watching() as watch:
        outcome = run_plan(
            plan,
            Path(output),
            devices=_devices(devices),
            jobs=jobs,
            limit=limit,
            retry=retry,
            overwrite=overwrite,
            watch=watch,
        )
    print(_report(outcome, points, output))
    return not outcome.failed


def _devices(text: str | None) -> list[str]:
    """The devices named; every CUDA device by default, else the CPU."""
    if text is None and not any(os.path.exists(driver) for driver in _DRIVERS):
        return ["cpu"]
    names = None if text is None else [name.strip() for name in text.split(",") if name.strip()]
    if names == []:
        raise BackendError("no devices named", found=repr(text), expected="such as cpu or cuda:0,cuda:1")
    if names is not None and set(names) == {"cpu"}:
        return names
    import torch

    present = torch.cuda.device_count()
    if names is None:
        return [f"cuda:{index}" for index in range(present)] or ["cpu"]
    for name in names:
        try:
            device = torch.device(name)
        except RuntimeError:
            raise BackendError("no such device", found=repr(name), expected="such as cpu or cuda:0") from None
        if device.type == "cuda" and (device.index or 0) >= present:
            expected = f"one of {present} CUDA devices" if present else "cpu: torch sees no CUDA device"
            raise BackendError("no such device", found=name, expected=expected)
    return names


def _report(outcome: Outcome, points: list[Hyperparameters], output: str) -> str:
    scores = outcome.made | outcome.found
    varied = [name for name in _VARIED if len({getattr(point, name) for point in points}) > 1]
    rows = []
    for run in sorted(scores.keys() | outcome.failed.keys()):
        values = [f"{getattr(points[run], name):.3g}" if name != "seed" else str(points[run].seed) for name in varied]
        score = f"{scores[run]:.5g}" if run in scores else "-"
        rows.append(
            [f"model_{run:02d}", score, *values, outcome.failed.get(run, "found" if run in outcome.found else "")]
        )
    lines = [table(["model", outcome.metric, *varied, ""], rows, right=(outcome.metric, *varied))]
    lines.append(
        f"{plural(len(scores), 'model')} in {printable(output)}: {len(outcome.made)} made, {len(outcome.found)} found"
    )
    if outcome.failed:
        lines.append(f"{plural(len(outcome.failed), 'run')} failed; --retry makes them again")
    return "\n".join(lines)


@contextmanager
def _watching() -> Iterator[Callable[[Step | Queued | Done | Failed], None]]:
    """A bar for the sweep and one for each run at work on a terminal; a line for each finished run elsewhere."""
    from ..finetune.messages import Done, Failed, Queued
    from ..progress import several_bars

    with several_bars() as bars:
        finished, runs = 0, 0

        def watch(message: Step | Queued | Done | Failed) -> None:
            nonlocal finished, runs
            if isinstance(message, (Done, Failed)):
                finished += 1
                if bars is None:
                    print(_line(message), file=sys.stderr, flush=True)
                else:
                    bars.remove(_name(message.run))
                    bars.show("fine-tuning", finished, runs)
            elif bars is None:
                pass  # steps are for bars
            elif isinstance(message, Queued):
                runs = message.runs
                bars.remove(_START)
                bars.show("fine-tuning", finished, runs)
            else:
                bars.show(_START if message.run is None else _name(message.run), message.done, message.total)

        yield watch


def _line(message: Done | Failed) -> str:
    from ..finetune.messages import Failed

    if isinstance(message, Failed):
        return f"{_name(message.run)}: failed: {message.line}"
    return f"{_name(message.run)}: {message.score:.5g}, {message.seconds:.0f} s"


def _name(run: int) -> str:
    return f"model_{run:02d}"


def _require_torch() -> None:
    if find_spec("torch") is None:
        install = "pip install 'model-soups[torch]' (in a checkout: '.[torch]')"
        raise BackendError(f"fine-tuning needs torch: {install}")
