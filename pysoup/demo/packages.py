"""What the demo needs and the core does not."""

from __future__ import annotations

from importlib.util import find_spec

from ..errors import BackendError


def require(*modules: str) -> None:
    """A :class:`BackendError` that says what to install, if one of ``modules`` is absent."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        install = "pip install 'model-soups[demo]' (in a checkout: '.[demo]')"
        raise BackendError(f"the demo needs {', '.join(missing)}: {install}")
