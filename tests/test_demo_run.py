"""The whole demo in small: every promised file, scores that an independent evaluation confirms, and going on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

pytest.importorskip("mlxtend")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from pysoup.demo.network import DigitNet
from pysoup.demo.pipeline import DemoResult, run_demo
from pysoup.demo.task import Digits
from pysoup.finetune import Hyperparameters, Ranges, trainer
from pysoup.report.collect import collect
from pysoup.report.drawings import figure1

SMALL = Ranges(log10_learning_rate=(-2.7, -2.5), epochs=(1, 2))
Data = tuple[Tensor, Tensor]


def some(data: Data, step: int) -> Data:
    return data[0][::step], data[1][::step]


class SmallDigits(Digits):
    def pretraining(self) -> Data:
        return some(super().pretraining(), 8)

    def train(self) -> Data:
        return some(super().train(), 3)

    def heldout(self) -> Data:
        return some(super().heldout(), 5)

    def tests(self) -> dict[str, Data]:
        return {name: some(data, 20) for name, data in super().tests().items()}


TASK = SmallDigits()


def small(output: Path, *, ingredients: int = 3, seed: int = 0, quiet: bool = True) -> DemoResult:
    pretraining = Hyperparameters(learning_rate=3e-3, epochs=3)
    return run_demo(
        output,
        seed=seed,
        ingredients=ingredients,
        threads=1,
        quiet=quiet,
        task=TASK,
        ranges=SMALL,
        pretraining_hp=pretraining,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return small(tmp_path_factory.mktemp("demo"))


def accuracy(path: Path, data: Data) -> float:
    model = DigitNet()
    model.load_state_dict(load_file(path))
    with torch.no_grad():
        return (model.eval()(data[0]).argmax(1) == data[1]).double().mean().item()


def test_demo_writes_all_it_promises(finished: DemoResult) -> None:
    names = {str(path.relative_to(finished.output)) for path in finished.output.rglob("*") if path.is_file()}
    suffixes = (".safetensors", ".json", ".margins.npy")
    models = {f"ingredients/model_{i:02d}{suffix}" for i in range(3) for suffix in suffixes}
    top = {"start", "soup", "uniform"}
    assert names == models | {f"{name}.safetensors" for name in top} | {
        "ingredients/sweep.json",
        "trace.json",
        "results.json",
        "table.md",
        "figure1.png",
    }


def test_demo_scores_are_those_of_the_saved_files(finished: DemoResult) -> None:
    tests = TASK.tests()
    uniform, greedy = finished.table.rows[-2:]
    for row, file in ((uniform, "uniform"), (greedy, "soup"), (finished.models[1], "ingredients/model_01")):
        path = finished.output / f"{file}.safetensors"
        assert row.test == accuracy(path, tests["mnist"])
        assert dict(row.shifts) == {name: accuracy(path, data) for name, data in tests.items() if name != "mnist"}


def test_demo_soups_are_the_averages_they_claim(finished: DemoResult) -> None:
    for soup, file in ((finished.uniform, "uniform"), (finished.greedy, "soup")):
        parts = [load_file(path) for path in soup.ingredients]
        for name, tensor in load_file(finished.output / f"{file}.safetensors").items():
            mean = sum(part[name].double() for part in parts) / len(parts)
            assert torch.equal(tensor, mean.float())


def test_demo_ranks_on_heldout_alone(finished: DemoResult) -> None:
    heldout = TASK.heldout()
    scores = [accuracy(finished.output / f"ingredients/model_{i:02d}.safetensors", heldout) for i in range(3)]
    best = max(range(3), key=lambda i: scores[i])
    assert finished.table.rows[0].test == finished.models[best].test
    assert [finished.heldout[f"model_{i:02d}"] for i in range(3)] == scores
    assert finished.heldout["Greedy soup"] >= max(scores)
    assert [row.name for row in finished.table.rows] == [
        "Best individual model",
        "Second best model",
        "Uniform soup",
        "Greedy soup",
    ]


def test_demo_results_file_agrees(finished: DemoResult) -> None:
    content = json.loads((finished.output / "results.json").read_text())
    assert [row["name"] for row in content["rows"]] == [row.name for row in finished.table.rows]
    assert content["rows"][3]["test"] == finished.table.rows[3].test
    assert content["heldout"] == finished.heldout
    assert (finished.output / "table.md").read_text() == finished.table.markdown()


def test_a_report_on_the_demo_has_its_table(finished: DemoResult) -> None:
    content = collect([finished.output])
    assert [row.label for row in content.rows] == [row.name for row in finished.table.rows]
    for row, expected in zip(content.rows, finished.table.rows, strict=True):
        tests = {name: row.tests[name] for name in content.tests}
        assert tests == {finished.table.test: expected.test, **expected.shifts}
        assert row.mean == pytest.approx(expected.mean_shift)
    assert [row.heldout for row in content.rows[-2:]] == [finished.uniform.score, finished.greedy.score]
    assert content.start is not None
    assert all(model.hyperparameters["learning_rate"] > 0 for model in content.models)
    assert figure1(content) is not None


def test_demo_goes_on_and_ends_with_the_same_bits(finished: DemoResult, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = finished.output
    soup, table = (folder / "soup.safetensors").read_bytes(), (folder / "table.md").read_text()
    (folder / "ingredients" / "model_02.safetensors").unlink()
    trained: list[int] = []
    real = trainer.fine_tune

    def counted(model: torch.nn.Module, data: Data, hp: Hyperparameters, **options: object) -> None:
        trained.append(hp.seed)
        real(model, data, hp, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "fine_tune", counted)
    again = small(folder)
    assert len(trained) == 1
    assert (folder / "soup.safetensors").read_bytes() == soup
    assert (folder / "table.md").read_text() == table
    assert again.heldout == finished.heldout


def test_demo_speaks_in_lines_where_there_is_no_terminal(
    finished: DemoResult, capsys: pytest.CaptureFixture[str]
) -> None:
    small(finished.output, quiet=False)
    out, err = capsys.readouterr()
    assert out.startswith(finished.table.markdown())
    assert "fine-tuning: 3/3 model_02.safetensors accuracy 0." in err
    assert "\x1b" not in out + err


def test_demo_leaves_the_thread_count(finished: DemoResult) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)  # the demo itself runs with one
        small(finished.output)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
