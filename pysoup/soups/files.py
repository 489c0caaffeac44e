"""Small result files: whole or absent."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.output.publish import publish_file, remove, remove_stale, temporary_path
from ..errors import OutputError

if TYPE_CHECKING:
    from torch import Tensor


def write_array(path: str | os.PathLike[str], tensor: Tensor) -> None:
    """Write a tensor as a ``.npy`` file, in place of an older one, whole or not at all. Needs numpy."""
    import numpy as np

    target = Path(path)
    temporary = temporary_path(target)
    try:
        target.parent.mkdir(exist_ok=True)
        remove_stale(target)
        with open(temporary, "wb") as file:
            np.save(file, tensor.detach().cpu().numpy(), allow_pickle=False)
        publish_file(temporary, target, overwrite=True)
    except OSError as error:
        raise OutputError(f"cannot write: {error.strerror}", file=target) from error
    finally:
        remove(temporary)


def write_json(path: str | os.PathLike[str], content: Any, *, overwrite: bool = False) -> None:
    """Write JSON beside ``path``, flush it and rename; an existing file is an :class:`OutputError` without
    ``overwrite``."""
    target = Path(path)
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    if target.exists() and not overwrite:
        raise OutputError("the output exists; overwrite=True replaces it", file=target)
    temporary = temporary_path(target)
    try:
        remove_stale(target)
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        publish_file(temporary, target, overwrite)
    except OSError as error:
        raise OutputError(f"cannot write: {error.strerror}", file=target) from error
    finally:
        remove(temporary)
