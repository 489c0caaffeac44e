"""How speed is measured here: contenders in turn within one process, medians, ratios, and the machine beside them."""

from __future__ import annotations

import datetime as dt
import gc
import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


class Contest:
    """Named callables timed in turn, so that a slow minute of the machine hits all of them alike.

    Every turn has another order (seeded): what one contender leaves behind, in caches and in the allocator, must not
    always fall to the same next one.

    ``before`` holds what is called, untimed, before a contender; ``calls`` is how often it is called per turn.
    """

    def __init__(
        self,
        contenders: dict[str, Callable[[], object]],
        repeats: int = 9,
        warmup: int = 1,
        *,
        before: dict[str, Callable[[], object]] | None = None,
        calls: int = 1,
    ) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in contenders}
        shuffle = random.Random(0)
        for repeat in range(warmup + repeats):
            order = list(contenders)
            shuffle.shuffle(order)
            for name in order:
                call = contenders[name]
                if before and name in before:
                    before[name]()
                gc.collect()
                start = time.perf_counter()
                for _ in range(calls):
                    call()
                elapsed = (time.perf_counter() - start) / calls
                if repeat >= warmup:
                    self.seconds[name].append(elapsed)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def best(self, name: str) -> float:
        return min(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> tuple[float, float]:
        """How many times longer ``slow`` takes: (median of the ratios round by round, ratio of the bests)."""
        rounds = [a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)]
        return statistics.median(rounds), self.best(slow) / self.best(fast)

    def to_json(self) -> dict[str, Any]:
        return {n: {"median": self.median(n), "best": self.best(n), "all": s} for n, s in self.seconds.items()}


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    models = [x.split(":", 1)[1] for x in _read("/proc/cpuinfo").splitlines() if x.startswith("model name")]
    memory = next((line.split()[1] for line in _read("/proc/meminfo").splitlines() if line.startswith("MemTotal")), "0")
    commit, changed = _git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain", "-uno")
    return {
        "cpu": models[0].strip() if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory) / 2**20),
        "date": dt.date.today().isoformat(),
        "commit": (commit or "unknown") + ("+" if changed else ""),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _git(*arguments: str) -> str:
    """What git prints; nothing where there is no git or no repository."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def save(name: str, payload: dict[str, Any]) -> Path:
    """Writes ``benchmarks/results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(payload, indent=1) + "\n")
    return path


def goal_row(
    what: str, asked: str, limit: float, measured: tuple[float, float], *, at_most: bool = False
) -> dict[str, Any]:
    """One promise beside its measurement: (median, best) against ``limit``; met is judged on the median."""
    met = measured[0] <= limit if at_most else measured[0] >= limit
    return {"what": what, "asked": asked, "median": measured[0], "best": measured[1], "met": met}


def goals_table(rows: list[dict[str, Any]]) -> str:
    lines = ["| what | asked | measured (median) | by bests | met |", "|---|---|---|---|---|"]
    for row in rows:
        met = "-" if row["asked"] == "not asked" else "yes" if row["met"] else "**no**"
        lines.append(f"| {row['what']} | {row['asked']} | {row['median']:.2f} | {row['best']:.2f} | {met} |")
    return "\n".join(lines)
