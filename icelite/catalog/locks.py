"""Locks on a catalog file that no other code in the process can drop, beside SQLite's own.

SQLite's locks belong to the process and the file: when *any* descriptor of the file is closed, by whatever code, all of
them are gone (https://sqlite.org/howtocorrupt.html, section 2.2). Those of a `Guard` belong to an open file description
(``F_OFD_SETLK``, fcntl(2)), so icelite's processes and threads stay safe among themselves.

Two bytes behind those that SQLite locks are used. The last byte of SQLite's own range for readers is taken along: what
reads under a guard thereby keeps every writer of SQLite out, and the connection that holds it cannot begin to overwrite
the file before its busy handler was asked (`icelite.catalog.door`).

Invariants
----------
- Every connection has a guard of its own, with a descriptor that no other connection uses at the same time.
- Descriptors are kept and handed on while any connection to the file is open, and closed with the last one: closing one
  drops SQLite's locks too.
- A child of os.fork() closes what it inherited before it opens anything. It never unlocks it: that would unlock the
  parent.

Where there are no such locks (macOS, Windows) or no file (in memory), a guard does nothing.

Every process that writes has to see these locks. Over a network they may be kept by each machine for itself, come late,
or be granted twice (https://sqlite.org/faq.html#q5): `check_locks` tells such a file system.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path

from icelite.errors import ErrorKind, FormatError, StorageError

if sys.platform == "linux":
    import fcntl

    _SET = getattr(fcntl, "F_OFD_SETLK", 0)  # missing where Python was built against old headers
    _SET_OF_PROCESS = fcntl.F_SETLK
else:
    _SET = _SET_OF_PROCESS = 0

PENDING = 0x40000000  # SQLite's bytes, as in its os.h: whoever begins to read locks this one for a moment,
RESERVED = PENDING + 1  # who writes this one,
LAST_OF_SQLITE = PENDING + 0x1FF  # and readers share those up to here, which who overwrites the file needs for itself
READERS = LAST_OF_SQLITE + 1
WRITER = LAST_OF_SQLITE + 2
PENDING_ATTEMPTS = 100  # readers have that lock for microseconds
_FLOCK = "hhqqi4x"  # a struct flock: kind, whence, first byte, bytes, process


def _lock(kind: str, first: int, count: int) -> bytes:
    """A ``struct flock``, made once: packing it costs as much as the system call."""
    if not _SET:
        return b""
    return struct.pack(_FLOCK, getattr(fcntl, kind), os.SEEK_SET, first, count, 0)


_SHARE = _lock("F_RDLCK", LAST_OF_SQLITE, 2)
_UNSHARE = _lock("F_UNLCK", LAST_OF_SQLITE, 2)
_EXCLUDE = _lock("F_WRLCK", READERS, 1)
_LET_SQLITE = _lock("F_UNLCK", LAST_OF_SQLITE, 1)
_WRITE = _lock("F_WRLCK", WRITER, 1)
_NO_LONGER_WRITE = _lock("F_UNLCK", WRITER, 1)
_WEAKEN_RESERVED = _lock("F_RDLCK", RESERVED, 1)
_RESERVE = _WEAKEN_RESERVED
_DROP_PENDING = _lock("F_UNLCK", PENDING, 1)
_YIELD = _lock("F_UNLCK", PENDING, 2)
_PEND = _lock("F_WRLCK", PENDING, 1)
_RELEASE = _lock("F_UNLCK", PENDING, WRITER + 1 - PENDING)


class _Descriptors:
    """The descriptors of one file that this process has for its guards."""

    def __init__(self) -> None:
        self.writable: dict[int, bool] = {}  # every one that is open
        self.idle: list[int] = []
        self.used = 0


_files: dict[tuple[int, int], _Descriptors] = {}  # by device and inode: a file may have several names
_registry = threading.RLock()  # a finalizer may come while this thread has it


class Guard:
    """The locks of one connection on its catalog; each attempt returns at once, and whether it got its lock.

    Parameters
    ----------
    path
        The file; None for a connection that needs no guard.

    Attributes
    ----------
    identity
        Device and inode of the file; None where there is none.
    writes, excludes
        Whether this is the one writer; whether it keeps readers out.

    Raises
    ------
    StorageError, FormatError
        ``io``; ``not-a-file``.
    """

    def __init__(self, path: Path | None) -> None:
        self._held = False
        self.writes = False
        self.excludes = False
        self.identity: tuple[int, int] | None = None
        self._fd: int | None = None
        self._writable = True
        self._give_back: Callable[[], object] | None = None
        if path is not None and _SET:
            self.identity, file, self._fd = _take(path)
            self._writable = file.writable[self._fd]
            self._give_back = weakref.finalize(self, _give_back, self.identity, file, self._fd)

    def close(self) -> None:
        """Hand the descriptor on; after the connection was closed."""
        if self._give_back is not None:
            self._give_back()

    @property
    def is_writable(self) -> bool:
        """Whether the file could be opened for writing."""
        return self._writable

    @property
    def is_held(self) -> bool:
        """Whether it may hold any lock."""
        return self._held

    def stamp(self) -> tuple[int, int, int] | None:
        """What differs once anybody has written to the file; None where there is none."""
        if self._fd is None:
            return None
        status = os.fstat(self._fd)
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size

    def share(self) -> bool:
        """Keep whoever wants to overwrite the file waiting: for reading, and while a writer has not come that far."""
        self._held = True  # first: an interrupt must not leave a lock that nobody knows of
        if self._fd is None or _try(self._fd, _SHARE):
            self.excludes = False
            return True
        return False

    def write(self) -> bool:
        """Become the one writer."""
        self._held = self.writes = True
        if self._fd is None or (self._writable and _try(self._fd, _WRITE)):
            return True
        self.writes = False
        return False

    def exclude(self) -> bool:
        """Keep readers out, once there are none, and let SQLite overwrite the file."""
        self._held = self.excludes = True
        if self._fd is None:
            return True
        if _try(self._fd, _EXCLUDE):
            _try(self._fd, _LET_SQLITE)
            return True
        self.excludes = False
        return False

    def reserve(self) -> bool:
        """Hold SQLite's own lock of a writer, which it has just taken, for it.

        Then no program takes its journal for one that a crash left, nor writes meanwhile, whatever becomes of SQLite's.
        A lock for reading keeps a writer out too, and is compatible with SQLite's once that is one for reading.
        """
        if self._fd is None:
            return True
        return _try(self._fd, _WEAKEN_RESERVED, _SET_OF_PROCESS) and _try(self._fd, _RESERVE)

    def pend(self) -> None:
        """Hold, for SQLite, the lock that keeps every other reader out: other programs, and other code in this process.

        For a connection in SQLite's state PENDING. Where the lock cannot be had, since somebody begins to read just
        now, SQLite's own is gone all the same; then only the guard is left.
        """
        if self._fd is not None:
            _try(self._fd, _DROP_PENDING, _SET_OF_PROCESS)
            for _ in range(PENDING_ATTEMPTS):
                if _try(self._fd, _PEND):
                    return

    def yield_to_sqlite(self) -> None:
        """Let SQLite take its locks by itself again."""
        if self._fd is not None:
            _try(self._fd, _YIELD)

    def step_aside(self) -> None:
        """Let others overwrite the file; of the writer's lock nothing changes."""
        if self._fd is not None:
            _try(self._fd, _UNSHARE)
        self.excludes = False

    def stop_writing(self) -> None:
        """No longer be the writer."""
        if self._fd is not None:
            _try(self._fd, _NO_LONGER_WRITE)
        self.writes = False

    def release(self) -> None:
        """Give up every lock; as often as one likes."""
        if self._held:
            if self._fd is not None:
                _try(self._fd, _RELEASE)
            self.writes = self.excludes = self._held = False


def _try(descriptor: int, lock: bytes, command: int = _SET) -> bool:
    try:
        fcntl.fcntl(descriptor, command, lock)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise StorageError(
            f"the file system of the catalog gives no locks: {error.strerror}; copy the catalog to a local disk",
            ErrorKind.IO,
        ) from error
    return True


def _take(path: Path) -> tuple[tuple[int, int], _Descriptors, int]:
    with _registry:
        try:
            known = os.stat(path)
            identity = known.st_dev, known.st_ino
            file = _files.get(identity)
            descriptor = None if file is None else _find_idle(file, path)
            if file is None or descriptor is None:
                descriptor, writable = _open(path)
                found = os.fstat(descriptor)  # not what `stat` saw, if the file was replaced meanwhile
                identity = found.st_dev, found.st_ino
                file = _files.setdefault(identity, _Descriptors())
                file.writable[descriptor] = writable
                if not stat.S_ISREG(found.st_mode):
                    file.idle.append(descriptor)
                    _close_unused(identity, file)
                    raise FormatError(f"{path} is not a regular file", ErrorKind.NOT_A_FILE)
        except OSError as error:
            raise StorageError(
                f"{path} cannot be opened: {error.strerror}; check its permissions", ErrorKind.IO
            ) from error
        file.used += 1
        return identity, file, descriptor


def _find_idle(file: _Descriptors, path: Path) -> int | None:
    """A descriptor to hand on: for writing, if the file can be written by now."""
    best = max(file.idle, key=file.writable.__getitem__, default=None)
    if best is None or (not file.writable[best] and os.access(path, os.W_OK)):
        return None
    file.idle.remove(best)
    return best


def _open(path: Path) -> tuple[int, bool]:
    flags = os.O_NONBLOCK | os.O_NOCTTY  # it may have become a FIFO or a terminal
    try:
        return os.open(path, os.O_RDWR | flags), True
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return os.open(path, os.O_RDONLY | flags), False


def _give_back(identity: tuple[int, int], file: _Descriptors, descriptor: int) -> None:
    with _registry:
        if _files.get(identity) is not file:  # a child of os.fork() closed it long ago
            return
        _try(descriptor, _RELEASE)
        file.used -= 1
        file.idle.append(descriptor)
        _close_unused(identity, file)


def _close_unused(identity: tuple[int, int], file: _Descriptors) -> None:
    if file.used == 0:
        del _files[identity]
        for descriptor in file.writable:
            os.close(descriptor)


def _close_inherited() -> None:
    """Close the parent's descriptors in a child, which has no connection yet: the locks stay the parent's.

    A copy that stayed open would keep the locks after the parent's death.
    """
    global _registry
    _registry = threading.RLock()
    for file in _files.values():
        for descriptor in file.writable:
            os.close(descriptor)
    _files.clear()


if _SET:
    os.register_at_fork(after_in_child=_close_inherited)


# -- file systems --------------------------------------------------------------------------------------------------

# statfs(2) and linux/magic.h, and what the out-of-tree ones say of themselves.
NETWORK = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFE534D42: "SMB",
    0xFF534D42: "SMB (CIFS)",
    0x0BD00BD0: "Lustre",
    0x00C36400: "Ceph",
    0x47504653: "GPFS",
    0x19830326: "BeeGFS",
    0x20030528: "OrangeFS",
    0xAAD7AAEA: "PanFS",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x73757245: "Coda",
    0x564C: "NCP",
    0x01021997: "9P",
    0x786F4256: "a VirtualBox shared folder",
    0xBACBACBC: "a VMware shared folder",
}
FUSE = 0x65735546
# Programs behind FUSE that keep their files on this machine; any other one is taken for a network.
LOCAL_FUSE = {
    "fuseblk",
    *(
        f"fuse.{name}"
        for name in (
            "bindfs",
            "encfs",
            "exfat",
            "exfat-fuse",
            "ext2",
            "fuse-ext2",
            "fuse-overlayfs",
            "gocryptfs",
            "mergerfs",
            "ntfs",
            "ntfs-3g",
            "ntfs3g",
            "unionfs",
            "unionfs-fuse",
            "zfs-fuse",
        )
    ),
}
MOUNTS = "/proc/self/mountinfo"

_found: dict[str, str | None] = {}  # by path: asked and warned about once in a process


def check_locks(path: Path, *, strict: bool) -> None:
    """Warn, once for each file, where locks may not be enough for several writers; ``strict``: refuse.

    Raises
    ------
    StorageError
        ``unsafe-storage``.
    """
    name = str(path)
    is_new = name not in _found
    if is_new:
        _found[name] = find_network(path)
    network = _found[name]
    if network is None:
        return
    what = f"{path} is on {network}, whose locks other machines may not see"
    if strict:
        raise StorageError(
            f"{what}, and strict_locking is set: write to a copy on a local disk, then put that in its place",
            ErrorKind.UNSAFE_STORAGE,
        )
    if is_new:
        warnings.warn(
            f"{what}: let one machine write, or work on a copy on a local disk (strict_locking=True refuses it)",
            stacklevel=3,
        )


def find_network(path: Path) -> str | None:
    """What the network file system is called that a file or its directory is on; None on a local one."""
    for place in (path, path.parent):
        kind = _ask(place)
        if kind is not None:
            return classify(kind, _find_mount(place) if kind == FUSE else None)
    return None


def classify(kind: int, mount: str | None) -> str | None:
    """What a network file system is called.

    Parameters
    ----------
    kind
        ``f_type`` of statfs(2).
    mount
        For FUSE the type of the mount, such as ``fuse.sshfs``, if it is known.
    """
    if kind == FUSE:
        return None if mount in LOCAL_FUSE else f"FUSE ({(mount or 'of unknown type').removeprefix('fuse.')})"
    return NETWORK.get(kind)


def _ask(place: Path) -> int | None:
    """``f_type`` of statfs(2); None where there is no such call or no such file."""
    if sys.platform != "linux":
        return None
    answer = (ctypes.c_long * 64)()  # more than the structure has on any machine
    if ctypes.CDLL(None).statfs(os.fsencode(place), answer) != 0:
        return None
    return int(answer[0]) & 0xFFFFFFFF


def _find_mount(place: Path) -> str | None:
    """The type of the mount that a file is on (proc(5), mountinfo)."""
    try:
        device = os.stat(place).st_dev
        with open(MOUNTS, encoding="utf-8", errors="replace") as lines:
            return find_type(lines.read(), f"{os.major(device)}:{os.minor(device)}")
    except OSError:
        return None


def find_type(mounts: str, device: str) -> str | None:
    """The type of the file system on a device, in the text of a mountinfo file."""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2:3] == [device] and after:
            return after.split()[0]
    return None
