"""LoRA adapters: merging the exact average into a model gives the average of the merged models; PEFT is the judge."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pysoup
from pysoup.adapters import average_adapters, low_rank_sum
from pysoup.cli import main

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

QV = ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 32, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)
    path = tmp_path_factory.mktemp("base")
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


def load_base(path: Path) -> Any:
    return transformers.LlamaForCausalLM.from_pretrained(path)


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes an adapter of random factors with these settings."""

    def make(seed: int, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
        settings = {"r": 4, "lora_alpha": 8, "target_modules": QV, **settings}
        model = peft.get_peft_model(load_base(base), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
        made = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.data = torch.randn(parameter.shape, generator=made).to(dtype) / 4
        path = tmp_path / f"adapter-{seed}"
        model.save_pretrained(path)
        return path

    return make


def merged(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    model = peft.PeftModel.from_pretrained(load_base(base), adapter)
    return {name: t.double() for name, t in model.merge_and_unload().state_dict().items()}


def mean_of_merged(base: Path, adapters: list[Path], weights: list[float]) -> dict[str, torch.Tensor]:
    models = [merged(base, adapter) for adapter in adapters]
    total = sum(weights)
    return {n: sum(w / total * m[n] for w, m in zip(weights, models, strict=True)) for n in models[0]}


def assert_merges_to(base: Path, output: Path, expected: dict[str, torch.Tensor], tolerance: float = 2e-6) -> None:
    found = merged(base, output)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


CASES: dict[str, list[dict[str, Any]]] = {
    "alike": [{}, {}, {}],
    "ranks and alphas": [{"r": 2, "lora_alpha": 16}, {"r": 3, "lora_alpha": 5}],
    "rank-stabilised": [{"use_rslora": True}, {}],
    "patterns": [{"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 3}}, {"r": 1}],
    "targets": [{}, {"target_modules": ["q_proj", "down_proj"]}],
    "all linear": [{"target_modules": "all-linear"}, {"target_modules": "all-linear", "r": 6}],
    "embeddings": [{"target_modules": [*QV, "embed_tokens"]}] * 2,
    "more rank than the matrix": [{"r": 12}, {"r": 12}],
    "modules to save": [{"modules_to_save": ["lm_head"]}] * 2,
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_exact_average_merges_to_the_average_of_merged_models(
    base: Path, adapter: Callable[..., Path], tmp_path: Path, settings: list[dict[str, Any]]
) -> None:
    adapters = [adapter(seed, **s) for seed, s in enumerate(settings)]
    weights = [1.0, 3.0, 2.0][: len(adapters)]
    report = average_adapters(adapters, tmp_path / "soup", weights)
    assert_merges_to(base, tmp_path / "soup", mean_of_merged(base, adapters, weights))
    assert report.error is not None
    assert report.error < 1e-12
    naive = mean_of_merged(base, adapters[:1], [1])
    assert any(not torch.allclose(naive[n], t, atol=1e-3) for n, t in merged(base, tmp_path / "soup").items())


def test_rank_that_is_too_small_is_the_best_of_its_rank(
    base: Path, adapter: Callable[..., Path], tmp_path: Path
) -> None:
    adapters = [adapter(1), adapter(2)]
    report = average_adapters(adapters, tmp_path / "soup", rank=3)
    start, mean = (
        {n: t.double() for n, t in load_base(base).state_dict().items()},
        mean_of_merged(base, adapters, [1, 1]),
    )
    expected, lost, whole = dict(mean), 0.0, 0.0
    for module in report.ranks:
        name = f"{module}.weight"
        u, s, v = torch.linalg.svd(mean[name] - start[name], full_matrices=False)
        expected[name] = start[name] + (u[:, :3] * s[:3]) @ v[:3]
        lost, whole = lost + float(s[3:].square().sum()), whole + float(s.square().sum())
    assert set(report.ranks.values()) == {3}
    assert report.error == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    assert report.worst is not None
    assert report.worst[1] >= report.error
    assert_merges_to(base, tmp_path / "soup", expected, 1e-5)


def test_average_of_one_adapter_with_itself_is_that_adapter(
    base: Path, adapter: Callable[..., Path], tmp_path: Path
) -> None:
    one = adapter(1)
    report = average_adapters([one, one], tmp_path / "soup", rank=4)
    assert report.error is not None
    assert report.error < 1e-7
    assert_merges_to(base, tmp_path / "soup", merged(base, one))


def test_naive_average_is_that_of_the_factors(adapter: Callable[..., Path], tmp_path: Path) -> None:
    adapters = [adapter(1), adapter(2)]
    report = average_adapters(adapters, tmp_path / "soup", method="naive")
    one, two, found = (pysoup.open_checkpoint(p).state_dict() for p in (*adapters, tmp_path / "soup"))
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2)
    assert report.error is None
    settings = json.loads((tmp_path / "soup" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (4, 8)


def test_types_and_settings_of_the_result(adapter: Callable[..., Path], tmp_path: Path) -> None:
    adapters = [adapter(seed, torch.bfloat16) for seed in (1, 2)]
    average_adapters(adapters, tmp_path / "soup")
    assert sorted(p.name for p in (tmp_path / "soup").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    found = pysoup.open_checkpoint(tmp_path / "soup").state_dict()
    assert {t.dtype for t in found.values()} == {torch.bfloat16}
    settings = json.loads((tmp_path / "soup" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["rank_pattern"]) == (8, 8, {})
    assert sorted(settings["target_modules"]) == QV


def test_sum_of_products_is_exact_without_the_product() -> None:
    made = torch.Generator().manual_seed(1)
    pairs = [(torch.randn(r, 9, generator=made), torch.randn(7, r, generator=made)) for r in (1, 2, 3)]
    a, b, left_out, whole = low_rank_sum(pairs, 6)
    expected = sum(y.double() @ x.double() for x, y in pairs)
    torch.testing.assert_close(b @ a, expected, rtol=0, atol=1e-12)
    assert left_out == 0
    assert whole == pytest.approx(float(expected.square().sum()))


def change(path: Path, **settings: object) -> None:
    file = path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


BAD: list[tuple[dict[str, object], str]] = [
    ({"use_dora": True}, "use_dora: DoRA"),
    ({"peft_type": "IA3"}, "not a LoRA adapter: found 'IA3'"),
    ({"layer_replication": [[0, 1]]}, "replicated layers"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights changed the base model"),
    ({"r": 5}, "has another rank than its tensors: found 5, expected 4"),
    ({"rank_pattern": {"q_proj": 2}}, "has another rank than its tensors: found 2, expected 4"),
    ({"rank_pattern": {"(a+)+": 2}}, "a pattern with groups or many repeats"),
    ({"rank_pattern": {"[": 2}}, "a pattern that is none"),
    ({"rank_pattern": [1]}, "rank_pattern is none"),
    ({"lora_alpha": "8"}, "a lora_alpha that is no number"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out differs"),
]


@pytest.mark.parametrize(("settings", "says"), BAD, ids=[says for _, says in BAD])
def test_what_is_no_plain_lora_is_one_line(
    adapter: Callable[..., Path], tmp_path: Path, settings: dict[str, object], says: str
) -> None:
    adapters = [adapter(1), adapter(2)]
    change(adapters[1], **settings)
    with pytest.raises(pysoup.SoupError, match=re.escape(says)) as caught:
        average_adapters(adapters, tmp_path / "soup")
    assert str(caught.value).isprintable()
    assert str(adapters[1]) in str(caught.value)
    assert not (tmp_path / "soup").exists()


def test_naive_average_of_other_scales_is_refused(adapter: Callable[..., Path], tmp_path: Path) -> None:
    adapters = [adapter(1), adapter(2, lora_alpha=16)]
    with pytest.raises(pysoup.IncompatibleError, match="only the exact mean can be taken: found rank 4, scale 4"):
        average_adapters(adapters, tmp_path / "soup", method="naive")


def test_files_that_are_no_adapters_are_refused(base: Path, adapter: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(pysoup.CheckpointError, match="no such file"):
        average_adapters([base, base], tmp_path / "soup")
    one = adapter(1)
    with pytest.raises(pysoup.CheckpointError, match="not an adapter"):
        average_adapters([one / "adapter_model.safetensors"], tmp_path / "soup")
    with pytest.raises(pysoup.OutputError):
        average_adapters([one], one)


def test_command_averages_adapters(
    base: Path, adapter: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapters, soup = [adapter(1), adapter(2)], str(tmp_path / "soup")
    assert main(["adapters", *map(str, adapters), "-o", soup, "--weights", "1,3"]) == 0
    assert "rank 8" in capsys.readouterr().out
    assert_merges_to(base, tmp_path / "soup", mean_of_merged(base, adapters, [1, 3]))
    assert main(["adapters", *map(str, adapters), "-o", soup, "--rank", "2", "--force", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["ranks"].values()) == {2}
    assert 0 < report["error"] < 1
