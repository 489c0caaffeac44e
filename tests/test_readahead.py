"""The next checkpoint's bytes are asked for while one is scored, and nothing of that outlives a recipe."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from soup_models import images, mlp, pool
from torch import Tensor, nn

from pysoup.checkpoint import open_checkpoint
from pysoup.errors import SoupError
from pysoup.evaluate import HeldOut
from pysoup.soups import greedy_soup
from pysoup.soups.readahead import ReadAhead

SLICE = 128 << 10


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """(file name, first byte, last byte) of every request."""
    requests: list[tuple[str, int, int]] = []

    def advise(fd: int, offset: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_WILLNEED:
            requests.append((Path(os.readlink(f"/proc/self/fd/{fd}")).name, offset, offset + length))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    return requests


def wait_for(ahead: ReadAhead) -> None:
    for thread in threading.enumerate():
        if thread.name == "pysoup-read-ahead":
            thread.join()
    ahead.stop()


def test_every_byte_of_the_tensors_is_asked_for_and_no_optimizer(
    tmp_path: Path, asked: list[tuple[str, int, int]]
) -> None:
    torch.save({"model": {"w": torch.ones(300_000)}, "optimizer": {"state": torch.ones(900_000)}}, tmp_path / "a.pt")
    save_file({"v": torch.ones(1_000), "w": torch.zeros(90_000)}, tmp_path / "b.safetensors")
    (tmp_path / "shards").mkdir()
    for number in (1, 2):
        save_file({f"w{number}": torch.ones(50_000)}, tmp_path / "shards" / f"model-0000{number}-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": {f"w{n}": f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}}
    (tmp_path / "shards" / "model.safetensors.index.json").write_text(str(index).replace("'", '"'))
    for name in ("a.pt", "b.safetensors", "shards"):
        checkpoint = open_checkpoint(tmp_path / name)
        asked.clear()
        ahead = ReadAhead()
        ahead.start(checkpoint)
        wait_for(ahead)
        bytes_asked = defaultdict(set)
        for file, start, end in asked:
            assert end - start <= SLICE
            bytes_asked[file] |= set(range(start, end))
        for tensor in checkpoint:
            entry = checkpoint.entry(tensor)
            assert bytes_asked[checkpoint.files[entry.file].name] >= set(
                range(entry.offset, entry.offset + entry.nbytes)
            )
        assert sum(map(len, bytes_asked.values())) <= checkpoint.total_bytes + 4096 * len(checkpoint)
        assert ahead.seconds > 0


def test_stopping_ends_it_within_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"w": torch.zeros(1_000_000)}, tmp_path / "a.safetensors")
    ahead, begun, stopped, requests = ReadAhead(), threading.Event(), threading.Event(), []

    def advise(fd: int, offset: int, length: int, advice: int) -> None:
        requests.append(offset)
        begun.set()
        assert stopped.wait(60)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    ahead.start(open_checkpoint(tmp_path / "a.safetensors"))
    assert begun.wait(60)
    # The kernel answers only once the stop is on its way.
    threading.Timer(0.05, stopped.set).start()
    ahead.stop()
    assert len(requests) == 1


def test_what_is_in_memory_or_gone_is_not_asked_for(tmp_path: Path, asked: list[tuple[str, int, int]]) -> None:
    save_file({"w": torch.zeros(10)}, tmp_path / "a.safetensors")
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").unlink()
    ahead = ReadAhead()
    for source in (checkpoint, {"w": torch.zeros(10)}, None):
        ahead.start(source)
        wait_for(ahead)
    assert asked == []


def test_the_recipe_asks_for_the_next_one_and_leaves_no_thread(
    tmp_path: Path, asked: list[tuple[str, int, int]]
) -> None:
    torch.manual_seed(0)
    for number, state in enumerate(pool(mlp(), 4, spread=0.3)):
        save_file(state, tmp_path / f"{number}.safetensors")
    paths = [tmp_path / f"{number}.safetensors" for number in range(4)]
    before = threading.active_count()
    during = []

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        wait_for(ReadAhead())  # as long a pass as it takes
        during.append([name for name, _, _ in asked])
        return model(batch[0]), batch[1]

    soup = greedy_soup(paths, mlp(), HeldOut(images(), forward), early_rejection=False)
    tried = [Path(step.ingredient).name for step in soup.trace]
    singles = [f"{number}.safetensors" for number in range(4)]
    assert [names[-1] for names in during[:3]] == singles[1:]
    assert [names[-1] for names in during[4:6]] == tried[2:]
    assert len(during[-1]) == len(during[-2])  # there is none after the last
    assert threading.active_count() == before
    assert soup.timing["read"] > 0

    def broken(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        raise ZeroDivisionError

    with pytest.raises(SoupError, match="ZeroDivisionError"):
        greedy_soup(paths, mlp(), HeldOut(images(), broken))
    assert threading.active_count() == before
