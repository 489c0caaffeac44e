"""The pickle opcodes that push one literal. Of floats, bytes and long integers only the kind is kept."""

from __future__ import annotations

from collections.abc import Callable

from .pickle_state import State
from .pickle_values import BYTES, FLOAT, LARGE_INT, Refusal

_INT_BYTES = 16
_LONGEST_DECIMAL = 40


def constant(value: object) -> Callable[[State], None]:
    def push(m: State) -> None:
        m.stack.append(value)

    return push


def skipping(width: int, value: object) -> Callable[[State], None]:
    """Push ``value`` in place of what has ``width`` bytes."""

    def push(m: State) -> None:
        m.take(width)
        m.stack.append(value)

    return push


def counted(width: int, value: object) -> Callable[[State], None]:
    """Push ``value`` in place of what has a length of ``width`` bytes before it."""

    def push(m: State) -> None:
        m.take(m.number(width))
        m.stack.append(value)

    return push


def binint(m: State) -> None:
    begin = m.take(4)
    m.spent += 32
    m.stack.append(int.from_bytes(m.data[begin : begin + 4], "little", signed=True))


def binint1(m: State) -> None:
    pos = m.pos
    m.pos = pos + 1
    m.stack.append(m.data[pos])


def binint2(m: State) -> None:
    m.spent += 32
    m.stack.append(m.number(2))


def long(width: int) -> Callable[[State], None]:
    def push(m: State) -> None:
        count = m.number(width)
        begin = m.take(count)
        m.spent += 48
        small = count <= _INT_BYTES
        m.stack.append(int.from_bytes(m.data[begin : begin + count], "little", signed=True) if small else LARGE_INT)

    return push


def decimal(m: State) -> None:
    """Protocols 0 and 1: ``I5``, ``L5L``, and ``I01`` for True."""
    text = m.line().removesuffix(b"L")
    m.spent += 48
    if text in (b"00", b"01"):
        m.stack.append(text == b"01")
    elif not text.removeprefix(b"-").isdigit():
        raise Refusal("the pickle has an integer that is none")
    else:
        m.stack.append(int(text) if len(text) <= _LONGEST_DECIMAL else LARGE_INT)


def float_text(m: State) -> None:
    m.line()
    m.stack.append(FLOAT)


def unicode(m: State, width: int = 4) -> None:
    count = m.number(width)
    begin = m.take(count)
    m.spent += 64
    try:
        m.stack.append(str(m.data[begin : m.pos], "utf-8", "surrogatepass"))
    except UnicodeDecodeError:
        raise Refusal("the pickle has a string that is not UTF-8") from None


def unicode1(m: State) -> None:
    unicode(m, 1)


def unicode8(m: State) -> None:
    unicode(m, 8)


def string(width: int) -> Callable[[State], None]:
    """Strings of Python 2: text if they can be."""

    def push(m: State) -> None:
        count = m.number(width)
        begin = m.take(count)
        m.spent += 64
        try:
            m.stack.append(str(m.data[begin : begin + count], "utf-8"))
        except UnicodeDecodeError:
            m.stack.append(BYTES)

    return push
