"""Averages on the device, against a copy, ``_foreach_add_`` and torch.compile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from shapes import clip_vit_b32
from torch import Tensor

import pysoup

from .clock import Call, Times
from .goals import COUNTS
from .place import Run, WrongBits, poison

Shapes = dict[str, tuple[int, ...]]
StateDict = dict[str, Tensor]
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
# Of a set's inputs, so many bytes are averaged on the CPU too.
CHECKED_BYTES = 2 << 30


def big(run: Run) -> None:
    """Four tensors of equal size a model, 4 GiB of inputs a set."""
    for label, dtype in DTYPES.items():
        for count in COUNTS:
            total = 1 << 18 if run.dry else min(4 << 30, run.free_bytes() // 4)
            shapes: Shapes = {f"w{i}": (total // (4 * count * dtype.itemsize),) for i in range(4)}
            sets = [Set(run, shapes, count, dtype, seed) for seed in range(2)]
            contenders: dict[str, Call] = {"pysoup": lambda i, sets=sets: sets[i % 2].run()}  # type: ignore[misc]
            if run.compiling and count == 8:
                contenders["torch.compile"] = compiled(sets)
            times = _race(run, f"big {label} {count}", sets, contenders)
            run.share(f"big {label} {count}", times, sets[0].moved)
            del sets, contenders
            run.empty_cache()


def vit(run: Run) -> None:
    """CLIP ViT-B/32: 302 tensors, most of them small, over prepared plans."""
    shapes = clip_vit_b32()
    if run.dry:
        shapes = {name: tuple(min(size, 5) for size in shape) for name, shape in shapes.items()}
    elements = sum(torch.Size(shape).numel() for shape in shapes.values())
    for label, dtype in DTYPES.items():
        for count in COUNTS:
            fits = run.free_bytes() * 0.8 // (elements * dtype.itemsize * (count + 3))
            if fits < 1:
                continue
            # One set is hundreds of times the L2 cache; a second is taken where it fits.
            sets = [Set(run, shapes, count, dtype, seed) for seed in range(int(min(fits, 2)))]
            contenders: dict[str, Call] = {"pysoup": lambda i, sets=sets: sets[i % len(sets)].run()}  # type: ignore[misc]
            if count == 8:
                contenders |= foreach(sets, dtype)
            times = _race(run, f"vit {label} {count}", sets, contenders)
            run.share(f"vit {label} {count}", times, sets[0].moved)
            if count == 8:
                _over_foreach(run, label, times)
            del sets, contenders
            run.empty_cache()


def candidate(run: Run) -> None:
    """One step of a greedy soup: the running f32 sum and one more bf16 model, rounded into the parameters."""
    shapes: Shapes = {f"w{i}": (1 << 10 if run.dry else 48 << 20,) for i in range(4)}
    models = [make_model(run, shapes, torch.bfloat16, seed) for seed in range(4)]
    targets = [{name: torch.empty_like(t) for name, t in models[0].items()} for _ in range(2)]
    averager = pysoup.Averager(models[0])
    averager.add(models[0])
    averager.add(models[1])
    for target, model in zip(targets, models[2:], strict=True):
        poison(list(target.values()))
        averager.preview(model, out=target)
        with run.on_cpu():
            expected = pysoup.average_state_dicts([_host(m) for m in (*models[:2], model)])
        _compare(run, "candidate", target, expected)
    run.passed("candidate")
    times = run.race(
        "candidate",
        {
            "pysoup": lambda i: averager.preview(models[2 + i % 2], out=targets[i % 2]),
            "pysoup, add": lambda i: averager.add(models[2 + i % 2]),
        },
    )
    elements = sum(t.numel() for t in models[0].values())
    run.share("candidate", times, elements * (4 + 2 + 2))
    run.share("candidate, add", times, elements * (4 + 2 + 4), "pysoup, add")


class Set:
    """K models, an output, and the prepared average of the first into the second."""

    def __init__(self, run: Run, shapes: Shapes, count: int, dtype: torch.dtype, seed: int) -> None:
        self.models = [make_model(run, shapes, dtype, seed * count + k) for k in range(count)]
        self.out = {name: torch.empty_like(t) for name, t in self.models[0].items()}
        self.moved = (count + 1) * sum(t.nbytes for t in self.out.values())
        self._bound = pysoup.Averager(self.models[0]).bind(self.models, out=self.out)

    def run(self) -> object:
        return self._bound.run()

    def check(self, run: Run, what: str) -> None:
        """A poisoned output against the CPU's: all of it, or tensors from everywhere up to CHECKED_BYTES of inputs."""
        poison(list(self.out.values()))
        self.run()
        names = list(self.out)
        names = names[:: max(1, -(-self.moved // CHECKED_BYTES))]
        with run.on_cpu():
            expected = pysoup.average_state_dicts([_host({n: m[n] for n in names}) for m in self.models])
        _compare(run, what, self.out, expected)
        for name, tensor in self.out.items():
            if bool(tensor.isnan().any()):
                raise WrongBits(f"{what}: {name} was not written")


def make_model(run: Run, shapes: Shapes, dtype: torch.dtype, seed: int) -> StateDict:
    """Seeded normal values of the spread of trained weights."""
    generator = torch.Generator(run.device).manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, device=run.device).mul_(0.02).to(dtype)
        for name, shape in shapes.items()
    }


def foreach(sets: Sequence[Set], dtype: torch.dtype) -> dict[str, Call]:
    """The sum that people write: one list operation a model. The division that makes it a mean is left out."""

    def add(number: int, outs: list[list[Tensor]]) -> None:
        out, models = outs[number % len(sets)], sets[number % len(sets)].models
        torch._foreach_copy_(out, list(models[0].values()))
        for model in models[1:]:
            torch._foreach_add_(out, list(model.values()))

    same = [[torch.empty_like(t) for t in one.out.values()] for one in sets]
    calls: dict[str, Call] = {"foreach": lambda i: add(i, same)}
    if dtype != torch.float32:
        wide = [[torch.empty_like(t, dtype=torch.float32) for t in one.out.values()] for one in sets]
        calls["foreach into f32"] = lambda i: add(i, wide)
        _agree(calls["foreach into f32"], wide[0], sets[0], len(sets[0].models))
    _agree(calls["foreach"], same[0], sets[0], len(sets[0].models))
    return calls


def compiled(sets: Sequence[Set]) -> Call:
    """torch.compile's sum of K tensors, one kernel for each of four: f32 inside, rounded once."""

    def flat_sum(out: Tensor, *tensors: Tensor) -> None:
        total = tensors[0].float()
        for tensor in tensors[1:]:
            total = total + tensor.float()
        out.copy_(total / len(tensors))

    function = torch.compile(flat_sum, dynamic=False)
    outs = [{name: torch.empty_like(t) for name, t in one.out.items()} for one in sets]

    def call(number: int) -> None:
        models = sets[number % len(sets)].models
        for name, out in outs[number % len(sets)].items():
            function(out, *(model[name] for model in models))

    _agree(call, list(outs[0].values()), sets[0], 1)
    return call


def _agree(call: Call, found: list[Tensor], one: Set, factor: int) -> None:
    """Others answer the same question: about ``factor`` times the mean."""
    call(0)
    one.run()
    for tensor, mean in zip(found, one.out.values(), strict=True):
        torch.testing.assert_close(tensor.float(), mean.float() * factor, rtol=2e-2, atol=1e-3 * factor)


def _race(run: Run, contest: str, sets: Sequence[Set], contenders: dict[str, Call]) -> dict[str, Times]:
    for one in sets:
        one.check(run, contest)
    run.passed(contest)
    return run.race(contest, contenders)


def _over_foreach(run: Run, label: str, times: dict[str, Times]) -> None:
    run.measured[f"vit {label} 8 over foreach"] = times["foreach"].median / times["pysoup"].median
    if "foreach into f32" in times:
        run.measured["vit bf16 8 over foreach f32"] = times["foreach into f32"].median / times["pysoup"].median


def _host(model: StateDict) -> StateDict:
    return {name: tensor.cpu() for name, tensor in model.items()}


def _compare(run: Run, what: str, found: StateDict, expected: dict[str, Any]) -> None:
    for name, tensor in expected.items():
        run.check(f"{what}, {name}", found[name], tensor)
