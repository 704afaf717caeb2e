"""What may lie beside a catalog: files that SQLite follows, plays back, maps or removes when it opens the catalog.

A file named like one of them may have been planted, or be somebody's notes. So each is looked at without being followed
or waited for, and what is not SQLite's own is refused and left as it is: a link would lead SQLite to another file, a
pipe or device make it wait, and whatever else it would remove.

https://sqlite.org/fileformat2.html#the_rollback_journal and #the_write_ahead_log, https://sqlite.org/walformat.html
"""

from __future__ import annotations

import os
import stat
import struct
import threading
import time
from pathlib import Path

from icelite.errors import ErrorKind, FormatError, StorageError

SUFFIXES = ("-journal", "-wal", "-shm")
JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
JOURNAL_HEADER_BYTES = 28
WAL_MAGICS = (bytes.fromhex("377f0682"), bytes.fromhex("377f0683"))
WAL_VERSION = 3007000
WAL_HEADER_BYTES = 32
SHM_UNIT_BYTES = 32 << 10
SHM_EMPTY_BYTES = 3  # what the first to open one leaves before it maps anything
SECTORS = {1 << power for power in range(5, 17)}
PAGES = {1 << power for power in range(9, 17)}
LOOKS = 3  # at one that somebody may be writing just now
PAUSE_SECONDS = 0.002

_NO_FOLLOW = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_kept: dict[tuple[int, int], int] = {}  # by device and inode: of shared memory, whose closing would drop SQLite's locks
_keeping = threading.Lock()


def check_sidecars(path: Path) -> None:
    """Refuse to open a catalog beside which something lies that SQLite did not write.

    Raises
    ------
    FormatError, StorageError
        ``unsafe-sidecar``; ``io``.
    """
    for suffix in SUFFIXES:
        sidecar = f"{path}{suffix}"
        try:
            status = os.lstat(sidecar)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise StorageError(f"{sidecar} cannot be looked at: {error.strerror}", ErrorKind.IO) from error
        fault = _find_fault(sidecar, suffix, status)
        if fault is not None:
            raise FormatError(
                f"{sidecar} {fault}, which neither SQLite nor icelite wrote: it may have been planted, and was left as"
                " it is; move it away if you trust the catalog without it",
                ErrorKind.UNSAFE_SIDECAR,
            )


def find_stale(path: Path) -> str | None:
    """A file beside the name of a catalog to be, that would be taken for part of it; None where there is none.

    Raises
    ------
    StorageError
        ``io``, for a name so long that its journal cannot have one.
    """
    for suffix in SUFFIXES:
        sidecar = f"{path}{suffix}"
        try:
            status = os.lstat(sidecar)
        except (FileNotFoundError, NotADirectoryError):  # a missing directory is reported later
            continue
        except OSError as error:
            raise StorageError(f"{path} cannot be created with its journal: {error.strerror}", ErrorKind.IO) from error
        if not stat.S_ISREG(status.st_mode) or status.st_size:
            return sidecar
    return None


def _find_fault(sidecar: str, suffix: str, status: os.stat_result) -> str | None:
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link"
    if not stat.S_ISREG(status.st_mode):
        return "is a directory, a pipe, a socket or a device"
    if status.st_nlink > 1:
        return "is another name of a file elsewhere (a hard link)"
    if status.st_size == 0:
        return None
    for look in range(LOOKS):
        if look:
            time.sleep(PAUSE_SECONDS)
        fault = _find_content_fault(sidecar, suffix)
        if fault is None:
            return None
    return fault


def _find_content_fault(sidecar: str, suffix: str) -> str | None:
    try:
        descriptor = _shared(sidecar) if suffix == "-shm" else os.open(sidecar, _NO_FOLLOW)
    except FileNotFoundError:  # its writer is done
        return None
    except OSError as error:
        raise StorageError(f"{sidecar} cannot be read: {error.strerror}", ErrorKind.IO) from error
    try:
        size = os.fstat(descriptor).st_size
        head = os.pread(descriptor, WAL_HEADER_BYTES, 0)
        if suffix == "-shm":
            return None if _is_shared_memory(head, size) else "is not the shared memory of a write-ahead log"
        if suffix == "-wal":
            return None if _is_wal(head) else "is not a write-ahead log"
        if size > 512 and os.pread(descriptor, len(JOURNAL_MAGIC), size - len(JOURNAL_MAGIC)) == JOURNAL_MAGIC:
            return "names a further journal"  # older SQLites deleted whatever file it names
        return None if _is_journal(head) else "is not a rollback journal"
    finally:
        if suffix != "-shm":
            os.close(descriptor)


def _shared(sidecar: str) -> int:
    """A descriptor that stays open for ever: closing it would drop the locks that SQLite may hold on the same file."""
    status = os.lstat(sidecar)
    with _keeping:
        descriptor = _kept.get((status.st_dev, status.st_ino))
        if descriptor is None:
            descriptor = os.open(sidecar, _NO_FOLLOW)
            found = os.fstat(descriptor)
            _kept[found.st_dev, found.st_ino] = descriptor
    return descriptor


def _is_journal(head: bytes) -> bool:
    """Whether a rollback journal begins like this; its first bytes are zero until it is synced, and after a commit."""
    if not head.strip(b"\0"):
        return True
    if len(head) < JOURNAL_HEADER_BYTES or not (head[:8] == JOURNAL_MAGIC or head[:12] == bytes(12)):
        return False
    sector, page = struct.unpack_from(">II", head, 20)
    return sector in SECTORS and page in PAGES


def _is_wal(head: bytes) -> bool:
    if not head.strip(b"\0"):
        return True
    if len(head) < WAL_HEADER_BYTES or head[:4] not in WAL_MAGICS:
        return False
    version, page = struct.unpack_from(">II", head, 4)
    return version == WAL_VERSION and page in PAGES


def _is_shared_memory(head: bytes, size: int) -> bool:
    if not head.strip(b"\0"):
        return size <= SHM_EMPTY_BYTES or size % SHM_UNIT_BYTES == 0
    return size % SHM_UNIT_BYTES == 0 and struct.unpack_from("=I", head)[0] == WAL_VERSION
