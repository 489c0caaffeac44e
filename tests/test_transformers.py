"""Hugging Face directories: in as transformers writes them, out as it reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pysoup

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

CONFIG: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def models() -> list[Any]:
    """Three random causal language models of one small configuration, embeddings tied."""
    made = []
    for seed in range(3):
        torch.manual_seed(seed)
        made.append(transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)).eval())
    return made


@pytest.fixture
def folders(models: list[Any], tmp_path: Path, request: pytest.FixtureRequest) -> list[Path]:
    """Their directories, saved in the way that the test's parameter names."""
    kind = getattr(request, "param", "file")
    paths = [tmp_path / f"model-{i}" for i in range(len(models))]
    for path, model in zip(paths, models, strict=True):
        model.save_pretrained(path, max_shard_size="10KB" if kind == "sharded" else "5GB")
        if kind in ("bin", "sharded bin"):
            _as_bin(path, model.state_dict(), shards=2 if kind == "sharded bin" else 1)
        (path / "tokenizer_config.json").write_text('{"model_max_length": 32}')
        (path / "README.md").write_text("how this one was trained")
    return paths


def _as_bin(path: Path, state: dict[str, torch.Tensor], shards: int) -> None:
    """As transformers wrote weights before safetensors: whole, or in shards with an index."""
    for file in path.glob("model*"):
        file.unlink()
    if shards == 1:
        torch.save(state, path / "pytorch_model.bin")
        return
    names = list(state)
    weight_map = {}
    for shard in range(shards):
        file = f"pytorch_model-{shard + 1:05}-of-{shards:05}.bin"
        # Tied tensors stay in one shard: two copies of one name's data would be another model.
        chosen = [n for i, n in enumerate(names) if n != "lm_head.weight" and i * shards // len(names) == shard]
        if "model.embed_tokens.weight" in chosen:
            chosen.append("lm_head.weight")
        torch.save({n: state[n] for n in chosen}, path / file)
        weight_map |= dict.fromkeys(chosen, file)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _mean(models: list[Any]) -> dict[str, torch.Tensor]:
    states = [m.state_dict() for m in models]
    return {name: sum(s[name].double() for s in states).div(len(states)).float() for name in states[0]}


@pytest.mark.parametrize("folders", ["file", "sharded", "bin", "sharded bin"], indirect=True)
def test_directory_of_directories_loads_in_transformers(models: list[Any], folders: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "soup"
    report = pysoup.average_checkpoints(folders, output)
    soup = transformers.AutoModelForCausalLM.from_pretrained(output).eval()
    expected = _mean(models)
    assert soup.state_dict().keys() == expected.keys()
    for name, tensor in soup.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert soup.lm_head.weight.data_ptr() == soup.model.embed_tokens.weight.data_ptr()
    tokens = torch.arange(12).view(2, 6)
    models[0].load_state_dict(expected)
    with torch.no_grad():
        assert torch.equal(soup(tokens).logits, models[0](tokens).logits)
    assert (output / "tokenizer_config.json").read_text() == '{"model_max_length": 32}'
    assert (output / "generation_config.json").exists()
    assert "how this one was trained" not in (output / "README.md").read_text()
    assert any("tokenizer_config.json" in note for note in report.notes)
    if list(folders[0].glob("*.index.json")):
        assert len(list(output.glob("*.safetensors"))) == len(list(folders[0].glob("*-of-*")))


def test_directory_gets_shards_of_the_size_that_is_asked_for(
    models: list[Any], folders: list[Path], tmp_path: Path
) -> None:
    pysoup.average_checkpoints(folders, tmp_path / "soup", shard_size="10KB")
    shards = sorted((tmp_path / "soup").glob("model-*-of-*.safetensors"))
    assert len(shards) > 2
    soup = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "soup")
    assert all(torch.equal(tensor, _mean(models)[name]) for name, tensor in soup.state_dict().items())


def test_directory_in_another_dtype_says_so_in_its_config(folders: list[Path], tmp_path: Path) -> None:
    pysoup.average_checkpoints(folders, tmp_path / "soup", dtype="bf16")
    soup = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "soup")
    assert soup.dtype == torch.bfloat16


def test_live_transformers_model_takes_the_soup(models: list[Any], folders: list[Path]) -> None:
    target = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG))
    pysoup.load_soup_(target, folders)
    expected = pysoup.average_state_dicts([m.state_dict() for m in models])
    assert all(torch.equal(tensor, expected[name]) for name, tensor in target.state_dict().items())
