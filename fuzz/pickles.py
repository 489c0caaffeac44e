"""Mutations of pickle streams, opcode by opcode."""

from __future__ import annotations

import pickletools
import random
import struct

from .mutations import number

_UP_TO_NEWLINE = -1
_COUNTED = {-2: 1, -3: 4, -4: 4, -5: 8}
"""Bytes of the count before a counted argument, by pickletools' name for such."""
_ARGUMENTS: dict[int, int] = {ord(op.code): op.arg.n if op.arg else 0 for op in pickletools.opcodes}
_TWO_LINES = b"ci"
_MOST_OPCODES = 3000

NAMES = tuple(
    b"collections OrderedDict torch._utils _rebuild_tensor_v2 _rebuild_tensor _rebuild_tensor_v3 _rebuild_parameter "
    b"torch FloatStorage BFloat16Storage LongStorage UntypedStorage bfloat16 float8_e4m3fn Size device "
    b"torch._tensor _rebuild_from_type_v2 torch.nn.parameter Parameter builtins eval exec getattr set dict os system "
    b"posix subprocess Popen numpy.core.multiarray _reconstruct scalar numpy dtype argparse Namespace copyreg "
    b"_rebuild_parameter_with_state _rebuild_from_type _rebuild_qtensor _rebuild_device_tensor_from_cpu_tensor "
    b"_rebuild_sparse_tensor Tensor Buffer QInt8Storage quint8 float4_e2m1fn_x2 Counter defaultdict bytes list neg "
    b"_reconstructor _codecs encode __main__ Model pickle loads functools partial torch.hub load".split()
)
_GLOBALS = [b"c%b\n%b\n" % (module, name) for module in NAMES for name in NAMES if module.islower()]
_SNIPPETS = (
    *(bytes((code,)) for code, n in _ARGUMENTS.items() if n == 0),
    *(b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R", b"cbuiltins\neval\nX\x01\x00\x00\x001\x85R", b"iposix\nsystem\n"),
    *(b"\x8c\x02os\x8c\x06system\x93", b"\x82\x01", b"\x83\x01\x00", b"Pid\n", b"I01\n", b"L1L\n", b"F1.5\n"),
    *(b"r\xff\xff\xff\xff", b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\xff", b"q\xff", b"h\xff", b"p99999999\n", b"g0\n"),
    *(b"X\xff\xff\xff\xff", b"X\xff\xff\xff\x7f", b"B\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f", b"\x8a\xff"),
    *(b"\x8d" + b"\xff" * 8, b"\x96" + b"\xff" * 7 + b"\x7f", b"\x95" + b"\xff" * 8, b"\x8a\x09" + b"\xff" * 9),
    *(b"I" + b"1" * 5000 + b"\n", b"(" * 2000, b"]2a" * 200, b"(" + b"]" * 500 + b"t", b"}" * 300, b"22t" * 50),
    *(b"\x94h\x00" * 100, b"\x862" * 40, b"X\x01\x00\x00\x00a\x88s", b"X\x02\x00\x00\x00\xed\xa0", b"U\x01\xff"),
    *(b"G" + bytes(8), b"\x80\x05", b"\x80\x09"),
)


def split(data: bytes) -> list[bytes]:
    """The opcodes of all pickles at the start of ``data``, each with its argument; the last item is what is left."""
    items: list[bytes] = []
    at = 0
    while at < len(data) and len(items) < _MOST_OPCODES:
        end = _end(data, at)
        if end is None or end > len(data):
            break
        items.append(data[at:end])
        at = end
    return [*items, data[at:]]


def _end(data: bytes, at: int) -> int | None:
    code = data[at]
    n = _ARGUMENTS.get(code)
    if n is None:
        return None
    if n >= 0:
        return at + 1 + n
    if n == _UP_TO_NEWLINE:
        end = data.find(b"\n", at + 1) + 1
        if end and code in _TWO_LINES:
            end = data.find(b"\n", end) + 1
        return end or None
    width = _COUNTED[n]
    return at + 1 + width + int.from_bytes(data[at + 1 : at + 1 + width], "little")


def mutate(data: bytes, rng: random.Random) -> bytes:
    """``data`` with one to three of its opcodes changed."""
    items = split(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(items))
        kind = rng.randrange(10)
        if kind <= 2:
            numbers = [i for i, item in enumerate(items) if item[:1] in _NUMBERS]
            at = rng.choice(numbers or [at])
            items[at] = _integer(rng, items[at])
        elif kind == 3:
            del items[at]
        elif kind == 4:
            items.insert(at, rng.choice(items))
        elif kind == 5:
            items.insert(at, rng.choice(_SNIPPETS))
        elif kind == 6:
            other = rng.randrange(len(items))
            items[at], items[other] = items[other], items[at]
        elif kind == 7:
            start = rng.randrange(len(items))
            items[at:at] = items[start : start + rng.randint(1, 30)]
        elif kind == 8:
            names = [i for i, item in enumerate(items) if item[:1] in (b"c", b"X", b"\x8c")]
            at = rng.choice(names or [at])
            items[at] = _name(rng, items[at])
        else:
            items[at] = rng.choice(_SNIPPETS if rng.random() < 0.5 else items)
        items = items or [b"."]
    return b"".join(items)


_NUMBERS = frozenset((b"K", b"M", b"J", b"\x8a", b"q", b"h", b"r", b"j"))
_LONG_MEMO = {b"q": b"r", b"h": b"j"}
_WORDS = (*NAMES, b"", b"0", b"1", b"storage", b"cpu", b"state_dict", b"model", b"ema", b"a.weight", b"\xff")


def _integer(rng: random.Random, item: bytes) -> bytes:
    """Another number or place in the memo."""
    code, near = item[:1], int.from_bytes(item[1:3], "little")
    value = number(rng, near)
    if code in _LONG_MEMO:
        return code + bytes((value % 256,)) if rng.random() < 0.8 else _LONG_MEMO[code] + struct.pack("<L", near)
    if 0 <= value < 256:
        return b"K" + bytes((value,))
    if 0 <= value < 65536 and rng.random() < 0.7:
        return b"M" + struct.pack("<H", value)
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<l", value)
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def _name(rng: random.Random, item: bytes) -> bytes:
    if item[:1] == b"c":
        return rng.choice(_GLOBALS)
    text = rng.choice(_WORDS)
    return b"X" + struct.pack("<L", len(text)) + text
