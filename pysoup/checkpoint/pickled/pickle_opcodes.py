"""What each pickle opcode does to the interpreter's state; those that no checkpoint needs are refused by name.

After CPython's ``pickletools``. No opcode imports, calls or allocates by a length that the stream merely declares.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import NoReturn

from ..strict_json import clip
from . import pickle_literals as literals
from .pickle_state import LONGEST_NAME, MARK_BYTES, State
from .pickle_values import BYTES, FLOAT, SET, Global, Inert, Made, OtherKey, Refusal, Truncated

_HIGHEST_PROTOCOL = 5
_U32 = Struct("<I")
_STATELESS = (Global, str, int, bool, type(None), list, tuple)
_MISSING = object()


def _mark(m: State) -> None:
    m.spent += MARK_BYTES
    m.outer.append(m.stack)
    m.stack = []


def _pop(m: State) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.pop_mark()


def _dup(m: State) -> None:
    m.stack.append(m.stack[-1])


def _proto(m: State) -> None:
    if (protocol := m.number(1)) > _HIGHEST_PROTOCOL:
        raise Refusal(f"pickle protocol {protocol} is unknown")


def _frame(m: State) -> None:
    m.take(8)


def _empty_list(m: State) -> None:
    m.spent += 80
    m.stack.append([])


def _empty_dict(m: State) -> None:
    m.spent += 80
    m.stack.append({})


def _list(m: State) -> None:
    items = m.pop_mark()
    m.spent += 80
    m.stack.append(items)


def _dict(m: State) -> None:
    items = m.pop_mark()
    result: dict[object, object] = {}
    _update(m, result, items)
    m.spent += 80
    m.stack.append(result)


def _tuple(m: State) -> None:
    items = m.pop_mark()
    m.spent += 56 + 8 * len(items)
    m.stack.append(tuple(items))


def _tuple_of(count: int) -> Callable[[State], None]:
    def push(m: State) -> None:
        stack = m.stack
        if len(stack) < count:
            raise IndexError
        items = tuple(stack[-count:])
        m.spent += 80
        del stack[-count:]
        stack.append(items)

    return push


def _frozenset(m: State) -> None:
    m.pop_mark()
    m.stack.append(SET)


def _add_items(m: State) -> None:
    m.pop_mark()
    _check_receiver(m.stack[-1])


def _append(m: State) -> None:
    item = m.stack.pop()
    target = m.stack[-1]
    if type(target) is list:
        target.append(item)
    else:
        _check_receiver(target)


def _appends(m: State) -> None:
    items = m.pop_mark()
    target = m.stack[-1]
    if type(target) is list:
        target.extend(items)
    else:
        _check_receiver(target)


def _setitem(m: State) -> None:
    value = m.stack.pop()
    key = m.stack.pop()
    target = m.stack[-1]
    if type(target) is dict:
        _update(m, target, [key, value])
    else:
        _check_receiver(target)


def _setitems(m: State) -> None:
    items = m.pop_mark()
    target = m.stack[-1]
    if type(target) is dict:
        _update(m, target, items)
    else:
        _check_receiver(target)


def _update(m: State, target: dict[object, object], items: list[object]) -> None:
    if len(items) % 2:
        raise Refusal("the pickle sets a key without a value")
    for at in range(0, len(items), 2):
        key = items[at]
        if type(key) is not str:
            m.spent += 100
            key = OtherKey(key)
        target[key] = items[at + 1]
    m.spent += 40 * len(items)


def _check_receiver(target: object) -> None:
    if type(target) is not Inert:
        raise Refusal("the pickle puts items into what holds none")


def _build(m: State) -> None:
    state = m.stack.pop()
    target = m.stack[-1]
    if type(target) is Made:
        target.state = state
    elif type(target) in _STATELESS:
        raise Refusal("the pickle sets the state of what has none")


def _put(m: State, index: int) -> None:
    memo = m.memo
    value = m.stack[-1]
    if index == len(memo):
        memo.append(value)
        return
    if index > m.pos:
        raise Refusal(f"the pickle uses memo {index} at byte {m.pos}")
    if index > len(memo):
        memo.extend([_MISSING] * (index + 1 - len(memo)))
    memo[index] = value


def _get(m: State, index: int) -> None:
    value = m.memo[index] if index < len(m.memo) else _MISSING
    if value is _MISSING:
        raise Refusal(f"the pickle reads memo {index}, which it did not write")
    m.stack.append(value)


def _memoize(m: State) -> None:
    m.memo.append(m.stack[-1])


def _binput(m: State) -> None:
    pos = m.pos
    m.pos = pos + 1
    index = m.data[pos]
    if index == len(m.memo):
        m.memo.append(m.stack[-1])
    else:
        _put(m, index)


def _binget(m: State) -> None:
    pos = m.pos
    m.pos = pos + 1
    _get(m, m.data[pos])


def _long_binput(m: State) -> None:
    # As in BINPUT, half of all opcodes are among these few: no calls that can be spared.
    pos = m.pos
    m.pos = pos + 4
    if m.pos > m.size:
        raise Truncated
    (index,) = _U32.unpack_from(m.data, pos)
    if index == len(m.memo):
        m.memo.append(m.stack[-1])
    else:
        _put(m, index)


def _long_binget(m: State) -> None:
    _get(m, m.number(4))


def _put_text(m: State) -> None:
    _put(m, _memo_text(m))


def _get_text(m: State) -> None:
    _get(m, _memo_text(m))


def _memo_text(m: State) -> int:
    digits = m.line()
    if not digits.isdigit() or len(digits) > 10:
        raise Refusal("the pickle has a memo index that is no number")
    return int(digits)


def _global(m: State) -> None:
    try:
        module, name = m.line().decode("utf-8"), m.line().decode("utf-8")
    except UnicodeDecodeError:
        raise Refusal("the pickle has a name that is not UTF-8") from None
    _push_global(m, module, name)


def _stack_global(m: State) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if type(name) is not str or type(module) is not str or len(module) + len(name) > LONGEST_NAME:
        raise Refusal("the pickle has a name that is none")
    _push_global(m, module, name)


def _push_global(m: State, module: str, name: str) -> None:
    value = m.known.get((module, name))
    if value is None:
        m.spent += 600
        value = m.known[module, name] = m.environment.find(module, name)
    m.stack.append(value)


def _reduce(m: State) -> None:
    arguments = m.stack.pop()
    _call(m, m.stack.pop(), arguments)


def _newobj_ex(m: State) -> None:
    m.stack.pop()
    _reduce(m)


def _call(m: State, function: object, arguments: object) -> None:
    if type(function) is not Global:
        raise Refusal("the pickle calls what is no name")
    if type(arguments) is not tuple:
        raise Refusal(f"the pickle calls {clip(function.name)} without a tuple of arguments")
    m.spent += 96
    # Constructors copy one argument at most, and that only if it is alone.
    if len(arguments) == 1 and type(arguments[0]) in (list, tuple):
        m.spent += 160 * len(arguments[0])
    m.stack.append(function.construct(arguments))


def _binpersid(m: State) -> None:
    m.spent += 140
    m.stack.append(m.environment.persistent(m.stack.pop()))


def _refused(name: str) -> Callable[[State], None]:
    def refuse(m: State) -> NoReturn:
        raise Refusal(f"the pickle uses {name}, which no checkpoint needs: refused")

    return refuse


def _unknown(m: State) -> NoReturn:
    raise Refusal(f"the pickle has an unknown opcode, {m.data[m.pos - 1]:#04x}")


_OPCODES: dict[bytes, Callable[[State], None]] = {
    b"(": _mark,
    b"0": _pop,
    b"1": lambda m: m.drop_mark(),
    b"2": _dup,
    b"\x80": _proto,
    b"\x95": _frame,
    b"N": literals.constant(None),
    b"\x88": literals.constant(True),
    b"\x89": literals.constant(False),
    b")": literals.constant(()),
    b"J": literals.binint,
    b"K": literals.binint1,
    b"M": literals.binint2,
    b"\x8a": literals.long(1),
    b"\x8b": literals.long(4),
    b"I": literals.decimal,
    b"L": literals.decimal,
    b"F": literals.float_text,
    b"G": literals.skipping(8, FLOAT),
    b"X": literals.unicode,
    b"\x8c": literals.unicode1,
    b"\x8d": literals.unicode8,
    b"U": literals.string(1),
    b"T": literals.string(4),
    b"C": literals.counted(1, BYTES),
    b"B": literals.counted(4, BYTES),
    b"\x8e": literals.counted(8, BYTES),
    b"\x96": literals.counted(8, BYTES),
    b"]": _empty_list,
    b"}": _empty_dict,
    b"\x8f": literals.constant(SET),
    b"l": _list,
    b"d": _dict,
    b"t": _tuple,
    b"\x85": _tuple_of(1),
    b"\x86": _tuple_of(2),
    b"\x87": _tuple_of(3),
    b"\x91": _frozenset,
    b"\x90": _add_items,
    b"a": _append,
    b"e": _appends,
    b"s": _setitem,
    b"u": _setitems,
    b"b": _build,
    b"p": _put_text,
    b"q": _binput,
    b"r": _long_binput,
    b"\x94": _memoize,
    b"g": _get_text,
    b"h": _binget,
    b"j": _long_binget,
    b"c": _global,
    b"\x93": _stack_global,
    b"R": _reduce,
    b"\x81": _reduce,
    b"\x92": _newobj_ex,
    b"Q": _binpersid,
    b"P": _refused("PERSID"),
    b"S": _refused("STRING"),
    b"V": _refused("UNICODE"),
    b"i": _refused("INST"),
    b"o": _refused("OBJ"),
    b"\x82": _refused("EXT1"),
    b"\x83": _refused("EXT2"),
    b"\x84": _refused("EXT4"),
    b"\x97": _refused("NEXT_BUFFER"),
    b"\x98": _refused("READONLY_BUFFER"),
}

STOP = ord(".")
TABLE = [_OPCODES.get(bytes((code,)), _unknown) for code in range(256)]
