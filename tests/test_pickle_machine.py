"""The pickle interpreter yields data as Python's does, executes nothing, and costs no more than its input is worth."""

from __future__ import annotations

import io
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_files import call, integer, mapping, named, pickled, saved, text, tuple_of

from pysoup.checkpoint.pickled import pickle_machine
from pysoup.checkpoint.pickled.pickle_machine import interpret, unpickle
from pysoup.checkpoint.pickled.pickle_values import Inert, OtherKey, Truncated
from pysoup.checkpoint.pickled.torch_pickle import TorchEnvironment
from pysoup.errors import CheckpointError

FILE = Path("model.pt")


def load(data: bytes) -> Any:
    return unpickle(data, TorchEnvironment(), FILE)


def error_of(data: bytes) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(data)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("model.pt: ")
    return line


@contextmanager
def bounded(seconds: float = 10, megabytes: int = 100) -> Iterator[None]:
    """Fails if the block takes longer, or more memory at once; tracing alone makes it several times slower."""
    tracemalloc.start()
    start = time.perf_counter()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < seconds
    assert peak < megabytes * 10**6


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**127), 2**127 - 1) | st.text(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
)


@given(VALUES, st.integers(1, 5), st.booleans())
def test_unpickle_yields_what_python_pickled(value: object, protocol: int, in_python: bool) -> None:
    data = (pickle._dumps if in_python else pickle.dumps)(value, protocol)
    assert load(data) == value


def test_unpickle_keeps_what_is_shared_shared() -> None:
    inner = {"a": [1, 2]}
    for protocol in range(1, 6):
        first, second = load(pickle.dumps([inner, inner], protocol))
        assert first is second
        loop: list[object] = []
        loop.append(loop)
        found = load(pickle.dumps(loop, protocol))
        assert found[0] is found


@pytest.mark.parametrize("protocol", range(1, 6))
def test_unpickle_keeps_of_floats_bytes_sets_and_long_integers_the_kind_only(protocol: int) -> None:
    values = [1.5, b"abc", {1}, 2**200, bytearray(b"x"), frozenset({"a"})]
    found = load(pickle.dumps(values, protocol))
    assert [type(value) for value in found] == [Inert] * 6
    assert [value.kind for value in found] == ["float", "bytes", "set", "int", found[4].kind, "set"]


def test_unpickle_tells_keys_that_are_no_strings_apart() -> None:
    found = load(pickle.dumps({"a": 1, 5: 2, (1, 2): 3, True: 4}, 2))
    assert [key if isinstance(key, str) else key.text for key in found] == ["a", "5", "tuple", "True"]
    assert [type(key) for key in found] == [str, OtherKey, OtherKey, OtherKey]


def test_unpickle_reads_python_2_strings() -> None:
    assert load(b"\x80\x02}U\x03key" + b"T\x03\x00\x00\x00abcs.") == {"key": "abc"}
    assert load(b"U\x02\xff\xfe.").kind == "bytes"


def test_interpret_says_where_the_pickle_ended() -> None:
    first, second = pickle.dumps([1, 2]), pickle.dumps("x")
    data = first + second + b"rest"
    value, end = interpret(data, TorchEnvironment(), FILE, "the file", 0)
    assert (value, end) == ([1, 2], len(first))
    assert interpret(data[end:], TorchEnvironment(), FILE, "the file", end)[0] == "x"
    with pytest.raises(CheckpointError, match=r"\(byte 107 of the file\)"):
        interpret(b"\x80\x02K\x01K\x01R.", TorchEnvironment(), FILE, "the file", 101)


CODE = {
    "os.system": b"cos\nsystem\n(X\x02\x00\x00\x00lstR.",
    "posix.system": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R.",
    "builtins.eval": b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.",
    "builtins.exec": b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x011\x85R.",
    "builtins.getattr": pickled(call("builtins", "getattr", named("collections", "OrderedDict"), text("__init__"))),
    "builtins.__import__": pickled(call("builtins", "__import__", text("os"))),
    "functools.partial": pickled(call("functools", "partial", named("collections", "OrderedDict"))),
    "subprocess.Popen": b"\x80\x02csubprocess\nPopen\nX\x02\x00\x00\x00ls\x85\x81.",
    "pickle.loads": pickled(call("pickle", "loads", text("x"))),
    "torch.load": pickled(call("torch", "load", text("x"))),
    "torch.hub.load": pickled(call("torch.hub", "load", text("x"))),
    "torch.storage._load_from_bytes": pickled(call("torch.storage", "_load_from_bytes", text("x"))),
    "numpy.load": pickled(call("numpy", "load", text("x"))),
    "numpy.testing._private.utils.runstring": pickled(call("numpy.testing._private.utils", "runstring", text("1"))),
    "lightning.pytorch.cli.run": pickled(call("lightning.pytorch.cli", "run", text("x"))),
    "omegaconf.OmegaConf.load": b"\x80\x04\x8c\x09omegaconf\x8c\x0eOmegaConf.load\x93\x8c\x011\x85R.",
    "argparse._os.system": b"\x80\x04\x8c\x08argparse\x8c\x0a_os.system\x93\x8c\x011\x85R.",
    "__main__.Net": pickled(call("__main__", "Net")),
    "torch.nn.modules.linear.Linear": b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81.",
}


@pytest.mark.parametrize("name", CODE)
def test_unpickle_refuses_code_by_its_name(name: str) -> None:
    assert name in error_of(CODE[name])


def test_unpickle_of_code_says_what_to_do() -> None:
    assert "which is not data: refused" in error_of(CODE["os.system"])
    assert "save `model.state_dict()`" in error_of(CODE["torch.nn.modules.linear.Linear"])
    assert "where its code is trusted" in error_of(CODE["torch.hub.load"])


class _Marks:
    """Would leave a mark if it were ever constructed from a pickle."""

    made: list[str] = []  # noqa: RUF012

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return self.made.append, ("executed",)


def test_unpickle_executes_nothing_that_python_would() -> None:
    for protocol in range(6):
        error_of(pickle.dumps({"weights": _Marks()}, protocol))
    assert _Marks.made == []


MALFORMED = {
    "empty": (b"", "ends within the pickle"),
    "no end": (b"\x80\x02K\x01", "ends within the pickle"),
    "nothing left": (b"\x80\x02.", "exactly one object"),
    "two left": (b"K\x01K\x02.", "exactly one object"),
    "open mark": (b"(K\x01.", "exactly one object"),
    "no mark": (b"K\x01t.", "closes a mark that it did not set"),
    "underflow": (b"K\x01\x86.", "more from its stack.*byte 2"),
    "underflow below a mark": (b"K\x01(\x85.", "more from its stack"),
    "pop nothing": (b"0.", "closes a mark"),
    "memo unwritten": (b"h\x07.", "reads memo 7"),
    "memo gap": (b"K\x01K\x01K\x01q\x03h\x02.", "reads memo 2"),
    "memo bomb": (b"K\x01r\xff\xff\xff\xff.", "uses memo 4294967295"),
    "memo bomb in text": (b"K\x01p4294967295\n.", "uses memo 4294967295"),
    "memo of no number": (b"K\x01p-1\n.", "no number"),
    "unknown opcode": (b"\xff.", "unknown opcode, 0xff .byte 0"),
    "protocol 6": (b"\x80\x06N.", "protocol 6"),
    "bytes of 2**62": (b"\x8e" + struct.pack("<Q", 2**62) + b"x.", "declares 4611686018427387904 bytes"),
    "string of 2**62": (b"\x8d" + struct.pack("<Q", 2**62) + b"x.", "declares"),
    "bytes of 2**32": (b"B\xff\xff\xff\xffx.", "declares 4294967295 bytes"),
    "string past the end": (b"X\x05\x00\x00\x00abc.", "ends within the pickle"),
    "long past the end": (b"\x8b\xff\xff\xff\x00abc.", "ends within the pickle"),
    "string not UTF-8": (b"X\x01\x00\x00\x00\xff.", "not UTF-8"),
    "name not UTF-8": (b"c\xff\n\xfe\n.", "not UTF-8"),
    "endless name": (b"c" + b"x" * 5000 + b"\n\n.", "does not end"),
    "name of a number": (b"K\x01K\x02\x93.", "a name that is none"),
    "integer of letters": (b"Iabc\n.", "an integer that is none"),
    "call of data": (b"K\x01)R.", "calls what is no name"),
    "call of a result": (b"cargparse\nNamespace\n)R)R.", "calls what is no name"),
    "arguments in a list": (b"ccollections\nOrderedDict\n]R.", "without a tuple"),
    "item into a tuple": (b")K\x01a.", "holds none"),
    "key into a list": (b"]K\x01K\x02s.", "holds none"),
    "key without a value": (b"}(K\x01u.", "without a value"),
    "state of an integer": (b"K\x01K\x02b.", "has none"),
    "state of a name": (b"ccollections\nOrderedDict\nK\x02b.", "has none"),
    "INST": (b"(icollections\nOrderedDict\n.", "uses INST"),
    "OBJ": (b"(ccollections\nOrderedDict\no.", "uses OBJ"),
    "EXT1": (b"\x82\x01.", "uses EXT1"),
    "EXT2": (b"\x83\x01\x00.", "uses EXT2"),
    "EXT4": (b"\x84\x01\x00\x00\x00.", "uses EXT4"),
    "PERSID": (b"Pabc\n.", "uses PERSID"),
    "STRING": (b"S'abc'\n.", "uses STRING"),
    "UNICODE": (b"Vabc\n.", "uses UNICODE"),
    "NEXT_BUFFER": (b"\x97.", "uses NEXT_BUFFER"),
    "READONLY_BUFFER": (b"N\x98.", "uses READONLY_BUFFER"),
    "persistent number": (b"K\x01Q.", "persistent id"),
    "persistent model": (pickled(tuple_of(text("module"), b"N", b"N", b"N") + b"Q"), "holds a model"),
}


@pytest.mark.parametrize(("data", "what"), MALFORMED.values(), ids=MALFORMED)
def test_unpickle_refuses_a_malformed_stream(data: bytes, what: str) -> None:
    with bounded(megabytes=2), pytest.raises(CheckpointError, match=what):
        load(data)


def test_interpret_asks_for_more_only_where_the_data_end() -> None:
    data = pickle.dumps({"key": [1, 2**40, "text", (1, 2, 3), 2.5]}, 2)
    for length in range(len(data)):
        with pytest.raises(Truncated):
            interpret(data[:length], TorchEnvironment(), FILE, "the file", 0)


MANY = 200_000
DEEP = {
    "lists": b"]" * MANY + b"a" * (MANY - 1),
    "tuples": b")" + b"\x85" * MANY,
    "marks": b"(" * MANY + b"t" * MANY,
    "dicts": b"}X\x01\x00\x00\x00a" * MANY + b"N" + b"s" * MANY,
    "arguments": b"(cargparse\nNamespace\n\x94)\x94" + b"h\x00h\x01\x85R" * MANY + b"t",
    "shared lists": b"(]\x94" + b"".join(b"](h" + bytes((i, ord("h"), i)) + b"e\x94" for i in range(200)) + b"t",
}


@pytest.mark.parametrize("body", DEEP.values(), ids=DEEP)
def test_unpickle_takes_any_depth_in_linear_time(body: bytes) -> None:
    start = time.perf_counter()
    found = load(b"\x80\x04" + body + b".")
    # Freeing must not recurse either.
    del found
    assert time.perf_counter() - start < 10


def test_unpickle_lets_no_keys_collide() -> None:
    # Equal modulo 2**61 - 1: a plain dict would compare each with all before it.
    numbers = b"".join(integer(i * (2**61 - 1)) + b"N" for i in range(20_000))
    tuples = b"".join(integer(i * (2**61 - 1)) + b"\x85N" for i in range(20_000))
    floats = b"".join(b"G" + struct.pack(">d", float(i << 60)) + b"N" for i in range(1, 20_000))
    for items in (numbers, tuples, floats):
        start = time.perf_counter()
        assert len(load(pickled(b"}(" + items + b"u"))) > 19_000
        assert time.perf_counter() - start < 5


BOMBS = {
    "dicts": b"(" + b"}" * MANY + b"t",
    "lists": b"(" + b"]" * MANY + b"t",
    "tuples": b"(" + b"N\x85" * MANY + b"t",
    "marks": b"(" * MANY,
    "calls": named("collections", "OrderedDict") + b"\x940" + b"h\x00)R" * MANY,
    "one long tuple again and again": b"(" + b"N" * MANY + b"t\x940ctorch\nSize\n\x940" + b"h\x01h\x00\x85R" * 1000,
    "one long list again and again": b"](" + b"N" * MANY + b"e\x940ctorch\nSize\n\x940" + b"h\x01h\x00\x85R" * 1000,
}


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS)
def test_unpickle_bounds_what_few_bytes_can_make(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_machine, "_ALLOWANCE", 2**20)
    with bounded(megabytes=4 + 30 * len(body) // 10**6):
        assert "too many objects for its size" in error_of(b"\x80\x04" + body + b".")


def test_unpickle_allows_what_torch_saves_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(50)]
    for parameter in parameters:
        parameter.grad = torch.zeros(2, 2)
    optimizer = torch.optim.AdamW(parameters)
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "model": {f"layers.{i}.weight": p for i, p in enumerate(parameters)}}
    monkeypatch.setattr(pickle_machine, "_ALLOWANCE", 0)
    for protocol in (2, 4):
        with zipfile.ZipFile(io.BytesIO(saved(state, pickle_protocol=protocol))) as archive:
            assert load(archive.read("archive/data.pkl"))["model"].keys() == state["model"].keys()


def test_unpickle_ignores_what_is_put_into_inert_objects() -> None:
    body = named("argparse", "Namespace") + b")\x81" + mapping({"lr": b"G" + bytes(8), "deep": b"]"}) + b"b"
    assert load(pickled(body)).kind == "Namespace"
    body = named("omegaconf.listconfig", "ListConfig") + b")\x81(K\x01K\x02eK\x03a"
    assert load(pickled(body)).kind == "ListConfig"
    method = call("builtins", "getattr", named("mmengine.logging.history_buffer", "HistoryBuffer"), text("mean"))
    assert load(pickled(method)).kind == "method"
    assert "calls what is no name" in error_of(pickled(method + b")R"))
