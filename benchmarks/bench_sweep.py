"""From two to 64 small models (ViT-S/16), file to file, warm: how time and memory grow with the number of ingredients.

    python benchmarks/bench_sweep.py [--ingredients 2 4 8 16 32 64] [--dtypes F32 BF16 F16] [--full]

Whole processes, as in bench_peers.py. --full runs all peers everywhere, f16 too; without it, those of EVERYWHERE, all
of them with eight f32 models, and eight f16 models. Eight checkpoints are averaged as .pt files too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import page_cache
from checkpoints import NAMES, Family, checkpoints
from file_contest import CAT_2, Contest, Outputs, ceilings
from measure import machine, save
from peer_tools import available, peers_python
from shapes import vit_s16

EVERYWHERE = "official_loop,careful_loop,mergekit_cli"
TORCH_FILES = "careful_loop,mergekit_cli"
# f16 costs what bf16 costs: one point of it, unless all is asked for.
F16_COUNTS = (8,)


def contest(
    folder: Path, family: Family, code: str, count: int, suffix: str, only: str, args: argparse.Namespace
) -> dict[str, Any]:
    """One number of ingredients of one dtype, all contenders; the inputs stay for the next number."""
    inputs = checkpoints(family, folder, count, NAMES[code], suffix)
    page_cache.ensure_warm(inputs)
    outputs = Outputs(folder, inputs)
    contenders = {CAT_2: ceilings(inputs, cold=False)[CAT_2], "pysoup": outputs.pysoup()}
    for peer in available(args.python, suffix, only):
        if peer.script != "careful_loop_f64" or not only:
            contenders[peer.label] = outputs.peer(peer, args.python or sys.executable)
    played = Contest(inputs, cold=False)
    print(f"{code} x {count}, {suffix}", flush=True)
    played.play(contenders, args.rounds, args.patience)
    outputs.remove(outputs.expected)
    return played.to_json()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ingredients", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64])
    parser.add_argument("--dtypes", nargs="+", default=["F32", "BF16", "F16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patience", type=float, default=1.0, help="seconds before a contender sits out")
    parser.add_argument("--full", action="store_true", help="all peers everywhere")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    args = parser.parse_args()
    args.python, info = peers_python(), machine()
    family = Family(vit_s16())
    args.data.mkdir(parents=True, exist_ok=True)
    runs: dict[str, Any] = {}
    torch_files: dict[str, Any] = {}
    for code in args.dtypes:
        with tempfile.TemporaryDirectory(dir=args.data) as scratch:
            folder = Path(scratch)
            runs[code] = {}
            for count in args.ingredients if args.full or code != "F16" else F16_COUNTS:
                only = "" if args.full or (code == "F32" and count == 8) else EVERYWHERE
                runs[code][count] = contest(folder, family, code, count, ".safetensors", only, args)
            if code != "F16":
                torch_files[code] = {8: contest(folder, family, code, 8, ".pt", TORCH_FILES, args)}
    payload = {
        "machine": info,
        "parameters": family.elements,
        "runs": runs,
        "torch_files": torch_files,
    }
    save("sweep", payload)


if __name__ == "__main__":
    main()
