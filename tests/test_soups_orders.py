"""Greedy soups in random orders, each the one that its seed gives by itself."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from soup_models import Interrupted, images, mlp, pool, same_bits
from torch import Tensor, nn

from pysoup import HeldOut, SoupError, greedy_soup
from pysoup.soups import identity, random_orders


def test_each_order_is_that_of_its_seed_and_the_statistics_are_theirs() -> None:
    states = pool(mlp(), 6, spread=0.3)
    held = HeldOut(images(), batch_size=32)
    found = random_orders(states, mlp(), held, orders=4, seed=7, accept=">")
    assert len(found.soups) == 4
    for number, soup in enumerate(found.soups):
        alone = greedy_soup(states, mlp(), held, order="random", seed=7 + number, accept=">")
        assert soup.ingredients == alone.ingredients
        assert found.scores[number] == soup.score == alone.score
        assert same_bits(soup.state_dict(), alone.state_dict())
    assert len({tuple(step.index for step in soup.trace) for soup in found.soups}) > 1
    assert found.mean == pytest.approx(sum(found.scores) / 4, rel=1e-15)
    assert found.sd == pytest.approx(statistics.stdev(found.scores), rel=1e-15)
    assert found.sd is not None
    assert found.sd > 0


def test_one_order_has_no_deviation() -> None:
    found = random_orders(pool(mlp(), 3, spread=0.3), mlp(), images(), "nll", orders=1)
    assert found.sd is None
    assert found.mean == found.scores[0]


def test_single_models_are_not_scored_and_data_is_read_once() -> None:
    states = pool(mlp(), 5, spread=0.3)
    scored: list[bytes] = []
    reads = [0]

    def batches() -> object:
        reads[0] += 1
        yield images()

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        scored.append(model.state_dict()["0.weight"].numpy().tobytes())
        return model(batch[0]), batch[1]

    progress: list[tuple[int, int, str]] = []
    found = random_orders(
        states,
        mlp(),
        HeldOut(batches(), forward),
        orders=2,
        max_ingredients=2,
        early_rejection=False,
        progress=lambda *told: progress.append(told),
    )
    singles = {state["0.weight"].numpy().tobytes() for state in states}
    assert sum(weights in singles for weights in scored) == 2  # the first of each order
    assert reads == [1]
    assert [len(soup.ingredients) for soup in found.soups] == [2, 2]
    assert [done for done, _, _ in progress] == sorted(done for done, _, _ in progress)
    assert progress[0][2].startswith("order 1, ")


def test_a_run_directory_has_one_for_each_order(tmp_path: Path) -> None:
    states = pool(mlp(), 4, spread=0.3)
    forward = Interrupted(10)
    held = HeldOut(images(), forward, batch_size=60)
    with pytest.raises(KeyboardInterrupt):
        random_orders(states, mlp(), held, seed=3, early_rejection=False, run=tmp_path / "run")
    forward.left = 1000
    found = random_orders(states, mlp(), held, seed=3, early_rejection=False, run=tmp_path / "run")
    assert forward.left == 1000 - (3 * 4 * 2 - 10)  # five scores of two batches each were done
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["order-3", "order-4", "order-5"]
    assert found.scores == random_orders(states, mlp(), held, seed=3, early_rejection=False).scores


def test_the_checkpoints_are_hashed_once_for_all_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_SETTLED_NS", -(10**18))  # as if they had been written long ago
    read: list[object] = []
    for name in ("fingerprint_file", "fingerprint_data"):
        original = getattr(identity, name)
        monkeypatch.setattr(identity, name, lambda what, original=original: (read.append(what), original(what))[1])
    *states, last = pool(mlp(), 4, spread=0.3)
    for number, state in enumerate(states):
        save_file(state, tmp_path / f"{number}.safetensors")
    checkpoints = [*(tmp_path / f"{number}.safetensors" for number in range(3)), last]
    random_orders(checkpoints, mlp(), images(), orders=3, run=tmp_path / "run")
    assert len(read) == 4
    for order in range(3):
        line = (tmp_path / "run" / f"order-{order}" / "journal.jsonl").read_text().splitlines()[1]
        assert len(json.loads(line)["hashed"]) == 3  # so a run that goes on need not read them either
    random_orders(checkpoints, mlp(), images(), orders=3, run=tmp_path / "run")
    assert len(read) == 5  # the one in memory


def test_a_checkpoint_that_is_written_to_between_two_orders_is_refused(tmp_path: Path) -> None:
    """Orders of different checkpoints would be compared."""
    for number, state in enumerate(pool(mlp(), 2, spread=0.3)):
        save_file(state, tmp_path / f"{number}.safetensors")

    def write(done: int, total: int, what: str) -> None:
        if what.startswith("order 1, ") and done == 2:
            save_file(pool(mlp(), 1, spread=0.4, seed=9)[0], tmp_path / "1.safetensors")

    checkpoints = [tmp_path / f"{number}.safetensors" for number in range(2)]
    with pytest.raises(SoupError, match=r"1\.safetensors: file changed since"):
        random_orders(checkpoints, mlp(), images(), orders=2, run=tmp_path / "run", progress=write)


@pytest.mark.parametrize(
    ("options", "word"), [({"orders": 0}, "orders"), ({"seed": 0.5}, "seed"), ({"accept": "="}, "accept")]
)
def test_wrong_options_are_refused(options: dict[str, object], word: str) -> None:
    with pytest.raises(SoupError, match=word):
        random_orders(pool(mlp(), 2, spread=0.3), mlp(), images(), **options)


def test_the_model_holds_the_last_soup() -> None:
    model = mlp()
    found = random_orders(pool(model, 4, spread=0.3), model, images(), orders=2)
    assert same_bits(dict(model.state_dict()), found.soups[-1].state_dict())
    assert isinstance(model[0], torch.nn.Linear)
