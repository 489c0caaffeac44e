"""Patterns on tensor names: what they take, what they leave out of an average, and what becomes of that."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pysoup import Averager, average_checkpoints, average_state_dicts, load_soup_, open_checkpoint
from pysoup.cli import main
from pysoup.errors import IncompatibleError, SoupError
from pysoup.names import NameFilter

HEADS = (3, 5, 4)


def states() -> list[dict[str, Tensor]]:
    """A shared backbone, heads of other shapes, and a counter that differs."""
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "backbone.weight": torch.randn(4, 6, generator=generator),
            "head.weight": torch.randn(classes, 4, generator=generator),
            "backbone.bias": torch.randn(4, generator=generator),
            "head.bias": torch.randn(classes, generator=generator),
            "seen": torch.tensor([number]),
        }
        for number, classes in enumerate(HEADS)
    ]


def files(folder: Path) -> list[Path]:
    paths = [folder / f"{number}.safetensors" for number in range(len(HEADS))]
    for path, state in zip(paths, states(), strict=True):
        save_file(state, path)
    return paths


def mean(name: str) -> Tensor:
    return torch.stack([state[name].double() for state in states()]).mean(0).float()


def test_a_filter_takes_what_is_included_and_not_excluded() -> None:
    names = ["head.weight", "head.bias", "body.0.weight", "body.0.bias"]
    expected = {
        ((), ()): names,
        (("head",), ()): names[:2],
        ((), ("head",)): names[2:],
        (("weight",), ("^head",)): ["body.0.weight"],
        (("^head", "0"), ("bias$", r"^x|0\.w")): ["head.weight"],
    }
    for (include, exclude), taken in expected.items():
        assert [name for name in names if NameFilter(include, exclude).takes(name)] == taken
    assert NameFilter.of("head", ["a", "b"]) == NameFilter(("head",), ("a", "b"))
    assert not NameFilter()
    assert NameFilter.of("head").options() == {"include": ["head"]}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"include": "("}, "include: not a regular expression"),
        ({"exclude": ["x", ""]}, "exclude: not a pattern: found ''"),
        ({"exclude": [3]}, "exclude: not a pattern: found 3"),
        ({"exclude": 3}, "exclude: not patterns: found int"),
    ],
)
def test_what_is_no_pattern_is_refused(patterns: dict[str, object], message: str) -> None:
    with pytest.raises(SoupError, match=message.replace("(", r"\(")):
        NameFilter.of(**patterns)  # type: ignore[arg-type]


def test_a_pattern_that_matches_nothing_names_the_nearest_tensors(tmp_path: Path) -> None:
    paths = files(tmp_path)
    message = r"exclude: a pattern that no tensor name matches: found '\^haed\\\\.', expected .* such as 'head\."
    with pytest.raises(SoupError, match=message):
        average_checkpoints(paths, tmp_path / "out.safetensors", exclude=r"^haed\.")
    with pytest.raises(SoupError, match=message):
        average_state_dicts(states(), exclude=[r"^haed\.", "seen"])
    with pytest.raises(IncompatibleError, match=r"leave no tensor to average: found exclude '\.'"):
        average_state_dicts(states(), exclude=".")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.safetensors", "1.safetensors", "2.safetensors"]


def test_files_may_differ_in_what_is_left_out_and_the_output_is_without_it(tmp_path: Path) -> None:
    report = average_checkpoints(files(tmp_path), tmp_path / "out.safetensors", exclude=[r"^head\.", "seen"])
    out = load_file(tmp_path / "out.safetensors")
    assert list(out) == ["backbone.bias", "backbone.weight"]
    assert all(torch.equal(out[name], mean(name)) for name in out)
    assert (report.tensors, report.parameters) == (2, 28)
    assert any(note.startswith("left out of the average (not in the output): ") for note in report.notes)


@pytest.mark.parametrize("weights", [None, [3, 1, 1], [0, 1, 1], [2, -1, 0]])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_rest_of_the_first_file_is_copied_bit_for_bit(
    weights: list[float] | None, normalize: bool, tmp_path: Path
) -> None:
    paths, first = files(tmp_path), states()[0]
    average_checkpoints(
        paths, tmp_path / "out.safetensors", weights, normalize=normalize, include="^backbone", rest="first"
    )
    out = load_file(tmp_path / "out.safetensors")
    assert list(out) == list(load_file(paths[0]))
    assert all(torch.equal(out[name], first[name]) for name in first if "backbone" not in name)
    wanted = average_state_dicts(
        [{k: v for k, v in s.items() if "backbone" in k} for s in states()], weights, normalize=normalize
    )
    assert all(torch.equal(out[name], tensor) for name, tensor in wanted.items())


def test_memory_and_files_agree_on_the_rest(tmp_path: Path) -> None:
    for dtype in (None, "bf16"):
        average_checkpoints(
            files(tmp_path), tmp_path / "out.safetensors", dtype=dtype, exclude=["head", "seen"], rest="first",
            overwrite=True,
        )  # fmt: skip
        given = [OrderedDict(state) for state in states()]
        made = average_state_dicts(given, dtype=dtype, exclude=["head", "seen"], rest="first")
        assert isinstance(made, OrderedDict)
        assert list(made) == list(given[0])
        out = load_file(tmp_path / "out.safetensors")
        assert all(torch.equal(made[name], out[name]) and made[name].dtype == out[name].dtype for name in out)
        assert made["head.weight"].data_ptr() != given[0]["head.weight"].data_ptr()


def test_the_rest_keeps_the_shards_of_the_first_input(tmp_path: Path) -> None:
    for number, state in enumerate(states()[:2]):
        folder = tmp_path / f"m{number}"
        folder.mkdir()
        parts = [["backbone.weight", "head.weight"], ["backbone.bias", "head.bias", "seen"]]
        shards = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
        for shard, names in zip(shards, parts, strict=True):
            save_file({name: state[name] for name in names}, folder / shard)
        index = {name: shard for shard, names in zip(shards, parts, strict=True) for name in names}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    average_checkpoints([tmp_path / "m0", tmp_path / "m1"], tmp_path / "out", exclude=["head", "seen"], rest="first")
    written = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert written == json.loads((tmp_path / "m0" / "model.safetensors.index.json").read_text())["weight_map"]
    assert torch.equal(open_checkpoint(tmp_path / "out").state_dict()["head.bias"], states()[0]["head.bias"])
    average_checkpoints([tmp_path / "m0", tmp_path / "m1"], tmp_path / "bare", include="weight$", exclude="head")
    assert list(open_checkpoint(tmp_path / "bare")) == ["backbone.weight"]


def test_out_keeps_what_is_left_out() -> None:
    out = {name: tensor.clone() for name, tensor in states()[1].items()}
    own = {name: tensor.clone() for name, tensor in out.items()}
    made = average_state_dicts([states()[0], states()[2]], out=out, exclude=["head", "seen"])
    assert made is out
    assert all(torch.equal(out[name], own[name]) for name in own if "backbone" not in name)
    assert torch.equal(out["backbone.bias"], (states()[0]["backbone.bias"] + states()[2]["backbone.bias"]) / 2)
    with pytest.raises(SoupError, match="rest='first' is for a new result"):
        average_state_dicts(states(), out=out, exclude=["head", "seen"], rest="first")
    with pytest.raises(SoupError, match="rest='first' needs include or exclude"):
        average_state_dicts(states(), rest="first")
    with pytest.raises(SoupError, match="unknown rest: found 'last'"):
        average_state_dicts(states(), exclude="head", rest="last")  # type: ignore[arg-type]


def test_arrays_come_back_as_arrays_with_the_rest() -> None:
    given = [{name: tensor.numpy() for name, tensor in state.items()} for state in states()]
    made = average_state_dicts(given, exclude=["head", "seen"], rest="first")
    assert all(isinstance(value, np.ndarray) for value in made.values())
    np.testing.assert_array_equal(made["head.weight"], given[0]["head.weight"])
    np.testing.assert_array_equal(made["backbone.weight"], mean("backbone.weight").numpy())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_a_part_of_tied_tensors_cannot_be_left_out_of_a_model() -> None:
    model, other = Tied(), {name: tensor + 1 for name, tensor in Tied().state_dict().items()}
    message = "tensor 'head.weight': left out of the average, but tied to 'embed.weight'"
    with pytest.raises(IncompatibleError, match=message):
        Averager(model, exclude="head")
    with pytest.raises(IncompatibleError, match=message):
        average_state_dicts([other, other], out=model, exclude="head")


def test_an_alias_can_be_left_out_of_files(tmp_path: Path) -> None:
    from pysoup.checkpoint import save_state_dict

    for number in range(2):
        torch.manual_seed(number)
        save_state_dict(dict(Tied().state_dict()), tmp_path / f"{number}.safetensors")
    paths = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    assert open_checkpoint(paths[0]).aliases == {"head.weight": "embed.weight"}
    average_checkpoints(paths, tmp_path / "embed.safetensors", exclude="^head")
    average_checkpoints(paths, tmp_path / "head.safetensors", exclude="^embed")
    average_checkpoints(paths, tmp_path / "both.safetensors", exclude="^embed", rest="first")
    both = load_file(tmp_path / "both.safetensors")
    embed, head = load_file(tmp_path / "embed.safetensors"), load_file(tmp_path / "head.safetensors")
    assert (list(embed), list(head)) == (["embed.weight"], ["head.weight"])
    assert torch.equal(embed["embed.weight"], head["head.weight"])
    assert torch.equal(both["head.weight"], head["head.weight"])
    assert torch.equal(both["embed.weight"], load_file(paths[0])["embed.weight"])
    assert not torch.equal(both["embed.weight"], both["head.weight"])


def test_a_checkpoint_without_some_tensors_reads_the_others(tmp_path: Path) -> None:
    whole = open_checkpoint(files(tmp_path)[0])
    part = whole.only(lambda name: "bias" in name)
    assert set(part) == {"backbone.bias", "head.bias"}
    assert (part.numel, part.total_bytes) == (4 + 3, 28)
    assert all(torch.equal(tensor, states()[0][name]) for name, tensor in part.state_dict().items())
    assert "head.weight" in whole


def model_of(classes: int) -> nn.Module:
    backbone = nn.Linear(6, 4)
    return nn.ModuleDict({"backbone": backbone, "head": nn.Linear(4, classes)})


def test_a_model_keeps_its_own_head_whatever_the_files_have(tmp_path: Path) -> None:
    model = model_of(9)
    own = model["head"].weight.detach().clone()
    wrapped = {f"module.{name}": tensor for name, tensor in states()[1].items()}
    save_file(wrapped, tmp_path / "wrapped.safetensors")
    paths = [*files(tmp_path), tmp_path / "wrapped.safetensors"]
    report = load_soup_(model, paths, exclude=[r"^head\.", "seen"])
    wanted = average_state_dicts([*states(), states()[1]], include="backbone")
    assert torch.equal(model["backbone"].weight, wanted["backbone.weight"])
    assert torch.equal(model["head"].weight, own)
    assert any(
        note.startswith("left out of the average (the model keeps its own): head.weight") for note in report.notes
    )
    averager = Averager(model, exclude=["head", "seen"])
    for state in states():
        averager.add(state)
    assert set(averager.result()) == {"backbone.weight", "backbone.bias"}
    assert torch.equal(averager.result(out=model)["head.weight"], own)
    with pytest.raises(IncompatibleError, match="leave no tensor to average: found include 'no such name'"):
        Averager(model, include="no such name")
    with pytest.raises(IncompatibleError, match="has in addition 'seen'"):
        load_soup_(model, paths, exclude=r"^head\.")


def test_the_command_leaves_out_what_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(path) for path in files(tmp_path)]
    asked = ["average", *paths, "-o", str(tmp_path / "out"), "--exclude", r"^head\.", "--exclude", "seen"]
    assert main([*asked, "--rest", "first", "--weights", "0,1,1"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"pysoup average {' '.join(paths)} --weights=0.0,0.5,0.5 --exclude '^head\\.|seen' --rest first" in card
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(states()[0])
    assert main(["average", *paths, "-o", str(tmp_path / "b.safetensors"), "--include", "backbon", "--json"]) == 0
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert set(file.keys()) == {"backbone.weight", "backbone.bias"}
    capsys.readouterr()
    assert main(["average", *paths, "-o", str(tmp_path / "c.safetensors"), "--include", "["]) == 1
    assert "include: not a regular expression" in capsys.readouterr().err
