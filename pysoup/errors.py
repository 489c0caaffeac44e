"""Every error pysoup raises on purpose: one line that names the file, the tensor, what was found, what was expected.

All derive from :class:`SoupError`, so ``except pysoup.SoupError`` catches whatever is wrong with the user's input and
nothing else. The command prints the line and exits 1.
"""

from __future__ import annotations

import os


class SoupError(Exception):
    """Base of all pysoup errors.

    The text is one line: ``FILE: tensor 'NAME': WHAT: found X, expected Y``; parts that do not apply are left out.
    The parts stay available as attributes, so callers can branch without parsing text.
    """

    def __init__(
        self,
        what: str,
        *,
        file: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
        found: object = None,
        expected: object = None,
    ) -> None:
        self.what = what
        self.file = None if file is None else os.fspath(file)
        self.tensor = tensor
        self.found = found
        self.expected = expected
        super().__init__(self._line())

    def _line(self) -> str:
        parts = []
        if self.file is not None:
            parts.append(_one_line(self.file))
        if self.tensor is not None:
            parts.append(f"tensor {self.tensor!r}")
        parts.append(_one_line(self.what))
        line = ": ".join(parts)
        details = []
        if self.found is not None:
            details.append(f"found {_one_line(str(self.found))}")
        if self.expected is not None:
            details.append(f"expected {_one_line(str(self.expected))}")
        return f"{line}: {', '.join(details)}" if details else line


class CheckpointError(SoupError):
    """A checkpoint cannot be read: missing, truncated, malformed or of a refused kind."""


class IncompatibleError(SoupError):
    """Inputs that are each valid do not fit together: names, shapes, dtypes, integer values, overlapping memory."""


class WeightsError(SoupError, ValueError):
    """Mixing weights of the wrong count, not finite, or summing to zero."""


class OutputError(SoupError):
    """The output cannot be written: it exists, equals an input, the path is unwritable, the disk is full."""


class BackendError(SoupError, RuntimeError):
    """The native code, an ISA or a device that was asked for by name is absent, or failed."""


def _one_line(text: str) -> str:
    """Control characters escaped: a hostile file name must not break the one-line promise."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
