"""Temporary files beside a target, and the one rename that turns them into it.

A run that is killed leaves only names of the form ``.NAME.pysoup-PID-RANDOM.tmp``; the next run for the same target
removes those whose owner is gone. An owner holds an flock while it lives: a process id alone means nothing on a
volume that containers or machines share.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from pathlib import Path

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_NOT_OFFERED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
_LONGEST_STEM = 200
_TEMPORARY, _OLD = "tmp", "old"


def temporary_path(target: Path, kind: str = _TEMPORARY) -> Path:
    """A fresh hidden name beside ``target``."""
    return target.with_name(f".{_stem(target)}.pysoup-{os.getpid()}-{os.urandom(4).hex()}.{kind}")


def lock(path: Path) -> int:
    """Open ``path`` (file or directory) and mark it as in use for as long as the returned descriptor is open."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    # A filesystem without locks leaves the process id as the only mark.
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


def remove_stale(target: Path) -> list[Path]:
    """Remove what killed runs for ``target`` left behind; what a live process owns stays. Returns what was removed.

    Where a kill hit between the two renames of :func:`_replace_in_two_steps`, the old directory is put back first.
    """
    pattern = re.compile(re.escape(f".{_stem(target)}.pysoup-") + r"(\d{1,10})-[0-9a-f]{8}\.(tmp|old)")
    removed = []
    try:
        names = os.listdir(target.parent)
    except OSError:
        return []
    for name in names:
        match = pattern.fullmatch(name)
        path = target.with_name(name)
        if match is None or _is_alive(int(match[1])) or _is_locked(path):
            continue
        if match[2] == _OLD and not os.path.lexists(target):
            with contextlib.suppress(OSError):
                os.rename(path, target)
            continue
        remove(path)
        removed.append(path)
    return removed


def remove(path: Path) -> None:
    """Remove a file or a whole directory; what cannot be removed is left for the next run."""
    if path.is_dir() and not path.is_symlink():
        import shutil

        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            # An empty one goes even where no descriptor is left to look into it.
            path.rmdir()
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def publish_file(temporary: Path, target: Path, overwrite: bool) -> None:
    """Rename a finished file onto ``target``. Without ``overwrite``, FileExistsError if one appeared meanwhile."""
    if overwrite:
        os.replace(temporary, target)
        return
    try:
        _renameat2(temporary, target, _RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.rename(temporary, target)


def publish_directory(temporary: Path, target: Path, overwrite: bool) -> Path | None:
    """Rename a finished directory onto ``target``, which may be absent or empty, or with ``overwrite`` a full one.

    Returns where the old content of a full one is now, for :func:`remove`.
    """
    try:
        os.rename(temporary, target)
        return None
    except OSError as error:
        if not overwrite or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    try:
        _renameat2(temporary, target, _RENAME_EXCHANGE)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise
        return _replace_in_two_steps(temporary, target)
    return temporary


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable, where the filesystem can."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise
    finally:
        os.close(fd)


def _replace_in_two_steps(temporary: Path, target: Path) -> Path:
    """For filesystems that cannot exchange: for an instant no directory has the target's name."""
    old = temporary_path(target, _OLD)
    os.rename(target, old)
    try:
        os.rename(temporary, target)
    except BaseException:
        os.rename(old, target)
        raise
    return old


def _renameat2(source: Path, target: Path, flags: int) -> None:
    """renameat2(2); OSError(ENOSYS) where the C library lacks it."""
    import ctypes

    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def _stem(target: Path) -> str:
    """The target's name, or a digest of it where the temporary name would be too long for a filesystem."""
    raw = os.fsencode(target.name)
    if len(raw) <= _LONGEST_STEM:
        return target.name
    import hashlib

    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def _is_alive(pid: int) -> bool:
    """Whether another process has this id. In a container a killed run's id is often this one's: then locks decide."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid > 0


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False
