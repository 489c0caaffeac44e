"""The commands, in the order in which they are listed.

Each only turns its arguments into one call; libraries load when it runs.
"""

from __future__ import annotations

from . import commands_files as commands_files
from . import commands_recipes as commands_recipes

# isort: split
from . import commands_paths as commands_paths

# isort: split
from . import commands_runs as commands_runs
from .root import app

# isort: split
from . import commands_analyze as commands_analyze

__all__ = ["app"]
