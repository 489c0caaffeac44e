"""Seeded checkpoints for the benchmarks: fine-tuned models of one start, in memory and in files."""

from __future__ import annotations

import json
from pathlib import Path

import torch

Shapes = dict[str, tuple[int, ...]]
StateDict = dict[str, torch.Tensor]

NAMES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
CODES = {dtype: code for code, dtype in NAMES.items()}
# Each model's change takes another piece of one noise vector: as good as new noise here, and many times faster to make.
_STEP = 1_000_003


class Family:
    """Models that share a start: start + 0.05 * noise, normal with the spread of trained weights."""

    def __init__(self, shapes: Shapes, seed: int = 0) -> None:
        self.shapes = shapes
        self.elements = sum(torch.Size(s).numel() for s in shapes.values())
        generator = torch.Generator().manual_seed(seed)
        self._start = torch.randn(self.elements, generator=generator).mul_(0.02)
        self._noise = torch.randn(self.elements, generator=generator).mul_(0.001)

    def flat(self, index: int, dtype: torch.dtype) -> torch.Tensor:
        """Model ``index`` as one vector."""
        split = index * _STEP % self.elements
        values = torch.cat((self._noise[split:], self._noise[:split]))
        if dtype == torch.float64:  # with digits of its own, or sums would be exact
            return values.double().mul_(1 + 1e-9).add_(self._start)
        return values.add_(self._start).to(dtype)

    def model(self, index: int, dtype: torch.dtype) -> StateDict:
        """Model ``index``, each tensor in memory of its own, as a loaded checkpoint has it."""
        return {name: part.clone() for name, part in self._parts(self.flat(index, dtype))}

    def spaced(self, index: int, dtype: torch.dtype, gap: int = 64) -> tuple[torch.Tensor, StateDict]:
        """Model ``index`` as one vector and as views of it, at least ``gap`` bytes apart, as separate tensors are.

        Every tensor starts at a multiple of 64 bytes; the bytes between are zero.
        """
        step = 64 // dtype.itemsize
        sizes = [torch.Size(shape).numel() for shape in self.shapes.values()]
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + -(-(size + gap // dtype.itemsize) // step) * step)
        flat = torch.zeros(starts[-1], dtype=dtype)
        views = {}
        for (name, part), start in zip(self._parts(self.flat(index, dtype)), starts, strict=False):
            views[name] = flat[start : start + part.numel()].view(part.shape).copy_(part)
        return flat, views

    def save(self, index: int, dtype: torch.dtype, path: Path) -> None:
        """Model ``index`` as a file; for safetensors the bytes are written as they lie, without a second copy."""
        flat = self.flat(index, dtype)
        if path.suffix != ".safetensors":
            torch.save({name: part.clone() for name, part in self._parts(flat)}, path)
            return
        header, begin = {}, 0
        for name, part in self._parts(flat):
            end = begin + part.numel() * part.element_size()
            header[name] = {"dtype": CODES[dtype], "shape": list(part.shape), "data_offsets": [begin, end]}
            begin = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            flat.view(torch.uint8).numpy().tofile(file)

    def _parts(self, flat: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        sizes = [torch.Size(shape).numel() for shape in self.shapes.values()]
        return [(n, p.view(s)) for (n, s), p in zip(self.shapes.items(), flat.split(sizes), strict=True)]


def checkpoints(
    family: Family, folder: Path, count: int, dtype: torch.dtype, suffix: str = ".safetensors"
) -> list[Path]:
    """``count`` files in ``folder``, made once."""
    paths = [folder / f"{CODES[dtype].lower()}-{index:02d}{suffix}" for index in range(count)]
    for index, path in enumerate(paths):
        if not path.exists():
            family.save(index, dtype, path)
    return paths
