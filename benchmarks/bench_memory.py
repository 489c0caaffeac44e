"""Averages in memory: pysoup against a bandwidth probe on the same pages and against what people write in torch.

    python benchmarks/bench_memory.py [--threads 2] [--ingredients 8] [--repeats 7] [--no-compile]

Every contender is checked for its result before it is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from measure import Contest, goal_row, goals_table, machine, save
from shapes import clip_vit_b32, many_small

import pysoup
from pysoup import _native

StateDict = dict[str, torch.Tensor]


def make_models(shapes: dict[str, tuple[int, ...]], count: int, dtype: torch.dtype) -> list[StateDict]:
    """Seeded models of those shapes."""
    torch.manual_seed(0)
    base = {name: torch.randn(shape) for name, shape in shapes.items()}
    return [{name: t.mul(1 + k / 8).to(dtype) for name, t in base.items()} for k in range(count)]


Tensors = list[torch.Tensor]


def foreach_add(models: list[StateDict], out: Tensors) -> Tensors:
    """The careful torch loop: one fused list operation a model, summed in ``out``'s dtype."""
    torch._foreach_copy_(out, list(models[0].values()))
    for model in models[1:]:
        torch._foreach_add_(out, list(model.values()))
    torch._foreach_div_(out, len(models))
    return out


def foreach_fresh(models: list[StateDict]) -> Tensors:
    """The same with new tensors."""
    total = [t.clone() for t in models[0].values()]
    for model in models[1:]:
        torch._foreach_add_(total, list(model.values()))
    torch._foreach_div_(total, len(models))
    return total


def eager_f32(models: list[StateDict], out: Tensors) -> Tensors:
    """Tensor by tensor with an f32 sum, back to the models' dtype."""
    for target, *tensors in zip(out, *(m.values() for m in models), strict=True):
        total = tensors[0].float()
        for tensor in tensors[1:]:
            total.add_(tensor)
        target.copy_(total.div_(len(models)))
    return out


def eager_f32_chunked(models: list[StateDict], out: Tensors, chunk: int = 1 << 16) -> Tensors:
    """The same in chunks that stay in the cache: the fastest eager loop found."""
    buffer = torch.empty(chunk)
    for target, *tensors in zip(out, *(m.values() for m in models), strict=True):
        flats, flat_out = [t.view(-1) for t in tensors], target.view(-1)
        for begin in range(0, flat_out.numel(), chunk):
            end = min(begin + chunk, flat_out.numel())
            total = buffer[: end - begin]
            total.copy_(flats[0][begin:end])
            for flat in flats[1:]:
                total.add_(flat[begin:end])
            flat_out[begin:end] = total.div_(len(models))
    return out


def stack_mean(models: list[StateDict]) -> Tensors:
    return [torch.stack(ts).float().mean(0).to(ts[0].dtype) for ts in zip(*(m.values() for m in models), strict=True)]


def flat_sum(out: torch.Tensor, *xs: torch.Tensor) -> None:
    """What torch.compile is given: the fused sum of K flat tensors, f32 accumulation, rounded once."""
    total = xs[0].float()
    for x in xs[1:]:
        total = total + x.float()
    out.copy_(total / len(xs))


def compiled_flat(models: list[StateDict]) -> Callable[[], object]:
    """``torch.compile`` at its best: one flat tensor a model, so that there is one kernel and no Python loop."""
    flats = [torch.cat([t.reshape(-1) for t in m.values()]) for m in models]
    out = torch.zeros_like(flats[0])
    function = torch.compile(flat_sum, dynamic=False)
    function(out, *flats)
    torch.testing.assert_close(out[:1000], (sum(f[:1000].double() for f in flats) / len(flats)).to(out.dtype))
    return lambda: function(out, *flats)


def probe(models: list[StateDict], threads: int) -> Callable[[], object]:
    """K streams read, one written, no arithmetic, over buffers of the same total size in the same layout."""
    total = sum(t.numel() * t.element_size() for t in models[0].values()) // 64 * 64
    flats = [torch.cat([t.reshape(-1).view(torch.uint8) for t in m.values()]) for m in models]
    out = torch.empty(total + 64, dtype=torch.uint8)
    _native.load().advise_huge_pages(out.data_ptr(), total)
    aligned = (out.data_ptr() + 63) // 64 * 64
    native = _native.load()
    keep = (flats, out)
    return lambda: (native.probe_streams([f.data_ptr() for f in keep[0]], aligned, total, threads), None)[1]


def close(result: Any, expected: StateDict) -> None:
    tensors = list(result.values()) if isinstance(result, dict) else list(result)
    for tensor, reference in zip(tensors, expected.values(), strict=True):
        torch.testing.assert_close(tensor.to(reference.dtype), reference, rtol=2e-2, atol=2e-2)


def large(dtype: torch.dtype, args: argparse.Namespace) -> tuple[Contest, list[dict[str, Any]]]:
    """Goals (a) and (b): 151 M parameters."""
    models = make_models(clip_vit_b32(), args.ingredients, dtype)
    expected = pysoup.average_state_dicts(models)
    out = {name: torch.zeros_like(t) for name, t in models[0].items()}
    same, wide = [[torch.zeros_like(t, dtype=d) for t in models[0].values()] for d in (dtype, torch.float32)]
    contenders: dict[str, Callable[[], object]] = {
        "probe": probe(models, args.threads),
        "pysoup": lambda: pysoup.average_state_dicts(models, out=out, threads=args.threads),
        "pysoup, new tensors": lambda: pysoup.average_state_dicts(models, threads=args.threads),
        "foreach into f32": lambda: foreach_add(models, wide),
        "foreach, new tensors": lambda: foreach_fresh(models),
    }
    if dtype != torch.float32:
        contenders["foreach lossy"] = lambda: foreach_add(models, same)
        contenders["eager f32 sum"] = lambda: eager_f32(models, same)
        contenders["eager f32 sum, chunked"] = lambda: eager_f32_chunked(models, same)
    for name, call in contenders.items():
        if name != "probe":
            close(call(), expected)
    if args.compile:
        contenders["torch.compile"] = compiled_flat(models)
    contest = Contest(contenders, args.repeats)
    if args.slow:
        contest.seconds |= Contest({"stack().mean()": lambda: stack_mean(models)}, 1, 0).seconds
    label = str(dtype).removeprefix("torch.")
    ratio = contest.ratio
    if dtype == torch.float32:
        rows = [
            goal_row("f32: share of the probe's bandwidth", ">= 0.9", 0.9, ratio("probe", "pysoup")),
            goal_row("f32: vs `_foreach_add_`", ">= 1.5", 1.5, ratio("foreach into f32", "pysoup")),
        ]
    else:
        eager = min(("eager f32 sum", "eager f32 sum, chunked"), key=contest.median)
        rows = [
            goal_row(f"{label}: vs `_foreach_add_` into f32", ">= 6", 6, ratio("foreach into f32", "pysoup")),
            goal_row(f"{label}: vs best eager with f32 sum ({eager})", ">= 3.5", 3.5, ratio(eager, "pysoup")),
            goal_row(f"{label}: vs lossy `_foreach_add_`", "> 1", 1, ratio("foreach lossy", "pysoup")),
        ]
    fresh = ratio("foreach, new tensors", "pysoup, new tensors")
    rows.append(goal_row(f"{label}: new tensors, vs `clone` + `_foreach_add_`", "not asked", 0, fresh))
    if args.compile:
        bound = "not asked" if dtype == torch.float32 else ">= 1"
        limit = 0 if dtype == torch.float32 else 1
        compiled = ratio("torch.compile", "pysoup")
        rows.append(goal_row(f"{label}: vs `torch.compile` of the sum", bound, limit, compiled))
    return contest, rows


def small(args: argparse.Namespace, large_f32: Contest, large_bytes: int) -> tuple[Contest, list[dict[str, Any]]]:
    """Goal (c): 1,000 tensors of 1,000 elements."""
    models = make_models(many_small(), args.ingredients, torch.float32)
    out = {name: torch.zeros_like(t) for name, t in models[0].items()}
    old = {name: torch.zeros_like(t) for name, t in models[0].items()}
    bound = pysoup.Averager(models[0], threads=args.threads).bind(models, out=out)
    contenders: dict[str, Callable[[], object]] = {
        "foreach": lambda: foreach_fresh(models),
        "foreach, old tensors": lambda: foreach_add(models, [*old.values()]),
        "pysoup": lambda: pysoup.average_state_dicts(models, threads=args.threads),
        "pysoup bound": bound.run,
    }
    expected = pysoup.average_state_dicts(models)
    for call in contenders.values():
        close(call(), expected)
    contest = Contest(contenders, args.repeats, calls=50)
    nbytes = (args.ingredients + 1) * 4 * 1_000_000
    rate = (nbytes / contest.median("pysoup bound")) / (large_bytes / large_f32.median("pysoup"))
    best = (nbytes / contest.best("pysoup bound")) / (large_bytes / large_f32.best("pysoup"))
    return contest, [
        goal_row("1,000 x 1,000: times faster than `_foreach_add_`", ">= 1.5", 1.5, contest.ratio("foreach", "pysoup")),
        goal_row(
            "1,000 x 1,000, bound plan: times faster than `_foreach_add_` into old tensors",
            "not asked",
            0,
            contest.ratio("foreach, old tensors", "pysoup bound"),
        ),
        goal_row("1,000 x 1,000, bound plan: rate per byte over (a)'s", ">= 0.5", 0.5, (rate, best)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=_native.default_threads())
    parser.add_argument("--ingredients", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--slow", action="store_true", help="also time stack().mean(), once")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    info = machine()
    rows: list[dict[str, Any]] = []
    times: dict[str, Any] = {}
    parameters = sum(torch.Size(s).numel() for s in clip_vit_b32().values())
    contest_f32 = None
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        contest, added = large(dtype, args)
        contest_f32 = contest_f32 or contest
        rows += added
        times[str(dtype).removeprefix("torch.")] = contest.to_json()
    assert contest_f32 is not None
    contest, added = small(args, contest_f32, (args.ingredients + 1) * 4 * parameters)
    rows += added
    times["1000x1000"] = contest.to_json()
    save("memory", {"machine": info, "args": vars(args), "parameters": parameters, "goals": rows, "seconds": times})
    print(goals_table(rows))
    for name, group in times.items():
        print(name, {k: f"{v['median'] * 1e3:.1f} ms" for k, v in group.items()})


if __name__ == "__main__":
    main()
