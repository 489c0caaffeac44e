"""Where in the user's own code an error came from."""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path

# Where code lies that is not the user's.
_OTHERS = tuple(
    {sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    | {str(Path(__file__).parent) + os.sep, "<"}
)


def described(error: BaseException) -> str:
    """Kind and text of an error, and the last line of the user's own code that ran:
    ``ValueError: no such picture (tasks.py:29)``."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(_OTHERS)]
    place = f" ({os.path.basename(theirs[-1].filename)}:{theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {error}".rstrip(": ") + place
