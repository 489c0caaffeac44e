"""The other tools: where their environment is, what each contender is called, how it runs."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PYTHON = HERE.parent / ".venv-peers" / "bin" / "python"
CONTENDERS = HERE / "contenders"
PYSOUP_COMMAND = [str(Path(sys.executable).parent / "pysoup"), "average"]


@dataclass(frozen=True)
class Peer:
    """``script`` in contenders/, its name in the tables, and the package it needs beside torch."""

    script: str
    label: str
    needs: str | None = None
    reads_pt: bool = True
    folder: bool = False


PEERS = (
    Peer("official_loop", "official loop"),
    Peer("careful_loop", "careful loop, f32 sum"),
    Peer("careful_loop_f64", "careful loop, f64 sum"),
    Peer("timm_loop", "timm's f64 loop"),
    Peer("swa_averaged_model", "swa_utils.AveragedModel"),
    Peer("mergekit_api", "mergekit, merge_state_dicts", "mergekit"),
    Peer("mergekit_cli", "mergekit-pytorch", "mergekit", folder=True),
    Peer("sd_mecha_n_average", "sd-mecha, n_average", "sd_mecha", reads_pt=False),
)


def peers_python() -> str | None:
    """The interpreter of the peers' environment, or None, with a line that says so."""
    if PYTHON.exists():
        runs = subprocess.run([PYTHON, "-c", "import torch"], check=False, capture_output=True)
        if runs.returncode == 0:
            return str(PYTHON)
    print(f"{PYTHON.parents[1].name} is not there (make peers): mergekit and sd-mecha are left out", file=sys.stderr)
    return None


def in_peers_environment() -> None:
    """Starts this script again in the peers' environment, if there is one, with pysoup from the working tree."""
    if Path(sys.prefix).resolve() == PYTHON.parents[1].resolve():
        return
    python = peers_python()
    if python is not None:
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(HERE.parent)]))
        os.execve(python, [python, *sys.argv], {**os.environ, "PYTHONPATH": path})


def loops() -> dict[str, Callable[..., object]]:
    """The contenders' functions over state dicts in memory, those that import here; mergekit's command has none."""
    sys.path.insert(0, str(CONTENDERS))
    found: dict[str, Callable[..., object]] = {}
    for peer in PEERS:
        if peer.folder:
            continue
        try:
            found[peer.label] = importlib.import_module(peer.script).average
        except ModuleNotFoundError as error:
            if error.name != peer.needs:
                raise
    return found


def available(python: str | None, suffix: str = ".safetensors", only: str = "") -> list[Peer]:
    """The peers that can run; ``only`` has parts of their scripts' names, with commas."""
    found = [p for p in PEERS if python is not None or p.needs is None]
    found = [p for p in found if any(part in p.script for part in only.split(","))]
    return [p for p in found if p.reads_pt or suffix == ".safetensors"]


def command(peer: Peer, python: str, output: Path, inputs: Sequence[Path]) -> list[str]:
    return [python, str(CONTENDERS / f"{peer.script}.py"), "-o", str(output), *map(str, inputs)]
