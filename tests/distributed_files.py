"""Checkpoints as ``torch.distributed.checkpoint`` writes them, by real processes: `python distributed_files.py DIR N`.

Each rank saves its shards over gloo: FSDP (fully_shard) and DTensors cut along one or two dimensions. What they hold is
a function of a seed, so the tests make the full tensors again without any of it.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch

RANKS = 4


def full(seed: int) -> dict[str, torch.Tensor]:
    """The weights that were saved under ``seed``, whole."""
    made = torch.Generator().manual_seed(seed)
    return {
        "rows": torch.randn(10, 3, generator=made),
        "columns": torch.randn(6, 9, generator=made),
        "blocks": torch.randn(7, 5, 4, generator=made),
        "half": torch.randn(9, 2, generator=made).bfloat16(),
        "few": torch.randn(2, 3, generator=made),
        "whole": torch.randn(5, generator=made),
        "count": torch.tensor(17),
    }


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(5, 11), torch.nn.BatchNorm1d(11), torch.nn.Linear(11, 3))


def _sharded(seed: int) -> dict[str, torch.Tensor]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    line, grid = init_device_mesh("cpu", (RANKS,)), init_device_mesh("cpu", (2, 2))
    plans = {
        "rows": (line, [Shard(0)]),
        "columns": (line, [Shard(1)]),
        "blocks": (grid, [Shard(0), Shard(1)]),
        "half": (grid, [Replicate(), Shard(0)]),
        "few": (line, [Shard(0)]),
    }
    return {n: distribute_tensor(t, *plans[n]) if n in plans else t for n, t in full(seed).items()}


def _work(rank: int, root: Path) -> None:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{root}/meeting", rank=rank, world_size=RANKS)
    for seed in (1, 2):
        dcp.save({"model": _sharded(seed), "epoch": seed}, checkpoint_id=str(root / f"tensors-{seed}"))
        model = network(seed)
        fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
        optimizer = torch.optim.Adam(model.parameters())
        weights, state = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optim": state}, checkpoint_id=str(root / f"fsdp-{seed}"))
    dist.destroy_process_group()


def main(root: Path) -> None:
    import torch.distributed.checkpoint
    import torch.distributed.checkpoint.state_dict
    import torch.distributed.fsdp
    import torch.distributed.tensor  # once, before the processes part

    torch.set_num_threads(1)
    children = []
    for rank in range(RANKS):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _work(rank, root)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    failed = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(max(failed))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))
