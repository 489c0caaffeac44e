"""Markdown from the saved results: the main table, the goals, the sweeps. What was not measured is left out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpu.goals import markdown as gpu_goals
from measure import RESULTS, goals_table

# The ceilings of file_contest.py and bench_sweep_memory.py; read here without importing torch.
CAT, CAT_2, DIRECT, PROBE = "cat", "cat, 2 at a time", "direct read", "probe: K reads, one write"
CEILINGS = (CAT, CAT_2, DIRECT, "direct read, 2 streams", PROBE)
ITEMSIZES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
NOT_YET = "Not measured yet: `make bench`."
Json = Mapping[str, Any]


def load(name: str) -> dict[str, Any] | None:
    """``results/NAME.json``, or None."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def where(result: Json) -> str:
    """The machine and the day."""
    info = result["machine"]
    return (
        f"{info['cpu']}, {info['cores']} cores, {info['memory_gib']} GiB, {info['date']}, commit {info['commit']}; "
        f"load before the run {info['load_before']:.1f}."
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> Iterator[str]:
    """Columns from ``left`` on are numbers."""
    yield _line(head)
    yield _line(["---"] * left + ["---:"] * (len(head) - left))
    yield from map(_line, rows)


def peers_block() -> str:
    """The main table: large models from file to file, warm, one row a contender and dtype."""
    result = load("peers")
    if result is None:
        return NOT_YET
    head = ["dtype", "contender", "time", "of it start-up", "times pysoup's", "GB/s read", "of the ceiling"]
    head += ["peak memory", "error, mean ulp", "misrounded"]
    rows = [
        row
        for code, parts in result["runs"].items()
        if "warm" in parts
        for row in _file_rows(code, parts["warm"], _input_bytes(result, code), result["start_up"])
    ]
    return "\n".join([where(result), "", *table(head, rows)])


def _input_bytes(result: Json, code: str) -> int:
    return result["ingredients"] * result["parameters"] * ITEMSIZES[code]


def _file_rows(code: str, runs: Json, size: int, start: Json) -> Iterator[list[str]]:
    ceiling = runs[CAT_2]["median"]
    ulp = (load("error") or {"ulp": {}})["ulp"].get(code, {})
    for name, run in sorted(runs.items(), key=lambda item: item[1]["median"]):
        if name == CAT:
            continue
        seconds, fixed, error = run["median"], start.get(name), ulp.get(name)
        yield [
            code.lower(),
            f"*{name}*, the ceiling" if name == CAT_2 else f"**{name}**" if name == "pysoup" else name,
            _seconds(seconds),
            _seconds(fixed["seconds"]) if fixed else "",
            "" if name == CAT_2 else f"{seconds / runs['pysoup']['median']:.1f}",
            f"{size / seconds / 1e9:.2f}",
            f"{ceiling / seconds:.0%}",
            _mib(run["peak_anonymous"]) if name != CAT_2 else "",
            f"{error['mean']:.3f}" if error else "",
            f"{error['misrounded']:.1%}" if error else "",
        ]


def cold_block() -> str:
    """The same files, the page cache empty."""
    result = load("cold")
    parts = {code: parts["cold"] for code, parts in (result or {"runs": {}})["runs"].items() if "cold" in parts}
    if result is None or not parts:
        return NOT_YET
    head = ["dtype", "contender", "runs", "median", "best", "GB/s read", "over the direct read"]
    rows = []
    for code, runs in parts.items():
        for name, run in sorted(runs.items(), key=lambda item: item[1]["median"]):
            rows.append(
                [
                    code.lower(),
                    f"*{name}*" if name in CEILINGS else f"**{name}**" if name == "pysoup" else name,
                    str(len(run["all"])),
                    _seconds(run["median"]),
                    _seconds(run["best"]),
                    f"{_input_bytes(result, code) / run['median'] / 1e9:.2f}",
                    f"{run['median'] / runs[DIRECT]['median']:.2f}",
                ]
            )
    return "\n".join([where(result), "", *table(head, rows)])


def full_block() -> str:
    """What only ``--full`` measures: other dtypes, numbers and formats of large models, warm."""
    result = load("peers")
    if result is None or not result.get("full"):
        return "Not measured yet: `make bench ARGS=--full`."
    head = ["case", "contender", "time", "times pysoup's", "of the ceiling", "peak memory"]
    rows = [
        [
            case.lower(),
            name,
            _seconds(run["median"]),
            f"{run['median'] / runs['pysoup']['median']:.1f}",
            f"{runs[CAT_2]['median'] / run['median']:.0%}",
            _mib(run["peak_anonymous"]),
        ]
        for case, runs in result["full"].items()
        for name, run in _by_time(runs)
        if name not in CEILINGS
    ]
    return "\n".join([where(result), "", *table(head, rows)])


def goals_block() -> str:
    """What was asked, measured, met: of the contests with the other tools and of the errors."""
    rows = [row for name in ("peers", "cold", "error") for row in (load(name) or {"goals": ()})["goals"]]
    return goals_table(rows) if rows else NOT_YET


def error_block() -> str:
    """Errors by contender, and the distances from mergekit."""
    result = load("error")
    if result is None:
        return NOT_YET
    codes = list(result["ulp"])
    head = ["contender", *(f"{code.lower()}: mean, largest, misrounded" for code in codes), "equal models stay"]
    rows = []
    for name in next(iter(result["ulp"].values())):
        exact = result["identical"].get(name)
        same = ", ".join(code.lower() for code, yes in exact.items() if yes) or "none" if exact else "not looked at"
        rows.append([name, *(_error(result["ulp"][code][name]) for code in codes), same])
    lines = [where(result), "", *table(head, rows, left=1)]
    if result["mergekit"]:
        head = ["pysoup and mergekit apart", "other bits", "largest, ulp", "steps: 1", "2", "3-8", "9-64", "65-1024"]
        rows = [
            [what, *(f"{n:,}" for n in (seen["different"],)), f"{seen['largest_ulp']:.2f}"]
            + [f"{n:,}" for n in (*seen["steps"][1:],)]
            for what, seen in result["mergekit"].items()
        ]
        lines += ["", f"Over {result['elements']:,} elements:", "", *table([*head, "more"], rows, left=1)]
    return "\n".join(lines)


def _error(error: Json) -> str:
    if error["mean"] >= 1000:
        return f"{error['mean']:.1e}, {error['largest']:.1e}, {error['misrounded']:.0%}"
    return f"{error['mean']:.3f}, {error['largest']:.3g}, {error['misrounded']:.1%}"


def sweep_block() -> str:
    """Seconds from file to file over the number of small models, and the same as .pt."""
    result = load("sweep")
    if result is None:
        return NOT_YET
    lines = [where(result)]
    for code, runs in result["runs"].items():
        lines += ["", f"{code.lower()}, seconds:", "", *_over_counts(runs, lambda run: f"{run['median']:.2f}")]
    for code, runs in result["torch_files"].items():
        for count, group in runs.items():
            rows = [[n, _seconds(r["median"]), _mib(r["peak_anonymous"])] for n, r in _by_time(group)]
            lines += ["", f"{count} `.pt` files, {code.lower()}:", ""]
            lines += table(["contender", "time", "peak memory"], rows, left=1)
    return "\n".join(lines)


def sweep_memory_block() -> str:
    """Milliseconds in memory over the number of small models, shares of the probe, peaks."""
    result = load("sweep_memory")
    if result is None:
        return NOT_YET
    lines = [where(result)]
    for code, runs in result["runs"].items():
        size = result["parameters"] * ITEMSIZES[code]
        lines += ["", f"{code.lower()}, ms:", "", *_over_counts(runs, lambda run: f"{run['median'] * 1e3:.0f}")]
        count = "8" if "8" in runs else next(iter(runs))
        group = runs[count]
        rows = [
            [
                name,
                f"{int(count) * size / run['median'] / 1e9:.1f}",
                f"{group[PROBE]['median'] / run['median']:.0%}",
                _mib(run["peak_anonymous"]),
            ]
            for name, run in _by_time(group)
        ]
        head = [f"{code.lower()}, {count} models", "GB/s read", "of the probe", "peak memory over the inputs"]
        lines += ["", *table(head, rows, left=1)]
    return "\n".join(lines)


def _over_counts(runs: Json, cell: Any) -> Iterator[str]:
    names = {name: None for group in runs.values() for name in group}
    counts = list(runs)
    rows = [[n, *(cell(runs[k][n]) if n in runs[k] else "" for k in counts)] for n in names]
    last = {n: max((runs[k][n]["median"] for k in counts if n in runs[k]), default=0.0) for n in names}
    rows.sort(key=lambda row: last[row[0]])
    return table(["contender", *(f"{k} models" for k in counts)], rows, left=1)


def cuda_block() -> str:
    """What is asked on a GPU, and what each GPU printed that a run of bench_cuda.py was recorded of."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("cuda_*.json"))]
    lines = [gpu_goals([(r["machine"]["gpu"], r["measured"]) for r in results])]
    for result in results:
        info, copied = result["machine"], result["copy_bytes_per_second"]
        lines += ["", f"{info['gpu']}: {info['date']}, commit {info['commit']}, torch {info['torch']}; the copy moved "]
        lines[-1] += f"{copied / 1e12:.2f} TB/s, counting bytes read and written."
        for label, found in result["timeline"].items():
            lines += ["", f"{info['gpu']}, 8 files to a live model, {label}; the darker, the busier:", ""]
            lines += ["```text", *found["drawing"], "```"]
    return "\n".join(lines)


def older_block(name: str) -> str:
    """The machine, the goals and the medians of bench_memory.py, bench_logits.py and bench_files.py."""
    result = load(name)
    if result is None:
        return NOT_YET
    rows = [
        [case, contender, f"{times['median'] * 1e3:.1f} ms", f"{times['best'] * 1e3:.1f} ms"]
        for case, group in result["seconds"].items()
        for contender, times in group.items()
    ]
    head = ["case", "contender", "median", "best"]
    return "\n".join([where(result), "", goals_table(result["goals"]), "", *table(head, rows)])


def steps_block(name: str) -> str:
    """The machine, the goals and the medians of bench_mixture.py and bench_learned.py."""
    result = load(name)
    if result is None:
        return NOT_YET
    rows = [
        [what, *(f"{times[key] * 1e3:.0f} ms" for key in ("median", "best"))]
        for what, times in result["seconds"].items()
    ]
    parts = [where(result), "", goals_table(result["goals"]), "", *table(["what", "median", "best"], rows, left=1)]
    return "\n".join(parts)


def _by_time(group: Json) -> list[tuple[str, Any]]:
    return sorted(group.items(), key=lambda item: item[1]["median"])


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def _mib(value: float) -> str:
    return f"{value / 2**20:,.0f} MiB"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
