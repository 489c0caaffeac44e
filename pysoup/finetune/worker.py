"""A process that fine-tunes: ``python -m pysoup.finetune.worker``, started by :mod:`.processes` and by nobody else.

It loads the task, gets the shared start, and then makes the ingredients whose numbers it is sent. After a failed run it
ends, because a device may be out of memory or worse; the next run gets a fresh process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from ..errors import OutputError, SoupError
from .failures import one_line, trace_of
from .messages import Broken, Done, Failed, Job, Ready, Step

if TYPE_CHECKING:
    from ..evaluate import Metric
    from .plan import Plan

_EVERY = 0.2  # seconds between two reports of progress


def work(connection: Connection) -> None:
    """Receive a :class:`Job`, then numbers of runs until the other side closes; send what happens."""
    job: Job = connection.recv()
    try:
        kitchen = _Kitchen(job, connection.send)
        connection.send(kitchen.ready())
    except Exception as error:
        connection.send(Broken(_of_the_task(error, job.plan.task)))
        return
    while True:
        try:
            run: int = connection.recv()
        except EOFError:
            return
        try:
            connection.send(kitchen.make(run))
        except OutputError as error:
            connection.send(Broken(str(error)))
            return
        except Exception as error:
            connection.send(Failed(run, one_line(error), trace_of(error)))
            return


class _Kitchen:
    """The task, the model with the start in it, and the sweep."""

    def __init__(self, job: Job, send: Callable[[Step], None]) -> None:
        import torch

        from ..evaluate import as_heldout, as_metric
        from ..task import HELDOUT_SEED, load_task, seed_draws
        from .start import prepare_start
        from .sweep import Sweep, data_identity

        plan = job.plan
        self._send = send
        torch.set_num_threads(job.threads)
        task: Any = load_task(plan.task)
        if not callable(getattr(task, "train", None)):
            raise SoupError(f"the task {plan.task} has no train(), the training data")
        # A new head, a shuffled list: whatever the task draws, every process draws the same.
        seed_draws(plan.seed)
        with _part("model()", plan.task):
            model = task.model()
        if not isinstance(model, torch.nn.Module):
            raise SoupError(f"model() of {plan.task} made no model", found=type(model).__name__)
        seed_draws(plan.seed)
        with _part("train()", plan.task):
            train = task.train()
        seed_draws(HELDOUT_SEED)
        forward = getattr(task, "forward", None)
        with _part("heldout()", plan.task):
            heldout = as_heldout(task.heldout(), forward)
            len(heldout)  # read while the seed is what the recipes read it with
        metric = _metric_of_the_file(plan) or as_metric(getattr(task, "metric", "accuracy"))
        model.to(job.device)
        start = plan.start
        if start.module is None:
            start = replace(start, module=getattr(task, "head", None))
        seed_draws(plan.seed)
        prepare_start(
            job.directory,
            model,
            train,
            heldout,
            metric,
            start,
            data_identity=data_identity(train),
            forward=forward,
            zero_shot=getattr(task, "zero_shot", None),
            overwrite=job.overwrite and job.make_start,
            progress=lambda done, total, what: send(Step(None, done, total)),
        )
        self._sweep = Sweep(
            job.directory,
            model,
            train,
            plan.points,
            heldout,
            metric=metric,
            augment=getattr(task, "augment", None),
            forward=forward,
            autocast=plan.autocast,
            ema=plan.outputs.ema,
            checkpoints=plan.outputs.checkpoints,
        )
        self._trainer = self._sweep.trainer()

    def ready(self) -> Ready:
        from .trainer import heldout_fingerprint

        metric = self._sweep.metric
        heldout = heldout_fingerprint(self._sweep.heldout)
        return Ready(dict(self._trainer.identity), metric.name, metric.direction, heldout)

    def make(self, run: int) -> Done:
        last = 0.0

        def progress(done: int, total: int, what: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _EVERY or done == total:
                last = now
                self._send(Step(run, done, total))

        made = self._sweep.ingredient(run, self._trainer, progress)
        return Done(run, made.score, made.seconds)


@contextmanager
def _part(part: str, task: str) -> Iterator[None]:
    """An error in this part of the task says so; one that was raised on purpose says enough."""
    try:
        yield
    except SoupError:
        raise
    except Exception as error:
        raise SoupError(f"{part} of {task} failed: {one_line(error)}") from error


def _of_the_task(error: Exception, task: str) -> str:
    """The line of an error; with the task, unless it names a file already."""
    line = one_line(error)
    return line if getattr(error, "file", None) is not None or task in line else str(SoupError(f"{task}: {line}"))


def _metric_of_the_file(plan: Plan) -> Metric | None:
    from ..evaluate import as_metric

    if plan.metric is None:
        return None
    try:
        return as_metric(plan.metric)
    except SoupError as error:
        raise SoupError(f"'metric' in the file: {error}", file=plan.file) from error


def _leave_with(lifeline: int) -> None:
    """End when the other end closes, which a parent killed in any way does."""
    os.read(lifeline, 1)
    os._exit(1)


def main() -> None:
    """``worker.py CONNECTION LIFELINE``: two inherited file descriptors."""
    connection, lifeline = (int(argument) for argument in sys.argv[1:])
    threading.Thread(target=_leave_with, args=(lifeline,), daemon=True).start()
    try:
        work(Connection(connection))
    except (BrokenPipeError, ConnectionResetError):
        sys.exit(1)


if __name__ == "__main__":
    main()
