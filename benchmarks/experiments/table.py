"""The tables of one experiment, from its saved results alone, put between its markers in benchmarks/README.md."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tables import table, where

METHODS = {
    "best": "Best individual model",
    "second": "Second best model",
    "uniform": "Uniform soup",
    "greedy": "Greedy soup",
    "random": "Greedy soup (random order)",
    "learned": "Learned soup",
    "learned_layer": "Learned soup (by layer)",
    "learned_mehl": "Learned soup (MEHL)",
    "stock": "Model Stock",
    "wise": "Uniform soup and start (WiSE-FT)",
    "pruned": "Pruned soup",
    "ensemble": "Ensemble",
    "greedy_ensemble": "Greedy ensemble",
}
"""As in the paper's Table 3; the pruned soup is that of 2301.10092, MEHL of 2407.03641, Model Stock of 2403.19522."""
COMPARED = tuple(name for name in METHODS if name not in ("best", "random"))
Run = Mapping[str, Any]


def insert(page: Path, name: str, text: str) -> None:
    """Put ``text`` into the file ``page``, between ``<!-- NAME -->`` and ``<!-- /NAME -->``."""
    content = page.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
    if not pattern.search(content):
        raise SystemExit(f"{page}: no markers for {name}")
    page.write_text(pattern.sub(lambda m: f"{m[1]}\n{text}\n\n{m[2]}", content), encoding="utf-8")


def block(report: Mapping[str, Any]) -> str:
    """Everything: scores with their spread over the sweep seeds, each seed, early rejection, time."""
    runs = report["runs"]
    test = report["test"]
    parts = [_head(report), _scores(runs, test), _differences(runs, test), _each(runs), _rejection(runs), _time(runs)]
    return "\n\n".join("\n".join(part) for part in parts)


def _head(report: Mapping[str, Any]) -> Iterator[str]:
    runs = report["runs"]
    seeds = ", ".join(str(run["seed"]) for run in runs)
    yield where(report)
    yield ""
    yield (
        f"{_plural(len(runs), 'sweep seed')} ({seeds}), {len(runs[0]['models'])} ingredients each; "
        f"torch {report['torch']}, {report['isa']}. Accuracy in %, mean ± standard deviation over the seeds. Data: "
        f"SHA-256 `{report['data']['sha256'][:16]}`."
    )


def _scores(runs: Sequence[Run], test: str) -> Iterator[str]:
    shifts = list(runs[0]["methods"]["best"]["shifts"])
    head = ["method", "held-out", test, "mean of shifts", *shifts, "ingredients"]
    rows = [["Start (linear probe)", "", *_spreads([_values(run["start"]) for run in runs]), ""]]
    single = [[_mean(values) for values in zip(*map(_values, run["models"]), strict=True)] for run in runs]
    heldout = [_mean([model["heldout"] for model in run["models"]]) for run in runs]
    rows.append(["All models, mean", _spread(heldout), *_spreads(single), ""])
    for key, name in METHODS.items():
        found = [_method(run, key) for run in runs]
        count = _mean([row["count"] for row in found])
        rows.append(
            [
                f"**{name}**" if key == "greedy" else name,
                _spread([row["heldout"] for row in found]),
                *_spreads([_values(row) for row in found]),
                f"{count:.1f}",
            ]
        )
    yield from table(head, rows, left=1)


def _differences(runs: Sequence[Run], test: str) -> Iterator[str]:
    """Against the best single model, seed by seed."""
    rows = []
    for key, name in METHODS.items():
        if key == "best":
            continue
        pairs = [(_method(run, key), run["methods"]["best"]) for run in runs]
        cells = [_spread([a[column] - b[column] for a, b in pairs], "+") for column in ("test", "mean_shift")]
        values = [run["methods"][key]["mcnemar"]["p_value"] for run in runs] if key in COMPARED else []
        better = sum(a["test"] > b["test"] for a, b in pairs)
        rows.append([name, *cells, f"{better} of {len(runs)}", ", ".join(f"{value:.2g}" for value in values)])
    head = ["against the best individual model", test, "mean of shifts", "seeds where better", "McNemar's p, by seed"]
    yield from table(head, rows, left=1)
    orders = [
        [statistics.stdev([order[column] for order in run["random_orders"]]) for column in ("test", "mean_shift")]
        for run in runs
    ]
    within = [100 * _mean(values) for values in zip(*orders, strict=True)]
    yield ""
    yield (
        f"Random orders: the mean of {len(runs[0]['random_orders'])} orders a seed; their standard deviation within a "
        f"seed is {within[0]:.2f} on {test} and {within[1]:.2f} over the shifts, as a mean over the seeds."
    )


def _each(runs: Sequence[Run]) -> Iterator[str]:
    head = ["seed", *(name for key, name in METHODS.items()), "models: worst, best"]
    rows = []
    for run in runs:
        cells = [
            f"{100 * row['test']:.2f} / {100 * row['mean_shift']:.2f}" for row in (_method(run, k) for k in METHODS)
        ]
        tests = [model["test"] for model in run["models"]]
        rows.append([str(run["seed"]), *cells, f"{100 * min(tests):.2f}, {100 * max(tests):.2f}"])
    yield from table(head, rows, left=0)
    yield ""
    yield "A cell is: test / mean of shifts."


def _rejection(runs: Sequence[Run]) -> Iterator[str]:
    head = ["seed", "order of the samples by", "refused", "seen of each, mean", "at most", "asked: 1 - p + 0.08", "met"]
    rows = []
    for run in runs:
        for kind, found in run["early_rejection"].items():
            seen = ["", "", "", "-"]
            if found["refused"]:
                seen = [f"{found[key]:.3f}" for key in ("mean_share", "largest_share", "limit")]
                seen.append("yes" if found["met"] else "**no**")
            passes = [f"{found['passes'][key]:.2f}" for key in ("used", "saved")]
            rows.append([str(run["seed"]), _BY[kind], str(found["refused"]), *seen, *passes])
    yield from table([*head, "passes used", "saved"], rows)


def _time(runs: Sequence[Run]) -> Iterator[str]:
    head = ["seed", "read", "mix", "score", "mixing a candidate", "scoring it in full", "share", "asked: <= 5%"]
    head += ["training an ingredient: median, longest", "all"]
    rows = []
    for run in runs:
        cost, seconds = run["cost"], [model["seconds"] for model in run["models"]]
        rows.append(
            [
                str(run["seed"]),
                *(f"{cost['seconds'][key]:.2f} s" for key in ("read", "mix", "score")),
                f"{1000 * cost['mix']:.1f} ms",
                f"{cost['full_pass']:.2f} s",
                f"{cost['share']:.2%}",
                "yes" if cost["met"] else "**no**",
                f"{statistics.median(seconds):.0f} s, {max(seconds):.0f} s",
                f"{sum(seconds):.0f} s",
            ]
        )
    yield from table(head, rows, left=1)


_BY = {
    "recorded scores": "all models' mean margins (scores from the records)",
    "measured scores": "all models' averaged logits (scores measured)",
}


def _method(run: Run, key: str) -> dict[str, Any]:
    """A method's row; of the random orders, their mean."""
    if key != "random":
        row = run["methods"][key]
        return {**row, "count": len(row["ingredients"])}
    orders = run["random_orders"]
    shifts = {name: _mean([order["shifts"][name] for order in orders]) for name in orders[0]["shifts"]}
    mean = {column: _mean([order[column] for order in orders]) for column in ("heldout", "test", "mean_shift")}
    return {**mean, "shifts": shifts, "count": _mean([len(order["ingredients"]) for order in orders])}


def _values(row: Mapping[str, Any]) -> list[float]:
    return [row["test"], row["mean_shift"], *row["shifts"].values()]


def _spreads(rows: Sequence[Sequence[float]]) -> list[str]:
    return [_spread(values) for values in zip(*rows, strict=True)]


def _spread(values: Sequence[float], sign: str = "") -> str:
    mean = f"{100 * _mean(values):{sign}.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
