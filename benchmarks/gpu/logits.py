"""Scores of logits on the device, against a copy, eager torch and torch.compile."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pysoup import LogitScores, score_ensemble, score_logits

from .clock import Call, Times
from .place import Run

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
VOCABULARY = 128_256
WEIGHT, SCALE = 0.5, 2 / 3
# 16-bit cross_entropy also answers in 16 bits.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1}


def plain(run: Run) -> None:
    """16 candidates, 8192 samples, 1000 classes: top-1 and likelihood."""
    for label, dtype in DTYPES.items():
        sets = [make(run, 16, 8192, 1000, dtype, seed) for seed in range(2)]
        for logits, labels in sets:
            _check(run, f"logits {label}", score_logits(logits, labels, k=1), logits, labels)
        run.passed(f"logits {label}")
        contenders: dict[str, Call] = {
            "pysoup": lambda i, s=sets: score_logits(*s[i % 2], k=1),  # type: ignore[misc]
            "torch, all at once": lambda i, s=sets: at_once(*s[i % 2]),  # type: ignore[misc]
            "torch, one by one": lambda i, s=sets: one_by_one(*s[i % 2]),  # type: ignore[misc]
        }
        if run.compiling:
            function = torch.compile(at_once, dynamic=False)
            contenders["torch.compile"] = lambda i, s=sets, f=function: f(*s[i % 2])  # type: ignore[misc]
        _compare_with_torch(sets[0], contenders)
        times = run.race(f"logits {label}", contenders)
        run.share(f"logits {label}", times, sets[0][0].nbytes)
        _over_torch(run, label, times)
        del sets, contenders
        run.empty_cache()


def vocabulary(run: Run) -> None:
    """As many classes as a language model has words; 128 samples."""
    for label, dtype in DTYPES.items():
        sets = [make(run, 16, 128, VOCABULARY, dtype, seed) for seed in range(2)]
        for logits, labels in sets:
            _check(run, f"vocabulary {label}", score_logits(logits, labels, k=1), logits, labels)
        run.passed(f"vocabulary {label}")
        times = run.race(
            f"vocabulary {label}",
            {
                "pysoup": lambda i, s=sets: score_logits(*s[i % 2], k=1),  # type: ignore[misc]
                "torch, all at once": lambda i, s=sets: at_once(*s[i % 2]),  # type: ignore[misc]
            },
        )
        run.share(f"vocabulary {label}", times, sets[0][0].nbytes)
        del sets
        run.empty_cache()


def ensemble(run: Run) -> None:
    """The sums of one base and 64 candidates, which are never written."""
    for label, dtype in DTYPES.items():
        sets = [make(run, 64, 8192, 1000, dtype, seed) for seed in range(2)]
        bases = [logits[0].flip(0).contiguous() for logits, _ in sets]

        def score(i: int, s: list[tuple[Tensor, Tensor]] = sets, b: list[Tensor] = bases) -> LogitScores:
            return score_ensemble(b[i % 2], *s[i % 2], WEIGHT, scale=SCALE, k=1)

        for i, (logits, labels) in enumerate(sets):
            _check(run, f"ensemble {label}", score(i), logits, labels, bases[i])
        run.passed(f"ensemble {label}")
        times = run.race(f"ensemble {label}", {"pysoup": score})
        run.share(f"ensemble {label}", times, sets[0][0].nbytes + bases[0].nbytes)
        del sets, bases, score
        run.empty_cache()


def make(run: Run, candidates: int, samples: int, classes: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """Seeded logits ``[M, N, C]`` of models that are right about half of the time, and labels."""
    if run.dry:
        samples, classes = min(samples, 5), min(classes, 4100)
    generator = torch.Generator(run.device).manual_seed(seed)
    labels = torch.randint(classes, (samples,), generator=generator, device=run.device)
    shape = (candidates, samples)
    logits = torch.randn(*shape, classes, generator=generator, device=run.device)
    ahead = torch.rand(*shape, 1, generator=generator, device=run.device) * 6.5
    return logits.scatter_add_(2, labels.expand(shape)[..., None], ahead).to(dtype), labels


def at_once(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Eager torch over all candidates: top-1 counts and summed likelihoods."""
    top1 = (logits.argmax(2) == labels).sum(1)
    nll = cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
    return top1, nll.view(len(logits), -1).sum(1)


def one_by_one(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loop that people write."""
    top1 = [(one.argmax(1) == labels).sum() for one in logits]
    return torch.stack(top1), torch.stack([cross_entropy(one, labels, reduction="sum") for one in logits])


def _check(run: Run, what: str, found: LogitScores, logits: Tensor, labels: Tensor, base: Tensor | None = None) -> None:
    """Every count and sum against the CPU's kernels."""
    with run.on_cpu():
        if base is None:
            expected = score_logits(logits.cpu(), labels.cpu(), k=1)
        else:
            expected = score_ensemble(base.cpu(), logits.cpu(), labels.cpu(), WEIGHT, scale=SCALE, k=1)
    assert found.nll is not None
    assert expected.nll is not None
    run.check(f"{what}, top-1", found.top[1], expected.top[1])
    run.check(f"{what}, likelihood", found.nll, expected.nll)
    run.check(f"{what}, rows with NaN", found.nan_rows, expected.nan_rows)


def _compare_with_torch(data: tuple[Tensor, Tensor], contenders: dict[str, Callable[[int], object]]) -> None:
    """The others answer the same question: likelihoods about as ours, top-1 but for ties of 16-bit logits."""
    ours, (logits, labels) = score_logits(*data, k=1), data
    assert ours.nll is not None
    for name, call in contenders.items():
        if name == "pysoup":
            continue
        top1, nll = call(0)  # type: ignore[misc]
        torch.testing.assert_close(nll.double(), ours.nll, rtol=TOLERANCE[logits.dtype], atol=0)
        # Of equal logits torch's argmax may take any.
        assert int((top1 - ours.top[1]).abs().max()) <= max(2, len(labels) * TOLERANCE[logits.dtype]), name


def _over_torch(run: Run, label: str, times: dict[str, Times]) -> None:
    ours = times["pysoup"].median
    eager = min(times[name].median for name in ("torch, all at once", "torch, one by one"))
    run.measured[f"logits {label} over eager"] = eager / ours
    if "torch.compile" in times:
        run.measured[f"logits {label} over compile"] = times["torch.compile"].median / ours
