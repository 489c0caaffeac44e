"""The path between two models: its scores, the alpha that is chosen, the barrier, the soup."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_task import held_out, linear, write_checkpoints, write_task
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from soup_models import Interrupted, conv_batchnorm, images, mlp, never, pool, same_bits
from torch import Tensor, nn

from pysoup import HeldOut, Metric, SoupError, WeightsError, average_checkpoints, interpolate, uniform_soup
from pysoup.cli import main
from pysoup.soups.interpolation import InterpolationPoint, barrier

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
X, Y = images()


def ends(spread: float = 0.4) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    one, other = pool(mlp(), 2, spread=spread)
    return one, other


def between(alpha: float) -> dict[str, Tensor]:
    """In f64, rounded once."""
    one, other = ends()
    return {k: ((1 - alpha) * one[k].double() + alpha * other[k].double()).float() for k in one}


def plain(alpha: float, x: Tensor = X, y: Tensor = Y) -> tuple[float, float]:
    """Accuracy and loss of a point, without pysoup."""
    model = mlp().eval()
    model.load_state_dict(between(alpha))
    with torch.no_grad():
        logits = model(x)
    return (logits.argmax(1) == y).double().mean().item(), nn.functional.cross_entropy(logits.double(), y).item()


def test_every_point_has_the_score_and_loss_of_the_mixed_weights() -> None:
    model = mlp().train()
    found = interpolate(*ends(), model, (X, Y), alphas=ALPHAS)
    assert [point.alpha for point in found.points] == list(ALPHAS)
    for point in found.points:
        accuracy, loss = plain(point.alpha)
        assert point.score == accuracy
        assert point.scores == {"heldout": accuracy}
        assert point.loss == pytest.approx(loss, rel=1e-5)
    best = max(point.score for point in found.points)
    winners = [point.alpha for point in found.points if point.score == best]
    assert found.alpha == min(winners, key=lambda a: (abs(a - 0.5), a))
    assert (found.score, found.weights) == (best, [1 - found.alpha, found.alpha])
    assert same_bits(found.state_dict(), dict(model.state_dict()))
    assert all(torch.allclose(t, between(found.alpha)[k], atol=1e-7) for k, t in found.state_dict().items())
    assert all(module.training for module in model.modules())


def test_the_barrier_is_the_most_above_the_straight_line() -> None:
    found = interpolate(*ends(), mlp(), (X, Y), alphas=ALPHAS)
    errors, losses = [1 - plain(a)[0] for a in ALPHAS], [plain(a)[1] for a in ALPHAS]
    for values, given in ((errors, found.barrier), (losses, found.loss_barrier)):
        above = [v - ((1 - a) * values[0] + a * values[-1]) for a, v in zip(ALPHAS, values, strict=True)]
        assert given == pytest.approx(max(0.0, *above), abs=1e-6)
    by_loss = interpolate(*ends(), mlp(), (X, Y), "nll", alphas=ALPHAS)
    assert by_loss.barrier == by_loss.loss_barrier == pytest.approx(found.loss_barrier, abs=1e-6)
    assert by_loss.alpha == min(ALPHAS, key=lambda a: plain(a)[1])


def test_a_barrier_between_distant_models_is_seen() -> None:
    """The same function with its hidden units in another order: both ends are right, the middle is not."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 7))
    one = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    order = torch.randperm(16)
    other = {"0.weight": one["0.weight"][order], "0.bias": one["0.bias"][order], "2.weight": one["2.weight"][:, order]}
    other["2.bias"] = one["2.bias"].clone()
    labels = model(X).argmax(1)
    found = interpolate(one, other, model, (X, labels))
    assert (found.points[0].score, found.points[-1].score) == (1.0, 1.0)
    assert found.barrier == 1 - min(point.score for point in found.points)
    assert found.barrier > 0.2
    assert found.alpha == 0.0  # both ends score the same and are as far from the middle: the lower one


def test_the_ends_are_always_scored_and_only_chosen_where_asked_for() -> None:
    found = interpolate(*ends(), mlp(), (X, Y), alphas=[0.3, -0.5, 1.5])
    assert [point.alpha for point in found.points] == [-0.5, 0.0, 0.3, 1.0, 1.5]
    assert found.alpha in (0.3, -0.5, 1.5)
    inside = [point for point in found.points if 0 <= point.alpha <= 1]
    assert found.barrier == barrier(inside, [-point.score for point in inside])
    assert found.points[-1].score == plain(1.5)[0]


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [([0.5, 0.9, 0.2, 0.9, 0.5], 0.25), ([0.9, 0.9, 0.9, 0.9, 0.9], 0.5), ([0.9, 0.1, 0.1, 0.1, math.nan], 0.0)],
)
def test_of_equal_scores_the_middle_and_then_the_lower_alpha_is_chosen(scores: list[float], chosen: float) -> None:
    table = dict(zip(ALPHAS, scores, strict=True))
    model = nn.Linear(1, 1, bias=False)
    one, other = {"weight": torch.zeros(1, 1)}, {"weight": torch.ones(1, 1)}
    metric = Metric(lambda logits, labels: table[round(logits[0].item(), 2)], "max", "table")
    found = interpolate(one, other, model, [(torch.ones(1, 1), torch.zeros(1))], metric, alphas=ALPHAS)
    assert found.alpha == chosen
    assert found.loss_barrier is None
    assert found.points[0].loss is None
    assert math.isnan(found.barrier) == any(map(math.isnan, scores))


def test_several_held_out_sets_choose_by_their_mean_and_test_sets_choose_nothing() -> None:
    def last_class(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        return model(batch[0]), batch[1]

    other = (X.flip(0), Y)
    found = interpolate(
        *ends(), mlp(), (X, Y), alphas=ALPHAS, also={"b": HeldOut([other], last_class)}, tests={"t": (X, Y.flip(0))}
    )
    for point in found.points:
        scores = {"heldout": plain(point.alpha)[0], "b": plain(point.alpha, *other)[0]}
        assert point.scores == scores
        assert point.score == pytest.approx(sum(scores.values()) / 2, abs=1e-12)
        assert point.tests == {"t": plain(point.alpha, X, Y.flip(0))[0]}
        losses = plain(point.alpha)[1] + plain(point.alpha, *other)[1]
        assert point.loss == pytest.approx(losses / 2, rel=1e-5)
    assert found.score == max(point.score for point in found.points)
    assert found.passes["used"] == 2 * len(ALPHAS)
    with pytest.raises(SoupError, match="needs another name: found 'heldout'"):
        interpolate(*ends(), mlp(), (X, Y), also={"heldout": other})
    perverse = {"t": [(X[:1], torch.tensor([0]))]}
    assert (
        interpolate(*ends(), mlp(), (X, Y), alphas=ALPHAS, tests=perverse).alpha
        == interpolate(*ends(), mlp(), (X, Y), alphas=ALPHAS).alpha
    )


def test_files_and_a_soup_give_the_bits_of_the_weighted_average(tmp_path: Path) -> None:
    states = pool(mlp(), 3, spread=0.3, seed=4)
    for number, state in enumerate(states):
        save_file(state, tmp_path / f"{number}.safetensors")
    paths = [str(tmp_path / f"{number}.safetensors") for number in range(3)]
    found = interpolate(paths[0], paths[1], mlp(), (X, Y), alphas=[0.3])
    average_checkpoints(paths[:2], tmp_path / "mean.safetensors", [0.7, 0.3])
    assert same_bits(found.state_dict(), load_file(tmp_path / "mean.safetensors"))
    assert found.ingredients == paths[:2]
    soup = uniform_soup(paths[1:], mlp())
    of_soup = interpolate(paths[0], soup, mlp(), (X, Y), alphas=[0.3])
    wanted = {k: 0.7 * states[0][k] + 0.3 * t for k, t in soup.state_dict().items()}
    assert all(torch.allclose(t, wanted[k], atol=1e-6) for k, t in of_soup.state_dict().items())
    assert interpolate(paths[0], paths[0], mlp(), (X, Y), alphas=[0.3]).ingredients == [
        paths[0],
        f"{paths[0]} (theta1)",
    ]


def test_what_is_saved_says_its_alpha(tmp_path: Path) -> None:
    found = interpolate(*ends(), mlp(), (X, Y), alphas=[0.25])
    found.save(tmp_path / "soup.safetensors")
    with safe_open(tmp_path / "soup.safetensors", "pt") as file:
        assert file.metadata()["pysoup.alpha"] == "0.25"
        assert json.loads(file.metadata()["pysoup.weights"]) == [0.75, 0.25]
    said = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (said["alpha"], len(said["points"]), said["barrier"]) == (0.25, 3, found.barrier)


def test_integers_of_batchnorm_and_excluded_heads_follow_the_recipes_rules() -> None:
    one, other = pool(conv_batchnorm(), 2, spread=0.2)
    model = conv_batchnorm()
    head = model.state_dict()["4.weight"].clone()
    found = interpolate(one, other, model, (X, Y), alphas=[0.5], exclude=r"^4\.")
    assert torch.equal(found.state_dict()["4.weight"], head)
    assert found.state_dict()["2.num_batches_tracked"] == 1
    assert found.options["exclude"] == [r"^4\."]


@pytest.mark.parametrize(
    ("alphas", "message"),
    [([], "no alphas given"), ([math.nan], "alphas must be finite"), (["x"], "alphas must be numbers")],
)
def test_wrong_alphas_are_refused_before_anything_is_scored(alphas: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        interpolate(*ends(), mlp(), HeldOut([(X, Y)], never), alphas=alphas)


def test_ends_that_do_not_fit_are_refused_before_anything_is_scored() -> None:
    one, other = ends()
    other["0.weight"] = torch.zeros(16, 5)
    with pytest.raises(SoupError, match=r"theta1: tensor '0\.weight': shape differs"):
        interpolate(one, other, mlp(), HeldOut([(X, Y)], never))


def test_nan_everywhere_is_an_error() -> None:
    one, other = ends()
    for state in (one, other):
        state["0.weight"][0, 0] = math.nan
    with pytest.raises(SoupError, match="every point scores NaN"):
        interpolate(one, other, mlp(), (X, Y), "nll", alphas=[0.5])


def test_a_killed_run_goes_on_and_takes_other_alphas(tmp_path: Path) -> None:
    counting = Interrupted()
    held = HeldOut([(X, Y)], counting)

    def run(alphas: Any, left: int) -> Any:
        counting.left = left
        return interpolate(*ends(), mlp(), held, alphas=alphas, run=tmp_path / "run")

    with pytest.raises(KeyboardInterrupt):
        run(ALPHAS, 2)
    found = run(ALPHAS, 3)
    assert counting.left == 0
    fresh = interpolate(*ends(), mlp(), (X, Y), alphas=ALPHAS)
    assert [p.to_json() for p in found.points] == [p.to_json() for p in fresh.points]
    assert same_bits(found.state_dict(), fresh.state_dict())
    more = run([*ALPHAS, 0.6], 1)
    assert len(more.points) == 6
    with pytest.raises(SoupError, match="another run is recorded here"):
        interpolate(ends(0.1)[0], ends()[1], mlp(), held, alphas=ALPHAS, run=tmp_path / "run")


def test_barrier_of_points_is_zero_at_the_ends() -> None:
    points = [InterpolationPoint((), 0.0, {}, alpha=a) for a in (0.0, 0.5, 1.0)]
    assert barrier(points, [1.0, 0.5, 2.0]) == 0.0
    assert barrier(points, [1.0, 2.5, 2.0]) == 1.0


def test_the_command_writes_the_soup_the_points_and_the_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    task, paths = write_task(tmp_path), write_checkpoints(tmp_path)
    (tmp_path / "second.py").write_text((tmp_path / "task.py").read_text().replace("_data(1)", "_data(5)"))
    second = f"{tmp_path}/second.py:Task"
    run = tmp_path / "run"
    asked = ["interpolate", *paths[1:3], "--task", task, "-o", str(run), "--alphas", "0,0.25,0.5", "--also", second]
    assert main(asked) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["alpha", "heldout", second, "mean", "loss", "test:", "shifted"]
    assert "wrote " + str(run / "curve.svg") in out
    said = json.loads((run / "trace.json").read_text())
    found = interpolate(
        *paths[1:3], linear(), held_out(1), alphas=[0, 0.25, 0.5], also={second: held_out(5)},
        tests={"shifted": held_out(2)},
    )  # fmt: skip
    assert said["points"] == [point.to_json() for point in found.points]
    assert same_bits(load_file(run / "soup.safetensors"), found.state_dict())
    chosen = next(point for point in found.points if point.alpha == found.alpha)
    assert json.loads((run / "results.json").read_text())["tests"] == chosen.tests
    svg = (run / "curve.svg").read_text()
    assert "<svg" in svg
    assert "shifted (test)" in svg
    assert not (run / "journal").exists()
    assert main(asked) == 1
    assert "results of an earlier run are there" in capsys.readouterr().err
    assert main(["interpolate", str(tmp_path), paths[0], "--task", task, "-o", str(tmp_path / "b")]) == 1
    assert "THETA0 is to be one checkpoint" in capsys.readouterr().err
    assert main([*asked[:5], "-o", str(tmp_path / "b"), "--alphas", "0,x"]) == 2


def test_the_command_takes_test_sets_that_a_later_run_would_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, paths = write_task(tmp_path), write_checkpoints(tmp_path)
    odd = """
    def tests(self):
        return {"odd": [(x, y, object()) for x, y in self._data(2)]}

    def forward(self, model, batch):
        return model(batch[0]), batch[1]
"""
    (tmp_path / "task.py").write_text((tmp_path / "task.py").read_text() + odd)
    run = tmp_path / "run"
    assert main(["interpolate", *paths[1:3], "--task", task, "-o", str(run)]) == 0, capsys.readouterr().err
    assert "had it been killed, this run could not have gone on" in capsys.readouterr().out
    assert set(json.loads((run / "results.json").read_text())["tests"]) == {"odd"}


def test_ends_of_other_types_than_each_other_are_mixed_into_a_narrow_model() -> None:
    torch.manual_seed(0)
    model = mlp().bfloat16()
    start = {name: torch.randn(tensor.shape) for name, tensor in model.state_dict().items()}
    tuned = {name: (tensor + 0.25).bfloat16() for name, tensor in start.items()}

    def forward(live: Any, batch: Any) -> tuple[Tensor, Tensor]:
        return live(batch[0].bfloat16()).float(), batch[1]

    x, y = images()
    interpolate(start, tuned, model, HeldOut((x, y), forward), alphas=[0.25])
    for name, tensor in model.state_dict().items():
        expected = 0.75 * start[name].double() + 0.25 * tuned[name].double()
        assert torch.equal(tensor, expected.bfloat16()), name
