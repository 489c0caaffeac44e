"""Into a directory output go the files that make it a model; no weights, no records of one training, no strangers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from checkpoint_files import sharded

from pysoup import dtypes
from pysoup.checkpoint import CheckpointWriter
from pysoup.checkpoint.output.carry import config_for_dtype, files_for_dtype, find_carried
from pysoup.errors import CheckpointError, OutputError

LAYOUT = [("model.safetensors", [("w", dtypes.BOOL, (1,))])]
# As transformers, timm, open_clip, sentence-transformers and PEFT have them.
MODEL_FILES = """
    config.json generation_config.json preprocessor_config.json processor_config.json image_processor.json
    tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json chat_template.jinja
    chat_template.json merges.txt vocab.txt vocab.json vocab.bpe dict.txt bpe.codes spiece.model tokenizer.model
    tokenizer.model.v3 tekken.json source.spm qwen.tiktoken open_clip_config.json adapter_config.json
    sentence_bert_config.json config_sentence_transformers.json normalizer.json quantize_config.json
    modeling_custom.py configuration_custom.py __init__.py config.yaml LICENSE LICENSE.txt NOTICE COPYING USE_POLICY.md
"""
OTHER_FILES = """
    model.safetensors pytorch_model.bin pytorch_model-00001-of-00002.bin pytorch_model.bin.index.json
    model.safetensors.index.json open_clip_pytorch_model.bin tf_model.h5 flax_model.msgpack model.onnx tokenizer.pkl
    optimizer.pt scheduler.pt rng_state.pth rng_state_0.pth training_args.bin scaler.pt weights.npz last.ckpt
    trainer_state.json training_args.json all_results.json eval_results.json eval_results_qnli.json train_results.json
    log.txt train_log.txt metrics.json zero_to_fp32.py mergekit_config.yml README.md readme.txt
    events.out.tfevents.1700000000.host.1.0 .gitattributes .config.json
"""


def _tree(directory: Path, *names: str) -> Path:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    return directory


def _written(directory: Path) -> dict[str, str]:
    return {str(f.relative_to(directory)): f.read_text() for f in directory.rglob("*") if f.is_file()}


def test_model_files_are_carried_and_weights_and_records_are_not(tmp_path: Path) -> None:
    expected = MODEL_FILES.split()
    source = _tree(tmp_path / "in", *expected, *OTHER_FILES.split())
    found = find_carried(source)
    assert sorted(found.names) == sorted(expected)
    assert found.nbytes == sum(map(len, expected))
    assert found.left == ()


def test_carried_files_are_copied_whole(tmp_path: Path) -> None:
    source = _tree(tmp_path / "in", "config.json", "tokenizer.json")
    (source / "config.json").unlink()
    (source / "config.json").symlink_to(_tree(tmp_path / "blobs", "abc") / "abc")
    with CheckpointWriter(tmp_path / "out", LAYOUT, is_directory=True, carry=source) as writer:
        writer.commit()
    assert writer.carried == ("config.json", "tokenizer.json")
    written = _written(tmp_path / "out")
    assert len(written.pop("model.safetensors")) > 0
    assert written == {"config.json": "abc", "tokenizer.json": "tokenizer.json"}
    assert not (tmp_path / "out" / "config.json").is_symlink()


def test_folders_of_sentence_transformers_are_carried_without_their_weights(tmp_path: Path) -> None:
    source = _tree(
        tmp_path / "in",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "2_Dense/deep/vocab.txt",
        "additional_chat_templates/tool.jinja",
        "onnx/config.json",
        "checkpoint-500/config.json",
        ".git/config",
        "__pycache__/config.txt",
    )
    modules = [{"idx": i, "name": str(i), "path": path} for i, path in enumerate(["", "1_Pooling", "2_Dense", "../up"])]
    (source / "modules.json").write_text(json.dumps([*modules, 7, {"path": 7}, {"path": ".git"}]))
    _tree(tmp_path / "up", "config.json")
    found = find_carried(source)
    folders = ("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/deep/vocab.txt")
    assert found.names == (*folders, "additional_chat_templates/tool.jinja", "modules.json")
    assert found.left == ("2_Dense/model.safetensors", "checkpoint-500/", "onnx/")
    with CheckpointWriter(tmp_path / "out", LAYOUT, is_directory=True, carry=source) as writer:
        writer.commit()
    assert set(_written(tmp_path / "out")) == {*found.names, "model.safetensors"}
    assert writer.left == found.left


def test_links_in_folders_lead_nowhere_else(tmp_path: Path) -> None:
    _tree(tmp_path, "secret/config.json", "hub/blobs/abc", "hub/snapshots/1/1_Pooling/config.json")
    source = tmp_path / "hub" / "snapshots" / "1"
    (source / "modules.json").write_text('[{"path": "1_Pooling"}, {"path": "2_Linked"}]')
    (source / "1_Pooling" / "tokenizer.json").symlink_to("../../../blobs/abc")
    (source / "1_Pooling" / "vocab.txt").symlink_to(tmp_path / "secret" / "config.json")
    (source / "1_Pooling" / "deeper").symlink_to(tmp_path / "secret")
    (source / "2_Linked").symlink_to(tmp_path / "secret")
    os.mkfifo(source / "1_Pooling" / "fifo.json")
    assert find_carried(source).names == ("1_Pooling/config.json", "1_Pooling/tokenizer.json", "modules.json")


@pytest.mark.parametrize("modules", ["", "{", "[" * 100_000, "{}", '"1_Pooling"', "null", "[1, null, []]"])
def test_modules_file_that_lists_none_is_just_a_file(tmp_path: Path, modules: str) -> None:
    source = _tree(tmp_path / "in", "1_Pooling/config.json")
    (source / "modules.json").write_text(modules)
    found = find_carried(source)
    assert (found.names, found.left) == (("modules.json",), ("1_Pooling/",))


def test_output_with_folders_is_replaced_by_its_like_only(tmp_path: Path) -> None:
    source = _tree(tmp_path / "in", "1_Pooling/config.json")
    (source / "modules.json").write_text('[{"path": "1_Pooling"}]')

    def write() -> None:
        out = tmp_path / "out"
        with CheckpointWriter(out, LAYOUT, is_directory=True, carry=source, overwrite=True) as writer:
            writer.commit()

    write()
    write()
    _tree(tmp_path / "out", "1_Pooling/thesis.tex")
    with pytest.raises(OutputError, match="holds directories: found 1_Pooling"):
        write()
    (tmp_path / "out" / "1_Pooling" / "thesis.tex").unlink()
    (source / "modules.json").unlink()
    with pytest.raises(OutputError, match="holds directories: found 1_Pooling"):
        write()
    assert (tmp_path / "out" / "1_Pooling" / "config.json").exists()


def test_given_files_go_before_carried_ones(tmp_path: Path) -> None:
    source = _tree(tmp_path / "in", "config.json", "vocab.txt")
    files = {"README.md": b"card", "config.json": b"new"}
    with CheckpointWriter(tmp_path / "out", LAYOUT, is_directory=True, carry=source, files=files) as writer:
        assert not (tmp_path / "out").exists()
        writer.commit()
    assert writer.carried == ("vocab.txt",)
    written = _written(tmp_path / "out")
    assert (written["README.md"], written["config.json"], written["vocab.txt"]) == ("card", "new", "vocab.txt")


def test_unreadable_file_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    source = _tree(tmp_path / "in", "config.json", "vocab.txt")
    writer = CheckpointWriter(tmp_path / "out", LAYOUT, is_directory=True, carry=source)
    (source / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match=r"vocab\.txt: no such file"), writer:
        pass
    assert os.listdir(tmp_path) == ["in"]


class TestConfigDtype:
    CONFIG = """{
  "architectures": [
    "TinyModel"
  ],
  "layer_norm_eps": 1e-12,
  "zeta": {
    "dtype": "float32"
  },
  "torch_dtype": "float32",
  "text_config": {
    "dtype": "torch.float16",
    "alpha": "\\u00e9"
  },
  "quantization_config": {
    "dtype": "float32"
  },
  "transformers_version": "4.50.0"
}
"""

    def test_new_type_is_all_that_changes(self) -> None:
        changed = config_for_dtype(self.CONFIG.encode(), dtypes.BF16)
        assert changed is not None
        expected = self.CONFIG.replace('"torch_dtype": "float32"', '"torch_dtype": "bfloat16"')
        assert changed.decode() == expected.replace('"torch.float16"', '"bfloat16"')

    @pytest.mark.parametrize(
        "raw",
        [
            "{}",
            '{"torch_dtype": "bfloat16"}',
            '{"dtype": "auto"}',
            '{"dtype": null}',
            "[1]",
            "{",
            "\udcff",
            "[" * 100_000,
        ],
    )
    def test_config_without_another_type_is_copied_as_it_is(self, raw: str) -> None:
        assert config_for_dtype(raw.encode("utf-8", "surrogateescape"), dtypes.BF16) is None

    def test_directory_gives_the_file_to_write(self, tmp_path: Path) -> None:
        assert files_for_dtype(tmp_path, dtypes.F16) == {}
        (tmp_path / "config.json").write_text('{"dtype": "float32"}')
        assert files_for_dtype(tmp_path, dtypes.F32) == {}
        (files,) = files_for_dtype(tmp_path, dtypes.F16).items()
        assert (files[0], json.loads(files[1])) == ("config.json", {"dtype": "float16"})


def test_index_of_a_sharded_directory_is_written_not_carried(tmp_path: Path) -> None:
    source = sharded(tmp_path / "in", {"m.safetensors": {"w": [1.0]}}).parent
    assert find_carried(source).names == ()
