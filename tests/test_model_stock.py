"""Model Stock: the ratio of each tensor, files and live models, against the formula in plain torch."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import torch
from linear_task import held_out, write_checkpoints, write_task
from safetensors.torch import load_file, save_file
from soup_models import TiedLanguageModel, images, mlp, pool, same_bits
from torch import Tensor, nn

from pysoup import IncompatibleError, SoupError, average_checkpoints, model_stock
from pysoup.cli import main
from pysoup.errors import OutputError, WeightsError
from pysoup.stock import stock_checkpoints, stock_ratio

X, Y = images()
State = dict[str, Tensor]


def fine_tuned(count: int, *, common: float = 1.0, spread: float = 0.7) -> tuple[State, list[State]]:
    """A start, and models that share a part of their way from it: what makes their angle less than 90 degrees."""
    torch.manual_seed(0)
    start = {name: tensor.clone() for name, tensor in mlp().state_dict().items()}
    way = {name: 0.1 * common * torch.randn(tensor.shape) for name, tensor in start.items()}
    return start, [
        {name: tensor + way[name] + 0.1 * spread * torch.randn(tensor.shape) for name, tensor in start.items()}
        for _ in range(count)
    ]


def plain_stock(start: State, models: list[State]) -> tuple[State, dict[str, float]]:
    """The formula as it is written down: offsets, angles of all pairs, their mean, t, the interpolation."""
    result, ratios = {}, {}
    for name, zero in start.items():
        zero = zero.double()
        offsets = [model[name].double() - zero for model in models]
        cosines = [
            torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()
            for a, b in combinations(offsets, 2)
        ]
        cos, n = sum(cosines) / len(cosines), len(models)
        t = n * cos / (1 + (n - 1) * cos)
        ratios[name] = t
        result[name] = (t * torch.stack([m[name].double() for m in models]).mean(0) + (1 - t) * zero).float()
    return result, ratios


def save(folder: Path, start: State, models: list[State]) -> tuple[str, list[str]]:
    save_file(start, folder / "start.safetensors")
    paths = [folder / f"model-{number}.safetensors" for number in range(len(models))]
    for path, state in zip(paths, models, strict=True):
        save_file(state, path)
    return str(folder / "start.safetensors"), [str(path) for path in paths]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_files_become_the_model_stock_of_the_formula(count: int, tmp_path: Path) -> None:
    start, models = fine_tuned(count)
    wanted, ratios = plain_stock(start, models)
    first, paths = save(tmp_path, start, models)
    report = stock_checkpoints(first, paths, tmp_path / "out.safetensors")
    assert report.ratios == pytest.approx(ratios, rel=1e-6)
    assert all(0.2 < t < 1 for t in ratios.values())
    out = load_file(tmp_path / "out.safetensors")
    assert all(torch.allclose(out[name], tensor, rtol=1e-6, atol=1e-7) for name, tensor in wanted.items())
    assert (report.average.inputs, report.average.tensors) == ([first, *paths], 4)
    assert sum(report.average.weights) == pytest.approx(1)
    sizes = {name: tensor.numel() for name, tensor in start.items()}
    mean = sum(size * (1 - ratios[name]) for name, size in sizes.items()) / sum(sizes.values())
    assert report.average.weights[0] == pytest.approx(mean)


def test_files_need_no_torch(tmp_path: Path) -> None:
    first, paths = save(tmp_path, *fine_tuned(2))
    code = (
        "import sys\nfrom pysoup import stock_checkpoints\n"
        f"stock_checkpoints({first!r}, {paths!r}, {str(tmp_path / 'o.pt')!r})\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert (tmp_path / "o.pt").exists()


def test_a_model_becomes_what_the_files_become_and_is_scored(tmp_path: Path) -> None:
    start, models = fine_tuned(3)
    wanted, ratios = plain_stock(start, models)
    first, paths = save(tmp_path, start, models)
    stock_checkpoints(first, paths, tmp_path / "out.safetensors")
    for given in ((first, paths), (start, models), (first, [paths[0], models[1], paths[2]])):
        model = mlp().train()
        soup = model_stock(*given, model, (X, Y))
        assert soup.ratios == pytest.approx(ratios, rel=1e-6)
        assert all(torch.allclose(t, wanted[k], rtol=1e-6, atol=1e-7) for k, t in soup.state_dict().items())
        assert same_bits(soup.state_dict(), dict(model.state_dict()))
        with torch.no_grad():
            assert soup.score == (model.eval()(X).argmax(1) == Y).double().mean().item()
        assert len(soup.ingredients) == 4
    unscored = model_stock(first, paths, mlp())
    assert (unscored.score, unscored.metric) == (None, None)
    assert same_bits(unscored.state_dict(), load_file(tmp_path / "out.safetensors"))


def test_two_models_have_the_ratio_of_the_paper() -> None:
    for angle in (10.0, 45.0, 60.0, 89.0):
        cos = math.cos(math.radians(angle))
        start, one = torch.tensor([3.0, -2.0, 5.0], dtype=torch.float64), torch.tensor([2.0, 0.0, 0.0]).double()
        other = torch.tensor([0.5 * cos, 0.5 * math.sin(math.radians(angle)), 0.0], dtype=torch.float64)
        rows = torch.stack([start, start + one, start + other])
        found, t = stock_ratio((rows @ rows.T).tolist())
        assert found == pytest.approx(cos, rel=1e-9)
        assert t == pytest.approx(2 * cos / (1 + cos), rel=1e-9)


def test_the_ratio_goes_from_the_start_to_the_mean() -> None:
    start = torch.ones(4, dtype=torch.float64)
    together = torch.stack([start, start + 1, start + 1, start + 1])
    apart = torch.stack([start, *(start + torch.eye(4, dtype=torch.float64)[:3])])
    against = torch.stack([start, start + 1, start - 1])
    still = torch.stack([start, start, start + 1])
    assert stock_ratio((together @ together.T).tolist()) == (1.0, 1.0)
    assert stock_ratio((apart @ apart.T).tolist()) == (0.0, 0.0)
    assert stock_ratio((against @ against.T).tolist()) == (-1.0, 0.0)
    assert stock_ratio((still @ still.T).tolist()) == (0.0, 0.0)


def test_a_tensor_that_did_not_move_stays_bit_for_bit(tmp_path: Path) -> None:
    start, models = fine_tuned(3)
    for model in models:
        model["0.weight"] = start["0.weight"].clone()
    first, paths = save(tmp_path, start, models)
    report = stock_checkpoints(first, paths, tmp_path / "out.safetensors")
    assert report.ratios["0.weight"] == 0.0
    assert torch.equal(load_file(tmp_path / "out.safetensors")["0.weight"], start["0.weight"])


def test_tied_tensors_stay_tied_and_have_one_ratio() -> None:
    torch.manual_seed(0)
    start, *models = pool(TiedLanguageModel(), 4, spread=0.1)
    model = TiedLanguageModel()
    soup = model_stock(start, models, model)
    assert model.head.weight is model.embed.weight
    assert set(soup.ratios) == {"embed.weight", "mix.weight", "mix.bias"}


def test_tied_tensors_may_be_stored_under_either_name_or_both(tmp_path: Path) -> None:
    torch.manual_seed(0)
    start, *models = pool(TiedLanguageModel(), 4, spread=0.1)
    wanted = model_stock(start, models, TiedLanguageModel())
    paths = []
    for number, state in enumerate((start, *models)):
        left_out = ("head.weight", "embed.weight", None)[number % 3]
        paths.append(tmp_path / f"{number}.{'safetensors' if left_out else 'pt'}")
        kept = {name: tensor for name, tensor in state.items() if name != left_out}
        torch.save(kept, paths[-1]) if left_out is None else save_file(kept, paths[-1])
    for pool_of in (paths[1:], [paths[1], models[1], *paths[3:]]):
        soup = model_stock(paths[0], pool_of, TiedLanguageModel())
        assert soup.ratios == wanted.ratios
        assert same_bits(soup.state_dict(), wanted.state_dict())
    assert any(0 < t < 1 for t in wanted.ratios.values())


def test_left_out_heads_may_differ(tmp_path: Path) -> None:
    start, models = fine_tuned(2)
    for number, state in enumerate((start, *models)):
        state["3.weight"], state["3.bias"] = torch.zeros(number + 2, 16), torch.zeros(number + 2)
    first, paths = save(tmp_path, start, models)
    wanted, _ = plain_stock(*({k: v for k, v in s.items() if k[0] == "0"} for s in (start,)), [
        {k: v for k, v in s.items() if k[0] == "0"} for s in models
    ])  # fmt: skip
    model = mlp()
    head = model[3].weight.detach().clone()
    soup = model_stock(first, paths, model, exclude="^3")
    assert torch.equal(soup.state_dict()["3.weight"], head)
    assert torch.allclose(soup.state_dict()["0.weight"], wanted["0.weight"], rtol=1e-6, atol=1e-7)
    stock_checkpoints(first, paths, tmp_path / "out.safetensors", exclude="^3", rest="first")
    out = load_file(tmp_path / "out.safetensors")
    assert torch.equal(out["3.weight"], start["3.weight"])
    assert torch.allclose(out["0.weight"], wanted["0.weight"], rtol=1e-6, atol=1e-7)


def test_what_has_no_angle_is_refused(tmp_path: Path) -> None:
    start, models = fine_tuned(2)
    first, paths = save(tmp_path, start, models)
    out = tmp_path / "out.safetensors"
    with pytest.raises(SoupError, match="two models or more beside the start: found 1"):
        stock_checkpoints(first, paths[:1], out)
    with pytest.raises(SoupError, match="two models or more beside the start: found 1"):
        model_stock(first, paths[:1], mlp())
    models[1]["0.bias"][0] = math.nan
    save_file(models[1], paths[1])
    with pytest.raises(SoupError, match=r"tensor '0\.bias': Model Stock needs finite weights"):
        stock_checkpoints(first, paths, out)
    del models[1]["0.bias"]
    save_file(models[1], paths[1])
    with pytest.raises(IncompatibleError):
        stock_checkpoints(first, paths, out)
    assert not out.exists()


def test_an_output_that_cannot_be_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, paths = save(tmp_path, *fine_tuned(2))
    monkeypatch.setattr("pysoup.stock.products_of", lambda *_, **__: pytest.fail("inner products were taken"))
    (tmp_path / "out.safetensors").write_bytes(b"old")
    with pytest.raises(OutputError, match="already exists"):
        stock_checkpoints(first, paths, tmp_path / "out.safetensors")
    with pytest.raises(OutputError, match="output is an input"):
        stock_checkpoints(first, paths, paths[0], overwrite=True)
    assert (tmp_path / "out.safetensors").read_bytes() == b"old"


def test_weights_may_differ_by_tensor(tmp_path: Path) -> None:
    start, models = fine_tuned(2)
    _, paths = save(tmp_path, start, models)
    rows = {"0.weight": [1, 3], "0.bias": [0, 1], "3.weight": [1, 1], "3.bias": [2, 0]}
    report = average_checkpoints(paths, tmp_path / "out", rows)
    out = load_file(tmp_path / "out" / "model.safetensors")
    for name, (a, b) in rows.items():
        wanted = (a * models[0][name].double() + b * models[1][name].double()) / (a + b)
        assert torch.allclose(out[name], wanted.float(), atol=1e-7)
    assert torch.equal(out["0.bias"], models[1]["0.bias"])
    assert sum(report.weights) == pytest.approx(1)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "weights: `by tensor`" in card
    assert "```shell" not in card
    for bad, message in (
        ({"0.weight": [1, 1]}, "tensor '0.bias': no weights for this tensor"),
        ({**rows, "x": [1, 1]}, "tensor 'x': weights for a tensor that is not averaged"),
        ({**rows, "0.bias": [1]}, "tensor '0.bias': wrong number of weights"),
        ({}, "no weights given"),
    ):
        with pytest.raises(WeightsError, match=message.replace(".", r"\.")):
            average_checkpoints(paths, tmp_path / "b.safetensors", bad)


def test_the_command_writes_a_file_or_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, models = fine_tuned(3)
    first, paths = save(tmp_path, start, models)
    out = tmp_path / "out.safetensors"
    assert main(["stock", first, *paths, "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("model stock of 3 checkpoints and their start")
    wanted, ratios = plain_stock(start, models)
    assert all(torch.allclose(t, wanted[k], rtol=1e-6, atol=1e-7) for k, t in load_file(out).items())
    assert main(["stock", first, *paths, "-o", str(out), "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ratios"] == pytest.approx(ratios, rel=1e-6)
    assert main(["stock", first, *paths, "-o", str(out), "--metric", "nll"]) == 2
    task_folder = tmp_path / "task"
    task_folder.mkdir()
    task, noisy = write_task(task_folder), write_checkpoints(task_folder)
    run = tmp_path / "run"
    assert main(["stock", *noisy[1:], "--task", task, "-o", str(run)]) == 0
    soup = model_stock(noisy[1], noisy[2:], nn.Linear(8, 3, bias=False), held_out(1))
    trace = json.loads((run / "trace.json").read_text())
    assert (trace["recipe"], trace["score"], trace["ratios"]) == ("stock", soup.score, soup.ratios)
    assert same_bits(load_file(run / "soup.safetensors"), soup.state_dict())
    assert "shifted" in json.loads((run / "results.json").read_text())["tests"]
