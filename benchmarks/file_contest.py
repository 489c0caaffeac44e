"""Contests of whole processes over the same files: who runs, in which order, and whether the results are right."""

from __future__ import annotations

import random
import shutil
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import page_cache
import torch
from peer_tools import PYSOUP_COMMAND, Peer, command
from process import Run, run
from safetensors import safe_open

DIRECT, DIRECT_2, CAT, CAT_2 = "direct read", "direct read, 2 streams", "cat", "cat, 2 at a time"
CEILINGS = (DIRECT, DIRECT_2, CAT, CAT_2)
# Looked at in every contender's result, and all that the tiny checkpoints hold.
LOOKED_AT = ("pos_embed", "blocks.3.mlp.fc1.weight", "norm.bias", "head.weight")


@dataclass
class Contest:
    """Runs of named contenders over the same files, the page cache holding all of them or nothing."""

    inputs: list[Path]
    cold: bool
    runs: dict[str, list[Run]] = field(default_factory=dict)

    def play(
        self,
        contenders: Mapping[str, Callable[[], Run]],
        rounds: int,
        patience: float,
        never_out: Collection[str] = (),
    ) -> None:
        """``rounds`` times all contenders in shuffled order, but those that have used up ``patience`` seconds."""
        shuffle = random.Random(0)
        for _ in range(rounds):
            spent = {n: sum(r.seconds for r in self.runs.get(n, ())) for n in contenders}
            order = [n for n in contenders if spent[n] < patience or n in never_out]
            shuffle.shuffle(order)
            for name in order:
                if self.cold:
                    page_cache.drop(self.inputs)
                else:
                    page_cache.ensure_warm(self.inputs)
                result = contenders[name]()
                self.runs.setdefault(name, []).append(result)
                print(f"  {name:26} {result.seconds:7.2f} s  {result.peak_anonymous / 2**20:6.0f} MiB", flush=True)

    def ratio(self, slow: str, fast: str, less: Mapping[str, float] | None = None) -> tuple[float, float]:
        """How many times longer ``slow`` takes: the median of the rounds both ran in, and by bests.

        ``less`` has seconds to be taken off each contender's runs first, such as its start-up.
        """
        off = [0.0 if less is None else less[name] for name in (slow, fast)]
        times = [[r.seconds - o for r in self.runs[n]] for n, o in zip((slow, fast), off, strict=True)]
        return statistics.median(a / b for a, b in zip(*times, strict=False)), min(times[0]) / min(times[1])

    def peak(self, name: str) -> int:
        return max(r.peak_anonymous for r in self.runs[name])

    def to_json(self) -> dict[str, Any]:
        return {
            name: {
                "median": statistics.median(r.seconds for r in runs),
                "best": min(r.seconds for r in runs),
                "cpu": statistics.median(r.cpu_seconds for r in runs),
                "peak_anonymous": self.peak(name),
                "all": [r.seconds for r in runs],
            }
            for name, runs in self.runs.items()
        }


class Outputs:
    """Where contenders write, one after another: each checked once against pysoup's result, and removed at once.

    A file that is removed before the system writes it out costs the next contender nothing.
    """

    def __init__(self, folder: Path, inputs: Sequence[Path]) -> None:
        """Makes pysoup's result first and checks it against plain sums."""
        self.folder = folder
        self.inputs = list(inputs)
        self.suffix = inputs[0].suffix
        self.expected = folder / f"expected{self.suffix}"
        self._checked: set[str] = set()
        self.remove(self.expected)
        run([*PYSOUP_COMMAND, *map(str, inputs), "-o", str(self.expected)])
        check_exact(self.inputs, self.expected)

    def pysoup(self) -> Callable[[], Run]:
        output = self.folder / f"pysoup{self.suffix}"
        return self._after("pysoup", [*PYSOUP_COMMAND, *map(str, self.inputs), "-o", str(output)], output, output)

    def peer(self, peer: Peer, python: str) -> Callable[[], Run]:
        output = self.folder / (peer.script if peer.folder else f"{peer.script}{self.suffix}")
        written = output / "model.safetensors" if peer.folder else output
        return self._after(peer.label, command(peer, python, output, self.inputs), output, written, peer.needs)

    def remove_all(self) -> None:
        for path in (*self.inputs, self.expected):
            self.remove(path)

    @staticmethod
    def remove(output: Path) -> None:
        shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
        output.with_name(output.name + ".yaml").unlink(missing_ok=True)

    def _after(
        self, name: str, called: list[str], output: Path, written: Path, needs: str | None = None
    ) -> Callable[[], Run]:
        def call() -> Run:
            self.remove(output)
            result = run(called)
            if name not in self._checked:
                check_close(written, self.expected)
                if needs == "mergekit":
                    check_mergekit(written, self.expected)
                self._checked.add(name)
            self.remove(output)
            return result

        return call


class Tensors:
    """The tensors of a file, one at a time."""

    def __init__(self, path: Path) -> None:
        safe = path.suffix == ".safetensors"
        self._file = safe_open(path, "pt") if safe else torch.load(path, mmap=True, weights_only=True)
        self.get: Callable[[str], torch.Tensor] = self._file.get_tensor if safe else self._file.__getitem__

    def names(self) -> list[str]:
        return list(self._file.keys())


def check_close(path: Path, expected: Path) -> None:
    """A contender's result against pysoup's: the same average, up to a lossy sum's error."""
    theirs, ours = Tensors(path), Tensors(expected)
    for name in LOOKED_AT:
        reference = ours.get(name)
        torch.testing.assert_close(theirs.get(name).to(reference.dtype), reference, rtol=2e-2, atol=2e-3)


def check_mergekit(path: Path, expected: Path) -> None:
    """All tensors of mergekit's result: the same bits in 16-bit types, and in f32 what its f32 sum lets through.

    bench_error.py holds f32 to 1 ulp, against mergekit told to sum in f64.
    """
    theirs, ours = Tensors(path), Tensors(expected)
    assert sorted(theirs.names()) == sorted(ours.names())
    for name in ours.names():
        a, b = theirs.get(name), ours.get(name)
        if b.dtype == torch.float32:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(a, b), f"{name}: not mergekit's bits"


def check_exact(inputs: Sequence[Path], output: Path) -> None:
    """pysoup's result against plain sums in order: in f32 for 16 bits, else in f64."""
    result, files = Tensors(output), [Tensors(path) for path in inputs]
    for name in LOOKED_AT:
        tensors = [file.get(name) for file in files]
        total = tensors[0].to(torch.float32 if tensors[0].element_size() <= 2 else torch.float64)
        for tensor in tensors[1:]:
            total += tensor
        assert torch.equal(result.get(name), (total / len(tensors)).to(tensors[0].dtype)), name


def ceilings(inputs: Sequence[Path], cold: bool) -> dict[str, Callable[[], Run]]:
    """What reading alone takes: `cat` to /dev/null, and cold the disk without the page cache."""
    halves = [" ".join(map(str, inputs[i::2])) for i in range(2)]
    found = {CAT: lambda: run(["sh", "-c", f"cat {' '.join(map(str, inputs))} > /dev/null"])}
    if cold:
        found[DIRECT] = lambda: Run(page_cache.read_directly(inputs), 0.0, 0)
        found[DIRECT_2] = lambda: Run(page_cache.read_directly(inputs, streams=2), 0.0, 0)
    else:
        found[CAT_2] = lambda: run(["sh", "-c", f"cat {halves[0]} > /dev/null & cat {halves[1]} > /dev/null; wait"])
    return found


def start_up(
    folder: Path, peers: Sequence[Peer], python: str, timed: Collection[str] = ()
) -> dict[str, dict[str, float]]:
    """Seconds and anonymous memory of each contender's command over two checkpoints of a few bytes: its fixed cost.

    The median of three runs for those in ``timed``, one run of the others, after one that fills the page cache.
    """
    from safetensors.torch import save_file

    tiny = [folder / f"tiny-{i}.safetensors" for i in range(2)]
    for path in tiny:
        save_file({name: torch.ones(8) for name in LOOKED_AT}, path)
    outputs = Outputs(folder, tiny)
    found = {}
    for name, call in {"pysoup": outputs.pysoup(), **{p.label: outputs.peer(p, python) for p in peers}}.items():
        call()
        runs = [call() for _ in range(3 if name in timed else 1)]
        found[name] = {
            "seconds": statistics.median(r.seconds for r in runs),
            "anonymous": max(r.peak_anonymous for r in runs),
        }
    outputs.remove_all()
    return found
