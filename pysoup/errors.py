"""Every error pysoup raises on purpose: one line that names the file, the tensor, what was found, what was expected.

All derive from :class:`SoupError`, so ``except pysoup.SoupError`` catches whatever is wrong with the user's input and
nothing else. The command prints the line and exits 1.
"""

from __future__ import annotations

import os
from typing import Any

LONGEST_LINE = 1000
"""Characters in the text of an error."""
_LONGEST_PART = 190


class SoupError(Exception):
    """Base of all pysoup errors.

    The text is one line: ``FILE: tensor 'NAME': WHAT (LEFT): found X, expected Y``; parts that do not apply are left
    out. ``left`` is the state that the caller's own objects are left in. The parts stay available as attributes, so
    callers can branch without parsing text.
    """

    def __init__(
        self,
        what: str,
        *,
        file: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
        found: object = None,
        expected: object = None,
        left: str | None = None,
    ) -> None:
        self.what = what
        self.file = None if file is None else os.fspath(file)
        self.tensor = tensor
        self.found = found
        self.expected = expected
        self.left = left
        super().__init__(self._line())

    def but(self, **parts: Any) -> SoupError:
        """A new error of the same kind, with some of the parts replaced."""
        names = ("what", "file", "tensor", "found", "expected", "left")
        known = {name: getattr(self, name) for name in names} | parts
        return type(self)(known.pop("what"), **known)

    def _line(self) -> str:
        line = self._joined()
        # Each part by itself: none that is long may hide the others.
        return line if len(line) <= LONGEST_LINE else self._joined(_LONGEST_PART)

    def _joined(self, longest: int | None = None) -> str:
        parts = []
        if self.file is not None:
            parts.append(_cut(_one_line(self.file), longest))
        if self.tensor is not None:
            parts.append(f"tensor {_cut(repr(self.tensor), longest)}")
        left = "" if self.left is None else f" ({_cut(_one_line(self.left), longest)})"
        parts.append(_cut(_one_line(self.what), longest) + left)
        line = ": ".join(parts)
        details = []
        if self.found is not None:
            details.append(f"found {_cut(_one_line(str(self.found)), longest)}")
        if self.expected is not None:
            details.append(f"expected {_cut(_one_line(str(self.expected)), longest)}")
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


def _cut(text: str, longest: int | None) -> str:
    """The beginning and the end of a text that is too long: of a path, its end says most."""
    if longest is None or len(text) <= longest:
        return text
    return f"{text[: longest // 2 - 2]}...{text[len(text) - longest // 2 + 2 :]}"
