"""Inner products of one gradient with many models on the device, against a copy."""

from __future__ import annotations

import torch
from shapes import clip_vit_b32
from torch import Tensor

from pysoup import ops

from .place import Run, WrongBits, poison

# The CPU's kernels get so many tensors of each size, and these models.
_CHECKED_TENSORS = 6


def dots(run: Run) -> None:
    """72 models of CLIP ViT-B/32's shapes in bf16, 21.8 GB, and a bf16 gradient: as many as the paper has."""
    shapes = list(clip_vit_b32().values())
    if run.dry:
        shapes = [tuple(min(size, 24) for size in shape) for shape in shapes[:9]]
    elements = sum(torch.Size(shape).numel() for shape in shapes)
    count = int(min(72, run.free_bytes() * 0.8 // (2 * elements) - 2))
    if count < 8:
        print(f"bench_cuda: dots: left out: {run.free_bytes() >> 30} GiB are free, too few for 8 models")
        return
    generator = torch.Generator(run.device).manual_seed(0)

    def make() -> list[Tensor]:
        return [
            torch.randn(shape, generator=generator, device=run.device).mul_(0.02).to(torch.bfloat16) for shape in shapes
        ]

    gradient, sources = make(), [make() for _ in range(count)]
    # As in a training step: one gradient after the other.
    gradients = [gradient, [g.flip(0) if g.dim() else g.clone() for g in gradient]]
    prepared = [ops.PreparedDots(g, sources) for g in gradients]
    outs = [torch.empty(count, len(shapes), dtype=torch.float64, device=run.device) for _ in gradients]
    poison(outs)
    for one, out, g in zip(prepared, outs, gradients, strict=True):
        _check(run, one.run(out), g, sources)
    run.passed(f"dots of {count} models")
    times = run.race(
        "dots",
        {
            "pysoup": lambda i: prepared[i % 2].run(outs[i % 2]),
            "pysoup, not prepared": lambda i: ops.dots(gradients[i % 2], sources),
        },
    )
    run.share("dots", times, (count + 1) * 2 * elements)


def _check(run: Run, found: Tensor, gradient: list[Tensor], sources: list[list[Tensor]]) -> None:
    """The products of the first, a middle and the last model with tensors of all sizes, and that none is missing."""
    if bool(found.isnan().any()):
        raise WrongBits("dots: some were not written")
    sizes = sorted(range(len(gradient)), key=lambda s: gradient[s].numel())
    segments = sizes[:: max(1, len(sizes) // _CHECKED_TENSORS)] + sizes[-1:]
    models = [0, len(sources) // 2, len(sources) - 1]
    with run.on_cpu():
        expected = ops.dots(
            [gradient[s].cpu() for s in segments], [[sources[k][s].cpu() for s in segments] for k in models]
        )
    run.check("dots", found.cpu()[models][:, segments], expected)
