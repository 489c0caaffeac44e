"""``pysoup adapters``: LoRA adapters averaged into one."""

from __future__ import annotations

from typing import Any

from ..adapters import AdapterReport, average_adapters
from .models import require_torch
from .text import as_json as to_json
from .text import as_notes, plural, printable


def adapters(paths: list[str], output: str, *, as_json: bool, **options: Any) -> None:
    """Average them, and print the rank and what it leaves out."""
    require_torch()
    report = average_adapters(paths, output, **options)
    print(to_json(report.to_json()) if as_json else _summary(report))


def _summary(report: AdapterReport) -> str:
    least, most = min(report.ranks.values()), max(report.ranks.values())
    rank = f"rank {most}" if least == most else f"ranks {least} to {most}"
    sources, target = plural(len(report.inputs), "adapter"), printable(report.output)
    lines = [f"averaged {sources} into {target}: {plural(len(report.ranks), 'module')}, {rank}"]
    if report.error is not None:
        lines.append(f"left out by the rank: {report.error:.2e} of the exact mean's norm")
    if report.error and report.worst is not None:
        lines.append(f"most in {printable(report.worst[0])}: {report.worst[1]:.2e}")
    return "\n".join([*lines, *as_notes(report.notes)])
