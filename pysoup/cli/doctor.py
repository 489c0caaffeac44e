"""``pysoup doctor``: what this installation can do, for people choosing settings and for bug reports."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

from .._version import __version__
from ..errors import SoupError
from ..sizes import format_size
from .text import as_json as to_json
from .text import printable, table


def doctor(*, as_json: bool) -> bool:
    """Print the report; False if the native code is missing or unusable."""
    facts: dict[str, Any] = {
        "pysoup": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "torch": _installed("torch"),
        "cpus": os.cpu_count(),
        "cpus_usable": _affinity(),
        "PYSOUP_ISA": os.environ.get("PYSOUP_ISA"),
    }
    native = _native_facts()
    facts |= native
    print(to_json(facts) if as_json else _text(facts))
    return "error" not in native


def _native_facts() -> dict[str, Any]:
    try:
        from .. import _native

        facts = _native.capabilities()
        facts["bandwidth_bytes_per_second"] = _native.measure_bandwidth()
    except (ImportError, SoupError) as error:
        return {"error": f"native code unusable: {error}"}
    return facts


def _installed(distribution: str) -> str | None:
    """The version of an installed distribution, without the seconds that importing torch takes."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _affinity() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _text(facts: dict[str, Any]) -> str:
    limits = [f"{facts['cpus']} present"]
    limits += [f"{facts['cpus_usable']} usable"] if facts["cpus_usable"] is not None else []
    rows = [
        ("pysoup", facts["pysoup"]),
        ("python", facts["python"]),
        ("platform", facts["platform"]),
        ("torch", facts["torch"] or "not installed (needed for models, not for files)"),
        ("cpus", ", ".join(limits)),
    ]
    if "error" in facts:
        rows.append(("error", facts["error"]))
    else:
        rows += _native_rows(facts)
    return table(("", ""), [(name, printable(str(value))) for name, value in rows]).lstrip()


def _native_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    forced = f", forced by PYSOUP_ISA={facts['PYSOUP_ISA']}" if facts["PYSOUP_ISA"] else ""
    speeds = (f"{name} {format_size(int(speed))}/s" for name, speed in facts["bandwidth_bytes_per_second"].items())
    limited = facts["cpus_usable"] is not None and facts["threads"] < facts["cpus_usable"]
    return [
        ("compiler", f"{facts['compiler']}, {facts['build_type']}"),
        ("isa", f"{facts['isa']} (of {', '.join(facts['isas'])}{forced})"),
        ("cuda", _cuda(facts)),
        ("threads", f"{facts['threads']}{', by the cgroup quota' if limited else ''}"),
        ("memory", ", ".join(speeds)),
    ]


def _cuda(facts: dict[str, Any]) -> str:
    """What was built, for which architectures, and the devices there are, or why there is none."""
    if not facts["cuda"]:
        return "not built in"
    built = f"{facts['cuda_runtime']} for {', '.join(facts['cuda_architectures'])}"
    return f"{built}; {', '.join(facts['cuda_names']) or 'no device: ' + facts['cuda_reason']}"
