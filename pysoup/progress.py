"""A progress bar for streaming work, shown to people only: with stderr in a pipe or a file there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

ByteProgress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all, from the thread that started the work."""
StepProgress = Callable[[int, int, str], None]
"""Called with the steps done, the steps in all and what was done last."""


@contextmanager
def byte_bar(label: str) -> Iterator[ByteProgress | None]:
    """A bar with bytes, GB/s and the time left on stderr, or None where stderr is no terminal.

    The bar vanishes when the block ends, so an error or a summary line stands alone. It redraws when it is called and
    keeps no thread of its own.
    """
    if not sys.stderr.isatty():
        yield None
        return
    # Here, not above: a run in a pipe does not pay for the import.
    from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    with _bar(DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(label, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, refresh=True)

        yield show


@contextmanager
def step_bar(label: str) -> Iterator[StepProgress | None]:
    """The same for work in steps, such as the evaluations of a greedy soup."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.markup import escape
    from rich.progress import MofNCompleteColumn, TimeElapsedColumn

    with _bar(MofNCompleteColumn(), TimeElapsedColumn()) as bar:
        task = bar.add_task(label, total=None)

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=escape(f"{label}: {what}"), refresh=True)

        yield show


class Bars:
    """Several bars, by name; each appears when it is first shown."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def show(self, name: str, done: int, total: int) -> None:
        from rich.markup import escape

        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(escape(name), total=total)
        self._bars.update(self._tasks[name], completed=done, total=total, refresh=True)

    def remove(self, name: str) -> None:
        if name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))


@contextmanager
def several_bars() -> Iterator[Bars | None]:
    """The same for several pieces of work at a time."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

    with _bar(MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        yield Bars(progress)


def _bar(*columns: ProgressColumn) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    first = (TextColumn("{task.description}"), BarColumn())
    return Progress(*first, *columns, console=Console(stderr=True), transient=True, auto_refresh=False)
