"""Which checkpoints a path, a pattern or a folder stands for, in which order, and what is never taken for one."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_files import floats

from pysoup.checkpoint import open_checkpoint
from pysoup.checkpoint.find import find_checkpoints
from pysoup.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
LEFTOVERS = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin", "scaler.pt")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    """Empty files, made in random order: names alone decide here."""
    for name in random.sample(names, len(names)):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def found(*paths: str | os.PathLike[str]) -> list[str]:
    return [str(path) for path in find_checkpoints(paths)]


def noted(*paths: str) -> list[str]:
    notes: list[str] = []
    find_checkpoints(paths, notes)
    return notes


def refused(*paths: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        find_checkpoints(paths)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_paths_stay_as_they_were_given(here: Path) -> None:
    touch("b.pt", "a.safetensors", "m/model.safetensors", "optimizer.pt")
    given = ["b.pt", "a.safetensors", "m", "b.pt", "optimizer.pt", "missing.pt"]
    assert found(*given) == given
    assert noted(*given) == []


def test_one_path_needs_no_list(here: Path) -> None:
    touch("a.pt", "runs/1.pt", "runs/2.pt")
    assert find_checkpoints("a.pt") == find_checkpoints(Path("a.pt")) == [Path("a.pt")]
    assert find_checkpoints(Path("runs")) == [Path("runs/1.pt"), Path("runs/2.pt")]


def test_open_checkpoints_pass_untouched(here: Path) -> None:
    floats(here / "a.safetensors", {"w": [1.0]})
    floats(here / "b.safetensors", {"w": [2.0]})
    opened = open_checkpoint("a.safetensors")
    assert find_checkpoints(opened) == [opened]
    assert find_checkpoints([opened, "a.safetensors"]) == [opened, Path("a.safetensors")]
    assert find_checkpoints([opened, "*.safetensors"]) == [opened, Path("b.safetensors")]


def test_nothing_given_is_an_error(here: Path) -> None:
    assert "no checkpoints given" in refused()
    assert "empty path" in refused("")


def test_a_pattern_is_sorted_naturally(here: Path) -> None:
    touch(*(f"runs/{run}/model_{n}.pt" for run in ("a2", "a10") for n in (1, 2, 10)))
    expected = [f"runs/{run}/model_{n}.pt" for run in ("a2", "a10") for n in (1, 2, 10)]
    assert found("runs/*/*.pt") == found(Path("runs/*/model_*.pt")) == found("runs/**/*.pt") == expected
    assert found("runs/a2/model_?.pt") == expected[:2]
    assert found("runs/a[12]*/model_[2].pt") == ["runs/a2/model_2.pt", "runs/a10/model_2.pt"]
    assert noted("runs/*/*.pt") == ["runs/*/*.pt: 6 checkpoints"]


def test_names_are_compared_directory_by_directory(here: Path) -> None:
    names = ["a/m_09.pt", "a/m_9.pt", "a-b/m_1.pt", "a-b/m_01.pt"]
    touch(*names)
    assert found("*/*.pt") == ["a/m_09.pt", "a/m_9.pt", "a-b/m_01.pt", "a-b/m_1.pt"]
    assert found("a*/") == found("*/*.pt")


def test_a_name_that_no_file_can_have_is_left_to_the_reader(here: Path) -> None:
    assert found("a\0.pt") == ["a\0.pt"]


def test_a_file_named_like_a_pattern_is_itself(here: Path) -> None:
    touch("a[1].pt", "a1.pt")
    assert found("a[1].pt") == ["a[1].pt"]
    Path("a[1].pt").unlink()
    assert found("a[1].pt") == ["a1.pt"]


@pytest.mark.parametrize("pattern", ["*.safetensors", "no/such/*.pt", "a[", "[z-a].pt", "\0/*.pt"])
def test_a_pattern_that_matches_nothing_is_named(here: Path, pattern: str) -> None:
    touch("a.pt")
    if pattern == "a[":
        touch("b.pt")
    assert "no file matches the pattern" in refused(pattern)


def test_a_pattern_takes_only_checkpoints(here: Path) -> None:
    touch(
        "r/a.safetensors",
        "r/b.pt",
        "r/c.pth",
        "r/d.bin",
        "r/e.ckpt",
        "r/f.npz",
        "r/g.pth.tar",
        *(f"r/{n}" for n in LEFTOVERS),
    )
    touch("r/config.json", "r/notes.txt", "r/logs/events.out", "r/.hidden.pt", "r/.a.safetensors.pysoup-7-0123abcd.tmp")
    touch(f"r/h/{INDEX}", *(f"r/h/{shard}" for shard in SHARDS), "r/.old/model.safetensors")
    expected = [f"r/{n}" for n in ("a.safetensors", "b.pt", "c.pth", "d.bin", "e.ckpt", "f.npz", "g.pth.tar", "h")]
    assert found("r/*") == expected
    assert found("r/**") == expected
    assert found("r/*/*.json") == [f"r/h/{INDEX}"]
    assert "nothing that matches the pattern is a checkpoint" in refused("r/*.txt")
    assert "optimizer.pt" in refused("r/opt*")


def test_hidden_names_are_left_out_of_any_pattern(here: Path) -> None:
    touch(".x/a.pt", ".x/.b.pt", ".x.pysoup-7-0123abcd.tmp/model.safetensors")
    assert found(".x/*") == [".x/a.pt"]
    assert "nothing that matches" in refused(".*")


@pytest.mark.parametrize(
    "names",
    [
        [INDEX, *SHARDS],
        [INDEX, *SHARDS, "other.safetensors"],
        ["model.safetensors", "pytorch_model.bin", "ema.pt", "sub/model.safetensors"],
        ["pytorch_model.bin", *LEFTOVERS],
        ["checkpoint.pt", "config.json", "other/model.safetensors"],
        ["adapter_model.safetensors", "adapter_model.bin"],
        ["model-00001-of-00001.safetensors"],
        ["consolidated.00.pth", "params.json"],
    ],
)
def test_a_directory_of_one_model_is_one_checkpoint(here: Path, names: list[str]) -> None:
    touch(*(f"m/{name}" for name in names))
    assert found("m") == ["m"]
    assert noted("m") == []
    assert found("m*") == ["m"]


def test_a_folder_of_checkpoints_stands_for_all(here: Path) -> None:
    touch("runs/model_10.pt", "runs/model_2.safetensors", "runs/last.ckpt", "runs/log.json", "runs/sub/model.bin")
    touch(*(f"runs/{name}" for name in LEFTOVERS), "runs/.cache.pt")
    expected = ["runs/last.ckpt", "runs/model_2.safetensors", "runs/model_10.pt"]
    assert found("runs") == found("runs/") == found("./run*") == expected
    assert noted("runs/") == ["runs/: 3 checkpoints"]


def test_a_folder_of_model_directories_stands_for_all(here: Path) -> None:
    touch("runs/seed-10/model.safetensors", "runs/seed-9/pytorch_model.bin", "runs/logs/a.log", "runs/scores.json")
    touch(f"runs/seed-11/{INDEX}", *(f"runs/seed-11/{shard}" for shard in SHARDS), "runs/.git/x.pt")
    expected = ["runs/seed-9", "runs/seed-10", "runs/seed-11"]
    assert found("runs") == found("runs/*") == found("runs/**") == expected
    assert found("ru*") == expected
    assert noted("runs") == ["runs: 3 checkpoints"]


def test_a_folder_whose_directories_hold_several_is_refused(here: Path) -> None:
    touch("runs/a/1.pt", "runs/a/2.pt", "runs/b/model.safetensors")
    line = refused("runs")
    assert "'a' is not one model" in line
    assert "2 checkpoints" in line
    assert found("runs/*") == found("runs/**") == ["runs/a/1.pt", "runs/a/2.pt", "runs/b"]


def test_a_pipeline_is_not_a_folder_of_checkpoints(here: Path) -> None:
    touch("p/model_index.json", "p/unet/model.safetensors", "p/vae/model.safetensors")
    line = refused("p")
    assert "pipeline" in line
    assert "unet, vae" in line


def test_a_sweep_without_a_finished_run_is_no_folder_of_checkpoints(here: Path) -> None:
    touch("x/start/start.safetensors")
    assert refused("x") == refused("x/").replace("x/:", "x:")
    assert refused("x").startswith("x: no run of this fine-tuning sweep has finished yet; its start is start/start.")
    touch("x/earlier/model_00_at_0.5.safetensors", "x/ema_0.9/earlier/model_00_at_0.5.safetensors")
    Path("x/sweep.json").write_text('{\n  "pysoup": "0.1.0",\n  "models": []\n}')
    assert "no run of this fine-tuning sweep" in refused("x")
    assert "no run of this fine-tuning sweep" in refused("*")
    assert found("x/start", "x/earlier") == ["x/start", "x/earlier"]
    touch("x/model_00.safetensors", "x/model_01.safetensors")
    assert found("x") == ["x/model_00.safetensors", "x/model_01.safetensors"]


def test_folders_that_are_called_start_or_have_a_sweep_file_of_others_are_taken(here: Path) -> None:
    touch("a/start/model.safetensors", "b/start/start.safetensors", "b/end/end.safetensors", "c/m/model.safetensors")
    Path("c/sweep.json").write_text('{"method": "grid"}')
    assert found("a", "b", "c") == ["a/start", "b/end", "b/start", "c/m"]


def test_a_directory_without_weights_says_what_it_holds(here: Path) -> None:
    touch("empty/.hidden", "d/config.json", "old/weights.h5")
    assert "an empty directory" in refused("empty")
    assert "config.json" in refused("d")
    assert "convert" in refused("old")


def test_one_model_in_several_formats_is_taken_once(here: Path) -> None:
    touch("runs/a.pt", "runs/a.safetensors", "runs/b.pt", "runs/c.npz", "runs/c.bin")
    expected = ["runs/a.safetensors", "runs/b.pt", "runs/c.bin"]
    assert found("runs") == found("runs/*") == expected
    (line,) = noted("runs")
    assert (
        line == "runs: 3 checkpoints, without a.pt (the same model as a.safetensors), c.npz (the same model as c.bin)"
    )
    touch("m/model.safetensors", "m/pytorch_model.bin", "m/other.txt")
    assert found("m/*") == ["m/model.safetensors"]
    assert found("runs/*.pt") == ["runs/a.pt", "runs/b.pt"]


def test_shards_without_their_index_are_refused(here: Path) -> None:
    touch(
        *(f"m/{shard}" for shard in SHARDS),
        "half/model-00001-of-00002.safetensors",
        "x/pytorch_model-00001-of-00003.bin",
    )
    for given in ("m", "m/*.safetensors", "m/model-00001*", "half", "hal*", "half/*", "x", "*"):
        line = refused(given)
        assert "-of-0000" in line
        assert "index" in line
    # As a shell expands the pattern.
    assert SHARDS[1] in refused(*(f"m/{shard}" for shard in SHARDS))
    touch(f"m/{INDEX}")
    assert "index" in refused("m/*")
    assert found("m") == ["m"]


def test_the_same_shard_of_several_models_may_be_named(here: Path) -> None:
    names = [f"{model}/{SHARDS[0]}" for model in "ab"]
    touch(*names)
    assert found(*names) == names


def test_numbers_of_folds_are_no_shards(here: Path) -> None:
    names = [f"runs/fold-{n}-of-5.pt" for n in range(1, 6)]
    touch(*names)
    assert found("runs") == names


@pytest.mark.parametrize(
    "names",
    [
        ["consolidated.00.pth", "consolidated.01.pth"],
        ["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"],
        ["zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_model_states.pt"],
        ["mp_rank_00/model_optim_rng.pt", "mp_rank_01/model_optim_rng.pt"],
    ],
)
def test_pieces_of_a_parallel_model_are_refused(here: Path, names: list[str]) -> None:
    touch(*(f"m/{name}" for name in names))
    assert "a shard is no model of its own" in refused("m")
    assert "a shard is no model of its own" in refused("m/*")
    assert "a shard is no model of its own" in refused(*(str(Path("m", name.split("/")[0])) for name in names))


def test_what_was_found_is_added_once_and_what_was_typed_each_time(here: Path) -> None:
    touch("runs/a.pt", "runs/b.pt", "runs/c.pt")
    assert found("runs/b.pt", "runs/*.pt") == ["runs/b.pt", "runs/a.pt", "runs/c.pt"]
    assert found("runs/[ab].pt", "runs", f"{here}/runs/*") == ["runs/a.pt", "runs/b.pt", "runs/c.pt"]
    assert found("runs", "runs/a.pt") == ["runs/a.pt", "runs/b.pt", "runs/c.pt", "runs/a.pt"]
    assert noted("runs/b.pt", "runs") == ["runs: 2 checkpoints, without b.pt (given already)"]


def test_a_link_to_a_checkpoint_of_the_folder_is_taken_once(here: Path) -> None:
    touch("runs/epoch_1.ckpt", "runs/epoch_2.ckpt")
    Path("runs/last.ckpt").symlink_to("epoch_2.ckpt")
    Path("runs/gone.ckpt").symlink_to("epoch_3.ckpt")
    assert found("runs") == ["runs/epoch_1.ckpt", "runs/epoch_2.ckpt", "runs/gone.ckpt"]
    assert noted("runs") == ["runs: 3 checkpoints, without last.ckpt (the same file as epoch_2.ckpt)"]


def test_a_long_list_of_names_left_out_is_cut(here: Path) -> None:
    touch(*(f"runs/{n}.{suffix}" for n in range(9) for suffix in ("pt", "safetensors")))
    (line,) = noted("runs")
    assert line.startswith("runs: 9 checkpoints, without 0.pt (")
    assert line.endswith(" and 4 more")


def test_what_was_found_stands_for_itself(here: Path) -> None:
    touch("runs/a[1].pt", "runs/b.pt", "m/model.safetensors", "f/x/model.safetensors")
    once = find_checkpoints(["runs", "m", "f"])
    notes: list[str] = []
    assert find_checkpoints(once, notes) == once
    assert notes == []


def test_an_unreadable_directory_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch("runs/a/model.safetensors")
    scan = os.scandir

    def locked(path: Path) -> object:
        if str(path).endswith("a"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    assert refused("runs") == "runs/a: cannot be read: permission denied"


def test_finding_needs_neither_torch_nor_numpy() -> None:
    code = "import sys, pysoup.checkpoint.scores; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
