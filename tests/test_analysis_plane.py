"""The plane through three models: its basis, every point's scores as plain torch has them, resuming, the figure."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from analysis_task import Kitchen, Rule, StateDict, kitchen, mixed, plain_scores
from safetensors.torch import save_file

from pysoup.analysis import Sets, error_plane
from pysoup.analysis.figures_weights import contour_levels
from pysoup.cli import main
from pysoup.errors import OutputError, SoupError


@pytest.fixture
def files(tmp_path: Path) -> Kitchen:
    return kitchen(tmp_path, 2)


def flat(state: StateDict) -> torch.Tensor:
    return torch.cat([state[name].flatten() for name in sorted(state)])


def test_points_are_the_papers_basis_scored_as_plain_torch_does(files: Kitchen) -> None:
    names = [files.start, *files.paths]
    found = error_plane(Rule(), *names, grid=(4, 3), margin=0.5)
    states = [files.state(name) for name in names]
    t0, t1, t2 = (flat(state) for state in states)
    u1 = (t1 - t0) / (t1 - t0).norm()
    v = (t2 - t0) - (t2 - t0) @ u1 * u1
    u2 = v / v.norm()
    assert found.basis.corners[1] == pytest.approx(((t1 - t0).norm().item(), 0.0), rel=1e-9)
    assert found.basis.corners[2] == pytest.approx((((t2 - t0) @ u1).item(), v.norm().item()), rel=1e-9)
    assert len(found.x) == 4
    assert len(found.y) == 3
    for j, b in enumerate(found.y):
        for i, a in enumerate(found.x):
            weights = found.basis.weights(a, b)
            point = mixed(states, list(weights))
            assert torch.allclose(flat(point), t0 + a * u1 + b * u2, atol=1e-9)
            for name, (accuracy, nll) in plain_scores(point).items():
                seen = found.grid[j][i][name]
                assert seen["accuracy"] == pytest.approx(accuracy, abs=1.01 / 60)  # one sample may be on the edge
                assert seen["nll"] == pytest.approx(nll, rel=1e-4)


def test_corners_are_the_models_themselves(files: Kitchen) -> None:
    names = [files.start, *files.paths]
    found = error_plane(Rule(), *names, grid=(2, 2))
    for name, scores in zip(names, found.corners, strict=True):
        for test, (accuracy, nll) in plain_scores(files.state(name)).items():
            assert scores[test]["accuracy"] == accuracy
            assert scores[test]["nll"] == pytest.approx(nll, rel=1e-6)


def test_margin_is_a_share_of_the_sides(files: Kitchen) -> None:
    found = error_plane(Rule(), files.start, *files.paths, grid=(3, 3), margin=0.25)
    xs, ys = zip(*found.basis.corners, strict=True)
    for values, corners in ((found.x, xs), (found.y, ys)):
        side = max(corners) - min(corners)
        assert values[0] == pytest.approx(min(corners) - 0.25 * side)
        assert values[-1] == pytest.approx(max(corners) + 0.25 * side)


def test_lowest_point_is_that_of_the_grid(files: Kitchen) -> None:
    found = error_plane(Sets(Rule(), train=0), files.start, *files.paths, grid=(5, 5))
    assert list(found.surfaces) == ["loss, train", "error, test (%)", "mean error, 2 shifts (%)"]
    shifts = found.surfaces["mean error, 2 shifts (%)"]
    scores = found.grid[1][2]
    expected = 100 - 50 * (scores["wide"]["accuracy"] + scores["narrow"]["accuracy"])
    assert shifts[1][2] == pytest.approx(expected)
    for title, lowest in found.lowest().items():
        assert lowest["value"] == min(min(row) for row in found.surfaces[title])
        i, j = found.x.index(lowest["at"][0]), found.y.index(lowest["at"][1])
        assert found.surfaces[title][j][i] == lowest["value"]
        assert math.fsum(lowest["weights"]) == pytest.approx(1.0)


def test_stopped_run_goes_on_and_ends_the_same(files: Kitchen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (files.start, *files.paths)
    whole = error_plane(Rule(), *arguments, grid=(3, 3))
    scores = tmp_path / "scores.json"
    monkeypatch.setattr(Rule, "forwards", 0)
    monkeypatch.setattr(Rule, "most", 25)
    with pytest.raises(KeyboardInterrupt):
        error_plane(Rule(), *arguments, grid=(3, 3), scores=scores)
    monkeypatch.undo()
    done = len(json.loads(scores.read_text())["scores"])
    assert done == 25 // 4  # four sets a point
    Rule.forwards = 0
    again = error_plane(Rule(), *arguments, grid=(3, 3), scores=scores)
    assert Rule.forwards == 4 * (12 - done)
    assert again.to_json() == whole.to_json()


def test_scores_of_other_data_are_refused(files: Kitchen, tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    error_plane(Sets(Rule(), samples=20), files.start, *files.paths, grid=(2, 2), scores=scores)
    with pytest.raises(OutputError, match="scores on other data"):
        error_plane(Rule(), files.start, *files.paths, grid=(2, 2), scores=scores)
    scores.write_text("{}")
    with pytest.raises(OutputError, match="not a file of scores"):
        error_plane(Rule(), files.start, *files.paths, grid=(2, 2), scores=scores)


def test_no_plane_through_a_line(files: Kitchen, tmp_path: Path) -> None:
    states = [files.state(files.start), files.state(files.paths[0])]
    # In f64, so that the middle is exact.
    names = []
    for name, state in (("a", states[0]), ("b", states[1]), ("c", mixed(states, [0.5, 0.5]))):
        save_file(state, tmp_path / f"{name}.safetensors")
        names.append(str(tmp_path / f"{name}.safetensors"))
    with pytest.raises(SoupError, match="on a line"):
        error_plane(Rule(), *names)
    with pytest.raises(SoupError, match="it has the weights of"):
        error_plane(Rule(), files.start, files.paths[0], files.paths[0])


def test_levels_double_their_distance_above_the_minimum() -> None:
    levels = contour_levels([3.0, 259.0, math.nan, math.inf])
    assert levels == [3.0, *(3.0 + 2.0**step for step in range(8))]
    assert contour_levels([1.0, 1.0]) == []


def test_command_prints_writes_and_draws(files: Kitchen, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, figure = tmp_path / "plane.json", tmp_path / "plane.svg"
    args = ["analyze", "plane", files.start, *files.paths, "--task", files.task, "--grid", "4x3", "--samples", "40"]
    assert main([*args, "-o", str(out), "--figure", str(figure), "--train", "30"]) == 0
    printed = capsys.readouterr().out
    assert "plane of 4 x 3 points" in printed
    assert "loss, train" in printed
    written = json.loads(out.read_text())
    assert (len(written["grid"]), len(written["grid"][0])) == (3, 4)
    assert (tmp_path / "plane.scores.json").exists()
    assert "loss, train" in figure.read_text()
    assert main([*args, "-o", str(out)]) == 1
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize("grid", ["4", "4x", "0x3", "axb"])
def test_command_refuses_what_is_no_grid(grid: str, files: Kitchen) -> None:
    args = ["analyze", "plane", files.start, *files.paths, "--task", files.task, "--grid", grid]
    assert main(args) == 2


def test_wrong_outputs_are_refused_before_anything_is_computed(files: Kitchen, tmp_path: Path) -> None:
    Rule.forwards = 0
    args = ["analyze", "plane", files.start, *files.paths, "--task", files.task]
    assert main([*args, "-o", str(tmp_path / "plane.txt")]) == 1
    assert main([*args, "--figure", str(tmp_path / "plane.jpg")]) == 1
    assert main([*args, "-o", str(tmp_path / "absent" / "plane.json")]) == 1
    assert Rule.forwards == 0
