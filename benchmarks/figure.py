"""The figure: time and memory over the number of small models, file to file and in memory, from the saved results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator
from tables import CAT_2, PROBE, load

# One colour a tool wherever it appears, from a palette that the colour-blind can tell apart; dashes: a ceiling.
STYLES: dict[str, tuple[str, str, str]] = {
    "pysoup": ("#d62728", "o", "pysoup"),
    "official loop": ("#000000", "s", "official loop"),
    "careful loop, f32 sum": ("#0072b2", "^", "careful torch loop"),
    "careful loop, f64 sum": ("#56b4e9", "v", "careful torch loop, f64 sum"),
    "timm's f64 loop": ("#cc79a7", "D", "timm's f64 loop"),
    "swa_utils.AveragedModel": ("#e69f00", "P", "swa_utils.AveragedModel"),
    "torch.compile of the sum, flat, old output": ("#7f5539", "*", "torch.compile, flat tensors"),
    "mergekit, merge_state_dicts": ("#009e73", "<", "mergekit, merge_state_dicts"),
    "mergekit-pytorch": ("#004d38", ">", "mergekit-pytorch"),
    "sd-mecha, n_average": ("#8c6bb1", "X", "sd-mecha"),
    CAT_2: ("#888888", "", "ceiling: cat of the files, or the probe in memory"),
    PROBE: ("#888888", "", "ceiling: cat of the files, or the probe in memory"),
}
WIDTH, HEIGHT, DPI = 12.0, 7.6, 110


def draw(path: Path) -> bool:
    """Writes the figure; False where there are no results of the sweeps."""
    rows = [("file to file", load("sweep")), ("in memory", load("sweep_memory"))]
    rows = [(label, result) for label, result in rows if result is not None]
    if not rows:
        return False
    figure = Figure((WIDTH, 1.1 + (HEIGHT - 1.1) * len(rows) / 2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for line, (label, result) in zip(grid, rows, strict=True):
        for axes, code in zip(line, ("F32", "BF16"), strict=False):
            _curves(axes, result["runs"].get(code, {}), "best", 1.0)
            axes.set(title=f"{code.lower()}, {label}", ylabel="seconds, best run")
        if label == "in memory":
            # Torch keeps and reuses memory between calls: a curve of peaks would show that more than the contenders.
            line[2].axis("off")
            continue
        _curves(line[2], result["runs"].get("F32", {}), "peak_anonymous", 2.0**20)
        line[2].set(title=f"f32, {label}", ylabel="peak memory, MiB")
        line[2].set_ylim(bottom=5)
    handles = {h.get_label(): h for axes in grid.flat for h in axes.get_lines()}
    labels = [label for label in dict.fromkeys(s[2] for s in STYLES.values()) if label in handles]
    figure.legend([handles[x] for x in labels], labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, facecolor="white", metadata={"Software": None})
    return True


def _curves(axes: Axes, runs: dict[str, dict[str, Any]], field: str, unit: float) -> None:
    counts = sorted(int(k) for k in runs)
    for name, (colour, marker, label) in STYLES.items():
        ceiling = name in (CAT_2, PROBE)
        if ceiling and field == "peak_anonymous":
            continue
        points = [(k, runs[str(k)][name][field] / unit) for k in counts if name in runs[str(k)]]
        points = [(k, y) for k, y in points if y > 0]
        if len(points) > 1 or len(counts) == 1:
            line = "--" if ceiling else "-"
            width = 2.4 if name == "pysoup" else 1.3
            x, y = zip(*points, strict=True)
            axes.plot(x, y, line, color=colour, marker=marker, markersize=5, linewidth=width, label=label)
    axes.set(xscale="log", yscale="log", xlabel="models averaged (ViT-S/16)")
    if not counts:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="#888888")
    axes.set_xticks(counts, [str(k) for k in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
