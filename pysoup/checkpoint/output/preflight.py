"""Whether an output may and can be written, found out before a byte is: what ``--dry-run`` reports."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from ...errors import OutputError
from ..checkpoint import Checkpoint
from ..index import LONGEST_NAME, SUFFIX
from .output_format import OUTPUT_SUFFIXES, WEIGHT_SUFFIXES


def output_error(error: OSError | ValueError, output: Path, nbytes: int | None = None) -> OutputError:
    """The one line for an operating system error while writing ``output`` (``nbytes`` in all)."""
    if isinstance(error, ValueError):
        return OutputError("not a valid file name", file=output)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "disk quota exceeded" if error.errno == errno.EDQUOT else "disk is full"
        expected = None if nbytes is None else f"{nbytes} bytes"
        return OutputError(what, file=output, found=f"{free_bytes(output.parent)} bytes free", expected=expected)
    if error.errno == errno.EEXIST or error.errno == errno.ENOTEMPTY:
        return OutputError("output already exists; overwrite=True (--force) replaces it", file=output)
    return OutputError(f"cannot be written: {(error.strerror or str(error)).lower()}", file=output)


def free_bytes(directory: Path) -> int:
    """Bytes that this user can still write there."""
    import shutil

    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return 0


def check_target(target: Path, *, is_directory: bool, overwrite: bool, files: Collection[str] = ()) -> None:
    """Suffix, kind, existence and the parent directory of ``target``, a directory of ``files``. Raises OutputError."""
    try:
        _check_name(target, is_directory)
        _check_parent(target)
        if not os.path.lexists(target):
            return
        if is_directory:
            _check_existing_directory(target, overwrite, files)
        elif target.is_dir():
            raise OutputError("output is a directory", file=target, expected=f"a {target.suffix} file")
        elif not overwrite:
            raise OutputError("output already exists; overwrite=True (--force) replaces it", file=target)
        elif target.exists() and not target.is_file():
            raise OutputError("output exists and is not a regular file", file=target)
    except (OSError, ValueError) as error:
        raise output_error(error, target) from None


def check_space(target: Path, nbytes: int) -> None:
    """Raise OutputError if the filesystem of ``target`` has less than ``nbytes`` bytes to give."""
    free = free_bytes(target.parent)
    if free < nbytes:
        raise OutputError("not enough disk space", file=target, found=f"{free} bytes free", expected=f"{nbytes} bytes")


def check_not_an_input(target: Path, inputs: Sequence[Checkpoint], *, is_directory: bool) -> None:
    """Raise OutputError where writing ``target`` would harm an input: the same file, or directories in each other."""
    try:
        there = os.stat(target)
    except (OSError, ValueError):
        there = None
    for checkpoint in inputs:
        for file, stamp in zip(checkpoint.files, checkpoint.stamps, strict=True):
            if there is not None and (there.st_dev, there.st_ino) == (stamp.device, stamp.inode):
                raise OutputError("output is an input", file=target, found=str(file))
            if is_directory and _within(file, target):
                raise OutputError(
                    "output directory holds an input, which it would replace", file=target, found=str(file)
                )
        directory = checkpoint.files[0].parent
        if is_directory and checkpoint.is_directory and _within(target, directory):
            raise OutputError("output lies inside an input directory", file=target, found=str(directory))


def _within(path: Path, directory: Path) -> bool:
    """Whether ``path`` is ``directory`` or below it: as named, and with all links resolved."""
    roots = (os.path.abspath(directory), os.path.realpath(directory))
    places = (os.path.abspath(path), os.path.realpath(path))
    return any(os.path.commonpath((root, place)) == root for root in roots for place in places)


def _check_name(target: Path, is_directory: bool) -> None:
    if is_directory and target.name.endswith(WEIGHT_SUFFIXES):
        what = "output of a sharded or directory input is a directory"
        raise OutputError(what, file=target, found=repr(target.suffix), expected="a directory name")
    if not is_directory and target.suffix not in OUTPUT_SUFFIXES:
        hint = ", or a name without a suffix for a directory" if target.suffix else ""
        expected = f"{SUFFIX}, .pt or .pth{hint}"
        raise OutputError("unsupported suffix", file=target, found=repr(target.suffix), expected=expected)
    if "\0" in str(target):
        raise OutputError("not a valid file name", file=target)
    if len(os.fsencode(target.name)) > LONGEST_NAME:
        raise OutputError("file name too long", file=target, expected=f"at most {LONGEST_NAME} bytes")


def _check_parent(target: Path) -> None:
    parent = target.parent
    if not parent.exists():
        raise OutputError("directory of the output does not exist", file=target, expected=str(parent))
    if not parent.is_dir():
        raise OutputError("parent of the output is not a directory", file=target, found=str(parent))
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError("directory of the output is not writable", file=target, found=str(parent))


def _check_existing_directory(target: Path, overwrite: bool, files: Collection[str]) -> None:
    if not target.is_dir():
        raise OutputError("output exists and is not a directory", file=target)
    if _within(Path.cwd(), target):
        raise OutputError("output is the current directory or holds it", file=target)
    with os.scandir(target) as entries:
        content = {entry.name: entry.is_dir() for entry in entries}
    if not content:
        return
    if not overwrite:
        raise OutputError("output already exists; overwrite=True (--force) replaces it", file=target)
    # Replacing deletes all that is in there: only what looks like a checkpoint is ours to delete.
    if not any(name.endswith(SUFFIX) for name in content):
        what = "will not replace a directory that holds no safetensors files"
        raise OutputError(what, file=target, found=sorted(content)[0])
    for name, holds_more in content.items():
        if holds_more:
            _check_folder(target, name, files)


def _check_folder(target: Path, folder: str, files: Collection[str]) -> None:
    """A folder inside is replaced only where the output has it again, and every file in it."""
    known = not os.path.islink(target / folder) and any(name.startswith(folder + "/") for name in files)
    with os.scandir(target / folder) as entries:
        for entry in entries:
            name = f"{folder}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                _check_folder(target, name, files)
            else:
                known = known and name in files
    if not known:
        raise OutputError("will not replace a directory that holds directories", file=target, found=folder)
