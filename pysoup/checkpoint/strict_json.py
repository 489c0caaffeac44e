"""JSON as the safetensors format means it: UTF-8, no duplicate keys, no NaN, no surprises from hostile text.

:class:`JsonReader` walks an object member by member and holds half a megabyte of text at a time. A hostile text of
100 MB therefore costs no more memory than a small one, where a whole document of ``[],[],...`` would take gigabytes.
"""

from __future__ import annotations

import codecs
import json
import re
import reprlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from ..errors import CheckpointError
from .reading import read_exactly

MAX_JSON_BYTES = 100_000_000
"""The safetensors library's own limit for a header; no index file comes near it either."""
MAX_VALUE = 1 << 19
"""Characters of a name, or of a value that is kept whole. An entry of a header has a hundred."""
MAX_STRINGS = 1 << 23
"""Characters in the names and values of an object of strings, such as ``__metadata__``."""
MAX_STRING_KEYS = 1 << 16
BLOCK = 1 << 19
"""Bytes read at a time."""

_U64_DIGITS = 20
_BLANKS = " \t\n\r"
_SEVERAL_BLANKS = re.compile(r"[ \t\n\r]*")


def file_blocks(fd: int, offset: int, size: int, file: Path) -> Iterator[bytes]:
    """``size`` bytes of an open file from ``offset`` on, for :class:`JsonReader`. Raises CheckpointError."""
    for start in range(0, size, BLOCK):
        block = bytearray(min(BLOCK, size - start))
        read_exactly(fd, memoryview(block), offset + start, file)
        yield bytes(block)


class JsonReader:
    """One JSON text, read in order: each of :meth:`members`, :meth:`value` and :meth:`end` takes the next part.

    ``what`` ("header", "index") is what errors call the text. All of them are CheckpointErrors.
    """

    def __init__(self, blocks: Iterable[bytes], file: Path, what: str) -> None:
        self._blocks = iter(blocks)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._file = file
        self._what = what
        self._text = ""
        self._at = 0
        self._chars_before = 0
        self._bytes_read = 0
        self._member = ""
        self.digest = 0
        """Hash of the text read so far; comparable within one process only."""

    def peek(self) -> str:
        """The next character that is no white space; "" at the end of the text."""
        while True:
            char = self._text[self._at : self._at + 1]
            if char and char not in _BLANKS:
                return char
            self._at = _end_of_blanks(self._text, self._at)
            if self._at == len(self._text) and not self._read_more():
                return ""

    def members(self) -> Iterator[str]:
        """The names of the object that comes next.

        The caller takes the value of each, with :meth:`value` or :meth:`members` again, before asking for another.
        """
        if self.peek() != "{":
            self._not_an_object(f"{self._what} is not a JSON object", "an object")
        self._at += 1
        if self.peek() == "}":
            self._at += 1
            return
        seen: set[str] = set()
        while True:
            if self.peek() != '"':
                self._fail("Expecting property name enclosed in double quotes")
            name = self._next(":", MAX_VALUE)
            assert isinstance(name, str)
            if self.peek() != ":":
                self._fail("Expecting ':' delimiter")
            self._at += 1
            if name in seen:
                self._fail(f"duplicate name {clip(name)!r}")
            seen.add(name)
            self._member = name
            yield name
            self._member = ""
            after = self.peek()
            if after not in (",", "}"):
                self._fail("Expecting ',' delimiter")
            self._at += 1
            if after == "}":
                return

    def value(self, longest: int = MAX_VALUE) -> object:
        """The value that comes next, whole: a string of at most ``longest`` characters, or another of MAX_VALUE."""
        return self._next(",}", longest if self.peek() == '"' else MAX_VALUE)

    def strings(self, name: str) -> dict[str, str]:
        """The object of strings that comes next, called ``name`` in errors."""
        if self.peek() != "{":
            self._not_an_object(f"{name} is not an object", "an object of strings")
        result: dict[str, str] = {}
        characters = 0
        for key in self.members():
            value = self.value(longest=MAX_STRINGS)
            if not isinstance(value, str) or not is_text(key) or not is_text(value):
                what = f"{name}: value of {clip(key)!r} is not a string"
                raise CheckpointError(what, file=self._file, found=describe(value), expected="a string")
            characters += len(key) + len(value)
            if characters > MAX_STRINGS or len(result) == MAX_STRING_KEYS:
                expected = f"at most {MAX_STRINGS} characters and {MAX_STRING_KEYS} keys"
                raise CheckpointError(f"{name} is too large", file=self._file, expected=expected)
            result[key] = value
        return result

    def end(self) -> None:
        """Nothing but white space may be left."""
        if self.peek():
            self._fail("Extra data")

    def _next(self, delimiters: str, longest: int) -> object:
        """The value from here on. Only a delimiter after it shows that it does not go on in the next block."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                if self._text[end : end + 1] in _BLANKS:
                    end = _end_of_blanks(self._text, end)
                if end < len(self._text) and self._text[end] in delimiters:
                    self._at = end
                    return value
                fault, place = f"Expecting {delimiters[0]!r} delimiter", end
            except RecursionError:
                self._fail("nested too deeply")
            except json.JSONDecodeError as error:
                fault, place = error.msg, error.pos
            except ValueError as error:
                fault, place = str(error), self._at
            if len(self._text) - self._at > longest:
                what = f"{self._what} has a name or value that is too long{self._where(self._at)}"
                raise CheckpointError(what, file=self._file, expected=f"at most {longest} characters")
            if not self._read_more():
                self._fail(fault, place)

    def _read_more(self) -> bool:
        """Put the next block behind what is not yet taken; False, and nothing moves, at the end of the text."""
        block = next(self._blocks, b"")
        pending = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            place = self._bytes_read - pending + error.start
            what = f"{self._what} is not UTF-8: bad byte at {place} of the {self._what}"
            raise CheckpointError(what, file=self._file) from None
        if not block:
            return False
        self.digest = hash((self.digest, block))
        self._bytes_read += len(block)
        self._chars_before += self._at
        self._text = self._text[self._at :] + text
        self._at = 0
        return True

    def _not_an_object(self, what: str, expected: str) -> NoReturn:
        try:
            value, _ = _DECODER.raw_decode(self._text, self._at)
        except RecursionError:
            self._fail("nested too deeply")
        except ValueError as error:
            self._fail(error.msg if isinstance(error, json.JSONDecodeError) else str(error))
        raise CheckpointError(what, file=self._file, found=describe(value), expected=expected)

    def _where(self, place: int) -> str:
        member = f", in {clip(self._member)!r}" if self._member else ""
        return f" (character {self._chars_before + place}{member})"

    def _fail(self, fault: str, place: int | None = None) -> NoReturn:
        where = self._where(self._at if place is None else place)
        raise CheckpointError(f"{self._what} is not valid JSON: {fault}{where}", file=self._file)


def parse_strings(text: bytes, file: Path, what: str) -> dict[str, str]:
    """The object of strings that ``text`` is. Raises CheckpointError, with ``what`` in the text."""
    reader = JsonReader([text] if text else [], file, what)
    result = reader.strings(what)
    reader.end()
    return result


def parse_strict(raw: bytes | bytearray, file: Path, what: str) -> dict[str, object]:
    """The JSON object in ``raw``. Raises CheckpointError, with ``what`` ("header", "index") in the text."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{what} is not UTF-8: bad byte at {error.start} of the {what}", file=file) from None
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise CheckpointError(f"{what} is not valid JSON: nested too deeply", file=file) from None
    except ValueError as error:
        raise CheckpointError(f"{what} is not valid JSON: {error}", file=file) from None
    if type(value) is not dict:
        raise CheckpointError(f"{what} is not a JSON object", file=file, found=describe(value), expected="an object")
    return value


def describe(value: object) -> str:
    """A short text for a value from a hostile file, whatever its size."""
    return reprlib.repr(value)


def clip(name: str, limit: int = 200) -> str:
    """A tensor name fit for one line."""
    return name if len(name) <= limit else f"{name[:limit]}... ({len(name)} characters)"


def is_text(value: object) -> bool:
    """Whether ``value`` is a string that UTF-8 can hold: JSON escapes can spell lone surrogates, which it cannot."""
    if type(value) is not str:
        return False
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return False
    return True


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate name {clip(key)!r}")
            seen.add(key)
    return result


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is not a JSON value")


def _integer(text: str) -> int | float:
    """Anything that is no u64 becomes a float, which every later check refuses (``-0`` too: it is a float in Rust).

    This keeps ``int()`` away from numbers of more than 4,300 digits, which it refuses to convert.
    """
    return int(text) if len(text) <= _U64_DIGITS and text != "-0" else float(text)


def _end_of_blanks(text: str, start: int) -> int:
    match = _SEVERAL_BLANKS.match(text, start)
    return match.end() if match else start


_DECODER = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_int=_integer)
