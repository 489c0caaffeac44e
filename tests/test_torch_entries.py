"""Which mapping of a training checkpoint is its state dict: the layouts people have, and unclear ones."""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import decimal
import pathlib
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_files import archive, integer, mapping, pickled, saved, tensor, text, values, zip_bytes
from torch_files import archive_members as members

from pysoup.checkpoint.contents import Contents
from pysoup.checkpoint.pickled.torch_file import read_torch
from pysoup.errors import CheckpointError


def state(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"layer.weight": torch.full((2, 2), value), "layer.bias": torch.full((2,), value)}


def read(path: Path, tree: object, entry: str | None = None) -> Contents:
    path.write_bytes(saved(tree))
    return read_torch(path, entry)


def refusal(path: Path, tree: object, entry: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(path, tree, entry)
    line = str(caught.value)
    assert "\n" not in line
    return line.removeprefix(f"{path}: ")


def optimizer_state() -> dict[str, Any]:
    weights = [torch.nn.Parameter(torch.ones(2))]
    weights[0].grad = torch.ones(2)
    optimizer = torch.optim.AdamW(weights)
    optimizer.step()
    return optimizer.state_dict()


LAYOUTS: dict[str, tuple[Callable[[], object], str, list[str]]] = {
    "plain": (state, "", []),
    "Lightning": (
        lambda: {
            "epoch": 3,
            "global_step": 99,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": state(),
            "loops": {"fit_loop": {"state_dict": {"t": torch.ones(2)}}},
            "callbacks": {"EMA": {"weights": state()}},
            "optimizer_states": [optimizer_state()],
            "lr_schedulers": [{"last_epoch": 3}],
            "hyper_parameters": {"net": state()},
        },
        "state_dict",
        [
            "epoch (int)",
            "global_step (int)",
            "pytorch-lightning_version (str)",
            "loops (dict)",
            "callbacks (dict)",
            "optimizer_states (list)",
            "lr_schedulers (list)",
            "hyper_parameters (dict)",
        ],
    ),
    "timm": (
        lambda: {
            "epoch": 3,
            "arch": "vit",
            "state_dict": state(),
            "optimizer": optimizer_state(),
            "version": 2,
            "args": argparse.Namespace(lr=0.1, nested={"t": torch.ones(1)}),
            "amp_scaler": {"scale": torch.ones(1), "growth": torch.ones(1)},
            "metric": 81.5,
        },
        "state_dict",
        [
            "epoch (int)",
            "arch (str)",
            "optimizer (dict)",
            "version (int)",
            "args (Namespace)",
            "amp_scaler (dict)",
            "metric (float)",
        ],
    ),
    "a tensor beside": (lambda: {"best_acc1": torch.tensor(0.5), "model": state()}, "model", ["best_acc1 (tensor)"]),
    "random states beside": (
        lambda: {"rng_state": torch.get_rng_state(), "cuda_rng_state": torch.ones(9), "model": {"w": torch.ones(1)}},
        "model",
        ["rng_state (tensor)", "cuda_rng_state (tensor)"],
    ),
    "odd mapping within": (lambda: {**state(), "extra": {"buffer": torch.ones(1)}}, "", ["extra (dict)"]),
    "two levels down": (
        lambda: {"checkpoint": {"model": {"module": state()}, "step": 5}, "config": None},
        "checkpoint.model.module",
        ["config (None)", "checkpoint.step (int)"],
    ),
    "values that are no tensors": (
        lambda: {**state(), "_extra_state": None, "n": 3, "array": np.ones(3), "raw": b"x"},
        "",
        ["_extra_state (None)", "n (int)", "array (ndarray)", "raw (bytes)"],
    ),
    "shadow": (lambda: {"decay": 0.99, "shadow": state()}, "shadow", ["decay (float)"]),
    "scalars only": (lambda: {"temperature": torch.tensor(1.0)}, "", []),
    "one mapping under two names": (
        lambda: (lambda shared: {"model": shared, "state_dict": shared})(state()),
        "model",
        ["state_dict (dict)"],
    ),
    "inert things beside": (
        lambda: {
            "model": state(),
            "path": pathlib.Path("x"),
            "when": dt.datetime(2024, 1, 1),
            "rate": decimal.Decimal("0.1"),
            "counts": collections.Counter("aab"),
            "queue": collections.deque([1, 2]),
            "table": collections.defaultdict(list, {"a": [1]}),
            "device": torch.device("cpu"),
            "dtype": torch.float32,
            "size": torch.Size([1, 2]),
            "layout": torch.strided,
            "scalar": np.float32(1),
            "random": np.random.RandomState(0).get_state(),
            "generator": np.random.default_rng(0),
            "python": random.getstate(),
            "kinds": {float, int},
            "complex": 1j,
            "slice": slice(1, 2),
        },
        "model",
        [
            "path (PosixPath)",
            "when (datetime)",
            "rate (Decimal)",
            "counts (dict)",
            "queue (deque)",
            "table (dict)",
            "device (device)",
            "dtype (type)",
            "size (tuple)",
            "layout (layout)",
            "scalar (numpy scalar)",
            "random (tuple)",
            "generator (numpy generator)",
            "python (tuple)",
            "kinds (set)",
            "complex (complex)",
            "slice (slice)",
        ],
    ),
}


@pytest.mark.parametrize(("make", "entry", "dropped"), LAYOUTS.values(), ids=LAYOUTS)
def test_entry_of_a_known_layout_is_found(
    tmp_path: Path, make: Callable[[], object], entry: str, dropped: list[str]
) -> None:
    contents = read(tmp_path / "a.pt", make())
    assert contents.entry == entry
    assert contents.dropped == dropped
    assert values(contents)


UNCLEAR = {
    "weights and their average": (
        lambda: {"state_dict": state(), "state_dict_ema": state(), "optimizer": optimizer_state()},
        "holds 2 state dicts, one of which must be chosen: entry= (--entry): found state_dict, state_dict_ema",
    ),
    "teacher and student": (lambda: {"teacher": state(), "student": state(), "epoch": 1}, "found teacher, student"),
    "tensors of its own": (lambda: {"w": torch.ones(2), "model": state()}, "found '' (the file itself), model"),
    "ten": (lambda: {f"model{i}": state() for i in range(10)}, "model7 and 2 more"),
}


def test_entry_must_be_named_where_several_could_be_meant(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    for make, what in UNCLEAR.values():
        assert what in refusal(path, make())
    assert read(path, UNCLEAR["tensors of its own"][0](), "").dropped == ["model (dict)"]
    chosen = read(path, UNCLEAR["weights and their average"][0](), "state_dict_ema")
    assert chosen.entry == "state_dict_ema"
    assert chosen.dropped == ["state_dict (dict)", "optimizer (dict)"]


@pytest.mark.parametrize(
    ("tree", "what"),
    [
        ([torch.ones(1), torch.ones(2)], "not a state dict: found list of 2 items"),
        (torch.ones(3), "not a state dict: found one tensor"),
        ((1, 2, 3), "found tuple of 3 items"),
        (argparse.Namespace(), "found Namespace"),
        ({}, "no mapping of names to tensors: found an empty mapping"),
        ({"epoch": 3, "arch": "vit"}, "no mapping of names to tensors: found epoch (int), arch (str)"),
        ({"a": {"b": {"c": {"d": {"w": torch.ones(1)}}}}}, "no mapping of names to tensors"),
        ({"optimizer": {"w": torch.ones(2)}}, "only in the state of a training; name an entry"),
        ({"list": [torch.ones(1)]}, "found list (list)"),
        ({5: torch.ones(1)}, "found 5 (tensor)"),
        ({"w": torch.ones(1), 5: torch.ones(1)}, "has a key that is no string: found 5"),
        ({"w": torch.ones(1), ("a", 1): 0}, "has a key that is no string: found tuple"),
    ],
)
def test_entry_of_what_is_no_state_dict_is_refused(tmp_path: Path, tree: object, what: str) -> None:
    assert what in refusal(tmp_path / "a.pt", tree)


def test_entry_may_name_anything(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    tree = {
        "a": {"b": {"w": torch.ones(1)}, "b.c": {"w": torch.ones(2)}},
        "a.b": {"w": torch.ones(3), "c": {"w": torch.ones(4), "optimizer": {"state": {"m": torch.ones(5)}}}},
        "": {"w": torch.ones(6)},
        "w": torch.ones(7),
        "deep": {"a": {"b": {"c": {"d": {"w": torch.ones(8)}}}}},
    }
    cases = {"a.b": 3, "a.b.c": 4, "a.b.c.optimizer.state": 5, "": 7, "deep.a.b.c.d": 8}
    for entry, size in cases.items():
        contents = read(path, tree, entry)
        assert contents.entry == entry
        assert contents.shapes == [(size,)]
    del tree["a.b"]
    assert read(path, tree, "a.b").shapes == [(1,)]
    assert read(path, tree, "a.b.c").shapes == [(2,)]


def test_entry_that_is_absent_or_no_state_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    tree = {"model": {"net": state()}, "epoch": 3, "shadow": {"net": state()}, "optimizer": {"momentum": state()}}
    expected = "found 'ema', expected model.net, shadow.net, optimizer.momentum"
    assert f"has no such entry: {expected}" in refusal(path, tree, "ema")
    assert "has no such entry" in refusal(path, tree, "model.")
    assert "has no such entry" in refusal(path, tree, "." * 100_000)
    assert "entry 'epoch' is no state dict: found int" in refusal(path, tree, "epoch")
    assert "entry 'model' holds no tensors: found net (dict)" in refusal(path, tree, "model")
    assert "entry 'model.net.layer.bias' is no state dict: found tensor" in refusal(path, tree, "model.net.layer.bias")


def test_entry_of_a_mapping_that_holds_itself_is_found_in_finite_time(tmp_path: Path) -> None:
    tree: dict[str, object] = {"w": torch.ones(1)}
    tree["self"] = {"again": tree}
    contents = read(tmp_path / "a.pt", tree)
    assert (contents.entry, contents.names) == ("", ["w"])
    contents = read(tmp_path / "a.pt", tree, "self.again.self.again")
    assert contents.names == ["w"]


def test_entry_names_are_searched_in_linear_time(tmp_path: Path) -> None:
    # Every mapping holds the next one twenty times: 20**3 ways down, and many more if all are walked.
    body = b"}" + text("w") + tensor() + b"s\x94"
    for level in range(200):
        body += b"0}(" + b"".join(text(f"k{i}") + b"h" + bytes((level,)) for i in range(20)) + b"u\x94"
    path = archive(tmp_path / "a.pt", pickled(body.replace(b"q\x00", b"")))
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="no mapping of names to tensors"):
        read_torch(path)
    with pytest.raises(CheckpointError, match="has no such entry"):
        read_torch(path, ".".join(["k1"] * 40 + ["x"]))
    many = mapping({f"m{i}": b"}" + text("w") + tensor() + b"s" for i in range(3000)})
    with pytest.raises(CheckpointError, match=r"holds 3000 state dicts.* and 2992 more"):
        read_torch(archive(tmp_path / "b.pt", pickled(many)))
    assert time.perf_counter() - start < 5


def test_entry_drops_a_bounded_list(tmp_path: Path) -> None:
    tree = mapping({"w": tensor()} | {f"n{i}": integer(i) for i in range(1000)})
    dropped = read_torch(archive(tmp_path / "a.pt", pickled(tree))).dropped
    assert len(dropped) == 101
    assert dropped[-1] == "and 900 more"


def test_read_torch_of_damaged_pickles_fails_in_one_line_only(tmp_path: Path) -> None:
    """Cut at every byte, and with a few bytes changed: whatever happens is a CheckpointError."""
    random.seed(3)
    hidden = {"m": {"x.y": tensor((2, 2), (2, 1)), "z": tensor()}, "n": {"a": integer(5), "o": b"](K\x01K\x02e"}}
    original = pickled(mapping({key: mapping(value) for key, value in hidden.items()}))
    path = tmp_path / "a.pt"
    good = 0

    def attempt(pickle: bytes) -> int:
        path.write_bytes(zip_bytes(members(pickle)))
        try:
            found = read_torch(path)
        except CheckpointError as error:
            assert "\n" not in str(error)  # noqa: PT017
            return 0
        assert values(found)
        return 1

    assert attempt(original)
    assert not any(attempt(original[:length]) for length in range(0, len(original), 3))
    opcodes = b"(.012FGIJKLMNPQRSTUVX]abcdeghijlopqrstu)}\x80\x81\x85\x86\x87\x88\x89\x8a\x8b\x8c\x93\x94\x95"
    for _ in range(600):
        data = bytearray(original)
        for _ in range(random.randint(1, 3)):
            data[random.randrange(len(data))] = random.choice((random.choice(opcodes), random.randrange(256)))
        good += attempt(bytes(data))
    assert good < 400
