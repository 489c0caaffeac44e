"""``pysoup share``: a soup as a directory that Hugging Face loaders take, and its card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_task import write_checkpoints, write_task
from safetensors.torch import load_file

from pysoup.cli import main
from pysoup.errors import OutputError, SoupError
from pysoup.report import evaluate_checkpoints, share_soup
from pysoup.report.html import clean

BERT = """
import torch
from transformers import BertConfig, BertForSequenceClassification

class Sentences:
    def model(self):
        return BertForSequenceClassification(BertConfig.from_pretrained("bert-0"))

    def heldout(self):
        return self._data(0)

    def tests(self):
        return {"plain": self._data(1), "shifted": self._data(2)}

    def _data(self, seed):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(5, 40, (32, 6), generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 3}
"""
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(35))]


@pytest.fixture
def soup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The directory of a uniform soup of two linear models, with scores of everything."""
    monkeypatch.chdir(tmp_path)
    task, checkpoints = write_task(tmp_path), write_checkpoints(tmp_path)
    assert main(["uniform", "--task", task, *checkpoints[1:3], "-o", "soup"]) == 0
    evaluate_checkpoints([*checkpoints[1:3], "soup"], task, "soup")
    return "soup"


@pytest.fixture
def bert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The directories of two small BERTs with a tokenizer, and a task for them."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.chdir(tmp_path)
    Path("bert_task.py").write_text(BERT)
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        num_labels=3,
        id2label={0: "no", 1: "perhaps", 2: "yes"},
    )
    Path("vocab.txt").write_text("\n".join(VOCABULARY))
    for seed in range(2):
        torch.manual_seed(seed)
        transformers.BertForSequenceClassification(config).save_pretrained(f"bert-{seed}")
        transformers.BertTokenizer("vocab.txt").save_pretrained(f"bert-{seed}")
        Path(f"bert-{seed}/README.md").write_text("how this one was trained")
    yield transformers
    sys.modules.pop("bert_task", None)


def test_a_shared_soup_loads_with_from_pretrained(bert: Any) -> None:
    assert main(["uniform", "--task", "bert_task.py:Sentences", "bert-0", "bert-1", "-o", "soup"]) == 0
    shared = share_soup("soup", "shared", license="mit")
    assert "config.json" in shared.files
    assert {"model.safetensors", "README.md", "tokenizer_config.json"} <= set(os.listdir("shared"))
    model = bert.AutoModelForSequenceClassification.from_pretrained("shared", local_files_only=True)
    assert type(model) is bert.BertForSequenceClassification
    assert model.config.id2label[2] == "yes"
    parts = [load_file(f"bert-{seed}/model.safetensors") for seed in range(2)]
    for name, value in model.state_dict().items():
        assert torch.equal(value, ((parts[0][name].double() + parts[1][name].double()) / 2).float())
    tokenizer = bert.AutoTokenizer.from_pretrained("shared", local_files_only=True)
    assert tokenizer("w3 w4")["input_ids"] == [2, 8, 9, 3]
    card = Path("shared/README.md").read_text()
    assert card.startswith('---\nlicense: "mit"\nlibrary_name: "transformers"\ntags:\n- model-soup\n')
    assert "how this one was trained" not in card


def test_shards_load_as_one_model(bert: Any) -> None:
    assert main(["uniform", "--task", "bert_task.py:Sentences", "bert-0", "bert-1", "-o", "soup"]) == 0
    share_soup("soup", "shared", shard_size="4KB")
    assert len(list(Path("shared").glob("model-*.safetensors"))) > 2
    model = bert.AutoModelForSequenceClassification.from_pretrained("shared", local_files_only=True)
    expected = load_file("soup/soup.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_weights_are_those_of_the_soup_and_know_where_they_are_from(soup: str) -> None:
    share_soup(soup, "shared")
    one, other = load_file("soup/soup.safetensors"), load_file("shared/model.safetensors")
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
    from safetensors import safe_open

    with safe_open("shared/model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert len(json.loads(file.metadata()["pysoup.ingredients"])) == 2


def test_the_card_has_the_table_the_ingredients_and_a_place_for_the_licence(soup: str) -> None:
    shared = share_soup(soup, "shared")
    lines = Path("shared/README.md").read_text().splitlines()
    assert lines[:2] == ["---", "# license: to be filled in, as the licences of the ingredients and their data allow"]
    assert "| `accuracy (%)` | `held-out` | `shifted` |" in lines
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("| `")]
    assert rows == ["`accuracy (%)`", "`Best individual model`", "`Second best model`", "`Uniform soup`"]
    trace = json.loads(Path("soup/trace.json").read_text())
    for number, name in enumerate(trace["ingredients"], 1):
        assert f"| {number} | `{name}` | 0.5 |" in lines
    assert "- method: `uniform soup`" in lines
    assert any("licence field" in note for note in shared.notes)
    assert any("--config DIR" in note for note in shared.notes)


def test_config_comes_from_where_it_is_said_to_be(soup: str) -> None:
    Path("models").mkdir()
    Path("models/config.json").write_text('{"torch_dtype": "bfloat16", "model_type": "bert"}')
    Path("models/trainer_state.json").write_text("{}")
    share_soup(soup, "shared", config="models")
    # The soup's own type is what a loader has to expect.
    assert json.loads(Path("shared/config.json").read_text())["torch_dtype"] == "float32"
    assert not Path("shared/trainer_state.json").exists()
    with pytest.raises(SoupError, match="config and tokenizer files"):
        share_soup(soup, "other", config="absent")
    assert not Path("other").exists()


def test_an_ensemble_and_what_is_no_run_are_refused(soup: str, tmp_path: Path) -> None:
    checkpoints = [str(tmp_path / f"{name}.safetensors") for name in ("good", "better")]
    assert main(["ensemble", "--all", "--task", "task.py:Task", *checkpoints, "-o", "ensemble"]) == 0
    with pytest.raises(SoupError, match="an ensemble has no weights"):
        share_soup("ensemble", "shared")
    with pytest.raises(SoupError, match="not the directory of a recipe"):
        share_soup(tmp_path, "shared")
    assert not Path("shared").exists()


def test_what_is_there_is_kept_unless_forced(soup: str) -> None:
    Path("shared").mkdir()
    Path("shared/mine.txt").write_text("mine")
    with pytest.raises(OutputError):
        share_soup(soup, "shared")
    with pytest.raises(OutputError, match=r"mine\.txt"):
        share_soup(soup, "shared", overwrite=True)
    assert os.listdir("shared") == ["mine.txt"]
    before = sorted(os.listdir(soup))
    with pytest.raises(OutputError):
        share_soup(soup, soup, overwrite=True)
    assert sorted(os.listdir(soup)) == before
    share_soup(soup, "other")
    share_soup(soup, "other", license="mit", overwrite=True)
    assert "mit" in Path("other/README.md").read_text()


def test_hostile_names_stay_names_in_the_card(soup: str) -> None:
    from markdown_it import MarkdownIt
    from report_runs import HOSTILE

    trace = json.loads(Path("soup/trace.json").read_text())
    trace |= {"ingredients": HOSTILE, "weights": [1 / len(HOSTILE)] * len(HOSTILE), "recipe": HOSTILE[0]}
    trace |= {"options": dict.fromkeys(HOSTILE, "x") | {"order": HOSTILE[1]}, "notes": HOSTILE, "trace": []}
    Path("soup/trace.json").write_text(json.dumps(trace))
    share_soup(soup, "shared", license='x"\nevil: yes')
    text = Path("shared/README.md").read_text()
    front, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert [line.partition(":")[0] for line in front.splitlines()] == ["license", "tags", "- model-soup", "- merge"]
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body)
    kinds = {token.type for token in tokens} | {child.type for t in tokens for child in t.children or []}
    assert not kinds & {"html_block", "html_inline", "hr", "fence", "image"}
    code = [child.content for t in tokens for child in t.children or [] if child.type == "code_inline"]
    assert all(clean(name).replace("\\", "") in "".join(code).replace("\\", "") for name in HOSTILE)


def test_command_lists_what_it_wrote(soup: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["share", soup, "-o", "shared", "--license", "mit"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["wrote shared/README.md", "wrote shared/model.safetensors"]
    assert lines[2].startswith("note: no config and tokenizer files")
    assert main(["share", soup, "-o", "shared"]) == 1
    assert main(["share", soup, "-o", "shared", "--force"]) == 0


def test_command_needs_no_torch(soup: str) -> None:
    code = """
import sys
from pysoup.cli import main
assert main(["share", "soup", "-o", "shared"]) == 0
assert not {"torch", "numpy"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
