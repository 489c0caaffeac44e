"""Which tensors take part in an average, by patterns on their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal, TypedDict

from .errors import IncompatibleError, SoupError

Patterns = str | Sequence[str]
"""One regular expression or several; a name matches where one of them is found in it (``re.search``)."""
Rest = Literal["drop", "first"]
"""What becomes, in a new result, of tensors that are left out of the average: nothing, or the first input's."""

_SHOWN = 3


class NameOptions(TypedDict, total=False):
    """The patterns of a filter as options by name."""

    include: list[str]
    exclude: list[str]


@dataclass(frozen=True)
class NameFilter:
    """Takes the names in which an ``include`` pattern is found (all, if there is none) and no ``exclude`` pattern.

    Patterns are Python's regular expressions, found anywhere in a name: ``^head\\.`` is what begins with ``head.``. A
    filter without patterns takes everything, and is false. Raises :class:`SoupError` for what is no pattern.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option in ("include", "exclude"):
            for pattern in getattr(self, option):
                _compiled(option, pattern)

    @classmethod
    def of(cls, include: Patterns = (), exclude: Patterns = ()) -> NameFilter:
        """The filter of what a caller gave: one pattern or a sequence of them, each."""
        return cls(_as_tuple("include", include), _as_tuple("exclude", exclude))

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude)

    def takes(self, name: str) -> bool:
        """Whether the tensor of that name takes part."""
        if self.include and not any(re.search(pattern, name) for pattern in self.include):
            return False
        return not any(re.search(pattern, name) for pattern in self.exclude)

    def only(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        """The part of a state dict that takes part; itself where there is no pattern."""
        return {name: tensor for name, tensor in tensors.items() if self.takes(name)} if self else tensors

    def check(self, names: Iterable[str]) -> None:
        """Raises :class:`SoupError` for a pattern that is found in none of ``names``, with the nearest of them, and
        :class:`IncompatibleError` where no name is left to average."""
        if not self:
            return
        known = list(dict.fromkeys(names))
        for option in ("include", "exclude"):
            for pattern in getattr(self, option):
                if not any(re.search(pattern, name) for name in known):
                    near = ", ".join(repr(name) for name in _nearest(pattern, known)) or "no tensors at all"
                    what = f"{option}: a pattern that no tensor name matches"
                    raise SoupError(what, found=repr(pattern), expected=f"one that matches a name, such as {near}")
        if not any(map(self.takes, known)):
            raise IncompatibleError("include and exclude leave no tensor to average", found=self.text)

    def check_ties(self, groups: Iterable[Sequence[str]]) -> None:
        """Raises :class:`IncompatibleError` where of names that share one tensor some are taken and some are not."""
        for group in groups if self else ():
            taken = [name for name in group if self.takes(name)]
            if taken and len(taken) < len(group):
                left = next(name for name in group if name not in taken)
                what = f"left out of the average, but tied to {taken[0]!r}, which is not: exclude both or neither"
                raise IncompatibleError(what, tensor=left)

    @property
    def text(self) -> str:
        """Both lists, for messages."""
        parts = (f"{option} {', '.join(map(repr, getattr(self, option)))}" for option in ("include", "exclude"))
        return "; ".join(part for part, given in zip(parts, (self.include, self.exclude), strict=True) if given)

    def options(self) -> NameOptions:
        """What was given, as plain JSON and as keyword arguments; empty where nothing was."""
        options: NameOptions = {}
        if self.include:
            options["include"] = list(self.include)
        if self.exclude:
            options["exclude"] = list(self.exclude)
        return options


EVERY_NAME = NameFilter()
"""Leaves nothing out."""


def check_rest(rest: str, names: NameFilter) -> Rest:
    """``rest`` itself; raises :class:`SoupError` where it is unknown, or would do nothing."""
    if rest not in ("drop", "first"):
        raise SoupError("unknown rest", found=repr(rest), expected="'drop' or 'first'")
    if rest == "first" and not names:
        raise SoupError("rest='first' needs include or exclude: nothing is left out of the average")
    return "first" if rest == "first" else "drop"


def _as_tuple(option: str, patterns: object) -> tuple[str, ...]:
    if isinstance(patterns, str):
        return (patterns,)
    if isinstance(patterns, Iterable) and not isinstance(patterns, bytes):
        return tuple(patterns)
    raise SoupError(
        f"{option}: not patterns", found=type(patterns).__name__, expected="a regular expression or several"
    )


def _compiled(option: str, pattern: object) -> re.Pattern[str]:
    if not isinstance(pattern, str) or not pattern:
        raise SoupError(f"{option}: not a pattern", found=repr(pattern), expected="a regular expression")
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise SoupError(f"{option}: not a regular expression: {error}", found=repr(pattern)) from None


def _nearest(pattern: str, names: Sequence[str]) -> list[str]:
    """The names most like a pattern, as a whole or in one of the parts between their dots."""
    wanted = re.sub(r"\\.|[^\w.]", "", pattern).lower()
    like: dict[str, float] = {}
    alike: Callable[[str], float] = lambda text: SequenceMatcher(None, wanted, text.lower()).ratio()  # noqa: E731

    def rank(name: str) -> float:
        best = 0.0
        for part in _parts(name):
            if part not in like:
                like[part] = alike(part)
            best = max(best, like[part])
        return best

    return sorted(names, key=rank, reverse=True)[:_SHOWN]


def _parts(name: str) -> Iterator[str]:
    yield name
    if "." in name:
        yield from name.split(".")
