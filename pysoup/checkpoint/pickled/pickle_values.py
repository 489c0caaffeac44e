"""What a restricted pickle can yield beside dicts, lists, tuples, strings, integers, booleans and None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Inert:
    """Something that is no weight and of which only the kind is known; whatever is put into it is dropped."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind


class Global:
    """A name that the environment allows; ``construct`` makes of the arguments what a call in the stream yields."""

    __slots__ = ("construct", "name")

    def __init__(self, name: str, construct: Callable[[tuple[object, ...]], object]) -> None:
        self.name = name
        self.construct = construct


class Made:
    """An object of a class whose state matters: ``kind`` is the class, ``state`` what was put into it, or None."""

    __slots__ = ("kind", "state")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.state: object = None


class OtherKey:
    """A dictionary key that is not a string; equal only to itself."""

    __slots__ = ("key", "text")

    def __init__(self, key: object) -> None:
        self.key = key
        self.text = str(key) if isinstance(key, int) else type(key).__name__


class Refusal(Exception):
    """What is wrong, in a few words; becomes a CheckpointError that says where."""


class Truncated(Exception):
    """The bytes given end within the pickle."""


class Environment(Protocol):
    """What a stream may name. Both methods raise :class:`Refusal`, and must take constant time and memory."""

    def find(self, module: str, name: str) -> object: ...

    def persistent(self, saved_id: object) -> object: ...


FLOAT, BYTES, SET, LARGE_INT = Inert("float"), Inert("bytes"), Inert("set"), Inert("int")
