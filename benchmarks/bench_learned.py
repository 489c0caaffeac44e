"""Learned soups: a step against reading all ingredients twice plus the model forward and backward; host memory.

    python benchmarks/bench_learned.py [--ingredients 24] [--layers 12] [--width 1024] [--dtype bf16] [--device cuda]
        [--place files] [--granularity tensor] [--blocks B] [--steps 5] [--data DIR] [--keep]

The model is a transformer of ``layers`` x 12 x ``width``^2 parameters: 151 M as it stands. The gradient of a step is
checked against inner products in plain torch before anything is timed. Memory is that of whole processes: one that
learns, and one that runs the model forward and backward only, so that what is beyond it is what mixing takes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import process
import torch
import torch.nn.functional as F
from checkpoints import NAMES, Family, checkpoints
from measure import Contest, goal_row, goals_table, machine, save
from torch import Tensor, nn

from pysoup import _native, learned_soup, open_checkpoint
from pysoup.evaluate import default_forward
from pysoup.mixture import Mixture
from pysoup.soups.learned.gradient import MixedModel
from pysoup.soups.learned.granules import granules_of

CLASSES, CHUNK, MIB = 1000, 1 << 20, 1 << 20


class Transformer(nn.Module):
    """Blocks of attention and an MLP over tokens that are given as vectors, and a head for ``CLASSES``."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(width, max(1, width // 64), 4 * width, dropout=0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.blocks(tokens).mean(1))


def build(args: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    return Transformer(args.layers, args.width).to(args.device, NAMES[args.dtype.upper()]).eval()


def batch_of(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(args.batch, args.tokens, args.width, generator=generator)
    labels = torch.randint(0, CLASSES, (args.batch,), generator=generator)
    return tokens.to(args.device, NAMES[args.dtype.upper()]), labels.to(args.device)


def files(model: nn.Module, folder: Path, args: argparse.Namespace) -> list[Path]:
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return checkpoints(Family(shapes), folder, args.ingredients, NAMES[args.dtype.upper()])


def read_all(paths: list[Path], threads: int) -> None:
    """Every byte of the files once, in chunks into buffers that stay in the cache: the least that a pass has to do."""

    def read(path: Path) -> None:
        buffer = bytearray(CHUNK)
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, paths))


def plain_step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """The model forward and backward, with gradients for all of its parameters."""
    logits, labels = default_forward(model, batch)
    found = torch.autograd.grad(F.cross_entropy(logits.float(), labels), list(model.parameters()))
    _wait(batch[0])
    return found


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def times(model: nn.Module, paths: list[Path], args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    batch = batch_of(args)
    sources = [(str(path), open_checkpoint(path)) for path in paths]
    granules = list(granules_of(args.granularity, Mixture(model, sources).names).values())
    raw = torch.zeros(len(granules), len(paths), dtype=torch.float64)
    options = {"place": args.place, "memory": args.memory, "threads": args.threads}
    with Mixture(model, sources, granules, **options) as mixture:
        mixed = MixedModel(model, mixture)

        def step() -> Tensor:
            weights = torch.softmax(raw.requires_grad_(True), 1)
            with mixed.differentiable():
                logits, labels = mixed(weights, default_forward, batch)
                (gradient,) = torch.autograd.grad(F.cross_entropy(logits.float(), labels), raw)
            _wait(batch[0])
            return gradient

        check(model, paths, granules, step(), raw, batch)
        gradients = list(mixture.mixed())  # as good as any of these shapes and types
        ready = [tensor for _, source in zip(range(2), sources, strict=False) for tensor in _resident(source[1], args)]
        contenders: dict[str, Callable[[], object]] = {
            "step": step,
            "mix and inner products": lambda: mix_and_dots(mixed, torch.softmax(raw.detach(), 1), gradients),
            "forward and backward": lambda: plain_step(model, batch),
        }
        if mixture.place == "files":
            contenders["read all once"] = lambda: read_all(paths, args.threads)
        else:
            share = len(paths) / 2  # two of them stand for all: the device has no room for all of them twice
            contenders["read all once"] = lambda: (_touch(ready), _wait(batch[0]))
        contest = Contest(contenders, args.steps)
    scale = 1.0 if mixture.place == "files" else share
    bound = [
        2 * scale * read + model_
        for read, model_ in zip(contest.seconds["read all once"], contest.seconds["forward and backward"], strict=True)
    ]
    rounds = sorted(one / other for one, other in zip(contest.seconds["step"], bound, strict=True))
    ratio = (rounds[len(rounds) // 2], contest.best("step") / min(bound))
    what = f"a step over two reads ({mixture.place}) + forward and backward"
    name = "mix and inner products"
    rounds = sorted(
        one / (2 * scale * other)
        for one, other in zip(contest.seconds[name], contest.seconds["read all once"], strict=True)
    )
    alone = (rounds[len(rounds) // 2], contest.best(name) / (2 * scale * contest.best("read all once")))
    rows = [
        goal_row(what, "<= 1.3", 1.3, ratio, at_most=True),
        goal_row(f"{name} over two reads ({mixture.place})", "not asked", 0, alone),
    ]
    return rows, contest.to_json()


def mix_and_dots(mixed: MixedModel, weights: Tensor, gradients: list[Tensor]) -> Tensor:
    """All of a step but the model."""
    mixed.write(weights)
    return mixed.mixture.dots(gradients)


def _resident(source: Any, args: argparse.Namespace) -> list[Tensor]:
    if args.place == "files":
        return []
    return [source.tensor(name).to(args.device if args.place == "device" else "cpu") for name in source]


def _touch(tensors: list[Tensor]) -> list[Tensor]:
    """One read of resident tensors, by the reduction that torch has for it."""
    return torch._foreach_norm(tensors, float("inf"))


def check(
    model: nn.Module, paths: list[Path], granules: list[list[str]], found: Tensor, raw: Tensor, batch: Any
) -> None:
    """The gradient by inner products in torch, one ingredient after the other; the model holds the mix."""
    gradients = dict(zip((n for n, _ in model.named_parameters()), plain_step(model, batch), strict=True))
    dots = torch.zeros(raw.shape, dtype=torch.float64)
    for k, path in enumerate(paths):
        checkpoint = open_checkpoint(path)
        for g, names in enumerate(granules):
            for name in names:
                one = checkpoint.tensor(name).double()
                dots[g, k] += (gradients[name].cpu().double() * one).sum()
    weights = torch.softmax(raw.detach().requires_grad_(True), 1)
    expected = weights * (dots - (weights * dots).sum(1, keepdim=True))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-3, atol=1e-5 * dots.abs().max().item())


def learn(args: argparse.Namespace, folder: Path) -> None:
    """What a process of its own does for its memory to be seen: learn, or the model alone."""
    model, batch = build(args), batch_of(args)
    if args.role == "plain":
        for _ in range(2):
            plain_step(model, batch)
        return
    paths = files(model, folder, args)
    learned_soup(
        paths,
        model,
        [batch] * 2,
        granularity=args.granularity,
        epochs=1,
        blocks=args.blocks,
        place=args.place,
        memory=args.memory,
        threads=args.threads,
    )


def memory(model: nn.Module, folder: Path, args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    given = [item for name, value in vars(args).items() for item in _option(name, value)]
    command = [sys.executable, __file__, *given, "--data", str(folder), "--keep", "--role"]
    peaks = {role: process.run([*command, role]).peak_anonymous for role in ("plain", "learned")}
    nbytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    beyond = peaks["learned"] - peaks["plain"]
    rows = [
        goal_row("GB of host memory beyond the model's own passes", "< 2", 2.0, (beyond / 1e9,) * 2, at_most=True),
        goal_row(
            "GB of host memory in all, model, torch and gradients too", "not asked", 0, (peaks["learned"] / 1e9,) * 2
        ),
    ]
    return rows, {"model": nbytes, **peaks}


def _option(name: str, value: Any) -> list[str]:
    if name in ("role", "data", "keep", "steps", "no_memory", "name") or value is None:
        return []
    return [f"--{name.replace('_', '-')}", str(value)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ingredients", type=int, default=24)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--dtype", choices=["f32", "bf16", "f16"], default="bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--place", choices=["files", "memory", "device", "auto"], default="files")
    parser.add_argument("--granularity", choices=["model", "layer", "tensor"], default="tensor")
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--memory", default="64MiB")
    parser.add_argument("--threads", type=int, default=_native.default_threads())
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints, and take those that are there")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that are measured whole")
    parser.add_argument("--name", default="learned", help="of the file with the results")
    parser.add_argument("--role", choices=["plain", "learned"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.role:
        learn(args, args.data)
        return
    info, started = machine(), time.perf_counter()
    args.data.mkdir(parents=True, exist_ok=True)
    folder = args.data if args.keep else Path(tempfile.mkdtemp(dir=args.data))
    try:
        model = build(args)
        paths = files(model, folder, args)
        read_all(paths, args.threads)
        rows, seconds = times(model, paths, args)
        used: dict[str, Any] = {}
        if not args.no_memory:
            added, used = memory(model, folder, args)
            rows += added
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    parameters = sum(tensor.numel() for tensor in model.state_dict().values())
    told = {key: value for key, value in vars(args).items() if not isinstance(value, Path)}
    save(
        args.name,
        {"machine": info, "args": told, "parameters": parameters, "goals": rows, "seconds": seconds, "bytes": used},
    )
    print(f"{args.ingredients} x {parameters / 1e6:.1f} M {args.dtype}, {time.perf_counter() - started:.0f} s in all")
    print(goals_table(rows))
    print({name: f"{group['median'] * 1e3:.1f} ms" for name, group in seconds.items()})
    print({name: f"{value / MIB:.0f} MiB" for name, value in used.items()})


if __name__ == "__main__":
    main()
