"""The version, in the one place where it is written: pyproject.toml and the command read it from here."""

__version__ = "0.1.0"
