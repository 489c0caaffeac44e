"""A task: the model and the data that a command works on, named ``FILE.py:NAME`` or ``package.module:NAME``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import random
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

from .errors import SoupError
from .origin import described

if TYPE_CHECKING:
    from torch import nn


HELDOUT_SEED = 0
"""Set before held-out data is made and read, so that a shuffling loader has one order in sweeps and recipes."""


class Task(Protocol):
    """What a task must have. It may also have

    - ``tests()``: dictionary of name -> test data, scored and reported, never selected on;
    - ``train()``: training data, and for it ``head``, the name of the submodule that a linear probe trains, ``augment``
      and ``zero_shot`` (docs/finetuning.md);
    - ``forward(model, batch) -> (logits, labels)``: where the default rules of :class:`pysoup.HeldOut` do not fit;
    - ``metric``: what ``--metric`` is by default.
    """

    def model(self) -> nn.Module:
        """A model; its weights are overwritten."""

    def heldout(self) -> Any:
        """The held-out data that selects: anything :class:`pysoup.HeldOut` takes."""


def load_task(name: str) -> Task:
    """Import the task ``FILE.py:NAME`` or ``package.module:NAME``; a class is instantiated.

    As with ``python FILE.py``, the directory of the file can be imported from; for a module, the working directory.
    Raises :class:`SoupError` if the file, the module or the name is missing, if importing it fails (the original error
    is the cause), or if it lacks ``model()`` or ``heldout()``.
    """
    where, colon, attribute = name.rpartition(":")
    if not colon or not where or not attribute:
        raise SoupError("not a task", found=repr(name), expected="FILE.py:NAME or package.module:NAME")
    module = _import_file(where) if where.endswith(".py") or os.sep in where else _import_module(where)
    if not hasattr(module, attribute):
        known = ", ".join(sorted(key for key, value in vars(module).items() if _has_shape(value))) or "none"
        raise SoupError(f"no task {attribute!r} in it", file=where, expected=f"one of its tasks: {known}")
    task = getattr(module, attribute)
    if isinstance(task, type):
        try:
            task = task()
        except Exception as error:
            raise SoupError(f"making task {attribute!r} failed: {described(error)}", file=where) from error
    missing = [f"{part}()" for part in ("model", "heldout") if not callable(getattr(task, part, None))]
    if missing:
        raise SoupError(f"task {attribute!r} lacks {' and '.join(missing)}", file=where)
    return cast(Task, task)


def seed_draws(seed: int) -> None:
    """What a task draws from the global generators next (a new head, a shuffled list) is the same in every process."""
    import torch

    random.seed(seed)
    torch.manual_seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


def _import_file(where: str) -> ModuleType:
    path = Path(os.path.abspath(where))
    if not path.is_file():
        raise SoupError("no such task file", file=where)
    _importable(path.parent)
    # Under its own name, as `import` would have it: worker processes of a data loader look for the classes there.
    name = path.stem
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    if loaded is not None:
        name = f"pysoup_task_{zlib.crc32(os.fsencode(path)):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SoupError("not a Python file", file=where)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise SoupError(f"importing it failed: {described(error)}", file=where) from error
    return module


def _import_module(name: str) -> ModuleType:
    _importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise SoupError("no such module; a file is given as FILE.py:NAME", file=name) from error
        raise SoupError(f"importing it failed: {described(error)}", file=name) from error
    except Exception as error:
        raise SoupError(f"importing it failed: {described(error)}", file=name) from error


def _importable(directory: Path) -> None:
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))


def _has_shape(value: object) -> bool:
    return callable(getattr(value, "model", None)) and callable(getattr(value, "heldout", None))
