"""A planned sweep in worker processes, one or more on each device.

The parent keeps the list of what is to be done and the records of what failed; workers do what needs torch. Each worker
leads a process group of its own, so that an interrupt reaches the parent alone, which then ends them all at once. What
a worker was writing is a hidden temporary file, removed by the parent or by the next run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from ..errors import BackendError, OutputError, SoupError
from ..record import read_failure, read_record, record_path, write_failure
from .failures import failure_details
from .hyperparameters import Hyperparameters
from .layout import ingredient_path, snapshots, start_path, write_summaries
from .lock import locked
from .messages import Broken, Done, Failed, Job, Queued, Ready, Step
from .plan import Plan
from .resume import State, made_by_another, state_of

Watch = Callable[[Step | Queued | Done | Failed], None]
"""Called with what happens, as it happens."""


@dataclass
class Outcome:
    """The runs of a sweep by number: made now, found finished, failed (now or before: the reason)."""

    made: dict[int, float] = field(default_factory=dict)
    found: dict[int, float] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    metric: str = ""
    direction: str = "max"


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    lifeline: int
    device: str
    run: int | None = None

    def end(self) -> None:
        """At once, with whatever processes it has started itself."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()
        os.close(self.lifeline)


def run_plan(
    plan: Plan,
    directory: Path,
    *,
    devices: Sequence[str] = ("cpu",),
    jobs: int | None = None,
    limit: int | None = None,
    retry: bool = False,
    overwrite: bool = False,
    watch: Watch | None = None,
) -> Outcome:
    """Make what is missing of the first ``limit`` runs of ``plan`` in ``directory``.

    ``jobs`` processes (default: one for each device) are spread over the ``devices``; the CPU's threads are shared out
    among them. Raises :class:`SoupError` where the sweep cannot start or go on; a run that fails is only recorded, and
    made again with ``retry``. ``overwrite`` replaces another sweep's files.
    """
    count = len(devices) if jobs is None else jobs
    if count < 1 or not devices:
        raise SoupError("a sweep needs at least one process and one device", found=f"{count} on {len(devices)}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the directory: {error.strerror}", file=directory) from error
    with locked(directory):
        crew = _Crew(plan, directory, plan.points[:limit], devices, count, overwrite, watch)
        try:
            return crew.run(retry)
        finally:
            crew.end()


class _Crew:
    def __init__(
        self,
        plan: Plan,
        directory: Path,
        points: Sequence[Hyperparameters],
        devices: Sequence[str],
        count: int,
        overwrite: bool,
        watch: Watch | None,
    ) -> None:
        self.plan, self.directory, self.points = plan, directory, points
        self.places = [devices[i % len(devices)] for i in range(count)]
        self.threads = _threads(count)
        self.overwrite = overwrite
        self.watch = watch
        self.outcome = Outcome()
        self.workers: list[_Worker] = []
        self.ready: Ready | None = None
        self.beyond: dict[int, Hyperparameters] = {}

    def run(self, retry: bool) -> Outcome:
        first = self._start(self.places[0], make_start=True)
        self.ready = ready = self._await_ready(first)
        self.outcome.metric, self.outcome.direction = ready.metric, ready.direction
        queue = self._missing(ready, retry)
        self.beyond = self._beyond(ready)
        self._tell(Queued(len(queue)))
        self._summarise()
        # Those that are needed beside the first: they find the start on disk.
        for place in self.places[1 : len(queue)]:
            self._start(place, make_start=False)
        self._give(first, queue)
        while any(worker.run is not None for worker in self.workers) or queue:
            for connection in wait([worker.connection for worker in self.workers]):
                worker = next(w for w in self.workers if w.connection is connection)
                self._hear(worker, queue)
        self._summarise()
        return self.outcome

    def end(self) -> None:
        """Stop all, and remove what they were writing."""
        from ..checkpoint.output.publish import remove_stale

        interrupted = [worker.run for worker in self.workers if worker.run is not None]
        for worker in self.workers:
            worker.end()
        self.workers.clear()
        paths = [start_path(self.directory)]
        for run in interrupted:
            paths += [s.path for s in snapshots(self.directory, run, self.points[run], self.plan.outputs)]
        for path in paths:
            remove_stale(path)
            remove_stale(record_path(path))

    def _missing(self, ready: Ready, retry: bool) -> list[int]:
        """The runs to make, in order. Raises OutputError for one that another sweep made."""
        todo = []
        for run, hp in enumerate(self.points):
            wanted = snapshots(self.directory, run, hp, self.plan.outputs)
            state = state_of(wanted, hp, ready.identity)
            if state is State.OTHER and not self.overwrite:
                raise made_by_another(wanted, hp, ready.identity, "--force")
            if state is State.FAILED and not retry:
                self.outcome.failed[run] = _failure(wanted[-1].path)
                continue
            records = [read_record(snapshot.path) for snapshot in wanted]
            scored = all(r is not None and (r.metric, r.heldout) == (ready.metric, ready.heldout) for r in records)
            last = records[-1]
            if state is State.DONE and scored and last is not None:
                self.outcome.found[run] = last.score
            else:
                todo.append(run)
        return todo

    def _beyond(self, ready: Ready) -> dict[int, Hyperparameters]:
        """Runs of this sweep that the limit leaves alone, and that an earlier command finished: they stay listed."""
        found = {}
        for run in range(len(self.points), len(self.plan.points)):
            hp = self.plan.points[run]
            if state_of(snapshots(self.directory, run, hp, self.plan.outputs), hp, ready.identity) is State.DONE:
                found[run] = hp
        return found

    def _hear(self, worker: _Worker, queue: list[int]) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            message = None
        if isinstance(message, Ready):
            assert self.ready is not None
            if message.identity != self.ready.identity:
                keys = [key for key in message.identity if message.identity[key] != self.ready.identity.get(key)]
                what = f"the task is not the same in every process ({', '.join(keys)} differs); seed what it draws"
                raise SoupError(what, file=self.plan.file)
            self._give(worker, queue)
        elif isinstance(message, Broken):
            raise SoupError(message.line)
        elif isinstance(message, Step):
            self._tell(message)
        elif isinstance(message, Done):
            self.outcome.made[message.run] = message.score
            worker.run = None
            self._tell(message)
            self._summarise()
            self._give(worker, queue)
        else:
            self._lost(worker, message, queue)

    def _lost(self, worker: _Worker, failed: Failed | None, queue: list[int]) -> None:
        """A worker that ended: its run is recorded as failed, another worker takes its place."""
        run = worker.run
        self.workers.remove(worker)
        worker.end()
        if run is None:
            raise BackendError(f"a worker {_how(worker.process.returncode)} before its first run")
        line = failed.line if failed is not None else f"the process {_how(worker.process.returncode)}"
        assert self.ready is not None
        trace = failed.trace if failed is not None else None
        details = failure_details(run, self.points[run], self.ready.identity, trace)
        write_failure(ingredient_path(self.directory, run), line, details)
        self.outcome.failed[run] = line
        self._tell(Failed(run, line))
        self._summarise()
        if len(queue) > sum(other.run is None for other in self.workers):
            self._start(worker.device, make_start=False)

    def _give(self, worker: _Worker, queue: list[int]) -> None:
        if queue:
            worker.run = queue.pop(0)
            worker.connection.send(worker.run)

    def _start(self, device: str, *, make_start: bool) -> _Worker:
        ours, theirs = Pipe()
        reading, lifeline = os.pipe()
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        command = [sys.executable, "-m", "pysoup.finetune.worker", str(theirs.fileno()), str(reading)]
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a task prints is no result of ours
                pass_fds=(theirs.fileno(), reading),
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise BackendError(f"cannot start a process: {error.strerror}") from error
        finally:
            theirs.close()
            os.close(reading)
        worker = _Worker(process, ours, lifeline, device)
        self.workers.append(worker)
        job = Job(self.plan, self.directory, device, self.threads, self.overwrite, make_start)
        # One that has ended already is found out when it is listened to.
        with suppress(BrokenPipeError, ConnectionResetError):
            ours.send(job)
        return worker

    def _await_ready(self, worker: _Worker) -> Ready:
        while True:
            try:
                message = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                worker.process.wait()
                raise BackendError(f"the worker {_how(worker.process.returncode)} before its first run") from None
            if isinstance(message, Ready):
                return message
            if isinstance(message, Broken):
                raise SoupError(message.line)
            self._tell(message)

    def _tell(self, message: Step | Queued | Done | Failed) -> None:
        if self.watch is not None:
            self.watch(message)

    def _summarise(self) -> None:
        assert self.ready is not None
        shared: dict[str, Any] = {
            "metric": self.ready.metric,
            "direction": self.ready.direction,
            "identity": self.ready.identity,
        }
        write_summaries(self.directory, dict(enumerate(self.points)) | self.beyond, self.plan.outputs, shared)


def _failure(path: Path) -> str:
    return str((read_failure(path) or {}).get("failed", ""))


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        killed = f"was ended by {signal.Signals(-code).name}"
        return f"{killed} (out of memory?)" if -code == signal.SIGKILL else killed
    return f"ended with status {code}"


def _threads(count: int) -> int:
    """Of each of ``count`` processes: an equal share of the CPUs, and no more than the user allows."""
    from .._native import default_threads

    allowed = os.environ.get("OMP_NUM_THREADS", "")
    share = max(1, default_threads() // count)
    return min(share, int(allowed)) if allowed.isdecimal() and int(allowed) > 0 else share
