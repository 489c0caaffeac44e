"""Scores of logits: top-1, top-5 and likelihood of 16 candidates, against torch and against reading the bytes once.

    python benchmarks/bench_logits.py [--threads 2] [--candidates 16] [--samples 4000] [--classes 1000] [--repeats 9]

torch is written as people write it: argmax, cross_entropy and topk(5) for one candidate after the other. For 16-bit
logits the faster of two ways counts: as they are, or in f32 first. The ceiling is a probe that reads the same memory on
as many threads and computes nothing. Counts and likelihoods are compared before anything is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measure import Contest, goal_row, goals_table, machine, save
from torch import Tensor
from torch.nn.functional import cross_entropy

from pysoup import LogitScores, _native, score_ensemble, score_logits

Scores = list[tuple[Tensor, Tensor, Tensor]]
ASKED = {torch.float32: 5.0, torch.float16: 15.0, torch.bfloat16: 15.0}
WEIGHT, SCALE = 0.5, 2 / 3
# 16-bit cross_entropy also answers in 16 bits.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-1}


def make_logits(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Seeded logits of models that are right about half of the time, f32 ``[M, N, C]``, and labels."""
    torch.manual_seed(0)
    labels = torch.randint(args.classes, (args.samples,))
    logits = torch.randn(args.candidates, args.samples, args.classes)
    ahead = torch.rand(args.candidates, args.samples, 1) * 6.5
    return logits.scatter_add_(2, labels.expand(args.candidates, -1)[..., None], ahead), labels


def torch_scores(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One candidate: top-1 and top-5 counts, summed likelihood."""
    top1 = (logits.argmax(1) == labels).sum()
    top5 = (logits.topk(5, 1).indices == labels[:, None]).any(1).sum()
    return top1, top5, cross_entropy(logits, labels, reduction="sum")


def each(logits: Tensor, labels: Tensor) -> Scores:
    return [torch_scores(one, labels) for one in logits]


def each_widened(logits: Tensor, labels: Tensor) -> Scores:
    return [torch_scores(one.float(), labels) for one in logits]


def each_top1(logits: Tensor, labels: Tensor) -> list[Tensor]:
    return [(one.argmax(1) == labels).sum() for one in logits]


def each_sum(base: Tensor, logits: Tensor, labels: Tensor) -> Scores:
    return [torch_scores((base + WEIGHT * one) * SCALE, labels) for one in logits]


def compare(found: LogitScores, theirs: Scores, samples: int, tolerance: float) -> None:
    """top-1 to the sample; top-5 but for ties, which topk breaks as it likes; the likelihoods about."""
    assert found.nll is not None
    for m, (top1, top5, nll) in enumerate(theirs):
        assert int(found.top[1][m]) == int(top1)
        assert abs(int(found.top[5][m]) - int(top5)) <= samples * tolerance
        torch.testing.assert_close(found.nll[m], nll.double(), rtol=tolerance, atol=0)


def probe(logits: Tensor, threads: int) -> Callable[[], object]:
    """Reads the bytes once, as eight streams."""
    size = logits.nbytes // 8 // 64 * 64
    sources = [logits.data_ptr() + i * size for i in range(8)]
    return lambda: (_native.load().probe_streams(sources, 0, size, threads), logits)[0]


def contest(wide: Tensor, labels: Tensor, dtype: torch.dtype, args: argparse.Namespace) -> Contest:
    logits = wide.to(dtype)
    base = logits[0].clone()
    scores = partial(score_logits, logits, labels, threads=args.threads)
    sums = partial(score_ensemble, base, logits, labels, WEIGHT, scale=SCALE, threads=args.threads)
    contenders: dict[str, Callable[[], object]] = {
        "read": probe(logits, args.threads),
        "pysoup": scores,
        "pysoup, top-1 alone": partial(scores, k=1, nll=False),
        "pysoup, per sample too": partial(scores, per_sample=True),
        "pysoup, sums": sums,
        "torch": partial(each, logits, labels),
        "torch, top-1 alone": partial(each_top1, logits, labels),
        "torch, sums": partial(each_sum, base, logits, labels),
    }
    compare(scores(), each(logits, labels), args.samples, TOLERANCE[dtype])
    if dtype != torch.float32:
        contenders["torch, f32 first"] = partial(each_widened, logits, labels)
        compare(scores(), each_widened(logits, labels), args.samples, 1e-2)
    else:  # rounded as the sums are in one dtype only
        compare(sums(), each_sum(base, logits, labels), args.samples, 1e-3)
    return Contest(contenders, args.repeats)


def goals(found: Contest, dtype: torch.dtype) -> list[dict[str, Any]]:
    name = str(dtype).removeprefix("torch.")
    ways = [way for way in ("torch", "torch, f32 first") if way in found.seconds]
    theirs = min(ways, key=found.median)
    asked = ASKED[dtype]
    return [
        goal_row(f"{name}: times faster than {theirs}", f">= {asked:g}", asked, found.ratio(theirs, "pysoup")),
        goal_row(
            f"{name}: top-1 alone, share of the read bandwidth",
            ">= 0.6",
            0.6,
            found.ratio("read", "pysoup, top-1 alone"),
        ),
        goal_row(f"{name}: everything, share of the read bandwidth", "not asked", 0, found.ratio("read", "pysoup")),
        goal_row(f"{name}: sums, times faster than torch", "not asked", 0, found.ratio("torch, sums", "pysoup, sums")),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    info = machine()
    wide, labels = make_logits(args)
    rows: list[dict[str, Any]] = []
    times: dict[str, Any] = {}
    for dtype in ASKED:
        found = contest(wide, labels, dtype, args)
        rows += goals(found, dtype)
        times[str(dtype).removeprefix("torch.")] = found.to_json()
    save("logits", {"machine": info, "args": vars(args), "goals": rows, "seconds": times})
    print(goals_table(rows))
    for name, group in times.items():
        print(name, {k: f"{v['median'] * 1e3:.1f} ms" for k, v in group.items()})


if __name__ == "__main__":
    main()
