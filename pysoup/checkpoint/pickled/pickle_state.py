"""Where one run of the pickle interpreter is: the bytes, the stack, the memo, and what its objects cost."""

from __future__ import annotations

from .pickle_values import Environment, Refusal, Truncated

MAX_PICKLE_BYTES = 2**26
"""A thousand tensors take about 150 kB."""

MARK_BYTES = 72
"""What a mark costs until it is closed."""

LONGEST_NAME = 1024
"""Bytes in a line: a name or a number."""


class State:
    """What the opcodes, each a function, read and change."""

    __slots__ = ("data", "environment", "known", "memo", "outer", "pos", "size", "spent", "stack")

    def __init__(self, data: bytes, environment: Environment) -> None:
        self.data = data
        self.size = len(data)
        self.environment = environment
        self.pos = 0
        self.spent = 0
        """Estimated bytes of the objects made so far."""
        self.stack: list[object] = []
        self.outer: list[list[object]] = []
        self.memo: list[object] = []
        self.known: dict[tuple[str, str], object] = {}

    def take(self, count: int) -> int:
        """Move beyond the next ``count`` bytes; returns where they begin."""
        begin = self.pos
        self.pos = begin + count
        if count > MAX_PICKLE_BYTES:
            raise Refusal(f"the pickle declares {count} bytes for one object")
        if self.pos > self.size:
            raise Truncated
        return begin

    def number(self, width: int) -> int:
        """An unsigned integer of ``width`` bytes."""
        begin = self.take(width)
        return int.from_bytes(self.data[begin : begin + width], "little")

    def line(self) -> bytes:
        begin = self.pos
        end = self.data.find(b"\n", begin, begin + LONGEST_NAME)
        if end < 0:
            if begin + LONGEST_NAME > self.size:
                raise Truncated
            raise Refusal("the pickle has a line that does not end")
        self.pos = end + 1
        return self.data[begin:end]

    def pop_mark(self) -> list[object]:
        """What was put on the stack since the last mark."""
        items = self.stack
        if not self.outer:
            raise Refusal("the pickle closes a mark that it did not set")
        self.stack = self.outer.pop()
        self.spent -= MARK_BYTES
        return items

    def drop_mark(self) -> None:
        self.pop_mark()
