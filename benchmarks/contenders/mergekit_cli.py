"""mergekit's own command, `mergekit-pytorch`, method `linear`. This process becomes that command.

The output is a folder; its one shard is ``OUTPUT/model.safetensors``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=lambda text: [float(x) for x in text.split(",")])
    parser.add_argument("--dtype", help="what to sum in; mergekit chooses otherwise")
    parser.add_argument("--out-dtype")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("inputs", nargs="+")
    options = parser.parse_args()
    weights = options.weights or [1.0] * len(options.inputs)
    models = [
        {"model": str(Path(path).resolve()), "parameters": {"weight": weight}}
        for path, weight in zip(options.inputs, weights, strict=True)
    ]
    plan = {"merge_method": "linear", "models": models}
    if options.dtype:
        plan |= {"dtype": options.dtype, "out_dtype": options.out_dtype}
    config = Path(f"{options.output}.yaml")
    config.write_text(json.dumps(plan))  # JSON is YAML
    command = str(Path(sys.executable).parent / "mergekit-pytorch")
    os.execv(command, [command, str(config), options.output, "--quiet"])


if __name__ == "__main__":
    main()
