"""Recipes with tensors left out of the average: the model keeps its own head, whatever the checkpoints have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from soup_models import Interrupted, same_bits
from torch import Tensor, nn

from pysoup import HeldOut, SoupError, average_state_dicts
from pysoup.cli import main
from pysoup.fingerprint import fingerprint_file
from pysoup.record import Record, write_record
from pysoup.soups import (
    greedier_soup,
    greedy_ensemble,
    greedy_soup,
    logit_ensemble,
    pruned_soup,
    random_orders,
    uniform_soup,
)

X = torch.randn(90, 5, generator=torch.Generator().manual_seed(2))
EXCLUDE = r"^head\."


class Net(nn.Module):
    """Three classes; the checkpoints are of models with two, four and five."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.backbone = nn.Linear(5, 8)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).relu())


def start() -> Net:
    torch.manual_seed(7)
    return Net()


def labels() -> Tensor:
    with torch.no_grad():
        return start()(X).argmax(1)


def checkpoints() -> list[dict[str, Tensor]]:
    """The backbone with noise, more in each; heads of other shapes, one without."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for number, classes in enumerate((2, 4, 5, 0)):
        state = {name: t.clone() for name, t in start().state_dict().items() if name.startswith("backbone")}
        for tensor in state.values():
            tensor += (0.1 + 0.15 * number) * torch.randn(tensor.shape, generator=generator)
        if classes:
            state |= {name: t for name, t in Net(classes).state_dict().items() if name.startswith("head")}
        made.append(state)
    return made


def backbones() -> list[dict[str, Tensor]]:
    return [{k: v for k, v in state.items() if k.startswith("backbone")} for state in checkpoints()]


def accuracy(backbone: dict[str, Tensor]) -> float:
    model = start()
    model.load_state_dict(backbone, strict=False)
    with torch.no_grad():
        return (model(X).argmax(1) == labels()).double().mean().item()


def plain_greedy() -> tuple[list[int], float]:
    singles = [accuracy(state) for state in backbones()]
    order = sorted(range(len(singles)), key=lambda k: -singles[k])
    kept, best = order[:1], singles[order[0]]
    for index in order[1:]:
        score = accuracy(average_state_dicts([backbones()[k] for k in [*kept, index]]))
        if score >= best:
            kept, best = [*kept, index], score
    return kept, best


def test_the_greedy_soup_is_the_plain_recipe_on_the_backbones_with_the_models_head() -> None:
    model, kept = start(), plain_greedy()
    soup = greedy_soup(checkpoints(), model, (X, labels()), exclude=EXCLUDE)
    assert ([int(name[-2]) for name in soup.ingredients], soup.score) == kept
    wanted = {**start().state_dict(), **average_state_dicts([backbones()[k] for k in kept[0]])}
    assert same_bits(dict(model.state_dict()), wanted)
    assert same_bits(soup.state_dict(), wanted)
    assert list(soup.state_dict()) == list(model.state_dict())
    assert soup.options["exclude"] == [EXCLUDE]
    assert any("the model keeps its own" in note for note in soup.notes)


@pytest.mark.parametrize("recipe", [uniform_soup, pruned_soup, greedier_soup, greedy_soup])
def test_every_soup_leaves_the_head_alone_and_saves_it(recipe: Callable[..., Any], tmp_path: Path) -> None:
    model = start()
    soup = recipe(checkpoints(), model, (X, labels()), include=["backbone"])
    heads = {name: tensor for name, tensor in start().state_dict().items() if name.startswith("head")}
    assert all(torch.equal(dict(model.state_dict())[name], tensor) for name, tensor in heads.items())
    model.head.weight.data.zero_()  # the soup stays what it is when the model goes on
    soup.save(tmp_path / "soup.safetensors")
    saved = load_file(tmp_path / "soup.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in heads.items())
    assert soup.score == accuracy({k: v for k, v in saved.items() if k.startswith("backbone")})
    with safe_open(tmp_path / "soup.safetensors", "pt") as file:
        assert json.loads(file.metadata()["pysoup.include"]) == ["backbone"]


def test_random_orders_leave_the_head_alone() -> None:
    model = start()
    found = random_orders(checkpoints(), model, (X, labels()), exclude=EXCLUDE)
    for soup in found.soups:
        assert soup.score == accuracy({k: v for k, v in soup.state_dict().items() if k.startswith("backbone")})


@pytest.mark.parametrize("recipe", [logit_ensemble, greedy_ensemble])
def test_ensembles_are_of_the_backbones_under_the_models_head(recipe: Callable[..., Any]) -> None:
    model = start()
    made = recipe(checkpoints(), model, (X, labels()), exclude=EXCLUDE)
    total = torch.zeros(90, 3)
    for name in made.ingredients:
        other = start()
        other.load_state_dict(backbones()[int(name[-2])], strict=False)
        total += other(X).detach()
    assert torch.allclose(made.logits(start(), (X, labels())), total / len(made.ingredients), atol=1e-6)
    assert made.score == (total.argmax(1) == labels()).double().mean().item()
    assert made.options["exclude"] == [EXCLUDE]


def test_without_patterns_other_heads_are_an_error() -> None:
    with pytest.raises(SoupError, match=r"tensor 'head.weight': shape differs"):
        uniform_soup(checkpoints()[:3], start())
    with pytest.raises(SoupError, match="a pattern that no tensor name matches: found 'haed'"):
        uniform_soup(checkpoints(), start(), exclude="haed")


def test_a_checkpoint_given_twice_is_a_duplicate_with_patterns_too() -> None:
    state = checkpoints()[0]
    soup = greedy_soup([state, state], start(), (X, labels()), exclude=EXCLUDE)
    assert "same weights as checkpoints[0]" in soup.trace[1].note


def test_a_run_is_not_gone_on_with_under_another_head_or_other_patterns(tmp_path: Path) -> None:
    stopping = Interrupted(3)
    held = HeldOut([(X, labels())], stopping)

    def soup(model: nn.Module, **patterns: Any) -> Any:
        return greedy_soup(checkpoints(), model, held, exclude=EXCLUDE, run=tmp_path / "run", **patterns)

    with pytest.raises(KeyboardInterrupt):
        soup(start())
    stopping.left = 100
    other = start()
    other.head.bias.data += 1
    for refused, patterns in ((other, {}), (start(), {"include": "weight"})):
        with pytest.raises(SoupError, match="another run is recorded here"):
            soup(refused, **patterns)
    went_on = soup(start())
    assert any("scores were on record" in note for note in went_on.notes)
    assert went_on.score == plain_greedy()[1]


def test_scores_recorded_for_whole_checkpoints_do_not_count_for_their_backbones(tmp_path: Path) -> None:
    held, paths = HeldOut([(X, labels())]), [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    for path, backbone in zip(paths, backbones(), strict=False):
        save_file({**start().state_dict(), **backbone}, path)
        known = {"metric": "accuracy", "direction": "max", "heldout": held.fingerprint, "hyperparameters": {}}
        write_record(path, Record(score=0.25, weights=fingerprint_file(path), seed=0, seconds=1.0, **known))
    whole = greedy_soup(paths, start(), held)
    part = greedy_soup(paths, start(), held, exclude=EXCLUDE)
    assert [step.single_score for step in whole.trace] == [0.25, 0.25]
    assert sorted(step.single_score for step in part.trace) == sorted(map(accuracy, backbones()[:2]))


def test_the_commands_take_patterns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names_task.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_names_recipes as t\n"
        "class Task:\n"
        "    def model(self):\n        return t.start()\n"
        "    def heldout(self):\n        return [(t.X, t.labels())]\n"
    )
    paths = []
    for number, state in enumerate(checkpoints()):
        paths.append(str(tmp_path / f"{number}.safetensors"))
        save_file(state, paths[-1])
    for command in ("uniform", "greedy", "pruned", "greedier", "ensemble"):
        run = tmp_path / command
        asked = [command, "--task", f"{tmp_path / 'names_task.py'}:Task", *paths, "-o", str(run)]
        assert main([*asked, "--exclude", EXCLUDE]) == 0, capsys.readouterr().err
        trace = json.loads((run / "trace.json").read_text())
        assert trace["options"]["exclude"] == [EXCLUDE]
        if command == "greedy":
            assert trace["score"] == plain_greedy()[1]
            assert torch.equal(load_file(run / "soup.safetensors")["head.bias"], start().head.bias)
        assert main([asked[0], *asked[1:-1], str(tmp_path / "bad"), "--exclude", "haed"]) == 1
        assert "a pattern that no tensor name matches" in capsys.readouterr().err
