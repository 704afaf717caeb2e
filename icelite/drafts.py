"""Files and folders that appear under their name when they are whole, and of which nothing is left otherwise.

A draft is hidden beside its target: ``.icelite-<16 hex digits>``. Its writer holds a lock on a file of that name and
``.lock`` until it is done, so that whoever writes to the folder next knows the drafts of those that were killed.
A file of known bytes in a folder that only icelite writes to needs no lock: `write_whole`.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks: nothing is swept
    fcntl = None  # type: ignore[assignment]

PREFIX = ".icelite-"
ABANDONED_SECONDS = 3600  # after which a draft that nobody writes is removed
_LOCK = ".lock"
_NAME = re.compile(re.escape(PREFIX) + r"[0-9a-f]{16}")
_SIDECARS = ("-journal", "-wal", "-shm")


@contextlib.contextmanager
def draft(target: Path, check: Callable[[], None], *, replace: bool = False) -> Iterator[Path]:
    """Yield a path beside the target where nothing is; what is written there becomes the target when the block ends.

    Parameters
    ----------
    check
        Raises the caller's error where the target cannot be had; asked before the block and behind it.
    replace
        What has the name goes when the draft is whole. Otherwise the name is taken only if it is free, but for an
        empty folder.

    Raises
    ------
    OSError
        What the disk says; the draft is gone then, and the target is as it was.
    """
    check()
    sweep(target.parent)
    path = target.with_name(PREFIX + secrets.token_hex(8))
    with _claimed(path):
        yield path
        check()
        try:
            _give_name(path, target, replace)
        except FileExistsError:
            check()  # says whose name it is by now
            raise


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[None]:
    """Hold the lock that says that somebody writes a draft; what is left of that goes at the end."""
    lock = path.with_name(path.name + _LOCK)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)  # first: where no more files can be open, removing a folder needs one
        remove(path)
        lock.unlink(missing_ok=True)


def _lock(descriptor: int) -> bool:
    """Take the lock if nobody has it; whether that went well."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks
        return False
    return True


def _give_name(path: Path, target: Path, replace: bool) -> None:
    """Let a finished draft appear under its name, durably; raises `FileExistsError` for a name that is taken."""
    descriptor = os.open(target.parent, os.O_RDONLY)  # first: no error comes when the target is there
    try:
        _move(path, target, replace)
        with contextlib.suppress(OSError):  # some network file systems cannot, and need not
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(path: Path, target: Path, replace: bool) -> None:
    is_folder = path.is_dir()
    if replace and (is_folder or _is_folder(target)) and os.path.lexists(target):
        _exchange(path, target)
    elif replace:
        path.replace(target)
    elif is_folder:
        _rename_folder(path, target)
    else:
        if _is_folder(target):
            _remove_empty(target)
        _link(path, target)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _exchange(path: Path, target: Path) -> None:
    # A name that is never swept: killed between the two renames, this is all that is left of what was there.
    old = target.with_name(f"{PREFIX}{secrets.token_hex(8)}-replaced")
    target.rename(old)
    try:
        path.rename(target)
    except BaseException:
        old.rename(target)
        raise
    remove(old)


def _rename_folder(path: Path, target: Path) -> None:
    try:
        path.rename(target)  # over nothing, or an empty folder
    except OSError as error:
        if os.path.lexists(target):
            raise FileExistsError(f"{target} is there already") from error
        raise


def _remove_empty(target: Path) -> None:
    try:
        target.rmdir()
    except OSError as error:
        raise FileExistsError(f"{target} is there already") from error


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: take the name, then replace what holds it
        target.touch(exist_ok=False)
        path.replace(target)


def remove(path: Path) -> None:
    """Remove a draft, file or folder, with what SQLite may have left beside it; no error if it is gone."""
    if _is_folder(path):
        shutil.rmtree(path, ignore_errors=True)
        if path.is_dir():
            _remove_one_by_one(path)
    else:
        path.unlink(missing_ok=True)
    for suffix in _SIDECARS:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _remove_one_by_one(path: Path) -> None:
    """Remove a folder with one descriptor at a time, where there are none for each level, as `shutil.rmtree` needs."""
    for folder, folders, files in os.walk(path, topdown=False):
        for name in (*files, *folders):
            with contextlib.suppress(OSError):
                part = Path(folder, name)
                part.rmdir() if _is_folder(part) else part.unlink()
    with contextlib.suppress(OSError):
        path.rmdir()


# -- one file in a folder of our own ------------------------------------------------------------------------------


def unfinished(path: Path) -> Path:
    """The draft of a file that `write_whole` writes; whoever owns the folder sweeps those that a crash left."""
    return path.with_name(f".{path.name}")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears under its name when all of it is on the disk; the folder is the caller's to sync.

    Raises
    ------
    OSError
        What the disk says; the draft is gone then.
    """
    hidden = unfinished(path)
    try:
        with hidden.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(path)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise


# -- what killed writers left ------------------------------------------------------------------------------------


def sweep(folder: Path) -> None:
    """Remove the drafts in a folder that are an hour old and that nobody writes; whatever else is there stays."""
    with contextlib.suppress(OSError):  # a folder that cannot be listed is the writer's to find out
        with os.scandir(folder) as entries:
            names = {match[0] for entry in entries if (match := _NAME.match(entry.name)) and _is_part(entry.name)}
        for name in names:
            with contextlib.suppress(OSError):  # somebody else was quicker
                _sweep_one(folder / name)


def _is_part(name: str) -> bool:
    return _NAME.fullmatch(name.removesuffix(_LOCK)) is not None or any(
        _NAME.fullmatch(name.removesuffix(suffix)) for suffix in _SIDECARS
    )


def _sweep_one(path: Path) -> None:
    lock = path.with_name(path.name + _LOCK)
    parts = [path, *(path.with_name(path.name + suffix) for suffix in _SIDECARS)]
    there = [part for part in parts if os.path.lexists(part)] or [lock]
    if not all(map(_is_abandoned, there)):
        return
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:  # of an earlier release, or nearly gone
        remove(path)
        return
    try:
        if _lock(descriptor):
            remove(path)
            lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _is_abandoned(path: Path) -> bool:
    """Whether something is a file or folder of this user's that has not been written for long."""
    status = os.lstat(path)
    ours = (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)) and status.st_uid == os.geteuid()
    return ours and time.time() - status.st_mtime > ABANDONED_SECONDS
