"""The ``adapter_config.json`` of a LoRA adapter as PEFT writes it: what scales its products, what is another kind.

PEFT computes ``W + scale B A`` with ``scale = alpha / r``, or ``alpha / sqrt(r)`` with ``use_rslora`` (Hu et al. 2021,
arXiv 2106.09685, section 4.1; Kalajdzievski 2023, arXiv 2312.03732). Neither torch nor peft is imported.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint.reading import open_file, read_exactly
from .checkpoint.strict_json import clip, describe
from .errors import CheckpointError

CONFIG = "adapter_config.json"
_LARGEST = 1 << 22
_FOREIGN = {
    "use_dora": "DoRA, whose magnitudes are not linear",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "a router of adapters",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
    "layer_replication": "replicated layers",
    "lora_bias": "biases of B",
    "target_parameters": "LoRA of bare parameters",
    "trainable_token_indices": "trained tokens",
    "megatron_config": "Megatron's parallel layers",
}
"""Settings under which an adapter is more than ``scale B A`` beside plain tensors."""
_PLAIN_STARTS = (True, False, "true", "gaussian", "orthogonal", "eva", None)
"""Values of ``init_lora_weights`` that leave the base model as it is."""
_SAME = ("fan_in_fan_out", "bias", "modules_to_save")
_TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_QUANTIFIERS = re.compile(r"[*+?{]")
_MOST_QUANTIFIERS = 3


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of the adapter in ``directory``, checked; ``settings`` is all of the file."""

    directory: Path
    settings: Mapping[str, Any]

    def scale(self, module: str, rank: int) -> float:
        """What the product of ``module`` (its name in the base model) is multiplied by.

        Raises CheckpointError where ``rank``, that of the stored A, is not the one that the settings say.
        """
        r = self._of(module, "rank_pattern", self.settings.get("r", 8))
        alpha = self._of(module, "alpha_pattern", self.settings.get("lora_alpha", 8))
        if r != rank:
            self._fail(f"module {clip(module)!r} has another rank than its tensors", r, rank)
        if type(alpha) not in (int, float) or not math.isfinite(alpha):
            self._fail(f"module {clip(module)!r} has a lora_alpha that is no number", describe(alpha))
        return float(alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank))

    def _of(self, module: str, patterns: str, default: Any) -> Any:
        """The first pattern that matches the end of the name decides, as in PEFT's ``get_pattern_key``."""
        given = self.settings.get(patterns) or {}
        if type(given) is not dict:
            self._fail(f"{patterns} is none", describe(given), "names -> numbers")
        for pattern, value in given.items():
            # Time that grows with a power of the name's length at most.
            if "(" in pattern or len(_QUANTIFIERS.findall(pattern)) > _MOST_QUANTIFIERS:
                self._fail(f"{patterns} has a pattern with groups or many repeats", describe(pattern))
            try:
                if re.match(rf"(.*\.)?({pattern})$", module):
                    return value
            except re.error:
                self._fail(f"{patterns} has a pattern that is none", describe(pattern))
        return default

    def _fail(self, what: str, found: object = None, expected: object = None) -> None:
        raise CheckpointError(what, file=self.directory / CONFIG, found=found, expected=expected)


def read_config(directory: Path) -> AdapterConfig:
    """The settings of the adapter in ``directory``. Raises CheckpointError for what is no plain LoRA."""
    path = directory / CONFIG
    fd = open_file(path)
    try:
        size = os.fstat(fd).st_size
        if size > _LARGEST:
            raise CheckpointError("too large", file=path, found=f"{size} bytes", expected=f"at most {_LARGEST}")
        raw = bytearray(size)
        read_exactly(fd, memoryview(raw), 0, path)
    finally:
        os.close(fd)
    try:
        settings = json.loads(raw)
    except (ValueError, RecursionError):
        raise CheckpointError("not valid JSON", file=path) from None
    if type(settings) is not dict or settings.get("peft_type") != "LORA":
        found = describe(settings.get("peft_type") if type(settings) is dict else settings)
        raise CheckpointError("not a LoRA adapter", file=path, found=found, expected="peft_type LORA")
    for key, kind in _FOREIGN.items():
        if settings.get(key):
            raise CheckpointError(f"{key}: {kind}: its average is not that of products B A", file=path)
    start = settings.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        what = "init_lora_weights changed the base model: convert the adapter to plain LoRA with peft first"
        raise CheckpointError(what, file=path, found=describe(start))
    return AdapterConfig(directory, settings)


def check_alike(configs: Sequence[AdapterConfig]) -> list[str]:
    """Raise CheckpointError where adapters mean different things by their tensors; returns what may be odd."""
    first, notes = configs[0], []
    for other in configs[1:]:
        for key in _SAME:
            one, two = _plain(first.settings.get(key)), _plain(other.settings.get(key))
            if one != two:
                path = other.directory / CONFIG
                raise CheckpointError(f"{key} differs", file=path, found=describe(two), expected=describe(one))
        bases = [config.settings.get("base_model_name_or_path") for config in (first, other)]
        if bases[0] != bases[1]:
            notes.append(f"{other.directory} names another base model, {describe(bases[1])}, not {describe(bases[0])}")
    return notes


def merged_settings(configs: Sequence[AdapterConfig], ranks: Mapping[str, int]) -> dict[str, Any]:
    """The first's settings for an adapter of these ranks by module, each with the scale 1."""
    settings = dict(configs[0].settings)
    if any(_plain(c.settings.get(key)) != _plain(settings.get(key)) for c in configs for key in _TARGETS):
        settings |= dict.fromkeys(_TARGETS[1:]) | {"target_modules": sorted(ranks)}
    counts = list(ranks.values())
    r = max(sorted(set(counts)), key=counts.count)
    odd = {module: rank for module, rank in ranks.items() if rank != r}
    # A name matches as the end of longer ones too, and the first match decides: those have to come before it.
    odd |= {m: rank for m, rank in ranks.items() if rank == r and any(m.endswith(f".{name}") for name in odd)}
    pattern = dict(sorted(odd.items(), key=lambda item: (-len(item[0]), item[0])))
    return settings | {
        "r": r,
        "lora_alpha": r,
        "use_rslora": False,
        "inference_mode": True,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
    }


def _plain(value: object) -> object:
    """Lists without their order: PEFT keeps them as sets."""
    return sorted(map(str, value)) if isinstance(value, list) else value
