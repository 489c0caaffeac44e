"""Inner products in plain torch, the contract of ``csrc/kernels.h`` step by step; see :mod:`pysoup.reference`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from .reference import fma

_TILE = 16384
_SUMS = 256
# Elements taken at once, a whole number of tiles: in f64 they are several times as large.
_PART = 256 * _TILE


def dots(gradient: Sequence[Tensor], sources: Sequence[Sequence[Tensor]]) -> Tensor:
    """``out[k, s] = sum(gradient[s] * sources[k][s])`` in f64, in the order of the kernels.

    All flat and on one device, equal sizes per segment. The same bits as the native code, for f64 inputs as long as
    products are in the range in which :func:`pysoup.reference.fma` is exact.
    """
    rows = [torch.stack([_dot(g, column[s]) for s, g in enumerate(gradient)]) for column in sources if gradient]
    device = gradient[0].device if gradient else None
    return torch.stack(rows) if rows else torch.zeros(len(sources), len(gradient), dtype=torch.float64, device=device)


def _dot(g: Tensor, x: Tensor) -> Tensor:
    g, x = g.detach().flatten(), x.detach().flatten()
    parts = [_tile_sums(g[i : i + _PART], x[i : i + _PART]) for i in range(0, len(g), _PART)]
    tiles = torch.cat(parts) if parts else g.new_zeros(0, dtype=torch.float64)
    total = tiles.new_zeros(_SUMS)
    for row in pad(tiles, (0, -len(tiles) % _SUMS)).view(-1, _SUMS):
        total = total + row
    result = _tree(total) + 0.0  # -0.0 becomes 0.0
    return torch.where(torch.isnan(result), torch.full_like(result, torch.nan), result)


def _tile_sums(g: Tensor, x: Tensor) -> Tensor:
    exact = torch.float64 not in (g.dtype, x.dtype)  # products of shorter types
    g, x = _in_tiles(g.double()), _in_tiles(x.double())
    sums = g.new_zeros(len(g), _SUMS)
    for i in range(g.shape[1]):
        sums = g[:, i] * x[:, i] + sums if exact else fma(g[:, i], x[:, i], sums)
    return _tree(sums)


def _in_tiles(flat: Tensor) -> Tensor:
    """Tiles of rows of ``_SUMS`` elements, zeros where there are none; if there is one tile, only the rows it needs."""
    size = min(_TILE, -(-len(flat) // _SUMS) * _SUMS)
    return pad(flat, (0, -len(flat) % size)).view(-1, size // _SUMS, _SUMS)


def _tree(sums: Tensor) -> Tensor:
    """The last dimension joined: neighbours, then neighbours of these, until one is left."""
    while sums.shape[-1] > 1:
        sums = sums[..., 0::2] + sums[..., 1::2]
    return sums[..., 0]
