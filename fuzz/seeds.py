"""Writes the seeds of all targets, and what is kept in fuzz/regressions: `python -m fuzz.seeds DIRECTORY`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from .targets import TARGETS

REGRESSIONS = Path(__file__).parent / "regressions"


def write_seeds(directory: Path) -> None:
    """A directory for each target, with a file for each input."""
    for name, target in TARGETS.items():
        folder = directory / name
        folder.mkdir(parents=True)
        for i, data in enumerate(target.seeds()):
            (folder / f"{i:03}").write_bytes(data)
        for file in sorted((REGRESSIONS / name).glob("*")):
            shutil.copyfile(file, folder / file.name)


if __name__ == "__main__":
    write_seeds(Path(sys.argv[1]))
