"""Rows of bad directories: an index and its shards, of safetensors and of torch's files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from bad_inputs import (
    BAD,
    HEADER,
    Make,
    Row,
    has_duplicates,
    packed,
    read_safetensors,
    safetensors_refuses,
    torch_refuses,
)
from checkpoint_files import entry, raw_file
from torch_files import archive, archive_members, call, mapping, named, pickled, storage, tensor, text, zip_bytes

A, W = "model-00001-of-00002", "model-00002-of-00002"


def shard_a(suffix: str) -> bytes:
    return _torch("a", (2,), (1,)) if suffix == "bin" else _safetensors("a", [2])


def shard_w(suffix: str) -> bytes:
    return _torch("w", (2, 2), (2, 1)) if suffix == "bin" else _safetensors("w", [2, 2])


def _safetensors(name: str, shape: list[int]) -> bytes:
    data = packed({name: BAD[name]})
    header = json.dumps({name: entry("F32", shape, 0, len(data))}).encode()
    return len(header).to_bytes(8, "little") + header + data


def _torch(name: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    data = packed({name: BAD[name]})
    tree = mapping({name: tensor(shape, strides, store=storage("0", len(data) // 4))})
    return zip_bytes(archive_members(pickled(tree), {"0": data}))


def shards(
    weight_map: object = None,
    index: bytes | None = None,
    change: Callable[[Path], object] = lambda directory: None,
    suffix: str = "safetensors",
    by_index: bool = False,
) -> Make:
    """A directory of two shards; with the fault another map or text of the index, or a change in the directory."""

    def make(directory: Path, broken: bool) -> Path:
        model = directory / "model"
        model.mkdir(exist_ok=True)
        (model / f"{A}.{suffix}").write_bytes(shard_a(suffix))
        (model / f"{W}.{suffix}").write_bytes(shard_w(suffix))
        good = {"a": f"{A}.{suffix}", "w": f"{W}.{suffix}"}
        chosen = {
            "metadata": {"total_size": 24},
            "weight_map": weight_map if broken and weight_map is not None else good,
        }
        file = model / index_name(suffix)
        file.write_bytes(index if broken and index is not None else json.dumps(chosen).encode())
        if broken:
            change(model)
        return file if by_index else model

    return make


def index_name(suffix: str) -> str:
    return "model.safetensors.index.json" if suffix == "safetensors" else "pytorch_model.bin.index.json"


def index_of(path: Path) -> Path:
    return path if path.is_file() else next(iter(path.glob("*.index.json")))


def weight_map(path: Path) -> dict[str, str]:
    found = json.loads(index_of(path).read_bytes())["weight_map"]
    assert isinstance(found, dict)
    return found


def names_a_missing_file(path: Path) -> bool:
    directory = index_of(path).parent
    return any(not (directory / shard).is_file() for shard in weight_map(path).values())


def points_outside(path: Path) -> bool:
    directory = index_of(path).parent
    found = [os.path.abspath(directory / shard.replace("\\", "/")) for shard in weight_map(path).values()]
    return any(os.path.dirname(place) != str(directory) for place in found)


def index_fails(path: Path) -> bool:
    try:
        return type(json.loads(index_of(path).read_bytes())["weight_map"]) is not dict
    except (ValueError, KeyError, TypeError, RecursionError):
        return True


def index_has_duplicates(path: Path) -> bool:
    return has_duplicates(index_of(path).read_bytes())


def has_no_index(path: Path) -> bool:
    return not list(path.glob("*.index.json"))


def disagrees(path: Path) -> bool:
    """Whether the shards, as the library reads them, hold other tensors than the index says."""
    directory = index_of(path).parent
    found = {(name, f.name) for f in directory.glob("*.safetensors") for name in read_safetensors(f)}
    return found != set(weight_map(path).items())


def a_shard_is_bad(path: Path) -> bool:
    directory = index_of(path).parent
    files = {f for f in directory.iterdir() if f.suffix in (".safetensors", ".bin")}
    return any((torch_refuses if f.suffix == ".bin" else safetensors_refuses)(f) for f in files)


def written(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_bytes(content)


def removed(*names: str) -> Callable[[Path], object]:
    return lambda directory: [(directory / name).unlink() for name in names]


def sparse(size: int) -> Callable[[Path], object]:
    return lambda directory: os.truncate(directory / index_name("safetensors"), size)


def replaced_by_directory(directory: Path) -> None:
    (directory / f"{W}.safetensors").unlink()
    (directory / f"{W}.safetensors").mkdir()


def replaced_by_fifo(directory: Path) -> None:
    (directory / f"{W}.safetensors").unlink()
    os.mkfifo(directory / f"{W}.safetensors")


def replaced_by_loop(directory: Path) -> None:
    (directory / f"{W}.safetensors").unlink()
    (directory / f"{W}.safetensors").symlink_to(f"{W}.safetensors")


ST, BIN = "model.safetensors.index.json", "pytorch_model.bin.index.json"
MAP = {"a": f"{A}.safetensors", "w": f"{W}.safetensors"}
INDEX = json.dumps({"weight_map": MAP}).encode()
EVIL = mapping({"evil": call("posix", "system", text("true")), "w": named("posix", "system")})


def elsewhere(shard: str, suffix: str = "safetensors", by_index: bool = False) -> Row:
    what = f"{suffix}, {shard!r}" + (", by its index" if by_index else "")
    good = f"{A}.{suffix}"
    return Row(
        "a shard index that points outside its directory",
        what,
        shards({"a": good, "w": shard}, suffix=suffix, by_index=by_index),
        "invalid shard name",
        points_outside,
        "w",
        index_name(suffix),
    )


SHARDS = [
    Row(
        "missing file",
        "index",
        shards(change=removed(ST), by_index=True),
        "no such file",
        lambda path: not path.exists(),
    ),
    Row("empty file", "index", shards(index=b""), "index is not valid JSON", index_fails, file=ST),
    Row(
        "empty file",
        "shard",
        shards(change=written(f"{W}.safetensors", b"")),
        "file is empty",
        a_shard_is_bad,
        file=f"{W}.safetensors",
    ),
    Row(
        "empty file",
        "torch shard",
        shards(change=written(f"{W}.bin", b""), suffix="bin"),
        "file is empty",
        a_shard_is_bad,
        file=f"{W}.bin",
    ),
    Row(
        "truncated at every section", "index", shards(index=INDEX[:-1]), "index is not valid JSON", index_fails, file=ST
    ),
    Row(
        "truncated at every section",
        "shard",
        shards(change=written(f"{W}.safetensors", shard_w("st")[:-1])),
        "truncated",
        a_shard_is_bad,
        "w",
        f"{W}.safetensors",
    ),
    Row(
        "truncated at every section",
        "torch shard",
        shards(change=written(f"{W}.bin", shard_w("bin")[:-1]), suffix="bin"),
        "no end mark",
        a_shard_is_bad,
        None,
        f"{W}.bin",
    ),
    Row(
        "header length beyond 100 MB",
        "index",
        shards(change=sparse(100_000_001)),
        "index too large: found 100000001, expected at most 100000000",
        index_fails,
        file=ST,
    ),
    Row(
        "header length negative",
        "shard",
        shards(change=written(f"{W}.safetensors", b"\xff" * 8 + shard_w("st")[8:])),
        "header too large",
        a_shard_is_bad,
        file=f"{W}.safetensors",
    ),
    Row(
        "invalid JSON",
        "index",
        shards(index=INDEX.replace(b":", b"=")),
        "index is not valid JSON",
        index_fails,
        file=ST,
    ),
    Row("invalid JSON", "index, an array", shards(index=b"[1]"), "index is not a JSON object", index_fails, file=ST),
    Row("invalid JSON", "index, nested", shards(index=b"[" * 100_000), "nested too deeply", index_fails, file=ST),
    Row(
        "invalid JSON", "index without a map", shards(index=b'{"metadata": {}}'), "no weight_map", index_fails, file=ST
    ),
    Row("invalid JSON", "map that is a list", shards([["a", "b"]]), "no weight_map", index_fails, file=ST),
    Row(
        "invalid UTF-8",
        "index",
        shards(index=INDEX.replace(b'"a"', b'"\xff"')),
        "index is not UTF-8",
        index_fails,
        file=ST,
    ),
    Row(
        "duplicate JSON names",
        "index",
        shards(index=INDEX.replace(b'"w"', b'"a": "x", "w"').replace(b'"x"', b'"w"')),
        "duplicate name 'a'",
        index_has_duplicates,
        file=ST,
    ),
    Row(
        "duplicate JSON names",
        "in two shards",
        shards(change=lambda d: raw_file(d / f"{W}.safetensors", HEADER, packed(BAD))),
        "tensor 'a': the same tensor is also in shard",
        disagrees,
        "a",
        f"{W}.safetensors",
    ),
    Row(
        "directory without an index",
        "of shards",
        shards(change=removed(ST)),
        "a shard is no model of its own",
        has_no_index,
        file=f"{A}.safetensors",
    ),
    Row(
        "directory without an index",
        "of torch shards",
        shards(change=removed(BIN), suffix="bin"),
        "a shard is no model of its own",
        has_no_index,
        file=f"{A}.bin",
    ),
    Row(
        "directory without an index",
        "empty",
        shards(change=removed(ST, f"{A}.safetensors", f"{W}.safetensors")),
        "no weights in directory: found an empty directory",
        has_no_index,
    ),
    Row(
        "directory without an index",
        "of one shard",
        shards(change=removed(ST, f"{A}.safetensors")),
        "shard",
        has_no_index,
        file=f"{W}.safetensors",
    ),
    Row(
        "index naming a missing shard",
        "of safetensors",
        shards(change=removed(f"{W}.safetensors")),
        f"shard '{W}.safetensors' is missing",
        names_a_missing_file,
        file=ST,
    ),
    Row(
        "index naming a missing shard",
        "of torch files",
        shards(change=removed(f"{W}.bin"), suffix="bin"),
        f"shard '{W}.bin' is missing",
        names_a_missing_file,
        file=BIN,
    ),
    Row(
        "index naming a missing shard",
        "by the index",
        shards(MAP | {"w": "x.safetensors"}, by_index=True),
        "shard 'x.safetensors' is missing",
        names_a_missing_file,
    ),
    Row(
        "index naming a missing shard",
        "a directory",
        shards(change=replaced_by_directory),
        "not a regular file",
        names_a_missing_file,
        file=f"{W}.safetensors",
    ),
    Row(
        "index naming a missing shard",
        "a FIFO",
        shards(change=replaced_by_fifo),
        "not a regular file",
        names_a_missing_file,
        file=f"{W}.safetensors",
    ),
    Row(
        "index naming a missing shard",
        "a link to itself",
        shards(change=replaced_by_loop),
        "is missing|symbolic",
        names_a_missing_file,
        file=f"{W}.safetensors",
    ),
    Row(
        "index naming a missing shard",
        "tensor in another",
        shards(MAP | {"w": f"{A}.safetensors"}),
        "not in shard",
        disagrees,
        "w",
        ST,
    ),
    Row(
        "index naming a missing shard",
        "tensor that no shard has",
        shards(MAP | {"v": f"{A}.safetensors"}),
        "not in shard",
        disagrees,
        "v",
        ST,
    ),
    Row(
        "index naming a missing shard",
        "tensor that the index lacks",
        shards({"a": f"{A}.safetensors"}, change=lambda d: raw_file(d / f"{A}.safetensors", HEADER, packed(BAD))),
        "in shard '.*', but not in the index",
        disagrees,
        "w",
        ST,
    ),
    *(
        elsewhere(shard)
        for shard in ("../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "..")
    ),
    elsewhere("../../good.safetensors", by_index=True),
    elsewhere("../x.bin", "bin"),
    Row(
        "pickle with code in it",
        "torch shard",
        shards(change=lambda d: archive(d / f"{W}.bin", pickled(EVIL)), suffix="bin"),
        "posix.system",
        a_shard_is_bad,
        file=f"{W}.bin",
    ),
]
