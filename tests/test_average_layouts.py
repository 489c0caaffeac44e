"""Shards and directories in, the same out; names that some inputs lack; tied names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from oracle import random_bits, same_bits
from safetensors.torch import load_file, save_file
from torch import Tensor

from pysoup import (
    IncompatibleError,
    OutputError,
    WeightsError,
    average_checkpoints,
    average_state_dicts,
    open_checkpoint,
)

State = dict[str, Tensor]


def pool(count: int) -> list[State]:
    dtypes = [torch.bfloat16, torch.float32, torch.float16, torch.float64]
    return [{f"layer.{i}.w": random_bits(2000 + i, d, 10 * k + i) for i, d in enumerate(dtypes)} for k in range(count)]


def sharded(directory: Path, state: State, shards: int) -> Path:
    """A directory as the Hugging Face library writes it."""
    directory.mkdir()
    names = list(state)
    weight_map = {}
    for s in range(shards):
        file = f"model-{s + 1:05d}-of-{shards:05d}.safetensors"
        part = {n: state[n] for n in names[s::shards]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text('{"model_type": "tiny"}')
    (directory / "tokenizer.json").write_text("{}")
    (directory / "pytorch_model.bin").write_bytes(b"not to be carried")
    return directory


def single(path: Path, state: State, aliases: dict[str, str] | None = None) -> Path:
    save_file(state, path, metadata={"pysoup.aliases": json.dumps(aliases)} if aliases else None)
    return path


def load_directory(directory: Path) -> State:
    """All tensors through the index, checked against the files."""
    weight_map = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    found = {file: load_file(directory / file) for file in set(weight_map.values())}
    assert {n for tensors in found.values() for n in tensors} == set(weight_map)
    return {name: found[file][name] for name, file in weight_map.items()}


def equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(same_bits(one[n], other[n]) for n in one)


@pytest.mark.parametrize("weights", [None, [3.0, 1.0]], ids=["equal", "unequal"])
def test_sharded_in_sharded_out_with_the_same_files(tmp_path: Path, weights: list[float] | None) -> None:
    states = pool(2)
    inputs = [sharded(tmp_path / f"in{k}", s, 3) for k, s in enumerate(states)]
    report = average_checkpoints(inputs, tmp_path / "soup", weights, sync=False)
    assert {p.name for p in (tmp_path / "soup").iterdir()} == {
        *(p.name for p in inputs[0].glob("model-*.safetensors")),
        "model.safetensors.index.json",
        "README.md",
        "config.json",
        "tokenizer.json",
    }
    assert equal(load_directory(tmp_path / "soup"), average_state_dicts(states, weights))
    before = json.loads((inputs[0] / "model.safetensors.index.json").read_text())["weight_map"]
    after = json.loads((tmp_path / "soup" / "model.safetensors.index.json").read_text())["weight_map"]
    assert after == before
    assert json.loads((tmp_path / "soup" / "config.json").read_text()) == {"model_type": "tiny"}
    assert any("config.json" in note for note in report.notes)


def test_shards_do_not_change_bits(tmp_path: Path) -> None:
    states = pool(3)
    expected = average_state_dicts(states, [1, 2, 3])
    inputs = [
        sharded(tmp_path / "a", states[0], 2),
        single(tmp_path / "b.safetensors", states[1]),
        sharded(tmp_path / "c", states[2], 4) / "model.safetensors.index.json",
    ]
    average_checkpoints(inputs, tmp_path / "soup", [1, 2, 3], memory="20kB", sync=False)
    assert equal(load_directory(tmp_path / "soup"), expected)
    average_checkpoints(inputs, tmp_path / "soup.safetensors", [1, 2, 3], sync=False)
    assert equal(load_file(tmp_path / "soup.safetensors"), expected)


def test_output_has_the_order_of_the_first_input(tmp_path: Path) -> None:
    a, b = pool(2)
    inputs = [single(tmp_path / "a.safetensors", a), single(tmp_path / "b.safetensors", dict(reversed(b.items())))]
    average_checkpoints(inputs, tmp_path / "soup.safetensors", sync=False)
    assert list(open_checkpoint(tmp_path / "soup.safetensors")) == list(open_checkpoint(inputs[0]))


def test_opened_checkpoints_are_accepted(tmp_path: Path) -> None:
    states = pool(2)
    inputs = [open_checkpoint(single(tmp_path / f"{k}.safetensors", s)) for k, s in enumerate(states)]
    average_checkpoints(inputs, tmp_path / "soup.safetensors", sync=False)
    assert equal(load_file(tmp_path / "soup.safetensors"), average_state_dicts(states))


class TestKeys:
    @staticmethod
    def three(tmp_path: Path) -> tuple[list[State], list[Path]]:
        states = [
            {"all": torch.randn(5), "first": torch.randn(3)},
            {"all": torch.randn(5), "later": torch.randn(4)},
            {"all": torch.randn(5), "later": torch.randn(4)},
        ]
        return states, [single(tmp_path / f"{k}.safetensors", s) for k, s in enumerate(states)]

    def test_names_must_agree_unless_asked(self, tmp_path: Path) -> None:
        _, paths = self.three(tmp_path)
        with pytest.raises(IncompatibleError, match=r"1\.safetensors"):
            average_checkpoints(paths, tmp_path / "soup.safetensors")
        assert not (tmp_path / "soup.safetensors").exists()

    def test_intersection_keeps_what_all_have_and_says_what_is_left_out(self, tmp_path: Path) -> None:
        states, paths = self.three(tmp_path)
        report = average_checkpoints(paths, tmp_path / "soup.safetensors", keys="intersection", sync=False)
        expected = average_state_dicts([{"all": s["all"]} for s in states])
        assert equal(load_file(tmp_path / "soup.safetensors"), expected)
        assert "left out, not in all inputs: first, later" in report.notes
        assert report.bytes_read == 3 * 20

    @pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0]], ids=["equal", "unequal"])
    def test_union_averages_over_those_that_have_the_tensor(self, tmp_path: Path, weights: list[float] | None) -> None:
        states, paths = self.three(tmp_path)
        report = average_checkpoints(paths, tmp_path / "soup.safetensors", weights, keys="union", sync=False)
        found = load_file(tmp_path / "soup.safetensors")
        later = None if weights is None else weights[1:]
        assert same_bits(found["all"], average_state_dicts([{"x": s["all"]} for s in states], weights)["x"])
        assert same_bits(found["later"], average_state_dicts([{"x": s["later"]} for s in states[1:]], later)["x"])
        assert torch.equal(found["first"], states[0]["first"])
        assert "averaged over 2 of 3 inputs: later" in report.notes
        assert "averaged over 1 of 3 inputs: first" in report.notes

    def test_union_weights_that_cancel_are_an_error_and_leave_nothing(self, tmp_path: Path) -> None:
        _, paths = self.three(tmp_path)
        (tmp_path / "out").mkdir()
        with pytest.raises(WeightsError, match=r"tensor 'first'.*sum 0|tensor 'later'.*sum 0"):
            average_checkpoints(paths, tmp_path / "out" / "soup.safetensors", [1, 1, -1], keys="union")
        assert list((tmp_path / "out").iterdir()) == []

    @pytest.mark.parametrize("dry_run", [True, False])
    @pytest.mark.parametrize("value", [torch.full((3,), 7.0), torch.arange(3)], ids=["float", "integer"])
    @pytest.mark.parametrize("normalize", [True, False])
    def test_union_tensor_of_inputs_of_weight_zero_alone_is_refused(
        self, tmp_path: Path, value: Tensor, normalize: bool, dry_run: bool
    ) -> None:
        paths = [
            single(tmp_path / "a.safetensors", {"a": torch.ones(3)}),
            single(tmp_path / "b.safetensors", {"a": torch.ones(3), "b": value}),
        ]
        out = tmp_path / "out" / "soup.safetensors"
        out.parent.mkdir()
        with pytest.raises(WeightsError, match=r"tensor 'b'.*weight 0"):
            average_checkpoints(paths, out, [1, 0], keys="union", normalize=normalize, dry_run=dry_run)
        assert list(out.parent.iterdir()) == []


class TestTies:
    def test_names_tied_in_all_inputs_are_averaged_once_and_stay_tied(self, tmp_path: Path) -> None:
        states = [{"embed": torch.randn(6), "w": torch.randn(2)} for _ in range(2)]
        paths = [single(tmp_path / f"{k}.safetensors", s, {"head": "embed"}) for k, s in enumerate(states)]
        report = average_checkpoints(paths, tmp_path / "soup.safetensors", sync=False)
        assert load_file(tmp_path / "soup.safetensors").keys() == {"embed", "w"}
        result = open_checkpoint(tmp_path / "soup.safetensors").state_dict()
        assert result["head"] is result["embed"]
        assert same_bits(result["head"], average_state_dicts([{"x": s["embed"]} for s in states])["x"])
        assert report.bytes_read == 2 * (24 + 8)

    def test_names_tied_in_some_inputs_are_untied(self, tmp_path: Path) -> None:
        tied, loose = {"embed": torch.randn(6)}, {"embed": torch.randn(6), "head": torch.randn(6)}
        for order in ((0, 1), (1, 0)):
            paths = [
                single(tmp_path / "t.safetensors", tied, {"head": "embed"}),
                single(tmp_path / "l.safetensors", loose),
            ]
            out = tmp_path / f"soup{order[0]}.safetensors"
            average_checkpoints([paths[i] for i in order], out, sync=False)
            found = open_checkpoint(out).state_dict()
            assert torch.equal(found["embed"], ((tied["embed"].double() + loose["embed"].double()) / 2).float())
            assert torch.equal(found["head"], ((tied["embed"].double() + loose["head"].double()) / 2).float())


class TestOverwrite:
    def test_existing_output_is_kept_unless_asked(self, tmp_path: Path) -> None:
        paths = [single(tmp_path / f"{k}.safetensors", s) for k, s in enumerate(pool(2))]
        out = tmp_path / "soup.safetensors"
        out.write_bytes(b"precious")
        with pytest.raises(OutputError, match=r"soup\.safetensors.*exists"):
            average_checkpoints(paths, out)
        assert out.read_bytes() == b"precious"
        average_checkpoints(paths, out, overwrite=True, sync=False)
        assert len(load_file(out)) == 4

    def test_an_input_is_never_the_output(self, tmp_path: Path) -> None:
        paths = [single(tmp_path / f"{k}.safetensors", s) for k, s in enumerate(pool(2))]
        before = paths[1].read_bytes()
        with pytest.raises(OutputError, match="input"):
            average_checkpoints(paths, paths[1], overwrite=True)
        assert paths[1].read_bytes() == before

    def test_synced_and_unsynced_outputs_are_the_same_bytes(self, tmp_path: Path) -> None:
        paths = [single(tmp_path / f"{k}.safetensors", s) for k, s in enumerate(pool(2))]
        average_checkpoints(paths, tmp_path / "a.safetensors", sync=True)
        average_checkpoints(paths, tmp_path / "b.safetensors", sync=False)
        assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()

    def test_a_second_run_gives_the_same_bytes(self, tmp_path: Path) -> None:
        paths = [single(tmp_path / f"{k}.safetensors", s) for k, s in enumerate(pool(2))]
        out = tmp_path / "soup.safetensors"
        average_checkpoints(paths, out, threads=1, sync=False)
        first = out.read_bytes()
        average_checkpoints(paths, out, threads=3, memory="1MiB", overwrite=True, sync=False)
        assert out.read_bytes() == first
