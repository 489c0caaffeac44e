"""Whole processes: how long they take, and how much anonymous memory they hold at most."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# As an installed package runs: with its byte code cached.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


@dataclass(frozen=True)
class Run:
    """One finished process: wall seconds, CPU seconds, peak anonymous memory in bytes."""

    seconds: float
    cpu_seconds: float
    peak_anonymous: int


class ProcessFailed(RuntimeError):
    """A process ended with another status than 0; the message has the end of its stderr."""


def run(command: Sequence[str], environment: Mapping[str, str] | None = None, interval: float = 0.005) -> Run:
    """Runs ``command`` to its end, looking at its memory every ``interval`` seconds (some 60 us of the other core)."""
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=errors, env={**ENVIRONMENT, **(environment or {})}
        )
        peak = _Peak(process.pid, interval)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        peak.stop()
        if process.returncode:
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - 2000))
            message = errors.read().decode(errors="replace").strip()
            raise ProcessFailed(f"{' '.join(command[:3])} ...: status {process.returncode}: {message}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, peak.value)


class _Peak:
    """Largest RssAnon of a process, sampled by a thread: VmHWM would count the pages of mapped files too."""

    def __init__(self, pid: int, interval: float) -> None:
        self.value = 0
        self._path = Path(f"/proc/{pid}/status")
        self._interval = interval
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._ended.wait(self._interval):
            try:
                status = self._path.read_text()
            except OSError:
                return
            found = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")]
            self.value = max(self.value, *found, 0)

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
