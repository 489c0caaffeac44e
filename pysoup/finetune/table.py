"""A table of a TOML file whose keys are taken one by one, with an error for each that is unknown or of a wrong type."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

from ..errors import SoupError

T = TypeVar("T")
_WORDS = {str: "text in quotes", int: "a whole number", float: "a number", dict: "a table", list: "a list"}


class Table:
    """``content`` of the table called ``where`` ("" at the top) in ``file``. All errors are SoupErrors."""

    def __init__(self, content: Mapping[str, Any], file: Path, where: str = "") -> None:
        self.file = file
        self.where = where or "the file"
        self._content = content
        self._prefix = where
        self._asked: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._content

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __bool__(self) -> bool:
        return bool(self._content)

    def had(self, key: str) -> bool:
        """Whether the file gives the key."""
        return key in self._content

    def raw(self, key: str) -> Any:
        """The value as it stands; None if there is none."""
        self._asked.append(key)
        return self._content.get(key)

    @overload
    def take(self, key: str, kind: type[T]) -> T | None: ...

    @overload
    def take(self, key: str, kind: type[T], default: T) -> T: ...

    def take(self, key: str, kind: type[T], default: T | None = None) -> T | None:
        """The value of a key, of that type (a whole number will do for a float)."""
        value = self.raw(key)
        return default if value is None else self._typed(key, value, kind)

    def listed(self, key: str, kind: type[T]) -> list[T]:
        """The values of a list; an empty list if the key is absent."""
        values: list[Any] = self.take(key, list, [])
        return [self._typed(key, value, kind) for value in values]

    def table(self, key: str) -> Table:
        """A table below this one, empty if absent."""
        return Table(self.take(key, dict, {}), self.file, f"[{key}]")

    def tables(self, key: str) -> list[Table]:
        """An array of tables below this one."""
        if isinstance(self._content.get(key), dict):
            raise self.error(key, f"[{key}]", f"[[{key}]], one for each")
        found: list[Any] = self.listed(key, dict)
        return [Table(content, self.file, f"[[{key}]] {number}") for number, content in enumerate(found, 1)]

    def finish(self, known: Iterable[str] = ()) -> None:
        """Raise for a key that nobody asked for; ``known`` are further names that it may be meant to be."""
        names = list(dict.fromkeys([*self._asked, *known]))
        for key in self._content:
            if key not in self._asked:
                near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
                expected = f"{near[0]!r}, perhaps" if near else f"one of {', '.join(names)}"
                raise SoupError(f"unknown key {key!r} in {self.where}", file=self.file, expected=expected)

    def error(self, key: str, found: object, expected: str) -> SoupError:
        """For a value that will not do."""
        return SoupError(f"{key!r} in {self.where}", file=self.file, found=repr(found), expected=expected)

    def checked(self, make: Callable[[], T]) -> T:
        """What ``make`` makes; its error gets the file and the table."""
        try:
            return make()
        except SoupError as error:
            raise SoupError(f"{self.where}: {error}", file=self.file) from error

    def _typed(self, key: str, value: Any, kind: type[T]) -> T:
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self.error(key, value, _WORDS[kind])
        return value
