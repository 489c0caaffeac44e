"""What is asked of the kernels on a GPU, and the tables of it: at the end of a run, and in the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NOT_YET = "not yet measured"


@dataclass(frozen=True)
class Goal:
    """``measured >= at_least``: a share of a ceiling, or how many times faster. ``key`` is how results name it."""

    key: str
    what: str
    at_least: float

    @property
    def asked(self) -> str:
        return f">= {self.at_least:g}{'' if self.at_least < 1 else 'x'}"

    def said(self, measured: float | None) -> str:
        if measured is None:
            return NOT_YET
        return f"{measured:.2f}" if self.at_least < 1 else f"{measured:.1f}x"


COUNTS = (2, 8, 32)
DTYPES = ("bf16", "f32")

GOALS: tuple[Goal, ...] = (
    *(Goal(f"big {d} {k}", f"average of {k}, {d}, big tensors: share of copy", 0.92) for d in DTYPES for k in COUNTS),
    *(
        Goal(f"vit {d} {k}", f"average of {k}, {d}, prepared ViT-B/32: share of copy", 0.85)
        for d in DTYPES
        for k in COUNTS
    ),
    *(Goal(f"vit {d} 8 over foreach", f"average of 8, {d}, ViT-B/32: over `_foreach_add_`", 1.8) for d in DTYPES),
    Goal("vit bf16 8 over foreach f32", "average of 8, bf16, ViT-B/32: over `_foreach_add_` into f32", 4.0),
    Goal("candidate", "running f32 sum + bf16 model into bf16 parameters: share of copy", 0.90),
    Goal("logits f32", "scores of logits, 16 x 8192 x 1000, f32: share of copy", 0.85),
    Goal("logits bf16", "scores of logits, 16 x 8192 x 1000, bf16: share of copy", 0.75),
    *(Goal(f"logits {d} over eager", f"the same, {d}: over eager torch", 4.0) for d in ("f32", "bf16")),
    *(Goal(f"logits {d} over compile", f"the same, {d}: over `torch.compile`", 1.3) for d in ("f32", "bf16")),
    *(Goal(f"vocabulary {d}", f"scores of logits, 128,256 classes, {d}: share of copy", 0.85) for d in ("f32", "bf16")),
    *(Goal(f"ensemble {d}", f"scores of sums, 64 candidates, {d}: share of copy", 0.80) for d in ("f32", "bf16")),
    Goal("dots", "dots of 72 models by 151 M, bf16: share of copy", 0.90),
    *(Goal(f"files {d}", f"8 files to a live model, {d}: share of the slower of read and copy", 0.85) for d in DTYPES),
)


def last_table(measured: Mapping[str, float]) -> str:
    """What a run prints last: as narrow as a terminal."""
    wide = max(len(goal.what) for goal in GOALS)
    lines = [f"{'what':{wide}}  {'goal':>8}  {'measured':>8}  met"]
    for goal in GOALS:
        value = measured.get(goal.key)
        met = "-" if value is None else "yes" if value >= goal.at_least else "NO"
        lines.append(f"{goal.what:{wide}}  {goal.asked:>8}  {'-' if value is None else goal.said(value):>8}  {met}")
    return "\n".join(lines)


def markdown(results: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """All goals, a column for each GPU of ``results``, or one that says that there is none yet."""
    columns = results or [("a GPU", {})]
    lines = [f"| what | goal | {' | '.join(name for name, _ in columns)} |", "|---|---|" + "---|" * len(columns)]
    for goal in GOALS:
        cells = [goal.said(measured.get(goal.key)) for _, measured in columns]
        lines.append(f"| {goal.what} | {goal.asked} | {' | '.join(cells)} |")
    return "\n".join(lines)
