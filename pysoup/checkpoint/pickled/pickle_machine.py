"""An interpreter for the part of pickle that carries data: it imports nothing and calls nothing of Python's.

Names in the stream are looked up in an :class:`Environment`, which answers with constructors of its own or refuses.
Results are dicts, lists, tuples, strings, integers of up to 128 bits, booleans, None and what the environment makes;
all else (floats, bytes, sets, objects) becomes an :class:`Inert` that knows only its kind. Strings are the only keys
with a hash of their own: others are compared by identity, so no stream can make them collide.

Time is linear in the length of the stream, and memory at most 48 MiB and about twenty times that length. (The standard
library's unpickler allocates 64 GB for one memo index of four bytes.)
"""

from __future__ import annotations

from pathlib import Path

from ...errors import CheckpointError
from .pickle_opcodes import STOP, TABLE
from .pickle_state import State
from .pickle_values import Environment, Refusal, Truncated

_ALLOWANCE = 48 * 2**20
_PER_BYTE = 20
"""Of memory; what torch.save writes needs up to 15."""


def unpickle(data: bytes, environment: Environment, path: Path, what: str = "data.pkl") -> object:
    """The object in ``data``, which it must fill. Raises CheckpointError with the byte of ``what`` that is at fault."""
    try:
        value, end = interpret(data, environment, path, what, 0)
    except Truncated:
        found = f"{len(data)} bytes"
        raise CheckpointError(f"{what} ends within the pickle: truncated", file=path, found=found) from None
    if end != len(data):
        rest = f"{len(data) - end} bytes after the end of the pickle in {what}"
        raise CheckpointError(rest, file=path, found=f"{len(data)} bytes", expected=f"{end} bytes")
    return value


def interpret(data: bytes, environment: Environment, path: Path, what: str, origin: int) -> tuple[object, int]:
    """The object pickled at the start of ``data``, and where its pickle ends.

    Errors name byte ``origin + n`` of ``what``. Raises Truncated where ``data`` end first, else CheckpointError.
    """
    state, size, table = State(data, environment), len(data), TABLE
    most = _ALLOWANCE + _PER_BYTE * size
    at = 0
    try:
        while True:
            at = state.pos
            if at >= size:
                raise Truncated
            code = data[at]
            state.pos = at + 1
            if code == STOP:
                break
            table[code](state)
            if state.spent > most:
                raise Refusal("the pickle makes too many objects for its size")
        if len(state.stack) != 1 or state.outer:
            raise Refusal("the pickle does not end with exactly one object")
    except IndexError:
        if state.pos > size:
            raise Truncated from None
        text = "the pickle takes more from its stack than there is"
        raise CheckpointError(f"{text} (byte {origin + at} of {what})", file=path) from None
    except Refusal as refusal:
        raise CheckpointError(f"{refusal} (byte {origin + at} of {what})", file=path) from None
    return state.stack[0], state.pos
