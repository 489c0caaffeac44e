"""What a held-out set keeps is its own: apart from loaders' workers, and never half copied."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pysoup.errors import OutputError, SoupError
from pysoup.evaluate import HeldOut

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
Y = torch.arange(40)


def test_batches_of_a_loaders_workers_take_no_open_files_and_no_shared_memory() -> None:
    before = len(os.listdir("/proc/self/fd"))
    held = HeldOut(DataLoader(TensorDataset(X, Y), batch_size=1, num_workers=1))
    assert len(held) == 40
    assert len(os.listdir("/proc/self/fd")) < before + 40
    assert not any(part.is_shared() for batch in held.batches() for part in batch)
    assert torch.equal(torch.cat([x for x, _ in held.batches()]), X)


def test_whole_tensors_in_shared_memory_are_not_copied() -> None:
    shared = X.clone().share_memory_()
    batch, _ = next(HeldOut((shared, Y)).batches())
    assert batch.data_ptr() == shared.data_ptr()


def test_batches_without_a_plain_tensor_may_pass_the_budget() -> None:
    kept = [X.clone().requires_grad_(), X.to_sparse()]
    held = HeldOut([(one, "text") for one in kept], memory=0)
    assert held.place == "file"
    assert all(found[0] is one for found, one in zip(held.batches(), kept, strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_set_in_a_file_is_not_copied_with_the_number_of_a_descriptor(copied: Callable[[Any], Any]) -> None:
    batches = [(X, Y)]
    held = HeldOut(batches, memory=0)
    assert held.place == "file"
    with pytest.raises(SoupError, match="in a temporary file cannot be copied or sent to another process"):
        copied(held)
    in_memory = HeldOut(batches)
    assert in_memory.place == "memory"
    copied(in_memory)


def test_a_machine_without_a_temporary_directory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/TMP']")

    monkeypatch.setattr("tempfile.gettempdir", none)
    with pytest.raises(OutputError, match=r"temporary file \(TMPDIR says where\): no usable .* in \['/TMP'\]"):
        len(HeldOut([(X, Y)], memory=0))
